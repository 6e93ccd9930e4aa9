//! What the protocol is made of: atomics and fences. `tests/buffer_model` compiles the same protocol over the model
//! checker's.

use std::sync::OnceLock;
pub(super) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::atomic::{compiler_fence, fence};

/// Guards of one thread that cost no shared write; more of them are counted.
pub(super) const SLOTS: usize = 64;

/// A rule to break on purpose; nothing breaks any here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// Word 0 is not read again.
    SkipReread,
    /// A frame is reused without asking the slots.
    SkipSlots,
    /// A frame is reused without asking the epochs.
    SkipEpochs,
    /// A load that was overtaken by a publication enters its page all the same.
    SkipTicket,
    /// Publication writes the frame before its generation.
    FrameFirst,
    /// The ceiling of generations stays where it is.
    SkipCeiling,
    /// The evictor's fence is left out.
    SkipFence,
}

/// Whether this rule is broken: never.
pub(super) const fn sabotaged(_: Sabotage) -> bool {
    false
}

/// The reader's side of the asymmetric fence: what was stored before is seen by whoever calls [`heavy_fence`] later, or
/// what that thread stored before its call is seen by loads after this.
#[inline(always)]
pub(super) fn light_fence() {
    if IS_ASYMMETRIC.load(Ordering::Relaxed) { compiler_fence(Ordering::SeqCst) } else { fence(Ordering::SeqCst) }
}

/// The evictor's side. A system call that interrupts every processor that runs a thread of the process.
pub(super) fn heavy_fence() {
    fence(Ordering::SeqCst);
    if IS_ASYMMETRIC.load(Ordering::Relaxed) {
        system::barrier();
    }
}

/// Decides, once, which kind of fence the process uses. To be called before anything is read or evicted.
pub(super) fn choose_fence() {
    static CHOSEN: OnceLock<()> = OnceLock::new();
    CHOSEN.get_or_init(|| IS_ASYMMETRIC.store(system::register(), Ordering::SeqCst));
}

static IS_ASYMMETRIC: AtomicBool = AtomicBool::new(false);

#[cfg(all(target_os = "linux", not(miri)))]
mod system {
    use rustix::thread::{MembarrierCommand, membarrier};

    pub(super) fn register() -> bool {
        membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
    }

    pub(super) fn barrier() {
        // It was registered, which is all that the call can object to.
        let result = membarrier(MembarrierCommand::PrivateExpedited);
        assert!(result.is_ok(), "membarrier is registered");
    }
}

#[cfg(any(not(target_os = "linux"), miri))]
mod system {
    pub(super) fn register() -> bool {
        false
    }

    pub(super) fn barrier() {}
}
