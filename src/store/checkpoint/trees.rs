//! The trees of a checkpoint: maps, catalogue, bitmap and deferred list, encoded into its homes.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::super::apply::body_entry;
use super::super::journal::{Bit, LeafChanges, add_change, apply_changes};
use super::super::state::{Listed, empty_maps};
use super::super::{Maps, OnDisk, State, Store, reuse};
use super::homes::{Counting, Homes, leaves_of};
use crate::error::Result;
use crate::format::{
    BlockPointer, DEFERRED_PER_BLOCK, DeferredEntry, DeferredKind, NodeKind, TreeRoot, encode_deferred,
};
use crate::id::{BLOCK_LENGTH, CheckpointNumber, Generation, SizeClass};
use crate::map::{Exclusive, Replaced, Shape, Tree, TreeWriter, exclusive};
use crate::space::LeafSource;

/// The fold's maps and the catalogue as they lie on disk, and the nodes replaced.
pub(super) type WrittenMaps = (Box<Maps>, Vec<Arc<Listed>>, Vec<DeferredEntry>);

impl Store {
    /// Writes the maps of the fold, and those of every snapshot that is not on disk yet, oldest first: nodes that they
    /// share are written once. Returns what the fold no longer reaches and no snapshot owns (R3).
    pub(super) fn write_maps(&self, state: &State, number: CheckpointNumber, homes: &mut Homes) -> Result<WrittenMaps> {
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
    pub(super) fn replaced_with_snapshots(
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
    pub(super) fn write_catalogue(
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
    pub(super) fn bitmap_changes(&self, state: &State, homes: &Homes, leaves_anew: &[u64]) -> LeafChanges {
        let mut changes = self.journal.changes_through(state.generation);
        for leaf in leaves_anew {
            changes.entry(*leaf).or_default();
        }
        for extent in &homes.extents {
            for leaf in leaves_of(*extent) {
                changes.entry(leaf).or_default();
            }
        }
        changes
    }

    /// How many blocks the bitmap will take, and which it will replace.
    pub(super) fn count_bitmap(
        &self,
        changes: &LeafChanges,
        number: CheckpointNumber,
    ) -> Result<(usize, Vec<DeferredEntry>)> {
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
    pub(super) fn replaced_lists(
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
    pub(super) fn write_deferred(
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
    pub(super) fn write_bitmap(
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
}

/// Writes the maps of one state; `tell` hears of what each replaced.
fn write_all(
    writer: &mut TreeWriter<'_>,
    maps: &Maps,
    mut tell: impl FnMut(usize, Vec<Replaced>) -> Result<()>,
) -> Result<Box<Maps>> {
    let mut written = Box::new(empty_maps());
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
pub(super) fn gone_from<'a>(
    on_disk: &'a BTreeMap<u64, OnDisk>,
    catalogue: &'a [Arc<Listed>],
) -> impl Iterator<Item = &'a OnDisk> {
    on_disk.values().filter(|entry| !is_listed(&entry.listed, catalogue))
}

pub(super) fn root_of(tree: &Tree) -> TreeRoot {
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
