//! A regular file, through plain positioned system calls.
//!
//! - **I1** `files.cached` is the file; lengths are asked of it. `files.direct`, where there is one, is a second descriptor
//!   of the same file, and gets whole blocks at blocks' offsets only. Locks are taken on the one that writes go to: a write that
//!   outlives its process holds it, and so the lock.
//! - **I2** A durable write is one system call where file system and alignment allow; else it is a write and a sync,
//!   which promise more (D3).
//! - **I3** Nothing is retried but a call that was interrupted before it did its work.
//!
//! Callers: whoever opens a store, through [`Disk`]; `process` for its locks. Any thread.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(target_os = "linux")]
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(target_os = "linux")]
use super::aligned::AlignedBuffer;
use super::direct::{self, Descriptors, Way};
#[cfg(target_os = "linux")]
use super::flight::{InFlight, WritePart};
use super::open::{self, Access, Caching, Purpose};
#[cfg(target_os = "linux")]
use super::ring::Ring;
use super::system::{self, Durable};
use super::{Disk, transfer};
use crate::error::Result;

/// A regular file as a disk.
///
/// **Durability**: as the [module](super) says, if the file system and the device below keep their word.
#[derive(Debug)]
pub struct FileDisk {
    path: PathBuf,
    access: Access,
    files: Arc<Descriptors>,
    /// For direct writes that go on while the caller computes; made when first wanted, `None` if the system has none.
    #[cfg(target_os = "linux")]
    ring: OnceLock<Option<Arc<Ring>>>,
    /// Whether a durable write can be one call; forgotten when the system refuses one.
    durable_in_one_call: AtomicBool,
}

impl FileDisk {
    /// Creates the file, with mode 0600, and opens it for reading and writing.
    ///
    /// # Errors
    /// [`AlreadyExists`](crate::Error::AlreadyExists) for a file, [`NotAFile`](crate::Error::NotAFile) for anything
    /// else that is there, [`Io`](crate::Error::Io) for what the system says. Where the file system refuses
    /// [`Caching::Direct`], an empty file stays behind.
    ///
    /// **Durability**: the file's name survives a crash only after [`FileDisk::sync_folder`].
    pub fn create_new(path: impl AsRef<Path>, caching: Caching) -> Result<Self> {
        Self::with(path.as_ref(), Purpose::Create, Access::ReadWrite, caching)
    }

    /// Opens a file that exists.
    ///
    /// # Errors
    /// [`NotAFile`](crate::Error::NotAFile), at once, for anything but a regular file;
    /// [`Io`](crate::Error::Io) for what the system says.
    pub fn open(path: impl AsRef<Path>, access: Access, caching: Caching) -> Result<Self> {
        Self::with(path.as_ref(), Purpose::Open(access), access, caching)
    }

    /// A new file in `folder` that has no name, and goes with its last descriptor. Errors call it by its folder.
    ///
    /// # Errors
    /// [`Io`](crate::Error::Io) for what the system says.
    pub fn temporary_in(folder: impl AsRef<Path>, caching: Caching) -> Result<Self> {
        let folder = folder.as_ref();
        let file =
            tempfile::tempfile_in(folder).map_err(|source| open::failure("create a temporary file", folder, source))?;
        let direct = match caching {
            Caching::Buffered => None,
            Caching::Direct | Caching::DirectIfPossible => match open::direct_again(&file) {
                Ok(direct) => Some(direct),
                Err(_) if caching == Caching::DirectIfPossible => None,
                Err(source) => return Err(open::failure("open for direct I/O", folder, source)),
            },
        };
        Ok(Self {
            path: folder.to_owned(),
            access: Access::ReadWrite,
            files: Arc::new(Descriptors { cached: file, direct }),
            #[cfg(target_os = "linux")]
            ring: OnceLock::new(),
            durable_in_one_call: AtomicBool::new(false),
        })
    }

    fn with(path: &Path, purpose: Purpose, access: Access, caching: Caching) -> Result<Self> {
        let cached = open::regular_file(path, purpose)?;
        let direct = match caching {
            Caching::Buffered => None,
            Caching::Direct | Caching::DirectIfPossible => match open::direct(path, access, &cached) {
                Ok(direct) => Some(direct),
                Err(error) if caching == Caching::DirectIfPossible && error.kind() == io::ErrorKind::Unsupported => {
                    None
                }
                Err(source) => return Err(open::failure("open for direct I/O", path, source)),
            },
        };
        let durable_in_one_call = AtomicBool::new(system::durable_write_is_to_be_trusted(&cached));
        Ok(Self {
            path: path.to_owned(),
            access,
            files: Arc::new(Descriptors { cached, direct }),
            #[cfg(target_os = "linux")]
            ring: OnceLock::new(),
            durable_in_one_call,
        })
    }

    /// What the disk may do with its file.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Whether transfers go through the page cache: never [`Caching::DirectIfPossible`], but what came of it.
    pub fn caching(&self) -> Caching {
        if self.files.direct.is_some() { Caching::Direct } else { Caching::Buffered }
    }

    /// Makes durable that the file's folder holds it under its name.
    ///
    /// # Errors
    /// The system's.
    pub fn sync_folder(&self) -> io::Result<()> {
        let folder = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(folder)?.sync_all()
    }

    /// The descriptor that locks are taken on (I1).
    pub(crate) fn file(&self) -> &File {
        self.files.direct.as_ref().unwrap_or(&self.files.cached)
    }

    fn writable(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        if let Some(Some(ring)) = self.ring.get()
            && ring.is_lost()
        {
            return Err(io::Error::other("whether earlier writes have ended is not known"));
        }
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => {
                Err(io::Error::new(io::ErrorKind::PermissionDenied, "the file was opened for reading only"))
            }
        }
    }

    /// Writes in as few calls as can be; if `durable`, each of them makes its bytes durable.
    fn write(&self, way: Way, offset: u64, buffers: &[IoSlice<'_>], durable: Durable) -> io::Result<()> {
        transfer::write_all(offset, buffers, |offset, buffers| {
            system::write(self.files.for_call(way, offset), offset, buffers, durable)
        })
    }

    /// As [`FileDisk::write`], by whichever way the buffers allow.
    fn write_by_best_way(&self, offset: u64, buffers: &[IoSlice<'_>], durable: Durable) -> io::Result<()> {
        if self.files.direct.is_none() {
            self.write(Way::Cached, offset, buffers, durable)
        } else if direct::is_aligned(offset, buffers) {
            self.write(Way::Direct, offset, buffers, durable)
        } else {
            direct::write_pieces(offset, buffers, |way, offset, bytes| {
                self.write(way, offset, &[IoSlice::new(bytes)], durable)
            })
        }
    }

    /// Whether one call can make these bytes durable (I2). A write in several pieces is better synced once.
    fn is_one_call(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<bool> {
        if !self.durable_in_one_call.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let length = transfer::write_end(offset, buffers)? - offset;
        Ok(self.files.direct.is_none()
            || direct::is_aligned(offset, buffers)
            || direct::piece_count(offset, length) == 1)
    }
}

impl Disk for FileDisk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn read_vectored_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        if self.files.direct.is_none() || direct::is_aligned(offset, buffers) {
            return transfer::read_all(offset, buffers, |offset, buffers| {
                system::read(self.files.for_call(Way::Direct, offset), offset, buffers)
            });
        }
        direct::read_pieces(offset, buffers, |offset, memory| {
            transfer::read_to_end(offset, &mut [IoSliceMut::new(memory)], |offset, buffers| {
                system::read(self.files.for_call(Way::Direct, offset), offset, buffers)
            })
        })
    }

    fn file_of_blocks(&self) -> Option<&File> {
        Some(self.file())
    }

    fn write_vectored_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.writable()?;
        self.write_by_best_way(offset, buffers, Durable::AtSync)
    }

    /// Buffered writes are made at once: they are copies into the cache.
    #[cfg(target_os = "linux")]
    fn begin_writes(&self, bytes: &Arc<AlignedBuffer>, parts: &[WritePart]) -> io::Result<InFlight> {
        self.writable()?;
        let mut aligned = true;
        for part in parts {
            let slice = part.of(bytes)?;
            transfer::write_end(part.offset, &[IoSlice::new(slice)])?;
            aligned &= direct::is_aligned(part.offset, &[slice]) && !slice.is_empty();
        }
        if aligned
            && self.files.direct.is_some()
            && let Some(ring) = self.ring.get_or_init(|| Ring::new().ok().map(Arc::new))
            && let Some(begun) = InFlight::begin(ring, &self.files, bytes, parts)?
        {
            return Ok(begun);
        }
        for part in parts {
            self.write_at(part.offset, part.of(bytes)?)?;
        }
        Ok(InFlight::landed())
    }

    fn write_durable_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.writable()?;
        if self.is_one_call(offset, buffers)? {
            match self.write_by_best_way(offset, buffers, Durable::Now) {
                Err(error) if system::is_refused(&error) => self.durable_in_one_call.store(false, Ordering::Relaxed),
                result => return result,
            }
        }
        self.write_by_best_way(offset, buffers, Durable::AtSync)?;
        self.sync()
    }

    fn sync(&self) -> io::Result<()> {
        transfer::uninterrupted(|| system::sync(&self.files.cached))
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.files.cached.metadata()?.len())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.writable()?;
        transfer::end(0, length).ok_or(io::ErrorKind::FileTooLarge)?;
        self.files.cached.set_len(length)
    }

    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.writable()?;
        let end = transfer::end(offset, length).ok_or(io::ErrorKind::FileTooLarge)?;
        if length == 0 {
            return Ok(());
        }
        match transfer::uninterrupted(|| system::allocate(&self.files.cached, offset, length)) {
            Err(error) if system::is_refused(&error) => self.write_zeros_beyond_end(offset, end),
            result => result,
        }
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        self.writable()?;
        let end = offset.saturating_add(length).min(self.length()?);
        if offset >= end {
            return Ok(());
        }
        match transfer::uninterrupted(|| system::punch_hole(&self.files.cached, offset, end - offset)) {
            Err(error) if system::is_refused(&error) => Ok(()),
            result => result,
        }
    }
}

impl FileDisk {
    /// Where the file system cannot allocate: zeros from the file's end on take the space. Holes inside of the file
    /// are left: what is there may be somebody's bytes.
    fn write_zeros_beyond_end(&self, offset: u64, end: u64) -> io::Result<()> {
        const ZEROS: &[u8] = &[0; 1 << 16];
        let mut position = self.length()?.max(offset);
        while position < end {
            let length = (end - position).min(ZEROS.len() as u64);
            self.write(Way::Cached, position, &[IoSlice::new(&ZEROS[..length as usize])], Durable::AtSync)?;
            position += length;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::AlignedBuffer;
    use super::*;
    use crate::error::Error;
    use crate::id::BLOCK_LENGTH;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_new_file_is_private_and_an_old_one_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let disk = FileDisk::create_new(&path, Caching::Buffered).unwrap();
        assert_eq!(disk.file().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        disk.write_at(0, b"content").unwrap();
        disk.sync_folder().unwrap();
        let error = FileDisk::create_new(&path, Caching::Buffered).unwrap_err();
        assert!(matches!(&error, Error::AlreadyExists { path: named } if *named == path), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"content");
        let read_only = FileDisk::open(&path, Access::ReadOnly, Caching::Buffered).unwrap();
        let refused = [
            read_only.write_at(0, b"x"),
            read_only.write_durable_at(0, &[IoSlice::new(b"x")]),
            read_only.set_length(0),
            read_only.preallocate(0, 1 << 20),
            read_only.punch_hole(0, 4096),
        ];
        for result in refused {
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"content");
    }

    #[test]
    fn a_temporary_file_has_no_name() {
        let folder = tempfile::tempdir().unwrap();
        for caching in [Caching::Buffered, Caching::DirectIfPossible] {
            let disk = FileDisk::temporary_in(folder.path(), caching).unwrap();
            let page = AlignedBuffer::copy_of(&[7; BLOCK_LENGTH]);
            disk.write_at(8192, &page).unwrap();
            let mut found = AlignedBuffer::zeroed(BLOCK_LENGTH);
            disk.read_at(8192, &mut found).unwrap();
            assert_eq!(*found, *page);
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
        let missing = folder.path().join("missing");
        let error = FileDisk::temporary_in(&missing, Caching::Buffered).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if *path == missing), "{error}");
    }

    #[test]
    fn a_durable_write_is_there_by_either_way() {
        let folder = tempfile::tempdir().unwrap();
        for caching in [Caching::Buffered, Caching::DirectIfPossible] {
            for one_call in [true, false] {
                let path = folder.path().join(format!("{caching:?} {one_call}"));
                let disk = FileDisk::create_new(&path, caching).unwrap();
                let trusted = system::durable_write_is_to_be_trusted(&disk.files.cached);
                disk.durable_in_one_call.store(one_call && trusted, Ordering::Relaxed);
                let pages = AlignedBuffer::copy_of(&[3; 3 * BLOCK_LENGTH]);
                disk.write_durable_at(4096, &[IoSlice::new(&pages)]).unwrap();
                disk.write_durable_at(100, &[IoSlice::new(b"a"), IoSlice::new(b"bc")]).unwrap();
                let mut expected = vec![0; 4 * BLOCK_LENGTH];
                expected[4096..].fill(3);
                expected[100..103].copy_from_slice(b"abc");
                assert_eq!(std::fs::read(&path).unwrap(), expected);
            }
        }
    }

    #[test]
    fn one_call_makes_a_write_durable_unless_it_must_be_cut() {
        let folder = tempfile::tempdir().unwrap();
        let buffered = FileDisk::create_new(folder.path().join("buffered"), Caching::Buffered).unwrap();
        let direct = FileDisk::create_new(folder.path().join("direct"), Caching::DirectIfPossible).unwrap();
        let is_direct = direct.caching() == Caching::Direct;
        let memory = AlignedBuffer::zeroed(2 * BLOCK_LENGTH + 1);
        let (aligned, beside) = (&memory[..2 * BLOCK_LENGTH], &memory[1..]);
        for (offset, bytes, needs_cut) in [(0, aligned, false), (0, beside, false), (1, aligned, true)] {
            for disk in [&buffered, &direct] {
                disk.durable_in_one_call.store(true, Ordering::Relaxed);
                let cut = needs_cut && is_direct && std::ptr::eq(disk, &direct);
                assert_eq!(disk.is_one_call(offset, &[IoSlice::new(bytes)]).unwrap(), !cut);
                disk.durable_in_one_call.store(false, Ordering::Relaxed);
                assert!(!disk.is_one_call(offset, &[IoSlice::new(bytes)]).unwrap());
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn nothing_is_written_any_more_once_it_is_not_known_how_writes_end() {
        let folder = tempfile::tempdir().unwrap();
        let disk = FileDisk::create_new(folder.path().join("file"), Caching::DirectIfPossible).unwrap();
        let bytes = Arc::new(AlignedBuffer::zeroed(BLOCK_LENGTH));
        let part = [WritePart { offset: 0, range: 0..BLOCK_LENGTH }];
        disk.begin_writes(&bytes, &part).unwrap().land().unwrap();
        let Some(ring) = disk.ring.get().cloned().flatten() else { return };
        assert_eq!(ring.lose(io::ErrorKind::Other.into()).kind(), io::ErrorKind::Other);
        for result in [
            disk.write_at(0, &bytes),
            disk.write_durable_at(0, &[IoSlice::new(&bytes)]),
            disk.begin_writes(&bytes, &part).map(drop),
            disk.set_length(0),
        ] {
            assert!(result.unwrap_err().to_string().contains("is not known"));
        }
        disk.read_at(0, &mut [1; 10]).unwrap();
    }

    #[test]
    fn a_file_system_without_direct_io_is_said_so() {
        // No process file has direct I/O.
        let path = "/proc/self/status";
        if !cfg!(target_os = "linux") {
            return;
        }
        let error = FileDisk::open(path, Access::ReadOnly, Caching::Direct).unwrap_err();
        let is_said = matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::Unsupported);
        assert!(is_said && error.to_string().contains(path), "{error}");
        let disk = FileDisk::open(path, Access::ReadOnly, Caching::DirectIfPossible).unwrap();
        assert_eq!(disk.caching(), Caching::Buffered);
    }

    #[test]
    fn space_is_had_without_fallocate_too() {
        let folder = tempfile::tempdir().unwrap();
        let disk = FileDisk::create_new(folder.path().join("file"), Caching::Buffered).unwrap();
        disk.write_at(0, &[9; 10_000]).unwrap();
        disk.write_zeros_beyond_end(5_000, 300_000).unwrap();
        assert_eq!(disk.length().unwrap(), 300_000);
        disk.write_zeros_beyond_end(0, 200_000).unwrap();
        let bytes = std::fs::read(disk.path()).unwrap();
        assert!(bytes[..10_000].iter().all(|&byte| byte == 9) && bytes[10_000..].iter().all(|&byte| byte == 0));
        assert_eq!(bytes.len(), 300_000);
    }
}
