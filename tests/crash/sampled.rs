//! Long random histories, cut at every sync, and cut again during recovery.

use vellum::disk::Tear;
use vellum::testing::{Explorer, History, tiny, tiny_and_reusing};

use crate::random::Random;

#[test]
fn long_histories_survive_sampled_cuts_also_during_recovery() {
    let mut explorer = Explorer::new(Tear::Every512, 24, 7);
    explorer.second_limit = 6;
    explorer.second_every = 16;
    explorer.lose_superblock_every = 16;
    let long = std::env::var("VELLUM_CRASH").is_ok_and(|value| value == "long");
    let one = std::env::var("VELLUM_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let seeds = one.map_or(0..if long { 10_000 } else { 40 }, |seed| seed..seed + 1);
    println!("seeds {seeds:?}");
    for seed in seeds {
        let mut random = Random(seed);
        let settings = if seed % 2 == 0 { tiny() } else { tiny_and_reusing() };
        let mut history = History::create(settings.clone(), seed).unwrap();
        let steps: Vec<_> = (0..40).map(|_| random.step()).collect();
        for step in &steps {
            history.step(step).unwrap();
        }
        let points = history.disk.take_crash_points();
        let explored = explorer.explore("random", &points, &history.model, &settings);
        explored.unwrap_or_else(|failure| panic!("seed {seed}, {steps:?}: {failure}"));
    }
    println!("all: {}", explorer.total());
}
