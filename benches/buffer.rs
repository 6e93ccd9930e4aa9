//! The buffer beside bare pointers and bare reads: `cargo bench --bench buffer`.
//!
//! Everything that is compared runs in turns, in one process; shown are medians of the rounds' ratios. Files go to
//! `VELLUM_BENCH_DIR`, or the system's folder for temporary files. Without `--bench` (as `cargo test` runs it) all sizes
//! are small, and only that it works is shown. Words after `--bench` choose sections.

use std::fs::File;
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vellum::buffer::{BufferManager, Newest, PageSource, ReadState, StorePages, Swip};
use vellum::disk::{AlignedBuffer, Caching, Disk, FileDisk};
use vellum::format::{BlockPointer, CodecId};
use vellum::{Block, Error, Generation, PageId, Result, SizeClass};

const BIRTH: Generation = Generation(1);

/// Pages of one class, one after another in a file.
#[derive(Debug)]
struct Plain {
    disk: FileDisk,
    pages: u64,
}

impl PageSource for Plain {
    fn newest_pointer(&self, page: PageId) -> Result<BlockPointer> {
        At { pages: self.pages }.pointer(page)
    }

    fn load(&self, _: PageId, pointer: &BlockPointer, target: &mut [u8]) -> Result<()> {
        self.disk.read_at(pointer.address.offset_bytes(), target).map_err(|source| Error::Io {
            operation: "read",
            path: PathBuf::new(),
            offset: None,
            source,
        })
    }

    fn place_of(&self, _: PageId, pointer: &BlockPointer) -> Option<(&File, u64)> {
        Some((self.disk.file_of_blocks()?, pointer.address.offset_bytes()))
    }

    fn is_right(&self, _: PageId, _: &BlockPointer, _: &[u8]) -> bool {
        true
    }
}

/// The one state there is.
struct At {
    pages: u64,
}

impl ReadState for At {
    fn generation(&self) -> Generation {
        BIRTH
    }

    fn pointer(&self, page: PageId) -> Result<BlockPointer> {
        if page.index() >= self.pages {
            return Err(Error::PageNotFound { page });
        }
        let address = Block(page.index() * page.class().page_blocks());
        let stored_length = page.class().page_bytes() as u32;
        Ok(BlockPointer { address, codec: CodecId::RAW, stored_length, birth: BIRTH, ..BlockPointer::default() })
    }
}

struct Sizes {
    resident_pages: u64,
    steps: usize,
    rounds: usize,
    budget: usize,
    span: Duration,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_bench = arguments.iter().any(|argument| argument == "--bench");
    let sections: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| sections.is_empty() || !is_bench || sections.iter().any(|section| *section == name);
    let sizes = if is_bench {
        let span = Duration::from_millis(700);
        Sizes { resident_pages: 1 << 18, steps: 1 << 20, rounds: 9, budget: 128 << 20, span }
    } else {
        Sizes { resident_pages: 1 << 10, steps: 1 << 10, rounds: 1, budget: 2 << 20, span: Duration::from_millis(20) }
    };
    if wanted("resident") {
        resident(&sizes);
    }
    if wanted("larger") {
        larger(&sizes, 12);
    }
    if wanted("large") {
        larger(&sizes, 16);
    }
}

fn page(class: u8, index: u64) -> PageId {
    SizeClass::new(class).and_then(|class| PageId::new(class, index)).unwrap_or_else(|| panic!("no such page"))
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn goal(name: &str, measured: f64, wanted: (&str, f64)) {
    let (sign, bound) = wanted;
    let is_met = if sign == ">=" { measured >= bound } else { measured <= bound };
    println!("goal {name} measured {measured:.2} wanted {sign}{bound:.2} {}", if is_met { "ok" } else { "short" });
}

fn ok<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// Resident pages, each of which names the next: one cycle through all of them, at random.
fn resident(sizes: &Sizes) {
    let count = sizes.resident_pages;
    let folder = ok_io(tempfile::tempdir_in(folder()));
    let disk = ok(FileDisk::create_new(folder.path().join("nothing"), Caching::Buffered));
    let manager = ok(BufferManager::new((count as usize * 4096) / 4 * 5 + (2 << 20)));
    let pages = ok(manager.attach(Arc::new(Plain { disk, pages: count })));
    let mut next: Vec<u64> = (0..count).collect();
    let mut state = 7;
    for last in (1..count as usize).rev() {
        next.swap(last, random(&mut state) as usize % last);
    }
    for (index, next) in next.iter().enumerate() {
        let mut frame = ok(manager.frame(SizeClass::MIN));
        if let Some(bytes) = frame.get_mut() {
            bytes[..8].copy_from_slice(&next.to_le_bytes());
        }
        pages.publish(BIRTH, &mut [(page(12, index as u64), Newest::Frame(frame))].into_iter());
    }
    let at = At { pages: count };
    let array: Vec<usize> =
        (0..count).map(|index| ok(pages.page(&at, page(12, index))).as_ptr().expose_provenance()).collect();
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().unwrap_or_default());
    let by_array = |start: u64, steps: usize| {
        let mut at = start;
        for _ in 0..steps {
            // SAFETY is not to be had here; the address is read through a guard-free slice of pages that stay.
            at = read_word(array[at as usize]);
        }
        at
    };
    let by_scope = |start: u64, steps: usize, each: usize| {
        let mut from = start;
        for _ in 0..steps / each {
            from = ok(pages.scope(&at, |scope| {
                let mut at = from;
                for _ in 0..each {
                    at = word(scope.page(page(12, at))?);
                }
                Ok(at)
            }));
        }
        from
    };
    let swips: Vec<Swip> = (0..count).map(|index| Swip::new(page(12, index))).collect();
    let by_swip = |start: u64, steps: usize, each: usize| {
        let mut from = start;
        for _ in 0..steps / each {
            from = ok(pages.scope(&at, |scope| {
                let mut at = from;
                for _ in 0..each {
                    at = word(scope.follow(&swips[at as usize])?);
                }
                Ok(at)
            }));
        }
        from
    };
    let by_guard = |start: u64, steps: usize| {
        let mut from = start;
        for _ in 0..steps {
            from = word(&ok(pages.page(&at, page(12, from))));
        }
        from
    };
    let steps = sizes.steps;
    let subjects: [(&str, &(dyn Fn(u64) -> u64 + Sync)); 6] = [
        ("array of pointers", &|start| by_array(start, steps)),
        ("scope of 512 reads", &|start| by_scope(start, steps, 512)),
        ("scope of 4 reads", &|start| by_scope(start, steps, 4)),
        ("scope of 1 read", &|start| by_scope(start, steps, 1)),
        ("guard", &|start| by_guard(start, steps)),
        ("scope of 512, by swip", &|start| by_swip(start, steps, 512)),
    ];
    let mut times = vec![Vec::new(); subjects.len()];
    for round in 0..=sizes.rounds {
        let start = random(&mut state) % count;
        for turn in 0..subjects.len() {
            let which = (turn + round) % subjects.len();
            let began = Instant::now();
            black_box(subjects[which].1(start));
            if round > 0 {
                times[which].push(began.elapsed().as_secs_f64() * 1e9 / steps as f64);
            }
        }
    }
    println!("\nresident pages, dependent random reads ({count} pages of 4 KiB)");
    let ratios: Vec<f64> =
        times.iter().map(|own| median(own.iter().zip(&times[0]).map(|(own, array)| own / array).collect())).collect();
    for (which, (name, _)) in subjects.iter().enumerate() {
        println!("  {name:<22} {:>7.1} ns {:>6.2} of the array", median(times[which].clone()), ratios[which]);
    }
    goal("scope-against-array", ratios[1], ("<=", 1.5));
    goal("guard-against-array", ratios[4], ("<=", 3.0));

    // Two threads.
    let same = page(12, 5);
    let by_scope_same = |steps: usize| {
        for _ in 0..steps / 8 {
            ok(pages
                .scope(&at, |scope| (0..8).try_for_each(|_| scope.page(same).map(|bytes| _ = black_box(word(bytes))))));
        }
    };
    let by_guard_same = |steps: usize| (0..steps).for_each(|_| _ = black_box(word(&ok(pages.page(&at, same)))));
    let kinds: [(&str, &(dyn Fn(u64) + Sync)); 4] = [
        ("scope", &|start| _ = black_box(by_scope(start, steps, 8))),
        ("guard", &|start| _ = black_box(by_guard(start, steps))),
        ("scope-same-page", &|_| by_scope_same(16 * steps)),
        ("guard-same-page", &|_| by_guard_same(16 * steps)),
    ];
    println!("\ntwo threads");
    for (name, run) in kinds {
        let ratio = median(
            (0..sizes.rounds)
                .map(|_| {
                    let one = time_of(1, run);
                    let two = time_of(2, run);
                    2.0 * one.as_secs_f64() / two.as_secs_f64()
                })
                .collect(),
        );
        goal(&format!("two-threads-{name}"), ratio, (">=", 1.9));
    }
}

/// The first word at an address.
#[inline(always)]
fn read_word(address: usize) -> u64 {
    let pointer = std::ptr::with_exposed_provenance::<u64>(address);
    #[allow(unsafe_code)]
    // SAFETY: the address of a frame that holds a resident page, which stays while the benchmark runs.
    unsafe {
        pointer.read()
    }
}

fn time_of(threads: u64, run: &(dyn Fn(u64) + Sync)) -> Duration {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || run(thread * 1000));
        }
    });
    began.elapsed()
}

fn folder() -> PathBuf {
    std::env::var_os("VELLUM_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

fn ok_io<T>(result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("RssAnon"));
    line.and_then(|line| line.split_whitespace().nth(1)).and_then(|kib| kib.parse::<usize>().ok()).unwrap_or(0) << 10
}

/// Data of eight times the budget, by pages of `class`, beside bare direct reads.
fn larger(sizes: &Sizes, class: u8) {
    let folder = ok_io(tempfile::tempdir_in(folder()));
    let path = folder.path().join("pages");
    let bytes = sizes.budget * 8;
    let count = (bytes >> class) as u64;
    let disk = ok(FileDisk::create_new(&path, Caching::DirectIfPossible));
    let mut buffer = AlignedBuffer::zeroed(1 << 20);
    for chunk in 0..bytes >> 20 {
        for (at, block) in buffer.chunks_mut(4096).enumerate() {
            block[..8].copy_from_slice(&((chunk << 8 | at) as u64).to_le_bytes());
        }
        ok_io(disk.write_at((chunk << 20) as u64, &buffer));
    }
    ok_io(disk.sync());
    let bare = ok(FileDisk::open(&path, vellum::disk::Access::ReadOnly, Caching::DirectIfPossible));
    drop(buffer);
    let before = resident_bytes();
    let manager = ok(BufferManager::new(sizes.budget));
    let pages = ok(manager.attach(Arc::new(Plain { disk, pages: count })));
    let at = At { pages: count };
    let first = |index: u64| index << (class - 12);
    println!("\n{} MiB of {} KiB pages, budget {} MiB", bytes >> 20, (1 << class) >> 10, sizes.budget >> 20);
    let most = AtomicU64::new(0);
    let by_buffer = |index: u64| {
        let guard = ok(pages.page(&at, page(class, index)));
        assert_eq!(u64::from_le_bytes(guard[..8].try_into().unwrap_or_default()), first(index));
    };
    let threads: &[u64] = if class == 12 { &[1, 8, 64] } else { &[1, 8] };
    // Fills the budget first.
    rate(sizes.span, 8, &|_, state| by_buffer(random(state) % count));
    for threads in threads {
        let mut ratios = Vec::new();
        let mut last = (0.0, 0.0);
        for _ in 0..sizes.rounds {
            let buffered = rate(sizes.span, *threads, &|_, state| by_buffer(random(state) % count));
            let direct = rate_bare(sizes.span, *threads, &bare, class, count);
            most.fetch_max(resident_bytes().saturating_sub(before) as u64, Ordering::Relaxed);
            ratios.push(buffered / direct);
            last = (buffered, direct);
        }
        println!("  {threads:>2} threads: {:>7.0} pages/s, bare {:>7.0}", last.0, last.1);
        goal(
            &format!("larger-{}KiB-{threads}-threads", (1 << class) >> 10),
            median(ratios),
            (">=", if class == 12 { 0.9 } else { 0.85 }),
        );
    }
    let constant = 8 << 20;
    let bound = (most.into_inner() as f64 - f64::from(constant)) / sizes.budget as f64;
    goal(&format!("resident-memory-{}KiB-less-8-MiB-over-budget", (1 << class) >> 10), bound, ("<=", 1.05));
    if class == 12 {
        ahead(sizes, &pages, count);
    }
    println!("  {:?}", manager.stats());
}

/// One thread: batches of 64 that are prefetched, and pages one by one.
fn ahead(sizes: &Sizes, pages: &StorePages, count: u64) {
    let at = At { pages: count };
    let read = |page: PageId| _ = black_box(ok(pages.page(&at, page))[0]);
    let mut ratios = Vec::new();
    let mut last = (0.0, 0.0);
    for _ in 0..sizes.rounds {
        let single = rate(sizes.span, 1, &|_, state| read(page(12, random(state) % count)));
        let batch = 64.0
            * rate(sizes.span, 1, &|_, state| {
                let batch: Vec<PageId> = (0..64).map(|_| page(12, random(state) % count)).collect();
                ok(pages.prefetch(&at, &batch));
                batch.into_iter().for_each(read);
            });
        ratios.push(batch / single);
        last = (batch, single);
    }
    println!("  batches of 64 ahead: {:>7.0} pages/s, one by one {:>7.0}", last.0, last.1);
    goal("prefetch-against-one-by-one", median(ratios), (">=", 1.9));
}

/// Calls a second, by so many threads together.
fn rate(span: Duration, threads: u64, run: &(dyn Fn(u64, &mut u64) + Sync)) -> f64 {
    let done = AtomicBool::new(false);
    let calls = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (done, calls) = (&done, &calls);
            scope.spawn(move || {
                let mut state = began.elapsed().as_nanos() as u64 ^ (thread + 1) << 40 | 1;
                let mut own = 0;
                while !done.load(Ordering::Relaxed) {
                    run(thread, &mut state);
                    own += 1;
                }
                calls.fetch_add(own, Ordering::Relaxed);
            });
        }
        std::thread::sleep(span);
        done.store(true, Ordering::Relaxed);
    });
    calls.into_inner() as f64 / began.elapsed().as_secs_f64()
}

fn rate_bare(span: Duration, threads: u64, disk: &FileDisk, class: u8, count: u64) -> f64 {
    thread_local! {
        static BUFFER: std::cell::RefCell<Option<AlignedBuffer>> = const { std::cell::RefCell::new(None) };
    }
    rate(span, threads, &|_, state| {
        BUFFER.with_borrow_mut(|buffer| {
            let buffer = buffer.get_or_insert_with(|| AlignedBuffer::zeroed(1 << 16));
            let offset = (random(state) % count) << class;
            ok_io(disk.read_at(offset, &mut buffer[..1 << class]));
        });
    })
}
