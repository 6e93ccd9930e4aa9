//! Random reads in a reader's process, beside a writer, against LMDB; and what readers cost.
//!
//! The pages are a chain: the first word of each is the number of the next, in one random cycle, so a read cannot begin
//! before the one before it has ended. LMDB has values of 4080 bytes, which with its page header fill exactly one of its
//! pages, under integer keys, in one open read transaction. All is warm: in the page cache, mapped and touched.
//! Interleaved rounds, medians. Then all of it again on an aged store: as many pages as there are were overwritten at
//! random, moved by the cleaner, and folded by checkpoints, while LMDB's file is as it was. `cargo bench --bench readers`; `VELLUM_BENCH_DIR` says where, `VELLUM_BENCH_PAGES` how
//! many pages (default 262144: 1 GiB).

#![allow(clippy::unwrap_used, missing_docs, unsafe_code)]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use heed::byteorder::NativeEndian;
use heed::types::{Bytes, U64};
use heed::{Database, EnvFlags, EnvOpenOptions, IntegerComparator, PutFlags};
use vellum::process::{PinTable, PublishedState, Registration, WriterTable};
use vellum::{
    CheckpointNumber, Generation, Incarnation, Options, PageId, Pager, ReadOnlyPager, ReaderOptions, ReaderView,
    SizeClass, StoreId,
};

const PAGE: usize = 4096;
const LMDB_VALUE: usize = 4080;
const ROUNDS: usize = 9;
const CHILD: &str = "VELLUM_BENCH_CHILD";
const AGE: &str = "VELLUM_BENCH_AGE";
const NEW: &str = "a new";
const AGED: &str = "an aged";

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// The page after each page, in one random cycle (Sattolo).
fn chain(pages: u64) -> Vec<u64> {
    let mut random = Random(11);
    let mut next: Vec<u64> = (0..pages).collect();
    for index in (1..pages).rev() {
        next.swap(index as usize, random.below(index) as usize);
    }
    next
}

fn page(index: u64) -> PageId {
    PageId::new(SizeClass::MIN, index).unwrap()
}

fn build_vellum(path: &Path, next: &[u64]) -> Pager {
    let pager = Pager::create(path, &Options::new().growth_bytes(64 << 20)).unwrap();
    for (part, words) in next.chunks(2048).enumerate() {
        let transaction = pager.begin().unwrap();
        transaction.allocate_many(SizeClass::MIN, words.len()).unwrap();
        for (index, word) in (part as u64 * 2048..).zip(words) {
            let mut bytes = transaction.overwrite(page(index)).unwrap();
            bytes.fill(0x5A);
            bytes[..8].copy_from_slice(&word.to_le_bytes());
        }
        transaction.commit().unwrap();
    }
    pager.checkpoint().unwrap();
    pager
}

fn lmdb(path: &Path, flags: EnvFlags) -> heed::Env {
    let mut options = EnvOpenOptions::new();
    options.map_size(64 << 30).max_dbs(1);
    // SAFETY: nobody else touches the folder.
    unsafe { options.flags(flags).open(path).unwrap() }
}

type Values = Database<U64<NativeEndian>, Bytes, IntegerComparator>;

fn build_lmdb(path: &Path, next: &[u64]) {
    std::fs::create_dir(path).unwrap();
    let env = lmdb(path, EnvFlags::NO_SYNC);
    let mut transaction = env.write_txn().unwrap();
    let values: Values = env
        .database_options()
        .types::<U64<NativeEndian>, Bytes>()
        .key_comparator::<IntegerComparator>()
        .name("pages")
        .create(&mut transaction)
        .unwrap();
    let mut value = [0x5A; LMDB_VALUE];
    for (index, word) in (0..).zip(next) {
        value[..8].copy_from_slice(&word.to_le_bytes());
        values.put_with_flags(&mut transaction, PutFlags::APPEND, &index, &value).unwrap();
    }
    transaction.commit().unwrap();
    env.force_sync().unwrap();
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

/// Follows the chain for `steps` pages from `from` on; returns where it ends.
fn follow_vellum(view: &ReaderView, from: u64, steps: u64) -> u64 {
    const PER_SCOPE: u64 = 1000;
    let mut at = from;
    for _ in 0..steps / PER_SCOPE {
        at = view.scope(|scope| (0..PER_SCOPE).try_fold(at, |at, _| Ok(word(scope.page(page(at))?)))).unwrap();
    }
    at
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn goal(name: &str, measured: f64, wanted: f64, at_least: bool) {
    let good = if at_least { measured >= wanted } else { measured <= wanted };
    println!("goal {name} measured {measured:.2} wanted {wanted:.2} {}", if good { "ok" } else { "short" });
}

/// Pages that a commit overwrites while the store ages.
const AGED_AT_ONCE: u64 = 256;

/// Overwrites as many pages as there are, at random, but for their first words.
fn age(pager: &Pager, pages: u64) {
    let mut random = Random(23);
    for commit in 0..pages / AGED_AT_ONCE {
        let transaction = pager.begin().unwrap();
        for _ in 0..AGED_AT_ONCE {
            let mut bytes = transaction.write(page(random.below(pages))).unwrap();
            bytes[8..16].copy_from_slice(&commit.to_le_bytes());
        }
        transaction.commit().unwrap();
        if commit % 256 == 255 {
            pager.clean(4096).unwrap();
            pager.checkpoint().unwrap();
        }
    }
}

/// The reader's process.
fn child(folder: &Path, pages: u64) {
    let store = folder.join("store");
    let options = ReaderOptions::new().memory(pages as usize * PAGE * 2).name("bench");
    // SAFETY: only Vellum writes to the store.
    let mapped = unsafe { ReadOnlyPager::open_mapped(&store, &options).unwrap() };
    let frames = ReadOnlyPager::open(&store, &options).unwrap();
    let env = lmdb(&folder.join("lmdb"), EnvFlags::READ_ONLY);
    let transaction = env.read_txn().unwrap();
    let values: Values = env
        .database_options()
        .types::<U64<NativeEndian>, Bytes>()
        .key_comparator::<IntegerComparator>()
        .name("pages")
        .open(&transaction)
        .unwrap()
        .unwrap();
    let (mapped, frames) = (mapped.view().unwrap(), frames.view().unwrap());
    let follow_lmdb =
        |from: u64, steps: u64| (0..steps).fold(from, |at, _| word(values.get(&transaction, &at).unwrap().unwrap()));
    // Everything is touched once, in the order of numbers: that of the chain would lay the frames out in it.
    for index in 0..pages {
        let word_of = |view: &ReaderView| view.scope(|scope| Ok(word(scope.page(page(index))?))).unwrap();
        let words = [word_of(&mapped), word_of(&frames), word(values.get(&transaction, &index).unwrap().unwrap())];
        assert!(words[0] == words[1] && words[1] == words[2]);
    }
    let steps = (pages / 1000 * 1000).min(200_000);
    let mut times: [Vec<Duration>; 3] = Default::default();
    let mut at = 0;
    for _ in 0..ROUNDS {
        let follow: [&dyn Fn() -> u64; 3] =
            [&|| follow_lmdb(at, steps), &|| follow_vellum(&mapped, at, steps), &|| follow_vellum(&frames, at, steps)];
        let mut end = at;
        for (follow, times) in follow.iter().zip(&mut times) {
            let start = Instant::now();
            end = black_box(follow());
            times.push(start.elapsed());
        }
        at = end;
    }
    let [lmdb, mapped, frames] = times.map(|mut times| median(&mut times).as_secs_f64() * 1e9 / steps as f64);
    let store_age = std::env::var(AGE).unwrap();
    println!("\nrandom warm reads of 4 KiB pages, {pages} pages, in a reader's process, {store_age} store");
    println!("| | ns a read | of LMDB's reads |\n| --- | ---: | ---: |");
    println!("| LMDB | {lmdb:.0} | 1.00 |");
    println!("| mapped | {mapped:.0} | {:.2} |", lmdb / mapped);
    println!("| frames | {frames:.0} | {:.2} |", lmdb / frames);
    if store_age == NEW {
        goal("reader-mapped-of-lmdb", lmdb / mapped, 3.0, true);
        goal("reader-frames-of-lmdb", lmdb / frames, 2.5, true);
    }
}

/// Opening a reader beside the writer.
fn opening(path: &Path) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            black_box(ReadOnlyPager::open(path, &ReaderOptions::new()).unwrap());
            start.elapsed()
        })
        .collect();
    median(&mut times)
}

fn refreshing(pager: &Pager, path: &Path, pages: u64) {
    println!("\nrefreshing after a commit of n pages\n| pages | us |\n| ---: | ---: |");
    let reader = ReadOnlyPager::open(path, &ReaderOptions::new()).unwrap();
    let mut random = Random(5);
    for count in [0, 1, 8, 64, 512] {
        let mut times: Vec<Duration> = (0..50)
            .map(|_| {
                let transaction = pager.begin().unwrap();
                for _ in 0..count {
                    let index = random.below(pages);
                    let first = {
                        let bytes = transaction.write(page(index)).unwrap();
                        word(&bytes)
                    };
                    let mut bytes = transaction.write(page(index)).unwrap();
                    bytes[8..16].copy_from_slice(&first.to_le_bytes());
                    bytes[16..24].copy_from_slice(&random.below(u64::MAX).to_le_bytes());
                }
                transaction.commit().unwrap();
                let start = Instant::now();
                reader.refresh().unwrap();
                start.elapsed()
            })
            .collect();
        println!("| {count} | {:.1} |", median(&mut times).as_secs_f64() * 1e6);
    }
}

/// What a commit pays for readers: to publish, and to ask for pins.
fn table(folder: &Path) {
    let path = folder.join("table");
    std::fs::write(&path, b"x").unwrap();
    let store = StoreId([1; 16]);
    let table = WriterTable::open(&path).unwrap();
    println!("\nwhat a commit pays for readers of other processes\n| readers | us |\n| ---: | ---: |");
    let mut readers = Vec::new();
    for count in [0, 1, 8] {
        while readers.len() < count {
            let mut reader = Registration::open(&path, store, "bench").unwrap();
            reader.told().unwrap();
            reader.pin_states(vec![(CheckpointNumber(1), Generation(1))]).unwrap();
            readers.push(reader);
        }
        const CALLS: u64 = 20_000;
        let mut times: Vec<Duration> = (0..ROUNDS as u64)
            .map(|round| {
                let start = Instant::now();
                for call in 0..CALLS {
                    let (base, synced) = (CheckpointNumber(1), Generation(round * CALLS + call + 2));
                    table.publish(PublishedState { base, synced, incarnation: Incarnation(1), store }).unwrap();
                    black_box(table.pins().unwrap());
                }
                start.elapsed()
            })
            .collect();
        let each = median(&mut times).as_secs_f64() * 1e6 / CALLS as f64;
        println!("| {count} | {each:.2} |");
        if count == 0 {
            goal("commit-pays-without-readers-us", each, 1.0, false);
        }
    }
}

fn main() {
    let pages: u64 = std::env::var("VELLUM_BENCH_PAGES").map_or(1 << 18, |pages| pages.parse().unwrap());
    if let Some(folder) = std::env::var_os(CHILD) {
        return child(Path::new(&folder), pages);
    }
    let parent = std::env::var_os("VELLUM_BENCH_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let folder = parent.join(format!("bench-readers-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let next = chain(pages);
    let (store, small) = (folder.join("store"), folder.join("small"));
    let pager = build_vellum(&store, &next);
    build_lmdb(&folder.join("lmdb"), &next);

    let read = |store_age: &str| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        assert!(child.env(CHILD, &folder).env(AGE, store_age).status().unwrap().success());
    };
    read(NEW);

    let of_small = build_vellum(&small, &next[..1024]);
    println!("\nopening a reader beside a writer\n| pages | ms |\n| ---: | ---: |");
    let mut longest: f64 = 0.0;
    for (pages, path) in [(1024, &small), (pages, &store)] {
        let time = opening(path).as_secs_f64() * 1e3;
        println!("| {pages} | {time:.2} |");
        longest = longest.max(time);
    }
    goal("reader-opens-ms", longest, 10.0, false);
    drop(of_small);
    refreshing(&pager, &store, pages);
    table(&folder);
    age(&pager, pages);
    read(AGED);
    drop(pager);
    std::fs::remove_dir_all(&folder).unwrap();
}
