//! What the core tells whoever keeps pages in memory, and space that is written before its commit.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use vellum::disk::{Disk, MemoryDisk};
use vellum::format::{BlockPointer, EntryKind};
use vellum::process::NoReaders;
use vellum::store::{
    Changes, ChunkUpdate, Durability, PageChange, PageReader, PageUpdate, Publication, PublishHook, Published,
    SeededEntropy, Settings, Spilled, Store, VerifyLevel,
};
use vellum::{Error, Generation, PageId, SizeClass};

const MIB: usize = 1 << 20;

/// What a hook was told, and what was published and durable when it was.
#[derive(Debug)]
struct Told {
    generation: Generation,
    pages: Vec<PageUpdate>,
    moves: Vec<PageUpdate>,
    chunks: Vec<ChunkUpdate>,
    visible: Generation,
    synced: Generation,
}

#[derive(Debug)]
struct Hook {
    published: Arc<Published>,
    told: Mutex<Vec<Told>>,
}

impl PublishHook for Hook {
    fn publish(&self, publication: &Publication<'_>) {
        self.told.lock().unwrap().push(Told {
            generation: publication.generation,
            pages: publication.pages().collect(),
            moves: publication.moves().collect(),
            chunks: publication.chunks.to_vec(),
            visible: self.published.pin().generation,
            synced: self.published.synced(),
        });
    }
}

fn page(log2: u8, index: u64) -> PageId {
    PageId::new(SizeClass::new(log2).unwrap(), index).unwrap()
}

fn store(disk: &Arc<MemoryDisk>) -> Store {
    let disk: Arc<dyn Disk> = Arc::clone(disk) as _;
    Store::create(disk, Arc::new(NoReaders), Settings::default(), Box::new(SeededEntropy(1))).unwrap()
}

fn commit(store: &mut Store, pages: Vec<(PageId, PageChange<'_>)>, durability: Durability) -> vellum::Result<()> {
    let mut changes = Changes::default();
    changes.pages = pages.into_iter().collect();
    store.commit(&changes, durability).map(drop)
}

fn pointer(store: &Store, page: PageId) -> BlockPointer {
    store.state().pointer(store.nodes(), page).unwrap()
}

fn first_byte(store: &Store, page: PageId) -> u8 {
    let mut byte = [0];
    PageReader::new(store.nodes()).read(page, &pointer(store, page), 0, &mut byte).unwrap();
    byte[0]
}

fn assert_sound(store: &mut Store) {
    let report = store.verify(VerifyLevel::Full, &mut |_| {}).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

#[test]
fn the_hook_hears_of_every_commit_once_it_is_durable_and_before_it_is_visible() {
    let disk = Arc::new(MemoryDisk::new());
    let mut store = store(&disk);
    let hook = Arc::new(Hook { published: Arc::clone(store.published()), told: Mutex::default() });
    store.set_publish_hook(Arc::clone(&hook) as _);
    let (small, large) = (page(12, 0), page(21, 0));
    let durable = Durability::Durable;

    commit(&mut store, vec![(small, PageChange::Whole(vec![1; 4096].into()))], durable).unwrap();
    store.name_state(EntryKind::Snapshot, "s", "", 0).unwrap();
    let chunks = BTreeMap::from([(1, vec![2; MIB].into())]);
    commit(&mut store, vec![(large, PageChange::Chunks(chunks))], durable).unwrap();
    commit(&mut store, vec![(small, PageChange::Whole(vec![0; 4096].into()))], Durability::Deferred).unwrap();
    commit(&mut store, vec![(small, PageChange::Free)], durable).unwrap();
    store.checkpoint().unwrap();
    store.roll_back("s").unwrap();
    let moved_from = {
        commit(&mut store, vec![(small, PageChange::Whole(vec![3; 4096].into()))], durable).unwrap();
        pointer(&store, small)
    };
    store.move_pages(&[small], durable).unwrap().unwrap();

    let told = hook.told.lock().unwrap();
    let first = told[0].generation.0;
    for (told, expected) in told.iter().zip(first..) {
        assert_eq!((told.generation.0, told.visible.0), (expected, expected - 1), "{told:?}");
        let deferred = told.generation.0 == first + 3;
        assert_eq!(told.synced.0, if deferred { expected - 1 } else { expected }, "{told:?}");
    }
    let pages: Vec<Vec<PageId>> =
        told.iter().map(|told| told.pages.iter().map(|update| update.page).collect()).collect();
    let both = vec![small, large];
    assert_eq!(pages, [vec![small], vec![], vec![large], vec![small], vec![small], both, vec![small], vec![]]);
    assert!(told[0].pages[0].old.is_null() && told[0].pages[0].new.stored_length == 4096);
    assert!(told[3].pages[0].new.extent().is_empty() && !told[3].pages[0].new.is_null(), "a page of zeros");
    assert!(told[4].pages[0].new.is_null(), "a freed page");
    assert_eq!(told[2].chunks.len(), 1);
    assert_eq!((told[2].chunks[0].page, told[2].chunks[0].chunk), (large, 1));
    assert_eq!(told[7].moves, [PageUpdate { page: small, old: moved_from, new: pointer(&store, small) }]);
    assert_eq!(told.len(), 8);
}

/// Reserves space for a page and writes it there.
fn spill(store: &mut Store, byte: u8, length: usize) -> Spilled {
    let reserved = store.reserve(&[length as u32]).unwrap();
    store.medium().spill(&[(reserved[0], &vec![byte; length])]).unwrap()[0]
}

#[test]
fn what_was_spilled_is_committed_once_and_read_back_before() {
    let disk = Arc::new(MemoryDisk::new());
    let mut store = store(&disk);
    let (small, large) = (page(12, 0), page(21, 0));
    let (one, chunk) = (spill(&mut store, 5, 4096), spill(&mut store, 6, MIB));
    assert_eq!(store.blocks_reserved(), 1 + 256);
    let mut bytes = vec![0; 4096];
    PageReader::new(store.nodes()).read(small, &one.pointer(), 0, &mut bytes).unwrap();
    assert_eq!(bytes, [5; 4096]);
    store.checkpoint().unwrap();
    assert_sound(&mut store);

    // Twice in one commit, or in a page of another size: nothing happens.
    let twice = vec![(small, PageChange::Whole(one.into())), (page(12, 1), PageChange::Whole(one.into()))];
    let refused = commit(&mut store, twice, Durability::Durable);
    assert!(matches!(refused, Err(Error::NotReserved { .. })), "{refused:?}");
    let refused = commit(&mut store, vec![(page(13, 0), PageChange::Whole(one.into()))], Durability::Durable);
    assert!(matches!(refused, Err(Error::OutOfPage { .. })), "{refused:?}");

    let chunks = BTreeMap::from([(1, chunk.into()), (0, vec![7; MIB].into())]);
    let changes = || vec![(small, PageChange::Whole(one.into())), (large, PageChange::Chunks(chunks.clone()))];
    commit(&mut store, changes(), Durability::Durable).unwrap();
    assert_eq!(pointer(&store, small).address, one.pointer().address, "it was not written again");
    assert_eq!(store.blocks_reserved(), 0);
    for refused in
        [commit(&mut store, changes(), Durability::Durable), store.give_back_reserved(one.reserved()).map(drop)]
    {
        assert!(matches!(refused, Err(Error::NotReserved { .. })), "{refused:?}");
    }
    assert_sound(&mut store);
    drop(store);

    let disk: Arc<dyn Disk> = disk;
    let (mut store, _) =
        Store::open(disk, Arc::new(NoReaders), Settings::default(), Box::new(SeededEntropy(2))).unwrap();
    assert_eq!((first_byte(&store, small), first_byte(&store, large)), (5, 7));
    assert_sound(&mut store);
}

#[test]
fn what_is_given_back_is_free_again_and_reserving_leaves_room() {
    let disk = Arc::new(MemoryDisk::new());
    let shared: Arc<dyn Disk> = Arc::clone(&disk) as _;
    let settings = Settings { blocks_limit: 4096, ..Settings::default() };
    let mut store = Store::create(shared, Arc::new(NoReaders), settings, Box::new(SeededEntropy(1))).unwrap();
    let mut held = Vec::new();
    let refused = loop {
        match store.reserve(&[MIB as u32, 4096]) {
            Ok(reserved) => held.extend(reserved),
            Err(error) => break error,
        }
    };
    assert!(refused.is_no_space() && held.len() > 8, "{refused}, {} held", held.len());
    // What is reserved keeps a commit from growing, but not from freeing, nor the checkpoint.
    store.checkpoint().unwrap();
    assert_sound(&mut store);
    let free = store.status().blocks_free;
    let blocks: u64 = held.iter().map(|reserved| u64::from(reserved.extent().blocks)).sum();
    assert_eq!(store.blocks_reserved(), blocks);
    for reserved in held {
        store.give_back_reserved(reserved).unwrap();
    }
    assert_eq!(store.status().blocks_free, free + blocks);
    commit(&mut store, vec![(page(20, 0), PageChange::Whole(vec![1; MIB].into()))], Durability::Durable).unwrap();
    assert_sound(&mut store);
    assert!(matches!(store.reserve(&[0]), Err(Error::InvalidOption { .. })));
    assert!(matches!(store.reserve(&[MIB as u32 + 1]), Err(Error::InvalidOption { .. })));
}
