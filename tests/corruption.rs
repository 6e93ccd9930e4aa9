//! Damage: every bit of a small store flipped in turn, every block zeroed, swapped with another, or as it once was.
//!
//! The outcome is a typed error (at the open, or of the page that is read; `verify` finds it too), or nothing at all:
//! never a wrong byte, never a panic. A block that an open reads is damaged before an open; any other cannot change
//! what an open does, so it is damaged under the store that stands open, and everything whose reading touches it is
//! read again, past the cache.
#![allow(clippy::unwrap_used)]

#[path = "corruption/judge.rs"]
mod judge;
#[path = "corruption/overlay.rs"]
mod overlay;
#[path = "corruption/sample.rs"]
mod sample;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use judge::{Outcome, is_typed, judge_page, judge_state, open, recovered, states};
use overlay::{BLOCK, Overlay};
use sample::Sample;
use vellum::disk::Disk;
use vellum::format::{SUPERBLOCK_BLOCKS, Superblock, slot_blocks};
use vellum::map::Nodes;
use vellum::store::{Severity, State, VerifyLevel};
use vellum::testing::ModelState;
use vellum::{Generation, PageId};

/// What came of the damage, counted.
#[derive(Debug, Default)]
struct Tally {
    tried: AtomicU64,
    refused: AtomicU64,
    detected: AtomicU64,
    without_effect: AtomicU64,
}

impl Tally {
    fn count(&self, counter: &AtomicU64) {
        self.tried.fetch_add(1, Ordering::Relaxed);
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn outcome(&self, outcome: Outcome) {
        self.count(match outcome {
            Outcome::Detected => &self.detected,
            Outcome::WithoutEffect => &self.without_effect,
        });
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        write!(f, "{} tried: {} refused at the open, ", count(&self.tried), count(&self.refused))?;
        write!(f, "{} detected in reading, {} without effect", count(&self.detected), count(&self.without_effect))
    }
}

/// Gives each item to one of as many threads as there are processors; panics if any of them failed.
fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) -> Result<(), String> + Sync) {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(message) = work(item) {
                        failed.lock().unwrap().get_or_insert(message);
                        return;
                    }
                }
            });
        }
    });
    if let Some(message) = failed.into_inner().unwrap() {
        panic!("{message}");
    }
}

/// A page as one state shows it, and the blocks that reading it touches.
struct Target {
    state: State,
    page: PageId,
    version: u64,
    blocks: BTreeSet<u64>,
}

/// A sample, and what an undamaged open of it does.
struct Stage {
    sample: Sample,
    expected: ModelState,
    opened: State,
    store_id: vellum::StoreId,
    read_at_open: BTreeSet<u64>,
    targets: Vec<Target>,
    live: Vec<u64>,
    /// What only the newest checkpoint leads to: its trees. The older slot and its longer log do without.
    newest_only: BTreeSet<u64>,
}

/// The blocks that anything reads if the newest superblock is lost.
fn read_without_newest(sample: &Sample) -> BTreeSet<u64> {
    let disk = Arc::new(Overlay::new(&sample.bytes));
    for copy in slot_blocks(newest_superblock(&sample.bytes).checkpoint) {
        disk.put(copy, &[0xa5; BLOCK]);
    }
    let (mut store, report) = open(Arc::clone(&disk) as Arc<dyn Disk>, &sample.settings).unwrap();
    assert!(report.fell_back);
    store.verify(VerifyLevel::Full, &mut |_| {}).unwrap();
    disk.reads_of_base()
}

fn newest_superblock(bytes: &[u8]) -> Superblock {
    let decoded = SUPERBLOCK_BLOCKS.into_iter().filter_map(|block| {
        let block = bytes[block as usize * BLOCK..][..BLOCK].try_into().unwrap();
        Superblock::decode(block).unwrap()
    });
    decoded.max_by_key(|superblock| superblock.checkpoint).unwrap()
}

fn stage(sample: Sample) -> Stage {
    let expected = sample.model.newest();
    let disk = Arc::new(Overlay::new(&sample.bytes));
    let (mut store, _) = open(Arc::clone(&disk) as Arc<dyn Disk>, &sample.settings).unwrap();
    let read_at_open = disk.take_reads();
    let opened = (*store.state()).clone();
    let store_id = store.status().id;
    // Live is what anything reads. (What only the older slot leads to is read once the newer one is lost, and then
    // nothing else is damaged.)
    let verified = store.verify(VerifyLevel::Full, &mut |_| {}).unwrap();
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
    let live: Vec<u64> = disk.take_reads().union(&read_at_open).copied().collect();
    let mut targets = Vec::new();
    for (state, pages) in states(&opened, &expected).unwrap() {
        for (page, version) in pages {
            disk.take_reads();
            let nodes = Nodes::new(Arc::clone(&disk) as _, store_id, 0);
            assert_eq!(judge_page(&nodes, &state, page, version), Ok(Outcome::WithoutEffect));
            targets.push(Target { state: state.clone(), page, version, blocks: disk.take_reads() });
        }
    }
    let without = read_without_newest(&sample);
    let of_trees = |block: &u64| !without.contains(block) && !SUPERBLOCK_BLOCKS.contains(block);
    let newest_only = live.iter().copied().filter(of_trees).collect();
    Stage { expected, opened, store_id, read_at_open, targets, live, newest_only, sample }
}

/// What a state's trees stand on, if they are as on disk: equal roots over equal blocks show equal pages.
fn roots(state: &State) -> Option<Vec<vellum::format::TreeRoot>> {
    let live = state.maps.get();
    let snapshots = state.catalogue.iter().filter_map(|listed| listed.maps.as_deref());
    std::iter::once(&*live).chain(snapshots).flatten().map(|tree| tree.clean_root()).collect()
}

impl Stage {
    /// What is left of the newest checkpoint, if only its trees are damaged, is the older one, and the log.
    fn must_be_whole(&self, damaged: &[u64]) -> bool {
        damaged.iter().all(|block| self.newest_only.contains(block))
    }

    /// Opens a damaged file, and reads what may show it.
    fn judge_open(&self, disk: Arc<Overlay>, damaged: &[u64], tally: &Tally) -> Result<(), String> {
        let settings = &self.sample.settings;
        let (store, report) = match open(Arc::clone(&disk) as Arc<dyn Disk>, settings) {
            Ok(opened) => opened,
            Err(error) if is_typed(&error) && !self.must_be_whole(damaged) => {
                tally.count(&tally.refused);
                return Ok(());
            }
            Err(error) => return Err(format!("the open fails with {error:?}")),
        };
        let state = store.state();
        let newest = self.sample.model.states.keys().next_back().copied().unwrap_or_default();
        if recovered(&store, &report) != newest {
            return Err(format!("{} is shown, not {newest}; {report:?}", recovered(&store, &report)));
        }
        let unread = !damaged.iter().any(|block| self.targets.iter().any(|target| target.blocks.contains(block)));
        let same = roots(&state).is_some_and(|shown| Some(shown) == roots(&self.opened));
        if unread && same && states(&state, &self.expected).is_ok() {
            tally.count(&tally.without_effect);
            return Ok(());
        }
        let outcome = judge_state(store.nodes(), &state, &self.expected)?;
        if outcome == Outcome::Detected && self.must_be_whole(damaged) {
            return Err(format!("data is lost; {report:?}"));
        }
        tally.outcome(outcome);
        Ok(())
    }

    /// Reads, under the open store, what touches a block.
    fn judge_reads(&self, disk: &Arc<Overlay>, block: u64, tally: &Tally) -> Result<(), String> {
        let nodes = Nodes::new(Arc::clone(disk) as Arc<dyn Disk>, self.store_id, 0);
        let mut outcome = Outcome::WithoutEffect;
        for target in self.targets.iter().filter(|target| target.blocks.contains(&block)) {
            if judge_page(&nodes, &target.state, target.page, target.version)? == Outcome::Detected {
                outcome = Outcome::Detected;
            }
        }
        tally.outcome(outcome);
        Ok(())
    }

    /// Opens a damaged file, reads everything, and lets `verify` look for the damage too.
    fn judge_thoroughly(&self, damage: &BTreeMap<u64, Vec<u8>>, tally: &Tally) -> Result<(), String> {
        let disk: Arc<dyn Disk> = Arc::new(self.damaged(damage));
        let damaged: Vec<u64> = damage.keys().copied().collect();
        let (mut store, report) = match open(disk, &self.sample.settings) {
            Ok(opened) => opened,
            Err(error) if is_typed(&error) && !self.must_be_whole(&damaged) => {
                tally.count(&tally.refused);
                return Ok(());
            }
            Err(error) => return Err(format!("the open fails with {error:?}")),
        };
        let newest = self.sample.model.states.keys().next_back().copied().unwrap_or_default();
        if recovered(&store, &report) != newest {
            return Err(format!("{} is shown, not {newest}; {report:?}", recovered(&store, &report)));
        }
        let nodes = Arc::clone(store.nodes());
        let outcome = judge_state(&nodes, &store.state(), &self.expected)?;
        let verified = store.verify(VerifyLevel::Full, &mut |_| {}).map_err(|error| format!("verify: {error}"))?;
        let damage = verified.findings.iter().any(|finding| finding.severity == Severity::Damage);
        if self.must_be_whole(&damaged) && (outcome == Outcome::Detected || !verified.findings.is_empty()) {
            return Err(format!("something is lost: {:?}; {report:?}", verified.findings));
        }
        if outcome == Outcome::Detected && !damage {
            return Err(format!("verify does not find the damage: {:?}", verified.findings));
        }
        tally.outcome(outcome);
        Ok(())
    }

    fn block(&self, block: u64) -> &[u8] {
        &self.sample.bytes[block as usize * BLOCK..][..BLOCK]
    }

    /// Other contents that a block had at some time.
    fn earlier(&self, block: u64) -> Vec<&[u8]> {
        let start = block as usize * BLOCK;
        let mut contents: Vec<&[u8]> =
            self.sample.earlier.iter().filter_map(|bytes| bytes.get(start..start + BLOCK)).collect();
        contents.sort_unstable();
        contents.dedup();
        contents.retain(|content| *content != self.block(block));
        contents
    }

    /// Every block zeroed, as it once was, swapped with each other, with the name of the damage.
    fn damages(&self) -> Vec<(String, BTreeMap<u64, Vec<u8>>)> {
        let mut damages = Vec::new();
        for &block in &self.live {
            damages.push((format!("block {block} zeroed"), BTreeMap::from([(block, vec![0; BLOCK])])));
            for content in self.earlier(block) {
                damages.push((format!("block {block} as before"), BTreeMap::from([(block, content.to_vec())])));
            }
            for &other in self.live.iter().filter(|other| **other > block) {
                let swapped =
                    BTreeMap::from([(block, self.block(other).to_vec()), (other, self.block(block).to_vec())]);
                damages.push((format!("blocks {block} and {other} swapped"), swapped));
            }
        }
        damages
    }

    fn damaged(&self, damage: &BTreeMap<u64, Vec<u8>>) -> Overlay {
        let disk = Overlay::new(&self.sample.bytes);
        damage.iter().for_each(|(block, bytes)| disk.put(*block, bytes));
        disk
    }
}

#[test]
fn every_flipped_bit_is_detected_or_without_effect() {
    let stage = stage(sample::closed());
    println!("{} live blocks, {} of them read at the open", stage.live.len(), stage.read_at_open.len());
    assert!((40..=64).contains(&stage.live.len()), "{} live blocks", stage.live.len());
    let tally = Tally::default();
    // The blocks that take an open are the slow ones.
    let mut work: Vec<(u64, usize)> = stage.live.iter().flat_map(|block| (0..8).map(|part| (*block, part))).collect();
    work.sort_by_key(|(block, _)| !stage.read_at_open.contains(block));
    in_parallel(&work, |&(block, part)| {
        let bits = BLOCK * 8 / 8;
        let disk = Arc::new(Overlay::new(&stage.sample.bytes));
        for bit in part * bits..(part + 1) * bits {
            let failed = |message| format!("bit {bit} of block {block}: {message}");
            if stage.read_at_open.contains(&block) {
                let disk = Arc::new(Overlay::new(&stage.sample.bytes));
                disk.flip(block, bit);
                stage.judge_open(disk, &[block], &tally).map_err(failed)?;
            } else {
                disk.flip(block, bit);
                stage.judge_reads(&disk, block, &tally).map_err(failed)?;
                disk.flip(block, bit);
            }
        }
        Ok(())
    });
    println!("{tally}");
    assert_eq!(tally.tried.into_inner(), stage.live.len() as u64 * BLOCK as u64 * 8);
    assert!(tally.detected.into_inner() > 500_000);
    // A snapshot's entry that both checkpoints share, and nothing besides.
    assert_eq!(tally.refused.into_inner(), BLOCK as u64 * 8);
}

/// Each tree of the newest checkpoint has blocks of its own, and loses nothing with them: the older slot serves, or, for a
/// leaf of the bitmap, everything else.
#[test]
fn the_trees_of_the_newest_checkpoint_can_be_done_without() {
    let stage = stage(sample::closed());
    let superblock = newest_superblock(&stage.sample.bytes);
    let roots = superblock.maps.iter().chain([&superblock.bitmap, &superblock.catalogue, &superblock.deferred]);
    let roots: Vec<u64> = roots.filter(|root| root.length > 0).map(|root| root.pointer.address.0).collect();
    let fresh = roots.iter().filter(|root| stage.newest_only.contains(root)).count();
    assert!(fresh >= 5, "{fresh} of {} roots are the newest checkpoint's own", roots.len());
    let (mut fell_back, mut made_anew) = (0, 0);
    for &block in &stage.newest_only {
        let disk = Arc::new(Overlay::new(&stage.sample.bytes));
        disk.put(block, &[0; BLOCK]);
        let (mut store, report) = open(Arc::clone(&disk) as Arc<dyn Disk>, &stage.sample.settings).unwrap();
        fell_back += u64::from(report.fell_back);
        made_anew += report.bitmap_leaves_made_anew;
        assert!(report.fell_back != (report.bitmap_leaves_made_anew > 0), "block {block}: {report:?}");
        // All that was damaged is on disk again.
        let verified = store.verify(VerifyLevel::Full, &mut |_| {}).unwrap();
        assert!(verified.findings.is_empty(), "block {block}: {:?}", verified.findings);
        drop(store);
        let (store, report) = open(disk, &stage.sample.settings).unwrap();
        assert!(!report.fell_back && report.bitmap_leaves_made_anew == 0, "block {block}: {report:?}");
        assert_eq!(judge_state(store.nodes(), &store.state(), &stage.expected), Ok(Outcome::WithoutEffect));
    }
    assert!(fell_back >= 5 && made_anew == 1, "{fell_back} fell back, {made_anew} leaves were made anew");
}

/// A block that cannot be read at all is not damage: a later open might read it.
#[test]
fn a_tree_that_cannot_be_read_is_an_error_and_no_reason_to_fall_back() {
    let stage = stage(sample::closed());
    let mut refused = 0;
    for &block in stage.newest_only.intersection(&stage.read_at_open) {
        let disk = Arc::new(Overlay::new(&stage.sample.bytes));
        disk.make_unreadable(block);
        match open(disk, &stage.sample.settings) {
            Err(vellum::Error::Io { .. }) => refused += 1,
            other => panic!("block {block}: {:?}", other.map(|(_, report)| report)),
        }
    }
    assert!(refused >= 5, "{refused} were refused");
}

#[test]
fn zeroed_swapped_and_older_blocks_are_detected_or_without_effect() {
    let stage = stage(sample::closed());
    let damages = stage.damages();
    let tally = Tally::default();
    in_parallel(&damages, |(name, damage)| {
        stage.judge_thoroughly(damage, &tally).map_err(|message| format!("{name}: {message}"))
    });
    println!("{tally}");
    assert!(damages.len() > 1000 && tally.detected.into_inner() > 500);
}

/// On a store whose log was not folded, damage above what is anchored may cut commits off the end, whole ones.
#[test]
fn damage_to_a_crashed_store_cuts_whole_commits_off_the_end_at_most() {
    let sample = sample::crashed();
    let anchored = sample.anchored;
    let model = sample.model.clone();
    let newest = model.states.keys().next_back().copied().unwrap_or_default();
    assert!(anchored.0 + 2 < newest.0 && sample.folded < anchored);
    let stage = stage(sample);
    let mut damages = stage.damages();
    for &block in &stage.live {
        for bit in (0..BLOCK * 8).step_by(61) {
            let mut bytes = stage.block(block).to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            damages.push((format!("bit {bit} of block {block}"), BTreeMap::from([(block, bytes)])));
        }
    }
    let (tally, cut) = (Tally::default(), Mutex::new(BTreeMap::<Generation, u64>::new()));
    in_parallel(&damages, |(name, damage)| {
        let disk: Arc<dyn Disk> = Arc::new(stage.damaged(damage));
        let (store, report) = match open(disk, &stage.sample.settings) {
            Ok(opened) => opened,
            Err(error) if is_typed(&error) => {
                tally.count(&tally.refused);
                return Ok(());
            }
            Err(error) => return Err(format!("{name}: the open fails with {error:?}")),
        };
        let shown = recovered(&store, &report);
        let Some(expected) = model.states.get(&shown).filter(|_| shown >= anchored) else {
            return Err(format!("{name}: {shown} is shown, {anchored} was anchored; {report:?}"));
        };
        let outcome = judge_state(store.nodes(), &store.state(), expected);
        tally.outcome(outcome.map_err(|message| format!("{name}: {shown}: {message}"))?);
        *cut.lock().unwrap().entry(shown).or_default() += 1;
        Ok(())
    });
    println!("{tally}; shown: {:?}", cut.lock().unwrap());
    assert!(cut.into_inner().unwrap().len() > 1, "nothing was ever cut off");
}
