//! Loads: a page's newest version, or a unit, on its way into a frame (B1 to B4 of `pages.rs`).
//!
//! | type | what it is | dropped |
//! | --- | --- | --- |
//! | [`Load`] | a descriptor that is loading, by whoever has this | it is evicted again; those who wait look again |
//! | [`UnitLoad`] | the same of a unit | the same |
//! | [`Filling`] | a frame that is read into | it is free |
#![allow(unsafe_code)]

use std::slice;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::guard::FrameGuard;
use super::manager::guard_of;
use super::pages::StorePages;
use super::policy::Arrival;
use super::pool::Use;
use super::protocol::descriptor::{Descriptor, Word};
use super::room::FrameName;
use super::shard::{Outcome, Wait};
use super::store::leaf_charge;
use super::units::{Unit, UnitKey, UnitShard, hash_page, hash_unit};
use crate::error::{Error, Result};
use crate::format::BlockPointer;
use crate::id::{Generation, PageId, SizeClass};

/// What [`StorePages::begin_load`] found to do.
pub(super) enum Begun<'a> {
    /// Look again.
    Again,
    /// Another thread loads the page.
    Wait(Arc<Wait>),
    /// The caller loads it.
    Load(Load<'a>),
}

impl StorePages {
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

    /// Enters a frame as a unit, unless there is one already; those who wait go on. Returns a guard of either.
    pub(super) fn enter_unit(&self, key: UnitKey, frame: Filling<'_>, arrival: Arrival) -> FrameGuard {
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
        let (_, mut shard) = store.shard(page);
        self.is_open = false;
        let meta = pool.meta(name.number);
        meta.owner.store(page.index(), Ordering::Relaxed);
        meta.store.store(store.number(), Ordering::Relaxed);
        meta.generation.store(birth.0, Ordering::Relaxed);
        let guard = guard_of(pool, name.number);
        let is_entered = self.descriptor.finish_load(self.ticket, birth.0, Word::cooling(address, page.class().log2()));
        shard.wake(self.ticket, Outcome::Again);
        if !is_entered {
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
    /// What others wait for. By this the load knows itself: the unit may have been entered by others, evicted, and be
    /// on its way again.
    wait: Arc<Wait>,
    is_open: bool,
}

impl<'a> UnitLoad<'a> {
    /// Begins to load, if the unit is not in memory, nor on its way.
    pub(super) fn begin(pages: &'a StorePages, key: UnitKey) -> Option<Self> {
        let (_, mut shard) = pages.store.unit_shard(&key);
        let is_missing = !shard.units.contains_key(&key);
        is_missing.then(|| Self::begin_in(&mut shard, pages, key))
    }

    /// As [`UnitLoad::begin`], of a unit that is missing in its shard.
    pub(super) fn begin_in(shard: &mut UnitShard, pages: &'a StorePages, key: UnitKey) -> Self {
        let wait = Arc::<Wait>::default();
        shard.units.insert(key, Unit::Loading(Arc::clone(&wait)));
        Self::resume(pages, key, wait)
    }

    /// The load that was begun, here or by another thread that handed it over.
    pub(super) fn resume(pages: &'a StorePages, key: UnitKey, wait: Arc<Wait>) -> Self {
        Self { pages, key, wait, is_open: true }
    }

    /// Leaves the load to whoever resumes it.
    pub(super) fn hand_over(mut self) -> Arc<Wait> {
        self.is_open = false;
        Arc::clone(&self.wait)
    }

    /// Enters the frame, and returns a guard of it.
    pub(super) fn finish(mut self, frame: Filling<'_>, arrival: Arrival) -> FrameGuard {
        self.is_open = false;
        self.pages.enter_unit(self.key, frame, arrival)
    }

    pub(super) fn fail(&mut self, error: Error) -> Error {
        self.end(Outcome::Failed(self.key.pointer, error.copy()));
        error
    }

    fn end(&mut self, outcome: Outcome) {
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        let (_, mut shard) = self.pages.store.unit_shard(&self.key);
        // Else it was overtaken (`enter_unit`), and who waited for it has been told.
        if let Some(Unit::Loading(wait)) = shard.units.get(&self.key)
            && Arc::ptr_eq(wait, &self.wait)
        {
            shard.units.remove(&self.key);
            self.wait.end(outcome);
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
    pub(super) fn read(pages: &'a StorePages, page: PageId, pointer: &BlockPointer, class: SizeClass) -> Result<Self> {
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
