use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::disk::{Disk, MemoryDisk};
use crate::error::{Corruption, Error, Fault};
use crate::format::{EntryKind, SUPERBLOCK_BLOCKS, Superblock};
use crate::id::{BLOCK_BYTES, PageId, SizeClass};
use crate::process::NoReaders;
use crate::store::{Durability, PageReader, Progress, SeededEntropy, Settings, Severity, VerifyLevel};

fn page(log2: u8, index: u64) -> PageId {
    PageId::new(SizeClass::new(log2).unwrap(), index).unwrap()
}

fn text(length: usize, seed: u64) -> Vec<u8> {
    (0_u64..).flat_map(|line| format!("{} {seed}\n", line * seed).into_bytes()).take(length).collect()
}

fn settings() -> Settings {
    Settings { segment_blocks: 16, log_segment_blocks: 16, growth_blocks: 64, ..Settings::default() }
}

fn create() -> (Arc<MemoryDisk>, Store) {
    let disk = Arc::new(MemoryDisk::new());
    let shared: Arc<dyn Disk> = Arc::clone(&disk) as _;
    let store = Store::create(shared, Arc::new(NoReaders), settings(), Box::new(SeededEntropy(5))).unwrap();
    (disk, store)
}

fn open(bytes: &[u8]) -> crate::Result<Store> {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::from_bytes(bytes));
    Store::open(disk, Arc::new(NoReaders), settings(), Box::new(SeededEntropy(6))).map(|(store, _)| store)
}

fn write(store: &mut Store, id: PageId, bytes: &[u8], compression: Compression) {
    let mut changes = Changes::default();
    changes.pages.insert(id, PageChange::Whole(Content::encode(bytes, compression)));
    store.commit(&changes, Durability::Durable).unwrap();
}

fn pointer(store: &Store, id: PageId) -> BlockPointer {
    store.state().pointer(&store.nodes, id).unwrap()
}

fn read(store: &Store, id: PageId) -> crate::Result<Vec<u8>> {
    let mut bytes = vec![0xaa; id.class().page_bytes() as usize];
    PageReader::new(&store.nodes).read(id, &pointer(store, id), 0, &mut bytes).map(|()| bytes)
}

fn superblocks(disk: &MemoryDisk) -> Vec<(u64, Superblock)> {
    let bytes = disk.to_bytes();
    let at = |block: u64| bytes[(block * BLOCK_BYTES) as usize..][..BLOCK_LENGTH].try_into().unwrap();
    SUPERBLOCK_BLOCKS.iter().map(|block| (*block, Superblock::decode(at(*block)).unwrap().unwrap())).collect()
}

#[test]
fn the_first_use_of_a_codec_sets_its_bit_in_both_copies_of_the_newest_superblock() {
    let (disk, mut store) = create();
    let newest = store.superblock().checkpoint;
    let bits = |disk: &MemoryDisk| -> Vec<u64> {
        let of_newest = superblocks(disk).into_iter().filter(|(_, superblock)| superblock.checkpoint == newest);
        of_newest.map(|(_, superblock)| superblock.features_incompatible).collect()
    };
    write(&mut store, page(14, 0), &text(16 << 10, 1), Compression::NONE);
    write(&mut store, page(12, 0), &text(4 << 10, 1), Compression::LZ4);
    assert_eq!(bits(&disk), [0, 0], "nothing was encoded");
    write(&mut store, page(14, 0), &text(16 << 10, 2), Compression::LZ4);
    assert_eq!(bits(&disk), [8, 8]);
    let syncs = store.counters().syncs;
    write(&mut store, page(14, 0), &text(16 << 10, 3), Compression::LZ4);
    assert_eq!(store.counters().syncs, syncs + 1, "the bit is there already");
    write(&mut store, page(14, 1), &text(16 << 10, 3), Compression::ZSTD);
    assert_eq!(bits(&disk), [24, 24]);
    store.checkpoint().unwrap();
    store.checkpoint().unwrap();
    assert_eq!(store.superblock().features_incompatible, 24);
}

#[test]
fn beside_a_checkpoint_a_new_codec_waits_and_pages_are_stored_as_they_are() {
    let (_, mut store) = create();
    write(&mut store, page(14, 0), &text(16 << 10, 1), Compression::LZ4);
    let mut job = store.checkpoint_begin().unwrap();
    write(&mut store, page(14, 1), &text(16 << 10, 2), Compression::LZ4);
    write(&mut store, page(14, 2), &text(16 << 10, 3), Compression::ZSTD);
    assert_eq!(pointer(&store, page(14, 1)).codec, Compression::LZ4.codec());
    assert_eq!(pointer(&store, page(14, 2)).codec, CodecId::RAW);
    while job.write().unwrap() == Progress::More {}
    store.checkpoint_finish(job).unwrap();
    write(&mut store, page(14, 2), &text(16 << 10, 4), Compression::ZSTD);
    assert_eq!(pointer(&store, page(14, 2)).codec, Compression::ZSTD.codec());
    for (index, seed) in [(0, 1), (1, 2), (2, 4)] {
        assert!(read(&store, page(14, index)).unwrap() == text(16 << 10, seed));
    }
}

#[test]
fn the_older_slot_leads_to_encoded_pages_and_gets_their_bits_again() {
    let (disk, mut store) = create();
    store.checkpoint().unwrap();
    write(&mut store, page(15, 0), &text(32 << 10, 1), Compression::ZSTD);
    drop(store);
    let newest = superblocks(&disk).iter().map(|(_, superblock)| superblock.checkpoint).max().unwrap();
    let mut bytes = disk.to_bytes();
    for copy in slot_blocks(newest) {
        bytes[(copy * BLOCK_BYTES) as usize..][..BLOCK_LENGTH].fill(0xa5);
    }
    let store = open(&bytes).unwrap();
    assert_eq!(store.superblock().features_incompatible, 16);
    assert!(read(&store, page(15, 0)).unwrap() == text(32 << 10, 1));
}

#[test]
fn moves_and_roll_backs_copy_encoded_bytes() {
    let (_, mut store) = create();
    let (whole, large) = (page(16, 0), page(21, 0));
    let chunks = |seed: u64, compression: Compression| {
        let chunk = |number: u64| Content::encode(text(1 << 20, seed + number), compression);
        PageChange::OnlyChunks(BTreeMap::from([(0, chunk(0)), (1, chunk(1))]))
    };
    write(&mut store, whole, &text(64 << 10, 1), Compression::ZSTD);
    let mut changes = Changes::default();
    changes.pages.insert(large, chunks(3, Compression::LZ4));
    store.commit(&changes, Durability::Durable).unwrap();
    let (before, large_before) = (pointer(&store, whole), read(&store, large).unwrap());

    store.move_pages(&[whole], Durability::Durable).unwrap().unwrap();
    let moved = pointer(&store, whole);
    assert_ne!(moved.address, before.address);
    assert_eq!(
        (moved.codec, moved.checksum, moved.stored_length),
        (before.codec, before.checksum, before.stored_length)
    );
    assert!(read(&store, whole).unwrap() == text(64 << 10, 1));

    store.name_state(EntryKind::Snapshot, "before", "", 0).unwrap();
    write(&mut store, whole, &text(64 << 10, 2), Compression::NONE);
    let mut changes = Changes::default();
    changes.pages.insert(large, chunks(9, Compression::NONE));
    store.commit(&changes, Durability::Durable).unwrap();
    store.roll_back("before").unwrap();
    let back = pointer(&store, whole);
    assert_eq!((back.codec, back.checksum, back.stored_length), (before.codec, before.checksum, before.stored_length));
    assert!(read(&store, whole).unwrap() == text(64 << 10, 1));
    assert!(read(&store, large).unwrap() == large_before);
    assert_eq!(PageReader::new(&store.nodes).chunk(large, &pointer(&store, large), 1).unwrap().codec.to_u8(), 3);
    assert_eq!(store.verify(VerifyLevel::Full, &mut |_| {}).unwrap().worst(), None);
}

#[test]
fn bytes_that_fit_their_sum_and_are_no_page_are_damage_of_that_page() {
    for codec in CodecId::all().filter(|codec| codec.codec().is_some()) {
        let (_, mut store) = create();
        let shorter: Compression = codec.name().parse().unwrap();
        let mut scratch = Vec::new();
        let length = shorter.encode(&text(8 << 10, 7).repeat(4)[..16 << 10], &mut scratch).unwrap();
        for stored in [vec![0x5a; 5000], vec![0; 1], scratch[..length].to_vec()] {
            let id = page(15, 0);
            let encoded = Encoded { codec, checksum: checksum(&stored), stored, page_bytes: 32 << 10, page: None };
            let mut changes = Changes::default();
            changes.pages.insert(id, PageChange::Whole(Content::Encoded(encoded)));
            store.commit(&changes, Durability::Durable).unwrap();
            let Err(Error::Corrupt(corruption)) = read(&store, id) else { panic!("{codec}: it was read") };
            let Corruption { page: found, offset, fault, .. } = *corruption;
            assert_eq!((found, offset), (Some(id), pointer(&store, id).address.offset_bytes()));
            assert!(matches!(fault, Fault::Undecodable(_)), "{fault}");
            let report = store.verify(VerifyLevel::Full, &mut |_| {}).unwrap();
            assert!(report.findings.iter().any(|finding| finding.page == Some(id)));
            assert_eq!(report.worst(), Some(Severity::Damage));
        }
    }
}

#[test]
fn every_damaged_byte_of_an_encoded_page_is_found_and_padding_means_nothing() {
    let (disk, mut store) = create();
    let id = page(14, 0);
    write(&mut store, id, &text(16 << 10, 3), Compression::LZ4);
    let (pointer, bytes) = (pointer(&store, id), disk.to_bytes());
    let start = pointer.address.offset_bytes() as usize;
    let end = start + pointer.extent().blocks as usize * BLOCK_LENGTH;
    let stored = start..start + pointer.stored_length as usize;
    assert!(stored.end < end && bytes[stored.end..end].iter().all(|byte| *byte == 0));
    for at in start..end {
        disk.write_at(at as u64, &[bytes[at] ^ 1 << (at % 8)]).unwrap();
        match read(&store, id) {
            Ok(read) => assert!(!stored.contains(&at) && read == text(16 << 10, 3)),
            Err(Error::Corrupt(corruption)) => assert!(stored.contains(&at) && corruption.page == Some(id)),
            Err(error) => panic!("{error}"),
        }
        disk.write_at(at as u64, &bytes[at..=at]).unwrap();
    }
}

#[test]
fn a_store_that_needs_a_codec_of_another_build_is_refused() {
    let (disk, store) = create();
    drop(store);
    let mut bytes = disk.to_bytes();
    for (block, mut superblock) in superblocks(&disk) {
        superblock.features_incompatible = 1 << 30;
        bytes[(block * BLOCK_BYTES) as usize..][..BLOCK_LENGTH].copy_from_slice(&superblock.encode());
    }
    assert!(matches!(open(&bytes), Err(Error::UnsupportedFeatures { bits, .. }) if bits == 1 << 30));
}
