//! Indexes of free runs, for strategies that choose by size.
//!
//! An index covers the file from its start to some block and learns the rest leaf by leaf, when nothing that it covers
//! will do; so a store still opens without reading its bitmap. Its memory is in proportion to the number of free runs
//! that it covers, about a hundred bytes each: the price of choosing by size in a fragmented file.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::id::{Block, Extent};
use crate::space::{FreeSpace, LEAF_BLOCKS};

/// A set of free blocks. Extents never cross the boundary of a leaf.
pub(super) trait FreeIndex: std::fmt::Debug {
    /// Adds blocks, none of which is in the set.
    fn add(&mut self, extent: Extent);

    /// Removes blocks, all of which are in the set.
    fn remove(&mut self, extent: Extent);
}

/// An index of the file's blocks before `end`, and of no others.
#[derive(Debug, Default)]
pub(super) struct Covered<I> {
    pub(super) index: I,
    end: u64,
}

impl<I: FreeIndex> Covered<I> {
    pub(super) fn of(index: I) -> Self {
        Self { index, end: 0 }
    }

    /// Takes the next leaf into the index; whether there was one.
    pub(super) fn learn(&mut self, free: &mut FreeSpace<'_>) -> Result<bool> {
        let end = (self.end + 1).next_multiple_of(LEAF_BLOCKS.into()).min(free.blocks_total());
        if self.end >= end {
            return Ok(false);
        }
        // Gathered first: an error half-way must not leave half a leaf in the index.
        let mut runs = Vec::new();
        let mut from = Block(self.end);
        while let Some(run) = free.find_run(from..Block(end), 1, LEAF_BLOCKS)? {
            from = run.end();
            runs.push(run);
        }
        runs.into_iter().for_each(|run| self.index.add(run));
        self.end = end;
        Ok(true)
    }

    pub(super) fn taken(&mut self, extent: Extent) {
        for part in self.parts(extent) {
            self.index.remove(part);
        }
    }

    pub(super) fn released(&mut self, extent: Extent) {
        for part in self.parts(extent) {
            self.index.add(part);
        }
    }

    /// Forgets the blocks from `blocks_total` on, all of which are free.
    pub(super) fn cut(&mut self, blocks_total: u64) {
        while self.end > blocks_total {
            let start = ((self.end - 1) / u64::from(LEAF_BLOCKS) * u64::from(LEAF_BLOCKS)).max(blocks_total);
            self.index.remove(Extent::new(start, (self.end - start) as u32));
            self.end = start;
        }
    }

    /// The covered blocks of an extent, leaf by leaf.
    fn parts(&self, extent: Extent) -> impl Iterator<Item = Extent> + use<I> {
        let (mut at, end) = (extent.start.0, extent.end().0.min(self.end));
        std::iter::from_fn(move || {
            let part_end = (at + 1).next_multiple_of(LEAF_BLOCKS.into()).min(end);
            let part = (at < end).then(|| Extent::new(at, (part_end - at) as u32));
            at = part_end;
            part
        })
    }
}

/// Maximal free runs, in order of a size: their length, or a class of lengths.
#[derive(Debug)]
pub(super) struct Runs {
    lengths: BTreeMap<u64, u32>,
    by_size: BTreeSet<(u32, u64)>,
    size: fn(u32) -> u32,
}

impl Runs {
    pub(super) fn by(size: fn(u32) -> u32) -> Self {
        Self { lengths: BTreeMap::new(), by_size: BTreeSet::new(), size }
    }

    /// The runs of at least this size, the smallest size first, and in order of address within a size.
    pub(super) fn of_size_from(&self, size: u32) -> impl Iterator<Item = Extent> {
        self.by_size.range((size, 0)..).map(|&(_, start)| Extent::new(start, self.lengths[&start]))
    }

    /// The runs of the largest size.
    pub(super) fn largest(&self) -> impl Iterator<Item = Extent> {
        self.of_size_from(self.by_size.last().map_or(0, |&(size, _)| size))
    }

    fn insert(&mut self, run: Extent) {
        if !run.is_empty() {
            self.lengths.insert(run.start.0, run.blocks);
            self.by_size.insert(((self.size)(run.blocks), run.start.0));
        }
    }

    fn take_out(&mut self, start: u64) -> Option<Extent> {
        let blocks = self.lengths.remove(&start)?;
        self.by_size.remove(&((self.size)(blocks), start));
        Some(Extent::new(start, blocks))
    }
}

impl FreeIndex for Runs {
    fn add(&mut self, extent: Extent) {
        let (mut start, mut end) = (extent.start.0, extent.end().0);
        let before = self.lengths.range(..start).next_back().map(|(&at, &blocks)| Extent::new(at, blocks));
        if let Some(before) = before.filter(|run| run.end().0 == start && !start.is_multiple_of(LEAF_BLOCKS.into())) {
            self.take_out(before.start.0);
            start = before.start.0;
        }
        if !end.is_multiple_of(LEAF_BLOCKS.into())
            && let Some(after) = self.take_out(end)
        {
            end = after.end().0;
        }
        self.insert(Extent::new(start, (end - start) as u32));
    }

    fn remove(&mut self, extent: Extent) {
        let around = self.lengths.range(..=extent.start.0).next_back().map(|(&start, _)| start);
        let Some(run) = around.and_then(|start| self.take_out(start)) else { return };
        debug_assert!(run.end() >= extent.end(), "the index holds every free block that it covers");
        self.insert(run.split_at((extent.start.0 - run.start.0) as u32).0);
        self.insert(run.split_at((extent.end().0 - run.start.0) as u32).1);
    }
}
