//! Threads that read ahead: as many as requests can be under way at once, made when first needed, and ended with the
//! manager.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::job::Job;
use crate::buffer::{addresses, lock};

/// Requests under way at once.
const DEPTH: usize = 32;

/// The threads.
#[derive(Default)]
pub(super) struct Threads {
    shared: Arc<Shared>,
    count: AtomicUsize,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    is_closed: bool,
}

impl Threads {
    pub(super) fn add(&self, jobs: Vec<Job>) {
        let count = jobs.len();
        if count == 0 {
            return;
        }
        let missing = {
            let mut queue = lock(&self.shared.queue);
            queue.jobs.extend(jobs);
            queue.jobs.len().saturating_sub(queue.idle)
        };
        for _ in 0..missing.min(DEPTH) {
            let grow = |threads: usize| (threads < DEPTH).then_some(threads + 1);
            if self.count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).is_err() {
                break;
            }
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name("vellum-prefetch".into());
            let is_refused = !addresses::suffice_for_a_thread() || thread.spawn(move || shared.work()).is_err();
            if is_refused {
                self.count.fetch_sub(1, Ordering::Relaxed);
                break;
            }
        }
        if self.count.load(Ordering::Relaxed) == 0 {
            // No thread to be had: the loads are cancelled, and whoever wants the pages reads them.
            let jobs = std::mem::take(&mut lock(&self.shared.queue).jobs);
            return drop(jobs);
        }
        match count {
            1 => self.shared.filled.notify_one(),
            _ => self.shared.filled.notify_all(),
        }
    }
}

impl Drop for Threads {
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
                job.run();
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
