//! Whether this is still the process that it was.
#![allow(unsafe_code)]

use std::fmt;

use super::pages::Pages;

/// Knows the process that made it from a forked child, at the price of one load from memory: a page that the system
/// empties in the child (`MADV_WIPEONFORK`). Where there is no such page, the process's number is asked for.
pub struct ForkMark {
    page: Option<Pages>,
    process: u32,
}

impl ForkMark {
    /// A mark of this process.
    pub fn new() -> Self {
        Self { page: wiped_in_children(), process: std::process::id() }
    }

    /// Whether the caller runs in the process that made the mark.
    pub fn is_same_process(&self) -> bool {
        match &self.page {
            // SAFETY: the byte lies in the page, which lives as long as the mark. Nobody writes it; a fork changes it
            // in the child, so each call reads it anew.
            Some(page) => unsafe { page.as_ptr().read_volatile() == MARK },
            None => std::process::id() == self.process,
        }
    }
}

const MARK: u8 = 0xA5;

#[cfg(all(target_os = "linux", not(any(miri, vellum_heap_memory))))]
fn wiped_in_children() -> Option<Pages> {
    let mut page = Pages::new(1).ok()?;
    page[0] = MARK;
    // SAFETY: the page is ours. The advice changes nothing here; in a child the page becomes zero, which the mark's one
    // reader expects.
    unsafe {
        rustix::mm::madvise(page.as_mut_ptr().cast(), page.len(), rustix::mm::Advice::LinuxWipeOnFork).ok()?;
    }
    Some(page)
}

#[cfg(not(all(target_os = "linux", not(any(miri, vellum_heap_memory)))))]
fn wiped_in_children() -> Option<Pages> {
    None
}

impl Default for ForkMark {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ForkMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForkMark").field("process", &self.process).finish_non_exhaustive()
    }
}
