//! The default: two queues, whose oldest pages are compared by age, and a weight between them that learns from what
//! comes back.
//!
//! ```text
//!                      never seen              touched
//!          admitted ─────────────▶  probation ─────────▶ main ◀──┐
//!              │                        │                 │ └────┘ touched
//!              │ remembered             │ weight · age ≥ age
//!              └────────────────────────┼──▶ main         │ else
//!                                       ▼                 ▼
//!                              evicted, remembered   evicted, remembered
//! ```
//!
//! A page of which nothing is known is on probation. If it has been touched when its turn comes, or is one that left not
//! long ago, it belongs to the main queue. Whose turn it is, the ages of the two oldest say (age: how much came into a
//! queue since): the one on probation goes if its age, times the weight, is at least the other's.
//!
//! - With weight 1 the two queues are one in order of age: this is CLOCK, to the page, close to LRU, and right for hot
//!   sets that shift and for whatever was read just now.
//! - With the greatest weight a page on probation gets a 32nd of the time: scans and rare pages leave at once, and the
//!   main queue is kept by what comes back; right for skewed accesses and scans, as S3-FIFO is.
//!
//! The weight follows the misses. A page that was evicted on probation and comes back within a *window* says that
//! probation should have been longer: the weight falls. One that was evicted from the main queue and comes back within the
//! window of the main queue's evictions says the opposite: it rises. Both windows are the same bytes, so the two rates
//! are what the memory in the window would have been worth in either queue, and the weight rests where they are equal.
//!
//! Two queues with learned shares are ARC's idea (Megiddo and Modha, 2003), with one bit, CAR's (Bansal and Modha, 2004);
//! probation that is short, and left early, is S3-FIFO's (Yang and others, 2023). Weighing ages in place of sharing out
//! memory is what makes CLOCK one end of the scale, so that little can be lost against it.
//!
//! - **W1** At weight 1 victims are those of CLOCK.
//! - **W2** The weight is a function of the calls alone, in whole numbers.

use super::ghosts::Ghosts;
use super::queues::Queues;
use super::{Arrival, EvictionPolicy, Frames, PageHash, Slot};
use crate::id::SizeClass;

const PROBATION: usize = 0;
const MAIN: usize = 1;

/// The logarithm of the weight, to base 2, in parts of 2^16: from 0 to 5, beginning in the middle.
const ONE: u64 = 1 << 16;
const GREATEST: u64 = 5 * ONE;
const AT_FIRST: u64 = GREATEST / 2;
/// What comes back counts if it left no longer ago than this part of the memory,
const WINDOW_PART: u64 = 33;
/// or so many pages, but at most half of them.
const WINDOW_PAGES: u64 = 128;

/// A page that was prefetched and whose first touch is still to come.
const AHEAD: u8 = 1;

/// The default policy. 20 bytes for a frame, and up to 24 for those that have left.
#[derive(Debug)]
pub struct WeighedAges {
    queues: Queues<2>,
    left_probation: Ghosts,
    left_main: Ghosts,
    weight_log2: u64,
}

impl WeighedAges {
    /// Of no page yet.
    pub fn new() -> Self {
        let (left_probation, left_main) = (Ghosts::default(), Ghosts::default());
        Self { queues: Queues::new(), left_probation, left_main, weight_log2: AT_FIRST }
    }

    /// The weight falls or rises by what a page says that came back. It goes through all of its range when as much has
    /// come back as the window holds.
    fn learn(&mut self, class: SizeClass, probation_age: Option<u64>, main_age: Option<u64>) {
        let (units, slots) = (self.queues.units(), self.queues.slots() as u64);
        let least = units * WINDOW_PAGES.min(slots / 2) / slots.max(1);
        let window = (units / WINDOW_PART).max(least).max(1);
        let step = (GREATEST * Queues::<2>::class_units(class) / window).min(GREATEST);
        if probation_age.is_some_and(|age| age < window) {
            self.weight_log2 = self.weight_log2.saturating_sub(step);
        }
        if main_age.is_some_and(|age| age < window) {
            self.weight_log2 = GREATEST.min(self.weight_log2 + step);
        }
    }

    /// The weight, in parts of 2^16: between powers of two, straight lines.
    fn weight(&self) -> u64 {
        (ONE + self.weight_log2 % ONE) << (self.weight_log2 / ONE)
    }

    /// The queue whose oldest page has its turn.
    fn turn(&self) -> Option<(usize, Slot)> {
        match (self.queues.oldest(PROBATION), self.queues.oldest(MAIN)) {
            (None, main) => main.map(|slot| (MAIN, slot)),
            (Some(slot), None) => Some((PROBATION, slot)),
            (Some(new), Some(main)) => {
                // Ages have 40 bits, the weight 22.
                let is_new = self.queues.age(new) * self.weight() >= self.queues.age(main) * ONE;
                Some(if is_new { (PROBATION, new) } else { (MAIN, main) })
            }
        }
    }

    fn evict(&mut self, queue: usize, slot: Slot) {
        let units = self.queues.units();
        let ghosts = if queue == PROBATION { &mut self.left_probation } else { &mut self.left_main };
        // A tenth less than the memory: what left before that would hardly be there under any policy.
        ghosts.remember(self.queues.page(slot), self.queues.slot_units(slot), units - units / 10, self.queues.slots());
        self.queues.remove(slot);
    }
}

impl Default for WeighedAges {
    fn default() -> Self {
        Self::new()
    }
}

impl EvictionPolicy for WeighedAges {
    fn name(&self) -> &'static str {
        "weighed-ages"
    }

    fn admit(&mut self, slot: Slot, page: PageHash, class: SizeClass, arrival: Arrival) {
        let page = page.into();
        let (probation_age, main_age) = (self.left_probation.recall(page), self.left_main.recall(page));
        self.learn(class, probation_age, main_age);
        let is_known = probation_age.is_some() || main_age.is_some();
        self.queues.insert(if is_known { MAIN } else { PROBATION }, slot, page, class);
        if arrival == Arrival::Ahead {
            self.queues.set_mark(slot, AHEAD);
        }
    }

    fn remove(&mut self, slot: Slot) {
        self.queues.remove(slot);
    }

    fn replace(&mut self, old: Slot, new: Slot) {
        self.queues.replace(old, new);
    }

    fn victim(&mut self, frames: &mut dyn Frames) -> Option<Slot> {
        for _ in 0..=self.queues.slots() {
            let (queue, slot) = self.turn()?;
            let is_touched = frames.touched(slot);
            if !is_touched && frames.take(slot) {
                self.evict(queue, slot);
                return Some(slot);
            }
            // What was loaded ahead has had the touch that it was loaded for: it is on probation from now.
            let is_new = is_touched && self.queues.mark(slot) == AHEAD && queue == PROBATION;
            self.queues.set_mark(slot, 0);
            self.queues.renew(if is_new { PROBATION } else { MAIN }, slot);
        }
        self.queues.sweep(frames)
    }

    fn restore(&mut self, slot: Slot, page: PageHash, class: SizeClass) {
        self.queues.insert(MAIN, slot, page.into(), class);
    }

    fn memory_bytes(&self) -> usize {
        self.queues.memory_bytes() + self.left_probation.memory_bytes() + self.left_main.memory_bytes()
    }
}

#[cfg(test)]
impl WeighedAges {
    /// The logarithm of the weight, as a test sets and reads it.
    pub(super) fn weight_log2_mut(&mut self) -> &mut u64 {
        &mut self.weight_log2
    }

    pub(super) const GREATEST: u64 = GREATEST;
}
