//! Writes that go on while the caller computes: Linux's `io_uring`.
//!
//! - **U1** The memory of a write that has begun is kept alive by the ring itself until the kernel has said that the
//!   write has ended; and nobody changes it, since it is shared. If that can no longer be learned, it is never freed.
//! - **U2** A request holds its open file, so a lock on that file outlives its process until the last write has ended:
//!   no other writer can be at work beside a late write of a dead one.
//! - **U3** Dropping the ring, or a ticket, waits.
//! - **U4** If the system no longer says how writes end, or does not take those that it was given, the ring is *lost*, for
//!   good: the file must not be written any more, since what was given back may still be written to.
//! - **U5** What the system did not take when the ring was lost it never gets: the file may be closed by then, and its
//!   descriptor's number be another file's. Waiting hands nothing over.
//!
//! Thread rules: any thread; whoever waits holds the others up.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use io_uring::{IoUring, opcode, types};

use super::{AlignedBuffer, WritePart};

/// Writes that can be under way at a time.
const ENTRIES: u32 = 256;

/// Tells the system to wait, if it is to do nothing else (`IORING_ENTER_GETEVENTS`).
const GET_EVENTS: u32 = 1;

/// A ring, and the writes that it has under way.
pub(super) struct Ring {
    inner: Mutex<Inner>,
    lost: AtomicBool,
}

struct Inner {
    ring: IoUring,
    /// By number: the memory of a write, until the kernel has said how it ended.
    under_way: HashMap<u64, Arc<AlignedBuffer>>,
    /// By number: what the kernel said of those that nobody has asked about yet.
    ended: HashMap<u64, i32>,
    next: u64,
}

impl Ring {
    /// A ring, if the system has one to give.
    pub(super) fn new() -> io::Result<Self> {
        let (under_way, ended) = (HashMap::new(), HashMap::new());
        let inner = Mutex::new(Inner { ring: IoUring::new(ENTRIES)?, under_way, ended, next: 0 });
        Ok(Self { inner, lost: AtomicBool::new(false) })
    }

    /// Whether there may be writes of which nobody will know when they have ended (U4).
    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Passes the error on that made it so.
    pub(super) fn lose(&self, error: io::Error) -> io::Error {
        self.lost.store(true, Ordering::Release);
        error
    }

    /// Begins to write parts of `bytes`, by one call of the system; returns their numbers, which rise by one. `None`: it
    /// does not take so many more, nothing was begun.
    ///
    /// # Errors
    /// `InvalidInput` if the buffer does not have a part; else the system's: then what it has taken goes on, and the ring
    /// is lost.
    pub(super) fn begin(
        &self,
        file: &File,
        bytes: &Arc<AlignedBuffer>,
        parts: &[WritePart],
    ) -> io::Result<Option<Range<u64>>> {
        let mut inner = self.lock();
        if self.is_lost() {
            return Err(io::Error::other("the ring does not take writes any more"));
        }
        let Some(numbers) = inner.queue(file, bytes, parts)? else { return Ok(None) };
        // The entries cannot be taken back, so the call is made until the kernel has read them.
        while !inner.ring.submission().is_empty() {
            match inner.ring.submit() {
                Ok(_) => {}
                Err(error) if is_passing(&error) => inner.reap(),
                Err(error) => return Err(self.lose_queue(&mut inner, &numbers, error)),
            }
        }
        Ok(Some(numbers))
    }

    /// The system did not take the last of these writes, which are all that it was given, and never will (U5).
    fn lose_queue(&self, inner: &mut Inner, numbers: &Range<u64>, error: io::Error) -> io::Error {
        let left = inner.ring.submission().len() as u64;
        for number in numbers.end.saturating_sub(left)..numbers.end {
            inner.under_way.remove(&number);
        }
        self.lose(error)
    }

    /// How many bytes the write with this number wrote, once it has ended; `None` if it has not.
    pub(super) fn poll(&self, number: u64) -> Option<io::Result<usize>> {
        let mut inner = self.lock();
        inner.reap();
        inner.ended.get(&number).map(|result| outcome(*result))
    }

    /// Waits until the writes with these numbers have ended, and says how many bytes each wrote. It sleeps until as many
    /// have ended as are missing: to be woken by each of them would take as long as to begin it.
    ///
    /// # Errors
    /// The system's: then the ring is lost.
    pub(super) fn wait(&self, numbers: Range<u64>) -> io::Result<Vec<io::Result<usize>>> {
        let mut inner = self.lock();
        loop {
            inner.reap();
            let missing = numbers.clone().filter(|number| !inner.ended.contains_key(number)).count();
            if missing == 0 {
                return Ok(numbers.filter_map(|number| inner.ended.remove(&number)).map(outcome).collect());
            }
            match inner.sleep_until_ended(missing) {
                Ok(()) => {}
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(self.lose(error)),
            }
        }
    }

    /// A panic while the lock is held leaves the counts whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Puts writes where the kernel will read them when it is called; `None` if there is no room for so many more.
    fn queue(
        &mut self,
        file: &File,
        bytes: &Arc<AlignedBuffer>,
        parts: &[WritePart],
    ) -> io::Result<Option<Range<u64>>> {
        self.reap();
        if self.under_way.len() + parts.len() > ENTRIES as usize {
            return Ok(None);
        }
        let fd = types::Fd(file.as_raw_fd());
        let mut entries = Vec::with_capacity(parts.len());
        for (part, number) in parts.iter().zip(self.next..) {
            let part_bytes = part.of(bytes)?;
            let length = u32::try_from(part_bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
            let write = opcode::Write::new(fd, part_bytes.as_ptr(), length).offset(part.offset);
            entries.push(write.build().user_data(number));
        }
        // SAFETY: each entry's memory is a part of the buffer, which lives and does not change until the kernel has ended
        // the write: `under_way` keeps it until then (U1). The kernel takes its own hold of the file when it reads the
        // entry, which is before `begin` returns or never (U5).
        let pushed = unsafe { self.ring.submission().push_multiple(&entries) };
        if pushed.is_err() {
            return Ok(None);
        }
        let numbers = self.next..self.next + parts.len() as u64;
        self.next = numbers.end;
        self.under_way.extend(numbers.clone().map(|number| (number, Arc::clone(bytes))));
        Ok(Some(numbers))
    }

    /// Sleeps until so many have ended of which nobody has taken note yet. Hands nothing over (U5).
    fn sleep_until_ended(&self, count: usize) -> io::Result<()> {
        let count = u32::try_from(count).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the kernel gets no memory by this call: no entries, and no argument.
        unsafe { self.ring.submitter().enter::<()>(0, count, GET_EVENTS, None) }.map(drop)
    }

    /// Takes note of what has ended.
    fn reap(&mut self) {
        for entry in self.ring.completion() {
            self.under_way.remove(&entry.user_data());
            self.ended.insert(entry.user_data(), entry.result());
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.reap();
        while !self.under_way.is_empty() {
            match self.sleep_until_ended(1) {
                Err(error) if !is_passing(&error) => break,
                _ => self.reap(),
            }
        }
        // What the kernel may still read is never freed (U1).
        std::mem::take(&mut self.under_way).into_values().for_each(std::mem::forget);
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

fn outcome(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

/// Whether the call would have succeeded at another moment.
pub(super) fn is_passing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::INTR, Errno::AGAIN, Errno::BUSY].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::BLOCK_LENGTH;

    #[test]
    fn what_the_system_did_not_take_is_never_written_and_what_it_took_is_waited_for() {
        let file = tempfile::tempfile().unwrap();
        // Not every system has rings.
        let Ok(ring) = Ring::new() else { return };
        let bytes = Arc::new(AlignedBuffer::copy_of(&[2; BLOCK_LENGTH]));
        let part = |number: u64| [WritePart { offset: number * BLOCK_LENGTH as u64, range: 0..BLOCK_LENGTH }];
        let taken = ring.begin(&file, &bytes, &part(0)).unwrap().unwrap();
        let mut inner = ring.lock();
        let queued = inner.queue(&file, &bytes, &part(1)).unwrap().unwrap();
        assert_eq!(inner.ring.submission().len(), 1);
        let error = ring.lose_queue(&mut inner, &queued, io::ErrorKind::Other.into());
        assert!(error.kind() == io::ErrorKind::Other && ring.is_lost());
        drop(inner);
        assert_eq!(ring.wait(taken).unwrap().pop().unwrap().unwrap(), BLOCK_LENGTH);
        assert!(ring.begin(&file, &bytes, &part(2)).is_err());
        drop(ring);
        assert_eq!(Arc::strong_count(&bytes), 1);
        assert_eq!(file.metadata().unwrap().len(), BLOCK_LENGTH as u64, "only the first block was written");
    }
}
