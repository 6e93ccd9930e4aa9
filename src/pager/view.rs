//! Views: a committed state, held.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use super::handle::Handle;
use super::read::{self, PageGuard, Read, Source, check_range};
use crate::error::{Error, Result};
use crate::id::{Generation, Incarnation, PageId, SizeClass};
use crate::store::Pinned;

/// A committed state that stays as it is while this lives. Owned: it can be cloned, kept, and sent to other threads;
/// reading it waits for nobody, and nobody waits for it. What it needs is not used again while it lives, so views kept
/// for long let the file grow.
#[derive(Clone)]
pub struct View {
    /// Released before the handle, whose last owner closes the store.
    pinned: Pinned,
    handle: Arc<Handle>,
}

impl View {
    pub(super) fn new(handle: Arc<Handle>, pinned: Pinned) -> Self {
        Self { pinned, handle }
    }

    /// The incarnation that made the state: with the generation, its name for ever.
    pub fn incarnation(&self) -> Incarnation {
        self.pinned.incarnation
    }

    /// Runs `read`, in which pages can be read in the cheapest way there is. Keep it short; it may be run more than
    /// once, so it must be repeatable.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn scope<R>(&self, mut read: impl FnMut(&Scope<'_>) -> Result<R>) -> Result<R> {
        read(&Scope { view: self })
    }

    fn source(&self) -> Source<'_> {
        self.handle.shared.source()
    }

    fn reading<T>(&self, read: impl FnOnce(&Source<'_>) -> Result<T>) -> Result<T> {
        self.handle.shared.while_open(|| read(&self.source()))
    }
}

impl Read for View {
    fn page(&self, page: PageId) -> Result<PageGuard> {
        self.source().check_budget(page)?;
        let bytes = self.reading(|source| source.whole(page, &source.pointer(&self.pinned, page)?))?;
        Ok(PageGuard::new(page, bytes.into()))
    }

    fn read_at(&self, page: PageId, offset: u64, target: &mut [u8]) -> Result<()> {
        check_range(page, offset, target.len())?;
        self.reading(|source| source.part(page, &source.pointer(&self.pinned, page)?, offset, target))
    }

    fn contains(&self, page: PageId) -> Result<bool> {
        self.reading(|source| Ok(!self.pinned.pointer(source.nodes, page)?.is_null()))
    }

    fn header(&self) -> Arc<[u8]> {
        Arc::clone(&self.pinned.header)
    }

    fn generation(&self) -> Generation {
        self.pinned.generation
    }

    fn page_ids(&self, class: SizeClass) -> Box<dyn Iterator<Item = Result<PageId>> + '_> {
        Box::new(PageIds { view: self, class, next: Some(0) })
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("generation", &self.pinned.generation).finish_non_exhaustive()
    }
}

/// Walks the pages of a class.
struct PageIds<'a> {
    view: &'a View,
    class: SizeClass,
    /// The index to go on at; `None` at the end.
    next: Option<u64>,
}

impl Iterator for PageIds<'_> {
    type Item = Result<PageId>;

    fn next(&mut self) -> Option<Self::Item> {
        let from = self.next.take()?;
        let found = self
            .view
            .reading(|source| read::next_committed(source.nodes, &self.view.pinned, self.class, from))
            .transpose();
        match found? {
            Err(error) => Some(Err(error)),
            Ok(index) => {
                self.next = index.checked_add(1);
                PageId::new(self.class, index).map(Ok)
            }
        }
    }
}

/// The inside of [`View::scope`].
#[derive(Debug)]
pub struct Scope<'a> {
    view: &'a View,
}

/// A page's bytes within a [`View::scope`].
#[derive(Debug)]
pub struct ScopedPage<'a> {
    guard: PageGuard,
    scope: PhantomData<&'a ()>,
}

impl Scope<'_> {
    /// The whole page.
    ///
    /// # Errors
    /// As [`Read::page`].
    pub fn page(&self, page: PageId) -> Result<ScopedPage<'_>> {
        Ok(ScopedPage { guard: self.view.page(page)?, scope: PhantomData })
    }
}

impl Deref for ScopedPage<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.guard
    }
}

const _: () = {
    const fn shared_between_threads<T: Send + Sync + 'static>() {}
    shared_between_threads::<View>();
    shared_between_threads::<PageGuard>();
    shared_between_threads::<Error>();
};
