//! The log: where the records of commits lie, and how they are found again.
//!
//! Records are appended to *segments*: runs of blocks of their own. Small commits put their pages directly behind
//! their record, so that one durable write does the whole commit; these pages stay where they are, and when the segment
//! is no longer needed as log, its other blocks become ordinary free space around them.
//!
//! Invariants:
//! - **L1** The record after the one that ends at block `p` of a segment starts at `p`, or, if nothing valid is there,
//!   at the first block of the segment that the record (or the superblock) announces as the next.
//! - **L2** A segment is announced, with a salt drawn for this use, by a record or superblock that is durable no later
//!   than anything in the segment is believed: what it is believed through is the link to that very record.
//! - **L3** A record is one only with the store's id, its own address, its segment's present salt, the seal of the
//!   record before, and the next generation. Bytes of pages, in whatever segment, cannot be one by accident.
//! - **L4** A segment is kept until both superblock slots have folded every record in it (rule R4).
//! - **L5** A segment that the log has left holds two records at least: what it announces as the next is said twice, and
//!   the loss of one record does not hide those that come after.
//!
//! Callers: `store` alone. Thread rules: [`Log`] belongs to the store's one thread; scanning only reads.

mod scan;

use std::collections::VecDeque;

pub use scan::{FoundRecord, LogStart, Scanner};

use crate::format::{Seal, SegmentReference};
use crate::id::{Block, Extent, Generation};

/// A segment in use.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Where it lies, and its salt.
    pub reference: SegmentReference,
    /// The generation of its youngest record; zero before the first.
    pub last: Generation,
    /// The blocks of it that hold pages, one bit a block.
    pages: Vec<u64>,
}

impl Segment {
    /// A segment without records and pages.
    pub fn new(reference: SegmentReference) -> Self {
        let words = (reference.extent.blocks as usize).div_ceil(64);
        Self { reference, last: Generation(0), pages: vec![0; words] }
    }

    /// Marks blocks as holding a page, or as holding none any more. Blocks outside of the segment are left alone.
    pub fn set_pages(&mut self, extent: Extent, hold: Hold) {
        for block in extent.start.0..extent.end().0 {
            if self.reference.extent.contains(Block(block)) {
                let index = (block - self.reference.extent.start.0) as usize;
                let bit = 1 << (index % 64);
                match hold {
                    Hold::Page => self.pages[index / 64] |= bit,
                    Hold::Nothing => self.pages[index / 64] &= !bit,
                }
            }
        }
    }

    /// The runs of blocks that hold no page.
    pub fn blocks_without_pages(&self) -> Vec<Extent> {
        let mut runs: Vec<Extent> = Vec::new();
        for index in 0..self.reference.extent.blocks {
            if self.pages[index as usize / 64] >> (index % 64) & 1 == 1 {
                continue;
            }
            let block = self.reference.extent.start.0 + u64::from(index);
            match runs.last_mut() {
                Some(run) if run.end().0 == block => run.blocks += 1,
                _ => runs.push(Extent::new(block, 1)),
            }
        }
        runs
    }

    /// Whether no block of it holds a page.
    pub fn is_without_pages(&self) -> bool {
        self.pages.iter().all(|word| *word == 0)
    }
}

/// What a block of a segment holds besides records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// A page, or a part of one.
    Page,
    /// Nothing that lasts.
    Nothing,
}

/// Where the next record goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The record's first block.
    pub address: Block,
    /// The salt of the segment.
    pub salt: u64,
    /// Which segment that is.
    pub segment: Which,
}

/// One of the two segments that a record can go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that the last record went to.
    Current,
    /// The one announced as the next.
    Next,
}

/// The place behind a record, where the next one is expected (L1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPosition {
    /// The first block of the segment.
    pub segment: Block,
    /// Blocks from there.
    pub offset: u32,
    /// The record's seal.
    pub seal: Seal,
}

/// The segments in use, and where the next record goes.
#[derive(Debug)]
pub struct Log {
    /// In the order of their use; the last may be announced and not begun.
    segments: VecDeque<Segment>,
    current: usize,
    offset: u32,
    seal: Seal,
    /// Segments that are not in use, kept for the next announcement.
    spares: Vec<Extent>,
}

impl Log {
    /// A log whose next record goes to `start` of the segment with index `current`; later segments are announced.
    pub fn new(segments: Vec<Segment>, current: usize, offset: u32, seal: Seal, spares: Vec<Extent>) -> Self {
        Self { segments: segments.into(), current, offset, seal, spares }
    }

    /// Where the next record is expected.
    pub fn position(&self) -> LogPosition {
        let segment = self.segments[self.current].reference.extent.start;
        LogPosition { segment, offset: self.offset, seal: self.seal }
    }

    /// The segments in the order of their use, then the announced one.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter()
    }

    /// The segment that holds `block`.
    pub fn segment_of(&mut self, block: Block) -> Option<&mut Segment> {
        self.segments.iter_mut().find(|segment| segment.reference.extent.contains(block))
    }

    /// Segments that are not in use.
    pub fn spares(&self) -> &[Extent] {
        &self.spares
    }

    /// Takes a spare segment, to announce it.
    pub fn take_spare(&mut self) -> Option<Extent> {
        self.spares.pop()
    }

    /// Takes out all spare segments but `kept` of them.
    pub fn shed_spares(&mut self, kept: usize) -> Vec<Extent> {
        self.spares.split_off(kept.min(self.spares.len()))
    }

    /// Keeps a segment that is not in use.
    pub fn add_spare(&mut self, extent: Extent) {
        self.spares.push(extent);
    }

    /// The announced segment, if there is one.
    pub fn announced(&self) -> Option<SegmentReference> {
        self.segments.get(self.current + 1).map(|segment| segment.reference)
    }

    /// Takes note of the segment that the record written next announces.
    pub fn announce(&mut self, reference: SegmentReference) {
        self.segments.push_back(Segment::new(reference));
    }

    /// Blocks of log between the record after `folded` and the end; also counts segments begun since.
    pub fn blocks_in_use(&self) -> u64 {
        self.segments.iter().map(|segment| u64::from(segment.reference.extent.blocks)).sum()
    }

    /// Where a run of so many blocks goes; `None` if neither segment can hold it.
    pub fn plan(&self, run_blocks: u64) -> Option<Placement> {
        let segment = &self.segments[self.current].reference;
        if run_blocks + u64::from(self.offset) <= u64::from(segment.extent.blocks) {
            let address = Block(segment.extent.start.0 + u64::from(self.offset));
            return Some(Placement { address, salt: segment.salt, segment: Which::Current });
        }
        let next = self.announced()?;
        let fits = run_blocks <= u64::from(next.extent.blocks);
        fits.then_some(Placement { address: next.extent.start, salt: next.salt, segment: Which::Next })
    }

    /// Blocks of the longest run of which the segment that it goes to, and the one it may leave for that, both hold two: so
    /// each gets its second record (L5).
    pub fn room_for_two(&self) -> u64 {
        let segments = self.segments.iter().skip(self.current);
        segments.map(|segment| u64::from(segment.reference.extent.blocks / 2)).min().unwrap_or(0)
    }

    /// Takes note of a record written where [`Log::plan`] said.
    pub fn appended(&mut self, placement: Placement, run_blocks: u32, generation: Generation, seal: Seal) {
        if placement.segment == Which::Next {
            self.current += 1;
            self.offset = 0;
        }
        self.offset += run_blocks;
        self.seal = seal;
        self.segments[self.current].last = generation;
    }

    /// Takes out segments that overlap `extent` and hold no record after `folded`, spare ones among them: a superblock
    /// listed them, but a later record knows their blocks as something else.
    pub fn take_idle_overlapping(&mut self, extent: Extent, folded: Generation) -> Vec<Segment> {
        let mut taken = Vec::new();
        let mut index = 0;
        while index < self.current {
            let segment = &self.segments[index];
            if segment.reference.extent.overlaps(extent) && segment.last <= folded {
                taken.extend(self.segments.remove(index));
                self.current -= 1;
            } else {
                index += 1;
            }
        }
        let spares = self.spares.extract_if(.., |spare| spare.overlaps(extent));
        taken.extend(spares.map(|extent| Segment::new(SegmentReference { extent, salt: 0 })));
        taken
    }

    /// Takes out the segments whose every record is of `folded` or before (L4). The current one stays.
    pub fn retire(&mut self, folded: Generation) -> Vec<Segment> {
        let mut retired = Vec::new();
        while self.current > 0 && self.segments[0].last <= folded {
            retired.extend(self.segments.pop_front());
            self.current -= 1;
        }
        retired
    }
}
