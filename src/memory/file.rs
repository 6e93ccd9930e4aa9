//! A file as memory, for reading only.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::RangeBounds;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use memmap2::{Advice, Mmap, MmapOptions, MmapRaw, UncheckedAdvice};

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

/// A file that grows, mapped for reading: one mapping with room beyond the file's end, so that bytes stay where they
/// are when the file becomes longer.
///
/// Making one is safe, since it hands out nothing; each look at bytes states what its caller answers for.
#[derive(Debug)]
pub struct GrowingFile {
    map: MmapRaw,
    file: File,
    /// Bytes of the mapping that lie within the file, as far as is known.
    present: AtomicUsize,
}

impl GrowingFile {
    /// Address space that is mapped if the system gives it: 1 TiB, or 16 times the file.
    const ROOM_BYTES: u64 = 1 << 40;

    /// Maps `file`, which may grow; the descriptor may be one for reading only.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the system refuses.
    pub fn new(file: File) -> Result<Self> {
        let bytes = |source| refused("map", 0, source);
        let length = file.metadata().map_err(bytes)?.len();
        let mut room = length.saturating_mul(16).max(Self::ROOM_BYTES);
        loop {
            let wanted = usize::try_from(room).unwrap_or(isize::MAX as usize).max(1);
            match MmapOptions::new().len(wanted).map_raw_read_only(&file) {
                Ok(map) => {
                    // Where the page cache can have huge pages; it is only slower without.
                    #[cfg(target_os = "linux")]
                    let _ = map.advise(Advice::HugePage);
                    return Ok(Self { map, file, present: AtomicUsize::new(0) });
                }
                // Less room will do: bytes beyond it are read by other ways.
                Err(_) if room > length.max(1) => room = (room / 16).max(length).max(1),
                Err(source) => return Err(refused("map", wanted, source)),
            }
        }
    }

    /// The bytes of the file from `offset` on; `None` if they lie beyond its end, or beyond the mapping's.
    ///
    /// # Safety
    /// As long as the slice lives, nobody changes these bytes of the file or makes it shorter than to have them, in
    /// this process or another. (Bytes that change under a `&[u8]` are undefined behaviour; those beyond a new end kill
    /// the process by SIGBUS.)
    #[inline]
    pub unsafe fn bytes(&self, offset: u64, length: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(length)?;
        if end > self.present.load(Ordering::Relaxed) && end > self.look()? {
            return None;
        }
        // SAFETY: the range lies in the mapping and, as was asked, in the file (M1); its bytes stay as they are (the
        // caller).
        Some(unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(start), length) })
    }

    /// Tells the system that the bytes of the file from `offset` on will be read: it may begin with that. What lies
    /// beyond the mapping is left out.
    pub fn will_need(&self, offset: u64, length: u64) {
        let page = super::page_bytes() as u64;
        let start = offset - offset % page;
        let end = offset.saturating_add(length).min(self.map.len() as u64);
        if let (true, Ok(start), Ok(length)) =
            (start < end, usize::try_from(start), usize::try_from(end.saturating_sub(start)))
        {
            // A hint: without it, it is only slower.
            let _ = self.map.advise_range(Advice::WillNeed, start, length);
        }
    }

    /// Asks how long the file is now, as far as the mapping goes.
    #[cold]
    fn look(&self) -> Option<usize> {
        let length = usize::try_from(self.file.metadata().ok()?.len()).unwrap_or(usize::MAX).min(self.map.len());
        self.present.fetch_max(length, Ordering::Relaxed);
        Some(length)
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
