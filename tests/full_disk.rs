//! A full disk: filled until nothing more goes in, emptied, and filled again. A commit that only frees pages never fails
//! for want of space, if need be after a checkpoint; and what fails for it changes nothing.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use vellum::disk::{Disk, MemoryDisk};
use vellum::format::EntryKind;
use vellum::process::NoReaders;
use vellum::space::{FirstFit, SegmentFill};
use vellum::store::{
    Changes, Content, Durability, Entropy, NewSpace, PageChange, PageReader, SeededEntropy, Settings, Store,
    VerifyLevel,
};
use vellum::testing::page_bytes;
use vellum::{Error, PageId, SizeClass};

/// SplitMix64.
struct Random(SeededEntropy);

impl Random {
    fn next(&mut self) -> u64 {
        self.0.draw().unwrap()
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// A store in little space, with what it should hold.
struct Full {
    disk: Arc<MemoryDisk>,
    store: Store,
    settings: Settings,
    pages: BTreeMap<PageId, u64>,
    snapshots: BTreeMap<String, BTreeMap<PageId, u64>>,
    version: u64,
    refused: u64,
    random: Random,
}

/// A geometry that follows from a seed.
fn geometry(random: &mut Random) -> (Settings, u64) {
    let settings = Settings {
        log_segment_blocks: 4 + random.below(29) as u32,
        checkpoint_log_blocks: Some(16 + random.below(200)),
        in_log_blocks: random.below(9) as u32,
        growth_blocks: 1 + random.below(40),
        segment_blocks: 4 << random.below(7),
        cached_nodes: 512,
        strategy: match random.below(2) {
            0 => || Box::<FirstFit>::default(),
            _ => || Box::<SegmentFill>::default(),
        },
        ..Settings::default()
    };
    // Room for the log, two checkpoints, and some pages.
    let blocks = 120 + 6 * u64::from(settings.log_segment_blocks) + random.below(900);
    (settings, blocks)
}

impl Full {
    fn new(seed: u64) -> Self {
        let mut random = Random(SeededEntropy(seed));
        let (mut settings, blocks) = geometry(&mut random);
        // The limit is the disk's, or the settings'.
        let disk = match random.below(2) {
            0 => Arc::new(MemoryDisk::with_limit(blocks * 4096)),
            _ => {
                settings.blocks_limit = blocks;
                Arc::new(MemoryDisk::new())
            }
        };
        let shared: Arc<dyn Disk> = Arc::clone(&disk) as _;
        let entropy = Box::new(SeededEntropy(seed));
        let store = Store::create(shared, Arc::new(NoReaders), settings.clone(), entropy).unwrap();
        let (pages, snapshots) = (BTreeMap::new(), BTreeMap::new());
        Self { disk, store, settings, pages, snapshots, version: 0, refused: 0, random }
    }

    fn reopen(self) -> Self {
        let Self { disk, store, settings, pages, snapshots, version, refused, mut random } = self;
        drop(store);
        let shared: Arc<dyn Disk> = Arc::clone(&disk) as _;
        let entropy = Box::new(SeededEntropy(random.next()));
        let (store, _) = Store::open(shared, Arc::new(NoReaders), settings.clone(), entropy).unwrap();
        Self { disk, store, settings, pages, snapshots, version, refused, random }
    }

    fn checkpoint_if_due(&mut self) {
        if self.store.checkpoint_due() {
            match self.store.checkpoint() {
                Ok(_) => {}
                Err(error) if error.is_no_space() => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn page(&mut self, indices: u64) -> PageId {
        PageId::new(SizeClass::new(12 + self.random.below(4) as u8).unwrap(), self.random.below(indices)).unwrap()
    }

    /// Writes up to so many pages; whether there was space.
    fn write(&mut self, pages_most: u64) -> bool {
        let (mut changes, mut after) = (Changes::default(), self.pages.clone());
        for _ in 0..1 + self.random.below(pages_most) {
            let page = self.page(400);
            self.version += 1;
            let mut bytes = vec![0; page.class().page_bytes() as usize];
            page_bytes(page, self.version, 0, &mut bytes);
            changes.pages.insert(page, PageChange::Whole(bytes.into()));
            after.insert(page, self.version);
        }
        let durability = if self.random.below(4) == 0 { Durability::Deferred } else { Durability::Durable };
        match self.store.commit(&changes, durability) {
            Ok(_) => {
                self.pages = after;
                self.checkpoint_if_due();
                true
            }
            Err(Error::NoSpace { .. }) => {
                self.refused += 1;
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Writes until there is no space, and then until there is none after a checkpoint either; ever less at a time.
    fn fill(&mut self) {
        for pages_most in [8, 8, 1, 1] {
            while self.write(pages_most) {}
            let _ = self.store.checkpoint();
        }
    }

    /// Blocks of the pages.
    fn blocks(&self) -> u64 {
        self.pages.keys().map(|page| page.class().page_blocks()).sum()
    }

    /// Commits what only frees. It may want a checkpoint first, never more.
    fn commit_free(&mut self, changes: &Changes) -> Result<(), String> {
        let mut errors = Vec::new();
        for _ in 0..3 {
            match self.store.commit(changes, Durability::Durable) {
                Ok(_) => return Ok(()),
                Err(error) if error.is_no_space() => errors.push(error.to_string()),
                Err(error) => return Err(error.to_string()),
            }
            if let Err(error) = self.store.checkpoint() {
                errors.push(format!("checkpoint: {error}"));
            }
        }
        Err(errors.join("; "))
    }

    /// Frees everything, a few pages at a time.
    fn empty(&mut self) -> Result<(), String> {
        for name in self.snapshots.keys().cloned().collect::<Vec<_>>() {
            let mut removed = self.store.remove_name(&name);
            for _ in 0..2 {
                if removed.as_ref().is_err_and(Error::is_no_space) {
                    let _ = self.store.checkpoint();
                    removed = self.store.remove_name(&name);
                }
            }
            removed.map_err(|error| format!("removing a snapshot: {error}"))?;
            self.snapshots.remove(&name);
        }
        while !self.pages.is_empty() {
            let mut changes = Changes::default();
            let count = 1 + self.random.below(20) as usize;
            let batch: Vec<PageId> = self.pages.keys().copied().take(count).collect();
            changes.pages = batch.iter().map(|page| (*page, PageChange::Free)).collect();
            self.commit_free(&changes).map_err(|error| format!("{} pages left: {error}", self.pages.len()))?;
            self.pages.retain(|page, _| !batch.contains(page));
            self.checkpoint_if_due();
        }
        Ok(())
    }

    fn snapshot(&mut self) {
        let name = format!("s{}", self.version);
        match self.store.name_state(EntryKind::Snapshot, &name, "", 0) {
            Ok(_) => drop(self.snapshots.insert(name, self.pages.clone())),
            Err(error) if error.is_no_space() => {}
            Err(Error::InvalidName { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn check(&mut self) -> Result<(), String> {
        self.store.release().map_err(|error| error.to_string())?;
        let report = self.store.verify(VerifyLevel::Full, &mut |_| {}).map_err(|error| error.to_string())?;
        if let Some(finding) = report.findings.first() {
            return Err(finding.message.clone());
        }
        let (state, nodes) = (self.store.state(), self.store.nodes());
        for (page, version) in &self.pages {
            let pointer = state.pointer(nodes, *page).map_err(|error| error.to_string())?;
            let mut bytes = vec![0; page.class().page_bytes() as usize];
            let mut expected = bytes.clone();
            PageReader::new(nodes).read(*page, &pointer, 0, &mut bytes).map_err(|error| error.to_string())?;
            page_bytes(*page, *version, 0, &mut expected);
            if bytes != expected {
                return Err(format!("page {page} has other bytes"));
            }
        }
        Ok(())
    }
}

fn rounds(seed: u64, snapshots: bool) -> Result<u64, String> {
    let mut full = Full::new(seed);
    let mut filled = Vec::new();
    for round in 0..6 {
        full.fill();
        filled.push(full.blocks());
        if snapshots {
            full.snapshot();
            full.fill();
        }
        full.check().map_err(|message| format!("round {round}, full: {message}"))?;
        if full.random.below(2) == 0 {
            full = full.reopen();
            full.check().map_err(|message| format!("round {round}, reopened: {message}"))?;
        }
        if snapshots && full.random.below(2) == 0 {
            full.snapshot();
        }
        full.empty().map_err(|message| {
            format!(
                "round {round}, filled with {filled:?} blocks: {message}; {:?}; {:?}",
                full.store.status(),
                full.settings
            )
        })?;
        full.check().map_err(|message| format!("round {round}, empty: {message}"))?;
        // Two checkpoints let everything go that is dead.
        for _ in 0..2 {
            let folded = full.store.checkpoint().map(drop);
            folded.map_err(|error| format!("round {round}, empty: {error}; {:?}", full.store.status()))?;
            let mut changes = Changes::default();
            changes.header = Some(vec![round]);
            let committed = full.store.commit(&changes, Durability::Durable);
            committed.map_err(|error| format!("round {round}, empty: {error}"))?;
        }
    }
    // Nothing leaks: the last filling held about as much as the first; how much depends on where the log lies.
    let log = 4 * u64::from(full.settings.log_segment_blocks);
    match filled[filled.len() - 1] * 2 + log >= filled[0] {
        true => Ok(full.refused),
        false => Err(format!("ever less fits: {filled:?} {:?}", full.store.status())),
    }
}

fn all(snapshots: bool) {
    let seeds = std::env::var("VELLUM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = seeds.map_or(0..60, |seed: u64| seed..seed + 1);
    let mut failures = Vec::new();
    let mut refused = 0;
    for seed in seeds {
        match rounds(seed, snapshots) {
            Ok(count) => refused += count,
            Err(message) => failures.push(format!("seed {seed}: {message}")),
        }
    }
    println!("{refused} commits refused for want of space");
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
    assert!(refused > 0);
}

#[test]
fn a_full_store_can_always_be_emptied() {
    all(false);
}

#[test]
fn a_full_store_with_snapshots_can_always_be_emptied() {
    all(true);
}

const LEAF_BLOCKS: u64 = 32768;

/// A store in a file of so many leaves of the bitmap, in which single blocks far apart are free, and no more in a row than
/// the store keeps for itself.
fn in_single_blocks(leaves: u64, mib_between: usize) -> Store {
    let settings = Settings {
        new_space: NewSpace::Obtained,
        growth_blocks: leaves * LEAF_BLOCKS - 600,
        blocks_limit: leaves * LEAF_BLOCKS,
        log_segment_blocks: 16,
        in_log_blocks: 0,
        ..Settings::default()
    };
    let disk = Arc::new(MemoryDisk::new());
    let mut store = Store::create(disk, Arc::new(NoReaders), settings, Box::new(SeededEntropy(1))).unwrap();
    write_first(&mut store).unwrap();
    store.checkpoint().unwrap();
    // All other space is somebody's: here it is reserved, which takes less time than to write it.
    let mib = vec![1; 1 << 20];
    let mut single = Vec::new();
    for blocks in [256, 16, 1] {
        let long = Content::from(&mib[..blocks * 4096]);
        let one = Content::from(&mib[..4096]);
        while let Ok(reserved) = store.reserve(&mut [vec![long.clone(); mib_between], vec![one.clone()]].concat()) {
            single.extend(reserved.last().copied().filter(|_| blocks == 256));
        }
    }
    for one in single {
        store.give_back_reserved(one).unwrap();
    }
    // What is free in a row is taken instead.
    while let Some(longest) =
        store.free_extents().unwrap().iter().map(|extent| extent.blocks).max().filter(|it| *it > 1)
    {
        let bytes = vec![1; longest.min(256) as usize * 4096];
        if store.reserve(&mut [Content::from(&bytes[..])]).is_err() {
            break;
        }
    }
    store
}

fn first_page() -> PageId {
    PageId::new(SizeClass::new(12).unwrap(), 0).unwrap()
}

fn write_first(store: &mut Store) -> Result<(), Error> {
    let mut changes = Changes::default();
    changes.pages.insert(first_page(), PageChange::Whole(vec![1; 4096].into()));
    store.commit(&changes, Durability::Durable).map(drop)
}

/// A checkpoint writes each leaf of the bitmap that one of its homes lies in.
#[test]
fn a_checkpoint_has_room_in_single_blocks_of_many_leaves() {
    for (count, mib_between) in [(128, 127), (48, 63)] {
        let mut store = in_single_blocks(count, mib_between);
        let free = store.free_extents().unwrap();
        let leaves: BTreeSet<u64> = free.iter().map(|extent| extent.start.0 / LEAF_BLOCKS).collect();
        let single = free.iter().filter(|extent| extent.blocks == 1).count();
        println!(
            "{} free extents, {single} of one block, in {} leaves; {:?}",
            free.len(),
            leaves.len(),
            store.status()
        );
        assert!(leaves.len() as u64 > count - 8 && single as u64 > count - 8);
        let mut committed = 0;
        for _ in 0..10 {
            match write_first(&mut store) {
                Ok(()) => committed += 1,
                Err(error) => assert!(error.is_no_space(), "{error}"),
            }
            let checkpoint = store.checkpoint();
            checkpoint.unwrap_or_else(|error| panic!("after {committed} commits: {error}"));
        }
        println!("{committed} commits");
        let mut changes = Changes::default();
        changes.pages.insert(first_page(), PageChange::Free);
        store.commit(&changes, Durability::Durable).unwrap();
        // There was one page, and there is nothing else to free.
        let checkpoint = store.checkpoint().map(drop);
        assert!(checkpoint.is_ok() || checkpoint.as_ref().is_err_and(Error::is_no_space), "{checkpoint:?}");
    }
}
