//! One suite for every allocation strategy; and strategies that misbehave, each of which is caught.
#![allow(clippy::unwrap_used)]
#![cfg(feature = "testing")]

use vellum::space::{
    AllocationStrategy, BestFit, Buddy, FirstFit, FreeSpace, LEAF_BLOCKS, NextFit, Purpose, Request, SegmentFill,
    Segregated, Space, conformance,
};
use vellum::{Block, Error, Extent, Result};

#[test]
fn first_fit_conforms() {
    conformance(|| Box::new(FirstFit)).unwrap();
}

#[test]
fn next_fit_conforms() {
    conformance(|| Box::new(NextFit::default())).unwrap();
}

#[test]
fn best_fit_conforms() {
    conformance(|| Box::new(BestFit::default())).unwrap();
}

#[test]
fn segregated_lists_conform() {
    conformance(|| Box::new(Segregated::default())).unwrap();
}

#[test]
fn buddy_conforms() {
    conformance(|| Box::new(Buddy::default())).unwrap();
}

#[test]
fn segment_fill_conforms() {
    conformance(|| Box::new(SegmentFill::default())).unwrap();
}

/// Proposes the same extent each time.
#[derive(Debug)]
struct Stubborn(Extent);

impl AllocationStrategy for Stubborn {
    fn name(&self) -> &'static str {
        "stubborn"
    }

    fn propose(&mut self, _: &mut FreeSpace<'_>, _: &Request) -> Result<Option<Extent>> {
        Ok(Some(self.0))
    }
}

#[test]
fn a_bad_proposal_fails_the_allocation_and_changes_nothing() {
    let leaf = u64::from(LEAF_BLOCKS);
    let total = 2 * leaf + 100;
    let bad = [
        (Extent::new(1000, 8), "in use"),
        (Extent::new(1006, 8), "in its last block in use"),
        (Extent::new(leaf - 4, 8), "in two leaves"),
        (Extent::new(total - 4, 8), "beyond the end"),
        (Extent::new(u64::MAX - 3, 8), "beyond all ends"),
        (Extent::new(0, 0), "empty"),
        (Extent::new(0, 2), "too short"),
        (Extent::new(0, 7), "no multiple"),
        (Extent::new(0, 12), "too long"),
    ];
    for (extent, what) in bad {
        let mut space = Space::new(total, 256, Box::new(Stubborn(extent)));
        space.take(Extent::new(1000, 20)).unwrap();
        let request = Request { blocks: 8, minimum: 4, multiple: 2, purpose: Purpose::Data };
        let refused = space.allocate(&request);
        let is_named = matches!(refused, Err(Error::BadStrategy { name: "stubborn", extent: e, .. }) if e == extent);
        assert!(is_named, "{what}: {refused:?}");
        assert_eq!(space.blocks_free(), total - 20, "{what}");
        space.check_invariants().unwrap();
    }
}

#[test]
fn the_same_extent_is_not_given_twice() {
    let mut space = Space::new(100, 256, Box::new(Stubborn(Extent::new(10, 8))));
    let request = Request::exactly(8, Purpose::Data);
    assert_eq!(space.allocate(&request).unwrap(), Some(Extent::new(10, 8)));
    assert!(matches!(space.allocate(&request), Err(Error::BadStrategy { .. })));
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Never looks for less than the whole length.
    WholeLengthOnly,
    /// Gives what is there, be it shorter than the minimum.
    IgnoresMinimum,
    /// Gives any length between minimum and maximum.
    IgnoresMultiple,
    /// Never looks beyond the first leaf.
    FirstLeafOnly,
    /// Looks only where it has not been yet.
    NeverReturns,
    /// Believes that the file is as long as it was at first.
    IgnoresGrowth,
    /// Keeps a run in mind, and does not hear that blocks of it were taken.
    RemembersTooMuch,
    /// Does not give the very last block of a leaf.
    OffByOne,
    /// Takes an error for a full file.
    SwallowsErrors,
}

/// First fit with a fault.
#[derive(Debug)]
struct Faulty {
    fault: Fault,
    from: Block,
    total: u64,
    run: Option<Extent>,
}

impl AllocationStrategy for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn propose(&mut self, free: &mut FreeSpace<'_>, request: &Request) -> Result<Option<Extent>> {
        if self.total == 0 {
            self.total = free.blocks_total();
        }
        if let (Fault::RemembersTooMuch, Some(extent)) = (self.fault, self.run.and_then(|run| request.fit(run))) {
            self.run = self.run.map(|run| run.split_at(extent.blocks).1);
            return Ok(Some(extent));
        }
        let leaf = u64::from(LEAF_BLOCKS);
        let (mut from, mut end, mut request) = (Block(0), u64::MAX, *request);
        match self.fault {
            Fault::WholeLengthOnly => request.minimum = request.longest(),
            Fault::IgnoresMinimum => request.minimum = 1,
            Fault::IgnoresMultiple => request.multiple = 1,
            Fault::FirstLeafOnly => end = leaf,
            Fault::NeverReturns => from = self.from,
            Fault::IgnoresGrowth => end = self.total,
            Fault::OffByOne => end = free.blocks_total().min(leaf) - 1,
            Fault::RemembersTooMuch | Fault::SwallowsErrors => {}
        }
        for length in request.lengths() {
            let found = match free.find_run(from..Block(end), length, LEAF_BLOCKS) {
                Err(_) if matches!(self.fault, Fault::SwallowsErrors) => return Ok(None),
                found => found?,
            };
            if let Some(extent) = found.and_then(|run| request.fit(run)) {
                self.from = extent.end();
                self.run = found.map(|run| run.split_at(extent.blocks).1);
                return Ok(Some(extent));
            }
        }
        Ok(None)
    }
}

#[test]
fn the_suite_catches_every_planted_fault() {
    let faults = [
        Fault::WholeLengthOnly,
        Fault::IgnoresMinimum,
        Fault::IgnoresMultiple,
        Fault::FirstLeafOnly,
        Fault::NeverReturns,
        Fault::IgnoresGrowth,
        Fault::RemembersTooMuch,
        Fault::OffByOne,
        Fault::SwallowsErrors,
    ];
    for fault in faults {
        let caught = conformance(|| Box::new(Faulty { fault, from: Block(0), total: 0, run: None }));
        let violation = caught.expect_err(&format!("{fault:?} passes the suite"));
        println!("{fault:?}: {violation}");
    }
}
