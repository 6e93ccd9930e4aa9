//! What the core tells whoever keeps pages in memory, and space that is written before its commit.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use vellum::disk::{Disk, MemoryDisk, SimulatedDisk};
use vellum::format::{BlockPointer, EntryKind};
use vellum::process::{NoReaders, PinTable, PublishedState, ReaderPin};
use vellum::store::{
    Changes, CheckpointJob, ChunkUpdate, Content, Durability, PageChange, PageReader, PageUpdate, Progress,
    Publication, PublishHook, Published, SeededEntropy, Settings, Spilled, Store, VerifyLevel,
};
use vellum::{CodecId, Compression, Error, Generation, PageId, SizeClass};

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

/// Notes what it is told, and in which order.
#[derive(Debug)]
struct Diary {
    published: Arc<Published>,
    entries: Mutex<Vec<(&'static str, Generation, Vec<PageId>)>>,
}

impl Diary {
    fn note(&self, what: &'static str, publication: &Publication<'_>) {
        let pages = publication.pages().map(|update| update.page).collect();
        self.entries.lock().unwrap().push((what, publication.generation, pages));
    }
}

impl PublishHook for Diary {
    fn prepare(&self, publication: &Publication<'_>) {
        assert!(
            self.published.synced() < publication.generation
                && self.published.pin().generation < publication.generation
        );
        self.note("prepare", publication);
    }

    fn publish(&self, publication: &Publication<'_>) {
        self.note("publish", publication);
    }
}

#[test]
fn a_commit_that_waits_for_its_pages_is_announced_while_it_does() {
    let mut store = store(&Arc::new(MemoryDisk::new()));
    let diary = Arc::new(Diary { published: Arc::clone(store.published()), entries: Mutex::default() });
    store.set_publish_hook(Arc::clone(&diary) as _);
    let pages: Vec<PageId> = (0..40).map(|index| page(12, index)).collect();
    let changes = |count: usize| pages.iter().take(count).map(|page| (*page, PageChange::Whole(vec![7; 4096].into())));
    for (count, durability) in [(40, Durability::Durable), (1, Durability::Durable), (40, Durability::Deferred)] {
        commit(&mut store, changes(count).collect(), durability).unwrap();
    }
    let first = store.state().generation.0 - 2;
    let told = |what, number: u64, count: usize| (what, Generation(first + number), pages[..count].to_vec());
    let expected = [
        told("prepare", 0, 40),
        told("publish", 0, 40),
        // In the log it is one write, with nothing to wait for beside it.
        told("publish", 1, 1),
        told("prepare", 2, 40),
        told("publish", 2, 40),
    ];
    assert_eq!(*diary.entries.lock().unwrap(), expected);
}

/// A table of readers that cannot be read as often as is said.
#[derive(Debug, Default)]
struct Unreadable(Mutex<usize>);

impl PinTable for Unreadable {
    fn pins(&self) -> vellum::Result<Vec<ReaderPin>> {
        let mut left = self.0.lock().unwrap();
        if *left > 0 {
            *left -= 1;
            return Err(Error::Busy);
        }
        Ok(Vec::new())
    }

    fn publish(&self, _: PublishedState) -> vellum::Result<()> {
        Ok(())
    }
}

#[test]
fn what_giving_blocks_free_comes_upon_beside_a_commit_fails_the_next_one() {
    let table = Arc::new(Unreadable::default());
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    // Without want of space, which would be a reason to look before.
    let settings = Settings { growth_blocks: 4096, ..Settings::default() };
    let mut store = Store::create(disk, Arc::clone(&table) as _, settings, Box::new(SeededEntropy(1))).unwrap();
    let pages: Vec<PageId> = (0..40).map(|index| page(12, index)).collect();
    let fill = |store: &mut Store, byte: u8| {
        let changes = pages.iter().map(|page| (*page, PageChange::Whole(vec![byte; 4096].into())));
        commit(store, changes.collect(), Durability::Durable)
    };
    fill(&mut store, 1).unwrap();
    *table.0.lock().unwrap() = 1;
    fill(&mut store, 2).unwrap();
    assert_eq!(first_byte(&store, pages[39]), 2);
    assert!(matches!(fill(&mut store, 3), Err(Error::Busy)));
    assert_eq!(first_byte(&store, pages[39]), 2);
    // It is told once; and blocks come to be free again.
    let mut free = Vec::new();
    for byte in 4..12 {
        fill(&mut store, byte).unwrap();
        free.push(store.status().blocks_free);
    }
    assert_eq!((first_byte(&store, pages[0]), free[6]), (11, free[7]), "{free:?}");
    assert_sound(&mut store);
}

/// Reserves space for a page and writes it there.
/// A checkpoint that runs beside a commit, and whose first sync fails while the commit's record is on its way.
#[derive(Debug)]
struct FailingCheckpoint {
    disk: Arc<SimulatedDisk>,
    job: Mutex<Option<CheckpointJob>>,
}

impl PublishHook for FailingCheckpoint {
    fn prepare(&self, _: &Publication<'_>) {
        if let Some(mut job) = self.job.lock().unwrap().take() {
            self.disk.fail_sync_at(1);
            while let Ok(Progress::More) = job.write() {}
        }
    }

    fn publish(&self, _: &Publication<'_>) {}
}

#[test]
fn a_commit_whose_record_may_be_there_never_says_that_it_is_not() {
    let disk = Arc::new(SimulatedDisk::new());
    let shared: Arc<dyn Disk> = Arc::clone(&disk) as _;
    let settings = Settings { in_log_blocks: 0, ..Settings::default() };
    let mut store = Store::create(shared, Arc::new(NoReaders), settings.clone(), Box::new(SeededEntropy(1))).unwrap();
    let write = |store: &mut Store, index: u64| {
        commit(store, vec![(page(12, index), PageChange::Whole(vec![7; 4096].into()))], Durability::Durable)
    };
    write(&mut store, 0).unwrap();
    let job = Mutex::new(Some(store.checkpoint_begin().unwrap()));
    store.set_publish_hook(Arc::new(FailingCheckpoint { disk: Arc::clone(&disk), job }));
    let error = write(&mut store, 1).unwrap_err();
    assert!(matches!(error, Error::CommitUnknown { .. }), "{error}");
    // From now on writing is refused before anything is written.
    assert!(matches!(write(&mut store, 2), Err(Error::Poisoned { .. })));
    drop(store);
    let image = SimulatedDisk::from_image(&disk.image());
    let (store, _) = Store::open(Arc::new(image), Arc::new(NoReaders), settings, Box::new(SeededEntropy(2))).unwrap();
    assert_eq!((first_byte(&store, page(12, 1)), pointer(&store, page(12, 2)).is_null()), (7, true));
}

fn spill(store: &mut Store, byte: u8, length: usize) -> Spilled {
    let mut unit = [Content::from(vec![byte; length])];
    let reserved = store.reserve(&mut unit).unwrap();
    store.medium().spill(&[(reserved[0], &unit[0])]).unwrap()[0]
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
fn what_was_spilled_encoded_takes_fewer_blocks_and_is_read_back_decoded() {
    let disk = Arc::new(MemoryDisk::new());
    let mut store = store(&disk);
    let text = |seed: usize, length: usize| -> Vec<u8> {
        (0..).flat_map(|line: usize| format!("{} {seed}\n", line * seed).into_bytes()).take(length).collect()
    };
    let pages =
        [(page(16, 0), 1, Compression::LZ4), (page(20, 0), 2, Compression::ZSTD), (page(12, 0), 3, Compression::LZ4)];
    let mut units: Vec<Content<'static>> = pages
        .iter()
        .map(|(page, seed, compression)| Content::encode(text(*seed, page.class().page_bytes() as usize), *compression))
        .collect();
    let reserved = store.reserve(&mut units).unwrap();
    // What is written is what was reserved for.
    let other = (reserved[0], &Content::from(vec![1; 64 << 10]));
    assert!(matches!(store.medium().spill(&[other]), Err(Error::NotReserved { .. })));
    let pairs: Vec<_> = reserved.into_iter().zip(&units).collect();
    let spilled = store.medium().spill(&pairs).unwrap();
    let codecs: Vec<CodecId> = spilled.iter().map(Spilled::codec).collect();
    assert_eq!(codecs, [Compression::LZ4.codec(), Compression::ZSTD.codec(), CodecId::RAW]);
    assert!(store.blocks_reserved() < (64 + 1024 + 4) / 4, "{}", store.blocks_reserved());
    let check = |store: &Store, pointer_of: &dyn Fn(usize) -> BlockPointer| {
        for (index, (page, seed, _)) in pages.iter().enumerate() {
            let mut bytes = vec![0xAA; page.class().page_bytes() as usize];
            PageReader::new(store.nodes()).read(*page, &pointer_of(index), 0, &mut bytes).unwrap();
            assert!(bytes == text(*seed, bytes.len()), "{page}");
        }
    };
    check(&store, &|index| spilled[index].pointer());
    // A page of another size is not made of it.
    let wrong = vec![(page(15, 0), PageChange::Whole(spilled[0].into()))];
    assert!(matches!(commit(&mut store, wrong, Durability::Durable), Err(Error::OutOfPage { .. })));
    let changes = pages.iter().zip(&spilled).map(|((page, ..), spilled)| (*page, PageChange::Whole((*spilled).into())));
    commit(&mut store, changes.collect(), Durability::Durable).unwrap();
    assert_sound(&mut store);
    drop(store);

    let disk: Arc<dyn Disk> = disk;
    let (mut store, _) =
        Store::open(disk, Arc::new(NoReaders), Settings::default(), Box::new(SeededEntropy(2))).unwrap();
    check(&store, &|index| pointer(&store, pages[index].0));
    assert_sound(&mut store);
}

#[test]
fn beside_a_checkpoint_pages_are_spilled_by_known_codecs_only() {
    let disk = Arc::new(MemoryDisk::new());
    let mut store = store(&disk);
    let job = store.checkpoint_begin().unwrap();
    let mut unit = [Content::encode(vec![7; 16 << 10], Compression::LZ4)];
    assert_eq!(unit[0].codec(), Compression::LZ4.codec());
    let reserved = store.reserve(&mut unit).unwrap();
    assert_eq!((unit[0].codec(), reserved[0].extent().blocks), (CodecId::RAW, 4));
    let spilled = store.medium().spill(&[(reserved[0], &unit[0])]).unwrap()[0];
    store.checkpoint_abandon(job).unwrap();
    commit(&mut store, vec![(page(14, 0), PageChange::Whole(spilled.into()))], Durability::Durable).unwrap();
    assert_eq!((pointer(&store, page(14, 0)).codec, first_byte(&store, page(14, 0))), (CodecId::RAW, 7));
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
        match store.reserve(&mut [vec![0; MIB].into(), vec![0; 4096].into()]) {
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
    assert!(matches!(store.reserve(&mut [Vec::new().into()]), Err(Error::InvalidOption { .. })));
    assert!(matches!(store.reserve(&mut [vec![0; MIB + 1].into()]), Err(Error::InvalidOption { .. })));
}
