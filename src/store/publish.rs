//! Who hears of a commit before readers can see it: whoever keeps pages in memory.
//!
//! | what happens | is [`PublishHook::publish`] called? |
//! | --- | --- |
//! | a commit, durable or deferred; a roll-back; a snapshot made or removed | yes: [`Publication::pages`] |
//! | a move | yes: [`Publication::moves`]; the pages' bytes stay as they are |
//! | a checkpoint | no: it changes neither bytes nor pointers of pages |
//! | recovery | no: there is no hook yet |
//!
//! - **P1** When `publish` is called, the commit is a fact: durable, or, deferred, written. Nothing can fail any more.
//! - **P2** When it returns, and not before, [`Published::pin`](super::Published::pin) shows the generation. So
//!   whoever swaps descriptors in the hook has swapped them all before any view of the generation exists.
//! - **P3** Generations come in rising order, each once, one at a time.
//!
//! The hook runs on the committing thread, with the store borrowed: it must not call the store. It may call
//! [`Published`](super::Published), whose lock is not held.

use std::sync::Arc;

use super::Store;
use crate::format::{BlockPointer, Entry};
use crate::id::{Generation, PageId};

/// Hears of every commit after it is a fact and before it is visible.
pub trait PublishHook: Send + Sync + std::fmt::Debug {
    /// The commit's record is on its way to the disk: if it arrives, this will be published. Nothing of it may show yet,
    /// and it may never: this is for what makes publishing faster. Not every commit is announced.
    fn prepare(&self, publication: &Publication<'_>) {
        let _ = publication;
    }

    /// The commit is about to be visible.
    fn publish(&self, publication: &Publication<'_>);
}

/// What a commit changes.
#[derive(Clone, Copy, Debug)]
pub struct Publication<'a> {
    /// The generation that it makes.
    pub generation: Generation,
    /// The chunks of large pages that it stores; those not named stay, or are zero or freed with their page.
    pub chunks: &'a [ChunkUpdate],
    entries: &'a [Entry],
}

/// A page that has other bytes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageUpdate {
    /// The page.
    pub page: PageId,
    /// Where it was; null if it was not allocated.
    pub old: BlockPointer,
    /// Where it is; null if it was freed. A page that was written with nothing but zeros has the codec for that.
    pub new: BlockPointer,
}

/// A chunk of a large page that was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkUpdate {
    /// The page.
    pub page: PageId,
    /// The chunk's number.
    pub chunk: u32,
    /// Where it was; null if there was none, or the page's chunks were all replaced.
    pub old: BlockPointer,
    /// Where it is.
    pub new: BlockPointer,
}

impl<'a> Publication<'a> {
    pub(super) fn new(generation: Generation, entries: &'a [Entry], chunks: &'a [ChunkUpdate]) -> Self {
        Self { generation, chunks, entries }
    }

    /// The pages that have other bytes, or none, from this generation on, in rising order.
    pub fn pages(&self) -> impl Iterator<Item = PageUpdate> + 'a {
        self.entries.iter().filter_map(|entry| match *entry {
            Entry::Set { page, new, old } => Some(PageUpdate { page, old, new }),
            _ => None,
        })
    }

    /// The pages that lie elsewhere from this generation on, with the same bytes and the same birth.
    pub fn moves(&self) -> impl Iterator<Item = PageUpdate> + 'a {
        self.entries.iter().filter_map(|entry| match *entry {
            Entry::Move { page, new, old } => Some(PageUpdate { page, old, new }),
            _ => None,
        })
    }
}

impl Store {
    /// Says who is to hear of commits, from the next one on.
    pub fn set_publish_hook(&mut self, hook: Arc<dyn PublishHook>) {
        self.publish_hook = Some(hook);
    }
}
