//! What a transaction sees: its own changes over what was pending when it began, over the published state.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::bytes::{Bytes, Held};
use super::pending::{PendingChunk, PendingPage, of_class};
use super::private::{Content, Origin, Others, PrivatePage};
use super::read::{self, At, PageGuard, Part, Read, check_range, parts};
use super::transaction::Transaction;
use crate::buffer::ReadState;
use crate::error::{Contended, Error, Result};
use crate::id::{Generation, PageId, SizeClass};
use crate::store::Pinned;

/// A page as far as it is in memory.
pub(super) enum Seen {
    /// What the transaction itself, or a pending one, made of it.
    Changed(Content),
    /// It is as it is published, in this state or in what the transaction began with.
    Published(Option<Arc<Pinned>>),
}

/// A chunk that may have other bytes than zeros.
pub(super) enum SeenChunk {
    /// What the transaction itself, or a pending one, made of it.
    Changed(Bytes),
    /// It is as it is published, in this state or in what the transaction began with.
    Published(u32, Option<Arc<Pinned>>),
}

impl Transaction {
    /// The state, or what the transaction began with.
    fn at<'a>(&'a self, state: Option<&'a Arc<Pinned>>) -> At<'a> {
        let state = state.map_or(&self.began.base, |state| &**state);
        At { state, shared: self.shared() }
    }

    /// Where the page comes from, if it is allocated and nobody has it open.
    pub(super) fn origin(&self, page: PageId) -> Result<Origin> {
        {
            let inner = self.own.inner.borrow();
            inner.check_not_borrowed(page)?;
            match inner.private.get(page) {
                Some(PrivatePage { content: Content::Freed, .. }) => return Err(Error::PageNotFound { page }),
                Some(private) => return Ok(private.origin),
                None => {}
            }
        }
        self.note_read(Contended::Page(page));
        match self.began.pending.has(page) {
            Some(false) => Err(Error::PageNotFound { page }),
            Some(true) => Ok(Origin::Committed),
            None => {
                // What is in memory is allocated; of the rest the page map says.
                let shared = self.shared();
                shared.while_open(|| match shared.pages.is_in_memory(self.began.base.generation, page) {
                    true => Ok(()),
                    false => self.at(None).pointer(page).map(drop),
                })?;
                Ok(Origin::Committed)
            }
        }
    }

    /// What has become of the page.
    pub(super) fn seen(&self, page: PageId) -> Result<Seen> {
        {
            let inner = self.own.inner.borrow();
            inner.check_not_borrowed(page)?;
            match inner.private.get(page) {
                Some(PrivatePage { content: Content::Freed, .. }) => return Err(Error::PageNotFound { page }),
                Some(private) => return Ok(Seen::Changed(private.content.clone())),
                None => {}
            }
        }
        self.note_read(Contended::Page(page));
        match self.began.pending.page(page) {
            Some(PendingPage::Changed(Content::Freed)) => Err(Error::PageNotFound { page }),
            Some(PendingPage::Changed(content)) => Ok(Seen::Changed(content)),
            Some(PendingPage::In(state)) => Ok(Seen::Published(Some(state))),
            None => Ok(Seen::Published(None)),
        }
    }

    /// All bytes of the page.
    fn bytes_of(&self, page: PageId) -> Result<Held> {
        match self.seen(page)? {
            Seen::Changed(Content::Whole(bytes)) => self.held(page, &bytes),
            Seen::Changed(_) => {
                let mut frame = self.stale_frame(page.class())?;
                if let Some(target) = frame.get_mut() {
                    self.read_at(page, 0, target)?;
                }
                Ok(Held::Frame(frame))
            }
            Seen::Published(state) => self.shared().while_open(|| self.at(state.as_ref()).page(page).map(Held::Guard)),
        }
    }

    /// One chunk of a large page; `None` if it is all zero.
    pub(super) fn chunk(&self, page: PageId, chunk: u32) -> Result<Option<SeenChunk>> {
        {
            let inner = self.own.inner.borrow();
            match inner.private.get(page).map(|private| &private.content) {
                Some(Content::Chunks(chunks, others)) => match (chunks.get(&chunk), others) {
                    (Some(bytes), _) => return Ok(Some(SeenChunk::Changed(bytes.clone()))),
                    (None, Others::Zero) => return Ok(None),
                    (None, Others::Below) => {}
                },
                Some(_) => return Ok(None),
                None => {}
            }
        }
        match self.began.pending.chunk(page, chunk) {
            PendingChunk::Bytes(bytes) => Ok(Some(SeenChunk::Changed(bytes))),
            PendingChunk::Zero => Ok(None),
            PendingChunk::In(state) => Ok(Some(SeenChunk::Published(chunk, state))),
        }
    }

    /// Fills `target` with a part of a chunk.
    pub(super) fn copy_chunk(&self, page: PageId, chunk: &SeenChunk, part: Part, target: &mut [u8]) -> Result<()> {
        match chunk {
            SeenChunk::Changed(bytes) => self.copy_part(page, bytes, part.start, target),
            SeenChunk::Published(_, state) => {
                self.shared().while_open(|| self.at(state.as_ref()).part_of_chunk(page, part, target))
            }
        }
    }

    /// Whether a chunk has these bytes.
    pub(super) fn chunk_equals(&self, page: PageId, chunk: &SeenChunk, bytes: &[u8]) -> Result<bool> {
        match chunk {
            SeenChunk::Changed(before) => self.equals(page, before, bytes),
            SeenChunk::Published(number, state) => {
                self.shared().while_open(|| self.at(state.as_ref()).chunk_equals(page, *number, bytes))
            }
        }
    }

    /// A serializable transaction remembers what it has read.
    fn note_read(&self, unit: Contended) {
        if let Some(claim) = &self.claim {
            claim.read(unit);
        }
    }
}

impl Read for Transaction {
    fn page(&self, page: PageId) -> Result<PageGuard> {
        self.shared().check_budget(page)?;
        Ok(PageGuard::new(page, self.bytes_of(page)?))
    }

    fn read_at(&self, page: PageId, offset: u64, target: &mut [u8]) -> Result<()> {
        check_range(page, offset, target.len())?;
        match self.seen(page)? {
            Seen::Changed(Content::Whole(bytes)) => self.copy_part(page, &bytes, offset as usize, target)?,
            Seen::Changed(Content::Chunks(..)) => {
                for part in parts(offset, target.len()) {
                    let target = &mut target[part.at..part.at + part.length];
                    match self.chunk(page, part.chunk)? {
                        Some(chunk) => self.copy_chunk(page, &chunk, part, target)?,
                        None => target.fill(0),
                    }
                }
            }
            Seen::Changed(Content::Zero | Content::Freed | Content::Published) => target.fill(0),
            Seen::Published(state) => {
                self.shared().while_open(|| self.at(state.as_ref()).part(page, offset, target))?;
            }
        }
        Ok(())
    }

    fn contains(&self, page: PageId) -> Result<bool> {
        if let Some(private) = self.own.inner.borrow().private.get(page) {
            return Ok(!matches!(private.content, Content::Freed));
        }
        self.note_read(Contended::Page(page));
        if let Some(allocated) = self.began.pending.has(page) {
            return Ok(allocated);
        }
        self.shared().while_open(|| Ok(!self.began.base.pointer(&self.shared().nodes, page)?.is_null()))
    }

    fn header(&self) -> Arc<[u8]> {
        if let Some(header) = self.own.inner.borrow().private.header() {
            return Arc::clone(header);
        }
        self.note_read(Contended::Header);
        Arc::clone(self.began.pending.header().unwrap_or(&self.began.base.header))
    }

    fn generation(&self) -> Generation {
        self.began.base.generation
    }

    fn page_ids(&self, class: SizeClass) -> Box<dyn Iterator<Item = Result<PageId>> + '_> {
        if let Some(claim) = &self.claim {
            claim.walked(class);
        }
        let (mut changed, mut freed) = (BTreeSet::new(), HashSet::new());
        let inner = self.own.inner.borrow();
        let own = of_class(inner.private.pages(), class);
        let own = own.map(|(page, private)| (page, !matches!(private.content, Content::Freed)));
        for (page, allocated) in own.chain(self.began.pending.pages(class)) {
            // What comes first is youngest.
            if !changed.contains(&page.index()) && !freed.contains(&page.index()) {
                match allocated {
                    true => changed.insert(page.index()),
                    false => freed.insert(page.index()),
                };
            }
        }
        Box::new(PageIds { transaction: self, class, published: Some(0), looked_up: None, changed, freed })
    }
}

/// Walks the pages of a class: those of the published state, and those that changed among them.
struct PageIds<'a> {
    transaction: &'a Transaction,
    class: SizeClass,
    /// The index at which to go on in the state; `None` at its end.
    published: Option<u64>,
    /// The next page of the state, if it is known already.
    looked_up: Option<u64>,
    /// Pages that were changed or allocated, and not walked over yet.
    changed: BTreeSet<u64>,
    freed: HashSet<u64>,
}

impl PageIds<'_> {
    /// The next page of the state that is not freed.
    fn next_published(&mut self) -> Result<Option<u64>> {
        let (transaction, shared) = (self.transaction, self.transaction.shared());
        while self.looked_up.is_none() {
            let Some(from) = self.published.take() else { return Ok(None) };
            let base = &transaction.began.base;
            let found = shared.while_open(|| read::next_committed(&shared.nodes, base, self.class, from))?;
            let Some(index) = found else { return Ok(None) };
            self.published = index.checked_add(1);
            self.looked_up = (!self.freed.contains(&index)).then_some(index);
        }
        Ok(self.looked_up)
    }
}

impl Iterator for PageIds<'_> {
    type Item = Result<PageId>;

    fn next(&mut self) -> Option<Self::Item> {
        let published = match self.next_published() {
            Ok(published) => published,
            Err(error) => {
                self.published = None;
                self.changed.clear();
                return Some(Err(error));
            }
        };
        let index = match (published, self.changed.first().copied()) {
            (Some(published), Some(changed)) => published.min(changed),
            (one, other) => one.or(other)?,
        };
        if published == Some(index) {
            self.looked_up = None;
        }
        self.changed.remove(&index);
        PageId::new(self.class, index).map(Ok)
    }
}
