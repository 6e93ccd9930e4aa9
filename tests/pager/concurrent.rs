//! Transactions beside each other: what is refused, what is not, and that nothing is lost.

use std::collections::HashSet;
use std::sync::mpsc;

use vellum::{Contended, Error, Isolation, Options, PageId, Pager, Read, Transaction};

use crate::{SMALL, in_memory, inline};

fn page(index: u64) -> PageId {
    PageId::new(SMALL, index).unwrap()
}

/// A pager with so many pages of 4 KiB, each filled with its index.
fn with_pages(count: usize, options: &Options) -> Pager {
    let pager = in_memory(options);
    let transaction = pager.begin().unwrap();
    for id in transaction.allocate_many(SMALL, count).unwrap() {
        transaction.overwrite(id).unwrap().fill(id.index() as u8);
    }
    transaction.commit().unwrap();
    pager
}

fn snapshot(pager: &Pager) -> Transaction {
    pager.begin_concurrent(Isolation::Snapshot).unwrap()
}

fn conflicts<T>(result: Result<T, Error>, unit: Contended, still_open: bool) -> bool {
    matches!(result, Err(Error::Conflict { on, open }) if on == unit && open == still_open)
}

#[test]
fn transactions_that_change_different_pages_do_not_meet() {
    let pager = with_pages(2, &inline());
    let (first, second) = (snapshot(&pager), snapshot(&pager));
    first.write(page(0)).unwrap()[0] = 100;
    second.write(page(1)).unwrap()[0] = 101;
    assert_eq!(second.page(page(0)).unwrap()[0], 0, "what is not committed is not seen");
    first.commit().unwrap();
    assert_eq!(second.page(page(0)).unwrap()[0], 0, "nor is what was committed later");
    second.commit().unwrap();
    let view = pager.view();
    assert_eq!((view.page(page(0)).unwrap()[0], view.page(page(1)).unwrap()[0]), (100, 101));
}

#[test]
fn a_page_that_another_one_changes_or_has_changed_is_refused_at_once() {
    let pager = with_pages(3, &inline());
    let (first, second, third) = (snapshot(&pager), snapshot(&pager), snapshot(&pager));
    let unit = Contended::Page(page(0));
    first.write(page(0)).unwrap()[0] = 100;
    assert!(conflicts(second.write(page(0)).map(drop), unit, true));
    assert!(conflicts(second.overwrite(page(0)).map(drop), unit, true));
    assert!(conflicts(second.write_at(page(0), 0, b"x"), unit, true));
    assert!(conflicts(second.free(page(0)), unit, true));
    assert!(conflicts(second.lock(page(0)), unit, true));
    first.commit().unwrap();
    assert!(conflicts(second.write(page(0)).map(drop), unit, false));
    second.write(page(1)).unwrap()[0] = 101;
    second.commit().unwrap();
    let fourth = snapshot(&pager);
    fourth.write(page(0)).unwrap()[1] = 1;
    fourth.abort();
    assert!(conflicts(third.write(page(0)).map(drop), unit, false), "an abort does not hide the change before it");
    let fifth = snapshot(&pager);
    assert_eq!(fifth.page(page(0)).unwrap()[0], 100);
    fifth.write(page(0)).unwrap()[0] = 102;
    fifth.commit().unwrap();
    assert_eq!(pager.view().page(page(0)).unwrap()[0], 102);
}

#[test]
fn what_an_aborted_transaction_claimed_is_free_again() {
    let pager = with_pages(1, &inline());
    let (first, second) = (snapshot(&pager), snapshot(&pager));
    first.write(page(0)).unwrap()[0] = 9;
    first.set_header(b"first").unwrap();
    assert!(conflicts(second.set_header(b"second"), Contended::Header, true));
    first.abort();
    second.write(page(0)).unwrap()[0] = 10;
    second.set_header(b"second").unwrap();
    second.commit().unwrap();
    assert_eq!(pager.view().page(page(0)).unwrap()[0], 10);
    assert_eq!(pager.view().header()[..], *b"second");
}

#[test]
fn the_header_and_a_freed_page_are_changes_like_others() {
    let pager = with_pages(2, &inline());
    let (first, second) = (snapshot(&pager), snapshot(&pager));
    first.set_header(b"first").unwrap();
    first.free(page(0)).unwrap();
    assert!(conflicts(second.set_header(b"second"), Contended::Header, true));
    assert!(conflicts(second.write(page(0)).map(drop), Contended::Page(page(0)), true));
    first.commit().unwrap();
    assert!(conflicts(second.set_header(b"second"), Contended::Header, false));
    assert!(conflicts(second.write(page(0)).map(drop), Contended::Page(page(0)), false));
    assert_eq!(second.page(page(0)).unwrap()[0], 0, "the state it began with has it");
}

#[test]
fn concurrent_allocations_never_meet_and_come_back_from_aborts() {
    let pager = with_pages(0, &inline());
    let transactions: Vec<_> = (0..4).map(|_| snapshot(&pager)).collect();
    let mut ids = HashSet::new();
    for _ in 0..5 {
        for transaction in &transactions {
            assert!(ids.insert(transaction.allocate(SMALL).unwrap()));
        }
    }
    assert_eq!(ids.iter().map(|id| id.index()).max(), Some(19));
    let mut transactions = transactions.into_iter();
    transactions.next().unwrap().abort();
    for transaction in transactions {
        transaction.commit().unwrap();
    }
    let transaction = snapshot(&pager);
    let again: Vec<u64> = (0..6).map(|_| transaction.allocate(SMALL).unwrap().index()).collect();
    assert_eq!(again, [0, 4, 8, 12, 16, 20]);
}

#[test]
fn an_index_is_not_given_to_a_transaction_that_still_sees_the_page_before() {
    let pager = with_pages(3, &inline());
    let old = snapshot(&pager);
    let other = snapshot(&pager);
    other.free(page(1)).unwrap();
    other.commit().unwrap();
    assert_eq!(old.allocate(SMALL).unwrap(), page(3));
    assert_eq!(old.page(page(1)).unwrap()[0], 1);
    assert_eq!(snapshot(&pager).allocate(SMALL).unwrap(), page(1));
}

/// One transaction copies leaf L to L' and points parent P there; the other finds L by way of P and inserts into L.
/// They change different pages.
fn write_skew(isolation: Isolation, locking: bool) -> (Pager, Result<(), Error>) {
    const PARENT: u64 = 0;
    const LEAF: u64 = 1;
    let pager = with_pages(2, &inline());
    let setup = pager.begin().unwrap();
    setup.write(page(PARENT)).unwrap()[0] = LEAF as u8;
    setup.commit().unwrap();

    let copier = pager.begin_concurrent(isolation).unwrap();
    let inserter = pager.begin_concurrent(isolation).unwrap();
    let insert = || {
        let leaf = page(inserter.page(page(PARENT))?[0].into());
        if locking {
            inserter.lock(page(PARENT))?;
        }
        inserter.write(leaf)?[7] = 77;
        Ok(())
    };
    let copy = || {
        let leaf = page(copier.page(page(PARENT))?[0].into());
        if locking {
            copier.lock(leaf)?;
        }
        let copied = copier.allocate(SMALL)?;
        copier.overwrite(copied)?.copy_from_slice(&copier.page(leaf)?);
        copier.write(page(PARENT))?[0] = copied.index() as u8;
        Ok(())
    };
    let result = copy()
        .and_then(|()| insert())
        .and_then(|()| copier.commit().map(drop))
        .and_then(|()| inserter.commit().map(drop));
    (pager, result)
}

fn inserted(pager: &Pager) -> bool {
    let view = pager.view();
    let leaf = view.page(page(0)).unwrap()[0];
    view.page(page(leaf.into())).unwrap()[7] == 77
}

#[test]
fn write_skew_is_possible_with_snapshots_and_caught_by_lock_or_serializability() {
    let (pager, result) = write_skew(Isolation::Snapshot, false);
    result.unwrap();
    assert!(!inserted(&pager), "both committed, and the insertion cannot be reached: that is the anomaly");
    let (_, result) = write_skew(Isolation::Snapshot, true);
    assert!(conflicts(result, Contended::Page(page(0)), true));
    let (_, result) = write_skew(Isolation::Serializable, false);
    assert!(conflicts(result, Contended::Page(page(0)), false));
}

#[test]
fn a_serializable_transaction_is_refused_for_what_it_has_read() {
    let pager = with_pages(3, &inline());
    let serializable = || pager.begin_concurrent(Isolation::Serializable).unwrap();
    // The header, a page that is not there yet, which pages there are, a part of a page.
    type Step<'a> = &'a dyn Fn(&Transaction);
    let reads: [(Step<'_>, Step<'_>); 4] = [
        (&|t| drop(t.header()), &|t| t.set_header(b"x").unwrap()),
        (&|t| assert!(t.page_ids(SMALL).count() >= 3), &|t| _ = t.allocate(SMALL).unwrap()),
        (&|t| assert!(t.page_ids(SMALL).count() >= 3), &|t| t.free(page(2)).unwrap()),
        (&|t| t.read_at(page(0), 5, &mut [0]).unwrap(), &|t| t.write_at(page(0), 0, b"x").unwrap()),
    ];
    for (read, change) in reads {
        let reader = serializable();
        read(&reader);
        reader.write(page(1)).unwrap()[0] = 9;
        let other = snapshot(&pager);
        change(&other);
        other.commit().unwrap();
        assert!(matches!(reader.commit(), Err(Error::Conflict { open: false, .. })));
        let reader = serializable();
        read(&reader);
        reader.write(page(1)).unwrap()[0] = 9;
        reader.commit().unwrap();
    }
}

#[test]
fn a_serializable_transaction_that_only_reads_is_judged_too() {
    let pager = with_pages(2, &inline());
    let reader = pager.begin_concurrent(Isolation::Serializable).unwrap();
    assert_eq!(reader.page(page(0)).unwrap()[0], 0);
    let writer = snapshot(&pager);
    writer.write(page(0)).unwrap()[0] = 5;
    writer.commit().unwrap();
    assert!(matches!(reader.commit(), Err(Error::Conflict { .. })));
}

#[test]
fn serial_and_concurrent_transactions_wait_for_each_other_in_order() {
    let pager = with_pages(1, &inline());
    let first = snapshot(&pager);
    let second = snapshot(&pager);
    assert!(matches!(pager.try_begin(), Err(Error::Busy)));
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        let serial = scope.spawn(|| {
            let transaction = pager.begin().unwrap();
            sender.send(()).unwrap();
            transaction.write(page(0)).unwrap()[1] = 1;
            transaction.commit().unwrap();
        });
        // Who comes after a waiting serial transaction waits behind it.
        while pager.try_begin_concurrent(Isolation::Snapshot).is_ok() {
            std::thread::yield_now();
        }
        first.commit().unwrap();
        assert!(receiver.try_recv().is_err());
        second.abort();
        receiver.recv().unwrap();
        serial.join().unwrap();
        assert_eq!(snapshot(&pager).page(page(0)).unwrap()[1], 1);
    });
}
