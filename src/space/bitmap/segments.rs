//! The segment usage table: how full each segment is, which are wholly free, and which are worth emptying.
//!
//! A segment's number is its address divided by its size, so there is one for every block and the table cannot run out.
//! The counts are kept by the leaves; a segment is *known* if its leaf is in memory or was never used. Questions about
//! known segments load nothing.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::{Bitmap, Leaf, Slot, base_of, leaf_of};
use crate::error::Result;
use crate::id::Extent;
use crate::space::LEAF_BLOCKS;

/// The number of a segment: block number divided by the blocks per segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment(pub u64);

/// How the blocks of a segment are used. Both counts together are the segment's blocks, fewer only in the file's last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentUsage {
    /// The segment.
    pub segment: Segment,
    /// Blocks in use.
    pub blocks_used: u32,
    /// Blocks that are free.
    pub blocks_free: u32,
}

impl SegmentUsage {
    /// Whether moving what is left costs less than it saves: a contiguous write where there would be scattered ones.
    ///
    /// At 3 microseconds for a block and 10 more for each write that starts elsewhere, that is so up to about two
    /// thirds in use (`benches/space.rs`). To make a file shorter, a fuller segment may be worth it too.
    pub fn is_worth_emptying(&self) -> bool {
        u64::from(self.blocks_used) * 3 <= u64::from(self.blocks_used + self.blocks_free) * 2
    }
}

impl Bitmap {
    /// How the segment is used.
    pub(in crate::space) fn segment_usage(&mut self, segment: Segment) -> Result<SegmentUsage> {
        let extent = self.segment_extent(segment);
        if !extent.is_empty() && !matches!(self.slots[leaf_of(extent.start.0)], Slot::Empty) {
            self.leaf(leaf_of(extent.start.0))?;
        }
        Ok(self.known_usage(segment))
    }

    /// The blocks of the segment that exist.
    pub(in crate::space) fn segment_extent(&self, segment: Segment) -> Extent {
        let start = segment.0.saturating_mul(self.segment_blocks.into()).min(self.blocks_total);
        Extent::new(start, (self.blocks_total - start).min(self.segment_blocks.into()) as u32)
    }

    /// How many segments are known to be wholly free.
    pub(in crate::space) fn segments_free(&self) -> u64 {
        self.tree.root().segments_free
    }

    /// The first segment from `from` on that is known to be wholly free.
    pub(in crate::space) fn next_free_segment(&mut self, from: Segment) -> Option<Segment> {
        let (mut next, mut segment) = self.place_of(from)?;
        while let Some(index) = self.tree.next(next, |summary| summary.segments_free > 0) {
            if index != next {
                segment = 0;
            }
            if let Some(found) = self.known_leaf(index)?.next_free_segment(segment) {
                return Some(Segment(index as u64 * self.segments_per_leaf() + u64::from(found)));
            }
            (next, segment) = (index + 1, 0);
        }
        None
    }

    /// The longest hole, cut to `maximum`, of the first known segment in which that is of this class, and has at least
    /// `minimum` blocks, and that is `wanted`.
    pub(in crate::space) fn find_hole(
        &mut self,
        class: u32,
        minimum: u32,
        maximum: u32,
        wanted: impl Fn(Segment) -> bool,
    ) -> Option<Extent> {
        let per_leaf = self.segments_per_leaf();
        if class >= LEAF_BLOCKS.ilog2() {
            return None;
        }
        let mut next = 0;
        while let Some(index) = self.tree.next(next, |summary| summary.hole_classes >> class & 1 == 1) {
            let wanted_here = |segment: u32| wanted(Segment(index as u64 * per_leaf + u64::from(segment)));
            if let Some(hole) = self.known_leaf(index)?.find_hole(class, minimum, maximum, wanted_here) {
                return Some(Extent::new(base_of(index) + u64::from(hole.start), hole.len() as u32));
            }
            next = index + 1;
        }
        None
    }

    /// From now on [`Bitmap::find_hole`] passes by these segments, as far as they are in memory, and by no others.
    pub(in crate::space) fn pass_by(&mut self, segments: &[Segment]) {
        let before = std::mem::replace(&mut self.passed_by, segments.to_vec());
        let places = |bitmap: &Self, list: &[Segment]| -> Vec<(usize, u32)> {
            list.iter().filter_map(|segment| bitmap.place_of(*segment)).collect()
        };
        let now = places(self, segments);
        let leaves: BTreeSet<usize> = places(self, &before).iter().chain(&now).map(|(index, _)| *index).collect();
        for index in leaves {
            if let Some(Slot::Present(leaf)) = self.slots.get_mut(index) {
                leaf.pass_by(now.iter().filter(|(other, _)| *other == index).map(|(_, local)| *local).collect());
                self.tree.update(index, leaf.summary());
            }
        }
    }

    /// Which lengths the longest holes of known segments have: bit `n` stands for `2^n` to `2^(n+1) - 1`.
    pub(in crate::space) fn hole_classes(&self) -> u32 {
        self.tree.root().hole_classes
    }

    /// Up to `count` of the segments known to be partly free, those with the most free blocks first, that are `wanted`.
    pub(in crate::space) fn emptiest_segments(
        &self,
        count: usize,
        wanted: impl Fn(&SegmentUsage) -> bool,
    ) -> Vec<SegmentUsage> {
        let per_leaf = self.segments_per_leaf();
        let mut best: Vec<SegmentUsage> = Vec::new();
        if count == 0 {
            return best;
        }
        // Sorted only now and then, or many wanted from many leaves would take the square of the time.
        let keep_best = |best: &mut Vec<SegmentUsage>| {
            best.sort_unstable_by_key(|usage| (Reverse(usage.blocks_free), usage.segment));
            best.truncate(count);
        };
        let mut least = 0;
        self.tree.visit_emptiest(|index, emptiest| {
            if least >= emptiest {
                return ControlFlow::Break(());
            }
            let first = index as u64 * per_leaf;
            let partly = (first..first + per_leaf).map(|segment| self.known_usage(Segment(segment)));
            best.extend(
                partly
                    .filter(|usage| usage.blocks_free > 0 && usage.blocks_free < self.segment_blocks && wanted(usage)),
            );
            if best.len() >= 2 * count {
                keep_best(&mut best);
                least = best.last().map_or(0, |usage| usage.blocks_free);
            }
            ControlFlow::Continue(())
        });
        keep_best(&mut best);
        best
    }

    /// How many segments are known, those of leaves that are in memory or empty; at most a leaf's too many while the last
    /// leaf is stored.
    pub(in crate::space) fn segments_known(&self) -> u64 {
        let known = (self.slots.len() - self.leaves_stored) as u64 * self.segments_per_leaf();
        known.min(self.blocks_total / u64::from(self.segment_blocks))
    }

    /// A leaf of which the tree knows more than that it is stored.
    fn known_leaf(&mut self, index: usize) -> Option<&Leaf> {
        // Never an error: a stored leaf promises nothing but runs, and an empty one needs no disk.
        self.leaf(index).ok().map(|leaf| &*leaf)
    }

    /// The segment's leaf, and its place there.
    fn place_of(&self, segment: Segment) -> Option<(usize, u32)> {
        let index = usize::try_from(segment.0 / self.segments_per_leaf()).ok()?;
        Some((index, (segment.0 % self.segments_per_leaf()) as u32))
    }

    fn segments_per_leaf(&self) -> u64 {
        u64::from(LEAF_BLOCKS / self.segment_blocks)
    }

    /// What is known of a segment without loading its leaf; of one that is not known, that nothing is free.
    fn known_usage(&self, segment: Segment) -> SegmentUsage {
        let extent = self.segment_extent(segment);
        let local = (extent.start.0 % u64::from(LEAF_BLOCKS)) as u32 / self.segment_blocks;
        let blocks_free = match self.slots.get(leaf_of(extent.start.0)) {
            _ if extent.is_empty() => 0,
            Some(Slot::Empty) => extent.blocks,
            Some(Slot::Present(leaf)) => leaf.segment_free(local),
            Some(Slot::Stored(_)) | None => 0,
        };
        SegmentUsage { segment, blocks_used: extent.blocks - blocks_free, blocks_free }
    }
}
