//! Strategies: which free blocks to use next.
//!
//! A strategy proposes, the bitmap decides. It owns no durable state: what it remembers (a place, an index) it gathers
//! from [`FreeSpace`] when it first needs it and keeps up by what it is told, so any store opens with any strategy.
//! `conformance` is the suite that every strategy has to pass, those of users too.

mod best_fit;
mod buddy;
mod first_fit;
mod index;
mod next_fit;
mod segment_fill;
mod segregated;

pub use best_fit::BestFit;
pub use buddy::Buddy;
pub use first_fit::FirstFit;
pub use next_fit::NextFit;
pub use segment_fill::SegmentFill;
pub use segregated::Segregated;

use super::{FreeSpace, LEAF_BLOCKS, Segment};
use crate::error::{Error, Result};
use crate::id::Extent;

/// What blocks are wanted for. What is written and dies together should lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Pages of a commit.
    Data,
    /// Pages that are moved out of a segment to empty it: older than most, and likely to stay.
    Moved,
    /// A segment of the log: long, kept and used again.
    Log,
    /// Tree nodes of a checkpoint, dead after the next but one.
    Node,
}

impl Purpose {
    /// Every purpose.
    pub const ALL: [Self; 4] = [Self::Data, Self::Moved, Self::Log, Self::Node];
}

/// What an extent has to be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// How many blocks are wanted.
    pub blocks: u32,
    /// How many it takes at least.
    pub minimum: u32,
    /// The length is a multiple of this.
    pub multiple: u32,
    /// What for.
    pub purpose: Purpose,
}

impl Request {
    /// A request for exactly this many blocks.
    pub fn exactly(blocks: u32, purpose: Purpose) -> Self {
        Self { blocks, minimum: blocks, multiple: 1, purpose }
    }

    /// A request for up to this many blocks, and at least one.
    pub fn up_to(blocks: u32, purpose: Purpose) -> Self {
        Self { blocks, minimum: 1, multiple: 1, purpose }
    }

    /// The longest extent that the request allows, and that can lie in one leaf.
    pub fn longest(&self) -> u32 {
        let blocks = self.blocks.min(LEAF_BLOCKS);
        blocks - blocks % self.multiple.max(1)
    }

    /// The shortest extent that the request allows.
    pub fn shortest(&self) -> u32 {
        self.minimum.max(1).checked_next_multiple_of(self.multiple.max(1)).unwrap_or(u32::MAX)
    }

    /// Whether an extent may be this long.
    pub fn allows(&self, blocks: u32) -> bool {
        (self.shortest()..=self.longest()).contains(&blocks) && blocks.is_multiple_of(self.multiple.max(1))
    }

    /// The longest extent that the request allows at the start of a free run, if the run is long enough for any.
    pub fn fit(&self, run: Extent) -> Option<Extent> {
        let blocks = run.blocks.min(self.longest());
        let blocks = blocks - blocks % self.multiple.max(1);
        (blocks >= self.shortest()).then_some(Extent { start: run.start, blocks })
    }

    /// Lengths to look for one after the other: the longest, then about half of the one before, last the shortest. What
    /// is found in this order has at least half the length that could have been found.
    pub fn lengths(&self) -> impl Iterator<Item = u32> {
        let (shortest, multiple) = (self.shortest(), self.multiple.max(1));
        let halve = move |&length: &u32| {
            let half = length / 2;
            (length > shortest).then(|| (half - half % multiple).max(shortest))
        };
        std::iter::successors(Some(self.longest()).filter(|&longest| longest >= shortest), halve)
    }

    pub(super) fn check(&self) -> Result<()> {
        let longest = self.blocks - self.blocks.checked_rem(self.multiple).unwrap_or(self.blocks);
        if longest == 0 || longest < self.minimum {
            let reason = "no length is wanted, enough and a multiple at once";
            return Err(Error::InvalidOption { option: "allocation request", reason });
        }
        Ok(())
    }
}

/// A way to choose free blocks.
///
/// The bitmap checks every proposal: a bad one fails the allocation with [`Error::BadStrategy`] and harms nothing. So a
/// strategy is safe to write; to be good, it has to find what there is and to keep together what belongs together.
///
/// `taken`, `released`, `grown` and `cut` tell of every change, also of the strategy's own proposals and of changes in
/// leaves that are not in memory. A strategy without an index ignores them.
pub trait AllocationStrategy: Send + std::fmt::Debug {
    /// What errors and reports call the strategy.
    fn name(&self) -> &'static str;

    /// Proposes a free extent inside one leaf that keeps to the request, or none if it finds none.
    ///
    /// # Errors
    /// What `free` fails with, and nothing else.
    fn propose(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>>;

    /// Whether it finds an extent whenever one that the request allows is free. One that is not complete still has to
    /// find single blocks, and any extent for which a run of four times the length is free.
    fn is_complete(&self) -> bool {
        true
    }

    /// How many of a file's segments should be wholly free for the strategy to do well. A cleaner keeps as many.
    fn segments_wanted(&self, _segments_total: u64) -> u64 {
        0
    }

    /// Whether the strategy is filling this segment, so that emptying it would be in vain.
    fn is_filling(&self, _segment: Segment) -> bool {
        false
    }

    /// The extent is in use now.
    fn taken(&mut self, _extent: Extent) {}

    /// The extent is free now.
    fn released(&mut self, _extent: Extent) {}

    /// The file has this many blocks now, the new ones free.
    fn grown(&mut self, _blocks_total: u64) {}

    /// The file has only this many blocks now.
    fn cut(&mut self, _blocks_total: u64) {}
}

/// The strategy of a store that asks for none: what ages best (`benches/space.rs`).
pub fn default_strategy() -> Box<dyn AllocationStrategy> {
    Box::new(SegmentFill::default())
}

/// One of each strategy, the default first.
pub fn built_in() -> [Box<dyn AllocationStrategy>; 6] {
    [
        default_strategy(),
        Box::new(FirstFit),
        Box::new(NextFit::default()),
        Box::new(BestFit::default()),
        Box::new(Segregated::default()),
        Box::new(Buddy::default()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(blocks: u32, minimum: u32, multiple: u32) -> Request {
        Request { blocks, minimum, multiple, purpose: Purpose::Data }
    }

    #[test]
    fn lengths_fall_from_the_longest_to_the_shortest() {
        assert_eq!(request(64, 1, 1).lengths().collect::<Vec<_>>(), [64, 32, 16, 8, 4, 2, 1]);
        assert_eq!(request(50, 5, 4).lengths().collect::<Vec<_>>(), [48, 24, 12, 8]);
        assert_eq!(request(7, 7, 1).lengths().collect::<Vec<_>>(), [7]);
        assert_eq!(request(1 << 20, 1 << 16, 1).lengths().next(), None, "no leaf holds that");
    }

    #[test]
    fn a_request_that_no_length_satisfies_is_refused() {
        assert!(request(0, 0, 1).check().is_err());
        assert!(request(3, 4, 1).check().is_err());
        assert!(request(7, 5, 4).check().is_err());
        assert!(request(8, 5, 0).check().is_err());
        assert!(request(u32::MAX, u32::MAX, 2).check().is_err());
        assert!(request(8, 5, 4).check().is_ok());
    }

    #[test]
    fn a_run_is_cut_to_what_the_request_allows() {
        let run = Extent::new(10, 7);
        assert_eq!(request(16, 2, 2).fit(run), Some(Extent::new(10, 6)));
        assert_eq!(request(4, 1, 1).fit(run), Some(Extent::new(10, 4)));
        assert_eq!(request(16, 8, 1).fit(run), None);
    }
}
