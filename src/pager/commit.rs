//! From a transaction to a commit.

use std::sync::PoisonError;

use super::encode::encode;
use super::handle::Shared;
use super::private::{Content, Private};
use super::read::{CHUNK_BYTES, Source};
use super::transaction::Transaction;
use crate::error::Result;
use crate::id::PageId;
use crate::store::{Committed, Durability, PageReader, State};

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
    ///
    /// **Durability**: with [`Durability::Durable`], once this returned, no crash can undo the commit, nor any before
    /// it. With [`Durability::Deferred`] a crash may undo it, whole, with everything after it, until
    /// [`Pager::sync`](super::Pager::sync) or a later durable commit returned; views see it at once.
    ///
    /// # Errors
    /// `CommitUnknown`: whether the commit happened is known only when the store is opened again; it is then there
    /// whole, or not at all. After every other error it is **not committed**, and never will be: `NoSpace` (the same
    /// pager commits again once pages or disk space are freed), `PageBorrowed` for a guard that was leaked,
    /// `Poisoned`, `Closed`, `Io`, `Corrupt`.
    pub fn commit_with(self, durability: Durability) -> Result<Committed> {
        let Self { head, inner, turn, .. } = self;
        let inner = inner.into_inner();
        inner.check_nothing_borrowed()?;
        let lowest_free = inner.lowest_free();
        let private = inner.private;
        let began = Committed { generation: head.generation, incarnation: head.incarnation };
        // Held, it would keep what this commit replaces, and make the core copy what it could change in place.
        drop(head);
        let shared = &turn.handle.shared;
        if private.changes().is_empty() {
            if durability == Durability::Durable {
                shared.sync()?;
            }
            return Ok(began);
        }
        let committed = shared.commit(&private, durability)?;
        *shared.lowest_free.lock().unwrap_or_else(PoisonError::into_inner) = lowest_free;
        Ok(committed)
    }
}

impl Shared {
    /// Makes every commit so far durable.
    pub(super) fn sync(&self) -> Result<()> {
        let mut core = self.lock()?;
        let result = core.store.sync();
        self.settle(core, result)
    }

    fn commit(&self, private: &Private, durability: Durability) -> Result<Committed> {
        let mut changes = private.changes();
        let policy = &self.options.compression;
        encode(&mut changes, |page| private.compression(page).unwrap_or_else(|| policy.of(page.class())));
        let changes = &changes;
        #[cfg(feature = "tracing")]
        let _span = tracing::debug_span!("commit", pages = changes.pages.len(), ?durability).entered();
        let mut core = self.lock()?;
        let mut result = core.store.commit(changes, durability);
        if result.as_ref().is_err_and(|error| error.is_no_space()) {
            let (returned, reclaimed) = self.reclaim(core);
            core = returned;
            result = reclaimed.and_then(|()| core.store.commit(changes, durability));
        }
        if result.is_ok() {
            self.keep_committed(private, &core.store.state());
            core = self.after_commit(core);
        }
        self.settle(core, result)
    }

    /// A writer's pages are warm. What cannot be looked up is not kept, and that is all.
    fn keep_committed(&self, private: &Private, state: &State) {
        for (page, content) in private.pages() {
            let _ = self.keep_content(page, content, state);
        }
    }

    fn keep_content(&self, page: PageId, content: &Content, state: &State) -> Result<()> {
        let Source { nodes, cache } = self.source();
        match content {
            Content::Whole(bytes) => {
                let pointer = state.pointer(nodes, page)?;
                // A page that came out as zeros has no place, and needs none in the cache.
                if !pointer.extent().is_empty() {
                    cache.keep(&pointer, bytes);
                }
            }
            Content::Chunks(chunks, _) if cache.limit_bytes() > CHUNK_BYTES => {
                let root = state.pointer(nodes, page)?;
                for (chunk, bytes) in chunks {
                    let pointer = PageReader::new(nodes).chunk(page, &root, *chunk)?;
                    if !pointer.extent().is_empty() {
                        cache.keep(&pointer, bytes);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
