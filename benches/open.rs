//! Opening a store after a crash: the cost follows the log, not the store. A small and a large store with the same log,
//! opened in turn, in one run; medians. `cargo bench --bench open`; `VELLUM_BENCH_DIR` says where.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vellum::disk::{Access, Caching, Disk, FileDisk};
use vellum::process::NoReaders;
use vellum::store::{Changes, Durability, NewSpace, PageChange, RecoveryReport, Settings, Store, SystemEntropy};
use vellum::{PageId, SizeClass};

const PAGE: u64 = 4096;
const LOG_BLOCKS: u64 = 256;

fn settings() -> Settings {
    Settings {
        new_space: NewSpace::Obtained,
        checkpoint_log_blocks: Some(1 << 30),
        log_segment_blocks: 512,
        ..Settings::default()
    }
}

fn open_disk(path: &Path) -> Arc<dyn Disk> {
    Arc::new(FileDisk::open(path, Access::ReadWrite, Caching::Buffered).unwrap())
}

/// A store of so many bytes, checkpointed, with 1 MiB of log after that, left as a crash leaves it.
fn make(path: &Path, bytes: u64) {
    let disk: Arc<dyn Disk> = Arc::new(FileDisk::create_new(path, Caching::Buffered).unwrap());
    let mut store = Store::create(disk, Arc::new(NoReaders), settings(), Box::new(SystemEntropy)).unwrap();
    let pages = bytes / PAGE;
    let page = |index: u64| [index.to_le_bytes(); PAGE as usize / 8].concat();
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
    let before = store.counters().record_bytes;
    let mut random = 1u64;
    while store.counters().record_bytes - before < LOG_BLOCKS * PAGE {
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

fn main() {
    let small = !std::env::args().any(|argument| argument == "--bench");
    let parent = std::env::var_os("VELLUM_BENCH_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let folder = parent.join(format!("bench-open-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let sizes = if small { [4 << 20, 16 << 20] } else { [100 << 20, 10 << 30] };
    let paths = sizes.map(|bytes: u64| {
        let path = folder.join(format!("{}-MiB", bytes >> 20));
        make(&path, bytes);
        path
    });
    let mut times = [Vec::new(), Vec::new()];
    let mut report = RecoveryReport::default();
    for _ in 0..if small { 2 } else { 31 } {
        for (path, times) in paths.iter().zip(&mut times) {
            let (took, found) = open(path);
            times.push(took);
            report = found;
        }
    }
    let [first, second] = &mut times;
    let (first, second) = (median(first), median(second));
    println!("| store | open after a crash, 1 MiB of log |\n| --- | ---: |");
    println!("| {} MiB | {first:.2} ms |\n| {} MiB | {second:.2} ms |", sizes[0] >> 20, sizes[1] >> 20);
    println!("last open: {report:?}");
    for (name, measured, wanted) in
        [("open-large-over-small", second / first, 1.5), ("open-ms-small", first, 5.0), ("open-ms-large", second, 5.0)]
    {
        println!(
            "goal {name} measured {measured:.2} wanted {wanted:.2} {}",
            if measured <= wanted { "ok" } else { "short" }
        );
    }
    std::fs::remove_dir_all(folder).unwrap();
}
