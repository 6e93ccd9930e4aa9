//! Cleaning: whole segments are emptied, the emptiest first, one at a time.
//!
//! A segment does not say which pages lie in it. So many victims are chosen at once, one walk over the page maps gathers
//! their pages, in pieces, and then they are emptied one after the other, while the next walk is under way:
//!
//! ```text
//!   usage table ──► victims ──► walk, in pieces ──► ready, emptiest first ──► emptied, one a step ──► wholly free
//! ```
//!
//! - **C1** What a walk found is a hint. Pages that were written anew or moved since are looked up again and left out.
//! - **C2** A segment is emptied in one step, by one record. Its free blocks are taken before, so that nothing comes to
//!   lie there, and given back when the blocks moved away are free too.
//! - **C3** A segment with much in it that cannot be moved (nodes, log, chunks, what snapshots reach) is passed by.
//! - **C4** A walk's memory is bounded: 4 bytes for each segment of the file, and 8 for each page of the victims.
//! - **C5** Commits do not fill the holes of victims: what the walk did not see would stay behind.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use super::{Durability, Store};
use crate::error::Result;
use crate::format::BlockPointer;
use crate::id::{Extent, PageId, SizeClass};
use crate::space::{Segment, SegmentUsage};

/// One segment in so many is a victim of a walk. More make a walk cheaper for each page moved; but the free blocks of
/// victims are of no use meanwhile, and its end is farther from its beginning.
const SEGMENTS_PER_VICTIM: u64 = 64;

/// The most victims of one walk.
const VICTIMS_LIMIT: u64 = 16 << 10;

/// The fewest.
const VICTIMS_AT_LEAST: u64 = 4;

/// Positions that a walk looks at in a step at most.
const PIECE_POSITIONS: u64 = 64 << 10;

/// The number of a segment that is no victim.
const NO_VICTIM: u32 = u32::MAX;

/// What a step of cleaning did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MoveReport {
    /// Pages moved.
    pub pages: u64,
    /// Blocks moved.
    pub blocks: u64,
    /// Whether all segments that were chosen have been dealt with.
    pub finished: bool,
}

/// Which segments are emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victims {
    /// Those where moving costs less than it saves.
    WorthIt,
    /// Those with some room: where wholly free segments are needed as such.
    Needed,
    /// The emptiest, whatever it costs.
    Any,
}

/// Segments to be emptied, and the walk that finds what lies in them.
#[derive(Debug, Default)]
pub struct Cleaner {
    walk: Option<Walk>,
    ready: VecDeque<Victim>,
    /// Victims of the newest walk when it began.
    batch: usize,
}

/// A segment to be emptied, and its pages as far as a walk has found them.
#[derive(Debug)]
struct Victim {
    segment: Segment,
    pages: Vec<PageId>,
}

/// A walk over the page maps.
#[derive(Debug)]
struct Walk {
    victims: Vec<Victim>,
    /// The number of each segment's victim.
    numbers: Vec<u32>,
    class: usize,
    position: u64,
}

impl Cleaner {
    /// Whether there is nothing under way.
    pub fn is_idle(&self) -> bool {
        self.walk.is_none() && self.ready.is_empty()
    }
}

impl Store {
    /// How many wholly free segments placement has left.
    pub fn segments_free(&mut self) -> u64 {
        self.space.free_space().segments_free()
    }

    /// How many more there will be once what was moved lately is anchored.
    pub fn segments_emptied(&self) -> u64 {
        self.closed.len() as u64
    }

    /// How many of them it wants to find, so that commits are contiguous: what a cleaner keeps.
    pub fn segments_wanted(&self) -> u64 {
        self.space.segments_wanted()
    }

    /// Empties about so many blocks' worth of segments, and one at least if one is ready; goes on with the walk for the
    /// next ones. Chooses victims if too few are left; if there are none, the report says that it is finished, and the
    /// cleaner is idle.
    ///
    /// # Errors
    /// Those of [`Store::move_pages`], and of loading the bitmap. The segment concerned is passed by.
    pub fn clean(
        &mut self,
        cleaner: &mut Cleaner,
        victims: Victims,
        blocks: u64,
        durability: Durability,
    ) -> Result<MoveReport> {
        let mut report = MoveReport::default();
        // The next walk is over when those that are ready have been emptied; on demand, one follows the other.
        let chosen_ahead = victims != Victims::Any && cleaner.ready.len() <= cleaner.batch / 2;
        if cleaner.walk.is_none() && (cleaner.ready.is_empty() || chosen_ahead) {
            self.choose_victims(cleaner, victims)?;
        }
        self.walk_piece(cleaner)?;
        while report.blocks < blocks.max(1)
            && let Some(victim) = cleaner.ready.pop_front()
        {
            let moved = self.empty(&victim, victims, durability)?;
            report.pages += moved.pages;
            report.blocks += moved.blocks;
        }
        report.finished = cleaner.is_idle();
        Ok(report)
    }

    /// Begins a walk for the emptiest segments.
    fn choose_victims(&mut self, cleaner: &mut Cleaner, choice: Victims) -> Result<()> {
        let segments_total = self.space.blocks_total().div_ceil(self.settings.segment_blocks.into());
        let count = (segments_total / SEGMENTS_PER_VICTIM).clamp(VICTIMS_AT_LEAST, VICTIMS_LIMIT) as usize;
        let ready: std::collections::HashSet<Segment> = cleaner.ready.iter().map(|victim| victim.segment).collect();
        let mut usages = self.space.segments_to_empty(count + ready.len())?;
        usages.retain(|usage| !ready.contains(&usage.segment) && is_chosen(usage, choice));
        usages.truncate(count);
        let emptied_soon = ready.into_iter().chain(usages.iter().map(|usage| usage.segment));
        self.space.pass_by(&emptied_soon.collect::<Vec<_>>());
        if usages.is_empty() {
            return Ok(());
        }
        let mut numbers = vec![NO_VICTIM; segments_total as usize];
        for (usage, number) in usages.iter().zip(0..) {
            numbers[usage.segment.0 as usize] = number;
        }
        let victims: Vec<Victim> =
            usages.iter().map(|usage| Victim { segment: usage.segment, pages: Vec::new() }).collect();
        cleaner.batch = victims.len();
        cleaner.walk = Some(Walk { victims, numbers, class: 0, position: 0 });
        Ok(())
    }

    /// Looks at some more positions of the maps. An error ends the walk: the next begins anew.
    fn walk_piece(&mut self, cleaner: &mut Cleaner) -> Result<()> {
        let Some(mut walk) = cleaner.walk.take() else { return Ok(()) };
        let maps = self.state().maps.get();
        let positions: u64 = maps[..SizeClass::CHUNK.index()].iter().map(|map| map.length()).sum();
        // Done when half of those that are ready are left; with none ready there is nothing else to do.
        let mut left = match cleaner.ready.len() as u64 {
            0 => PIECE_POSITIONS,
            ready => (2 * positions / ready).clamp(256, PIECE_POSITIONS),
        };
        let segment_blocks = u64::from(self.settings.segment_blocks);
        while left > 0 && walk.class < SizeClass::CHUNK.index() {
            let class = SizeClass::from_index(walk.class);
            let (victims, numbers) = (&mut walk.victims, &walk.numbers);
            let stopped = maps[walk.class].visit(&self.nodes, walk.position, |position, pointer| {
                left -= 1;
                let segment = (pointer.address.0 / segment_blocks) as usize;
                let victim = numbers.get(segment).and_then(|number| victims.get_mut(*number as usize));
                if let Some(victim) = victim
                    && !pointer.extent().is_empty()
                    && let Some(page) = PageId::new(class, position)
                {
                    victim.pages.push(page);
                }
                if left > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            match stopped {
                Some(position) => walk.position = position + 1,
                None => (walk.class, walk.position) = (walk.class + 1, 0),
            }
        }
        if walk.class < SizeClass::CHUNK.index() {
            cleaner.walk = Some(walk);
        } else {
            cleaner.ready.extend(walk.victims);
        }
        Ok(())
    }

    /// Moves everything out of a segment (C1 to C3).
    fn empty(&mut self, victim: &Victim, choice: Victims, durability: Durability) -> Result<MoveReport> {
        let usage = self.space.free_space().segment_usage(victim.segment)?;
        if usage.blocks_used == 0 || self.space.is_filling(victim.segment) || !is_chosen(&usage, choice) {
            return Ok(MoveReport::default());
        }
        let whole = self.space.free_space().segment_extent(victim.segment);
        let state = self.state();
        let mut moving: Vec<(PageId, BlockPointer)> = Vec::with_capacity(victim.pages.len());
        let mut blocks = 0;
        for page in &victim.pages {
            let pointer = state.pointer(&self.nodes, *page)?;
            if whole.contains(pointer.address) && self.is_movable(*page, &pointer) {
                blocks += u64::from(pointer.extent().blocks);
                moving.push((*page, pointer));
            }
        }
        drop(state);
        if blocks == 0 || (choice != Victims::Any && blocks * 8 < u64::from(usage.blocks_used) * 7) {
            return Ok(MoveReport::default());
        }
        // In the order in which they lie: what is not in memory is read in one go.
        moving.sort_by_key(|(_, pointer)| pointer.address);
        let closed = self.space.close_segment(victim.segment)?;
        let moved = self.move_pointers(&moving, durability);
        match &moved {
            Ok(Some(committed)) => self.closed.push_back((committed.generation, closed)),
            _ => closed.into_iter().try_for_each(|extent| self.space.release(extent))?,
        }
        moved?;
        Ok(MoveReport { pages: moving.len() as u64, blocks, finished: false })
    }

    /// Gives back the free blocks of segments whose other blocks are free by now.
    pub(super) fn open_emptied(&mut self) -> Result<()> {
        while self.closed.front().is_some_and(|(generation, _)| *generation <= self.anchored)
            && let Some((_, closed)) = self.closed.pop_front()
        {
            closed.into_iter().try_for_each(|extent: Extent| self.space.release(extent))?;
        }
        Ok(())
    }
}

fn is_chosen(usage: &SegmentUsage, choice: Victims) -> bool {
    match choice {
        Victims::WorthIt => usage.is_worth_emptying(),
        Victims::Needed => usage.blocks_free * 16 >= usage.blocks_used,
        Victims::Any => true,
    }
}
