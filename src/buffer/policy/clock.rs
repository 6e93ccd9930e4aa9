//! CLOCK: one queue in order of arrival; a touched page that comes to its end begins anew.

use super::queues::Queues;
use super::{Arrival, EvictionPolicy, Frames, PageHash, Slot};
use crate::id::SizeClass;

/// The simplest policy, and the measure of the others: close to LRU, and as easily flooded by a scan.
#[derive(Debug)]
pub struct Clock {
    queues: Queues<1>,
}

impl Clock {
    /// Of no page yet.
    pub fn new() -> Self {
        Self { queues: Queues::new() }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl EvictionPolicy for Clock {
    fn name(&self) -> &'static str {
        "clock"
    }

    fn admit(&mut self, slot: Slot, page: PageHash, class: SizeClass, _arrival: Arrival) {
        self.queues.insert(0, slot, page.into(), class);
    }

    fn remove(&mut self, slot: Slot) {
        self.queues.remove(slot);
    }

    fn replace(&mut self, old: Slot, new: Slot) {
        self.queues.replace(old, new);
    }

    fn victim(&mut self, frames: &mut dyn Frames) -> Option<Slot> {
        for _ in 0..=self.queues.slots() {
            let slot = self.queues.oldest(0)?;
            if !frames.touched(slot) && frames.take(slot) {
                self.queues.remove(slot);
                return Some(slot);
            }
            self.queues.renew(0, slot);
        }
        self.queues.sweep(frames)
    }

    fn restore(&mut self, slot: Slot, page: PageHash, class: SizeClass) {
        self.admit(slot, page, class, Arrival::Read);
    }

    fn memory_bytes(&self) -> usize {
        self.queues.memory_bytes()
    }
}
