//! Whose turn it is to write: one serial transaction, or any number of concurrent ones. In the order of asking, but that
//! a serial one that asks when the turn is free does not wait for those ahead to wake up, until one of them has waited
//! for long: turns are short, and to hand each of them from thread to thread takes longer than the turn itself.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::handle::Handle;
use crate::error::{Error, Result};
use crate::lock::lock_awake;

/// Who has waited so long is not passed any more.
const PATIENCE_LIMIT: Duration = Duration::from_millis(5);

/// How long a caller waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// As long as it takes.
    Endless,
    /// Until then.
    Until(Instant),
    /// Not at all.
    None,
}

impl Patience {
    /// Waits so long from now on; for ever if the clock cannot count so far.
    pub(super) fn for_duration(duration: Duration) -> Self {
        Instant::now().checked_add(duration).map_or(Self::Endless, Self::Until)
    }
}

/// Who may write beside whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Alone.
    Serial,
    /// Beside others of the kind.
    Concurrent,
}

/// The right to write, and those who wait for it.
#[derive(Debug, Default)]
pub(super) struct Turns {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    serial: bool,
    concurrent: usize,
    /// There will be no turn any more.
    over: bool,
    waiting: VecDeque<Arc<Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    kind: Kind,
    since: Instant,
    thread: Thread,
    answer: AtomicU8,
}

const WAITING: u8 = 0;
/// The turn was free: it may be by now, too.
const TRY: u8 = 1;
const GRANTED: u8 = 2;
const OVER: u8 = 3;

/// The right to write, until this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) handle: Arc<Handle>,
    kind: Kind,
}

impl State {
    /// Takes the turn if it is free for the kind.
    fn try_take(&mut self, kind: Kind) -> bool {
        let free = !self.serial && (kind == Kind::Concurrent || self.concurrent == 0);
        match kind {
            _ if !free => {}
            Kind::Serial => self.serial = true,
            Kind::Concurrent => self.concurrent += 1,
        }
        free
    }

    /// Whether those who wait can be passed.
    fn may_pass(&self, kind: Kind) -> bool {
        self.waiting.front().is_none_or(|first| {
            kind == Kind::Serial && first.kind == Kind::Serial && first.since.elapsed() < PATIENCE_LIMIT
        })
    }

    /// Gives the turn to those who have waited longest, as far as it is free for them.
    fn grant(&mut self) {
        while let Some(first) = self.waiting.front() {
            let kind = first.kind;
            if kind == Kind::Serial && !self.serial && self.concurrent == 0 && first.since.elapsed() < PATIENCE_LIMIT {
                return first.wake_to_try();
            }
            if !self.try_take(kind) {
                return;
            }
            if let Some(waiter) = self.waiting.pop_front() {
                waiter.answer(GRANTED);
            }
        }
    }
}

impl Waiter {
    fn wake_to_try(&self) {
        if self.answer.swap(TRY, Ordering::AcqRel) == WAITING {
            self.thread.unpark();
        }
    }

    fn answer(&self, answer: u8) {
        self.answer.store(answer, Ordering::Release);
        self.thread.unpark();
    }

    /// The answer, if there is one by then.
    fn wait(&self, patience: Patience) -> u8 {
        loop {
            match (self.answer.load(Ordering::Acquire), patience) {
                (WAITING, Patience::Until(instant)) => {
                    let left = instant.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return WAITING;
                    }
                    std::thread::park_timeout(left);
                }
                (WAITING, _) => std::thread::park(),
                (answer, _) => return answer,
            }
        }
    }
}

impl Turns {
    pub(super) fn take(&self, kind: Kind, patience: Patience) -> Result<()> {
        let waiter = {
            let mut state = self.lock();
            if state.over {
                return Err(Error::Closed);
            }
            if state.may_pass(kind) && state.try_take(kind) {
                return Ok(());
            }
            if patience == Patience::None {
                return Err(Error::Busy);
            }
            let (since, thread, answer) = (Instant::now(), std::thread::current(), AtomicU8::new(WAITING));
            let waiter = Arc::new(Waiter { kind, since, thread, answer });
            state.waiting.push_back(Arc::clone(&waiter));
            waiter
        };
        loop {
            let answer = waiter.wait(patience);
            if answer == GRANTED {
                return Ok(());
            }
            let mut state = self.lock();
            match waiter.answer.load(Ordering::Acquire) {
                GRANTED => return Ok(()),
                OVER => return Err(Error::Closed),
                _ => {}
            }
            let is_first = state.waiting.front().is_some_and(|first| Arc::ptr_eq(first, &waiter));
            if is_first && state.try_take(kind) {
                state.waiting.pop_front();
                return Ok(());
            }
            if answer == WAITING {
                state.waiting.retain(|other| !Arc::ptr_eq(other, &waiter));
                // Those behind may not have to wait for what this one waited for.
                state.grant();
                return Err(Error::Busy);
            }
            // Somebody was quicker.
            waiter.answer.store(WAITING, Ordering::Release);
        }
    }

    fn give_back(&self, kind: Kind) {
        let mut state = self.lock();
        match kind {
            Kind::Serial => state.serial = false,
            Kind::Concurrent => state.concurrent = state.concurrent.saturating_sub(1),
        }
        if !state.over {
            state.grant();
        }
    }

    /// Nobody has a turn from now on, and those who wait are told so.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.over = true;
        state.waiting.drain(..).for_each(|waiter| waiter.answer(OVER));
    }

    /// A panic while the lock is held leaves the state whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        lock_awake(&self.state)
    }
}

impl Turn {
    pub(super) fn take(handle: &Arc<Handle>, kind: Kind, patience: Patience) -> Result<Self> {
        handle.shared.turns.take(kind, patience)?;
        Ok(Self { handle: Arc::clone(handle), kind })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.handle.shared.turns.give_back(self.kind);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_waited_for_long_is_not_passed() {
        let turns = Turns::default();
        turns.take(Kind::Serial, Patience::None).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                turns.take(Kind::Serial, Patience::Endless).unwrap();
                turns.give_back(Kind::Serial);
            });
            while turns.lock().waiting.is_empty() {
                std::thread::yield_now();
            }
            std::thread::sleep(PATIENCE_LIMIT * 2);
            turns.give_back(Kind::Serial);
            // It was given to who waits, awake or not; when that one is done, it is free.
            loop {
                let state = turns.lock();
                assert!(state.serial || state.waiting.is_empty(), "it could be passed");
                if !state.serial {
                    break;
                }
                drop(state);
                std::thread::yield_now();
            }
        });
    }
}
