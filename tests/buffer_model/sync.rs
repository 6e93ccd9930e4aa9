//! The model checker's atomics in the place of the real ones; and rules to break.

use loom::sync::atomic::fence;
pub(super) use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::atomic::AtomicU8;

/// Enough for one guard and one more.
pub(super) const SLOTS: usize = 2;

/// As in `src/buffer/sync.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Sabotage {
    SkipReread = 1,
    SkipSlots,
    SkipEpochs,
    SkipTicket,
    FrameFirst,
    SkipCeiling,
    SkipFence,
    RelaxedFrame,
    RelaxedClear,
    RelaxedLeave,
    RelaxedRefill,
}

std::thread_local! {
    static BROKEN: AtomicU8 = const { AtomicU8::new(0) };
}

/// Breaks a rule, or none, for models run by this thread (the checker runs a model's threads on its caller's).
pub(super) fn sabotage(rule: Option<Sabotage>) {
    BROKEN.with(|broken| broken.store(rule.map_or(0, |rule| rule as u8), std::sync::atomic::Ordering::Relaxed));
}

pub(super) fn sabotaged(rule: Sabotage) -> bool {
    BROKEN.with(|broken| broken.load(std::sync::atomic::Ordering::Relaxed) == rule as u8)
}

pub(super) fn release_unless(rule: Sabotage) -> Ordering {
    if sabotaged(rule) { Ordering::Relaxed } else { Ordering::Release }
}

pub(super) fn acquire_unless(rule: Sabotage) -> Ordering {
    if sabotaged(rule) { Ordering::Relaxed } else { Ordering::Acquire }
}

pub(super) fn light_fence() {
    fence(Ordering::SeqCst);
}

pub(super) fn heavy_fence() {
    fence(Ordering::SeqCst);
}
