//! One load that was begun and is to be ended by somebody else.

use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::buffer::load::{Filling, Load, UnitLoad};
use crate::buffer::pages::StorePages;
use crate::buffer::policy::Arrival;
use crate::buffer::room::FrameName;
use crate::buffer::shard::Wait;
use crate::buffer::units::UnitKey;
use crate::format::BlockPointer;
use crate::id::PageId;

/// A load that waits for the crew. Dropped, it is cancelled (A1).
pub(super) struct Job {
    pages: StorePages,
    page: PageId,
    pointer: BlockPointer,
    /// What is loaded, until the load is ended.
    goal: Option<Goal>,
    /// The frame to read into, until it is entered.
    filling: Option<FrameName>,
    _on_the_way: OnTheWay,
}

/// What is loaded.
pub(super) enum Goal {
    /// The page, by the ticket of its load.
    Page { ticket: u64 },
    /// A chunk of it, by what others wait for.
    Chunk { key: UnitKey, wait: Arc<Wait> },
}

/// Bytes that count as on their way as long as this lives.
pub(super) struct OnTheWay {
    all: Arc<AtomicUsize>,
    bytes: usize,
}

impl OnTheWay {
    pub(super) fn new(all: &Arc<AtomicUsize>, bytes: usize) -> Self {
        all.fetch_add(bytes, Ordering::Relaxed);
        Self { all: Arc::clone(all), bytes }
    }
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Job {
    pub(super) fn new(
        pages: &StorePages,
        page: PageId,
        pointer: BlockPointer,
        goal: Goal,
        filling: FrameName,
        on_the_way: OnTheWay,
    ) -> Self {
        Self { pages: pages.clone(), page, pointer, goal: Some(goal), filling: Some(filling), _on_the_way: on_the_way }
    }

    /// Reads, and enters what was read, if that went well (A2).
    pub(super) fn run(self) {
        if self.read() {
            self.enter();
        }
    }

    /// Reads into the frame, which stays this job's. Whether that went well.
    fn read(&self) -> bool {
        let Some(name) = self.filling else { return false };
        let mut filling = ManuallyDrop::new(Filling::of(&self.pages, name));
        ask(|| filling.fill(self.page, &self.pointer)).is_some_and(|filled| filled.is_ok())
    }

    /// Enters what was read.
    fn enter(mut self) {
        let read = self.filling.take();
        self.end(read);
    }

    /// Enters what was read, or cancels the load; once (A1).
    fn end(&mut self, read: Option<FrameName>) {
        let filling = read.map(|name| Filling::of(&self.pages, name));
        match self.goal.take() {
            None => {}
            Some(Goal::Page { ticket }) => {
                // A page that is gone from the table of descriptors is not: tables only grow.
                let Some(mut load) = Load::resume(&self.pages, self.page, ticket) else { return };
                if let Some(filling) = filling {
                    // Overtaken, or entered: there is nobody to hand a guard to.
                    drop(load.finish(filling, self.pointer.birth, Arrival::Ahead));
                }
            }
            Some(Goal::Chunk { key, wait }) => {
                let load = UnitLoad::resume(&self.pages, key, wait);
                if let Some(filling) = filling {
                    drop(load.finish(filling, Arrival::Ahead));
                }
            }
        }
    }
}

#[cfg(all(target_os = "linux", feature = "prefetch-ring"))]
impl Job {
    /// Where what is to be read lies as it is, if it does: in this file, at this offset.
    pub(super) fn place(&self) -> Option<(&std::fs::File, u64)> {
        ask(|| self.pages.place_of(self.page, &self.pointer)).flatten()
    }

    /// The frame's memory. It is this job's alone until the job ends.
    pub(super) fn target(&self) -> Option<(std::ptr::NonNull<u8>, usize)> {
        let mut filling = ManuallyDrop::new(Filling::of(&self.pages, self.filling?));
        Some(filling.target())
    }

    /// So many bytes were read into [`Job::target`] from [`Job::place`]. What is not whole, or not right, is read again
    /// by plain calls.
    ///
    /// # Safety
    /// Nobody else writes to the target any more.
    #[allow(unsafe_code)]
    pub(super) unsafe fn was_read(self, bytes: usize) {
        let Some((start, length)) = self.target() else { return };
        // SAFETY: the frame is this job's alone, all its bytes are initialised, and nobody writes to it (the caller).
        let read = unsafe { std::slice::from_raw_parts(start.as_ptr(), length) };
        let is_right = || self.pages.is_right(self.page, &self.pointer, read);
        if bytes == length && ask(is_right) == Some(true) { self.enter() } else { self.run() }
    }

    /// The frame is given up for ever, since the system may still write to it; the load is cancelled.
    pub(super) fn abandon(mut self) {
        self.filling = None;
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(name) = self.filling.take() {
            drop(Filling::of(&self.pages, name));
        }
        self.end(None);
    }
}

/// Asks the store; `None` if that panics (A3). What it writes to then is read by nobody.
fn ask<T>(question: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(question)).ok()
}
