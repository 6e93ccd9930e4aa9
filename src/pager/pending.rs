//! What is sequenced and not yet published: the changes of committed transactions whose record is not written yet, as
//! transactions that build on them see them.
//!
//! - **N1** A member never changes once it is sequenced, but for being marked failed. Members of one group are a list,
//!   youngest first, and a transaction that begins takes the list's head: later members do not show in it.
//! - **N2** A member's changes may be published already while they are still seen here: they are the same either way, so
//!   it does not matter.
//! - **N3** A member that failed is seen by those who began before it failed, and by nobody else. They cannot commit.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::sync::atomic::{AtomicU64, Ordering};

use super::bytes::Bytes;
use super::group::Group;
use super::private::{Content, Others, PrivatePage};
use crate::id::{PageId, SizeClass};
use crate::store::{Pinned, Published};

/// The number of a sequenced transaction: strictly rising, in memory only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Sequence(pub(super) u64);

/// What a transaction changed, as it was sequenced.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) sequence: Sequence,
    /// The youngest transaction that was sequenced when this one began: what it may be built on.
    pub(super) began: Sequence,
    pub(super) pages: BTreeMap<PageId, PrivatePage>,
    pub(super) header: Option<Arc<[u8]>>,
    /// Indices that it took and gave back.
    pub(super) returned: Vec<PageId>,
    /// The member of the same group that was sequenced before it.
    before: Option<Arc<Member>>,
    /// Which pages this member and those before it may have.
    filter: Filter,
    /// From which sequence on it is not seen any more, since it failed.
    failed: AtomicU64,
    /// The state that its commit made, if it has spilled bytes: held, so that their places are not used again while
    /// somebody may read them here.
    pinned: OnceLock<Pinned>,
}

/// A set that knows for certain only what is not in it (a Bloom filter with one hash).
#[derive(Clone, Debug, Default)]
struct Filter([u64; 16]);

impl Filter {
    fn place(page: PageId) -> (usize, u64) {
        let mixed = page.to_u64().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
        (mixed as usize / 64, 1 << (mixed % 64))
    }

    fn add(&mut self, page: PageId) {
        let (word, bit) = Self::place(page);
        self.0[word] |= bit;
    }

    fn may_have(&self, page: PageId) -> bool {
        let (word, bit) = Self::place(page);
        self.0[word] & bit != 0
    }
}

impl Member {
    pub(super) fn new(
        (sequence, began): (Sequence, Sequence),
        pages: BTreeMap<PageId, PrivatePage>,
        header: Option<Arc<[u8]>>,
        returned: Vec<PageId>,
        before: Option<Arc<Self>>,
    ) -> Self {
        let mut filter = before.as_ref().map_or_else(Filter::default, |before| before.filter.clone());
        pages.keys().for_each(|page| filter.add(*page));
        let (failed, pinned) = (AtomicU64::new(u64::MAX), OnceLock::new());
        Self { sequence, began, pages, header, returned, before, filter, failed, pinned }
    }

    /// It is not seen by who begins from `sequence` on.
    pub(super) fn fail(&self, sequence: Sequence) {
        self.failed.store(sequence.0, Ordering::Release);
    }

    /// Its changes are published: the spilled ones belong to the state now. Called before anything else is committed.
    pub(super) fn published(&self, published: &Arc<Published>) {
        if self.pages.values().any(PrivatePage::is_spilled) {
            self.pinned.get_or_init(|| published.pin());
            for bytes in self.pages.values().flat_map(|private| private.content.units()) {
                if let Bytes::Spilled(spill) = bytes {
                    spill.taken_over();
                }
            }
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire) != u64::MAX
    }

    /// This member and those before it, youngest first.
    pub(super) fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |member| member.before.as_deref())
    }
}

impl Drop for Member {
    /// Drops the members before this one in a loop: the list may be too long for a recursion.
    fn drop(&mut self) {
        let mut before = self.before.take();
        while let Some(mut member) = before.and_then(Arc::into_inner) {
            before = member.before.take();
        }
    }
}

/// What was pending when a transaction began: the youngest member of each group, youngest group first.
#[derive(Debug, Default)]
pub(super) struct Pending {
    tops: Vec<Arc<Member>>,
    youngest_group: Option<Arc<Group>>,
    /// When it was taken.
    pub(super) began: Sequence,
}

/// What is pending of one chunk.
pub(super) enum PendingChunk {
    Bytes(Bytes),
    Zero,
    /// What is published is what counts.
    Published,
}

impl Pending {
    pub(super) fn new(tops: Vec<Arc<Member>>, youngest_group: Option<Arc<Group>>, began: Sequence) -> Self {
        Self { tops, youngest_group, began }
    }

    /// The youngest member that is seen, with its group.
    pub(super) fn youngest(&self) -> Option<(Arc<Group>, Arc<Member>)> {
        Some((Arc::clone(self.youngest_group.as_ref()?), Arc::clone(self.tops.first()?)))
    }

    /// The members seen, youngest first.
    fn members(&self) -> impl Iterator<Item = &Member> {
        let seen = |member: &&Member| member.failed.load(Ordering::Acquire) > self.began.0;
        self.tops.iter().flat_map(|top| top.chain()).filter(seen)
    }

    /// What the members made of the page, youngest first.
    fn contents(&self, page: PageId) -> impl Iterator<Item = &Content> {
        let tops = self.tops.iter().filter(move |top| top.filter.may_have(page));
        let seen = |member: &&Member| member.failed.load(Ordering::Acquire) > self.began.0;
        tops.flat_map(|top| top.chain()).filter(seen).filter_map(move |member| Some(&member.pages.get(&page)?.content))
    }

    /// What the youngest member made of the page.
    pub(super) fn content(&self, page: PageId) -> Option<&Content> {
        if self.tops.is_empty() {
            return None;
        }
        self.contents(page).next()
    }

    /// A chunk of a large page.
    pub(super) fn chunk(&self, page: PageId, chunk: u32) -> PendingChunk {
        for content in self.contents(page) {
            match content {
                Content::Chunks(chunks, others) => match (chunks.get(&chunk), others) {
                    (Some(bytes), _) => return PendingChunk::Bytes(bytes.clone()),
                    (None, Others::Zero) => return PendingChunk::Zero,
                    (None, Others::Below) => {}
                },
                _ => return PendingChunk::Zero,
            }
        }
        PendingChunk::Published
    }

    pub(super) fn header(&self) -> Option<&Arc<[u8]>> {
        self.members().find_map(|member| member.header.as_ref())
    }

    /// The pages of a class that are pending, and whether they are allocated; a page may come more than once, as the
    /// youngest member has it first.
    pub(super) fn pages(&self, class: SizeClass) -> impl Iterator<Item = (PageId, bool)> {
        self.members().flat_map(move |member| of_class(&member.pages, class)).map(|(page, private)| {
            let allocated = !matches!(private.content, Content::Freed);
            (page, allocated)
        })
    }
}

/// The entries of one class.
pub(super) fn of_class(
    pages: &BTreeMap<PageId, PrivatePage>,
    class: SizeClass,
) -> impl Iterator<Item = (PageId, &PrivatePage)> {
    let first = PageId::new(class, 0);
    let from_first = first.into_iter().flat_map(|first| pages.range(first..));
    from_first.take_while(move |(page, _)| page.class() == class).map(|(page, private)| (*page, private))
}
