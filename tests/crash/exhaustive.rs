//! Every workload of up to three operations, every subset of the unsynced blocks, every tear of one of them. Nothing is
//! sampled: the geometry is so small that no crash point has more than 12 unsynced blocks, and that is asserted.

use std::collections::BTreeMap;

use vellum::disk::{Disk, Tear};
use vellum::store::Settings;
use vellum::testing::{Explorer, History, Step, Tally, tiny};

/// The operations, by the protocol they exercise.
fn operations() -> Vec<(&'static str, Step)> {
    vec![
        ("commit", Step::Write(vec![(12, 0)])),
        ("commit", Step::Write(vec![(12, 1), (13, 0), (12, 5)])),
        ("commit", Step::Free(vec![(12, 1)])),
        ("deferred commit", Step::WriteDeferred(vec![(12, 2)])),
        ("commit", Step::Header(7)),
        ("encoded commit", Step::WriteEncoded(vec![(13, 0), (14, 1)])),
        ("deferred commit", Step::Sync),
        ("growth", Step::Write(vec![(14, 0), (13, 3)])),
        ("checkpoint", Step::Checkpoint),
        ("snapshot", Step::Snapshot(1)),
        ("snapshot", Step::DeleteSnapshot(0)),
        ("roll-back", Step::RollBack(0)),
        ("move", Step::Move(vec![(12, 0), (13, 0)])),
    ]
}

/// As [`tiny`], with segments so large that the bitmap's summaries of them are quickly made: this is run a million times.
fn geometry() -> Settings {
    Settings { segment_blocks: 2048, ..tiny() }
}

/// What every workload starts from: pages of two classes, a snapshot, a freed page, a checkpoint, and a tail of log.
fn beginning() -> History {
    let mut history = History::create(geometry(), 1).unwrap();
    history.disk.take_crash_points();
    for step in [
        Step::Write(vec![(12, 0), (12, 1), (13, 0)]),
        Step::Snapshot(0),
        Step::Write(vec![(12, 0), (12, 2)]),
        // What free space this leaves is the reserve: more pages make the file grow.
        Step::Write(vec![(13, 4)]),
        Step::Checkpoint,
        Step::Write(vec![(13, 0)]),
    ] {
        history.step(&step).unwrap();
    }
    history.disk.take_crash_points();
    history
}

fn explore(explorer: &mut Explorer, protocol: &str, mut history: History, steps: &[Step]) {
    // Only the last step's crash points are new; those of the steps before were another workload's.
    for (index, step) in steps.iter().enumerate() {
        if index + 1 == steps.len() {
            history.disk.take_crash_points();
        }
        history.step(step).unwrap();
    }
    history.disk.mark(&format!("{}", history.store.status().synced.0));
    let points = history.disk.take_crash_points();
    let explored = explorer.explore(protocol, &points, &history.model, &geometry());
    explored.unwrap_or_else(|failure| panic!("after {steps:?}\n{failure}"));
}

/// The most blocks that may be unsynced at any crash point, and the most states of one: so all of them are tried.
const PENDING_BLOCKS_LIMIT: u64 = 12;
const STATES_LIMIT: usize = 100_000;

/// Asserts that every state of every crash point was tried.
fn assert_exhaustive(tally: &Tally) {
    assert!(tally.pending_blocks_most <= PENDING_BLOCKS_LIMIT, "{} blocks are unsynced", tally.pending_blocks_most);
    assert_eq!(tally.sampled_points, 0, "a crash point has more than {STATES_LIMIT} states");
}

#[test]
fn creation_cut_short_opens_or_can_be_created_again() {
    let mut explorer = Explorer::new(Tear::Every16, STATES_LIMIT, 0);
    // The blocks of both segments are written and not synced.
    let geometry = Settings { log_segment_blocks: 4, ..geometry() };
    let mut history = History::create(geometry.clone(), 1).unwrap();
    let points = history.disk.take_crash_points();
    history.check().unwrap();
    let explored = explorer.explore("create", &points, &history.model, &geometry);
    explored.unwrap_or_else(|failure| panic!("{failure}"));
    println!("create: {}", explorer.total());
    assert_exhaustive(&explorer.total());
    assert!(explorer.total().states > 500);
}

/// Explores all workloads of up to three operations; this thread's share of the states.
fn explore_all(share: (u64, u64), limit: usize, depth: usize) -> Explorer {
    let operations = operations();
    let mut explorer = Explorer::new(Tear::Every16, limit, 0);
    explorer.share = share;
    let long = std::env::var("VELLUM_CRASH").is_ok_and(|value| value == "long");
    explorer.work_every = if long { 1 } else { 16 };
    explorer.second_every = if long { 16 } else { 1024 };
    explorer.second_limit = if long { 96 } else { 24 };
    explorer.lose_superblock_every = 64;
    for (protocol, first) in &operations {
        explore(&mut explorer, protocol, beginning(), std::slice::from_ref(first));
        for (protocol, second) in &operations {
            explore(&mut explorer, protocol, beginning(), &[first.clone(), second.clone()]);
            for (protocol, third) in operations.iter().filter(|_| depth > 2) {
                explore(&mut explorer, protocol, beginning(), &[first.clone(), second.clone(), third.clone()]);
            }
        }
    }
    explorer
}

#[test]
fn growth_grows_the_file() {
    let mut history = beginning();
    let before = history.disk.length().unwrap();
    for (_, step) in operations().iter().filter(|(protocol, _)| *protocol == "growth") {
        history.step(step).unwrap();
    }
    assert!(history.disk.length().unwrap() > before);
}

#[test]
fn every_workload_of_up_to_three_operations_survives_every_cut() {
    const THREADS: u64 = 2;
    let number = |name: &str, otherwise| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise);
    let limit = number("VELLUM_CRASH_LIMIT", STATES_LIMIT);
    let depth = number("VELLUM_CRASH_DEPTH", 3);
    let started = std::time::Instant::now();
    let explorers: Vec<Explorer> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..THREADS).map(|index| scope.spawn(move || explore_all((index, THREADS), limit, depth))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut all = Tally::default();
    for protocol in explorers[0].tallies().keys() {
        let tally = explorers.iter().filter_map(|explorer| explorer.tallies().get(protocol)).copied().sum::<Tally>();
        println!("{protocol}: {tally}");
        all = [all, tally].into_iter().sum();
    }
    let mut second = BTreeMap::<&str, u64>::new();
    for (what, states) in explorers.iter().flat_map(|explorer| explorer.second_crashes()) {
        *second.entry(what).or_default() += states;
    }
    second.iter().for_each(|(what, states)| println!("{what}: {states} distinct states after a second crash"));
    println!("all: {all} in {:?}", started.elapsed());
    assert_exhaustive(&all);
    for what in ["recovery", "adoption", "first steps after"] {
        assert!(second.get(what).is_some_and(|states| *states >= 1000), "{what} was hardly ever cut short");
    }
    assert!(all.states >= 1_000_000, "only {} states", all.states);
    assert!(all.double >= 100_000, "only {} states after a second crash", all.double);
}

#[test]
fn spilled_pages_are_there_with_their_commit_or_leave_nothing_behind() {
    let mut explorer = Explorer::new(Tear::Every16, 4_000, 0);
    explorer.work_every = 4;
    explorer.second_every = 64;
    explorer.second_limit = 24;
    // With how many of the operations between: of the second kind, fewer.
    let spills = [
        (1, Step::Spill(vec![(12, 0), (13, 3), (12, 7)])),
        // Both codecs, whose bits come with the reservations.
        (3, Step::SpillEncoded(vec![(13, 3), (14, 0), (12, 7)])),
    ];
    let operations = operations();
    let workloads = spills
        .iter()
        .flat_map(|(every, spill)| operations.iter().step_by(*every).map(move |(_, between)| (spill, between)));
    let ends = [
        vec![Step::WriteSpilled(vec![(12, 2)])],
        vec![Step::GiveBackSpilled, Step::Write(vec![(13, 4), (12, 8), (12, 0)])],
        vec![Step::Checkpoint, Step::WriteSpilled(Vec::new()), Step::Checkpoint],
    ];
    for (spill, between) in workloads {
        for end in &ends {
            let mut steps = vec![spill.clone(), between.clone()];
            steps.extend(end.iter().cloned());
            let mut history = beginning();
            for step in &steps {
                history.step(step).unwrap();
                history.check().unwrap_or_else(|message| panic!("after {steps:?}: {message}"));
            }
            history.disk.mark(&format!("{}", history.store.status().synced.0));
            let points = history.disk.take_crash_points();
            let explored = explorer.explore("spill", &points, &history.model, &geometry());
            explored.unwrap_or_else(|failure| panic!("after {steps:?}\n{failure}"));
        }
    }
    println!("spill: {}", explorer.total());
    assert!(explorer.total().states > 5_000);
}
