//! Reading ahead for who goes through pages in order, and what users say of how they will read: for views, scopes,
//! transactions and readers of other processes alike.
//!
//! Order shows in misses: pages that are in memory cost one look at a number that changes rarely, and write nothing. When
//! several misses in a row go up, the next pages are loaded ahead; when the one in the middle of those is read, the next
//! ones. Which pages are next, the page map says: ids may have gaps. A scope begins loads when it is not running: before
//! what it missed is loaded, and when it is over. Chunks of large pages have rules of their own (`chunks.rs`).
//!
//! - **R1** It is a guess: what threads that share a view do to each other's guesses costs a page read in vain, or not
//!   read ahead. No error comes of it.

mod chunks;
mod scope;

use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::buffer::{FrameGuard, ReadState, StorePages};
use crate::error::Result;
use crate::format::BlockPointer;
use crate::id::PageId;
use crate::map::Nodes;
use crate::store::State;
use chunks::ChunkRun;
pub(crate) use scope::Due;

/// Loaded ahead at once: so many bytes,
const WINDOW_BYTES: u64 = 1 << 20;
/// no more than this part of the budget,
const BUDGET_PART: u64 = 16;
/// and no more pages than these.
const WINDOW_PAGES: u64 = 64;
/// Misses that go up before it is believed.
const RUN: u32 = 3;
/// How far apart pages in order may be.
const GAP: u64 = 16;
/// No page.
const NONE: u64 = u64::MAX;

/// How pages are going to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Access {
    /// It is not known: pages are loaded ahead if they turn out to be read in order.
    #[default]
    Normal = 0,
    /// In no order: nothing is loaded ahead.
    Random = 1,
    /// From lower to higher ids: the next ones are loaded ahead from the first miss on.
    Sequential = 2,
    /// As `Sequential`, and no page again when the next one has come: that it is read several times in between does not
    /// make it worth keeping, so that a scan leaves in memory what others read.
    Once = 3,
}

/// A state that is read, as reading ahead needs it.
pub(crate) trait Source: ReadState {
    /// The state.
    fn state(&self) -> &State;

    /// What reads its trees.
    fn nodes(&self) -> &Nodes;

    /// Its pages in memory.
    fn pages(&self) -> &StorePages;

    /// Begins to load pages.
    fn begin(&self, pages: &[PageId]) -> Result<()>;

    /// Begins to load chunks of a page.
    fn begin_chunks(&self, page: PageId, chunks: &[BlockPointer]);
}

/// What a view or a transaction knows of how it is read.
#[derive(Debug)]
pub(crate) struct Ahead {
    access: AtomicU8,
    /// The page at which the next ones are loaded.
    due: AtomicU64,
    /// The index after the last one that was loaded ahead.
    end: AtomicU64,
    /// The last page that was not in memory, and how many before it went up to it.
    missed: AtomicU64,
    run: AtomicU32,
    chunks: Mutex<ChunkRun>,
}

impl Ahead {
    pub(crate) fn new(access: Access) -> Self {
        Self {
            access: AtomicU8::new(access as u8),
            due: AtomicU64::new(NONE),
            end: AtomicU64::new(0),
            missed: AtomicU64::new(NONE),
            run: AtomicU32::new(0),
            chunks: Mutex::default(),
        }
    }

    pub(crate) fn advise(&self, access: Access) {
        self.access.store(access as u8, Ordering::Relaxed);
        self.due.store(NONE, Ordering::Relaxed);
    }

    pub(crate) fn access(&self) -> Access {
        match self.access.load(Ordering::Relaxed) {
            1 => Access::Random,
            2 => Access::Sequential,
            3 => Access::Once,
            _ => Access::Normal,
        }
    }

    /// The page, and perhaps those that come next.
    #[inline]
    pub(crate) fn page(&self, at: &impl Source, page: PageId) -> Result<FrameGuard> {
        let pages = at.pages();
        if self.due.load(Ordering::Relaxed) == page.to_u64() {
            self.load_due(at);
        }
        let found = if self.is_once() { pages.page_unnoticed(at, page) } else { pages.page_in_memory(at, page) };
        match found {
            Some(guard) => Ok(guard),
            None => self.page_slowly(at, page),
        }
    }

    #[cold]
    fn page_slowly(&self, at: &impl Source, page: PageId) -> Result<FrameGuard> {
        self.missed(at, page);
        at.pages().page(at, page)
    }

    /// The page, which is about to be read, is not in memory. Perhaps the next ones are wanted too.
    pub(crate) fn missed(&self, at: &impl Source, page: PageId) {
        if self.due.load(Ordering::Relaxed) == page.to_u64() {
            self.load_due(at);
        } else if !self.is_on_its_way(page) && self.is_in_order(page) {
            self.load(at, page, page.index() + 1);
        }
    }

    /// The page at which the next ones are loaded was read.
    #[cold]
    fn load_due(&self, at: &impl Source) {
        if let Some(page) = PageId::from_u64(self.due.load(Ordering::Relaxed)) {
            self.load(at, page, self.end.load(Ordering::Relaxed).max(page.index() + 1));
        }
    }

    #[inline]
    fn is_once(&self) -> bool {
        self.access.load(Ordering::Relaxed) == Access::Once as u8
    }

    /// Whether the page is among those that were loaded ahead last, or between them.
    fn is_on_its_way(&self, page: PageId) -> bool {
        let before_end = self.end.load(Ordering::Relaxed).wrapping_sub(page.index());
        let is_due = PageId::from_u64(self.due.load(Ordering::Relaxed)).is_some_and(|due| due.class() == page.class());
        is_due && (1..=WINDOW_PAGES * GAP).contains(&before_end)
    }

    /// The page was not in memory. Whether the next ones are wanted.
    fn is_in_order(&self, page: PageId) -> bool {
        let access = self.access();
        if access == Access::Random {
            return false;
        }
        let last = self.missed.swap(page.to_u64(), Ordering::Relaxed);
        let is_next = PageId::from_u64(last)
            .is_some_and(|last| last.class() == page.class() && page.index().wrapping_sub(last.index()) <= GAP);
        let run = if is_next { self.run.load(Ordering::Relaxed).saturating_add(1) } else { 1 };
        self.run.store(run, Ordering::Relaxed);
        matches!(access, Access::Sequential | Access::Once) || run >= RUN
    }

    /// Loads pages from index `from` on, while `page` is read.
    fn load(&self, at: &impl Source, page: PageId, from: u64) {
        self.due.store(NONE, Ordering::Relaxed);
        let class = page.class();
        let bytes = WINDOW_BYTES.min(at.pages().budget_bytes() / BUDGET_PART);
        let count = (bytes / class.page_bytes()).min(WINDOW_PAGES) as usize;
        if count < 2 {
            return;
        }
        let mut next = Vec::with_capacity(count);
        let walked = at.state().maps.get()[class.index()].visit(at.nodes(), from, |index, _| {
            next.extend(PageId::new(class, index));
            if next.len() < count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        // Whoever reads the pages meets the same errors, and is told.
        if walked.is_err() || at.begin(&next).is_err() {
            return;
        }
        if let (Some(middle), Some(last)) = (next.get(next.len() / 2), next.last()) {
            self.end.store(last.index() + 1, Ordering::Relaxed);
            self.due.store(middle.to_u64(), Ordering::Relaxed);
        }
    }
}
