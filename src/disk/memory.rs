//! A disk in memory: for stores that need no file, and for tests.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Disk, pieces, transfer};
use crate::id::{BLOCK_BYTES, BLOCK_LENGTH};

/// A file that is only memory, sparse and growing, with an end to its space if one is set.
///
/// **Durability**: none; what it holds goes with it.
#[derive(Debug, Default)]
pub struct MemoryDisk {
    contents: RwLock<Contents>,
}

/// Blocks that were never written, or were given back, have no entry and read as zero. No byte of a block beyond
/// `length` is anything but zero, so that growing needs to clear nothing.
#[derive(Default)]
struct Contents {
    blocks: BTreeMap<u64, Box<[u8; BLOCK_LENGTH]>>,
    length: u64,
    limit_bytes: Option<u64>,
}

impl MemoryDisk {
    /// An empty disk without a limit.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty disk with space for `bytes` bytes, counted in whole blocks of 4096.
    pub fn with_limit(bytes: u64) -> Self {
        let disk = Self::new();
        disk.set_limit(Some(bytes));
        disk
    }

    /// A disk that holds a copy of `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let disk = Self::new();
        {
            let mut contents = disk.contents_mut();
            contents.length = bytes.len() as u64;
            for (block, bytes) in bytes.chunks(BLOCK_LENGTH).enumerate() {
                let mut copy = Box::new([0; BLOCK_LENGTH]);
                copy[..bytes.len()].copy_from_slice(bytes);
                contents.blocks.insert(block as u64, copy);
            }
        }
        disk
    }

    /// Sets how many bytes the disk has space for, in whole blocks; `None` is no limit. Blocks beyond a lower limit
    /// stay, but no further one is had.
    pub fn set_limit(&self, bytes: Option<u64>) {
        self.contents_mut().limit_bytes = bytes;
    }

    /// How many bytes of space the contents take, in whole blocks.
    pub fn allocated_bytes(&self) -> u64 {
        self.contents().allocated_bytes()
    }

    /// A copy of the contents.
    pub fn to_bytes(&self) -> Vec<u8> {
        let contents = self.contents();
        let mut bytes = vec![0; contents.length as usize];
        for (&block, content) in &contents.blocks {
            let start = block as usize * BLOCK_LENGTH;
            let length = BLOCK_LENGTH.min(bytes.len().saturating_sub(start));
            if length != 0 {
                bytes[start..start + length].copy_from_slice(&content[..length]);
            }
        }
        bytes
    }

    // No operation leaves the contents half changed by a panic, so a poisoned lock hides nothing wrong.
    fn contents(&self) -> RwLockReadGuard<'_, Contents> {
        self.contents.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn contents_mut(&self) -> RwLockWriteGuard<'_, Contents> {
        self.contents.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Contents {
    fn allocated_bytes(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK_BYTES
    }

    /// The block, in space of its own from now on.
    fn block_mut(&mut self, block: u64) -> io::Result<&mut [u8; BLOCK_LENGTH]> {
        let full = self.limit_bytes.is_some_and(|limit| self.allocated_bytes() + BLOCK_BYTES > limit);
        match self.blocks.entry(block) {
            std::collections::btree_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::btree_map::Entry::Vacant(_) if full => Err(io::ErrorKind::StorageFull.into()),
            std::collections::btree_map::Entry::Vacant(entry) => Ok(entry.insert(Box::new([0; BLOCK_LENGTH]))),
        }
    }

    /// Clears `[start, end)`: whole blocks are given back, others zeroed in part.
    fn clear(&mut self, start: u64, end: u64) {
        let mut cleared = self.blocks.split_off(&(start / BLOCK_BYTES));
        let mut beyond = cleared.split_off(&end.div_ceil(BLOCK_BYTES));
        self.blocks.append(&mut beyond);
        for (block, mut content) in cleared {
            let base = block * BLOCK_BYTES;
            let from = start.saturating_sub(base) as usize;
            let to = (end - base).min(BLOCK_BYTES) as usize;
            if from != 0 || to != BLOCK_LENGTH {
                content[from..to].fill(0);
                self.blocks.insert(block, content);
            }
        }
    }
}

impl Disk for MemoryDisk {
    fn path(&self) -> &Path {
        Path::new("(memory)")
    }

    fn read_vectored_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let contents = self.contents();
        let length = transfer::length_of_mut(buffers)?;
        if length != 0 && transfer::end(offset, length).is_none_or(|end| end > contents.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for piece in pieces::of_read(offset, buffers) {
            match contents.blocks.get(&piece.block) {
                Some(content) => piece.bytes.copy_from_slice(&content[piece.start..piece.start + piece.bytes.len()]),
                None => piece.bytes.fill(0),
            }
        }
        Ok(())
    }

    fn write_vectored_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        transfer::write_end(offset, buffers)?;
        let mut contents = self.contents_mut();
        for piece in pieces::of_write(offset, buffers) {
            contents.block_mut(piece.block)?[piece.start..piece.start + piece.bytes.len()].copy_from_slice(piece.bytes);
            let end = piece.block * BLOCK_BYTES + (piece.start + piece.bytes.len()) as u64;
            contents.length = contents.length.max(end);
        }
        Ok(())
    }

    fn write_durable_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.write_vectored_at(offset, buffers)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.contents().length)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        transfer::end(0, length).ok_or(io::ErrorKind::FileTooLarge)?;
        let mut contents = self.contents_mut();
        let before = contents.length;
        if length < before {
            contents.clear(length, before.next_multiple_of(BLOCK_BYTES));
        }
        contents.length = length;
        Ok(())
    }

    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = transfer::end(offset, length).ok_or(io::ErrorKind::FileTooLarge)?;
        if length == 0 {
            return Ok(());
        }
        let mut contents = self.contents_mut();
        for block in offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES) {
            contents.block_mut(block)?;
        }
        contents.length = contents.length.max(end);
        Ok(())
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut contents = self.contents_mut();
        let end = offset.saturating_add(length).min(contents.length);
        if offset < end {
            contents.clear(offset, end);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contents")
            .field("length", &self.length)
            .field("blocks", &self.blocks.len())
            .field("limit_bytes", &self.limit_bytes)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_says_so_and_serves_again_once_space_is_free() {
        let disk = MemoryDisk::with_limit(3 * BLOCK_BYTES);
        disk.preallocate(0, 2 * BLOCK_BYTES).unwrap();
        let error = disk.write_at(2 * BLOCK_BYTES, &[1; 2 * BLOCK_LENGTH]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        disk.write_at(0, &[2; 2 * BLOCK_LENGTH]).unwrap();
        assert_eq!(disk.allocated_bytes(), 3 * BLOCK_BYTES);
        assert_eq!(disk.preallocate(3 * BLOCK_BYTES, 1).unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.punch_hole(0, BLOCK_BYTES).unwrap();
        disk.write_at(3 * BLOCK_BYTES, &[3; BLOCK_LENGTH]).unwrap();
        assert_eq!(disk.write_at(0, &[4]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.set_limit(None);
        disk.write_at(0, &[4]).unwrap();
        assert_eq!(disk.length().unwrap(), 4 * BLOCK_BYTES);
    }

    #[test]
    fn a_copy_has_the_same_bytes() {
        let bytes: Vec<u8> = (0..10_000u32).map(|number| number as u8).collect();
        assert_eq!(MemoryDisk::from_bytes(&bytes).to_bytes(), bytes);
        let disk = MemoryDisk::from_bytes(&bytes);
        disk.set_length(20_000).unwrap();
        assert_eq!(disk.to_bytes()[10_000..], [0; 10_000]);
    }

    #[test]
    fn a_hole_of_a_tebibyte_takes_no_space() {
        let disk = MemoryDisk::new();
        disk.set_length(1 << 40).unwrap();
        disk.write_at((1 << 40) - 1, &[9]).unwrap();
        assert_eq!(disk.allocated_bytes(), BLOCK_BYTES);
    }
}
