//! The temporary file of scratch pages: where in it they lie, and what they sum to.
//!
//! - **T1** The file never grows beyond its limit. What was freed is used again, lowest first; the space of long extents
//!   goes back to the file system at once, all of it when nothing is left.
//! - **T2** As much of the limit as the largest page takes, of those that there are or that are being made, is kept for
//!   pages on their way back to memory: one comes in for one that goes out, when both are full.
//! - **T3** What is read back is what was written, or an error.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::super::frame::Frame;
use super::super::lock;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::checksum;
use crate::id::{BLOCK_BYTES, Extent, SizeClass};
use crate::space::{FirstFit, LEAF_BLOCKS, Purpose, Request, SEGMENT_BLOCKS, Space};

/// Extents from this length on are given back to the file system when they are freed.
const PUNCHED_BLOCKS: u32 = 64;
/// Buffers in one write.
const BUFFERS: usize = 256;

/// Where a page lies in the file.
#[derive(Debug)]
pub(super) struct Stored {
    extents: Vec<Extent>,
    checksum: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct SpillFile {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    limit_blocks: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    space: Space,
    used_blocks: u64,
    /// How many pages there are of each class, here or in memory (T2).
    pages: [u64; SizeClass::COUNT],
    /// Pages on their way back to memory.
    loading: usize,
}

impl State {
    /// Blocks of the largest page (T2).
    fn reserve_blocks(&self) -> u64 {
        let largest = SizeClass::all().rev().find(|class| self.pages[class.index()] > 0);
        largest.map_or(0, |class| class.page_bytes() / BLOCK_BYTES)
    }
}

impl SpillFile {
    pub(super) fn new(disk: Arc<dyn Disk>, folder: &Path, limit_bytes: u64) -> Self {
        let limit_blocks = limit_bytes / BLOCK_BYTES;
        let space = Space::new(limit_blocks.min(u64::from(LEAF_BLOCKS)), SEGMENT_BLOCKS, Box::new(FirstFit));
        let state = State { space, used_blocks: 0, pages: [0; SizeClass::COUNT], loading: 0 };
        Self { disk, folder: folder.to_owned(), limit_blocks, state: Mutex::new(state) }
    }

    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_blocks * BLOCK_BYTES
    }

    /// Bytes of pages in the file.
    pub(super) fn used_bytes(&self) -> u64 {
        lock(&self.state).used_blocks * BLOCK_BYTES
    }

    /// A page of this class is being made; [`SpillFile::forget`] is called when it is gone, or could not be made.
    pub(super) fn expect(&self, class: SizeClass) {
        lock(&self.state).pages[class.index()] += 1;
    }

    /// See [`SpillFile::expect`].
    pub(super) fn forget(&self, class: SizeClass) {
        lock(&self.state).pages[class.index()] -= 1;
    }

    /// Space for a page.
    ///
    /// # Errors
    /// [`Error::ScratchFull`].
    pub(super) fn reserve(&self, class: SizeClass) -> Result<Stored> {
        let needed_bytes = class.page_bytes();
        let blocks = needed_bytes / BLOCK_BYTES;
        let mut state = lock(&self.state);
        let kept = if state.loading > 0 { 0 } else { state.reserve_blocks() };
        if state.used_blocks + blocks + kept > self.limit_blocks {
            let (folder, limit_bytes) = (self.folder.clone(), self.limit_bytes());
            return Err(Error::ScratchFull { folder, limit_bytes, needed_bytes });
        }
        let mut stored = Stored { extents: Vec::new(), checksum: 0 };
        let mut missing = blocks;
        while missing > 0 {
            match self.take(&mut state.space, missing) {
                Ok(extent) => {
                    missing -= u64::from(extent.blocks);
                    stored.extents.push(extent);
                }
                Err(error) => {
                    drop(state);
                    self.release(stored);
                    return Err(error);
                }
            }
            if let Some(extent) = stored.extents.last() {
                state.used_blocks += u64::from(extent.blocks);
            }
        }
        Ok(stored)
    }

    /// Up to so many blocks: in one piece, if need be from space that was not used yet; else as it comes.
    fn take(&self, space: &mut Space, blocks: u64) -> Result<Extent> {
        let wanted = blocks.min(u64::from(LEAF_BLOCKS)) as u32;
        loop {
            if let Some(extent) = space.allocate(&Request::exactly(wanted, Purpose::Data))? {
                return Ok(extent);
            }
            let total = space.blocks_total();
            if total == self.limit_blocks {
                break;
            }
            space.grow((total + u64::from(LEAF_BLOCKS)).min(self.limit_blocks))?;
        }
        let (folder, limit_bytes) = (self.folder.clone(), self.limit_bytes());
        let full = Error::ScratchFull { folder, limit_bytes, needed_bytes: blocks * BLOCK_BYTES };
        space.allocate(&Request::up_to(wanted, Purpose::Data))?.ok_or(full)
    }

    /// Writes pages, each to the space that was reserved for it.
    ///
    /// # Errors
    /// The system's; then nothing is known of any of them.
    pub(super) fn write(&self, pages: &mut [(u64, Stored, &Frame)]) -> Result<()> {
        let mut pieces: Vec<(u64, &[u8])> = Vec::new();
        for (number, stored, frame) in pages {
            let mut rest: &[u8] = frame;
            stored.checksum = sum(*number, rest);
            for extent in &stored.extents {
                let (piece, after) = rest.split_at((extent.length_bytes() as usize).min(rest.len()));
                pieces.push((extent.start.0 * BLOCK_BYTES, piece));
                rest = after;
            }
        }
        pieces.sort_unstable_by_key(|(offset, _)| *offset);
        let mut at = 0;
        while at < pieces.len() {
            let begin = pieces[at].0;
            let mut end = begin;
            let mut buffers = Vec::new();
            while let Some((offset, bytes)) = pieces.get(at)
                && *offset == end
                && buffers.len() < BUFFERS
            {
                buffers.push(IoSlice::new(bytes));
                end += bytes.len() as u64;
                at += 1;
            }
            self.disk
                .write_vectored_at(begin, &buffers)
                .map_err(|source| self.failure("writing scratch pages to a file", begin, source))?;
        }
        Ok(())
    }

    /// A page is on its way back to memory; [`SpillFile::end_load`] is called when it is there, or not.
    pub(super) fn begin_load(&self) {
        lock(&self.state).loading += 1;
    }

    /// See [`SpillFile::begin_load`].
    pub(super) fn end_load(&self) {
        lock(&self.state).loading -= 1;
    }

    /// Reads a page back.
    ///
    /// # Errors
    /// The system's; [`Error::ScratchDamaged`].
    pub(super) fn read(&self, number: u64, stored: &Stored, target: &mut [u8]) -> Result<()> {
        let mut rest = &mut *target;
        for extent in &stored.extents {
            let length = (extent.length_bytes() as usize).min(rest.len());
            let (piece, after) = rest.split_at_mut(length);
            let offset = extent.start.0 * BLOCK_BYTES;
            self.disk
                .read_at(offset, piece)
                .map_err(|source| self.failure("reading scratch pages from a file", offset, source))?;
            rest = after;
        }
        if sum(number, target) != stored.checksum {
            let offset = stored.extents.first().map_or(0, |extent| extent.start.0 * BLOCK_BYTES);
            return Err(Error::ScratchDamaged { folder: self.folder.clone(), number, offset });
        }
        Ok(())
    }

    /// The page is no longer wanted there.
    pub(super) fn release(&self, stored: Stored) {
        let mut state = lock(&self.state);
        for extent in stored.extents {
            // They were taken from this very space, so they are in use.
            if state.space.release(extent).is_ok() {
                state.used_blocks -= u64::from(extent.blocks);
            }
            if extent.blocks >= PUNCHED_BLOCKS && state.used_blocks > 0 {
                // Under the lock, so that nobody writes there yet. A refusal costs space that is used again anyway.
                let _ = self.disk.punch_hole(extent.start.0 * BLOCK_BYTES, extent.length_bytes());
            }
        }
        if state.used_blocks == 0 {
            let _ = self.disk.set_length(0);
        }
    }

    fn failure(&self, operation: &'static str, offset: u64, source: std::io::Error) -> Error {
        Error::Io { operation, path: self.folder.clone(), offset: Some(offset), source }
    }
}

/// Of the page's bytes and its number: another page's bytes are damage too.
fn sum(number: u64, bytes: &[u8]) -> u32 {
    checksum(bytes) ^ checksum(&number.to_le_bytes())
}
