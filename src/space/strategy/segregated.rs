//! Segregated lists: free runs by powers of two.

use super::index::{Covered, Runs};
use crate::error::Result;
use crate::id::Extent;
use crate::space::{AllocationStrategy, FreeSpace, Request};

/// Keeps a list of free runs for each power of two, and takes the lowest run of the first list in which every run is
/// long enough. Nearly as close as best fit, and fills the file from its start.
#[derive(Debug)]
pub struct Segregated {
    lists: Covered<Runs>,
}

impl Default for Segregated {
    fn default() -> Self {
        Self { lists: Covered::of(Runs::by(u32::ilog2)) }
    }
}

impl AllocationStrategy for Segregated {
    fn name(&self) -> &'static str {
        "segregated"
    }

    fn propose(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
        let longest = request.longest();
        if longest < request.shortest() {
            return Ok(None);
        }
        loop {
            let lists = &self.lists.index;
            // In the first list from here on, every run is long enough; in the one below, some may be.
            let above = lists.of_size_from(longest.next_power_of_two().ilog2()).next().and_then(|run| request.fit(run));
            if let Some(extent) = above.or_else(|| lists.of_size_from(longest.ilog2()).find_map(|run| request.fit(run)))
            {
                return Ok(Some(extent));
            }
            if !self.lists.learn(free)? {
                return Ok(self.lists.index.largest().find_map(|run| request.fit(run)));
            }
        }
    }

    fn taken(&mut self, extent: Extent) {
        self.lists.taken(extent);
    }

    fn released(&mut self, extent: Extent) {
        self.lists.released(extent);
    }

    fn cut(&mut self, blocks_total: u64) {
        self.lists.cut(blocks_total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::{Purpose, Space};

    #[test]
    fn the_first_list_of_runs_that_are_all_long_enough_is_served_from_its_lowest() {
        let mut space = Space::new(100, 256, Box::new(Segregated::default()));
        for used in [Extent::new(30, 1), Extent::new(38, 1), Extent::new(54, 46)] {
            space.take(used).unwrap();
        }
        // Free are 30, 7 and 15 blocks, in the lists of 16, 4 and 8.
        assert_eq!(space.allocate(&Request::exactly(5, Purpose::Data)).unwrap(), Some(Extent::new(39, 5)));
        assert_eq!(space.allocate(&Request::exactly(4, Purpose::Data)).unwrap(), Some(Extent::new(31, 4)));
        assert_eq!(space.allocate(&Request::exactly(12, Purpose::Data)).unwrap(), Some(Extent::new(0, 12)));
        assert_eq!(space.allocate(&Request::exactly(17, Purpose::Data)).unwrap(), Some(Extent::new(12, 17)));
        assert_eq!(space.allocate(&Request::exactly(10, Purpose::Data)).unwrap(), Some(Extent::new(44, 10)));
    }
}
