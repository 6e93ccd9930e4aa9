//! The work that is nobody's commit: checkpoints, and keeping segments of the file free.
//!
//! - **B1** A checkpoint is written without the core's lock; commits, moves and snapshots go on beside it. Only one runs
//!   at a time, and who must not run beside one waits for its end.
//! - **B2** No failure is tried again at once: the next try waits until some more commits were made. And however often
//!   one is due, unasked there is at most one checkpoint a commit.
//! - **B3** Moving pages is paid for by commits: for every block that they write, so many blocks may be moved. A store
//!   at rest rests.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::handle::{Core, CoreGuard, Shared};
use super::options::{Background, Event};
use crate::error::{Error, Result};
use crate::id::BLOCK_BYTES;
use crate::space::SEGMENT_BLOCKS;
use crate::store::{CheckpointJob, CheckpointReport, Cleaner, Durability, MoveReport, Progress, Victims};

/// Commits after a failure until the next try.
const COMMITS_BEFORE_RETRY: u64 = 64;

/// Blocks that may be moved for each block that commits write. At 75 % full, 1.3 are needed under uniform overwrites.
const MOVED_PER_COMMITTED: u64 = 3;

/// Moves that are paid for and not used are forgotten beyond so many blocks: 16 MiB.
const CREDIT_LIMIT_BLOCKS: u64 = 4096;

/// Blocks moved in one go, with the core's lock held: a segment at most.
const STEP_BLOCKS: u64 = SEGMENT_BLOCKS as u64;

/// What a step costs that moves nothing, in blocks: it looks at a part of the maps.
const WALK_BLOCKS: u64 = 8;

/// In percent of the log's length at which a checkpoint is due: from here on it is written without pauses …
const HURRY_LAG_PERCENT: u64 = 200;

/// … and from here on commits wait for its end.
const BACKPRESSURE_LAG_PERCENT: u64 = 400;

/// A paced checkpoint rests so many times as long as it works. Then it lasts longer, and what holds up a commit, the
/// fold's beginning and end, is spread over more of them.
const REST_PER_WORK: u32 = 3;

/// The longest pause between two pieces of a checkpoint.
const PAUSE_LIMIT: Duration = Duration::from_millis(5);

/// Whether a checkpoint is made although nothing has changed since the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    IfChanged,
    /// Two checkpoints in a row give back what the first one replaced.
    Always,
}

/// How a checkpoint is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// As fast as can be.
    Full,
    /// With pauses, so that commits beside it wait less.
    Paced,
}

/// What the background work stands at.
#[derive(Debug, Default)]
pub(super) struct Maintenance {
    checkpoint_running: bool,
    stopped: bool,
    cleaner: Cleaner,
    /// Blocks that may be moved (B3).
    credit_blocks: u64,
    /// Bytes of pages that commits had written when moves were last paid for.
    page_bytes_seen: u64,
    /// The number of commits from which on a checkpoint may be made again unasked (B2).
    checkpoint_not_before: u64,
    /// The same for moves.
    clean_not_before: u64,
    /// And for growth.
    growth_not_before: u64,
}

/// What there is to do.
enum Work {
    Checkpoint,
    Grow,
    Clean,
    Nothing,
    Stop,
}

impl Maintenance {
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }
}

impl Core {
    fn work(&mut self, shared: &Shared) -> Work {
        let commits = self.store.counters().commits;
        if self.maintenance.stopped || self.broken.is_some() {
            Work::Stop
        } else if self.store.checkpoint_due() && commits >= self.maintenance.checkpoint_not_before {
            Work::Checkpoint
        } else if commits >= self.maintenance.growth_not_before && self.store.growth_due() {
            Work::Grow
        } else if commits >= self.maintenance.clean_not_before && self.cleaning_is_due(shared) {
            Work::Clean
        } else {
            Work::Nothing
        }
    }

    /// Whether there are fewer wholly free segments than there should be, and moving pages would help.
    fn cleaning_is_due(&mut self, shared: &Shared) -> bool {
        if self.maintenance.credit_blocks < STEP_BLOCKS || shared.options.clean_target_percent == Some(0) {
            return false;
        }
        self.segments_at_hand() < self.segments_target(shared)
    }

    /// Whether commits are about to run out of wholly free segments.
    fn cleaning_is_urgent(&mut self, shared: &Shared) -> bool {
        matches!(self.work(shared), Work::Clean) && self.segments_at_hand() * 4 < self.segments_target(shared) * 3
    }

    /// How many segments are wholly free, or as good as.
    fn segments_at_hand(&mut self) -> u64 {
        self.store.segments_free() + self.store.segments_emptied()
    }

    fn segments_target(&self, shared: &Shared) -> u64 {
        let percent = u64::from(shared.options.clean_target_percent.unwrap_or(0));
        let segments = self.store.superblock().blocks_total / u64::from(SEGMENT_BLOCKS);
        (segments * percent / 100).max(self.store.segments_wanted())
    }

    /// Moves pages out of the emptiest segments.
    pub(super) fn clean(&mut self, victims: Victims, blocks: u64, durability: Durability) -> Result<MoveReport> {
        self.store.clean(&mut self.maintenance.cleaner, victims, blocks, durability)
    }

    /// A step of cleaning that nobody asked for.
    fn clean_unasked(&mut self) {
        // Where the file may grow, that is cheaper than emptying segments that are nearly full.
        let needed = !self.store.may_grow() && self.segments_at_hand() < self.store.segments_wanted();
        let victims = if needed { Victims::Needed } else { Victims::WorthIt };
        let report = self.clean(victims, 1, Durability::Deferred);
        let spent = report.as_ref().map_or(0, |report| report.blocks).max(WALK_BLOCKS);
        self.maintenance.credit_blocks = self.maintenance.credit_blocks.saturating_sub(spent);
        match report {
            Ok(report) if report.finished && report.blocks == 0 => {
                self.maintenance.clean_not_before = self.store.counters().commits + COMMITS_BEFORE_RETRY;
            }
            Ok(_) => {}
            Err(error) => {
                self.maintenance.clean_not_before = self.store.counters().commits + COMMITS_BEFORE_RETRY;
                self.failed_unasked(&error);
            }
        }
    }

    fn failed_unasked(&mut self, error: &Error) {
        #[cfg(feature = "tracing")]
        tracing::warn!(%error, "background work failed; it will be tried again");
        self.suspect = true;
        self.events.push(Event::BackgroundFailed { reason: error.to_string() });
    }

    fn pay_for_moves(&mut self) {
        let page_bytes = self.store.counters().page_bytes;
        let new_bytes = page_bytes - std::mem::replace(&mut self.maintenance.page_bytes_seen, page_bytes);
        let credit = self.maintenance.credit_blocks + new_bytes / BLOCK_BYTES * MOVED_PER_COMMITTED;
        self.maintenance.credit_blocks = credit.min(CREDIT_LIMIT_BLOCKS);
    }

    /// Fixes what a checkpoint folds; `None` if there is nothing to fold.
    fn begin_checkpoint(&mut self, condition: Condition) -> Result<Option<CheckpointJob>> {
        self.store.sync()?;
        let folded = self.store.superblock();
        let unchanged = folded.generation == self.store.synced() && folded.checkpoint.0 > 1;
        if unchanged && condition == Condition::IfChanged {
            return Ok(None);
        }
        self.store.checkpoint_begin().map(Some)
    }
}

impl Shared {
    /// Makes a checkpoint if anything changed since the last.
    pub(super) fn checkpoint<'a>(
        &'a self,
        core: CoreGuard<'a>,
        pace: Pace,
    ) -> (CoreGuard<'a>, Result<Option<CheckpointReport>>) {
        self.fold(core, Condition::IfChanged, pace)
    }

    /// Waits until no checkpoint runs.
    pub(super) fn without_checkpoint<'a>(&'a self, mut core: CoreGuard<'a>) -> CoreGuard<'a> {
        if core.maintenance.checkpoint_running {
            self.hurry.store(true, Ordering::Relaxed);
        }
        while core.maintenance.checkpoint_running {
            core = self.wait(&self.checkpoint_ended, core);
        }
        core
    }

    /// Gives back what only older checkpoints hold: replaced nodes and segments of the log. That takes two checkpoints.
    pub(super) fn reclaim<'a>(&'a self, mut core: CoreGuard<'a>) -> (CoreGuard<'a>, Result<()>) {
        for _ in 0..2 {
            let (returned, result) = self.fold(core, Condition::Always, Pace::Full);
            core = returned;
            match result {
                Err(error) if !error.is_no_space() => return (core, Err(error)),
                _ => {}
            }
        }
        (core, Ok(()))
    }

    /// Makes a checkpoint, with the core's lock given back while it is written (B1).
    fn fold<'a>(
        &'a self,
        core: CoreGuard<'a>,
        condition: Condition,
        pace: Pace,
    ) -> (CoreGuard<'a>, Result<Option<CheckpointReport>>) {
        let mut core = self.without_checkpoint(core);
        if core.ended {
            return (core, Err(Error::Closed));
        }
        #[cfg(feature = "tracing")]
        let _span = tracing::debug_span!("checkpoint").entered();
        let job = match core.begin_checkpoint(condition) {
            Ok(Some(job)) => job,
            Ok(None) => return (core, Ok(None)),
            Err(error) => return self.fold_failed(core, error),
        };
        core.maintenance.checkpoint_running = true;
        self.hurry.store(self.is_closed(), Ordering::Relaxed);
        drop(core);
        let (job, written) = {
            let _running = Running { shared: self };
            self.write(job, pace)
        };
        let mut core = self.lock_anyway();
        let result = match written {
            Ok(()) => core.store.checkpoint_finish(job),
            // The first error says more than one of giving the homes back.
            Err(error) => core.store.checkpoint_abandon(job).and(Err(error)),
        };
        core.maintenance.checkpoint_running = false;
        self.checkpoint_ended.notify_all();
        match result {
            Ok(report) => {
                core.events.push(Event::Checkpoint(report));
                (core, Ok(Some(report)))
            }
            Err(error) => self.fold_failed(core, error),
        }
    }

    fn fold_failed<'a, T>(&self, mut core: CoreGuard<'a>, error: Error) -> (CoreGuard<'a>, Result<T>) {
        core.maintenance.checkpoint_not_before = core.store.counters().commits + COMMITS_BEFORE_RETRY;
        (core, Err(error))
    }

    /// Writes a checkpoint, with rests between the pieces, unless there is reason to hurry.
    fn write(&self, mut job: CheckpointJob, pace: Pace) -> (CheckpointJob, Result<()>) {
        loop {
            let begun = Instant::now();
            match job.write() {
                Ok(Progress::More) => {}
                Ok(Progress::Done) => return (job, Ok(())),
                Err(error) => return (job, Err(error)),
            }
            if pace == Pace::Paced && !self.hurry.load(Ordering::Relaxed) {
                std::thread::sleep((begun.elapsed() * REST_PER_WORK).min(PAUSE_LIMIT));
            }
        }
    }

    /// What follows a commit: work for the background, or done at once.
    pub(super) fn after_commit<'a>(&'a self, mut core: CoreGuard<'a>) -> CoreGuard<'a> {
        core.pay_for_moves();
        match self.options.background {
            Background::Thread => self.leave_to_thread(core),
            Background::Inline => loop {
                core = match core.work(self) {
                    Work::Checkpoint => self.checkpoint_unasked(core, Pace::Full),
                    Work::Clean => {
                        core.clean_unasked();
                        core
                    }
                    // Only for the thread is space made ready ahead.
                    Work::Grow | Work::Nothing | Work::Stop => return core,
                };
            },
        }
    }

    fn leave_to_thread<'a>(&'a self, mut core: CoreGuard<'a>) -> CoreGuard<'a> {
        let lag = core.store.checkpoint_lag_percent();
        if lag >= HURRY_LAG_PERCENT {
            self.hurry.store(true, Ordering::Relaxed);
        }
        if lag >= BACKPRESSURE_LAG_PERCENT {
            core = match core.work(self) {
                // The thread does not get the core: commits are too quick for it.
                Work::Checkpoint => self.checkpoint_unasked(core, Pace::Full),
                _ => self.without_checkpoint(core),
            };
        }
        if core.cleaning_is_urgent(self) {
            // The thread does not get the core: who takes segments empties some.
            core.clean_unasked();
        }
        if !matches!(core.work(self), Work::Nothing) {
            self.work.notify_one();
        }
        core
    }

    /// Makes new space ready, in pieces, with pauses, without the core.
    fn grow_ahead<'a>(&'a self, mut core: CoreGuard<'a>) -> CoreGuard<'a> {
        core.maintenance.growth_not_before = core.store.counters().commits + 1;
        let Some(mut job) = core.store.growth_begin() else { return core };
        drop(core);
        let written = loop {
            let begun = Instant::now();
            match job.write() {
                Ok(Progress::More) if !self.is_closed() => std::thread::sleep(begun.elapsed().min(PAUSE_LIMIT)),
                Ok(_) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let mut core = self.lock_anyway();
        core.store.growth_finish(&job);
        if let Err(error) = written {
            core.maintenance.growth_not_before = core.store.counters().commits + COMMITS_BEFORE_RETRY;
            // That the disk is full is the error of the commit that needs more.
            if !error.is_no_space() {
                core.failed_unasked(&error);
            }
        }
        core
    }

    fn checkpoint_unasked<'a>(&'a self, mut core: CoreGuard<'a>, pace: Pace) -> CoreGuard<'a> {
        core.maintenance.checkpoint_not_before = core.store.counters().commits + 1;
        let (mut core, result) = self.fold(core, Condition::IfChanged, pace);
        if let Err(error) = result {
            core.failed_unasked(&error);
        }
        core
    }
}

/// The background thread: waits for work, does a piece of it, looks again.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut core = shared.lock_anyway();
    loop {
        core = match core.work(shared) {
            Work::Stop => return shared.unlock(core),
            Work::Nothing => shared.wait(&shared.work, core),
            Work::Checkpoint => {
                shared.unlock(shared.checkpoint_unasked(core, Pace::Paced));
                shared.lock_anyway()
            }
            Work::Grow => {
                shared.unlock(shared.grow_ahead(core));
                shared.lock_anyway()
            }
            Work::Clean => {
                let begun = Instant::now();
                core.clean_unasked();
                shared.unlock(core);
                std::thread::sleep(begun.elapsed().min(PAUSE_LIMIT));
                shared.lock_anyway()
            }
        };
    }
}

/// Tells those who wait if the thread that writes a checkpoint panics: a bug of ours, which must not leave them
/// waiting for ever.
struct Running<'a> {
    shared: &'a Shared,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut core = self.shared.lock_anyway();
            core.broken.get_or_insert("a thread panicked while it wrote a checkpoint");
            core.maintenance.checkpoint_running = false;
            self.shared.checkpoint_ended.notify_all();
        }
    }
}
