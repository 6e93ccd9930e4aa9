//! Group commit: what shares a record, what fails alone, and who waits for whom.

use std::sync::{Arc, Condvar, Mutex};

use vellum::disk::{Disk, FaultyDisk, MemoryDisk, Operation, Operations, SimulatedDisk, Span, SystemError};
use vellum::{Durability, Error, Isolation, Options, PageId, Pager, Read, Ticket};

use crate::watched::{Watch, Watched};
use crate::{SMALL, create_on, fill, in_memory, inline, open_on, page};

/// Adds one to the page's first bytes, and returns what they were.
fn count_up(pager: &Pager, page: PageId) -> (u16, Ticket) {
    let transaction = pager.begin().unwrap();
    let mut guard = transaction.write(page).unwrap();
    let before = u16::from_le_bytes([guard[0], guard[1]]);
    guard[..2].copy_from_slice(&(before + 1).to_le_bytes());
    drop(guard);
    (before, transaction.commit_start().unwrap())
}

fn counter(read: &impl Read, page: PageId) -> u16 {
    let guard = read.page(page).unwrap();
    u16::from_le_bytes([guard[0], guard[1]])
}

#[test]
fn commits_that_are_started_together_share_a_record_and_a_sync() {
    let pager = in_memory(&inline());
    fill(&pager, 64);
    let before = pager.stats().counters;
    let tickets: Vec<Ticket> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..64)
            .map(|index| {
                let pager = &pager;
                scope.spawn(move || {
                    let transaction = pager.begin_concurrent(Isolation::Snapshot).unwrap();
                    transaction.write(page(index)).unwrap()[0] = 7;
                    transaction.commit_start().unwrap()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!((0..64).all(|index| pager.view().page(page(index)).unwrap()[0] == 1), "views see it when it is done");
    let generations: Vec<_> = tickets.into_iter().map(|ticket| ticket.wait().unwrap().generation).collect();
    assert!(generations.iter().all(|generation| *generation == generations[0]));
    let after = pager.stats().counters;
    assert_eq!((after.commits - before.commits, after.syncs - before.syncs), (1, 1));
    assert!((0..64).all(|index| pager.view().page(page(index)).unwrap()[0] == 7));
}

#[test]
fn serial_transactions_on_one_hot_page_build_on_each_other_before_they_are_durable() {
    let pager = in_memory(&inline());
    fill(&pager, 1);
    let start = counter(&pager.view(), page(0));
    let before = pager.stats().counters;
    let mut seen: Vec<u16> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..64).map(|_| scope.spawn(|| count_up(&pager, page(0)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    })
    .into_iter()
    .map(|(before, ticket)| (before, ticket.wait().unwrap()).0)
    .collect();
    seen.sort_unstable();
    assert_eq!(seen, (start..start + 64).collect::<Vec<_>>());
    let after = pager.stats().counters;
    assert_eq!((after.commits - before.commits, after.syncs - before.syncs), (1, 1));
    assert_eq!(counter(&pager.view(), page(0)), start + 64);
}

#[test]
fn a_started_commit_is_done_without_being_waited_for_where_there_is_a_thread() {
    let pager = in_memory(&Options::new());
    fill(&pager, 1);
    let start = counter(&pager.view(), page(0));
    let (_, mut ticket) = count_up(&pager, page(0));
    let committed = loop {
        match ticket.try_wait() {
            Ok(result) => break result.unwrap(),
            Err(again) => ticket = again,
        }
        std::thread::yield_now();
    };
    assert!(committed.generation <= pager.view().generation());
    drop(count_up(&pager, page(0)).1);
    while counter(&pager.view(), page(0)) < start + 2 {
        std::thread::yield_now();
    }
}

#[test]
fn what_was_started_and_forgotten_is_committed_by_the_next_or_by_the_end() {
    let disk = Arc::new(MemoryDisk::new());
    let pager = create_on(&disk, &inline());
    fill(&pager, 2);
    let start = counter(&pager.view(), page(0));
    drop(count_up(&pager, page(0)).1);
    assert_eq!(counter(&pager.view(), page(0)), start);
    count_up(&pager, page(1)).1.wait().unwrap();
    assert_eq!(counter(&pager.view(), page(0)), start + 1);
    drop(count_up(&pager, page(0)).1);
    pager.sync().unwrap();
    assert_eq!(counter(&pager.view(), page(0)), start + 2);
    let ticket = count_up(&pager, page(0)).1;
    drop(pager);
    drop(ticket);
    let pager = open_on(&disk, &inline());
    assert_eq!(counter(&pager.view(), page(0)), start + 3);
    drop(count_up(&pager, page(0)).1);
    pager.close().unwrap();
    assert_eq!(counter(&open_on(&disk, &inline()).view(), page(0)), start + 4);
}

#[test]
fn a_durable_commit_makes_the_deferred_ones_of_its_group_durable() {
    let disk = Arc::new(SimulatedDisk::new());
    let pager = create_on(&disk, &inline());
    fill(&pager, 2);
    let change = |index: u64, durability| {
        let transaction = pager.begin().unwrap();
        transaction.write(page(index)).unwrap()[0] += 1;
        transaction.commit_start_with(durability).unwrap()
    };
    let after_a_power_cut = |index| {
        let disk = Arc::new(SimulatedDisk::from_image(&disk.durable_image()));
        open_on(&disk, &inline()).view().page(page(index)).unwrap()[0]
    };
    change(0, Durability::Deferred).wait().unwrap();
    assert_eq!(after_a_power_cut(0), 1);
    let deferred = change(0, Durability::Deferred);
    let durable = change(1, Durability::Durable);
    let other = change(0, Durability::Deferred);
    deferred.wait().unwrap();
    assert_eq!((after_a_power_cut(0), after_a_power_cut(1)), (4, 2), "one group, of the strongest durability");
    durable.wait().unwrap();
    other.wait().unwrap();
}

#[test]
fn pages_allocated_and_freed_by_members_of_one_group_come_out_right() {
    let pager = in_memory(&inline());
    fill(&pager, 2);
    let first = pager.begin().unwrap();
    let (kept, gone) = (first.allocate(SMALL).unwrap(), first.allocate(SMALL).unwrap());
    first.overwrite(kept).unwrap().fill(5);
    first.set_header(b"first").unwrap();
    let first = first.commit_start().unwrap();
    let second = pager.begin().unwrap();
    assert_eq!(second.page(kept).unwrap()[..2], [5, 5]);
    assert_eq!(second.header()[..], *b"first");
    second.free(gone).unwrap();
    second.free(page(0)).unwrap();
    second.write(kept).unwrap()[0] = 6;
    let second = second.commit_start().unwrap();
    let third = pager.begin().unwrap();
    assert!(!third.contains(gone).unwrap() && !third.contains(page(0)).unwrap());
    assert_eq!(third.page_ids(SMALL).map(Result::unwrap).collect::<Vec<_>>(), [page(1), kept]);
    assert!(matches!(third.write(gone).map(drop), Err(Error::PageNotFound { .. })));
    let fourth_index = third.allocate(SMALL).unwrap();
    assert_eq!(fourth_index.index(), gone.index() + 1, "what others may still see is not used again");
    third.abort();
    assert_eq!(first.wait().unwrap(), second.wait().unwrap());
    let view = pager.view();
    assert_eq!(view.page_ids(SMALL).map(Result::unwrap).collect::<Vec<_>>(), [page(1), kept]);
    assert_eq!(view.page(kept).unwrap()[..2], [6, 5]);
    let transaction = pager.begin().unwrap();
    let ids: Vec<_> = (0..3).map(|_| transaction.allocate(SMALL).unwrap()).collect();
    assert_eq!(ids, [page(0), gone, fourth_index]);
}

#[test]
fn chunks_changed_by_members_of_one_group_come_out_right() {
    let pager = in_memory(&inline());
    let large = crate::class(22);
    let transaction = pager.begin().unwrap();
    let id = transaction.allocate(large).unwrap();
    transaction.write_at(id, 0, &[1; 4 << 20]).unwrap();
    transaction.commit().unwrap();
    let mut tickets = Vec::new();
    for (offset, byte) in [(0, 2), (1 << 20, 3), (5, 4)] {
        let transaction = pager.begin().unwrap();
        transaction.write_at(id, offset, &[byte; 3]).unwrap();
        tickets.push(transaction.commit_start().unwrap());
    }
    let check = |read: &dyn Read| {
        for (offset, bytes) in [(0, [2, 2, 2, 1]), (1 << 20, [3, 3, 3, 1]), (4, [1, 4, 4, 4]), (2 << 20, [1; 4])] {
            let mut found = [0; 4];
            read.read_at(id, offset, &mut found).unwrap();
            assert_eq!(found, bytes, "at {offset}");
        }
    };
    check(&pager.begin().unwrap());
    for ticket in tickets {
        ticket.wait().unwrap();
    }
    check(&pager.view());
}

/// More pages than a file of 4 MiB holds.
const TOO_MANY: usize = 1100;

/// A pager on a file that is never larger than 4 MiB.
fn small_file() -> Pager {
    let options = inline().file_limit_bytes(4 << 20).log_segment_bytes(64 << 10).checkpoint_log_bytes(128 << 10);
    let pager = in_memory(&options);
    fill(&pager, 4);
    pager
}

fn start_filling(pager: &Pager, count: usize, byte: u8) -> Result<Ticket, Error> {
    let transaction = pager.begin().unwrap();
    for id in transaction.allocate_many(SMALL, count).unwrap() {
        transaction.overwrite(id).unwrap().fill(byte);
    }
    transaction.commit_start()
}

#[test]
fn a_member_that_finds_no_space_fails_alone_with_those_that_were_built_on_it() {
    let pager = small_file();
    let before = counter(&pager.view(), page(0));
    let concurrent = pager.begin_concurrent(Isolation::Snapshot).unwrap();
    let too_large = pager.begin_concurrent(Isolation::Snapshot).unwrap();
    let beside = pager.begin_concurrent(Isolation::Snapshot).unwrap();
    concurrent.write(page(0)).unwrap()[0] += 1;
    beside.write(page(1)).unwrap()[0] = 50;
    for id in too_large.allocate_many(SMALL, TOO_MANY).unwrap() {
        too_large.overwrite(id).unwrap().fill(9);
    }
    let concurrent = concurrent.commit_start().unwrap();
    let too_large = too_large.commit_start().unwrap();
    let beside = beside.commit_start().unwrap();
    let built_on_it = count_up(&pager, page(2)).1;
    let open = pager.begin().unwrap();
    open.write(page(3)).unwrap()[0] = 1;

    concurrent.wait().unwrap();
    assert!(too_large.wait().unwrap_err().is_no_space());
    beside.wait().unwrap();
    assert!(matches!(built_on_it.wait(), Err(Error::PredecessorFailed { .. })));
    assert!(matches!(open.commit(), Err(Error::PredecessorFailed { .. })));
    let view = pager.view();
    assert_eq!((counter(&view, page(0)), view.page(page(1)).unwrap()[0]), (before + 1, 50));
    assert_eq!(view.page(page(2)).unwrap()[0], 1);
    assert_eq!(view.page_ids(SMALL).count(), 4);
    // What the failed one took is there again, and the pager goes on.
    let transaction = pager.begin().unwrap();
    assert_eq!(transaction.allocate(SMALL).unwrap(), page(4));
    transaction.commit().unwrap();
    count_up(&pager, page(2)).1.wait().unwrap();
}

#[test]
fn a_single_commit_that_finds_no_space_leaves_the_next_ones_alone() {
    let pager = small_file();
    assert!(start_filling(&pager, TOO_MANY, 1).unwrap().wait().unwrap_err().is_no_space());
    start_filling(&pager, 3, 1).unwrap().wait().unwrap();
}

#[test]
fn when_a_commit_is_unknown_all_of_its_group_and_all_later_ones_fail() {
    let memory = Arc::new(MemoryDisk::new());
    let disk = Arc::new(FaultyDisk::new(Arc::clone(&memory) as Arc<dyn Disk>));
    let pager = create_on(&disk, &inline());
    fill(&pager, 2);
    let tickets: Vec<_> = (0..3).map(|_| count_up(&pager, page(0)).1).collect();
    let open = pager.begin().unwrap();
    open.write(page(1)).unwrap()[0] = 9;
    disk.fail(Operations::Only(Operation::DurableWrite), 1, Span::Once, SystemError::Io);
    for ticket in tickets {
        assert!(matches!(ticket.wait(), Err(Error::CommitUnknown { .. })));
    }
    assert!(matches!(open.commit(), Err(Error::Poisoned { .. } | Error::PredecessorFailed { .. })));
    assert!(matches!(count_up(&pager, page(1)).1.wait(), Err(Error::Poisoned { .. })));
    assert_eq!(counter(&pager.view(), page(0)), 0x0101);
    drop(pager);
    let byte = counter(&open_on(&memory, &inline()).view(), page(0));
    assert!(byte == 0x0101 || byte == 0x0104, "{byte:#x}: the group is there whole or not at all");
}

/// Durable writes wait while the gate is shut.
#[derive(Debug, Default)]
struct Gated {
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Gate {
    shut: bool,
    waiting: usize,
}

impl Gated {
    fn pass(&self) {
        let mut gate = self.gate.lock().unwrap();
        gate.waiting += 1;
        self.changed.notify_all();
        gate = self.changed.wait_while(gate, |gate| gate.shut).unwrap();
        gate.waiting -= 1;
    }

    fn shut(&self) {
        self.gate.lock().unwrap().shut = true;
    }

    fn open(&self) {
        self.gate.lock().unwrap().shut = false;
        self.changed.notify_all();
    }

    fn until_somebody_waits(&self) {
        drop(self.changed.wait_while(self.gate.lock().unwrap(), |gate| gate.waiting == 0).unwrap());
    }
}

impl Watch for Gated {
    fn called(&self, operation: Operation) {
        if matches!(operation, Operation::DurableWrite | Operation::Sync) {
            self.pass();
        }
    }
}

#[test]
fn reading_beginning_and_changing_wait_for_no_commit_on_its_way_to_the_disk() {
    for options in [inline(), Options::new()] {
        let disk = Watched::new(Arc::default(), Gated::default());
        let pager = create_on(&disk, &options);
        fill(&pager, 3);
        let start = counter(&pager.view(), page(0));
        let before = pager.stats().counters;
        disk.shut();
        std::thread::scope(|scope| {
            let first = scope.spawn(|| count_up(&pager, page(0)).1.wait().unwrap());
            disk.until_somebody_waits();
            // The first commit hangs in the disk. All of this would hang with it, if it waited.
            let view = pager.view();
            assert_eq!(counter(&view, page(0)), start, "not durable, not visible");
            let transaction = pager.begin().unwrap();
            assert_eq!(counter(&transaction, page(0)), start + 1, "but built on");
            transaction.free(page(1)).unwrap();
            transaction.allocate(SMALL).unwrap();
            transaction.abort();
            let others: Vec<_> = (0..63).map(|_| scope.spawn(|| count_up(&pager, page(0)).1.wait().unwrap())).collect();
            while counter(&pager.begin_concurrent(Isolation::Snapshot).unwrap(), page(0)) < start + 64 {
                std::thread::yield_now();
            }
            disk.open();
            let first = first.join().unwrap();
            let others: Vec<_> = others.into_iter().map(|thread| thread.join().unwrap()).collect();
            assert!(others.iter().all(|committed| *committed == others[0] && *committed != first));
        });
        let after = pager.stats().counters;
        assert_eq!(after.commits - before.commits, 2, "one alone, and 63 that came while it was written");
        assert_eq!(counter(&pager.view(), page(0)), start + 64);
    }
}

#[test]
fn more_started_commits_than_a_group_holds_are_all_done_in_order() {
    let pager = in_memory(&inline());
    fill(&pager, 1);
    let start = counter(&pager.view(), page(0));
    let before = pager.stats().counters.commits;
    let tickets: Vec<_> = (0..3000).map(|_| count_up(&pager, page(0)).1).collect();
    let generations: Vec<_> = tickets.into_iter().map(|ticket| ticket.wait().unwrap().generation).collect();
    assert!(generations.is_sorted());
    assert_eq!(counter(&pager.view(), page(0)), start + 3000);
    let commits = pager.stats().counters.commits - before;
    assert!((2..100).contains(&commits), "{commits} records");
}
