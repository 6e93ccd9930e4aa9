//! What a transaction has changed so far. Memory only.
//!
//! - **W1** A page has an entry if and only if the transaction allocated, wrote or freed it.
//! - **W2** `returned` holds exactly the pages whose indices the transaction took and gave back; they are taken again
//!   first, lowest first.
//! - **W3** Undoing the newest savepoint's segment gives the state that the savepoint was made in. A page is noted in a
//!   segment once, with what it was before its first change after the savepoint. Frames are shared, not copied: who
//!   changes one that somebody shares makes a copy first. (`savepoint.rs`: V1 to V3.)

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::bytes::{Bytes, Spill};
use super::memory::Unit;
use super::pending::Member;
use super::publish::Frames;
use super::savepoint::{Savepoint, Savepoints};
use crate::buffer::Frame;
use crate::error::Result;
use crate::format::Compression;
use crate::id::{PageId, SizeClass};
use crate::store::{self, Changes, PageChange};

/// Where a transaction has a page from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The transaction allocated it.
    New,
    /// What the transaction began with has it.
    Committed,
}

/// What a transaction has made of a page.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Every byte is zero.
    Zero,
    /// These are its bytes: for classes up to 1 MiB.
    Whole(Bytes),
    /// These chunks of it have these bytes: for classes above 1 MiB.
    Chunks(BTreeMap<u32, Bytes>, Others),
    /// It is freed.
    Freed,
    /// As it is in the state that the commit made; only of a transaction whose commit is published.
    Published,
}

/// What became of pages.
pub(super) type Pages = BTreeMap<PageId, PrivatePage>;

/// What the chunks are that a page's content does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    /// What they are below: in what is pending, or published, when the transaction began.
    Below,
    /// Zero.
    Zero,
}

/// A page as the transaction sees it.
#[derive(Clone, Debug)]
pub(super) struct PrivatePage {
    pub(super) origin: Origin,
    pub(super) content: Content,
    /// When it was changed last, counted in changes of the transaction.
    pub(super) changed: u64,
    /// How it is to be stored, if that was said.
    compression: Option<Compression>,
}

/// What a transaction has changed so far.
#[derive(Debug, Default)]
pub(super) struct Private {
    pages: Pages,
    /// Bytes of memory of the pages.
    pages_bytes: usize,
    changes: u64,
    header: Option<Arc<[u8]>>,
    returned: BTreeSet<PageId>,
    savepoints: Savepoints,
    /// What was said of how pages are to be stored; savepoints do not undo it.
    compression: HashMap<PageId, Compression>,
}

impl Private {
    pub(super) fn get(&self, page: PageId) -> Option<&PrivatePage> {
        self.pages.get(&page)
    }

    pub(super) fn pages(&self) -> &Pages {
        &self.pages
    }

    pub(super) fn header(&self) -> Option<&Arc<[u8]>> {
        self.header.as_ref()
    }

    pub(super) fn savepoints(&self) -> &Savepoints {
        &self.savepoints
    }

    /// The lowest index that was taken and given back.
    pub(super) fn lowest_returned(&self, class: SizeClass) -> Option<u64> {
        let from_first = self.returned.range(PageId::new(class, 0)?..).next();
        from_first.filter(|page| page.class() == class).map(|page| page.index())
    }

    /// Sets what a page is, or with `None` makes it what it was when the transaction began.
    pub(super) fn set(&mut self, page: PageId, mut private: Option<PrivatePage>) {
        self.savepoints.note(page, self.pages.get(&page));
        self.changes += 1;
        if let Some(private) = &mut private {
            private.changed = self.changes;
        }
        self.replace(page, private);
    }

    /// Takes a page's bytes out, so that they can be changed. Whoever takes them sets the page again.
    pub(super) fn take_whole(&mut self, page: PageId) -> Option<Bytes> {
        self.savepoints.note(page, self.pages.get(&page));
        let content = &mut self.pages.get_mut(&page)?.content;
        match std::mem::replace(content, Content::Zero) {
            Content::Whole(bytes) => {
                self.pages_bytes -= bytes.memory_bytes();
                bytes.frame().into_iter().for_each(|frame| self.savepoints.left(frame));
                Some(bytes)
            }
            other => {
                *content = other;
                None
            }
        }
    }

    /// Puts taken bytes back, as they were before.
    pub(super) fn put_back(&mut self, page: PageId, bytes: Bytes) {
        if let Some(private) = self.pages.get_mut(&page) {
            self.pages_bytes += bytes.memory_bytes();
            bytes.frame().into_iter().for_each(|frame| self.savepoints.entered(frame));
            private.content = Content::Whole(bytes);
        }
    }

    /// A page's or chunk's bytes are not in this frame any more, but what is said instead.
    pub(super) fn spilled(&mut self, (page, chunk): Unit, frame: &Frame, instead: &Bytes) {
        let bytes = self.pages.get_mut(&page).and_then(|private| private.content.unit_mut(chunk));
        // Else only savepoints have it.
        if let Some(bytes) = bytes.filter(|bytes| bytes.is_frame(frame)) {
            self.pages_bytes -= bytes.memory_bytes();
            *bytes = instead.clone();
        }
        self.savepoints.spilled((page, chunk), frame, instead);
    }

    /// Bytes of memory of everything, what only savepoints have included.
    pub(super) fn memory_bytes(&self) -> usize {
        self.pages_bytes + self.savepoints.memory_bytes()
    }

    /// As [`Private::memory_bytes`], of the pages.
    pub(super) fn pages_bytes(&self) -> usize {
        self.pages_bytes
    }

    pub(super) fn set_header(&mut self, header: Arc<[u8]>) {
        self.savepoints.note_header(self.header.as_ref());
        self.header = Some(header);
    }

    pub(super) fn savepoint(&mut self) -> Savepoint {
        self.savepoints.add()
    }

    /// Undoes everything since `savepoint`, which can be gone back to again; younger ones cannot.
    pub(super) fn rollback_to(&mut self, savepoint: &Savepoint) -> Result<()> {
        for segment in self.savepoints.take_to(savepoint)? {
            if let Some(header) = segment.header {
                self.header = header;
            }
            for (page, private) in segment.pages {
                self.replace(page, private);
            }
        }
        Ok(())
    }

    pub(super) fn set_compression(&mut self, page: PageId, compression: Compression) {
        self.compression.insert(page, compression);
    }

    /// How the page is to be stored, if that was said.
    pub(super) fn compression(&self, page: PageId) -> Option<Compression> {
        self.compression.get(&page).copied()
    }

    /// Whether nothing is changed.
    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.header.is_none()
    }

    /// Pages, header, and the pages whose indices are given back.
    pub(super) fn into_parts(mut self) -> (Pages, Option<Arc<[u8]>>, Vec<PageId>) {
        for (page, compression) in self.compression {
            if let Some(private) = self.pages.get_mut(&page) {
                private.compression = Some(compression);
            }
        }
        (self.pages, self.header, self.returned.into_iter().collect())
    }

    fn replace(&mut self, page: PageId, private: Option<PrivatePage>) {
        let is_new = |private: &Option<PrivatePage>| matches!(private, Some(PrivatePage { origin: Origin::New, .. }));
        let will_be_new = is_new(&private);
        let frames_of = |private: Option<&PrivatePage>, tell: &mut dyn FnMut(&Frame)| {
            private.into_iter().flat_map(|private| private.content.frames()).for_each(|(_, frame)| tell(frame));
        };
        frames_of(self.pages.get(&page), &mut |frame| self.savepoints.left(frame));
        frames_of(private.as_ref(), &mut |frame| self.savepoints.entered(frame));
        self.pages_bytes += private.as_ref().map_or(0, PrivatePage::memory_bytes);
        let was = match private {
            Some(private) => self.pages.insert(page, private),
            None => self.pages.remove(&page),
        };
        self.pages_bytes -= was.as_ref().map_or(0, PrivatePage::memory_bytes);
        match (is_new(&was), will_be_new) {
            (true, false) => drop(self.returned.insert(page)),
            (false, true) => drop(self.returned.remove(&page)),
            _ => {}
        }
    }
}

impl PrivatePage {
    pub(super) fn new(origin: Origin, content: Content) -> Self {
        Self { origin, content, changed: 0, compression: None }
    }

    /// Bytes of memory that it takes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.content.units().map(Bytes::memory_bytes).sum()
    }

    /// Puts what a later transaction made of the page over this; `None` if the page was never there.
    fn overlaid(mut self, later: &Self) -> Option<Self> {
        self.compression = later.compression;
        self.content = match (self.content, &later.content) {
            (_, Content::Freed) if self.origin == Origin::New => return None,
            (Content::Chunks(mut chunks, others), Content::Chunks(changed, Others::Below)) => {
                chunks.extend(changed.iter().map(|(chunk, bytes)| (*chunk, bytes.clone())));
                Content::Chunks(chunks, others)
            }
            (_, Content::Chunks(changed, Others::Below)) => Content::Chunks(changed.clone(), Others::Zero),
            (_, later) => later.clone(),
        };
        Some(self)
    }
}

/// A member that is to be committed, with what it changed.
#[derive(Debug)]
pub(super) struct Candidate<'a> {
    pub(super) member: &'a Member,
    pub(super) pages: Arc<Pages>,
}

/// What members of a group changed together.
#[derive(Debug)]
pub(super) struct Together<'a> {
    pages: Cow<'a, Pages>,
    header: Option<&'a Arc<[u8]>>,
}

impl<'a> Together<'a> {
    /// Puts what the members changed over each other, oldest first.
    pub(super) fn new(members: &[&'a Candidate<'a>]) -> Self {
        let header = members.iter().rev().find_map(|candidate| candidate.member.header.as_ref());
        if let [candidate] = members {
            return Self { pages: Cow::Borrowed(&candidate.pages), header };
        }
        let mut pages = Pages::new();
        for (page, private) in members.iter().flat_map(|candidate| &*candidate.pages) {
            let together = match pages.remove(page) {
                None => Some(private.clone()),
                Some(before) => before.overlaid(private),
            };
            if let Some(together) = together {
                pages.insert(*page, together);
            }
        }
        Self { pages: Cow::Owned(pages), header }
    }

    /// Whether any of it lies in reserved space.
    pub(super) fn is_spilled(&self) -> bool {
        self.spills().next().is_some()
    }

    /// The commit has made the reserved space the pages'.
    pub(super) fn take_over(&self) {
        self.spills().for_each(|spill| spill.taken_over());
    }

    fn spills(&self) -> impl Iterator<Item = &Arc<Spill>> {
        self.pages().flat_map(|(_, content)| content.units()).filter_map(|bytes| match bytes {
            Bytes::Spilled(spill) => Some(spill),
            Bytes::Frame(_) | Bytes::Zeros(_) => None,
        })
    }

    /// What of it is in memory, to be published.
    pub(super) fn frames(&self) -> Frames {
        let mut frames = Frames::default();
        for (page, content) in self.pages() {
            for (chunk, frame) in content.frames() {
                match chunk {
                    None => frames.pages.push((page, frame.clone())),
                    Some(chunk) => frames.chunks.push(((page, chunk), frame.clone())),
                }
            }
        }
        frames
    }

    /// What became of each page.
    fn pages(&self) -> impl Iterator<Item = (PageId, &Content)> {
        self.pages.iter().map(|(page, private)| (*page, &private.content))
    }

    /// How the page is to be stored, if that was said.
    pub(super) fn compression(&self, page: PageId) -> Option<Compression> {
        self.pages.get(&page)?.compression
    }

    /// Everything, as the core wants it: the bytes stay where they are.
    pub(super) fn changes(&self) -> Changes<'_> {
        let mut changes = Changes::default();
        changes.pages = self.pages().map(|(page, content)| (page, content.change())).collect();
        changes.header = self.header.map(|header| header.to_vec());
        changes
    }
}

impl Content {
    /// The bytes of the page, or of its chunks.
    pub(super) fn units(&self) -> impl Iterator<Item = &Bytes> {
        let (whole, chunks) = match self {
            Self::Whole(bytes) => (Some(bytes), None),
            Self::Chunks(chunks, _) => (None, Some(chunks.values())),
            Self::Zero | Self::Freed | Self::Published => (None, None),
        };
        whole.into_iter().chain(chunks.into_iter().flatten())
    }

    /// Of these, those in memory, with the chunks' numbers.
    pub(super) fn frames(&self) -> impl Iterator<Item = (Option<u32>, &Frame)> {
        let (whole, chunks) = match self {
            Self::Whole(bytes) => (bytes.frame(), None),
            Self::Chunks(chunks, _) => (None, Some(chunks)),
            Self::Zero | Self::Freed | Self::Published => (None, None),
        };
        let chunks = chunks.into_iter().flatten();
        let of_chunks = chunks.filter_map(|(number, bytes)| Some((Some(*number), bytes.frame()?)));
        whole.into_iter().map(|frame| (None, frame)).chain(of_chunks)
    }

    /// The bytes of the page, or of a chunk of it, if it has such.
    pub(super) fn unit_mut(&mut self, chunk: Option<u32>) -> Option<&mut Bytes> {
        match (self, chunk) {
            (Self::Whole(bytes), None) => Some(bytes),
            (Self::Chunks(chunks, _), Some(chunk)) => chunks.get_mut(&chunk),
            _ => None,
        }
    }

    /// As the core wants it.
    fn change(&self) -> PageChange<'_> {
        match self {
            Self::Zero => PageChange::Zero,
            Self::Whole(bytes) => PageChange::Whole(bytes.content()),
            Self::Chunks(chunks, Others::Below) => PageChange::Chunks(borrowed(chunks)),
            Self::Chunks(chunks, Others::Zero) => PageChange::OnlyChunks(borrowed(chunks)),
            Self::Freed => PageChange::Free,
            // Not of a transaction that is still to be committed.
            Self::Published => PageChange::Chunks(BTreeMap::new()),
        }
    }
}

/// The chunks' bytes, where they are.
fn borrowed(chunks: &BTreeMap<u32, Bytes>) -> BTreeMap<u32, store::Content<'_>> {
    chunks.iter().map(|(number, bytes)| (*number, bytes.content())).collect()
}
