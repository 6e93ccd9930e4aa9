//! Readers that read ahead.

use vellum::buffer::BufferManager;
use vellum::{Access, PageId, Pager, Read, ReaderOptions, SizeClass};

use crate::{SMALL, WAYS, Way, busy, open};

/// So many pages of 4 KiB, each with its number, and one of 32 chunks.
fn store(path: &std::path::Path, count: usize) -> (Vec<PageId>, PageId) {
    let pager = Pager::create(path, &busy()).unwrap();
    let transaction = pager.begin().unwrap();
    let pages = transaction.allocate_many(SMALL, count).unwrap();
    for page in &pages {
        transaction.overwrite(*page).unwrap()[..8].copy_from_slice(&page.to_u64().to_le_bytes());
    }
    let large = transaction.allocate(SizeClass::of(32 << 20).unwrap()).unwrap();
    for chunk in 0..32u64 {
        transaction.write_at(large, chunk << 20, &(chunk + 1).to_le_bytes()).unwrap();
    }
    transaction.commit().unwrap();
    pager.close().unwrap();
    (pages, large)
}

#[test]
fn pages_and_chunks_in_order_are_loaded_ahead_whatever_way_they_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let (pages, large) = store(&path, 600);
    for way in WAYS {
        for access in [Access::Normal, Access::Sequential, Access::Once, Access::Random] {
            for by in ["guards", "scopes", "parts"] {
                let buffer = BufferManager::new(64 << 20).unwrap();
                let reader = open(&path, way, &ReaderOptions::new().buffer(&buffer)).unwrap();
                let view = reader.view().unwrap();
                view.advise(access);
                for page in &pages {
                    let mut first = [0; 8];
                    match by {
                        "guards" => first.copy_from_slice(&view.page(*page).unwrap()[..8]),
                        "scopes" => view
                            .scope(|scope| {
                                first.copy_from_slice(&scope.page(*page)?[..8]);
                                Ok(())
                            })
                            .unwrap(),
                        _ => view.read_at(*page, 0, &mut first).unwrap(),
                    }
                    assert_eq!(first, page.to_u64().to_le_bytes(), "{way:?}, {access:?}, {by}");
                }
                let misses = |expected: u64| {
                    let stats = buffer.stats();
                    // Who reads what is on its way waits for it, or finds it: no page is loaded twice.
                    assert_eq!(stats.misses, expected, "{way:?}, {access:?}, {by}");
                    stats.hits + stats.waits
                };
                let ahead = misses(if way == Way::Frames { 600 } else { 0 });
                match (way, access) {
                    (Way::Frames, Access::Random) => assert_eq!(ahead, 0, "{by}"),
                    // A scope takes what it waited for from the load.
                    (Way::Frames, _) => assert!(ahead >= 560, "{access:?}, {by}: {ahead}"),
                    (Way::Mapped, _) => assert_eq!(ahead, 0),
                }
                for chunk in 0..32u64 {
                    let mut first = [0; 8];
                    view.read_at(large, chunk << 20, &mut first).unwrap();
                    assert_eq!(first, (chunk + 1).to_le_bytes());
                }
                misses(if way == Way::Frames { 632 } else { 0 });
            }
        }
    }
}

#[test]
fn readers_name_pages_that_they_will_want() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let (pages, _) = store(&path, 64);
    for way in WAYS {
        let buffer = BufferManager::new(64 << 20).unwrap();
        let reader = open(&path, way, &ReaderOptions::new().buffer(&buffer)).unwrap();
        let view = reader.view().unwrap();
        view.advise(Access::Random);
        // One that never was is among them.
        let never = PageId::new(SMALL, 1 << 30).unwrap();
        view.prefetch(&[pages[3], never, pages[40], pages[10]]).unwrap();
        assert_eq!(buffer.stats().misses, if way == Way::Frames { 3 } else { 0 });
        for page in &pages {
            assert_eq!(view.page(*page).unwrap()[..8], page.to_u64().to_le_bytes());
        }
        assert_eq!(buffer.stats().misses, if way == Way::Frames { 64 } else { 0 });
    }
}
