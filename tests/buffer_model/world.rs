//! One page, two frames, and what the buffer does with them.

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};

use super::protocol::descriptor::{Descriptor, Seen, Word};
use super::protocol::limbo::{Limbo, Verdict};
use super::protocol::record::{Record, Registry, Slot};
use super::sync::{self, Sabotage, light_fence};

const PREEMPTIONS: usize = 3;
const FRAMES: usize = 3;
const CLASS: u8 = 12;
/// What a frame holds that is used for something else.
const SCRIBBLE: u64 = 0xdead;

/// Runs a model in every order, with a rule broken or not.
pub(super) fn check(rule: Option<Sabotage>, model: fn()) {
    let mut builder = loom::model::Builder::new();
    if builder.preemption_bound.is_none() {
        builder.preemption_bound = Some(PREEMPTIONS);
    }
    sync::sabotage(rule);
    let executions = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&executions);
    let outcome = std::panic::catch_unwind(move || {
        builder.check(move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            model();
        });
    });
    sync::sabotage(None);
    println!("{rule:?}: {} executions", executions.load(std::sync::atomic::Ordering::Relaxed));
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Frames that notice whoever writes while another reads. Each holds the version of the page that is in it.
struct FrameCells([UnsafeCell<u64>; FRAMES]);

// SAFETY: what the models are there to prove.
#[allow(unsafe_code)]
unsafe impl Sync for FrameCells {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Send for FrameCells {}

pub(super) struct Parts {
    /// The descriptor's words, and the ceiling.
    words: [AtomicU64; 3],
    registry: &'static Registry,
    frames: FrameCells,
    /// The descriptor's lock, and the room's, which no model needs apart: the tickets, and free frames.
    lock: Mutex<Locked>,
    newest: AtomicU64,
}

struct Locked {
    limbo: Limbo,
    free: Vec<usize>,
    tickets: u64,
}

#[derive(Clone)]
pub(super) struct World(Arc<Parts>);

/// A frame held by a slot.
pub(super) struct Guard {
    address: usize,
    slot: &'static Slot,
}

fn number(address: usize) -> usize {
    address / 4096 - 1
}

impl World {
    pub(super) fn new() -> Self {
        Self(Arc::new(Parts {
            words: std::array::from_fn(|_| AtomicU64::new(0)),
            registry: Box::leak(Box::new(Registry::new())),
            frames: FrameCells(std::array::from_fn(|_| UnsafeCell::new(0))),
            lock: Mutex::new(Locked {
                limbo: Limbo::default(),
                free: (1..=FRAMES).map(|frame| frame * 4096).collect(),
                tickets: 1,
            }),
            newest: AtomicU64::new(0),
        }))
    }

    fn descriptor(&self) -> Descriptor<'_> {
        let [word, generation, ceiling] = &self.0.words;
        Descriptor { word, generation, ceiling }
    }

    fn record(&self) -> &'static Record {
        self.0.registry.take()
    }

    #[allow(unsafe_code)]
    fn write(&self, address: usize, version: u64) {
        // SAFETY: the frame is the caller's alone; if not, the checker says so.
        self.0.frames.0[number(address)].with_mut(|cell| unsafe { *cell = version });
    }

    #[allow(unsafe_code)]
    fn read(&self, address: usize) -> u64 {
        // SAFETY: nobody writes the frame meanwhile; if somebody does, the checker says so.
        self.0.frames.0[number(address)].with(|cell| unsafe { *cell })
    }

    /// A reader's version is its generation's, or older. (In these models, the newest that it may see.)
    fn judge(&self, address: usize, generation: u64) {
        let version = self.read(address);
        assert!(version != 0 && version <= generation, "generation {generation} sees {version:#x}");
    }

    /// Loads version `version` of the page, if it is evicted; whether it did.
    pub(super) fn load(&self, version: u64) -> bool {
        let (ticket, address) = {
            let mut locked = self.0.lock.lock().unwrap();
            let ticket = locked.tickets;
            locked.tickets += 1;
            if !self.descriptor().begin_load(ticket) {
                return false;
            }
            (ticket, locked.free.pop().unwrap())
        };
        self.write(address, version);
        let mut locked = self.0.lock.lock().unwrap();
        let frame = Word::cooling(address, CLASS);
        if !self.descriptor().finish_load(ticket, version, frame) {
            locked.free.push(address);
        }
        true
    }

    /// Publishes version `version`.
    pub(super) fn publish(&self, version: u64) {
        let mut locked = self.0.lock.lock().unwrap();
        let address = locked.free.pop().unwrap();
        self.write(address, version);
        let old = self.descriptor().publish(version, Some(Word::cooling(address, CLASS)));
        if old.has_frame() {
            locked.limbo.add(old.address());
        }
        self.0.newest.store(version, Ordering::Release);
    }

    /// Evicts the page, if nothing comes between.
    pub(super) fn evict(&self) {
        let mut locked = self.0.lock.lock().unwrap();
        let word = self.descriptor().word();
        if word.has_frame() {
            self.descriptor().cool(word);
            if self.descriptor().evict(word) {
                locked.limbo.add(word.address());
            }
        }
    }

    /// The memory of an evicted descriptor is given back.
    pub(super) fn forget(&self) {
        let _locked = self.0.lock.lock().unwrap();
        if self.descriptor().word().is_evicted() {
            self.descriptor().forget();
        }
    }

    /// Frames that nobody uses are used for something else at once.
    pub(super) fn sift_and_scribble(&self) {
        let mut locked = self.0.lock.lock().unwrap();
        let Locked { limbo, free, .. } = &mut *locked;
        limbo.sift(
            self.0.registry,
            |_| false,
            |address, verdict| {
                if verdict == Verdict::Free {
                    self.write(address, SCRIBBLE);
                    free.push(address);
                }
                true
            },
        );
    }

    /// A scope that reads the page once; whether it was there.
    pub(super) fn read_in_epoch(&self, generation: u64) -> bool {
        let record = self.record();
        record.enter(self.0.registry);
        let seen = self.descriptor().read(generation);
        if let Seen::Frame(word) = seen {
            self.judge(word.address(), generation);
        }
        record.give_up();
        matches!(seen, Seen::Frame(_))
    }

    /// Who reads at the newest generation finds the newest version, or nothing.
    pub(super) fn read_newest(&self, newest: u64) {
        let record = self.record();
        record.enter(self.0.registry);
        if let Seen::Frame(word) = self.descriptor().read(newest) {
            assert_eq!(self.read(word.address()), newest, "an old version is taken for the newest");
        }
        record.give_up();
    }

    /// A guard, if the page is there.
    pub(super) fn guard(&self, generation: u64) -> Option<Guard> {
        let record = self.record();
        loop {
            let word = self.descriptor().word();
            if !word.has_frame() {
                record.give_up();
                return None;
            }
            let (_, slot) = record.protect(0, word.address()).unwrap();
            light_fence();
            match self.descriptor().read(generation) {
                Seen::Frame(found) if found.same_frame(word) => {
                    record.give_up();
                    return Some(Guard { address: word.address(), slot });
                }
                Seen::Frame(_) => slot.clear(),
                Seen::Newer | Seen::Absent => {
                    slot.clear();
                    record.give_up();
                    return None;
                }
            }
        }
    }

    pub(super) fn read_and_drop(&self, guard: Guard, generation: u64) {
        self.judge(guard.address, generation);
        guard.slot.clear();
    }

    /// A guard that is read and dropped.
    pub(super) fn read_by_slot(&self, generation: u64) {
        if let Some(guard) = self.guard(generation) {
            self.read_and_drop(guard, generation);
        }
    }
}
