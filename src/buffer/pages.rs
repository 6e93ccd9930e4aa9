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
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::guard::FrameGuard;
use super::load::{Begun, Filling, UnitLoad};
use super::manager::{Inner, guard_of};
use super::policy::Arrival;
use super::protocol::descriptor::{Descriptor, Seen, Word};
use super::publish::Change;
use super::room::charge_of;
use super::source::ReadState;
use super::stats::count_hit;
use super::store::Store;
use super::sync::light_fence;
use super::thread::{self, Epoch};
use super::units::{Unit, UnitKey};
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

/// Why a page is not had from its descriptor.
enum Missing {
    /// What is there is newer than the reader may see.
    Newer,
    /// It is not in memory.
    Absent,
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

    /// As [`StorePages::try_guard`], counted; or why there is none. One look says both: between two a load may end.
    fn try_guard_counted(
        &self,
        descriptor: Descriptor<'_>,
        generation: Generation,
        page: PageId,
    ) -> Result<FrameGuard, Missing> {
        loop {
            let word = descriptor.word();
            if !word.has_frame() {
                return Err(Missing::Absent);
            }
            let Some((pool, number)) = self.inner.pools.find(word.address()) else {
                unreachable!("a frame is a pool's")
            };
            let pins = &pool.meta(number).pins;
            pins.fetch_add(1, Ordering::SeqCst);
            light_fence();
            let seen = descriptor.read(generation.0);
            if let Seen::Frame(found) = seen
                && found.same_frame(word)
            {
                count_hit(thread::record(), self.hits);
                // SAFETY: as there, with the count for the slot.
                return Ok(unsafe { FrameGuard::counted(start_of(found), length_of(page.class()), pins) });
            }
            pins.fetch_sub(1, Ordering::Release);
            match seen {
                // It moved in between.
                Seen::Frame(_) => {}
                Seen::Newer => return Err(Missing::Newer),
                Seen::Absent => return Err(Missing::Absent),
            }
        }
    }

    /// Begins to bring what is known of the page into the processor's caches: it is soon asked for.
    pub fn look_ahead(&self, page: PageId) {
        self.store.table.look_ahead(page);
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
        guard.or_else(|| self.try_guard_counted(descriptor, newest, page).ok())
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
            if let Some(guard) = self.try_guard::<true>(descriptor, generation, page) {
                return Ok(guard);
            }
            match self.try_guard_counted(descriptor, generation, page) {
                Ok(guard) => return Ok(guard),
                Err(Missing::Newer) => {
                    let pointer = own.map_or_else(|| at.pointer(page), Ok)?;
                    return self.unit_arriving(page, &pointer, page.class(), arrival);
                }
                Err(Missing::Absent) => {}
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
            let begun = {
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
                    Some(Unit::Loading(wait)) => Err(Arc::clone(wait)),
                    None => Ok(UnitLoad::begin_in(&mut shard, self, key)),
                }
            };
            let mut load = match begun {
                Ok(load) => load,
                Err(wait) => {
                    self.inner.counters.waits.fetch_add(1, Ordering::Relaxed);
                    wait.wait().map_err(|(_, error)| error)?;
                    continue;
                }
            };
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
