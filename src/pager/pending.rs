//! What is sequenced and not yet published: the changes of committed transactions whose record is not written yet, as
//! transactions that build on them see them.
//!
//! - **N1** What a member shows does not change once it is sequenced, but for its being marked failed. Members of one
//!   group are a list, youngest first, and a transaction that begins takes the list's head: later members do not show in
//!   it.
//! - **N2** A member's changes may be published already while they are still seen here: they are the same either way, so
//!   it does not matter.
//! - **N3** A member that failed is seen by those who began before it failed, and by nobody else. They cannot commit.
//! - **N4** Once it is published, a member that is still seen holds no frames, but for pages that a later member of its
//!   group changed again: the others are read in the state that its commit made, which it holds instead.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::bytes::Bytes;
use super::group::Group;
use super::private::{Content, Others, Pages};
use crate::id::{PageId, SizeClass};
use crate::store::Pinned;

/// The number of a sequenced transaction: strictly rising, in memory only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Sequence(pub(super) u64);

/// What a transaction changed, as it was sequenced.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) sequence: Sequence,
    /// The youngest transaction that was sequenced when this one began: what it may be built on.
    pub(super) began: Sequence,
    pages: RwLock<Shown>,
    pub(super) header: Option<Arc<[u8]>>,
    /// Indices that it took and gave back.
    pub(super) returned: Vec<PageId>,
    /// The member of the same group that was sequenced before it.
    before: Option<Arc<Member>>,
    /// Which pages this member and those before it may have.
    filter: Filter,
    /// From which sequence on it is not seen any more, since it failed.
    failed: AtomicU64,
}

/// The pages of a member.
#[derive(Clone, Debug)]
struct Shown {
    pages: Arc<Pages>,
    /// The state in which those with the content `Published` are to be read.
    state: Option<Arc<Pinned>>,
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
        pages: Pages,
        header: Option<Arc<[u8]>>,
        returned: Vec<PageId>,
        before: Option<Arc<Self>>,
    ) -> Self {
        let mut filter = before.as_ref().map_or_else(Filter::default, |before| before.filter.clone());
        pages.keys().for_each(|page| filter.add(*page));
        let pages = RwLock::new(Shown { pages: Arc::new(pages), state: None });
        Self { sequence, began, pages, header, returned, before, filter, failed: AtomicU64::new(u64::MAX) }
    }

    /// It is not seen by who begins from `sequence` on.
    pub(super) fn fail(&self, sequence: Sequence) {
        self.failed.store(sequence.0, Ordering::Release);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire) != u64::MAX
    }

    /// What it changed.
    pub(super) fn pages(&self) -> Arc<Pages> {
        self.shown().pages
    }

    /// This member and those before it, youngest first.
    pub(super) fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |member| member.before.as_deref())
    }

    /// A panic while the lock is held leaves what is inside whole.
    fn shown(&self) -> Shown {
        self.pages.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its changes are published in `state`, with later ones of pages of which `changed_later` is true (N4).
    fn release(&self, state: &Arc<Pinned>, changed_later: impl Fn(PageId) -> bool) {
        let mut pages = Pages::clone(&self.pages());
        for (page, private) in &mut pages {
            if !changed_later(*page) && !matches!(private.content, Content::Freed) {
                private.content = Content::Published;
            }
        }
        let shown = Shown { pages: Arc::new(pages), state: Some(Arc::clone(state)) };
        *self.pages.write().unwrap_or_else(PoisonError::into_inner) = shown;
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

/// The group whose youngest member is `top` is published in `state`, and removed from the head: members that
/// transactions still see give up their frames (N4).
pub(super) fn release_published(top: &Arc<Member>, pin: impl FnOnce() -> Arc<Pinned>) {
    // Each is referred to by the next one, the top by the caller; who sees one refers to it too.
    let mut member = Some(top);
    while let Some(seen) = member.filter(|member| Arc::strong_count(member) == 1) {
        member = seen.before.as_ref();
    }
    if member.is_none() {
        return;
    }
    let state = pin();
    let mut changed_later: BTreeMap<PageId, ()> = BTreeMap::new();
    for member in top.chain() {
        let pages = member.pages();
        if !member.has_failed() {
            member.release(&state, |page| changed_later.contains_key(&page));
            changed_later.extend(pages.keys().map(|page| (*page, ())));
        }
    }
}

/// The member was committed alone, in `state`.
pub(super) fn release_alone(member: &Member, state: &Arc<Pinned>) {
    member.release(state, |_| false);
}

/// What was pending when a transaction began: the youngest member of each group, youngest group first.
#[derive(Debug, Default)]
pub(super) struct Pending {
    tops: Vec<Arc<Member>>,
    youngest_group: Option<Arc<Group>>,
    /// When it was taken.
    pub(super) began: Sequence,
}

/// What is pending of a page.
pub(super) enum PendingPage {
    /// This was made of it.
    Changed(Content),
    /// It is to be read in this state, which is newer than the one that the transaction began with.
    In(Arc<Pinned>),
}

/// What is pending of one chunk.
pub(super) enum PendingChunk {
    Bytes(Bytes),
    Zero,
    /// It is to be read in this state, or in what the transaction began with.
    In(Option<Arc<Pinned>>),
}

impl Pending {
    pub(super) fn new(tops: Vec<Arc<Member>>, youngest_group: Option<Arc<Group>>, began: Sequence) -> Self {
        Self { tops, youngest_group, began }
    }

    /// The group of the youngest member.
    pub(super) fn youngest_group(&self) -> Option<&Arc<Group>> {
        self.youngest_group.as_ref()
    }

    /// Whether any member that is seen has failed since.
    pub(super) fn has_failed(&self) -> bool {
        self.members().any(Member::has_failed)
    }

    /// The members seen, youngest first.
    fn members(&self) -> impl Iterator<Item = &Member> {
        self.seen(|_| true)
    }

    fn seen(&self, may_have: impl Fn(&Filter) -> bool) -> impl Iterator<Item = &Member> {
        let tops = self.tops.iter().filter(move |top| may_have(&top.filter));
        tops.flat_map(|top| top.chain()).filter(|member| member.failed.load(Ordering::Acquire) > self.began.0)
    }

    /// What the members that have the page show, youngest first.
    fn shown(&self, page: PageId) -> impl Iterator<Item = Shown> {
        let members = self.seen(move |filter| filter.may_have(page));
        members.map(Member::shown).filter(move |shown| shown.pages.contains_key(&page))
    }

    /// What the youngest member made of the page.
    pub(super) fn page(&self, page: PageId) -> Option<PendingPage> {
        if self.tops.is_empty() {
            return None;
        }
        let shown = self.shown(page).next()?;
        Some(match (&shown.pages.get(&page)?.content, shown.state) {
            (Content::Published, Some(state)) => PendingPage::In(state),
            (content, _) => PendingPage::Changed(content.clone()),
        })
    }

    /// Whether the page is allocated, if a member has it.
    pub(super) fn has(&self, page: PageId) -> Option<bool> {
        self.page(page).map(|page| !matches!(page, PendingPage::Changed(Content::Freed)))
    }

    /// A chunk of a large page.
    pub(super) fn chunk(&self, page: PageId, chunk: u32) -> PendingChunk {
        for shown in self.shown(page) {
            match shown.pages.get(&page).map(|private| &private.content) {
                Some(Content::Chunks(chunks, others)) => match (chunks.get(&chunk), others) {
                    (Some(bytes), _) => return PendingChunk::Bytes(bytes.clone()),
                    (None, Others::Zero) => return PendingChunk::Zero,
                    (None, Others::Below) => {}
                },
                Some(Content::Published) => return PendingChunk::In(shown.state),
                _ => return PendingChunk::Zero,
            }
        }
        PendingChunk::In(None)
    }

    pub(super) fn header(&self) -> Option<&Arc<[u8]>> {
        self.members().find_map(|member| member.header.as_ref())
    }

    /// The pages of a class that are pending, and whether they are allocated; a page may come more than once, as the
    /// youngest member has it first.
    pub(super) fn pages(&self, class: SizeClass) -> Vec<(PageId, bool)> {
        let mut found = Vec::new();
        for member in self.members() {
            let pages = member.pages();
            let in_class = of_class(&pages, class);
            found.extend(in_class.map(|(page, private)| (page, !matches!(private.content, Content::Freed))));
        }
        found
    }
}

/// The entries of one class.
pub(super) fn of_class(
    pages: &Pages,
    class: SizeClass,
) -> impl Iterator<Item = (PageId, &super::private::PrivatePage)> {
    let first = PageId::new(class, 0);
    let from_first = first.into_iter().flat_map(|first| pages.range(first..));
    from_first.take_while(move |(page, _)| page.class() == class).map(|(page, private)| (*page, private))
}
