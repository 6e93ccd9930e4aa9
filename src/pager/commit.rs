//! From a transaction to a place in the order of commits.

use std::sync::Arc;

use super::group::{Standing, Ticket};
use super::handle::Shared;
use super::head::Draft;
use super::options::Background;
use super::private::{Content, Origin, Together};
use super::read::{CHUNK_BYTES, Source};
use super::transaction::Transaction;
use crate::error::Result;
use crate::id::PageId;
use crate::store::{Committed, Durability, PageReader, State};

/// So many bytes of started commits may wait for being written; who wants to commit more waits first.
const PENDING_BYTES_LIMIT: usize = 32 << 20;

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
    /// `PageBorrowed`, `Conflict` and `PredecessorFailed` as of [`Transaction::commit_with`]: then nothing was started.
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
        let Self { own, began, claim, turn } = self;
        let handle = Arc::clone(&turn.handle);
        let shared = &handle.shared;
        own.inner.borrow().check_nothing_borrowed()?;
        shared.wait_for_room(PENDING_BYTES_LIMIT);
        let at = began.take_sequence();
        let name = Committed { generation: began.base.generation, incarnation: began.base.incarnation };
        let private = own.inner.take().private;
        if private.is_empty() {
            let (_, _, returned) = private.into_parts();
            shared.indices.give_back(returned.into_iter());
            shared.head.end_unchanged(at, claim.as_ref())?;
            return Ok(Ticket::new(handle, Standing::Nothing(name, began.pending.youngest(), durability)));
        }
        let (pages, header, returned) = private.into_parts();
        let mut draft = Draft { pages, header, returned, bytes: 0, durability, allocates: 0 };
        for (page, private) in &draft.pages {
            draft.bytes += private.bytes();
            if private.origin == Origin::New || matches!(private.content, Content::Freed) {
                draft.allocates |= 1 << page.class().index();
            }
        }
        // Held, it would keep what this commit replaces, and make the core copy what it could change in place.
        drop(began);
        let (group, sequence) = match shared.head.sequence(at, draft, claim.as_ref()) {
            Ok(sequenced) => sequenced,
            Err((error, draft)) => {
                let is_new = |(_, private): &(&PageId, &super::private::PrivatePage)| private.origin == Origin::New;
                let new = draft.pages.iter().filter(is_new).map(|(page, _)| *page);
                shared.indices.give_back(new.chain(draft.returned.iter().copied()));
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

    /// A writer's pages are warm. What cannot be looked up is not kept, and that is all.
    pub(super) fn keep_committed(&self, together: &Together<'_>, state: &State) {
        for (page, content) in together.pages() {
            let _ = self.keep_content(page, content, state);
        }
    }

    fn keep_content(&self, page: PageId, content: &Content, state: &State) -> Result<()> {
        let Source { nodes, cache } = self.source();
        match content {
            Content::Whole(frame) => {
                let pointer = state.pointer(nodes, page)?;
                // A page that came out as zeros has no place, and needs none in the cache.
                if !pointer.extent().is_empty() {
                    cache.keep(&pointer, frame.shared());
                }
            }
            Content::Chunks(chunks, _) if cache.limit_bytes() > CHUNK_BYTES => {
                let root = state.pointer(nodes, page)?;
                for (chunk, frame) in chunks {
                    let pointer = PageReader::new(nodes).chunk(page, &root, *chunk)?;
                    if !pointer.extent().is_empty() {
                        cache.keep(&pointer, frame.shared());
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
