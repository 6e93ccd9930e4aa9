//! Histories of transactions on a pager: deferred, pipelined, side by side, larger than memory; cut at every sync.

use vellum::disk::Tear;
use vellum::store::Settings;
use vellum::testing::{Explorer, PageStep, PagerHistory, PagerStep, tiny, tiny_options};
use vellum::{Compression, Durability, Options};

use crate::random::Random;

/// What a recovery is told; as the options of the histories, as far as it matters.
fn settings() -> Settings {
    Settings { segment_blocks: 256, ..tiny() }
}

fn page_step(random: &mut Random) -> PageStep {
    match random.below(50) {
        49 => PageStep::Flood(random.next()),
        0..=15 => PageStep::Allocate([12, 12, 13, 16][random.below(4) as usize]),
        16..=36 => PageStep::Write(random.next()),
        37..=44 => PageStep::Free(random.next()),
        _ => PageStep::Header(random.below(256) as u8),
    }
}

fn page_steps(random: &mut Random) -> Vec<PageStep> {
    (0..1 + random.below(5)).map(|_| page_step(random)).collect()
}

fn step(random: &mut Random) -> PagerStep {
    let durability = if random.below(2) == 0 { Durability::Durable } else { Durability::Deferred };
    match random.below(20) {
        0..=3 => PagerStep::Commit(page_steps(random), durability),
        4..=9 => PagerStep::Start(page_steps(random), durability),
        10..=12 => PagerStep::Beside(page_steps(random), page_steps(random)),
        13 => PagerStep::Abort(page_steps(random)),
        14..=15 => PagerStep::Wait,
        16 => PagerStep::Sync,
        17 => PagerStep::Checkpoint,
        _ => PagerStep::Clean,
    }
}

#[test]
fn pipelined_and_deferred_transactions_survive_sampled_cuts() {
    explore(&tiny_options(), 10, 1000);
}

/// So that what is spilled for want of memory is encoded.
#[test]
fn encoded_transactions_larger_than_memory_survive_sampled_cuts() {
    let by_class = |log2| vellum::SizeClass::new(log2).unwrap();
    explore(&tiny_options().compression(Compression::LZ4).compression_of(by_class(16), Compression::ZSTD), 4, 400);
}

/// Cuts histories of this many seeds short, in at least `least` states.
fn explore(options: &Options, count: u64, least: u64) {
    let mut explorer = Explorer::new(Tear::Every512, 24, 11);
    explorer.second_limit = 6;
    explorer.second_every = 16;
    explorer.lose_superblock_every = 16;
    let long = std::env::var("VELLUM_CRASH").is_ok_and(|value| value == "long");
    let one = std::env::var("VELLUM_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let seeds = one.map_or(0..if long { count * 500 } else { count }, |seed| seed..seed + 1);
    println!("seeds {seeds:?}");
    for seed in seeds {
        let mut random = Random(seed);
        let mut history = PagerHistory::create(options, seed).unwrap();
        for _ in 0..40 {
            let step = step(&mut random);
            if std::env::var_os("VELLUM_TRACE").is_some() {
                println!("{:?} {step:?}", history.pager.view());
            }
            history.step(&step).unwrap_or_else(|error| panic!("seed {seed}: {step:?}: {error}"));
        }
        let points = history.finish().unwrap();
        history.check().unwrap_or_else(|message| panic!("seed {seed}: {message}"));
        let explored = explorer.explore("pager", &points, &history.model, &settings());
        explored.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    }
    let total = explorer.total();
    println!("all: {total}");
    assert!(total.states > least || one.is_some());
}
