//! A run of OS pages that has one owner: the only place that asks the system for memory.
//!
//! Two implementations with one interface. `mapped` is the real one. `heap` stands in for it under Miri, which knows
//! no `madvise`, and with `--cfg vellum_heap_memory`, where AddressSanitizer guards both ends of every mapping; it
//! enforces no protection.
//!
//! What both promise is M1 and M2 of the [room](super). Methods take ranges of bytes; those that go beyond the mapping
//! are an error. Nothing here is aware of threads: a `Mapping` is an address and a length, and whoever hands out
//! references into it answers for them.

#[cfg(any(miri, vellum_heap_memory))]
mod heap;
#[cfg(not(any(miri, vellum_heap_memory)))]
mod mapped;

use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::ptr::{self, NonNull};

use super::hint::{huge_page_bytes, page_bytes};
use crate::{Error, Result};

#[cfg(any(miri, vellum_heap_memory))]
pub(super) use heap::Mapping;
#[cfg(not(any(miri, vellum_heap_memory)))]
pub(super) use mapped::Mapping;

/// When the system counts memory against its limit for all processes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Charge {
    /// When it is mapped: what was granted can be used.
    WhenMapped,
    /// When it is touched, where the system allows that: for address space of which most stays unused.
    WhenTouched,
}

/// Where mappings of no bytes start: no memory, but aligned for every type (2^29 is the largest alignment there is), so
/// that a slice of no elements can start there.
const NOWHERE: NonNull<u8> = match NonNull::new(ptr::without_provenance_mut(1 << 29)) {
    Some(start) => start,
    None => unreachable!(),
};

/// The error for a refused `operation` on `bytes` bytes.
pub(super) fn refused(operation: &'static str, bytes: usize, source: impl Into<io::Error>) -> Error {
    Error::Memory { operation, bytes, source: source.into() }
}

/// `range` as offsets, if it lies within `length` bytes.
pub(super) fn checked_range(
    operation: &'static str,
    range: impl RangeBounds<usize>,
    length: usize,
) -> Result<Range<usize>> {
    let start = match range.start_bound() {
        Bound::Included(&start) => Some(start),
        Bound::Excluded(&before) => before.checked_add(1),
        Bound::Unbounded => Some(0),
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last.checked_add(1),
        Bound::Excluded(&end) => Some(end),
        Bound::Unbounded => Some(length),
    };
    match (start, end) {
        (Some(start), Some(end)) if start <= end && end <= length => Ok(start..end),
        _ => Err(refused(operation, length, io::Error::new(io::ErrorKind::InvalidInput, "the range lies outside"))),
    }
}

/// The largest range of whole OS pages within `range`; empty at its start if there is none.
fn pages_within(range: Range<usize>) -> Range<usize> {
    let page = page_bytes();
    let start = range.start.next_multiple_of(page);
    start..(range.end / page * page).max(start)
}

/// `bytes` rounded up to whole OS pages.
fn whole_pages(operation: &'static str, bytes: usize) -> Result<usize> {
    // No slice may be longer than `isize::MAX` bytes, so no mapping is.
    bytes
        .checked_next_multiple_of(page_bytes())
        .filter(|length| *length <= isize::MAX as usize)
        .ok_or_else(|| refused(operation, bytes, io::ErrorKind::OutOfMemory))
}

/// The alignment that suits a mapping of `length` bytes: that of huge pages, where it has room for one.
fn suitable_alignment(length: usize) -> usize {
    if length >= huge_page_bytes() { huge_page_bytes() } else { page_bytes() }
}

impl Mapping {
    /// A mapping of whole OS pages that hold at least `bytes` zero bytes, readable and writable, whose start is a
    /// multiple of `alignment`, a power of two. Of no bytes: no mapping.
    pub(super) fn new(bytes: usize, alignment: usize, charge: Charge) -> Result<Self> {
        let operation = match charge {
            Charge::WhenMapped => "allocation",
            Charge::WhenTouched => "reservation",
        };
        match whole_pages(operation, bytes)? {
            0 => Ok(Self::EMPTY),
            length => Self::obtain(length, alignment, charge).map_err(|source| refused(operation, bytes, source)),
        }
    }

    /// Makes the bytes of `range` zero and gives the memory of every OS page that lies wholly in it back to the system.
    ///
    /// # Safety
    /// The range is writable, and nothing refers to its bytes or uses them at the same time.
    #[allow(unsafe_code)]
    pub(super) unsafe fn discard(&self, range: impl RangeBounds<usize>) -> Result<()> {
        let range = checked_range("decommit", range, self.length())?;
        let pages = pages_within(range.clone());
        // SAFETY: both edges lie in the range, which is in the mapping (M1), writable and unused (the caller).
        unsafe {
            let edge = |edge: Range<usize>| self.start().add(edge.start).write_bytes(0, edge.len());
            edge(range.start..pages.start.min(range.end));
            edge(pages.end.min(range.end)..range.end);
        }
        if pages.is_empty() {
            return Ok(());
        }
        let bytes = pages.len();
        // SAFETY: whole pages of the range, see above.
        unsafe { self.discard_pages(pages) }.map_err(|source| refused("decommit", bytes, source))
    }

    /// Makes the mapping hold at least `bytes` bytes in whole OS pages. What both sizes have stays as it is, new bytes
    /// are zero, and memory beyond goes back to the system; the start may change, to a multiple of `alignment`, a power
    /// of two. On an error nothing has changed.
    ///
    /// # Safety
    /// The mapping is readable and writable, and nothing refers to its bytes.
    #[allow(unsafe_code)]
    pub(super) unsafe fn resize(&mut self, bytes: usize, alignment: usize) -> Result<()> {
        let length = whole_pages("resize", bytes)?;
        if length == self.length() {
            return Ok(());
        }
        if length == 0 || self.length() == 0 {
            *self = Self::new(bytes, alignment, Charge::WhenMapped)?;
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.resize_to(length, alignment) }.map_err(|source| refused("resize", bytes, source))
    }
}
