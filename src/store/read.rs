//! Reading pages: bytes are believed only if they sum to what the pointer says, and are decoded only then. The sum is of
//! the bytes as they are stored.

use std::cell::RefCell;
use std::fs::File;

use crate::disk::{AlignedBuffer, Disk};
use crate::error::{Corruption, Error, Fault, Result, Structure};
use crate::format::codec::{check_encoded_length, decode};
use crate::format::{BlockPointer, CodecId, checksum};
use crate::id::{BLOCK_BYTES, BLOCK_LENGTH, PageId, SizeClass};
use crate::map::Nodes;

use super::chunks::chunk_tree;

/// Reads whole pages of any class, and parts of them.
#[derive(Clone, Copy, Debug)]
pub struct PageReader<'a> {
    nodes: &'a Nodes,
}

impl<'a> PageReader<'a> {
    /// Reads through `nodes` and its disk.
    pub fn new(nodes: &'a Nodes) -> Self {
        Self { nodes }
    }

    /// Fills `target` with the bytes of the page from `offset` on.
    ///
    /// # Errors
    /// `OutOfPage`, `Io`, `Corrupt`.
    pub fn read(&self, page: PageId, pointer: &BlockPointer, offset: u64, target: &mut [u8]) -> Result<()> {
        let length = target.len() as u64;
        if offset.checked_add(length).is_none_or(|end| end > page.class().page_bytes()) {
            return Err(Error::OutOfPage { page, offset, length });
        }
        if !page.class().is_chunked() {
            return read_part(self.nodes.disk().as_ref(), page, pointer, offset, target);
        }
        if pointer.stored_length > 0 && !pointer.is_indirect() {
            let path = self.nodes.path().into();
            let (offset, fault) =
                (pointer.address.offset_bytes(), Fault::Other("a page of chunks has no tree of them"));
            return Err(Corruption { path, structure: Structure::Page, page: Some(page), offset, fault }.into());
        }
        let tree = chunk_tree(page, pointer);
        let chunk_bytes = SizeClass::CHUNK.page_bytes();
        let (mut offset, mut rest) = (offset, target);
        while !rest.is_empty() {
            let within = offset % chunk_bytes;
            let count = rest.len().min((chunk_bytes - within) as usize);
            let (part, after) = rest.split_at_mut(count);
            let chunk = tree.get(self.nodes, offset / chunk_bytes)?;
            match chunk.is_null() {
                true => part.fill(0),
                false => read_part(self.nodes.disk().as_ref(), page, &chunk, within, part)?,
            }
            offset += count as u64;
            rest = after;
        }
        Ok(())
    }

    /// The pointer of one chunk of a page; null where it was never written.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn chunk(&self, page: PageId, pointer: &BlockPointer, chunk: u32) -> Result<BlockPointer> {
        chunk_tree(page, pointer).get(self.nodes, chunk.into())
    }
}

/// Fills `target` with the bytes from `offset` on of what `pointer` stores: a page of at most 1 MiB, or a chunk. The
/// whole of it is read and compared with its checksum.
///
/// # Errors
/// `Io`, `Corrupt`, `OutOfPage`.
pub fn read_part(disk: &dyn Disk, page: PageId, pointer: &BlockPointer, offset: u64, target: &mut [u8]) -> Result<()> {
    let unit = page.class().page_bytes().min(SizeClass::CHUNK.page_bytes()) as usize;
    if offset == 0 && target.len() == unit {
        return read_page(disk, page, pointer, target);
    }
    let length = target.len() as u64;
    if offset.checked_add(length).is_none_or(|end| end > unit as u64) {
        return Err(Error::OutOfPage { page, offset, length });
    }
    if pointer.codec == CodecId::ZERO {
        target.fill(0);
        return Ok(());
    }
    let mut whole = AlignedBuffer::zeroed(unit);
    read_page(disk, page, pointer, &mut whole)?;
    target.copy_from_slice(&whole[offset as usize..][..target.len()]);
    Ok(())
}

/// Where the bytes of a page (or chunk) of `length` bytes lie as they are in a file of the system's: stored unencoded.
/// They are right if [`is_stored`] says so.
pub fn file_place<'a>(disk: &'a dyn Disk, pointer: &BlockPointer, length: u64) -> Option<(&'a File, u64)> {
    let is_whole = u64::from(pointer.stored_length) == length && length.is_multiple_of(BLOCK_BYTES);
    let lies_as_it_is = pointer.codec == CodecId::RAW && !pointer.is_indirect() && is_whole;
    Some((disk.file_of_blocks().filter(|_| lies_as_it_is)?, pointer.address.offset_bytes()))
}

/// Whether these are the bytes that were stored at `pointer`.
pub fn is_stored(pointer: &BlockPointer, bytes: &[u8]) -> bool {
    bytes.len() == pointer.stored_length as usize && checksum(bytes) == pointer.checksum
}

/// Fills `target`, which is as long as the page (or chunk), with what `pointer` stores.
///
/// # Errors
/// `PageNotFound` if the pointer leads nowhere, `Io`, `Corrupt`.
pub fn read_page(disk: &dyn Disk, page: PageId, pointer: &BlockPointer, target: &mut [u8]) -> Result<()> {
    match pointer.codec {
        CodecId::NULL => return Err(Error::PageNotFound { page }),
        CodecId::ZERO => {
            target.fill(0);
            return Ok(());
        }
        _ => {}
    }
    if pointer.is_indirect() {
        return corrupt(disk, page, pointer, Fault::Other("it leads to a tree of chunks"));
    }
    let length = pointer.stored_length;
    if pointer.codec == CodecId::RAW {
        if length as usize != target.len() {
            let (expected, found) = (target.len() as u64, length.into());
            return corrupt(disk, page, pointer, Fault::Field { field: "stored length", expected, found });
        }
        return read_stored(disk, page, pointer, target);
    }
    // Before anything is made room for: fewer bytes than the page's.
    check_encoded_length(length as usize, target.len()).or_else(|fault| corrupt(disk, page, pointer, fault))?;
    with_scratch(pointer.extent().blocks as usize * BLOCK_LENGTH, |stored| {
        read_stored(disk, page, pointer, stored)?;
        decode_stored(disk, page, pointer, stored, target)
    })
}

/// Decodes what [`read_stored`] has read into `target`, which is as long as the page (or chunk).
///
/// # Errors
/// `Corrupt`.
pub(super) fn decode_stored(
    disk: &dyn Disk,
    page: PageId,
    pointer: &BlockPointer,
    stored: &[u8],
    target: &mut [u8],
) -> Result<()> {
    let stored = stored.get(..pointer.stored_length as usize).unwrap_or_default();
    decode(pointer.codec, stored, target).or_else(|fault| corrupt(disk, page, pointer, fault))
}

thread_local! {
    /// What was stored of the page that the thread decoded last. Grows to 1 MiB at most.
    static SCRATCH: RefCell<Option<AlignedBuffer>> = const { RefCell::new(None) };
}

/// Lends memory of this thread for `length` bytes of whole blocks.
fn with_scratch<R>(length: usize, work: impl FnOnce(&mut [u8]) -> R) -> R {
    // A thread that is ending has no scratch any more, and takes memory each time.
    let kept = SCRATCH.try_with(RefCell::take).ok().flatten();
    let mut buffer = kept.filter(|kept| kept.len() >= length).unwrap_or_else(|| AlignedBuffer::zeroed(length));
    let result = work(&mut buffer[..length]);
    let _ = SCRATCH.try_with(|kept| kept.replace(Some(buffer)));
    result
}

fn corrupt(disk: &dyn Disk, page: PageId, pointer: &BlockPointer, fault: Fault) -> Result<()> {
    let (path, offset) = (disk.path().into(), pointer.address.offset_bytes());
    Err(Corruption { path, structure: Structure::Page, page: Some(page), offset, fault }.into())
}

/// Fills `target` with the blocks that `pointer` leads to, as they are stored; it is as long as they are, or as the
/// stored bytes.
///
/// # Errors
/// `Io`, `Corrupt`.
pub(super) fn read_stored(disk: &dyn Disk, page: PageId, pointer: &BlockPointer, target: &mut [u8]) -> Result<()> {
    let offset = pointer.address.offset_bytes();
    if let Err(source) = disk.read_at(offset, target) {
        if source.kind() == std::io::ErrorKind::UnexpectedEof {
            return corrupt(disk, page, pointer, Fault::Truncated { file_bytes: disk.length().unwrap_or(0) });
        }
        return Err(Error::Io { operation: "read", path: disk.path().into(), offset: Some(offset), source });
    }
    let found = checksum(target.get(..pointer.stored_length as usize).unwrap_or_default());
    if found != pointer.checksum {
        return corrupt(disk, page, pointer, Fault::Checksum { expected: pointer.checksum, found });
    }
    Ok(())
}

const _: () = assert!(BLOCK_BYTES == 4096);
