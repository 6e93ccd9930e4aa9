//! Reads that one thread has under way together, by Linux's `io_uring`.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use io_uring::{IoUring, opcode, types};

use super::ring::is_passing;

/// Reads that can be under way at a time.
const ENTRIES: u32 = 64;
/// Waited for at once is this part of those under way.
const WAITED_PART: usize = 8;

/// A ring for reads, for one thread. Dropping it waits for what is under way.
pub(crate) struct ReadRing {
    ring: IoUring,
    is_enabled: bool,
    under_way: usize,
}

impl ReadRing {
    /// A ring, if the system has one to give.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn new() -> io::Result<Self> {
        // What has ended is looked at when its thread waits, and not by interrupting it. Older kernels do not know how.
        let quiet = IoUring::builder().setup_single_issuer().setup_defer_taskrun().setup_r_disabled().build(ENTRIES);
        let (ring, is_enabled) = match quiet {
            Ok(ring) => (ring, false),
            Err(_) => (IoUring::new(ENTRIES)?, true),
        };
        Ok(Self { ring, is_enabled, under_way: 0 })
    }

    /// The calling thread is the one that begins and waits from now on.
    fn enable(&mut self) -> io::Result<()> {
        if !self.is_enabled {
            self.ring.submitter().register_enable_rings()?;
            self.is_enabled = true;
        }
        Ok(())
    }

    /// Reads that can be under way at a time.
    pub(crate) fn depth(&self) -> usize {
        ENTRIES as usize
    }

    /// Begins to read `length` bytes into `target`; false if it takes no more. [`ReadRing::wait`] makes it known to the
    /// system, and tells of its end by `number`.
    ///
    /// # Safety
    /// From now on until `wait` has told of the end, or for ever if it fails, `target` is `length` bytes of memory that
    /// nobody else reads or writes. The file stays open until `wait` returns.
    pub(crate) unsafe fn begin(
        &mut self,
        file: &File,
        offset: u64,
        target: NonNull<u8>,
        length: usize,
        number: u64,
    ) -> bool {
        let Ok(bytes) = u32::try_from(length) else { return false };
        if self.under_way == self.depth() {
            return false;
        }
        let read = opcode::Read::new(types::Fd(file.as_raw_fd()), target.as_ptr(), bytes);
        let entry = read.offset(offset).build().user_data(number);
        // SAFETY: memory and file are as the entry says for as long as it lasts (the caller).
        let is_pushed = unsafe { self.ring.submission().push(&entry) }.is_ok();
        self.under_way += usize::from(is_pushed);
        is_pushed
    }

    /// Waits until at least one read has ended; adds those that have, with how many bytes were read: fewer than asked
    /// for at the end of the file, none after an error.
    ///
    /// # Errors
    /// The system's. What is under way may then never be known to have ended.
    pub(crate) fn wait(&mut self, ended: &mut Vec<(u64, usize)>) -> io::Result<()> {
        self.enable()?;
        while ended.is_empty() && self.under_way > 0 {
            // One at a time, this thread would be woken for each.
            match self.ring.submit_and_wait((self.under_way / WAITED_PART).max(1)) {
                Err(error) if !is_passing(&error) => return Err(error),
                _ => {}
            }
            let before = ended.len();
            ended.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result().max(0) as usize)));
            self.under_way -= ended.len() - before;
        }
        Ok(())
    }
}

impl Drop for ReadRing {
    fn drop(&mut self) {
        while self.under_way > 0 && self.wait(&mut Vec::new()).is_ok() {}
    }
}
