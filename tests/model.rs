//! Random histories on a store, compared with the model after each step, with reopening among the steps.

use std::sync::Arc;

use vellum::disk::{Disk, SimulatedDisk};
use vellum::process::NoReaders;
use vellum::store::{SeededEntropy, Settings, Store};
use vellum::testing::{History, Step, tiny};

/// SplitMix64: enough for choosing steps.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pages(&mut self) -> Vec<(u8, u64)> {
        (0..1 + self.below(5)).map(|_| (12 + self.below(3) as u8, self.below(12))).collect()
    }

    fn step(&mut self) -> Step {
        match self.below(30) {
            0..=9 => Step::Write(self.pages()),
            10..=12 => Step::WriteDeferred(self.pages()),
            13..=14 => Step::Free(self.pages()),
            15 => Step::Header(self.below(256) as u8),
            16 => Step::Sync,
            17..=18 => Step::Checkpoint,
            19 => Step::CheckpointBegin,
            20..=21 => Step::CheckpointEnd,
            22 => Step::Snapshot(self.below(4) as u8),
            23 => Step::DeleteSnapshot(self.below(4) as u8),
            24 => Step::RollBack(self.below(4) as u8),
            25..=26 => Step::Move(self.pages()),
            27 => Step::View,
            _ => Step::CloseView,
        }
    }
}

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
