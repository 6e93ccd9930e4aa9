//! Snapshots and bookmarks: durable states with names. Every operation is a commit record (R7).
//!
//! A snapshot owns what it alone reaches of the dead: the rule of R1 keeps such extents off the deferred list. Its
//! deletion finds what neither the snapshot before nor the one after (or the live state) reaches, and names all of that
//! in the record. Roll-back copies; it never shares a pointer back into the live tree, or an extent's life would have
//! two intervals and the neighbours would no longer suffice (design review, finding 36).

use std::sync::Arc;

use super::changes::Changes;
use super::chunks::chunk_tree;
use super::read::{read_page, read_stored};
use super::state::Listed;
use super::{Committed, Content, Durability, PageChange, Running, Store};
use crate::error::{Error, Result};
use crate::format::{BlockPointer, CatalogueEntry, EntryKind, NOTE_LIMIT, TreeRoot, check_name};
use crate::id::{BLOCK_LENGTH, Generation, Incarnation, PageId, SizeClass};
use crate::map::{Exclusive, Tree, diff, exclusive};

impl Store {
    /// Gives the newest state a name: a snapshot, which holds its space, or a bookmark, which holds none.
    ///
    /// **Durability**: when this returned, the snapshot is durable, and so is everything committed before.
    ///
    /// # Errors
    /// `InvalidName`; those of [`Store::commit`].
    pub fn name_state(&mut self, kind: EntryKind, name: &str, note: &str, created_seconds: u64) -> Result<Committed> {
        let invalid = |reason| Error::InvalidName { name: name.to_owned(), reason };
        check_name(name).map_err(invalid)?;
        if note.len() > NOTE_LIMIT {
            return Err(invalid("its note has more than 1024 bytes"));
        }
        if self.state().listed(name).is_some() {
            return Err(invalid("it is taken"));
        }
        if self.next_catalogue_id == u64::MAX {
            return Err(Error::Exhausted { counter: "catalogue id" });
        }
        let entry = CatalogueEntry {
            kind,
            id: 0,
            generation: Generation(0),
            incarnation: Incarnation(0),
            created_seconds,
            name: name.to_owned(),
            note: note.to_owned(),
            header: Vec::new(),
            maps: [TreeRoot::default(); SizeClass::COUNT],
        };
        self.commit(&Changes { added: vec![entry], ..Changes::default() }, Durability::Durable)
    }

    /// Removes a snapshot or a bookmark, and gives back what only it held. No checkpoint may be running: it would write
    /// nodes that nobody then frees.
    ///
    /// # Errors
    /// `SnapshotNotFound`; `Busy` beside a checkpoint; those of [`Store::commit`].
    pub fn remove_name(&mut self, name: &str) -> Result<Committed> {
        if self.checkpoint_running == Running::Yes {
            return Err(Error::Busy);
        }
        let listed = self.listed(name)?;
        let dead = self.held_only_by(&listed)?;
        let changes = Changes { removed: vec![listed.entry.id], dead, ..Changes::default() };
        self.commit(&changes, Durability::Durable)
    }

    fn listed(&self, name: &str) -> Result<Arc<Listed>> {
        let state = self.state();
        state.listed(name).cloned().ok_or_else(|| Error::SnapshotNotFound { name: name.to_owned() })
    }

    /// What neither the snapshot before, nor the one after or the live state reaches: pages, chunks and their nodes.
    fn held_only_by(&self, listed: &Listed) -> Result<Vec<BlockPointer>> {
        let Some(maps) = &listed.maps else { return Ok(Vec::new()) };
        let state = self.state();
        let live = state.maps.get();
        let snapshots: Vec<_> = state.snapshots().collect();
        let index = snapshots.iter().position(|(entry, _)| entry.id == listed.entry.id).unwrap_or(0);
        let before = index.checked_sub(1).map(|index| snapshots[index].1);
        let after = snapshots.get(index + 1).map_or(&*live, |(_, maps)| *maps);
        let mut dead = Vec::new();
        for class in SizeClass::all() {
            let others: Vec<&Tree> = before.into_iter().chain([after]).map(|maps| &maps[class.index()]).collect();
            let mut pages = Vec::new();
            exclusive(&self.nodes, &maps[class.index()], &others, &mut |found| {
                // The nodes are the next checkpoint's to free.
                if let Exclusive::Entry { position, pointer } = found {
                    pages.push((position, pointer));
                }
                Ok(())
            })?;
            for (index, pointer) in pages {
                let Some(page) = PageId::new(class, index) else { continue };
                match pointer.is_indirect() {
                    true => self.chunks_held_only_by(page, &pointer, &others, &mut dead)?,
                    false if pointer.extent().is_empty() => {}
                    false => dead.push(pointer),
                }
            }
        }
        Ok(dead)
    }

    /// Of a chunked page, what the same page of the neighbours does not reach.
    fn chunks_held_only_by(
        &self,
        page: PageId,
        pointer: &BlockPointer,
        others: &[&Tree],
        dead: &mut Vec<BlockPointer>,
    ) -> Result<()> {
        let mut neighbours = Vec::new();
        for other in others {
            neighbours.push(chunk_tree(page, &other.get(&self.nodes, page.index())?));
        }
        let neighbours: Vec<&Tree> = neighbours.iter().collect();
        exclusive(&self.nodes, &chunk_tree(page, pointer), &neighbours, &mut |found| {
            let (Exclusive::Node(pointer) | Exclusive::Entry { pointer, .. }) = found;
            if !pointer.extent().is_empty() {
                dead.push(pointer);
            }
            Ok(())
        })
    }

    /// Makes the live state equal to a snapshot's, by copying what differs. Newer snapshots stay; the roll-back is a
    /// commit like any other, and can be undone from a snapshot made before it.
    ///
    /// # Errors
    /// `SnapshotNotFound`; those of reading pages and of [`Store::commit`].
    pub fn roll_back(&mut self, name: &str) -> Result<Committed> {
        let listed = self.listed(name)?;
        let Some(maps) = &listed.maps else {
            return Err(Error::SnapshotNotFound { name: name.to_owned() });
        };
        let live = self.state().maps.get();
        let mut changes = Changes { header: Some(listed.entry.header.clone()), ..Changes::default() };
        for class in SizeClass::all() {
            let mut differences = Vec::new();
            diff(&self.nodes, &maps[class.index()], &live[class.index()], &mut |difference| {
                differences.push(difference);
                Ok(())
            })?;
            for difference in differences {
                let Some(page) = PageId::new(class, difference.position) else { continue };
                if difference.old.is_null() && difference.new.is_null() {
                    continue;
                }
                let change = self.copy_of(page, &difference.old, &difference.new)?;
                changes.pages.insert(page, change);
            }
        }
        self.commit(&changes, Durability::Durable)
    }

    /// The change that makes a page what it was.
    fn copy_of(&self, page: PageId, was: &BlockPointer, is: &BlockPointer) -> Result<PageChange<'static>> {
        if was.is_null() {
            return Ok(PageChange::Free);
        }
        if !page.class().is_chunked() {
            return Ok(PageChange::Whole(self.content_of(page, was)?));
        }
        let (old, new) = (chunk_tree(page, was), chunk_tree(page, is));
        let mut chunks = std::collections::BTreeMap::new();
        for chunk in 0..page.class().chunks() {
            let (was_chunk, is_chunk) = (old.get(&self.nodes, chunk)?, new.get(&self.nodes, chunk)?);
            if was_chunk.birth != is_chunk.birth || was_chunk.is_null() != is_chunk.is_null() {
                chunks.insert(chunk as u32, self.content_of(page, &was_chunk)?);
            }
        }
        Ok(PageChange::Chunks(chunks))
    }

    /// What a pointer stores, of a page of at most 1 MiB or of a chunk: encoded, if that is how it is stored.
    fn content_of(&self, page: PageId, pointer: &BlockPointer) -> Result<Content<'static>> {
        let unit_bytes = page.class().page_bytes().min(SizeClass::CHUNK.page_bytes()) as u32;
        let disk = self.medium.disk().as_ref();
        if pointer.codec.codec().is_some() {
            let mut stored = vec![0; pointer.extent().blocks as usize * BLOCK_LENGTH];
            read_stored(disk, page, pointer, &mut stored)?;
            stored.truncate(pointer.stored_length as usize);
            return Ok(Content::copied(pointer, stored, unit_bytes));
        }
        let mut bytes = vec![0; unit_bytes as usize];
        if !pointer.is_null() {
            read_page(disk, page, pointer, &mut bytes)?;
        }
        Ok(bytes.into())
    }
}
