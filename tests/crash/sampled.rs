//! Long random histories, cut at every sync, and cut again during recovery.

use vellum::disk::Tear;
use vellum::store::{Sabotage, Settings};
use vellum::testing::{Explorer, History, Step, tiny, tiny_and_reusing};

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

/// Deferred commits, and a checkpoint that folds them, of which no record says that they were durable. Without the
/// checkpoint's superblock the older slot's recovery verifies them: what they wrote must not have been used again.
fn fold_and_use_again(settings: &Settings) -> Result<(), String> {
    let mut history = History::create(settings.clone(), 3).unwrap();
    let pages = || vec![(12, 0), (12, 1)];
    for step in [Step::Write(pages()), Step::Checkpoint, Step::WriteDeferred(pages()), Step::WriteDeferred(pages())] {
        history.step(&step).unwrap();
    }
    history.step(&Step::Checkpoint).unwrap();
    history.disk.take_crash_points();
    for _ in 0..6 {
        history.step(&Step::WriteDeferred(pages())).unwrap();
    }
    let mut points = history.disk.take_crash_points();
    points.push(history.disk.crash_point());
    let mut explorer = Explorer::new(Tear::Never, 200, 1);
    explorer.lose_superblock_every = 1;
    let explored = explorer.explore("fold", &points, &history.model, settings);
    assert!(explored.is_err() || explorer.total().superblock_lost > 10, "{}", explorer.total());
    explored.map_err(|failure| failure.to_string())
}

#[test]
fn what_a_checkpoint_alone_says_to_be_durable_is_not_used_again() {
    for in_log_blocks in [0, 2] {
        let settings = Settings { in_log_blocks, ..tiny_and_reusing() };
        assert_eq!(fold_and_use_again(&settings), Ok(()));
    }
    for sabotage in [Sabotage::IgnoreAnchored, Sabotage::FoldAnchors] {
        let broken = Settings { in_log_blocks: 0, sabotage: Some(sabotage), ..tiny_and_reusing() };
        assert!(fold_and_use_again(&broken).is_err(), "{sabotage:?}: the rule left out goes unnoticed");
    }
}
