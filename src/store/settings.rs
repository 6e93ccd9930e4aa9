//! What a store is told when it is created or opened.

use crate::error::{Error, Result};
use crate::format::{RECORD_BLOCKS_LIMIT, SEGMENT_BLOCKS_LIMIT};
use crate::space::{AllocationStrategy, SEGMENT_BLOCKS, SegmentFill};

/// Blocks by which a file grows at most at a time: 1 TiB.
pub(super) const GROWTH_BLOCKS_LIMIT: u64 = 1 << 28;

/// Makes a strategy; a store makes one when it opens.
pub type MakeStrategy = fn() -> Box<dyn AllocationStrategy>;

/// What becomes of space that the file grows by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewSpace {
    /// It is written with zeros at once. A durable write to blocks that were never written takes about twice as long,
    /// since the file system must record that they are written now.
    Prewritten,
    /// It is only obtained: better for a bulk load, which writes everything once.
    Obtained,
}

/// What a store is told when it is created or opened. Nothing of it is durable but application id and version.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whose store this is; 0 for nobody in particular. A store of another id is refused.
    pub application_id: u32,
    /// The application's format version, kept in the superblock for it.
    pub application_version: u32,
    /// Blocks of a log segment. At least 4.
    pub log_segment_blocks: u32,
    /// Blocks of log after which a checkpoint is due; `None`: a quarter of the page maps, but at least 8 MiB and at
    /// most 64 MiB.
    pub checkpoint_log_blocks: Option<u64>,
    /// Commits of at most so many blocks of pages put them behind their record. 0: none do.
    pub in_log_blocks: u32,
    /// Blocks by which the file grows, at least; more while it is large (an eighth, at most 64 MiB).
    pub growth_blocks: u64,
    /// Whether new space is written with zeros when the file grows.
    pub new_space: NewSpace,
    /// Whether somebody grows the file ahead of need ([`Store::growth_due`](super::Store::growth_due)): a commit that has
    /// to wait for new space then takes no more than it needs.
    pub grows_ahead: bool,
    /// Blocks beyond which the file does not grow.
    pub blocks_limit: u64,
    /// Bytes written without a sync after which one is forced, so that adoption stays bounded.
    pub unsynced_limit_bytes: u64,
    /// Blocks of a segment of the file: what placement fills and the cleaner empties.
    pub segment_blocks: u32,
    /// Nodes of trees kept in memory.
    pub cached_nodes: usize,
    /// Makes the allocation strategy.
    pub strategy: MakeStrategy,
    /// Which rule to break, to see the tests catch it.
    #[cfg(any(test, feature = "testing"))]
    pub sabotage: Option<super::Sabotage>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            application_id: 0,
            application_version: 0,
            log_segment_blocks: 256,
            checkpoint_log_blocks: None,
            in_log_blocks: 8,
            growth_blocks: 256,
            new_space: NewSpace::Prewritten,
            grows_ahead: false,
            blocks_limit: crate::id::Block::LIMIT,
            unsynced_limit_bytes: 64 << 20,
            segment_blocks: SEGMENT_BLOCKS,
            cached_nodes: 16 << 10,
            strategy: || Box::<SegmentFill>::default(),
            #[cfg(any(test, feature = "testing"))]
            sabotage: None,
        }
    }
}

impl Settings {
    /// Fails if the settings cannot work: asked by the pager before it makes a file.
    pub(crate) fn check(&self) -> Result<()> {
        let invalid = |option, reason| Err(Error::InvalidOption { option, reason });
        if self.log_segment_blocks < 4 {
            return invalid("log_segment_blocks", "a log segment has at least 4 blocks");
        }
        if self.log_segment_blocks > SEGMENT_BLOCKS_LIMIT {
            return invalid("log_segment_blocks", "a log segment has at most 32768 blocks");
        }
        if !self.segment_blocks.is_power_of_two() || !(4..=32768).contains(&self.segment_blocks) {
            return invalid("segment_blocks", "a segment has a power of two of blocks, 4 to 32768");
        }
        if self.growth_blocks == 0 {
            return invalid("growth_blocks", "the file grows by at least one block");
        }
        if self.growth_blocks > GROWTH_BLOCKS_LIMIT {
            return invalid("growth_blocks", "the file grows by at most 1 TiB at a time");
        }
        Ok(())
    }

    /// Blocks of the shortest segment that will do where there is no room for a whole one.
    pub(super) fn segment_minimum_blocks(&self) -> u32 {
        (self.log_segment_blocks / 4).max(4)
    }

    /// Blocks of the largest record that goes into the log whole; a larger one puts its body into data extents. Two fit
    /// into the shortest segment (L5).
    pub(super) fn record_limit_blocks(&self) -> u64 {
        u64::from((self.segment_minimum_blocks() / 2).min(RECORD_BLOCKS_LIMIT))
    }
}

/// Where random numbers come from.
pub trait Entropy: Send + std::fmt::Debug {
    /// 64 random bits.
    ///
    /// # Errors
    /// If the system has none.
    fn draw(&mut self) -> Result<u64>;
}

/// The system's random numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn draw(&mut self) -> Result<u64> {
        getrandom::u64().map_err(|error| Error::Io {
            operation: "random numbers",
            path: "the system".into(),
            offset: None,
            source: std::io::Error::other(error),
        })
    }
}

/// Random numbers that follow from a seed (SplitMix64, by Steele, Lea and Flood): for tests.
#[derive(Clone, Copy, Debug)]
pub struct SeededEntropy(pub u64);

impl Entropy for SeededEntropy {
    fn draw(&mut self) -> Result<u64> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Ok(bits ^ (bits >> 31))
    }
}
