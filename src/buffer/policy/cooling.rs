//! Second chance with a randomised cooling queue, as LeanStore has it.
//!
//! A tenth of the memory is cooling, in order; of the rest no order is known. What is to cool is drawn at random, and
//! evicted if it comes to the end of the queue without having been touched. (Leis and others, ICDE 2018.)

use super::queues::Queues;
use super::{Arrival, EvictionPolicy, Frames, PageHash, Slot};
use crate::id::SizeClass;

const HOT: usize = 0;
const COOLING: usize = 1;
/// One part in so many is cooling.
const SHARE: u64 = 10;
/// How often a slot is drawn that is not hot before the oldest is taken.
const DRAWS: usize = 16;

/// Cheap, and no worse for loops than chance; it learns nothing of frequency or scans.
#[derive(Debug)]
pub struct Cooling {
    queues: Queues<2>,
    random: u64,
}

impl Cooling {
    /// Of no page yet; draws by this seed.
    pub fn new(seed: u64) -> Self {
        Self { queues: Queues::new(), random: seed }
    }

    fn hot_slot(&mut self) -> Option<Slot> {
        for _ in 0..DRAWS {
            // SplitMix64 (Steele and others, 2014).
            self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let slot = Slot(((((mixed ^ (mixed >> 31)) >> 32) * self.queues.table_slots() as u64) >> 32) as u32);
            if self.queues.queue(slot) == Some(HOT) {
                return Some(slot);
            }
        }
        self.queues.oldest(HOT)
    }

    /// Until a tenth is cooling, a page drawn at random is to cool, but no more of them than `left`.
    fn cool(&mut self, frames: &mut dyn Frames, left: &mut usize) {
        while self.queues.units_of(COOLING) * SHARE < self.queues.units() || self.queues.slots_of(COOLING) == 0 {
            let (Some(slot), Some(less)) = (self.hot_slot(), left.checked_sub(1)) else { return };
            *left = less;
            frames.touched(slot);
            self.queues.renew(COOLING, slot);
        }
    }
}

impl EvictionPolicy for Cooling {
    fn name(&self) -> &'static str {
        "cooling"
    }

    fn admit(&mut self, slot: Slot, page: PageHash, class: SizeClass, _arrival: Arrival) {
        self.queues.insert(HOT, slot, page.into(), class);
    }

    fn remove(&mut self, slot: Slot) {
        self.queues.remove(slot);
    }

    fn replace(&mut self, old: Slot, new: Slot) {
        self.queues.replace(old, new);
    }

    fn victim(&mut self, frames: &mut dyn Frames) -> Option<Slot> {
        let mut left = self.queues.slots() + 1;
        for _ in 0..=self.queues.slots() {
            self.cool(frames, &mut left);
            let Some(slot) = self.queues.oldest(COOLING) else { break };
            if !frames.touched(slot) && frames.take(slot) {
                self.queues.remove(slot);
                return Some(slot);
            }
            self.queues.renew(HOT, slot);
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
