//! The guard of a page's bytes.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};

use super::graveyard;
use super::protocol::record::Slot;

/// The bytes of a page, or of a unit, as they were published; they stay so. Owned: it outlives what it was read from,
/// the store and the buffer manager too, and may be sent to other threads.
///
/// While it lives its frame is not used again. It costs no shared write but for those that are cloned, and those beyond
/// the 64th of a thread, which are counted.
pub struct FrameGuard {
    start: NonNull<u8>,
    length: usize,
    hold: Hold,
}

/// What keeps the frame.
enum Hold {
    Slot(&'static Slot),
    /// The count of such guards, in memory that stays while it is not zero.
    Count(NonNull<AtomicU32>),
}

// SAFETY: the frame's bytes do not change while the guard lives, any thread may clear a slot (P7) or count down.
unsafe impl Send for FrameGuard {}
// SAFETY: as above; through a shared guard bytes are read and counts raised.
unsafe impl Sync for FrameGuard {}

impl FrameGuard {
    /// # Safety
    /// The frame of `length` bytes at `start` holds published bytes, and is in the slot since before that was found.
    #[inline(always)]
    pub(super) unsafe fn in_slot(start: NonNull<u8>, length: usize, slot: &'static Slot) -> Self {
        Self { start, length, hold: Hold::Slot(slot) }
    }

    /// # Safety
    /// The frame of `length` bytes at `start` holds published bytes, and `count` has counted this since before that was
    /// found.
    pub(super) unsafe fn counted(start: NonNull<u8>, length: usize, count: &AtomicU32) -> Self {
        Self { start, length, hold: Hold::Count(NonNull::from(count)) }
    }
}

impl Deref for FrameGuard {
    type Target = [u8];

    #[inline(always)]
    fn deref(&self) -> &[u8] {
        // SAFETY: published bytes of a frame that is held (the constructors).
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl AsRef<[u8]> for FrameGuard {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Clone for FrameGuard {
    fn clone(&self) -> Self {
        let count = match &self.hold {
            Hold::Count(count) => {
                // SAFETY: it counts this guard, so it is there.
                unsafe { count.as_ref() }.fetch_add(1, Ordering::Relaxed);
                *count
            }
            // A copied slot could be missed by who looks for it (P7).
            Hold::Slot(_) => match graveyard::count_up(self.start) {
                Some(count) => count,
                None => unreachable!("a guard's frame belongs to a pool that is kept"),
            },
        };
        Self { start: self.start, length: self.length, hold: Hold::Count(count) }
    }
}

impl Drop for FrameGuard {
    #[inline(always)]
    fn drop(&mut self) {
        match &self.hold {
            Hold::Slot(slot) => slot.clear(),
            // SAFETY: it counts this guard, so it is there until this.
            Hold::Count(count) => drop(unsafe { count.as_ref() }.fetch_sub(1, Ordering::Release)),
        }
    }
}

impl fmt::Debug for FrameGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameGuard").field("bytes", &self.length).finish_non_exhaustive()
    }
}
