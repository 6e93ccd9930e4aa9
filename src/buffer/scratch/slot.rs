//! One scratch page: where its bytes are, and who borrows them.
//!
//! ```text
//!              spill                    written
//!   Memory ──────────────▶ Moving ──────────────────▶ Stored
//!    │  ▲ ◀─────────────────┘ not written   Moving ◀────┘ borrow
//!    │  └──────────────────── read back ──────┘ └────────▲ not read back
//!    ▼
//!   Lent, to one writer. Readers have handles of the frame, and are counted.
//! ```

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::super::frame::Frame;
use super::super::lock;
use super::file::Stored;
use crate::id::SizeClass;

/// Where the bytes are.
#[derive(Debug)]
pub(super) enum Home {
    Memory(Frame),
    /// With the only writer.
    Lent,
    /// In the file.
    Stored(Stored),
    /// On their way between the two, with whoever moves them.
    Moving,
}

/// What the page's lock protects.
#[derive(Debug)]
pub(super) struct State {
    pub(super) home: Home,
    pub(super) readers: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) number: u64,
    pub(super) class: SizeClass,
    state: Mutex<State>,
    settled: Condvar,
}

impl Slot {
    /// On its way to its first frame.
    pub(super) fn new(number: u64, class: SizeClass) -> Self {
        let state = Mutex::new(State { home: Home::Moving, readers: 0 });
        Self { number, class, state, settled: Condvar::new() }
    }

    /// The state as it is.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The state, when nobody is moving the page.
    pub(super) fn settled(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        while matches!(state.home, Home::Moving) {
            state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state
    }

    /// The page is somewhere again.
    pub(super) fn settle(&self, home: Home) {
        self.state().home = home;
        self.settled.notify_all();
    }

    /// Takes the frame for writing it elsewhere, if nobody uses it.
    pub(super) fn take_idle(&self) -> Option<Frame> {
        let mut state = self.state();
        if state.readers > 0 || !matches!(state.home, Home::Memory(_)) {
            return None;
        }
        match std::mem::replace(&mut state.home, Home::Moving) {
            Home::Memory(frame) => Some(frame),
            _ => None,
        }
    }
}
