//! The disk as the store uses it: errors with their context, and poison.
//!
//! After a failed sync nothing is known of what was written (disk promise D5), so the first error of a sync, or of a
//! write that covers a record or a superblock, refuses every later write. Syncs are taken one at a time: an error that
//! one of two concurrent syncs reports may concern what the other was to make durable.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::NewSpace;
use crate::disk::{AlignedBuffer, Disk, InFlight, WritePart};
use crate::error::{Error, Result};
use crate::id::Block;

/// The store's disk, and whether it may still be written.
#[derive(Debug)]
pub struct Medium {
    disk: Arc<dyn Disk>,
    poison: Mutex<Option<String>>,
}

impl Medium {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, poison: Mutex::new(None) }
    }

    /// The disk itself.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The file's name, for errors.
    pub fn path(&self) -> &Path {
        self.disk.path()
    }

    /// The first failure, if writing is refused because of one.
    pub fn poison(&self) -> Option<String> {
        self.lock().clone()
    }

    /// Fails if an earlier failure refuses writing.
    pub(super) fn check(&self) -> Result<()> {
        self.refuse(&self.lock())
    }

    fn refuse(&self, poison: &Option<String>) -> Result<()> {
        match poison {
            None => Ok(()),
            Some(reason) => Err(Error::Poisoned { path: self.path().into(), reason: reason.clone() }),
        }
    }

    /// Writes what no record names yet. A failure harms nothing but the caller's own work.
    pub(super) fn write(&self, start: Block, bytes: &[u8]) -> Result<()> {
        self.check()?;
        let offset = start.offset_bytes();
        self.disk.write_at(offset, bytes).map_err(|source| self.error("write", Some(offset), source))
    }

    /// As [`Medium::write`], from several places in memory.
    pub(super) fn write_vectored(&self, start: Block, buffers: &[IoSlice<'_>]) -> Result<()> {
        self.check()?;
        let offset = start.offset_bytes();
        self.disk.write_vectored_at(offset, buffers).map_err(|source| self.error("write", Some(offset), source))
    }

    /// As [`Medium::write`] for parts of a buffer, and may return before they are written: that is told by
    /// [`Medium::land`].
    pub(super) fn begin_writes(&self, bytes: &Arc<AlignedBuffer>, parts: &[WritePart]) -> Result<InFlight> {
        self.check()?;
        self.disk.begin_writes(bytes, parts).map_err(|source| self.error("write", first_offset(parts), source))
    }

    /// Waits until writes of these parts have ended.
    pub(super) fn land(&self, parts: &[WritePart], writes: InFlight) -> Result<()> {
        writes.land().map_err(|source| self.error("write", first_offset(parts), source))
    }

    /// Refuses writing from now on because of `error`: a record that was written may name what was not.
    pub(super) fn poison_with(&self, error: &Error) {
        self.lock().get_or_insert_with(|| error.to_string());
    }

    /// Writes a record (and what lies behind it) or a superblock. A failure poisons.
    pub(super) fn write_vital(&self, start: Block, bytes: &[u8]) -> Result<()> {
        self.vitally("write", Some(start.offset_bytes()), |disk, offset| disk.write_at(offset, bytes))
    }

    /// As [`Medium::write_vital`] for the first `length` bytes of a buffer, and may return before they are written: that
    /// is told by [`Medium::land_vital`].
    pub(super) fn begin_vital(&self, start: Block, bytes: &Arc<AlignedBuffer>, length: usize) -> Result<InFlight> {
        let part = WritePart { offset: start.offset_bytes(), range: 0..length };
        let mut writes = InFlight::landed();
        self.vitally("write", Some(part.offset), |disk, _| {
            writes = disk.begin_writes(bytes, &[part])?;
            Ok(())
        })?;
        Ok(writes)
    }

    /// Waits until a write at `start` that was begun has ended. A failure poisons.
    pub(super) fn land_vital(&self, start: Block, writes: InFlight) -> Result<()> {
        self.vitally("write", Some(start.offset_bytes()), |_, _| writes.land())
    }

    /// As [`Medium::write_vital`], and durable by itself (disk promise D3).
    pub(super) fn write_vital_durably(&self, start: Block, bytes: &[u8]) -> Result<()> {
        self.vitally("durable write", Some(start.offset_bytes()), |disk, offset| {
            disk.write_durable_at(offset, &[IoSlice::new(bytes)])
        })
    }

    /// Makes everything written before durable. A failure poisons.
    pub(super) fn sync(&self) -> Result<()> {
        self.vitally("sync", None, |disk, _| disk.sync())
    }

    fn vitally(
        &self,
        operation: &'static str,
        offset: Option<u64>,
        act: impl FnOnce(&dyn Disk, u64) -> io::Result<()>,
    ) -> Result<()> {
        let mut poison = self.lock();
        self.refuse(&poison)?;
        act(&*self.disk, offset.unwrap_or(0)).map_err(|source| {
            let error = self.error(operation, offset, source);
            *poison = Some(error.to_string());
            #[cfg(feature = "tracing")]
            tracing::error!(%error, "poisoned: no more writes until the store is opened again");
            error
        })
    }

    /// Obtains space for `blocks` blocks from `from` on, and writes it if that is wanted.
    pub(super) fn grow(&self, from: Block, blocks: u64, new_space: NewSpace) -> Result<()> {
        self.check()?;
        let (offset, length) = (from.offset_bytes(), Block(blocks).offset_bytes());
        self.disk.preallocate(offset, length).map_err(|source| self.error("preallocate", Some(offset), source))?;
        match new_space {
            NewSpace::Prewritten => self.write_zeros(from, blocks),
            NewSpace::Obtained => Ok(()),
        }
    }

    /// Makes the file end at `end`, beyond its present end, without obtaining space.
    pub(super) fn lengthen(&self, end: Block) -> Result<()> {
        self.check()?;
        let length = end.offset_bytes();
        self.disk.set_length(length).map_err(|source| self.error("set length", Some(length), source))
    }

    /// Writes zeros to blocks that nobody uses.
    pub(super) fn write_zeros(&self, from: Block, blocks: u64) -> Result<()> {
        // What the page cache gets in one piece it can keep in one, and a reader that maps the file finds it in one step.
        const PIECE_BYTES: u64 = 2 << 20;
        self.check()?;
        let (offset, length) = (from.offset_bytes(), Block(blocks).offset_bytes());
        let zeros = AlignedBuffer::zeroed(PIECE_BYTES.min(length) as usize);
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let until = (at / PIECE_BYTES + 1) * PIECE_BYTES;
            let piece = &zeros[..(until.min(end) - at) as usize];
            self.disk.write_at(at, piece).map_err(|source| self.error("write", Some(at), source))?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    pub(super) fn read(&self, start: Block, bytes: &mut [u8]) -> Result<()> {
        let offset = start.offset_bytes();
        self.disk.read_at(offset, bytes).map_err(|source| self.error("read", Some(offset), source))
    }

    pub(super) fn length_bytes(&self) -> Result<u64> {
        self.disk.length().map_err(|source| self.error("length", None, source))
    }

    pub(super) fn error(&self, operation: &'static str, offset: Option<u64>, source: io::Error) -> Error {
        Error::Io { operation, path: self.path().into(), offset, source }
    }

    /// A panic while the lock is held leaves the value whole.
    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.poison.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where writes in several parts begin, for errors.
fn first_offset(parts: &[WritePart]) -> Option<u64> {
    parts.first().map(|part| part.offset)
}
