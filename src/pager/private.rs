//! What a transaction has changed so far, and how savepoints undo it. Memory only.
//!
//! - **W1** A page has an entry if and only if the transaction allocated, wrote or freed it.
//! - **W2** `returned` holds exactly the indices that the transaction took and gave back; they are taken again first,
//!   lowest first.
//! - **W3** Undoing the newest savepoint's segment gives the state that the savepoint was made in. A page is noted in a
//!   segment once, with what it was before its first change after the savepoint. Buffers are shared, not copied: who
//!   changes one that somebody shares makes a copy first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use crate::error::{Error, Result};
use crate::format::Compression;
use crate::id::{PageId, SizeClass};
use crate::store::{Changes, PageChange};

/// Where a transaction has a page from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The transaction allocated it.
    New,
    /// The state that the transaction began with has it.
    Committed,
}

/// What a transaction has made of a page.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Every byte is zero.
    Zero,
    /// These are its bytes: for classes up to 1 MiB.
    Whole(Arc<[u8]>),
    /// These chunks of it have these bytes: for classes above 1 MiB.
    Chunks(BTreeMap<u32, Arc<[u8]>>, Others),
    /// It is freed.
    Freed,
}

impl Content {
    /// As the core wants it.
    fn change(&self) -> PageChange<'_> {
        match self {
            Self::Zero => PageChange::Zero,
            Self::Whole(bytes) => PageChange::Whole(bytes[..].into()),
            Self::Chunks(chunks, Others::Committed) => PageChange::Chunks(borrowed(chunks)),
            Self::Chunks(chunks, Others::Zero) => PageChange::OnlyChunks(borrowed(chunks)),
            Self::Freed => PageChange::Free,
        }
    }
}

/// The chunks' bytes, where they are.
fn borrowed(chunks: &BTreeMap<u32, Arc<[u8]>>) -> BTreeMap<u32, crate::store::Content<'_>> {
    chunks.iter().map(|(number, bytes)| (*number, bytes[..].into())).collect()
}

/// What the chunks are that a page's content does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    /// What they were when the transaction began.
    Committed,
    /// Zero.
    Zero,
}

/// A page as the transaction sees it.
#[derive(Clone, Debug)]
pub(super) struct PrivatePage {
    pub(super) origin: Origin,
    pub(super) content: Content,
}

/// A point in a transaction that it can go back to. Dropping it gives up that possibility, and the memory it takes.
#[derive(Debug)]
pub struct Savepoint {
    alive: Arc<Alive>,
}

/// Lives as long as its savepoint.
#[derive(Debug)]
struct Alive;

/// What undoes everything since a savepoint.
#[derive(Debug)]
struct Segment {
    savepoint: Weak<Alive>,
    pages: HashMap<PageId, Option<PrivatePage>>,
    header: Option<Option<Arc<[u8]>>>,
}

/// What a transaction has changed so far.
#[derive(Debug, Default)]
pub(super) struct Private {
    pages: BTreeMap<PageId, PrivatePage>,
    header: Option<Arc<[u8]>>,
    returned: [BTreeSet<u64>; SizeClass::COUNT],
    segments: Vec<Segment>,
    /// What was said of how pages are to be stored; savepoints do not undo it.
    compression: HashMap<PageId, Compression>,
}

impl Private {
    pub(super) fn get(&self, page: PageId) -> Option<&PrivatePage> {
        self.pages.get(&page)
    }

    /// The first page of `class` from `index` on that the transaction allocated.
    pub(super) fn next_new(&self, class: SizeClass, index: u64) -> Option<u64> {
        let first = PageId::new(class, index)?;
        let in_class = self.pages.range(first..).take_while(|(page, _)| page.class() == class);
        in_class.filter(|(_, private)| private.origin == Origin::New).map(|(page, _)| page.index()).next()
    }

    pub(super) fn header(&self) -> Option<&Arc<[u8]>> {
        self.header.as_ref()
    }

    /// The lowest index that was taken and given back.
    pub(super) fn lowest_returned(&self, class: SizeClass) -> Option<u64> {
        self.returned[class.index()].first().copied()
    }

    /// The lowest index that will be free again when this is committed.
    pub(super) fn lowest_freed(&self, class: SizeClass) -> Option<u64> {
        let first = PageId::new(class, 0)?;
        let in_class = self.pages.range(first..).take_while(|(page, _)| page.class() == class);
        in_class.filter(|(_, private)| matches!(private.content, Content::Freed)).map(|(page, _)| page.index()).next()
    }

    /// Sets what a page is, or with `None` makes it what it was when the transaction began.
    pub(super) fn set(&mut self, page: PageId, private: Option<PrivatePage>) {
        self.note(page);
        self.replace(page, private);
    }

    /// Takes a page's buffer out, so that it can be changed without a copy. Whoever takes it sets the page again.
    pub(super) fn take_whole(&mut self, page: PageId) -> Option<Arc<[u8]>> {
        self.note(page);
        let content = &mut self.pages.get_mut(&page)?.content;
        match std::mem::replace(content, Content::Zero) {
            Content::Whole(bytes) => Some(bytes),
            other => {
                *content = other;
                None
            }
        }
    }

    pub(super) fn set_header(&mut self, header: Arc<[u8]>) {
        self.prune();
        if let Some(segment) = self.segments.last_mut() {
            segment.header.get_or_insert_with(|| self.header.clone());
        }
        self.header = Some(header);
    }

    pub(super) fn savepoint(&mut self) -> Savepoint {
        self.prune();
        let alive = Arc::new(Alive);
        let savepoint = Arc::downgrade(&alive);
        self.segments.push(Segment { savepoint, pages: HashMap::new(), header: None });
        Savepoint { alive }
    }

    /// Undoes everything since `savepoint`, which can be gone back to again; younger ones cannot.
    pub(super) fn rollback_to(&mut self, savepoint: &Savepoint) -> Result<()> {
        let is_it = |segment: &Segment| std::ptr::eq(segment.savepoint.as_ptr(), Arc::as_ptr(&savepoint.alive));
        let depth = self.segments.iter().position(is_it).ok_or(Error::SavepointNotFound)?;
        while self.segments.len() > depth {
            let Some(segment) = self.segments.pop() else { break };
            if let Some(header) = segment.header {
                self.header = header;
            }
            for (page, private) in segment.pages {
                self.replace(page, private);
            }
        }
        let savepoint = Arc::downgrade(&savepoint.alive);
        self.segments.push(Segment { savepoint, pages: HashMap::new(), header: None });
        Ok(())
    }

    pub(super) fn set_compression(&mut self, page: PageId, compression: Compression) {
        self.compression.insert(page, compression);
    }

    /// How the page is to be stored, if that was said.
    pub(super) fn compression(&self, page: PageId) -> Option<Compression> {
        self.compression.get(&page).copied()
    }

    /// Everything, as the core wants it: the bytes stay where they are.
    pub(super) fn changes(&self) -> Changes<'_> {
        let mut changes = Changes::default();
        changes.pages = self.pages.iter().map(|(page, private)| (*page, private.content.change())).collect();
        changes.header = self.header.as_ref().map(|header| header.to_vec());
        changes
    }

    /// What the transaction has made of each page.
    pub(super) fn pages(&self) -> impl Iterator<Item = (PageId, &Content)> {
        self.pages.iter().map(|(page, private)| (*page, &private.content))
    }

    /// Notes what a page is, if a savepoint wants to know.
    fn note(&mut self, page: PageId) {
        self.prune();
        if let Some(segment) = self.segments.last_mut() {
            segment.pages.entry(page).or_insert_with(|| self.pages.get(&page).cloned());
        }
    }

    fn replace(&mut self, page: PageId, private: Option<PrivatePage>) {
        let is_new = |private: &Option<PrivatePage>| matches!(private, Some(PrivatePage { origin: Origin::New, .. }));
        let will_be_new = is_new(&private);
        let was = match private {
            Some(private) => self.pages.insert(page, private),
            None => self.pages.remove(&page),
        };
        let returned = &mut self.returned[page.class().index()];
        match (is_new(&was), will_be_new) {
            (true, false) => drop(returned.insert(page.index())),
            (false, true) => drop(returned.remove(&page.index())),
            _ => {}
        }
    }

    /// Merges the newest segments whose savepoints are gone into the one below: that one then undoes both.
    fn prune(&mut self) {
        while self.segments.last().is_some_and(|segment| segment.savepoint.strong_count() == 0) {
            let (Some(gone), Some(below)) = (self.segments.pop(), self.segments.last_mut()) else { return };
            for (page, private) in gone.pages {
                below.pages.entry(page).or_insert(private);
            }
            below.header = below.header.take().or(gone.header);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(index: u64) -> PageId {
        PageId::new(SizeClass::MIN, index).unwrap()
    }

    fn new_page(byte: u8) -> Option<PrivatePage> {
        Some(PrivatePage { origin: Origin::New, content: Content::Whole(vec![byte; 4096].into()) })
    }

    fn first_byte(private: &Private, index: u64) -> Option<u8> {
        match &private.get(page(index))?.content {
            Content::Whole(bytes) => Some(bytes[0]),
            _ => None,
        }
    }

    #[test]
    fn going_back_restores_contents_allocations_and_header() {
        let mut private = Private::default();
        private.set(page(0), new_page(1));
        private.set_header(Arc::from(*b"one"));
        let first = private.savepoint();
        private.set(page(0), new_page(2));
        private.set(page(1), new_page(2));
        let second = private.savepoint();
        private.set(page(0), None);
        private.set_header(Arc::from(*b"two"));
        assert_eq!(private.lowest_returned(SizeClass::MIN), Some(0));

        private.rollback_to(&second).unwrap();
        assert_eq!((first_byte(&private, 0), first_byte(&private, 1)), (Some(2), Some(2)));
        assert_eq!(private.lowest_returned(SizeClass::MIN), None);
        private.rollback_to(&first).unwrap();
        assert_eq!((first_byte(&private, 0), first_byte(&private, 1)), (Some(1), None));
        assert_eq!(private.lowest_returned(SizeClass::MIN), Some(1));
        assert_eq!(private.header().map(|header| &header[..]), Some(&b"one"[..]));
        assert!(matches!(private.rollback_to(&second), Err(Error::SavepointNotFound)));
        private.rollback_to(&first).unwrap();
    }

    #[test]
    fn a_savepoint_given_up_leaves_older_ones_right_and_no_old_buffers() {
        let mut private = Private::default();
        private.set(page(0), new_page(0));
        let outer = private.savepoint();
        for byte in 1..100 {
            let inner = private.savepoint();
            private.set(page(0), new_page(byte));
            drop(inner);
        }
        assert!(private.segments.len() <= 2, "one for `outer`, one that is about to be merged into it");
        private.rollback_to(&outer).unwrap();
        assert_eq!(first_byte(&private, 0), Some(0));
        drop(outer);
        private.set(page(0), new_page(7));
        assert!(private.segments.is_empty());
    }

    #[test]
    fn a_savepoint_of_another_transaction_is_refused() {
        let savepoint = Private::default().savepoint();
        assert!(matches!(Private::default().rollback_to(&savepoint), Err(Error::SavepointNotFound)));
    }
}
