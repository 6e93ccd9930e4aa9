//! Views: states that stay, beside everything else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vellum::disk::{Disk, FaultyDisk, MemoryDisk, Operation, Operations};
use vellum::{Durability, Error, Options, PageId, Pager, Read, VerifyLevel, View};

use crate::{Ending, Random, SMALL, class, create_on, in_memory, inline};

const PAGES: usize = 40;

/// Sets every page to `number`, in one commit.
fn set_all(pager: &Pager, pages: &[PageId], number: u64, durability: Durability) {
    let transaction = pager.begin().unwrap();
    for page in pages {
        transaction.write(*page).unwrap()[..8].copy_from_slice(&number.to_le_bytes());
    }
    transaction.set_header(&number.to_le_bytes()).unwrap();
    transaction.commit_with(durability).unwrap();
}

/// The one number that every page and the header of a view have.
fn number_of(view: &View, pages: &[PageId]) -> u64 {
    let number = u64::from_le_bytes(view.header()[..].try_into().unwrap());
    for page in pages {
        assert_eq!(view.page(*page).unwrap()[..8], number.to_le_bytes(), "page {page} of {}", view.generation());
    }
    number
}

fn with_pages(pager: &Pager) -> Vec<PageId> {
    let transaction = pager.begin().unwrap();
    let mut pages = transaction.allocate_many(SMALL, PAGES - 4).unwrap();
    pages.extend(transaction.allocate_many(class(14), 4).unwrap());
    transaction.commit().unwrap();
    set_all(pager, &pages, 0, Durability::Durable);
    pages
}

#[test]
fn views_show_one_commit_each_beside_a_writer_checkpoints_moves_and_snapshots() {
    // A cache smaller than the pages, a log so short that checkpoints run all the time.
    let options = Options::new().memory(1 << 20).checkpoint_log_bytes(256 << 10).clean_target(20);
    let pager = in_memory(&options);
    let pages = with_pages(&pager);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    let view = pager.view();
                    let number = number_of(&view, &pages);
                    assert!(number >= last, "{number} after {last}");
                    last = number;
                    assert_eq!(number_of(&view.clone(), &pages), number);
                }
            });
        }
        scope.spawn(|| {
            let mut random = Random(3);
            while !done.load(Ordering::Relaxed) {
                pager.snapshot("moment", "").unwrap();
                let view = pager.open_snapshot("moment").unwrap();
                let number = number_of(&view, &pages);
                pager.clean(random.next() % 64).unwrap();
                assert_eq!(number_of(&view, &pages), number);
                pager.remove("moment").unwrap();
                assert_eq!(number_of(&view, &pages), number, "a view outlives its snapshot");
                assert!(matches!(pager.open_snapshot("moment"), Err(Error::SnapshotNotFound { .. })));
            }
        });
        let _end = Ending(&done);
        for number in 1..=400 {
            let durability = if number % 3 == 0 { Durability::Durable } else { Durability::Deferred };
            set_all(&pager, &pages, number, durability);
        }
    });
    let stats = pager.stats();
    assert!(stats.counters.checkpoints > 5, "{stats:?}");
    let report = pager.verify(VerifyLevel::Full, &mut |_| {}).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!(number_of(&pager.view(), &pages), 400);
}

#[test]
fn a_view_stays_while_the_store_is_written_many_times_over() {
    let pager = in_memory(&inline().memory(1 << 20).checkpoint_log_bytes(128 << 10).file_limit_bytes(24 << 20));
    let pages = with_pages(&pager);
    let mut held: Vec<(u64, View)> = Vec::new();
    for number in 1..=600 {
        set_all(&pager, &pages, number, Durability::Durable);
        if number % 50 == 0 {
            held.push((number, pager.view()));
        }
        if held.len() == 5 {
            held.remove(0);
        }
        if number % 20 == 0 {
            held.iter().for_each(|(number, view)| assert_eq!(number_of(view, &pages), *number));
        }
    }
    assert_eq!(pager.stats().states_held, held.len());
    assert_eq!(pager.stats().oldest_held, held.first().map(|(_, view)| view.generation()));
}

#[test]
fn a_view_keeps_the_store_open_and_fails_once_it_is_closed() {
    let pager = in_memory(&Options::new());
    let pages = with_pages(&pager);
    let view = pager.view();
    drop(pager);
    assert_eq!(number_of(&view, &pages), 0);

    let pager = in_memory(&Options::new());
    let pages = with_pages(&pager);
    let view = pager.view();
    let guard = view.page(pages[1]).unwrap();
    pager.close().unwrap();
    assert!(matches!(view.page(pages[0]), Err(Error::Closed)));
    assert!(matches!(view.read_at(pages[0], 0, &mut [0]), Err(Error::Closed)));
    assert!(matches!(view.contains(pages[0]), Err(Error::Closed)));
    assert!(matches!(view.page_ids(SMALL).next(), Some(Err(Error::Closed))));
    assert_eq!(guard[..8], [0; 8], "what was read stays");
}

#[test]
fn a_scope_reads_pages_and_passes_errors_on() {
    let pager = in_memory(&inline());
    let pages = with_pages(&pager);
    set_all(&pager, &pages, 9, Durability::Durable);
    let view = pager.view();
    let sum: u64 = view.scope(|scope| pages.iter().map(|page| Ok(u64::from(scope.page(*page)?[0]))).sum()).unwrap();
    assert_eq!(sum, 9 * PAGES as u64);
    let missing = PageId::new(SMALL, 1 << 20).unwrap();
    assert!(matches!(view.scope(|scope| scope.page(missing).map(drop)), Err(Error::PageNotFound { .. })));
}

#[test]
fn what_a_writer_committed_is_read_without_the_disk() {
    let disk = Arc::new(FaultyDisk::new(Arc::new(MemoryDisk::new()) as Arc<dyn Disk>));
    let pager = create_on(&disk, &inline());
    let pages = with_pages(&pager);
    set_all(&pager, &pages, 5, Durability::Durable);
    let reads = disk.count(Operations::Only(Operation::Read));
    assert_eq!(number_of(&pager.view(), &pages), 5);
    assert_eq!(disk.count(Operations::Only(Operation::Read)), reads);
}

#[test]
fn the_memory_stays_within_its_budget() {
    let pager = in_memory(&inline().memory(1 << 20));
    let transaction = pager.begin().unwrap();
    let pages = transaction.allocate_many(SMALL, 600).unwrap();
    pages.iter().for_each(|page| transaction.overwrite(*page).unwrap().fill(1));
    transaction.commit().unwrap();
    let view = pager.view();
    for _ in 0..2 {
        for page in &pages {
            assert_eq!(view.page(*page).unwrap()[..], [1; 4096]);
            assert!(pager.stats().buffer.used_bytes <= 1 << 20);
        }
    }
    let buffer = pager.stats().buffer;
    assert!(buffer.misses > 0 && buffer.evictions > 0 && buffer.used_bytes > 800 << 10, "{buffer:?}");
}

#[test]
fn a_roll_back_brings_a_snapshot_back_and_frees_what_came_later() {
    let pager = in_memory(&inline());
    let pages = with_pages(&pager);
    set_all(&pager, &pages, 1, Durability::Durable);
    pager.snapshot("one", "the first").unwrap();
    pager.bookmark("mark", "").unwrap();
    set_all(&pager, &pages, 2, Durability::Durable);
    let transaction = pager.begin().unwrap();
    let later = transaction.allocate_many(SMALL, 10).unwrap();
    transaction.free(pages[3]).unwrap();
    transaction.commit().unwrap();
    let newer = pager.view();

    pager.roll_back("one").unwrap();
    assert_eq!(number_of(&pager.view(), &pages), 1);
    assert!(!pager.view().contains(later[0]).unwrap() && newer.contains(later[0]).unwrap());
    assert_eq!(pager.begin().unwrap().allocate(SMALL).unwrap(), later[0], "its index is free again");
    let names: Vec<_> = pager.snapshots().into_iter().map(|entry| (entry.name, entry.note)).collect();
    assert_eq!(names, [("one".into(), "the first".into()), ("mark".into(), String::new())]);
    assert!(matches!(pager.open_snapshot("mark"), Err(Error::SnapshotNotFound { .. })), "a bookmark holds nothing");
    assert!(matches!(pager.snapshot("one", ""), Err(Error::InvalidName { .. })));
    assert!(matches!(pager.remove("none"), Err(Error::SnapshotNotFound { .. })));
}
