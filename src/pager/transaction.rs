//! Transactions: changes that become one commit, or nothing.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, PoisonError};

use super::guard::PageMut;
use super::handle::Shared;
use super::private::{Content, Origin, Others, Private, PrivatePage, Savepoint};
use super::read::{self, CHUNK_BYTES, PageGuard, Read, check_range, parts, zeros};
use super::turn::Turn;
use crate::error::{Error, Result};
use crate::format::{Compression, HEADER_LIMIT};
use crate::id::{Generation, PageId, SizeClass};
use crate::store::Pinned;

/// Changes that become one commit, or nothing: dropping it aborts. It is serial: while it is open no other transaction
/// of the store is, so it never conflicts; and it sees its own changes.
///
/// It may be sent to another thread, and is used by one at a time (`Send`, not `Sync`). Everything it changed is in
/// memory until the commit.
pub struct Transaction {
    /// What it began with; held until the commit.
    pub(super) head: Pinned,
    /// Everything through here was durable when it began: what was freed later is not allocated again.
    synced: Generation,
    pub(super) inner: RefCell<Inner>,
    /// Given back last.
    pub(super) turn: Turn,
}

/// What changes in a transaction. Never borrowed while a caller's code runs.
#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) private: Private,
    /// Pages with an open [`PageMut`].
    pub(super) borrowed: HashSet<PageId>,
    /// By class, where the search for a free index goes on: everything below was taken or refused.
    cursor: [u64; SizeClass::COUNT],
    /// By class, the lowest index that was refused, since its free was not durable.
    refused: [Option<u64>; SizeClass::COUNT],
}

impl Transaction {
    pub(super) fn new(turn: Turn) -> Result<Self> {
        let shared = &turn.handle.shared;
        drop(shared.lock()?);
        let synced = shared.published.synced();
        let head = shared.published.pin();
        let cursor = *shared.lowest_free.lock().unwrap_or_else(PoisonError::into_inner);
        let inner = RefCell::new(Inner { cursor, ..Inner::default() });
        Ok(Self { head, synced, inner, turn })
    }

    /// Allocates a page of zeros: the lowest index of its class that is free for certain (freed by a commit that is
    /// durable, or never used).
    ///
    /// # Errors
    /// Those of reading the page map; `Exhausted` after 2^48 pages of the class.
    pub fn allocate(&self, class: SizeClass) -> Result<PageId> {
        let index = self.free_index(class)?;
        let page = PageId::new(class, index).ok_or(Error::Exhausted { counter: "page index" })?;
        let mut inner = self.inner.borrow_mut();
        inner.cursor[class.index()] = inner.cursor[class.index()].max(index + 1);
        inner.private.set(page, Some(PrivatePage { origin: Origin::New, content: Content::Zero }));
        Ok(page)
    }

    /// Allocates `count` pages of zeros; all of them, or after an error none.
    ///
    /// # Errors
    /// As [`Transaction::allocate`].
    pub fn allocate_many(&self, class: SizeClass, count: usize) -> Result<Vec<PageId>> {
        let mut pages = Vec::new();
        for _ in 0..count {
            match self.allocate(class) {
                Ok(page) => pages.push(page),
                Err(error) => {
                    let mut inner = self.inner.borrow_mut();
                    pages.iter().for_each(|page| inner.private.set(*page, None));
                    return Err(error);
                }
            }
        }
        Ok(pages)
    }

    /// Opens a page for changing, with the bytes it has. For a page above 1 MiB, the chunks of 1 MiB that differ when
    /// the guard is dropped are what is written; to change a part of such a page, `write_at` is cheaper.
    ///
    /// # Errors
    /// `PageBorrowed` if the page is open already; `PageExceedsBudget` if the page is larger than the memory given to
    /// the pager; those of reading it.
    pub fn write(&self, page: PageId) -> Result<PageMut<'_>> {
        self.shared().source().check_budget(page)?;
        self.open_page(page)
    }

    /// Opens a page for changing, with all bytes zero: what it held is not read.
    ///
    /// # Errors
    /// As [`Transaction::write`].
    pub fn overwrite(&self, page: PageId) -> Result<PageMut<'_>> {
        self.shared().source().check_budget(page)?;
        self.open_zeroed(page)
    }

    /// Changes a part of a page. Of pages above 1 MiB only the chunks (of 1 MiB each) that the range touches are read
    /// and kept; pages of every size can be written, whatever the memory budget.
    ///
    /// # Errors
    /// `OutOfPage` if the range leaves the page; `PageBorrowed`; those of reading. After an error nothing was changed.
    pub fn write_at(&self, page: PageId, offset: u64, bytes: &[u8]) -> Result<()> {
        check_range(page, offset, bytes.len())?;
        if !page.class().is_chunked() {
            let whole = bytes.len() as u64 == page.class().page_bytes();
            let mut guard = if whole { self.open_zeroed(page)? } else { self.open_page(page)? };
            if !bytes.is_empty() {
                guard[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
            }
            return Ok(());
        }
        self.check_free_to_use(page)?;
        let mut changed = BTreeMap::new();
        for part in parts(offset, bytes.len()) {
            let bytes = &bytes[part.at..part.at + part.length];
            if part.length == CHUNK_BYTES {
                changed.insert(part.chunk, Arc::from(bytes));
                continue;
            }
            let mut chunk = self.chunk(page, part.chunk)?.unwrap_or_else(|| zeros(CHUNK_BYTES));
            Arc::make_mut(&mut chunk)[part.start..part.start + part.length].copy_from_slice(bytes);
            changed.insert(part.chunk, chunk);
        }
        if !changed.is_empty() {
            self.set_chunks(page, changed);
        }
        Ok(())
    }

    /// How this transaction stores a page, whatever the options say of its class: of what it has written and will write
    /// of the page, each chunk of 1 MiB by itself. It does not write the page, nor is it undone by going back to a
    /// savepoint; later transactions store the page as the options say.
    ///
    /// # Errors
    /// `PageNotFound`; `PageBorrowed`; those of reading the page map.
    pub fn set_compression(&self, page: PageId, compression: Compression) -> Result<()> {
        self.origin(page)?;
        self.inner.borrow_mut().private.set_compression(page, compression);
        Ok(())
    }

    /// Frees a page. Its index is used again once the commit that frees it is durable; that of a page that this
    /// transaction allocated, at once.
    ///
    /// # Errors
    /// `PageNotFound`; `PageBorrowed`; those of reading the page map.
    pub fn free(&self, page: PageId) -> Result<()> {
        let origin = self.origin(page)?;
        let freed = match origin {
            Origin::New => None,
            Origin::Committed => Some(PrivatePage { origin, content: Content::Freed }),
        };
        self.inner.borrow_mut().private.set(page, freed);
        Ok(())
    }

    /// Sets the user header, atomically with the pages: the database's own root, at most 1024 bytes.
    ///
    /// # Errors
    /// `HeaderTooLarge`.
    pub fn set_header(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() > HEADER_LIMIT {
            return Err(Error::HeaderTooLarge { length: bytes.len(), limit: HEADER_LIMIT });
        }
        self.inner.borrow_mut().private.set_header(bytes.into());
        Ok(())
    }

    /// Marks a point to go back to. What is changed later shares its memory with what was, until it differs; dropping
    /// the savepoint gives that memory back.
    ///
    /// # Errors
    /// `PageBorrowed` if a page is open for changing.
    pub fn savepoint(&self) -> Result<Savepoint> {
        let mut inner = self.inner.borrow_mut();
        inner.check_nothing_borrowed()?;
        Ok(inner.private.savepoint())
    }

    /// Undoes everything since the savepoint: contents, allocations, frees and the header. One can go back to it again,
    /// but not to those made after it.
    ///
    /// # Errors
    /// `PageBorrowed` if a page is open for changing; `SavepointNotFound`.
    pub fn rollback_to(&self, savepoint: &Savepoint) -> Result<()> {
        let mut inner = self.inner.borrow_mut();
        inner.check_nothing_borrowed()?;
        inner.private.rollback_to(savepoint)
    }

    /// Ends the transaction without a trace, as dropping it does.
    pub fn abort(self) {}

    pub(super) fn shared(&self) -> &Shared {
        &self.turn.handle.shared
    }

    /// The lowest index that is free for certain.
    fn free_index(&self, class: SizeClass) -> Result<u64> {
        let (from, returned) = {
            let inner = self.inner.borrow();
            (inner.cursor[class.index()], inner.private.lowest_returned(class))
        };
        // What was returned lies below the cursor, and everything else there is taken.
        if let Some(index) = returned {
            return Ok(index);
        }
        let map = &self.head.maps[class.index()];
        let refused = Cell::new(None);
        let found = self.shared().while_open(|| {
            map.next_free(&self.shared().nodes, from, |index, since| {
                let certain = since <= self.synced;
                if !certain && refused.get().is_none() {
                    refused.set(Some(index));
                }
                certain
            })
        })?;
        let first = &mut self.inner.borrow_mut().refused[class.index()];
        *first = first.or(refused.get());
        Ok(found.unwrap_or_else(|| map.length().max(from)))
    }

    /// Where the page comes from, if it is allocated and nobody has it open.
    pub(super) fn origin(&self, page: PageId) -> Result<Origin> {
        {
            let inner = self.inner.borrow();
            inner.check_not_borrowed(page)?;
            match inner.private.get(page) {
                Some(PrivatePage { content: Content::Freed, .. }) => return Err(Error::PageNotFound { page }),
                Some(private) => return Ok(private.origin),
                None => {}
            }
        }
        self.shared().while_open(|| self.shared().source().pointer(&self.head, page))?;
        Ok(Origin::Committed)
    }

    fn check_free_to_use(&self, page: PageId) -> Result<()> {
        self.origin(page).map(drop)
    }

    /// What the transaction has made of the page; `None` if it has not touched it.
    pub(super) fn content(&self, page: PageId) -> Result<Option<Content>> {
        let inner = self.inner.borrow();
        inner.check_not_borrowed(page)?;
        match inner.private.get(page) {
            Some(PrivatePage { content: Content::Freed, .. }) => Err(Error::PageNotFound { page }),
            private => Ok(private.map(|private| private.content.clone())),
        }
    }

    /// All bytes of the page.
    pub(super) fn bytes_of(&self, page: PageId) -> Result<Arc<[u8]>> {
        let length = page.class().page_bytes() as usize;
        match self.content(page)? {
            Some(Content::Whole(bytes)) => Ok(bytes),
            Some(Content::Chunks(..)) => {
                let mut bytes = zeros(length);
                for (number, target) in (0..).zip(Arc::make_mut(&mut bytes).chunks_mut(CHUNK_BYTES)) {
                    if let Some(chunk) = self.chunk(page, number)? {
                        target.copy_from_slice(&chunk);
                    }
                }
                Ok(bytes)
            }
            Some(Content::Zero | Content::Freed) => Ok(zeros(length)),
            None => self.shared().while_open(|| {
                let source = self.shared().source();
                source.whole(page, &source.pointer(&self.head, page)?)
            }),
        }
    }

    /// One chunk of a large page; `None` if it is all zero.
    pub(super) fn chunk(&self, page: PageId, chunk: u32) -> Result<Option<Arc<[u8]>>> {
        {
            let inner = self.inner.borrow();
            match inner.private.get(page).map(|private| &private.content) {
                Some(Content::Chunks(chunks, others)) => match (chunks.get(&chunk), others) {
                    (Some(bytes), _) => return Ok(Some(Arc::clone(bytes))),
                    (None, Others::Zero) => return Ok(None),
                    (None, Others::Committed) => {}
                },
                Some(_) => return Ok(None),
                None => {}
            }
        }
        self.shared().while_open(|| {
            let source = self.shared().source();
            source.chunk(page, &source.pointer(&self.head, page)?, chunk)
        })
    }

    /// Sets some chunks of a large page that is allocated.
    pub(super) fn set_chunks(&self, page: PageId, changed: BTreeMap<u32, Arc<[u8]>>) {
        let mut inner = self.inner.borrow_mut();
        let private = inner.private.get(page).cloned();
        let origin = private.as_ref().map_or(Origin::Committed, |private| private.origin);
        let (mut chunks, others) = match private.map(|private| private.content) {
            Some(Content::Chunks(chunks, others)) => (chunks, others),
            Some(_) => (BTreeMap::new(), Others::Zero),
            None => (BTreeMap::new(), Others::Committed),
        };
        chunks.extend(changed);
        inner.private.set(page, Some(PrivatePage { origin, content: Content::Chunks(chunks, others) }));
    }
}

impl Inner {
    pub(super) fn check_not_borrowed(&self, page: PageId) -> Result<()> {
        if self.borrowed.contains(&page) { Err(Error::PageBorrowed { page }) } else { Ok(()) }
    }

    pub(super) fn check_nothing_borrowed(&self) -> Result<()> {
        self.borrowed.iter().next().map_or(Ok(()), |page| Err(Error::PageBorrowed { page: *page }))
    }

    /// Where the next transaction's search begins if this one's changes are committed.
    pub(super) fn lowest_free(&self) -> [u64; SizeClass::COUNT] {
        let mut lowest = self.cursor;
        for (class, lowest) in SizeClass::all().zip(&mut lowest) {
            let returned = self.private.lowest_returned(class);
            let freed = self.private.lowest_freed(class);
            *lowest = [returned, freed, self.refused[class.index()]].into_iter().flatten().fold(*lowest, u64::min);
        }
        lowest
    }
}

impl Read for Transaction {
    fn page(&self, page: PageId) -> Result<PageGuard> {
        self.shared().source().check_budget(page)?;
        Ok(PageGuard::new(page, self.bytes_of(page)?))
    }

    fn read_at(&self, page: PageId, offset: u64, target: &mut [u8]) -> Result<()> {
        check_range(page, offset, target.len())?;
        match self.content(page)? {
            Some(Content::Whole(bytes)) => {
                target.copy_from_slice(&bytes[offset as usize..offset as usize + target.len()]);
            }
            Some(Content::Chunks(..)) => {
                for part in parts(offset, target.len()) {
                    let target = &mut target[part.at..part.at + part.length];
                    match self.chunk(page, part.chunk)? {
                        Some(chunk) => target.copy_from_slice(&chunk[part.start..part.start + part.length]),
                        None => target.fill(0),
                    }
                }
            }
            Some(Content::Zero | Content::Freed) => target.fill(0),
            None => self.shared().while_open(|| {
                let source = self.shared().source();
                source.part(page, &source.pointer(&self.head, page)?, offset, target)
            })?,
        }
        Ok(())
    }

    fn contains(&self, page: PageId) -> Result<bool> {
        if let Some(private) = self.inner.borrow().private.get(page) {
            return Ok(!matches!(private.content, Content::Freed));
        }
        self.shared().while_open(|| Ok(!self.head.pointer(&self.shared().nodes, page)?.is_null()))
    }

    fn header(&self) -> Arc<[u8]> {
        Arc::clone(self.inner.borrow().private.header().unwrap_or(&self.head.header))
    }

    fn generation(&self) -> Generation {
        self.head.generation
    }

    fn page_ids(&self, class: SizeClass) -> Box<dyn Iterator<Item = Result<PageId>> + '_> {
        let new = self.inner.borrow().private.next_new(class, 0);
        Box::new(PageIds { transaction: self, class, committed: Some(0), looked_up: None, new })
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("generation", &self.head.generation).finish_non_exhaustive()
    }
}

/// Walks the pages of a class: those of the state that the transaction began with, and its own among them.
struct PageIds<'a> {
    transaction: &'a Transaction,
    class: SizeClass,
    /// The index at which to go on in the state; `None` at its end.
    committed: Option<u64>,
    /// The next page of the state, if it is known already.
    looked_up: Option<u64>,
    /// The next page that the transaction allocated.
    new: Option<u64>,
}

impl PageIds<'_> {
    /// The next page of the state that the transaction has not freed.
    fn next_committed(&mut self) -> Result<Option<u64>> {
        let (transaction, shared) = (self.transaction, self.transaction.shared());
        while self.looked_up.is_none() {
            let Some(from) = self.committed.take() else { return Ok(None) };
            let found =
                shared.while_open(|| read::next_committed(&shared.nodes, &transaction.head, self.class, from))?;
            let Some(index) = found else { return Ok(None) };
            self.committed = index.checked_add(1);
            let Some(page) = PageId::new(self.class, index) else { return Ok(None) };
            let inner = transaction.inner.borrow();
            let freed = matches!(inner.private.get(page), Some(PrivatePage { content: Content::Freed, .. }));
            self.looked_up = (!freed).then_some(index);
        }
        Ok(self.looked_up)
    }
}

impl Iterator for PageIds<'_> {
    type Item = Result<PageId>;

    fn next(&mut self) -> Option<Self::Item> {
        let committed = match self.next_committed() {
            Ok(committed) => committed,
            Err(error) => {
                (self.committed, self.new) = (None, None);
                return Some(Err(error));
            }
        };
        let index = match (committed, self.new) {
            (Some(committed), Some(new)) => committed.min(new),
            (one, other) => one.or(other)?,
        };
        if committed == Some(index) {
            self.looked_up = None;
        } else {
            self.new = self.transaction.inner.borrow().private.next_new(self.class, index + 1);
        }
        PageId::new(self.class, index).map(Ok)
    }
}
