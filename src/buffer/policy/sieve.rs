//! SIEVE: a queue in order of arrival and a hand that goes through it, from old to new, and evicts what was not touched
//! since it last came by. What was touched stays where it is. (Zhang and others, NSDI 2024.)

use super::queues::Queues;
use super::{Arrival, EvictionPolicy, Frames, PageHash, Slot};
use crate::id::SizeClass;

/// Very good for skewed accesses that do not change, and the least work; a hot set that shifts, or a page touched just
/// after it came in, stays for as long as the hand takes to come round.
#[derive(Debug)]
pub struct Sieve {
    queues: Queues<1>,
    /// The next to be asked; none: the oldest.
    hand: Option<Slot>,
}

impl Sieve {
    /// Of no page yet.
    pub fn new() -> Self {
        Self { queues: Queues::new(), hand: None }
    }
}

impl Default for Sieve {
    fn default() -> Self {
        Self::new()
    }
}

impl EvictionPolicy for Sieve {
    fn name(&self) -> &'static str {
        "sieve"
    }

    fn admit(&mut self, slot: Slot, page: PageHash, class: SizeClass, _arrival: Arrival) {
        self.queues.insert(0, slot, page.into(), class);
    }

    fn remove(&mut self, slot: Slot) {
        if self.hand == Some(slot) {
            self.hand = self.queues.newer(slot);
        }
        self.queues.remove(slot);
    }

    fn replace(&mut self, old: Slot, new: Slot) {
        if self.hand == Some(old) {
            self.hand = Some(new);
        }
        self.queues.replace(old, new);
    }

    fn victim(&mut self, frames: &mut dyn Frames) -> Option<Slot> {
        for _ in 0..=self.queues.slots() {
            let slot = self.hand.or_else(|| self.queues.oldest(0))?;
            self.hand = self.queues.newer(slot);
            if !frames.touched(slot) && frames.take(slot) {
                self.queues.remove(slot);
                return Some(slot);
            }
        }
        let slot = self.queues.sweep(frames)?;
        self.hand = self.hand.filter(|&hand| hand != slot);
        Some(slot)
    }

    fn restore(&mut self, slot: Slot, page: PageHash, class: SizeClass) {
        self.admit(slot, page, class, Arrival::Read);
    }

    fn memory_bytes(&self) -> usize {
        self.queues.memory_bytes()
    }
}
