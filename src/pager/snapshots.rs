//! Snapshots and bookmarks: states with names.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::turn::{Kind, Patience, Turn};
use super::{Pager, View};
use crate::error::{Error, Result};
use crate::format::{CatalogueEntry, EntryKind};
use crate::store::Committed;

impl Pager {
    /// Gives the newest committed state a name. It can then be read by that name until it is removed, and what it
    /// needs is kept. An open transaction is not part of it.
    ///
    /// **Durability**: once this returned, the snapshot is durable, and so is everything committed before.
    ///
    /// # Errors
    /// `InvalidName` if the name is empty, longer than 255 bytes or taken, or the note longer than 1024 bytes; those of
    /// [`Transaction::commit_with`](super::Transaction::commit_with).
    pub fn snapshot(&self, name: &str, note: &str) -> Result<Committed> {
        self.name_state(EntryKind::Snapshot, name, note)
    }

    /// Remembers the newest committed state's identity under a name, without keeping what it needs.
    ///
    /// **Durability**: as [`Pager::snapshot`].
    ///
    /// # Errors
    /// As [`Pager::snapshot`].
    pub fn bookmark(&self, name: &str, note: &str) -> Result<Committed> {
        self.name_state(EntryKind::Bookmark, name, note)
    }

    fn name_state(&self, kind: EntryKind, name: &str, note: &str) -> Result<Committed> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let shared = &self.handle.shared;
        let mut core = shared.lock()?;
        let result = core.store.name_state(kind, name, note, now);
        shared.settle(core, result)
    }

    /// Removes a snapshot or a bookmark, and gives back what only it kept. Views of the snapshot go on. Waits for a
    /// running checkpoint.
    ///
    /// **Durability**: once this returned, it is gone for good, and everything committed before is durable.
    ///
    /// # Errors
    /// `SnapshotNotFound`; those of [`Transaction::commit_with`](super::Transaction::commit_with).
    pub fn remove(&self, name: &str) -> Result<Committed> {
        let shared = &self.handle.shared;
        let mut core = shared.without_checkpoint(shared.lock()?);
        shared.check(&core)?;
        let result = core.store.remove_name(name);
        shared.settle(core, result)
    }

    /// Makes the live state equal to a snapshot's, in one commit. Waits for the turn to write. Newer snapshots stay;
    /// views of the state before go on.
    ///
    /// **Durability**: once this returned, the roll-back is durable, and so is everything committed before.
    ///
    /// # Errors
    /// `SnapshotNotFound`; those of reading the snapshot's pages, and of
    /// [`Transaction::commit_with`](super::Transaction::commit_with).
    pub fn roll_back(&self, name: &str) -> Result<Committed> {
        let turn = Turn::take(&self.handle, Kind::Serial, Patience::Endless)?;
        let shared = &turn.handle.shared;
        shared.flush();
        let mut core = shared.lock()?;
        let result = core.store.roll_back(name);
        // Nothing is open or pending, and any index may be free again.
        shared.indices.search_again();
        shared.settle(core, result)
    }

    /// Snapshots and bookmarks of the newest committed state, oldest first.
    pub fn snapshots(&self) -> Vec<CatalogueEntry> {
        let state = self.handle.shared.published.pin();
        state.catalogue.iter().map(|listed| listed.entry.clone()).collect()
    }

    /// A view of a snapshot's state.
    ///
    /// # Errors
    /// `SnapshotNotFound` if there is none of that name, or it is a bookmark; `Closed`.
    pub fn open_snapshot(&self, name: &str) -> Result<View> {
        let published = &self.handle.shared.published;
        self.handle.shared.while_open(|| {
            let pinned = published.pin_snapshot(name);
            let pinned = pinned.ok_or_else(|| Error::SnapshotNotFound { name: name.to_owned() })?;
            Ok(View::new(Arc::clone(&self.handle), pinned))
        })
    }
}
