//! Views of a reader: a committed state, held in the side folder too.

use std::fmt;
use std::sync::Arc;

use super::Shared;
use super::frames::At;
use crate::buffer::{FrameGuard, ReadState, Scope};
use crate::error::Result;
use crate::id::{Block, CheckpointNumber, Generation, Incarnation, PageId, SizeClass};
use crate::pager::ahead::{Ahead, Due, Source};
use crate::pager::read::{PageGuard, check_range, last_chunk, next_committed, parts};
use crate::pager::{Access, Read};
use crate::store::{ClassStorage, PageReader, Pinned, storage_of_classes};

/// A committed state that stays as it is while this lives, whatever writers and refreshes do. Owned: it can be cloned,
/// kept, and sent to other threads. What it needs is not used again while it lives, so views kept for long let the file
/// grow.
pub struct ReaderView {
    /// Let go before `leave`, which says so.
    pinned: Pinned,
    leave: Leave,
    ahead: Ahead,
}

impl Clone for ReaderView {
    fn clone(&self) -> Self {
        let (pinned, leave) = (self.pinned.clone(), self.leave.clone());
        Self { pinned, leave, ahead: Ahead::new(self.ahead.access()) }
    }
}

/// Says what is still held when a view is gone.
#[derive(Clone)]
struct Leave {
    shared: Arc<Shared>,
    base: CheckpointNumber,
    generation: Generation,
}

impl Drop for Leave {
    fn drop(&mut self) {
        if !self.shared.published.holds(self.base, self.generation) && self.shared.fork.is_same_process() {
            // What cannot be said is held too long, until the next refresh says it.
            let _ = self.shared.say_pins(&mut self.shared.lock());
        }
    }
}

impl ReaderView {
    pub(super) fn new(shared: Arc<Shared>, pinned: Pinned) -> Self {
        let (base, generation) = (pinned.base, pinned.generation);
        Self { pinned, leave: Leave { shared, base, generation }, ahead: Ahead::new(Access::Normal) }
    }

    fn shared(&self) -> &Shared {
        &self.leave.shared
    }

    /// The incarnation that made the state: with the generation, its name for ever.
    pub fn incarnation(&self) -> Incarnation {
        self.pinned.incarnation
    }

    /// Runs `read`, in which pages can be read in the cheapest way there is. Keep it short; it may be run more than
    /// once, so it must be repeatable.
    ///
    /// # Errors
    /// Those of `read`; `Forked`.
    pub fn scope<R>(&self, mut read: impl FnMut(&ReaderScope<'_>) -> Result<R>) -> Result<R> {
        let shared = self.shared();
        shared.check_process()?;
        self.ahead.scope(&self.at(), |frames, due| read(&ReaderScope { view: self, frames, due }))
    }

    /// Says how pages are going to be read through this view, in whatever thread. Clones that are made later begin with
    /// the same. Of a mapped file the system is asked to read ahead; what it keeps is its own choice.
    pub fn advise(&self, access: Access) {
        self.ahead.advise(access);
    }

    /// Begins to load those of the pages that are not in memory, many at a time, and returns. A hint: pages that do not
    /// exist, or for which there is no memory to spare, are left out.
    ///
    /// # Errors
    /// `Forked`; `Io`, `Corrupt` while reading the maps.
    pub fn prefetch(&self, pages: &[PageId]) -> Result<()> {
        self.shared().check_process()?;
        self.at().begin(pages)
    }

    /// How many pages of each class there are, and what they take on disk. Reads the page maps, whole, and no page.
    ///
    /// # Errors
    /// `Forked`; `Io`, `Corrupt` while reading the maps.
    pub fn classes(&self) -> Result<Vec<ClassStorage>> {
        self.shared().check_process()?;
        storage_of_classes(&self.shared().nodes, &self.pinned.maps.get()[..])
    }

    fn at(&self) -> At<'_> {
        At { state: &self.pinned, shared: self.shared() }
    }

    /// Where the page lies in the map, if it is known to be right there.
    #[inline]
    fn place_in_map(&self, page: PageId) -> Option<Block> {
        self.shared().mapped.as_ref()?.known(page, self.pinned.generation)
    }

    /// The page where it is mapped, if it is known to be right there.
    #[inline(always)]
    fn in_map(&self, page: PageId) -> Option<&[u8]> {
        let mapped = self.shared().mapped.as_ref()?;
        mapped.at(mapped.known(page, self.pinned.generation)?, page.class().page_bytes())
    }

    /// The page where it is mapped, if it is found to be right there.
    fn found_in_map(&self, page: PageId) -> Result<Option<(Block, &[u8])>> {
        let Some(mapped) = self.shared().mapped.as_ref().filter(|_| !page.class().is_chunked()) else {
            return Ok(None);
        };
        let at = self.at();
        let pointer = at.pointer(page)?;
        self.ahead.missed(&at, page);
        let bytes = mapped.verified(page, &pointer);
        if bytes.is_some() {
            mapped.remember(page, &pointer, self.pinned.generation);
        }
        Ok(bytes.map(|bytes| (pointer.address, bytes)))
    }

    /// The page in a frame. Of what is not right in the map, nothing is read ahead.
    #[inline]
    fn in_frame(&self, page: PageId) -> Result<FrameGuard> {
        match self.shared().mapped {
            Some(_) => self.shared().frames.pages().page(&self.at(), page),
            None => self.ahead.page(&self.at(), page),
        }
    }

    fn read_chunks(&self, page: PageId, offset: u64, target: &mut [u8]) -> Result<()> {
        let shared = self.shared();
        let at = self.at();
        let pointer = at.pointer(page)?;
        let last = last_chunk(offset, target.len());
        for part in parts(offset, target.len()) {
            self.ahead.chunk(&at, page, &pointer, part.chunk, last);
            let target = &mut target[part.at..part.at + part.length];
            let range = part.start..part.start + part.length;
            let chunk = PageReader::new(&shared.nodes).chunk(page, &pointer, part.chunk)?;
            if let Some(bytes) = shared.mapped.as_ref().and_then(|mapped| mapped.verified(page, &chunk)) {
                target.copy_from_slice(&bytes[range]);
                continue;
            }
            match shared.frames.chunk(page, &chunk)? {
                Some(bytes) => target.copy_from_slice(&bytes[range]),
                None => target.fill(0),
            }
        }
        Ok(())
    }
}

impl Read for ReaderView {
    fn page(&self, page: PageId) -> Result<PageGuard> {
        self.shared().check_process()?;
        let lent = |block| PageGuard::lent(page, Arc::new(Lent { view: self.clone(), block, page }));
        if let Some(block) = self.place_in_map(page) {
            return Ok(lent(block));
        }
        match self.found_in_map(page)? {
            Some((block, _)) => Ok(lent(block)),
            None => Ok(PageGuard::lent(page, Arc::new(self.in_frame(page)?))),
        }
    }

    fn read_at(&self, page: PageId, offset: u64, target: &mut [u8]) -> Result<()> {
        self.shared().check_process()?;
        check_range(page, offset, target.len())?;
        let range = offset as usize..offset as usize + target.len();
        if let Some(bytes) = self.in_map(page) {
            target.copy_from_slice(&bytes[range]);
            return Ok(());
        }
        if page.class().is_chunked() {
            return self.read_chunks(page, offset, target);
        }
        match self.found_in_map(page)? {
            Some((_, bytes)) => target.copy_from_slice(&bytes[range]),
            None => target.copy_from_slice(&self.in_frame(page)?[range]),
        }
        Ok(())
    }

    fn contains(&self, page: PageId) -> Result<bool> {
        self.shared().check_process()?;
        Ok(!self.pinned.pointer(&self.shared().nodes, page)?.is_null())
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

impl fmt::Debug for ReaderView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReaderView").field("generation", &self.pinned.generation).finish_non_exhaustive()
    }
}

/// A page's bytes in the map, kept as they are by the view.
struct Lent {
    view: ReaderView,
    block: Block,
    page: PageId,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        // The bytes were there when the guard was made, and the map never forgets any.
        let mapped = self.view.shared().mapped.as_ref();
        mapped.and_then(|mapped| mapped.at(self.block, self.page.class().page_bytes())).unwrap_or_default()
    }
}

/// The inside of [`ReaderView::scope`].
#[derive(Debug)]
pub struct ReaderScope<'a> {
    view: &'a ReaderView,
    frames: &'a Scope<'a, At<'a>>,
    due: Due<'a>,
}

impl ReaderScope<'_> {
    /// The whole page.
    ///
    /// # Errors
    /// As [`Read::page`]; also if the page is not in memory: pass the error on, and the scope runs again.
    #[inline(always)]
    pub fn page(&self, page: PageId) -> Result<&[u8]> {
        // What is short is inlined: a call and a result in memory take a tenth of a read.
        if self.view.shared().mapped.is_none() {
            self.due.note(page);
            return self.frames.page(page);
        }
        match self.view.in_map(page) {
            Some(bytes) => Ok(bytes),
            None => self.page_not_known(page),
        }
    }

    #[inline(never)]
    fn page_not_known(&self, page: PageId) -> Result<&[u8]> {
        match self.view.found_in_map(page)? {
            Some((_, bytes)) => Ok(bytes),
            None => self.frames.page(page),
        }
    }
}

/// Walks the pages of a class.
struct PageIds<'a> {
    view: &'a ReaderView,
    class: SizeClass,
    /// The index to go on at; `None` at the end.
    next: Option<u64>,
}

impl Iterator for PageIds<'_> {
    type Item = Result<PageId>;

    fn next(&mut self) -> Option<Self::Item> {
        let from = self.next.take()?;
        match next_committed(&self.view.shared().nodes, &self.view.pinned, self.class, from).transpose()? {
            Err(error) => Some(Err(error)),
            Ok(index) => {
                self.next = index.checked_add(1);
                PageId::new(self.class, index).map(Ok)
            }
        }
    }
}
