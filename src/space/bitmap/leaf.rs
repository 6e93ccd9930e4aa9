//! One leaf of the bitmap in memory: its bits, and what is counted of its segments.
//!
//! A leaf knows neither its place in the file nor where it was loaded from. Blocks and segments are numbered from the
//! leaf's start. A *hole* is a run of free blocks inside one segment that is not wholly free.
//!
//! - **L1** Blocks beyond the end of the file are not free.
//! - **L2** `free[s]` is how many blocks of segment `s` are free, `holes[s]` its longest hole, or 0 if it is passed by;
//!   `emptiest`, `hole_classes` and `segments_free` follow from them.
//! - **L3** No run of free blocks is longer than `longest`. It is a bound: a release raises it to what it made, a search
//!   that finds nothing lowers it, taking blocks leaves it. So each bit is looked at again only after it changed.

use std::ops::Range;

use super::bits::Bits;
use super::summary::Summary;
use crate::space::{LEAF_BLOCKS, LeafBytes};

/// A hole is shorter than a segment, and so than a leaf.
const CLASSES: usize = LEAF_BLOCKS.ilog2() as usize;

/// What happens to blocks: they are taken into use, or released from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::space) enum Change {
    Take,
    Release,
}

/// A leaf that is in memory. See the module for its invariants.
#[derive(Clone)]
pub(super) struct Leaf {
    bits: Bits,
    segment_blocks: u32,
    free: Box<[u16]>,
    holes: Box<[u16]>,
    /// Segments whose holes are not to be found: few.
    passed_by: Vec<u32>,
    emptiest: u32,
    /// Segments whose longest hole has `2^n` blocks or more, and less than twice that.
    hole_classes: [u16; CLASSES],
    segments_free: u32,
    longest: u32,
}

impl Leaf {
    /// A leaf whose first `capacity` blocks exist and are free.
    pub(super) fn empty(capacity: u32, segment_blocks: u32) -> Self {
        Self::from_bytes(&[0; 4096], capacity, segment_blocks)
    }

    /// A leaf as a file holds it, of which the first `capacity` blocks exist.
    pub(super) fn from_bytes(bytes: &LeafBytes, capacity: u32, segment_blocks: u32) -> Self {
        let bits = Bits::from_bytes(bytes, capacity);
        let segments = vec![0; (LEAF_BLOCKS / segment_blocks) as usize].into_boxed_slice();
        let mut leaf = Self {
            longest: bits.count_free(0..LEAF_BLOCKS),
            bits,
            segment_blocks,
            free: segments.clone(),
            holes: segments,
            passed_by: Vec::new(),
            emptiest: 0,
            hole_classes: [0; CLASSES],
            segments_free: 0,
        };
        for segment in 0..leaf.free.len() as u32 {
            let blocks = leaf.blocks_of(segment);
            leaf.set_segment(segment as usize, leaf.bits.count_free(blocks.clone()), leaf.bits.longest_run(blocks));
        }
        leaf
    }

    /// The leaf as a file holds it: bit set = in use, and clear for blocks at `capacity` and beyond.
    pub(super) fn to_bytes(&self, capacity: u32) -> LeafBytes {
        self.bits.to_bytes(capacity)
    }

    /// Passes by the holes of these segments from now on, and of no others.
    pub(super) fn pass_by(&mut self, segments: Vec<u32>) {
        let before = std::mem::replace(&mut self.passed_by, segments.clone());
        for segment in before.into_iter().chain(segments) {
            let hole = self.bits.longest_run(self.blocks_of(segment));
            self.set_segment(segment as usize, self.segment_free(segment), hole);
        }
    }

    /// Whether every one of `blocks` is as it must be before `change`: free to be taken, or in use to be released.
    pub(super) fn allows(&self, blocks: Range<u32>, change: Change) -> bool {
        match change {
            Change::Take => self.bits.all_free(blocks),
            Change::Release => self.bits.none_free(blocks),
        }
    }

    /// Changes `blocks`, all of which allow it.
    pub(super) fn apply(&mut self, blocks: Range<u32>, change: Change) {
        debug_assert!(self.allows(blocks.clone(), change), "L1: the caller asked whether the blocks allow the change");
        if blocks.is_empty() {
            return;
        }
        self.bits.flip(blocks.clone());
        if change == Change::Release {
            self.longest = self.longest.max(self.bits.run_around(blocks.clone(), 0..LEAF_BLOCKS));
        }
        for segment in blocks.start / self.segment_blocks..=(blocks.end - 1) / self.segment_blocks {
            let within = self.blocks_of(segment);
            let part = blocks.start.max(within.start)..blocks.end.min(within.end);
            let (free, hole) = (self.segment_free(segment), u32::from(self.holes[segment as usize]));
            let (free, hole) = match change {
                Change::Take => (free - part.len() as u32, self.bits.longest_run(within)),
                Change::Release => (free + part.len() as u32, self.bits.run_around(part, within).max(hole)),
            };
            self.set_segment(segment as usize, free, hole);
        }
    }

    /// The first run of `minimum..=maximum` free blocks inside `within`.
    pub(super) fn find_run(&self, within: Range<u32>, minimum: u32, maximum: u32) -> Option<Range<u32>> {
        if minimum > self.longest {
            return None;
        }
        let start = self.bits.find(within.clone(), minimum)?;
        Some(start..start + self.bits.run_after(start..within.end.min(start.saturating_add(maximum))))
    }

    /// Notes that a search of the whole leaf found no run of `minimum` blocks (L3).
    pub(super) fn no_run_of(&mut self, minimum: u32) {
        self.longest = self.longest.min(minimum.saturating_sub(1));
    }

    /// The longest hole, cut to `maximum`, of the first segment in which that is of this class, and has at least
    /// `minimum` blocks, and that is `wanted`.
    pub(super) fn find_hole(
        &self,
        class: u32,
        minimum: u32,
        maximum: u32,
        wanted: impl Fn(u32) -> bool,
    ) -> Option<Range<u32>> {
        let lengths = minimum.max(1 << class)..2 << class;
        let mut holes = self.holes.iter().zip(0..);
        let (&hole, segment) = holes.find(|&(&hole, segment)| lengths.contains(&hole.into()) && wanted(segment))?;
        let length = maximum.min(hole.into());
        self.find_run(self.blocks_of(segment), length, length)
    }

    /// How many blocks of a segment are free.
    pub(super) fn segment_free(&self, segment: u32) -> u32 {
        self.free[segment as usize].into()
    }

    /// The first wholly free segment from `segment` on.
    pub(super) fn next_free_segment(&self, segment: u32) -> Option<u32> {
        let rest = self.free.get(segment as usize..)?;
        rest.iter().position(|&free| self.is_whole(free.into())).map(|position| segment + position as u32)
    }

    /// What the tree above the leaves needs to know of this one.
    pub(super) fn summary(&self) -> Summary {
        Summary {
            longest: self.longest,
            hole_classes: (0..CLASSES).fold(0, |bits, class| bits | u32::from(self.hole_classes[class] > 0) << class),
            emptiest: self.emptiest,
            segments_free: self.segments_free.into(),
        }
    }

    /// Asserts L2 and L3.
    pub(super) fn check_invariants(&self) {
        let mut truth = Self::from_bytes(&self.to_bytes(LEAF_BLOCKS), LEAF_BLOCKS, self.segment_blocks);
        truth.pass_by(self.passed_by.clone());
        assert_eq!(truth.free, self.free, "L2: the segments' free blocks are counted");
        assert_eq!(truth.holes, self.holes, "L2: the segments' longest holes are known");
        let longest = self.bits.longest_run(0..LEAF_BLOCKS);
        assert!(longest <= self.longest, "L3: a run of {longest} is longer than the bound {}", self.longest);
        truth.longest = self.longest;
        assert_eq!(truth.summary(), self.summary(), "L2: the leaf sums up its segments");
    }

    /// Notes how many blocks of a segment are free, and its longest run (L2).
    fn set_segment(&mut self, segment: usize, free: u32, longest_run: u32) {
        let passed_by = self.passed_by.contains(&(segment as u32));
        let hole = if passed_by || self.is_whole(free) { 0 } else { longest_run };
        let free_before = u32::from(std::mem::replace(&mut self.free[segment], free as u16));
        let hole_before = u32::from(std::mem::replace(&mut self.holes[segment], hole as u16));
        self.segments_free += u32::from(self.is_whole(free));
        self.segments_free -= u32::from(self.is_whole(free_before));
        if let Some(class) = hole.checked_ilog2() {
            self.hole_classes[class as usize] += 1;
        }
        if let Some(class) = hole_before.checked_ilog2() {
            self.hole_classes[class as usize] -= 1;
        }
        let partly_free = |free| if self.is_whole(free) { 0 } else { free };
        if partly_free(free) >= self.emptiest {
            self.emptiest = partly_free(free);
        } else if partly_free(free_before) == self.emptiest {
            self.emptiest = self.free.iter().fold(0, |most, &free| most.max(partly_free(free.into())));
        }
    }

    fn is_whole(&self, free: u32) -> bool {
        free == self.segment_blocks
    }

    fn blocks_of(&self, segment: u32) -> Range<u32> {
        segment * self.segment_blocks..(segment + 1) * self.segment_blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_and_bounds_hold_after_every_change(
            changes in proptest::collection::vec((0..LEAF_BLOCKS, prop_oneof![1u32..9, 1u32..2000]), 1..60),
            segment_blocks in prop_oneof![Just(4u32), Just(64), Just(256), Just(LEAF_BLOCKS)],
            minimum in 1u32..300,
            passed_by in proptest::collection::vec(0..LEAF_BLOCKS, 0..3),
        ) {
            let mut leaf = Leaf::empty(LEAF_BLOCKS, segment_blocks);
            let passed_by: Vec<u32> = passed_by.into_iter().map(|block| block / segment_blocks).collect();
            for (start, blocks) in changes {
                let blocks = start..(start + blocks).min(LEAF_BLOCKS);
                for change in [Change::Take, Change::Release] {
                    if leaf.allows(blocks.clone(), change) {
                        leaf.apply(blocks.clone(), change);
                        break;
                    }
                }
                leaf.check_invariants();
                leaf.pass_by(if start.is_multiple_of(2) { passed_by.clone() } else { Vec::new() });
                leaf.check_invariants();
                if leaf.find_run(0..LEAF_BLOCKS, minimum, minimum).is_none() {
                    leaf.no_run_of(minimum);
                }
                for class in 0..CLASSES as u32 {
                    let hole = leaf.find_hole(class, 1 << class, minimum.max(1 << class), |_| true);
                    prop_assert_eq!(hole.is_some(), leaf.summary().hole_classes >> class & 1 == 1);
                    if let Some(hole) = hole {
                        prop_assert!(leaf.allows(hole.clone(), Change::Take));
                        prop_assert!(leaf.segment_free(hole.start / segment_blocks) < segment_blocks);
                        prop_assert!(!leaf.passed_by.contains(&(hole.start / segment_blocks)));
                        prop_assert_eq!(hole.start / segment_blocks, (hole.end - 1) / segment_blocks);
                    }
                }
            }
            leaf.check_invariants();
        }
    }

    #[test]
    fn a_failed_search_lowers_the_bound_and_a_release_raises_it() {
        let mut leaf = Leaf::empty(25, 256);
        leaf.apply(15..20, Change::Take);
        assert_eq!(leaf.summary().longest, 25);
        assert_eq!(leaf.find_run(0..LEAF_BLOCKS, 16, 16), None);
        leaf.no_run_of(16);
        assert_eq!(leaf.summary().longest, 15);
        leaf.apply(15..18, Change::Release);
        assert_eq!(leaf.summary().longest, 18);
        assert_eq!(leaf.find_run(0..LEAF_BLOCKS, 16, 17), Some(0..17));
    }
}
