//! Transactions beside each other: what is refused, what is not, and that nothing is lost.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use vellum::{Contended, Durability, Error, Isolation, Options, PageId, Pager, Read, Transaction, VerifyLevel};

use crate::{Random, SMALL, class, in_memory, inline};

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

/// How long the long tests run.
fn duration() -> Duration {
    let seconds = std::env::var("VELLUM_STRESS_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(3))
}

const ACCOUNTS: u64 = 96;
const START: u64 = 1000;

/// What transactions did to the accounts: for each version of a page, its balance.
#[derive(Default)]
struct Ledger {
    versions: Mutex<BTreeMap<(PageId, u64), u64>>,
    /// Other pages that are allocated, with the number in them.
    live: Mutex<BTreeMap<PageId, u64>>,
    conflicts: AtomicUsize,
    committed: AtomicUsize,
}

fn word(bytes: &[u8], place: usize) -> u64 {
    u64::from_le_bytes(bytes[place * 8..][..8].try_into().unwrap())
}

fn set_word(bytes: &mut [u8], place: usize, value: u64) {
    bytes[place * 8..][..8].copy_from_slice(&value.to_le_bytes());
    let length = bytes.len();
    bytes[length - (place + 1) * 8..][..8].copy_from_slice(&value.to_le_bytes());
}

/// Balance and version, at both ends of the page.
fn account(bytes: &[u8]) -> (u64, u64) {
    let (balance, version) = (word(bytes, 0), word(bytes, 1));
    let last = bytes.len() / 8;
    assert_eq!((word(bytes, last - 1), word(bytes, last - 2)), (balance, version), "a page is of one piece");
    (balance, version)
}

/// Moves money between accounts; what was written, to be noted if it is committed.
fn transfer(transaction: &Transaction, random: &mut Random) -> Result<Vec<(PageId, u64, u64)>, Error> {
    let mut written = Vec::new();
    let (from, to) = (page(random.next() % ACCOUNTS), page(random.next() % ACCOUNTS));
    if from == to {
        return Ok(written);
    }
    let mut source = transaction.write(from)?;
    let mut target = transaction.write(to)?;
    let ((source_balance, source_version), (target_balance, target_version)) = (account(&source), account(&target));
    let amount = random.next() % (source_balance + 1);
    for (page, bytes, balance, version) in [
        (from, &mut source, source_balance - amount, source_version + 1),
        (to, &mut target, target_balance + amount, target_version + 1),
    ] {
        set_word(bytes, 0, balance);
        set_word(bytes, 1, version);
        written.push((page, version, balance));
    }
    Ok(written)
}

fn check_sum(read: &impl Read) {
    let balances: u64 = (0..ACCOUNTS).map(|index| account(&read.page(page(index)).unwrap()).0).sum();
    assert_eq!(balances, ACCOUNTS * START, "in the state of {}", read.generation());
}

fn work(pager: &Pager, ledger: &Ledger, random: &mut Random, number: u64) {
    // Taken before the transaction begins, so that it sees the page and not one before it under the same index.
    let victim = (random.below(6) == 0).then(|| ledger.live.lock().unwrap().pop_first()).flatten();
    let transaction = match random.below(8) {
        0 => pager.begin(),
        1 | 2 => pager.begin_concurrent(Isolation::Serializable),
        _ => pager.begin_concurrent(Isolation::Snapshot),
    }
    .unwrap();
    let mut allocated = Vec::new();
    let changes = || -> Result<_, Error> {
        let mut written = transfer(&transaction, random)?;
        if let Some((id, stamp)) = victim {
            assert_eq!(word(&transaction.page(id)?, 0), stamp, "page {id}");
            transaction.free(id)?;
        }
        match random.below(12) {
            0 => check_sum(&transaction),
            1 => {
                let savepoint = transaction.savepoint()?;
                let _ = transfer(&transaction, random)?;
                transaction.rollback_to(&savepoint)?;
            }
            2 if written.is_empty() => written = transfer(&transaction, random)?,
            3 | 4 => {
                for _ in 0..1 + random.below(3) {
                    let id = transaction.allocate([SMALL, class(13), class(16)][random.below(3)])?;
                    set_word(&mut transaction.overwrite(id)?, 0, number);
                    allocated.push((id, number));
                }
            }
            _ => {}
        }
        Ok(written)
    };
    let outcome = match { changes }() {
        Ok(_) if random.below(10) == 0 => {
            transaction.abort();
            Err(Error::Busy)
        }
        Ok(written) => match random.below(4) {
            0 => transaction.commit_start().map(|ticket| (ticket, written)),
            1 => transaction.commit_start_with(Durability::Deferred).map(|ticket| (ticket, written)),
            _ => transaction.commit_start().map(|ticket| (ticket, written)),
        }
        .and_then(|(ticket, written)| ticket.wait().map(|_| written)),
        Err(error) => {
            drop(transaction);
            Err(error)
        }
    };
    match outcome {
        Ok(written) => {
            ledger.committed.fetch_add(1, Ordering::Relaxed);
            let mut versions = ledger.versions.lock().unwrap();
            for (page, version, balance) in written {
                assert!(versions.insert((page, version), balance).is_none(), "version {version} of {page} was lost");
            }
            drop(versions);
            let mut live = ledger.live.lock().unwrap();
            for (id, stamp) in allocated {
                assert!(live.insert(id, stamp).is_none(), "{id} was allocated twice");
            }
        }
        Err(Error::Conflict { .. } | Error::Busy) => {
            ledger.conflicts.fetch_add(1, Ordering::Relaxed);
            ledger.live.lock().unwrap().extend(victim);
        }
        Err(error) => panic!("{error}"),
    }
}

fn stress(threads: usize, options: &Options, duration: Duration) {
    let pager = with_pages(ACCOUNTS as usize, options);
    let transaction = pager.begin().unwrap();
    for index in 0..ACCOUNTS {
        let mut bytes = transaction.overwrite(page(index)).unwrap();
        set_word(&mut bytes, 0, START);
        set_word(&mut bytes, 1, 0);
    }
    transaction.commit().unwrap();
    let (ledger, done) = (Ledger::default(), AtomicBool::new(false));
    let numbers = AtomicUsize::new(1);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (pager, ledger, done, numbers) = (&pager, &ledger, &done, &numbers);
            scope.spawn(move || {
                let mut random = Random(thread as u64);
                while !done.load(Ordering::Relaxed) {
                    match random.below(64) {
                        0..=5 => check_sum(&pager.view()),
                        6 if thread % 8 == 0 => drop(pager.checkpoint().unwrap()),
                        7 if thread % 8 == 1 => {
                            let refused = pager.clean(64).err();
                            assert!(refused.iter().all(Error::is_no_space), "{refused:?}");
                        }
                        _ => {
                            let number = numbers.fetch_add(1, Ordering::Relaxed) as u64;
                            work(pager, ledger, &mut random, number);
                        }
                    }
                }
            });
        }
        let end = Instant::now() + duration;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
            check_sum(&pager.view());
        }
        done.store(true, Ordering::Relaxed);
    });
    println!("{threads} threads: {:?} committed, {:?} refused", ledger.committed, ledger.conflicts);
    assert!(ledger.committed.load(Ordering::Relaxed) > threads);
    let view = pager.view();
    let mut last: BTreeMap<PageId, (u64, u64)> = (0..ACCOUNTS).map(|index| (page(index), (0, START))).collect();
    for ((id, version), balance) in ledger.versions.into_inner().unwrap() {
        assert_eq!(last.insert(id, (version, balance)).map(|(version, _)| version), Some(version - 1));
    }
    for (id, (version, balance)) in last {
        assert_eq!(account(&view.page(id).unwrap()), (balance, version), "page {id}");
    }
    let live = ledger.live.into_inner().unwrap();
    for (id, stamp) in &live {
        assert_eq!(word(&view.page(*id).unwrap(), 0), *stamp, "page {id}");
    }
    let found: usize = [SMALL, class(13), class(16)].iter().map(|class| view.page_ids(*class).count()).sum();
    assert_eq!(found, live.len() + ACCOUNTS as usize);
    drop(view);
    let report = pager.verify(VerifyLevel::Full, &mut |_| {}).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    pager.close().unwrap();
}

#[test]
fn many_threads_lose_no_update_and_see_whole_states() {
    // Little more than what 256 threads have open at once: evictions and spilling all the time.
    let options = Options::new().memory(4 << 20).checkpoint_log_bytes(256 << 10).log_segment_bytes(64 << 10);
    stress(256, &options, duration());
    stress(16, &options.clone().background(vellum::Background::Inline), duration() / 3);
}
