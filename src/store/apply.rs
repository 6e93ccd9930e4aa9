//! Applying a record to the committed state: after its commit, and again in recovery. One code for both, so that the
//! committed layer is a function of a checkpoint and the records after it.

use std::sync::Arc;

use super::reuse::Replayed;
use super::settings::GROWTH_BLOCKS_LIMIT;
use super::state::{Listed, Maps, State};
use super::{Medium, Note, Store};
use crate::error::{Corruption, Error, Fault, Result, Structure};
use crate::format::{
    BlockPointer, CatalogueEntry, DeferredEntry, DeferredKind, Entry, EntryKind, PointerFlags, TreeRoot,
};
use crate::id::{BLOCK_BYTES, CheckpointNumber, Extent, Generation, Incarnation, PageId, SizeClass};
use crate::log::Hold;

/// Whether a record is applied for the first time, or replayed.
pub(super) enum Mode<'a> {
    /// Its extents were taken before it was written.
    Commit,
    /// Its extents are taken now; the deaths go here until replay ends.
    Replay(&'a mut Replayed),
}

/// A record as far as applying it needs.
pub(super) struct Applied<'a> {
    pub(super) generation: Generation,
    pub(super) incarnation: Incarnation,
    pub(super) entries: &'a [Entry],
    pub(super) blob: &'a [u8],
}

/// What a record does to the maps.
pub(super) type Sets = Vec<(PageId, BlockPointer)>;

impl Store {
    /// Makes the record's state the published one. Cannot fail after a commit; in replay a record that contradicts
    /// the state before it is corruption.
    pub(super) fn apply(&mut self, record: &Applied<'_>, mode: Mode<'_>) -> Result<()> {
        let sets = self.account(record, mode)?;
        self.show(record, sets)
    }

    /// The first half of applying: births and deaths. What the second half wants is returned.
    pub(super) fn account(&mut self, record: &Applied<'_>, mut mode: Mode<'_>) -> Result<Sets> {
        let mut sets = Vec::with_capacity(record.entries.len());
        let snapshots = self.snapshots_after(record);
        for entry in record.entries {
            match *entry {
                Entry::Set { page, new, old } => {
                    self.born(new.extent(), record.generation, &mut mode)?;
                    self.died(&old, record.generation, &snapshots, &mut mode)?;
                    sets.push((page, new));
                }
                // A moved extent is never one that a snapshot reaches (R8).
                Entry::Move { page, new, old } => {
                    self.born(new.extent(), record.generation, &mut mode)?;
                    self.died(&old, record.generation, &[], &mut mode)?;
                    sets.push((page, new));
                }
                Entry::Stored { new, .. } => self.born(new.extent(), record.generation, &mut mode)?,
                Entry::Body { new } => {
                    self.born(new.extent(), record.generation, &mut mode)?;
                    self.bodies.push((new.extent(), record.generation));
                }
                Entry::Dead { old } => self.died(&old, record.generation, &snapshots, &mut mode)?,
                Entry::Header { .. } | Entry::CatalogueAdd { .. } | Entry::CatalogueRemove { .. } => {}
            }
        }
        Ok(sets)
    }

    /// The second half: the state is shown.
    pub(super) fn show(&mut self, record: &Applied<'_>, sets: Sets) -> Result<()> {
        let created = self.publish(record, &sets)?;
        self.dirty_nodes += created as u64;
        self.notes.push_back(Note { generation: record.generation, position: self.log.position(), sets });
        Ok(())
    }

    /// The generations of the snapshots that may own what dies with this record. A record that removes a snapshot
    /// names what nobody else holds: there is nothing to ask.
    fn snapshots_after(&self, record: &Applied<'_>) -> Vec<Generation> {
        let removes = |entry: &Entry| matches!(entry, Entry::CatalogueRemove { .. });
        if record.entries.iter().any(removes) {
            return Vec::new();
        }
        self.published.state().snapshots().map(|(entry, _)| entry.generation).collect()
    }

    /// An extent holds committed bytes from now on.
    fn born(&mut self, extent: Extent, generation: Generation, mode: &mut Mode<'_>) -> Result<()> {
        if extent.is_empty() {
            return Ok(());
        }
        if let Mode::Replay(replayed) = mode {
            self.take_again(extent, replayed)?;
        }
        if let Some(segment) = self.log.segment_of(extent.start) {
            segment.set_pages(extent, Hold::Page);
        }
        self.journal.taken(extent, generation);
        Ok(())
    }

    /// What lay at `old` is reached by no state from `generation` on.
    fn died(
        &mut self,
        old: &BlockPointer,
        generation: Generation,
        snapshots: &[Generation],
        mode: &mut Mode<'_>,
    ) -> Result<()> {
        // R1. What a snapshot reaches belongs to its tree: the newest one is the last that can reach it.
        let held = snapshots.last().is_some_and(|snapshot| *snapshot >= old.birth);
        if old.extent().is_empty() || held {
            return Ok(());
        }
        // Bytes that were moved are younger here than their birth says; how young is not known, but not dead yet.
        let written = match old.flags.contains(PointerFlags::RELOCATED) {
            true => Generation(generation.0.saturating_sub(1)),
            false => old.birth.min(generation),
        };
        let kind = DeferredKind::Data { birth: old.birth.min(generation), written, death: generation };
        let entry = DeferredEntry { extent: old.extent(), kind };
        match mode {
            Mode::Commit => self.deferred.push(entry),
            Mode::Replay(replayed) => {
                replayed.add(entry).map_err(|extent| self.record_contradicts(extent))?;
            }
        }
        Ok(())
    }

    /// Replay: the extent is free, or was dead and released (R6); anything else is a contradiction.
    pub(super) fn take_again(&mut self, extent: Extent, replayed: &mut Replayed) -> Result<()> {
        self.cover(extent)?;
        self.unlist_conflicting(extent)?;
        let cancelled = match self.sabotaged_keep_cancelled() {
            false => replayed.cancel(extent),
            true => replayed.overlapping(extent),
        };
        if self.log.segment_of(extent.start).is_some() {
            return Ok(());
        }
        // What was cancelled is in use already, as far as the bitmap is concerned.
        let mut from = extent.start.0;
        let mut cancelled: Vec<Extent> = cancelled;
        cancelled.sort();
        for part in cancelled.into_iter().chain([Extent::new(extent.end().0, 0)]) {
            let gap = Extent::new(from, (part.start.0 - from) as u32);
            if !gap.is_empty() {
                self.space.take(gap).map_err(|error| self.contradiction(error))?;
            }
            from = part.end().0;
        }
        Ok(())
    }

    /// The file is at least as long as its extents say: it may have lost growth that nothing but a segment, announced
    /// and not begun, lay in. Memory is set aside for it, so it is not believed beyond what one growth can be.
    pub(super) fn cover(&mut self, extent: Extent) -> Result<()> {
        if extent.end().0 > self.space.blocks_total() {
            let file_bytes = self.medium.length_bytes()?;
            if extent.end().0 > file_bytes / BLOCK_BYTES + GROWTH_BLOCKS_LIMIT {
                let path = self.medium.path().into();
                let (offset, fault) = (extent.start.offset_bytes(), Fault::Truncated { file_bytes });
                return Err(Corruption { path, structure: Structure::File, page: None, offset, fault }.into());
            }
            self.space.grow(extent.end().0)?;
        }
        Ok(())
    }

    /// Lets a listed segment go that the superblock knew as log, and a later record knows as something else.
    pub(super) fn unlist_conflicting(&mut self, extent: Extent) -> Result<()> {
        for old in self.log.take_idle_overlapping(extent, self.folded.generation) {
            for run in old.blocks_without_pages() {
                self.space.release(run)?;
            }
        }
        Ok(())
    }

    pub(super) fn contradiction(&self, error: Error) -> Error {
        match error {
            Error::Overlap { extent, .. } => self.record_contradicts(extent),
            error => error,
        }
    }

    pub(super) fn record_contradicts(&self, extent: Extent) -> Error {
        contradicts(&self.medium, extent)
    }

    /// Publishes the new state: maps, header, catalogue.
    fn publish(&mut self, record: &Applied<'_>, sets: &[(PageId, BlockPointer)]) -> Result<usize> {
        let listing = Listing::of(record, self.next_catalogue_id).map_err(|fault| self.bad_record(fault))?;
        self.next_catalogue_id = listing.next_id;
        Ok(self.published.change(|state| state.advance(record, sets, listing)))
    }

    pub(super) fn bad_record(&self, fault: Fault) -> Error {
        let path = self.medium.path().into();
        let offset = self.log.position().segment.offset_bytes();
        Corruption { path, structure: Structure::Record, page: None, offset, fault }.into()
    }
}

/// A record claims blocks that are something else already.
pub(super) fn contradicts(medium: &Medium, extent: Extent) -> Error {
    let path = medium.path().into();
    let offset = extent.start.offset_bytes();
    Corruption { path, structure: Structure::Record, page: None, offset, fault: Fault::Overlap }.into()
}

/// What a record does to header and catalogue.
pub(super) struct Listing<'a> {
    header: Option<&'a [u8]>,
    added: Vec<CatalogueEntry>,
    removed: Vec<u64>,
    /// The id that the next entry of the catalogue may have, at least.
    pub(super) next_id: u64,
}

impl<'a> Listing<'a> {
    pub(super) fn of(record: &Applied<'a>, mut next_id: u64) -> std::result::Result<Self, Fault> {
        let (mut header, mut added, mut removed) = (None, Vec::new(), Vec::new());
        for entry in record.entries {
            match *entry {
                Entry::Header { offset, length } => header = Some(blob_range(record.blob, offset, length)),
                Entry::CatalogueAdd { offset, length } => {
                    let entry = decode_added(blob_range(record.blob, offset, length))?;
                    // The catalogue is in the order of ids.
                    if entry.id < next_id {
                        return Err(Fault::Field { field: "catalogue id", expected: next_id, found: entry.id });
                    }
                    next_id = entry.id.saturating_add(1);
                    added.push(entry);
                }
                Entry::CatalogueRemove { id } => removed.push(id),
                _ => {}
            }
        }
        Ok(Self { header, added, removed, next_id })
    }
}

impl State {
    /// Becomes the state that the record makes; `sets` are its pages. Returns how many nodes of the maps came to differ
    /// from the disk by this.
    pub(super) fn advance(
        &mut self,
        record: &Applied<'_>,
        sets: &[(PageId, BlockPointer)],
        listing: Listing<'_>,
    ) -> usize {
        let created = set_all(self.maps.get_mut(), sets);
        self.generation = record.generation;
        self.incarnation = record.incarnation;
        if let Some(header) = listing.header {
            self.header = header.into();
        }
        if !listing.added.is_empty() || !listing.removed.is_empty() {
            let mut catalogue: Vec<_> = self.catalogue.to_vec();
            catalogue.retain(|listed| !listing.removed.contains(&listed.entry.id));
            for mut entry in listing.added {
                entry.generation = record.generation;
                entry.incarnation = record.incarnation;
                let maps = (entry.kind == EntryKind::Snapshot).then(|| Box::new((*self.maps.get()).clone()));
                entry.header = if maps.is_some() { self.header.to_vec() } else { Vec::new() };
                catalogue.push(Arc::new(Listed { entry, maps }));
            }
            self.catalogue = Arc::new(catalogue);
        }
        created
    }
}

/// Sets pages in the maps, those of a class in one go as far as they rise. Returns how many nodes came to differ from
/// the disk.
pub(super) fn set_all(maps: &mut Maps, sets: &[(PageId, BlockPointer)]) -> usize {
    let mut created = 0;
    let mut positions = Vec::new();
    for rising in sets.chunk_by(|(a, _), (b, _)| a.class() == b.class() && a < b) {
        positions.clear();
        positions.extend(rising.iter().map(|(page, pointer)| (page.index(), *pointer)));
        created += maps[rising[0].0.class().index()].set_many(&positions);
    }
    created
}

/// A range that decoding has checked to lie in the blob.
fn blob_range(blob: &[u8], offset: u32, length: u32) -> &[u8] {
    blob.get(offset as usize..offset as usize + length as usize).unwrap_or_default()
}

/// What a record holds of a new catalogue entry: kind, id, time, name, note.
pub(super) fn encode_added(entry: &CatalogueEntry) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&entry.kind.id().to_le_bytes());
    bytes.extend_from_slice(&(entry.name.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&entry.id.to_le_bytes());
    bytes.extend_from_slice(&entry.created_seconds.to_le_bytes());
    bytes.extend_from_slice(entry.name.as_bytes());
    bytes.extend_from_slice(entry.note.as_bytes());
    bytes
}

fn decode_added(bytes: &[u8]) -> std::result::Result<CatalogueEntry, Fault> {
    const SHORT: Fault = Fault::Other("a catalogue entry in a record is cut short");
    let number = |at: usize| -> std::result::Result<u64, Fault> {
        let field = bytes.get(at..at + 8).and_then(|field| field.try_into().ok()).ok_or(SHORT)?;
        Ok(u64::from_le_bytes(field))
    };
    let kind_and_length = number(0)?;
    let kind = EntryKind::from_id(kind_and_length as u32).ok_or(Fault::Field {
        field: "catalogue kind",
        expected: 2,
        found: u64::from(kind_and_length as u32),
    })?;
    let text = |bytes: Option<&[u8]>| {
        String::from_utf8(bytes.ok_or(SHORT)?.to_vec()).map_err(|_| Fault::Other("a name or note is not UTF-8"))
    };
    let name_end = 24usize.saturating_add((kind_and_length >> 32) as usize);
    let name = text(bytes.get(24..name_end))?;
    crate::format::check_name(&name).map_err(Fault::Other)?;
    Ok(CatalogueEntry {
        kind,
        id: number(8)?,
        generation: Generation(0),
        incarnation: Incarnation(0),
        created_seconds: number(16)?,
        name,
        note: text(bytes.get(name_end..))?,
        header: Vec::new(),
        maps: [TreeRoot::default(); SizeClass::COUNT],
    })
}

/// Bodies of records live like nodes that no state reaches: until both superblock slots have folded the record (R4). A
/// reader that held them would hold every body since its state; it needs none that a newer superblock has folded.
pub(super) fn body_entry(extent: Extent, checkpoint: CheckpointNumber) -> DeferredEntry {
    let kind = DeferredKind::Node { first: checkpoint, replaced: checkpoint };
    DeferredEntry { extent, kind }
}
