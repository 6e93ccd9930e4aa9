//! How allocation strategies age: `cargo bench --bench space`, with `-- quick` only on a small file, with `-- uniform`,
//! `mixed`, `growth`, `cleaned` or `search` only those tables.
//!
//! Every table holds all strategies, aged side by side under the same overwrites; times are medians of interleaved
//! rounds. A *write* is a contiguous run of a commit's blocks, after sorting. Printed as Markdown.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vellum::space::{
    FirstFit, LEAF_BLOCKS, LeafBytes, LeafSource, LeafState, Purpose, Request, SEGMENT_BLOCKS, SegmentUsage, Space,
    built_in,
};
use vellum::{Block, Extent, Result};

/// Every live block is overwritten this often before anything is measured.
const AGEING: usize = 3;
/// Short rounds, most of which nothing else on the machine interrupts.
const ROUNDS: usize = 200;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_asked = |word: &str| arguments.iter().any(|argument| argument == word);
    let tables: Vec<&str> =
        ["uniform", "mixed", "growth", "cleaned", "search"].into_iter().filter(|table| is_asked(table)).collect();
    let is_wanted = |table: &str| tables.is_empty() || tables.contains(&table);
    let sizes: &[u32] = match (is_asked("--bench"), is_asked("quick")) {
        (true, false) => &[18, 20],
        (true, true) => &[18],
        // As a test: that it runs at all.
        (false, _) => &[13],
    };
    for &log2 in sizes {
        if is_wanted("uniform") {
            uniform(log2, 8)?;
            uniform(log2, 64)?;
        }
        if is_wanted("mixed") {
            mixed(log2)?;
        }
    }
    if is_wanted("growth") {
        contiguous(sizes[0])?;
    }
    if is_wanted("cleaned") {
        cleaned(sizes[0])?;
    }
    if is_wanted("search") {
        one_run_among_many()?;
    }
    Ok(())
}

/// Uniform overwrites of pages of one block, in a file that does not grow.
fn uniform(log2: u32, commit: usize) -> Result<()> {
    println!("\n### Uniform overwrites, 2^{log2} blocks, commits of {commit} pages of one block\n");
    println!("| strategy | fill | ns/block allocated | ns/block released | writes/commit | µs/commit |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for fill in [70, 75, 80, 90] {
        let live = (1usize << log2) * fill / 100;
        let mut stores = aged(1 << log2, &vec![1; live], |store| store.overwrite(commit, Answer::Pieces))?;
        let rounds = measure(&mut stores, live / commit, |store| store.overwrite(commit, Answer::Pieces))?;
        for (store, rounds) in stores.iter().zip(&rounds) {
            let allocated = median(rounds.iter().map(|tally| tally.allocating.as_nanos() as f64 / tally.blocks as f64));
            let released = median(rounds.iter().map(|tally| tally.releasing.as_nanos() as f64 / tally.blocks as f64));
            let writes = median(rounds.iter().map(|tally| tally.writes as f64 / tally.commits as f64));
            let device = median(rounds.iter().map(Tally::device_microseconds));
            let name = store.space.strategy_name();
            println!("| {name} | {fill} % | {allocated:.0} | {released:.0} | {writes:.2} | {device:.0} |");
        }
    }
    Ok(())
}

/// Overwrites of pages of 1 to 256 blocks, each size with the same share of the blocks; each page is one extent. The file
/// grows by a hundredth when there is no room.
fn mixed(log2: u32) -> Result<()> {
    println!("\n### Pages of 1 to 256 blocks, 2^{log2} blocks, commits of 8 pages, the file grows when it must\n");
    println!("| strategy | fill | ns/page allocated | writes/commit | growth |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    for fill in [70, 75, 80, 90] {
        let sizes = sizes_of((1u64 << log2) * fill / 100);
        let mut stores = aged(1 << log2, &sizes, |store| store.overwrite(8, Answer::PageByPage))?;
        let rounds = measure(&mut stores, sizes.len() / 8, |store| store.overwrite(8, Answer::PageByPage))?;
        for (store, rounds) in stores.iter().zip(&rounds) {
            let allocated =
                median(rounds.iter().map(|tally| tally.allocating.as_nanos() as f64 / (tally.commits * 8) as f64));
            let writes = median(rounds.iter().map(|tally| tally.writes as f64 / tally.commits as f64));
            let name = store.space.strategy_name();
            println!("| {name} | {fill} % | {allocated:.0} | {writes:.2} | {:.1} % |", store.growth_percent());
        }
    }
    Ok(())
}

/// What it costs to have every commit in one write: how much the file grows if it may.
fn contiguous(log2: u32) -> Result<()> {
    println!("\n### Growth if every commit is to be one write, 2^{log2} blocks\n");
    println!("| strategy | fill | commits of 8 | commits of 64 |");
    println!("| --- | ---: | ---: | ---: |");
    for fill in [70, 75, 80, 90] {
        let sizes = vec![1; (1usize << log2) * fill / 100];
        let eights = aged(1 << log2, &sizes, |store| store.overwrite(8, Answer::OneExtent))?;
        let many = aged(1 << log2, &sizes, |store| store.overwrite(64, Answer::OneExtent))?;
        for (eights, many) in eights.iter().zip(&many) {
            let name = eights.space.strategy_name();
            println!("| {name} | {fill} % | {:.1} % | {:.1} % |", eights.growth_percent(), many.growth_percent());
        }
    }
    Ok(())
}

/// Beside a cleaner that keeps one segment in fifty free, by moving what is left of the emptiest as long as that is worth
/// it.
fn cleaned(log2: u32) -> Result<()> {
    println!("\n### Beside a cleaner, 2^{log2} blocks\n");
    println!("| strategy | fill | commit | writes/commit | moved/written | blocks/move | µs/commit | growth |");
    println!("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |");
    for fill in [50, 70, 75, 80, 90] {
        let live = (1usize << log2) * fill / 100;
        let ones = vec![1; live];
        for (sizes, commit, answer, what) in [
            (&ones, 8, Answer::Pieces, "8 of one block"),
            (&ones, 64, Answer::Pieces, "64 of one block"),
            (&sizes_of(live as u64), 8, Answer::PageByPage, "8 of 1 to 256"),
        ] {
            let step = |store: &mut Store| {
                store.clean()?;
                store.overwrite(commit, answer)
            };
            for store in &mut aged(1 << log2, sizes, step)? {
                store.tally = Tally::default();
                while store.tally.blocks < live {
                    step(store)?;
                }
                let (tally, growth) = (store.tally, store.growth_percent());
                let name = store.space.strategy_name();
                let writes = tally.writes as f64 / tally.commits as f64;
                let moved = tally.moved as f64 / tally.blocks as f64;
                let length = tally.moved as f64 / tally.move_writes.max(1) as f64;
                let device = tally.device_microseconds();
                println!(
                    "| {name} | {fill} % | {what} | {writes:.2} | {moved:.2} | {length:.1} | {device:.0} | {growth:.1} % |"
                );
            }
        }
    }
    Ok(())
}

/// The only run of 1024 free blocks, in the last of the 8192 leaves of a terabyte that is 75 % full.
fn one_run_among_many() -> Result<()> {
    const LEAVES: u64 = 8192;
    struct Synthetic;
    impl LeafSource for Synthetic {
        fn load(&self, leaf: u64) -> Result<Box<LeafBytes>> {
            let mut bytes = Box::new([0xd7; 4096]);
            if leaf == LEAVES - 1 {
                bytes[3000..3128].fill(0);
            }
            Ok(bytes)
        }
    }
    let free = LEAVES * 8192 + 128 * 6;
    let leaves = vec![LeafState::Stored; LEAVES as usize];
    let total = LEAVES * u64::from(LEAF_BLOCKS);
    let mut space =
        Space::from_persisted(total, SEGMENT_BLOCKS, Box::new(FirstFit), leaves, Arc::new(Synthetic), free)?;
    println!("\n### One run of 1024 blocks among 2^28, in the last leaf\n");
    println!("| search | time |");
    println!("| --- | ---: |");
    let started = Instant::now();
    let run = space.free_space().next_run(Block(0), 1024)?;
    println!("| the first, which loads and looks at every leaf | {:.1} ms |", started.elapsed().as_secs_f64() * 1e3);
    let mut times: Vec<f64> = Vec::new();
    for round in 0..10_000u64 {
        // A change in some other leaf between searches.
        let block = Extent::new((round * 7919 % LEAVES) * u64::from(LEAF_BLOCKS), 1);
        space.release(block)?;
        let started = Instant::now();
        assert_eq!(black_box(space.free_space().next_run(Block(0), 1024)?), run);
        times.push(started.elapsed().as_nanos() as f64);
        space.take(block)?;
    }
    println!("| every later one, median | {:.0} ns |", median(times.into_iter()));
    Ok(())
}

/// How a commit asks for its space.
#[derive(Clone, Copy)]
enum Answer {
    /// As few extents as there are, for all of it.
    Pieces,
    /// One extent for each page.
    PageByPage,
    /// One extent for all of it.
    OneExtent,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    commits: usize,
    blocks: usize,
    writes: usize,
    moved: usize,
    move_writes: usize,
    allocating: Duration,
    releasing: Duration,
}

impl Tally {
    /// What the device would take for a commit and the moves beside it: 3 microseconds for a block, and 10 more for each
    /// write, as one was measured with scattered and with contiguous writes.
    fn device_microseconds(&self) -> f64 {
        let (writes, blocks) = (self.writes + self.move_writes, self.blocks + self.moved);
        (10 * writes + 3 * blocks) as f64 / self.commits as f64
    }
}

/// Pages and where they lie: what a store would be to its space.
struct Store {
    space: Space,
    pages: Vec<Extent>,
    /// The page that lies at each block.
    owners: Vec<u32>,
    blocks_at_first: u64,
    random: Random,
    tally: Tally,
}

/// A store for each strategy, filled with pages of these sizes, and aged by `step`.
fn aged(blocks: u64, sizes: &[u32], step: impl Fn(&mut Store) -> Result<()>) -> Result<Vec<Store>> {
    built_in()
        .into_iter()
        .map(|strategy| {
            let mut store = Store {
                space: Space::new(blocks, SEGMENT_BLOCKS, strategy),
                pages: vec![Extent::default(); sizes.len()],
                owners: vec![u32::MAX; blocks as usize],
                blocks_at_first: blocks,
                random: Random(0x9e37_79b9_7f4a_7c15),
                tally: Tally::default(),
            };
            for (page, &size) in sizes.iter().enumerate() {
                let extent = store.allocate(&Request::exactly(size, Purpose::Data))?;
                store.place(page, extent);
            }
            let overwrites = AGEING * sizes.iter().map(|&size| size as usize).sum::<usize>();
            while store.tally.blocks < overwrites {
                step(&mut store)?;
            }
            Ok(store)
        })
        .collect()
}

/// What each store does in each of the rounds, which take turns, and together have so many steps a store.
fn measure(stores: &mut [Store], steps: usize, step: impl Fn(&mut Store) -> Result<()>) -> Result<Vec<Vec<Tally>>> {
    let mut rounds = vec![Vec::new(); stores.len()];
    for _ in 0..ROUNDS {
        for (store, rounds) in stores.iter_mut().zip(&mut rounds) {
            store.tally = Tally::default();
            for _ in 0..steps.div_ceil(ROUNDS) {
                step(store)?;
            }
            rounds.push(store.tally);
        }
    }
    Ok(rounds)
}

impl Store {
    /// One commit that overwrites as many random pages.
    fn overwrite(&mut self, commit: usize, answer: Answer) -> Result<()> {
        let mut pages: Vec<usize> = Vec::with_capacity(commit);
        while pages.len() < commit {
            let page = self.random.below(self.pages.len());
            if !pages.contains(&page) {
                pages.push(page);
            }
        }
        let mut extents = Vec::with_capacity(commit);
        let started = Instant::now();
        match answer {
            Answer::PageByPage => {
                for &page in &pages {
                    let request = Request::exactly(self.pages[page].blocks, Purpose::Data);
                    extents.push(self.allocate(&request)?);
                }
            }
            Answer::OneExtent => extents.push(self.allocate(&Request::exactly(commit as u32, Purpose::Data))?),
            Answer::Pieces => {
                let mut missing = commit as u32;
                while missing > 0 {
                    let extent = self.allocate(&Request::up_to(missing, Purpose::Data))?;
                    missing -= extent.blocks;
                    extents.push(extent);
                }
            }
        }
        self.tally.allocating += started.elapsed();
        self.tally.commits += 1;
        self.tally.blocks += extents.iter().map(|extent| extent.blocks as usize).sum::<usize>();
        let old: Vec<Extent> = pages.iter().map(|&page| self.pages[page]).collect();
        let mut rest = extents.iter().copied();
        let mut extent = Extent::default();
        for (page, old) in pages.into_iter().zip(&old) {
            if extent.is_empty() {
                extent = rest.next().unwrap_or_default();
            }
            let (place, behind) = extent.split_at(old.blocks);
            self.place(page, place);
            extent = behind;
        }
        let started = Instant::now();
        for old in old {
            self.space.release(old)?;
        }
        self.tally.releasing += started.elapsed();
        self.tally.writes += writes(&mut extents);
        Ok(())
    }

    /// Moves what is in the emptiest segments, until enough are wholly free.
    fn clean(&mut self) -> Result<()> {
        let wanted = self.blocks_at_first / u64::from(SEGMENT_BLOCKS) / 50;
        // At most four at a time: with a strategy that fills what was just emptied it would go on for ever.
        for _ in 0..4 {
            let emptiest = self.space.segments_to_empty(1)?.first().copied();
            let Some(usage) = emptiest.filter(SegmentUsage::is_worth_emptying) else { break };
            if self.space.free_space().segments_free() >= wanted {
                break;
            }
            let whole = self.space.free_space().segment_extent(usage.segment);
            let holes = self.space.close_segment(usage.segment)?;
            let in_use = |block: &u64| holes.iter().all(|hole| !hole.contains(Block(*block)));
            let mut pages: Vec<usize> = (whole.start.0..whole.end().0)
                .filter(in_use)
                .map(|block| self.owners[block as usize] as usize)
                .collect();
            pages.dedup();
            let mut targets = Vec::new();
            for page in pages {
                let source = self.pages[page];
                let target = self.allocate(&Request::exactly(source.blocks, Purpose::Moved))?;
                self.place(page, target);
                self.space.release(source)?;
                self.tally.moved += source.blocks as usize;
                targets.push(target);
            }
            for hole in holes {
                self.space.release(hole)?;
            }
            self.tally.move_writes += writes(&mut targets);
        }
        Ok(())
    }

    fn allocate(&mut self, request: &Request) -> Result<Extent> {
        loop {
            if let Some(extent) = self.space.allocate(request)? {
                return Ok(extent);
            }
            self.space.grow(self.space.blocks_total() + self.blocks_at_first / 100)?;
            self.owners.resize(self.space.blocks_total() as usize, u32::MAX);
        }
    }

    fn place(&mut self, page: usize, extent: Extent) {
        self.pages[page] = extent;
        self.owners[extent.start.0 as usize..extent.end().0 as usize].fill(page as u32);
    }

    fn growth_percent(&self) -> f64 {
        (self.space.blocks_total() as f64 / self.blocks_at_first as f64 - 1.0) * 100.0
    }
}

/// Sizes of 1 to 256 blocks, each with the same share of `blocks`, in random order.
fn sizes_of(blocks: u64) -> Vec<u32> {
    let share = blocks / 9;
    let mut sizes: Vec<u32> =
        (0..9).flat_map(|log2| std::iter::repeat_n(1 << log2, (share >> log2) as usize)).collect();
    let mut random = Random(7);
    for at in (1..sizes.len()).rev() {
        sizes.swap(at, random.below(at + 1));
    }
    sizes
}

/// How many contiguous runs the extents make up.
fn writes(extents: &mut [Extent]) -> usize {
    extents.sort();
    extents.len() - extents.windows(2).filter(|pair| pair[0].end() == pair[1].start).count()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// xorshift64*
#[derive(Clone, Copy)]
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit as u64) as usize
    }
}
