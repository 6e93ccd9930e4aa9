//! The bitmap: all leaves, those in memory and those not yet, with the tree above them.
//!
//! Knows where each leaf stands; the bits are [`Leaf`]'s, the decisions the strategies'. Invariants S1, S3, S4 and S5 of
//! the [room](super) are kept here.

mod bits;
mod leaf;
mod segments;
mod summary;

use std::ops::Range;
use std::sync::Arc;

use leaf::Leaf;
use summary::{Summary, SummaryTree};

use super::{LEAF_BLOCKS, LeafBytes, LeafSource, LeafState};
use crate::error::{Error, Result};
use crate::id::{Block, Extent};

pub(super) use leaf::Change;
pub use segments::{Segment, SegmentUsage};

/// Where a search looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// In every leaf, loading those that are not in memory.
    Everything,
    /// In leaves that are in memory or empty.
    Known,
}

/// A change of a leaf that is not in memory.
struct Mark {
    first: u16,
    last: u16,
    change: Change,
}

enum Slot {
    /// Nothing is in use.
    Empty,
    /// Not in memory; what has changed since it was stored, in order.
    Stored(Vec<Mark>),
    Present(Box<Leaf>),
}

pub(super) struct Bitmap {
    blocks_total: u64,
    blocks_free: u64,
    segment_blocks: u32,
    slots: Vec<Slot>,
    tree: SummaryTree,
    source: Option<Arc<dyn LeafSource + Send + Sync>>,
    /// No slot before this one is `Stored`.
    stored_from: usize,
    /// How many slots are `Stored`.
    leaves_stored: usize,
    /// The segments whose holes are not to be found.
    passed_by: Vec<Segment>,
}

impl Bitmap {
    /// A bitmap in which nothing is in use.
    pub(super) fn new(blocks_total: u64, segment_blocks: u32) -> Self {
        let mut bitmap = Self::empty(segment_blocks);
        bitmap.extend(blocks_total);
        bitmap
    }

    fn empty(segment_blocks: u32) -> Self {
        assert!(
            segment_blocks.is_power_of_two() && (4..=LEAF_BLOCKS).contains(&segment_blocks),
            "segment_blocks is a power of two from 4 to LEAF_BLOCKS"
        );
        Self {
            blocks_total: 0,
            blocks_free: 0,
            segment_blocks,
            slots: Vec::new(),
            tree: SummaryTree::new(std::iter::empty()),
            source: None,
            stored_from: 0,
            leaves_stored: 0,
            passed_by: Vec::new(),
        }
    }

    /// A bitmap whose leaves are in a store. Leaves that the list leaves out are empty, those beyond the end are ignored.
    pub(super) fn from_persisted(
        blocks_total: u64,
        segment_blocks: u32,
        leaves: impl IntoIterator<Item = LeafState>,
        source: Arc<dyn LeafSource + Send + Sync>,
        blocks_free: u64,
    ) -> Result<Self> {
        let mut bitmap = Self::empty(segment_blocks);
        bitmap.grow(blocks_total)?;
        bitmap.source = Some(source);
        bitmap.blocks_free = blocks_free;
        for (slot, state) in bitmap.slots.iter_mut().zip(leaves) {
            if state == LeafState::Stored {
                *slot = Slot::Stored(Vec::new());
                bitmap.leaves_stored += 1;
            }
        }
        bitmap.rebuild_tree();
        Ok(bitmap)
    }

    pub(super) fn blocks_total(&self) -> u64 {
        self.blocks_total
    }

    pub(super) fn blocks_free(&self) -> u64 {
        self.blocks_free
    }

    pub(super) fn segment_blocks(&self) -> u32 {
        self.segment_blocks
    }

    /// Takes or releases all blocks of `extent`, or none.
    pub(super) fn change(&mut self, extent: Extent, change: Change) -> Result<()> {
        let refused = |reason| Err(Error::Overlap { extent, reason });
        if extent.start.0.checked_add(extent.blocks.into()).is_none_or(|end| end > self.blocks_total) {
            return refused("beyond the end of the file");
        }
        let blocks_free = match change {
            Change::Take => self.blocks_free.checked_sub(extent.blocks.into()),
            Change::Release => {
                Some(self.blocks_free + u64::from(extent.blocks)).filter(|&free| free <= self.blocks_total)
            }
        };
        let allowed = parts(extent).all(|(index, blocks)| match &self.slots[index] {
            Slot::Empty => change == Change::Take,
            Slot::Stored(_) => true,
            Slot::Present(leaf) => leaf.allows(blocks, change),
        });
        let Some(blocks_free) = blocks_free.filter(|_| allowed) else {
            return refused(refusal(change));
        };
        self.blocks_free = blocks_free;
        for (index, blocks) in parts(extent) {
            if let Slot::Stored(marks) = &mut self.slots[index] {
                marks.push(Mark { first: blocks.start as u16, last: (blocks.end - 1) as u16, change });
            } else {
                let leaf = self.leaf(index)?;
                leaf.apply(blocks, change);
                let summary = leaf.summary();
                self.tree.update(index, summary);
            }
        }
        Ok(())
    }

    /// Whether every block of `extent` exists and is free.
    pub(super) fn is_free(&mut self, extent: Extent) -> Result<bool> {
        if extent.end().0 > self.blocks_total {
            return Ok(false);
        }
        for (index, blocks) in parts(extent) {
            if !matches!(self.slots[index], Slot::Empty) && !self.leaf(index)?.allows(blocks, Change::Take) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The first run of `minimum..=maximum` free blocks inside `within` and inside one leaf.
    pub(super) fn find_run(
        &mut self,
        within: Range<Block>,
        minimum: u32,
        maximum: u32,
        scope: Scope,
    ) -> Result<Option<Extent>> {
        let minimum = minimum.max(1);
        let within = within.start.0..within.end.0.min(self.blocks_total);
        let mut next = leaf_of(within.start);
        while let Some(index) = self.tree.next(next, |summary| summary.longest >= minimum) {
            let base = base_of(index);
            if base >= within.end {
                break;
            }
            next = index + 1;
            if scope == Scope::Known && matches!(self.slots[index], Slot::Stored(_)) {
                continue;
            }
            let capacity = self.capacity(index);
            let local = within.start.saturating_sub(base) as u32..(within.end - base).min(capacity.into()) as u32;
            let leaf = self.leaf(index)?;
            if let Some(run) = leaf.find_run(local.clone(), minimum, maximum) {
                return Ok(Some(Extent::new(base + u64::from(run.start), run.len() as u32)));
            }
            if local == (0..capacity) {
                leaf.no_run_of(minimum);
                let summary = leaf.summary();
                self.tree.update(index, summary);
            }
        }
        Ok(None)
    }

    /// Adds free blocks at the end. A smaller `blocks_total` changes nothing, and an error neither.
    pub(super) fn grow(&mut self, blocks_total: u64) -> Result<()> {
        let leaves = leaves_of(blocks_total);
        reserve_total(&mut self.slots, leaves)?;
        self.tree.reserve(leaves)?;
        self.extend(blocks_total);
        Ok(())
    }

    /// As [`Bitmap::grow`], where the memory is there, or is little.
    fn extend(&mut self, blocks_total: u64) {
        let Some(added) = blocks_total.checked_sub(self.blocks_total) else { return };
        let cut = self.slots.len().checked_sub(1).map(|last| (last, self.capacity(last)));
        self.blocks_total = blocks_total;
        self.blocks_free += added;
        self.slots.resize_with(leaves_of(blocks_total), || Slot::Empty);
        if let Some((last, capacity_before)) = cut {
            let capacity = self.capacity(last);
            if let Slot::Present(leaf) = &mut self.slots[last] {
                leaf.apply(capacity_before..capacity, Change::Release);
            }
        }
        self.rebuild_tree();
    }

    /// Removes blocks at the end, all of which must be free. Loads the leaves they are in.
    pub(super) fn shrink_to(&mut self, blocks_total: u64) -> Result<()> {
        let mut at = blocks_total;
        while at < self.blocks_total {
            let blocks = u64::from(LEAF_BLOCKS).min(self.blocks_total - at) as u32;
            let extent = Extent::new(at, blocks);
            if !self.is_free(extent)? {
                return Err(Error::Overlap { extent, reason: "in use, and beyond the new end of the file" });
            }
            at += u64::from(blocks);
        }
        let removed = self.blocks_total.saturating_sub(blocks_total);
        self.slots.truncate(leaves_of(self.blocks_total - removed));
        if let Some(last) = self.slots.len().checked_sub(1) {
            let capacity_before = self.capacity(last);
            let capacity = capacity_before.min((self.blocks_total - removed - base_of(last)) as u32);
            if let Slot::Present(leaf) = &mut self.slots[last] {
                leaf.apply(capacity..capacity_before, Change::Take);
            }
        }
        self.blocks_total -= removed;
        self.blocks_free -= removed;
        self.rebuild_tree();
        Ok(())
    }

    /// The leaf as a file holds it.
    pub(super) fn leaf_bytes(&mut self, leaf: u64) -> Result<LeafBytes> {
        let index = usize::try_from(leaf).unwrap_or(usize::MAX);
        match self.slots.get(index) {
            None | Some(Slot::Empty) => Ok([0; 4096]),
            Some(_) => {
                let capacity = self.capacity(index);
                Ok(self.leaf(index)?.to_bytes(capacity))
            }
        }
    }

    /// Brings one more leaf into memory; whether there was one.
    pub(super) fn load_next(&mut self) -> Result<bool> {
        while let Some(slot) = self.slots.get(self.stored_from) {
            let is_stored = matches!(slot, Slot::Stored(_));
            if is_stored {
                self.leaf(self.stored_from)?;
            }
            self.stored_from += 1;
            if is_stored {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Loads every leaf, and asserts S1 and S3.
    pub(super) fn check_invariants(&mut self) -> Result<()> {
        for index in 0..self.slots.len() {
            self.leaf(index)?;
        }
        let mut found = 0;
        for (index, slot) in self.slots.iter().enumerate() {
            let Slot::Present(leaf) = slot else { continue };
            leaf.check_invariants();
            assert_eq!(leaf.summary(), self.tree.leaf(index), "S3: leaf {index} is summed up in the tree");
            found += (0..LEAF_BLOCKS / self.segment_blocks)
                .map(|segment| u64::from(leaf.segment_free(segment)))
                .sum::<u64>();
        }
        self.tree.check_invariants();
        if found != self.blocks_free {
            return Err(Error::FreeCount { expected: self.blocks_free, found });
        }
        Ok(())
    }

    /// The leaf, loaded if it is not in memory (S4).
    fn leaf(&mut self, index: usize) -> Result<&mut Leaf> {
        let loaded = match &self.slots[index] {
            Slot::Present(_) => None,
            Slot::Empty => Some(Leaf::empty(self.capacity(index), self.segment_blocks)),
            Slot::Stored(marks) => Some(self.load(index, marks)?),
        };
        if let Some(leaf) = loaded {
            self.leaves_stored -= usize::from(matches!(self.slots[index], Slot::Stored(_)));
            self.tree.update(index, leaf.summary());
            self.slots[index] = Slot::Present(Box::new(leaf));
        }
        match &mut self.slots[index] {
            Slot::Present(leaf) => Ok(leaf),
            _ => unreachable!("S4: the leaf has just been brought into memory"),
        }
    }

    fn load(&self, index: usize, marks: &[Mark]) -> Result<Leaf> {
        let base = base_of(index);
        let bytes = match &self.source {
            Some(source) => source.load(index as u64)?,
            None => unreachable!("S4: a bitmap without a source has no stored leaves"),
        };
        let capacity = self.capacity(index);
        let mut leaf = Leaf::from_bytes(&bytes, capacity, self.segment_blocks);
        if leaf.to_bytes(capacity) != *bytes {
            let extent = Extent::new(base + u64::from(capacity), LEAF_BLOCKS - capacity);
            return Err(Error::Overlap { extent, reason: "in use, and beyond the end of the file" });
        }
        for mark in marks {
            let blocks = mark.first.into()..u32::from(mark.last) + 1;
            if !leaf.allows(blocks.clone(), mark.change) {
                let extent = Extent::new(base + u64::from(blocks.start), blocks.len() as u32);
                return Err(Error::Overlap { extent, reason: refusal(mark.change) });
            }
            leaf.apply(blocks, mark.change);
        }
        Ok(leaf)
    }

    /// How many blocks of the leaf lie before the end of the file.
    fn capacity(&self, index: usize) -> u32 {
        self.blocks_total.saturating_sub(base_of(index)).min(LEAF_BLOCKS.into()) as u32
    }

    fn rebuild_tree(&mut self) {
        let mut tree = std::mem::take(&mut self.tree);
        tree.rebuild((0..self.slots.len()).map(|index| self.summary(index)));
        self.tree = tree;
    }

    fn summary(&self, index: usize) -> Summary {
        let capacity = self.capacity(index);
        match &self.slots[index] {
            Slot::Present(leaf) => leaf.summary(),
            // It may hold anything: a search has to look.
            Slot::Stored(_) => Summary { longest: LEAF_BLOCKS, ..Summary::default() },
            Slot::Empty => Summary {
                longest: capacity,
                hole_classes: (capacity % self.segment_blocks).checked_ilog2().map_or(0, |class| 1 << class),
                emptiest: capacity % self.segment_blocks,
                segments_free: (capacity / self.segment_blocks).into(),
            },
        }
    }
}

/// Obtains the memory for `count` values in all.
fn reserve_total<T>(values: &mut Vec<T>, count: usize) -> Result<()> {
    values.try_reserve(count.saturating_sub(values.len())).map_err(|_| Error::Memory {
        operation: "allocation",
        bytes: count.saturating_mul(size_of::<T>()),
        source: std::io::ErrorKind::OutOfMemory.into(),
    })
}

fn refusal(change: Change) -> &'static str {
    match change {
        Change::Take => "in use already",
        Change::Release => "free already",
    }
}

fn leaf_of(block: u64) -> usize {
    usize::try_from(block / u64::from(LEAF_BLOCKS)).unwrap_or(usize::MAX)
}

fn leaves_of(blocks_total: u64) -> usize {
    leaf_of(blocks_total.next_multiple_of(LEAF_BLOCKS.into()))
}

fn base_of(leaf: usize) -> u64 {
    leaf as u64 * u64::from(LEAF_BLOCKS)
}

/// The extent's blocks leaf by leaf, numbered from the leaf's start.
fn parts(extent: Extent) -> impl Iterator<Item = (usize, Range<u32>)> {
    let (mut at, end) = (extent.start.0, extent.end().0);
    std::iter::from_fn(move || {
        let index = leaf_of(at);
        let local = (at - base_of(index)) as u32..(end - base_of(index)).min(LEAF_BLOCKS.into()) as u32;
        (at < end).then(|| {
            at = base_of(index) + u64::from(local.end);
            (index, local)
        })
    })
}
