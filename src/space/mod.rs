//! Space: which blocks of the file are in use, and which free ones to use next.
//!
//! Owns the bitmap in memory, with the summaries that make it searchable, and the strategies that choose among free
//! blocks. Knows nothing of formats, stores or why a block may be reused: whoever calls [`Space::release`] has decided
//! that (rules R1 to R8 of the store).
//!
//! ```text
//!   Space::allocate ──► strategy.propose(FreeSpace) ──► proposal checked against the bitmap ──► taken
//!   Space::take, Space::release ──► bitmap                       strategies only ever propose (S2)
//!
//!   tree     1 node per leaf and above     longest run, classes of holes, emptiest segment, wholly free segments
//!   leaf     32768 blocks (128 MiB)        4096 bytes as in the file; free blocks and longest hole per segment
//!   segment  256 blocks (1 MiB)            address / size, so there is one for every block
//! ```
//!
//! - **S1** `blocks_free` is exact at every moment, also while leaves are not in memory.
//! - **S2** What `allocate` returns was free, lies in one leaf, keeps to the request, and is in use from then on. A
//!   strategy that proposes anything else gets [`Error::BadStrategy`] for its name; there is no silent fallback.
//! - **S3** The tree is the join of its leaves; a search passes by every subtree that cannot hold what it looks for, so
//!   it looks at leaves that promise something and not at all 2^28 blocks of a terabyte.
//! - **S4** A leaf is loaded when its bits are first needed and kept then. Blocks taken or released in a leaf that is not
//!   in memory are remembered, and checked when it is loaded: then [`Error::Overlap`] comes late, but it comes.
//! - **S5** A call that fails changes nothing.
//!
//! Callers: `store`, which is single-threaded. Nothing here locks; everything is `Send`.

mod bitmap;
#[cfg(any(test, feature = "testing"))]
mod conformance;
mod free_space;
mod strategy;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bitmap::{Bitmap, Change, Scope};

use crate::error::{Error, Result};
use crate::id::{Block, Extent};

pub use bitmap::{Segment, SegmentUsage};
#[cfg(any(test, feature = "testing"))]
pub use conformance::{Violation, conformance};
pub use free_space::FreeSpace;
pub use strategy::{
    AllocationStrategy, BestFit, Buddy, FirstFit, NextFit, Purpose, Request, SegmentFill, Segregated, built_in,
    default_strategy,
};

/// Blocks that one leaf of the bitmap describes: 4096 bytes of bits, 128 MiB of file.
pub const LEAF_BLOCKS: u32 = 32768;

/// The usual number of blocks in a segment: 1 MiB.
pub const SEGMENT_BLOCKS: u32 = 256;

/// A leaf as a file holds it. Bit `i` of byte `j` stands for block `j * 8 + i` of the leaf and is set if the block is in
/// use; bits of blocks beyond the end of the file are clear.
pub type LeafBytes = [u8; 4096];

/// Where leaves come from that are not in memory yet.
pub trait LeafSource {
    /// The leaf with this number, as it was when the [`Space`] was made.
    ///
    /// # Errors
    /// Whatever keeps the source from reading it. The call that needed the leaf returns the error and changes nothing.
    fn load(&self, leaf: u64) -> Result<Box<LeafBytes>>;
}

/// How a leaf stands in the store when a [`Space`] is made from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafState {
    /// No block of it is in use, and there is nothing to load.
    Empty,
    /// To be loaded from the [`LeafSource`].
    Stored,
}

/// The blocks of one file: which are free, and a strategy that chooses among them.
pub struct Space {
    bitmap: Bitmap,
    strategy: Box<dyn AllocationStrategy>,
}

impl Space {
    /// A space in which everything is free.
    ///
    /// # Panics
    /// If `segment_blocks` is no power of two from 4 to [`LEAF_BLOCKS`].
    pub fn new(blocks_total: u64, segment_blocks: u32, strategy: Box<dyn AllocationStrategy>) -> Self {
        Self { bitmap: Bitmap::new(blocks_total, segment_blocks), strategy }
    }

    /// A space as a store keeps it. Leaves are loaded when they are needed; those that `leaves` leaves out are empty.
    ///
    /// `blocks_free` is believed until every leaf is in memory and [`Space::check_invariants`] counts. Memory is set
    /// aside in proportion to `blocks_total` (some 80 bytes for each 128 MiB), so the caller checks it against the
    /// file's length first.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is not so much.
    ///
    /// # Panics
    /// If `segment_blocks` is no power of two from 4 to [`LEAF_BLOCKS`].
    pub fn from_persisted(
        blocks_total: u64,
        segment_blocks: u32,
        strategy: Box<dyn AllocationStrategy>,
        leaves: impl IntoIterator<Item = LeafState>,
        source: Arc<dyn LeafSource + Send + Sync>,
        blocks_free: u64,
    ) -> Result<Self> {
        let bitmap = Bitmap::from_persisted(blocks_total, segment_blocks, leaves, source, blocks_free)?;
        Ok(Self { bitmap, strategy })
    }

    /// Takes an extent that the strategy chooses, or none if it finds none.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if no length satisfies the request, [`Error::BadStrategy`] if the strategy breaks S2,
    /// and what loading leaves fails with.
    pub fn allocate(&mut self, request: &Request) -> Result<Option<Extent>> {
        request.check()?;
        let Some(extent) = self.strategy.propose(&mut FreeSpace::of(&mut self.bitmap), request)? else {
            return Ok(None);
        };
        let refused = |reason| Err(Error::BadStrategy { name: self.strategy.name(), extent, reason });
        if !request.allows(extent.blocks) {
            return refused("its length breaks the request");
        }
        let leaf = |block: u64| block / u64::from(LEAF_BLOCKS);
        if extent.end().0 > self.bitmap.blocks_total() || leaf(extent.start.0) != leaf(extent.end().0 - 1) {
            return refused("it lies beyond the end of the file, or in more than one leaf");
        }
        if !self.bitmap.is_free(extent)? {
            return refused("it is in use");
        }
        self.take(extent)?;
        Ok(Some(extent))
    }

    /// Marks an extent as in use, whatever the strategy: for what is known to lie there, as in recovery. Loads nothing.
    ///
    /// # Errors
    /// [`Error::Overlap`] if a block is in use already or beyond the end; in a leaf that is not in memory, when it is
    /// loaded.
    pub fn take(&mut self, extent: Extent) -> Result<()> {
        self.bitmap.change(extent, Change::Take)?;
        self.strategy.taken(extent);
        Ok(())
    }

    /// Marks an extent as free. Loads nothing.
    ///
    /// # Errors
    /// [`Error::Overlap`] if a block is free already or beyond the end; in a leaf that is not in memory, when it is
    /// loaded.
    pub fn release(&mut self, extent: Extent) -> Result<()> {
        self.bitmap.change(extent, Change::Release)?;
        self.strategy.released(extent);
        Ok(())
    }

    /// Whether every block of the extent exists and is free.
    ///
    /// # Errors
    /// What loading leaves fails with.
    pub fn is_free(&mut self, extent: Extent) -> Result<bool> {
        self.bitmap.is_free(extent)
    }

    /// Adds free blocks at the end. A `blocks_total` that is not larger changes nothing.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is not enough to keep account of them; then nothing has changed.
    pub fn grow(&mut self, blocks_total: u64) -> Result<()> {
        if blocks_total > self.bitmap.blocks_total() {
            self.bitmap.grow(blocks_total)?;
            self.strategy.grown(blocks_total);
        }
        Ok(())
    }

    /// Removes blocks at the end. Loads the leaves they lie in.
    ///
    /// # Errors
    /// [`Error::Overlap`] if one of them is in use, and what loading leaves fails with.
    pub fn shrink_to(&mut self, blocks_total: u64) -> Result<()> {
        if blocks_total < self.bitmap.blocks_total() {
            self.bitmap.shrink_to(blocks_total)?;
            self.strategy.cut(blocks_total);
        }
        Ok(())
    }

    /// Blocks in the file.
    pub fn blocks_total(&self) -> u64 {
        self.bitmap.blocks_total()
    }

    /// Blocks that are free (S1).
    pub fn blocks_free(&self) -> u64 {
        self.bitmap.blocks_free()
    }

    /// The name of the strategy.
    pub fn strategy_name(&self) -> &'static str {
        self.strategy.name()
    }

    /// What the leaf would be in the file now; zeros for one beyond the end.
    ///
    /// # Errors
    /// What loading the leaf fails with.
    pub fn leaf_bytes(&mut self, leaf: u64) -> Result<LeafBytes> {
        self.bitmap.leaf_bytes(leaf)
    }

    /// Every run of free blocks, in order; runs end at leaf boundaries. Loads everything: for tests, checks and maps.
    ///
    /// # Errors
    /// What loading leaves fails with.
    pub fn free_extents(&mut self) -> Result<Vec<Extent>> {
        let mut extents = Vec::new();
        let mut from = Block(0);
        while let Some(extent) = self.free_space().next_run(from, 1)? {
            from = extent.end();
            extents.push(extent);
        }
        Ok(extents)
    }

    /// What a strategy sees: searches, and the use of segments.
    pub fn free_space(&mut self) -> FreeSpace<'_> {
        FreeSpace::of(&mut self.bitmap)
    }

    /// Up to `count` segments to empty next, the emptiest first: partly in use, and not being filled now. Each call brings
    /// one more leaf into memory, so that repeated calls come to know all.
    ///
    /// # Errors
    /// What loading the leaf fails with.
    pub fn segments_to_empty(&mut self, count: usize) -> Result<Vec<SegmentUsage>> {
        self.bitmap.load_next()?;
        let strategy = &self.strategy;
        Ok(self.bitmap.emptiest_segments(count, |usage| usage.blocks_used > 0 && !strategy.is_filling(usage.segment)))
    }

    /// From now on strategies do not find the holes of these segments, which are about to be emptied, and those of others
    /// again. Wholly free they are found like others, and nothing keeps a strategy from blocks it finds otherwise.
    pub fn pass_by(&mut self, segments: &[Segment]) {
        self.bitmap.pass_by(segments);
    }

    /// Whether the strategy is filling this segment, so that emptying it would be in vain.
    pub fn is_filling(&self, segment: Segment) -> bool {
        self.strategy.is_filling(segment)
    }

    /// How many wholly free segments the strategy wants to find, so that commits are contiguous: what a cleaner keeps.
    pub fn segments_wanted(&self) -> u64 {
        self.strategy.segments_wanted(self.bitmap.blocks_total() / u64::from(self.bitmap.segment_blocks()))
    }

    /// Takes every free block of a segment that is to be emptied, so that nothing new comes to lie there, and returns
    /// them. They are in memory's keeping only: the caller releases them with the blocks that it moves away.
    ///
    /// # Errors
    /// What loading the leaf fails with.
    pub fn close_segment(&mut self, segment: Segment) -> Result<Vec<Extent>> {
        let whole = self.bitmap.segment_extent(segment);
        let mut closed = Vec::new();
        let mut from = whole.start;
        while let Some(hole) = self.bitmap.find_run(from..whole.end(), 1, LEAF_BLOCKS, Scope::Everything)? {
            self.take(hole)?;
            from = hole.end();
            closed.push(hole);
        }
        Ok(closed)
    }

    /// Loads everything and asserts that all counts and summaries are what the bits say (S1, S3).
    ///
    /// # Errors
    /// [`Error::FreeCount`] if the store's count of free blocks was wrong, and what loading leaves fails with.
    ///
    /// # Panics
    /// If an invariant is broken: a bug of this room.
    pub fn check_invariants(&mut self) -> Result<()> {
        self.bitmap.check_invariants()
    }
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Space")
            .field("blocks_total", &self.blocks_total())
            .field("blocks_free", &self.blocks_free())
            .field("strategy", &self.strategy)
            .finish_non_exhaustive()
    }
}
