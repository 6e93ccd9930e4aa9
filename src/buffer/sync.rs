//! What the protocol is made of: atomics and fences. `tests/buffer_model` compiles the same protocol over the model
//! checker's.
//!
//! Rules can be broken on purpose: by the model, and in builds with `--cfg vellum_sabotage` by the environment, so that
//! the stress tests and the race detector (`.ci/tsan`) are seen to notice. In all other builds that question is answered
//! at compile time.

use std::sync::OnceLock;
pub(super) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::atomic::{compiler_fence, fence};

/// Guards of one thread that cost no shared write; more of them are counted.
pub(super) const SLOTS: usize = 64;

/// A rule to break on purpose.
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
    /// A descriptor names a frame without a release: its bytes may come later.
    RelaxedFrame,
    /// A slot is cleared without a release: the guard may read on.
    RelaxedClear,
    /// A scope ends without a release: it may read on.
    RelaxedLeave,
    /// A slot is filled without an acquire: who dropped the guard before may read on.
    RelaxedRefill,
}

/// Whether this rule is broken: never.
#[cfg(not(vellum_sabotage))]
#[inline(always)]
pub(super) const fn sabotaged(_: Sabotage) -> bool {
    false
}

/// Whether this rule is broken: if `VELLUM_SABOTAGE` is its name.
#[cfg(vellum_sabotage)]
pub(super) fn sabotaged(rule: Sabotage) -> bool {
    use Sabotage::*;
    const ALL: [Sabotage; 10] = [
        SkipReread,
        SkipSlots,
        SkipEpochs,
        SkipTicket,
        FrameFirst,
        SkipFence,
        RelaxedFrame,
        RelaxedClear,
        RelaxedLeave,
        RelaxedRefill,
    ];
    static BROKEN: OnceLock<Option<Sabotage>> = OnceLock::new();
    let named = || {
        let name = std::env::var("VELLUM_SABOTAGE").ok()?;
        ALL.into_iter().find(|rule| format!("{rule:?}") == name)
    };
    *BROKEN.get_or_init(named) == Some(rule)
}

/// Release, unless this rule is broken.
#[inline(always)]
pub(super) fn release_unless(rule: Sabotage) -> Ordering {
    if sabotaged(rule) { Ordering::Relaxed } else { Ordering::Release }
}

/// Acquire, unless this rule is broken.
#[inline(always)]
pub(super) fn acquire_unless(rule: Sabotage) -> Ordering {
    if sabotaged(rule) { Ordering::Relaxed } else { Ordering::Acquire }
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
