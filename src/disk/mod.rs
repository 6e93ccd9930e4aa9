//! The disk: positioned transfers, syncs and the length of one file. Knows nothing of formats.
//!
//! # What a disk promises, and what it does not
//!
//! - **D1** A write may be cached, reordered with other writes and torn (at any multiple of 16 bytes) until a sync
//!   that started after it returned has itself returned. The same holds for a change of the length.
//! - **D2** [`Disk::sync`] makes durable everything whose call had returned before the sync began.
//! - **D3** [`Disk::write_durable_at`] makes durable exactly its own bytes (and the length they need), nothing written
//!   before. It may stand for a commit's sync only if every byte the commit depends on is in that one call or durable
//!   already.
//! - **D4** A write to a block does not damage other blocks.
//! - **D5** After a failed sync nothing is known of any write since the last one that succeeded: a later sync that
//!   succeeds says nothing of them, and a read may return bytes that the medium does not hold.
//!
//! | disk | what it is |
//! | --- | --- |
//! | [`FileDisk`] | a regular file, by plain system calls; through the page cache or around it |
//! | [`MemoryDisk`] | memory, with a limit if one is wanted |
//! | `SimulatedDisk` | memory that can tell every state a power cut could leave (feature `testing`) |
//! | `FaultyDisk` | any other disk with errors and silent damage at chosen operations (feature `testing`) |
//!
//! Callers: `store` (all writing), `map`, `reader`. Every method may be called from any thread.

mod aligned;
#[cfg(any(test, feature = "testing"))]
mod choices;
#[cfg(test)]
mod conformance;
#[cfg(any(test, feature = "testing"))]
mod crash;
mod direct;
#[cfg(any(test, feature = "testing"))]
mod fault;
#[cfg(any(test, feature = "testing"))]
mod faulty;
mod file;
mod flight;
#[cfg(any(test, feature = "testing"))]
mod image;
mod memory;
mod open;
mod pieces;
#[cfg(all(target_os = "linux", feature = "prefetch-ring"))]
mod reads;
#[cfg(target_os = "linux")]
mod ring;
#[cfg(any(test, feature = "testing"))]
mod sample;
#[cfg(any(test, feature = "testing"))]
mod simulated;
mod system;
mod transfer;
#[cfg(test)]
mod writeback;

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::Arc;

pub use aligned::AlignedBuffer;
#[cfg(any(test, feature = "testing"))]
pub use crash::{BlockVersion, Cause, CrashPoint, StateDescription, Tear};
#[cfg(any(test, feature = "testing"))]
pub use fault::{Effect, FaultPlan, Operation, Operations, Performed, Span, SystemError};
#[cfg(any(test, feature = "testing"))]
pub use faulty::{FaultyDisk, PlanNumber};
pub use file::FileDisk;
pub use flight::{InFlight, WritePart};
#[cfg(any(test, feature = "testing"))]
pub use image::Image;
pub use memory::MemoryDisk;
pub use open::{Access, Caching};
#[cfg(all(target_os = "linux", feature = "prefetch-ring"))]
pub(crate) use reads::ReadRing;
#[cfg(any(test, feature = "testing"))]
pub use simulated::SimulatedDisk;

/// One file's bytes, as described in the [module's promises](self).
///
/// Transfers are whole or fail: an implementation continues short and interrupted transfers itself, and a read beyond
/// the end is [`io::ErrorKind::UnexpectedEof`]. Offsets and lengths may be anything; an implementation that has
/// alignment needs (direct I/O) meets them itself.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// What error messages call this disk.
    fn path(&self) -> &Path;

    /// Fills `buffers`, in order, with the bytes from `offset` on.
    ///
    /// # Errors
    /// The system's, and [`io::ErrorKind::UnexpectedEof`] if the file ends before the buffers are full.
    fn read_vectored_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()>;

    /// Writes `buffers`, in order, from `offset` on, growing the file where needed.
    ///
    /// # Errors
    /// The system's; then any part may have been written.
    fn write_vectored_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()>;

    /// As [`Disk::write_vectored_at`], and durable when it returns (D3).
    ///
    /// # Errors
    /// The system's; then any part may have been written, and nothing is known to be durable.
    fn write_durable_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()>;

    /// Makes everything durable that was written before (D2).
    ///
    /// # Errors
    /// The system's; see D5. Never to be retried.
    fn sync(&self) -> io::Result<()>;

    /// The file's length in bytes.
    ///
    /// # Errors
    /// The system's.
    fn length(&self) -> io::Result<u64>;

    /// Sets the file's length in bytes; new bytes are zero.
    ///
    /// # Errors
    /// The system's.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Obtains space for `[offset, offset + length)`, growing the file where needed, so that later writes there do not
    /// fail for want of it. New bytes are zero.
    ///
    /// # Errors
    /// The system's, above all [`io::ErrorKind::StorageFull`] and [`io::ErrorKind::QuotaExceeded`].
    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Gives the space of `[offset, offset + length)` back to the file system; the bytes read as zero afterwards. A
    /// disk that cannot do so may do nothing at all.
    ///
    /// # Errors
    /// The system's.
    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()>;

    /// Begins to write parts of `bytes`, each to its own place. The disk may go on with it after this has returned: for
    /// D1 and D2 the parts have been written when it has landed.
    ///
    /// # Errors
    /// As [`Disk::write_vectored_at`]. A disk that cannot begin without ending, as here, writes at once.
    fn begin_writes(&self, bytes: &Arc<AlignedBuffer>, parts: &[WritePart]) -> io::Result<InFlight> {
        for part in parts {
            self.write_at(part.offset, part.of(bytes)?)?;
        }
        Ok(InFlight::landed())
    }

    /// The system's file in which the bytes lie at the same offsets, if there is one: whole blocks at a block's offset
    /// can be read from it into memory at a multiple of 4096 by whatever means, as if by [`Disk::read_at`]. A disk that
    /// wants to see every read has none.
    fn file_of_blocks(&self) -> Option<&File> {
        None
    }

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// As [`Disk::read_vectored_at`].
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_vectored_at(offset, &mut [IoSliceMut::new(buffer)])
    }

    /// Writes `bytes` from `offset` on.
    ///
    /// # Errors
    /// As [`Disk::write_vectored_at`].
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_vectored_at(offset, &[IoSlice::new(bytes)])
    }
}
