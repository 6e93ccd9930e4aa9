//! Segment fill: whole free segments from start to end, then the emptiest.
//!
//! A commit is cheapest as one contiguous write, so blocks that are asked for one after the other should follow one
//! another on disk. In an aged file that takes wholly free segments, which a cleaner provides by emptying the segments
//! that are emptiest already. The strategy keeps that possible: it never puts a block into a segment in use while
//! another is wholly free, and keeps apart what lives for different times (new data, moved data, log, nodes), so that
//! segments empty by themselves.
//!
//! One segment is open for each purpose. In order of preference a request gets
//!
//! 1. what follows in the open segment, and in the wholly free ones directly behind it;
//! 2. the start of a wholly free segment, or of several for a request that is longer than one;
//! 3. the holes of the emptiest segment, which is open from then on, so that a commit's blocks stay within 1 MiB;
//! 4. any run that is long enough.
//!
//! A short answer is better than a far one only if it ends the open segment (1, 3); a request that wants more than a
//! segment looks for the whole length first.

use std::ops::Range;

use crate::error::Result;
use crate::id::{Block, Extent};
use crate::space::{AllocationStrategy, FreeSpace, LEAF_BLOCKS, Purpose, Request, Segment};

/// How many of the emptiest segments are looked at before any run will do.
const EMPTIEST_TRIED: usize = 4;

/// Fills wholly free segments, one for each purpose, and when there are none left, the emptiest.
#[derive(Debug, Default)]
pub struct SegmentFill {
    open: [Option<Open>; Purpose::ALL.len()],
    free_from: Option<Segment>,
}

/// What is left of a segment that is being filled.
#[derive(Clone, Debug)]
struct Open {
    segment: Segment,
    rest: Range<Block>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Was wholly free when it was opened: the rest is one run.
    Fresh,
    /// Was in use: the rest is holes.
    Holes,
}

impl AllocationStrategy for SegmentFill {
    fn name(&self) -> &'static str {
        "segment-fill"
    }

    fn propose(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
        if let Some(extent) = self.continue_fresh(free, request)? {
            return Ok(Some(extent));
        }
        if request.longest() > free.segment_blocks()
            && let Some(extent) = long_run(free, request.longest())?
        {
            return Ok(Some(extent));
        }
        if let Some(extent) = self.open_fresh(free, request)? {
            return Ok(Some(extent));
        }
        if let Some(extent) = self.continue_holes(free, request)? {
            return Ok(Some(extent));
        }
        if let Some(extent) = self.open_emptiest(free, request)? {
            return Ok(Some(extent));
        }
        for length in request.lengths() {
            if let Some(run) = free.find_run(Block(0)..Block(u64::MAX), length, request.longest())? {
                return Ok(request.fit(run));
            }
        }
        Ok(None)
    }

    fn is_filling(&self, segment: Segment) -> bool {
        self.open.iter().flatten().any(|open| open.segment == segment)
    }
}

impl SegmentFill {
    /// The next blocks of an open segment that was wholly free.
    fn continue_fresh(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
        let place = request.purpose as usize;
        let Some(open) = self.open[place].clone().filter(|open| open.state == State::Fresh) else { return Ok(None) };
        let mut end = open.rest.end;
        let wanted = Block(open.rest.start.0 + u64::from(request.longest()));
        while end < wanted && !end.0.is_multiple_of(LEAF_BLOCKS.into()) {
            let next = free.segment_of(end);
            if self.is_filling(next) || free.next_free_segment(next) != Some(next) {
                break;
            }
            end = free.segment_extent(next).end();
        }
        let run = free.find_run(open.rest.start..end, request.shortest(), request.longest())?;
        let Some(extent) = run.and_then(|run| request.fit(run)) else { return Ok(None) };
        if extent.blocks < request.longest() && request.longest() > free.segment_blocks() {
            return Ok(None);
        }
        self.open[place] = Some(rest_behind(free, extent, State::Fresh));
        Ok(Some(extent))
    }

    /// The start of a segment that is wholly free.
    fn open_fresh(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
        if request.shortest() > free.segment_blocks() {
            return Ok(None);
        }
        let segment = match self.free_segment(free) {
            // One leaf for each segment that is opened: opening a store stays cheap, and all becomes known in time.
            None if free.load_next()? => self.free_segment(free),
            found => found,
        };
        let Some(segment) = segment else { return Ok(None) };
        let Some(extent) = request.fit(free.segment_extent(segment)) else { return Ok(None) };
        self.free_from = Some(segment);
        let place = &mut self.open[request.purpose as usize];
        let behind = rest_behind(free, extent, State::Fresh);
        if place.as_ref().is_none_or(|open| open.state == State::Holes || room(open) <= room(&behind)) {
            *place = Some(behind);
        }
        Ok(Some(extent))
    }

    /// The next holes of an open segment.
    fn continue_holes(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
        let place = request.purpose as usize;
        let Some(open) = self.open[place].clone() else { return Ok(None) };
        if free.is_evacuating(open.segment) {
            return Ok(None);
        }
        let run = free.find_run(open.rest, request.shortest(), request.longest())?;
        let extent = run.and_then(|run| request.fit(run));
        if let Some(extent) = extent {
            self.open[place] = Some(rest_behind(free, extent, State::Holes));
        }
        Ok(extent)
    }

    /// The first holes of one of the emptiest segments.
    fn open_emptiest(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
        let place = request.purpose as usize;
        self.open[place] = None;
        let candidates = free.emptiest_segments(EMPTIEST_TRIED, |usage| {
            usage.blocks_free >= request.shortest()
                && !self.is_filling(usage.segment)
                && !free.is_evacuating(usage.segment)
        });
        for usage in candidates {
            let extent = free.segment_extent(usage.segment);
            let run = free.find_run(extent.start..extent.end(), request.shortest(), request.longest())?;
            if let Some(extent) = run.and_then(|run| request.fit(run)) {
                self.open[place] = Some(rest_behind(free, extent, State::Holes));
                return Ok(Some(extent));
            }
        }
        Ok(None)
    }

    /// A wholly free segment that no purpose has open: the next after the one opened last, so that segments opened one
    /// after the other tend to lie one after the other.
    fn free_segment(&self, free: &FreeSpace<'_>) -> Option<Segment> {
        let start = self.free_from.unwrap_or(Segment(0));
        self.free_segment_from(free, start).or_else(|| self.free_segment_from(free, Segment(0)))
    }

    fn free_segment_from(&self, free: &FreeSpace<'_>, from: Segment) -> Option<Segment> {
        let mut found = free.next_free_segment(from);
        while let Some(segment) = found.filter(|&segment| self.is_filling(segment)) {
            found = free.next_free_segment(Segment(segment.0 + 1));
        }
        found
    }
}

/// A run of exactly this length: from the start of a segment if there is one, else anywhere.
fn long_run(free: &mut FreeSpace<'_>, length: u32) -> Result<Option<Extent>> {
    let segment_blocks = free.segment_blocks();
    let with_slack = length + segment_blocks - 1;
    let everywhere = Block(0)..Block(u64::MAX);
    if let Some(run) = free.find_run(everywhere.clone(), with_slack, with_slack)? {
        return Ok(Some(Extent::new(run.start.0.next_multiple_of(segment_blocks.into()), length)));
    }
    free.find_run(everywhere, length, length)
}

/// What is left of the segment in which an extent ends.
fn rest_behind(free: &FreeSpace<'_>, extent: Extent, state: State) -> Open {
    let segment = free.segment_of(Block(extent.end().0 - 1));
    Open { segment, rest: extent.end()..free.segment_extent(segment).end(), state }
}

fn room(open: &Open) -> u64 {
    open.rest.end.0 - open.rest.start.0
}
