//! The pager: a store for many threads, with transactions and views.
//!
//! Owns: the store behind a lock, the turn to write, the order of commits, the private changes of transactions, the
//! store's pages in the [buffer](crate::buffer), the background threads. Does not own: any rule of durability or reuse;
//! those are the [`store`](crate::store)'s, and the pager only calls it.
//!
//! ```text
//!            begin                        commit                    leader                     store
//!  turn ──► private changes over ──► sequenced: a member of ──► the oldest group, ──► durable, ──► published,
//!           what is pending over     the youngest group;        one record            (or written)  visible to views,
//!           the published state      the turn ends here                                             members are told
//! ```
//! A transaction begins on the *sequenced* head, a view on the *published* one: so transactions that want the same page
//! one after the other share a record and a sync, and no view shows what a crash could still undo (but for deferred
//! commits, which say so).
//!
//! # Invariants
//! - **P1** Serial transactions are alone; concurrent ones change disjoint pages. What a transaction changed is its own
//!   until it is sequenced; a group of sequenced transactions is one call of the core.
//! - **P2** A view is a state that the core has published and that is held ([`Pinned`](crate::store::Pinned)): nothing
//!   it reaches is used again while it lives. Reading it takes neither the turn nor the core's lock. A transaction holds
//!   what it began with in the same way.
//! - **P3** A frame that is shared (published, in a guard, before a savepoint, sequenced) never changes; who changes one
//!   that is shared makes a copy first.
//! - **P4** After `close` nothing is written to the file, and what is read fails with `Closed`: it may be another
//!   writer's by then.
//! - **P5** The order of commits (`head.rs`: H1–H3), what is pending (`pending.rs`: N1–N4), claims (`conflict.rs`:
//!   C1–C3), indices (`indices.rs`: A1–A3), private pages (`private.rs`: W1–W3), savepoints (`savepoint.rs`: V1–V3),
//!   memory (`memory.rs`: M1, M2), publication (`publish.rs`: U1, U2), nodes of old states
//!   (`shelf.rs`: O1–O4) and background work (`maintenance.rs`: B1–B3) have
//!   invariants of their own.
//!
//! # Threads
//! [`Pager`] and [`View`] are used by any number of threads. A [`Transaction`] is used by one at a time. The order of
//! locks is in `handle.rs`. Reading, beginning and changing wait for no commit's input or output; only spilling does. A
//! thread that has a transaction open must not wait for another turn: [`Pager::begin`], [`Pager::roll_back`] and
//! [`Pager::verify`] would wait for ever.
//!
//! # Which call is where
//! | call | file |
//! | --- | --- |
//! | create, open | `open.rs` |
//! | begin | `turn.rs`, `head.rs` |
//! | allocate, write, free, savepoints | `transaction.rs`, `guard.rs`, `indices.rs`; what they change: `private.rs`, `savepoint.rs` |
//! | what a transaction sees | `sight.rs`, `pending.rs` |
//! | conflicts | `conflict.rs` |
//! | commit | `commit.rs`, then `group.rs`; for who does not wait: `committer.rs` |
//! | spill | `memory.rs`; map nodes of old states: `shelf.rs` |
//! | read | `read.rs`, `view.rs`, `publish.rs`; ahead: `ahead.rs` |
//! | who holds what | `pins.rs` |
//! | checkpoints, cleaning | `maintenance.rs` |
//! | close | `handle.rs` |

pub(crate) mod ahead;
mod bytes;
mod commit;
mod committer;
mod conflict;
mod encode;
mod group;
mod guard;
mod handle;
mod head;
mod indices;
mod maintenance;
mod memory;
mod open;
mod options;
mod pending;
mod pins;
mod private;
mod publish;
pub(crate) mod read;
mod savepoint;
mod shelf;
mod sight;
mod snapshots;
mod transaction;
mod turn;
mod view;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use ahead::Access;
pub use conflict::Isolation;
pub use group::Ticket;
pub use guard::PageMut;
pub use options::{Background, Event, Listener, Options, Readers};
pub use pins::{Pin, PinKind};
pub use read::{PageGuard, Read};
pub use savepoint::Savepoint;
pub use transaction::Transaction;
pub use view::{Scope, View};

use crate::buffer::{BufferManager, BufferStats};
use crate::error::{Error, Result};
use crate::id::Generation;
use crate::store::{
    CheckpointReport, Counters, Durability, MoveReport, RecoveryReport, Status, Store, VerifyLevel, VerifyReport,
    Victims,
};
use handle::Handle;
use maintenance::Pace;
use turn::{Kind, Patience, Turn};

/// An open store. Clones are handles of the same one; when the last of them, and of its views and transactions, is
/// dropped, the store is closed as well as that can be done without anybody to report to.
#[derive(Clone)]
pub struct Pager {
    handle: Arc<Handle>,
}

/// Where a pager stands, and what it has done since it was opened.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Where the store stands.
    pub status: Status,
    /// What the store has done.
    pub counters: Counters,
    /// The memory, of all pagers that share it.
    pub buffer: BufferStats,
    /// Bytes of private frames: what open transactions have changed, and what is committed and not written yet.
    pub dirty_bytes: usize,
    /// Of these, bytes of transactions that are committed and not written yet.
    pub pending_bytes: usize,
    /// Blocks of the file that hold spilled pages of open transactions.
    pub spilled_blocks: u64,
    /// Bytes of nodes of the page maps in memory that only old states need.
    pub old_map_bytes: usize,
    /// Blocks of the file that hold such nodes.
    pub shelved_blocks: u64,
    /// How many states are held: by views and their clones, and by open transactions.
    pub states_held: usize,
    /// The oldest generation held.
    pub oldest_held: Option<Generation>,
    /// Who holds a state for longest.
    pub oldest_pin: Option<Pin>,
}

impl Pager {
    /// What opening the store found and did.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.handle.shared.recovery
    }

    /// The file's path, or what the disk calls itself.
    pub fn path(&self) -> &Path {
        self.handle.shared.medium.path()
    }

    /// Begins a serial transaction, as soon as no other is open, in the order of asking. It never conflicts.
    ///
    /// It begins with everything that was committed, or whose commit was started, before.
    ///
    /// # Errors
    /// `Closed`.
    pub fn begin(&self) -> Result<Transaction> {
        self.begin_serial(Patience::Endless)
    }

    /// Begins a serial transaction, if no other is open.
    ///
    /// # Errors
    /// `Busy` if one is; `Closed`.
    pub fn try_begin(&self) -> Result<Transaction> {
        self.begin_serial(Patience::None)
    }

    /// Begins a serial transaction, if no other is open any more within `limit`.
    ///
    /// # Errors
    /// `Busy` if one still is; `Closed`.
    pub fn begin_timeout(&self, limit: Duration) -> Result<Transaction> {
        self.begin_serial(Patience::for_duration(limit))
    }

    /// Begins a transaction that runs beside others of the kind, as soon as no serial one is open. To change what another
    /// one changes is a `Conflict`, at once.
    ///
    /// # Errors
    /// `Closed`.
    pub fn begin_concurrent(&self, isolation: Isolation) -> Result<Transaction> {
        Transaction::new(Turn::take(&self.handle, Kind::Concurrent, Patience::Endless)?, Some(isolation))
    }

    /// As [`Pager::begin_concurrent`], if no serial transaction is open or waited for.
    ///
    /// # Errors
    /// `Busy` if one is; `Closed`.
    pub fn try_begin_concurrent(&self, isolation: Isolation) -> Result<Transaction> {
        Transaction::new(Turn::take(&self.handle, Kind::Concurrent, Patience::None)?, Some(isolation))
    }

    fn begin_serial(&self, patience: Patience) -> Result<Transaction> {
        Transaction::new(Turn::take(&self.handle, Kind::Serial, patience)?, None)
    }

    /// A view of the newest committed state. Waits for nobody's input or output.
    pub fn view(&self) -> View {
        View::new(Arc::clone(&self.handle), self.handle.shared.published.pin())
    }

    /// As [`Pager::view`], for no longer than `limit`: after that, reading fails with `ViewExpired`, and what the view
    /// held can be used again from the next commit on.
    pub fn view_with_deadline(&self, limit: Duration) -> View {
        View::with_deadline(Arc::clone(&self.handle), self.handle.shared.published.pin(), limit)
    }

    /// Makes every commit so far durable.
    ///
    /// **Durability**: once this returned, no crash can undo what was committed before the call.
    ///
    /// # Errors
    /// `Io`: what is durable is known only when the store is opened again, and writing is refused until then;
    /// `Poisoned`; `Closed`.
    pub fn sync(&self) -> Result<()> {
        self.handle.shared.sync()
    }

    /// Folds the log into the trees, so that opening the store after a crash has less to do. Waits for a running
    /// checkpoint first. `None` if there was nothing to fold.
    ///
    /// **Durability**: everything committed before the call is durable when this returned; that does not need a
    /// checkpoint.
    ///
    /// # Errors
    /// `NoSpace`: nothing happened. `Io`, `Corrupt`, `Poisoned`, `Closed`. No commit is concerned.
    pub fn checkpoint(&self) -> Result<Option<CheckpointReport>> {
        let shared = &self.handle.shared;
        let (core, result) = shared.checkpoint(shared.lock()?, Pace::Full);
        shared.settle(core, result)
    }

    /// One step of defragmentation: moves up to about `max_blocks` blocks of pages out of the emptiest segments of the
    /// file. The report says when the walk over all pages that began with an earlier step is finished.
    ///
    /// **Durability**: what was moved is as durable as it was.
    ///
    /// # Errors
    /// `NoSpace` if no blocks are free to move pages to (the file does not grow for them); else as of a commit, see
    /// [`Transaction::commit_with`].
    pub fn clean(&self, max_blocks: u64) -> Result<MoveReport> {
        let shared = &self.handle.shared;
        let mut core = shared.lock()?;
        let result = core.clean(Victims::Any, max_blocks, Durability::Durable);
        shared.settle(core, result)
    }

    /// Reads everything that can be reached, and says what is wrong. Waits for the turn to write, and keeps it;
    /// `progress` hears how many bytes of pages have been read. It must not use the pager, whose store is held meanwhile;
    /// if it panics, it is called no more, and the panic goes on when the store is given back.
    ///
    /// # Errors
    /// Only what keeps it from going on at all: findings are in the report. `Closed`.
    pub fn verify(&self, level: VerifyLevel, progress: &mut dyn FnMut(u64)) -> Result<VerifyReport> {
        let _turn = Turn::take(&self.handle, Kind::Serial, Patience::Endless)?;
        let shared = &self.handle.shared;
        shared.flush();
        let mut core = shared.without_checkpoint(shared.lock()?);
        shared.check(&core)?;
        let mut panicked = None;
        let result = core.store.verify(level, &mut |bytes| {
            if panicked.is_none() {
                panicked = catch_unwind(AssertUnwindSafe(|| progress(bytes))).err();
            }
        });
        let result = shared.settle(core, result);
        panicked.map_or(result, |panic| resume_unwind(panic))
    }

    /// Where the pager stands, and what it has done. It may wait for a commit's input and output.
    pub fn stats(&self) -> Stats {
        let shared = &self.handle.shared;
        let (states_held, oldest_held) = shared.published.held();
        let mut core = shared.lock_anyway();
        shared.take_given_back(&mut core.store);
        let (status, counters) = (core.store.status(), core.store.counters());
        let (reserved_blocks, shelved_blocks) = (core.store.blocks_reserved(), shared.shelved_blocks());
        drop(core);
        Stats {
            status,
            counters,
            buffer: shared.manager.stats(),
            dirty_bytes: shared.private_bytes.load(Ordering::Relaxed),
            pending_bytes: shared.head.pending_bytes(),
            spilled_blocks: reserved_blocks.saturating_sub(shelved_blocks),
            old_map_bytes: shared.old_map_bytes(),
            shelved_blocks,
            states_held,
            oldest_held,
            oldest_pin: shared.pins.list().into_iter().next(),
        }
    }

    /// Who holds which state, the longest first: views, snapshots that are read, open transactions.
    pub fn pins(&self) -> Vec<Pin> {
        self.handle.shared.pins.expire();
        self.handle.shared.pins.list()
    }

    /// The buffer manager that the pager's memory is of, to be shared with others.
    pub fn buffer(&self) -> &BufferManager {
        &self.handle.shared.manager
    }

    /// Calls `read` with the core, for tools that look at the file's structures. Nothing else can be done meanwhile.
    #[doc(hidden)]
    pub fn inspect<R>(&self, read: impl FnOnce(&mut Store) -> R) -> R {
        read(&mut self.handle.shared.lock_anyway().store)
    }

    /// Closes the store for all handles: makes a checkpoint and gives the file's lock back. Every later call that can
    /// fail gives `Closed`, on views too.
    ///
    /// **Durability**: everything committed is durable once this returned without an error, deferred commits included.
    ///
    /// # Errors
    /// `Busy` if a transaction is open, and in the hook of the events on a thread that commits, which cannot wait for
    /// itself: then nothing happened. `Closed` if it was closed before. Other errors are those of the last sync and
    /// checkpoint; the store is closed all the same. That there is no space for a checkpoint is no error.
    pub fn close(self) -> Result<()> {
        if self.handle.shared.head.is_led_here() {
            return Err(Error::Busy);
        }
        let turn = Turn::take(&self.handle, Kind::Serial, Patience::None)?;
        let result = self.handle.shut();
        drop(turn);
        result
    }
}

impl fmt::Debug for Pager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pager").field("path", &self.path()).finish_non_exhaustive()
    }
}

const _: () = {
    const fn shared_between_threads<T: Send + Sync + 'static>() {}
    const fn sent_to_threads<T: Send + 'static>() {}
    shared_between_threads::<Pager>();
    sent_to_threads::<Transaction>();
    sent_to_threads::<Savepoint>();
    sent_to_threads::<Ticket>();
};
