//! Scopes: the cheapest read. References live for a closure.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::slice;

use super::guard::FrameGuard;
use super::pages::{StorePages, length_of, start_of};
use super::policy::Arrival;
use super::protocol::descriptor::{Descriptor, Seen};
use super::source::ReadState;
use super::stats::count_hit;
use super::swip::Swip;
use super::thread::{self, Epoch};
use crate::error::{Error, Result};
use crate::id::PageId;

/// Whether the eviction policy hears that a page was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// It does: what is read is worth keeping.
    Noticed,
    /// It does not: for those who read a page several times in a row, and then not again.
    Unnoticed,
}

/// What a closure reads through, for the time that it runs.
pub struct Scope<'a, S> {
    pages: &'a StorePages,
    at: &'a S,
    generation: u64,
    touch: Touch,
    hits: u8,
    /// The page that was not in memory.
    missed: Cell<Option<PageId>>,
    /// What was loaded for this closure stays until it is done, so that each run gets further than the last. It is read
    /// from here and not by its descriptor: the access that it was loaded for does not count as a touch (E3). Grows
    /// between runs only.
    kept: RefCell<HashMap<PageId, FrameGuard>>,
    has_kept: Cell<bool>,
}

impl StorePages {
    /// Runs `read`, in which pages at `at` are had for little more than a look at their descriptors. Scopes are to be
    /// short: while one runs, no frame that was replaced meanwhile is used again.
    ///
    /// If a page is not in memory, [`Scope::page`] fails, and `read` is to pass that on by `?`. The page is then loaded
    /// outside of the scope, and `read` runs again, from the start: **it must be repeatable**. Scopes may lie within each
    /// other, and guards may be made in them.
    ///
    /// # Errors
    /// Those of `read`, and of loading pages as [`StorePages::page`].
    pub fn scope<S: ReadState, R>(&self, at: &S, read: impl FnMut(&Scope<'_, S>) -> Result<R>) -> Result<R> {
        self.scope_with(at, Touch::Noticed, |_| {}, read)
    }

    /// As [`StorePages::scope`]; `missed` is told of each page that was not in memory before it is loaded, outside of the
    /// scope.
    ///
    /// # Errors
    /// As there.
    pub fn scope_with<S: ReadState, R>(
        &self,
        at: &S,
        touch: Touch,
        mut missed: impl FnMut(PageId),
        mut read: impl FnMut(&Scope<'_, S>) -> Result<R>,
    ) -> Result<R> {
        let scope = Scope {
            pages: self,
            at,
            generation: at.generation().0,
            touch,
            hits: self.inner.counters.number(),
            missed: Cell::new(None),
            kept: RefCell::default(),
            has_kept: Cell::new(false),
        };
        loop {
            let epoch = Epoch::enter();
            let result = read(&scope);
            drop(epoch);
            // Whatever the closure made of the error.
            let Some(page) = scope.missed.take() else { return result };
            missed(page);
            let guard = self.page_slowly(at, page, Arrival::Read)?;
            scope.kept.borrow_mut().insert(page, guard);
            scope.has_kept.set(true);
        }
    }
}

impl<S: ReadState> Scope<'_, S> {
    /// The page's bytes.
    ///
    /// # Errors
    /// [`Error::PageNotInMemory`], to be passed on by `?`: the scope loads the page and runs again. Of a page that does
    /// not exist, [`StorePages::scope`] returns `PageNotFound`.
    #[inline(always)]
    pub fn page(&self, page: PageId) -> Result<&[u8]> {
        if !self.has_kept.get()
            && let Some(bytes) = self.page_found(page)
        {
            return Ok(bytes);
        }
        self.page_kept(page)
    }

    /// The bytes of the page that `swip` stands for; `swip` remembers the way.
    ///
    /// # Errors
    /// As [`Scope::page`]. [`Error::SwipOfAnotherStore`] if the swip was followed in another store and means
    /// nothing here.
    #[inline]
    pub fn follow(&self, swip: &Swip) -> Result<&[u8]> {
        if !self.has_kept.get()
            && let Some(descriptor) = swip.offset().and_then(|offset| self.pages.store.table.at(offset))
            && let Seen::Frame(word) = self.look(descriptor)
        {
            count_hit(thread::record(), self.hits);
            // SAFETY: as in `page`; the word says how long its frame is.
            return Ok(unsafe { slice::from_raw_parts(start_of(word).as_ptr(), 1 << word.class()) });
        }
        self.follow_slowly(swip)
    }

    #[cold]
    fn follow_slowly(&self, swip: &Swip) -> Result<&[u8]> {
        let page = swip.page(self.pages)?;
        let bytes = self.page(page)?;
        swip.remember(self.pages, page);
        Ok(bytes)
    }

    #[inline(always)]
    fn look(&self, descriptor: Descriptor<'_>) -> Seen {
        match self.touch {
            Touch::Noticed => descriptor.read(self.generation),
            Touch::Unnoticed => descriptor.find(self.generation),
        }
    }

    /// The page by its descriptor, if it is there as it is wanted.
    #[inline(always)]
    fn page_found(&self, page: PageId) -> Option<&[u8]> {
        let descriptor = self.pages.store.table.find(page)?;
        let Seen::Frame(word) = self.look(descriptor) else { return None };
        count_hit(thread::record(), self.hits);
        // SAFETY: found in the epoch of this closure (P3), at whose end the reference is gone: it borrows from the
        // scope, and the closure's result cannot, being one type for scopes of every lifetime.
        Some(unsafe { slice::from_raw_parts(start_of(word).as_ptr(), length_of(page.class())) })
    }

    #[inline(never)]
    fn page_kept(&self, page: PageId) -> Result<&[u8]> {
        if let Some(guard) = self.kept.borrow().get(&page) {
            // SAFETY: the guard stays as long as the scope, whatever happens to the map it is in.
            return Ok(unsafe { slice::from_raw_parts(guard.as_ptr(), guard.len()) });
        }
        if self.has_kept.get()
            && let Some(bytes) = self.page_found(page)
        {
            return Ok(bytes);
        }
        self.missed.set(Some(page));
        Err(Error::PageNotInMemory { page })
    }

    /// The state that is read.
    pub fn state(&self) -> &S {
        self.at
    }
}

impl<S> fmt::Debug for Scope<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("generation", &self.generation).finish_non_exhaustive()
    }
}
