//! The pages of one store: finding, loading, publishing.
//!
//! How a reader at generation `g` comes to page `p`:
//!
//! ```text
//!   descriptor ─ in memory, generation ≤ g ──────────────▶ the frame          (no lock, no shared write)
//!       │      ─ in memory, generation > g ──▶ own pointer ─▶ unit by pointer
//!       │      ─ loading ─▶ wait for that load, look again      ▲
//!       └ evicted ─▶ loading, by this thread                    │
//!                       │ own pointer, newest pointer: differ ──┘ (and evicted again)
//!                       │ equal: read into a frame
//!                       ├─ finished: cooling, generation := birth
//!                       ├─ overtaken by a publication ─▶ the frame becomes a unit
//!                       └─ failed: evicted; those who wait for the same version fail alike
//! ```
//!
//! - **B1** Only a page that was the newest *after* its load began goes to the descriptor. A publication that begins
//!   later finds the load's word and replaces it; one that began before is known to `newest_pointer`.
//! - **B2** Input and output happen outside of every lock, into frames that nobody else sees, and never in an epoch of
//!   the buffer's own.
//! - **B3** A descriptor that stops being evicted is counted, and its memory charged, before.
//! - **B4** Locks are taken in this order: room, shard, wait.
#![allow(unsafe_code)]

use std::fmt;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::guard::FrameGuard;
use super::manager::{Inner, guard_of};
use super::policy::Arrival;
use super::pool::Use;
use super::protocol::descriptor::{Descriptor, Seen, Word};
use super::publish::Change;
use super::room::{FrameName, charge_of};
use super::shard::{Outcome, Wait};
use super::source::ReadState;
use super::stats::count_hit;
use super::store::{Store, leaf_charge};
use super::sync::light_fence;
use super::thread::{self, Epoch};
use super::units::{Unit, UnitKey, hash_page, hash_unit};
use crate::error::{Error, Result};
use crate::format::BlockPointer;
use crate::id::{Generation, PageId, SizeClass};

/// The pages of one store, in the buffer. Clones are the same; dropping the last gives the frames back, but for those
/// that guards hold.
#[derive(Clone)]
pub struct StorePages {
    pub(super) store: Arc<Store>,
    pub(super) inner: Arc<Inner>,
    /// Dropped with the last clone.
    _attachment: Arc<Attachment>,
    hits: u8,
}

struct Attachment {
    store: Arc<Store>,
    inner: Arc<Inner>,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.inner.room().detach(&self.inner, &self.store);
        self.inner.announce();
    }
}

impl StorePages {
    pub(super) fn new(inner: Arc<Inner>, store: Arc<Store>) -> Self {
        let attachment = Attachment { store: Arc::clone(&store), inner: Arc::clone(&inner) };
        let hits = inner.counters.number();
        Self { store, inner, _attachment: Arc::new(attachment), hits }
    }

    /// A guard of the page as it is at `at`. It may be kept for long; what it holds is not evicted.
    ///
    /// # Errors
    /// `PageNotFound`; `PageExceedsBudget`; `BudgetExhausted` if nothing can be evicted for it; those of the source.
    #[inline]
    pub fn page(&self, at: &impl ReadState, page: PageId) -> Result<FrameGuard> {
        let generation = at.generation();
        match self.store.table.find(page).and_then(|descriptor| self.try_guard::<true>(descriptor, generation, page)) {
            Some(guard) => Ok(guard),
            None => self.page_slowly(at, page, Arrival::Read),
        }
    }

    /// The budget of the manager, of all its stores together.
    pub fn budget_bytes(&self) -> u64 {
        self.inner.limit() as u64
    }

    /// As [`StorePages::page`], if that takes no loading: `None` if the page is not in memory, or is not easily had.
    #[inline]
    pub fn page_in_memory(&self, at: &impl ReadState, page: PageId) -> Option<FrameGuard> {
        self.try_guard::<true>(self.store.table.find(page)?, at.generation(), page)
    }

    /// As [`StorePages::page_in_memory`], and leaves no trace: for the eviction policy the page was not read. For those
    /// who read a page several times in a row, and then not again.
    #[inline]
    pub fn page_unnoticed(&self, at: &impl ReadState, page: PageId) -> Option<FrameGuard> {
        self.try_guard::<false>(self.store.table.find(page)?, at.generation(), page)
    }

    /// A guard, if the page is there as it is wanted, and the thread has a slot.
    #[inline(always)]
    fn try_guard<const TOUCH: bool>(
        &self,
        descriptor: Descriptor<'_>,
        generation: Generation,
        page: PageId,
    ) -> Option<FrameGuard> {
        loop {
            let word = descriptor.word();
            if !word.has_frame() {
                return None;
            }
            let slot = thread::protect(word.address())?;
            light_fence();
            let seen = if TOUCH { descriptor.read(generation.0) } else { descriptor.find(generation.0) };
            match seen {
                Seen::Frame(found) if found.same_frame(word) => {
                    count_hit(thread::record(), self.hits);
                    // SAFETY: the frame was found where it is named after it was in the slot (P3, P6).
                    return Some(unsafe { FrameGuard::in_slot(start_of(found), length_of(page.class()), slot) });
                }
                // It moved in between; the slot protects something else.
                Seen::Frame(_) => slot.clear(),
                Seen::Newer | Seen::Absent => {
                    slot.clear();
                    return None;
                }
            }
        }
    }

    /// As [`StorePages::try_guard`], counted.
    fn try_guard_counted(
        &self,
        descriptor: Descriptor<'_>,
        generation: Generation,
        page: PageId,
    ) -> Option<FrameGuard> {
        loop {
            let word = descriptor.word();
            if !word.has_frame() {
                return None;
            }
            let (pool, number) = self.inner.pools.find(word.address())?;
            let pins = &pool.meta(number).pins;
            pins.fetch_add(1, Ordering::SeqCst);
            light_fence();
            match descriptor.read(generation.0) {
                Seen::Frame(found) if found.same_frame(word) => {
                    count_hit(thread::record(), self.hits);
                    // SAFETY: as there, with the count for the slot.
                    return Some(unsafe { FrameGuard::counted(start_of(found), length_of(page.class()), pins) });
                }
                Seen::Frame(_) => drop(pins.fetch_sub(1, Ordering::Release)),
                Seen::Newer | Seen::Absent => {
                    pins.fetch_sub(1, Ordering::Release);
                    return None;
                }
            }
        }
    }

    /// Whether the page is in memory as a reader of this generation sees it, and so was allocated then. It does not count
    /// as wanted for this.
    pub fn is_in_memory(&self, generation: Generation, page: PageId) -> bool {
        let Some(descriptor) = self.store.table.find(page) else { return false };
        let _epoch = Epoch::enter();
        matches!(descriptor.find(generation.0), Seen::Frame(_))
    }

    /// A guard of the newest version that was published of a page, if it is in memory. The page does not count as wanted
    /// for this.
    pub fn newest_resident(&self, page: PageId) -> Option<FrameGuard> {
        let newest = Generation(u64::MAX);
        let descriptor = self.store.table.find(page)?;
        let guard = self.try_guard::<false>(descriptor, newest, page);
        guard.or_else(|| self.try_guard_counted(descriptor, newest, page))
    }

    /// A guard, whatever it takes.
    #[cold]
    pub(super) fn page_slowly(&self, at: &impl ReadState, page: PageId, arrival: Arrival) -> Result<FrameGuard> {
        let generation = at.generation();
        if charge_of(page.class()) > self.inner.limit() {
            return Err(Error::PageExceedsBudget { page });
        }
        // Of pages that nobody knows there may be no descriptor: so the pointer comes first.
        let mut own = None;
        if self.store.table.find(page).is_none() {
            own = Some(at.pointer(page)?);
        }
        let descriptor = self.store.table.find_or_reserve(page)?;
        loop {
            let guard = self.try_guard::<true>(descriptor, generation, page);
            if let Some(guard) = guard.or_else(|| self.try_guard_counted(descriptor, generation, page)) {
                return Ok(guard);
            }
            if descriptor.word().has_frame() {
                let pointer = own.map_or_else(|| at.pointer(page), Ok)?;
                return self.unit_arriving(page, &pointer, page.class(), arrival);
            }
            match self.begin_load(descriptor, page, None)? {
                Begun::Again => {}
                Begun::Wait(wait) => {
                    self.inner.counters.waits.fetch_add(1, Ordering::Relaxed);
                    if let Err((pointer, error)) = wait.wait()
                        && own.map_or_else(|| at.pointer(page), Ok)? == pointer
                    {
                        return Err(error);
                    }
                }
                Begun::Load(load) => {
                    // An error here is this reader's: by `?` the load is cancelled, and those who wait look again.
                    let own = own.map_or_else(|| at.pointer(page), Ok)?;
                    if own != self.store.source.newest_pointer(page)? {
                        drop(load);
                        return self.unit_arriving(page, &own, page.class(), arrival);
                    }
                    return self.load_page(load, &own, arrival);
                }
            }
        }
    }

    /// Evicted → loading, or what else there is to do.
    pub(super) fn begin_load<'a>(
        &'a self,
        descriptor: Descriptor<'a>,
        page: PageId,
        patience: Option<Duration>,
    ) -> Result<Begun<'a>> {
        let mut charged = false;
        let begun = loop {
            let (leaf, mut shard) = self.store.shard(page);
            let word = descriptor.word();
            if let Some(ticket) = word.ticket() {
                break Begun::Wait(Arc::clone(shard.waited.entry(ticket).or_default()));
            }
            if !word.is_evicted() {
                break Begun::Again;
            }
            if !shard.has(leaf) {
                if !charged {
                    drop(shard);
                    self.inner.obtain_bytes(leaf_charge(), patience)?;
                    charged = true;
                    continue;
                }
                charged = false;
                self.store.count_leaf();
            }
            shard.raise(leaf);
            let ticket = self.inner.ticket();
            if descriptor.begin_load(ticket) {
                break Begun::Load(Load { pages: self, descriptor, page, ticket, is_open: true });
            }
            shard.lower(leaf);
        };
        if charged {
            self.inner.uncharge(leaf_charge());
        }
        Ok(begun)
    }

    /// Reads the page, which is the newest, and finishes its load.
    pub(super) fn load_page(&self, mut load: Load<'_>, pointer: &BlockPointer, arrival: Arrival) -> Result<FrameGuard> {
        let page = load.page;
        self.inner.counters.misses.fetch_add(1, Ordering::Relaxed);
        let frame = match Filling::read(self, page, pointer, page.class()) {
            Ok(frame) => frame,
            Err(error) => return Err(load.fail(pointer, error)),
        };
        match load.finish(frame, pointer.birth, arrival) {
            Ok(guard) => Ok(guard),
            Err(frame) => {
                // A newer version is out. What was read is what this reader wants, and older ones.
                let key = UnitKey { pointer: *pointer, class: page.class() };
                Ok(self.enter_unit(key, frame, arrival))
            }
        }
    }

    /// What lies at `pointer`, which is the page's or that of one of its chunks: `class` says how long it is. For old
    /// versions, and for parts of pages above 1 MiB.
    ///
    /// # Errors
    /// As [`StorePages::page`].
    pub fn unit(&self, page: PageId, pointer: &BlockPointer, class: SizeClass) -> Result<FrameGuard> {
        self.unit_arriving(page, pointer, class, Arrival::Read)
    }

    fn unit_arriving(
        &self,
        page: PageId,
        pointer: &BlockPointer,
        class: SizeClass,
        arrival: Arrival,
    ) -> Result<FrameGuard> {
        if charge_of(class) > self.inner.limit() {
            return Err(Error::PageExceedsBudget { page });
        }
        let key = UnitKey { pointer: *pointer, class };
        loop {
            let wait = {
                let (_, mut shard) = self.store.unit_shard(&key);
                match shard.units.get_mut(&key) {
                    Some(Unit::Resident { address, touched }) => {
                        *touched = true;
                        if let Some((pool, number)) = self.inner.pools.find(*address) {
                            count_hit(thread::record(), self.hits);
                            // Under the lock under which it would be taken out.
                            return Ok(guard_of(pool, number));
                        }
                        continue;
                    }
                    Some(Unit::Loading(wait)) => Some(Arc::clone(wait)),
                    None => {
                        shard.units.insert(key, Unit::Loading(Arc::default()));
                        None
                    }
                }
            };
            if let Some(wait) = wait {
                self.inner.counters.waits.fetch_add(1, Ordering::Relaxed);
                wait.wait().map_err(|(_, error)| error)?;
                continue;
            }
            let mut load = UnitLoad::resume(self, key);
            self.inner.counters.misses.fetch_add(1, Ordering::Relaxed);
            return match Filling::read(self, page, pointer, class) {
                Ok(frame) => Ok(load.finish(frame, arrival)),
                Err(error) => Err(load.fail(error)),
            };
        }
    }

    /// As [`PageSource::place_of`](super::PageSource::place_of).
    #[cfg(all(target_os = "linux", feature = "prefetch-ring"))]
    pub(super) fn place_of(&self, page: PageId, pointer: &BlockPointer) -> Option<(&std::fs::File, u64)> {
        self.store.source.place_of(page, pointer)
    }

    /// As [`PageSource::is_right`](super::PageSource::is_right).
    #[cfg(all(target_os = "linux", feature = "prefetch-ring"))]
    pub(super) fn is_right(&self, page: PageId, pointer: &BlockPointer, bytes: &[u8]) -> bool {
        self.store.source.is_right(page, pointer, bytes)
    }

    /// Enters a frame as a unit, unless there is one already; those who wait go on. Returns a guard of either.
    fn enter_unit(&self, key: UnitKey, frame: Filling<'_>, arrival: Arrival) -> FrameGuard {
        let mut room = self.inner.room();
        let (number, mut shard) = self.store.unit_shard(&key);
        let (pool, name, address) = frame.place();
        match shard.units.get(&key) {
            Some(Unit::Resident { address: other, .. }) => {
                if let Some((pool, number)) = self.inner.pools.find(*other) {
                    let guard = guard_of(pool, number);
                    drop(shard);
                    drop(room);
                    return guard;
                }
            }
            Some(Unit::Loading(wait)) => wait.end(Outcome::Again),
            None => {}
        }
        shard.insert(key, address);
        let guard = guard_of(pool, name.number);
        drop(shard);
        let meta = pool.meta(name.number);
        meta.owner.store(number, Ordering::Relaxed);
        meta.store.store(self.store.number(), Ordering::Relaxed);
        frame.entered();
        room.list(&self.inner, name, Use::Unit, hash_unit(self.store.number(), &key), arrival);
        guard
    }

    /// The newest state changes, by one commit: called with its pages before the new generation can be read, and after
    /// [`PageSource::newest_pointer`](super::PageSource::newest_pointer) knows their new pointers. Each page once.
    ///
    /// The frames are the pool's from now on: readers at `generation` and later find them; other handles keep reading
    /// them. A frame that does not fit the page (another class, another manager's, published before), or for whose
    /// descriptor there is no room, counts as [`Newest::Absent`](super::Newest::Absent).
    pub fn publish(&self, generation: Generation, pages: &mut dyn Iterator<Item = (PageId, super::Newest)>) {
        self.publish_keeping(generation, &mut pages.map(|(page, newest)| Change { page, newest, replaced: None }));
    }
}

impl fmt::Debug for StorePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StorePages").field("store", &self.store).finish_non_exhaustive()
    }
}

/// What [`StorePages::begin_load`] found to do.
pub(super) enum Begun<'a> {
    /// Look again.
    Again,
    /// Another thread loads the page.
    Wait(Arc<Wait>),
    /// The caller loads it.
    Load(Load<'a>),
}

/// A load of a page's newest version, by whoever has this. Dropped, it is cancelled.
pub(super) struct Load<'a> {
    pages: &'a StorePages,
    descriptor: Descriptor<'a>,
    page: PageId,
    ticket: u64,
    is_open: bool,
}

impl<'a> Load<'a> {
    /// The load of this ticket, which another thread began and handed over.
    pub(super) fn resume(pages: &'a StorePages, page: PageId, ticket: u64) -> Option<Self> {
        let descriptor = pages.store.table.find(page)?;
        Some(Self { pages, descriptor, page, ticket, is_open: true })
    }

    /// Leaves the load to whoever resumes it.
    pub(super) fn hand_over(mut self) -> u64 {
        self.is_open = false;
        self.ticket
    }

    /// Enters the frame, and returns a guard of it; or the frame, if a publication was faster.
    pub(super) fn finish<'f>(
        &mut self,
        frame: Filling<'f>,
        birth: Generation,
        arrival: Arrival,
    ) -> Result<FrameGuard, Filling<'f>> {
        let Self { pages, page, .. } = *self;
        let (store, inner) = (&pages.store, &pages.inner);
        let (pool, name, address) = frame.place();
        let mut room = inner.room();
        let (leaf, mut shard) = store.shard(page);
        self.is_open = false;
        let meta = pool.meta(name.number);
        meta.owner.store(page.index(), Ordering::Relaxed);
        meta.store.store(store.number(), Ordering::Relaxed);
        meta.generation.store(birth.0, Ordering::Relaxed);
        let guard = guard_of(pool, name.number);
        let is_entered = self.descriptor.finish_load(self.ticket, birth.0, Word::cooling(address, page.class().log2()));
        shard.wake(self.ticket, Outcome::Again);
        if !is_entered {
            let _ = leaf;
            drop(guard);
            return Err(frame);
        }
        drop(shard);
        frame.entered();
        room.list(inner, name, Use::Page, hash_page(store.number(), page), arrival);
        Ok(guard)
    }

    /// What lies at `pointer` could not be loaded: those who wait for it fail with the same error.
    fn fail(&mut self, pointer: &BlockPointer, error: Error) -> Error {
        self.end(Outcome::Failed(*pointer, error.copy()));
        error
    }

    fn end(&mut self, outcome: Outcome) {
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        let (leaf, mut shard) = self.pages.store.shard(self.page);
        if self.descriptor.cancel_load(self.ticket) {
            shard.lower(leaf);
        }
        shard.wake(self.ticket, outcome);
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.end(Outcome::Again);
    }
}

/// A load of a unit. Dropped, it is cancelled.
pub(super) struct UnitLoad<'a> {
    pages: &'a StorePages,
    key: UnitKey,
    is_open: bool,
}

impl<'a> UnitLoad<'a> {
    /// Begins to load, if the unit is not in memory, nor on its way.
    pub(super) fn begin(pages: &'a StorePages, key: UnitKey) -> Option<Self> {
        let (_, mut shard) = pages.store.unit_shard(&key);
        if shard.units.contains_key(&key) {
            return None;
        }
        shard.units.insert(key, Unit::Loading(Arc::default()));
        Some(Self::resume(pages, key))
    }

    /// The load that was begun, here or by another thread that handed it over.
    pub(super) fn resume(pages: &'a StorePages, key: UnitKey) -> Self {
        Self { pages, key, is_open: true }
    }

    /// Leaves the load to whoever resumes it.
    pub(super) fn hand_over(mut self) {
        self.is_open = false;
    }

    /// Enters the frame, and returns a guard of it.
    pub(super) fn finish(mut self, frame: Filling<'_>, arrival: Arrival) -> FrameGuard {
        self.is_open = false;
        self.pages.enter_unit(self.key, frame, arrival)
    }

    fn fail(&mut self, error: Error) -> Error {
        self.end(Outcome::Failed(self.key.pointer, error.copy()));
        error
    }

    fn end(&mut self, outcome: Outcome) {
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        let (_, mut shard) = self.pages.store.unit_shard(&self.key);
        if let Some(Unit::Loading(_)) = shard.units.get(&self.key)
            && let Some(Unit::Loading(wait)) = shard.units.remove(&self.key)
        {
            wait.end(outcome);
        }
    }
}

impl Drop for UnitLoad<'_> {
    fn drop(&mut self) {
        self.end(Outcome::Again);
    }
}

/// A frame that was read into, and that nobody sees yet. Dropped, it is free again.
pub(super) struct Filling<'a> {
    pages: &'a StorePages,
    name: FrameName,
}

impl<'a> Filling<'a> {
    /// Obtains a frame and reads what lies at `pointer`.
    fn read(pages: &'a StorePages, page: PageId, pointer: &BlockPointer, class: SizeClass) -> Result<Self> {
        let mut filling = Self::obtain(pages, class, None)?;
        filling.fill(page, pointer)?;
        Ok(filling)
    }

    /// A frame to read into.
    pub(super) fn obtain(pages: &'a StorePages, class: SizeClass, patience: Option<Duration>) -> Result<Self> {
        Ok(Self { pages, name: pages.inner.obtain(class, Use::Loading, patience)? })
    }

    /// The frame that another thread obtained and handed over.
    pub(super) fn of(pages: &'a StorePages, name: FrameName) -> Self {
        Self { pages, name }
    }

    /// Leaves the frame to another thread.
    pub(super) fn hand_over(self) -> FrameName {
        std::mem::ManuallyDrop::new(self).name
    }

    /// Reads what lies at `pointer`.
    pub(super) fn fill(&mut self, page: PageId, pointer: &BlockPointer) -> Result<()> {
        let (start, length) = self.target();
        // SAFETY: the frame is this load's alone, and all its bytes are initialised.
        let target = unsafe { slice::from_raw_parts_mut(start.as_ptr(), length) };
        self.pages.store.source.load(page, pointer, target)
    }

    /// The frame's memory, to be written.
    pub(super) fn target(&mut self) -> (std::ptr::NonNull<u8>, usize) {
        let (pool, name, _) = self.place();
        super::pool::take_zero(pool.meta(name.number));
        (pool.address(name.number), pool.frame_bytes())
    }

    fn place(&self) -> (&'a super::pool::Pool, FrameName, usize) {
        let Some(pool) = self.pages.inner.pools.get(self.name.class) else { unreachable!("a frame's pool is there") };
        (pool, self.name, pool.address(self.name.number).addr().get())
    }

    /// The frame has become a page's or a unit's.
    fn entered(self) {
        std::mem::forget(self);
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        self.pages.inner.release(self.name);
    }
}

/// Where the frame of a word starts.
#[inline(always)]
pub(super) fn start_of(word: Word) -> std::ptr::NonNull<u8> {
    // The pool exposed its frames; no frame is at zero.
    let start = std::ptr::with_exposed_provenance_mut(word.address());
    // SAFETY: a word with a frame has its address.
    unsafe { std::ptr::NonNull::new_unchecked(start) }
}

/// Bytes of a page of this class, in memory.
#[inline(always)]
pub(super) fn length_of(class: SizeClass) -> usize {
    class.page_bytes() as usize
}
