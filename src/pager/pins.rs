//! Who holds which state, for how long: views, snapshots that are read, transactions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::thread::{Thread, ThreadId};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::id::Generation;
use crate::lock::lock_awake;
use crate::store::Pinned;

/// What holds a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PinKind {
    /// A view, of a snapshot or of what was the newest state.
    View,
    /// An open transaction.
    Transaction,
}

/// Somebody who holds a state: nothing that it reaches is used again meanwhile.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Pin {
    /// What holds it.
    pub kind: PinKind,
    /// The generation.
    pub generation: Generation,
    /// The name of the thread that began it, if the thread has one.
    pub thread_name: Option<String>,
    /// That thread.
    pub thread: ThreadId,
    /// For how long it has been held.
    pub age: Duration,
    /// How long it may still be held; `None`: as long as it likes.
    pub left: Option<Duration>,
}

/// All who hold a state.
#[derive(Debug)]
pub(super) struct Pins {
    entries: Mutex<Entries>,
    /// When the next deadline is, in nanoseconds from `start`.
    next_deadline: AtomicU64,
    start: Instant,
}

#[derive(Debug, Default)]
struct Entries {
    slots: Vec<Option<Entry>>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Entry {
    kind: PinKind,
    generation: Generation,
    thread: Thread,
    since: Instant,
    expiring: Option<Weak<Expiring>>,
}

/// An entry, until this is dropped.
#[derive(Debug)]
pub(super) struct Registered {
    pins: Arc<Pins>,
    slot: usize,
}

/// A state that is held until a deadline.
#[derive(Debug)]
pub(super) struct Expiring {
    pinned: RwLock<Option<Pinned>>,
    deadline: Instant,
    generation: Generation,
}

impl Default for Pins {
    fn default() -> Self {
        Self { entries: Mutex::default(), next_deadline: AtomicU64::new(u64::MAX), start: Instant::now() }
    }
}

impl Pins {
    pub(super) fn register(
        self: &Arc<Self>,
        kind: PinKind,
        generation: Generation,
        expiring: Option<&Arc<Expiring>>,
    ) -> Registered {
        let (thread, since) = (std::thread::current(), Instant::now());
        let entry = Entry { kind, generation, thread, since, expiring: expiring.map(Arc::downgrade) };
        let mut entries = self.lock();
        let slot = match entries.free.pop() {
            Some(slot) => {
                entries.slots[slot] = Some(entry);
                slot
            }
            None => {
                entries.slots.push(Some(entry));
                entries.slots.len() - 1
            }
        };
        drop(entries);
        // Who looks for deadlines takes note of this one, or finds the entry.
        if let Some(expiring) = expiring {
            self.next_deadline.fetch_min(self.nanoseconds(expiring.deadline), Ordering::AcqRel);
        }
        Registered { pins: Arc::clone(self), slot }
    }

    /// Everybody, the longest first.
    pub(super) fn list(&self) -> Vec<Pin> {
        let now = Instant::now();
        let entries = self.lock();
        let mut list: Vec<Pin> = entries.slots.iter().flatten().filter_map(|entry| entry.pin(now)).collect();
        drop(entries);
        list.sort_by_key(|pin| std::cmp::Reverse(pin.age));
        list
    }

    /// Lets go what is held beyond its deadline.
    pub(super) fn expire(&self) {
        let now = Instant::now();
        if self.next_deadline.load(Ordering::Acquire) > self.nanoseconds(now) {
            return;
        }
        self.next_deadline.store(u64::MAX, Ordering::Release);
        let expiring: Vec<Arc<Expiring>> = {
            let entries = self.lock();
            let expiring = entries.slots.iter().flatten().filter_map(|entry| entry.expiring.as_ref()?.upgrade());
            expiring.collect()
        };
        for expiring in expiring {
            if expiring.deadline > now || !expiring.let_go() {
                self.next_deadline.fetch_min(self.nanoseconds(expiring.deadline), Ordering::AcqRel);
            }
        }
    }

    fn nanoseconds(&self, instant: Instant) -> u64 {
        u64::try_from(instant.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }

    /// A panic while the lock is held leaves the list whole.
    fn lock(&self) -> MutexGuard<'_, Entries> {
        lock_awake(&self.entries)
    }
}

impl Entry {
    /// `None` if the state was let go at its deadline.
    fn pin(&self, now: Instant) -> Option<Pin> {
        let left = match &self.expiring {
            None => None,
            Some(expiring) => {
                let expiring = expiring.upgrade()?;
                if expiring.is_over() {
                    return None;
                }
                Some(expiring.deadline.saturating_duration_since(now))
            }
        };
        Some(Pin {
            kind: self.kind,
            generation: self.generation,
            thread_name: self.thread.name().map(str::to_owned),
            thread: self.thread.id(),
            age: now.saturating_duration_since(self.since),
            left,
        })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut entries = self.pins.lock();
        entries.slots[self.slot] = None;
        entries.free.push(self.slot);
    }
}

impl Expiring {
    pub(super) fn new(pinned: Pinned, deadline: Instant) -> Self {
        let generation = pinned.generation;
        Self { pinned: RwLock::new(Some(pinned)), deadline, generation }
    }

    /// The state, held at least until this is dropped.
    pub(super) fn read(&self) -> Result<RwLockReadGuard<'_, Option<Pinned>>> {
        if Instant::now() >= self.deadline {
            self.let_go();
            return Err(self.expired());
        }
        let pinned = self.pinned.read().unwrap_or_else(PoisonError::into_inner);
        match *pinned {
            Some(_) => Ok(pinned),
            None => Err(self.expired()),
        }
    }

    pub(super) fn expired(&self) -> Error {
        Error::ViewExpired { generation: self.generation }
    }

    fn is_over(&self) -> bool {
        self.pinned.read().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Lets the state go, unless somebody reads it at this moment; whether it did.
    fn let_go(&self) -> bool {
        self.pinned.try_write().map(|mut pinned| *pinned = None).is_ok()
    }
}
