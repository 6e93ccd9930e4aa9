//! From a transaction to a place in the order of commits.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::group::{Standing, Ticket};
use super::handle::Shared;
use super::head::Draft;
use super::options::Background;
use super::private::{Content, Origin};
use super::transaction::{Inner, Transaction};
use crate::error::Result;
use crate::id::PageId;
use crate::store::{Committed, Durability};

impl Transaction {
    /// Commits, durably.
    ///
    /// **Durability**: once this returned, no crash can undo the commit, nor any before it.
    ///
    /// # Errors
    /// As [`Transaction::commit_with`].
    pub fn commit(self) -> Result<Committed> {
        self.commit_with(Durability::Durable)
    }

    /// Commits. A transaction without changes makes no commit and returns the name of the state it began with.
    /// Transactions that are committed at the same time share one record, and with it one generation and one sync.
    ///
    /// **Durability**: with [`Durability::Durable`], once this returned, no crash can undo the commit, nor any before
    /// it. With [`Durability::Deferred`] a crash may undo it, whole, with everything after it, until
    /// [`Pager::sync`](super::Pager::sync) or a later durable commit returned; views see it at once.
    ///
    /// # Errors
    /// `CommitUnknown`: whether the commit happened is known only when the store is opened again; it is then there
    /// whole, or not at all. After every other error it is **not committed**, and never will be: `NoSpace` (the same
    /// pager commits again once pages or disk space are freed), `PageBorrowed` for a guard that was leaked,
    /// `PredecessorFailed` if it was built on a commit that failed (one that was started and not waited for, or
    /// another thread's), `Conflict` for a serializable transaction, `Poisoned`, `Closed`, `Io`, `Corrupt`.
    pub fn commit_with(self, durability: Durability) -> Result<Committed> {
        self.sequence(durability)?.wait()
    }

    /// Starts a durable commit: it has its place in the order, other transactions build on it, and the ticket tells when
    /// it is done. Several that one thread starts before it waits share a record and a sync.
    ///
    /// # Errors
    /// `PageBorrowed`, `Conflict` and `PredecessorFailed` as of [`Transaction::commit_with`], and what putting a page back
    /// failed with when its guard was dropped (`NoSpace`, `Io`): then nothing was started.
    /// `Io` if the pager's thread for such commits cannot be started. Everything else the ticket tells.
    pub fn commit_start(self) -> Result<Ticket> {
        self.commit_start_with(Durability::Durable)
    }

    /// Starts a commit, as [`Transaction::commit_start`], of this durability.
    ///
    /// # Errors
    /// As [`Transaction::commit_start`].
    pub fn commit_start_with(self, durability: Durability) -> Result<Ticket> {
        let shared = Arc::clone(&self.turn.handle.shared);
        let thread = shared.options.background == Background::Thread;
        if thread {
            shared.committer.start(&shared)?;
        }
        let ticket = self.sequence(durability)?;
        if thread {
            ticket.leave_unattended();
            shared.committer.wake();
        }
        Ok(ticket)
    }

    /// Gives the transaction its place in the order; its turn ends with that.
    fn sequence(self, durability: Durability) -> Result<Ticket> {
        // What is named last is dropped first.
        let Self { turn, ahead: _, claim, mut began, own } = self;
        let handle = Arc::clone(&turn.handle);
        let shared = &handle.shared;
        {
            let mut inner = own.inner.borrow_mut();
            inner.check_nothing_borrowed()?;
            if let Some(error) = inner.failed.take() {
                return Err(error);
            }
        }
        // Half of what private frames may take.
        shared.wait_for_room(shared.private_limit_bytes / 2);
        let at = began.take_sequence();
        let name = Committed { generation: began.base.generation, incarnation: began.base.incarnation };
        let Inner { private, reported_bytes, .. } = own.inner.take();
        if private.is_empty() {
            shared.private_bytes.fetch_sub(reported_bytes, Ordering::Relaxed);
            let (_, _, returned) = private.into_parts();
            shared.indices.give_back(returned.into_iter());
            shared.head.end_unchanged(at, claim.as_ref())?;
            return Ok(Ticket::new(handle, Standing::Nothing(name, std::mem::take(&mut began.pending), durability)));
        }
        // What only savepoints have goes with them.
        let bytes = private.pages_bytes();
        shared.private_bytes.fetch_add(bytes, Ordering::Relaxed);
        shared.private_bytes.fetch_sub(reported_bytes, Ordering::Relaxed);
        let (pages, header, returned) = private.into_parts();
        let mut draft = Draft { pages, header, returned, bytes, durability, allocates: 0 };
        for (page, private) in &draft.pages {
            if private.origin == Origin::New || matches!(private.content, Content::Freed) {
                draft.allocates |= 1 << page.class().index();
            }
        }
        // Held, it would keep what this commit replaces, and make the core copy what it could change in place.
        drop(began);
        let (group, sequence) = match shared.head.sequence(at, draft, claim.as_ref()) {
            Ok(sequenced) => sequenced,
            Err(refused) => {
                let (error, draft) = *refused;
                let is_new = |(_, private): &(&PageId, &super::private::PrivatePage)| private.origin == Origin::New;
                let new = draft.pages.iter().filter(is_new).map(|(page, _)| *page);
                shared.indices.give_back(new.chain(draft.returned.iter().copied()));
                shared.private_bytes.fetch_sub(bytes, Ordering::Relaxed);
                return Err(error);
            }
        };
        drop(turn);
        Ok(Ticket::new(handle, Standing::Sequenced(group, sequence)))
    }
}

impl Shared {
    /// Makes every commit so far durable.
    pub(super) fn sync(&self) -> Result<()> {
        self.flush();
        let mut core = self.lock()?;
        let result = core.store.sync();
        self.settle(core, result)
    }
}
