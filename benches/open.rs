//! Opening a store after a crash: the cost follows the log, not the store. A small and a large store with the same log,
//! opened in turn, in one run; medians. Twice: with 1 MiB of log, pages and all, and with 1 MiB of records, which name
//! some 36 MiB of pages that lie in the log with them. `cargo bench --bench open`; `VELLUM_BENCH_DIR` says where.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vellum::disk::{Access, Caching, Disk, FileDisk};
use vellum::process::NoReaders;
use vellum::store::{
    Changes, Counters, Durability, NewSpace, PageChange, RecoveryReport, Settings, Store, SystemEntropy,
};
use vellum::{PageId, SizeClass};

const PAGE: u64 = 4096;
const LOG_BYTES: u64 = 1 << 20;

fn settings() -> Settings {
    Settings {
        new_space: NewSpace::Obtained,
        checkpoint_log_blocks: Some(1 << 30),
        log_segment_blocks: 512,
        in_log_blocks: 32,
        ..Settings::default()
    }
}

fn open_disk(path: &Path) -> Arc<dyn Disk> {
    Arc::new(FileDisk::open(path, Access::ReadWrite, Caching::Buffered).unwrap())
}

/// A checkpointed store of so many pages.
fn make(path: &Path, pages: u64) {
    let disk: Arc<dyn Disk> = Arc::new(FileDisk::create_new(path, Caching::Buffered).unwrap());
    let mut store = Store::create(disk, Arc::new(NoReaders), settings(), Box::new(SystemEntropy)).unwrap();
    for start in (0..pages).step_by(4096) {
        let mut changes = Changes::default();
        for index in start..pages.min(start + 4096) {
            let id = PageId::new(SizeClass::MIN, index).unwrap();
            changes.pages.insert(id, PageChange::Whole(page(index + 1).into()));
        }
        store.commit(&changes, Durability::Deferred).unwrap();
        if store.checkpoint_lag_percent() > 0 && start % (1 << 18) == 0 {
            store.checkpoint().unwrap();
        }
    }
    store.checkpoint().unwrap();
}

fn page(content: u64) -> Vec<u8> {
    [content.to_le_bytes(); PAGE as usize / 8].concat()
}

/// Adds 1 MiB of log, of commits of 32 pages, and leaves the store as a crash leaves it.
fn crash(path: &Path, pages: u64, counted: impl Fn(&Counters) -> u64) {
    let (mut store, _) =
        Store::open(open_disk(path), Arc::new(NoReaders), settings(), Box::new(SystemEntropy)).unwrap();
    let mut random = 1u64;
    while counted(&store.counters()) < LOG_BYTES {
        let mut changes = Changes::default();
        for _ in 0..32 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let id = PageId::new(SizeClass::MIN, (random >> 33) % pages).unwrap();
            changes.pages.insert(id, PageChange::Whole(page(random | 1).into()));
        }
        store.commit(&changes, Durability::Durable).unwrap();
    }
}

fn open(path: &Path) -> (Duration, RecoveryReport) {
    let start = Instant::now();
    let (store, report) =
        Store::open(open_disk(path), Arc::new(NoReaders), settings(), Box::new(SystemEntropy)).unwrap();
    let took = start.elapsed();
    drop(store);
    (took, report)
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// Opens the stores in turn; the medians in milliseconds.
fn measure(what: &str, paths: &[(PathBuf, u64); 2], rounds: usize) -> [f64; 2] {
    let mut times = [Vec::new(), Vec::new()];
    let mut reports = [RecoveryReport::default(), RecoveryReport::default()];
    for _ in 0..rounds {
        for (((path, _), times), report) in paths.iter().zip(&mut times).zip(&mut reports) {
            let (took, found) = open(path);
            times.push(took);
            *report = found;
        }
    }
    let [small, large] = times.each_mut().map(|times| median(times));
    println!("| {what} | {small:.2} ms | {large:.2} ms |");
    println!("last opens: {reports:?}");
    [small, large]
}

fn goal(name: &str, measured: f64, wanted: f64) {
    println!(
        "goal {name} measured {measured:.2} wanted {wanted:.2} {}",
        if measured <= wanted { "ok" } else { "short" }
    );
}

fn main() {
    let small = !std::env::args().any(|argument| argument == "--bench");
    let parent = std::env::var_os("VELLUM_BENCH_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let folder = parent.join(format!("bench-open-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let sizes = if small { [4 << 20, 16 << 20] } else { [100 << 20, 10 << 30] };
    let paths = sizes.map(|bytes: u64| {
        let path = folder.join(format!("{}-MiB", bytes >> 20));
        make(&path, bytes / PAGE);
        (path, bytes / PAGE)
    });
    let rounds = if small { 2 } else { 31 };
    println!("| after a crash | {} MiB | {} MiB |\n| --- | ---: | ---: |", sizes[0] >> 20, sizes[1] >> 20);
    paths.iter().for_each(|(path, pages)| crash(path, *pages, |counters| counters.record_bytes + counters.page_bytes));
    let [small_ms, large_ms] = measure("1 MiB of log", &paths, rounds);
    goal("open-ms-small", small_ms, 5.0);
    goal("open-ms-large", large_ms, 5.0);
    goal("open-large-over-small", large_ms / small_ms, 1.5);
    paths.iter().for_each(|(path, pages)| crash(path, *pages, |counters| counters.record_bytes));
    let [small_ms, large_ms] = measure("1 MiB of records more", &paths, rounds);
    goal("open-records-large-over-small", large_ms / small_ms, 1.5);
    std::fs::remove_dir_all(folder).unwrap();
}
