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

/// The default policy: 20 bytes for a frame, and 22 for what has left of 4 KiB, 27 as the tables grow: about one percent
/// of 4 KiB pages.
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
        let page = page.into();
        // Nobody missed it, so nothing is to be learnt.
        self.left_probation.recall(page);
        self.left_main.recall(page);
        self.queues.insert(MAIN, slot, page, class);
    }

    fn memory_bytes(&self) -> usize {
        self.queues.memory_bytes() + self.left_probation.memory_bytes() + self.left_main.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Memory, class};
    use super::super::{Clock, EvictionPolicy};
    use super::*;

    /// A memory under this policy with a weight.
    fn memory(pages: usize, weight_log2: u64) -> Memory<WeighedAges> {
        let mut memory = Memory::new(WeighedAges::new(), pages);
        memory.policy.weight_log2 = weight_log2;
        memory
    }

    /// Pages with a few favourites, and runs of pages that come once.
    fn accesses() -> impl Iterator<Item = u64> {
        let mut random = 1u64;
        (0..20_000).map(move |at| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let draw = random >> 40;
            if at % 1000 < 200 { 1_000_000 + at } else { (draw % 300).min(draw / 7 % 300) }
        })
    }

    #[test]
    fn weight_one_is_clock() {
        let (mut weighed, mut clock) = (memory(100, 0), Memory::new(Clock::new(), 100));
        for page in accesses() {
            weighed.policy.weight_log2 = 0;
            assert_eq!(weighed.access(page), clock.access(page));
        }
    }

    #[test]
    fn a_scan_three_times_the_memory_leaves_the_main_queue_nearly_whole() {
        let mut memory = memory(100, GREATEST);
        // Ninety pages, each touched again before its turn.
        (0..90).chain(0..90).for_each(|page| {
            memory.access(page);
        });
        (1000..1300).for_each(|page| {
            memory.access(page);
        });
        let kept = (0..90).filter(|&page| memory.has(page)).count();
        assert!(kept >= 85, "{kept}");
        let mut clock = Memory::new(Clock::new(), 100);
        (0..90).chain(0..90).chain(1000..1300).for_each(|page| {
            clock.access(page);
        });
        assert!((0..90).all(|page| !clock.has(page)));
    }

    #[test]
    fn the_weight_falls_when_pages_come_back_that_left_on_probation() {
        let mut memory = memory(1000, GREATEST);
        // A main queue of 900 pages, and then new pages, each read once more soon after it has gone.
        (0..900).chain(0..900).for_each(|page| {
            memory.access(page);
        });
        for page in 10_000..12_000 {
            memory.access(page);
            memory.access(page - 120);
        }
        // It falls until probation is long enough for them.
        assert!(memory.policy.weight_log2 < GREATEST / 4, "{}", memory.policy.weight_log2);
        assert!(memory.has(12_000 - 120));
    }

    #[test]
    fn the_weight_rises_when_pages_come_back_that_left_the_main_queue() {
        let mut memory = memory(1000, 0);
        // At weight 1 each scan drives out 500 pages that are read between the scans.
        for round in 0..20 {
            (0..500).chain(0..500).for_each(|page| {
                memory.access(page);
            });
            (0..1500).for_each(|page| {
                memory.access(10_000 + round * 1500 + page);
            });
        }
        assert!(memory.policy.weight_log2 > GREATEST / 2, "{}", memory.policy.weight_log2);
    }

    #[test]
    fn the_first_touch_of_a_page_loaded_ahead_does_not_count() {
        let victim_of = |arrival, touches: usize| {
            let mut memory = memory(10, GREATEST);
            (0..10).for_each(|page| memory.load(page, arrival));
            (0..touches).for_each(|_| {
                memory.access(0);
                memory.load(100, Arrival::Read);
                memory.policy.remove(memory.slot(100));
                memory.forget(100);
            });
            memory.policy.queues.queue(memory.slot(0))
        };
        assert_eq!(victim_of(Arrival::Read, 1), Some(MAIN));
        assert_eq!(victim_of(Arrival::Ahead, 1), Some(PROBATION));
    }

    #[test]
    fn the_weight_is_a_power_of_two_at_whole_numbers_and_rises_between() {
        let mut policy = WeighedAges::new();
        let mut last = 0;
        for log2 in 0..=GREATEST {
            policy.weight_log2 = log2;
            assert!(policy.weight() > last);
            last = policy.weight();
            if log2 % ONE == 0 {
                assert_eq!(last, ONE << (log2 / ONE));
            }
        }
    }

    #[test]
    fn one_page_larger_than_the_window_moves_the_weight_once_through_its_range() {
        let mut policy = WeighedAges::new();
        policy.admit(Slot(0), PageHash(1), class(20), Arrival::Read);
        policy.weight_log2 = GREATEST;
        policy.learn(class(30), Some(0), None);
        assert_eq!(policy.weight_log2, 0);
        policy.learn(class(30), None, Some(0));
        assert_eq!(policy.weight_log2, GREATEST);
    }
}
