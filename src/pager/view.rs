//! Views: a committed state, held.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ahead::{Access, Ahead, Due};
use super::bytes::Held;
use super::handle::{Handle, Shared};
use super::pins::{Expiring, PinKind, Registered};
use super::read::{self, At, PageGuard, Read, check_range};
use crate::buffer::{self, ReadState};
use crate::error::{Error, Result};
use crate::format::CodecId;
use crate::id::{Generation, Incarnation, PageId, SizeClass};
use crate::store::{ClassStorage, Pinned, Share, State, add_page, storage, storage_of_classes};

/// A committed state that stays as it is while this lives. Owned: it can be cloned, kept, and sent to other threads;
/// reading it waits for nobody, and nobody waits for it. It takes no memory for pages that changed since, but what it
/// needs is not used again while it lives: views kept for long let the file grow.
pub struct View {
    /// Let go before the handle, whose last owner closes the store.
    hold: Hold,
    name: Name,
    registered: Registered,
    ahead: Ahead,
    handle: Arc<Handle>,
}

/// How a state is held.
#[derive(Clone)]
enum Hold {
    AsLongAsItLives(Pinned),
    Until(Arc<Expiring>),
}

/// What a view knows of its state even when that is let go.
#[derive(Clone)]
struct Name {
    generation: Generation,
    incarnation: Incarnation,
    header: Arc<[u8]>,
}

impl View {
    pub(super) fn new(handle: Arc<Handle>, pinned: Pinned) -> Self {
        let name = Name::of(&pinned);
        let registered = handle.shared.pins.register(PinKind::View, name.generation, None);
        Self { hold: Hold::AsLongAsItLives(pinned), name, registered, ahead: Ahead::new(Access::Normal), handle }
    }

    pub(super) fn with_deadline(handle: Arc<Handle>, pinned: Pinned, limit: Duration) -> Self {
        let Some(deadline) = Instant::now().checked_add(limit) else { return Self::new(handle, pinned) };
        let name = Name::of(&pinned);
        let expiring = Arc::new(Expiring::new(pinned, deadline));
        let registered = handle.shared.pins.register(PinKind::View, name.generation, Some(&expiring));
        Self { hold: Hold::Until(expiring), name, registered, ahead: Ahead::new(Access::Normal), handle }
    }

    /// The incarnation that made the state: with the generation, its name for ever.
    pub fn incarnation(&self) -> Incarnation {
        self.name.incarnation
    }

    /// Runs `read`, in which pages can be read in the cheapest way there is: for little more than following a pointer.
    /// Keep it short. A page that is not in memory is loaded outside of the scope, and `read` runs again, from the
    /// start: **it must be repeatable**.
    ///
    /// # Errors
    /// Those of `read`; those of reading pages.
    pub fn scope<R>(&self, mut read: impl FnMut(&Scope<'_>) -> Result<R>) -> Result<R> {
        self.reading(|at| self.ahead.scope(&at, |inner, due| read(&Scope { inner, due })))
    }

    /// What the pages of the state take on disk, by how they are stored. Reads the page maps, whole, and no page.
    ///
    /// # Errors
    /// `Closed`; `Io`, `Corrupt` while reading the maps.
    pub fn storage(&self) -> Result<BTreeMap<CodecId, Share>> {
        self.reading(|at| storage(&at.shared.nodes, &at.state.maps.get()[..]))
    }

    /// Says how pages are going to be read through this view, in whatever thread: by [`page`](Read::page), in
    /// [scopes](View::scope), and in parts. Clones that are made later begin with the same.
    pub fn advise(&self, access: Access) {
        self.ahead.advise(access);
    }

    /// Begins to load those of the pages that are not in memory, many at a time, and returns. A hint: pages that do not
    /// exist, or for which there is no memory to spare, are left out.
    ///
    /// # Errors
    /// `Closed`; `Io`, `Corrupt` while reading the maps.
    pub fn prefetch(&self, pages: &[PageId]) -> Result<()> {
        self.reading(|at| at.shared.pages.prefetch(&at, pages))
    }

    /// How many pages of each class there are, and what they take on disk. Reads the page maps, whole, and no page.
    ///
    /// # Errors
    /// `Closed`; `Io`, `Corrupt` while reading the maps.
    pub fn classes(&self) -> Result<Vec<ClassStorage>> {
        self.reading(|at| storage_of_classes(&at.shared.nodes, &at.state.maps.get()[..]))
    }

    /// What one page takes on disk, by how it is stored: each chunk of a page above 1 MiB by itself.
    ///
    /// # Errors
    /// `PageNotFound`; `Closed`; `Io`, `Corrupt` while reading the maps.
    pub fn storage_of(&self, page: PageId) -> Result<BTreeMap<CodecId, Share>> {
        self.reading(|at| {
            let mut shares = BTreeMap::new();
            add_page(&at.shared.nodes, page, &at.pointer(page)?, &mut shares)?;
            Ok(shares)
        })
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    #[inline]
    fn reading<T>(&self, read: impl FnOnce(At<'_>) -> Result<T>) -> Result<T> {
        let shared = self.shared();
        let read = |state: &State| shared.while_open(|| read(At { state, shared }));
        match &self.hold {
            Hold::AsLongAsItLives(pinned) => read(pinned),
            Hold::Until(expiring) => match &*expiring.read()? {
                Some(pinned) => read(pinned),
                None => Err(expiring.expired()),
            },
        }
    }
}

impl Name {
    fn of(state: &State) -> Self {
        let header = Arc::clone(&state.header);
        Self { generation: state.generation, incarnation: state.incarnation, header }
    }
}

impl Clone for View {
    fn clone(&self) -> Self {
        let expiring = match &self.hold {
            Hold::AsLongAsItLives(_) => None,
            Hold::Until(expiring) => Some(expiring),
        };
        let registered = self.shared().pins.register(PinKind::View, self.name.generation, expiring);
        Self {
            hold: self.hold.clone(),
            name: self.name.clone(),
            registered,
            ahead: Ahead::new(self.ahead.access()),
            handle: Arc::clone(&self.handle),
        }
    }
}

impl Read for View {
    #[inline]
    fn page(&self, page: PageId) -> Result<PageGuard> {
        self.reading(|at| Ok(PageGuard::new(page, Held::Guard(self.ahead.page(&at, page)?))))
    }

    fn read_at(&self, page: PageId, offset: u64, target: &mut [u8]) -> Result<()> {
        check_range(page, offset, target.len())?;
        self.reading(|at| at.part(&self.ahead, page, offset, target))
    }

    fn contains(&self, page: PageId) -> Result<bool> {
        self.reading(|at| Ok(!at.state.pointer(&at.shared.nodes, page)?.is_null()))
    }

    fn header(&self) -> Arc<[u8]> {
        Arc::clone(&self.name.header)
    }

    fn generation(&self) -> Generation {
        self.name.generation
    }

    fn page_ids(&self, class: SizeClass) -> Box<dyn Iterator<Item = Result<PageId>> + '_> {
        Box::new(PageIds { view: self, class, next: Some(0) })
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = &self.registered;
        f.debug_struct("View").field("generation", &self.name.generation).field("pin", held).finish_non_exhaustive()
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
        let next = |at: At<'_>| read::next_committed(&at.shared.nodes, at.state, self.class, from);
        match self.view.reading(next).transpose()? {
            Err(error) => Some(Err(error)),
            Ok(index) => {
                self.next = index.checked_add(1);
                PageId::new(self.class, index).map(Ok)
            }
        }
    }
}

/// The inside of [`View::scope`].
pub struct Scope<'a> {
    inner: &'a buffer::Scope<'a, At<'a>>,
    due: Due<'a>,
}

impl Scope<'_> {
    /// The whole page, for as long as the scope runs.
    ///
    /// # Errors
    /// `PageNotInMemory`, to be passed on by `?`: the scope loads the page and runs again. What else reading the page
    /// can fail with, [`View::scope`] returns.
    #[inline]
    pub fn page(&self, page: PageId) -> Result<&[u8]> {
        self.due.note(page);
        self.inner.page(page)
    }
}

impl fmt::Debug for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").finish_non_exhaustive()
    }
}

const _: () = {
    const fn shared_between_threads<T: Send + Sync + 'static>() {}
    shared_between_threads::<View>();
    shared_between_threads::<PageGuard>();
    shared_between_threads::<Error>();
};
