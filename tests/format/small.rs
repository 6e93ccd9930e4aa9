//! The small store that FORMAT.md shows in bytes, and the calls that made it.
//!
//! The bytes are kept in `tests/golden/version-1.hex`, for where blocks come to lie is no part of the format. The same calls
//! make a file of the same content. Until version 1 is released, `VELLUM_GOLDEN=write cargo test --test format` may put that
//! in its place, and then section 13 of FORMAT.md must be written anew; afterwards the bytes never change.

use std::sync::Arc;

use vellum::disk::{Disk, MemoryDisk};
use vellum::format::EntryKind;
use vellum::process::NoReaders;
use vellum::space::FirstFit;
use vellum::store::{Changes, Durability, PageChange, SeededEntropy, Settings, Store};
use vellum::{PageId, SizeClass};

/// The page of a class (by its logarithm) with this index.
pub(crate) fn page(log2: u8, index: u64) -> PageId {
    PageId::new(SizeClass::new(log2).unwrap(), index).unwrap()
}

/// A page's bytes: a text, and zeros.
pub(crate) fn text(page: PageId, text: &str) -> PageChange<'static> {
    let mut bytes = vec![0; page.class().page_bytes() as usize];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    PageChange::Whole(bytes.into())
}

/// A geometry in which every structure is small.
pub(crate) fn settings() -> Settings {
    Settings {
        application_id: 0x4242,
        application_version: 7,
        log_segment_blocks: 8,
        in_log_blocks: 2,
        growth_blocks: 16,
        segment_blocks: 4,
        strategy: || Box::<FirstFit>::default(),
        ..Settings::default()
    }
}

/// Three pages, a header, a snapshot, a checkpoint, and a commit after it.
pub(crate) fn small_store() -> Vec<u8> {
    let disk = Arc::new(MemoryDisk::new());
    let shared: Arc<dyn Disk> = Arc::clone(&disk) as _;
    let entropy = Box::new(SeededEntropy(1));
    let mut store = Store::create(shared, Arc::new(NoReaders), settings(), entropy).unwrap();

    let mut changes = Changes::default();
    changes.header = Some(b"root page 12:0".to_vec());
    changes.pages.insert(page(12, 0), text(page(12, 0), "hello, page 12:0"));
    changes.pages.insert(page(12, 2), PageChange::Zero);
    store.commit(&changes, Durability::Durable).unwrap();
    store.name_state(EntryKind::Snapshot, "first", "a note", 1_700_000_000).unwrap();

    // Three blocks of pages: too many to lie behind their record.
    let mut changes = Changes::default();
    changes.pages.insert(page(12, 1), text(page(12, 1), "page 12:1"));
    changes.pages.insert(page(13, 0), text(page(13, 0), "page 13:0"));
    store.commit(&changes, Durability::Durable).unwrap();
    store.checkpoint().unwrap();

    let mut changes = Changes::default();
    changes.pages.insert(page(12, 0), text(page(12, 0), "hello again"));
    changes.pages.insert(page(12, 2), PageChange::Free);
    store.commit(&changes, Durability::Durable).unwrap();
    drop(store);
    disk.to_bytes()
}

/// The file of FORMAT.md's section 13.
pub(crate) fn golden_store() -> Vec<u8> {
    golden_of(include_str!("../golden/version-1.hex"))
}

/// A file that is kept as text: lines of an offset and 16 bytes; what is left out is zero.
pub(crate) fn golden_of(text: &str) -> Vec<u8> {
    let mut file = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let offset = usize::from_str_radix(words.next().unwrap(), 16).unwrap();
        file.resize(offset, 0);
        file.extend(words.map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    file
}
