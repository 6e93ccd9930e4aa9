//! The records of threads: what each one is looking at.
//!
//! - **P6** A thread is in an epoch, or fills a slot, *before* it reads a descriptor; a light fence lies between. Who
//!   takes frames from descriptors calls the heavy fence *before* looking at the records. So either the reader finds the
//!   frame gone, or the record shows that it is being read.
//! - **P7** Only the owner of a record enters epochs and fills its slots; anyone clears a slot, once. A slot is never
//!   copied: a copy could appear where the search has been and vanish from where it has not.
//! - **P8** Epochs rise. A frame taken from its descriptor before epoch `e` began can be in use by threads in epochs
//!   before `e` only.
//! - **P9** A record is never freed; another thread takes it over.
//! - **P10** Whatever value of a slot or an epoch lets a frame be used again, it was stored with release and is loaded with
//!   acquire: what its thread read before is read before the frame is written. A slot that another thread cleared is found
//!   so with acquire before it is filled: else its new value would not tell of what that thread had read.
#![allow(unsafe_code)]

use std::ptr;

use super::super::sync::{
    AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, SLOTS, Sabotage, acquire_unless, light_fence,
    release_unless, sabotaged,
};

/// Not in an epoch.
const OUTSIDE: u64 = 0;

/// What one thread is looking at.
#[repr(align(128))]
pub(in super::super) struct Record {
    epoch: AtomicU64,
    is_taken: AtomicBool,
    /// Slots from here on were never filled.
    filled: AtomicUsize,
    slots: [Slot; SLOTS],
    next: AtomicPtr<Record>,
    /// Pages found, by the number of the manager: written by the owner only.
    pub(in super::super) hits: [std::sync::atomic::AtomicU64; 8],
}

/// A frame's address, or zero.
pub(in super::super) struct Slot(AtomicUsize);

impl Slot {
    /// The frame is no longer in use by whom the slot stands for.
    #[inline(always)]
    pub(in super::super) fn clear(&self) {
        self.0.store(0, release_unless(Sabotage::RelaxedClear));
    }
}

impl Record {
    fn new() -> Self {
        Self {
            epoch: AtomicU64::new(OUTSIDE),
            is_taken: AtomicBool::new(true),
            filled: AtomicUsize::new(0),
            slots: std::array::from_fn(|_| Slot(AtomicUsize::new(0))),
            next: AtomicPtr::new(ptr::null_mut()),
            hits: Default::default(),
        }
    }

    /// Puts a frame into a free slot, from `first` on. The caller calls [`light_fence`], and then reads the descriptor.
    #[inline(always)]
    pub(in super::super) fn protect(&self, first: usize, address: usize) -> Option<(usize, &Slot)> {
        for step in 0..SLOTS {
            let at = (first + step) % SLOTS;
            let slot = &self.slots[at];
            if slot.0.load(acquire_unless(Sabotage::RelaxedRefill)) == 0 {
                if self.filled.load(Ordering::Relaxed) <= at {
                    self.filled.store(at + 1, Ordering::Relaxed);
                }
                // Who sees the slot with this frame knows that what was in it before is no longer read (P10).
                slot.0.store(address, Ordering::Release);
                return Some((at, slot));
            }
        }
        None
    }

    /// Enters the newest epoch. What descriptors show from now on stays as it is until [`Record::leave`].
    #[inline(always)]
    pub(in super::super) fn enter(&self, registry: &Registry) {
        // As with slots: who sees the new epoch knows that scopes before it have ended (P10).
        self.epoch.store(registry.epoch.load(Ordering::Acquire), Ordering::Release);
        light_fence();
    }

    /// Leaves the epoch.
    #[inline(always)]
    pub(in super::super) fn leave(&self) {
        self.epoch.store(OUTSIDE, release_unless(Sabotage::RelaxedLeave));
    }

    /// Gives the record to whichever thread comes next. Slots that are still in use stay so.
    pub(in super::super) fn give_up(&self) {
        self.leave();
        self.is_taken.store(false, Ordering::Release);
    }
}

/// All records, and the epoch.
pub(in super::super) struct Registry {
    epoch: AtomicU64,
    head: AtomicPtr<Record>,
}

impl Registry {
    pub(in super::super) fn new() -> Self {
        Self { epoch: AtomicU64::new(OUTSIDE + 1), head: AtomicPtr::new(ptr::null_mut()) }
    }

    /// A record for the calling thread: one that was given up, or a new one.
    pub(in super::super) fn take(&self) -> &'static Record {
        for record in self.records() {
            if record.is_taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return record;
            }
        }
        let record: &'static Record = Box::leak(Box::new(Record::new()));
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            record.next.store(head, Ordering::Relaxed);
            let new = ptr::from_ref(record).cast_mut();
            match self.head.compare_exchange(head, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return record,
                Err(other) => head = other,
            }
        }
    }

    /// Every record there is.
    pub(in super::super) fn records(&self) -> impl Iterator<Item = &'static Record> {
        let mut next = self.head.load(Ordering::Acquire);
        std::iter::from_fn(move || {
            // SAFETY: the list holds records that were leaked (P9).
            let record: &'static Record = unsafe { next.as_ref()? };
            next = record.next.load(Ordering::Acquire);
            Some(record)
        })
    }

    /// Begins a new epoch, and returns the one that ended.
    pub(in super::super) fn advance(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::AcqRel)
    }

    /// The oldest epoch that a thread is in.
    pub(in super::super) fn oldest(&self) -> u64 {
        if sabotaged(Sabotage::SkipEpochs) {
            return u64::MAX;
        }
        let epochs = self.records().map(|record| record.epoch.load(Ordering::Acquire));
        epochs.filter(|epoch| *epoch != OUTSIDE).min().unwrap_or(u64::MAX)
    }

    /// The frames in slots, in rising order. What is not among them after a heavy fence is in none.
    pub(in super::super) fn in_slots(&self, found: &mut Vec<usize>) {
        found.clear();
        if sabotaged(Sabotage::SkipSlots) {
            return;
        }
        for record in self.records() {
            let filled = record.filled.load(Ordering::Acquire);
            found.extend(
                record.slots[..filled]
                    .iter()
                    .map(|slot| slot.0.load(Ordering::Acquire))
                    .filter(|address| *address != 0),
            );
        }
        found.sort_unstable();
    }
}
