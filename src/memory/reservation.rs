//! Address space for pools: much of it, of which little is memory at any time.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Range, RangeBounds};
use std::ptr::NonNull;

use super::hint::{Hint, page_bytes};
use super::mapping::{Charge, Mapping, checked_range};
use crate::{Error, Result};

/// A range of addresses, whole OS pages, that becomes memory as it is touched and stops being memory when it is given
/// back. It starts at a huge page's boundary if it has room for one and the address space allows.
///
/// It hands out addresses, not references: which parts are in use, and by which thread, is known to the pool alone
/// (M7). Untouched and given-back bytes are zero.
///
/// ```
/// use vellum::memory::Reservation;
///
/// // A terabyte where the system allows it, but no less than 64 MiB.
/// let pool = Reservation::at_most(1 << 40, 64 << 20)?;
/// assert!(pool.len() >= 64 << 20);
/// # Ok::<(), vellum::Error>(())
/// ```
pub struct Reservation {
    mapping: Mapping,
}

impl Reservation {
    /// Reserves at least `bytes` bytes of address space, readable and writable.
    ///
    /// # Errors
    /// [`Error::Memory`] if the system has no such range, or does not allow it: a limit on addresses (`ulimit -v`) or
    /// data (`ulimit -d`), or strict overcommit, under which address space counts as memory.
    pub fn new(bytes: usize) -> Result<Self> {
        Ok(Self { mapping: Mapping::new(bytes, page_bytes(), Charge::WhenTouched)? })
    }

    /// Reserves `wanted` bytes, or, where the system refuses that, half of it, a quarter of it and so on, but no less
    /// than `least`.
    ///
    /// # Errors
    /// As [`Reservation::new`], for `least` bytes.
    pub fn at_most(wanted: usize, least: usize) -> Result<Self> {
        let mut bytes = wanted.max(least);
        loop {
            match Self::new(bytes) {
                Err(Error::Memory { .. }) if bytes > least => bytes = (bytes / 2).max(least),
                reserved_or_refused => return reserved_or_refused,
            }
        }
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.mapping.length()
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The address of the first byte. All [`Reservation::len`] bytes from there on may be read and written through it,
    /// until the reservation is dropped.
    pub fn start(&self) -> NonNull<u8> {
        self.mapping.start()
    }

    /// The bytes of `range`, as an address with a length.
    ///
    /// # Errors
    /// [`Error::Memory`] if the range lies outside.
    pub fn range(&self, range: impl RangeBounds<usize>) -> Result<NonNull<[u8]>> {
        let Range { start, end } = checked_range("use", range, self.len())?;
        // SAFETY: the start lies in the mapping, or at its end (M1).
        let first = unsafe { self.start().add(start) };
        Ok(NonNull::slice_from_raw_parts(first, end - start))
    }

    /// Tells the system how the bytes of `range`, and the rest of their OS pages, are going to be used.
    ///
    /// # Errors
    /// [`Error::Memory`] if the range lies outside, or the system refuses or does not know the hint.
    pub fn hint(&self, range: impl RangeBounds<usize>, hint: Hint) -> Result<()> {
        self.mapping.advise(range, hint)
    }

    /// Makes the bytes of `range` zero, and gives the memory of every OS page that lies wholly in it back to the
    /// system until it is touched again. Costs a system call and, while other threads run, an interrupt to each of
    /// their processors: few long ranges are better than many short ones.
    ///
    /// # Safety
    /// Until this returns, no thread uses the bytes of `range`; and no reference to them is used afterwards.
    ///
    /// # Errors
    /// [`Error::Memory`] if the range lies outside, or the system refuses; then bytes of the range may be zero already.
    #[doc(alias = "dont_need")]
    pub unsafe fn give_back(&self, range: impl RangeBounds<usize>) -> Result<()> {
        // SAFETY: a reservation is writable (M2), and the range is unused (the caller).
        unsafe { self.mapping.discard(range) }
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("start", &self.start()).field("bytes", &self.len()).finish()
    }
}
