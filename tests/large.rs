//! Pages of many chunks, and commits of more pages than a record holds: written, changed in part, freed, kept by
//! snapshots, and cut by a crash.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use vellum::disk::{Disk, MemoryDisk, SimulatedDisk, Tear};
use vellum::format::EntryKind;
use vellum::process::NoReaders;
use vellum::store::{
    Changes, Content, Durability, PageChange, PageReader, SeededEntropy, Settings, State, StateMaps, Store, VerifyLevel,
};
use vellum::testing::tiny;
use vellum::{PageId, SizeClass};

const CHUNK: usize = 1 << 20;

/// What each chunk of a page holds; chunks that are not named are zero.
type Chunks = BTreeMap<u32, u8>;

fn page(log2: u8, index: u64) -> PageId {
    PageId::new(SizeClass::new(log2).unwrap(), index).unwrap()
}

/// A chunk whose bytes follow from one byte.
fn chunk(byte: u8) -> Content<'static> {
    let mut bytes = vec![byte; CHUNK];
    bytes[CHUNK - 1] = byte.wrapping_mul(7);
    bytes.into()
}

fn create(disk: Arc<dyn Disk>, settings: &Settings) -> Store {
    Store::create(disk, Arc::new(NoReaders), settings.clone(), Box::new(SeededEntropy(1))).unwrap()
}

fn open(disk: Arc<dyn Disk>, settings: &Settings) -> Store {
    Store::open(disk, Arc::new(NoReaders), settings.clone(), Box::new(SeededEntropy(2))).unwrap().0
}

fn commit(store: &mut Store, page: PageId, change: PageChange<'_>) {
    let mut changes = Changes::default();
    changes.pages.insert(page, change);
    store.commit(&changes, Durability::Durable).unwrap();
}

fn write(store: &mut Store, page: PageId, chunks: &Chunks) {
    let chunks = chunks.iter().map(|(number, byte)| (*number, chunk(*byte))).collect();
    commit(store, page, PageChange::Chunks(chunks));
}

/// Whether a page shows these chunks, looked at in pieces that cross the chunks' borders.
fn shows(store: &Store, state: &State, page: PageId, chunks: &Chunks) -> Result<(), String> {
    let nodes = store.nodes();
    let pointer = state.pointer(nodes, page).map_err(|error| error.to_string())?;
    if pointer.is_null() {
        return Err(format!("page {page} is not there"));
    }
    let expected = |at: u64| {
        let byte = chunks.get(&((at / CHUNK as u64) as u32)).copied().unwrap_or(0);
        if at % CHUNK as u64 == CHUNK as u64 - 1 { byte.wrapping_mul(7) } else { byte }
    };
    let mut bytes = [0; 10];
    for number in 0..page.class().chunks() {
        let border = (number + 1) * CHUNK as u64;
        for at in [border - CHUNK as u64, border - 5] {
            let at = at.min(page.class().page_bytes() - 10);
            PageReader::new(nodes).read(page, &pointer, at, &mut bytes).map_err(|error| error.to_string())?;
            for (index, byte) in bytes.iter().enumerate() {
                if *byte != expected(at + index as u64) {
                    return Err(format!("page {page} has {byte} at {at}+{index}"));
                }
            }
        }
    }
    Ok(())
}

fn check(store: &mut Store) {
    store.release().unwrap();
    let report = store.verify(VerifyLevel::Full, &mut |_| {}).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

fn snapshot_state(store: &Store, name: &str) -> State {
    let state = store.state();
    let maps = StateMaps::new(*state.listed(name).unwrap().maps.clone().unwrap());
    State { maps, ..(*state).clone() }
}

#[test]
fn a_page_of_64_chunks_is_changed_chunk_by_chunk() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    let settings = Settings::default();
    let mut store = create(Arc::clone(&disk), &settings);
    let large = page(26, 0);
    let mut chunks: Chunks = (0..64).map(|number| (number, number as u8 + 1)).collect();
    write(&mut store, large, &chunks);
    shows(&store, &store.state(), large, &chunks).unwrap();
    store.checkpoint().unwrap();

    // One chunk changed writes one chunk, one node and a record.
    let before = store.counters();
    chunks.insert(17, 200);
    write(&mut store, large, &Chunks::from([(17, 200)]));
    let written = store.counters().page_bytes - before.page_bytes;
    assert_eq!(written, CHUNK as u64 + 4096);
    shows(&store, &store.state(), large, &chunks).unwrap();
    check(&mut store);

    // A chunk of zeros takes no space, and all others stay.
    chunks.insert(3, 0);
    write(&mut store, large, &Chunks::from([(3, 0)]));
    shows(&store, &store.state(), large, &chunks).unwrap();
    drop(store);
    let mut store = open(Arc::clone(&disk), &settings);
    shows(&store, &store.state(), large, &chunks).unwrap();
    check(&mut store);

    // `OnlyChunks` lets every other chunk go.
    commit(&mut store, large, PageChange::OnlyChunks(BTreeMap::from([(63, chunk(9))])));
    shows(&store, &store.state(), large, &Chunks::from([(63, 9)])).unwrap();
    check(&mut store);
    commit(&mut store, large, PageChange::Free);
    assert!(store.state().pointer(store.nodes(), large).unwrap().is_null());
    for _ in 0..2 {
        commit(&mut store, page(12, 0), PageChange::Whole(vec![1; 4096].into()));
        store.checkpoint().unwrap();
    }
    check(&mut store);
    let status = store.status();
    assert!(status.blocks_total - status.blocks_free < 2000, "the 64 MiB are free again: {status:?}");
}

#[test]
fn snapshots_of_chunked_pages_share_chunks_and_give_them_back() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    let settings = tiny();
    let mut store = create(Arc::clone(&disk), &settings);
    let (large, other) = (page(21, 0), page(22, 3));
    let first: Chunks = [(0, 1), (1, 2)].into();
    write(&mut store, large, &first);
    write(&mut store, other, &[(2, 5)].into());
    let mut shown = vec![("a", first.clone())];
    store.name_state(EntryKind::Snapshot, "a", "", 0).unwrap();
    store.checkpoint().unwrap();
    write(&mut store, large, &[(1, 3)].into());
    let second: Chunks = [(0, 1), (1, 3)].into();
    store.name_state(EntryKind::Snapshot, "b", "", 0).unwrap();
    shown.push(("b", second));
    commit(&mut store, large, PageChange::OnlyChunks(BTreeMap::from([(0, chunk(4))])));
    store.checkpoint().unwrap();
    store.name_state(EntryKind::Snapshot, "c", "", 0).unwrap();
    shown.push(("c", [(0, 4)].into()));
    commit(&mut store, large, PageChange::Free);
    commit(&mut store, other, PageChange::Zero);
    check(&mut store);

    // Reopened, each snapshot shows what it showed; deleted from the middle, the others still do.
    drop(store);
    let mut store = open(Arc::clone(&disk), &settings);
    for gone in ["b", "a", "c"] {
        for (name, chunks) in &shown {
            shows(&store, &snapshot_state(&store, name), large, chunks).unwrap();
        }
        check(&mut store);
        if gone == "b" {
            store.roll_back("b").unwrap();
            shows(&store, &store.state(), large, &[(0, 1), (1, 3)].into()).unwrap();
            shows(&store, &store.state(), other, &[(2, 5)].into()).unwrap();
            check(&mut store);
        }
        store.remove_name(gone).unwrap();
        store.checkpoint().unwrap();
        shown.retain(|(name, _)| *name != gone);
        check(&mut store);
    }
    shows(&store, &store.state(), large, &[(0, 1), (1, 3)].into()).unwrap();
}

#[test]
fn a_cut_commit_of_a_chunked_page_is_there_whole_or_not_at_all() {
    let settings = tiny();
    let disk = Arc::new(SimulatedDisk::new());
    let mut store = create(Arc::clone(&disk) as _, &settings);
    let large = page(21, 0);
    let mut states: Vec<Chunks> = vec![[(0, 1), (1, 2)].into()];
    write(&mut store, large, &states[0]);
    let first = store.state().generation;
    disk.take_crash_points();
    disk.start_recording();
    for (number, byte) in [(1, 3), (0, 4), (1, 0)] {
        let mut chunks = states[states.len() - 1].clone();
        chunks.insert(number, byte);
        write(&mut store, large, &[(number, byte)].into());
        states.push(chunks);
        disk.mark(&format!("{}", states.len() - 1));
    }
    store.checkpoint().unwrap();
    let (mut tried, mut cut) = (0, 0);
    for point in disk.take_crash_points() {
        let acknowledged: usize = point.last_mark().map_or(0, |mark| mark.parse().unwrap());
        for (description, image) in point.states_up_to(24, Tear::Every512, tried) {
            let mut store = open(Arc::new(SimulatedDisk::from_image(&image)), &settings);
            let index = (store.state().generation.0 - first.0 - 1) as usize;
            assert!(index >= acknowledged, "{index} is shown, {acknowledged} was acknowledged: {description:?}");
            let result = shows(&store, &store.state(), large, &states[index]);
            result.unwrap_or_else(|message| panic!("{message}; state {index}, {description:?}"));
            check(&mut store);
            tried += 1;
            cut += u64::from(index == acknowledged);
        }
    }
    println!("{tried} states, {cut} of them without the commit in flight");
    assert!(tried > 50 && cut > 10 && cut < tried);
}

/// The pages of a commit too large for the log, of which each is a number.
fn many(first: u64, count: u64, byte: u8) -> Changes<'static> {
    let mut changes = Changes::default();
    for index in first..first + count {
        let mut bytes = vec![byte; 4096];
        bytes[..8].copy_from_slice(&index.to_le_bytes());
        changes.pages.insert(page(12, index), PageChange::Whole(bytes.into()));
    }
    changes
}

fn shows_many(store: &Store, first: u64, count: u64, byte: u8) -> Result<(), String> {
    let (nodes, state) = (store.nodes(), store.state());
    for index in first..first + count {
        let pointer = state.pointer(nodes, page(12, index)).map_err(|error| error.to_string())?;
        let mut bytes = vec![0; 4096];
        PageReader::new(nodes).read(page(12, index), &pointer, 0, &mut bytes).map_err(|error| error.to_string())?;
        if bytes[..8] != index.to_le_bytes() || bytes[8] != byte || bytes[4095] != byte {
            return Err(format!("page {index} has other bytes"));
        }
    }
    Ok(())
}

/// The pages are hashed under the salt of the segment that their record would go to when they are sent; one that is too
/// long for what is left of it goes to the next, under another salt.
#[test]
fn a_record_that_goes_to_the_next_segment_after_its_pages_were_sent_is_sealed_all_the_same() {
    let disk = Arc::new(MemoryDisk::new());
    let settings = Settings { log_segment_blocks: 32, in_log_blocks: 0, checkpoint_log_blocks: None, ..tiny() };
    let mut store = create(Arc::clone(&disk) as _, &settings);
    for round in 1..60u8 {
        // Records of one block, and of two or three.
        let count = [1, 100, 150][usize::from(round % 3)];
        store.commit(&many(0, count, round), Durability::Durable).unwrap();
        // Of the tail the seal is asked for.
        let crashed = open(Arc::new(MemoryDisk::from_bytes(&disk.to_bytes())), &settings);
        shows_many(&crashed, 0, count, round).unwrap();
    }
}

#[test]
fn commits_of_thousands_of_pages_have_their_records_body_outside_of_the_log() {
    const COUNT: u64 = 20_000;
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    let settings = Settings { growth_blocks: 1024, segment_blocks: 256, cached_nodes: 4096, ..tiny() };
    let mut store = create(Arc::clone(&disk), &settings);
    store.commit(&many(0, COUNT, 1), Durability::Durable).unwrap();
    shows_many(&store, 0, COUNT, 1).unwrap();
    check(&mut store);
    // Two bodies wait for the checkpoint; the second commit is deferred, and durable with the next.
    store.commit(&many(500, COUNT, 2), Durability::Deferred).unwrap();
    store.commit(&many(100, 3, 3), Durability::Durable).unwrap();
    check(&mut store);
    drop(store);
    let mut store = open(Arc::clone(&disk), &settings);
    let right = |store: &Store| {
        shows_many(store, 0, 100, 1).unwrap();
        shows_many(store, 100, 3, 3).unwrap();
        shows_many(store, 103, 397, 1).unwrap();
        shows_many(store, 500, COUNT, 2).unwrap();
    };
    right(&store);
    check(&mut store);
    store.checkpoint().unwrap();
    drop(store);
    let mut store = open(Arc::clone(&disk), &settings);
    right(&store);
    // Freeing them all is such a commit too.
    let mut changes = Changes::default();
    changes.pages = (0..500 + COUNT).map(|index| (page(12, index), PageChange::Free)).collect();
    store.commit(&changes, Durability::Durable).unwrap();
    for byte in 0..2 {
        store.commit(&many(0, 1, byte), Durability::Durable).unwrap();
        store.checkpoint().unwrap();
    }
    check(&mut store);
    let status = store.status();
    assert!(status.blocks_total - status.blocks_free < 2000, "the pages' blocks are free again: {status:?}");
}

/// The segments that were announced and kept are too short for records that others of these settings would hold.
#[test]
fn a_store_reopened_with_longer_log_segments_takes_large_commits() {
    let long = Settings { in_log_blocks: 8, ..Settings::default() };
    for short_blocks in [4, 8, 24] {
        let short = Settings { log_segment_blocks: short_blocks, ..long.clone() };
        let disk = Arc::new(MemoryDisk::new());
        let mut store = create(Arc::clone(&disk) as _, &short);
        store.commit(&many(0, 3, 1), Durability::Durable).unwrap();
        drop(store);
        let mut store = open(Arc::clone(&disk) as _, &long);
        for round in 1..40u8 {
            // Records of one block, and of more than the old segments, or the halves of them, hold.
            let count = [1000, 1, 300, 7, 150][usize::from(round % 5)];
            store.commit(&many(0, count, round), Durability::Durable).unwrap_or_else(|error| {
                panic!("segments of {short_blocks}, round {round}: {error}; {:?}", store.status())
            });
            let by = if round % 2 == 0 { &long } else { &short };
            let mut crashed = open(Arc::new(MemoryDisk::from_bytes(&disk.to_bytes())), by);
            shows_many(&crashed, 0, count, round).unwrap();
            check(&mut crashed);
            if round % 8 == 0 {
                store.checkpoint().unwrap();
            }
        }
        check(&mut store);
        // The short ones are gone: records go into the log whole again.
        let before = store.counters();
        store.commit(&many(0, 1000, 50), Durability::Durable).unwrap();
        assert!(store.counters().record_bytes - before.record_bytes > 15 * 4096, "{before:?} {:?}", store.counters());
    }
}

#[test]
fn a_cut_commit_with_an_external_body_is_there_whole_or_not_at_all() {
    const COUNT: u64 = 300;
    let settings = tiny();
    let disk = Arc::new(SimulatedDisk::new());
    let mut store = create(Arc::clone(&disk) as _, &settings);
    store.commit(&many(0, COUNT, 1), Durability::Durable).unwrap();
    let first = store.state().generation;
    disk.take_crash_points();
    disk.start_recording();
    for byte in 2..5 {
        store.commit(&many(0, COUNT, byte), Durability::Durable).unwrap();
        disk.mark(&format!("{}", byte - 1));
    }
    store.checkpoint().unwrap();
    let mut tried = 0;
    for point in disk.take_crash_points() {
        let acknowledged: u64 = point.last_mark().map_or(0, |mark| mark.parse().unwrap());
        for (description, image) in point.states_up_to(24, Tear::Every512, tried) {
            let mut store = open(Arc::new(SimulatedDisk::from_image(&image)), &settings);
            let index = store.state().generation.0 - first.0 - 1;
            assert!(index >= acknowledged, "{index} is shown, {acknowledged} was acknowledged: {description:?}");
            shows_many(&store, 0, COUNT, index as u8 + 1)
                .unwrap_or_else(|message| panic!("{message}, {description:?}"));
            check(&mut store);
            tried += 1;
        }
    }
    println!("{tried} states");
    assert!(tried > 100);
}
