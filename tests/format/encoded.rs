//! A small store of pages that codecs made shorter, and the calls that made it.
//!
//! The bytes are kept in `tests/golden/version-1-encoded.hex`: files with LZ4 and Zstandard in them are read by every later
//! version, whatever versions of those libraries write by then. `VELLUM_GOLDEN=write-encoded cargo test --test format` puts
//! what the calls make now in its place, until version 1 is released; afterwards the bytes never change.

use std::sync::Arc;

use vellum::PageId;
use vellum::disk::{Disk, MemoryDisk};
use vellum::format::{CodecId, Compression, EntryKind};
use vellum::process::NoReaders;
use vellum::store::{Changes, Content, Durability, PageChange, SeededEntropy, Store};

use crate::small::{golden_of, page, settings};

/// A page's version: numbered lines that come again after a while, so that there is something to find for a codec, and
/// little to keep here.
pub(crate) fn bytes_of(page: PageId, version: usize) -> Vec<u8> {
    let line = |number: usize| format!("{page}, version {version}, line {}\n", number % (90 + version)).into_bytes();
    (0..).flat_map(line).take(page.class().page_bytes() as usize).collect()
}

/// The pages of the newest state: which version each one has, and how it, or each chunk of it, is stored.
pub(crate) fn pages() -> Vec<(PageId, usize, Vec<CodecId>)> {
    let (lz4, zstd) = (Compression::LZ4.codec(), Compression::ZSTD.codec());
    vec![
        (page(13, 0), 1, vec![CodecId::RAW]),
        (page(14, 0), 4, vec![lz4]),
        (page(14, 1), 1, vec![zstd]),
        (page(16, 0), 1, vec![lz4]),
        (page(16, 3), 4, vec![zstd]),
        (page(21, 0), 2, vec![lz4, zstd]),
    ]
}

/// The page that the snapshot `before` has, and its version there.
pub(crate) fn page_before() -> (PageId, usize) {
    (page(14, 0), 1)
}

fn version(page: PageId, version: usize, compression: Compression) -> PageChange<'static> {
    PageChange::Whole(Content::encode(bytes_of(page, version), compression))
}

/// Pages of both codecs, one of chunks among them, in the trees; and a commit after the checkpoint.
pub(crate) fn encoded_store() -> Vec<u8> {
    let disk = Arc::new(MemoryDisk::new());
    let shared: Arc<dyn Disk> = Arc::clone(&disk) as _;
    let mut store = Store::create(shared, Arc::new(NoReaders), settings(), Box::new(SeededEntropy(2))).unwrap();
    let best = Compression::zstd(19).unwrap();

    let mut changes = Changes::default();
    changes.header = Some(b"encoded".to_vec());
    for (page, compression) in [
        (page(13, 0), Compression::NONE),
        (page(14, 0), Compression::ZSTD),
        (page(14, 1), best),
        (page(16, 0), Compression::LZ4),
    ] {
        changes.pages.insert(page, version(page, 1, compression));
    }
    store.commit(&changes, Durability::Durable).unwrap();
    store.name_state(EntryKind::Snapshot, "before", "", 1_700_000_000).unwrap();

    let large = bytes_of(page(21, 0), 2);
    let (first, second) = large.split_at(1 << 20);
    let chunks = [(0, Content::encode(first, Compression::LZ4)), (1, Content::encode(second, Compression::ZSTD))];
    let mut changes = Changes::default();
    changes.pages.insert(page(21, 0), PageChange::OnlyChunks(chunks.into()));
    store.commit(&changes, Durability::Durable).unwrap();
    store.checkpoint().unwrap();

    let mut changes = Changes::default();
    changes.pages.insert(page(14, 0), version(page(14, 0), 4, Compression::LZ4));
    changes.pages.insert(page(16, 3), version(page(16, 3), 4, Compression::ZSTD));
    store.commit(&changes, Durability::Durable).unwrap();
    drop(store);
    disk.to_bytes()
}

/// The file that is kept.
pub(crate) fn golden_encoded_store() -> Vec<u8> {
    golden_of(include_str!("../golden/version-1-encoded.hex"))
}
