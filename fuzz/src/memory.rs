//! An allocator that counts, and ends the process when a file of a few hundred KiB makes it ask for too much.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts what is allocated.
pub struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// From now on at most `bytes` more may be allocated at a time.
pub fn limit(bytes: usize) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        // Telling of a panic takes memory too.
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            unlimited();
            before(info);
        }));
    });
    LIMIT.store(NOW.load(Ordering::Relaxed) + bytes, Ordering::Relaxed);
}

/// No limit any more.
pub fn unlimited() {
    LIMIT.store(usize::MAX, Ordering::Relaxed);
}

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        if now > LIMIT.load(Ordering::Relaxed) {
            unlimited();
            eprintln!("{} bytes are asked for, {now} in all: too much for this file", layout.size());
            eprintln!("{}", std::backtrace::Backtrace::force_capture());
            std::process::abort();
        }
        // SAFETY: the caller's promise, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise, passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}
