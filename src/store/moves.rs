//! Moving pages, so that segments of the file become wholly free: what keeps commits contiguous in an aged file, and
//! what defragmentation is made of.
//!
//! A move is an entry of a record (R7): the page's pointer was X and is Y, with the same birth and the same bytes. X is
//! held by readers of older states, never by snapshots (R8): only extents younger than the newest snapshot are moved.
//! Pages of chunks are not moved: a chunk fills a segment of its own.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::append::{Draft, RecordPages};
use super::prepare::Unit;
use super::staging::Flights;
use super::{Committed, Durability, Store};
use crate::disk::AlignedBuffer;
use crate::error::{Corruption, Error, Fault, Result, Structure};
use crate::format::{BlockPointer, Entry, PointerFlags, Seal, checksum, record_blocks};
use crate::id::{BLOCK_LENGTH, Extent, Generation, PageId};
use crate::space::{Purpose, Request};

/// Blocks read in one go: as many as a segment usually has. Pages that are moved together mostly lie in one.
const READ_BLOCKS: u64 = 256;

/// Pages in memory, as they are stored.
pub trait StoredPages: Send + Sync + std::fmt::Debug {
    /// The stored bytes of a page, if they are in memory: of its newest version, which lies at `pointer`.
    fn stored(&self, page: PageId, pointer: &BlockPointer) -> Option<StoredBytes>;
}

/// Bytes that somebody keeps as they are.
pub type StoredBytes = Box<dyn AsRef<[u8]>>;

impl Store {
    /// Moves pages to other places in one commit. A page that is not allocated, is chunked, zero, or reached by a
    /// snapshot is left where it is.
    ///
    /// # Errors
    /// Those of [`Store::commit`], and of reading the pages.
    pub fn move_pages(&mut self, pages: &[PageId], durability: Durability) -> Result<Option<Committed>> {
        self.medium.check()?;
        self.release()?;
        let state = self.state();
        let mut moving = Vec::new();
        // A page that is named twice is moved once.
        for page in pages.iter().copied().collect::<BTreeSet<_>>() {
            let pointer = state.pointer(&self.nodes, page)?;
            if self.is_movable(page, &pointer) {
                moving.push((page, pointer));
            }
        }
        drop(state);
        self.move_pointers(&moving, durability)
    }

    pub(super) fn is_movable(&self, page: PageId, pointer: &BlockPointer) -> bool {
        let newest = self.state().snapshots().next_back().map(|(entry, _)| entry.generation);
        !page.class().is_chunked()
            && !pointer.extent().is_empty()
            && newest.is_none_or(|generation| pointer.birth > generation)
    }

    /// Moves what lies at these pointers, in one commit or, if they are many, in several.
    pub(super) fn move_pointers(
        &mut self,
        moving: &[(PageId, BlockPointer)],
        durability: Durability,
    ) -> Result<Option<Committed>> {
        if moving.is_empty() {
            return Ok(None);
        }
        let blocks = record_blocks(moving.len(), 0);
        if blocks > self.record_limit_blocks() {
            let half = moving.len() / 2;
            self.move_pointers(&moving[..half], durability)?;
            return self.move_pointers(&moving[half..], durability);
        }
        let generation = self.state().generation.next().ok_or(Error::Exhausted { counter: "generation" })?;
        let mut taken = Vec::new();
        let result = self.move_into(moving, generation, durability, &mut taken);
        if let Err(error) = &result
            && !matches!(error, Error::CommitUnknown { .. })
        {
            for extent in taken {
                self.space.release(extent)?;
            }
        }
        result.map(Some)
    }

    fn move_into(
        &mut self,
        moving: &[(PageId, BlockPointer)],
        generation: Generation,
        durability: Durability,
        taken: &mut Vec<Extent>,
    ) -> Result<Committed> {
        let mut stored: Vec<StoredBytes> = Vec::with_capacity(moving.len());
        let mut ahead = ReadAhead { buffer: AlignedBuffer::zeroed(0), extent: Extent::default() };
        for (index, (page, pointer)) in moving.iter().enumerate() {
            let bytes = match self.stored_pages.as_ref().and_then(|pages| pages.stored(*page, pointer)) {
                Some(stored) => stored,
                None => ahead.bytes(&self.medium, *page, pointer, &moving[index..])?,
            };
            stored.push(bytes);
        }
        let with_pointers = stored.iter().zip(moving);
        let mut units: Vec<Unit<'_>> =
            with_pointers.map(|(bytes, (_, pointer))| Unit::new((**bytes).as_ref(), Some(pointer.checksum))).collect();
        let mut left: u64 = units.iter().map(Unit::blocks).sum();
        let mut free = Extent::default();
        for unit in &mut units {
            let blocks = unit.blocks() as u32;
            if free.blocks < blocks {
                self.return_rest(free, taken)?;
                let wanted = left.min(crate::space::LEAF_BLOCKS.into()) as u32;
                let request = Request { blocks: wanted, minimum: blocks, multiple: 1, purpose: Purpose::Moved };
                free = self.space.allocate(&request)?.ok_or_else(|| self.no_space(left))?;
                taken.push(free);
            }
            let (own, rest) = free.split_at(blocks);
            unit.address = own.start;
            free = rest;
            left -= u64::from(blocks);
        }
        self.return_rest(free, taken)?;
        let mut flights = Flights::default();
        let salt = self.salt_to_come();
        self.send_units(&mut units, salt, &mut flights)?;
        let entries: Vec<Entry> = moving
            .iter()
            .zip(&units)
            .map(|((page, old), unit)| {
                let flags = old.flags.with(PointerFlags::RELOCATED);
                Entry::Move { page: *page, new: BlockPointer { address: unit.address, flags, ..*old }, old: *old }
            })
            .collect();
        let draft = Draft { entries: entries.clone(), ..Draft::default() };
        let plan = self.plan_log(record_blocks(entries.len(), 0))?;
        let sealed: Vec<Seal> = units.iter().map(|unit| unit.seal(plan.placement.salt)).collect();
        self.check_flights(&mut flights, &plan)?;
        let sets = self.account_for(&entries, &[], generation)?;
        let pages = RecordPages { behind: &[], sealed: &sealed, flights };
        self.append(&draft, plan, pages, generation, durability)?;
        self.counters.moved_bytes += units.iter().map(|unit| u64::from(unit.stored_length())).sum::<u64>();
        self.committed(&entries, &[], generation, sets, &[])
    }

    /// Says where pages may be found in memory, so that moving them need not read them.
    pub fn set_stored_pages(&mut self, pages: Arc<dyn StoredPages>) {
        self.stored_pages = Some(pages);
    }
}

/// A stretch of the file in memory, for pages that are wanted in the order in which they lie.
#[derive(Debug)]
struct ReadAhead {
    buffer: AlignedBuffer,
    extent: Extent,
}

impl ReadAhead {
    /// The stored bytes of a page, checked.
    fn bytes(
        &mut self,
        medium: &super::Medium,
        page: PageId,
        pointer: &BlockPointer,
        following: &[(PageId, BlockPointer)],
    ) -> Result<StoredBytes> {
        let wanted = pointer.extent();
        if wanted.start < self.extent.start || wanted.end() > self.extent.end() {
            self.fill(medium, page, pointer, following)?;
        }
        let at = (wanted.start.0 - self.extent.start.0) as usize * BLOCK_LENGTH;
        let stored = self.buffer.get(at..at + pointer.stored_length as usize).unwrap_or_default();
        let found = checksum(stored);
        if found != pointer.checksum {
            return Err(damage(medium, page, pointer, Fault::Checksum { expected: pointer.checksum, found }));
        }
        Ok(Box::new(Vec::from(stored)))
    }

    /// Reads up to the end of what follows close behind.
    fn fill(
        &mut self,
        medium: &super::Medium,
        page: PageId,
        pointer: &BlockPointer,
        following: &[(PageId, BlockPointer)],
    ) -> Result<()> {
        let wanted = pointer.extent();
        let file_bytes = medium.length_bytes()?;
        let blocks_total = file_bytes / BLOCK_LENGTH as u64;
        if wanted.end().0 > blocks_total {
            return Err(damage(medium, page, pointer, Fault::Truncated { file_bytes }));
        }
        let limit = (wanted.start.0 + READ_BLOCKS).min(blocks_total);
        let close = |extent: &Extent| extent.start >= wanted.start && extent.end().0 <= limit;
        let ends = following.iter().map(|(_, pointer)| pointer.extent()).take_while(close).map(|extent| extent.end().0);
        let blocks = ends.max().unwrap_or(0).max(wanted.end().0) - wanted.start.0;
        // Nothing of it is believed if the read fails.
        self.extent = Extent::default();
        if self.buffer.len() < blocks as usize * BLOCK_LENGTH {
            self.buffer = AlignedBuffer::zeroed(blocks as usize * BLOCK_LENGTH);
        }
        medium.read(wanted.start, &mut self.buffer[..blocks as usize * BLOCK_LENGTH])?;
        self.extent = Extent { start: wanted.start, blocks: blocks as u32 };
        Ok(())
    }
}

fn damage(medium: &super::Medium, page: PageId, pointer: &BlockPointer, fault: Fault) -> Error {
    let offset = pointer.address.offset_bytes();
    Corruption { path: medium.path().into(), structure: Structure::Page, page: Some(page), offset, fault }.into()
}
