//! Leaves of the bitmap, as they are first needed; and a damaged one, made anew.
//!
//! A leaf says which blocks are in use in the state that the newest checkpoint folds. All of that can be found otherwise:
//! what its trees reach, what its deferred list names. So a leaf whose checksum does not fit is no loss.
//!
//! - **B1** Everything that the trees of the checkpoint stand on lies untouched until a newer one is durable (R3), but for
//!   the trees of chunks of large pages that were changed or freed since (R2). What those lose is named by the records
//!   since the fold, and what they keep is reached by the pages' newer versions.
//! - **B2** A leaf is made anew only if nothing else is damaged that could have a say in it. Else the damage is told.
//! - **B3** A leaf made anew is written by the next checkpoint.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::body::load_body;
use super::chunks::chunk_tree;
use super::load::{load, maps_under};
use super::{Maps, Medium, Published};
use crate::error::{Corruption, Error, Fault, Result, Structure};
use crate::format::{BlockPointer, Entry, FIRST_FREE_BLOCK, Superblock};
use crate::id::{BLOCK_LENGTH, Extent, Generation, PageId, SizeClass};
use crate::log::{LogStart, Scanner};
use crate::map::{Exclusive, Nodes, Tree, exclusive};
use crate::space::{LEAF_BLOCKS, LeafBytes, LeafSource};

/// Leaves of the bitmap, by way of the newest checkpoint's tree. A leaf that is not in memory has not changed since
/// the store was opened, so every later checkpoint's tree has it unchanged.
#[derive(Debug)]
pub(super) struct BitmapSource {
    medium: Arc<Medium>,
    nodes: Arc<Nodes>,
    published: Arc<Published>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    superblock: Superblock,
    tree: Tree,
    /// Leaves that were damaged, as they must be, until a checkpoint has written them.
    anew: BTreeMap<u64, Box<LeafBytes>>,
    made_anew: u64,
}

impl BitmapSource {
    /// The leaves of `tree`, which is that of `superblock`.
    pub(super) fn new(
        medium: &Arc<Medium>,
        nodes: &Arc<Nodes>,
        published: &Arc<Published>,
        superblock: Superblock,
        tree: Tree,
    ) -> Arc<Self> {
        let inner = Mutex::new(Inner { superblock, tree, anew: BTreeMap::new(), made_anew: 0 });
        let (medium, nodes, published) = (Arc::clone(medium), Arc::clone(nodes), Arc::clone(published));
        Arc::new(Self { medium, nodes, published, inner })
    }

    /// A newer checkpoint is durable. Leaves made anew that it has written are on disk again.
    pub(super) fn set(&self, superblock: Superblock, tree: Tree) {
        let inner = &mut *self.lock();
        let old = std::mem::replace(&mut inner.tree, tree);
        inner.superblock = superblock;
        let tree = &inner.tree;
        inner.anew.retain(|leaf, _| match (old.get(&self.nodes, *leaf), tree.get(&self.nodes, *leaf)) {
            (Ok(old), Ok(new)) => old == new,
            _ => true,
        });
    }

    /// The leaves that the next checkpoint must write (B3).
    pub(super) fn anew(&self) -> Vec<u64> {
        self.lock().anew.keys().copied().collect()
    }

    /// How many leaves were made anew.
    pub(super) fn made_anew(&self) -> u64 {
        self.lock().made_anew
    }

    /// What a damaged leaf must have been.
    fn make_anew(&self, superblock: &Superblock, leaf: u64) -> Result<Box<LeafBytes>> {
        let mut bits = Bits { leaf, bits: Box::new([0; BLOCK_LENGTH]) };
        bits.claim(Extent::new(0, FIRST_FREE_BLOCK as u32));
        let since = Since::read(&self.medium, superblock, self.published.state().generation)?;
        since.died.iter().for_each(|extent| bits.claim(*extent));

        let loaded = load(&self.nodes, superblock)?;
        for entry in loaded.replayed.into_entries() {
            bits.claim(entry.extent);
        }
        for tree in [&loaded.bitmap, &loaded.catalogue, &loaded.deferred_tree] {
            exclusive(&self.nodes, tree, &[], &mut |found| {
                let (Exclusive::Node(pointer) | Exclusive::Entry { pointer, .. }) = found;
                bits.claim(pointer.extent());
                Ok(())
            })?;
        }
        let live = maps_under(&superblock.maps);
        self.claim_maps(&live, None, &Reached::Live(&since), &mut bits)?;
        let mut newer = &live;
        for listed in loaded.listed.iter().rev() {
            let Some(maps) = listed.maps.as_deref() else { continue };
            let how = if since.removed.contains(&listed.entry.id) { Reached::Removed } else { Reached::Kept };
            self.claim_maps(maps, Some(newer), &how, &mut bits)?;
            newer = maps;
        }
        Ok(bits.bits)
    }

    /// Claims the nodes of a state's maps and the extents of its pages, but for what `newer` reaches too.
    fn claim_maps(&self, maps: &Maps, newer: Option<&Maps>, how: &Reached<'_>, bits: &mut Bits) -> Result<()> {
        for class in SizeClass::all() {
            let others: Vec<&Tree> = newer.into_iter().map(|maps| &maps[class.index()]).collect();
            let mut large = Vec::new();
            exclusive(&self.nodes, &maps[class.index()], &others, &mut |found| {
                match found {
                    Exclusive::Entry { position, pointer } if pointer.is_indirect() => large.push((position, pointer)),
                    Exclusive::Node(pointer) | Exclusive::Entry { pointer, .. } => bits.claim(pointer.extent()),
                }
                Ok(())
            })?;
            for (index, pointer) in large {
                let Some(page) = PageId::new(class, index) else { continue };
                match how {
                    Reached::Live(since) => self.claim_versions(page, &pointer, since, bits)?,
                    Reached::Kept => self.claim_chunks(page, &pointer, &mut |extent| bits.claim(extent))?,
                    // What only it reached is named by the record of its removal (B1).
                    Reached::Removed => {}
                }
            }
        }
        Ok(())
    }

    /// Claims what a large page of the fold had. Any one version of it that can be walked to the end will do (B1).
    fn claim_versions(&self, page: PageId, folded: &BlockPointer, since: &Since, bits: &mut Bits) -> Result<()> {
        let later = since.versions.get(&page).into_iter().flatten();
        let mut damage = None;
        for version in [folded].into_iter().chain(later) {
            let mut claim = |extent: Extent| {
                if !since.born.contains(extent) {
                    bits.claim(extent);
                }
            };
            match self.claim_chunks(page, version, &mut claim) {
                Ok(()) => return Ok(()),
                Err(error @ Error::Corrupt(_)) => drop(damage.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        damage.map_or(Ok(()), Err)
    }

    fn claim_chunks(&self, page: PageId, pointer: &BlockPointer, claim: &mut dyn FnMut(Extent)) -> Result<()> {
        if !pointer.is_indirect() {
            claim(pointer.extent());
            return Ok(());
        }
        exclusive(&self.nodes, &chunk_tree(page, pointer), &[], &mut |found| {
            let (Exclusive::Node(pointer) | Exclusive::Entry { pointer, .. }) = found;
            claim(pointer.extent());
            Ok(())
        })
    }

    /// A panic while the lock is held leaves the value whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LeafSource for BitmapSource {
    fn load(&self, leaf: u64) -> Result<Box<LeafBytes>> {
        let inner = &mut *self.lock();
        if let Some(bits) = inner.anew.get(&leaf) {
            return Ok(bits.clone());
        }
        let pointer = inner.tree.get(&self.nodes, leaf)?;
        if pointer.stored_length == 0 {
            return Ok(Box::new([0; BLOCK_LENGTH]));
        }
        let damage = match self.nodes.read_block(&pointer, Structure::Bitmap, None) {
            Err(Error::Corrupt(damage)) => damage,
            other => return other,
        };
        match self.make_anew(&inner.superblock, leaf) {
            Ok(bits) => {
                #[cfg(feature = "tracing")]
                tracing::warn!(leaf, %damage, "a leaf of the bitmap was made anew");
                inner.made_anew += 1;
                inner.anew.insert(leaf, bits.clone());
                Ok(bits)
            }
            // More than the leaf is damaged (B2).
            Err(Error::Corrupt(_)) => Err(Error::Corrupt(damage)),
            Err(error) => Err(error),
        }
    }
}

/// Which state reaches a page.
enum Reached<'a> {
    /// The live one of the fold; the records since may have changed the page.
    Live(&'a Since),
    /// A snapshot.
    Kept,
    /// A snapshot that was removed since.
    Removed,
}

/// A leaf in the making.
struct Bits {
    leaf: u64,
    bits: Box<LeafBytes>,
}

impl Bits {
    fn claim(&mut self, extent: Extent) {
        let base = self.leaf * u64::from(LEAF_BLOCKS);
        let (from, until) = (extent.start.0.max(base), extent.end().0.min(base + u64::from(LEAF_BLOCKS)));
        for index in (from..until).map(|block| block - base) {
            self.bits[(index / 8) as usize] |= 1 << (index % 8);
        }
    }
}

/// Runs of blocks, by first block; no two overlap.
#[derive(Default)]
struct Born(BTreeMap<u64, u64>);

impl Born {
    fn add(&mut self, extent: Extent) {
        if !extent.is_empty() {
            self.0.insert(extent.start.0, extent.end().0);
        }
    }

    fn contains(&self, extent: Extent) -> bool {
        let before = self.0.range(..=extent.start.0).next_back();
        before.is_some_and(|(_, end)| extent.start.0 < *end)
    }
}

/// What the records after a fold say.
#[derive(Default)]
struct Since {
    /// Extents of the fold that died.
    died: Vec<Extent>,
    /// Extents that hold what was written since.
    born: Born,
    /// Later versions of large pages, in order.
    versions: HashMap<PageId, Vec<BlockPointer>>,
    /// The snapshots removed.
    removed: BTreeSet<u64>,
}

impl Since {
    /// Follows the log from the fold of `superblock` to `newest` at least.
    fn read(medium: &Medium, superblock: &Superblock, newest: Generation) -> Result<Self> {
        let mut scanner = Scanner::new(Arc::clone(medium.disk()), superblock.store, log_start(superblock))?;
        let mut since = Self::default();
        let mut last = superblock.generation;
        let mut left = medium.length_bytes()?;
        while let Some(mut record) = scanner.next_record()? {
            load_body(medium, &mut record, &mut left)?;
            last = record.header.generation;
            record.entries.iter().for_each(|entry| since.take_note(entry));
        }
        if last < newest {
            let missing = Generation(last.0 + 1);
            let (path, offset) = (medium.path().into(), superblock.log_offset.into());
            let fault = Fault::MissingGeneration { missing, last };
            return Err(Corruption { path, structure: Structure::Record, page: None, offset, fault }.into());
        }
        Ok(since)
    }

    fn take_note(&mut self, entry: &Entry) {
        match *entry {
            Entry::Set { page, new, old } | Entry::Move { page, new, old } => {
                self.died(&old);
                self.born.add(new.extent());
                if page.class().is_chunked() {
                    self.versions.entry(page).or_default().push(new);
                }
            }
            Entry::Stored { new, .. } | Entry::Body { new } => self.born.add(new.extent()),
            Entry::Dead { old } => self.died(&old),
            Entry::CatalogueRemove { id } => drop(self.removed.insert(id)),
            Entry::Header { .. } | Entry::CatalogueAdd { .. } => {}
        }
    }

    fn died(&mut self, old: &BlockPointer) {
        if !self.born.contains(old.extent()) {
            self.died.push(old.extent());
        }
    }
}

/// Where the log goes on after a superblock's fold.
pub(super) fn log_start(superblock: &Superblock) -> LogStart {
    let index = superblock.log_segment as usize;
    LogStart {
        generation: superblock.generation,
        seal: superblock.log_seal,
        segment: superblock.segments[index],
        offset: superblock.log_offset,
        next: superblock.segments.get(index + 1).copied().filter(|segment| segment.salt != 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{History, Step, tiny_and_reusing};

    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % limit
        }

        fn pages(&mut self) -> Vec<(u8, u64)> {
            (0..1 + self.below(4)).map(|_| (12 + self.below(3) as u8, self.below(12))).collect()
        }

        fn step(&mut self) -> Step {
            match self.below(32) {
                0..=8 => Step::Write(self.pages()),
                9..=11 => Step::WriteDeferred(self.pages()),
                12..=13 => Step::Free(self.pages()),
                // A page of chunks; and more pages than a record names by itself.
                14..=15 => Step::Write(vec![(21, self.below(2))]),
                16 => Step::Free(vec![(21, self.below(2))]),
                17 => Step::Write((0..90).map(|index| (12, 20 + index)).collect()),
                18 => Step::Sync,
                19..=20 => Step::Checkpoint,
                21 => Step::CheckpointBegin,
                22 => Step::CheckpointEnd,
                23..=24 => Step::Snapshot(self.below(3) as u8),
                25 => Step::DeleteSnapshot(self.below(3) as u8),
                26 => Step::RollBack(self.below(3) as u8),
                27..=28 => Step::Move(self.pages()),
                29 => Step::Move(vec![(21, 0), (21, 1)]),
                30 => Step::View,
                _ => Step::CloseView,
            }
        }
    }

    /// At any moment: whatever died, was used again, or was never there.
    #[test]
    fn a_leaf_made_anew_is_the_leaf_that_was_there() {
        let (mut compared, mut large) = (0, 0);
        for seed in 0..40 {
            let mut random = Random(seed);
            let mut history = History::create(tiny_and_reusing(), seed).unwrap();
            for number in 0..60 {
                let step = random.step();
                history.step(&step).unwrap();
                let source = &history.store.bitmap_source;
                let (superblock, tree) = {
                    let inner = source.lock();
                    (inner.superblock.clone(), inner.tree.clone())
                };
                large += usize::from(superblock.maps[9].length > 0);
                for leaf in 0..tree.length() {
                    let stored = source.load(leaf).unwrap();
                    let anew = source.make_anew(&superblock, leaf).unwrap();
                    let differing: Vec<u64> = (0..32768u64)
                        .filter(|bit| (stored[(bit / 8) as usize] ^ anew[(bit / 8) as usize]) >> (bit % 8) & 1 == 1)
                        .collect();
                    assert!(differing.is_empty(), "seed {seed}, step {number}, {step:?}: blocks {differing:?}");
                    compared += 1;
                }
            }
        }
        assert!(compared > 2000 && large > 500, "{compared} leaves, {large} beside large pages");
    }
}
