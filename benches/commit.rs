//! Durable commits of random 4 KiB pages beside their floor, in one run, interleaved, medians.
//!
//! The floor is the same pages and one block more in one contiguous direct write with `RWF_DSYNC`, into a file that was
//! preallocated and written. `cargo bench --bench commit`; `VELLUM_BENCH_DIR` says where.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vellum::disk::{AlignedBuffer, Caching, Disk, FileDisk};
use vellum::process::NoReaders;
use vellum::store::{Changes, Durability, PageChange, Settings, Store, SystemEntropy};
use vellum::{Background, Options, PageId, Pager, SizeClass};

const PAGE: usize = 4096;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn fill(&mut self, page: &mut [u8]) {
        page.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&(self.below(u64::MAX) | 1).to_le_bytes()));
    }
}

/// A file to write the floor's runs into.
struct Floor {
    disk: FileDisk,
    bytes: AlignedBuffer,
    at: u64,
    length: u64,
}

impl Floor {
    fn new(path: &Path, length: u64) -> Self {
        let disk = FileDisk::create_new(path, Caching::Direct).unwrap();
        let mut bytes = AlignedBuffer::zeroed(4 << 20);
        bytes.iter_mut().enumerate().for_each(|(index, byte)| *byte = (index % 251) as u8);
        for offset in (0..length).step_by(4 << 20) {
            disk.write_at(offset, &bytes).unwrap();
        }
        disk.sync().unwrap();
        Self { disk, bytes, at: 0, length }
    }

    fn commit(&mut self, pages: usize) -> Duration {
        let run = (pages + 1) * PAGE;
        if self.at + run as u64 > self.length {
            self.at = 0;
        }
        let start = Instant::now();
        self.disk.write_durable_at(self.at, &[std::io::IoSlice::new(&self.bytes[..run])]).unwrap();
        self.at += run as u64;
        start.elapsed()
    }
}

struct Bench {
    pager: Pager,
    ids: Vec<PageId>,
    random: Random,
    page: Vec<u8>,
}

impl Bench {
    fn new(path: &Path, pages: u64, limit_blocks: Option<u64>, in_log_blocks: u32) -> Self {
        let blocks = limit_blocks.unwrap_or(pages * 2);
        let mut options = Options::new()
            .memory(2 << 30)
            .caching(Caching::Direct)
            .background(Background::Inline)
            .in_log_pages_bytes(in_log_blocks * PAGE as u32)
            .growth_bytes((blocks - 600) * PAGE as u64);
        if limit_blocks.is_some() {
            options = options.file_limit_bytes(blocks * PAGE as u64);
        }
        Self::filled(path, pages, &options)
    }

    /// A store of random pages, checkpointed.
    fn filled(path: &Path, pages: u64, options: &Options) -> Self {
        let pager = Pager::create(path, options).unwrap();
        let mut bench = Self { pager, ids: Vec::new(), random: Random(1), page: vec![0; PAGE] };
        while (bench.ids.len() as u64) < pages {
            let transaction = bench.pager.begin().unwrap();
            for id in transaction.allocate_many(SizeClass::MIN, 1024).unwrap() {
                bench.random.fill(&mut bench.page);
                transaction.overwrite(id).unwrap().copy_from_slice(&bench.page);
                bench.ids.push(id);
            }
            transaction.commit().unwrap();
        }
        bench.pager.checkpoint().unwrap();
        bench
    }

    /// From the beginning of the transaction until the commit is durable.
    fn commit(&mut self, count: usize) -> Duration {
        let mut chosen = std::collections::BTreeSet::new();
        while chosen.len() < count {
            chosen.insert(self.ids[self.random.below(self.ids.len() as u64) as usize]);
        }
        self.random.fill(&mut self.page);
        let start = Instant::now();
        let transaction = self.pager.begin().unwrap();
        for id in &chosen {
            self.page[..8].copy_from_slice(&id.to_bytes());
            transaction.write_at(*id, 0, &self.page).unwrap();
        }
        transaction.commit().unwrap();
        start.elapsed()
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[times.len() * percent / 100]
}

fn written_bytes() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap().parse().unwrap()
}

fn goal(name: &str, measured: f64, wanted: f64, at_least: bool) {
    let good = if at_least { measured >= wanted } else { measured <= wanted };
    println!("goal {name} measured {measured:.2} wanted {wanted:.2} {}", if good { "ok" } else { "short" });
}

fn folder() -> PathBuf {
    let parent = std::env::var_os("VELLUM_BENCH_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let folder = parent.join(format!("bench-commit-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Fresh segments: the file is twice as large as its data.
fn burst(folder: &Path, pages: u64, in_log_blocks: u32, floor: &mut Floor) {
    let path = folder.join(format!("burst-{in_log_blocks}"));
    let mut bench = Bench::new(&path, pages, None, in_log_blocks);
    println!("\nburst, commits of up to {in_log_blocks} pages in the log");
    println!("| pages | floor us | vellum us | of floor | p99 us | bytes per byte |");
    println!("| ---: | ---: | ---: | ---: | ---: | ---: |");
    for (count, rounds) in [(1, 2000), (8, 1000), (64, 400), (512, 100)] {
        let (mut floors, mut ours) = (Vec::new(), Vec::new());
        let (mut bytes, mut changed) = (0, 0);
        for _ in 0..rounds {
            floors.push(floor.commit(count));
            let before = written_bytes();
            ours.push(bench.commit(count));
            bytes += written_bytes() - before;
            changed += (count * PAGE) as u64;
        }
        let (f, v) = (median(&mut floors).as_secs_f64() * 1e6, median(&mut ours).as_secs_f64() * 1e6);
        let amplification = bytes as f64 / changed as f64;
        let p99 = percentile(&mut ours, 99).as_secs_f64() * 1e6;
        println!("| {count} | {f:.0} | {v:.0} | {:.2} | {p99:.0} | {amplification:.2} |", f / v);
        let name = format!("burst-{count}-in-log-{in_log_blocks}");
        match (count, in_log_blocks) {
            (1, 0) => {
                goal(&name, f / v, 0.65, true);
                goal(&format!("{name}-bytes"), amplification, 2.5, false);
            }
            (1, _) => {
                goal(&name, f / v, 0.75, true);
                goal(&format!("{name}-bytes"), amplification, 3.6, false);
            }
            (_, 0) => {}
            _ => goal(&name, f / v, 0.75, true),
        }
    }
    drop(bench);
    std::fs::remove_file(path).unwrap();
}

/// As [`burst`], by the core alone: what is left when the pager's copies and its cache cost nothing.
fn core_burst(folder: &Path, pages: u64, floor: &mut Floor) {
    let path = folder.join("core");
    let disk = Arc::new(FileDisk::create_new(&path, Caching::Direct).unwrap());
    let settings = Settings { growth_blocks: pages * 2, ..Settings::default() };
    let mut store = Store::create(disk, Arc::new(NoReaders), settings, Box::new(SystemEntropy)).unwrap();
    let mut random = Random(1);
    let mut frames = AlignedBuffer::huge(512 * PAGE);
    frames.chunks_mut(PAGE).for_each(|frame| random.fill(frame));
    let commit = |store: &mut Store, ids: &[u64], frames: &AlignedBuffer| {
        let mut changes = Changes::default();
        for (id, frame) in ids.iter().zip(frames.chunks(PAGE)) {
            changes.pages.insert(PageId::new(SizeClass::MIN, *id).unwrap(), PageChange::Whole(frame.into()));
        }
        store.commit(&changes, Durability::Durable).unwrap();
    };
    for start in (0..pages).step_by(512) {
        commit(&mut store, &(start..start + 512).collect::<Vec<_>>(), &frames);
    }
    store.checkpoint().unwrap();
    println!("\nburst, by the core alone");
    println!("| pages | floor us | core us | of floor | p99 us |");
    println!("| ---: | ---: | ---: | ---: | ---: |");
    for (count, rounds) in [(1, 2000), (8, 1000), (64, 400), (512, 100)] {
        let (mut floors, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            floors.push(floor.commit(count));
            let mut chosen = std::collections::BTreeSet::new();
            while chosen.len() < count {
                chosen.insert(random.below(pages));
            }
            let chosen: Vec<u64> = chosen.into_iter().collect();
            for (id, frame) in chosen.iter().zip(frames.chunks_mut(PAGE)) {
                frame[..8].copy_from_slice(&random.below(u64::MAX).to_le_bytes());
                frame[8..16].copy_from_slice(&id.to_le_bytes());
            }
            let start = Instant::now();
            commit(&mut store, &chosen, &frames);
            ours.push(start.elapsed());
            if store.checkpoint_due() {
                store.checkpoint().unwrap();
            }
        }
        let (f, v) = (median(&mut floors).as_secs_f64() * 1e6, median(&mut ours).as_secs_f64() * 1e6);
        let p99 = percentile(&mut ours, 99).as_secs_f64() * 1e6;
        println!("| {count} | {f:.0} | {v:.0} | {:.2} | {p99:.0} |", f / v);
    }
    drop(store);
    std::fs::remove_file(path).unwrap();
}

/// Uniform overwrites in a file that may not grow.
fn steady(folder: &Path, pages: u64, percent: u64, floor: &mut Floor) {
    let path = folder.join(format!("steady-{percent}"));
    let limit = pages * 100 / percent;
    let mut bench = Bench::new(&path, pages, Some(limit), Settings::default().in_log_blocks);
    let count = 64;
    // Age it: everything is overwritten three times.
    for _ in 0..3 * pages / count as u64 {
        bench.commit(count);
    }
    let (mut floors, mut ours) = (Vec::new(), Vec::new());
    let before = written_bytes();
    let counters = bench.pager.stats().counters;
    let mut floor_bytes = 0;
    let mut changed = 0;
    let mut total = Duration::ZERO;
    for _ in 0..pages / count as u64 {
        floors.push(floor.commit(count));
        floor_bytes += ((count + 1) * PAGE) as u64;
        let took = bench.commit(count);
        total += took;
        ours.push(took);
        changed += (count * PAGE) as u64;
    }
    let bytes = written_bytes() - before - floor_bytes;
    let amplification = bytes as f64 / changed as f64;
    let floor_total: Duration = floors.iter().sum();
    let stats = bench.pager.stats();
    let (now, status) = (stats.counters, stats.status);
    println!(
        "\nsteady state at {percent} % full, {count} pages a commit: mean {:.0} us (floor {:.0}), median {:.0}, p99 {:.0}; bytes per byte {amplification:.2} (pages {:.2}, moved {:.2}, checkpoints {:.2}, records {:.2}); {:.1} writes a commit; {status:?}",
        total.as_secs_f64() * 1e6 / ours.len() as f64,
        floor_total.as_secs_f64() * 1e6 / ours.len() as f64,
        median(&mut ours).as_secs_f64() * 1e6,
        percentile(&mut ours, 99).as_secs_f64() * 1e6,
        (now.page_bytes - counters.page_bytes) as f64 / changed as f64,
        (now.moved_bytes - counters.moved_bytes) as f64 / changed as f64,
        (now.checkpoint_bytes - counters.checkpoint_bytes) as f64 / changed as f64,
        (now.record_bytes - counters.record_bytes) as f64 / changed as f64,
        (now.page_writes - counters.page_writes) as f64 / ours.len() as f64,
    );
    goal(&format!("steady-{percent}-bytes"), amplification, if percent == 75 { 2.5 } else { 1.4 }, false);
    if percent == 75 {
        goal("steady-75-of-floor", floor_total.as_secs_f64() / total.as_secs_f64(), 0.35, true);
    }
    drop(bench);
    std::fs::remove_file(path).unwrap();
}

/// Commits while the background thread writes one paced checkpoint after the other, beside commits without any. With
/// 4 MiB of log the next is due about when the last has ended, and it need not hurry.
fn beside_checkpoints(folder: &Path, pages: u64) {
    const COUNT: usize = 8;
    let mut subjects = [("without", 64 << 30), ("beside", 4 << 20)].map(|(name, log_bytes)| {
        let path = folder.join(name);
        let options = Options::new()
            .memory(1 << 30)
            .caching(Caching::Direct)
            .background(Background::Thread)
            .checkpoint_log_bytes(log_bytes)
            .growth_bytes(2 * pages * PAGE as u64);
        (Bench::filled(&path, pages, &options), path, Vec::new())
    });
    let before = subjects.each_ref().map(|(bench, ..)| bench.pager.stats().counters.checkpoints);
    for _ in 0..pages / 512 {
        for (bench, _, times) in &mut subjects {
            times.extend((0..50).map(|_| bench.commit(COUNT)));
        }
    }
    let after = subjects.each_ref().map(|(bench, ..)| bench.pager.stats().counters.checkpoints);
    println!("\ncommits of {COUNT} pages beside checkpoints back to back");
    println!("| checkpoints | median us | p99 us | p99.9 us |");
    println!("| ---: | ---: | ---: | ---: |");
    let [without, beside] = subjects.each_mut().map(|(_, _, times)| {
        let tail = times.iter().max().copied().unwrap_or_default();
        let thousandth = times.len() / 1000;
        let (p99, half) = (percentile(times, 99), median(times));
        (half, p99, times.iter().rev().nth(thousandth).copied().unwrap_or(tail))
    });
    for ((half, p99, p999), checkpoints) in
        [without, beside].into_iter().zip(after.iter().zip(before).map(|(after, before)| after - before))
    {
        let us = |time: Duration| time.as_secs_f64() * 1e6;
        println!("| {checkpoints} | {:.0} | {:.0} | {:.0} |", us(half), us(p99), us(p999));
    }
    goal("commit-p99-beside-checkpoint", beside.1.as_secs_f64() / without.1.as_secs_f64(), 3.0, false);
    for (bench, path, _) in subjects {
        drop(bench);
        std::fs::remove_file(path).unwrap();
    }
}

fn main() {
    // `cargo test` runs benchmarks too, in a size that only shows that they work.
    let small = !std::env::args().any(|argument| argument == "--bench");
    let pages = if small { 16_384 } else { 131_072 };
    let folder = folder();
    let mut floor = Floor::new(&folder.join("floor"), if small { 16 << 20 } else { 256 << 20 });
    if std::env::var_os("VELLUM_BENCH_CORE_ONLY").is_some() {
        core_burst(&folder, pages, &mut floor);
        std::fs::remove_dir_all(folder).unwrap();
        return;
    }
    if std::env::var_os("VELLUM_BENCH_STEADY_ONLY").is_none() {
        burst(&folder, pages, Settings::default().in_log_blocks, &mut floor);
        burst(&folder, pages, 0, &mut floor);
        core_burst(&folder, pages, &mut floor);
    }
    if std::env::var_os("VELLUM_BENCH_CHECKPOINT_ONLY").is_none() {
        steady(&folder, pages, 75, &mut floor);
        steady(&folder, pages, 50, &mut floor);
    }
    beside_checkpoints(&folder, pages / 2);
    std::fs::remove_dir_all(folder).unwrap();
}
