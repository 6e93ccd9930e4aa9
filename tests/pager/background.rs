//! Checkpoints, cleaning, failures, closing.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use vellum::disk::{Disk, FaultyDisk, MemoryDisk, Operation, Operations, Span, SystemError};
use vellum::{Durability, Error, Event, Options, PageId, Pager, Read, VerifyLevel};

use crate::{Random, SMALL, create_on, in_memory, inline, open_on};

fn faulty() -> (Arc<MemoryDisk>, Arc<FaultyDisk>) {
    let memory = Arc::new(MemoryDisk::new());
    let disk = Arc::new(FaultyDisk::new(Arc::clone(&memory) as Arc<dyn Disk>));
    (memory, disk)
}

/// Options whose events are collected.
fn collecting(options: Options) -> (Options, Arc<Mutex<Vec<Event>>>) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&events);
    (options.events(Arc::new(move |event: &Event| sink.lock().unwrap().push(event.clone()))), events)
}

fn write(pager: &Pager, page: PageId, byte: u8) -> Result<(), Error> {
    let transaction = pager.begin()?;
    if !transaction.contains(page)? {
        assert_eq!(transaction.allocate(page.class())?, page);
    }
    transaction.overwrite(page)?.fill(byte);
    transaction.commit().map(drop)
}

fn page(index: u64) -> PageId {
    PageId::new(SMALL, index).unwrap()
}

#[test]
fn the_background_thread_makes_checkpoints_when_they_are_due() {
    let (sender, receiver) = mpsc::channel();
    let sender = Mutex::new(sender);
    let hook = move |event: &Event| {
        if let Event::Checkpoint(report) = event {
            let _ = sender.lock().unwrap().send(*report);
        }
    };
    let pager = in_memory(&Options::new().checkpoint_log_bytes(64 << 10).events(Arc::new(hook)));
    for round in 0..3 {
        for byte in 1..=20 {
            write(&pager, page(0), byte).unwrap();
        }
        // Waits for the thread: if it made no checkpoint, this test would not end.
        let report = receiver.recv().unwrap();
        assert!(report.generation > vellum::Generation(0), "round {round}");
    }
    assert!(pager.stats().counters.checkpoints >= 3);
}

#[test]
fn without_a_thread_the_committing_one_makes_checkpoints() {
    let (options, events) = collecting(inline().checkpoint_log_bytes(64 << 10));
    let pager = in_memory(&options);
    let before = pager.stats().counters.checkpoints;
    (1..=100).for_each(|byte| write(&pager, page(0), byte).unwrap());
    let made = pager.stats().counters.checkpoints - before;
    let told = events.lock().unwrap().iter().filter(|event| matches!(event, Event::Checkpoint(_))).count();
    assert!(made >= 5 && told as u64 == made, "{made} made, {told} told");
}

#[test]
fn a_checkpoint_that_fails_harms_no_commit_and_is_tried_again() {
    let (_, disk) = faulty();
    let quick = inline().checkpoint_log_bytes(64 << 10).new_space(vellum::NewSpace::Obtained);
    let (options, events) = collecting(quick);
    let pager = create_on(&disk, &options);
    write(&pager, page(0), 1).unwrap();
    // Small commits are durable writes; the next plain write is of a checkpoint's nodes.
    let plan = disk.fail(Operations::Only(Operation::Write), 1, Span::Once, SystemError::Io);
    let before = pager.stats().counters.checkpoints;
    for byte in 2..=200 {
        write(&pager, page(0), byte).unwrap();
    }
    assert_eq!(disk.fired(plan), 1);
    let failures =
        events.lock().unwrap().iter().filter(|event| matches!(event, Event::BackgroundFailed { .. })).count();
    assert_eq!(failures, 1);
    assert!(pager.stats().counters.checkpoints > before);
    assert_eq!(pager.view().page(page(0)).unwrap()[0], 200);
    assert!(pager.verify(VerifyLevel::Full, &mut |_| {}).unwrap().findings.is_empty());
}

#[test]
fn a_commit_that_may_have_happened_says_so_and_the_store_refuses_writing_until_reopened() {
    let (memory, disk) = faulty();
    let (options, events) = collecting(Options::new());
    let pager = create_on(&disk, &options);
    write(&pager, page(0), 1).unwrap();
    disk.fail(Operations::Only(Operation::DurableWrite), 1, Span::Once, SystemError::Io);
    assert!(matches!(write(&pager, page(0), 2), Err(Error::CommitUnknown { .. })));
    assert_eq!(disk.fired_total(), 1);
    assert!(matches!(write(&pager, page(0), 3), Err(Error::Poisoned { .. })));
    assert!(matches!(pager.sync(), Err(Error::Poisoned { .. })));
    assert!(matches!(pager.checkpoint(), Err(Error::Poisoned { .. })));
    assert_eq!(pager.view().page(page(0)).unwrap()[0], 1, "reads go on");
    let told = events.lock().unwrap().iter().filter(|event| matches!(event, Event::Poisoned { .. })).count();
    assert_eq!(told, 1);
    assert!(matches!(pager.close(), Err(Error::Poisoned { .. })));

    let pager = open_on(&memory, &Options::new());
    let byte = pager.view().page(page(0)).unwrap()[0];
    assert!(byte == 1 || byte == 2, "{byte}: the commit is there whole or not at all");
    write(&pager, page(0), 4).unwrap();
}

#[test]
fn an_error_before_the_record_leaves_the_commit_undone_and_the_pager_usable() {
    let (_, disk) = faulty();
    let pager = create_on(&disk, &inline().in_log_pages_bytes(0));
    write(&pager, page(0), 1).unwrap();
    disk.fail(Operations::Only(Operation::Write), 1, Span::Once, SystemError::Io);
    assert!(matches!(write(&pager, page(0), 2), Err(Error::Io { operation: "write", .. })));
    assert_eq!(pager.view().page(page(0)).unwrap()[0], 1);
    write(&pager, page(0), 3).unwrap();
    assert_eq!(pager.view().page(page(0)).unwrap()[0], 3);
}

#[test]
fn cleaning_makes_whole_segments_free_as_commits_pay_for_it() {
    let pager = in_memory(&inline().clean_target(30).file_limit_bytes(48 << 20));
    let mut pages = Vec::new();
    for _ in 0..32 {
        let transaction = pager.begin().unwrap();
        let more = transaction.allocate_many(SMALL, 250).unwrap();
        more.iter().for_each(|page| transaction.overwrite(*page).unwrap().fill(page.index() as u8));
        transaction.commit().unwrap();
        pages.extend(more);
    }
    let mut random = Random(1);
    let transaction = pager.begin().unwrap();
    let (kept, gone): (Vec<PageId>, Vec<PageId>) = pages.iter().partition(|_| random.below(4) == 0);
    gone.iter().for_each(|page| transaction.free(*page).unwrap());
    transaction.commit().unwrap();
    pager.checkpoint().unwrap();

    let before = pager.stats();
    for byte in 0..150 {
        let transaction = pager.begin().unwrap();
        for _ in 0..64 {
            let page = kept[random.below(kept.len())];
            transaction.write(page).unwrap()[1] = byte;
        }
        transaction.commit().unwrap();
    }
    pager.checkpoint().unwrap();
    pager.checkpoint().unwrap();
    let after = pager.stats();
    assert!(after.counters.moved_bytes > 0, "{after:?}");
    assert!(after.status.segments_free > before.status.segments_free, "{before:?} {after:?}");
    let view = pager.view();
    for page in kept {
        assert_eq!(view.page(page).unwrap()[0], page.index() as u8);
    }
    assert!(pager.verify(VerifyLevel::Full, &mut |_| {}).unwrap().findings.is_empty());
}

#[test]
fn cleaning_on_demand_walks_to_its_end() {
    let pager = in_memory(&inline().clean_target(0));
    let transaction = pager.begin().unwrap();
    let pages = transaction.allocate_many(SMALL, 3000).unwrap();
    pages.iter().for_each(|page| transaction.overwrite(*page).unwrap().fill(1));
    transaction.commit().unwrap();
    let transaction = pager.begin().unwrap();
    pages.iter().skip(1).step_by(2).for_each(|page| transaction.free(*page).unwrap());
    transaction.commit().unwrap();
    let mut moved = 0;
    loop {
        let report = pager.clean(100).unwrap();
        moved += report.pages;
        if report.finished {
            break;
        }
    }
    assert!(moved > 0);
    let view = pager.view();
    assert!(pages.iter().step_by(2).all(|page| view.page(*page).unwrap()[..] == [1; 4096]));
}

#[test]
fn after_close_every_call_fails_with_closed() {
    let pager = in_memory(&Options::new());
    write(&pager, page(0), 1).unwrap();
    let transaction = pager.begin().unwrap();
    assert!(matches!(pager.clone().close(), Err(Error::Busy)));
    transaction.abort();
    let other = pager.clone();
    pager.close().unwrap();
    let is_closed = |result: Result<(), Error>| matches!(result, Err(Error::Closed));
    assert!(is_closed(other.begin().map(drop)));
    assert!(is_closed(other.try_begin().map(drop)));
    assert!(is_closed(other.sync()));
    assert!(is_closed(other.checkpoint().map(drop)));
    assert!(is_closed(other.clean(1).map(drop)));
    assert!(is_closed(other.verify(VerifyLevel::Quick, &mut |_| {}).map(drop)));
    assert!(is_closed(other.snapshot("x", "").map(drop)));
    assert!(is_closed(other.remove("x").map(drop)));
    assert!(is_closed(other.roll_back("x").map(drop)));
    assert!(is_closed(other.open_snapshot("x").map(drop)));
    assert!(is_closed(other.view().page(page(0)).map(drop)));
    assert!(is_closed(other.close()));
}

#[test]
fn who_waits_for_the_turn_is_told_when_the_store_is_closed() {
    let pager = in_memory(&Options::new());
    std::thread::scope(|scope| {
        let transaction = pager.begin().unwrap();
        let waiting: Vec<_> = (0..3).map(|_| scope.spawn(|| pager.begin().map(drop))).collect();
        transaction.abort();
        // Whoever of the three has its turn gives it back; the rest has it or hears that there is none.
        while let Err(error) = pager.clone().close() {
            assert!(matches!(error, Error::Busy), "{error}");
            std::thread::yield_now();
        }
        for thread in waiting {
            assert!(matches!(thread.join().unwrap(), Ok(()) | Err(Error::Closed)));
        }
    });
}

#[test]
fn a_closed_or_dropped_store_has_nothing_to_replay() {
    for way in ["close", "drop"] {
        let disk = Arc::new(MemoryDisk::new());
        let pager = create_on(&disk, &Options::new());
        for byte in 1..=50 {
            write(&pager, page(0), byte).unwrap();
        }
        let transaction = pager.begin().unwrap();
        transaction.set_header(b"deferred").unwrap();
        transaction.commit_with(Durability::Deferred).unwrap();
        match way {
            "close" => pager.close().unwrap(),
            _ => drop(pager),
        }
        let pager = open_on(&disk, &Options::new());
        assert_eq!(pager.recovery().records_replayed, 0, "{way}");
        assert_eq!(pager.view().header()[..], *b"deferred");
        assert_eq!(pager.view().page(page(0)).unwrap()[0], 50);
    }
}
