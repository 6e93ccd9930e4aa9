//! Best fit: the shortest run that is long enough.

use super::index::{Covered, Runs};
use crate::error::Result;
use crate::id::Extent;
use crate::space::{AllocationStrategy, FreeSpace, Request};

/// Takes the shortest run that is long enough among the leaves it knows, and learns another leaf when none is. Keeps
/// long runs whole for pages of many sizes; leaves slivers behind.
#[derive(Debug)]
pub struct BestFit {
    runs: Covered<Runs>,
}

impl Default for BestFit {
    fn default() -> Self {
        Self { runs: Covered::of(Runs::by(|length| length)) }
    }
}

impl AllocationStrategy for BestFit {
    fn name(&self) -> &'static str {
        "best-fit"
    }

    fn propose(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
        loop {
            if let Some(run) = self.runs.index.of_size_from(request.longest()).next() {
                return Ok(request.fit(run));
            }
            if !self.runs.learn(free)? {
                return Ok(self.runs.index.largest().next().and_then(|run| request.fit(run)));
            }
        }
    }

    fn taken(&mut self, extent: Extent) {
        self.runs.taken(extent);
    }

    fn released(&mut self, extent: Extent) {
        self.runs.released(extent);
    }

    fn cut(&mut self, blocks_total: u64) {
        self.runs.cut(blocks_total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::{Purpose, Space};

    #[test]
    fn the_shortest_run_that_is_long_enough_is_taken_and_the_longest_if_none_is() {
        let mut space = Space::new(100, 256, Box::new(BestFit::default()));
        for used in [Extent::new(30, 1), Extent::new(40, 1), Extent::new(46, 54)] {
            space.take(used).unwrap();
        }
        assert_eq!(space.allocate(&Request::exactly(4, Purpose::Data)).unwrap(), Some(Extent::new(41, 4)));
        assert_eq!(space.allocate(&Request::exactly(4, Purpose::Data)).unwrap(), Some(Extent::new(31, 4)));
        space.release(Extent::new(41, 4)).unwrap();
        assert_eq!(space.allocate(&Request::exactly(5, Purpose::Data)).unwrap(), Some(Extent::new(35, 5)));
        assert_eq!(space.allocate(&Request::up_to(50, Purpose::Data)).unwrap(), Some(Extent::new(0, 30)));
    }
}
