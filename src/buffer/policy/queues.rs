//! Queues of slots, linked through one table: what every policy is made of.
//!
//! - **Q1** A slot is in at most one queue. The links of a queue, its number of slots and its units agree with it.
//! - **Q2** The table has an entry for each slot up to the highest seen, of [`BYTES_PER_SLOT`](super::BYTES_PER_SLOT).

use super::{Frames, PageHash, Slot};
use crate::id::SizeClass;

const NONE: u32 = u32::MAX;
/// The queue of a slot that is in none.
const NOWHERE: u8 = u8::MAX;
/// 4 KiB: what sizes are counted in.
const UNIT_LOG2: u8 = 12;

/// When a slot came into its queue has so many bits: 4 PiB that came into queues.
const TIME_BITS: u32 = 40;

/// What is kept for a slot.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The neighbour that came later.
    newer: u32,
    /// The neighbour that came before.
    older: u32,
    page: Fingerprint,
    /// When it came into its queue: the low bits, and the high.
    since: u32,
    since_high: u8,
    queue: u8,
    class: u8,
    /// What the policy remembers of it.
    mark: u8,
}

const _: () = assert!(size_of::<Entry>() == super::BYTES_PER_SLOT);

/// What is kept of a page's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint(pub(super) u32);

impl From<PageHash> for Fingerprint {
    fn from(page: PageHash) -> Self {
        Self((page.0 ^ (page.0 >> 32)) as u32)
    }
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    newest: u32,
    oldest: u32,
    slots: usize,
    units: u64,
}

/// `N` queues, by number.
#[derive(Debug)]
pub(super) struct Queues<const N: usize> {
    entries: Vec<Entry>,
    ends: [Ends; N],
    /// Units that came into a queue so far.
    now: u64,
}

impl<const N: usize> Queues<N> {
    pub(super) fn new() -> Self {
        let empty = Ends { newest: NONE, oldest: NONE, slots: 0, units: 0 };
        Self { entries: Vec::new(), ends: [empty; N], now: 0 }
    }

    /// Slots in all queues.
    pub(super) fn slots(&self) -> usize {
        self.ends.iter().map(|ends| ends.slots).sum()
    }

    pub(super) fn slots_of(&self, queue: usize) -> usize {
        self.ends[queue].slots
    }

    /// 4 KiB units in all queues.
    pub(super) fn units(&self) -> u64 {
        self.ends.iter().map(|ends| ends.units).sum()
    }

    pub(super) fn units_of(&self, queue: usize) -> u64 {
        self.ends[queue].units
    }

    pub(super) fn class_units(class: SizeClass) -> u64 {
        1 << (class.log2() - UNIT_LOG2)
    }

    /// The one that has been in the queue longest.
    pub(super) fn oldest(&self, queue: usize) -> Option<Slot> {
        Self::slot(self.ends[queue].oldest)
    }

    /// The one that came into the same queue next.
    pub(super) fn newer(&self, slot: Slot) -> Option<Slot> {
        Self::slot(self.entries[slot.0 as usize].newer)
    }

    pub(super) fn page(&self, slot: Slot) -> Fingerprint {
        self.entries[slot.0 as usize].page
    }

    pub(super) fn slot_units(&self, slot: Slot) -> u64 {
        1 << (self.entries[slot.0 as usize].class - UNIT_LOG2)
    }

    pub(super) fn mark(&self, slot: Slot) -> u8 {
        self.entries[slot.0 as usize].mark
    }

    pub(super) fn set_mark(&mut self, slot: Slot, mark: u8) {
        self.entries[slot.0 as usize].mark = mark;
    }

    pub(super) fn queue(&self, slot: Slot) -> Option<usize> {
        let queue = self.entries.get(slot.0 as usize)?.queue;
        (queue != NOWHERE).then_some(queue as usize)
    }

    /// A slot that was in no queue becomes the newest of one, with mark 0.
    pub(super) fn insert(&mut self, queue: usize, slot: Slot, page: Fingerprint, class: SizeClass) {
        let index = slot.0 as usize;
        if index >= self.entries.len() {
            let (newer, older, page) = (NONE, NONE, Fingerprint(0));
            let (queue, class) = (NOWHERE, UNIT_LOG2);
            let empty = Entry { newer, older, page, since: 0, since_high: 0, queue, class, mark: 0 };
            self.entries.resize(index + 1, empty);
        }
        debug_assert_eq!(self.entries[index].queue, NOWHERE, "Q1: {slot:?}");
        let entry = &mut self.entries[index];
        (entry.page, entry.class, entry.mark) = (page, class.log2(), 0);
        self.link(queue, slot);
    }

    /// Takes a slot out of its queue, if it is in one.
    pub(super) fn remove(&mut self, slot: Slot) -> bool {
        let Some(queue) = self.queue(slot) else { return false };
        let Entry { newer, older, .. } = self.entries[slot.0 as usize];
        let units = self.slot_units(slot);
        match newer {
            NONE => self.ends[queue].newest = older,
            newer => self.entries[newer as usize].older = older,
        }
        match older {
            NONE => self.ends[queue].oldest = newer,
            older => self.entries[older as usize].newer = newer,
        }
        self.ends[queue].slots -= 1;
        self.ends[queue].units -= units;
        self.entries[slot.0 as usize].queue = NOWHERE;
        true
    }

    /// A slot becomes the newest of a queue, which may be the one it is in.
    pub(super) fn renew(&mut self, queue: usize, slot: Slot) {
        self.remove(slot);
        self.link(queue, slot);
    }

    /// `new` takes the place of `old`, with all that is known of it.
    pub(super) fn replace(&mut self, old: Slot, new: Slot) {
        if old == new || self.queue(old).is_none() {
            return;
        }
        let entry = self.entries[old.0 as usize];
        if new.0 as usize >= self.entries.len() {
            self.entries.resize(new.0 as usize + 1, Entry { queue: NOWHERE, ..entry });
        }
        debug_assert_eq!(self.entries[new.0 as usize].queue, NOWHERE, "Q1: {new:?}");
        self.entries[new.0 as usize] = entry;
        self.entries[old.0 as usize].queue = NOWHERE;
        let ends = &mut self.ends[entry.queue as usize];
        match entry.newer {
            NONE => ends.newest = new.0,
            newer => self.entries[newer as usize].older = new.0,
        }
        match entry.older {
            NONE => ends.oldest = new.0,
            older => self.entries[older as usize].newer = new.0,
        }
    }

    /// Units that came into queues since the slot did.
    pub(super) fn age(&self, slot: Slot) -> u64 {
        let entry = &self.entries[slot.0 as usize];
        let since = u64::from(entry.since) | u64::from(entry.since_high) << 32;
        self.now.wrapping_sub(since) & ((1 << TIME_BITS) - 1)
    }

    /// Slots up to the highest seen.
    pub(super) fn table_slots(&self) -> usize {
        self.entries.len()
    }

    /// The first that lets itself be taken, whether it was touched or not: the end of a search that would go on for ever.
    pub(super) fn sweep(&mut self, frames: &mut dyn Frames) -> Option<Slot> {
        for queue in 0..N {
            let mut next = self.oldest(queue);
            while let Some(slot) = next {
                next = self.newer(slot);
                if frames.take(slot) {
                    self.remove(slot);
                    return Some(slot);
                }
            }
        }
        None
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }

    fn link(&mut self, queue: usize, slot: Slot) {
        let units = self.slot_units(slot);
        let ends = &mut self.ends[queue];
        let older = std::mem::replace(&mut ends.newest, slot.0);
        ends.slots += 1;
        ends.units += units;
        match older {
            NONE => ends.oldest = slot.0,
            older => self.entries[older as usize].newer = slot.0,
        }
        self.now = self.now.wrapping_add(units);
        let now = self.now;
        let entry = &mut self.entries[slot.0 as usize];
        (entry.newer, entry.older, entry.queue) = (NONE, older, queue as u8);
        (entry.since, entry.since_high) = (now as u32, (now >> 32) as u8);
    }

    fn slot(index: u32) -> Option<Slot> {
        (index != NONE).then_some(Slot(index))
    }
}
