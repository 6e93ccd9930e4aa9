//! Everything at once, for seconds or hours, against what a sequential history allows.
//!
//! The store is a bank. *Workers* move money between accounts in transactions of every kind, abort some, allocate pages
//! and free them. Each version of an account's page names the one before: the ledger of what was committed must at the end be
//! one chain for each account, which the pages continue. *Bystanders* read, in every way there is, and take memory: sums
//! over views, in scopes and by guards that are kept, sent to other threads and looked at later; pages read ahead;
//! scratch pages; reserved memory. Any state that is seen has all the money.
//!
//! Who finds no memory is told so and tries again; nobody waits for ever. `VELLUM_STRESS_SECONDS` says how long each of
//! the tests runs.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use vellum::buffer::{Scratch, ScratchOptions};
use vellum::{
    Access, Background, Durability, Error, Isolation, Options, PageGuard, PageId, Pager, Read, Transaction,
    VerifyLevel, View,
};

use crate::{Ending, Random, SMALL, class, in_memory};

/// How long a long test runs.
fn duration() -> Duration {
    let seconds = std::env::var("VELLUM_STRESS_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

fn page(index: u64) -> PageId {
    PageId::new(SMALL, index).unwrap()
}

const START: u64 = 1000;

/// A bank, and who is at it.
struct Shape {
    accounts: u64,
    workers: usize,
    bystanders: usize,
    options: Options,
}

/// What transactions did.
#[derive(Default)]
struct Ledger {
    /// Of each version of an account's page, its balance.
    versions: Mutex<BTreeMap<(PageId, u64), u64>>,
    /// Other pages that are allocated, with the number in them.
    live: Mutex<BTreeMap<PageId, u64>>,
    committed: AtomicUsize,
    refused: AtomicUsize,
    without_memory: AtomicUsize,
}

/// What all threads share.
struct Bank<'a> {
    accounts: u64,
    pager: &'a Pager,
    ledger: Ledger,
    /// Guards on their way to another thread.
    sent: Mutex<VecDeque<(PageGuard, (u64, u64))>>,
    scratch: Scratch,
    numbers: AtomicUsize,
    is_over: AtomicBool,
}

fn word(bytes: &[u8], place: usize) -> u64 {
    u64::from_le_bytes(bytes[place * 8..][..8].try_into().unwrap())
}

/// Writes a word at both ends of the page.
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

/// Whether this is how things are when many want the memory of few.
fn is_for_memory(error: &Error) -> bool {
    matches!(error, Error::BudgetExhausted { .. })
}

impl Bank<'_> {
    fn any_account(&self, random: &mut Random) -> PageId {
        page(random.next() % self.accounts)
    }

    fn check_sum(&self, read: &impl Read) -> Result<(), Error> {
        let mut balances = 0;
        for index in 0..self.accounts {
            balances += account(&read.page(page(index))?).0;
        }
        assert_eq!(balances, self.accounts * START, "in the state of {}", read.generation());
        Ok(())
    }

    /// Moves money between accounts; what was written, to be noted if it is committed.
    fn transfer(&self, transaction: &Transaction, random: &mut Random) -> Result<Vec<(PageId, u64, u64)>, Error> {
        let mut written = Vec::new();
        let (from, to) = (self.any_account(random), self.any_account(random));
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

    /// One transaction, from its begin to its end.
    fn work(&self, random: &mut Random) {
        let ledger = &self.ledger;
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) as u64;
        // Taken before the transaction begins, so that it sees the page and not one before it under the same index.
        // As soon as there are many, each transaction frees one: an hour takes no more memory than a minute.
        let is_full = ledger.live.lock().unwrap().len() > 1000;
        let frees = is_full || random.below(6) == 0;
        let victim = frees.then(|| ledger.live.lock().unwrap().pop_first()).flatten();
        let transaction = match random.below(8) {
            0 => self.pager.begin(),
            1 | 2 => self.pager.begin_concurrent(Isolation::Serializable),
            _ => self.pager.begin_concurrent(Isolation::Snapshot),
        }
        .unwrap();
        let mut allocated = Vec::new();
        let outcome = match self.change(&transaction, random, victim, number, &mut allocated) {
            Ok(_) if random.below(10) == 0 => {
                transaction.abort();
                Err(Error::Busy)
            }
            Ok(written) => match random.below(4) {
                0 => transaction.commit_start_with(Durability::Deferred),
                _ => transaction.commit_start(),
            }
            .and_then(|ticket| ticket.wait())
            .map(|_| written),
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
                    assert!(
                        versions.insert((page, version), balance).is_none(),
                        "version {version} of {page} was lost"
                    );
                }
                drop(versions);
                let mut live = ledger.live.lock().unwrap();
                for id in allocated {
                    assert!(live.insert(id, number).is_none(), "{id} was allocated twice");
                }
            }
            Err(error) => {
                assert!(matches!(error, Error::Conflict { .. } | Error::Busy) || is_for_memory(&error), "{error}");
                let counter = if is_for_memory(&error) { &ledger.without_memory } else { &ledger.refused };
                counter.fetch_add(1, Ordering::Relaxed);
                ledger.live.lock().unwrap().extend(victim);
            }
        }
    }

    /// What a transaction does between its begin and its end.
    fn change(
        &self,
        transaction: &Transaction,
        random: &mut Random,
        victim: Option<(PageId, u64)>,
        number: u64,
        allocated: &mut Vec<PageId>,
    ) -> Result<Vec<(PageId, u64, u64)>, Error> {
        let mut written = self.transfer(transaction, random)?;
        if let Some((id, stamp)) = victim {
            assert_eq!(word(&transaction.page(id)?, 0), stamp, "page {id}");
            transaction.free(id)?;
        }
        match random.below(12) {
            0 => self.check_sum(transaction)?,
            1 => {
                let savepoint = transaction.savepoint()?;
                let _ = self.transfer(transaction, random)?;
                transaction.rollback_to(&savepoint)?;
            }
            2 if written.is_empty() => written = self.transfer(transaction, random)?,
            3 | 4 => {
                for _ in 0..1 + random.below(3) {
                    let id = transaction.allocate([SMALL, class(13), class(16)][random.below(3)])?;
                    set_word(&mut transaction.overwrite(id)?, 0, number);
                    allocated.push(id);
                }
            }
            _ => {}
        }
        Ok(written)
    }

    fn worker(&self, thread: usize) {
        let mut random = Random(thread as u64);
        while !self.is_over.load(Ordering::Relaxed) {
            match random.below(64) {
                0..=5 => self.grant(self.check_sum(&self.pager.view())),
                6 if thread.is_multiple_of(8) => drop(self.pager.checkpoint().unwrap()),
                7 if thread % 8 == 1 => {
                    let refused = self.pager.clean(64).err();
                    assert!(refused.iter().all(Error::is_no_space), "{refused:?}");
                }
                _ => self.work(&mut random),
            }
        }
    }

    /// No memory at the moment is an answer, and the only one that may come.
    fn grant(&self, result: Result<(), Error>) {
        if let Err(error) = result {
            assert!(is_for_memory(&error), "{error}");
            self.ledger.without_memory.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn bystander(&self, thread: usize) {
        let mut random = Random(!thread as u64);
        let mut view = self.pager.view();
        let mut kept = Vec::new();
        while !self.is_over.load(Ordering::Relaxed) {
            if random.below(8) == 0 {
                view = self.pager.view();
            }
            let outcome = match random.below(6) {
                0 => self.sum_in_a_scope(&view),
                1 => self.keep_guards(&view, &mut random, &mut kept),
                2 => self.read_ahead(&view),
                3 => self.use_scratch(&mut random),
                4 => self.reserve(&mut random),
                _ => self.receive(),
            };
            self.grant(outcome);
        }
        kept.iter().for_each(|(guard, seen)| assert_eq!(account(guard), *seen));
    }

    fn sum_in_a_scope(&self, view: &View) -> Result<(), Error> {
        // As much as the smallest budget holds beside what others have.
        let some = self.accounts.min(64);
        let sum = view.scope(|scope| {
            let mut sum = 0;
            for index in 0..some {
                sum += account(scope.page(page(index))?).0;
            }
            Ok(sum)
        })?;
        let mut again = 0;
        for index in 0..some {
            again += account(&view.page(page(index))?).0;
        }
        assert_eq!(sum, again, "in the state of {}", view.generation());
        Ok(())
    }

    /// Guards stay what they are, whoever has them: some stay here, some go to another thread.
    fn keep_guards(
        &self,
        view: &View,
        random: &mut Random,
        kept: &mut Vec<(PageGuard, (u64, u64))>,
    ) -> Result<(), Error> {
        for _ in 0..8 {
            let guard = view.page(self.any_account(random))?;
            let seen = account(&guard);
            if random.below(2) == 0 {
                self.sent.lock().unwrap().push_back((guard.clone(), seen));
            }
            kept.push((guard, seen));
        }
        if kept.len() > 16 {
            kept.drain(..8).for_each(|(guard, seen)| assert_eq!(account(&guard), seen));
        }
        Ok(())
    }

    fn receive(&self) -> Result<(), Error> {
        for _ in 0..8 {
            let Some((guard, seen)) = self.sent.lock().unwrap().pop_front() else { break };
            assert_eq!(account(&guard), seen);
        }
        Ok(())
    }

    fn read_ahead(&self, view: &View) -> Result<(), Error> {
        let pages: Vec<PageId> = self.ledger.live.lock().unwrap().keys().copied().take(32).collect();
        // Pages that this view's state has not, or not any more, are among them.
        view.prefetch(&pages)?;
        view.advise([Access::Normal, Access::Once][pages.len() % 2]);
        for id in view.page_ids(SMALL).skip(self.accounts as usize).take(16) {
            let guard = view.page(id?)?;
            let last = guard.len() / 8 - 1;
            assert_eq!(word(&guard, 0), word(&guard, last), "page {}", guard.id());
        }
        Ok(())
    }

    fn use_scratch(&self, random: &mut Random) -> Result<(), Error> {
        let mut pages = Vec::new();
        for number in 0..1 + random.next() % 6 {
            let page = self.scratch.allocate([SMALL, class(14)][random.below(2)])?;
            set_word(&mut page.write()?, 0, number);
            pages.push((page, number));
        }
        for (page, number) in &pages {
            let bytes = page.read()?;
            assert_eq!((word(&bytes, 0), word(&bytes, 1), word(&bytes, bytes.len() / 8 - 1)), (*number, 0, *number));
        }
        Ok(())
    }

    fn reserve(&self, random: &mut Random) -> Result<(), Error> {
        let bytes = 1 + random.below(64 << 10);
        let mut memory = self.pager.buffer().budget().alloc_within(bytes, "stress", Duration::from_millis(5))?;
        assert!(memory.iter().all(|byte| *byte == 0));
        memory.fill(0xee);
        Ok(())
    }

    /// After the last commit: the ledger is one chain for each account, and the store holds its ends and nothing else.
    fn audit(self) {
        let Self { accounts, pager, ledger, .. } = self;
        let view = pager.view();
        let mut last: BTreeMap<PageId, (u64, u64)> = (0..accounts).map(|index| (page(index), (0, START))).collect();
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
        assert_eq!(found, live.len() + accounts as usize);
        let report = pager.verify(VerifyLevel::Full, &mut |_| {}).unwrap();
        assert!(report.findings.is_empty(), "{:?}", report.findings);
    }
}

fn open_accounts(pager: &Pager, accounts: u64) {
    let transaction = pager.begin().unwrap();
    for id in transaction.allocate_many(SMALL, accounts as usize).unwrap() {
        let mut bytes = transaction.overwrite(id).unwrap();
        set_word(&mut bytes, 0, START);
        set_word(&mut bytes, 1, 0);
    }
    transaction.commit().unwrap();
}

fn stress(shape: Shape, duration: Duration) {
    let Shape { accounts, workers, bystanders, options } = shape;
    let pager = in_memory(&options);
    open_accounts(&pager, accounts);
    let folder = tempfile::tempdir().unwrap();
    let scratch = ScratchOptions { folder: folder.path().to_owned(), limit_bytes: 16 << 20 };
    let bank = Bank {
        accounts,
        pager: &pager,
        ledger: Ledger::default(),
        sent: Mutex::default(),
        scratch: pager.buffer().scratch(&scratch).unwrap(),
        numbers: AtomicUsize::new(1),
        is_over: AtomicBool::new(false),
    };
    let watchdog = Watchdog::new(&pager);
    std::thread::scope(|scope| {
        for thread in 0..workers.max(bystanders) {
            let bank = &bank;
            if thread < workers {
                scope.spawn(move || bank.worker(thread));
            }
            if thread < bystanders {
                scope.spawn(move || bank.bystander(thread));
            }
        }
        // A failure of any thread is all there is to say.
        let _end = Ending(&bank.is_over);
        let end = Instant::now() + duration;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
            bank.grant(bank.check_sum(&pager.view()));
        }
        watchdog.everybody_ends_now();
    });
    drop(watchdog);
    let Ledger { committed, refused, without_memory, .. } = &bank.ledger;
    let buffer = pager.stats().buffer;
    println!(
        "{workers} workers, {bystanders} bystanders: {committed:?} committed, {refused:?} refused, {without_memory:?} \
         without memory, {} misses, {} evictions, {:?}",
        buffer.misses,
        buffer.evictions,
        bank.scratch.stats()
    );
    assert!(committed.load(Ordering::Relaxed) > workers);
    assert!(pager.buffer().budget().used_bytes() <= pager.buffer().budget().limit_bytes());
    bank.sent.lock().unwrap().clear();
    bank.audit();
    pager.close().unwrap();
}

/// Once told that everybody is to end, ends the process if that takes two minutes, and says who holds what.
struct Watchdog {
    told: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watchdog {
    fn new(pager: &Pager) -> Self {
        let (told, ears) = mpsc::channel();
        let pager = pager.clone();
        let thread = std::thread::spawn(move || {
            let is_told = ears.recv().is_ok();
            if is_told && ears.recv_timeout(Duration::from_secs(120)) == Err(RecvTimeoutError::Timeout) {
                pager.pins().iter().for_each(|pin| eprintln!("{pin:?}"));
                eprintln!("{:?} {:?}", pager.buffer().budget().held_by(), pager.stats());
                std::process::abort();
            }
        });
        Self { told: Some(told), thread: Some(thread) }
    }

    fn everybody_ends_now(&self) {
        self.told.iter().for_each(|told| told.send(()).unwrap());
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.told = None;
        self.thread.take().into_iter().for_each(|thread| thread.join().unwrap());
    }
}

fn busy() -> Options {
    Options::new().checkpoint_log_bytes(256 << 10).log_segment_bytes(64 << 10)
}

#[test]
fn many_threads_lose_no_update_and_see_whole_states() {
    // Little more than what 256 threads have open at once.
    stress(Shape { accounts: 96, workers: 240, bystanders: 16, options: busy().memory(4 << 20) }, duration());
}

#[test]
fn few_threads_do_so_with_checkpoints_of_their_own() {
    let options = busy().memory(4 << 20).background(Background::Inline);
    stress(Shape { accounts: 96, workers: 16, bystanders: 4, options }, duration());
}

#[test]
fn a_store_much_larger_than_the_smallest_budget_does_so_while_every_read_evicts() {
    stress(Shape { accounts: 1200, workers: 8, bystanders: 4, options: busy().memory(1 << 20) }, duration());
}
