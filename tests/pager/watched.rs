//! A disk in memory that tells of each call before it is made, and may be told not to make it.

use std::fmt::Debug;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use vellum::disk::{Disk, MemoryDisk, Operation};

/// Who hears of the calls, in the thread that makes them.
pub(crate) trait Watch: Debug + Send + Sync {
    fn called(&self, _: Operation) {}

    /// As `called`, with what is to be written where. An error is the call's.
    fn asked(&self, operation: Operation, _: u64, _: &[IoSlice<'_>]) -> io::Result<()> {
        self.called(operation);
        Ok(())
    }
}

/// See the module. It is used as who watches it, too.
#[derive(Debug)]
pub(crate) struct Watched<W> {
    pub(crate) disk: Arc<MemoryDisk>,
    watch: W,
}

impl<W: Watch> Watched<W> {
    pub(crate) fn new(disk: Arc<MemoryDisk>, watch: W) -> Arc<Self> {
        Arc::new(Self { disk, watch })
    }

    fn tell(&self, operation: Operation) -> &MemoryDisk {
        self.watch.called(operation);
        &self.disk
    }
}

impl<W> Deref for Watched<W> {
    type Target = W;

    fn deref(&self) -> &W {
        &self.watch
    }
}

impl<W: Watch> Disk for Watched<W> {
    fn path(&self) -> &Path {
        self.disk.path()
    }

    fn read_vectored_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.tell(Operation::Read).read_vectored_at(offset, buffers)
    }

    fn write_vectored_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.watch.asked(Operation::Write, offset, buffers)?;
        self.disk.write_vectored_at(offset, buffers)
    }

    fn write_durable_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.watch.asked(Operation::DurableWrite, offset, buffers)?;
        self.disk.write_durable_at(offset, buffers)
    }

    fn sync(&self) -> io::Result<()> {
        self.watch.asked(Operation::Sync, 0, &[])?;
        self.disk.sync()
    }

    fn length(&self) -> io::Result<u64> {
        self.tell(Operation::Length).length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.tell(Operation::SetLength).set_length(length)
    }

    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.tell(Operation::Preallocate).preallocate(offset, length)
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        self.tell(Operation::PunchHole).punch_hole(offset, length)
    }
}
