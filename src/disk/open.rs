//! Opening a path: nothing but a regular file, and never a wait.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
#[cfg(target_os = "linux")]
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};

/// What a disk may do with its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and write.
    ReadWrite,
    /// Read only: writing fails with [`io::ErrorKind::PermissionDenied`].
    ReadOnly,
}

/// Whether transfers go through the system's page cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// They do.
    Buffered,
    /// Transfers of whole blocks go around it. A file system that cannot do so refuses the open.
    ///
    /// Two calls at the same time must then not touch the same block; nor, if one of them writes a part of a block, the
    /// same page of the operating system.
    Direct,
    /// As [`Caching::Direct`] where the file system can do so, else as [`Caching::Buffered`]; the disk says which.
    DirectIfPossible,
}

/// How a path is to be opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// As a new file, mode 0600; an existing one is an error.
    Create,
    /// As it is.
    Open(Access),
}

/// Opens `path`, and refuses at once what is no regular file.
///
/// `O_NONBLOCK`, since a FIFO would wait for its other end, and `O_NOCTTY`, since a terminal would become ours; the
/// kind is asked of the descriptor, since the path may have changed its meaning in between.
pub(super) fn regular_file(path: &Path, purpose: Purpose) -> Result<File> {
    let file = options(purpose, OFlags::empty()).open(path).map_err(|source| refusal(path, purpose, source))?;
    let metadata = file.metadata().map_err(|source| failure("stat", path, source))?;
    if let Some(kind) = kind_of(metadata.file_type()) {
        return Err(Error::NotAFile { path: path.to_owned(), kind });
    }
    make_blocking(&file, OFlags::empty()).map_err(|source| failure("open", path, source))?;
    Ok(file)
}

/// A second descriptor of the file that `file` is, for direct I/O.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] inside where the file system or the system has no direct I/O in blocks of 4096.
#[cfg(target_os = "linux")]
pub(super) fn direct(path: &Path, access: Access, file: &File) -> io::Result<File> {
    let direct = options(Purpose::Open(access), OFlags::DIRECT).open(path).map_err(|error| {
        if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) { unsupported() } else { error }
    })?;
    let (first, second) = (file.metadata()?, direct.metadata()?);
    if (first.dev(), first.ino()) != (second.dev(), second.ino()) {
        return Err(io::Error::other("the path was given to another file meanwhile"));
    }
    make_blocking(&direct, OFlags::DIRECT)?;
    alignment_suits(&direct)?;
    Ok(direct)
}

/// As [`direct`], of a file that has no name.
///
/// # Errors
/// As there; where the system shows no descriptors by name, what it says to that.
pub(super) fn direct_again(file: &File) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    direct(path.as_ref(), Access::ReadWrite, file)
}

/// A second descriptor of the file that `file` is, for direct I/O: this system has none.
#[cfg(not(target_os = "linux"))]
pub(super) fn direct(_: &Path, _: Access, _: &File) -> io::Result<File> {
    Err(unsupported())
}

/// Asks the file system, where it can tell, for what direct I/O needs. Kernels before 6.1, and file systems that do
/// not tell, are believed: they refuse the flag at the open if they do not know it.
#[cfg(target_os = "linux")]
fn alignment_suits(direct: &File) -> io::Result<()> {
    use rustix::fs::{AtFlags, StatxFlags, statx};
    let Ok(answer) = statx(direct, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) else { return Ok(()) };
    let told = answer.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    let suits = |alignment: u32| alignment != 0 && (crate::id::BLOCK_BYTES as u32).is_multiple_of(alignment);
    if told && !(suits(answer.stx_dio_mem_align) && suits(answer.stx_dio_offset_align)) {
        return Err(unsupported());
    }
    Ok(())
}

fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "the file system has no direct I/O in blocks of 4096 bytes")
}

fn options(purpose: Purpose, more: OFlags) -> fs::OpenOptions {
    let flags = OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | more;
    let mut options = fs::OpenOptions::new();
    options.read(true).custom_flags(flags.bits() as i32);
    match purpose {
        Purpose::Create => {
            options.write(true).create_new(true).mode((Mode::RUSR | Mode::WUSR).as_raw_mode() as _);
        }
        Purpose::Open(access) => {
            options.write(access == Access::ReadWrite);
        }
    }
    options
}

/// Takes `O_NONBLOCK` off again: it was for the open only.
fn make_blocking(file: &File, keep: OFlags) -> io::Result<()> {
    Ok(rustix::fs::fcntl_setfl(file, keep)?)
}

/// What the refused open of `path` means.
fn refusal(path: &Path, purpose: Purpose, source: io::Error) -> Error {
    let path_owned = || path.to_owned();
    match fs::metadata(path) {
        Ok(metadata) => match kind_of(metadata.file_type()) {
            Some(kind) => Error::NotAFile { path: path_owned(), kind },
            None if purpose == Purpose::Create && source.kind() == io::ErrorKind::AlreadyExists => {
                Error::AlreadyExists { path: path_owned() }
            }
            None => failure("open", path, source),
        },
        Err(_) if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) => {
            Error::NotAFile { path: path_owned(), kind: "a symbolic link that leads nowhere" }
        }
        Err(_) => failure(if purpose == Purpose::Create { "create" } else { "open" }, path, source),
    }
}

/// What a file that is not regular is called; `None` for a regular one.
fn kind_of(kind: fs::FileType) -> Option<&'static str> {
    match kind {
        _ if kind.is_file() => None,
        _ if kind.is_dir() => Some("a directory"),
        _ if kind.is_fifo() => Some("a FIFO"),
        _ if kind.is_socket() => Some("a socket"),
        _ if kind.is_char_device() => Some("a character device"),
        _ if kind.is_block_device() => Some("a block device"),
        _ => Some("something else"),
    }
}

/// An I/O error with its context.
pub(super) fn failure(operation: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { operation, path: path.to_owned(), offset: None, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    const PURPOSES: [Purpose; 3] = [Purpose::Create, Purpose::Open(Access::ReadWrite), Purpose::Open(Access::ReadOnly)];

    fn kind_found(path: &Path, purpose: Purpose) -> &'static str {
        match regular_file(path, purpose).unwrap_err() {
            Error::NotAFile { path: named, kind } if named == path => kind,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        let _listener = UnixListener::bind(at("socket")).unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("link")).unwrap();
        std::os::unix::fs::symlink(folder.path(), at("link to a directory")).unwrap();
        for purpose in PURPOSES {
            assert_eq!(kind_found(folder.path(), purpose), "a directory");
            assert_eq!(kind_found(&at("link to a directory"), purpose), "a directory");
            assert_eq!(kind_found(&at("fifo"), purpose), "a FIFO");
            assert_eq!(kind_found(&at("socket"), purpose), "a socket");
            assert_eq!(kind_found(&at("link"), purpose), "a symbolic link that leads nowhere");
            assert_eq!(kind_found(Path::new("/dev/null"), purpose), "a character device");
        }
    }

    #[test]
    fn a_path_that_is_missing_is_the_systems_error_with_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let beyond_file = folder.path().join("file/beyond");
        std::fs::write(folder.path().join("file"), b"").unwrap();
        for (path, purpose, expected) in [
            (&missing, PURPOSES[1], io::ErrorKind::NotFound),
            (&missing, PURPOSES[2], io::ErrorKind::NotFound),
            (&missing.join("deeper"), PURPOSES[0], io::ErrorKind::NotFound),
            (&beyond_file, PURPOSES[0], io::ErrorKind::NotADirectory),
            (&beyond_file, PURPOSES[1], io::ErrorKind::NotADirectory),
        ] {
            match regular_file(path, purpose).unwrap_err() {
                Error::Io { path: named, source, .. } => assert_eq!((&named, source.kind()), (path, expected)),
                other => panic!("{other}"),
            }
        }
        assert!(!missing.exists());
    }

    #[test]
    fn a_file_without_permission_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        regular_file(&path, PURPOSES[2]).unwrap();
        if fs::OpenOptions::new().write(true).open(&path).is_ok() {
            return; // The superuser needs no permission.
        }
        let error = regular_file(&path, PURPOSES[1]).unwrap_err();
        assert!(matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied));
    }

    #[test]
    fn the_descriptor_blocks_again_and_is_not_inherited() {
        let folder = tempfile::tempdir().unwrap();
        let file = regular_file(&folder.path().join("file"), Purpose::Create).unwrap();
        assert!(!rustix::fs::fcntl_getfl(&file).unwrap().contains(OFlags::NONBLOCK));
        assert!(rustix::io::fcntl_getfd(&file).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        if let Ok(direct) = direct(&folder.path().join("file"), Access::ReadWrite, &file) {
            let flags = rustix::fs::fcntl_getfl(&direct).unwrap();
            assert!(flags.contains(OFlags::DIRECT) && !flags.contains(OFlags::NONBLOCK));
        }
    }

    #[test]
    fn a_second_descriptor_of_another_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        let file = regular_file(&first, Purpose::Create).unwrap();
        std::fs::write(&second, b"").unwrap();
        std::fs::rename(&second, &first).unwrap();
        direct(&first, Access::ReadWrite, &file).unwrap_err();
    }
}
