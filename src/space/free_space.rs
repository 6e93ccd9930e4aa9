//! What a strategy sees of the bitmap: questions, and no way to change anything.

use std::ops::Range;

use super::LEAF_BLOCKS;
use super::bitmap::{Bitmap, Scope, Segment, SegmentUsage};
use crate::error::Result;
use crate::id::{Block, Extent};

/// A view of the bitmap that answers questions, and loads leaves where an answer needs them.
///
/// *Known* segments are those whose leaf is in memory or was never used. Questions about known segments load nothing;
/// [`FreeSpace::load_next`] makes more of them known.
pub struct FreeSpace<'a> {
    bitmap: &'a mut Bitmap,
}

impl<'a> FreeSpace<'a> {
    pub(super) fn of(bitmap: &'a mut Bitmap) -> Self {
        Self { bitmap }
    }

    /// Blocks in the file.
    pub fn blocks_total(&self) -> u64 {
        self.bitmap.blocks_total()
    }

    /// Blocks that are free.
    pub fn blocks_free(&self) -> u64 {
        self.bitmap.blocks_free()
    }

    /// Blocks in a segment.
    pub fn segment_blocks(&self) -> u32 {
        self.bitmap.segment_blocks()
    }

    /// The first run of at least `minimum` free blocks at or after `from`, as long as it goes in its leaf.
    ///
    /// # Errors
    /// What loading leaves fails with.
    pub fn next_run(&mut self, from: Block, minimum: u32) -> Result<Option<Extent>> {
        self.find_run(from..Block(u64::MAX), minimum, LEAF_BLOCKS)
    }

    /// The first run of at least `minimum` free blocks inside `within` and inside one leaf, cut to `maximum` blocks.
    ///
    /// # Errors
    /// What loading leaves fails with.
    pub fn find_run(&mut self, within: Range<Block>, minimum: u32, maximum: u32) -> Result<Option<Extent>> {
        self.bitmap.find_run(within, minimum, maximum, Scope::Everything)
    }

    /// As [`FreeSpace::find_run`], in leaves that are in memory or empty.
    pub fn find_known_run(&mut self, within: Range<Block>, minimum: u32, maximum: u32) -> Option<Extent> {
        // Nothing is loaded, so nothing can fail.
        self.bitmap.find_run(within, minimum, maximum, Scope::Known).unwrap_or_default()
    }

    /// Whether every block of the extent exists and is free.
    ///
    /// # Errors
    /// What loading leaves fails with.
    pub fn is_free(&mut self, extent: Extent) -> Result<bool> {
        self.bitmap.is_free(extent)
    }

    /// Brings one more leaf into memory, in order of address; whether there was one left.
    ///
    /// # Errors
    /// What loading the leaf fails with.
    pub fn load_next(&mut self) -> Result<bool> {
        self.bitmap.load_next()
    }

    /// The segment that a block lies in.
    pub fn segment_of(&self, block: Block) -> Segment {
        Segment(block.0 / u64::from(self.segment_blocks()))
    }

    /// The blocks of a segment, as far as the file goes.
    pub fn segment_extent(&self, segment: Segment) -> Extent {
        self.bitmap.segment_extent(segment)
    }

    /// How a segment is used.
    ///
    /// # Errors
    /// What loading its leaf fails with.
    pub fn segment_usage(&mut self, segment: Segment) -> Result<SegmentUsage> {
        self.bitmap.segment_usage(segment)
    }

    /// How many segments are known.
    pub fn segments_known(&self) -> u64 {
        self.bitmap.segments_known()
    }

    /// How many known segments are wholly free. The file's last segment is never, if the file ends inside it.
    pub fn segments_free(&self) -> u64 {
        self.bitmap.segments_free()
    }

    /// The first known segment from `from` on that is wholly free.
    pub fn next_free_segment(&mut self, from: Segment) -> Option<Segment> {
        self.bitmap.next_free_segment(from)
    }

    /// Which classes of holes there are in known segments. A *hole* is a run of free blocks inside one segment that is
    /// not wholly free; bit `n` is set if some segment's longest hole has at least `2^n` blocks and less than twice that.
    pub fn hole_classes(&self) -> u32 {
        self.bitmap.hole_classes()
    }

    /// The longest hole, cut to `maximum`, of the first known segment in which that is of this class, and has at least
    /// `minimum` blocks, and that is `wanted`.
    pub fn find_hole(
        &mut self,
        class: u32,
        minimum: u32,
        maximum: u32,
        wanted: impl Fn(Segment) -> bool,
    ) -> Option<Extent> {
        self.bitmap.find_hole(class, minimum, maximum, wanted)
    }

    /// Up to `count` known segments that are neither full nor wholly free and are `wanted`, the emptiest first.
    pub fn emptiest_segments(&self, count: usize, wanted: impl Fn(&SegmentUsage) -> bool) -> Vec<SegmentUsage> {
        self.bitmap.emptiest_segments(count, wanted)
    }
}
