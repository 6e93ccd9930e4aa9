//! What all handles of one pager share, and the end of it.
//!
//! Locks, in the order in which a thread takes them: the turn to write, the leadership of group commit, the shelf,
//! `core`, the head, the shards of the claims or a class of the indices, then the inner ones of the rooms below. Held
//! over input and output are the shelf, `core`, and a class of the indices while it looks for free ones in the page
//! map. Nobody waits for the turn while holding `core` or leading, and the events' hook is called with neither `core`
//! nor anything inside of it held.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::committer::Committer;
use super::conflict::Claims;
use super::head::Head;
use super::indices::Indices;
use super::maintenance::{Maintenance, Pace};
use super::options::{Event, Options};
use super::pins::Pins;
use super::publish::{Publisher, Source};
use super::shelf::Shelf;
use super::turn::Turns;
use crate::buffer::{BudgetReservation, BufferManager, StorePages};
use crate::error::{Error, Result};
use crate::id::PageId;
use crate::map::Nodes;
use crate::process::FileLock;
use crate::store::{Medium, Published, RecoveryReport, Reserved, Store};

/// The core, and what may be touched only together with it.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) store: Store,
    pub(super) maintenance: Maintenance,
    /// Why the store is not to be used any more though its medium is not poisoned: a thread panicked in the middle.
    pub(super) broken: Option<&'static str>,
    /// What has happened and was not told yet.
    pub(super) events: Vec<Event>,
    /// Something failed since the core was last given back: perhaps the medium is poisoned.
    pub(super) suspect: bool,
    /// The last checkpoint is made, and the file may be another writer's.
    pub(super) ended: bool,
    poison_told: bool,
    file_lock: Option<FileLock>,
}

pub(super) type CoreGuard<'a> = MutexGuard<'a, Core>;

/// What the handles, views, transactions and the background thread share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) core: Mutex<Core>,
    /// A checkpoint has ended.
    pub(super) checkpoint_ended: Condvar,
    /// There may be work for the background thread.
    pub(super) work: Condvar,
    /// A running checkpoint should not pace itself.
    pub(super) hurry: AtomicBool,
    pub(super) turns: Turns,
    pub(super) head: Head,
    pub(super) claims: Claims,
    pub(super) indices: Indices,
    pub(super) committer: Committer,
    pub(super) published: Arc<Published>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) medium: Arc<Medium>,
    pub(super) manager: BufferManager,
    pub(super) pages: StorePages,
    pub(super) publisher: Arc<Publisher>,
    pub(super) pins: Arc<Pins>,
    /// Memory of private frames, and of those that are sequenced and not written.
    pub(super) private_bytes: AtomicUsize,
    /// What it should not exceed (M1).
    pub(super) private_limit_bytes: usize,
    /// The largest page that may be in memory as a whole.
    frame_limit_bytes: u64,
    /// Reserved space that nobody wants any more.
    pub(super) given_back: Arc<Mutex<Vec<Reserved>>>,
    pub(super) shelf: Shelf,
    /// The page maps' part of the budget.
    _map_memory: BudgetReservation,
    pub(super) options: Options,
    pub(super) recovery: RecoveryReport,
    closed: AtomicBool,
}

/// One owner of an open pager: the last one closes it.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Shared {
    pub(super) fn new(
        mut store: Store,
        recovery: RecoveryReport,
        options: &Options,
        file_lock: Option<FileLock>,
    ) -> Result<Self> {
        let (published, nodes, medium) =
            (Arc::clone(store.published()), Arc::clone(store.nodes()), Arc::clone(store.medium()));
        let events = Vec::new();
        let manager = options.manager()?;
        let budget_bytes = manager.budget().limit_bytes();
        let map_memory = manager.budget().reserve(options.map_bytes(budget_bytes), "page maps")?;
        let source = Arc::new(Source::new(&nodes, &published));
        let pages = manager.attach(Arc::clone(&source) as _)?;
        let publisher = Arc::new(Publisher::new(pages.clone(), source));
        store.set_publish_hook(Arc::clone(&publisher) as _);
        store.set_stored_pages(Arc::clone(&publisher) as _);
        let maintenance = Maintenance::default();
        let core = Core {
            store,
            maintenance,
            broken: None,
            events,
            suspect: false,
            ended: false,
            poison_told: false,
            file_lock,
        };
        Ok(Self {
            core: Mutex::new(core),
            checkpoint_ended: Condvar::new(),
            work: Condvar::new(),
            hurry: AtomicBool::new(false),
            turns: Turns::default(),
            head: Head::default(),
            claims: Claims::default(),
            indices: Indices::default(),
            committer: Committer::default(),
            published,
            nodes,
            medium,
            manager,
            pages,
            publisher,
            pins: Arc::default(),
            private_bytes: AtomicUsize::new(0),
            private_limit_bytes: budget_bytes / 2,
            frame_limit_bytes: (budget_bytes - options.map_bytes(budget_bytes)) as u64,
            given_back: Arc::default(),
            shelf: Shelf::default(),
            _map_memory: map_memory,
            options: options.clone(),
            recovery,
            closed: AtomicBool::new(false),
        })
    }

    /// The core, if the pager is open and whole.
    pub(super) fn lock(&self) -> Result<CoreGuard<'_>> {
        let core = self.lock_anyway();
        self.check(&core)?;
        Ok(core)
    }

    /// Fails if the pager is closed or broken: asked again after every wait.
    pub(super) fn check(&self, core: &Core) -> Result<()> {
        if self.is_closed() {
            return Err(Error::Closed);
        }
        core.broken.map_or(Ok(()), |reason| Err(self.poisoned(reason)))
    }

    pub(super) fn poisoned(&self, reason: &'static str) -> Error {
        Error::Poisoned { path: self.medium.path().into(), reason: reason.to_owned() }
    }

    /// The core, whatever became of it. A thread that panicked with it in its hands may have left it half changed.
    pub(super) fn lock_anyway(&self) -> CoreGuard<'_> {
        self.core.lock().unwrap_or_else(|poison| broken(poison.into_inner()))
    }

    /// Waits for a condition of the core; the caller checks what became true.
    pub(super) fn wait<'a>(&self, condition: &Condvar, core: CoreGuard<'a>) -> CoreGuard<'a> {
        condition.wait(core).unwrap_or_else(|poison| broken(poison.into_inner()))
    }

    /// Gives the core back, and tells what happened.
    pub(super) fn unlock(&self, mut core: CoreGuard<'_>) {
        // To ask the medium is to wait for its syncs, so it is asked only if something failed.
        if std::mem::take(&mut core.suspect)
            && !core.poison_told
            && let Some(reason) = core.broken.map(str::to_owned).or_else(|| self.medium.poison())
        {
            core.poison_told = true;
            core.events.push(Event::Poisoned { reason });
        }
        let events = std::mem::take(&mut core.events);
        drop(core);
        events.iter().for_each(|event| self.options.hook.tell(event));
    }

    /// Gives the core back with the result of what was done with it.
    pub(super) fn settle<T>(&self, mut core: CoreGuard<'_>, result: Result<T>) -> Result<T> {
        core.suspect |= result.is_err();
        self.unlock(core);
        result
    }

    /// Fails if the page as a whole is more than may be held in memory.
    pub(super) fn check_budget(&self, page: PageId) -> Result<()> {
        match page.class().page_bytes() > self.frame_limit_bytes {
            true => Err(Error::PageExceedsBudget { page }),
            false => Ok(()),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Reads without the core. Once the pager is closed another writer may use blocks again, so what is read then may
    /// fail in any way: the answer is `Closed`. What does not fail is right, by its checksum.
    pub(super) fn while_open<T>(&self, read: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.is_closed() {
            return Err(Error::Closed);
        }
        read().map_err(|error| if self.is_closed() { Error::Closed } else { error })
    }
}

fn broken(mut core: CoreGuard<'_>) -> CoreGuard<'_> {
    core.broken.get_or_insert("a thread panicked while it changed the store");
    core
}

impl Handle {
    pub(super) fn new(shared: Arc<Shared>, thread: Option<JoinHandle<()>>) -> Self {
        Self { shared, thread: Mutex::new(thread) }
    }

    /// Commits what is pending, ends the threads, makes a checkpoint, and gives the file's lock back. The second time it
    /// does nothing.
    pub(super) fn shut(&self) -> Result<()> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.shared.shut(thread)
    }
}

impl Shared {
    fn shut(&self, thread: Option<JoinHandle<()>>) -> Result<()> {
        if !self.is_closed() {
            self.flush();
        }
        self.committer.stop();
        {
            let mut core = self.lock_anyway();
            if self.closed.swap(true, Ordering::AcqRel) {
                return Err(Error::Closed);
            }
            core.maintenance.stop();
            self.work.notify_all();
        }
        self.turns.end();
        self.hurry.store(true, Ordering::Relaxed);
        // Nodes of old states are written without the core: not any more, once this was free.
        drop(self.shelf.when_idle());
        // The hook of the events may have dropped the last handle on the background thread itself.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // It does not panic; if it did, `broken` tells.
            let _ = thread.join();
        }
        let core = self.lock_anyway();
        let (mut core, result) = match core.broken {
            // A checkpoint may still be running: the lock goes with the last who holds this.
            Some(reason) => (core, Err(self.poisoned(reason))),
            None => {
                let (mut core, result) = self.checkpoint(core, Pace::Full);
                core.file_lock = None;
                (core, result)
            }
        };
        core.ended = true;
        match self.settle(core, result) {
            // Everything is in the log, and durable: the next open replays it.
            Err(error) if error.is_no_space() => Ok(()),
            other => other.map(drop),
        }
    }
}

impl Drop for Handle {
    /// Does its best; who wants to know calls `close`.
    fn drop(&mut self) {
        if !self.shared.head.is_led_here() {
            let _ = self.shut();
            return;
        }
        // The hook of the events has dropped the last handle on the thread that commits, which cannot wait for itself. If no other thread can be had, everything durable is replayed by the next open.
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let shared = Arc::clone(&self.shared);
        let closing = std::thread::Builder::new().name("vellum-close".into());
        let _ = closing.spawn(move || shared.shut(thread));
    }
}
