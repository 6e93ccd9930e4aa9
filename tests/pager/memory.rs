//! Memory: transactions larger than the budget, thousands of views, deadlines, and who is told what when there is none.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use vellum::buffer::BufferManager;
use vellum::disk::{Disk, FaultyDisk, MemoryDisk, Operation, Operations, Span, SystemError};
use vellum::{Durability, Error, Isolation, PageId, Pager, PinKind, Read, SizeClass, VerifyLevel};

use crate::{SMALL, class, create_on, in_memory, inline, open_on};

const MIB: usize = 1 << 20;

fn page(index: u64) -> PageId {
    PageId::new(SMALL, index).unwrap()
}

fn with_pages(pager: &Pager, count: usize) -> Vec<PageId> {
    let transaction = pager.begin().unwrap();
    let pages = transaction.allocate_many(SMALL, count).unwrap();
    pages.iter().for_each(|id| transaction.overwrite(*id).unwrap().fill(id.index() as u8 | 1));
    transaction.commit().unwrap();
    pages
}

/// Runs `test` on a thread of its own. If it hangs for two minutes, prints who holds what and ends the process.
fn watched(pager: &Pager, test: impl FnOnce(&Pager) + Send) {
    let (sender, receiver) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _sender = sender;
            test(pager);
        });
        if receiver.recv_timeout(Duration::from_secs(120)) == Err(RecvTimeoutError::Timeout) {
            for pin in pager.pins() {
                eprintln!("{pin:?}");
            }
            eprintln!("{:?}", pager.buffer().stats());
            std::process::abort();
        }
    });
}

#[test]
fn a_transaction_larger_than_the_budget_spills_and_commits() {
    let disk = Arc::new(MemoryDisk::new());
    let pager = create_on(&disk, &inline().memory(MIB));
    watched(&pager, |pager| {
        let transaction = pager.begin().unwrap();
        let pages = transaction.allocate_many(SMALL, 2000).unwrap();
        for id in &pages {
            transaction.overwrite(*id).unwrap().fill(id.index() as u8 | 1);
            assert!(pager.stats().buffer.used_bytes <= MIB as u64);
        }
        let stats = pager.stats();
        assert!(stats.spilled_blocks > 1000 && stats.dirty_bytes <= MIB / 2, "{stats:?}");
        // Spilled pages are read, changed again, and freed.
        let savepoint = transaction.savepoint().unwrap();
        for id in &pages {
            assert_eq!(transaction.page(*id).unwrap()[4095], id.index() as u8 | 1);
            transaction.write(*id).unwrap()[0] = 7;
        }
        transaction.rollback_to(&savepoint).unwrap();
        for id in pages.iter().step_by(2) {
            assert_eq!(transaction.page(*id).unwrap()[0], id.index() as u8 | 1);
            transaction.write(*id).unwrap()[1] = 8;
        }
        pages.iter().skip(1500).for_each(|id| transaction.free(*id).unwrap());
        transaction.commit().unwrap();
        assert_eq!(pager.stats().spilled_blocks, 0, "what the commit did not take over is given back");
    });
    let check = |pager: &Pager| {
        let view = pager.view();
        assert_eq!(view.page_ids(SMALL).count(), 1500);
        for index in 0..1500 {
            let guard = view.page(page(index)).unwrap();
            let second = if index % 2 == 0 { 8 } else { index as u8 | 1 };
            assert_eq!((guard[0], guard[1], guard[4095]), (index as u8 | 1, second, index as u8 | 1), "page {index}");
        }
        let report = pager.verify(VerifyLevel::Full, &mut |_| {}).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    };
    check(&pager);
    drop(pager);
    check(&open_on(&disk, &inline().memory(MIB)));
}

#[test]
fn an_aborted_transaction_gives_back_what_it_spilled() {
    let pager = in_memory(&inline().memory(MIB));
    let pages = with_pages(&pager, 600);
    let free = pager.stats().status.blocks_free;
    let transaction = pager.begin().unwrap();
    pages.iter().for_each(|id| transaction.overwrite(*id).unwrap().fill(200));
    transaction.write_at(transaction.allocate(class(22)).unwrap(), 5, &[9; 3 * MIB]).unwrap();
    assert!(pager.stats().spilled_blocks > 0);
    transaction.abort();
    let stats = pager.stats();
    assert_eq!((stats.spilled_blocks, stats.dirty_bytes), (0, 0));
    assert!(stats.status.blocks_free >= free);
    assert_eq!(pager.view().page(pages[5]).unwrap()[0], 5);
    let report = pager.verify(VerifyLevel::Full, &mut |_| {}).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

#[test]
fn transactions_build_on_spilled_ones_that_are_not_committed_yet() {
    let pager = in_memory(&inline().memory(MIB));
    let pages = with_pages(&pager, 600);
    let first = pager.begin().unwrap();
    pages.iter().for_each(|id| first.overwrite(*id).unwrap().fill(100));
    let first = first.commit_start().unwrap();
    let second = pager.begin().unwrap();
    assert!(pages.iter().all(|id| second.page(*id).unwrap()[9] == 100));
    first.wait().unwrap();
    // The second one still sees what it began with, wherever that is by now, and whatever comes after.
    assert!(pages.iter().all(|id| second.page(*id).unwrap()[9] == 100));
    second.write(pages[0]).unwrap()[0] = 1;
    second.commit().unwrap();
    assert_eq!(pager.view().page(pages[0]).unwrap()[..2], [1, 100]);
}

#[test]
fn what_a_transaction_sees_stays_while_others_commit() {
    let pager = in_memory(&inline().memory(MIB).file_limit_bytes(16 << 20));
    let pages = with_pages(&pager, 200);
    let change = |byte: u8| {
        let transaction = pager.begin_concurrent(Isolation::Snapshot).unwrap();
        pages.iter().for_each(|id| transaction.overwrite(*id).unwrap().fill(byte));
        transaction.commit_start().unwrap()
    };
    let first = change(50);
    let reader = pager.begin_concurrent(Isolation::Snapshot).unwrap();
    first.wait().unwrap();
    for byte in 51..90 {
        change(byte).wait().unwrap();
        assert!(pages.iter().step_by(17).all(|id| reader.page(*id).unwrap()[..2] == [50, 50]));
    }
    drop(reader);
    assert_eq!(pager.view().page(pages[0]).unwrap()[0], 89);
}

#[test]
fn a_spill_that_fails_harms_nothing() {
    let disk = Arc::new(FaultyDisk::new(Arc::new(MemoryDisk::new()) as Arc<dyn Disk>));
    let pager = create_on(&disk, &inline().memory(MIB).log_segment_bytes(64 << 10).file_limit_bytes(6 << 20));
    let pages = with_pages(&pager, 300);
    let transaction = pager.begin().unwrap();
    disk.fail(Operations::Only(Operation::Write), 1, Span::Once, SystemError::Io);
    let failed = pages.iter().filter(|id| transaction.overwrite(**id).map(|mut bytes| bytes.fill(9)).is_err()).count();
    assert_eq!(failed, 1);
    transaction.commit().unwrap();
    assert_eq!(pages.iter().filter(|id| pager.view().page(**id).unwrap()[0] == 9).count(), 299);
    // More than the file holds: the call that finds no space says so, and the transaction can still be dropped.
    let transaction = pager.begin().unwrap();
    let more = transaction.allocate_many(SMALL, 2000).unwrap();
    let refused = more.iter().find_map(|id| transaction.overwrite(*id).map(|mut bytes| bytes.fill(3)).err());
    assert!(refused.unwrap().is_no_space());
    drop(transaction);
    assert_eq!(pager.stats().spilled_blocks, 0);
    with_pages(&pager, 10);
}

#[test]
fn a_thousand_views_of_as_many_generations_take_no_memory() {
    let pager = in_memory(&inline().memory(16 * MIB));
    let pages = with_pages(&pager, 64);
    let mut views = Vec::new();
    for number in 0..1000_u64 {
        let transaction = pager.begin().unwrap();
        for id in pages.iter().skip(number as usize % 8).step_by(8) {
            transaction.write(*id).unwrap()[..8].copy_from_slice(&number.to_le_bytes());
        }
        transaction.set_header(&number.to_le_bytes()).unwrap();
        transaction.commit_with(Durability::Deferred).unwrap();
        views.push(pager.view());
    }
    assert_eq!(pager.stats().states_held, 1000);
    watched(&pager, |pager| {
        for (number, view) in (0..1000_u64).zip(&views) {
            assert_eq!(view.header()[..], number.to_le_bytes());
            for (index, id) in pages.iter().enumerate() {
                // The last commit that changed the page.
                let behind = (number as usize + 8 - index % 8) % 8;
                let Some(expected) = (number as usize).checked_sub(behind) else { continue };
                assert_eq!(view.page(*id).unwrap()[..8], (expected as u64).to_le_bytes());
            }
            assert!(pager.buffer().stats().used_bytes <= 16 * MIB as u64);
        }
    });
    let generations: std::collections::BTreeSet<_> = pager.pins().iter().map(|pin| pin.generation).collect();
    assert_eq!(generations.len(), 1000);
    drop(views);
    assert!(pager.pins().is_empty());
}

#[test]
fn who_holds_what_is_told() {
    let pager = in_memory(&inline());
    with_pages(&pager, 1);
    let view = pager.view();
    let transaction = pager.begin().unwrap();
    let other = std::thread::Builder::new().name("reader".into()).spawn({
        let pager = pager.clone();
        move || pager.view()
    });
    let other = other.unwrap().join().unwrap();
    let pins = pager.pins();
    assert_eq!(pins.len(), 3);
    assert!(pins.iter().all(|pin| pin.generation == view.generation() && pin.left.is_none()));
    assert_eq!(pins.iter().filter(|pin| pin.kind == PinKind::Transaction).count(), 1);
    assert_eq!(pins.iter().filter(|pin| pin.thread_name.as_deref() == Some("reader")).count(), 1);
    assert!(pins.is_sorted_by(|one, other| one.age >= other.age));
    assert_eq!(pager.stats().oldest_pin.unwrap().kind, PinKind::View);
    drop((view, transaction, other));
    assert!(pager.pins().is_empty() && pager.stats().oldest_pin.is_none());
}

#[test]
fn a_view_beyond_its_deadline_fails_and_holds_nothing() {
    let pager = in_memory(&inline());
    let pages = with_pages(&pager, 3);
    let lasting = pager.view_with_deadline(Duration::from_secs(10_000));
    assert!(pager.pins()[0].left.is_some());
    let view = pager.view_with_deadline(Duration::ZERO);
    let clone = view.clone();
    let expired = |result: Result<(), Error>| matches!(result, Err(Error::ViewExpired { .. }));
    assert!(expired(view.page(pages[0]).map(drop)));
    assert!(expired(clone.read_at(pages[0], 0, &mut [0])));
    assert!(expired(clone.scope(|scope| scope.page(pages[0]).map(drop))));
    assert!(expired(clone.contains(pages[0]).map(drop)));
    assert!(expired(clone.page_ids(SMALL).next().unwrap().map(drop)));
    assert_eq!(pager.stats().states_held, 1, "only the lasting one");
    // One that nobody reads is let go too.
    let unread = pager.view_with_deadline(Duration::ZERO);
    let transaction = pager.begin().unwrap();
    transaction.set_header(b"x").unwrap();
    transaction.commit().unwrap();
    assert_eq!(pager.stats().states_held, 1);
    assert!(unread.header().is_empty() && !expired(lasting.page(pages[0]).map(drop)));
}

#[test]
fn every_bad_request_is_a_typed_error_and_the_pager_goes_on() {
    let pager = in_memory(&inline().memory(2 * MIB));
    let pages = with_pages(&pager, 2000);
    let goes_on = |pager: &Pager| {
        let transaction = pager.begin().unwrap();
        transaction.write(pages[0]).unwrap()[0] = 1;
        transaction.commit().unwrap();
        assert_eq!(pager.view().page(pages[0]).unwrap()[0], 1);
    };
    let missing = |result: Result<(), Error>| matches!(result, Err(Error::PageNotFound { .. }));
    watched(&pager, |pager| {
        // Freed; never allocated; of another class; kept over an abort.
        let transaction = pager.begin().unwrap();
        transaction.free(pages[9]).unwrap();
        let aborted = transaction.allocate(class(13)).unwrap();
        assert!(missing(transaction.write(pages[9]).map(drop)));
        transaction.abort();
        let transaction = pager.begin().unwrap();
        transaction.free(pages[9]).unwrap();
        transaction.commit().unwrap();
        let view = pager.view();
        for id in [pages[9], page(1 << 40), PageId::new(class(14), 0).unwrap(), aborted] {
            assert!(missing(view.page(id).map(drop)));
            assert!(missing(view.scope(|scope| scope.page(id).map(drop))));
            let transaction = pager.begin().unwrap();
            assert!(missing(transaction.write(id).map(drop)));
            assert!(missing(transaction.lock(id)));
        }
        goes_on(pager);
    });
    watched(&pager, |pager| {
        // Borrowed twice.
        let transaction = pager.begin().unwrap();
        let guard = transaction.write(pages[1]).unwrap();
        assert!(matches!(transaction.write(pages[1]), Err(Error::PageBorrowed { .. })));
        drop(guard);
        drop(transaction);
        goes_on(pager);
    });
    watched(&pager, |pager| {
        // More pinned than the budget holds.
        let view = pager.view();
        let mut guards = Vec::new();
        let error = loop {
            match view.page(pages[10 + guards.len()]) {
                Ok(guard) => guards.push(guard),
                Err(error) => break error,
            }
        };
        let Error::BudgetExhausted { held_by, .. } = &error else { panic!("{error}") };
        assert!(held_by.iter().any(|holder| holder.what.contains("guards")), "{error}");
        assert!(guards.iter().all(|guard| guard[0] == guard.id().index() as u8 | 1));
        drop(guards);
        goes_on(pager);
    });
    watched(&pager, |pager| {
        // More open for changing than the budget holds.
        let transaction = pager.begin().unwrap();
        let mut guards = Vec::new();
        let error = loop {
            match transaction.write(pages[10 + guards.len()]) {
                Ok(guard) => guards.push(guard),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::BudgetExhausted { .. }), "{error}");
        drop(guards);
        transaction.write(pages[500]).unwrap()[0] = 1;
        transaction.commit().unwrap();
        goes_on(pager);
    });
    watched(&pager, |pager| {
        // A page larger than the budget.
        let transaction = pager.begin().unwrap();
        let large = transaction.allocate(class(24)).unwrap();
        assert!(matches!(transaction.write(large), Err(Error::PageExceedsBudget { .. })));
        transaction.write_at(large, 0, b"x").unwrap();
        transaction.commit().unwrap();
        assert!(matches!(pager.view().page(large), Err(Error::PageExceedsBudget { .. })));
        let scoped = pager.view().scope(|scope| scope.page(large).map(drop));
        assert!(matches!(scoped, Err(Error::PageExceedsBudget { .. })));
        goes_on(pager);
    });
    let disk = Arc::new(MemoryDisk::new());
    let tiny = Pager::create_on(disk, Box::new(vellum::store::SeededEntropy(1)), &inline().memory(MIB - 1));
    assert!(matches!(tiny, Err(Error::BudgetTooSmall { .. })));
}

#[test]
fn pagers_share_a_buffer_and_give_back_what_they_took() {
    let manager = BufferManager::new(4 * MIB).unwrap();
    let options = inline().buffer(&manager).map_memory(256 << 10);
    {
        let (one, other) = (in_memory(&options), in_memory(&options));
        let (first, second) = (with_pages(&one, 600), with_pages(&other, 600));
        let (first_view, second_view) = (one.view(), other.view());
        for (a, b) in first.iter().zip(&second) {
            assert_eq!(first_view.page(*a).unwrap()[0], a.index() as u8 | 1);
            assert_eq!(second_view.page(*b).unwrap()[0], b.index() as u8 | 1);
        }
        assert!(manager.stats().used_bytes <= 4 * MIB as u64);
    }
    let stats = manager.stats();
    assert_eq!((stats.private_bytes, stats.reserved_bytes), (0, 0));
    assert!(stats.classes.iter().all(|class| class.resident_bytes == 0), "{stats:?}");
    assert!(SizeClass::all().count() >= stats.classes.len());
}

#[test]
fn memory_of_other_pages_never_shows_in_what_is_not_written() {
    let pager = in_memory(&inline().memory(8 << 20));
    let classes = [SMALL, class(16), class(20), class(21)];
    // Frames full of something, given back.
    for class in classes {
        let transaction = pager.begin().unwrap();
        let page = transaction.allocate(class).unwrap();
        transaction.overwrite(page).unwrap().fill(0xee);
        transaction.abort();
    }
    for class in classes {
        let length = class.page_bytes() as usize;
        let transaction = pager.begin().unwrap();
        let pages = transaction.allocate_many(class, 3).unwrap();
        transaction.write_at(pages[0], 100, b"part").unwrap();
        transaction.write(pages[1]).unwrap()[7] = 1;
        transaction.overwrite(pages[2]).unwrap()[9] = 1;
        transaction.commit().unwrap();
        let view = pager.view();
        for (page, start, written) in [(pages[0], 100, &b"part"[..]), (pages[1], 7, &[1]), (pages[2], 9, &[1])] {
            let mut bytes = vec![0xaa; length];
            view.read_at(page, 0, &mut bytes).unwrap();
            let mut expected = vec![0; length];
            expected[start..start + written.len()].copy_from_slice(written);
            assert!(bytes == expected, "{page}");
        }
    }
}

#[test]
fn a_page_written_whole_is_what_was_written_after_savepoints_and_beside_open_pages() {
    let pager = in_memory(&inline());
    let transaction = pager.begin().unwrap();
    let page = transaction.allocate(SMALL).unwrap();
    transaction.write_at(page, 0, &[1; 4096]).unwrap();
    let savepoint = transaction.savepoint().unwrap();
    transaction.write_at(page, 0, &[2; 4096]).unwrap();
    assert_eq!(transaction.page(page).unwrap()[..], [2; 4096]);
    transaction.rollback_to(&savepoint).unwrap();
    assert_eq!(transaction.page(page).unwrap()[..], [1; 4096]);
    let open = transaction.write(page).unwrap();
    assert!(matches!(transaction.write_at(page, 0, &[3; 4096]), Err(Error::PageBorrowed { .. })));
    drop(open);
    transaction.commit().unwrap();
    let transaction = pager.begin().unwrap();
    transaction.write_at(page, 0, &[4; 4096]).unwrap();
    assert_eq!(pager.view().page(page).unwrap()[..], [1; 4096]);
    transaction.commit().unwrap();
    assert_eq!(pager.view().page(page).unwrap()[..], [4; 4096]);
}
