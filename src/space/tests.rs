//! The space against a plain list of booleans, whole in memory and loaded leaf by leaf.

use super::*;
use proptest::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Leaves kept in memory, with a count of how many were asked for, and a number of them that fail first.
#[derive(Default)]
struct Stored {
    leaves: Vec<LeafBytes>,
    loaded: AtomicUsize,
    failures: AtomicUsize,
}

impl LeafSource for Stored {
    fn load(&self, leaf: u64) -> Result<Box<LeafBytes>> {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::Closed);
        }
        self.loaded.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(self.leaves[leaf as usize]))
    }
}

/// In use or not, block by block.
struct Model(Vec<bool>);

impl Model {
    fn all(&self, extent: Extent, used: bool) -> bool {
        let range = extent.start.0 as usize..extent.end().0 as usize;
        self.0.get(range).is_some_and(|blocks| blocks.iter().all(|&block| block == used))
    }

    fn set(&mut self, extent: Extent, used: bool) {
        self.0[extent.start.0 as usize..extent.end().0 as usize].fill(used);
    }

    fn free_extents(&self) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        for block in (0..self.0.len() as u64).filter(|&block| !self.0[block as usize]) {
            match extents.last_mut() {
                Some(run) if run.end() == Block(block) && !block.is_multiple_of(LEAF_BLOCKS.into()) => run.blocks += 1,
                _ => extents.push(Extent::new(block, 1)),
            }
        }
        extents
    }

    /// The space that a store in this state would open, without any leaf in memory.
    fn persisted(&self, segment_blocks: u32) -> (Space, Arc<Stored>) {
        let leaves: Vec<LeafBytes> = self
            .0
            .chunks(LEAF_BLOCKS as usize)
            .map(|blocks| {
                let mut bytes = [0; 4096];
                for block in (0..blocks.len()).filter(|&block| blocks[block]) {
                    bytes[block / 8] |= 1 << (block % 8);
                }
                bytes
            })
            .collect();
        let state = |leaf: &LeafBytes| if leaf == &[0; 4096] { LeafState::Empty } else { LeafState::Stored };
        let states: Vec<_> = leaves.iter().map(state).collect();
        let blocks_free = self.0.iter().filter(|&&used| !used).count() as u64;
        let source = Arc::new(Stored { leaves, ..Stored::default() });
        let total = self.0.len() as u64;
        let space = Space::from_persisted(
            total,
            segment_blocks,
            Box::new(SegmentFill::default()),
            states,
            source.clone(),
            blocks_free,
        )
        .unwrap();
        (space, source)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Take(Extent),
    Release(Extent),
    Allocate {
        blocks: u32,
        minimum: u32,
        purpose: usize,
    },
    /// Releases a run that is in use, whichever lies there.
    ReleaseAround(u64),
    Grow(u64),
    Shrink(u64),
    Reopen,
}

const BLOCKS_MAX: u64 = 3 * LEAF_BLOCKS as u64;

fn step() -> impl Strategy<Value = Step> {
    let extent = || {
        let length = prop_oneof![1u32..10, 1u32..700, Just(LEAF_BLOCKS)];
        (prop_oneof![0u64..BLOCKS_MAX, 32_700u64..32_800], length)
            .prop_map(|(start, blocks)| Extent::new(start, blocks))
    };
    prop_oneof![
        3 => extent().prop_map(Step::Take),
        2 => extent().prop_map(Step::Release),
        4 => (1u32..600, 1u32..20, 0usize..4)
            .prop_map(|(blocks, minimum, purpose)| Step::Allocate { blocks, minimum: minimum.min(blocks), purpose }),
        4 => (0u64..BLOCKS_MAX).prop_map(Step::ReleaseAround),
        1 => (0u64..BLOCKS_MAX).prop_map(Step::Grow),
        1 => (0u64..BLOCKS_MAX).prop_map(Step::Shrink),
        1 => Just(Step::Reopen),
    ]
}

fn run(step: Step, space: &mut Space, model: &mut Model) -> Result<(), TestCaseError> {
    match step {
        Step::Take(extent) => {
            let right = model.all(extent, false);
            // What is wrong in a leaf that is not in memory is told late: tried only with the leaf loaded.
            (0..BLOCKS_MAX / u64::from(LEAF_BLOCKS)).filter(|_| !right).for_each(|leaf| drop(space.leaf_bytes(leaf)));
            prop_assert_eq!(space.take(extent).is_ok(), right);
            if right {
                model.set(extent, true);
            }
        }
        Step::Release(extent) => {
            let right = model.all(extent, true);
            (0..BLOCKS_MAX / u64::from(LEAF_BLOCKS)).filter(|_| !right).for_each(|leaf| drop(space.leaf_bytes(leaf)));
            prop_assert_eq!(space.release(extent).is_ok(), right);
            if right {
                model.set(extent, false);
            }
        }
        Step::Allocate { blocks, minimum, purpose } => {
            let request = Request { blocks, minimum, multiple: 1, purpose: Purpose::ALL[purpose] };
            let found = space.allocate(&request).unwrap();
            let longest = model.free_extents().iter().map(|run| run.blocks).max().unwrap_or(0);
            prop_assert_eq!(found.is_some(), longest >= minimum);
            if let Some(extent) = found {
                prop_assert!(request.allows(extent.blocks) && model.all(extent, false));
                model.set(extent, true);
            }
        }
        Step::ReleaseAround(block) => {
            let used = |block: &usize| model.0.get(*block) == Some(&true);
            let end = (block as usize..).take_while(used).count() as u64 + block;
            let start = (0..block as usize).rev().take_while(used).last().map_or(block, |first| first as u64);
            let extent = Extent::new(start, (end.saturating_sub(start)).min(900) as u32);
            if model.all(extent, true) {
                space.release(extent).unwrap();
                model.set(extent, false);
            }
        }
        Step::Grow(total) => {
            space.grow(total).unwrap();
            model.0.resize(model.0.len().max(total as usize), false);
        }
        Step::Shrink(total) => {
            let right = model.0.iter().skip(total as usize).all(|&used| !used);
            prop_assert_eq!(space.shrink_to(total).is_ok(), right);
            if right {
                model.0.truncate(total as usize);
            }
        }
        Step::Reopen => *space = model.persisted(space.free_space().segment_blocks()).0,
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_space_is_a_list_of_booleans(
        blocks_total in 0..BLOCKS_MAX,
        segment_blocks in prop_oneof![Just(4u32), Just(256), Just(LEAF_BLOCKS)],
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut space = Space::new(blocks_total, segment_blocks, Box::new(SegmentFill::default()));
        let mut model = Model(vec![false; blocks_total as usize]);
        for step in steps {
            run(step, &mut space, &mut model)?;
            prop_assert_eq!(space.blocks_total(), model.0.len() as u64);
            prop_assert_eq!(space.blocks_free(), model.0.iter().filter(|&&used| !used).count() as u64);
        }
        prop_assert_eq!(space.free_extents().unwrap(), model.free_extents());
        space.check_invariants().unwrap();
        let (mut persisted, _) = model.persisted(segment_blocks);
        for leaf in 0..=3 {
            prop_assert!(space.leaf_bytes(leaf).unwrap() == persisted.leaf_bytes(leaf).unwrap());
        }
    }
}

fn one_leaf_in_use() -> Model {
    let mut model = Model(vec![false; 4 * LEAF_BLOCKS as usize]);
    for leaf in 0..3 {
        model.set(Extent::new(leaf * u64::from(LEAF_BLOCKS) + 100, 50), true);
    }
    model
}

#[test]
fn taking_and_releasing_load_nothing() {
    let (mut space, source) = one_leaf_in_use().persisted(256);
    let free = space.blocks_free();
    space.take(Extent::new(0, 100)).unwrap();
    space.release(Extent::new(100, 50)).unwrap();
    space.take(Extent::new(u64::from(LEAF_BLOCKS) - 10, 20)).unwrap();
    assert_eq!(space.blocks_free(), free - 70);
    assert_eq!(source.loaded.load(Ordering::Relaxed), 0);
    assert!(!space.is_free(Extent::new(99, 1)).unwrap());
    assert!(space.is_free(Extent::new(100, 50)).unwrap());
    assert_eq!(source.loaded.load(Ordering::Relaxed), 1);
    space.check_invariants().unwrap();
}

#[test]
fn a_leaf_is_loaded_once() {
    let (mut space, source) = one_leaf_in_use().persisted(256);
    for _ in 0..500 {
        space.allocate(&Request::exactly(300, Purpose::Data)).unwrap();
    }
    space.check_invariants().unwrap();
    assert_eq!(source.loaded.load(Ordering::Relaxed), 3);
}

#[test]
fn a_wrong_mark_is_reported_when_its_leaf_is_loaded() {
    let (mut space, _) = one_leaf_in_use().persisted(256);
    space.take(Extent::new(120, 1)).unwrap();
    for _ in 0..2 {
        let refused = space.is_free(Extent::new(5, 1));
        assert!(matches!(refused, Err(Error::Overlap { extent, .. }) if extent == Extent::new(120, 1)), "{refused:?}");
    }
    space.release(Extent::new(u64::from(LEAF_BLOCKS), 1)).unwrap();
    assert!(matches!(space.leaf_bytes(1), Err(Error::Overlap { .. })));
}

#[test]
fn an_error_of_the_source_is_returned_and_changes_nothing() {
    let (mut space, source) = one_leaf_in_use().persisted(256);
    let free = space.blocks_free();
    space.take(Extent::new(0, 1)).unwrap();
    source.failures.store(2, Ordering::Relaxed);
    assert!(matches!(space.is_free(Extent::new(0, 1)), Err(Error::Closed)));
    assert!(matches!(space.free_extents(), Err(Error::Closed)));
    assert_eq!(space.blocks_free(), free - 1);
    assert!(!space.is_free(Extent::new(0, 1)).unwrap());
    space.check_invariants().unwrap();
}

#[test]
fn bits_beyond_the_end_are_refused() {
    let mut model = one_leaf_in_use();
    model.set(Extent::new(500, 1), true);
    let (_, source) = model.persisted(256);
    let strategy = Box::new(SegmentFill::default());
    let mut space = Space::from_persisted(400, 256, strategy, vec![LeafState::Stored], source, 350).unwrap();
    assert!(matches!(space.leaf_bytes(0), Err(Error::Overlap { extent, .. }) if extent.start == Block(400)));
}

#[test]
fn a_wrong_count_of_free_blocks_is_found() {
    let source = Arc::new(Stored { leaves: vec![[1; 4096]], ..Stored::default() });
    let strategy = Box::new(SegmentFill::default());
    let mut space =
        Space::from_persisted(LEAF_BLOCKS.into(), 256, strategy, vec![LeafState::Stored], source, 7).unwrap();
    let found = 7 * 4096;
    assert!(matches!(space.check_invariants(), Err(Error::FreeCount { expected: 7, found: f }) if f == found));
    assert!(matches!(space.take(Extent::new(0, 8)), Err(Error::Overlap { .. })), "more than the count says are free");
}

#[test]
fn a_change_across_leaves_is_whole_or_not_at_all() {
    let mut space = Space::new(2 * u64::from(LEAF_BLOCKS), 256, Box::new(FirstFit));
    let boundary = u64::from(LEAF_BLOCKS);
    space.take(Extent::new(boundary + 5, 1)).unwrap();
    assert!(space.take(Extent::new(boundary - 5, 11)).is_err());
    assert!(space.is_free(Extent::new(boundary - 5, 10)).unwrap());
    space.take(Extent::new(boundary - 5, 10)).unwrap();
    assert!(space.release(Extent::new(boundary - 6, 3)).is_err());
    space.release(Extent::new(boundary - 5, 11)).unwrap();
    assert_eq!(space.blocks_free(), 2 * boundary);
    assert!(space.take(Extent::new(2 * boundary - 1, 2)).is_err(), "beyond the end");
    assert!(space.take(Extent::new(u64::MAX, 1)).is_err());
    space.check_invariants().unwrap();
}

#[test]
fn the_emptiest_segments_come_first_and_those_being_filled_or_unused_not_at_all() {
    // The last segment is free as far as it goes.
    let mut space = Space::new(3 * u64::from(LEAF_BLOCKS) + 5, 16, Box::new(SegmentFill::default()));
    for (segment, used) in [(3u64, 9), (2100, 2), (4200, 5), (4201, 16)] {
        space.take(Extent::new(segment * 16, used)).unwrap();
    }
    let filling = space.allocate(&Request::up_to(1, Purpose::Data)).unwrap().unwrap();
    let segments: Vec<_> =
        space.segments_to_empty(9).unwrap().iter().map(|usage| (usage.segment.0, usage.blocks_used)).collect();
    assert_eq!(segments, [(2100, 2), (4200, 5), (3, 9)], "{filling} is being filled");
    assert_eq!(space.segments_to_empty(1).unwrap().len(), 1);
    assert_eq!(space.free_space().segments_free(), 3 * 2048 - 5);
}

#[test]
fn the_first_allocation_after_opening_loads_one_leaf() {
    let (mut space, source) = one_leaf_in_use().persisted(256);
    space.take(Extent::new(3 * u64::from(LEAF_BLOCKS), LEAF_BLOCKS)).unwrap();
    // Not the hole before the blocks in use: there are wholly free segments behind them.
    assert_eq!(space.allocate(&Request::exactly(8, Purpose::Data)).unwrap(), Some(Extent::new(256, 8)));
    for _ in 0..100 {
        space.allocate(&Request::exactly(8, Purpose::Data)).unwrap().unwrap();
    }
    assert_eq!(source.loaded.load(Ordering::Relaxed), 1);
}

#[test]
fn a_closed_segment_takes_nothing_new_and_is_whole_once_it_is_empty() {
    for strategy in built_in() {
        let mut space = Space::new(4 * 64, 64, strategy);
        space.take(Extent::new(64 + 5, 1)).unwrap();
        space.take(Extent::new(64 + 60, 1)).unwrap();
        let closed = space.close_segment(Segment(1)).unwrap();
        assert_eq!(closed, [Extent::new(64, 5), Extent::new(70, 54), Extent::new(125, 3)]);
        for _ in 0..3 * 64 {
            let extent = space.allocate(&Request::exactly(1, Purpose::Moved)).unwrap().unwrap();
            assert!(!extent.overlaps(Extent::new(64, 64)));
        }
        for extent in closed.into_iter().chain([Extent::new(69, 1), Extent::new(124, 1)]) {
            space.release(extent).unwrap();
        }
        assert_eq!(space.free_space().segments_free(), 1);
        space.check_invariants().unwrap();
    }
}

#[test]
fn questions_about_what_does_not_exist_are_answered() {
    let mut space = Space::new(100, 16, default_strategy());
    let mut free = space.free_space();
    assert_eq!(free.find_hole(99, 1, 1, |_| true), None);
    assert_eq!(free.next_free_segment(Segment(u64::MAX)), None);
    assert_eq!(free.next_run(Block(u64::MAX), 1).unwrap(), None);
    assert_eq!(free.find_run(Block(50)..Block(20), 0, 0).unwrap(), None);
    assert_eq!(free.segment_usage(Segment(1 << 60)).unwrap().blocks_free, 0);
    assert!(!free.is_free(Extent::new(u64::MAX - 1, 9)).unwrap());
    assert_eq!(free.segment_usage(Segment(6)).unwrap().blocks_free, 4, "the file ends inside this one");
    assert_eq!(space.leaf_bytes(u64::MAX).unwrap(), [0; 4096]);
    assert!(space.close_segment(Segment(u64::MAX)).unwrap().is_empty());
}

#[test]
fn holes_of_segments_that_are_passed_by_are_left_alone_until_others_are() {
    let mut space = Space::new(1024, 64, default_strategy());
    // A hole of 20 blocks in segment 3, one of 10 in segment 8; all else is in use.
    for used in [Extent::new(0, 192), Extent::new(212, 300), Extent::new(522, 502)] {
        space.take(used).unwrap();
    }
    let one = Request::exactly(1, Purpose::Data);
    space.pass_by(&[Segment(3)]);
    assert_eq!(space.allocate(&one).unwrap(), Some(Extent::new(512, 1)));
    // What is released there is no hole either.
    space.release(Extent::new(212, 20)).unwrap();
    assert_eq!(space.allocate(&one).unwrap(), Some(Extent::new(513, 1)));
    space.check_invariants().unwrap();
    space.pass_by(&[Segment(8)]);
    let hole = space.allocate(&Request::exactly(40, Purpose::Data)).unwrap();
    assert_eq!(hole, Some(Extent::new(192, 40)), "found again, with what was released meanwhile");
    space.check_invariants().unwrap();
}
