//! Addresses for pools and descriptors: plenty where there is plenty, a part where the process is limited.
//!
//! A reservation costs nothing but addresses, so it is made as large as it can ever have to be. Under `ulimit -v` or
//! `ulimit -d` addresses are what is short: who takes all that are left leaves none for the heap, and a heap without
//! addresses ends the process. So some are never taken, and of the others each reservation takes a part. The same goes
//! for budgets beyond all that a process can address.

use std::io;

use crate::error::{Error, Result};
use crate::memory::Reservation;

/// Left for the heap, the stacks of threads, and whatever else the process does.
const KEPT_BYTES: usize = 32 << 20;
/// What a thread may take: glibc looks for its heap of 64 MiB in twice as much.
const THREAD_BYTES: usize = 136 << 20;
/// What it keeps of that. It takes it at its first allocation, so one that was just made may not have it yet.
const HEAP_BYTES: usize = 66 << 20;
/// No reservation takes more than this part of the addresses that a limit leaves beyond that.
const PART: usize = 8;
/// Addresses of a process on most 64-bit systems. Where there are fewer, the system refuses what is too much.
const ALL_BYTES: Option<usize> = 1_usize.checked_shl(47);
/// A reservation of up to this part of them is made as it is wanted.
const MODEST_PART: usize = 64;

/// Addresses for `wanted` bytes; under a limit, or of more than there can be, for less, but for `least`.
///
/// # Errors
/// `Memory` if there are none for `least` bytes.
pub(super) fn reserve(wanted: usize, least: usize) -> Result<Reservation> {
    let left = left_bytes().saturating_sub(KEPT_BYTES);
    if left < least {
        return Err(Error::Memory {
            operation: "reservation",
            bytes: least,
            source: io::ErrorKind::OutOfMemory.into(),
        });
    }
    Reservation::at_most(wanted.min(left / PART).min(most_bytes(wanted)), least)
}

/// `wanted`, or of what is more than modest, the part of the unused addresses that may be taken.
fn most_bytes(wanted: usize) -> usize {
    match ALL_BYTES {
        Some(all) if wanted > all / MODEST_PART => all.saturating_sub(used_bytes().0) / PART,
        _ => wanted,
    }
}

/// Whether a limit leaves enough for another thread, which takes a stack and a heap of its own.
pub(super) fn suffice_for_a_thread() -> bool {
    match left_bytes() {
        usize::MAX => true,
        left => suffice_beside(others(), left),
    }
}

/// Whether `left` bytes are enough for a thread beside `others`, each of which may still take its heap: of threads that
/// are made one right after the other, each finds the addresses that the one before is about to take.
fn suffice_beside(others: usize, left: usize) -> bool {
    left >= others.saturating_mul(HEAP_BYTES).saturating_add(KEPT_BYTES + THREAD_BYTES)
}

/// How many threads the process has besides its first.
fn others() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, |threads| threads.count().saturating_sub(1))
}

/// Addresses that the limits of the process leave it, in bytes.
#[cfg(unix)]
fn left_bytes() -> usize {
    use rustix::process::{Resource, getrlimit};

    let limit_of = |resource| getrlimit(resource).current.map_or(usize::MAX, |bytes| bytes as usize);
    let (addresses, data) = (limit_of(Resource::As), limit_of(Resource::Data));
    if (addresses, data) == (usize::MAX, usize::MAX) {
        return usize::MAX;
    }
    let (used_addresses, used_data) = used_bytes();
    addresses.saturating_sub(used_addresses).min(data.saturating_sub(used_data))
}

/// Addresses in use, and those of them for what is private and writable; none where it cannot be known.
#[cfg(unix)]
fn used_bytes() -> (usize, usize) {
    // The first field and the sixth, in pages of the system.
    let numbers = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let used = |field| {
        let pages: Option<usize> = numbers.split_whitespace().nth(field).and_then(|number| number.parse().ok());
        pages.unwrap_or(0).saturating_mul(rustix::param::page_size())
    };
    (used(0), used(5))
}

#[cfg(not(unix))]
fn used_bytes() -> (usize, usize) {
    (0, 0)
}

#[cfg(not(unix))]
fn left_bytes() -> usize {
    usize::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_made_in_a_row_leave_room_for_each_others_heaps() {
        for limit in [0, 100 << 20, 200 << 20, 400 << 20, 1 << 30, 64 << 30] {
            // None of them has allocated anything yet.
            let made = (0..1000).take_while(|threads| suffice_beside(*threads, limit)).count();
            let left = limit.saturating_sub(made * HEAP_BYTES);
            assert!(made == 0 || left >= KEPT_BYTES, "{made} threads leave {left} of {limit} bytes");
            assert_eq!(made > 0, limit >= KEPT_BYTES + THREAD_BYTES);
        }
        assert!(suffice_beside(1000, usize::MAX));
    }
}
