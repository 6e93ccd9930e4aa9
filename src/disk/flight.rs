//! Writes that have begun and may not have ended.

use std::io;
use std::ops::Range;
#[cfg(target_os = "linux")]
use std::sync::Arc;

use super::AlignedBuffer;

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
    file: Arc<std::fs::File>,
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
        file: &Arc<std::fs::File>,
        bytes: &Arc<AlignedBuffer>,
        parts: &[WritePart],
    ) -> io::Result<Option<Self>> {
        let numbers = ring.begin(file, bytes, parts)?;
        let begun = |numbers| {
            let (ring, file, bytes) = (Arc::clone(ring), Arc::clone(file), Arc::clone(bytes));
            Self(Some(Begun { ring, file, bytes, numbers, parts: parts.to_vec() }))
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

    /// A short or interrupted write is ended by plain calls.
    fn complete(&self, part: &WritePart, written: io::Result<usize>) -> io::Result<()> {
        let written = match written {
            Ok(written) => written,
            Err(error) if is_to_be_continued(&error) => 0,
            Err(error) => return Err(error),
        };
        let rest = part.of(&self.bytes)?.get(written..).unwrap_or_default();
        super::transfer::write_all(part.offset + written as u64, &[io::IoSlice::new(rest)], |offset, buffers| {
            super::system::write(&self.file, offset, buffers, super::system::Durable::AtSync)
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
