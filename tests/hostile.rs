//! Files made to harm: every sum fits, and what they say cannot be. The answer is an error, at once, without a panic
//! and without setting aside what the file does not justify. (The fuzz targets look for more of the kind.)
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use vellum::disk::{Access, Caching, Disk, FileDisk, Image, MemoryDisk};
use vellum::format::{
    BlockPointer, CodecId, Entry, EntryKind, Node, NodeIdentity, NodeKind, NodeSummary, PointerFlags, RecordFlags,
    RecordHeader, RecordIdentity, SUPERBLOCK_BLOCKS, Seal, SealHasher, SegmentReference, Superblock, TreeRoot,
    checksum, encode_entries, encode_record, finish_record, height_of, record_blocks, slot_blocks,
};
use vellum::process::NoReaders;
use vellum::store::{
    Changes, Durability, FollowLimit, Follower, NewSpace, PageChange, SeededEntropy, Settings, Store, VerifyLevel,
};
use vellum::testing::{History, Step, tiny};
use vellum::{
    Block, CheckpointNumber, Error, Extent, Fault, Generation, Incarnation, PageId, SizeClass, StoreId, Structure,
};

/// A closed store with a snapshot and dead extents.
fn image() -> Image {
    let mut history = History::create(tiny(), 8).unwrap();
    for step in [
        Step::Write(vec![(12, 0), (12, 1), (13, 0)]),
        Step::Snapshot(0),
        Step::Write(vec![(12, 0), (14, 0)]),
        Step::Checkpoint,
        Step::Write(vec![(12, 2)]),
        Step::Checkpoint,
    ] {
        history.step(&step).unwrap();
    }
    history.disk.image()
}

fn superblock(image: &Image) -> Superblock {
    let decoded = SUPERBLOCK_BLOCKS.into_iter().filter_map(|block| {
        let mut bytes = [0; 4096];
        image.read_at(block * 4096, &mut bytes).unwrap();
        Superblock::decode(&bytes).unwrap()
    });
    decoded.max_by_key(|superblock| superblock.checkpoint).unwrap()
}

/// The image with another newest superblock, and none else.
fn with_superblock(image: &Image, superblock: &Superblock) -> Image {
    let mut image = image.clone();
    for block in SUPERBLOCK_BLOCKS {
        let is_own = slot_blocks(superblock.checkpoint).contains(&block);
        let bytes = if is_own { superblock.encode() } else { [0xee; 4096] };
        image = image.with_bytes_at(block * 4096, &bytes).unwrap();
    }
    image
}

fn open(image: &Image) -> vellum::Result<Store> {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::from_bytes(&image.to_bytes()));
    Store::open(disk, Arc::new(NoReaders), tiny(), Box::new(SeededEntropy(1))).map(|(store, _)| store)
}

#[test]
fn the_image_is_a_good_one_until_it_is_changed() {
    let image = image();
    assert!(open(&with_superblock(&image, &superblock(&image))).is_ok());
    assert!(open(&with_record(&image, &[Entry::Dead { old: pointer(60, 1) }], |_| {}).0).is_ok());
}

#[test]
fn log_segments_that_cannot_be_are_refused() {
    let image = image();
    let good = superblock(&image);
    let reference = |start, blocks| SegmentReference { extent: Extent::new(start, blocks), salt: 77 };
    for wrong in [reference(30, u32::MAX), reference(30, 32769), reference(1 << 47, 6), reference(u64::MAX - 3, 6)] {
        let mut superblock = good.clone();
        superblock.segments.push(wrong);
        assert!(matches!(open(&with_superblock(&image, &superblock)), Err(Error::Corrupt(_))), "{wrong:?}");
    }
    // Two that overlap, and one that lies over a page.
    for wrong in [good.segments[0], reference(good.segments[0].extent.start.0 + 1, 6)] {
        let mut superblock = good.clone();
        superblock.segments.push(wrong);
        let opened = open(&with_superblock(&image, &superblock));
        let harmless = opened.map(|mut store| store.verify(VerifyLevel::Full, &mut |_| {}));
        assert!(!matches!(harmless, Ok(Ok(report)) if report.findings.is_empty()), "{wrong:?}");
    }
}

#[test]
fn counters_at_their_end_are_told_of() {
    let image = image();
    let good = superblock(&image);
    // The parity is the slot's.
    let last = u64::MAX - (good.checkpoint.0 + 1) % 2;
    let superblock = Superblock { checkpoint: vellum::CheckpointNumber(last), ..good.clone() };
    let told = match open(&with_superblock(&image, &superblock)) {
        Ok(mut store) => store.checkpoint().map(drop).and_then(|()| store.checkpoint().map(drop)),
        Err(error) => Err(error),
    };
    assert!(matches!(told, Err(Error::Exhausted { .. })) || last != u64::MAX, "{told:?}");

    let superblock = Superblock { next_catalogue_id: u64::MAX, ..good.clone() };
    let mut store = open(&with_superblock(&image, &superblock)).unwrap();
    let named = store.name_state(EntryKind::Snapshot, "another", "", 0);
    assert!(matches!(named, Err(Error::Exhausted { counter: "catalogue id" })));

    let superblock = Superblock { generation: Generation(u64::MAX), ..good };
    assert!(matches!(open(&with_superblock(&image, &superblock)), Err(Error::Exhausted { .. })));
}

#[test]
fn lengths_that_trees_cannot_have_are_found_out() {
    let image = image();
    let good = superblock(&image);
    let mut wrong: Vec<Superblock> = Vec::new();
    for length in [1, 169, 1 << 20, 1 << 48] {
        let mut superblock = good.clone();
        superblock.deferred.length = length + 1;
        wrong.push(superblock);
        let mut superblock = good.clone();
        superblock.catalogue.length = length + 168;
        wrong.push(superblock);
        wrong.push(Superblock { deferred_entries: good.deferred_entries + length, ..good.clone() });
        wrong.push(Superblock { blocks_total: good.blocks_total + length, ..good.clone() });
    }
    for superblock in wrong {
        assert!(matches!(open(&with_superblock(&image, &superblock)), Err(Error::Corrupt(_))), "{superblock:?}");
    }
    // A map of 2^48 positions with a root of fewer: its walks end.
    let mut superblock = good;
    superblock.maps[0].length = 1 << 48;
    if let Ok(mut store) = open(&with_superblock(&image, &superblock)) {
        let report = store.verify(VerifyLevel::Full, &mut |_| {}).unwrap();
        assert!(!report.findings.is_empty());
    }
}

/// The root of a tree of 2^48 positions, of as many nodes as it has levels. Each is one for position 0, and has the same
/// child 168 times; those of level 0 lead to `entry`. The nodes lie behind each other at the end of the file.
fn endless_tree(
    image: &Image,
    store: StoreId,
    kind: NodeKind,
    class: u8,
    entry: BlockPointer,
    at: u64,
) -> (Image, TreeRoot) {
    let (mut image, length) = (image.clone(), PageId::INDEX_LIMIT);
    let mut below = entry;
    for level in 0..height_of(length) {
        let mut node = Node::empty();
        node.entries_mut().fill(below);
        let identity = NodeIdentity { store, kind, class, owner: 0, level, position: 0 };
        let summary = NodeSummary { birth: below.birth, checkpoint: CheckpointNumber(1), free_entries: 0 };
        let bytes = node.encode(&identity, summary);
        let address = at + u64::from(level);
        image = image.with_bytes_at(address * 4096, &bytes).unwrap();
        below = BlockPointer { checksum: checksum(&bytes), birth: below.birth, ..pointer(address, 1) };
    }
    (image, TreeRoot { pointer: below, length })
}

/// What `work` returns, which must be soon.
fn at_once<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = channel();
    std::thread::spawn(move || drop(sender.send(work())));
    receiver.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|_| panic!("{what}: no end of it in 30 s"))
}

/// An image whose newest superblock is changed; the other slot is whole.
fn with_newest(image: &Image, superblock: &Superblock) -> Image {
    slot_blocks(superblock.checkpoint)
        .into_iter()
        .fold(image.clone(), |image, block| image.with_bytes_at(block * 4096, &superblock.encode()).unwrap())
}

/// Seven nodes that stand for 168^7: what was looked for is compared though the node is in memory already.
#[test]
fn a_node_that_stands_for_many_positions_is_met_once() {
    let image = image();
    let good = superblock(&image);
    let at = good.blocks_total - 20;
    let hostile = |kind, entry: BlockPointer| {
        let (image, root) = endless_tree(&image, good.store, kind, 0, entry, at);
        let mut superblock = good.clone();
        match kind {
            NodeKind::Bitmap => superblock.bitmap = root,
            NodeKind::Catalogue => superblock.catalogue = root,
            _ => (superblock.deferred, superblock.deferred_entries) = (root, 0),
        }
        (with_newest(&image, &superblock), with_superblock(&image, &superblock))
    };
    let leaf = BlockPointer { birth: Generation(1), ..pointer(at + 10, 1) };
    let nothing = BlockPointer::default();
    for (kind, entry) in [
        (NodeKind::Bitmap, leaf),
        (NodeKind::Bitmap, nothing),
        (NodeKind::Deferred, leaf),
        (NodeKind::Deferred, nothing),
        (NodeKind::Catalogue, nothing),
    ] {
        let (beside_a_good_one, alone) = hostile(kind, entry);
        let opened = at_once("beside a good slot", move || open(&beside_a_good_one).map(drop));
        assert!(opened.is_ok(), "the other slot serves: {kind:?}, {opened:?}");
        let opened = at_once("alone", {
            let alone = alone.clone();
            move || open(&alone).map(drop)
        });
        assert!(matches!(opened, Err(Error::Corrupt(_))), "{kind:?}: {opened:?}");
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::from_bytes(&alone.to_bytes()));
        let followed = at_once("followed", move || {
            let follower = Follower::open(disk, 0, 1000, FollowLimit::Durable(None))?;
            follower.map_or(Ok(0), |follower| follower.bytes_held(&[]))
        });
        // A follower has no use for the bitmap.
        assert!(kind == NodeKind::Bitmap || matches!(followed, Err(Error::Corrupt(_))), "{kind:?}: {followed:?}");
    }
}

#[test]
fn a_map_that_never_ends_is_checked_and_listed_at_once() {
    let image = image();
    let good = superblock(&image);
    let zero = BlockPointer::zero(Generation(1));
    let shared = BlockPointer { birth: Generation(1), ..pointer(good.blocks_total - 4, 1) };
    for entry in [zero, shared, BlockPointer::default()] {
        let (image, root) = endless_tree(&image, good.store, NodeKind::Map, 12, entry, good.blocks_total - 20);
        let mut superblock = good.clone();
        superblock.maps[0] = root;
        let image = with_superblock(&image, &superblock);
        let (findings, next) = at_once("a map", move || {
            let mut store = open(&image).unwrap();
            let findings = store.verify(VerifyLevel::Full, &mut |_| {}).unwrap().findings;
            (findings, store.state().maps.get()[0].next(store.nodes(), 168))
        });
        assert!(findings.iter().any(|finding| finding.message.contains("node position")), "{findings:?}");
        assert!(matches!(next, Err(Error::Corrupt(_))), "{next:?}");
    }
}

#[test]
fn trees_longer_than_what_they_are_of_are_told_of() {
    let image = image();
    let good = superblock(&image);
    let told = |superblock: &Superblock| match open(&with_superblock(&image, superblock)) {
        Err(Error::Corrupt(corruption)) => corruption.fault,
        other => panic!("{:?}", other.map(|store| store.state().generation)),
    };
    let mut superblock = good.clone();
    superblock.bitmap.length = good.blocks_total.div_ceil(32768) + 1;
    assert!(matches!(told(&superblock), Fault::Field { field: "leaves of the bitmap", .. }));
    let mut superblock = good.clone();
    superblock.deferred.length = good.deferred_entries.div_ceil(102) + 1;
    assert!(matches!(told(&superblock), Fault::Field { field: "blocks of the deferred list", .. }));
}

/// Nothing but the end of the file says how long it is, and that costs nothing.
#[test]
fn a_file_that_is_much_longer_than_its_superblock_says_takes_no_memory_for_it() {
    let image = image();
    let good = superblock(&image);
    for length in [1 << 52, 1 << 58, (1 << 60) - 4096] {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::from_bytes(&image.to_bytes()));
        disk.set_length(length).unwrap();
        let shared = Arc::clone(&disk);
        let opened = Store::open(shared, Arc::new(NoReaders), tiny(), Box::new(SeededEntropy(1)));
        let (mut store, _) = opened.unwrap();
        let beyond = store.status().blocks_total - good.blocks_total;
        assert!(beyond <= 1 << 28, "{beyond} blocks more, of a file of {length} bytes");
        let mut changes = Changes::default();
        changes.pages.insert(PageId::new(SizeClass::MIN, 9).unwrap(), PageChange::Whole(vec![1; 4096].into()));
        store.commit(&changes, Durability::Durable).unwrap();
        store.checkpoint().unwrap();
        assert_eq!(disk.length().unwrap(), length);
    }
}

/// A superblock can say that it is, and a record can. What the system does not have is no reason to end the process.
#[test]
fn a_file_too_long_to_be_kept_account_of_is_an_error() {
    // Where the system promises whatever it is asked for, it is no error there and then.
    if std::fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim() == "1") {
        return;
    }
    let image = image();
    let good = superblock(&image);
    let length = (1 << 60) - 4096;
    let open_long = |image: &Image| {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::from_bytes(&image.to_bytes()));
        disk.set_length(length).unwrap();
        Store::open(disk, Arc::new(NoReaders), tiny(), Box::new(SeededEntropy(1))).map(drop)
    };
    let superblock = Superblock { blocks_total: length / 4096, ..good };
    let opened = open_long(&with_superblock(&image, &superblock));
    assert!(matches!(opened, Err(Error::Memory { .. })), "{opened:?}");
    let announced = |header: &mut RecordHeader| {
        header.next_segment = Some(SegmentReference { extent: Extent::new(length / 4096 - 6, 6), salt: 5 });
    };
    let opened = open_long(&with_record(&image, &[], announced).0);
    assert!(matches!(opened, Err(Error::Memory { .. })), "{opened:?}");
}

fn pointer(address: u64, blocks: u32) -> BlockPointer {
    BlockPointer {
        address: Block(address),
        codec: CodecId::RAW,
        flags: PointerFlags::default(),
        stored_length: blocks * 4096,
        checksum: checksum(&vec![0; blocks as usize * 4096]),
        birth: Generation(1),
    }
}

/// The image with one record more, whose links and sums fit, and the generation it makes.
fn with_record(image: &Image, entries: &[Entry], change: impl Fn(&mut RecordHeader)) -> (Image, Generation) {
    let superblock = superblock(image);
    let segment = superblock.segments[superblock.log_segment as usize];
    let address = Block(segment.extent.start.0 + u64::from(superblock.log_offset));
    let identity = RecordIdentity { store: superblock.store, address, salt: segment.salt };
    let blocks = record_blocks(entries.len(), 0);
    assert!(u64::from(superblock.log_offset) + blocks <= u64::from(segment.extent.blocks), "it does not fit");
    let generation = superblock.generation.next().unwrap();
    let mut header = RecordHeader {
        seal: Seal::default(),
        blocks: blocks as u32,
        run_blocks: blocks as u32,
        flags: RecordFlags::DATA_SYNCED,
        entries: entries.len() as u32,
        blob_length: 0,
        incarnation: Incarnation(9),
        salt: segment.salt,
        generation,
        synced_through: superblock.generation,
        previous_seal: superblock.log_seal,
        next_segment: None,
        body_length: 0,
        body_seal: Seal::default(),
    };
    change(&mut header);
    let mut record = vec![0; blocks as usize * 4096];
    encode_record(&mut record, &identity, &header, entries, &[]);
    let pages: Vec<Vec<u8>> = match header.flags.contains(RecordFlags::DATA_SYNCED) {
        true => Vec::new(),
        false => entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::Set { new, .. } => {
                    let mut bytes = vec![0; new.stored_length as usize];
                    image.read_at(new.address.offset_bytes(), &mut bytes).unwrap();
                    Some(bytes)
                }
                _ => None,
            })
            .collect(),
    };
    finish_record(&mut record, segment.salt, pages.iter().map(|page| Seal::of(segment.salt, page)));
    (image.with_bytes_at(address.offset_bytes(), &record).unwrap(), generation)
}

fn refused(opened: vellum::Result<Store>, what: &str) {
    assert!(matches!(opened, Err(Error::Corrupt(_))), "{what}: {:?}", opened.map(|store| store.state().generation));
}

#[test]
fn records_that_name_what_cannot_be_are_refused() {
    let image = image();
    let page = |log2, index| PageId::new(SizeClass::new(log2).unwrap(), index).unwrap();
    let null = BlockPointer::default();
    let far = pointer(1 << 47, 1);
    refused(open(&with_record(&image, &[Entry::Set { page: page(12, 9), new: far, old: null }], |_| {}).0), "far");
    let used = superblock(&image).maps[0].pointer;
    let over = Entry::Set { page: page(12, 9), new: BlockPointer { birth: Generation(1), ..used }, old: null };
    // Whether a block is in use is looked up when its leaf of the bitmap is first needed.
    let opened = open(&with_record(&image, &[over], |_| {}).0);
    assert!(opened.and_then(|mut store| store.verify(VerifyLevel::Quick, &mut |_| {})).is_err());
    let twice =
        [60, 60].map(|address| Entry::Dead { old: BlockPointer { birth: Generation(5), ..pointer(address, 1) } });
    refused(open(&with_record(&image, &twice, |_| {}).0), "dead twice");
    let far = SegmentReference { extent: Extent::new(1 << 40, 6), salt: 5 };
    let announced = |header: &mut RecordHeader| header.next_segment = Some(far);
    refused(open(&with_record(&image, &[], announced).0), "a segment far away");
}

/// A record that announces a segment beyond the file's end may be right: the file can have lost growth. But a segment far
/// beyond is not a reason to fill the disk.
#[test]
fn a_segment_beyond_the_end_takes_no_more_of_the_disk_than_growth_does() {
    let folder = tempfile::tempdir().unwrap();
    let image = image();
    let blocks = superblock(&image).blocks_total;
    // What is taken of the disk: the near one all that lies between, the far one next to nothing of its 2 GiB.
    for (beyond, at_least, at_most) in [(100, 100, 1000), (1 << 19, 0, 1000)] {
        let segment = SegmentReference { extent: Extent::new(blocks + beyond, 6), salt: 5 };
        let (image, _) = with_record(&image, &[], |header| header.next_segment = Some(segment));
        let path = folder.path().join(format!("{beyond}"));
        std::fs::write(&path, image.to_bytes()).unwrap();
        let taken = || std::fs::metadata(&path).unwrap().blocks() / 8;
        let before = taken();
        let disk = FileDisk::open(&path, Access::ReadWrite, Caching::Buffered).unwrap();
        let settings = Settings { new_space: NewSpace::Prewritten, ..tiny() };
        let (mut store, _) =
            Store::open(Arc::new(disk), Arc::new(NoReaders), settings, Box::new(SeededEntropy(1))).unwrap();
        let length = std::fs::metadata(&path).unwrap().len() / 4096;
        assert!(length >= blocks + beyond + 6 && length >= store.status().blocks_total);
        let more = taken() - before;
        assert!((at_least..at_most).contains(&more), "{more} blocks for a segment {beyond} beyond the end");
        store.checkpoint().unwrap();
    }
}

/// One extent named again and again by a record whose seal fits would be read, and held, as often.
#[test]
fn pages_that_share_an_extent_are_not_read_again_and_again() {
    let image = image();
    let extent = {
        let mut bytes = vec![0; 8 * 4096];
        image.read_at(50 * 4096, &mut bytes).unwrap();
        BlockPointer { checksum: checksum(&bytes), ..pointer(50, 8) }
    };
    let entries: Vec<Entry> = (0..59)
        .map(|index| {
            let page = PageId::new(SizeClass::new(15).unwrap(), index).unwrap();
            Entry::Set { page, new: extent, old: BlockPointer::default() }
        })
        .collect();
    let (image, _) = with_record(&image, &entries, |header| header.flags = RecordFlags::default());
    let opened = open(&image);
    let overlap = matches!(&opened, Err(Error::Corrupt(corruption)) if corruption.fault == Fault::Overlap);
    assert!(overlap, "{:?}", opened.map(|_| ()));
}

#[test]
fn a_body_that_is_named_again_and_again_is_not_read_so_often() {
    let image = image();
    let body = Entry::Body { new: pointer(superblock(&image).blocks_total - 4, 4) };
    let (image, _) = with_record(&image, &[body; 59], |header| header.flags = RecordFlags::EXTERNAL_BODY);
    refused(open(&image), "a body named 59 times");
}

/// A store with a record whose body lies in the last blocks of the file and has one entry: a page of zeros, or another.
/// The pointer that leads to it, and the header, may be spoiled.
fn open_with_body(
    entry: Option<Entry>,
    spoil: impl Fn(&mut BlockPointer),
    spoil_header: impl Fn(&mut RecordHeader),
) -> vellum::Result<Store> {
    let image = image();
    let at = superblock(&image).blocks_total - 4;
    let page = PageId::new(SizeClass::MIN, 9).unwrap();
    let set = Entry::Set { page, new: BlockPointer::zero(Generation(7)), old: BlockPointer::default() };
    let mut body = vec![0; 64];
    encode_entries(&mut body, &[entry.unwrap_or(set)]);
    let mut hasher = SealHasher::new(0);
    hasher.update(&body);
    let seal = hasher.finish();
    let mut new = BlockPointer { stored_length: 64, checksum: checksum(&body), ..pointer(at, 1) };
    spoil(&mut new);
    let image = image.with_bytes_at(at * 4096, &body).unwrap();
    let (image, _) = with_record(&image, &[Entry::Body { new }], |header| {
        header.flags = RecordFlags::EXTERNAL_BODY.with(RecordFlags::DATA_SYNCED);
        (header.body_length, header.body_seal) = (64, seal);
        spoil_header(header);
    });
    open(&image)
}

#[test]
fn a_body_that_cannot_be_is_damage_with_a_place() {
    let good = open_with_body(None, |_| {}, |_| {}).unwrap();
    let page = PageId::new(SizeClass::MIN, 9).unwrap();
    assert!(!good.state().pointer(good.nodes(), page).unwrap().is_null());
    let blocks_total = superblock(&image()).blocks_total;

    let told = |opened: vellum::Result<Store>, what: &str| match opened {
        Err(Error::Corrupt(corruption)) if corruption.structure == Structure::Record => *corruption,
        other => panic!("{what}: {:?}", other.map(|store| store.state().generation)),
    };
    // Beyond the end of the file, where a read would be short.
    for beyond in [blocks_total, 1 << 40] {
        let corruption = told(open_with_body(None, |new| new.address = Block(beyond), |_| {}), "beyond the end");
        assert!(matches!(corruption.fault, Fault::Truncated { .. }), "{corruption}");
        assert_eq!(corruption.offset, beyond * 4096);
    }
    let corruption =
        told(open_with_body(None, |new| new.birth = Generation(1 << 40), |_| {}), "younger than its record");
    assert!(matches!(corruption.fault, Fault::Field { field: "birth of a body", .. }), "{corruption}");
    assert_eq!(corruption.offset, (blocks_total - 4) * 4096);
    for length in [0, 63, 65, 128, u64::MAX] {
        let corruption = told(open_with_body(None, |_| {}, |header| header.body_length = length), "another length");
        assert!(matches!(corruption.fault, Fault::Field { field: "body length", .. }), "{corruption}");
    }
    told(open_with_body(None, |new| new.checksum ^= 1, |_| {}), "another sum");
    told(open_with_body(None, |_| {}, |header| header.body_seal.0[3] ^= 1), "another seal");
    told(open_with_body(None, |new| new.stored_length = 32, |_| {}), "half an entry");
    let nested = Entry::Body { new: pointer(blocks_total - 3, 1) };
    told(open_with_body(Some(nested), |_| {}, |_| {}), "a body in a body");
    let plainly = |header: &mut RecordHeader| header.flags = RecordFlags::DATA_SYNCED;
    told(open_with_body(None, |_| {}, plainly), "a body that the flags deny");
}

#[test]
fn an_index_far_away_takes_a_path_of_nodes_and_no_more() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    let mut store = Store::create(Arc::clone(&disk), Arc::new(NoReaders), tiny(), Box::new(SeededEntropy(1))).unwrap();
    let mut expected = Vec::new();
    for index in [3, 167, 168, 400, 168 * 168 + 5, 1 << 40, PageId::INDEX_LIMIT - 1, 1 << 20] {
        let mut changes = Changes::default();
        changes.pages.insert(PageId::new(SizeClass::MIN, index).unwrap(), PageChange::Whole(vec![1; 4096].into()));
        store.commit(&changes, Durability::Durable).unwrap();
        expected.push(index);
        if index != 400 {
            store.checkpoint().unwrap();
        }
        // Every index that is not written is free, be there nodes or not.
        let maps = store.state().maps.get();
        let (map, nodes) = (&maps[0], store.nodes());
        for from in
            [0, 3, 4, 166, 167, 168, 169, 399, 400, 401, 168 * 168, 168 * 168 + 5, 1 << 20, (1 << 40) - 1, 1 << 40]
        {
            let free = map.next_free(nodes, from, |_, _| true).unwrap();
            let right = (from..map.length()).find(|index| !expected.contains(index));
            assert_eq!(free, right, "from {from}, with {expected:?}");
        }
    }
    let report = store.verify(VerifyLevel::Full, &mut |_| {}).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!(report.pages, 8);
    assert!(report.nodes < 100, "{} nodes", report.nodes);
}
