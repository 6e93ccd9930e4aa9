//! The buffer's policies, driven as the buffer drives them: a hit sets a bit, a miss asks for a victim.

use vellum::SizeClass;
use vellum::buffer::policy::{Arrival, EvictionPolicy, Frames, PageHash, Slot};

use crate::workload::Random;

/// Something that has a page or has not.
pub(crate) trait Cache {
    /// Whether it had the page. It has now.
    fn access(&mut self, page: u32) -> bool;
}

const NOWHERE: u32 = u32::MAX;

/// Frames of 4 KiB, none of them pinned.
#[derive(Default)]
struct Bits(Vec<bool>);

impl Frames for Bits {
    fn touched(&mut self, slot: Slot) -> bool {
        std::mem::take(&mut self.0[slot.0 as usize])
    }

    fn take(&mut self, _slot: Slot) -> bool {
        true
    }
}

/// A memory of so many pages under a policy.
pub(crate) struct Driven {
    policy: Box<dyn EvictionPolicy>,
    pages: usize,
    bits: Bits,
    /// The page in each slot.
    held: Vec<u32>,
    /// The slot of each page.
    slots: Vec<u32>,
}

impl Driven {
    pub(crate) fn new(policy: Box<dyn EvictionPolicy>, pages: usize, distinct: usize) -> Self {
        Self { policy, pages, bits: Bits::default(), held: Vec::new(), slots: vec![NOWHERE; distinct] }
    }

    /// A slot for a page that is not in memory: a new one, or a victim's.
    fn slot(&mut self, page: u32) -> Slot {
        if self.held.len() < self.pages {
            self.held.push(page);
            self.bits.0.push(false);
            return Slot(self.held.len() as u32 - 1);
        }
        let slot = self.policy.victim(&mut self.bits).expect("no frame refuses");
        let old = std::mem::replace(&mut self.held[slot.0 as usize], page);
        self.slots[old as usize] = NOWHERE;
        self.bits.0[slot.0 as usize] = false;
        slot
    }
}

impl Cache for Driven {
    fn access(&mut self, page: u32) -> bool {
        let slot = self.slots[page as usize];
        if slot != NOWHERE {
            self.bits.0[slot as usize] = true;
            return true;
        }
        let slot = self.slot(page);
        self.slots[page as usize] = slot.0;
        self.policy.admit(slot, PageHash(Random(u64::from(page)).next()), SizeClass::MIN, Arrival::Read);
        false
    }
}
