//! Memory as the system gives it: `mmap` and its relatives, through `rustix`.
#![allow(unsafe_code)]

use std::io;
use std::ops::{Range, RangeBounds};
use std::ptr::{self, NonNull};

use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};

use super::{Charge, NOWHERE, checked_range, refused, suitable_alignment};
use crate::Result;
use crate::memory::hint::{Hint, page_bytes, system_page_bytes};
use crate::memory::protection::Protection;

/// What a new mapping allows.
const READ_WRITE: Protection = Protection { read: true, write: true, exec: false };

/// Whole OS pages `[start, start + length)` that nobody else unmaps, moves or protects (M1); none if `length` is zero.
pub(in crate::memory) struct Mapping {
    start: NonNull<u8>,
    length: usize,
    protection: Protection,
}

// SAFETY: a mapping belongs to the process, not to a thread. Through `&Mapping` one gets its address and gives advice,
// which the system orders itself; everything that touches bytes is unsafe, or done by types that say who may (M2, M5).
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(in crate::memory) const EMPTY: Self = Self { start: NOWHERE, length: 0, protection: READ_WRITE };

    pub(in crate::memory) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(in crate::memory) fn length(&self) -> usize {
        self.length
    }

    /// As [`Mapping::new`], of `length` bytes: whole OS pages, and not none.
    pub(super) fn obtain(length: usize, alignment: usize, charge: Charge) -> io::Result<Self> {
        Ok(Self::map_aligned(length, alignment, READ_WRITE, charge)?)
    }

    /// A mapping that starts at a multiple of `alignment`, and of a huge page if it has room for one and the address
    /// space allows.
    fn map_aligned(length: usize, alignment: usize, protection: Protection, charge: Charge) -> Result<Self, Errno> {
        let suitable = suitable_alignment(length).max(alignment);
        // Newer kernels align by themselves, so this is mostly all.
        let plain = Self::map(length, protection, charge)?;
        if plain.is_aligned(suitable) {
            return Ok(plain);
        }
        let padding = suitable - system_page_bytes();
        let padded = Self::map(length.checked_add(padding).ok_or(Errno::NOMEM)?, protection, charge);
        match padded.and_then(|padded| padded.cut_to_alignment(suitable, length)) {
            Err(_) if plain.is_aligned(alignment) => Ok(plain),
            aligned_or_refused => aligned_or_refused,
        }
    }

    fn map(length: usize, protection: Protection, charge: Charge) -> Result<Self, Errno> {
        let flags = MapFlags::PRIVATE | flags_of(charge);
        // SAFETY: without an address the system chooses one where nothing is mapped.
        let start = unsafe { mm::mmap_anonymous(ptr::null_mut(), length, map_flags_of(protection), flags) }?;
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { start, length, protection })
    }

    fn is_aligned(&self, alignment: usize) -> bool {
        self.start.addr().get().is_multiple_of(alignment)
    }

    /// The part of this mapping, `length` bytes long, that starts at the first multiple of `alignment`.
    fn cut_to_alignment(mut self, alignment: usize, length: usize) -> Result<Self, Errno> {
        let address = self.start.addr().get();
        let head = address.next_multiple_of(alignment) - address;
        if head != 0 {
            // SAFETY: the mapping is ours (M1), new, and not shorter than its head.
            unsafe { mm::munmap(self.start.as_ptr().cast(), head) }?;
            // SAFETY: still within the mapping, of which `[start, start + head)` is no longer a part.
            self.start = unsafe { self.start.add(head) };
            self.length -= head;
        }
        // SAFETY: nothing refers to a new mapping.
        unsafe { self.cut_tail(length) }?;
        Ok(self)
    }

    /// Gives everything from `length` on back to the system.
    ///
    /// # Safety
    /// Nothing refers to bytes from `length` on.
    unsafe fn cut_tail(&mut self, length: usize) -> Result<(), Errno> {
        if length < self.length {
            // SAFETY: the tail is ours (M1), whole pages, and unused (the caller).
            unsafe { mm::munmap(self.start.add(length).as_ptr().cast(), self.length - length) }?;
            self.length = length;
        }
        Ok(())
    }

    /// Changes what may be done with the mapping. After an error it may be changed in part, and must not be used.
    pub(in crate::memory) fn protect(&mut self, protection: Protection) -> Result<()> {
        if protection == self.protection {
            return Ok(());
        }
        if self.length != 0 {
            // SAFETY: the mapping is ours (M1); `&mut self` is held by a `Pages` that is consumed, so no reference is
            // left that relies on the old protection (M2).
            unsafe { mm::mprotect(self.start.as_ptr().cast(), self.length, protect_flags_of(protection)) }
                .map_err(|source| refused("protection", self.length, source))?;
        }
        self.protection = protection;
        Ok(())
    }

    /// Tells the system how the OS pages around `range` will be used.
    pub(in crate::memory) fn advise(&self, range: impl RangeBounds<usize>, hint: Hint) -> Result<()> {
        let pages = pages_around(checked_range("advice", range, self.length)?);
        if pages.is_empty() {
            return Ok(());
        }
        let bytes = pages.len();
        let advise = |advice| {
            // SAFETY: the pages are ours (M1), and none of the advices of `advice_of` changes a byte.
            unsafe { mm::madvise(self.start.add(pages.start).as_ptr().cast(), bytes, advice) }
        };
        advice_of(hint, self.protection).and_then(advise).map_err(|source| refused("advice", bytes, source))
    }

    /// Makes whole pages zero and returns their memory.
    ///
    /// # Safety
    /// The pages lie in the mapping, are writable, and nothing refers to them.
    pub(super) unsafe fn discard_pages(&self, pages: Range<usize>) -> io::Result<()> {
        // SAFETY: the pages are ours (M1) and unused (the caller).
        let start = unsafe { self.start.add(pages.start) }.as_ptr().cast();
        #[cfg(target_os = "linux")]
        // SAFETY: as above. On private anonymous memory this is defined to drop the pages; the next access finds zeros.
        // (`posix_madvise` with the advice of this name does nothing on glibc.)
        unsafe {
            mm::madvise(start, pages.len(), Advice::LinuxDontNeed)?;
        }
        #[cfg(not(target_os = "linux"))]
        // SAFETY: as above. New pages in the place of the old ones: what every system understands.
        unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::FIXED;
            mm::mmap_anonymous(start, pages.len(), map_flags_of(self.protection), flags)?;
        }
        Ok(())
    }

    /// As [`Mapping::resize`], between lengths of whole OS pages that are not none.
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn resize_to(&mut self, length: usize, alignment: usize) -> io::Result<()> {
        // SAFETY: nothing refers to the mapping (the caller), which holds for each of the calls.
        unsafe {
            if length < self.length {
                return Ok(self.cut_tail(length)?);
            }
            #[cfg(target_os = "linux")]
            match self.remap(length, alignment) {
                // Hints for parts have split it for the system, which moves only what is in one piece.
                Err(Errno::FAULT) => {}
                // It could not grow where it is, and the system would not know how to align it elsewhere.
                Err(Errno::NOMEM) if alignment > system_page_bytes() => {}
                moved_or_refused => return Ok(moved_or_refused?),
            }
            Ok(self.copy_to_larger(length, alignment)?)
        }
    }

    /// Grows the mapping without touching its bytes: where it is, or by moving its page tables. Kernels from 6.7 on move
    /// what is a multiple of huge pages to a huge page's boundary, so that it stays on huge pages.
    ///
    /// # Safety
    /// As for [`Mapping::resize`].
    #[cfg(target_os = "linux")]
    unsafe fn remap(&mut self, length: usize, alignment: usize) -> Result<(), Errno> {
        use rustix::mm::MremapFlags;

        let flags = if alignment <= system_page_bytes() { MremapFlags::MAYMOVE } else { MremapFlags::empty() };
        // SAFETY: the mapping is ours (M1), and nothing refers to it (the caller).
        let start = unsafe { mm::mremap(self.start.as_ptr().cast(), self.length, length, flags) }?;
        self.start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        self.length = length;
        Ok(())
    }

    /// Grows the mapping by copying it to a new one.
    ///
    /// # Safety
    /// As for [`Mapping::resize`].
    unsafe fn copy_to_larger(&mut self, length: usize, alignment: usize) -> Result<(), Errno> {
        let larger = Self::map_aligned(length, alignment, self.protection, Charge::WhenMapped)?;
        // SAFETY: both are readable and writable (the caller), do not overlap (M1), and the new one is longer.
        unsafe { larger.start.copy_from_nonoverlapping(self.start, self.length) };
        *self = larger;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.length != 0 {
            // SAFETY: the pages are ours (M1), and every reference into them borrows what owns `self`.
            // A refusal (it needs a table entry that the system does not have) leaves them mapped: nothing to be done.
            let _ = unsafe { mm::munmap(self.start.as_ptr().cast(), self.length) };
        }
    }
}

/// The smallest range of whole OS pages that covers `range`.
fn pages_around(range: Range<usize>) -> Range<usize> {
    let page = page_bytes();
    range.start / page * page..range.end.next_multiple_of(page)
}

fn flags_of(charge: Charge) -> MapFlags {
    match charge {
        #[cfg(target_os = "linux")]
        Charge::WhenTouched => MapFlags::NORESERVE,
        _ => MapFlags::empty(),
    }
}

fn map_flags_of(protection: Protection) -> ProtFlags {
    let mut flags = ProtFlags::empty();
    flags.set(ProtFlags::READ, protection.read);
    flags.set(ProtFlags::WRITE, protection.write);
    flags.set(ProtFlags::EXEC, protection.exec);
    flags
}

fn protect_flags_of(protection: Protection) -> MprotectFlags {
    let mut flags = MprotectFlags::empty();
    flags.set(MprotectFlags::READ, protection.read);
    flags.set(MprotectFlags::WRITE, protection.write);
    flags.set(MprotectFlags::EXEC, protection.exec);
    flags
}

fn advice_of(hint: Hint, protection: Protection) -> Result<Advice, Errno> {
    Ok(match hint {
        Hint::Normal => Advice::Normal,
        Hint::Sequential => Advice::Sequential,
        Hint::Random => Advice::Random,
        Hint::WillNeed => Advice::WillNeed,
        #[cfg(target_os = "linux")]
        Hint::Populate if protection.write => Advice::LinuxPopulateWrite,
        #[cfg(target_os = "linux")]
        Hint::Populate => Advice::LinuxPopulateRead,
        #[cfg(target_os = "linux")]
        Hint::HugePages => Advice::LinuxHugepage,
        #[cfg(target_os = "linux")]
        Hint::SmallPages => Advice::LinuxNoHugepage,
        #[cfg(not(target_os = "linux"))]
        Hint::Populate | Hint::HugePages | Hint::SmallPages => {
            let _ = protection;
            return Err(Errno::NOTSUP);
        }
    })
}
