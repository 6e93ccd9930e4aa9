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
            if let Some(run) = self.lowest_holding(longest) {
                return Ok(request.fit(run));
            }
            if !self.lists.learn(free)? {
                let longest_run = self.lists.index.largest().max_by_key(|run| run.blocks);
                return Ok(longest_run.and_then(|run| request.fit(run)));
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

impl Segregated {
    /// The lowest run of the first list in which every run is long enough, else one of the list of the length itself,
    /// where only some are.
    fn lowest_holding(&self, length: u32) -> Option<Extent> {
        let runs = &self.lists.index;
        let above = runs.of_size_from(length.next_power_of_two().ilog2()).next();
        above.or_else(|| runs.of_size_from(length.ilog2()).find(|run| run.blocks >= length))
    }
}
