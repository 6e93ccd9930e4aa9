//! Segment fill: wholly free segments from start to end, and holes when those run out.
//!
//! A commit is one contiguous write where blocks that are asked for one after the other follow one another on disk. In an
//! aged file that takes wholly free segments, which a cleaner provides by moving away what is left in the emptiest. Where
//! a device takes many writes at once, moving costs more than writing into holes, and several times the bytes. So pages of
//! commits leave a few segments free, the reserve, which is what a cleaner keeps unless it is asked for more; log, nodes
//! and pages that fit no hole have them. Each purpose fills a segment of its own, so that what lives about as long lies
//! together and segments empty by themselves.
//!
//! ```text
//!   wholly free segments    a request gets, in this order
//!   plenty                  what follows in the open segment, and in the free ones directly behind it
//!                           the start of a wholly free segment, or a run of several
//!   few (the reserve)       pages of commits: the hole that fits best; if all are shorter, one of the longest; never
//!                           behind what another purpose goes on filling
//!                           all else: the open segment, or one of the reserve
//!   either                  whatever run there is
//! ```
//!
//! The reserve keeps room for large pages where there is no cleaner: small pages would otherwise come to lie in every
//! segment, and a page of 256 blocks would make the file grow. Holes are chosen by class of length, which is nearly
//! best fit, and needs no index but the summaries that the bitmap keeps anyway.
//!
//! After opening a store no leaf is in memory. One is loaded whenever the known ones have nothing, and one for each
//! segment's worth of blocks while few segments are free; so opening costs nothing, and all becomes known in time.

use std::ops::Range;

use super::first_fit;
use crate::error::Result;
use crate::id::{Block, Extent};
use crate::space::{AllocationStrategy, FreeSpace, LEAF_BLOCKS, Purpose, Request, Segment};

/// One segment in so many is the reserve.
const RESERVE: u64 = 256;

/// And so many more: for log and for what is moved.
const RESERVE_LEAST: u64 = 2;

/// Fills wholly free segments, one for each purpose, and when few are left, holes.
#[derive(Debug, Default)]
pub struct SegmentFill {
    open: [Option<Open>; Purpose::ALL.len()],
    opened_last: Option<Segment>,
    blocks_since_load: u32,
}

/// The segment that a purpose is filling, and what it has not filled yet.
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
        if !has_plenty(free) && self.blocks_since_load >= free.segment_blocks() {
            self.blocks_since_load = 0;
            free.load_next()?;
        }
        let mut found = self.propose_known(free, request)?;
        while found.is_none() && free.load_next()? {
            found = self.propose_known(free, request)?;
        }
        let extent = match found {
            None => first_fit::propose(free, request)?,
            found => found,
        };
        self.blocks_since_load += extent.map_or(0, |extent| extent.blocks);
        Ok(extent)
    }

    fn segments_wanted(&self, segments_total: u64) -> u64 {
        kept_free(segments_total)
    }

    fn is_filling(&self, segment: Segment) -> bool {
        self.open.iter().flatten().any(|open| open.segment == segment)
    }

    /// What a caller gives back of the extent that it got last is to be had again.
    fn released(&mut self, extent: Extent) {
        for open in self.open.iter_mut().flatten().filter(|open| open.rest.start == extent.end()) {
            open.rest.start = extent.start;
        }
    }
}

impl SegmentFill {
    /// What the known leaves have to offer.
    fn propose_known(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
        // The reserve is for what would do harm in holes: what is moved makes whole segments free, but not page by page;
        // and no segment becomes free by moving where nodes or log lie among the pages.
        let may_take_reserve = request.purpose != Purpose::Data && free.segments_free() > 0;
        if !has_plenty(free)
            && !may_take_reserve
            && let Some(extent) = self.fitting_hole(free, request)
        {
            return Ok(Some(extent));
        }
        if let Some(extent) = self.continue_open(free, request)? {
            return Ok(Some(extent));
        }
        if request.longest() > free.segment_blocks()
            && let Some(extent) = long_run(free, request.longest())
        {
            self.open_behind(free, extent, request.purpose);
            return Ok(Some(extent));
        }
        Ok(self.open_next(free, request))
    }

    /// A hole that is hardly longer than what is wanted; if all are shorter, one of the longest. Not where another purpose
    /// goes on: there, what is moved would soon need the next free segment, and moving would win nothing.
    fn fitting_hole(&self, free: &mut FreeSpace<'_>, request: &Request) -> Option<Extent> {
        let (shortest, longest) = (request.shortest(), request.longest());
        if shortest > longest {
            return None;
        }
        let of_others = |segment| {
            let others = self.open.iter().zip(Purpose::ALL).filter(|(_, purpose)| *purpose != request.purpose);
            others.filter_map(|(open, _)| open.as_ref()).any(|open| open.segment == segment)
        };
        // In this class and those above every hole is long enough; below it, not all are, but there it takes the longest.
        let ample = longest.next_power_of_two().ilog2();
        let upwards = ample..u32::BITS;
        let downwards = (shortest.ilog2()..ample).rev();
        let present = free.hole_classes();
        let mut classes = upwards.chain(downwards).filter(|class| present >> class & 1 == 1);
        classes.find_map(|class| {
            let hole = free.find_hole(class, shortest, longest, |segment| !of_others(segment));
            hole.and_then(|hole| request.fit(hole))
        })
    }

    /// The next blocks of the open segment, and of the wholly free ones behind it.
    fn continue_open(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
        let place = request.purpose as usize;
        let Some(Open { rest, .. }) = self.open[place].clone() else { return Ok(None) };
        let wanted = Block(rest.start.0 + u64::from(request.longest()));
        let mut end = rest.end;
        while end < wanted && !end.0.is_multiple_of(LEAF_BLOCKS.into()) {
            let next = free.segment_of(end);
            if self.is_filling(next) || free.next_free_segment(next) != Some(next) {
                break;
            }
            end = free.segment_extent(next).end();
        }
        let run = free.find_run(rest.start..end, request.shortest(), request.longest())?;
        let Some(extent) = run.and_then(|run| request.fit(run)) else { return Ok(None) };
        if extent.blocks < request.longest() && request.longest() > free.segment_blocks() {
            // There may be a longer run elsewhere; a smaller request ends the segment.
            return Ok(None);
        }
        self.open[place] = Some(rest_behind(free, extent));
        Ok(Some(extent))
    }

    /// The start of a wholly free segment.
    fn open_next(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Option<Extent> {
        // The next after the one opened last: segments opened in turn then tend to lie in turn.
        let from = self.opened_last.unwrap_or(Segment(0));
        let next = self.next_free_segment(free, from).or_else(|| self.next_free_segment(free, Segment(0)));
        let segment = next?;
        let extent = request.fit(free.segment_extent(segment))?;
        self.opened_last = Some(segment);
        self.open_behind(free, extent, request.purpose);
        Some(extent)
    }

    /// Goes on behind an extent, unless the open segment has more room left: a large page that did not fit there leaves
    /// it to smaller ones.
    fn open_behind(&mut self, free: &FreeSpace<'_>, extent: Extent, purpose: Purpose) {
        let behind = rest_behind(free, extent);
        let place = &mut self.open[purpose as usize];
        let room = |open: &Open| open.rest.end.0 - open.rest.start.0;
        if place.as_ref().is_none_or(|open| room(open) <= room(&behind)) {
            *place = Some(behind);
        }
    }

    /// The first wholly free segment that no purpose is filling.
    fn next_free_segment(&self, free: &mut FreeSpace<'_>, from: Segment) -> Option<Segment> {
        let mut found = free.next_free_segment(from);
        while let Some(segment) = found.filter(|&segment| self.is_filling(segment)) {
            found = free.next_free_segment(Segment(segment.0 + 1));
        }
        found
    }
}

/// Whether more segments are wholly free than the reserve.
fn has_plenty(free: &FreeSpace<'_>) -> bool {
    free.segments_free() > kept_free(free.segments_known())
}

/// How many of so many segments pages of commits leave free.
fn kept_free(segments: u64) -> u64 {
    // A file of a few segments has none to spare.
    (segments / RESERVE + RESERVE_LEAST).min(segments / 6)
}

/// A run of exactly this length: from the start of a segment if there is one, else anywhere.
fn long_run(free: &mut FreeSpace<'_>, length: u32) -> Option<Extent> {
    let segment_blocks = free.segment_blocks();
    let with_slack = length + segment_blocks - 1;
    let everywhere = Block(0)..Block(u64::MAX);
    if let Some(run) = free.find_known_run(everywhere.clone(), with_slack, with_slack) {
        return Some(Extent::new(run.start.0.next_multiple_of(segment_blocks.into()), length));
    }
    free.find_known_run(everywhere, length, length)
}

/// What is left of the segment in which an extent ends.
fn rest_behind(free: &FreeSpace<'_>, extent: Extent) -> Open {
    let segment = free.segment_of(Block(extent.end().0 - 1));
    Open { segment, rest: extent.end()..free.segment_extent(segment).end() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::Space;

    const SEGMENT: u32 = 16;

    fn space(segments: u64) -> Space {
        Space::new(segments * u64::from(SEGMENT), SEGMENT, Box::new(SegmentFill::default()))
    }

    fn allocate(space: &mut Space, blocks: u32, purpose: Purpose) -> Extent {
        space.allocate(&Request::up_to(blocks, purpose)).unwrap().unwrap()
    }

    #[test]
    fn commits_follow_one_another_across_segments() {
        let mut space = space(100);
        let mut expected = 0;
        for blocks in [5, 9, 7, 30, 1] {
            assert_eq!(allocate(&mut space, blocks, Purpose::Data), Extent::new(expected, blocks));
            expected += u64::from(blocks);
        }
    }

    #[test]
    fn purposes_do_not_share_a_segment_while_others_are_free() {
        let mut space = space(100);
        let mut segments: Vec<Vec<u64>> = vec![Vec::new(); 4];
        for round in 0..60 {
            let purpose = Purpose::ALL[round % 4];
            let extent = allocate(&mut space, 1 + round as u32 % 3, purpose);
            segments[purpose as usize].extend([extent.start.0 / 16, (extent.end().0 - 1) / 16]);
        }
        for (purpose, own) in segments.iter().enumerate() {
            let others =
                segments.iter().enumerate().filter(|(other, _)| *other != purpose).flat_map(|(_, other)| other);
            assert!(others.into_iter().all(|segment| !own.contains(segment)));
        }
    }

    #[test]
    fn a_segment_stays_with_its_purpose_when_all_of_it_was_released() {
        let mut space = space(100);
        allocate(&mut space, 10, Purpose::Data);
        let nodes = allocate(&mut space, 3, Purpose::Node);
        space.release(nodes).unwrap();
        assert_eq!(allocate(&mut space, 9, Purpose::Data), Extent::new(10, 6));
        assert_eq!(allocate(&mut space, 3, Purpose::Data), Extent::new(32, 3));
        assert_eq!(allocate(&mut space, 3, Purpose::Node), Extent::new(16, 3));
    }

    #[test]
    fn what_is_given_back_is_given_out_again() {
        let mut space = space(100);
        let (_, back) = allocate(&mut space, 20, Purpose::Data).split_at(6);
        space.release(back).unwrap();
        assert_eq!(allocate(&mut space, 30, Purpose::Data), Extent::new(6, 30));
    }

    #[test]
    fn what_is_longer_than_a_segment_is_not_broken_for_what_is_left_of_one() {
        let mut space = space(100);
        allocate(&mut space, 10, Purpose::Data);
        allocate(&mut space, 10, Purpose::Node);
        // Behind the six blocks that are left of the open segment lies that of the nodes.
        assert_eq!(allocate(&mut space, 40, Purpose::Data), Extent::new(32, 40));
        assert_eq!(allocate(&mut space, 6, Purpose::Data), Extent::new(72, 6));
        // And on into the free segment behind.
        assert_eq!(space.allocate(&Request::exactly(15, Purpose::Data)).unwrap(), Some(Extent::new(78, 15)));
    }

    #[test]
    fn without_free_segments_the_hole_is_taken_that_fits_best() {
        let mut space = space(3);
        for used in [Extent::new(12, 1), Extent::new(15, 3), Extent::new(20, 13), Extent::new(41, 7)] {
            space.take(used).unwrap();
        }
        // Segments with holes of up to 12, 2 and 8 blocks.
        assert_eq!(allocate(&mut space, 2, Purpose::Data), Extent::new(18, 2));
        assert_eq!(allocate(&mut space, 7, Purpose::Data), Extent::new(0, 7));
        assert_eq!(allocate(&mut space, 30, Purpose::Data), Extent::new(33, 8));
        assert_eq!(allocate(&mut space, 30, Purpose::Data), Extent::new(7, 5));
    }

    #[test]
    fn the_reserve_is_kept_for_what_fits_no_hole() {
        let mut space = space(4 * RESERVE);
        // Every other block of all but eight segments.
        for block in (0..(4 * RESERVE - 8) * 16).step_by(2) {
            space.take(Extent::new(block, 1)).unwrap();
        }
        for _ in 0..1000 {
            allocate(&mut space, 3, Purpose::Data);
        }
        assert_eq!(space.free_space().segments_free(), 4 + RESERVE_LEAST);
        let large = space.allocate(&Request::exactly(16, Purpose::Data)).unwrap();
        assert!(large.is_some_and(|extent| extent.start.0.is_multiple_of(16)));
        assert_eq!(space.free_space().segments_free(), 3 + RESERVE_LEAST);
    }

    #[test]
    fn where_another_purpose_goes_on_is_no_hole() {
        let mut space = space(4);
        // One hole of two blocks; segment 1 is free, the others are full.
        space.take(Extent::new(0, 14)).unwrap();
        space.take(Extent::new(32, 32)).unwrap();
        assert_eq!(allocate(&mut space, 5, Purpose::Moved), Extent::new(16, 5));
        assert_eq!(allocate(&mut space, 4, Purpose::Data), Extent::new(14, 2), "not behind what was moved");
        assert_eq!(allocate(&mut space, 5, Purpose::Moved), Extent::new(21, 5));
    }

    #[test]
    fn a_segment_being_filled_is_not_to_be_emptied() {
        let mut space = space(100);
        let data = allocate(&mut space, 3, Purpose::Data);
        space.take(Extent::new(800, 1)).unwrap();
        let segments = space.segments_to_empty(9).unwrap();
        assert!(segments.iter().all(|usage| usage.segment.0 == 50), "{data} is in the open segment: {segments:?}");
        assert!(space.segments_wanted() > 0);
    }
}
