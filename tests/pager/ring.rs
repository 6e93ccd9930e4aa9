//! Reading ahead by a ring: files of the system's, with direct and buffered I/O, whole and damaged.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vellum::buffer::PrefetchBy;
use vellum::disk::Caching;
use vellum::{Access, Compression, Error, PageId, Pager, Read};

use crate::{SMALL, class, inline};

/// A store with so many pages, each with its number, and where each lies.
fn store(path: &Path, count: usize, compression: Compression) -> Vec<(PageId, u64)> {
    let pager = Pager::create(path, &inline().compression(compression)).unwrap();
    let transaction = pager.begin().unwrap();
    let mut pages = transaction.allocate_many(SMALL, count).unwrap();
    pages.extend(transaction.allocate_many(class(14), count / 8).unwrap());
    for page in &pages {
        transaction.overwrite(*page).unwrap()[..8].copy_from_slice(&page.to_u64().to_le_bytes());
    }
    let large = transaction.allocate(class(23)).unwrap();
    for chunk in 0..8u64 {
        transaction.write_at(large, chunk << 20, &chunk.to_le_bytes()).unwrap();
    }
    pages.push(large);
    transaction.commit().unwrap();
    let place = |page: PageId| {
        pager.inspect(|store| store.state().pointer(store.nodes(), page).unwrap().address.offset_bytes())
    };
    let places = pages.iter().map(|page| (*page, place(*page))).collect();
    pager.close().unwrap();
    places
}

/// Reads ahead, and whether by a ring: a system may have none to give.
fn by_ring(pager: &Pager) -> Option<u64> {
    let stats = pager.stats().buffer;
    match stats.prefetch_by {
        PrefetchBy::Ring => Some(stats.ring_reads),
        _ => {
            assert_eq!(stats.ring_reads, 0);
            None
        }
    }
}

#[test]
fn what_lies_in_a_file_as_it_is_is_read_ahead_by_the_ring_and_all_else_by_threads() {
    for caching in [Caching::DirectIfPossible, Caching::Buffered] {
        for compression in [Compression::NONE, Compression::LZ4] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("store");
            let pages = store(&path, 800, compression);
            let (small, larger) = (&pages[..800], &pages[800..900]);
            let pager = Pager::open(&path, &inline().caching(caching)).unwrap();
            let view = pager.view();
            for batch in small.chunks(64).chain(larger.chunks(16)) {
                let ids: Vec<PageId> = batch.iter().map(|(page, _)| *page).collect();
                view.prefetch(&ids).unwrap();
                for page in ids {
                    assert_eq!(view.page(page).unwrap()[..8], page.to_u64().to_le_bytes());
                }
            }
            assert_eq!(pager.stats().buffer.misses, 900, "each page once");
            let mut bytes = vec![0; 8 << 20];
            view.read_at(pages[900].0, 0, &mut bytes).unwrap();
            assert!((0..8u64).all(|chunk| bytes[(chunk as usize) << 20..][..8] == chunk.to_le_bytes()));
            // Pages of 4 KiB are never encoded; chunks in order are loaded ahead but for the first.
            if let Some(reads) = by_ring(&pager) {
                let expected = if compression.is_none() { 800 + 100 + 7 } else { 800 };
                assert_eq!(reads, expected, "{caching:?}, {compression:?}");
            }
        }
    }
}

#[test]
fn what_the_ring_cannot_read_is_the_error_of_who_reads_it() {
    for caching in [Caching::DirectIfPossible, Caching::Buffered] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let pages = store(&path, 400, Compression::NONE);
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let pager = Pager::open(&path, &inline().caching(caching)).unwrap();
        // The nodes of the map are in memory from here on.
        assert_eq!(pager.view().page_ids(SMALL).count(), 400);
        let (bad, bad_at) = pages[100];
        let mut byte = [0];
        file.read_exact_at(&mut byte, bad_at + 2000).unwrap();
        file.write_all_at(&[byte[0] ^ 1], bad_at + 2000).unwrap();
        // The file ends in the middle of one page: the read is short; behind it, it reads nothing.
        let mut cut: Vec<u64> = pages[..400].iter().map(|(_, at)| *at).collect();
        cut.sort_unstable();
        let end = cut[350] + 100;
        assert_ne!(cut[350], bad_at);
        let whole = std::fs::metadata(&path).unwrap().len();
        file.set_len(end).unwrap();
        let view = pager.view();
        view.advise(Access::Sequential);
        let mut failed = 0;
        for (page, at) in &pages[..400] {
            match view.page(*page) {
                Ok(guard) => {
                    assert!(*at < cut[350] && *page != bad);
                    assert_eq!(guard[..8], page.to_u64().to_le_bytes());
                }
                Err(error) => {
                    assert!(matches!(error, Error::Corrupt(_)), "{error}");
                    assert!(*page == bad || *at >= cut[350], "{page:?}: {error}");
                    failed += 1;
                }
            }
        }
        assert_eq!(failed, 400 - 350 + usize::from(bad_at < cut[350]));
        assert!(by_ring(&pager).is_none_or(|reads| reads > 300));
        drop(view);
        file.set_len(whole).unwrap();
    }
}

#[test]
fn pagers_that_come_and_go_leave_nothing_that_waits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let pages: Vec<PageId> = store(&path, 200, Compression::NONE)[..200].iter().map(|(page, _)| *page).collect();
    for _ in 0..20 {
        let pager = Pager::open(&path, &inline()).unwrap();
        let view = pager.view();
        // Closed while the reads are under way.
        view.prefetch(&pages).unwrap();
        drop(view);
        pager.close().unwrap();
    }
}
