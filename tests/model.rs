//! Random histories on a store, compared with the model after each step, with reopening among the steps.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use vellum::disk::{Disk, SimulatedDisk};
use vellum::process::NoReaders;
use vellum::store::{SeededEntropy, Settings, Store};
use vellum::testing::{History, tiny};

#[path = "crash/random.rs"]
mod random;
use random::Random;

fn run(seed: u64, steps: usize, settings: Settings) {
    let mut random = Random(seed);
    let mut history = History::create(settings.clone(), seed).unwrap();
    let mut trace = Vec::new();
    for number in 0..steps {
        if random.below(25) == 0 {
            let disk: Arc<SimulatedDisk> = Arc::clone(&history.disk);
            disk.take_crash_points();
            let (model, version) = (history.model.clone(), history.version());
            drop(history);
            let shared: Arc<dyn Disk> = Arc::clone(&disk) as _;
            let entropy = Box::new(SeededEntropy(random.next()));
            let opened = Store::open(shared, Arc::new(NoReaders), settings.clone(), entropy);
            let (store, _) = opened.unwrap_or_else(|error| panic!("seed {seed}, step {number}: {error}\n{trace:?}"));
            history = History::on(disk, store, model, version).unwrap();
            trace.push("reopen".to_owned());
        }
        let step = random.step();
        trace.push(format!("{step:?}"));
        let outcome = history.step(&step);
        outcome.unwrap_or_else(|error| panic!("seed {seed}, step {number}, {step:?}: {error}\n{}", trace.join("\n")));
        history
            .check()
            .unwrap_or_else(|error| panic!("seed {seed}, step {number}, {step:?}: {error}\n{}", trace.join("\n")));
    }
}

#[test]
fn random_histories_agree_with_the_model() {
    let seeds = std::env::var("VELLUM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = seeds.map_or(0..60, |seed: u64| seed..seed + 1);
    for seed in seeds {
        run(seed, 120, tiny());
    }
}
