//! The raw calls of a file disk: what Linux has, and what other systems have instead.
//!
//! | | Linux | elsewhere |
//! | --- | --- | --- |
//! | durable write | `pwritev2` with `RWF_DSYNC` | refused: the caller writes and syncs |
//! | sync | `fdatasync` | `fcntl(F_FULLFSYNC)` on macOS, whose `fsync` leaves the disk's cache alone |
//! | allocate, punch a hole | `fallocate` | refused: the caller writes zeros, or does without |
//!
//! A transfer of one buffer is `pread` or `pwrite`, of several `preadv` or `pwritev`. All calls go through the functions of
//! the C library, so that whatever is put between it and a program (`LD_PRELOAD`: fault injectors, recorders of what was
//! not synced) sees them.
//!
//! "Refused" is `EOPNOTSUPP`, as a file system says it that cannot do so; see [`is_refused`].

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};

use rustix::io::Errno;

/// Whether a write is durable when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durable {
    /// It is.
    Now,
    /// It is after the next sync.
    AtSync,
}

pub(super) fn read(file: &File, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    Ok(match buffers {
        [buffer] => rustix::io::pread(file, &mut **buffer, offset)?,
        buffers => rustix::io::preadv(file, buffers, offset)?,
    })
}

fn write_plainly(file: &File, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
    Ok(match buffers {
        [buffer] => rustix::io::pwrite(file, buffer, offset)?,
        buffers => rustix::io::pwritev(file, buffers, offset)?,
    })
}

#[cfg(target_os = "linux")]
pub(super) fn write(file: &File, offset: u64, buffers: &[IoSlice<'_>], durable: Durable) -> io::Result<usize> {
    use rustix::io::{ReadWriteFlags, pwritev2};
    match durable {
        Durable::Now => Ok(pwritev2(file, buffers, offset, ReadWriteFlags::DSYNC)?),
        Durable::AtSync => write_plainly(file, offset, buffers),
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn write(file: &File, offset: u64, buffers: &[IoSlice<'_>], durable: Durable) -> io::Result<usize> {
    match durable {
        Durable::Now => Err(Errno::OPNOTSUPP.into()),
        Durable::AtSync => write_plainly(file, offset, buffers),
    }
}

#[cfg(target_vendor = "apple")]
pub(super) fn sync(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fcntl_fullfsync(file)?)
}

#[cfg(not(target_vendor = "apple"))]
pub(super) fn sync(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fdatasync(file)?)
}

#[cfg(target_os = "linux")]
pub(super) fn allocate(file: &File, offset: u64, length: u64) -> io::Result<()> {
    Ok(rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), offset, length)?)
}

#[cfg(target_os = "linux")]
pub(super) fn punch_hole(file: &File, offset: u64, length: u64) -> io::Result<()> {
    use rustix::fs::FallocateFlags;
    Ok(rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)?)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn allocate(_: &File, _: u64, _: u64) -> io::Result<()> {
    Err(Errno::OPNOTSUPP.into())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn punch_hole(_: &File, _: u64, _: u64) -> io::Result<()> {
    Err(Errno::OPNOTSUPP.into())
}

/// Whether the system or the file system does not know the operation; it has done nothing then.
pub(super) fn is_refused(error: &io::Error) -> bool {
    [Errno::OPNOTSUPP, Errno::NOSYS].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Whether `RWF_DSYNC` means what it says. A file system in user space, or on another machine by 9p, may be told
/// of the flag and ignore it; what such systems do implement is `fsync`.
#[cfg(target_os = "linux")]
pub(super) fn durable_write_is_to_be_trusted(file: &File) -> bool {
    const FUSE: i128 = 0x6573_5546;
    const PLAN_9: i128 = 0x0102_1997;
    rustix::fs::fstatfs(file).is_ok_and(|answer| ![FUSE, PLAN_9].contains(&i128::from(answer.f_type)))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn durable_write_is_to_be_trusted(_: &File) -> bool {
    false
}
