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
        for length in request.lengths() {
            if let Some(run) = free.find_run(Block(0)..Block(u64::MAX), length, request.longest())? {
                return Ok(request.fit(run));
            }
        }
        Ok(None)
    }
}
