//! What an open makes of a power cut is to serve the opens after it too.

use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};

use vellum::disk::{Disk, Image, MemoryDisk, Operation, SimulatedDisk};
use vellum::format::{SUPERBLOCK_BLOCKS, slot_blocks};
use vellum::process::NoReaders;
use vellum::store::{Changes, Durability, PageChange, SeededEntropy, Settings, Store};
use vellum::testing::{History, Step, tiny};
use vellum::{CheckpointNumber, PageId, SizeClass};

use crate::watched::{Watch, Watched};

const BLOCK: usize = 4096;

fn open(image: &Image, settings: &Settings, seed: u64) -> vellum::Result<(Arc<SimulatedDisk>, Store)> {
    let disk = Arc::new(SimulatedDisk::from_image(image));
    let shared: Arc<dyn Disk> = Arc::clone(&disk) as _;
    let (store, _) = Store::open(shared, Arc::new(NoReaders), settings.clone(), Box::new(SeededEntropy(seed)))?;
    Ok((disk, store))
}

fn commit_page(store: &mut Store, index: u64) {
    let page = PageId::new(SizeClass::MIN, index).unwrap();
    let mut changes = Changes::default();
    changes.pages.insert(page, PageChange::Whole(vec![index as u8 | 1; BLOCK].into()));
    store.commit(&changes, Durability::Durable).unwrap();
}

/// A record that is durable by itself announces a segment in growth that is not: the file is shorter then than the
/// record says. The next superblocks say how long it is, and must be right.
#[test]
fn growth_that_a_power_cut_took_away_is_restored_before_a_superblock_counts_on_it() {
    let settings = Settings::default();
    let disk = Arc::new(SimulatedDisk::new());
    let shared: Arc<dyn Disk> = Arc::clone(&disk) as _;
    let mut store = Store::create(shared, Arc::new(NoReaders), settings.clone(), Box::new(SeededEntropy(1))).unwrap();
    let blocks_of = |image: &Image| image.length() / BLOCK as u64;
    let mut cuts = 0;
    for index in 0..5000 {
        commit_page(&mut store, index);
        let mut image = disk.durable_image();
        let lost = store.status().blocks_total > blocks_of(&image);
        if !lost || index % 16 != 0 {
            continue;
        }
        for seed in 0..4 {
            let (disk, mut store) = open(&image, &settings, seed).unwrap();
            cuts += u64::from(store.status().blocks_total > blocks_of(&image));
            assert!(
                store.status().blocks_total <= disk.length().unwrap() / BLOCK as u64,
                "commit {index}, open {seed}"
            );
            commit_page(&mut store, seed);
            store.checkpoint().unwrap();
            image = disk.durable_image();
        }
    }
    assert!(cuts > 0, "no growth was lost that a record counts on");
}

/// What was done to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// A copy of a superblock got other bytes.
    Changed(u64),
    Synced,
}

/// Notes what is done to superblocks, and syncs.
#[derive(Debug)]
struct Noted {
    disk: Arc<MemoryDisk>,
    done: Mutex<Vec<Done>>,
}

impl Watch for Noted {
    fn asked(&self, operation: Operation, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let block = offset / BLOCK as u64;
        let mut before = [0; BLOCK];
        let done = match operation {
            Operation::Sync => Done::Synced,
            Operation::Write if SUPERBLOCK_BLOCKS.contains(&block) => {
                self.disk.read_at(offset, &mut before)?;
                match buffers.iter().flat_map(|buffer| buffer.iter()).eq(&before) {
                    true => return Ok(()),
                    false => Done::Changed(block),
                }
            }
            _ => return Ok(()),
        };
        self.done.lock().unwrap().push(done);
        Ok(())
    }
}

/// The newest superblock, which has a codec's bit, is lost; the older one gets the bit by replay. It is the only one that
/// is good: its copies must not be torn both.
#[test]
fn copies_of_the_superblock_that_an_open_changes_are_changed_one_after_the_other() {
    for damaged_too in [None, Some(0), Some(1)] {
        let mut history = History::create(tiny(), 1).unwrap();
        for step in [
            Step::Write(vec![(12, 0)]),
            Step::Checkpoint,
            Step::Write(vec![(12, 1)]),
            Step::Checkpoint,
            Step::WriteEncoded(vec![(14, 1)]),
            Step::WriteEncoded(vec![(14, 2)]),
            Step::Write(vec![(12, 2)]),
        ] {
            history.step(&step).unwrap();
        }
        let mut bytes = history.disk.image().to_bytes();
        let older = slot_blocks(CheckpointNumber(3));
        let lost = slot_blocks(CheckpointNumber(4)).into_iter().chain(damaged_too.map(|copy: usize| older[copy]));
        for block in lost {
            bytes[block as usize * BLOCK..][..BLOCK].fill(0xa5);
        }
        let disk = Arc::new(MemoryDisk::from_bytes(&bytes));
        let watched = Watched::new(Arc::clone(&disk), Noted { disk, done: Mutex::default() });
        let shared: Arc<dyn Disk> = Arc::clone(&watched) as _;
        drop(Store::open(shared, Arc::new(NoReaders), tiny(), Box::new(SeededEntropy(5))).unwrap());
        let done = watched.done.lock().unwrap();
        let first = damaged_too.unwrap_or(0);
        let expected = [Done::Changed(older[first]), Done::Synced, Done::Changed(older[1 - first]), Done::Synced];
        assert_eq!(done[..4], expected, "{damaged_too:?}");
    }
}
