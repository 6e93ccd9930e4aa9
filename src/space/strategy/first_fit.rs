//! First fit: the lowest run that is long enough.

use crate::error::Result;
use crate::id::{Block, Extent};
use crate::space::{AllocationStrategy, FreeSpace, Request};

/// Takes the lowest run that is long enough, and if none is, the lowest of about half the length, and so on. Keeps the
/// file short and its end free; spreads a commit over many small holes at its beginning.
#[derive(Debug, Default)]
pub struct FirstFit;

impl AllocationStrategy for FirstFit {
    fn name(&self) -> &'static str {
        "first-fit"
    }

    fn propose(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
        propose(free, request)
    }
}

/// First fit, which needs no memory of its own: what other strategies fall back on to be complete.
pub(super) fn propose(free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
    for length in request.lengths() {
        if let Some(run) = free.find_run(Block(0)..Block(u64::MAX), length, request.longest())? {
            return Ok(request.fit(run));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::{Purpose, Space};

    #[test]
    fn the_lowest_run_that_is_long_enough_is_taken() {
        let mut space = Space::new(1000, 256, Box::new(FirstFit));
        space.take(Extent::new(3, 10)).unwrap();
        space.take(Extent::new(20, 500)).unwrap();
        assert_eq!(space.allocate(&Request::exactly(4, Purpose::Data)).unwrap(), Some(Extent::new(13, 4)));
        assert_eq!(space.allocate(&Request::exactly(4, Purpose::Data)).unwrap(), Some(Extent::new(520, 4)));
        assert_eq!(space.allocate(&Request::exactly(2, Purpose::Data)).unwrap(), Some(Extent::new(0, 2)));
    }
}
