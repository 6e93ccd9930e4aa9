//! Writing frames elsewhere to have their memory: what the manager asks of those whose frames can be.

use std::sync::Arc;

use super::manager::Inner;
use super::room::FrameName;
use crate::error::{Error, Result};

/// Somebody whose frames can be written elsewhere.
pub(super) trait Spiller: Send + Sync {
    /// Writes what is under these keys elsewhere, and gives the frames back. Called without any lock. What is in use, or
    /// gone by now, stays as it is.
    ///
    /// # Errors
    /// If something could not be written; then its frame stays what it is.
    fn spill(&self, keys: &[u64]) -> Result<()>;
}

/// Frames of one spiller that are to be written.
pub(super) struct Cold {
    /// `None` if it is going: its frames are free soon.
    pub(super) spiller: Option<Arc<dyn Spiller>>,
    pub(super) number: u32,
    /// With their keys.
    pub(super) frames: Vec<(FrameName, u64)>,
}

/// What somebody who wants memory has been told by spillers.
#[derive(Default)]
pub(super) struct Refusals {
    /// Those that cannot write now.
    pub(super) spillers: Vec<u32>,
    /// What the first of them said.
    pub(super) error: Option<Error>,
}

impl Inner {
    /// Writes what is cold. Whether anything was freed. Without the lock.
    pub(super) fn spill(&self, all: Vec<Cold>, refusals: &mut Refusals) -> bool {
        let mut freed = 0;
        for Cold { spiller, number, frames } in all {
            let keys: Vec<u64> = frames.iter().map(|(_, key)| *key).collect();
            let result = spiller.as_ref().map_or(Ok(()), |spiller| spiller.spill(&keys));
            // Perhaps the last one who knows it: it goes before the lock is taken.
            drop(spiller);
            freed += self.room().settle_cold(self, number, &frames);
            if let Err(error) = result {
                refusals.spillers.push(number);
                refusals.error.get_or_insert(error);
            }
        }
        self.announce();
        freed > 0
    }
}
