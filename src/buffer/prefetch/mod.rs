//! Reading ahead: loads that somebody asked for and does not wait for.
//!
//! The caller begins the loads and obtains their frames, so that what is on its way is bounded by memory that is there;
//! a crew only reads. Who reads a page meanwhile waits for its load, as for any other.
//!
//! | who reads | what | |
//! | --- | --- | --- |
//! | threads (`threads.rs`) | everything | as many as requests can be under way at once, made when first needed |
//! | a ring (`ring.rs`) | what lies as it is in a file of the system's | feature `prefetch-ring`, Linux; one thread |
//!
//! Where the system gives no ring, threads read everything.
//!
//! - **A1** A job ends its load once: entered, or cancelled, by being dropped at the latest. So nobody waits for ever.
//! - **A2** A failure is nobody's: the load is cancelled, who wants the page reads it again, and is told.
//! - **A3** A panic of the store is a failure, too: it ends neither the thread, which reads for others after it, nor
//!   reads that the system has under way.

mod job;
#[cfg(all(target_os = "linux", feature = "prefetch-ring"))]
mod ring;
mod threads;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::load::{Begun, Filling, UnitLoad};
use super::pages::StorePages;
use super::source::ReadState;
use super::stats::PrefetchBy;
use super::units::UnitKey;
use crate::error::{Error, Result};
use crate::format::BlockPointer;
use crate::id::{PageId, SizeClass};
use job::{Goal, Job, OnTheWay};
use threads::Threads;

/// Frames on their way take at most this part of the budget.
const BUDGET_PART: usize = 4;

/// Who reads ahead does not wait for memory; least of all for what is on its way for himself.
const NO_PATIENCE: Option<Duration> = Some(Duration::ZERO);

/// Those who read ahead for one manager.
#[derive(Default)]
pub(super) struct Crew {
    threads: Threads,
    #[cfg(all(target_os = "linux", feature = "prefetch-ring"))]
    ring: ring::Ring,
    /// Bytes of frames on their way.
    bytes: Arc<AtomicUsize>,
}

impl Crew {
    /// Room for a frame among those on their way, if there is any.
    fn admit(&self, bytes: usize, limit: usize) -> Option<OnTheWay> {
        let is_room = self.bytes.load(Ordering::Relaxed) + bytes <= limit / BUDGET_PART;
        is_room.then(|| OnTheWay::new(&self.bytes, bytes))
    }

    #[cfg(all(target_os = "linux", feature = "prefetch-ring"))]
    fn add(&self, jobs: Vec<Job>) {
        self.threads.add(self.ring.add(jobs));
    }

    #[cfg(not(all(target_os = "linux", feature = "prefetch-ring")))]
    fn add(&self, jobs: Vec<Job>) {
        self.threads.add(jobs);
    }

    /// Who reads, as far as is known, and how much of it a ring has read.
    #[cfg(all(target_os = "linux", feature = "prefetch-ring"))]
    pub(super) fn by(&self) -> (PrefetchBy, u64) {
        self.ring.stats()
    }

    /// Who reads, as far as is known, and how much of it a ring has read.
    #[cfg(not(all(target_os = "linux", feature = "prefetch-ring")))]
    pub(super) fn by(&self) -> (PrefetchBy, u64) {
        (PrefetchBy::Threads, 0)
    }
}

impl StorePages {
    /// Begins to load those of the pages that are not in memory, many at a time, and returns. A hint: pages that cannot
    /// be loaded, or for which there is no memory to spare, are left to whoever reads them.
    ///
    /// # Errors
    /// Those of looking up pointers, but `PageNotFound`.
    pub fn prefetch(&self, at: &impl ReadState, pages: &[PageId]) -> Result<()> {
        let mut jobs = Vec::new();
        for page in pages {
            let bytes = page.class().page_bytes() as usize;
            let Some(on_the_way) = self.inner.crew.admit(bytes, self.inner.limit()) else { break };
            jobs.extend(self.begin_page(at, *page, on_the_way)?);
        }
        // Not before all have their frames: what was read already, and not wanted yet, would be the first to go for them.
        self.inner.crew.add(jobs);
        Ok(())
    }

    /// As [`StorePages::prefetch`], for chunks of a page above 1 MiB.
    pub fn prefetch_chunks(&self, page: PageId, chunks: &[BlockPointer]) {
        let mut jobs = Vec::new();
        for pointer in chunks {
            let bytes = SizeClass::CHUNK.page_bytes() as usize;
            let Some(on_the_way) = self.inner.crew.admit(bytes, self.inner.limit()) else { break };
            jobs.extend(self.begin_chunk(page, *pointer, on_the_way));
        }
        self.inner.crew.add(jobs);
    }

    /// Begins the load of a page that is not in memory.
    fn begin_page(&self, at: &impl ReadState, page: PageId, on_the_way: OnTheWay) -> Result<Option<Job>> {
        let is_evicted = self.store.table.find(page).is_none_or(|descriptor| descriptor.word().is_evicted());
        if !is_evicted {
            return Ok(None);
        }
        let pointer = match at.pointer(page) {
            Err(Error::PageNotFound { .. }) => return Ok(None),
            pointer => pointer?,
        };
        let descriptor = self.store.table.find_or_reserve(page)?;
        let Ok(Begun::Load(load)) = self.begin_load(descriptor, page, NO_PATIENCE) else { return Ok(None) };
        // Dropped from here on, the load is cancelled.
        if self.store.source.newest_pointer(page)? != pointer {
            return Ok(None);
        }
        let Ok(filling) = Filling::obtain(self, page.class(), NO_PATIENCE) else { return Ok(None) };
        self.inner.counters.misses.fetch_add(1, Ordering::Relaxed);
        let goal = Goal::Page { ticket: load.hand_over() };
        Ok(Some(Job::new(self, page, pointer, goal, filling.hand_over(), on_the_way)))
    }

    /// Begins the load of a chunk that is not in memory.
    fn begin_chunk(&self, page: PageId, pointer: BlockPointer, on_the_way: OnTheWay) -> Option<Job> {
        let key = UnitKey { pointer, class: SizeClass::CHUNK };
        let load = UnitLoad::begin(self, key)?;
        let filling = Filling::obtain(self, SizeClass::CHUNK, NO_PATIENCE).ok()?;
        self.inner.counters.misses.fetch_add(1, Ordering::Relaxed);
        let goal = Goal::Chunk { key, wait: load.hand_over() };
        Some(Job::new(self, page, pointer, goal, filling.hand_over(), on_the_way))
    }
}
