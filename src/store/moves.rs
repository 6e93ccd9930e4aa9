//! Moving pages, so that segments of the file become wholly free: what keeps commits contiguous in an aged file, and
//! what defragmentation is made of.
//!
//! A move is an entry of a record (R7): the page's pointer was X and is Y, with the same birth and the same bytes. X is
//! held by readers of older states, never by snapshots (R8): only extents younger than the newest snapshot are moved.
//! Pages of chunks are not moved: a chunk fills a segment of its own.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::append::Draft;
use super::commit::Unit;
use super::{Committed, Durability, Store};
use crate::error::{Error, Result};
use crate::format::{BlockPointer, Entry, PointerFlags, record_blocks};
use crate::id::{BLOCK_LENGTH, Extent, Generation, PageId, SizeClass};
use crate::space::{Purpose, Request, Segment};

/// What a step of cleaning did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MoveReport {
    /// Pages moved.
    pub pages: u64,
    /// Blocks moved.
    pub blocks: u64,
    /// Whether the maps have been walked to their end.
    pub finished: bool,
}

/// Pages in memory, as they are stored.
pub trait StoredPages: Send + Sync + std::fmt::Debug {
    /// The stored bytes behind `pointer`, if they are in memory.
    fn stored(&self, pointer: &BlockPointer) -> Option<Arc<[u8]>>;

    /// The same bytes are behind this pointer now.
    fn moved(&self, pointer: &BlockPointer, stored: &Arc<[u8]>);

    /// The newest state does not lead there any more; only views may ask for it.
    fn superseded(&self, pointer: &BlockPointer);
}

/// A walk over the page maps that moves the pages out of some segments.
#[derive(Debug, Default)]
pub struct Cleaner {
    victims: BTreeSet<u64>,
    class: usize,
    position: u64,
}

impl Cleaner {
    /// Whether there is nothing under way.
    pub fn is_idle(&self) -> bool {
        self.victims.is_empty()
    }
}

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

    fn is_movable(&self, page: PageId, pointer: &BlockPointer) -> bool {
        let newest = self.state().snapshots().next_back().map(|(entry, _)| entry.generation);
        !page.class().is_chunked()
            && !pointer.extent().is_empty()
            && newest.is_none_or(|generation| pointer.birth > generation)
    }

    fn move_pointers(
        &mut self,
        moving: &[(PageId, BlockPointer)],
        durability: Durability,
    ) -> Result<Option<Committed>> {
        if moving.is_empty() {
            return Ok(None);
        }
        let blocks = record_blocks(moving.len(), 0);
        if blocks > self.settings.record_limit_blocks() {
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
        let mut stored = Vec::with_capacity(moving.len());
        for (page, pointer) in moving {
            let bytes = match self.stored_pages.as_ref().and_then(|pages| pages.stored(pointer)) {
                Some(stored) => stored,
                None => {
                    let mut bytes = vec![0; pointer.extent().blocks as usize * BLOCK_LENGTH];
                    super::read::read_stored(self.medium.disk().as_ref(), *page, pointer, &mut bytes)?;
                    bytes.truncate(pointer.stored_length as usize);
                    Arc::from(bytes)
                }
            };
            stored.push(bytes);
        }
        let with_pointers = stored.iter().zip(moving);
        let mut units: Vec<Unit<'_>> =
            with_pointers.map(|(bytes, (_, pointer))| Unit::new(&bytes[..], pointer.checksum)).collect();
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
        self.write_units(&units)?;
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
        let sealed = units.iter().map(Unit::to_write);
        self.append(&draft, plan, &[], sealed, generation, durability)?;
        self.counters.moved_bytes += units.iter().map(|unit| u64::from(unit.stored_length())).sum::<u64>();
        if let Some(pages) = &self.stored_pages {
            for (entry, bytes) in entries.iter().zip(&stored) {
                if let Entry::Move { new, .. } = entry {
                    pages.moved(new, bytes);
                }
            }
        }
        self.committed(&entries, &[], generation, &[])
    }

    /// How many wholly free segments placement has left.
    pub fn segments_free(&mut self) -> u64 {
        self.space.free_space().segments_free()
    }

    /// How many of them it wants to find, so that commits are contiguous: what a cleaner keeps.
    pub fn segments_wanted(&self) -> u64 {
        self.space.segments_wanted()
    }

    /// Says where pages may be found in memory, so that moving them need not read them.
    pub fn set_stored_pages(&mut self, pages: Arc<dyn StoredPages>) {
        self.stored_pages = Some(pages);
    }

    /// Chooses the emptiest segments, to be emptied by [`Store::clean`].
    ///
    /// # Errors
    /// Those of loading the bitmap.
    pub fn choose_victims(&mut self, cleaner: &mut Cleaner, count: usize) -> Result<()> {
        let victims = self.space.segments_to_empty(count)?;
        let segments: Vec<Segment> = victims.iter().map(|usage| usage.segment).collect();
        self.open_victims()?;
        // Nothing new is to come to lie where pages are moved away from.
        for segment in &segments {
            let closed = self.space.close_segment(*segment)?;
            self.closed.extend(closed);
        }
        *cleaner = Cleaner { victims: segments.iter().map(|segment| segment.0).collect(), class: 0, position: 0 };
        Ok(())
    }

    /// What was closed for moving is free again.
    fn open_victims(&mut self) -> Result<()> {
        std::mem::take(&mut self.closed).into_iter().try_for_each(|extent| self.space.release(extent))
    }

    /// Moves up to about `blocks` blocks of pages out of the segments chosen.
    ///
    /// # Errors
    /// Those of [`Store::move_pages`].
    pub fn clean(&mut self, cleaner: &mut Cleaner, blocks: u64, durability: Durability) -> Result<MoveReport> {
        let mut report = MoveReport::default();
        let segment_blocks = u64::from(self.settings.segment_blocks);
        let state = self.state();
        let newest_snapshot = state.snapshots().next_back().map(|(entry, _)| entry.generation);
        let mut moving = Vec::new();
        // A walk reads maps in order, and stops after so many positions, found or not, so that a step stays short.
        let mut steps = 64 * blocks.max(1);
        while report.blocks < blocks && steps > 0 && cleaner.class < SizeClass::CHUNK.index() {
            let class = SizeClass::from_index(cleaner.class);
            let stopped = state.maps[cleaner.class].visit(&self.nodes, cleaner.position, |position, pointer| {
                steps -= 1;
                let in_victim = cleaner.victims.contains(&(pointer.address.0 / segment_blocks));
                if let Some(page) = PageId::new(class, position).filter(|_| in_victim)
                    && !pointer.extent().is_empty()
                    && newest_snapshot.is_none_or(|generation| pointer.birth > generation)
                {
                    report.pages += 1;
                    report.blocks += u64::from(pointer.extent().blocks);
                    moving.push((page, *pointer));
                }
                if report.blocks < blocks && steps > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            match stopped {
                Some(position) => cleaner.position = position + 1,
                None => (cleaner.class, cleaner.position) = (cleaner.class + 1, 0),
            }
        }
        drop(state);
        self.move_pointers(&moving, durability)?;
        if cleaner.class >= SizeClass::CHUNK.index() {
            report.finished = true;
            *cleaner = Cleaner::default();
            self.open_victims()?;
        }
        Ok(report)
    }
}
