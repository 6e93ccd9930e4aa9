//! `PagedVec` and `Pages` beside `Vec` and the crate `memory_pages` 0.1: `cargo bench --bench memory`.
//!
//! Every round runs each subject once, in an order of its own, so that what disturbs the machine, and what a subject
//! leaves to the next (free memory in large or in small pieces), meets all alike.
//! Shown are the medians of the rounds, and the median of each round's ratio to `Vec`. All memory is touched while the
//! clock runs; it is given back while it stands. Ends with a line for each goal; the goals are set for the huge-page
//! setting `madvise`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use vellum::memory::{Hint, HugePageSetting, PagedVec, Pages, huge_page_bytes, page_bytes};

/// What the other crate calls readable and writable memory.
type TheirPages = memory_pages::Pages<memory_pages::AllowRead, memory_pages::AllowWrite, memory_pages::DenyExec>;

/// Every subject writes one byte in so many; no system has smaller pages.
const TOUCH_EVERY: usize = 4096;
const PUSHES: usize = 10_000_000;
const PUSH_CAPACITY: usize = PUSHES / 10;
/// Elements of 8 bytes for random access: 128 MiB.
const RANDOM_ELEMENTS: usize = 1 << 24;
const RANDOM_ACCESSES: usize = 1 << 20;

const VEC: &str = "Vec";
const PAGED_VEC: &str = "PagedVec";
const PAGES: &str = "Pages, huge pages";
const SMALL_PAGES: &str = "Pages, no hint";
const THEIR_PAGES: &str = "memory_pages::Pages";
const THEIR_VEC: &str = "memory_pages::PagedVec";

/// One way to do what a benchmark asks for: what it is called, and a run of it that says how long it took.
type Subject<'a> = (&'static str, Box<dyn FnMut() -> Duration + 'a>);

/// What the rounds of one benchmark took: per subject, per round.
struct Times(Vec<(&'static str, Vec<Duration>)>);

impl Times {
    fn measure(title: &str, rounds: usize, mut subjects: Vec<Subject<'_>>) -> Self {
        let mut times = Self(subjects.iter().map(|(name, _)| (*name, Vec::new())).collect());
        let mut order: Vec<usize> = (0..subjects.len()).collect();
        let mut random = random_numbers();
        // The first round only warms up.
        for round in 0..=rounds {
            order.sort_by_cached_key(|_| random.next());
            for &index in &order {
                let took = subjects[index].1();
                if round != 0 {
                    times.0[index].1.push(took);
                }
            }
        }
        println!("\n{title} ({rounds} rounds)");
        println!("  {:<24} {:>10} {:>10} {:>14}", "", "median ms", "best ms", "time / Vec's");
        for (name, of_rounds) in &times.0 {
            let milliseconds: Vec<f64> = of_rounds.iter().map(|took| took.as_secs_f64() * 1e3).collect();
            let best = milliseconds.iter().copied().fold(f64::INFINITY, f64::min);
            let ratio = times.ratio(name, VEC);
            println!("  {name:<24} {:>10.2} {best:>10.2} {ratio:>14.2}", median(milliseconds));
        }
        times
    }

    /// The median of the rounds' ratios of one subject's time to another's.
    fn ratio(&self, of: &str, to: &str) -> f64 {
        median(self.of(of).zip(self.of(to)).map(|(of, to)| of.as_secs_f64() / to.as_secs_f64()).collect())
    }

    fn of(&self, name: &str) -> impl Iterator<Item = &Duration> {
        self.0.iter().filter(move |(other, _)| *other == name).flat_map(|(_, of_rounds)| of_rounds)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Times `make`, and not the drop of what it makes.
fn timed<T>(make: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    let made = black_box(make());
    let took = start.elapsed();
    drop(made);
    took
}

fn touched<M>(mut memory: M, bytes_of: impl FnOnce(&mut M) -> &mut [u8]) -> M {
    for byte in bytes_of(&mut memory).iter_mut().step_by(TOUCH_EVERY) {
        *byte = 1;
    }
    memory
}

fn no_memory(error: vellum::Error) -> ! {
    panic!("the benchmark needs more memory: {error}")
}

fn allocate_and_touch(title: &str, bytes: usize, rounds: usize) -> Times {
    let hinted = move || {
        let pages = Pages::new(bytes).unwrap_or_else(|error| no_memory(error));
        // Where there are no huge pages, that is what is measured.
        let _ = pages.hint(.., Hint::HugePages);
        pages
    };
    let plain = move || Pages::new(bytes).unwrap_or_else(|error| no_memory(error));
    let zeroed = move || PagedVec::<u8>::zeroed(bytes).unwrap_or_else(|error| no_memory(error));
    Times::measure(
        title,
        rounds,
        vec![
            (VEC, Box::new(move || timed(|| touched(vec![0u8; bytes], |vector| vector)))),
            (PAGED_VEC, Box::new(move || timed(|| touched(zeroed(), |vector| vector)))),
            (PAGES, Box::new(move || timed(|| touched(hinted(), |pages| pages)))),
            (SMALL_PAGES, Box::new(move || timed(|| touched(plain(), |pages| pages)))),
            (THEIR_PAGES, Box::new(move || timed(|| touched(TheirPages::new(bytes), |pages| pages)))),
        ],
    )
}

macro_rules! pushed {
    ($new:expr) => {
        Box::new(|| {
            timed(|| {
                let mut vector = $new;
                for index in 0..PUSHES {
                    vector.push(index as f64);
                }
                vector
            })
        })
    };
}

fn push(rounds: usize) -> Times {
    Times::measure(
        "push 10 million f64, capacity given for 1 million",
        rounds,
        vec![
            (VEC, pushed!(Vec::with_capacity(PUSH_CAPACITY))),
            (PAGED_VEC, pushed!(PagedVec::with_capacity(PUSH_CAPACITY))),
            (THEIR_VEC, pushed!(memory_pages::PagedVec::new(PUSH_CAPACITY))),
        ],
    )
}

/// The same numbers each time, that no prefetcher guesses, cheap to make.
fn random_numbers() -> impl Iterator<Item = u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
}

fn random_indices() -> impl Iterator<Item = usize> {
    random_numbers().map(|number| number as usize % RANDOM_ELEMENTS).take(RANDOM_ACCESSES)
}

macro_rules! read_at_random {
    ($vector:expr) => {
        Box::new(|| timed(|| random_indices().fold(0u64, |sum, index| sum.wrapping_add($vector[index]))))
    };
}

macro_rules! write_at_random {
    ($vector:expr) => {
        Box::new(|| timed(|| random_indices().for_each(|index| $vector[index] = index as u64)))
    };
}

fn random_access(rounds: usize) -> (Times, Times) {
    let elements = 0..RANDOM_ELEMENTS as u64;
    let mut vec: Vec<u64> = elements.clone().collect();
    let mut paged: PagedVec<u64> = elements.clone().collect();
    let mut theirs = memory_pages::PagedVec::new(RANDOM_ELEMENTS);
    elements.for_each(|element| theirs.push(element));
    let reads = Times::measure(
        "a million random reads in 128 MiB",
        rounds,
        vec![(VEC, read_at_random!(vec)), (PAGED_VEC, read_at_random!(paged)), (THEIR_VEC, read_at_random!(theirs))],
    );
    let writes = Times::measure(
        "a million random writes in 128 MiB",
        rounds,
        vec![(VEC, write_at_random!(vec)), (PAGED_VEC, write_at_random!(paged)), (THEIR_VEC, write_at_random!(theirs))],
    );
    (reads, writes)
}

enum Wanted {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

fn goal(name: &str, measured: f64, wanted: Wanted) {
    let (sign, bound, is_met) = match wanted {
        Wanted::AtLeast(bound) => (">=", bound, measured >= bound),
        Wanted::AtMost(bound) => ("<=", bound, measured <= bound),
        Wanted::Below(bound) => ("<", bound, measured < bound),
    };
    println!("goal {name} measured {measured:.2} wanted {sign}{bound:.2} {}", if is_met { "ok" } else { "short" });
}

fn main() {
    println!(
        "huge pages: {} ({} KiB), OS page: {} KiB, vellum {}",
        HugePageSetting::of_the_system(),
        huge_page_bytes() >> 10,
        page_bytes() >> 10,
        env!("CARGO_PKG_VERSION"),
    );
    let small = allocate_and_touch("allocate and touch 50 MB", 50_000_000, 31);
    let large = allocate_and_touch("allocate and touch 1 GB", 1_000_000_000, 15);
    let pushes = push(21);
    let (reads, writes) = random_access(101);

    println!();
    goal("push-speed-against-Vec", pushes.ratio(VEC, PAGED_VEC), Wanted::AtLeast(1.4));
    goal("push-time-against-memory_pages", pushes.ratio(PAGED_VEC, THEIR_VEC), Wanted::Below(1.0));
    goal("touch-50-MB-time-against-Vec", small.ratio(PAGED_VEC, VEC), Wanted::AtMost(0.7));
    goal("touch-50-MB-time-against-memory_pages", small.ratio(PAGED_VEC, THEIR_PAGES), Wanted::Below(1.0));
    goal("touch-1-GB-time-against-memory_pages", large.ratio(PAGED_VEC, THEIR_PAGES), Wanted::Below(1.0));
    goal("random-read-time-against-memory_pages", reads.ratio(PAGED_VEC, THEIR_VEC), Wanted::AtMost(1.05));
    goal("random-write-time-against-memory_pages", writes.ratio(PAGED_VEC, THEIR_VEC), Wanted::AtMost(1.05));
}
