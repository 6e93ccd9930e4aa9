//! The thread that commits what was started and is not waited for. It is there only once such a commit was started.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::handle::Shared;
use crate::error::{Error, Result};

/// The thread, and what it is told.
#[derive(Debug, Default)]
pub(super) struct Committer {
    state: Mutex<State>,
    told: Condvar,
}

#[derive(Debug, Default)]
struct State {
    thread: Option<JoinHandle<()>>,
    order: Order,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Order {
    #[default]
    Wait,
    Look,
    Stop,
}

impl Committer {
    /// There may be something to commit, if the thread is there.
    pub(super) fn wake(&self) {
        let mut state = self.lock();
        if state.thread.is_some() && state.order == Order::Wait {
            state.order = Order::Look;
            self.told.notify_one();
        }
    }

    /// Starts the thread, if it is not there, and tells it that there may be something to commit.
    pub(super) fn start(&self, shared: &Arc<Shared>) -> Result<()> {
        let mut state = self.lock();
        if state.order == Order::Stop {
            return Ok(());
        }
        if state.thread.is_none() {
            let for_thread = Arc::clone(shared);
            let thread = std::thread::Builder::new().name("vellum-commit".into());
            let started = thread.spawn(move || for_thread.committer.run(&for_thread));
            state.thread = Some(started.map_err(|source| {
                let path = shared.medium.path().to_owned();
                Error::Io { operation: "starting a thread", path, offset: None, source }
            })?);
        }
        state.order = Order::Look;
        self.told.notify_one();
        Ok(())
    }

    /// Ends the thread; it is not started again. What it was told of before may not be done.
    pub(super) fn stop(&self) {
        let thread = {
            let mut state = self.lock();
            state.order = Order::Stop;
            self.told.notify_one();
            state.thread.take()
        };
        if let Some(thread) = thread {
            // If it panicked, the core is marked broken.
            let _ = thread.join();
        }
    }

    fn run(&self, shared: &Arc<Shared>) {
        let mut state = self.lock();
        loop {
            match state.order {
                Order::Stop => return,
                Order::Wait => state = self.told.wait(state).unwrap_or_else(PoisonError::into_inner),
                Order::Look => {
                    state.order = Order::Wait;
                    drop(state);
                    // Whoever leads already wakes this thread when it leads no more, and something is left.
                    if shared.head.lead() {
                        shared.lead(None);
                    }
                    state = self.lock();
                }
            }
        }
    }

    /// A panic while the lock is held leaves what is inside whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
