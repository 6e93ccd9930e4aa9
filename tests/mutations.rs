//! The crash tests can fail: each rule of the store, broken on purpose, is caught by one of them.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use vellum::disk::{Disk, FaultyDisk, Image, Operations, SimulatedDisk, Span, SystemError, Tear};
use vellum::process::NoReaders;
use vellum::store::{Sabotage, SeededEntropy, Settings, Store};
use vellum::testing::{Explorer, History, Model, Step, tiny, tiny_and_reusing};

#[path = "crash/random.rs"]
mod random;
use random::Random;

fn settings(sabotage: Option<Sabotage>) -> Settings {
    Settings { sabotage, ..tiny() }
}

/// Random histories, with views, cut at every sync. `Err` says how the bug was caught.
fn histories(sabotage: Option<Sabotage>, seeds: std::ops::Range<u64>) -> Result<(), String> {
    for seed in seeds {
        let settings = match seed % 4 {
            0 => settings(sabotage),
            1 => Settings { sabotage, in_log_blocks: 0, ..tiny_and_reusing() },
            _ => Settings { sabotage, ..tiny_and_reusing() },
        };
        let mut explorer = Explorer::new(Tear::Every512, 16, seed);
        explorer.second_limit = 6;
        explorer.second_every = 8;
        explorer.lose_superblock_every = 8;
        let mut random = Random(seed);
        let mut history = History::create(settings.clone(), seed).map_err(|error| error.to_string())?;
        for _ in 0..50 {
            let step = random.step();
            history.step(&step).map_err(|error| format!("seed {seed}, {step:?}: {error}"))?;
            history.check().map_err(|message| format!("seed {seed}, {step:?}: {message}"))?;
        }
        let points = history.disk.take_crash_points();
        explorer
            .explore("random", &points, &history.model, &settings)
            .map_err(|failure| format!("seed {seed}: {}", failure.message))?;
    }
    Ok(())
}

/// Deferred commits, and a checkpoint that folds them, of which no record says that they were durable; then others that
/// want their blocks, and the checkpoint's superblock is lost.
fn anchoring(sabotage: Option<Sabotage>) -> Result<(), String> {
    let settings = Settings { sabotage, in_log_blocks: 0, ..tiny_and_reusing() };
    let mut history = History::create(settings.clone(), 3).map_err(|error| error.to_string())?;
    let pages = || vec![(12, 0), (12, 1)];
    let before = [Step::Write(pages()), Step::Checkpoint, Step::WriteDeferred(pages()), Step::WriteDeferred(pages())];
    let after = (0..6).map(|_| Step::WriteDeferred(pages()));
    for step in before.into_iter().chain([Step::Checkpoint]).chain(after) {
        history.step(&step).map_err(|error| format!("{step:?}: {error}"))?;
    }
    let mut points = history.disk.take_crash_points();
    points.push(history.disk.crash_point());
    let mut explorer = Explorer::new(Tear::Never, 200, 1);
    explorer.lose_superblock_every = 1;
    explorer.explore("anchoring", &points, &history.model, &settings).map_err(|failure| failure.message)
}

/// A history that ends with acknowledged commits in the log.
fn short_history(settings: &Settings) -> History {
    let mut history = History::create(settings.clone(), 3).unwrap();
    for step in [
        Step::Write(vec![(12, 0), (12, 1), (13, 0)]),
        Step::Checkpoint,
        Step::Write(vec![(12, 0), (12, 2)]),
        Step::Write(vec![(13, 0), (13, 1)]),
    ] {
        history.step(&step).unwrap();
    }
    history
}

fn open(disk: &Arc<dyn Disk>, settings: &Settings, seed: u64) -> vellum::Result<Store> {
    let entropy = Box::new(SeededEntropy(seed));
    Store::open(Arc::clone(disk), Arc::new(NoReaders), settings.clone(), entropy).map(|(store, _)| store)
}

fn shows_newest(store: &Store, model: &Model) -> Result<(), String> {
    match model.newest().compare(store.nodes(), &store.state()) {
        Ok(None) => Ok(()),
        Ok(Some(difference)) => Err(difference),
        Err(error) => Err(error.to_string()),
    }
}

/// Every read of an open fails in turn. The open may fail, or show everything; it may not show less.
fn read_errors(sabotage: Option<Sabotage>) -> Result<(), String> {
    let settings = settings(sabotage);
    let history = short_history(&settings);
    let image = history.disk.durable_image();
    for nth in 1.. {
        let faulty = Arc::new(FaultyDisk::new(Arc::new(SimulatedDisk::from_image(&image))));
        let plan = faulty.fail(Operations::Only(vellum::disk::Operation::Read), nth, Span::Once, SystemError::Io);
        let disk: Arc<dyn Disk> = Arc::clone(&faulty) as _;
        let opened = open(&disk, &settings, nth);
        if faulty.fired(plan) == 0 {
            assert!(nth > 5, "the fault never fired");
            return Ok(());
        }
        if let Ok(store) = opened {
            shows_newest(&store, &history.model).map_err(|message| format!("read {nth} failed: {message}"))?;
        }
    }
    Ok(())
}

/// An acknowledged record in the middle of the log rots. The open must name it, not roll back.
fn rotten_record(sabotage: Option<Sabotage>) -> Result<(), String> {
    let settings = settings(sabotage);
    let history = short_history(&settings);
    let image = history.disk.durable_image();
    let log = history.store.superblock().segments.clone();
    let mut refused = 0;
    for segment in log {
        for block in segment.extent.start.0..segment.extent.end().0 {
            let disk = Arc::new(SimulatedDisk::from_image(&rotten(&image, block * 4096 + 300)));
            let disk: Arc<dyn Disk> = disk;
            match open(&disk, &settings, block) {
                Err(_) => refused += 1,
                // Only the very last record may be missing: nothing behind it tells that it was durable. A page that
                // rotted is an error of that page.
                Ok(store) => {
                    let mut shown = history
                        .model
                        .states
                        .values()
                        .rev()
                        .take(2)
                        .map(|state| !matches!(state.compare(store.nodes(), &store.state()), Ok(Some(_))));
                    if !shown.any(|shown| shown) {
                        return Err(format!("block {block} rotted, and an older state is shown"));
                    }
                }
            }
        }
    }
    match refused {
        0 => Err("no open was refused".into()),
        _ => Ok(()),
    }
}

fn rotten(image: &Image, offset: u64) -> Image {
    let mut byte = [0];
    image.read_at(offset, &mut byte).unwrap();
    image.with_bytes_at(offset, &[byte[0] ^ 0x10]).unwrap()
}

/// A sync fails: the system's cache shows what the medium may not have. What a later open shows and acknowledges must
/// survive a power cut.
fn failed_sync(sabotage: Option<Sabotage>) -> Result<(), String> {
    let settings = settings(sabotage);
    for failing in 1..12 {
        let mut history = History::create(settings.clone(), 5).unwrap();
        history.step(&Step::Write(vec![(12, 0), (15, 0)])).unwrap();
        history.step(&Step::Checkpoint).unwrap();
        history.disk.fail_sync_at(failing);
        history.disk.fail_durable_write_at(failing);
        let mut generation = None;
        for index in 0..12 {
            let before = history.model.clone();
            let step = match index % 3 {
                0 => Step::Write(vec![(15, index), (12, index)]),
                1 => Step::Write(vec![(12, index)]),
                _ => Step::Checkpoint,
            };
            if history.step(&step).is_err() {
                history.model = before;
                generation = Some(history.store.state().generation);
                break;
            }
        }
        let Some(_) = generation else { continue };
        // The process starts again; the machine does not.
        let disk = Arc::clone(&history.disk);
        drop(history);
        let shared: Arc<dyn Disk> = Arc::clone(&disk) as _;
        let Ok(store) = open(&shared, &settings, failing) else { continue };
        let mut shown = Model::default();
        let mut pages = vellum::testing::ModelState::default();
        for (class, map) in vellum::SizeClass::all().zip(store.state().maps.get().iter()) {
            let mut from = 0;
            while let Some((index, _)) = map.next(store.nodes(), from).map_err(|error| error.to_string())? {
                from = index + 1;
                pages.pages.insert(vellum::PageId::new(class, index).unwrap(), 0);
            }
        }
        shown.commit(store.state().generation, pages);
        let count = shown.newest().pages.len();
        let generation = store.state().generation;
        drop(store);
        // The power goes.
        for (description, image) in disk.crash_point().states_up_to(400, Tear::Never, failing) {
            let shared: Arc<dyn Disk> = Arc::new(SimulatedDisk::from_image(&image));
            let store = open(&shared, &settings, failing ^ 1).map_err(|error| format!("{description:?}: {error}"))?;
            if store.state().generation < generation {
                return Err(format!("{} was shown, {} is left", generation, store.state().generation));
            }
            let mut found = 0;
            let reader = vellum::store::PageReader::new(store.nodes());
            for (class, map) in vellum::SizeClass::all().zip(store.state().maps.get().iter()) {
                let mut from = 0;
                while let Some((index, pointer)) = map.next(store.nodes(), from).map_err(|error| error.to_string())? {
                    from = index + 1;
                    found += 1;
                    let mut bytes = vec![0; class.page_bytes() as usize];
                    let page = vellum::PageId::new(class, index).unwrap();
                    reader.read(page, &pointer, 0, &mut bytes).map_err(|error| error.to_string())?;
                }
            }
            if found != count {
                return Err(format!("{count} pages were shown, {found} are left"));
            }
        }
    }
    Ok(())
}

fn caught(sabotage: Option<Sabotage>) -> Option<String> {
    let attempt = |name: &str, test: &dyn Fn() -> Result<(), String>| -> Option<String> {
        match catch_unwind(AssertUnwindSafe(test)) {
            Ok(Ok(())) => None,
            Ok(Err(message)) => Some(format!("{name}: {message}")),
            Err(_) => Some(format!("{name}: an assertion")),
        }
    };
    attempt("read errors", &|| read_errors(sabotage))
        .or_else(|| attempt("a rotten record", &|| rotten_record(sabotage)))
        .or_else(|| attempt("failed syncs", &|| failed_sync(sabotage)))
        .or_else(|| attempt("anchoring", &|| anchoring(sabotage)))
        // A rule that is kept is tried less often than one that is broken must be looked for.
        .or_else(|| attempt("histories", &|| histories(sabotage, 0..if sabotage.is_some() { 300 } else { 24 })))
}

#[test]
fn nothing_is_caught_where_nothing_is_broken() {
    assert_eq!(caught(None), None);
}

#[test]
fn every_broken_rule_is_caught() {
    let mut missed = Vec::new();
    for sabotage in Sabotage::ALL {
        match caught(Some(*sabotage)) {
            Some(how) => println!("{sabotage:?}: caught by {how}"),
            None => missed.push(sabotage),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
