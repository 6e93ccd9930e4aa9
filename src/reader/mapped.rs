//! Pages where the file is mapped: R4.
#![allow(unsafe_code)]

use std::collections::HashSet;
use std::hash::BuildHasherDefault;
use std::sync::{Mutex, PoisonError};

use super::table::Table;
use crate::disk::FileDisk;
use crate::error::{Error, Result};
use crate::format::{BlockPointer, CodecId, PointerFlags, checksum};
use crate::id::{Block, Extent, Generation, PageId, SizeClass};
use crate::map::PointerHasher;
use crate::memory::GrowingFile;

/// Pointers that are remembered as verified besides the table: chunks, and pages of older states. When there are more,
/// all are forgotten and verified again.
const VERIFIED_LIMIT: usize = 1 << 16;

/// The mapped file, and which bytes of it are known to be right.
///
/// Everything here that returns bytes relies on the contract of [`open_mapped`](super::ReadOnlyPager::open_mapped), and
/// on the caller's holding a state that reaches the pointer for as long as it holds the bytes: by R2 Vellum's own
/// writers then leave them as they are.
#[derive(Debug)]
pub(super) struct Mapped {
    file: GrowingFile,
    table: Table,
    verified: Mutex<HashSet<BlockPointer, BuildHasherDefault<PointerHasher>>>,
}

impl Mapped {
    pub(super) fn new(disk: &FileDisk, newest: Generation) -> Result<Self> {
        let path = || crate::disk::Disk::path(disk).to_owned();
        let file = disk.file().try_clone().map_err(|source| Error::Io {
            operation: "open",
            path: path(),
            offset: None,
            source,
        })?;
        Ok(Self { file: GrowingFile::new(file)?, table: Table::new(newest), verified: Mutex::default() })
    }

    /// Where a page of at most 1 MiB lies in the state of `generation`, if the table knows it.
    #[inline]
    pub(super) fn known(&self, page: PageId, generation: Generation) -> Option<Block> {
        self.table.find(page, generation)
    }

    /// A page of at most 1 MiB, or a chunk, that is stored as it is and found to be so; else `None`, and it is to be
    /// read by other ways, which say what is wrong with it.
    pub(super) fn verified(&self, page: PageId, pointer: &BlockPointer) -> Option<&[u8]> {
        let unit_bytes = page.class().page_bytes().min(SizeClass::CHUNK.page_bytes());
        let plain = pointer.codec == CodecId::RAW && !pointer.is_indirect();
        if !plain || u64::from(pointer.stored_length) != unit_bytes {
            return None;
        }
        let bytes = self.at(pointer.address, unit_bytes)?;
        let is_known = || self.verified.lock().unwrap_or_else(PoisonError::into_inner).contains(pointer);
        if is_known() {
            return Some(bytes);
        }
        if checksum(bytes) != pointer.checksum {
            return None;
        }
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= VERIFIED_LIMIT {
            verified.clear();
        }
        verified.insert(*pointer);
        Some(bytes)
    }

    /// These blocks are going to be read: the system may begin with that.
    pub(super) fn will_need(&self, extent: Extent) {
        if !extent.is_empty() {
            self.file.will_need(extent.start.offset_bytes(), extent.length_bytes());
        }
    }

    /// Keeps the place of a page that was verified, as the trees of the state of `asked` say.
    pub(super) fn remember(&self, page: PageId, pointer: &BlockPointer, asked: Generation) {
        // What was moved has been in its place for less time than its birth says.
        let since = match pointer.flags.contains(PointerFlags::RELOCATED) {
            true => asked,
            false => pointer.birth,
        };
        self.table.fill(page, pointer.address, since, asked);
    }

    pub(super) fn forget(&self, pages: &[PageId], newest: Generation) {
        self.table.forget(pages, newest);
    }

    pub(super) fn forget_all(&self, newest: Generation) {
        self.table.forget_all(newest);
    }

    /// Bytes of a page or chunk that was verified there, as long as the caller holds a state that reaches it.
    #[inline]
    pub(super) fn at(&self, block: Block, length: u64) -> Option<&[u8]> {
        // SAFETY: the bytes are a committed page's or chunk's, which the caller's state reaches; nobody changes them
        // while the caller has them (see the type).
        unsafe { self.file.bytes(block.offset_bytes(), usize::try_from(length).ok()?) }
    }
}
