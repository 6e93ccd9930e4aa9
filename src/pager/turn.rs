//! Whose turn it is to write: one transaction at a time.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::handle::Handle;
use crate::error::{Error, Result};

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

/// The right to write, and those who wait for it. They wake in the order in which the system wakes them.
#[derive(Debug, Default)]
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

/// What the turn is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    Taken,
    /// There will be none any more.
    Over,
}

/// The right to write, until this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) handle: Arc<Handle>,
}

impl Turns {
    pub(super) fn take(&self, patience: Patience) -> Result<()> {
        let mut state = self.lock();
        loop {
            match *state {
                State::Free => {
                    *state = State::Taken;
                    return Ok(());
                }
                State::Over => return Err(Error::Closed),
                State::Taken => {}
            }
            state = match patience {
                Patience::None => return Err(Error::Busy),
                Patience::Endless => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Patience::Until(instant) => {
                    let left = instant.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Error::Busy);
                    }
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    pub(super) fn give_back(&self) {
        let mut state = self.lock();
        if *state == State::Taken {
            *state = State::Free;
            self.changed.notify_one();
        }
    }

    /// Nobody has a turn from now on, and those who wait are told so.
    pub(super) fn end(&self) {
        *self.lock() = State::Over;
        self.changed.notify_all();
    }

    /// A panic while the lock is held leaves the state whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    pub(super) fn take(handle: &Arc<Handle>, patience: Patience) -> Result<Self> {
        handle.shared.turns.take(patience)?;
        Ok(Self { handle: Arc::clone(handle) })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.handle.shared.turns.give_back();
    }
}
