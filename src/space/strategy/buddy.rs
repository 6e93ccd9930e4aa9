//! Buddies: free blocks in aligned powers of two.

use std::collections::BTreeSet;

use super::index::{Covered, FreeIndex};
use crate::error::Result;
use crate::id::Extent;
use crate::space::{AllocationStrategy, FreeSpace, LEAF_BLOCKS, Request};

const ORDERS: usize = LEAF_BLOCKS.ilog2() as usize + 1;

/// Takes extents that begin at a multiple of their length, rounded up to a power of two, from the smallest free buddy
/// that holds them. What the rounding leaves over stays free. Merges at once and searches nothing.
///
/// Not complete: a run that is long enough, but holds no aligned buddy that is, is not found.
#[derive(Debug, Default)]
pub struct Buddy {
    buddies: Covered<Buddies>,
}

impl AllocationStrategy for Buddy {
    fn name(&self) -> &'static str {
        "buddy"
    }

    fn propose(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
        if request.longest() < request.shortest() {
            return Ok(None);
        }
        loop {
            if let Some(buddy) = self.buddies.index.smallest(request.longest()) {
                return Ok(request.fit(buddy));
            }
            if !self.buddies.learn(free)? {
                return Ok(self.buddies.index.largest().and_then(|buddy| request.fit(buddy)));
            }
        }
    }

    fn is_complete(&self) -> bool {
        false
    }

    fn taken(&mut self, extent: Extent) {
        self.buddies.taken(extent);
    }

    fn released(&mut self, extent: Extent) {
        self.buddies.released(extent);
    }

    fn cut(&mut self, blocks_total: u64) {
        self.buddies.cut(blocks_total);
    }
}

/// Free buddies by order: those of order `n` have `1 << n` blocks and begin at a multiple of that. No two of the same
/// order could be merged.
#[derive(Debug, Default)]
struct Buddies {
    orders: [BTreeSet<u64>; ORDERS],
}

impl Buddies {
    /// The lowest among the smallest buddies that hold `blocks` blocks.
    fn smallest(&self, blocks: u32) -> Option<Extent> {
        let from = blocks.next_power_of_two().ilog2() as usize;
        (from..ORDERS).find_map(|order| self.lowest(order))
    }

    /// The lowest among the largest buddies.
    fn largest(&self) -> Option<Extent> {
        (0..ORDERS).rev().find_map(|order| self.lowest(order))
    }

    fn lowest(&self, order: usize) -> Option<Extent> {
        self.orders[order].first().map(|&start| Extent::new(start, 1 << order))
    }

    /// Cuts an extent into aligned powers of two.
    fn pieces(extent: Extent) -> impl Iterator<Item = (u64, usize)> {
        let mut rest = extent;
        std::iter::from_fn(move || {
            let length = rest.blocks.checked_ilog2()?;
            let order = rest.start.0.trailing_zeros().min(length).min(ORDERS as u32 - 1);
            let piece = (rest.start.0, order as usize);
            rest = rest.split_at(1 << order).1;
            Some(piece)
        })
    }
}

impl FreeIndex for Buddies {
    fn add(&mut self, extent: Extent) {
        for (mut start, mut order) in Self::pieces(extent) {
            while order + 1 < ORDERS && self.orders[order].remove(&(start ^ (1 << order))) {
                start &= !(1 << order);
                order += 1;
            }
            self.orders[order].insert(start);
        }
    }

    fn remove(&mut self, extent: Extent) {
        let mut rest = extent;
        while !rest.is_empty() {
            let at = rest.start.0;
            let start_of = |order: usize| at >> order << order;
            let Some(order) = (0..ORDERS).find(|&order| self.orders[order].remove(&start_of(order))) else {
                debug_assert!(false, "the buddies hold every free block that they cover");
                return;
            };
            let buddy = Extent::new(start_of(order), 1 << order);
            let (before, from_here) = buddy.split_at((at - buddy.start.0) as u32);
            let (_, behind) = from_here.split_at(rest.blocks);
            for (start, order) in Self::pieces(before).chain(Self::pieces(behind)) {
                self.orders[order].insert(start);
            }
            rest = rest.split_at(from_here.blocks).1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::{Purpose, Space};

    #[test]
    fn extents_begin_at_a_multiple_of_their_length_rounded_up() {
        let mut space = Space::new(1000, 256, Box::new(Buddy::default()));
        let starts = [3, 5, 1, 9, 2]
            .map(|blocks| space.allocate(&Request::exactly(blocks, Purpose::Data)).unwrap().unwrap().start.0);
        // The smallest buddies of 1000 blocks lie at its end: 8 at 992, 32 at 960, and so on.
        assert_eq!(starts, [992, 960, 965, 976, 966]);
    }

    #[test]
    fn buddies_part_and_merge_again() {
        let mut buddies = Buddies::default();
        buddies.add(Extent::new(0, LEAF_BLOCKS));
        buddies.remove(Extent::new(5, 6));
        assert_eq!(buddies.smallest(1), Some(Extent::new(4, 1)));
        assert_eq!(buddies.smallest(3), Some(Extent::new(0, 4)));
        assert_eq!(buddies.smallest(9), Some(Extent::new(16, 16)));
        buddies.add(Extent::new(5, 6));
        assert_eq!(buddies.largest(), Some(Extent::new(0, LEAF_BLOCKS)));
        assert_eq!(buddies.orders.iter().map(BTreeSet::len).sum::<usize>(), 1);
    }
}
