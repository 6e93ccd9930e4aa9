//! Transactions: what they see, what they leave, and what they refuse.

use std::sync::Arc;
use std::time::Duration;

use vellum::disk::SimulatedDisk;
use vellum::{Durability, Error, PageId, Pager, Read, Transaction};

use crate::{SMALL, class, create_on, in_memory, inline, open_on};

fn page(index: u64) -> PageId {
    PageId::new(SMALL, index).unwrap()
}

/// A pager with so many pages of 4 KiB, each filled with its index.
fn with_pages(count: usize) -> Pager {
    let pager = in_memory(&inline());
    let transaction = pager.begin().unwrap();
    for id in transaction.allocate_many(SMALL, count).unwrap() {
        transaction.overwrite(id).unwrap().fill(id.index() as u8);
    }
    transaction.commit().unwrap();
    pager
}

#[test]
fn a_transaction_sees_its_changes_and_others_see_them_only_when_committed() {
    let pager = with_pages(2);
    let transaction = pager.begin().unwrap();
    transaction.write(page(1)).unwrap()[0] = 99;
    let new = transaction.allocate(SMALL).unwrap();
    transaction.free(page(0)).unwrap();
    transaction.set_header(b"root").unwrap();

    assert_eq!(transaction.page(page(1)).unwrap()[..2], [99, 1]);
    assert_eq!(transaction.page(new).unwrap()[..], [0; 4096]);
    assert!(matches!(transaction.page(page(0)), Err(Error::PageNotFound { .. })));
    assert_eq!(transaction.header()[..], *b"root");
    let ids: Vec<_> = transaction.page_ids(SMALL).map(|id| id.unwrap().index()).collect();
    assert_eq!(ids, [1, 2]);

    let before = pager.view();
    let committed = transaction.commit().unwrap();
    let after = pager.view();
    assert_eq!(before.page(page(1)).unwrap()[0], 1);
    assert!(before.contains(page(0)).unwrap() && !before.contains(new).unwrap());
    assert!(before.header().is_empty());
    assert_eq!((after.generation(), after.incarnation()), (committed.generation, committed.incarnation));
    assert_eq!(after.page(page(1)).unwrap()[..2], [99, 1]);
    assert!(!after.contains(page(0)).unwrap() && after.contains(new).unwrap());
    assert_eq!(after.header()[..], *b"root");
}

#[test]
fn a_dropped_transaction_leaves_nothing_and_gives_its_indices_back() {
    let pager = with_pages(3);
    let generation = pager.view().generation();
    let transaction = pager.begin().unwrap();
    let first = transaction.allocate_many(SMALL, 5).unwrap();
    transaction.write(page(0)).unwrap().fill(9);
    transaction.free(page(1)).unwrap();
    drop(transaction);

    let view = pager.view();
    assert_eq!((view.generation(), view.page(page(0)).unwrap()[0]), (generation, 0));
    assert!(view.contains(page(1)).unwrap());
    let transaction = pager.begin().unwrap();
    assert_eq!(transaction.allocate_many(SMALL, 5).unwrap(), first);
    transaction.abort();
    assert_eq!(pager.begin().unwrap().allocate(SMALL).unwrap(), first[0]);
}

#[test]
fn the_lowest_free_index_is_allocated_first() {
    let pager = with_pages(400);
    let transaction = pager.begin().unwrap();
    for index in [350, 17, 3] {
        transaction.free(page(index)).unwrap();
    }
    assert_eq!(transaction.allocate(SMALL).unwrap(), page(400), "what it freed itself is not free yet");
    transaction.commit().unwrap();
    let transaction = pager.begin().unwrap();
    let ids: Vec<_> = transaction.allocate_many(SMALL, 4).unwrap().iter().map(|id| id.index()).collect();
    assert_eq!(ids, [3, 17, 350, 401]);
    transaction.free(page(17)).unwrap();
    assert_eq!(transaction.allocate(SMALL).unwrap(), page(17), "its own index comes back at once");
}

#[test]
fn an_index_is_used_again_only_when_its_free_is_durable() {
    let pager = with_pages(3);
    let transaction = pager.begin().unwrap();
    transaction.free(page(1)).unwrap();
    transaction.commit_with(Durability::Deferred).unwrap();
    let transaction = pager.begin().unwrap();
    assert_eq!(transaction.allocate(SMALL).unwrap(), page(3));
    transaction.commit_with(Durability::Deferred).unwrap();
    pager.sync().unwrap();
    let transaction = pager.begin().unwrap();
    assert_eq!(transaction.allocate(SMALL).unwrap(), page(1));
}

#[test]
fn allocating_many_pages_looks_at_each_index_a_bounded_number_of_times() {
    const COUNT: usize = 100_000;
    let pager = in_memory(&inline());
    let transaction = pager.begin().unwrap();
    transaction.allocate_many(SMALL, COUNT).unwrap();
    transaction.commit().unwrap();
    let transaction = pager.begin().unwrap();
    (0..COUNT as u64).step_by(2).for_each(|index| transaction.free(page(index)).unwrap());
    transaction.commit().unwrap();
    // Each of many small transactions goes on where the last one stopped; looking from 0 on each time would be 10^9
    // looks at entries.
    for round in 0..100 {
        let transaction = pager.begin().unwrap();
        let ids = transaction.allocate_many(SMALL, COUNT / 200).unwrap();
        assert_eq!(ids[0].index(), round * COUNT as u64 / 100);
        transaction.commit_with(Durability::Deferred).unwrap();
    }
    assert_eq!(pager.begin().unwrap().allocate(SMALL).unwrap().index(), COUNT as u64);
}

#[test]
fn a_page_that_is_open_for_changing_cannot_be_reached_otherwise() {
    let pager = with_pages(2);
    let transaction = pager.begin().unwrap();
    let savepoint = transaction.savepoint().unwrap();
    let mut guard = transaction.write(page(0)).unwrap();
    let is_borrowed = |result: Result<(), Error>| matches!(result, Err(Error::PageBorrowed { .. }));
    assert!(is_borrowed(transaction.write(page(0)).map(drop)));
    assert!(is_borrowed(transaction.overwrite(page(0)).map(drop)));
    assert!(is_borrowed(transaction.write_at(page(0), 0, b"x")));
    assert!(is_borrowed(transaction.page(page(0)).map(drop)));
    assert!(is_borrowed(transaction.read_at(page(0), 0, &mut [0])));
    assert!(is_borrowed(transaction.free(page(0))));
    assert!(is_borrowed(transaction.savepoint().map(drop)));
    assert!(is_borrowed(transaction.rollback_to(&savepoint)));
    transaction.write(page(1)).unwrap()[0] = guard[0] + 5;
    guard[0] = 7;
    drop(guard);
    assert_eq!(transaction.write(page(0)).unwrap()[0], 7);
    assert_eq!(transaction.page(page(1)).unwrap()[0], 5);
}

#[test]
fn a_whole_page_is_not_written_where_a_part_of_it_would_not_be() {
    let pager = with_pages(3);
    let transaction = pager.begin().unwrap();
    let whole = [7; 4096];
    transaction.free(page(1)).unwrap();
    let open = transaction.write(page(2)).unwrap();
    for bytes in [&whole[..], &whole[..1]] {
        for gone in [page(1), page(99)] {
            assert!(matches!(transaction.write_at(gone, 0, bytes), Err(Error::PageNotFound { page }) if page == gone));
        }
        assert!(matches!(transaction.write_at(page(2), 0, bytes), Err(Error::PageBorrowed { .. })));
    }
    drop(open);
    transaction.commit().unwrap();
    let view = pager.view();
    assert!(!view.contains(page(1)).unwrap() && !view.contains(page(99)).unwrap());
    assert_eq!(view.page(page(2)).unwrap()[..], with_pages(3).view().page(page(2)).unwrap()[..]);
}

#[test]
fn a_leaked_guard_keeps_its_transaction_from_committing() {
    let pager = with_pages(1);
    let transaction = pager.begin().unwrap();
    std::mem::forget(transaction.write(page(0)).unwrap());
    assert!(matches!(transaction.commit(), Err(Error::PageBorrowed { .. })));
    assert_eq!(pager.begin().unwrap().page(page(0)).unwrap()[0], 0);
}

#[test]
fn a_guard_for_reading_shows_the_page_as_it_was() {
    let pager = with_pages(2);
    let guard = {
        let transaction = pager.begin().unwrap();
        transaction.write(page(1)).unwrap()[0] = 50;
        let guard = transaction.page(page(1)).unwrap();
        transaction.write(page(1)).unwrap()[0] = 51;
        transaction.commit().unwrap();
        guard
    };
    assert_eq!(std::thread::spawn(move || guard[0]).join().unwrap(), 50);
    assert_eq!(pager.view().page(page(1)).unwrap()[0], 51);
}

#[test]
fn a_savepoint_restores_contents_allocations_frees_and_the_header() {
    let pager = with_pages(3);
    let transaction = pager.begin().unwrap();
    transaction.write(page(0)).unwrap()[0] = 10;
    transaction.set_header(b"first").unwrap();
    let kept = transaction.allocate(SMALL).unwrap();
    let savepoint = transaction.savepoint().unwrap();

    transaction.write(page(0)).unwrap()[0] = 20;
    transaction.write(page(1)).unwrap()[0] = 20;
    transaction.free(page(2)).unwrap();
    transaction.free(kept).unwrap();
    transaction.allocate_many(SMALL, 3).unwrap();
    transaction.set_header(b"second").unwrap();
    transaction.rollback_to(&savepoint).unwrap();

    assert_eq!(transaction.page(page(0)).unwrap()[0], 10);
    assert_eq!(transaction.page(page(1)).unwrap()[0], 1);
    assert_eq!(transaction.header()[..], *b"first");
    let ids: Vec<_> = transaction.page_ids(SMALL).map(|id| id.unwrap().index()).collect();
    assert_eq!(ids, [0, 1, 2, kept.index()]);
    assert_eq!(transaction.allocate(SMALL).unwrap().index(), kept.index() + 1);
    transaction.rollback_to(&savepoint).unwrap();
    transaction.commit().unwrap();
    let view = pager.view();
    assert_eq!(view.page_ids(SMALL).count(), 4);
    assert_eq!((view.page(page(0)).unwrap()[0], view.page(page(1)).unwrap()[0]), (10, 1));
}

#[test]
fn ids_that_name_no_page_are_refused() {
    let pager = with_pages(2);
    let transaction = pager.begin().unwrap();
    transaction.free(page(1)).unwrap();
    transaction.commit().unwrap();
    let view = pager.view();
    let transaction = pager.begin().unwrap();
    let own = transaction.allocate(SMALL).unwrap();
    transaction.free(own).unwrap();
    let large = PageId::new(class(31), 0).unwrap();
    for id in [page(1), page(2), page(PageId::INDEX_LIMIT - 1), PageId::new(class(13), 0).unwrap(), own, large] {
        let is_missing = |result: Result<(), Error>| matches!(result, Err(Error::PageNotFound { page }) if page == id);
        assert!(is_missing(view.read_at(id, 0, &mut [0])));
        assert!(is_missing(transaction.read_at(id, 0, &mut [0])));
        assert!(is_missing(transaction.write_at(id, 0, b"x")));
        assert!(is_missing(transaction.write_at(id, 0, b"")));
        assert!(is_missing(transaction.free(id)));
        if id != large {
            assert!(is_missing(view.page(id).map(drop)));
            assert!(is_missing(transaction.page(id).map(drop)));
            assert!(is_missing(transaction.write(id).map(drop)));
            assert!(is_missing(transaction.overwrite(id).map(drop)));
        }
        assert!(!view.contains(id).unwrap() && !transaction.contains(id).unwrap());
    }
}

#[test]
fn ranges_and_headers_that_are_too_long_are_refused() {
    let pager = with_pages(1);
    let transaction = pager.begin().unwrap();
    for (offset, length) in [(4096, 1), (1, 4096), (u64::MAX, 2)] {
        let out = |result: Result<(), Error>| matches!(result, Err(Error::OutOfPage { .. }));
        assert!(out(transaction.write_at(page(0), offset, &vec![1; length])));
        assert!(out(transaction.read_at(page(0), offset, &mut vec![0; length])));
        assert!(out(pager.view().read_at(page(0), offset, &mut vec![0; length])));
    }
    assert!(matches!(transaction.set_header(&[0; 1025]), Err(Error::HeaderTooLarge { length: 1025, limit: 1024 })));
    transaction.set_header(&[5; 1024]).unwrap();
    transaction.commit().unwrap();
    assert_eq!(pager.view().header()[..], [5; 1024]);
}

#[test]
fn a_transaction_without_changes_makes_no_commit() {
    let pager = with_pages(1);
    let generation = pager.view().generation();
    let transaction = pager.begin().unwrap();
    let _ = transaction.write(page(0)).unwrap()[0];
    assert_eq!(transaction.commit().unwrap().generation, generation);
    assert_eq!(pager.view().generation(), generation);
}

#[test]
fn one_transaction_is_open_at_a_time() {
    let pager = with_pages(1);
    let transaction = pager.begin().unwrap();
    assert!(matches!(pager.try_begin(), Err(Error::Busy)));
    assert!(matches!(pager.begin_timeout(Duration::from_millis(1)), Err(Error::Busy)));
    let waiting = std::thread::spawn({
        let pager = pager.clone();
        move || pager.begin().unwrap().page(page(0)).unwrap()[0]
    });
    transaction.write(page(0)).unwrap()[0] = 77;
    transaction.commit().unwrap();
    assert_eq!(waiting.join().unwrap(), 77);
    assert!(pager.begin_timeout(Duration::MAX).is_ok());
}

#[test]
fn a_transaction_can_be_finished_by_another_thread() {
    let pager = with_pages(1);
    let transaction = pager.begin().unwrap();
    transaction.write(page(0)).unwrap()[0] = 3;
    std::thread::spawn(move || transaction.commit().unwrap()).join().unwrap();
    assert_eq!(pager.view().page(page(0)).unwrap()[0], 3);
}

#[test]
fn a_transaction_is_not_shared_between_threads() {
    trait NotSync<Proof> {
        fn proved() {}
    }
    struct IsSync;
    impl<T: ?Sized> NotSync<()> for T {}
    impl<T: ?Sized + Sync> NotSync<IsSync> for T {}
    // Were it `Sync`, both would apply, and this would not compile.
    <Transaction as NotSync<_>>::proved();
}

#[test]
fn a_deferred_commit_is_seen_at_once_and_durable_after_a_sync() {
    let disk = Arc::new(SimulatedDisk::new());
    let pager = create_on(&disk, &inline());
    let write = |byte: u8, durability| {
        let transaction = pager.begin().unwrap();
        if byte == 1 {
            transaction.allocate(SMALL).unwrap();
        }
        transaction.overwrite(page(0)).unwrap().fill(byte);
        transaction.commit_with(durability).unwrap();
    };
    let after_a_power_cut = || {
        let disk = Arc::new(SimulatedDisk::from_image(&disk.durable_image()));
        let guard = open_on(&disk, &inline()).view().page(page(0)).unwrap();
        guard[0]
    };
    write(1, Durability::Durable);
    write(2, Durability::Deferred);
    assert_eq!((pager.view().page(page(0)).unwrap()[0], after_a_power_cut()), (2, 1));
    pager.sync().unwrap();
    assert_eq!(after_a_power_cut(), 2);
    write(3, Durability::Deferred);
    write(4, Durability::Durable);
    assert_eq!(after_a_power_cut(), 4);
    write(5, Durability::Deferred);
    pager.begin().unwrap().commit().unwrap();
    assert_eq!(after_a_power_cut(), 5, "a durable commit makes all before it durable, even if it changes nothing");
    write(6, Durability::Deferred);
    pager.clone().close().unwrap();
    assert_eq!(after_a_power_cut(), 6);
}
