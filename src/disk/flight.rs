//! A write that has begun and may not have ended.

use std::io;
use std::sync::Arc;

use super::AlignedBuffer;

/// A write that [`Disk::begin_write_at`](super::Disk::begin_write_at) began. Until it has landed, none, some or all of
/// its bytes may be in the file. Dropping it waits for that, and does not tell how it went.
#[derive(Debug)]
pub struct InFlight(Option<Begun>);

/// A write that the system has and has not ended, for all we know.
#[derive(Debug)]
struct Begun {
    #[cfg(target_os = "linux")]
    ring: Arc<super::ring::Ring>,
    #[cfg(target_os = "linux")]
    number: u64,
    #[cfg(target_os = "linux")]
    file: Arc<std::fs::File>,
    offset: u64,
    bytes: Arc<AlignedBuffer>,
    length: usize,
}

impl InFlight {
    /// A write that has ended well.
    pub fn landed() -> Self {
        Self(None)
    }

    /// Waits until the write has ended.
    ///
    /// # Errors
    /// The system's; then any part may have been written.
    pub fn land(mut self) -> io::Result<()> {
        match self.0.take() {
            Some(begun) => begun.land(),
            None => Ok(()),
        }
    }

    /// Whether it is known already that the write has failed. Does not wait.
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
    /// Begins a write by a ring; `None` if the ring takes no more.
    pub(super) fn begin(
        ring: &Arc<super::ring::Ring>,
        file: &Arc<std::fs::File>,
        offset: u64,
        bytes: &Arc<AlignedBuffer>,
        length: usize,
    ) -> io::Result<Option<Self>> {
        let number = ring.begin(file, offset, bytes, length)?;
        let begun = |number| {
            let (ring, file, bytes) = (Arc::clone(ring), Arc::clone(file), Arc::clone(bytes));
            Self(Some(Begun { ring, number, file, offset, bytes, length }))
        };
        Ok(number.map(begun))
    }
}

#[cfg(target_os = "linux")]
impl Begun {
    fn has_failed(&self) -> bool {
        self.ring.poll(self.number).is_some_and(|result| result.is_err_and(|error| !is_to_be_continued(&error)))
    }

    /// A short or interrupted write is ended by plain calls.
    fn land(self) -> io::Result<()> {
        let written = match self.ring.wait(self.number) {
            Ok(written) => written,
            Err(error) if is_to_be_continued(&error) => 0,
            Err(error) => return Err(error),
        };
        let rest = self.bytes.get(written..self.length).unwrap_or_default();
        super::transfer::write_all(self.offset + written as u64, &[io::IoSlice::new(rest)], |offset, buffers| {
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
        false
    }

    fn land(self) -> io::Result<()> {
        Ok(())
    }
}
