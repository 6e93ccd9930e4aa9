//! FORMAT.md says what the code does: its constants, the place and size of every field, and its example in bytes.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use vellum::disk::MemoryDisk;
use vellum::format::{
    BirthState, BlockPointer, CatalogueEntry, CodecId, DeferredEntry, DeferredKind, Entry, EntryKind, Node,
    NodeIdentity, NodeKind, NodeSummary, PointerFlags, RecordFlags, RecordHeader, RecordIdentity, Seal,
    SegmentReference, Superblock, TreeRoot, VERSION, birth_block, birth_state, checksum, constants, encode_deferred,
    encode_record, finish_record,
};
use vellum::process::NoReaders;
use vellum::store::{PageReader, SeededEntropy, State, Store, VerifyLevel};
use vellum::{Block, CheckpointNumber, Error, Extent, Generation, Incarnation, PageId, SizeClass, StoreId};

#[path = "format/encoded.rs"]
mod encoded;
#[path = "format/small.rs"]
mod small;
#[path = "format/text.rs"]
mod text;

use text::{FORMAT, Field, golden_text, hex_lines, section_tables, structures};

#[test]
fn the_constants_are_those_of_the_code() {
    let table = section_tables("## 3. Constants");
    let written: Vec<(String, u64)> = table
        .iter()
        .map(|row| (row[0].trim_matches('`').to_owned(), row[1].parse().unwrap_or_else(|_| panic!("{row:?}"))))
        .collect();
    let coded: Vec<(String, u64)> =
        constants().into_iter().map(|constant| (constant.name.to_owned(), constant.value)).collect();
    assert_eq!(written, coded);
}

#[test]
fn every_structure_is_covered_without_gaps() {
    let structures = structures();
    assert_eq!(structures.len(), 11, "{:?}", structures.keys());
    for (name, structure) in &structures {
        let mut offset = 0;
        for (field, place) in &structure.fields {
            assert_eq!(place.offset, offset, "{name}: {field} begins where the field before ends");
            offset += place.size;
        }
        assert_eq!(offset, structure.size, "{name} is as long as its fields");
    }
}

/// Encoded bytes, and what FORMAT.md's fields must have in them. A field of zeros is one that nothing was said of.
struct Encoded {
    structure: &'static str,
    bytes: Vec<u8>,
    expected: Vec<(&'static str, Vec<u8>)>,
}

impl Encoded {
    fn new(structure: &'static str, bytes: &[u8]) -> Self {
        Self { structure, bytes: bytes.to_vec(), expected: Vec::new() }
    }

    fn number(mut self, field: &'static str, value: u64) -> Self {
        self.expected.push((field, value.to_le_bytes().to_vec()));
        self
    }

    fn bytes(mut self, field: &'static str, bytes: &[u8]) -> Self {
        self.expected.push((field, bytes.to_vec()));
        self
    }

    /// Every field of the table is where it says, and those not named here are zero.
    fn assert(self) {
        let structures = structures();
        let fields: BTreeMap<&str, Field> =
            structures[self.structure].fields.iter().map(|(name, field)| (name.as_str(), *field)).collect();
        let mut left = fields.clone();
        for (name, expected) in &self.expected {
            let field = left.remove(name).unwrap_or_else(|| panic!("{}: no field {name}", self.structure));
            let mut expected = expected.clone();
            assert!(expected.iter().skip(field.size).all(|byte| *byte == 0), "{}: {name}", self.structure);
            expected.resize(field.size, 0);
            let found = &self.bytes[field.offset..field.offset + field.size];
            assert!(found == expected, "{}: {name} is {found:02x?}, not {expected:02x?}", self.structure);
        }
        for (name, field) in left {
            let found = &self.bytes[field.offset..field.offset + field.size];
            assert!(found.iter().all(|byte| *byte == 0), "{}: {name} is not told of", self.structure);
        }
    }
}

const STORE: StoreId = StoreId(*b"0123456789abcdef");

fn pointer(address: u64) -> BlockPointer {
    BlockPointer {
        address: Block(address),
        codec: CodecId::RAW,
        flags: PointerFlags::RELOCATED,
        stored_length: 4096,
        checksum: 0x1122_3344,
        birth: Generation(address + 1),
    }
}

/// A pointer's bytes, by the table of pointers.
fn pointer_bytes(pointer: &BlockPointer) -> Vec<u8> {
    let mut bytes = pointer.address.0.to_le_bytes()[..6].to_vec();
    bytes.extend([pointer.codec.to_u8(), pointer.flags.bits()]);
    bytes.extend(pointer.stored_length.to_le_bytes());
    bytes.extend(pointer.checksum.to_le_bytes());
    bytes.extend(pointer.birth.0.to_le_bytes());
    bytes
}

fn root(address: u64, length: u64) -> TreeRoot {
    TreeRoot { pointer: pointer(address), length }
}

fn root_bytes(root: &TreeRoot) -> Vec<u8> {
    [pointer_bytes(&root.pointer), root.length.to_le_bytes().to_vec()].concat()
}

fn maps() -> [TreeRoot; SizeClass::COUNT] {
    std::array::from_fn(|class| root(100 + class as u64, 200 + class as u64))
}

fn maps_bytes() -> Vec<u8> {
    maps().iter().flat_map(root_bytes).collect()
}

fn segment_bytes(segment: &SegmentReference) -> Vec<u8> {
    let mut bytes = segment.extent.start.0.to_le_bytes().to_vec();
    bytes.extend(u64::from(segment.extent.blocks).to_le_bytes());
    bytes.extend(segment.salt.to_le_bytes());
    bytes
}

#[test]
fn the_birth_block_is_as_described() {
    let block = birth_block();
    let fields = &structures()["Birth block"].fields;
    let text = fields.iter().find(|(name, _)| name == "text").unwrap().1;
    assert_eq!(&block[..16], b"\x89VELLUM\r\n\x1a\n\0\0\0\0\0");
    let sentence = "This file is a Vellum page store. Its format is described in the FORMAT.md of the crate vellum. \
                    Bytes of this block never change.";
    assert!(FORMAT.contains(sentence));
    assert_eq!(&block[text.offset..text.offset + text.size], format!("{sentence}\n").as_bytes());
    for at in text.offset + text.size..4096 {
        let mut unit = *b"vellum birth\0\0\0\0";
        unit[12..].copy_from_slice(&(at as u32 / 16).to_le_bytes());
        assert_eq!(block[at], unit[at % 16], "byte {at}");
    }
    assert_eq!(birth_state(&block, 4096), BirthState::Whole);
}

#[test]
fn the_superblock_is_as_described() {
    let segments = vec![
        SegmentReference { extent: Extent::new(0x500, 0x60), salt: 0x70 },
        SegmentReference { extent: Extent::new(0x800, 0x90), salt: 0 },
    ];
    let superblock = Superblock {
        version: VERSION,
        features_incompatible: 0x10,
        features_read_compatible: 0x11,
        store: STORE,
        application_id: 0x12,
        application_version: 0x13,
        checkpoint: CheckpointNumber(0x14),
        generation: Generation(0x15),
        incarnation: Incarnation(0x16),
        blocks_total: 0x1700,
        blocks_free: 0x18,
        deferred_entries: 0x19,
        next_catalogue_id: 0x1a,
        log_seal: Seal([0x1b; 16]),
        log_segment: 1,
        log_offset: 0x1d,
        header: b"a header".to_vec(),
        bitmap: root(30, 31),
        catalogue: root(32, 33),
        deferred: root(34, 35),
        maps: maps(),
        segments: segments.clone(),
    };
    let block = superblock.encode();
    // Section 6: what the two sums cover.
    let seal = twox_hash::XxHash3_128::oneshot_with_seed(0, &block[..4072]);
    Encoded::new("Superblock", &block)
        .bytes("magic", b"VELLUMsb")
        .number("version", 1)
        .number("block_log2", 12)
        .number("unit_log2", 12)
        .number("features_incompatible", 0x10)
        .number("features_read_compatible", 0x11)
        .bytes("store", &STORE.0)
        .number("application_id", 0x12)
        .number("application_version", 0x13)
        .number("checkpoint", 0x14)
        .number("generation", 0x15)
        .number("incarnation", 0x16)
        .number("blocks_total", 0x1700)
        .number("blocks_free", 0x18)
        .number("deferred_entries", 0x19)
        .number("next_catalogue_id", 0x1a)
        .bytes("log_seal", &[0x1b; 16])
        .number("log_segment", 1)
        .number("log_offset", 0x1d)
        .number("segments", 2)
        .number("header_length", 8)
        .bytes("header", b"a header")
        .bytes("bitmap", &root_bytes(&superblock.bitmap))
        .bytes("catalogue", &root_bytes(&superblock.catalogue))
        .bytes("deferred", &root_bytes(&superblock.deferred))
        .bytes("maps", &maps_bytes())
        .bytes("segment_list", &segments.iter().flat_map(segment_bytes).collect::<Vec<_>>())
        .bytes("seal", &seal.to_le_bytes())
        .number("checksum", crc32fast::hash(&block[..4072]).into())
        .assert();

    let whole = &structures()["Superblock"];
    let roots = whole.fields.iter().find(|(name, _)| name == "bitmap").unwrap().1;
    let encoded_root = Encoded::new("Tree root", &block[roots.offset..roots.offset + roots.size]);
    encoded_root.bytes("pointer", &pointer_bytes(&pointer(30))).number("length", 31).assert();
    let encoded_pointer = Encoded::new("Block pointer", &block[roots.offset..roots.offset + 24]);
    encoded_pointer
        .number("address", 30)
        .number("codec", 2)
        .number("flags", 2)
        .number("stored_length", 4096)
        .number("checksum", 0x1122_3344)
        .number("birth", 31)
        .assert();
    let list = whole.fields.iter().find(|(name, _)| name == "segment_list").unwrap().1;
    let encoded_segment = Encoded::new("Segment reference", &block[list.offset..list.offset + 24]);
    encoded_segment.number("address", 0x500).number("blocks", 0x60).number("salt", 0x70).assert();
}

#[test]
fn the_codecs_are_those_of_the_table() {
    let tables = section_tables("### Block pointer (24 bytes)");
    let rows: Vec<(u8, String)> = tables
        .iter()
        .filter(|row| row.len() == 3 && row[1] != "indirect" && row[1] != "relocated" && row[1] != "free below")
        .map(|row| (row[0].parse().unwrap(), row[1].clone()))
        .collect();
    assert_eq!(rows.len(), 6);
    for (number, name) in rows {
        match CodecId::from_u8(number) {
            Some(codec) => assert_eq!(codec.name(), name),
            // Not in this build: the only one that is a feature.
            None => assert_eq!((name.as_str(), cfg!(feature = "snappy")), ("snappy", false)),
        }
    }
    let bits = CodecId::all().fold(0, |bits, codec| bits | codec.feature());
    assert_eq!(bits & !(1 << 3 | 1 << 4 | 1 << 5), 0);
    assert_eq!(vellum::format::FEATURES_INCOMPATIBLE_KNOWN, bits);
}

#[test]
fn the_node_is_as_described() {
    for (kind, id) in [
        (NodeKind::Map, 1),
        (NodeKind::Chunk, 2),
        (NodeKind::Bitmap, 3),
        (NodeKind::Catalogue, 4),
        (NodeKind::Deferred, 5),
    ] {
        let identity = NodeIdentity { store: STORE, kind, class: 22, owner: 0x23, level: 1, position: 0x24 };
        let birth = Generation(91);
        let summary = NodeSummary { birth, checkpoint: CheckpointNumber(0x26), free_entries: 0x27 };
        let mut node = Node::empty();
        node.entries_mut()[1] = pointer(90);
        let entries = [vec![0; 24], pointer_bytes(&pointer(90))].concat();
        Encoded::new("Node", &node.encode(&identity, summary))
            .bytes("magic", b"VLnd")
            .number("kind", id)
            .number("level", 1)
            .number("class", 22)
            .bytes("store", &STORE.0)
            .number("position", 0x24)
            .number("birth", 91)
            .number("checkpoint", 0x26)
            .number("free_entries", 0x27)
            .number("owner", 0x23)
            .bytes("entries", &entries)
            .assert();
    }
}

#[test]
fn the_deferred_block_is_as_described() {
    let extent = Extent::new(0x40, 0x41);
    let (birth, written, death) = (Generation(0x42), Generation(0x43), Generation(0x44));
    let (first, replaced) = (CheckpointNumber(0x45), CheckpointNumber(0x46));
    let entries = [
        DeferredEntry { extent, kind: DeferredKind::Data { birth, written, death } },
        DeferredEntry { extent, kind: DeferredKind::Node { first, replaced } },
    ];
    let block = encode_deferred(&entries);
    let entry = |index: usize| Encoded::new("Deferred block", &block[40 * index..40 * index + 40]);
    let entry = |index| entry(index).number("address", 0x40).number("blocks", 0x41);
    entry(0).number("kind", 1).number("first", 0x42).number("second", 0x43).number("third", 0x44).assert();
    entry(1).number("kind", 2).number("first", 0x45).number("second", 0x46).assert();
}

#[test]
fn the_catalogue_entry_is_as_described() {
    for (kind, id) in [(EntryKind::Snapshot, 1), (EntryKind::Bookmark, 2)] {
        let entry = CatalogueEntry {
            kind,
            id: 0x50,
            generation: Generation(0x51),
            incarnation: Incarnation(0x52),
            created_seconds: 0x53,
            name: "name".into(),
            note: "a note".into(),
            header: b"header".to_vec(),
            maps: maps(),
        };
        Encoded::new("Catalogue entry", &entry.encode())
            .bytes("magic", b"VLca")
            .number("kind", id)
            .number("id", 0x50)
            .number("generation", 0x51)
            .number("incarnation", 0x52)
            .number("created_seconds", 0x53)
            .number("name_length", 4)
            .number("note_length", 6)
            .number("header_length", 6)
            .bytes("maps", &maps_bytes())
            .bytes("header", b"header")
            .bytes("name", b"name")
            .bytes("note", b"a note")
            .assert();
    }
}

/// Every kind of entry, with its number and its id as FORMAT.md has them.
fn entries() -> Vec<(Entry, u64, u64)> {
    let page = small::page(12, 3);
    let (new, old) = (pointer(60), pointer(70));
    let range = 2 | 3 << 32;
    vec![
        (Entry::Set { page, new, old }, 1, page.to_u64()),
        (Entry::Stored { page, new }, 2, page.to_u64()),
        (Entry::Dead { old }, 3, 0),
        (Entry::Move { page, new, old }, 4, page.to_u64()),
        (Entry::Header { offset: 2, length: 3 }, 5, range),
        (Entry::CatalogueAdd { offset: 2, length: 3 }, 6, range),
        (Entry::CatalogueRemove { id: 0x80 }, 7, 0x80),
        (Entry::Body { new }, 8, 0),
    ]
}

#[test]
fn the_record_is_as_described() {
    let identity = RecordIdentity { store: STORE, address: Block(0x61), salt: 0x62 };
    let next_segment = SegmentReference { extent: Extent::new(0x63, 0x64), salt: 0x65 };
    let header = RecordHeader {
        seal: Seal::default(),
        blocks: 1,
        run_blocks: 3,
        flags: RecordFlags::OPENING.with(RecordFlags::EXTERNAL_BODY),
        entries: 8,
        blob_length: 5,
        incarnation: Incarnation(0x66),
        salt: identity.salt,
        generation: Generation(0x67),
        synced_through: Generation(0x66),
        previous_seal: Seal([0x68; 16]),
        next_segment: Some(next_segment),
        body_length: 0x69,
        body_seal: Seal([0x6a; 16]),
    };
    let list: Vec<Entry> = entries().into_iter().map(|(entry, _, _)| entry).collect();
    let mut record = vec![0; 4096];
    encode_record(&mut record, &identity, &header, &list, b"bytes");
    let pages = [[7u8; 4096], [8; 4096]];
    finish_record(&mut record, identity.salt, pages.iter().map(|page| Seal::of(identity.salt, page)));
    let seal_of = |bytes: &[u8]| twox_hash::XxHash3_128::oneshot_with_seed(identity.salt, bytes).to_le_bytes();
    let sealed = [&record[20..], &seal_of(&pages[0]), &seal_of(&pages[1])].concat();
    let seal = seal_of(&sealed);
    assert_eq!(checksum(b"123456789"), 0xcbf4_3926);
    Encoded::new("Record header", &record)
        .bytes("seal", &seal)
        .number("checksum", crc32fast::hash(&record[20..]).into())
        .bytes("magic", b"VLrc")
        .number("blocks", 1)
        .number("run_blocks", 3)
        .number("flags", 1 | 4)
        .number("entries", 8)
        .number("blob_length", 5)
        .bytes("store", &STORE.0)
        .number("incarnation", 0x66)
        .number("salt", 0x62)
        .number("address", 0x61)
        .number("generation", 0x67)
        .number("synced_through", 0x66)
        .bytes("previous_seal", &[0x68; 16])
        .bytes("next_segment", &segment_bytes(&next_segment))
        .number("body_length", 0x69)
        .bytes("body_seal", &[0x6a; 16])
        .assert();
    assert_eq!(RecordFlags::DATA_SYNCED.bits(), 2);
    for ((entry, kind, id), bytes) in entries().into_iter().zip(record[256..].chunks(64)) {
        let pointers = match entry {
            Entry::Set { new, old, .. } | Entry::Move { new, old, .. } => (pointer_bytes(&new), pointer_bytes(&old)),
            Entry::Stored { new, .. } | Entry::Body { new } => (pointer_bytes(&new), Vec::new()),
            Entry::Dead { old } => (Vec::new(), pointer_bytes(&old)),
            _ => (Vec::new(), Vec::new()),
        };
        let encoded = Encoded::new("Entry", bytes).number("kind", kind).number("id", id);
        encoded.bytes("new", &pointers.0).bytes("old", &pointers.1).assert();
    }
    assert_eq!(&record[256 + 8 * 64..][..6], b"bytes\0");
}

#[test]
fn the_payload_of_a_new_snapshot_is_as_described() {
    // Only the store makes one: the example has it, in the record of generation 2.
    let file = small::golden_store();
    let blob = 21 * 4096 + 256 + 64;
    Encoded::new("Catalogue payload", &file[blob..blob + 24])
        .number("kind", 1)
        .number("name_length", 5)
        .number("id", 1)
        .number("created_seconds", 1_700_000_000)
        .assert();
    assert_eq!(&file[blob + 24..][..12], b"firsta note\0");
}

#[test]
fn the_example_in_bytes_is_the_golden_file() {
    let file = small::golden_store();
    let lines = hex_lines();
    assert!(lines.len() > 60, "{} lines", lines.len());
    for (line, offset, bytes) in lines {
        assert_eq!(file[offset..offset + bytes.len()], bytes, "FORMAT.md, section 13: {line}");
    }
}

/// The library opens the golden file, and a file made now by the same calls, and finds the same.
#[test]
fn the_golden_file_opens_with_everything_in_it() {
    let fresh = small::small_store();
    assert_eq!(fresh, small::small_store(), "the same calls with the same random numbers make the same bytes");
    if std::env::var_os("VELLUM_GOLDEN").is_some_and(|word| word == "write") {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/version-1.hex");
        std::fs::write(path, golden_text(&fresh)).unwrap();
    }
    for file in [small::golden_store(), fresh] {
        let disk = Arc::new(MemoryDisk::from_bytes(&file));
        let entropy = Box::new(SeededEntropy(2));
        let (mut store, report) = Store::open(disk, Arc::new(NoReaders), small::settings(), entropy).unwrap();
        assert_eq!((report.folded, report.records_replayed, report.records_adopted), (Generation(3), 1, 1));
        let state = store.state();
        assert_eq!(&state.header[..], b"root page 12:0");
        let read = |state: &State, page: PageId| {
            let pointer = state.pointer(store.nodes(), page).unwrap();
            let mut bytes = vec![0; page.class().page_bytes() as usize];
            PageReader::new(store.nodes()).read(page, &pointer, 0, &mut bytes).map(|()| bytes)
        };
        assert!(read(&state, small::page(12, 0)).unwrap().starts_with(b"hello again\0"));
        assert!(read(&state, small::page(12, 1)).unwrap().starts_with(b"page 12:1\0"));
        assert!(read(&state, small::page(13, 0)).unwrap().starts_with(b"page 13:0\0"));
        assert!(matches!(read(&state, small::page(12, 2)), Err(Error::PageNotFound { .. })));
        let snapshot = store.published().pin_snapshot("first").unwrap();
        assert!(read(&snapshot, small::page(12, 0)).unwrap().starts_with(b"hello, page 12:0\0"));
        assert_eq!(read(&snapshot, small::page(12, 2)).unwrap(), vec![0; 4096]);
        drop(snapshot);
        let findings = store.verify(VerifyLevel::Full, &mut |_| {}).unwrap().findings;
        assert!(findings.is_empty(), "{findings:?}");
    }
}

/// The same of the one whose pages are encoded.
#[test]
fn the_golden_file_of_encoded_pages_opens_with_everything_in_it() {
    let fresh = encoded::encoded_store();
    if std::env::var_os("VELLUM_GOLDEN").is_some_and(|word| word == "write-encoded") {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/version-1-encoded.hex");
        std::fs::write(path, golden_text(&fresh)).unwrap();
    }
    for file in [encoded::golden_encoded_store(), fresh] {
        let disk = Arc::new(MemoryDisk::from_bytes(&file));
        let entropy = Box::new(SeededEntropy(2));
        let (mut store, report) = Store::open(disk, Arc::new(NoReaders), small::settings(), entropy).unwrap();
        assert_eq!((report.folded, report.records_replayed, report.records_adopted), (Generation(3), 1, 1));
        assert_eq!(store.superblock().features_incompatible, 1 << 3 | 1 << 4);
        let state = store.state();
        let reader = PageReader::new(store.nodes());
        let read = |state: &State, page: PageId| {
            let pointer = state.pointer(store.nodes(), page).unwrap();
            let mut bytes = vec![0xAA; page.class().page_bytes() as usize];
            reader.read(page, &pointer, 0, &mut bytes).map(|()| (pointer, bytes)).unwrap()
        };
        for (page, version, codecs) in encoded::pages() {
            let (pointer, bytes) = read(&state, page);
            assert!(bytes == encoded::bytes_of(page, version), "{page}");
            let chunk = |chunk: u32| reader.chunk(page, &pointer, chunk).unwrap().codec;
            let found: Vec<CodecId> = match page.class().is_chunked() {
                true => (0..page.class().chunks() as u32).map(chunk).collect(),
                false => vec![pointer.codec],
            };
            assert_eq!(found, codecs, "{page}");
        }
        let (page, version) = encoded::page_before();
        let snapshot = store.published().pin_snapshot("before").unwrap();
        let (pointer, bytes) = read(&snapshot, page);
        assert!(bytes == encoded::bytes_of(page, version) && pointer.codec.codec().is_some());
        drop(snapshot);
        let findings = store.verify(VerifyLevel::Full, &mut |_| {}).unwrap().findings;
        assert!(findings.is_empty(), "{findings:?}");
    }
}
