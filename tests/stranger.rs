//! FORMAT.md is enough: a reader written from it alone sees what the library sees, also of files that a power cut left.
#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use vellum::disk::{Disk, Image, MemoryDisk, SimulatedDisk, Tear};
use vellum::format::{Compression, EntryKind};
use vellum::process::NoReaders;
use vellum::store::{
    Changes, Content, Durability, PageChange, PageReader, RecoveryReport, SeededEntropy, Settings, State, StateMaps,
    Store,
};
use vellum::testing::{History, tiny};
use vellum::{Error, PageId, SizeClass, Structure};

#[path = "format/encoded.rs"]
mod encoded;
#[path = "crash/random.rs"]
mod random;
#[path = "stranger/reader.rs"]
mod reader;
#[path = "format/small.rs"]
mod small;

use random::Random;
use reader::Reader;

/// Every page of a state, by number.
type Pages = BTreeMap<u64, Vec<u8>>;

fn pages_of_library(store: &Store, state: &State) -> Pages {
    let mut pages = Pages::new();
    for (class, map) in SizeClass::all().zip(state.maps.get().iter()) {
        let mut from = 0;
        while let Some((index, pointer)) = map.next(store.nodes(), from).unwrap() {
            from = index + 1;
            let page = PageId::new(class, index).unwrap();
            let mut bytes = vec![0; class.page_bytes() as usize];
            PageReader::new(store.nodes()).read(page, &pointer, 0, &mut bytes).unwrap();
            pages.insert(page.to_u64(), bytes);
        }
    }
    pages
}

fn pages_of_stranger(reader: &Reader<'_>, state: &reader::State) -> Pages {
    let pages = reader.pages(state).unwrap();
    pages.into_iter().map(|page| (page, reader.page(state, page).unwrap())).collect()
}

/// Compares what the stranger finds in `file` with a store that is open on it, or was opened on a copy of it.
fn assert_same(file: &[u8], store: &Store, context: &str) -> (u64, u64) {
    let reader = Reader::open(file).unwrap_or_else(|error| panic!("{context}: {error}"));
    let state = store.state();
    assert_eq!(reader.state.header, state.header[..], "{context}");
    let (found, expected) = (pages_of_stranger(&reader, &reader.state), pages_of_library(store, &state));
    assert!(found == expected, "{context}: {:?} and {:?}", found.keys(), expected.keys());
    let snapshots = state.catalogue.iter().filter(|listed| listed.maps.is_some());
    let names: Vec<&String> = snapshots.clone().map(|listed| &listed.entry.name).collect();
    assert_eq!(reader.snapshots.len(), names.len(), "{context}: {names:?}");
    for listed in snapshots {
        let found = reader.snapshots.get(&listed.entry.name).unwrap_or_else(|| panic!("{context}: {names:?}"));
        let shown = State { maps: StateMaps::new(*listed.maps.clone().unwrap()), ..(*state).clone() };
        assert_eq!(found.header, listed.entry.header, "{context}: {:?}", listed.entry.name);
        let same = pages_of_stranger(&reader, found) == pages_of_library(store, &shown);
        assert!(same, "{context}: snapshot {:?}", listed.entry.name);
    }
    (reader.generation, reader.durable)
}

fn bytes_of(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0; disk.length().unwrap() as usize];
    disk.read_at(0, &mut bytes).unwrap();
    bytes
}

fn open(image: &Image, settings: &Settings) -> vellum::Result<(Store, RecoveryReport)> {
    let disk: Arc<dyn Disk> = Arc::new(SimulatedDisk::from_image(image));
    Store::open(disk, Arc::new(NoReaders), settings.clone(), Box::new(SeededEntropy(9)))
}

#[test]
fn the_worked_example_reads_as_it_is_told() {
    for file in [small::golden_store(), small::small_store()] {
        assert_read_as_told(&file);
    }
}

fn assert_read_as_told(file: &[u8]) {
    let reader = Reader::open(file).unwrap();
    assert_eq!((reader.generation, reader.durable), (4, 3));
    assert_eq!(reader.state.header, b"root page 12:0");
    let starts = |state, page: PageId, text: &[u8]| reader.page(state, page.to_u64()).unwrap().starts_with(text);
    assert!(starts(&reader.state, small::page(12, 1), b"page 12:1\0"));
    assert!(starts(&reader.state, small::page(12, 0), b"hello again\0"));
    assert!(starts(&reader.snapshots["first"], small::page(12, 0), b"hello, page 12:0\0"));
    assert!(reader.page(&reader.state, small::page(12, 2).to_u64()).is_err());
    assert_eq!(reader.page(&reader.snapshots["first"], small::page(12, 2).to_u64()).unwrap(), vec![0; 4096]);
}

#[test]
fn the_golden_file_of_encoded_pages_reads_as_it_is_told() {
    for file in [encoded::golden_encoded_store(), encoded::encoded_store()] {
        let reader = Reader::open(&file).unwrap();
        assert_eq!((reader.generation, &reader.state.header[..]), (4, &b"encoded"[..]));
        assert_eq!(reader.pages(&reader.state).unwrap().len(), encoded::pages().len());
        for (page, version, _) in encoded::pages() {
            let found = reader.page(&reader.state, page.to_u64()).unwrap();
            assert!(found == encoded::bytes_of(page, version), "{page}");
        }
        let (page, version) = encoded::page_before();
        let found = reader.page(&reader.snapshots["before"], page.to_u64()).unwrap();
        assert!(found == encoded::bytes_of(page, version), "{page}");
    }
}

#[test]
fn random_histories_are_read_as_the_library_reads_them() {
    for seed in 0..12 {
        let mut random = Random(seed);
        let mut history = History::create(tiny(), seed).unwrap();
        for number in 0..150 {
            let step = random.step();
            history.step(&step).unwrap();
            if number % 5 == 0 {
                let context = format!("seed {seed}, step {number}, {step:?}");
                let file = bytes_of(history.disk.as_ref());
                let (generation, _) = assert_same(&file, &history.store, &context);
                assert_eq!(generation, history.store.state().generation.0, "{context}");
            }
        }
    }
}

#[test]
fn large_pages_large_commits_and_bookmarks_are_read() {
    let disk = Arc::new(MemoryDisk::new());
    let shared: Arc<dyn Disk> = Arc::clone(&disk) as _;
    let entropy = Box::new(SeededEntropy(4));
    let mut store = Store::create(shared, Arc::new(NoReaders), small::settings(), entropy).unwrap();
    let assert_read = |store: &Store, what: &str| assert_same(&disk.to_bytes(), store, what);

    let chunk = |byte: u8| Content::from(vec![byte; 1 << 20]);
    let large = small::page(23, 5);
    let mut changes = Changes::default();
    changes.pages.insert(large, PageChange::OnlyChunks([(0, chunk(1)), (7, chunk(2))].into()));
    store.commit(&changes, Durability::Durable).unwrap();
    assert_read(&store, "a page of chunks, in the log");
    store.name_state(EntryKind::Snapshot, "large", "", 0).unwrap();
    store.name_state(EntryKind::Bookmark, "mark", "", 0).unwrap();
    let mut changes = Changes::default();
    changes.pages.insert(large, PageChange::Chunks([(7, chunk(0)), (3, chunk(9))].into()));
    store.commit(&changes, Durability::Durable).unwrap();
    assert_read(&store, "chunks changed");

    let bytes = |byte: u8| -> Vec<u8> { (0..1 << 20).map(|at: u32| byte ^ (at >> 3) as u8).collect() };
    let mut changes = Changes::default();
    let encoded = [(1, Content::encode(bytes(1), Compression::LZ4)), (2, Content::encode(bytes(2), Compression::ZSTD))];
    assert!(encoded.iter().all(|(_, content)| matches!(content, Content::Encoded(_))));
    changes.pages.insert(large, PageChange::Chunks(encoded.into()));
    let mut long = bytes(9);
    long.truncate(64 << 10);
    changes.pages.insert(small::page(16, 0), PageChange::Whole(Content::encode(long, Compression::LZ4)));
    store.commit(&changes, Durability::Durable).unwrap();
    assert_ne!(store.superblock().features_incompatible, 0);
    assert_read(&store, "chunks and a page that are encoded");

    // More entries than a record may have in this geometry, and more indices than a node has pointers.
    let mut changes = Changes::default();
    for index in 0..600 {
        let page = small::page(12, index * 7);
        changes.pages.insert(page, small::text(page, &page.to_string()));
    }
    changes.header = Some(vec![7; 1024]);
    store.commit(&changes, Durability::Deferred).unwrap();
    assert_read(&store, "a record with a body of its own");
    store.checkpoint().unwrap();
    assert_read(&store, "all of it in the trees");
    store.remove_name("large").unwrap();
    assert_read(&store, "a snapshot removed");
}

/// How many states were compared, and records of unsynced tails among them.
#[derive(Default)]
struct Tally {
    states: u64,
    tails: u64,
    fell_back: u64,
}

/// The stranger recovers from a state as the library does: the same generation with the same pages, or no store.
fn assert_recovered_alike(image: &Image, context: &str, tally: &mut Tally) {
    let file = image.to_bytes();
    match open(image, &tiny()) {
        Ok((store, report)) => {
            let (generation, durable) = assert_same(&file, &store, context);
            assert_eq!(generation + 1, report.opened.0, "{context}");
            assert_eq!(generation - durable, report.records_adopted, "{context}");
            tally.tails += report.records_adopted;
            tally.fell_back += u64::from(report.fell_back);
        }
        Err(error) => assert!(Reader::open(&file).is_err(), "{context}: {error}"),
    }
    tally.states += 1;
}

#[test]
fn what_a_power_cut_leaves_is_read_as_the_library_recovers_it() {
    let mut tally = Tally::default();
    for seed in 0..8 {
        let mut random = Random(seed ^ 0x5eed);
        let mut history = History::create(tiny(), seed).unwrap();
        for _ in 0..40 {
            let step = random.step();
            history.step(&step).unwrap();
        }
        for point in history.disk.take_crash_points() {
            for (description, image) in point.states_up_to(6, Tear::Every512, seed) {
                let context = format!("seed {seed}, {description:?}");
                assert_recovered_alike(&image, &context, &mut tally);
                // One slot or the other is the newer one: without it, its older neighbour leads to the same state.
                for slot in [1, 2] {
                    let context = format!("{context}, without slot {}", slot - 1);
                    let first = image.with_bytes_at(slot * 4096, &[0xa5; 4096]);
                    let both = first.and_then(|image| image.with_bytes_at((slot + 16) * 4096, &[0xa5; 4096]));
                    assert_recovered_alike(&both.unwrap(), &context, &mut tally);
                }
            }
        }
    }
    println!("{} states, {} records of tails, {} fall-backs", tally.states, tally.tails, tally.fell_back);
    assert!(tally.states > 2000 && tally.tails > 200 && tally.fell_back > 500);
}

/// Damage anywhere: both refuse, or both find the same generation. (What a damaged page is, its checksum says. And only
/// a writer needs the bitmap.)
#[test]
fn damage_is_judged_as_the_library_judges_it() {
    let (mut opened, mut refused) = (0, 0);
    for seed in 0..4 {
        let mut random = Random(seed ^ 0xdada);
        let mut history = History::create(tiny(), seed).unwrap();
        for _ in 0..30 {
            let step = random.step();
            history.step(&step).unwrap();
        }
        history.store.sync().unwrap();
        let image = history.disk.image();
        for block in 0..image.length() / 4096 {
            for at in [0, 20, 100, 300, 4090] {
                let mut byte = [0];
                image.read_at(block * 4096 + at, &mut byte).unwrap();
                let damaged = image.with_bytes_at(block * 4096 + at, &[byte[0] ^ 0x10]).unwrap();
                let file = damaged.to_bytes();
                let context = format!("seed {seed}, byte {at} of block {block}");
                match (open(&damaged, &tiny()), Reader::open(&file)) {
                    (Ok((_, report)), Ok(reader)) => {
                        assert_eq!(reader.generation + 1, report.opened.0, "{context}");
                        opened += 1;
                    }
                    (Err(_), Err(_)) => refused += 1,
                    (Err(Error::Corrupt(what)), Ok(_)) if what.structure == Structure::Bitmap => {}
                    (Ok((_, report)), Err(error)) => panic!("{context}: {error}, but {report:?}"),
                    (Err(error), Ok(reader)) => panic!("{context}: {error}, but generation {}", reader.generation),
                }
            }
        }
    }
    println!("{opened} opened, {refused} refused");
    assert!(opened > 1000 && refused > 20);
}
