//! Memory from the heap in the place of mapped memory, for the tools that watch the heap. See the parent.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::ops::{Range, RangeBounds};
use std::ptr::NonNull;

use super::{Charge, NOWHERE, checked_range, suitable_alignment};
use crate::Result;
use crate::memory::hint::{Hint, page_bytes};
use crate::memory::protection::Protection;

/// What is refused at the latest: here address space is memory, every byte of it.
const LIMIT_BYTES: usize = 256 << 20;

/// One allocation of `length` bytes, or none if `length` is zero.
pub(in crate::memory) struct Mapping {
    start: NonNull<u8>,
    length: usize,
    alignment: usize,
}

// SAFETY: as for the mapped form.
unsafe impl Send for Mapping {}
// SAFETY: as for the mapped form.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(in crate::memory) const EMPTY: Self = Self { start: NOWHERE, length: 0, alignment: 1 };

    pub(in crate::memory) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(in crate::memory) fn length(&self) -> usize {
        self.length
    }

    pub(super) fn obtain(length: usize, alignment: usize, _charge: Charge) -> io::Result<Self> {
        let alignment = alignment.max(page_bytes()).max(suitable_alignment(length));
        if length > LIMIT_BYTES {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let layout = layout(length, alignment)?;
        // SAFETY: the length is not zero (the parent's promise).
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length, alignment })
    }

    pub(in crate::memory) fn protect(&mut self, _protection: Protection) -> Result<()> {
        Ok(())
    }

    pub(in crate::memory) fn advise(&self, range: impl RangeBounds<usize>, _hint: Hint) -> Result<()> {
        checked_range("advice", range, self.length).map(drop)
    }

    /// # Safety
    /// As for the mapped form.
    pub(super) unsafe fn discard_pages(&self, pages: Range<usize>) -> io::Result<()> {
        // SAFETY: the pages lie in the allocation and are unused (the caller).
        unsafe { self.start.add(pages.start).write_bytes(0, pages.len()) };
        Ok(())
    }

    /// # Safety
    /// As for the mapped form.
    pub(super) unsafe fn resize_to(&mut self, length: usize, alignment: usize) -> io::Result<()> {
        let other = Self::obtain(length, alignment, Charge::WhenMapped)?;
        // SAFETY: two allocations, neither shorter than what is copied; nothing refers to the old one (the caller).
        unsafe { other.start.copy_from_nonoverlapping(self.start, self.length.min(length)) };
        *self = other;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.length != 0
            && let Ok(layout) = layout(self.length, self.alignment)
        {
            // SAFETY: allocated with this layout, and every reference into it borrows what owns `self`.
            unsafe { dealloc(self.start.as_ptr(), layout) };
        }
    }
}

fn layout(length: usize, alignment: usize) -> io::Result<Layout> {
    Layout::from_size_align(length, alignment).map_err(|_| io::ErrorKind::OutOfMemory.into())
}
