//! Whether something in the tree is what the store has under its name.

use std::fs::{FileType, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use twox_hash::XxHash3_128;

use super::file::open_regular;
use super::walk::Found;
use crate::tree::{Entry, Kind, check_path};

/// What is believed to tell a file from its older self.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// Equal time of modification and equal length mean equal bytes.
    TimeAndLength,
    /// The bytes are read and compared by their hash.
    Content,
}

/// What is to be done with something in the tree.
#[derive(Debug)]
pub(super) enum Change {
    /// The store has it as it is.
    Nothing,
    /// Only the entry: the store has the bytes, or there are none.
    Metadata(Entry),
    /// The file's bytes, and the entry.
    Content,
    /// It is what this says, which a tree in a store does not have.
    Unsupported(&'static str),
}

/// # Errors
/// It cannot be read.
pub(super) fn change_of(found: &Found, old: Option<&Entry>, trust: Trust) -> io::Result<Change> {
    check_path(&found.path).map_err(io::Error::other)?;
    let kind = found.metadata.file_type();
    if kind.is_file() {
        return content_change(found, old, trust);
    }
    let kind = if kind.is_dir() {
        Kind::Folder
    } else if kind.is_symlink() {
        Kind::Link { target: std::fs::read_link(&found.full)?.into_os_string().into_vec() }
    } else {
        return Ok(Change::Unsupported(name_of(kind)));
    };
    let new = entry_of(found.path.clone(), &found.metadata, kind);
    Ok(if old == Some(&new) { Change::Nothing } else { Change::Metadata(new) })
}

fn content_change(found: &Found, old: Option<&Entry>, trust: Trust) -> io::Result<Change> {
    let Some(old @ Entry { kind: Kind::File { length, hash, .. }, .. }) = old else { return Ok(Change::Content) };
    let new = entry_of(found.path.clone(), &found.metadata, old.kind.clone());
    let same_time = (old.mtime_seconds, old.mtime_nanoseconds) == (new.mtime_seconds, new.mtime_nanoseconds);
    let same_bytes = *length == found.metadata.len()
        && match trust {
            Trust::TimeAndLength => same_time,
            Trust::Content => hash_of(found)? == *hash,
        };
    Ok(match same_bytes {
        false => Change::Content,
        true if *old == new => Change::Nothing,
        true => Change::Metadata(new),
    })
}

/// The entry of something with this metadata.
pub(super) fn entry_of(path: Vec<u8>, metadata: &Metadata, kind: Kind) -> Entry {
    Entry {
        path,
        mode: metadata.mode() & 0o7777,
        mtime_seconds: metadata.mtime(),
        mtime_nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap_or(0).min(999_999_999),
        kind,
    }
}

fn hash_of(found: &Found) -> io::Result<u128> {
    let mut file = open_regular(&found.full)?;
    let mut hasher = XxHash3_128::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish_128()),
            Ok(count) => hasher.write(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn name_of(kind: FileType) -> &'static str {
    match kind {
        _ if kind.is_fifo() => "a FIFO",
        _ if kind.is_socket() => "a socket",
        _ if kind.is_char_device() => "a character device",
        _ if kind.is_block_device() => "a block device",
        _ => "no file, folder or link",
    }
}
