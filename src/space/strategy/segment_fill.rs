//! Segment fill.

use std::ops::Range;

use crate::error::Result;
use crate::id::{Block, Extent};
use crate::space::{AllocationStrategy, FreeSpace, LEAF_BLOCKS, Purpose, Request, Segment};

/// One wholly free segment in so many is kept for what fits nowhere else.
const RESERVE: u64 = 128;

/// Fills wholly free segments, one for each purpose, and when few are left, holes.
#[derive(Debug, Default)]
pub struct SegmentFill {
    open: [Option<Open>; Purpose::ALL.len()],
    opened_last: Option<Segment>,
    /// Blocks proposed since a leaf was loaded.
    blocks_since_load: u32,
}

/// What is left of a segment that is being filled.
#[derive(Clone, Debug)]
struct Open {
    segment: Segment,
    rest: Range<Block>,
}

impl AllocationStrategy for SegmentFill {
    fn name(&self) -> &'static str {
        "segment-fill"
    }

    fn propose(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
        let plenty = |free: &FreeSpace<'_>| free.segments_free() > free.segments_known() / RESERVE;
        if !plenty(free) && self.blocks_since_load >= free.segment_blocks() {
            self.blocks_since_load = 0;
            free.load_next()?;
        }
        let found = loop {
            let found = if plenty(free) {
                self.fill(free, request)?
            } else {
                match fitting_hole(free, request) {
                    None => self.fill(free, request)?,
                    found => found,
                }
            };
            if found.is_some() || !free.load_next()? {
                break found;
            }
        };
        let found = match found {
            None => any_run(free, request)?,
            found => found,
        };
        self.blocks_since_load += found.map_or(0, |extent| extent.blocks);
        Ok(found)
    }

    fn is_filling(&self, segment: Segment) -> bool {
        self.open.iter().flatten().any(|open| open.segment == segment)
    }
}

impl SegmentFill {
    fn fill(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
        if let Some(extent) = self.continue_open(free, request)? {
            return Ok(Some(extent));
        }
        if request.longest() > free.segment_blocks()
            && let Some(extent) = long_run(free, request.longest())?
        {
            return Ok(Some(extent));
        }
        Ok(self.open_next(free, request))
    }

    /// The next blocks of the open segment.
    fn continue_open(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
        let place = request.purpose as usize;
        let Some(open) = self.open[place].clone() else { return Ok(None) };
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
        self.open[place] = Some(rest_behind(free, extent));
        Ok(Some(extent))
    }

    /// The start of a segment that is wholly free.
    fn open_next(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Option<Extent> {
        let segment = self.next_free_segment(free)?;
        let extent = request.fit(free.segment_extent(segment))?;
        self.opened_last = Some(segment);
        let place = &mut self.open[request.purpose as usize];
        let behind = rest_behind(free, extent);
        if place.as_ref().is_none_or(|open| room(open) <= room(&behind)) {
            *place = Some(behind);
        }
        Some(extent)
    }

    fn next_free_segment(&self, free: &mut FreeSpace<'_>) -> Option<Segment> {
        let start = self.opened_last.unwrap_or(Segment(0));
        self.free_segment_from(free, start).or_else(|| self.free_segment_from(free, Segment(0)))
    }

    fn free_segment_from(&self, free: &mut FreeSpace<'_>, from: Segment) -> Option<Segment> {
        let mut found = free.next_free_segment(from);
        while let Some(segment) = found.filter(|&segment| self.is_filling(segment)) {
            found = free.next_free_segment(Segment(segment.0 + 1));
        }
        found
    }
}

/// A hole that is hardly longer than what is wanted; if all are shorter, one of the longest.
fn fitting_hole(free: &mut FreeSpace<'_>, request: &Request) -> Option<Extent> {
    let (shortest, longest) = (request.shortest(), request.longest());
    if shortest > longest {
        return None;
    }
    let classes = free.hole_classes();
    // From here on upwards each is long enough for the longest, from here downwards only some are, or none.
    let middle = longest.next_power_of_two().ilog2();
    let upwards = (middle..u32::BITS).filter(|class| classes >> class & 1 == 1);
    let downwards = (shortest.ilog2()..middle).rev().filter(|class| classes >> class & 1 == 1);
    for class in upwards.take(1).chain(downwards) {
        let minimum = shortest.max(longest.min(1 << class));
        if let Some(extent) = free.find_hole(class, minimum, longest).and_then(|hole| request.fit(hole)) {
            return Some(extent);
        }
    }
    None
}

fn any_run(free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
    for length in request.lengths() {
        if let Some(run) = free.find_run(Block(0)..Block(u64::MAX), length, request.longest())? {
            return Ok(request.fit(run));
        }
    }
    Ok(None)
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
fn rest_behind(free: &FreeSpace<'_>, extent: Extent) -> Open {
    let segment = free.segment_of(Block(extent.end().0 - 1));
    Open { segment, rest: extent.end()..free.segment_extent(segment).end() }
}

fn room(open: &Open) -> u64 {
    open.rest.end.0 - open.rest.start.0
}
