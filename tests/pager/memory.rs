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

fn bytes_of(number: usize) -> [u8; 8] {
    (number as u64).to_le_bytes()
}

#[test]
fn map_nodes_of_a_thousand_old_views_go_to_disk() {
    const SPREAD: usize = 20_000;
    let disk = Arc::new(MemoryDisk::new());
    let pager = create_on(&disk, &inline().memory(16 * MIB));
    // A quarter of what the maps have, which is an eighth of the budget.
    let limit = 16 * MIB / 8 / 4;
    let pages = with_pages(&pager, SPREAD);
    pager.checkpoint().unwrap();
    let changed = |number: usize| (0..16).map(move |at| (number * 7919 + at * 1237) % SPREAD);
    let mut views = Vec::new();
    let mut model = vec![0; SPREAD];
    watched(&pager, |pager| {
        for number in 1..=1000 {
            let transaction = pager.begin().unwrap();
            for index in changed(number) {
                transaction.write(pages[index]).unwrap()[8..16].copy_from_slice(&bytes_of(number));
                model[index] = number;
            }
            transaction.commit_with(Durability::Deferred).unwrap();
            views.push((pager.view(), number));
            let stats = pager.stats();
            // What one commit adds: 16 leaves, and what is above.
            assert!(stats.old_map_bytes <= limit + 20 * (8 << 10), "{number}: {} bytes", stats.old_map_bytes);
        }
        let stats = pager.stats();
        // 16 leaves for each view would be more than the whole budget.
        assert!(stats.shelved_blocks > 4000, "{} blocks", stats.shelved_blocks);
        assert_eq!((stats.states_held, stats.spilled_blocks), (1000, 0));
        for (view, number) in views.iter().rev() {
            // What this commit changed, and what the next ones will, as they were.
            for index in changed(*number).chain(changed(*number + 1)).chain([number * 31 % SPREAD]) {
                let expected = (1..=*number).rev().find(|number| changed(*number).any(|at| at == index)).unwrap_or(0);
                let guard = view.page(pages[index]).unwrap();
                let bytes = match expected {
                    0 => [pages[index].index() as u8 | 1; 8],
                    number => bytes_of(number),
                };
                assert_eq!(guard[8..16], bytes, "page {index} in generation {number}");
            }
            if number % 100 == 0 {
                assert_eq!(view.page_ids(SMALL).count(), SPREAD);
            }
        }
        assert!(pager.verify(VerifyLevel::Full, &mut |_| {}).unwrap().findings.is_empty());
        pager.checkpoint().unwrap();
        let (first, _) = &views[0];
        assert_eq!(first.page(pages[changed(1).next().unwrap()]).unwrap()[8..16], bytes_of(1));
        let held = pager.stats().status.blocks_free;
        views.clear();
        let stats = pager.stats();
        assert_eq!((stats.shelved_blocks, stats.spilled_blocks, stats.old_map_bytes), (0, 0, 0));
        assert!(stats.status.blocks_free > held + 4000);
        assert!(pager.verify(VerifyLevel::Full, &mut |_| {}).unwrap().findings.is_empty());
    });
    pager.close().unwrap();
    let pager = open_on(&disk, &inline().memory(16 * MIB));
    for (index, number) in model.iter().enumerate().filter(|(_, number)| **number > 0) {
        assert_eq!(pager.view().page(pages[index]).unwrap()[8..16], bytes_of(*number));
    }
}

#[test]
fn old_views_are_read_while_their_map_nodes_go_to_disk() {
    let pager = in_memory(&inline().memory(2 * MIB));
    let pages = with_pages(&pager, 5000);
    pager.checkpoint().unwrap();
    let views = std::sync::Mutex::new(vec![(pager.view(), 0)]);
    let done = std::sync::atomic::AtomicBool::new(false);
    // Each commit writes its number into every fiftieth page; which ones depends on the number.
    let expected = |index: usize, number: usize| (1..=number).rev().find(|number| index % 50 == number % 50);
    watched(&pager, |pager| {
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (views, done, pages) = (&views, &done, &pages);
                scope.spawn(move || {
                    let mut random = crate::Random(thread);
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        let (view, number) = {
                            let views = views.lock().unwrap();
                            views[random.below(views.len())].clone()
                        };
                        let index = random.below(5000);
                        let bytes = match expected(index, number) {
                            None => [pages[index].index() as u8 | 1; 8],
                            Some(number) => bytes_of(number),
                        };
                        assert_eq!(view.page(pages[index]).unwrap()[..8], bytes);
                    }
                });
            }
            let _end = crate::Ending(&done);
            let mut most = 0;
            for number in 1..=300 {
                let transaction = pager.begin().unwrap();
                for index in (0..5000).filter(|index| index % 50 == number % 50) {
                    transaction.write(pages[index]).unwrap()[..8].copy_from_slice(&bytes_of(number));
                }
                transaction.commit_with(Durability::Deferred).unwrap();
                let mut views = views.lock().unwrap();
                views.push((pager.view(), number));
                if views.len() > 60 {
                    views.remove(number % 59);
                }
                drop(views);
                most = most.max(pager.stats().shelved_blocks);
            }
            assert!(most > 100, "{most} blocks");
        });
        views.lock().unwrap().clear();
        assert_eq!(pager.stats().shelved_blocks, 0);
        assert!(pager.verify(VerifyLevel::Full, &mut |_| {}).unwrap().findings.is_empty());
    });
}

#[test]
fn where_there_is_no_space_for_map_nodes_of_old_views_they_stay_in_memory() {
    let pager = in_memory(&inline().memory(2 * MIB).file_limit_bytes(20 << 20));
    let pages = with_pages(&pager, 1600);
    let mut views = Vec::new();
    let mut refused = 0;
    for number in 1..=400 {
        let write = || {
            let transaction = pager.begin()?;
            for at in 0..8 {
                transaction.write(pages[(number * 37 + at * 201) % 1600])?[8..16].copy_from_slice(&bytes_of(number));
            }
            transaction.commit()
        };
        match write() {
            Ok(_) => views.push((pager.view(), number)),
            Err(error) => {
                assert!(error.is_no_space(), "{error}");
                refused += 1;
                break;
            }
        }
    }
    assert!(refused == 1 && views.len() > 20, "{} views", views.len());
    for (view, number) in &views {
        for at in 0..8 {
            let page = pages[(number * 37 + at * 201) % 1600];
            assert_eq!(view.page(page).unwrap()[8..16], bytes_of(*number));
        }
    }
    drop(views);
    with_pages(&pager, 10);
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

/// Bytes of version `version` of a page.
fn version_of(page: PageId, version: usize) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&page.to_u64().to_le_bytes());
    bytes[8..].copy_from_slice(&(version as u64).to_le_bytes());
    bytes
}

#[test]
fn what_only_savepoints_hold_is_spilled_and_given_back_exactly() {
    const ROUNDS: usize = 24;
    let disk = Arc::new(MemoryDisk::new());
    let pager = create_on(&disk, &inline().memory(MIB));
    let chunked = class(22);
    watched(&pager, |pager| {
        let transaction = pager.begin().unwrap();
        let pages = transaction.allocate_many(SMALL, 100).unwrap();
        let large = transaction.allocate(chunked).unwrap();
        let write = |version: usize| {
            for id in &pages {
                transaction.overwrite(*id).unwrap()[..16].copy_from_slice(&version_of(*id, version));
            }
            transaction.write_at(large, ((version as u64 % 3) << 20) + 7, &version_of(large, version)).unwrap();
        };
        let check = |version: usize| {
            for id in &pages {
                let guard = transaction.page(*id).unwrap();
                assert!(guard[..16] == version_of(*id, version) && guard[16..].iter().all(|byte| *byte == 0));
            }
            for version in version.saturating_sub(2)..=version {
                let mut bytes = [0; 16];
                transaction.read_at(large, ((version as u64 % 3) << 20) + 7, &mut bytes).unwrap();
                assert_eq!(bytes, version_of(large, version));
            }
        };
        let mut savepoints = Vec::new();
        for version in 0..ROUNDS {
            write(version);
            savepoints.push(transaction.savepoint().unwrap());
            let stats = pager.stats();
            assert!(stats.buffer.used_bytes <= MIB as u64 && stats.dirty_bytes <= MIB / 2, "{stats:?}");
        }
        // 24 versions of 100 pages, of which a quarter of a budget at most is in memory.
        assert!(pager.stats().spilled_blocks > 100 * (ROUNDS as u64 - 4), "{:?}", pager.stats());
        check(ROUNDS - 1);
        // To some twice, with other changes in between.
        for version in [23, 22, 15, 15, 9, 4, 4] {
            transaction.rollback_to(&savepoints[version]).unwrap();
            check(version);
            write(100 + version);
            transaction.rollback_to(&savepoints[version]).unwrap();
            check(version);
            savepoints.truncate(version + 1);
        }
        write(5);
        drop(savepoints);
        transaction.commit().unwrap();
        assert_eq!((pager.stats().spilled_blocks, pager.stats().dirty_bytes), (0, 0));
        let view = pager.view();
        for id in &pages {
            assert_eq!(view.page(*id).unwrap()[..16], version_of(*id, 5));
        }
        assert!(pager.verify(VerifyLevel::Full, &mut |_| {}).unwrap().findings.is_empty());
    });
}

#[test]
fn an_aborted_transaction_with_savepoints_gives_everything_back() {
    let pager = in_memory(&inline().memory(MIB));
    let pages = with_pages(&pager, 100);
    let free = pager.stats().status.blocks_free;
    let transaction = pager.begin().unwrap();
    let mut savepoints = Vec::new();
    for _ in 0..20 {
        pages.iter().for_each(|id| transaction.write(*id).unwrap()[0] ^= 1);
        savepoints.push(transaction.savepoint().unwrap());
    }
    assert!(pager.stats().spilled_blocks > 1000);
    transaction.abort();
    let stats = pager.stats();
    assert_eq!((stats.spilled_blocks, stats.dirty_bytes, stats.buffer.private_bytes), (0, 0, 0));
    // The file may have grown for what was spilled: at least as much is free.
    assert!(stats.status.blocks_free >= free, "{stats:?}");
    pages.iter().for_each(|id| assert_eq!(pager.view().page(*id).unwrap()[0], id.index() as u8 | 1));
    drop(savepoints);
}

#[test]
fn memory_of_other_pages_never_shows_in_what_is_not_written() {
    let pager = in_memory(&inline().memory(32 << 20));
    for class in [SMALL, class(16), class(20), class(21)] {
        // Frames full of something, given back just before.
        let transaction = pager.begin().unwrap();
        for page in transaction.allocate_many(class, 3).unwrap() {
            transaction.overwrite(page).unwrap().fill(0xee);
        }
        transaction.abort();
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
