//! A disk that reads a file and keeps what is written in memory: so that a store can be recovered and read without a
//! byte of its file being changed.
//!
//! - **W1** The file is open for reading only, under the shared lock that keeps writers out, for as long as the disk
//!   lives. Nothing here can write to it.
//! - **W2** A block that was written is read from memory, whole; every other block from the file, up to the shortest
//!   length that was set since, and as zeros beyond.
//!
//! What is kept is what an open writes: the adopted tail (at most 64 MiB), an opening record, perhaps a checkpoint.
//! Callers: `open` alone.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vellum::disk::{Access, Caching, Disk, FileDisk};
use vellum::process::FileLock;
use vellum::{BLOCK_BYTES, BLOCK_LENGTH};

/// See the module.
#[derive(Debug)]
pub(crate) struct Overlay {
    file: FileDisk,
    _lock: FileLock,
    changes: RwLock<Changes>,
}

#[derive(Debug)]
struct Changes {
    blocks: BTreeMap<u64, Box<[u8; BLOCK_LENGTH]>>,
    /// Bytes of the file that still count.
    of_file: u64,
    length: u64,
}

impl Overlay {
    /// # Errors
    /// Those of opening the file for reading; `Locked` if a writer has it.
    pub(crate) fn open(path: &Path) -> vellum::Result<Self> {
        let file = FileDisk::open(path, Access::ReadOnly, Caching::Buffered)?;
        let lock = FileLock::shared(&file)?;
        let io = |source| vellum::Error::Io { operation: "length", path: path.into(), offset: None, source };
        let length = file.length().map_err(io)?;
        let changes = RwLock::new(Changes { blocks: BTreeMap::new(), of_file: length, length });
        Ok(Self { file, _lock: lock, changes })
    }

    // A panic of another thread leaves at worst a block half written, as a real disk might.
    fn changes(&self) -> RwLockReadGuard<'_, Changes> {
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changes_mut(&self) -> RwLockWriteGuard<'_, Changes> {
        self.changes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Changes {
    fn read(&self, file: &FileDisk, offset: u64, target: &mut [u8]) -> io::Result<()> {
        if target.is_empty() {
            return Ok(());
        }
        let end = offset.checked_add(target.len() as u64).filter(|end| *end <= self.length);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let from_file = self.of_file.clamp(offset, end) - offset;
        let (old, new) = target.split_at_mut(from_file as usize);
        if !old.is_empty() {
            file.read_at(offset, old)?;
        }
        new.fill(0);
        for (block, bytes) in self.blocks.range(offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)) {
            let start = block * BLOCK_BYTES;
            let (from, to) = (start.max(offset), (start + BLOCK_BYTES).min(end));
            let source = &bytes[(from - start) as usize..(to - start) as usize];
            target[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
        }
        Ok(())
    }

    fn write(&mut self, file: &FileDisk, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.length = self.length.max(end);
        while !bytes.is_empty() {
            let (block, within) = (offset / BLOCK_BYTES, (offset % BLOCK_BYTES) as usize);
            let count = bytes.len().min(BLOCK_LENGTH - within);
            let (now, later) = bytes.split_at(count);
            let mut content = match self.blocks.remove(&block) {
                Some(content) => content,
                None => self.block_of_file(file, block)?,
            };
            content[within..within + count].copy_from_slice(now);
            self.blocks.insert(block, content);
            offset += count as u64;
            bytes = later;
        }
        Ok(())
    }

    fn block_of_file(&self, file: &FileDisk, block: u64) -> io::Result<Box<[u8; BLOCK_LENGTH]>> {
        let mut content = Box::new([0; BLOCK_LENGTH]);
        let start = block * BLOCK_BYTES;
        let present = self.of_file.saturating_sub(start).min(BLOCK_BYTES) as usize;
        file.read_at(start, &mut content[..present])?;
        Ok(content)
    }

    fn set_length(&mut self, length: u64) {
        self.length = length;
        self.of_file = self.of_file.min(length);
        self.blocks.split_off(&length.div_ceil(BLOCK_BYTES));
        if let Some(last) = self.blocks.get_mut(&(length / BLOCK_BYTES)) {
            last[(length % BLOCK_BYTES) as usize..].fill(0);
        }
    }
}

impl Disk for Overlay {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn read_vectored_at(&self, mut offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let changes = self.changes();
        for buffer in buffers {
            changes.read(&self.file, offset, buffer)?;
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    fn write_vectored_at(&self, mut offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let mut changes = self.changes_mut();
        for buffer in buffers {
            changes.write(&self.file, offset, buffer)?;
            offset += buffer.len() as u64;
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
        Ok(self.changes().length)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.changes_mut().set_length(length);
        Ok(())
    }

    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = offset.checked_add(length).ok_or(io::ErrorKind::FileTooLarge)?;
        let mut changes = self.changes_mut();
        changes.length = changes.length.max(end);
        Ok(())
    }

    fn punch_hole(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_read_back_and_the_file_keeps_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let original: Vec<u8> = (0..10_000u32).map(|index| index as u8).collect();
        std::fs::write(&path, &original).unwrap();
        let disk = Overlay::open(&path).unwrap();
        let mut expected = original.clone();

        disk.write_at(4_000, &[7; 5_000]).unwrap();
        expected[4_000..9_000].fill(7);
        disk.write_at(12_000, b"end").unwrap();
        expected.resize(12_000, 0);
        expected.extend(b"end");
        let read = |disk: &Overlay| {
            let mut bytes = vec![1; disk.length().unwrap() as usize];
            disk.read_at(0, &mut bytes).unwrap();
            bytes
        };
        assert_eq!(read(&disk), expected);

        disk.set_length(4_500).unwrap();
        disk.set_length(11_000).unwrap();
        expected.truncate(4_500);
        expected.resize(11_000, 0);
        assert_eq!(read(&disk), expected);
        assert!(disk.read_at(10_999, &mut [0; 2]).is_err());
        assert!(disk.read_at(20_000, &mut []).is_ok());
        assert_eq!(std::fs::read(&path).unwrap(), original);
    }
}
