//! Long random histories, cut at every sync, and cut again during recovery.

use vellum::disk::Tear;
use vellum::testing::{Explorer, History, tiny};

use crate::random::Random;

#[test]
fn long_histories_survive_sampled_cuts_also_during_recovery() {
    let mut explorer = Explorer::new(Tear::Every512, 24, 7);
    explorer.second_limit = 6;
    explorer.second_every = 16;
    for seed in 0..40 {
        let mut random = Random(seed);
        let mut history = History::create(tiny(), seed).unwrap();
        for _ in 0..40 {
            let step = random.step();
            history.step(&step).unwrap();
        }
        let points = history.disk.take_crash_points();
        let explored = explorer.explore("random", &points, &history.model, &tiny());
        explored.unwrap_or_else(|failure| panic!("seed {seed}: {failure}"));
    }
    println!("all: {}", explorer.total());
}
