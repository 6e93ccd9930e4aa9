//! Next fit: as first fit, from where the last search ended.

use crate::error::Result;
use crate::id::{Block, Extent};
use crate::space::{AllocationStrategy, FreeSpace, Request};

/// Takes the first run that is long enough after the extent it took last, and begins again at the file's start. Searches
/// little; goes around the whole file, which it wears evenly and never leaves free at its end.
#[derive(Debug, Default)]
pub struct NextFit {
    from: Block,
}

impl AllocationStrategy for NextFit {
    fn name(&self) -> &'static str {
        "next-fit"
    }

    fn propose(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
        for length in request.lengths() {
            for within in [self.from..Block(u64::MAX), Block(0)..Block(u64::MAX)] {
                if let Some(extent) = free.find_run(within, length, request.longest())?.and_then(|run| request.fit(run))
                {
                    self.from = extent.end();
                    return Ok(Some(extent));
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::{Purpose, Space};

    #[test]
    fn the_search_goes_on_where_it_ended_and_around_the_end() {
        let mut space = Space::new(100, 256, Box::new(NextFit::default()));
        let request = Request::exactly(40, Purpose::Data);
        assert_eq!(space.allocate(&request).unwrap(), Some(Extent::new(0, 40)));
        space.release(Extent::new(0, 40)).unwrap();
        assert_eq!(space.allocate(&request).unwrap(), Some(Extent::new(40, 40)));
        assert_eq!(space.allocate(&request).unwrap(), Some(Extent::new(0, 40)));
    }
}
