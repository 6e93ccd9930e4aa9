//! Group commit: one record for all transactions that were sequenced while the record before it was written.
//!
//! ```text
//!  sequenced --(leader takes the group)--> written --> published --> removed from the head --> members are told
//!                                             |
//!                                             +-- not committed --> one by one, in order; who was built on a
//!                                             |                     failed one fails too
//!                                             +-- unknown, poisoned --> all members fail with it
//! ```
//! The leader is a thread that waits for its own commit; it leads until that is done, and then wakes one that waits for
//! the next group. So nobody leads for ever, and a commit alone costs no hand-over between threads. Groups that nobody
//! waits for (`commit_start`) are led by a thread of the pager's own, where there may be one.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::encode::encode;
use super::handle::{Handle, Shared};
use super::head::Taken;
use super::pending::{Member, Pending, Sequence, release_alone, release_published};
use super::private::{Candidate, Together};
use super::publish::Frames;
use crate::error::{Error, Result};
use crate::id::Generation;
use crate::lock::lock_awake;
use crate::store::{Committed, Durability, Pinned};

/// Where the members of a group hear of their fate.
#[derive(Debug, Default)]
pub(super) struct Group {
    state: Mutex<State>,
    changed: Condvar,
    unattended: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    done: bool,
    /// Nobody leads: one of those who wait should.
    lead: bool,
    /// What all have in common …
    committed: Option<Committed>,
    /// … but for these.
    results: HashMap<Sequence, Result<Committed>>,
    /// The last record.
    last: Option<Committed>,
    /// The thread that committed it panicked: the generation of its first record, if there is one.
    unknown: Option<Generation>,
}

/// What became of a group.
#[derive(Debug, Default)]
struct Fate {
    committed: Option<Committed>,
    results: HashMap<Sequence, Result<Committed>>,
    last: Option<Committed>,
    /// The state that it made.
    state: Option<Arc<Pinned>>,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    Done,
    ToLead,
}

impl Group {
    /// A panic while the lock is held leaves what is inside whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        lock_awake(&self.state)
    }

    fn is_done(&self) -> bool {
        self.lock().done
    }

    fn wait(&self) -> Woken {
        let mut state = self.lock();
        loop {
            if state.done {
                return Woken::Done;
            }
            if std::mem::take(&mut state.lead) {
                return Woken::ToLead;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Asks one of those who wait for the group to lead; if none waits yet, the next who comes.
    fn ask_to_lead(&self) {
        self.lock().lead = true;
        self.changed.notify_one();
    }

    fn finish(&self, fate: Fate) {
        let mut state = self.lock();
        state.done = true;
        (state.committed, state.results, state.last) = (fate.committed, fate.results, fate.last);
        drop(state);
        self.changed.notify_all();
    }

    /// A member's fate, which it asks for once.
    fn result(&self, sequence: Sequence, shared: &Shared) -> Result<Committed> {
        let mut state = self.lock();
        if let Some(result) = state.results.remove(&sequence).or(state.committed.map(Ok)) {
            return result;
        }
        let source = Box::new(shared.poisoned("a thread panicked while it committed"));
        Err(Error::CommitUnknown { generation: state.unknown.unwrap_or_default(), source })
    }

    /// The last record that was made of members of the group.
    fn last(&self) -> Option<Committed> {
        self.lock().last
    }

    /// Members of the group may have nobody who waits for them.
    pub(super) fn leave_unattended(&self) {
        self.unattended.store(true, Ordering::Release);
    }
}

/// A commit that has its place in the order and may not have happened yet. Whoever begins a transaction from now on
/// builds on it; views show it when it is done. Dropping the ticket does not undo it: it is done with the next commit
/// that somebody waits for, at once if the pager has a thread, and at the latest by `close` or the last handle's drop.
#[must_use = "whether the commit happened is known only from `wait`"]
pub struct Ticket {
    handle: Arc<Handle>,
    standing: Standing,
}

/// Where a commit stands.
#[derive(Debug)]
pub(super) enum Standing {
    /// It waits in a group.
    Sequenced(Arc<Group>, Sequence),
    /// There was nothing to commit. It began with this state, and what was pending on it; that may have to become
    /// durable.
    Nothing(Committed, Pending, Durability),
}

impl Ticket {
    pub(super) fn new(handle: Arc<Handle>, standing: Standing) -> Self {
        Self { handle, standing }
    }

    pub(super) fn leave_unattended(&self) {
        if let Standing::Sequenced(group, _) = &self.standing {
            group.leave_unattended();
        }
    }

    /// Waits until the commit is done, doing it if nobody else does.
    ///
    /// **Durability**: as of [`Transaction::commit_with`](super::Transaction::commit_with), with the durability that
    /// the commit was started with.
    ///
    /// # Errors
    /// As of [`Transaction::commit_with`](super::Transaction::commit_with).
    pub fn wait(self) -> Result<Committed> {
        let shared = &self.handle.shared;
        match self.standing {
            Standing::Sequenced(group, sequence) => {
                shared.wait_for(&group);
                group.result(sequence, shared)
            }
            Standing::Nothing(mut committed, pending, durability) => {
                if let Some(group) = pending.youngest_group() {
                    // Those before it are done then, too.
                    shared.wait_for(group);
                    if pending.has_failed() {
                        return Err(shared.head.predecessor_failed());
                    }
                    committed = group.last().unwrap_or(committed);
                }
                if durability == Durability::Durable {
                    shared.sync()?;
                }
                Ok(committed)
            }
        }
    }

    /// The result if the commit is done, else the ticket again. With [`Background::Inline`](super::Background::Inline)
    /// nothing is done by itself: some thread has to wait for a commit.
    ///
    /// # Errors
    /// As [`Ticket::wait`], inside of the outer `Ok`.
    pub fn try_wait(self) -> std::result::Result<Result<Committed>, Self> {
        let group = match &self.standing {
            Standing::Sequenced(group, _) => Some(group),
            Standing::Nothing(_, pending, _) => pending.youngest_group(),
        };
        match group.is_some_and(|group| !group.is_done()) {
            true => Err(self),
            false => Ok(self.wait()),
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").finish_non_exhaustive()
    }
}

/// Leadership, until this is dropped.
struct Leading<'a> {
    shared: &'a Shared,
    /// The group that is being committed.
    taken: Option<Arc<Group>>,
    /// What its first record makes.
    generation: Generation,
}

impl Drop for Leading<'_> {
    fn drop(&mut self) {
        // A panic, which is a bug of ours or of the hook for events: nobody is left waiting for ever.
        if let Some(group) = self.taken.take() {
            self.shared.private_bytes.fetch_sub(self.shared.head.remove_oldest(), Ordering::Relaxed);
            group.abandon(self.shared, self.generation);
        }
        // Perhaps nobody waits for the next one: who waits for any leads, and does those before it first.
        let left = self.shared.head.resign();
        left.iter().for_each(|group| group.ask_to_lead());
        if left.iter().any(|group| group.unattended.load(Ordering::Acquire)) {
            self.shared.committer.wake();
        }
    }
}

impl Group {
    /// The thread that committed the group panicked.
    fn abandon(&self, shared: &Shared, generation: Generation) {
        let mut state = self.lock();
        state.done = true;
        state.unknown = Some(generation);
        drop(state);
        shared.lock_anyway().broken.get_or_insert("a thread panicked while it committed");
        self.changed.notify_all();
    }
}

impl Shared {
    /// Waits until the group is committed or has failed, leading if nobody does.
    pub(super) fn wait_for(&self, group: &Arc<Group>) {
        while !group.is_done() {
            if self.head.lead() {
                self.lead(Some(group));
            } else if group.wait() == Woken::Done {
                return;
            }
        }
    }

    /// Waits until everything that is sequenced now is committed or has failed.
    pub(super) fn flush(&self) {
        if let Some(group) = self.head.youngest_group() {
            self.wait_for(&group);
        }
    }

    /// Waits while more than `limit` bytes are pending.
    pub(super) fn wait_for_room(&self, limit: usize) {
        while self.head.pending_bytes() > limit {
            let Some(group) = self.head.oldest_group() else { return };
            self.wait_for(&group);
        }
    }

    /// Commits groups, oldest first, until `own` is done, or with `None` until none is left. The caller is the leader.
    pub(super) fn lead(&self, own: Option<&Arc<Group>>) {
        let mut leading = Leading { shared: self, taken: None, generation: Generation(0) };
        while let Some(taken) = self.head.take() {
            leading.generation = Generation(self.published.pin().generation.0 + 1);
            let group = Arc::clone(&taken.group);
            leading.taken = Some(Arc::clone(&group));
            let mut fate = self.commit_group(&taken);
            leading.taken = None;
            self.private_bytes.fetch_sub(self.head.remove_oldest(), Ordering::Relaxed);
            if fate.committed.is_some() {
                let state = fate.state.take();
                release_published(&taken.top, || state.unwrap_or_else(|| Arc::new(self.published.pin())));
            }
            drop(taken);
            if own.is_some_and(|own| Arc::ptr_eq(own, &group)) {
                // The next one begins its work before this one's members are told of theirs.
                drop(leading);
                group.finish(fate);
                return self.shelve_if_due();
            }
            group.finish(fate);
            self.shelve_if_due();
        }
    }

    fn commit_group(&self, taken: &Taken) -> Fate {
        let mut fate = Fate::default();
        let mut members: Vec<&Member> = taken.top.chain().collect();
        members.reverse();
        let mut alive = Vec::with_capacity(members.len());
        for member in members {
            match member.has_failed() {
                false => alive.push(Candidate { member, pages: member.pages() }),
                true => {
                    self.indices.failed(member);
                    fate.results.insert(member.sequence, Err(self.head.predecessor_failed()));
                }
            }
        }
        let all: Vec<&Candidate<'_>> = alive.iter().collect();
        match self.commit(&all, taken.durability) {
            Ok((committed, state)) => {
                (fate.committed, fate.last, fate.state) = (Some(committed), Some(committed), state);
            }
            Err(error) if alive.len() > 1 && !is_final(&error) => {
                self.commit_one_by_one(&all, taken.durability, &mut fate);
            }
            Err(error) => {
                for alive in &alive {
                    self.indices.failed(alive.member);
                    fate.results.insert(alive.member.sequence, Err(again(&error)));
                }
                if let [alive] = &alive[..] {
                    self.head.fail(alive.member, &error);
                    fate.results.insert(alive.member.sequence, Err(error));
                }
            }
        }
        fate
    }

    /// What failed together may not fail alone: each member fails for itself, and with those that were built on it.
    fn commit_one_by_one(&self, members: &[&Candidate<'_>], durability: Durability, fate: &mut Fate) {
        let mut end: Option<Error> = None;
        for alive in members {
            let member = alive.member;
            let result = match &end {
                Some(error) => Err(again(error)),
                None if member.has_failed() => Err(self.head.predecessor_failed()),
                None => self.commit(&[alive], durability),
            };
            let result = result.map(|(committed, state)| {
                fate.last = Some(committed);
                release_alone(member, &state.unwrap_or_else(|| Arc::new(self.published.pin())));
                committed
            });
            if let Err(error) = &result {
                self.indices.failed(member);
                if is_final(error) {
                    end.get_or_insert_with(|| again(error));
                } else if !member.has_failed() {
                    self.head.fail(member, error);
                }
            }
            fate.results.insert(member.sequence, result);
        }
    }

    /// Commits through the core. If something of it was spilled, the state that it made comes with it, held since
    /// before anything that it has could be given up.
    fn commit(&self, members: &[&Candidate<'_>], durability: Durability) -> Result<(Committed, Option<Arc<Pinned>>)> {
        let together = Together::new(members);
        let mut changes = together.changes();
        let policy = &self.options.compression;
        encode(&mut changes, |page| together.compression(page).unwrap_or_else(|| policy.of(page.class())));
        let changes = &changes;
        #[cfg(feature = "tracing")]
        let _span = tracing::debug_span!("commit", pages = changes.pages.len(), ?durability).entered();
        let mut core = self.lock()?;
        self.take_given_back(&mut core.store);
        if changes.is_empty() {
            // What one member allocated, another freed.
            let result = match durability {
                Durability::Durable => core.store.sync(),
                Durability::Deferred => Ok(()),
            };
            let state = core.store.state();
            let committed = Committed { generation: state.generation, incarnation: state.incarnation };
            self.indices.published(&state, members);
            return self.settle(core, result.map(|()| (committed, None)));
        }
        self.publisher.set_frames(together.frames());
        let mut result = core.store.commit(changes, durability);
        if result.as_ref().is_err_and(Error::is_no_space) {
            let (returned, reclaimed) = self.reclaim(core);
            core = returned;
            self.publisher.set_frames(together.frames());
            result = reclaimed.and_then(|()| core.store.commit(changes, durability));
        }
        self.publisher.set_frames(Frames::default());
        let mut state = None;
        if result.is_ok() {
            if together.is_spilled() {
                together.take_over();
                state = Some(Arc::new(self.published.pin()));
            }
            self.indices.published(&core.store.state(), members);
            self.pins.expire();
            self.note_old_nodes(changes.pages.len());
            core = self.after_commit(core);
        }
        self.settle(core, result.map(|committed| (committed, state)))
    }
}

/// Whether nothing can be committed any more after this error.
fn is_final(error: &Error) -> bool {
    matches!(error, Error::CommitUnknown { .. } | Error::Poisoned { .. } | Error::Closed)
}

/// The same error for another member.
fn again(error: &Error) -> Error {
    match error {
        Error::CommitUnknown { generation, source } => {
            Error::CommitUnknown { generation: *generation, source: Box::new(again(source)) }
        }
        Error::Poisoned { path, reason } => Error::Poisoned { path: path.clone(), reason: reason.clone() },
        Error::Io { operation, path, offset, source } => {
            let source = match source.raw_os_error() {
                Some(number) => std::io::Error::from_raw_os_error(number),
                None => std::io::Error::new(source.kind(), source.to_string()),
            };
            Error::Io { operation, path: path.clone(), offset: *offset, source }
        }
        Error::Closed => Error::Closed,
        other => Error::PredecessorFailed { reason: other.to_string() },
    }
}
