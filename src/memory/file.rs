//! A file as memory, for reading only.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::RangeBounds;
use std::ptr::NonNull;

use memmap2::{Advice, Mmap, MmapOptions, UncheckedAdvice};

use super::hint::Hint;
use super::mapping::{checked_range, refused};
use super::pages::{Backing, Pages, sealed};
use super::protection::{AllowRead, DenyExec, DenyWrite};
use crate::Result;

/// A file behind [`Pages`].
pub struct MappedFile(Mmap);

impl Backing for MappedFile {}
impl sealed::Backing for MappedFile {
    fn start(&self) -> NonNull<u8> {
        NonNull::from(&self.0[..]).cast()
    }

    fn length(&self) -> usize {
        self.0.len()
    }

    fn advise(&self, range: impl RangeBounds<usize>, hint: Hint) -> Result<()> {
        let range = checked_range("advice", range, self.0.len())?;
        if range.is_empty() {
            return Ok(());
        }
        let bytes = range.len();
        let advise = |advice| self.0.advise_range(advice, range.start, bytes);
        advice_of(hint).and_then(advise).map_err(|source| refused("advice", bytes, source))
    }
}

impl Pages<AllowRead, DenyWrite, DenyExec, MappedFile> {
    /// The bytes of `file`, read by the system as they are touched. The length is the file's; the memory is whole OS
    /// pages. The file may be closed afterwards.
    ///
    /// # Safety
    /// Until the value is dropped, nobody writes to the file and nobody makes it shorter, in this process or another.
    /// (Bytes that change under a `&[u8]` are undefined behaviour; those beyond a new end kill the process by SIGBUS.)
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the system refuses.
    pub unsafe fn map(file: &File) -> Result<Self> {
        // SAFETY: the file stays as it is (the caller).
        let map = unsafe { MmapOptions::new().map(file) }.map_err(|source| {
            let bytes = file.metadata().map_or(0, |metadata| metadata.len());
            refused("map", usize::try_from(bytes).unwrap_or(usize::MAX), source)
        })?;
        Ok(Self::from_backing(MappedFile(map)))
    }

    /// Gives the memory of the OS pages around `range` back to the system. They are read from the file again when they
    /// are touched.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the range lies outside, or the system refuses.
    #[doc(alias = "dont_need")]
    pub fn release(&self, range: impl RangeBounds<usize>) -> Result<()> {
        let range = checked_range("release", range, self.len())?;
        if range.is_empty() {
            return Ok(());
        }
        let map = &self.backing().0;
        // SAFETY: the map is shared with the file and never written: what is dropped is read again, the same (M6).
        unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) }
            .map_err(|source| refused("release", range.len(), source))
    }
}

fn advice_of(hint: Hint) -> io::Result<Advice> {
    Ok(match hint {
        Hint::Normal => Advice::Normal,
        Hint::Sequential => Advice::Sequential,
        Hint::Random => Advice::Random,
        Hint::WillNeed => Advice::WillNeed,
        #[cfg(target_os = "linux")]
        Hint::Populate => Advice::PopulateRead,
        #[cfg(target_os = "linux")]
        Hint::HugePages => Advice::HugePage,
        #[cfg(target_os = "linux")]
        Hint::SmallPages => Advice::NoHugePage,
        #[cfg(not(target_os = "linux"))]
        Hint::Populate | Hint::HugePages | Hint::SmallPages => return Err(io::ErrorKind::Unsupported.into()),
    })
}
