//! Storing the bytes of one file: a small one at once, a large one a piece at a time over as many batches as it takes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use twox_hash::XxHash3_128;
use vellum::{PageId, SizeClass};

use super::batch::Batch;
use super::compare::entry_of;
use super::walk::Found;
use crate::failure::Failure;
use crate::tree::{Entry, Kind, classes_of};

/// Bytes of a large page that are written at a time: one of its chunks.
const PIECE_BYTES: u64 = SizeClass::CHUNK.page_bytes();

/// Why a file was not stored.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It could not be read. The store is as it was, and the import goes on.
    Source(io::Error),
    /// The store failed: nothing goes on.
    Store(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Store(failure)
    }
}

/// Opens what is expected to be a regular file. Should it have become something else since, that is an error, and
/// no FIFO is waited for.
pub(super) fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file any more")) }
}

/// Stores a file's bytes in pages of their own and makes its entry. The pages are unfinished until the entry is put
/// into the catalogue.
pub(super) fn store(batch: &mut Batch<'_>, found: &Found) -> Result<Entry, Trouble> {
    let mut file = open_regular(&found.full).map_err(Trouble::Source)?;
    let before = file.metadata().map_err(Trouble::Source)?;
    let length = before.len();
    let mut pages = Vec::new();
    let stored = store_pages(batch, &mut file, length, &mut pages).and_then(|hash| {
        // What grew, shrank or was written to meanwhile may be half old and half new.
        let after = file.metadata().map_err(Trouble::Source)?;
        let stamp = |metadata: &std::fs::Metadata| (metadata.len(), metadata.mtime(), metadata.mtime_nsec());
        match stamp(&before) == stamp(&after) {
            true => Ok(hash),
            false => Err(Trouble::Source(io::Error::other("it changed while it was read"))),
        }
    });
    match stored {
        Ok(hash) => Ok(entry_of(found.path.clone(), &before, Kind::File { length, hash, pages })),
        Err(Trouble::Source(error)) => {
            batch.abandon(&pages)?;
            Err(Trouble::Source(error))
        }
        Err(trouble) => Err(trouble),
    }
}

fn store_pages(batch: &mut Batch<'_>, file: &mut File, length: u64, pages: &mut Vec<PageId>) -> Result<u128, Trouble> {
    let mut hasher = XxHash3_128::new();
    let mut left = length;
    let mut buffer = Vec::new();
    for class in classes_of(length) {
        let in_page = left.min(class.page_bytes());
        let mut page = None;
        let mut offset = 0;
        while offset < in_page {
            buffer.resize((in_page - offset).min(PIECE_BYTES) as usize, 0);
            file.read_exact(&mut buffer).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => Trouble::Source(io::Error::other("it was cut while it was read")),
                _ => Trouble::Source(error),
            })?;
            hasher.write(&buffer);
            batch.ensure_room(class.page_bytes().min(PIECE_BYTES))?;
            let page = match page {
                Some(page) => page,
                None => {
                    let new = batch.allocate(class)?;
                    pages.push(new);
                    *page.insert(new)
                }
            };
            batch.write(page, offset, &buffer)?;
            offset += buffer.len() as u64;
        }
        left -= in_page;
    }
    Ok(hasher.finish_128())
}
