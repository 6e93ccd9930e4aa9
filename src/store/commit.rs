//! Commit: from changes to a record. See the state diagram of the module above.

use std::collections::HashMap;

use super::append::{Draft, RecordPages};
use super::apply::{Applied, Mode, Sets, encode_added};
use super::prepare::{NewPage, Prepared, Unit};
use super::publish::{ChunkUpdate, Publication};
use super::staging::Flights;
use super::{Changes, Committed, Durability, Reserved, Store};
use crate::disk::AlignedBuffer;
use crate::error::{Error, Result};
use crate::format::{
    BlockPointer, CodecId, Entry, PointerFlags, RecordFlags, STORED_LIMIT, Seal, SealHasher, checksum, encode_entries,
    record_blocks,
};
use crate::id::{BLOCK_LENGTH, Block, Extent, Generation};
use crate::space::{Purpose, Request};

impl Store {
    /// Commits `changes` atomically.
    ///
    /// **Durability**: with [`Durability::Durable`], once this returned no power cut can undo it, nor any commit
    /// before it.
    ///
    /// # Errors
    /// `CommitUnknown` if the commit's fate is known only after reopening; after any other error nothing was
    /// committed: `NoSpace` (frees and later commits go on), `Poisoned`, `Io` and `Corrupt` while reading the maps; what
    /// giving blocks free came upon in the commit before (this one can be tried again); `PageNotFound` for freeing a page
    /// that is not allocated, `OutOfPage` for bytes that are not as long as the page (or chunk), `NotReserved` for spilled
    /// bytes whose space was given back or taken before, `HeaderTooLarge`.
    pub fn commit(&mut self, changes: &Changes<'_>, durability: Durability) -> Result<Committed> {
        self.medium.check()?;
        if let Some(error) = self.late_error.take() {
            return Err(error);
        }
        let generation = self.state().generation.next().ok_or(Error::Exhausted { counter: "generation" })?;
        if self.unsynced_bytes >= self.settings.unsynced_limit_bytes {
            self.sync()?;
        }
        let features = self.permit_codecs(changes)?;
        let prepared = self.prepare(changes, features)?;
        let mut taken = Vec::new();
        let result = self.commit_prepared(changes, prepared, generation, durability, &mut taken);
        if let Err(error) = &result
            && !matches!(error, Error::CommitUnknown { .. })
        {
            for extent in taken {
                self.space.release(extent)?;
            }
        }
        result
    }

    fn commit_prepared(
        &mut self,
        changes: &Changes<'_>,
        mut prepared: Prepared<'_>,
        generation: Generation,
        durability: Durability,
        taken: &mut Vec<Extent>,
    ) -> Result<Committed> {
        let mut draft = self.draft(changes);
        let unit_blocks: u64 = prepared.units.iter().map(Unit::blocks).sum();
        let blocks = record_blocks(draft.entries.len() + prepared.pages.len(), draft.blob.len());
        let chunked = prepared.pages.iter().any(|page| page.page.class().is_chunked());
        let run_blocks = blocks + unit_blocks;
        let in_log = unit_blocks > 0
            && unit_blocks <= self.settings.in_log_blocks.into()
            && prepared.spilled.is_empty()
            && !chunked
            && blocks <= self.record_limit_blocks()
            && self.log.plan(run_blocks).is_some()
            && run_blocks <= self.log.room_for_two();
        if in_log {
            self.release()?;
            self.look_up(&mut prepared)?;
            self.admit(changes, &prepared)?;
            let plan = self.plan_log(run_blocks)?;
            let mut next = plan.placement.address.0 + blocks;
            for unit in &mut prepared.units {
                unit.address = Block(next);
                next += unit.blocks();
            }
            let salt = plan.placement.salt;
            prepared.units.iter_mut().for_each(|unit| unit.sum_up(Some(salt)));
            for page in &prepared.pages {
                draft.entries.push(prepared.entry(page, generation));
            }
            let behind: Vec<&[u8]> = prepared.units.iter().map(Unit::to_write).collect();
            let sealed: Vec<Seal> = prepared.units.iter().map(|unit| unit.seal(salt)).collect();
            let pages = RecordPages { behind: &behind, sealed: &sealed, flights: Flights::default() };
            self.append(&draft, plan, pages, generation, durability)?;
            self.counters.commits_in_log += 1;
            self.counters.page_bytes += unit_blocks * BLOCK_LENGTH as u64;
            let sets = self.account_for(&draft.entries, &draft.blob, generation)?;
            return self.committed(&draft.entries, &draft.blob, generation, sets, &[]);
        }

        self.place_units(&mut prepared.units, taken)?;
        self.admit(changes, &prepared)?;
        let mut flights = Flights::default();
        let to_come = prepared.units.iter().map(|unit| unit.to_write().len() as u64).sum();
        let salt = self.salt_to_come().filter(|_| !self.come_first(to_come, &prepared.spilled));
        self.send_units(&mut prepared.units, salt, &mut flights)?;
        // From here on the device is at work beside us.
        self.look_up(&mut prepared)?;
        for page in &prepared.pages {
            if !matches!(page.new, NewPage::Chunks { .. }) {
                draft.entries.push(prepared.entry(page, generation));
            }
        }
        let mut node_units = Vec::new();
        let mut chunk_updates = Vec::new();
        for page in &prepared.pages {
            if let NewPage::Chunks { chunks, others } = &page.new {
                let built = self.build_chunks(page, chunks, *others, &prepared.units, generation, taken)?;
                draft.entries.extend(built.entries);
                node_units.extend(built.nodes);
                chunk_updates.extend(built.chunks);
            }
            if page.old.is_indirect() && matches!(page.new, NewPage::Free | NewPage::Zero) {
                draft.entries.extend(self.dead_chunks(page.page, &page.old)?);
            }
        }
        self.send_units(&mut node_units, salt, &mut flights)?;
        let written = Sent { units: &prepared.units, nodes: &node_units, chunks: &chunk_updates, flights };
        let committed = self.commit_sent(draft, written, &prepared.spilled, generation, durability, taken)?;
        prepared.spilled.iter().try_for_each(|reserved| self.reservations.end(reserved))?;
        Ok(committed)
    }

    /// The pages are on their way to their extents: what is left is the record, whose body may be too large for the log.
    fn commit_sent(
        &mut self,
        mut draft: Draft,
        mut sent: Sent<'_>,
        spilled: &[Reserved],
        generation: Generation,
        durability: Durability,
        taken: &mut Vec<Extent>,
    ) -> Result<Committed> {
        let stored_bytes: u64 = sent.all().map(|unit| unit.to_write().len() as u64).sum();
        let external = record_blocks(draft.entries.len(), draft.blob.len()) > self.record_limit_blocks();
        let body = match external {
            true => self.write_body(&draft.entries, taken)?,
            false => Vec::new(),
        };
        if external || self.come_first(stored_bytes, spilled) {
            // The record will say that its pages need no verification: they must be durable before it is written.
            self.staging.land_all(&self.medium, std::mem::take(&mut sent.flights))?;
            if !self.sabotaged_skip_sync() && !self.sabotaged_spill_unsynced() {
                self.counters.syncs += 1;
                self.medium.sync()?;
                self.unsynced_bytes = 0;
                let newest = self.state().generation;
                self.note_synced(newest);
            }
            draft.flags = draft.flags.with(RecordFlags::DATA_SYNCED);
        }
        let mut entries = Vec::new();
        if external {
            entries = std::mem::replace(&mut draft.entries, body);
            draft.flags = draft.flags.with(RecordFlags::EXTERNAL_BODY);
            draft.body_length = (entries.len() * crate::format::ENTRY_BYTES) as u64;
            draft.body_seal = self.seal_of_body(&entries);
        }
        let plan = self.plan_log(record_blocks(draft.entries.len(), draft.blob.len()))?;
        self.check_flights(&mut sent.flights, &plan)?;
        let sealed = match draft.flags.contains(RecordFlags::DATA_SYNCED) {
            true => Vec::new(),
            false => sent.seals_in_the_order_of(&draft.entries, plan.placement.salt),
        };
        // Should the record fail, the store is poisoned, and what was accounted for is asked for no more.
        let all = match external {
            true => [&draft.entries[..], &entries].concat(),
            false => Vec::new(),
        };
        let sets = self.account_for(if external { &all } else { &draft.entries }, &draft.blob, generation)?;
        let pages = RecordPages { behind: &[], sealed: &sealed, flights: std::mem::take(&mut sent.flights) };
        let appending = self.begin_append(&draft, plan, pages, generation)?;
        let entries = if external { &all } else { &draft.entries };
        self.work_beside_device(&Publication::new(generation, entries, sent.chunks));
        self.end_append(appending, durability)?;
        self.counters.page_bytes += stored_bytes;
        self.committed(entries, &draft.blob, generation, sets, sent.chunks)
    }

    /// Blocks of the largest record that goes into the log whole now. A segment that was announced, or kept, under other
    /// settings can be shorter than the shortest of these, and only a record written there, or to it, gets beyond it.
    pub(super) fn record_limit_blocks(&self) -> u64 {
        self.settings.record_limit_blocks().min(self.log.room_for_two()).max(1)
    }

    /// What this commit does not wait for, while its record is on its way.
    fn work_beside_device(&mut self, publication: &Publication<'_>) {
        if let Some(hook) = &self.publish_hook {
            hook.prepare(publication);
        }
        // It is too late for this commit to fail: the next one does.
        self.late_error = self.release().err();
    }

    /// Births and deaths of a record that is about to be written, or was.
    pub(super) fn account_for(&mut self, entries: &[Entry], blob: &[u8], generation: Generation) -> Result<Sets> {
        let incarnation = self.incarnation;
        self.account(&Applied { generation, incarnation, entries, blob }, Mode::Commit)
    }

    /// The record is a fact: what it says becomes the state.
    pub(super) fn committed(
        &mut self,
        entries: &[Entry],
        blob: &[u8],
        generation: Generation,
        sets: Sets,
        chunks: &[ChunkUpdate],
    ) -> Result<Committed> {
        let incarnation = self.incarnation;
        if self.synced < generation && self.synced_state.is_none() {
            self.synced_state = Some(self.state());
        }
        if self.sabotaged_late_homes() {
            self.stale_state = Some(self.state());
        }
        if let Some(hook) = &self.publish_hook {
            hook.publish(&Publication::new(generation, entries, chunks));
        }
        self.show(&Applied { generation, incarnation, entries, blob }, sets)?;
        self.counters.commits += 1;
        Ok(Committed { generation, incarnation })
    }

    /// Entries and payloads that do not concern pages.
    fn draft(&self, changes: &Changes<'_>) -> Draft {
        let mut draft = Draft::default();
        let mut put = |bytes: &[u8]| {
            let offset = draft.blob.len() as u32;
            draft.blob.extend_from_slice(bytes);
            (offset, bytes.len() as u32)
        };
        if let Some(header) = &changes.header {
            let (offset, length) = put(header);
            draft.entries.push(Entry::Header { offset, length });
        }
        for (added, number) in changes.added.iter().zip(0..) {
            let mut entry = added.clone();
            entry.id = self.next_catalogue_id + number;
            let (offset, length) = put(&encode_added(&entry));
            draft.entries.push(Entry::CatalogueAdd { offset, length });
        }
        draft.entries.extend(changes.removed.iter().map(|id| Entry::CatalogueRemove { id: *id }));
        draft.entries.extend(changes.dead.iter().map(|old| Entry::Dead { old: *old }));
        draft
    }

    /// Finds extents for the units, as few as can be.
    fn place_units(&mut self, units: &mut [Unit<'_>], taken: &mut Vec<Extent>) -> Result<()> {
        let is_to_be_placed = |unit: &&mut Unit<'_>| !unit.to_write().is_empty();
        let mut left: u64 = units.iter_mut().filter(is_to_be_placed).map(|unit| unit.blocks()).sum();
        let mut free = Extent::default();
        for unit in units.iter_mut().filter(is_to_be_placed) {
            let blocks = unit.blocks() as u32;
            if free.blocks < blocks {
                self.return_rest(free, taken)?;
                let wanted = left.min(crate::space::LEAF_BLOCKS.into()) as u32;
                let request = Request { blocks: wanted, minimum: blocks, multiple: 1, purpose: Purpose::Data };
                free = self.obtain(&request)?.ok_or_else(|| self.no_space(left))?;
                taken.push(free);
            }
            let (own, rest) = free.split_at(blocks);
            unit.address = own.start;
            free = rest;
            left -= u64::from(blocks);
        }
        self.return_rest(free, taken)
    }

    /// Gives the unused end of the extent taken last back.
    pub(super) fn return_rest(&mut self, rest: Extent, taken: &mut [Extent]) -> Result<()> {
        if rest.is_empty() {
            return Ok(());
        }
        if let Some(last) = taken.last_mut() {
            last.blocks -= rest.blocks;
        }
        self.space.release(rest)
    }

    /// The salt that a record will have if it goes where a short one would go now.
    pub(super) fn salt_to_come(&self) -> Option<u64> {
        self.log.plan(1).map(|placement| placement.salt)
    }

    /// Whether so many bytes of pages, and those that were spilled, have to be durable before their record is written:
    /// its seal does not cover them then (for what was spilled, E2).
    fn come_first(&self, stored_bytes: u64, spilled: &[Reserved]) -> bool {
        !spilled.is_empty() || stored_bytes > self.settings.unsynced_limit_bytes
    }

    /// Sends units on their way to their extents, neighbours together, and sums them up, for a record with this salt if its
    /// seal is to cover them.
    pub(super) fn send_units(
        &mut self,
        units: &mut [Unit<'_>],
        salt: Option<u64>,
        flights: &mut Flights,
    ) -> Result<()> {
        self.unsynced_bytes += units.iter().map(|unit| unit.to_write().len() as u64).sum::<u64>();
        self.counters.page_writes += self.staging.send(&self.medium, units, salt, flights)?;
        Ok(())
    }

    /// Writes the entries into extents of their own; returns the entries that name those.
    fn write_body(&mut self, entries: &[Entry], taken: &mut Vec<Extent>) -> Result<Vec<Entry>> {
        const PER_EXTENT: usize = STORED_LIMIT as usize / crate::format::ENTRY_BYTES;
        let mut body = Vec::new();
        for part in entries.chunks(PER_EXTENT) {
            let bytes = body_bytes(part);
            let blocks = bytes.len().div_ceil(BLOCK_LENGTH) as u32;
            let request = Request { blocks, minimum: blocks, multiple: 1, purpose: Purpose::Data };
            let extent = self.obtain(&request)?.ok_or_else(|| self.no_space(blocks.into()))?;
            taken.push(extent);
            let mut padded = AlignedBuffer::zeroed(blocks as usize * BLOCK_LENGTH);
            padded[..bytes.len()].copy_from_slice(&bytes);
            self.medium.write(extent.start, &padded)?;
            self.unsynced_bytes += padded.len() as u64;
            let new = BlockPointer {
                address: extent.start,
                codec: CodecId::RAW,
                flags: PointerFlags::default(),
                stored_length: bytes.len() as u32,
                checksum: checksum(&bytes),
                birth: self.state().generation,
            };
            body.push(Entry::Body { new });
        }
        Ok(body)
    }

    fn seal_of_body(&self, entries: &[Entry]) -> crate::format::Seal {
        let mut hasher = SealHasher::new(0);
        entries.chunks(16 << 10).for_each(|part| hasher.update(&body_bytes(part)));
        hasher.finish()
    }

    /// Makes every commit so far durable.
    ///
    /// # Errors
    /// `Io` or `Poisoned`; then what is durable is known only after reopening.
    pub fn sync(&mut self) -> Result<()> {
        let newest = self.state().generation;
        if self.synced == newest {
            return self.medium.check();
        }
        if !self.sabotaged_skip_sync() {
            self.counters.syncs += 1;
            self.medium.sync()?;
        }
        self.unsynced_bytes = 0;
        self.note_synced(newest);
        Ok(())
    }
}

fn body_bytes(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = vec![0; entries.len() * crate::format::ENTRY_BYTES];
    encode_entries(&mut bytes, entries);
    bytes
}

/// The pointers of a record's stored pages, in the order in which its seal covers them.
pub(super) fn stored_pointers(entries: &[Entry]) -> impl Iterator<Item = &BlockPointer> {
    entries.iter().filter_map(|entry| match entry {
        Entry::Set { new, .. } | Entry::Move { new, .. } | Entry::Stored { new, .. } => {
            (new.stored_length > 0).then_some(new)
        }
        _ => None,
    })
}

/// Units of a commit that lie in their extents, or are on their way there.
struct Sent<'a> {
    units: &'a [Unit<'a>],
    nodes: &'a [Unit<'a>],
    chunks: &'a [ChunkUpdate],
    flights: Flights,
}

impl<'a> Sent<'a> {
    fn all(&self) -> impl Iterator<Item = &'a Unit<'a>> + use<'a> {
        self.units.iter().chain(self.nodes)
    }

    /// The seals of the units in the order in which the entries tell of them.
    fn seals_in_the_order_of(&self, entries: &[Entry], salt: u64) -> Vec<Seal> {
        // Whole pages come as their units do; chunks and nodes do not.
        if self.nodes.is_empty() {
            return self.units.iter().map(|unit| unit.seal(salt)).collect();
        }
        let by_address: HashMap<Block, Seal> = self.all().map(|unit| (unit.address, unit.seal(salt))).collect();
        stored_pointers(entries).filter_map(|pointer| by_address.get(&pointer.address).copied()).collect()
    }
}
