//! What goes on while something waits for the disk: closing, groups that nobody waits for. And callers' code that panics.

use std::io::{self, IoSlice};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use vellum::buffer::BufferManager;
use vellum::buffer::policy::{Arrival, EvictionPolicy, Frames, PageHash, Slot, default_policy};
use vellum::disk::{MemoryDisk, Operation};
use vellum::{Background, Error, Event, Isolation, Options, Pager, Read, SizeClass, VerifyLevel};

use crate::watched::{Watch, Watched};
use crate::{SMALL, class, create_on, fill, in_memory, inline, open_on, page};

/// Longer than anything here takes: a test that waits for so long has hung.
const HUNG: Duration = Duration::from_secs(60);

fn write(pager: &Pager, index: u64, byte: u8) -> vellum::Transaction {
    let transaction = pager.begin().unwrap();
    transaction.write(page(index)).unwrap()[0] = byte;
    transaction
}

#[test]
fn more_pages_than_there_can_be_are_refused_at_once() {
    let pager = in_memory(&inline());
    let transaction = pager.begin().unwrap();
    assert!(matches!(transaction.allocate_many(SMALL, usize::MAX), Err(Error::Exhausted { .. })));
    assert_eq!(transaction.allocate(SMALL).unwrap(), page(0));
}

/// What is stopped at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// A sync, or a durable write.
    Durable,
    /// A write that begins with a node of a tree.
    Node,
}

/// Stops a disk at one call, until it is let go on.
#[derive(Debug, Default)]
struct Gated {
    gate: Mutex<Gate>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Gate {
    stops_at: Option<Call>,
    stopped: bool,
    fails: bool,
}

impl Gated {
    /// Stops at the next call of this kind, which fails then or does not.
    fn stop_at(&self, call: Call, fails: bool) {
        *self.gate.lock().unwrap() = Gate { stops_at: Some(call), stopped: false, fails };
    }

    fn wait_until_stopped(&self) {
        let gate = self.gate.lock().unwrap();
        let (gate, _) = self.changed.wait_timeout_while(gate, HUNG, |gate| !gate.stopped).unwrap();
        assert!(gate.stopped, "nothing came by");
    }

    fn go_on(&self) {
        self.gate.lock().unwrap().stops_at = None;
        self.changed.notify_all();
    }

    fn pass(&self, call: Call) -> io::Result<()> {
        let mut gate = self.gate.lock().unwrap();
        if gate.stops_at != Some(call) || gate.stopped {
            return Ok(());
        }
        gate.stopped = true;
        self.changed.notify_all();
        let gate = self.changed.wait_while(gate, |gate| gate.stops_at.is_some()).unwrap();
        match gate.fails {
            true => Err(io::Error::other("as was asked for")),
            false => Ok(()),
        }
    }
}

impl Watch for Gated {
    fn asked(&self, operation: Operation, _: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let is_node = |buffers: &[IoSlice<'_>]| buffers.first().is_some_and(|buffer| buffer.starts_with(b"VLnd"));
        match operation {
            Operation::DurableWrite | Operation::Sync => self.pass(Call::Durable),
            Operation::Write if is_node(buffers) => self.pass(Call::Node),
            _ => Ok(()),
        }
    }
}

#[test]
fn a_closed_pager_writes_nothing_any_more() {
    let disk = Watched::new(Arc::default(), Gated::default());
    let pager = create_on(&disk, &inline().memory(1 << 20).checkpoint_log_bytes(64 << 20));
    fill(&pager, 2000);
    pager.checkpoint().unwrap();
    // Old states hold more nodes of the maps than the budget has for them: they go to the file, by who has committed.
    disk.stop_at(Call::Node, false);
    let writer = {
        let pager = pager.clone();
        std::thread::spawn(move || {
            let mut views = Vec::new();
            for round in 0..25 {
                views.push(pager.view());
                let Ok(transaction) = pager.begin() else { break };
                for leaf in 0..11 {
                    transaction.write(page(leaf * 168)).unwrap()[0] = round;
                }
                drop(transaction.commit());
            }
        })
    };
    disk.wait_until_stopped();
    let (sender, receiver) = mpsc::channel();
    let closing = std::thread::spawn(move || {
        let result = pager.close();
        sender.send(()).unwrap();
        result
    });
    // It has everything but this behind it soon; and it waits for this.
    assert!(receiver.recv_timeout(Duration::from_millis(300)).is_err(), "closed while the pager was writing");
    disk.go_on();
    writer.join().unwrap();
    closing.join().unwrap().unwrap();
    assert!(open_on(&disk, &inline()).verify(VerifyLevel::Full, &mut |_| {}).unwrap().findings.is_empty());
}

#[test]
fn who_waits_behind_a_group_that_nobody_waits_for_is_not_forgotten() {
    let disk = Watched::new(Arc::default(), Gated::default());
    let pager = create_on(&disk, &inline());
    fill(&pager, 4);
    disk.stop_at(Call::Durable, false);
    let commit_in_a_thread = |index: u64| {
        let (sender, receiver) = mpsc::channel();
        let transaction = write(&pager, index, 7);
        std::thread::spawn(move || sender.send(transaction.commit().map(drop)).unwrap());
        receiver
    };
    let leader = commit_in_a_thread(0);
    disk.wait_until_stopped();
    // As much as a group takes; then another one.
    let transaction = pager.begin().unwrap();
    for id in transaction.allocate_many(class(20), 8).unwrap() {
        transaction.overwrite(id).unwrap().fill(3);
    }
    let forgotten = transaction.commit_start().unwrap();
    let waiting = commit_in_a_thread(1);
    // It waits by now, or will come and find nobody at work.
    std::thread::sleep(Duration::from_millis(100));
    disk.go_on();
    leader.recv_timeout(HUNG).unwrap().unwrap();
    waiting.recv_timeout(HUNG).expect("nobody commits what somebody waits for").unwrap();
    forgotten.wait().unwrap();
}

#[test]
fn a_hook_that_panics_harms_no_commit_and_no_background_work() {
    let told = Arc::new(AtomicUsize::new(0));
    let hook = {
        let told = Arc::clone(&told);
        move |event: &Event| {
            if matches!(event, Event::Checkpoint(_)) {
                told.fetch_add(1, Ordering::Relaxed);
                panic!("the hook panics");
            }
        }
    };
    let hook = Arc::new(hook);
    let pager = in_memory(&inline().checkpoint_log_bytes(1).events(Arc::clone(&hook) as _));
    fill(&pager, 4);
    let first = write(&pager, 0, 77).commit_start().unwrap();
    write(&pager, 1, 77).commit().unwrap();
    first.wait().unwrap();
    assert_eq!(pager.view().page(page(0)).unwrap()[0], 77);
    assert!(told.swap(0, Ordering::Relaxed) > 0);

    let options = Options::new().background(Background::Thread).checkpoint_log_bytes(256 << 10).events(hook);
    let pager = in_memory(&options);
    fill(&pager, 1);
    while told.load(Ordering::Relaxed) < 3 {
        write(&pager, 0, 1).commit().unwrap();
    }
    pager.close().unwrap();
}

#[test]
fn a_hook_may_drop_the_last_handle_on_the_thread_that_commits() {
    let disk = Watched::new(Arc::default(), Gated::default());
    let slot: Arc<Mutex<Option<Pager>>> = Arc::default();
    let (sender, receiver) = mpsc::channel();
    let hook = {
        let slot = Arc::clone(&slot);
        move |event: &Event| {
            if matches!(event, Event::Poisoned { .. }) {
                let pager = slot.lock().unwrap().take();
                let refused = pager.clone().is_some_and(|pager| matches!(pager.close(), Err(Error::Busy)));
                drop(pager);
                sender.send(refused).unwrap();
            }
        }
    };
    let pager = create_on(&disk, &Options::new().events(Arc::new(hook)));
    fill(&pager, 4);
    disk.stop_at(Call::Durable, true);
    let transaction = write(&pager, 0, 7);
    *slot.lock().unwrap() = Some(pager);
    drop(transaction.commit_start().unwrap());
    disk.wait_until_stopped();
    disk.go_on();
    assert!(receiver.recv_timeout(HUNG).expect("the drop waits for itself"));
}

#[test]
fn a_hook_that_closes_the_pager_in_a_commit_is_refused() {
    let disk = Watched::new(Arc::default(), Gated::default());
    let slot: Arc<Mutex<Option<Pager>>> = Arc::default();
    let (sender, receiver) = mpsc::channel();
    let hook = {
        let slot = Arc::clone(&slot);
        move |event: &Event| {
            if matches!(event, Event::Poisoned { .. }) {
                let pager = slot.lock().unwrap().take().unwrap();
                sender.send(matches!(pager.close(), Err(Error::Busy))).unwrap();
            }
        }
    };
    let pager = create_on(&disk, &inline().events(Arc::new(hook)));
    fill(&pager, 4);
    disk.stop_at(Call::Durable, true);
    *slot.lock().unwrap() = Some(pager.clone());
    let transaction = write(&pager, 0, 7);
    let committing = std::thread::spawn(move || transaction.commit());
    disk.wait_until_stopped();
    disk.go_on();
    assert!(receiver.recv_timeout(HUNG).expect("it waits for itself"));
    assert!(matches!(committing.join().unwrap(), Err(Error::CommitUnknown { .. })));
}

/// A policy that panics when it is told to.
#[derive(Debug)]
struct Panicking {
    policy: Box<dyn EvictionPolicy>,
    is_due: Arc<AtomicBool>,
}

impl Panicking {
    fn pass(&self) {
        assert!(!self.is_due.load(Ordering::Relaxed), "the policy panics");
    }
}

impl EvictionPolicy for Panicking {
    fn name(&self) -> &'static str {
        "panicking"
    }

    fn admit(&mut self, slot: Slot, page: PageHash, class: SizeClass, arrival: Arrival) {
        self.pass();
        self.policy.admit(slot, page, class, arrival);
    }

    fn remove(&mut self, slot: Slot) {
        self.policy.remove(slot);
    }

    fn replace(&mut self, old: Slot, new: Slot) {
        self.pass();
        self.policy.replace(old, new);
    }

    fn victim(&mut self, frames: &mut dyn Frames) -> Option<Slot> {
        self.policy.victim(frames)
    }

    fn restore(&mut self, slot: Slot, page: PageHash, class: SizeClass) {
        self.policy.restore(slot, page, class);
    }

    fn memory_bytes(&self) -> usize {
        self.policy.memory_bytes()
    }
}

#[test]
fn after_a_panic_in_the_middle_of_a_commit_its_members_do_not_know() {
    let is_due = Arc::new(AtomicBool::new(false));
    let policy = Panicking { policy: default_policy(), is_due: Arc::clone(&is_due) };
    let manager = BufferManager::with_policy(8 << 20, Box::new(policy)).unwrap();
    let disk: Arc<MemoryDisk> = Arc::default();
    let pager = create_on(&disk, &inline().buffer(&manager));
    fill(&pager, 4);
    let other = write(&pager, 0, 77).commit_start().unwrap();
    let leading = write(&pager, 1, 77);
    is_due.store(true, Ordering::Relaxed);
    assert!(std::thread::spawn(move || leading.commit()).join().is_err());
    is_due.store(false, Ordering::Relaxed);
    // It is durable: the panic came when it was published.
    let copy = Arc::new(MemoryDisk::from_bytes(&disk.to_bytes()));
    let found = open_on(&copy, &inline());
    let generation = found.recovery().opened.0 - 1;
    assert_eq!(found.view().page(page(0)).unwrap()[0], 77);
    let error = other.wait().unwrap_err();
    assert!(matches!(error, Error::CommitUnknown { generation: told, .. } if told.0 == generation), "{error}");
}

#[test]
fn who_has_read_what_failed_is_told_even_if_it_changed_nothing() {
    let pager = in_memory(&inline().file_limit_bytes(6 << 20));
    fill(&pager, 4);
    let begin = || pager.begin_concurrent(Isolation::Serializable).unwrap();
    let (too_large, small) = (begin(), begin());
    too_large.write(page(0)).unwrap()[0] = 66;
    for id in too_large.allocate_many(class(20), 7).unwrap() {
        too_large.overwrite(id).unwrap().fill(9);
    }
    small.write(page(1)).unwrap()[0] = 67;
    let (too_large, small) = (too_large.commit_start().unwrap(), small.commit_start().unwrap());
    let reader = begin();
    assert_eq!(reader.page(page(0)).unwrap()[0], 66);
    assert!(matches!(reader.commit(), Err(Error::PredecessorFailed { .. })));
    assert!(matches!(too_large.wait(), Err(Error::NoSpace { .. })));
    small.wait().unwrap();
}

#[test]
fn to_ask_whether_a_commit_is_done_commits_nothing() {
    let pager = in_memory(&inline());
    fill(&pager, 4);
    let changed = write(&pager, 0, 9).commit_start().unwrap();
    let unchanged = pager.begin().unwrap().commit_start().unwrap();
    let before = pager.stats().counters.commits;
    let unchanged = unchanged.try_wait().unwrap_err();
    assert_eq!(pager.stats().counters.commits, before);
    changed.wait().unwrap();
    unchanged.try_wait().unwrap().unwrap();
}

#[test]
fn a_panic_in_the_progress_of_verify_is_the_callers_and_harms_nothing() {
    let pager = in_memory(&inline());
    fill(&pager, 4);
    let calls = AtomicUsize::new(0);
    let verify = || {
        pager.verify(VerifyLevel::Full, &mut |_| {
            calls.fetch_add(1, Ordering::Relaxed);
            panic!("the caller panics");
        })
    };
    assert!(catch_unwind(AssertUnwindSafe(verify)).is_err());
    assert_eq!(calls.into_inner(), 1);
    write(&pager, 0, 7).commit().unwrap();
}

#[test]
fn a_page_that_was_not_there_is_read_as_such_by_a_serializable_transaction() {
    let pager = in_memory(&inline());
    fill(&pager, 4);
    let begin = || pager.begin_concurrent(Isolation::Serializable).unwrap();
    let (first, second) = (begin(), begin());
    // Each would have done otherwise after the other.
    assert!(!first.contains(page(4)).unwrap());
    first.write(page(0)).unwrap()[0] = 50;
    assert_eq!(second.page(page(0)).unwrap()[0], 1);
    assert_eq!(second.allocate(SMALL).unwrap(), page(4));
    second.commit().unwrap();
    assert!(matches!(first.commit(), Err(Error::Conflict { .. })));
    // An abort leaves nothing behind.
    let (first, second) = (begin(), begin());
    assert!(!first.contains(page(5)).unwrap());
    first.write(page(0)).unwrap()[0] = 51;
    assert_eq!(second.allocate(SMALL).unwrap(), page(5));
    second.abort();
    first.commit().unwrap();
}

#[test]
fn a_part_of_a_page_is_written_whatever_the_budget() {
    let pager = in_memory(&inline().memory(1 << 20).map_memory(0));
    let transaction = pager.begin().unwrap();
    let large = transaction.allocate(class(20)).unwrap();
    transaction.write_at(large, 5, &[1, 2, 3]).unwrap();
    transaction.write_at(large, 7, &[4]).unwrap();
    transaction.commit().unwrap();
    let mut bytes = [9; 5];
    pager.view().read_at(large, 4, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 1, 2, 4, 0]);

    // Guards hold all of it.
    let pager = in_memory(&inline().memory(1 << 20));
    let transaction = pager.begin().unwrap();
    let ids = transaction.allocate_many(class(16), 40).unwrap();
    for id in &ids {
        transaction.write_at(*id, 0, &[3; 1 << 16]).unwrap();
    }
    transaction.commit().unwrap();
    let view = pager.view();
    let guards: Vec<_> = ids.iter().map_while(|id| view.page(*id).ok()).collect();
    assert!(guards.len() < ids.len());
    let transaction = pager.begin().unwrap();
    transaction.write_at(ids[38], 7, &[4]).unwrap();
    transaction.write_at(ids[38], 9, &[5]).unwrap();
    drop((guards, view));
    transaction.commit().unwrap();
    assert_eq!(pager.view().page(ids[38]).unwrap()[6..10], [3, 4, 3, 5]);
}
