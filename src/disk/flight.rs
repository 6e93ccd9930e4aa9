//! Writes that have begun and may not have ended.

use std::io;
use std::ops::Range;
#[cfg(target_os = "linux")]
use std::sync::Arc;

use super::AlignedBuffer;
#[cfg(target_os = "linux")]
use super::direct::{Descriptors, Way};

/// A part of a buffer, and where in the file it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WritePart {
    /// Bytes from the file's start.
    pub offset: u64,
    /// The part of the buffer.
    pub range: Range<usize>,
}

impl WritePart {
    /// The part's bytes.
    ///
    /// # Errors
    /// `InvalidInput` if the buffer does not have them.
    pub fn of<'a>(&self, bytes: &'a AlignedBuffer) -> io::Result<&'a [u8]> {
        bytes.get(self.range.clone()).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

/// Writes that [`Disk::begin_writes`](super::Disk::begin_writes) began. Until they have landed, none, some or all of
/// their bytes may be in the file. Dropping it waits for that, and does not tell how it went.
#[derive(Debug)]
pub struct InFlight(Option<Begun>);

/// Writes that the system has and has not ended, for all we know.
#[cfg(target_os = "linux")]
#[derive(Debug)]
struct Begun {
    ring: Arc<super::ring::Ring>,
    files: Arc<Descriptors>,
    bytes: Arc<AlignedBuffer>,
    /// By what the ring knows them.
    numbers: Range<u64>,
    parts: Vec<WritePart>,
}

/// Other systems end each write before they say that it has begun.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
enum Begun {}

impl InFlight {
    /// Writes that have ended well.
    pub fn landed() -> Self {
        Self(None)
    }

    /// Waits until all have ended.
    ///
    /// # Errors
    /// The first of the system's; then anything may have been written.
    pub fn land(mut self) -> io::Result<()> {
        match self.0.take() {
            Some(begun) => begun.land(),
            None => Ok(()),
        }
    }

    /// Whether it is known already that one has failed. Does not wait.
    pub fn has_failed(&self) -> bool {
        self.0.as_ref().is_some_and(Begun::has_failed)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(begun) = self.0.take() {
            // Who drops it gives up what it was for.
            let _ = begun.land();
        }
    }
}

#[cfg(target_os = "linux")]
impl InFlight {
    /// Begins writes by a ring; `None` if the ring does not take so many more.
    pub(super) fn begin(
        ring: &Arc<super::ring::Ring>,
        files: &Arc<Descriptors>,
        bytes: &Arc<AlignedBuffer>,
        parts: &[WritePart],
    ) -> io::Result<Option<Self>> {
        let numbers = ring.begin(files.for_call(Way::Direct, 0), bytes, parts)?;
        let begun = |numbers| {
            let (ring, files, bytes) = (Arc::clone(ring), Arc::clone(files), Arc::clone(bytes));
            Self(Some(Begun { ring, files, bytes, numbers, parts: parts.to_vec() }))
        };
        Ok(numbers.map(begun))
    }
}

#[cfg(target_os = "linux")]
impl Begun {
    fn has_failed(&self) -> bool {
        let failed = |result: io::Result<usize>| result.is_err_and(|error| !is_to_be_continued(&error));
        self.numbers.clone().any(|number| self.ring.poll(number).is_some_and(failed))
    }

    fn land(self) -> io::Result<()> {
        let written = self.ring.wait(self.numbers.clone())?;
        self.parts.iter().zip(written).try_for_each(|(part, written)| self.complete(part, written))
    }

    /// A short or interrupted write is ended by plain calls: through the cache, if it is to go on inside of a block.
    fn complete(&self, part: &WritePart, written: io::Result<usize>) -> io::Result<()> {
        let written = match written {
            Ok(written) => written,
            Err(error) if is_to_be_continued(&error) => 0,
            Err(error) => return Err(error),
        };
        let rest = part.of(&self.bytes)?.get(written..).unwrap_or_default();
        super::transfer::write_all(part.offset + written as u64, &[io::IoSlice::new(rest)], |offset, buffers| {
            let file = self.files.for_call(Way::Direct, offset);
            super::system::write(file, offset, buffers, super::system::Durable::AtSync)
        })
    }
}

/// Whether nothing was done, and a plain call will do it.
#[cfg(target_os = "linux")]
fn is_to_be_continued(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock)
}

#[cfg(not(target_os = "linux"))]
impl Begun {
    fn has_failed(&self) -> bool {
        match *self {}
    }

    fn land(self) -> io::Result<()> {
        match self {}
    }
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use super::super::open::direct_again;
    use super::super::ring::Ring;
    use super::*;
    use crate::id::BLOCK_LENGTH;

    /// Two blocks on their way to the file's third, of which the system says that so many bytes were written.
    fn completed(written: io::Result<usize>) -> Option<(io::Result<()>, Vec<u8>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [1; 4 * BLOCK_LENGTH]).unwrap();
        let cached = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        // Neither is there everywhere.
        let direct = Some(direct_again(&cached).ok()?);
        let ring = Arc::new(Ring::new().ok()?);
        let part = WritePart { offset: 2 * BLOCK_LENGTH as u64, range: 0..2 * BLOCK_LENGTH };
        let begun = Begun {
            ring,
            files: Arc::new(Descriptors { cached, direct }),
            bytes: Arc::new(AlignedBuffer::copy_of(&[2; 2 * BLOCK_LENGTH])),
            numbers: 0..0,
            parts: Vec::new(),
        };
        let result = begun.complete(&part, written);
        Some((result, std::fs::read(&path).unwrap()))
    }

    #[test]
    fn a_short_write_goes_on_wherever_it_ended() {
        for written in [0, 100, 512, 4095, 4096, 4097, 8191, 8192] {
            let Some((result, bytes)) = completed(Ok(written)) else { return };
            result.unwrap_or_else(|error| panic!("after {written} bytes: {error}"));
            // Those that the system is said to have written were not.
            let end = 2 * BLOCK_LENGTH + written;
            assert!(bytes[..end].iter().all(|byte| *byte == 1) && bytes[end..].iter().all(|byte| *byte == 2));
        }
    }

    #[test]
    fn an_interrupted_write_is_made_and_a_failed_one_told() {
        let Some((result, bytes)) = completed(Err(io::ErrorKind::Interrupted.into())) else { return };
        result.unwrap();
        assert!(bytes[2 * BLOCK_LENGTH..].iter().all(|byte| *byte == 2));
        let Some((result, bytes)) = completed(Err(io::ErrorKind::StorageFull.into())) else { return };
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(bytes.iter().all(|byte| *byte == 1));
    }
}
