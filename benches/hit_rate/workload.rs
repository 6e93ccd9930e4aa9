//! What is accessed: made up, or recorded. Everything here was fixed before any policy was measured on it.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;

/// Cache sizes, as parts of the distinct pages.
pub(crate) const SIZES: [usize; 5] = [2, 5, 10, 20, 50];
/// More of them, not looked at before four candidates were left for the default's constants.
pub(crate) const HELD_OUT_SIZES: [usize; 5] = [3, 7, 15, 30, 100];
const ACCESSES: usize = 600_000;

pub(crate) struct Workload {
    pub(crate) name: String,
    /// Pages, numbered from 0 without gaps.
    pub(crate) accesses: Vec<u32>,
    pub(crate) distinct: usize,
}

impl Workload {
    fn new(name: &str, pages: impl IntoIterator<Item = u64>) -> Self {
        let mut numbers = HashMap::new();
        let accesses = pages
            .into_iter()
            .map(|page| {
                let next = numbers.len() as u32;
                *numbers.entry(page).or_insert(next)
            })
            .collect();
        Self { name: name.to_owned(), accesses, distinct: numbers.len() }
    }
}

/// SplitMix64 (Steele and others, 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }

    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Ranks from 0, the first the most frequent.
pub(crate) struct Zipf(Vec<f64>);

impl Zipf {
    pub(crate) fn new(items: usize, skew: f64) -> Self {
        let mut sum = 0.0;
        let sums: Vec<f64> = (1..=items)
            .map(|rank| {
                sum += (rank as f64).powf(-skew);
                sum
            })
            .collect();
        Self(sums.iter().map(|part| part / sum).collect())
    }

    pub(crate) fn draw(&self, random: &mut Random) -> u64 {
        let at = random.fraction();
        self.0.partition_point(|&sum| sum < at).min(self.0.len() - 1) as u64
    }
}

fn zipf(skew: f64) -> Workload {
    let (zipf, mut random) = (Zipf::new(50_000, skew), Random(1));
    Workload::new(&format!("zipf {skew}"), (0..ACCESSES).map(|_| zipf.draw(&mut random)))
}

fn uniform() -> Workload {
    let mut random = Random(2);
    Workload::new("uniform", (0..ACCESSES).map(|_| random.below(20_000)))
}

fn one_loop() -> Workload {
    Workload::new("loop", (0..ACCESSES as u64).map(|at| at % 20_000))
}

/// Loops of several lengths, one after another, as a program's phases.
fn several_loops() -> Workload {
    let mut random = Random(3);
    let mut pages = Vec::new();
    while pages.len() < ACCESSES {
        let kind = random.below(4);
        let length = [500, 2_000, 6_000, 12_000][kind as usize];
        (0..40_000 / length).for_each(|_| pages.extend((0..length).map(|at| kind * 100_000 + at)));
    }
    Workload::new("several loops", pages)
}

/// Points, and now and then a scan over other pages, each of which is read so many times in a row.
fn scans(name: &str, reads_of_a_page: u64) -> Workload {
    let (zipf, mut random) = (Zipf::new(30_000, 0.9), Random(4));
    let mut pages = Vec::new();
    let mut scan = 0;
    while pages.len() < ACCESSES {
        pages.extend((0..40_000).map(|_| zipf.draw(&mut random)));
        // A third of the table, the next third the next time; points go on beside it.
        for page in scan..scan + 10_000 {
            for _ in 0..reads_of_a_page {
                pages.push(1_000_000 + page % 30_000);
            }
            pages.push(zipf.draw(&mut random));
        }
        scan += 10_000;
    }
    Workload::new(name, pages)
}

/// A tree of a root, 200 inner nodes and 40,000 leaves with 50 keys each. Every operation goes down from the root; some
/// go on through 100 leaves, reading every row of them by itself.
fn tree(name: &str, skew: Option<f64>, ranges_percent: u64) -> Workload {
    const LEAVES: u64 = 40_000;
    const KEYS: u64 = LEAVES * 50;
    let zipf = skew.map(|skew| Zipf::new(KEYS as usize, skew));
    let mut random = Random(5);
    let mut pages = Vec::new();
    while pages.len() < ACCESSES {
        let key = match &zipf {
            // Hot keys lie scattered.
            Some(zipf) => Random(zipf.draw(&mut random)).below(KEYS),
            None => random.below(KEYS),
        };
        let leaf = key / 50;
        let down = |leaf: u64| [u64::MAX, 1_000_000 + leaf / 200, leaf];
        pages.extend(down(leaf));
        if random.below(100) < ranges_percent {
            for leaf in leaf + 1..(leaf + 100).min(LEAVES) {
                if leaf % 200 == 0 {
                    pages.push(1_000_000 + leaf / 200);
                }
                pages.extend([leaf; 50]);
            }
        }
    }
    Workload::new(name, pages)
}

/// Nine of ten accesses go to a hot set, which is another one every so often.
fn shifting(name: &str, every: usize) -> Workload {
    let mut random = Random(6);
    let accesses = (0..ACCESSES).map(|at| {
        let hot = (at / every) as u64 * 7_919;
        if random.below(10) < 9 { (hot + random.below(2_000)) % 40_000 } else { random.below(40_000) }
    });
    Workload::new(name, accesses.collect::<Vec<_>>())
}

/// A hot window that moves on page by page.
fn drifting() -> Workload {
    let mut random = Random(7);
    let accesses = (0..ACCESSES as u64).map(|at| at / 30 + random.below(2_000).min(random.below(2_000)));
    Workload::new("drifting", accesses.collect::<Vec<_>>())
}

/// New pages are written all the time, and the newer a page, the likelier it is read.
fn latest() -> Workload {
    let (zipf, mut random) = (Zipf::new(30_000, 0.99), Random(8));
    let mut newest = 30_000;
    let accesses = (0..ACCESSES).map(|_| {
        if random.below(20) == 0 {
            newest += 1;
            return newest;
        }
        newest - zipf.draw(&mut random)
    });
    Workload::new("latest", accesses.collect::<Vec<_>>())
}

/// The next page is drawn by how many others were accessed since it was: the best case of LRU.
fn stack_distance() -> Workload {
    let (zipf, mut random) = (Zipf::new(8_000, 0.8), Random(9));
    let mut stack: Vec<u64> = (0..8_000).rev().collect();
    let accesses = (0..ACCESSES / 2).map(|_| {
        let page = stack.remove(stack.len() - 1 - zipf.draw(&mut random) as usize);
        stack.push(page);
        page
    });
    Workload::new("stack distance", accesses.collect::<Vec<_>>())
}

/// One trace: a number a line, in gzip.
fn recorded(path: &Path) -> std::io::Result<Workload> {
    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(path)?).read_to_string(&mut text)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let numbers: Result<Vec<u64>, _> = text.lines().map(str::parse).collect();
    let numbers = numbers.map_err(|error| std::io::Error::other(format!("{}: {error}", path.display())))?;
    Ok(Workload::new(name.trim_end_matches(".txt.gz"), numbers))
}

/// All that were recorded in a folder.
pub(crate) fn traces(folder: &Path) -> std::io::Result<Vec<Workload>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        paths.push(entry?.path());
    }
    paths.retain(|path| path.to_string_lossy().ends_with(".txt.gz"));
    paths.sort();
    paths.iter().map(|path| recorded(path)).collect()
}

/// All that are made up.
pub(crate) fn synthetic() -> Vec<Workload> {
    vec![
        zipf(0.6),
        zipf(0.8),
        zipf(0.99),
        zipf(1.2),
        uniform(),
        one_loop(),
        several_loops(),
        scans("scans and points", 1),
        scans("scans by row and points", 20),
        tree("tree, uniform keys", None, 0),
        tree("tree, zipf 0.99", Some(0.99), 0),
        tree("tree, zipf 0.8, ranges", Some(0.8), 1),
        shifting("hot set, shifts slowly", 100_000),
        shifting("hot set, shifts fast", 20_000),
        drifting(),
        latest(),
        stack_distance(),
    ]
}
