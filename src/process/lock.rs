//! The lock on the store's own file.
//!
//! `flock`-like: it belongs to the open file, not to the process, so a second open in the same process conflicts too, and
//! closing some other descriptor of the file does not drop it. A child of a fork shares it.
//!
//! The calls of `fs2` are written in full, here and nowhere else: `File` has methods of the same names since Rust 1.89,
//! newer than the oldest Rust this crate supports.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::disk::FileDisk;
use crate::error::{Error, Result};

/// How long a reader that only looks may take, and how often a writer tries again.
const INSTANT: Duration = Duration::from_millis(1);
const INSTANTS: u32 = 16;

/// The writer's locks that this process has, by process, device and file: to tell a second open here from one elsewhere.
/// (The process is part of it since a child of a fork inherits the list, and not what it stands for.)
static WRITERS_HERE: Mutex<BTreeSet<(u32, u64, u64)>> = Mutex::new(BTreeSet::new());

/// A lock on a file, held until this is dropped.
#[derive(Debug)]
pub struct FileLock {
    /// A duplicate of the disk's descriptor: the same open file, so the same lock.
    file: File,
    path: PathBuf,
    process: u32,
    /// What it is listed as, if it is a writer's.
    listed: Option<(u32, u64, u64)>,
}

impl FileLock {
    /// The writer's lock: nobody else holds one of either kind. Readers that only look whether there is a writer have
    /// the other kind for an instant; that is waited for, a few milliseconds in all.
    ///
    /// # Errors
    /// [`OpenedTwice`](Error::OpenedTwice) if a writer in this process has one, [`Locked`](Error::Locked) if one
    /// elsewhere has, [`LockedByReaders`](Error::LockedByReaders) if readers have, in this process or elsewhere;
    /// [`Io`](Error::Io) if the file system has no locks.
    pub fn exclusive(disk: &FileDisk) -> Result<Self> {
        let path = || crate::disk::Disk::path(disk).to_owned();
        let metadata = disk.file().metadata();
        let metadata =
            metadata.map_err(|source| Error::Io { operation: "stat", path: path(), offset: None, source })?;
        let listed = (std::process::id(), metadata.dev(), metadata.ino());
        for _ in 0..INSTANTS {
            match Self::lock(disk, fs2::FileExt::try_lock_exclusive) {
                Ok(mut lock) => {
                    writers_here(|writers| writers.insert(listed));
                    lock.listed = Some(listed);
                    return Ok(lock);
                }
                Err(Error::Locked { path }) => match Self::shared(disk) {
                    Err(Error::Locked { .. }) if writers_here(|writers| writers.contains(&listed)) => {
                        return Err(Error::OpenedTwice { path });
                    }
                    Err(Error::Locked { .. }) => return Err(Error::Locked { path }),
                    Err(error) => return Err(error),
                    Ok(_) => std::thread::sleep(INSTANT),
                },
                Err(error) => return Err(error),
            }
        }
        Err(Error::LockedByReaders { path: crate::disk::Disk::path(disk).to_owned() })
    }

    /// A reader's lock: nobody holds the writer's.
    ///
    /// # Errors
    /// As [`FileLock::exclusive`].
    pub fn shared(disk: &FileDisk) -> Result<Self> {
        Self::lock(disk, fs2::FileExt::try_lock_shared)
    }

    /// The file that is locked.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn lock(disk: &FileDisk, lock: fn(&File) -> io::Result<()>) -> Result<Self> {
        let path = crate::disk::Disk::path(disk).to_owned();
        let result = disk.file().try_clone().and_then(|file| lock(&file).map(|()| file));
        match result {
            Ok(file) => Ok(Self { file, path, process: std::process::id(), listed: None }),
            Err(error) if is_contended(&error) => Err(Error::Locked { path }),
            Err(source) => Err(Error::Io { operation: "lock", path, offset: None, source }),
        }
    }
}

impl Drop for FileLock {
    /// Unlocks: the disk's descriptor may live on. That this fails is not known to happen; the lock then goes with the
    /// last descriptor.
    fn drop(&mut self) {
        // In a forked child the lock is the parent's.
        if std::process::id() != self.process {
            return;
        }
        // Before it is free: whoever takes it then may list it again.
        if let Some(listed) = self.listed {
            writers_here(|writers| writers.remove(&listed));
        }
        let _ = fs2::FileExt::unlock(&self.file);
    }
}

/// A panic while the list is locked leaves it whole.
fn writers_here<T>(ask: impl FnOnce(&mut BTreeSet<(u32, u64, u64)>) -> T) -> T {
    ask(&mut WRITERS_HERE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Whether the lock was free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Yes,
    No,
}

/// Takes the exclusive lock of a file of the side folder if nobody has one; it goes with the file's last descriptor.
pub(super) fn try_exclusive(file: &File) -> io::Result<Taken> {
    taken(fs2::FileExt::try_lock_exclusive(file))
}

/// Takes the shared lock of a file of the side folder if nobody has the exclusive one.
pub(super) fn try_shared(file: &File) -> io::Result<Taken> {
    taken(fs2::FileExt::try_lock_shared(file))
}

/// Takes the exclusive lock of a file that others lock for an instant at most.
pub(super) fn exclusive(file: &File) -> io::Result<()> {
    fs2::FileExt::lock_exclusive(file)
}

/// Gives back a lock of a file of the side folder.
pub(super) fn unlock(file: &File) -> io::Result<()> {
    fs2::FileExt::unlock(file)
}

fn taken(result: io::Result<()>) -> io::Result<Taken> {
    match result {
        Ok(()) => Ok(Taken::Yes),
        Err(error) if is_contended(&error) => Ok(Taken::No),
        Err(error) => Err(error),
    }
}

/// Whether the error says that somebody else has the lock.
fn is_contended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == fs2::lock_contended_error().raw_os_error()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Access, Caching};

    fn open(path: &Path, access: Access) -> FileDisk {
        FileDisk::open(path, access, Caching::DirectIfPossible).unwrap()
    }

    fn assert_locked(result: Result<FileLock>, path: &Path) {
        match result.unwrap_err() {
            Error::Locked { path: named } => assert_eq!(named, path),
            other => panic!("{other}"),
        }
    }

    fn assert_opened_twice(result: Result<FileLock>, path: &Path) {
        match result.unwrap_err() {
            Error::OpenedTwice { path: named } => assert_eq!(named, path),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_second_writer_is_refused_by_any_name_of_the_file_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let (link, symbolic) = (folder.path().join("link"), folder.path().join("symbolic"));
        let first = FileDisk::create_new(&path, Caching::Buffered).unwrap();
        std::fs::hard_link(&path, &link).unwrap();
        std::os::unix::fs::symlink(&path, &symbolic).unwrap();
        let lock = FileLock::exclusive(&first).unwrap();
        assert_eq!(lock.path(), path);
        for name in [&path, &link, &symbolic] {
            // Each says so, whatever it asked for.
            assert_opened_twice(FileLock::exclusive(&open(name, Access::ReadWrite)), name);
            assert_locked(FileLock::shared(&open(name, Access::ReadOnly)), name);
        }
        drop(lock);
        FileLock::exclusive(&open(&link, Access::ReadWrite)).unwrap();
        FileLock::exclusive(&first).unwrap();
    }

    #[test]
    fn readers_share_and_keep_writers_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let writer = FileDisk::create_new(&path, Caching::Buffered).unwrap();
        let readers = [0; 3].map(|_| FileLock::shared(&open(&path, Access::ReadOnly)).unwrap());
        let error = FileLock::exclusive(&writer).unwrap_err();
        assert!(matches!(&error, Error::LockedByReaders { path: named } if *named == path), "{error}");
        drop(readers);
        FileLock::exclusive(&writer).unwrap();
    }

    #[test]
    fn closing_another_descriptor_of_the_file_does_not_unlock_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let disk = FileDisk::create_new(&path, Caching::Buffered).unwrap();
        let _lock = FileLock::exclusive(&disk).unwrap();
        drop(open(&path, Access::ReadWrite));
        drop(disk);
        assert_opened_twice(FileLock::exclusive(&open(&path, Access::ReadWrite)), &path);
    }
}
