//! Checkpoints: fold the records through a generation into the trees, then switch the superblock.
//!
//! A checkpoint runs beside commits. It has three steps, of which only the first and the last touch the store:
//!
//! | step | what | fails with |
//! | --- | --- | --- |
//! | [`Store::checkpoint_begin`] | fixes the fold c, takes homes, encodes every node, leaf and list | no space: nothing happened |
//! | [`CheckpointJob::write`] | writes them, in pieces, then syncs, then writes both copies of the superblock, syncs | a failed write of nodes: nothing happened; of a sync or superblock: poison |
//! | [`Store::checkpoint_finish`] | the superblock is durable: re-base, release, retire log segments | |
//!
//! - **R5** The homes are taken in the step that fixes c, and c is what is synced then. A block that is free then was
//!   released by R2 with a death at or before c; and every record after c is written later, so none mentions it.
//! - **S3** The superblock is written only after the sync of all it leads to has returned.
//! - **R4** The log goes on where it is: the superblock says where the record after c is expected.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::append::SPARES_NEEDED;
use super::apply::{body_entry, set_all};
use super::commit::Prepared;
use super::held::StateMaps;
use super::journal::{Bit, LeafChanges, add_change, apply_changes};
use super::state::Listed;
use super::{Maps, Medium, OnDisk, Running, State, Store, reuse};
use crate::disk::AlignedBuffer;
use crate::error::{Error, Result};
use crate::format::{
    BlockPointer, CodecId, DEFERRED_PER_BLOCK, DeferredEntry, DeferredKind, NodeKind, PointerFlags, SEGMENTS_LIMIT,
    SegmentReference, Superblock, TreeRoot, capacity, checksum, encode_deferred, slot_blocks,
};
use crate::id::{BLOCK_BYTES, BLOCK_LENGTH, Block, CheckpointNumber, Extent, Generation, PageId, SizeClass};
use crate::map::{Exclusive, Home, Replaced, Shape, Tree, TreeWriter, exclusive};
use crate::space::{LEAF_BLOCKS, LeafSource, Purpose, Request};

/// Blocks of nodes written at a time: so few that a commit beside it hardly waits.
const PIECE_BLOCKS: usize = 64;

/// A checkpoint between its begin and its end.
#[derive(Debug)]
pub struct CheckpointJob {
    medium: Arc<Medium>,
    superblock: Superblock,
    homes: Homes,
    /// How many of the homes' blocks are written.
    written: usize,
    stage: Stage,
    superblock_first: bool,
    maps: Box<Maps>,
    listed: Vec<Arc<Listed>>,
    on_disk: BTreeMap<u64, OnDisk>,
    bitmap: Tree,
    catalogue: Tree,
    deferred: Tree,
    replaced: Vec<DeferredEntry>,
    journal_seen: usize,
    bodies_folded: Generation,
    log_blocks: u64,
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Nodes,
    Sync,
    Superblock,
    LastSync,
    Done,
}

/// Whether a job has more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Call again.
    More,
    /// The superblock is durable.
    Done,
}

/// What a checkpoint did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointReport {
    /// Its number.
    pub checkpoint: CheckpointNumber,
    /// The generation folded.
    pub generation: Generation,
    /// Blocks written, superblocks included.
    pub blocks: u64,
}

/// The fold's maps and the catalogue as they lie on disk, and the nodes replaced.
type WrittenMaps = (Box<Maps>, Vec<Arc<Listed>>, Vec<DeferredEntry>);

/// Blocks taken for a checkpoint, and what goes into them, in order.
#[derive(Debug)]
struct Homes {
    extents: Vec<Extent>,
    blocks: Vec<Block>,
    bytes: AlignedBuffer,
    used: usize,
}

impl Home for Homes {
    fn place(&mut self, bytes: &[u8; BLOCK_LENGTH]) -> Result<Block> {
        // The bound was counted beforehand; to exceed it is a bug of ours, and must not overwrite anything.
        let address = *self.blocks.get(self.used).ok_or(Error::Exhausted { counter: "checkpoint home" })?;
        let at = self.used * BLOCK_LENGTH;
        self.bytes[at..at + BLOCK_LENGTH].copy_from_slice(bytes);
        self.used += 1;
        Ok(address)
    }
}

impl Homes {
    fn place_leaf(&mut self, bytes: &[u8; BLOCK_LENGTH], birth: Generation) -> Result<BlockPointer> {
        Ok(BlockPointer {
            address: self.place(bytes)?,
            codec: CodecId::RAW,
            flags: PointerFlags::default(),
            stored_length: BLOCK_LENGTH as u32,
            checksum: checksum(bytes),
            birth,
        })
    }

    /// The extents that the blocks from number `from` to `until` are, as few as can be.
    fn runs(&self, from: usize, until: usize) -> Vec<Extent> {
        let mut runs: Vec<Extent> = Vec::new();
        for block in &self.blocks[from..until] {
            match runs.last_mut() {
                Some(run) if run.end() == *block => run.blocks += 1,
                _ => runs.push(Extent { start: *block, blocks: 1 }),
            }
        }
        runs
    }
}

/// Counts the nodes that a writer would place, and places none.
struct Counting(u64);

impl Home for Counting {
    fn place(&mut self, _: &[u8; BLOCK_LENGTH]) -> Result<Block> {
        self.0 += 1;
        // Any block will do: what is encoded is thrown away.
        Ok(Block(crate::format::FIRST_FREE_BLOCK))
    }

    fn is_real(&self) -> bool {
        false
    }
}

impl Store {
    /// Whether a checkpoint is due: by the length of the log, or by the number of nodes that differ from the disk.
    pub fn checkpoint_due(&self) -> bool {
        let segments = self.log.segments().count() + self.log.spares().len();
        self.checkpoint_running == Running::No
            && (self.log_blocks >= self.checkpoint_due_blocks()
                || self.dirty_nodes >= 4 * self.settings.cached_nodes as u64
                || segments >= SEGMENTS_LIMIT * 3 / 4)
    }

    /// Blocks of log after which a checkpoint is due: a quarter of the maps, at least 8 MiB, at most 64 MiB. But in a file
    /// that may not grow much more, no more than a 64th of what is free: some three times as much is log, and where
    /// space is scarce, what is kept for log is paid for by moving pages.
    pub(super) fn checkpoint_due_blocks(&self) -> u64 {
        self.settings.checkpoint_log_blocks.unwrap_or_else(|| {
            let nodes: u64 = self.folded.maps.iter().map(|root| Shape::nodes_at_most(root.length)).sum();
            let room = self.space.blocks_free() + self.settings.blocks_limit.saturating_sub(self.space.blocks_total());
            (nodes / 4).clamp(8 << 20 >> 12, 64 << 20 >> 12).min((room / 64).max(1 << 20 >> 12))
        })
    }

    /// At most how many blocks the next checkpoint needs.
    pub(super) fn checkpoint_bound(&self) -> u64 {
        let state = self.published.state();
        let fresh = |listed: &&Arc<Listed>| !self.on_disk.contains_key(&listed.entry.id);
        let snapshots = state.catalogue.iter().filter(fresh).count() as u64;
        let maps = (self.dirty_nodes + SizeClass::COUNT as u64) * (1 + snapshots);
        let leaves_total = self.space.blocks_total().div_ceil(LEAF_BLOCKS.into()) + 2;
        let leaves = leaves_total.min(2 * self.journal.len() as u64 + maps / u64::from(LEAF_BLOCKS) + 8);
        let bitmap = leaves + Shape::nodes_at_most(leaves_total).min(leaves * 3);
        let listed = state.catalogue.len().max(self.on_disk.len()) as u64;
        let gone: Vec<_> = gone_from(&self.on_disk, &state.catalogue).collect();
        let changed = snapshots + gone.len() as u64;
        let catalogue = snapshots + Shape::nodes_at_most(listed + snapshots).min(3 * changed);
        let roots = gone.iter().flat_map(|gone| &gone.listed.entry.maps);
        // A length that damage made up does not make more nodes than there are blocks.
        let total = self.space.blocks_total();
        let of_gone: u64 = roots.map(|root| Shape::nodes_at_most(root.length).min(total)).sum();
        let rewritten = Shape::nodes_at_most(self.deferred_tree.length()) + self.deferred_tree.length();
        let deferred =
            of_gone + self.deferred.len() as u64 + maps + bitmap + 2 * catalogue + rewritten + self.bodies.len() as u64;
        let deferred_blocks = deferred.div_ceil(DEFERRED_PER_BLOCK as u64) + 1;
        maps + bitmap + catalogue + deferred_blocks + Shape::nodes_at_most(deferred_blocks) + 8
    }

    /// Makes a checkpoint from begin to end, unless nothing changed since the last.
    ///
    /// **Durability**: when it returned, both superblock copies are durable; commits were so before.
    ///
    /// # Errors
    /// `NoSpace`: nothing happened. `Io`, `Poisoned`: see the steps.
    pub fn checkpoint(&mut self) -> Result<Option<CheckpointReport>> {
        self.sync()?;
        if self.folded.generation == self.synced && self.folded.checkpoint.0 > 1 {
            return Ok(None);
        }
        let mut job = self.checkpoint_begin()?;
        let written = loop {
            match job.write() {
                Ok(Progress::More) => {}
                Ok(Progress::Done) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        match written {
            Ok(()) => self.checkpoint_finish(job).map(Some),
            Err(error) => {
                self.checkpoint_abandon(job)?;
                Err(error)
            }
        }
    }

    /// Fixes what the checkpoint will fold, and where it will go.
    ///
    /// # Errors
    /// `NoSpace`, and those of reading trees; nothing happened then.
    pub fn checkpoint_begin(&mut self) -> Result<CheckpointJob> {
        self.medium.check()?;
        if self.checkpoint_running == Running::Yes {
            return Err(Error::Busy);
        }
        self.release()?;
        let anew = self.bitmap_source.anew();
        let mut extents = Vec::new();
        match self.take_homes(&mut extents, anew.len()).and_then(|()| self.build_job(&extents, &anew)) {
            Ok(job) => {
                self.checkpoint_running = Running::Yes;
                Ok(job)
            }
            Err(error) => {
                for extent in extents {
                    self.space.release(extent)?;
                }
                Err(error)
            }
        }
    }

    /// Takes at least as many blocks as the checkpoint can need, in as few extents as can be. Leaves of the bitmap that
    /// were damaged are written besides what changed, each with the nodes above it.
    fn take_homes(&mut self, extents: &mut Vec<Extent>, leaves_anew: usize) -> Result<()> {
        let mut needed = self.checkpoint_bound() + 4 * leaves_anew as u64;
        while needed > 0 {
            let blocks = needed.min(LEAF_BLOCKS.into()) as u32;
            let request = Request { blocks, minimum: 1, multiple: 1, purpose: Purpose::Node };
            let extent = self.obtain(&request)?.ok_or_else(|| self.no_space(needed))?;
            extents.push(extent);
            needed -= u64::from(extent.blocks);
        }
        Ok(())
    }

    /// The state to fold: the newest that is synced.
    fn state_to_fold(&self) -> Arc<State> {
        if let Some(stale) = self.stale_state.as_ref().filter(|state| state.base == self.folded.checkpoint) {
            return Arc::clone(stale);
        }
        self.synced_state.clone().unwrap_or_else(|| self.published.state())
    }

    fn build_job(&mut self, extents: &[Extent], leaves_anew: &[u64]) -> Result<CheckpointJob> {
        let number = self.folded.checkpoint.next().ok_or(Error::Exhausted { counter: "checkpoint" })?;
        let state = self.state_to_fold();
        let blocks: Vec<Block> =
            extents.iter().flat_map(|extent| (extent.start.0..extent.end().0).map(Block)).collect();
        let bytes = AlignedBuffer::zeroed(blocks.len() * BLOCK_LENGTH);
        let mut homes = Homes { extents: extents.to_vec(), blocks, bytes, used: 0 };

        let (maps, listed, mut replaced) = self.write_maps(&state, number, &mut homes)?;
        let mut on_disk = self.on_disk.clone();
        self.replaced_with_snapshots(&state, number, &mut replaced)?;
        let catalogue = self.write_catalogue(&state, &listed, &mut on_disk, number, &mut homes, &mut replaced)?;
        let changes = self.bitmap_changes(&state, &homes, leaves_anew);
        let (bitmap_blocks, bitmap_replaced) = self.count_bitmap(&changes, number)?;
        replaced.extend(bitmap_replaced);
        self.replaced_lists(number, state.generation, &mut replaced)?;
        let (deferred, deferred_entries) = self.write_deferred(&state, &replaced, number, &mut homes)?;
        let used = homes.used + bitmap_blocks;
        if used > homes.blocks.len() {
            return Err(Error::Exhausted { counter: "checkpoint home" });
        }
        let (bitmap, blocks_free) = self.write_bitmap(changes, used, number, &state, &mut homes)?;
        let superblock = Superblock {
            checkpoint: number,
            generation: state.generation,
            incarnation: state.incarnation,
            blocks_total: self.space.blocks_total(),
            blocks_free,
            deferred_entries,
            next_catalogue_id: self.next_catalogue_id,
            header: state.header.to_vec(),
            bitmap: root_of(&bitmap),
            catalogue: root_of(&catalogue),
            deferred: root_of(&deferred),
            maps: std::array::from_fn(|index| root_of(&maps[index])),
            ..self.folded.clone()
        };
        let superblock = self.with_log(superblock);
        // What the bound took too much of goes back at once; no record knows of it.
        for rest in homes.runs(homes.used, homes.blocks.len()) {
            self.space.release(rest)?;
        }
        homes.blocks.truncate(homes.used);
        homes.extents = homes.runs(0, homes.used);
        Ok(CheckpointJob {
            medium: Arc::clone(&self.medium),
            superblock,
            homes,
            written: 0,
            stage: Stage::Nodes,
            superblock_first: self.sabotaged_superblock_first(),
            maps,
            listed,
            on_disk,
            bitmap,
            catalogue,
            deferred,
            replaced,
            journal_seen: self.journal.len(),
            bodies_folded: state.generation,
            log_blocks: self.log_blocks,
        })
    }

    /// Writes the maps of the fold, and those of every snapshot that is not on disk yet, oldest first: nodes that they
    /// share are written once. Returns what the fold no longer reaches and no snapshot owns (R3).
    fn write_maps(&self, state: &State, number: CheckpointNumber, homes: &mut Homes) -> Result<WrittenMaps> {
        let mut writer = TreeWriter::new(&self.nodes, number, homes);
        let mut listed = Vec::new();
        for old in state.catalogue.iter() {
            let Some(maps) = old.maps.as_ref().filter(|_| !self.on_disk.contains_key(&old.entry.id)) else {
                listed.push(Arc::clone(old));
                continue;
            };
            let maps = write_all(&mut writer, maps, |_, _| Ok(()))?;
            let mut entry = old.entry.clone();
            entry.maps = std::array::from_fn(|index| root_of(&maps[index]));
            listed.push(Arc::new(Listed { entry, maps: Some(maps) }));
        }
        // Two snapshots can own a node that the fold no longer reaches: the newest that was on disk before, and the
        // oldest that is written now (later ones reach no more of the old nodes than that one).
        let on_disk = |listed: &&Arc<Listed>| self.on_disk.contains_key(&listed.entry.id);
        let snapshots = || listed.iter().filter(|listed| listed.maps.is_some());
        let owners: Vec<&Maps> = [snapshots().rfind(on_disk), snapshots().find(|listed| !on_disk(listed))]
            .into_iter()
            .flatten()
            .filter_map(|listed| listed.maps.as_deref())
            .collect();
        let mut dead = Vec::new();
        let maps = write_all(&mut writer, &state.maps.get(), |class, replaced| {
            for node in replaced {
                let mut owned = false;
                for owner in &owners {
                    owned |= owner[class].reaches(&self.nodes, &node.pointer, node.level, node.position)?;
                }
                if !owned {
                    dead.push(dead_node(&node, number));
                }
            }
            Ok(())
        })?;
        Ok((maps, listed, dead))
    }

    /// The nodes that only snapshots reach whose deletion this checkpoint folds. (Their pages were named by the
    /// deletion's record. Nodes are the checkpoints' own: a superblock may lead to them until both slots are past.)
    fn replaced_with_snapshots(
        &self,
        state: &State,
        number: CheckpointNumber,
        replaced: &mut Vec<DeferredEntry>,
    ) -> Result<()> {
        let mut seen = HashSet::new();
        let kept: Vec<&Listed> = self
            .on_disk
            .values()
            .map(|entry| &*entry.listed)
            .filter(|listed| is_listed(listed, &state.catalogue))
            .collect();
        for gone in gone_from(&self.on_disk, &state.catalogue) {
            let Some(maps) = &gone.listed.maps else { continue };
            let id = gone.listed.entry.id;
            let before = kept.iter().rfind(|listed| listed.entry.id < id && listed.maps.is_some());
            let after = kept.iter().find(|listed| listed.entry.id > id && listed.maps.is_some());
            let neighbours: Vec<&Maps> =
                [before, after].into_iter().flatten().filter_map(|listed| listed.maps.as_deref()).collect();
            for class in SizeClass::all() {
                let folded = Tree::from_root(Shape::map(class), self.folded.maps[class.index()]);
                let mut others: Vec<&Tree> = neighbours.iter().map(|maps| &maps[class.index()]).collect();
                others.push(&folded);
                let mut found = Vec::new();
                exclusive(&self.nodes, &maps[class.index()], &others, &mut |exclusive| {
                    if let Exclusive::Node(pointer) = exclusive {
                        found.push(pointer);
                    }
                    Ok(())
                })?;
                for pointer in found.into_iter().filter(|pointer| seen.insert(*pointer)) {
                    // Whoever holds the snapshot has a base older than this checkpoint.
                    let kind = DeferredKind::Node { first: CheckpointNumber(0), replaced: number };
                    replaced.push(DeferredEntry { extent: pointer.extent(), kind });
                }
            }
        }
        Ok(())
    }

    /// Brings the catalogue on disk to the state's.
    fn write_catalogue(
        &self,
        state: &State,
        listed: &[Arc<Listed>],
        on_disk: &mut BTreeMap<u64, OnDisk>,
        number: CheckpointNumber,
        homes: &mut Homes,
        replaced: &mut Vec<DeferredEntry>,
    ) -> Result<Tree> {
        let mut tree = self.catalogue.clone();
        for gone in gone_from(&self.on_disk, &state.catalogue) {
            let old = tree.get(&self.nodes, gone.slot)?;
            replaced.push(DeferredEntry { extent: old.extent(), kind: held_by_superblocks(number) });
            tree.set(gone.slot, BlockPointer::null(state.generation));
            on_disk.remove(&gone.listed.entry.id);
        }
        for listed in listed.iter().filter(|listed| !self.on_disk.contains_key(&listed.entry.id)) {
            let in_use: BTreeSet<u64> = on_disk.values().map(|entry| entry.slot).collect();
            let slot = (0..).find(|slot| !in_use.contains(slot)).unwrap_or(tree.length());
            on_disk.insert(listed.entry.id, OnDisk { slot, listed: Arc::clone(listed) });
            let pointer = homes.place_leaf(&listed.entry.encode(), state.generation)?;
            tree.set(slot, pointer);
        }
        let (tree, nodes) = TreeWriter::new(&self.nodes, number, homes).write(&tree)?;
        replaced.extend(nodes.iter().map(|node| dead_node(node, number)));
        Ok(tree)
    }

    /// The bits that change: what the journal says through the fold, and the leaves that the homes lie in. Leaves that
    /// were damaged are written though nothing in them changes.
    fn bitmap_changes(&self, state: &State, homes: &Homes, leaves_anew: &[u64]) -> LeafChanges {
        let mut changes = self.journal.changes_through(state.generation);
        for leaf in leaves_anew {
            changes.entry(*leaf).or_default();
        }
        for extent in &homes.extents {
            let (first, last) =
                (extent.start.0 / u64::from(LEAF_BLOCKS), (extent.end().0 - 1) / u64::from(LEAF_BLOCKS));
            for leaf in first..=last {
                changes.entry(leaf).or_default();
            }
        }
        changes
    }

    /// How many blocks the bitmap will take, and which it will replace.
    fn count_bitmap(&self, changes: &LeafChanges, number: CheckpointNumber) -> Result<(usize, Vec<DeferredEntry>)> {
        let mut tree = self.bitmap.clone();
        let mut replaced = Vec::new();
        for leaf in changes.keys() {
            let old = self.bitmap.get(&self.nodes, *leaf)?;
            if !old.extent().is_empty() {
                replaced.push(DeferredEntry { extent: old.extent(), kind: held_by_superblocks(number) });
            }
            tree.set(*leaf, BlockPointer::zero(Generation(0)));
        }
        let mut counting = Counting(0);
        let (_, nodes) = TreeWriter::new(&self.nodes, number, &mut counting).write(&tree)?;
        replaced.extend(nodes.iter().map(|node| dead_node(node, number)));
        Ok((changes.len() + counting.0 as usize, replaced))
    }

    /// What else the checkpoint replaces: the whole deferred list, and the bodies of the records it folds.
    fn replaced_lists(
        &self,
        number: CheckpointNumber,
        folded: Generation,
        replaced: &mut Vec<DeferredEntry>,
    ) -> Result<()> {
        exclusive(&self.nodes, &self.deferred_tree, &[], &mut |found| {
            let (Exclusive::Node(pointer) | Exclusive::Entry { pointer, .. }) = found;
            replaced.push(DeferredEntry { extent: pointer.extent(), kind: held_by_superblocks(number) });
            Ok(())
        })?;
        let folded_bodies = self.bodies.iter().filter(|(_, generation)| *generation <= folded);
        replaced.extend(folded_bodies.map(|(extent, _)| body_entry(*extent, number)));
        Ok(())
    }

    /// Writes the deferred list as of the fold: deaths after it have not happened yet.
    fn write_deferred(
        &self,
        state: &State,
        replaced: &[DeferredEntry],
        number: CheckpointNumber,
        homes: &mut Homes,
    ) -> Result<(Tree, u64)> {
        let happened = |entry: &&DeferredEntry| reuse::death(entry) <= state.generation;
        let entries: Vec<DeferredEntry> = self.deferred.entries().filter(happened).chain(replaced).copied().collect();
        let mut tree = Tree::empty(Shape::of(NodeKind::Deferred));
        for (part, position) in entries.chunks(DEFERRED_PER_BLOCK).zip(0..) {
            tree.set(position, homes.place_leaf(&encode_deferred(part), state.generation)?);
        }
        let (tree, _) = TreeWriter::new(&self.nodes, number, homes).write(&tree)?;
        Ok((tree, entries.len() as u64))
    }

    /// Writes the bitmap as of the fold, with the first `used` homes in it. Returns how many bits are clear.
    fn write_bitmap(
        &mut self,
        mut changes: LeafChanges,
        used: usize,
        number: CheckpointNumber,
        state: &State,
        homes: &mut Homes,
    ) -> Result<(Tree, u64)> {
        for run in homes.runs(0, used) {
            add_change(&mut changes, run, Bit::Used);
        }
        let mut tree = self.bitmap.clone();
        let mut free = self.folded.blocks_free + (self.space.blocks_total() - self.folded.blocks_total);
        for (&leaf, changes) in &changes {
            // In memory the leaf must be as it was before this checkpoint: its old place may be used again later.
            self.space.leaf_bytes(leaf)?;
            let mut bits = self.bitmap_source.load(leaf)?;
            let before = ones(&bits);
            apply_changes(&mut bits, leaf, changes);
            free = (free + before).saturating_sub(ones(&bits));
            tree.set(leaf, homes.place_leaf(&bits, state.generation)?);
        }
        let (tree, _) = TreeWriter::new(&self.nodes, number, homes).write(&tree)?;
        Ok((tree, free))
    }

    /// Says where the record after the fold is expected, and which segments are log.
    fn with_log(&self, mut superblock: Superblock) -> Superblock {
        let folded = superblock.generation;
        let note = self.notes.iter().rev().find(|note| note.generation == folded);
        let position = match note {
            Some(note) => note.position,
            None if self.folded.generation == folded => self.folded_position(),
            None => self.log.position(),
        };
        // A segment that both slots have folded when this superblock is durable is log no more (R4).
        let folded_by_both = match self.sabotaged_restart_log() {
            true => folded,
            false => self.folded.generation,
        };
        let all: Vec<_> = self.log.segments().collect();
        let here = all.iter().position(|segment| segment.reference.extent.start == position.segment).unwrap_or(0);
        let needed = |index: usize| index >= here || all[index].last > folded_by_both;
        superblock.log_segment = (0..here).filter(|index| needed(*index)).count() as u32;
        superblock.segments = (0..all.len()).filter(|index| needed(*index)).map(|index| all[index].reference).collect();
        let spares = self.log.spares().iter().map(|extent| SegmentReference { extent: *extent, salt: 0 });
        superblock.segments.extend(spares);
        superblock.log_offset = position.offset;
        superblock.log_seal = position.seal;
        superblock
    }

    fn folded_position(&self) -> crate::log::LogPosition {
        let segment = self.folded.segments.get(self.folded.log_segment as usize);
        crate::log::LogPosition {
            segment: segment.map(|segment| segment.extent.start).unwrap_or_default(),
            offset: self.folded.log_offset,
            seal: self.folded.log_seal,
        }
    }

    /// The superblock is durable: the store stands on it from now on.
    ///
    /// # Errors
    /// Those of releasing; the checkpoint itself is done.
    pub fn checkpoint_finish(&mut self, job: CheckpointJob) -> Result<CheckpointReport> {
        self.checkpoint_running = Running::No;
        let folded = job.superblock.generation;
        let report = CheckpointReport {
            checkpoint: job.superblock.checkpoint,
            generation: folded,
            blocks: job.homes.used as u64 + 2,
        };
        self.counters.checkpoints += 1;
        self.counters.checkpoint_bytes += report.blocks * BLOCK_BYTES;
        self.counters.syncs += 2;
        self.folded_before = std::mem::replace(&mut self.folded, job.superblock).generation;
        // Not the new fold: without its superblock, recovery verifies what the older one leads to.
        let anchoring = if self.sabotaged_fold_anchors() { folded } else { self.folded_before };
        self.anchored = self.anchored.max(anchoring);
        self.journal.forget(folded, job.journal_seen);
        self.bitmap = job.bitmap.clone();
        self.set_bitmap_source(job.bitmap);
        self.catalogue = job.catalogue;
        self.deferred_tree = job.deferred;
        self.on_disk = job.on_disk;
        self.bodies.retain(|(_, generation)| *generation > job.bodies_folded);
        job.replaced.into_iter().for_each(|entry| self.deferred.push(entry));
        self.log_blocks -= job.log_blocks;

        // Re-base: the fold's trees, and the records after it on top. Views keep what they hold.
        self.notes.retain(|note| note.generation > folded);
        let (notes, number) = (&self.notes, self.folded.checkpoint);
        let mut listed = job.listed;
        let mut maps = job.maps;
        let mut created = 0;
        self.published.change(|state| {
            // Snapshots made after the fold stand on the new trees as well.
            let newer = state.catalogue.iter().filter(|listed| listed.entry.generation > folded);
            listed.retain(|old| state.catalogue.iter().any(|present| present.entry.id == old.entry.id));
            let mut newer: Vec<Listed> = newer.map(|listed| (**listed).clone()).collect();
            for note in notes {
                created += set_all(&mut maps, &note.sets) as u64;
                let here = newer.iter_mut().filter(|listed| listed.entry.generation == note.generation);
                here.filter(|listed| listed.maps.is_some()).for_each(|listed| listed.maps = Some(maps.clone()));
            }
            listed.extend(newer.into_iter().map(Arc::new));
            state.maps = StateMaps::new(*maps);
            state.base = number;
            state.catalogue = Arc::new(listed);
        });
        self.dirty_nodes = created;
        if self.synced_state.is_some() {
            self.rebase_synced_state();
        }

        let retire_through = if self.sabotaged_restart_log() { folded } else { self.folded_before };
        for segment in self.log.retire(retire_through) {
            // The log's working set is kept, so that it need not look for room in a full and fragmented file.
            let spare_blocks: u64 = self.log.spares().iter().map(|extent| u64::from(extent.blocks)).sum();
            let kept = self.log.blocks_in_use() + spare_blocks;
            if segment.is_without_pages() && kept <= 2 * self.checkpoint_due_blocks() {
                self.log.add_spare(segment.reference.extent);
                continue;
            }
            for run in segment.blocks_without_pages() {
                self.space.release(run)?;
            }
        }
        self.release()?;
        #[cfg(feature = "tracing")]
        tracing::debug!(checkpoint = report.checkpoint.0, generation = folded.0, blocks = report.blocks, "checkpoint");
        Ok(report)
    }

    /// The synced state stands on the new checkpoint too, or a later checkpoint would build on nodes that are gone.
    fn rebase_synced_state(&mut self) {
        let mut state = (*self.published.state()).clone();
        let Some(old) = self.synced_state.take() else { return };
        let of_fold: Maps = std::array::from_fn(|index| {
            Tree::from_root(Shape::map(SizeClass::from_index(index)), self.folded.maps[index])
        });
        state.maps = StateMaps::new(of_fold);
        for note in self.notes.iter().filter(|note| note.generation <= old.generation) {
            set_all(state.maps.get_mut(), &note.sets);
        }
        let catalogue = old.catalogue.iter().map(|old| {
            let newer = state.catalogue.iter().find(|newer| newer.entry.id == old.entry.id);
            Arc::clone(newer.unwrap_or(old))
        });
        state.catalogue = Arc::new(catalogue.collect());
        state.generation = old.generation;
        state.incarnation = old.incarnation;
        state.header = Arc::clone(&old.header);
        self.synced_state = Some(Arc::new(state));
    }

    /// A checkpoint that could not be written: its homes are free again.
    ///
    /// # Errors
    /// Those of loading the bitmap.
    pub fn checkpoint_abandon(&mut self, job: CheckpointJob) -> Result<()> {
        self.checkpoint_running = Running::No;
        for extent in job.homes.extents {
            self.space.release(extent)?;
        }
        Ok(())
    }

    /// Refuses what would leave no room for the next checkpoint and a commit that frees pages: so a full store can
    /// always be emptied. Commits that only free pages may use that room.
    pub(super) fn admit(&mut self, changes: &super::Changes<'_>, prepared: &Prepared<'_>) -> Result<()> {
        // A page of zeros that was not there before takes its part of a node.
        if changes.gives_back() && prepared.pages.iter().all(|page| !page.old.is_null()) {
            return Ok(());
        }
        self.keep_room(map_nodes_of(changes.pages.keys()))
    }

    /// Refuses if there is no room for the next checkpoint, with `nodes` nodes more than now, and for a commit that
    /// frees pages.
    pub(super) fn keep_room(&mut self, nodes: u64) -> Result<()> {
        // Log for commits that free: their own segments, since what small commits leave is in single blocks.
        while self.log.spares().len() < SPARES_NEEDED {
            let blocks = self.settings.log_segment_blocks;
            let minimum = self.settings.segment_minimum_blocks();
            let request = Request { blocks, minimum, multiple: 1, purpose: Purpose::Log };
            let spare = self.obtain(&request)?.ok_or_else(|| self.no_space(minimum.into()))?;
            self.log.add_spare(spare);
        }
        let reserve = self.reserve_blocks() + nodes;
        if self.space.blocks_free() < reserve {
            self.release()?;
        }
        let free = self.space.blocks_free();
        if free < reserve && !(self.grow(reserve - free)? && self.space.blocks_free() >= reserve) {
            return Err(self.no_space(reserve));
        }
        Ok(())
    }
}

impl CheckpointJob {
    /// Does the next piece of writing.
    ///
    /// # Errors
    /// `Io`: if it came of nodes, the checkpoint must be abandoned and can be made again; of a sync or a superblock,
    /// the store is poisoned.
    pub fn write(&mut self) -> Result<Progress> {
        self.stage = match self.stage {
            Stage::Nodes if self.superblock_first && self.written == 0 => {
                self.write_superblock()?;
                self.medium.sync()?;
                self.superblock_first = false;
                Stage::Nodes
            }
            Stage::Nodes if self.written < self.homes.used => {
                self.write_piece()?;
                Stage::Nodes
            }
            Stage::Nodes => Stage::Sync,
            Stage::Sync => {
                self.medium.sync()?;
                Stage::Superblock
            }
            Stage::Superblock => {
                self.write_superblock()?;
                Stage::LastSync
            }
            Stage::LastSync => {
                self.medium.sync()?;
                Stage::Done
            }
            Stage::Done => return Ok(Progress::Done),
        };
        Ok(Progress::More)
    }

    fn write_piece(&mut self) -> Result<()> {
        let blocks = &self.homes.blocks[self.written..self.homes.used];
        let contiguous = blocks.iter().zip(blocks[0].0..).take_while(|(block, expected)| block.0 == *expected);
        let count = contiguous.count().min(PIECE_BLOCKS);
        let at = self.written * BLOCK_LENGTH;
        self.medium.write(blocks[0], &self.homes.bytes[at..at + count * BLOCK_LENGTH])?;
        self.written += count;
        Ok(())
    }

    fn write_superblock(&mut self) -> Result<()> {
        let mut block = AlignedBuffer::zeroed(BLOCK_LENGTH);
        block.copy_from_slice(&self.superblock.encode());
        for copy in slot_blocks(self.superblock.checkpoint) {
            self.medium.write_vital(Block(copy), &block)?;
        }
        Ok(())
    }
}

/// How many nodes the maps have on the way to these pages, which come in order.
fn map_nodes_of<'a>(pages: impl Iterator<Item = &'a PageId>) -> u64 {
    let mut nodes = 0;
    let mut last: Option<PageId> = None;
    for page in pages {
        let fresh = |level: u8| {
            let below = capacity(level);
            last.is_none_or(|last| last.class() != page.class() || last.index() / below != page.index() / below)
        };
        // Six levels cover every index; above the first that is shared, all are.
        nodes += (0..6).take_while(|level| fresh(*level)).count() as u64;
        last = Some(*page);
    }
    nodes
}

/// Writes the maps of one state; `tell` hears of what each replaced.
fn write_all(
    writer: &mut TreeWriter<'_>,
    maps: &Maps,
    mut tell: impl FnMut(usize, Vec<Replaced>) -> Result<()>,
) -> Result<Box<Maps>> {
    let mut written = Box::new(super::state::empty_maps());
    for (class, map) in maps.iter().enumerate() {
        let (tree, replaced) = writer.write(map)?;
        written[class] = tree;
        tell(class, replaced)?;
    }
    Ok(written)
}

fn is_listed(listed: &Listed, catalogue: &[Arc<Listed>]) -> bool {
    catalogue.binary_search_by_key(&listed.entry.id, |present| present.entry.id).is_ok()
}

/// The entries on disk that a catalogue does not have any more.
fn gone_from<'a>(on_disk: &'a BTreeMap<u64, OnDisk>, catalogue: &'a [Arc<Listed>]) -> impl Iterator<Item = &'a OnDisk> {
    on_disk.values().filter(|entry| !is_listed(&entry.listed, catalogue))
}

fn root_of(tree: &Tree) -> TreeRoot {
    tree.clean_root().unwrap_or_default()
}

/// The lifetime of a block that no reader follows: only the superblocks hold it.
fn held_by_superblocks(number: CheckpointNumber) -> DeferredKind {
    DeferredKind::Node { first: number, replaced: number }
}

fn dead_node(node: &Replaced, number: CheckpointNumber) -> DeferredEntry {
    DeferredEntry {
        extent: node.pointer.extent(),
        kind: DeferredKind::Node { first: node.checkpoint.min(number), replaced: number },
    }
}

fn ones(bits: &[u8; BLOCK_LENGTH]) -> u64 {
    bits.iter().map(|byte| u64::from(byte.count_ones())).sum()
}
