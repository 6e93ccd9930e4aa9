//! Any steps on a store, against the model, with power cuts: what is recovered is a committed state, no older than the
//! last one acknowledged, and the store works on.
#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use vellum::disk::{Disk, Tear};
use vellum::process::NoReaders;
use vellum::store::{SeededEntropy, Settings, Store};
use vellum::testing::{Explorer, History, Step, tiny, tiny_and_reusing};

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Page {
    class: u8,
    index: u8,
}

#[derive(Arbitrary, Debug)]
enum Operation {
    Write(Vec<Page>),
    WriteDeferred(Vec<Page>),
    Free(Vec<Page>),
    Header(u8),
    Sync,
    Checkpoint,
    CheckpointBegin,
    CheckpointEnd,
    Snapshot(u8),
    DeleteSnapshot(u8),
    RollBack(u8),
    Move(Vec<Page>),
    View,
    CloseView,
    Reopen,
    /// The power goes; what is left is looked at, and the history goes on.
    Cut,
}

#[derive(Arbitrary, Debug)]
struct Input {
    reusing: bool,
    limited: bool,
    seed: u16,
    operations: Vec<Operation>,
}

fn pages(pages: &[Page]) -> Vec<(u8, u64)> {
    pages.iter().take(8).map(|page| (12 + page.class % 4, u64::from(page.index % 16))).collect()
}

fn step(operation: &Operation) -> Option<Step> {
    Some(match operation {
        Operation::Write(list) => Step::Write(pages(list)),
        Operation::WriteDeferred(list) => Step::WriteDeferred(pages(list)),
        Operation::Free(list) => Step::Free(pages(list)),
        Operation::Header(byte) => Step::Header(*byte),
        Operation::Sync => Step::Sync,
        Operation::Checkpoint => Step::Checkpoint,
        Operation::CheckpointBegin => Step::CheckpointBegin,
        Operation::CheckpointEnd => Step::CheckpointEnd,
        Operation::Snapshot(number) => Step::Snapshot(number % 4),
        Operation::DeleteSnapshot(number) => Step::DeleteSnapshot(number % 4),
        Operation::RollBack(number) => Step::RollBack(number % 4),
        Operation::Move(list) => Step::Move(pages(list)),
        Operation::View => Step::View,
        Operation::CloseView => Step::CloseView,
        Operation::Reopen | Operation::Cut => return None,
    })
}

fn reopen(history: History, settings: &Settings, seed: u64) -> History {
    let (disk, model, version) = (Arc::clone(&history.disk), history.model.clone(), history.version());
    drop(history);
    let shared: Arc<dyn Disk> = Arc::clone(&disk) as _;
    let entropy = Box::new(SeededEntropy(seed));
    let (store, _) = Store::open(shared, Arc::new(NoReaders), settings.clone(), entropy).expect("it opens again");
    History::on(disk, store, model, version).expect("it goes on")
}

fuzz_target!(|input: Input| {
    let mut settings = if input.reusing { tiny_and_reusing() } else { tiny() };
    if input.limited {
        settings.blocks_limit = 160;
    }
    let mut history = History::create(settings.clone(), input.seed.into()).expect("a store is created");
    let mut cuts = 0;
    for (number, operation) in input.operations.iter().take(48).enumerate() {
        match (operation, step(operation)) {
            (_, Some(step)) => drop(history.step(&step).unwrap_or_else(|error| panic!("{step:?}: {error}"))),
            (Operation::Reopen, _) => history = reopen(history, &settings, number as u64),
            // A full store may have no room for what is done after a cut.
            _ if cuts < 3 && !input.limited => {
                cuts += 1;
                let mut explorer = Explorer::new(Tear::Every512, 3, input.seed.into());
                explorer.second_limit = 1;
                let points = history.disk.take_crash_points();
                let explored = explorer.explore("fuzz", &points, &history.model, &settings);
                explored.unwrap_or_else(|failure| panic!("{failure}"));
            }
            _ => {}
        }
        history.check().unwrap_or_else(|message| panic!("{operation:?}: {message}"));
    }
});
