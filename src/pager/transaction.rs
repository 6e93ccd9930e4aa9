//! Transactions: changes that become one commit, or nothing.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::ahead::{Access, Ahead};
use super::bytes::Bytes;
use super::conflict::{Claim, Isolation};
use super::guard::PageMut;
use super::handle::Shared;
use super::pending::{Pending, Sequence};
use super::pins::{PinKind, Registered};
use super::private::{Content, Origin, Others, Private, PrivatePage};
use super::read::{CHUNK_BYTES, Part, Read, check_range, parts};
use super::savepoint::Savepoint;
use super::turn::Turn;
use crate::error::{Contended, Error, Result};
use crate::format::{Compression, HEADER_LIMIT};
use crate::id::{PageId, SizeClass};
use crate::store::Pinned;

/// Changes that become one commit, or nothing: dropping it aborts. It sees its own changes, and those of every
/// transaction that was committed, or whose commit was started, before it began.
///
/// Begun with [`Pager::begin`](super::Pager::begin) it is *serial*: no other is open beside it, so it never conflicts.
/// Begun with [`Pager::begin_concurrent`](super::Pager::begin_concurrent) it runs beside others of the kind, and
/// changing what one of them changes is a `Conflict`, at once.
///
/// It may be sent to another thread, and is used by one at a time (`Send`, not `Sync`).
pub struct Transaction {
    pub(super) own: Own,
    pub(super) began: Began,
    /// Of a concurrent transaction.
    pub(super) claim: Option<Claim>,
    pub(super) ahead: Ahead,
    /// Given back last.
    pub(super) turn: Turn,
}

/// What a transaction began with, held.
pub(super) struct Began {
    pub(super) base: Pinned,
    pub(super) pending: Pending,
    /// Where it is registered as open; nowhere once it is sequenced.
    open: std::cell::Cell<Option<Sequence>>,
    _registered: Registered,
    shared: Arc<Shared>,
}

/// What a transaction changed. Dropped, it gives back what was taken for it.
pub(super) struct Own {
    pub(super) inner: RefCell<Inner>,
    shared: Arc<Shared>,
}

/// What changes in a transaction. Never borrowed while a caller's code runs.
#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) private: Private,
    /// Pages with an open [`PageMut`].
    pub(super) borrowed: HashSet<PageId>,
    /// How much memory of frames was reported.
    pub(super) reported_bytes: usize,
    /// Why the transaction cannot be committed any more.
    pub(super) failed: Option<Error>,
}

impl Began {
    /// Whoever calls this ends the registration.
    pub(super) fn take_sequence(&self) -> Sequence {
        self.open.set(None);
        self.pending.began
    }
}

impl Drop for Began {
    fn drop(&mut self) {
        if let Some(sequence) = self.open.get() {
            self.shared.head.end(sequence);
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let inner = self.inner.take();
        self.shared.private_bytes.fetch_sub(inner.reported_bytes, Ordering::Relaxed);
        let (pages, _, returned) = inner.private.into_parts();
        let new = pages.iter().filter(|(_, private)| private.origin == Origin::New).map(|(page, _)| *page);
        self.shared.indices.give_back(new.chain(returned));
    }
}

impl Transaction {
    pub(super) fn new(turn: Turn, isolation: Option<Isolation>) -> Result<Self> {
        let shared = &turn.handle.shared;
        if shared.is_closed() {
            return Err(Error::Closed);
        }
        let (base, pending) = shared.head.begin(&shared.published);
        let open = std::cell::Cell::new(Some(pending.began));
        let claim = isolation.map(|isolation| Claim::new(shared, pending.began, isolation));
        let registered = shared.pins.register(PinKind::Transaction, base.generation, None);
        let began = Began { base, pending, open, _registered: registered, shared: Arc::clone(shared) };
        let own = Own { inner: RefCell::default(), shared: Arc::clone(shared) };
        Ok(Self { own, began, claim, ahead: Ahead::new(Access::Normal), turn })
    }

    /// Allocates a page of zeros: the lowest index of its class that is free for certain (freed by a commit that is
    /// durable, or never used).
    ///
    /// # Errors
    /// Those of reading the page map; `Exhausted` after 2^48 pages of the class.
    pub fn allocate(&self, class: SizeClass) -> Result<PageId> {
        let own = self.own.inner.borrow().private.lowest_returned(class);
        let page = match own.and_then(|index| PageId::new(class, index)) {
            Some(page) => page,
            None => self.shared().indices.take(self.shared(), &self.began.base, &self.began.pending, class)?,
        };
        if let Some(claim) = &self.claim {
            claim.appeared(Contended::Page(page));
        }
        let zero = PrivatePage::new(Origin::New, Content::Zero);
        self.own.inner.borrow_mut().private.set(page, Some(zero));
        Ok(page)
    }

    /// Allocates `count` pages of zeros; all of them, or after an error none.
    ///
    /// # Errors
    /// As [`Transaction::allocate`].
    pub fn allocate_many(&self, class: SizeClass, count: usize) -> Result<Vec<PageId>> {
        if count as u64 > PageId::INDEX_LIMIT {
            return Err(Error::Exhausted { counter: "page index" });
        }
        let mut pages = Vec::new();
        for _ in 0..count {
            match self.allocate(class) {
                Ok(page) => pages.push(page),
                Err(error) => {
                    let mut inner = self.own.inner.borrow_mut();
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
    /// `PageBorrowed` if the page is open already; `Conflict`; `PageExceedsBudget` if the page is larger than the memory
    /// given to the pager; those of reading it.
    pub fn write(&self, page: PageId) -> Result<PageMut<'_>> {
        self.shared().check_budget(page)?;
        self.open_page(page)
    }

    /// Opens a page for changing, with all bytes zero: what it held is not read.
    ///
    /// # Errors
    /// As [`Transaction::write`].
    pub fn overwrite(&self, page: PageId) -> Result<PageMut<'_>> {
        self.shared().check_budget(page)?;
        self.open_zeroed(page)
    }

    /// Changes a part of a page. Of pages above 1 MiB only the chunks (of 1 MiB each) that the range touches are read
    /// and kept; pages of every size can be written, whatever the memory budget.
    ///
    /// # Errors
    /// `OutOfPage` if the range leaves the page; `PageBorrowed`; `Conflict`; those of reading. After an error nothing was
    /// changed.
    pub fn write_at(&self, page: PageId, offset: u64, bytes: &[u8]) -> Result<()> {
        check_range(page, offset, bytes.len())?;
        if !page.class().is_chunked() {
            return self.write_part(page, offset as usize, bytes);
        }
        self.origin_to_change(page)?;
        let mut changed = BTreeMap::new();
        for part in parts(offset, bytes.len()) {
            let bytes = &bytes[part.at..part.at + part.length];
            let before = match part.length == CHUNK_BYTES {
                true => None,
                false => self.chunk(page, part.chunk)?,
            };
            let whole = Part { chunk: part.chunk, start: 0, at: 0, length: CHUNK_BYTES };
            let mut result = Ok(());
            let chunk = self.new_bytes(page, |target| {
                match &before {
                    Some(before) => result = self.copy_chunk(page, before, whole, target),
                    None => target.fill(0),
                }
                target[part.start..part.start + part.length].copy_from_slice(bytes);
            })?;
            result?;
            changed.insert(part.chunk, chunk);
        }
        if !changed.is_empty() {
            self.set_chunks(page, changed);
        }
        Ok(())
    }

    /// Changes a part of a page of at most 1 MiB.
    fn write_part(&self, page: PageId, offset: usize, bytes: &[u8]) -> Result<()> {
        let whole = bytes.len() as u64 == page.class().page_bytes();
        let is_own = self.own.inner.borrow().private.get(page).is_some();
        if (is_own || !whole) && self.shared().check_budget(page).is_ok() {
            match if whole { self.open_zeroed(page) } else { self.open_page(page) } {
                Ok(mut guard) if !bytes.is_empty() => {
                    guard[offset..offset + bytes.len()].copy_from_slice(bytes);
                    return Ok(());
                }
                Ok(_) => return Ok(()),
                // There is a way beside the budget.
                Err(Error::BudgetTooSmall { .. } | Error::BudgetExhausted { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let (origin, changed) = if whole {
            // What is known of the page comes to be at hand while its bytes are copied.
            self.shared().pages.look_ahead(page);
            let changed = self.new_bytes(page, |target| target.copy_from_slice(bytes))?;
            (self.origin_to_change(page)?, changed)
        } else {
            let origin = self.origin_to_change(page)?;
            if bytes.is_empty() {
                return Ok(());
            }
            let mut result = Ok(());
            let changed = self.new_bytes(page, |target| {
                result = self.read_at(page, 0, target);
                target[offset..offset + bytes.len()].copy_from_slice(bytes);
            })?;
            result?;
            (origin, changed)
        };
        self.own.inner.borrow_mut().private.set(page, Some(PrivatePage::new(origin, Content::Whole(changed))));
        Ok(())
    }

    /// How this transaction stores a page, whatever the options say of its class: of what it has written and will write
    /// of the page, each chunk of 1 MiB by itself. It does not write the page, nor is it undone by going back to a
    /// savepoint; later transactions store the page as the options say. What was spilled for want of memory is stored
    /// already: to be sure, choose before writing.
    ///
    /// # Errors
    /// `PageNotFound`; `PageBorrowed`; those of reading the page map.
    pub fn set_compression(&self, page: PageId, compression: Compression) -> Result<()> {
        self.origin(page)?;
        self.own.inner.borrow_mut().private.set_compression(page, compression);
        Ok(())
    }

    /// Frees a page. Its index is used again once the commit that frees it is durable; that of a page that this
    /// transaction allocated, at once.
    ///
    /// # Errors
    /// `PageNotFound`; `PageBorrowed`; `Conflict`; those of reading the page map.
    pub fn free(&self, page: PageId) -> Result<()> {
        let origin = self.origin_to_change(page)?;
        let freed = match origin {
            Origin::New => None,
            Origin::Committed => Some(PrivatePage::new(origin, Content::Freed)),
        };
        self.own.inner.borrow_mut().private.set(page, freed);
        Ok(())
    }

    /// Sets the user header, atomically with the pages: the database's own root, at most 1024 bytes.
    ///
    /// # Errors
    /// `HeaderTooLarge`; `Conflict`.
    pub fn set_header(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() > HEADER_LIMIT {
            return Err(Error::HeaderTooLarge { length: bytes.len(), limit: HEADER_LIMIT });
        }
        self.claim(Contended::Header)?;
        self.own.inner.borrow_mut().private.set_header(bytes.into());
        Ok(())
    }

    /// Says how pages are going to be read and opened through this transaction, as far as it has not changed them.
    pub fn advise(&self, access: Access) {
        self.ahead.advise(access);
    }

    /// Claims a page without changing it, so that no other transaction changes it beside this one: what a concurrent
    /// transaction does with a page whose bytes its own changes depend on. In a serial one that is so anyway.
    ///
    /// # Errors
    /// `Conflict`; `PageNotFound`; `PageBorrowed`; those of reading the page map.
    pub fn lock(&self, page: PageId) -> Result<()> {
        self.origin_to_change(page).map(drop)
    }

    /// Marks a point to go back to. What is changed later shares its memory with what was, until it differs; beyond the
    /// transaction's share of memory, what was goes to disk first. Dropping the savepoint gives memory and space back.
    ///
    /// # Errors
    /// `PageBorrowed` if a page is open for changing.
    pub fn savepoint(&self) -> Result<Savepoint> {
        let mut inner = self.own.inner.borrow_mut();
        inner.check_nothing_borrowed()?;
        Ok(inner.private.savepoint())
    }

    /// Undoes everything since the savepoint: contents, allocations, frees and the header. One can go back to it again,
    /// but not to those made after it. What a concurrent transaction claimed stays claimed.
    ///
    /// # Errors
    /// `PageBorrowed` if a page is open for changing; `SavepointNotFound`.
    pub fn rollback_to(&self, savepoint: &Savepoint) -> Result<()> {
        let mut inner = self.own.inner.borrow_mut();
        inner.check_nothing_borrowed()?;
        inner.private.rollback_to(savepoint)
    }

    /// Ends the transaction without a trace, as dropping it does.
    pub fn abort(self) {}

    pub(super) fn shared(&self) -> &Shared {
        &self.turn.handle.shared
    }

    /// Where the page comes from, if it is allocated, nobody has it open, and no other transaction is in the way.
    pub(super) fn origin_to_change(&self, page: PageId) -> Result<Origin> {
        let origin = self.origin(page)?;
        if origin == Origin::Committed {
            self.claim(Contended::Page(page))?;
        }
        Ok(origin)
    }

    fn claim(&self, unit: Contended) -> Result<()> {
        self.claim.as_ref().map_or(Ok(()), |claim| claim.claim(unit))
    }

    /// Sets some chunks of a large page that is allocated.
    pub(super) fn set_chunks(&self, page: PageId, changed: BTreeMap<u32, Bytes>) {
        let mut inner = self.own.inner.borrow_mut();
        let private = inner.private.get(page).cloned();
        let origin = private.as_ref().map_or(Origin::Committed, |private| private.origin);
        let (mut chunks, others) = match private.map(|private| private.content) {
            Some(Content::Chunks(chunks, others)) => (chunks, others),
            Some(_) => (BTreeMap::new(), Others::Zero),
            None => (BTreeMap::new(), Others::Below),
        };
        chunks.extend(changed);
        inner.private.set(page, Some(PrivatePage::new(origin, Content::Chunks(chunks, others))));
    }
}

impl Inner {
    pub(super) fn check_not_borrowed(&self, page: PageId) -> Result<()> {
        if self.borrowed.contains(&page) { Err(Error::PageBorrowed { page }) } else { Ok(()) }
    }

    pub(super) fn check_nothing_borrowed(&self) -> Result<()> {
        self.borrowed.iter().next().map_or(Ok(()), |page| Err(Error::PageBorrowed { page: *page }))
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").field("generation", &self.began.base.generation).finish_non_exhaustive()
    }
}
