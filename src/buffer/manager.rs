//! The manager: pools, the bytes they may take, and the one lock behind every miss.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::budget::{MemoryBudget, Reserved};
use super::frame::Frame;
use super::graveyard::{self, Pools};
use super::guard::FrameGuard;
use super::lock;
use super::pages::StorePages;
use super::policy::{EvictionPolicy, default_policy};
use super::pool::{Pool, Use};
use super::prefetch::Crew;
use super::room::{FrameName, Room, charge_of};
use super::source::PageSource;
use super::spill::Refusals;
use super::stats::{BufferStats, Counters};
use super::store::Store;
use super::sync::choose_fence;
use super::table::Table;
use super::units::hash_scratch;
use crate::error::{Error, Holder, Result};
use crate::id::SizeClass;
use crate::lock::lock_awake;
use crate::memory::page_bytes;

/// The smallest budget.
const LEAST_BUDGET: usize = 1 << 20;
/// From this budget on pools ask for huge pages: a part of one for each class in use is then little.
const HUGE_PAGES_FROM: usize = 64 << 20;
/// How long a frame is waited for while nobody is known to let go of one.
const SHORT_PATIENCE: Duration = Duration::from_millis(50);
/// How long at most, while loads and scopes are under way.
const LONG_PATIENCE: Duration = Duration::from_secs(10);
/// Guards tell nobody when they go.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What all clones of a manager, its stores and frames share.
pub(super) struct Inner {
    limit: usize,
    /// Bytes charged: at most the limit.
    used: AtomicUsize,
    pub(super) pools: Arc<Pools>,
    room: Mutex<Room>,
    /// Somebody has let go of memory.
    released: Condvar,
    waiting: AtomicUsize,
    tickets: AtomicU64,
    pub(super) reservations: Mutex<BTreeMap<u64, Reserved>>,
    pub(super) counters: Counters,
    pub(super) crew: Crew,
}

impl Inner {
    /// A thread that panicked with the lock did so between two steps, each of which leaves the room whole.
    pub(super) fn room(&self) -> MutexGuard<'_, Room> {
        lock_awake(&self.room)
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that are not charged.
    pub(super) fn available(&self) -> usize {
        self.limit.saturating_sub(self.used())
    }

    /// Charges `bytes`, if they fit.
    pub(super) fn try_charge(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    pub(super) fn uncharge(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A number that no load had before.
    pub(super) fn ticket(&self) -> u64 {
        self.tickets.fetch_add(1, Ordering::Relaxed)
    }

    /// The class's pool, made if need be; then `prepare` is called with it. Under the room's lock.
    pub(super) fn pool(&self, class: SizeClass, prepare: impl FnOnce(&Pool)) -> Result<&Pool> {
        self.pools.get_or_make(class, || {
            let pool = Pool::reserve(class, self.limit)?;
            prepare(&pool);
            Ok(pool)
        })
    }

    /// A frame of `class` that nobody else has, with whatever bytes. Evicts, and waits: for at most `patience` if it is
    /// given.
    pub(super) fn obtain(&self, class: SizeClass, usage: Use, patience: Option<Duration>) -> Result<FrameName> {
        let bytes = charge_of(class);
        let (mut taken, mut next) = (None, None);
        self.with_room_for(bytes, Some(class), patience, &mut Refusals::default(), |room| {
            taken = room.take(self, class, usage)?;
            next = room.next(class).filter(|_| usage == Use::Private);
            Ok(taken.is_some())
        })?;
        // Whoever writes a page often writes another. Its memory has not been looked at for long: without this, writing a
        // small page takes a quarter longer.
        if let (Some(pool), Some(next)) = (self.pools.get(class), next) {
            pool.warm(next);
        }
        taken.ok_or_else(|| self.exhausted(&self.room(), bytes, Some(class)))
    }

    /// As [`Inner::obtain`], for the page `key` of a spiller. If spillers refused, the error is theirs.
    pub(super) fn obtain_scratch(&self, class: SizeClass, spiller: u32, key: u64) -> Result<FrameName> {
        let bytes = charge_of(class);
        let mut taken = None;
        let mut refusals = Refusals::default();
        let result = self.with_room_for(bytes, Some(class), None, &mut refusals, |room| {
            taken = room.take(self, class, Use::Scratch)?;
            if let Some(name) = taken {
                room.list_scratch(self, name, spiller, key, hash_scratch(spiller, key));
            }
            Ok(taken.is_some())
        });
        match (result, refusals.error) {
            (Err(Error::BudgetExhausted { .. }), Some(error)) => Err(error),
            (Err(error), _) => Err(error),
            (Ok(()), _) => taken.ok_or_else(|| self.exhausted(&self.room(), bytes, Some(class))),
        }
    }

    /// Charges `bytes`; evicts, and waits: for at most `patience` if it is given.
    pub(super) fn obtain_bytes(&self, bytes: usize, patience: Option<Duration>) -> Result<()> {
        if self.try_charge(bytes) {
            return Ok(());
        }
        self.with_room_for(bytes, None, patience, &mut Refusals::default(), |_| Ok(self.try_charge(bytes)))
    }

    /// Tries `take` until it says that it has what it wanted; makes room, has cold scratch pages written, and waits, in
    /// between.
    fn with_room_for(
        &self,
        bytes: usize,
        class: Option<SizeClass>,
        patience: Option<Duration>,
        refusals: &mut Refusals,
        mut take: impl FnMut(&mut Room) -> Result<bool>,
    ) -> Result<()> {
        let mut room = self.room();
        if take(&mut room)? {
            return Ok(());
        }
        let began = Instant::now();
        loop {
            room.make_room(self, bytes, class, &refusals.spillers);
            let is_taken = take(&mut room)?;
            let cold = room.take_cold(self);
            if !cold.is_empty() {
                drop(room);
                let is_freed = self.spill(cold, refusals);
                if is_taken {
                    return Ok(());
                }
                room = self.room();
                if is_freed && began.elapsed() < LONG_PATIENCE {
                    continue;
                }
            } else if is_taken {
                return Ok(());
            }
            let limit = match patience {
                Some(patience) => patience,
                None if room.is_anything_passing() => LONG_PATIENCE,
                None => SHORT_PATIENCE,
            };
            if began.elapsed() >= limit {
                return Err(self.exhausted(&room, bytes, class));
            }
            // Perhaps they can again.
            refusals.spillers.clear();
            self.waiting.fetch_add(1, Ordering::Relaxed);
            room = self.released.wait_timeout(room, LOOK_AGAIN).unwrap_or_else(PoisonError::into_inner).0;
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// How many threads wait for memory.
    #[cfg(test)]
    pub(super) fn waiting_threads(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Somebody who waits may find what he wants.
    pub(super) fn announce(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.released.notify_all();
        }
    }

    /// A frame that was loaded or private, and that nobody has seen, is free.
    pub(super) fn release(&self, name: FrameName) {
        self.room().release(self, name);
        self.announce();
    }

    /// The error that says who holds the memory. Of a class whose pool has no addresses left, nobody holds what is left
    /// of the budget, and nobody can have it.
    fn exhausted(&self, room: &Room, needed_bytes: usize, class: Option<SizeClass>) -> Error {
        let mut held_by = self.holders(room);
        if class.is_some_and(|class| room.lacks_addresses(self, class)) && self.available() >= needed_bytes {
            let what = "no addresses for it (see `ulimit -v`)".to_owned();
            held_by.insert(0, Holder { what, bytes: self.available() });
        }
        Error::BudgetExhausted { needed_bytes, budget_bytes: self.limit, held_by }
    }

    /// Who holds how much, the largest first.
    pub(super) fn holders(&self, room: &Room) -> Vec<Holder> {
        let stats = self.stats_of(room);
        let mut holders: Vec<Holder> = Vec::new();
        let mut add = |what: &str, bytes: usize| {
            if bytes > 0 {
                holders.push(Holder { what: what.to_owned(), bytes });
            }
        };
        let sum = |part: fn(&super::stats::ClassStats) -> u64| stats.classes.iter().map(part).sum::<u64>() as usize;
        add("pages in memory", sum(|class| class.resident_bytes));
        add("of these held by guards", sum(|class| class.guarded_bytes));
        add("private frames", stats.private_bytes as usize);
        add("scratch pages", stats.scratch_bytes as usize);
        add("loads", stats.loading_bytes as usize);
        add("replaced frames still read", sum(|class| class.limbo_bytes));
        add("free frames", sum(|class| class.free_bytes));
        add("descriptors", stats.descriptor_bytes as usize);
        for reserved in lock(&self.reservations).values() {
            add(&reserved.owner, reserved.bytes);
        }
        holders.sort_by_key(|holder| std::cmp::Reverse(holder.bytes));
        holders
    }

    pub(super) fn stats_of(&self, room: &Room) -> BufferStats {
        BufferStats::collect(self, room)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let room = self.room.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut ends = [0; SizeClass::COUNT];
        for class in SizeClass::all() {
            ends[class.index()] = room.end(class);
        }
        graveyard::leave(&self.pools, ends);
    }
}

/// Pools of frames for pages of every size, under one budget of bytes. Any number of stores can share it. Clones are the
/// same manager.
///
/// The memory that the process uses for pages stays below the budget, to the byte, and what the system needs beside it
/// (a part of a huge page for each size in use) below 1.05 of it.
#[derive(Clone)]
pub struct BufferManager {
    pub(super) inner: Arc<Inner>,
    budget: MemoryBudget,
}

impl BufferManager {
    /// A manager whose memory is at most `budget_bytes`: from 1 MiB up, any number.
    ///
    /// # Errors
    /// [`Error::BudgetTooSmall`]. Memory is obtained when it is needed.
    pub fn new(budget_bytes: usize) -> Result<Self> {
        Self::with_policy(budget_bytes, default_policy())
    }

    /// As [`BufferManager::new`], with another eviction policy than the default.
    ///
    /// # Errors
    /// As there.
    pub fn with_policy(budget_bytes: usize, policy: Box<dyn EvictionPolicy>) -> Result<Self> {
        if budget_bytes < LEAST_BUDGET {
            return Err(Error::BudgetTooSmall { budget_bytes, needed_bytes: LEAST_BUDGET });
        }
        choose_fence();
        let pools = Arc::new(Pools::default());
        graveyard::enter(&pools);
        let inner = Arc::new(Inner {
            limit: budget_bytes,
            used: AtomicUsize::new(0),
            pools,
            room: Mutex::new(Room::new(policy, budget_bytes >= HUGE_PAGES_FROM)),
            released: Condvar::new(),
            waiting: AtomicUsize::new(0),
            tickets: AtomicU64::new(1),
            reservations: Mutex::default(),
            counters: Counters::new(),
            crew: Crew::default(),
        });
        let budget = MemoryBudget::new(Arc::clone(&inner));
        Ok(Self { inner, budget })
    }

    /// The budget, of which users can have a part.
    pub fn budget(&self) -> &MemoryBudget {
        &self.budget
    }

    /// The pages of one store. Dropping the last clone gives all its frames back.
    ///
    /// # Errors
    /// `Memory` if the system refuses address space.
    pub fn attach(&self, source: Arc<dyn PageSource>) -> Result<StorePages> {
        let table = Table::new(page_bytes())?;
        let store = self.inner.room().attach(|number| Store::new(number, source, table));
        Ok(StorePages::new(Arc::clone(&self.inner), store))
    }

    /// A frame of zeros that nobody else sees.
    ///
    /// # Errors
    /// [`Error::BudgetTooSmall`] if the budget is smaller than a frame of this class; [`Error::BudgetExhausted`] if
    /// nothing can be evicted to make room for it; `Memory` if the system refuses address space.
    pub fn frame(&self, class: SizeClass) -> Result<Frame> {
        let mut frame = self.obtain_frame(class)?;
        frame.make_zero();
        Ok(frame)
    }

    /// A frame that nobody else sees, with whatever bytes it had before: for those who fill all of it.
    ///
    /// # Errors
    /// As [`BufferManager::frame`].
    pub fn stale_frame(&self, class: SizeClass) -> Result<Frame> {
        let frame = self.obtain_frame(class)?;
        frame.claim();
        Ok(frame)
    }

    fn obtain_frame(&self, class: SizeClass) -> Result<Frame> {
        let needed_bytes = charge_of(class);
        if needed_bytes > self.inner.limit {
            return Err(Error::BudgetTooSmall { budget_bytes: self.inner.limit, needed_bytes });
        }
        let name = self.inner.obtain(class, Use::Private, None)?;
        Frame::new(Arc::clone(&self.inner), name)
    }

    /// Numbers of now.
    pub fn stats(&self) -> BufferStats {
        self.inner.stats_of(&self.inner.room())
    }
}

impl fmt::Debug for BufferManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferManager")
            .field("budget_bytes", &self.inner.limit)
            .field("used_bytes", &self.inner.used())
            .finish_non_exhaustive()
    }
}

/// A guard of a frame that the caller has to itself, or holds in another way.
pub(super) fn guard_of(pool: &Pool, number: u32) -> FrameGuard {
    let start = pool.address(number);
    match super::thread::protect(start.addr().get()) {
        // SAFETY: the frame was in the slot before it is named anywhere, or is held by the lock under which it is named.
        Some(slot) => unsafe { FrameGuard::in_slot(start, pool.frame_bytes(), slot) },
        None => {
            let pins = &pool.meta(number).pins;
            pins.fetch_add(1, Ordering::AcqRel);
            // SAFETY: as above, with the count for the slot.
            unsafe { FrameGuard::counted(start, pool.frame_bytes(), pins) }
        }
    }
}
