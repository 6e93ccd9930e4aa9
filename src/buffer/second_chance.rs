//! Second chance: the plainest policy that a reader's one bit allows.

use std::collections::VecDeque;

use super::policy::{Arrival, EvictionPolicy, Frames, PageHash, Slot};
use crate::id::SizeClass;

/// Frames in the order of their arrival; one that was touched goes to the back instead of out.
#[derive(Debug)]
pub(super) struct SecondChance {
    /// Slots with the number of their admission; stale ones are skipped.
    queue: VecDeque<(u32, u32)>,
    admissions: Vec<u32>,
    admitted: usize,
    next: u32,
}

impl SecondChance {
    pub(super) fn new(_seed: u64) -> Self {
        Self { queue: VecDeque::new(), admissions: Vec::new(), admitted: 0, next: 1 }
    }

    fn enter(&mut self, slot: Slot) {
        let at = slot.0 as usize;
        if self.admissions.len() <= at {
            self.admissions.resize(at + 1, 0);
        }
        self.admissions[at] = self.next;
        self.queue.push_back((slot.0, self.next));
        self.next = self.next.wrapping_add(1).max(1);
        self.admitted += 1;
        if self.queue.len() > 2 * self.admitted + 64 {
            let admissions = &self.admissions;
            self.queue.retain(|(slot, admission)| admissions[*slot as usize] == *admission);
        }
    }
}

impl EvictionPolicy for SecondChance {
    fn name(&self) -> &'static str {
        "second chance"
    }

    fn admit(&mut self, slot: Slot, _: PageHash, _: SizeClass, _: Arrival) {
        self.enter(slot);
    }

    fn remove(&mut self, slot: Slot) {
        self.admissions[slot.0 as usize] = 0;
        self.admitted -= 1;
    }

    fn replace(&mut self, old: Slot, new: Slot) {
        if old != new {
            self.remove(old);
            self.enter(new);
        }
    }

    fn victim(&mut self, frames: &mut dyn Frames) -> Option<Slot> {
        for _ in 0..2 * self.queue.len() + 8 {
            let (slot, admission) = self.queue.pop_front()?;
            if self.admissions[slot as usize] != admission {
                continue;
            }
            if !frames.touched(Slot(slot)) && frames.take(Slot(slot)) {
                self.admissions[slot as usize] = 0;
                self.admitted -= 1;
                return Some(Slot(slot));
            }
            self.queue.push_back((slot, admission));
        }
        None
    }

    fn restore(&mut self, slot: Slot, _: PageHash, _: SizeClass) {
        self.enter(slot);
    }

    fn memory_bytes(&self) -> usize {
        self.queue.capacity() * 8 + self.admissions.capacity() * 4
    }
}
