//! A ring that reads ahead: one thread has many reads under way, where threads have one each.
//!
//! - **G1** The ring belongs to its thread alone: no lock is held while it waits, and nobody waits for it but by pages.
//! - **G2** A frame that the system reads into stays its job's until the system has said that the read has ended. If
//!   that cannot be learned any more, the frame is given up for ever.
#![allow(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

use super::job::Job;
use crate::buffer::lock;
use crate::buffer::stats::PrefetchBy;
use crate::disk::ReadRing;

/// The ring, and its thread.
#[derive(Default)]
pub(super) struct Ring {
    shared: Arc<Shared>,
    /// Whether there is one; not known before it is first wanted.
    is_there: OnceLock<bool>,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    reads: AtomicU64,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Nothing is taken any more.
    is_closed: bool,
}

impl Ring {
    /// Takes what the ring can read; returns the rest.
    pub(super) fn add(&self, jobs: Vec<Job>) -> Vec<Job> {
        let (mine, mut rest): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.place().is_some());
        if mine.is_empty() {
            return rest;
        }
        let mut queue = match *self.is_there.get_or_init(|| Shared::start(&self.shared)) {
            true => lock(&self.shared.queue),
            false => {
                rest.extend(mine);
                return rest;
            }
        };
        if queue.is_closed {
            rest.extend(mine);
        } else {
            queue.jobs.extend(mine);
            self.shared.filled.notify_one();
        }
        rest
    }

    pub(super) fn stats(&self) -> (PrefetchBy, u64) {
        let by = if self.is_there.get() == Some(&true) { PrefetchBy::Ring } else { PrefetchBy::Threads };
        (by, self.shared.reads.load(Ordering::Relaxed))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        lock(&self.shared.queue).is_closed = true;
        self.shared.filled.notify_one();
    }
}

impl Shared {
    /// Starts the thread, if the system gives a ring.
    fn start(shared: &Arc<Self>) -> bool {
        let Ok(ring) = ReadRing::new() else { return false };
        let shared = Arc::clone(shared);
        std::thread::Builder::new().name("vellum-ring".into()).spawn(move || shared.work(ring)).is_ok()
    }

    fn work(&self, mut ring: ReadRing) {
        let mut under_way = HashMap::new();
        let (mut taken, mut ended) = (VecDeque::new(), Vec::new());
        let mut next = 0;
        while self.take(&mut taken, under_way.len(), ring.depth()) {
            for job in taken.drain(..) {
                let (Some((file, offset)), Some((target, length))) = (job.place(), job.target()) else { continue };
                // SAFETY: the frame is the job's, which is kept until the read has ended (G2).
                if unsafe { ring.begin(file, offset, target, length, next) } {
                    under_way.insert(next, job);
                    next += 1;
                } else {
                    job.run();
                }
            }
            if under_way.is_empty() {
                continue;
            }
            if ring.wait(&mut ended).is_err() {
                lock(&self.queue).is_closed = true;
                let waiting = std::mem::take(&mut lock(&self.queue).jobs);
                under_way.into_values().for_each(Job::abandon);
                waiting.into_iter().for_each(Job::run);
                return;
            }
            for (number, bytes) in ended.drain(..) {
                let Some(job) = under_way.remove(&number) else { continue };
                self.reads.fetch_add(1, Ordering::Relaxed);
                // SAFETY: the system has said that the read has ended.
                unsafe { job.was_read(bytes) };
            }
        }
    }

    /// Takes jobs for which there is room beside those under way; waits for some if none are. False at the end.
    fn take(&self, taken: &mut VecDeque<Job>, under_way: usize, depth: usize) -> bool {
        let mut queue = lock(&self.queue);
        while under_way == 0 && queue.jobs.is_empty() {
            if queue.is_closed {
                return false;
            }
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let count = (depth - under_way).min(queue.jobs.len());
        taken.extend(queue.jobs.drain(..count));
        true
    }
}
