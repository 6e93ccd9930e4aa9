//! Commits of many threads beside those of one, in one run, interleaved, medians.
//!
//! `cargo bench --bench group_commit`; `VELLUM_BENCH_DIR` says where.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use vellum::disk::Caching;
use vellum::{Background, Isolation, Options, PageId, Pager, SizeClass};

const THREADS: usize = 64;
const PAGES: u64 = 16384;
const ROUND: Duration = Duration::from_millis(400);

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn page(index: u64) -> PageId {
    PageId::new(SizeClass::MIN, index).unwrap()
}

fn create(path: &Path) -> Pager {
    let options = Options::new()
        .memory(256 << 20)
        .caching(Caching::Direct)
        .background(Background::Inline)
        .growth_bytes(256 << 20);
    let pager = Pager::create(path, &options).unwrap();
    for start in (0..PAGES).step_by(1024) {
        let transaction = pager.begin().unwrap();
        for id in transaction.allocate_many(SizeClass::MIN, 1024).unwrap() {
            transaction.overwrite(id).unwrap().fill((start / 1024 + 1) as u8);
        }
        transaction.commit().unwrap();
    }
    pager.checkpoint().unwrap();
    pager
}

/// Changes that many random pages of a part of the store, and commits.
fn commit(pager: &Pager, random: &mut Random, count: usize, concurrent: bool) {
    let transaction = match concurrent {
        true => pager.begin_concurrent(Isolation::Snapshot).unwrap(),
        false => pager.begin().unwrap(),
    };
    let mut changed = 0;
    while changed < count {
        // Another thread may be changing this one.
        if let Ok(mut page) = transaction.overwrite(page(random.below(PAGES))) {
            page.fill(random.below(255) as u8 + 1);
            changed += 1;
        }
    }
    transaction.commit().unwrap();
}

/// Adds to the number in the one page that everybody wants.
fn count_up(pager: &Pager) {
    let transaction = pager.begin().unwrap();
    let mut bytes = transaction.write(page(0)).unwrap();
    let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    bytes[..8].copy_from_slice(&(number.wrapping_add(1)).to_le_bytes());
    drop(bytes);
    transaction.commit().unwrap();
}

/// Calls a second, with so many threads.
fn rate(threads: usize, work: &(dyn Fn(&mut Random) + Sync)) -> f64 {
    let barrier = Barrier::new(threads);
    let start = Instant::now();
    let done: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let mut random = Random(thread as u64 * 77 + 1);
                    barrier.wait();
                    let end = Instant::now() + ROUND;
                    let mut done = 0;
                    while Instant::now() < end {
                        work(&mut random);
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    done as f64 / start.elapsed().as_secs_f64()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn goal(name: &str, measured: f64, wanted: f64) {
    println!(
        "goal {name} measured {measured:.2} wanted {wanted:.2} {}",
        if measured >= wanted { "ok" } else { "short" }
    );
}

fn main() {
    let parent = std::env::var_os("VELLUM_BENCH_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let folder = parent.join(format!("bench-group-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let pager = create(&folder.join("store"));
    let names = [
        "1 thread, 64 pages a commit (pages/s)",
        "64 threads, 1 page a commit, concurrent (pages/s)",
        "64 threads, 1 page a commit, serial (pages/s)",
        "1 thread, the hot page (commits/s)",
        "64 threads, the hot page, serial (commits/s)",
        "1 thread, 1 page a commit (commits/s)",
    ];
    type Work<'a> = &'a (dyn Fn(&mut Random) + Sync);
    let work: [(usize, f64, Work<'_>); 6] = [
        (1, 64.0, &|random| commit(&pager, random, 64, false)),
        (THREADS, 1.0, &|random| commit(&pager, random, 1, true)),
        (THREADS, 1.0, &|random| commit(&pager, random, 1, false)),
        (1, 1.0, &|_| count_up(&pager)),
        (THREADS, 1.0, &|_| count_up(&pager)),
        (1, 1.0, &|random| commit(&pager, random, 1, false)),
    ];
    let mut rates = vec![Vec::new(); work.len()];
    for _ in 0..9 {
        for ((threads, pages, work), rates) in work.iter().zip(&mut rates) {
            rates.push(rate(*threads, work) * pages);
        }
    }
    println!("| what | median |\n| --- | ---: |");
    let medians: Vec<f64> = rates.iter_mut().map(|rates| median(rates)).collect();
    for (name, median) in names.iter().zip(&medians) {
        println!("| {name} | {median:.0} |");
    }
    goal("64-threads-of-one-page-against-one-of-64-pages", medians[1] / medians[0], 0.5);
    goal("64-threads-on-a-hot-page-against-one", medians[4] / medians[3], 5.0);
    drop(pager);
    std::fs::remove_dir_all(&folder).unwrap();
}
