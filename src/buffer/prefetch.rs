//! Reading ahead: loads that somebody asked for and does not wait for.
//!
//! The caller begins the loads and obtains their frames, so that what is on its way is bounded by memory that is there;
//! a crew of threads only reads. It has as many threads as requests can be under way at once, made when first needed and
//! ended with the manager. Who reads a page meanwhile waits for its load, as for any other.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::addresses;
use super::lock;
use super::pages::{Begun, Filling, Load, StorePages};
use super::policy::Arrival;
use super::source::ReadState;
use crate::error::Result;
use crate::format::BlockPointer;
use crate::id::PageId;

/// Requests under way at once.
const DEPTH: usize = 32;
/// Frames on their way take at most this part of the budget.
const BUDGET_PART: usize = 4;

/// Who reads ahead does not wait for memory; least of all for what is on its way for himself.
const NO_PATIENCE: Option<Duration> = Some(Duration::ZERO);

/// A load that waits for a thread of the crew.
struct Job {
    pages: StorePages,
    page: PageId,
    pointer: BlockPointer,
    ticket: u64,
    filling: super::room::FrameName,
}

/// The threads that read ahead.
#[derive(Default)]
pub(super) struct Crew {
    shared: Arc<Shared>,
    threads: AtomicUsize,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    /// Bytes of frames on their way.
    bytes: AtomicUsize,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    is_closed: bool,
}

impl Crew {
    fn add(&self, jobs: Vec<Job>) {
        let count = jobs.len();
        let missing = {
            let mut queue = lock(&self.shared.queue);
            queue.jobs.extend(jobs);
            queue.jobs.len().saturating_sub(queue.idle)
        };
        for _ in 0..missing.min(DEPTH) {
            let grow = |threads: usize| (threads < DEPTH).then_some(threads + 1);
            if self.threads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).is_err() {
                break;
            }
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name("vellum-prefetch".into());
            let is_refused = !addresses::suffice_for_a_thread() || thread.spawn(move || shared.work()).is_err();
            if is_refused {
                self.threads.fetch_sub(1, Ordering::Relaxed);
                break;
            }
        }
        if self.threads.load(Ordering::Relaxed) == 0 {
            // No thread to be had: the loads are cancelled, and whoever wants the pages reads them.
            let jobs = std::mem::take(&mut lock(&self.shared.queue).jobs);
            for job in jobs {
                self.shared.bytes.fetch_sub(job.page.class().page_bytes() as usize, Ordering::Relaxed);
                drop((Filling::of(&job.pages, job.filling), Load::resume(&job.pages, job.page, job.ticket)));
            }
            return;
        }
        match count {
            1 => self.shared.filled.notify_one(),
            _ => self.shared.filled.notify_all(),
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        lock(&self.shared.queue).is_closed = true;
        self.shared.filled.notify_all();
    }
}

impl Shared {
    fn work(&self) {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                let bytes = job.page.class().page_bytes() as usize;
                job.run();
                self.bytes.fetch_sub(bytes, Ordering::Relaxed);
                queue = lock(&self.queue);
            } else if queue.is_closed {
                return;
            } else {
                queue.idle += 1;
                queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        }
    }
}

impl Job {
    /// A failure is nobody's: who wants the page tries again, and is told.
    fn run(self) {
        let filling = Filling::of(&self.pages, self.filling);
        // A page that is gone from the table of descriptors is not: tables only grow.
        if let Some(load) = Load::resume(&self.pages, self.page, self.ticket) {
            self.pages.finish_ahead(load, filling, &self.pointer);
        }
    }
}

impl StorePages {
    /// Begins to load those of the pages that are not in memory, many at a time, and returns. A hint: pages that cannot
    /// be loaded, or for which there is no memory to spare, are left to whoever reads them.
    ///
    /// # Errors
    /// Those of looking up pointers, but `PageNotFound`.
    pub fn prefetch(&self, at: &impl ReadState, pages: &[PageId]) -> Result<()> {
        let crew = &self.inner.crew;
        let mut jobs = Vec::new();
        for page in pages {
            let bytes = page.class().page_bytes() as usize;
            let on_their_way = crew.shared.bytes.load(Ordering::Relaxed);
            if on_their_way + bytes > self.inner.limit() / BUDGET_PART {
                break;
            }
            if let Some(job) = self.begin_ahead(at, *page)? {
                crew.shared.bytes.fetch_add(bytes, Ordering::Relaxed);
                jobs.push(job);
            }
        }
        if !jobs.is_empty() {
            crew.add(jobs);
        }
        Ok(())
    }

    /// Begins the load of a page that is not in memory.
    fn begin_ahead(&self, at: &impl ReadState, page: PageId) -> Result<Option<Job>> {
        let is_evicted = self.store.table.find(page).is_none_or(|descriptor| descriptor.word().is_evicted());
        if !is_evicted {
            return Ok(None);
        }
        let pointer = match at.pointer(page) {
            Err(crate::Error::PageNotFound { .. }) => return Ok(None),
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
        let job = Job { pages: self.clone(), page, pointer, ticket: load.hand_over(), filling: filling.hand_over() };
        Ok(Some(job))
    }

    /// Reads, and enters the page.
    fn finish_ahead(&self, mut load: Load<'_>, mut filling: Filling<'_>, pointer: &BlockPointer) {
        if filling.fill(load.page(), pointer).is_ok() {
            // Overtaken, or entered: there is nobody to hand a guard to.
            drop(load.finish(filling, pointer.birth, Arrival::Ahead));
        }
    }
}
