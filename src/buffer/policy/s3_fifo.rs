//! S3-FIFO with one bit: new pages go through a small queue; only what is touched there, or comes back soon after, gets
//! into the main one. (Yang and others, SOSP 2023.)

use super::ghosts::Ghosts;
use super::queues::Queues;
use super::{Arrival, EvictionPolicy, Frames, PageHash, Slot};
use crate::id::SizeClass;

const SMALL: usize = 0;
const MAIN: usize = 1;
/// One part in so many is for new pages.
const SHARE: u64 = 10;

/// Resists scans; for accesses whose reuse is just too far apart for the small queue it loads a page twice.
#[derive(Debug)]
pub struct S3Fifo {
    queues: Queues<2>,
    ghosts: Ghosts,
}

impl S3Fifo {
    /// Of no page yet.
    pub fn new() -> Self {
        Self { queues: Queues::new(), ghosts: Ghosts::default() }
    }
}

impl Default for S3Fifo {
    fn default() -> Self {
        Self::new()
    }
}

impl EvictionPolicy for S3Fifo {
    fn name(&self) -> &'static str {
        "s3-fifo"
    }

    fn admit(&mut self, slot: Slot, page: PageHash, class: SizeClass, _arrival: Arrival) {
        let page = page.into();
        let queue = if self.ghosts.recall(page).is_some() { MAIN } else { SMALL };
        self.queues.insert(queue, slot, page, class);
    }

    fn remove(&mut self, slot: Slot) {
        self.queues.remove(slot);
    }

    fn replace(&mut self, old: Slot, new: Slot) {
        self.queues.replace(old, new);
    }

    fn victim(&mut self, frames: &mut dyn Frames) -> Option<Slot> {
        let units = self.queues.units();
        for _ in 0..=self.queues.slots() {
            let is_small = self.queues.slots_of(MAIN) == 0 || self.queues.units_of(SMALL) * SHARE > units;
            let slot = self.queues.oldest(if is_small { SMALL } else { MAIN })?;
            if !frames.touched(slot) && frames.take(slot) {
                if is_small {
                    let (page, size) = (self.queues.page(slot), self.queues.slot_units(slot));
                    self.ghosts.remember(page, size, units - units / SHARE, self.queues.slots());
                }
                self.queues.remove(slot);
                return Some(slot);
            }
            self.queues.renew(MAIN, slot);
        }
        self.queues.sweep(frames)
    }

    fn restore(&mut self, slot: Slot, page: PageHash, class: SizeClass) {
        self.queues.insert(MAIN, slot, page.into(), class);
    }

    fn memory_bytes(&self) -> usize {
        self.queues.memory_bytes() + self.ghosts.memory_bytes()
    }
}
