//! The suite that every strategy has to pass, those of users too.
//!
//! Each check drives a [`Space`] with the strategy beside a plain list of booleans. What a strategy has to keep to is in
//! the documentation of [`AllocationStrategy`]; each check's name is one claim of it.

use std::sync::Arc;

use super::{AllocationStrategy, LEAF_BLOCKS, LeafBytes, LeafSource, LeafState, Purpose, Request, Space};
use crate::error::{Error, Result};
use crate::id::{Block, Extent};

/// What a strategy did that it may not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{check} (seed {seed}): {found}")]
pub struct Violation {
    /// The claim that does not hold.
    pub check: &'static str,
    /// The seed of the random numbers, which replays the check.
    pub seed: u64,
    /// What was found instead.
    pub found: String,
}

type Outcome = Result<(), String>;
type Check = (&'static str, fn(&mut Trial) -> Outcome);

const CHECKS: [Check; 9] = [
    ("an empty space gives every length", empty_space),
    ("single blocks fill the space to the last", single_blocks_fill_the_space),
    ("holes of one block are found, and nothing longer", alternate_blocks),
    ("extents keep to minimum and multiple", minimum_and_multiple),
    ("blocks of a file that grew are used, those of one that was cut are not", growth_and_cut),
    ("extents taken and released behind its back are noticed", taken_and_released_elsewhere),
    ("random use finds what there is", random_use),
    ("leaves that are not in memory are used", lazy_leaves),
    ("an error of the disk is passed on, and survived", failing_source),
];

/// Runs every check, each with several segment sizes and seeds, on strategies that `make` makes.
///
/// # Errors
/// The first violation.
pub fn conformance(make: impl Fn() -> Box<dyn AllocationStrategy>) -> Result<(), Violation> {
    for (check, run) in CHECKS {
        for seed in 1..=12 {
            let segment_blocks = [4, 64, 256, LEAF_BLOCKS][seed as usize % 4];
            let mut trial = Trial { make: &make, random: Random(seed), segment_blocks };
            run(&mut trial).map_err(|found| Violation { check, seed, found })?;
        }
    }
    Ok(())
}

/// What a check works with.
struct Trial<'a> {
    make: &'a dyn Fn() -> Box<dyn AllocationStrategy>,
    random: Random,
    segment_blocks: u32,
}

/// A small generator of random numbers (xorshift64*), so that a seed replays everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit.max(1)
    }

    fn request(&mut self, blocks_limit: u64) -> Request {
        let multiple = 1 << self.below(4);
        let wanted = 1 + self.below(blocks_limit) as u32;
        let blocks = wanted.next_multiple_of(multiple);
        let minimum = [1, blocks, 1 + self.below(blocks.into()) as u32][self.below(3) as usize];
        let minimum = if minimum.next_multiple_of(multiple) > blocks { blocks } else { minimum };
        Request { blocks, minimum, multiple, purpose: Purpose::ALL[self.below(4) as usize] }
    }
}

/// A space, and what should be in it.
struct Twin {
    space: Space,
    used: Vec<bool>,
    is_complete: bool,
}

impl Twin {
    fn new(trial: &Trial<'_>, blocks_total: u64) -> Self {
        let strategy = (trial.make)();
        let is_complete = strategy.is_complete();
        let space = Space::new(blocks_total, trial.segment_blocks, strategy);
        Self { space, used: vec![false; blocks_total as usize], is_complete }
    }

    /// A space whose leaves are all stored, of which `used` says what is in use.
    fn stored(trial: &Trial<'_>, used: Vec<bool>, failures: u32) -> Result<Self, String> {
        let leaves: Vec<_> = used.chunks(LEAF_BLOCKS as usize).map(leaf_bytes).collect();
        let strategy = (trial.make)();
        let is_complete = strategy.is_complete();
        let states = vec![LeafState::Stored; leaves.len()];
        let blocks_free = used.iter().filter(|&&used| !used).count() as u64;
        let source = Arc::new(Leaves { leaves, failures: failures.into() });
        let total = used.len() as u64;
        let space = Space::from_persisted(total, trial.segment_blocks, strategy, states, source, blocks_free);
        Ok(Self { space: space.map_err(|error| error.to_string())?, used, is_complete })
    }

    /// Allocates, and holds the answer against the list.
    fn allocate(&mut self, request: &Request) -> Result<Option<Extent>, String> {
        let answer = self.space.allocate(request).map_err(|error| format!("{request:?}: {error}"))?;
        match answer {
            Some(extent) => self.set(extent, true)?,
            None => {
                let shortest = request.shortest();
                let found_by_all =
                    if self.is_complete || shortest == 1 { shortest } else { shortest.saturating_mul(4) };
                if let Some(run) = self.runs().find(|run| run.blocks >= found_by_all && shortest <= request.longest()) {
                    return Err(format!("{request:?}: nothing was proposed, while {run} are free"));
                }
            }
        }
        Ok(answer)
    }

    fn release(&mut self, extent: Extent) -> Outcome {
        self.space.release(extent).map_err(|error| error.to_string())?;
        self.set(extent, false)
    }

    fn take(&mut self, extent: Extent) -> Outcome {
        self.space.take(extent).map_err(|error| error.to_string())?;
        self.set(extent, true)
    }

    fn set(&mut self, extent: Extent, used: bool) -> Outcome {
        let range = extent.start.0 as usize..extent.end().0 as usize;
        let blocks = self.used.get_mut(range).ok_or_else(|| format!("{extent}: beyond the end"))?;
        if blocks.contains(&used) {
            return Err(format!("{extent}: the space gave or took them twice"));
        }
        blocks.fill(used);
        Ok(())
    }

    /// Runs of free blocks inside leaves.
    fn runs(&self) -> impl Iterator<Item = Extent> {
        self.used.chunks(LEAF_BLOCKS as usize).enumerate().flat_map(|(leaf, blocks)| {
            let base = leaf as u64 * u64::from(LEAF_BLOCKS);
            let mut at = 0;
            blocks.chunk_by(|a, b| a == b).filter_map(move |chunk| {
                let extent = Extent::new(base + at, chunk.len() as u32);
                at += chunk.len() as u64;
                (!chunk[0]).then_some(extent)
            })
        })
    }

    fn finish(mut self) -> Outcome {
        let expected: Vec<_> = self.runs().collect();
        let found = self.space.free_extents().map_err(|error| error.to_string())?;
        self.space.check_invariants().map_err(|error| error.to_string())?;
        if found == expected { Ok(()) } else { Err("the free blocks are not those that they should be".into()) }
    }
}

/// Stored leaves; the first `failures` loads fail.
struct Leaves {
    leaves: Vec<LeafBytes>,
    failures: std::sync::atomic::AtomicU32,
}

impl LeafSource for Leaves {
    fn load(&self, leaf: u64) -> Result<Box<LeafBytes>> {
        use std::sync::atomic::Ordering::Relaxed;
        if self.failures.fetch_update(Relaxed, Relaxed, |failures| failures.checked_sub(1)).is_ok() {
            return Err(Error::Closed);
        }
        self.leaves.get(leaf as usize).map(|bytes| Box::new(*bytes)).ok_or(Error::Closed)
    }
}

fn leaf_bytes(used: &[bool]) -> LeafBytes {
    let mut bytes = [0; 4096];
    for (byte, eight) in bytes.iter_mut().zip(used.chunks(8)) {
        *byte = eight.iter().rev().fold(0, |bits, &used| bits << 1 | u8::from(used));
    }
    bytes
}

fn empty_space(trial: &mut Trial<'_>) -> Outcome {
    for blocks in [1, 2, 3, 7, 64, 255, 256, 257, 1000, 4096, LEAF_BLOCKS - 1, LEAF_BLOCKS] {
        for purpose in Purpose::ALL {
            let total = 2 * u64::from(LEAF_BLOCKS) + trial.random.below(999);
            let mut twin = Twin::new(trial, total);
            let answer = twin.allocate(&Request::exactly(blocks, purpose))?;
            if answer.is_none() {
                return Err(format!("no {blocks} blocks in an empty space"));
            }
            twin.finish()?;
        }
    }
    Ok(())
}

fn single_blocks_fill_the_space(trial: &mut Trial<'_>) -> Outcome {
    let total = 3000 + trial.random.below(2000);
    let mut twin = Twin::new(trial, total);
    for block in 0..total {
        let purpose = Purpose::ALL[trial.random.below(4) as usize];
        if twin.allocate(&Request::exactly(1, purpose))?.is_none() {
            return Err(format!("gives up with {} of {total} blocks free", total - block));
        }
    }
    if let Some(extent) = twin.allocate(&Request::up_to(8, Purpose::Data))? {
        return Err(format!("{extent}: given by a full space"));
    }
    twin.finish()
}

fn alternate_blocks(trial: &mut Trial<'_>) -> Outcome {
    let mut twin = Twin::new(trial, 4000);
    for block in (0..4000).step_by(2) {
        twin.take(Extent::new(block, 1))?;
    }
    if let Some(extent) = twin.allocate(&Request::exactly(2, Purpose::Data))? {
        return Err(format!("{extent}: proposed where no two free blocks are neighbours"));
    }
    for _ in 0..2000 {
        if twin.allocate(&Request::up_to(8, Purpose::Data))?.is_none() {
            return Err("single free blocks are not found".into());
        }
    }
    twin.finish()
}

fn minimum_and_multiple(trial: &mut Trial<'_>) -> Outcome {
    let mut twin = Twin::new(trial, 6000);
    let mut at = 0;
    while at < 5900 {
        let run = 1 + trial.random.below(40);
        twin.take(Extent::new(at, 1))?;
        at += 1 + run;
    }
    // The twin holds every answer against the request's rules, by way of the space.
    for _ in 0..2000 {
        let request = trial.random.request(64);
        twin.allocate(&request)?;
    }
    twin.finish()
}

fn growth_and_cut(trial: &mut Trial<'_>) -> Outcome {
    let start = 500 + trial.random.below(2 * u64::from(LEAF_BLOCKS));
    let mut twin = Twin::new(trial, start);
    while twin.allocate(&Request::up_to(5000, Purpose::Data))?.is_some() {}
    for growth in [1, 77, 1000, u64::from(LEAF_BLOCKS)] {
        let before = twin.used.len() as u64;
        twin.space.grow(before + growth).map_err(|error| error.to_string())?;
        twin.used.resize((before + growth) as usize, false);
        let answer = twin.allocate(&Request::up_to(growth as u32, Purpose::Data))?;
        let Some(extent) = answer else { return Err(format!("{growth} new blocks are not used")) };
        twin.release(extent)?;
        if growth.is_multiple_of(2) {
            twin.space.shrink_to(before).map_err(|error| error.to_string())?;
            twin.used.truncate(before as usize);
        }
        while twin.allocate(&Request::up_to(300, Purpose::Node))?.is_some() {}
    }
    twin.finish()
}

fn taken_and_released_elsewhere(trial: &mut Trial<'_>) -> Outcome {
    let mut twin = Twin::new(trial, 4096);
    twin.allocate(&Request::exactly(4, Purpose::Data))?;
    for _ in 0..300 {
        let extent = Extent::new(trial.random.below(4000), 1 + trial.random.below(90) as u32);
        if twin.space.is_free(extent).map_err(|error| error.to_string())? {
            twin.take(extent)?;
        } else if twin.runs().all(|run| !run.overlaps(extent)) {
            twin.release(extent)?;
        }
        let request = trial.random.request(16);
        twin.allocate(&request)?;
    }
    twin.finish()
}

fn random_use(trial: &mut Trial<'_>) -> Outcome {
    let total = 2000 + trial.random.below(40_000);
    let mut twin = Twin::new(trial, total);
    let mut held: Vec<Extent> = Vec::new();
    for step in 0..4000 {
        let is_fuller = twin.space.blocks_free() < total / 5;
        if !held.is_empty() && (is_fuller || trial.random.below(5) < 2) {
            let extent = held.swap_remove(trial.random.below(held.len() as u64) as usize);
            // Sometimes only a part, so that holes of every length come to be.
            let (released, kept) = extent.split_at(1 + trial.random.below(extent.blocks.into()) as u32);
            twin.release(released)?;
            held.extend((!kept.is_empty()).then_some(kept));
        } else {
            let limit = if step % 50 == 0 { total / 4 } else { 300 };
            let request = trial.random.request(limit);
            held.extend(twin.allocate(&request)?);
        }
    }
    twin.finish()
}

fn lazy_leaves(trial: &mut Trial<'_>) -> Outcome {
    let total = 3 * LEAF_BLOCKS as usize + trial.random.below(5000) as usize;
    let mut used: Vec<bool> = (0..total).map(|_| trial.random.below(100) < 97).collect();
    // One long run, in the last leaf that is whole.
    let run = Extent::new(2 * u64::from(LEAF_BLOCKS) + trial.random.below(20_000), 900);
    used[run.start.0 as usize..run.end().0 as usize].fill(false);
    let mut twin = Twin::stored(trial, used, 0)?;
    // Changes while no leaf is in memory: the long run is parted, and joined again.
    let middle = Extent { start: Block(run.start.0 + 450), blocks: 1 };
    twin.take(middle)?;
    twin.release(middle)?;
    if twin.allocate(&Request::exactly(225, Purpose::Data))?.is_none() {
        return Err(format!("{run} are not found"));
    }
    for _ in 0..500 {
        let request = trial.random.request(12);
        twin.allocate(&request)?;
    }
    twin.finish()
}

fn failing_source(trial: &mut Trial<'_>) -> Outcome {
    let mut used = vec![true; 2 * LEAF_BLOCKS as usize];
    used[40_000..40_100].fill(false);
    let mut twin = Twin::stored(trial, used, 3)?;
    let mut failures = 0;
    while let Err(error) = twin.space.allocate(&Request::exactly(25, Purpose::Data)) {
        failures += 1;
        if !matches!(error, Error::Closed) || failures > 3 {
            return Err(format!("not the disk's error, or one too many: {error}"));
        }
    }
    if failures < 3 {
        return Err(format!("{} errors of the disk were swallowed", 3 - failures));
    }
    let Some(run) = twin.space.free_extents().map_err(|error| error.to_string())?.first().copied() else {
        return Err("more was taken than was asked for".into());
    };
    let taken = 100 - twin.space.blocks_free();
    if taken == 25 { Ok(()) } else { Err(format!("{taken} blocks were taken instead of 25; {run} are free")) }
}
