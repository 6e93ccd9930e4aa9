//! Sorts four times as much data as the memory budget holds, and proves that the result is sorted and complete.
//!
//! ```text
//! cargo run --release --example external_sort -- [budget in MiB, 64] [folder for the temporary file]
//! ```
//!
//! Runs are sorted in memory taken from the budget, and laid into scratch pages; what the budget does not hold of them
//! goes to a temporary file by itself. Then all runs are merged, a page of each at a time, and pages are dropped as they
//! are used up.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vellum::buffer::{BufferManager, Scratch, ScratchOptions, ScratchPage};
use vellum::{Error, SizeClass};

/// A key, and a number that stands for the rest of the record.
const RECORD_BYTES: usize = 16;
/// How many times the budget the data is.
const TIMES: usize = 4;

/// What a sort came to.
#[derive(Debug)]
pub(crate) struct Report {
    /// Sorted, in bytes.
    pub(crate) data_bytes: u64,
    /// The budget.
    pub(crate) budget_bytes: usize,
    /// The most of it that was seen taken.
    pub(crate) peak_bytes: usize,
    /// Written to the temporary file.
    pub(crate) spilled_bytes: u64,
    /// Read back from it.
    pub(crate) read_back_bytes: u64,
    /// Runs that were merged.
    pub(crate) runs: usize,
    /// What the sort took.
    pub(crate) time: Duration,
}

/// The same numbers every time (SplitMix64).
struct Random(u64);

impl Iterator for Random {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(mixed ^ mixed >> 31)
    }
}

/// A sum that does not depend on the order of records, and hardly on anything but which there are.
fn fingerprint((key, rest): (u64, u64)) -> u64 {
    Random(key ^ rest.rotate_left(29)).next().unwrap_or_default()
}

fn record(bytes: &[u8]) -> (u64, u64) {
    let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    (word(0), word(8))
}

/// A sorted run in scratch pages, from which records are taken one by one.
struct Run {
    pages: VecDeque<ScratchPage>,
    records: u64,
    /// The page being read, copied: a guard would keep it from being dropped.
    front: Vec<u8>,
    at: usize,
}

impl Run {
    /// Lays sorted records into pages.
    fn write(scratch: &Scratch, class: SizeClass, sorted: &[(u64, u64)]) -> Result<Self, Error> {
        let mut pages = VecDeque::new();
        for records in sorted.chunks(class.page_bytes() as usize / RECORD_BYTES) {
            let page = scratch.allocate(class)?;
            let mut bytes = page.write()?;
            for (place, (key, rest)) in bytes.chunks_exact_mut(RECORD_BYTES).zip(records) {
                place[..8].copy_from_slice(&key.to_le_bytes());
                place[8..].copy_from_slice(&rest.to_le_bytes());
            }
            drop(bytes);
            pages.push_back(page);
        }
        Ok(Self { pages, records: sorted.len() as u64, front: Vec::new(), at: 0 })
    }

    fn next(&mut self) -> Result<Option<(u64, u64)>, Error> {
        if self.records == 0 {
            return Ok(None);
        }
        if self.at == self.front.len() {
            let Some(page) = self.pages.pop_front() else { return Ok(None) };
            self.front.clear();
            self.front.extend_from_slice(&page.read()?);
            self.at = 0;
        }
        self.at += RECORD_BYTES;
        self.records -= 1;
        Ok(Some(record(&self.front[self.at - RECORD_BYTES..self.at])))
    }
}

/// Sorts `TIMES` times the budget of made-up records, with its temporary file in `folder`.
pub(crate) fn sort(budget_bytes: usize, folder: PathBuf) -> Result<Report, Error> {
    let manager = BufferManager::new(budget_bytes)?;
    let data_bytes = (budget_bytes * TIMES / RECORD_BYTES * RECORD_BYTES) as u64;
    let scratch = manager.scratch(&ScratchOptions { folder, limit_bytes: 2 * data_bytes })?;
    // A 64th of the budget, so that a page of each run fits easily; a mebibyte at most.
    let class = SizeClass::of(((budget_bytes / 64) as u64).clamp(4096, 1 << 20)).unwrap_or(SizeClass::MIN);
    let began = Instant::now();
    let mut peak_bytes = 0;
    let mut runs = Vec::new();
    let mut expected = 0u64;

    // A third of the budget for each run while it is sorted.
    let records_of_a_run = budget_bytes / 3 / RECORD_BYTES;
    let mut input = Random(1);
    let mut left = data_bytes as usize / RECORD_BYTES;
    {
        let _taken = manager.budget().reserve(records_of_a_run * RECORD_BYTES, "records being sorted")?;
        let mut records: Vec<(u64, u64)> = Vec::with_capacity(records_of_a_run);
        while left > 0 {
            records.clear();
            while records.len() < records_of_a_run.min(left)
                && let (Some(key), Some(rest)) = (input.next(), input.next())
            {
                records.push((key, rest));
                expected = expected.wrapping_add(fingerprint((key, rest)));
            }
            left -= records.len();
            records.sort_unstable();
            runs.push(Run::write(&scratch, class, &records)?);
            peak_bytes = peak_bytes.max(manager.budget().used_bytes());
        }
    }

    // The first record of each run, the smallest on top.
    let count = runs.len();
    let _taken = manager.budget().reserve(count * class.page_bytes() as usize, "records being merged")?;
    let mut heap = BinaryHeap::new();
    for (number, run) in runs.iter_mut().enumerate() {
        heap.extend(run.next()?.map(|record| Reverse((record, number))));
    }
    let (mut found, mut sorted, mut last) = (0u64, 0u64, (0, 0));
    while let Some(Reverse((record, number))) = heap.pop() {
        assert!(last <= record, "{last:?} before {record:?}");
        last = record;
        found = found.wrapping_add(fingerprint(record));
        sorted += 1;
        heap.extend(runs[number].next()?.map(|record| Reverse((record, number))));
        if sorted % 4096 == 0 {
            peak_bytes = peak_bytes.max(manager.budget().used_bytes());
        }
    }
    assert_eq!(sorted * RECORD_BYTES as u64, data_bytes, "records are missing");
    assert_eq!(found, expected, "these are not the records that were to be sorted");
    let stats = scratch.stats();
    assert_eq!((stats.pages, stats.stored_bytes), (0, 0), "all pages were used up");
    let (spilled_bytes, read_back_bytes) = (stats.spilled_bytes, stats.read_back_bytes);
    let time = began.elapsed();
    Ok(Report { data_bytes, budget_bytes, peak_bytes, spilled_bytes, read_back_bytes, runs: count, time })
}

#[allow(dead_code)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let budget = arguments.next().map_or(Ok(64), |text| text.parse::<usize>())?;
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let report = sort(budget << 20, folder)?;
    let mebibytes = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    println!("sorted     {:>9.1} MiB in {} runs", mebibytes(report.data_bytes), report.runs);
    println!("budget     {:>9.1} MiB", mebibytes(report.budget_bytes as u64));
    println!("peak       {:>9.1} MiB", mebibytes(report.peak_bytes as u64));
    println!("spilled    {:>9.1} MiB", mebibytes(report.spilled_bytes));
    println!("read back  {:>9.1} MiB", mebibytes(report.read_back_bytes));
    println!("time       {:>9.2} s, {:.0} MiB/s", report.time.as_secs_f64(), {
        mebibytes(report.data_bytes) / report.time.as_secs_f64()
    });
    Ok(())
}
