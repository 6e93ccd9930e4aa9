//! The bytes of a page, or of a chunk: in a private frame, spilled to their future place, or as they are published.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::handle::Shared;
use crate::buffer::{Frame, FrameGuard};
use crate::store::{self, Spilled};

/// Bytes that a transaction has changed. They do not change once somebody shares them.
#[derive(Clone, Debug)]
pub(super) enum Bytes {
    /// In memory.
    Frame(Frame),
    /// In the extent that the commit will name.
    Spilled(Arc<Spill>),
    /// All zero, so many of them: neither memory nor space is kept for them.
    Zeros(&'static [u8]),
}

impl Bytes {
    /// As the core wants them.
    pub(super) fn content(&self) -> store::Content<'_> {
        match self {
            Self::Frame(frame) => frame[..].into(),
            Self::Spilled(spill) => spill.spilled.into(),
            // The core sees what they are.
            Self::Zeros(zeros) => (*zeros).into(),
        }
    }

    /// Bytes of memory that they take.
    pub(super) fn memory_bytes(&self) -> usize {
        match self {
            Self::Frame(frame) => frame.len(),
            Self::Spilled(_) | Self::Zeros(_) => 0,
        }
    }

    pub(super) fn frame(&self) -> Option<&Frame> {
        match self {
            Self::Frame(frame) => Some(frame),
            Self::Spilled(_) | Self::Zeros(_) => None,
        }
    }

    /// Whether they are in this frame.
    pub(super) fn is_frame(&self, frame: &Frame) -> bool {
        self.frame().is_some_and(|own| std::ptr::eq(own.as_ptr(), frame.as_ptr()))
    }
}

/// A unit that was written to reserved space; dropped before a commit took it over, it gives the space back.
pub(super) struct Spill {
    pub(super) spilled: Spilled,
    taken_over: AtomicBool,
    shared: Arc<Shared>,
}

impl Spill {
    pub(super) fn new(spilled: Spilled, shared: &Arc<Shared>) -> Self {
        Self { spilled, taken_over: AtomicBool::new(false), shared: Arc::clone(shared) }
    }

    /// A commit has made the space the page's.
    pub(super) fn taken_over(&self) {
        self.taken_over.store(true, Ordering::Release);
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        if !*self.taken_over.get_mut() {
            self.shared.give_back(self.spilled.reserved());
        }
    }
}

impl fmt::Debug for Spill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spill").field("spilled", &self.spilled).finish_non_exhaustive()
    }
}

/// Bytes that somebody reads.
#[derive(Clone)]
pub(super) enum Held {
    /// Of a private frame.
    Frame(Frame),
    /// As they are published.
    Guard(FrameGuard),
    /// Somewhere that somebody else keeps as it is.
    Lent(Arc<dyn AsRef<[u8]> + Send + Sync>),
}

impl Deref for Held {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Frame(frame) => frame,
            Self::Guard(guard) => guard,
            Self::Lent(owner) => (**owner).as_ref(),
        }
    }
}
