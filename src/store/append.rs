//! Appending a record to the log, and making it durable: the one place where a commit becomes fact.

use std::sync::Arc;

use super::staging::Flights;
use super::{Durability, Store};
use crate::disk::{AlignedBuffer, InFlight};
use crate::error::{Error, Result};
use crate::format::{
    Entry, RecordFlags, RecordHeader, RecordIdentity, SEGMENTS_LIMIT, Seal, SegmentReference, encode_record,
    finish_record, record_blocks,
};
use crate::id::{BLOCK_BYTES, BLOCK_LENGTH, Block, Extent, Generation};
use crate::log::{Placement, Which};
use crate::space::{Purpose, Request};

/// Segments that are kept for commits that only free pages, so that a full store can be emptied.
pub(super) const SPARES_NEEDED: usize = 2;

/// A record to be written.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) entries: Vec<Entry>,
    pub(super) blob: Vec<u8>,
    pub(super) flags: RecordFlags,
    pub(super) body_length: u64,
    pub(super) body_seal: Seal,
}

/// Where a record will go: found before anything is written, so that want of space fails nothing but this commit.
#[derive(Debug)]
pub(super) struct LogPlan {
    pub(super) placement: Placement,
    /// A segment obtained for this record to announce.
    fresh: Option<SegmentReference>,
}

/// The pages that a record tells of.
#[derive(Debug, Default)]
pub(super) struct RecordPages<'a> {
    /// Stored bytes, in whole blocks, that go directly behind the record.
    pub(super) behind: &'a [&'a [u8]],
    /// The seals of what the record's seal covers, in the order of the entries, wherever it lies.
    pub(super) sealed: &'a [Seal],
    /// What is on its way to its extents.
    pub(super) flights: Flights,
}

/// A record that is complete, and perhaps on its way.
#[derive(Debug)]
pub(super) struct Appending {
    plan: LogPlan,
    generation: Generation,
    /// The record, and what lies behind it.
    run: Arc<AlignedBuffer>,
    run_blocks: u32,
    record_blocks: u64,
    seal: Seal,
    synced_through: Generation,
    /// The pages' way to their extents.
    flights: Flights,
    /// The record's own, if it was begun.
    writes: Option<InFlight>,
}

impl Store {
    /// Finds the place of a run of so many blocks, and a segment for its record to announce if none is announced.
    pub(super) fn plan_log(&mut self, run_blocks: u64) -> Result<LogPlan> {
        let mut placement = self.log.plan(run_blocks);
        if placement.is_none() && self.log.announced().is_none() {
            return Err(self.no_space(run_blocks));
        }
        let fresh = match (placement.map(|placement| placement.segment), self.log.announced()) {
            (Some(Which::Current), Some(_)) => None,
            _ => self.obtain_segment(run_blocks)?,
        };
        // Without a segment to announce, a record must leave room for one more that can.
        if fresh.is_none() && self.log.announced().is_none() {
            placement = self.log.plan(run_blocks + 1);
        }
        match placement {
            Some(placement) if placement.segment == Which::Current || fresh.is_some() => {
                Ok(LogPlan { placement, fresh })
            }
            _ => {
                self.drop_segment(fresh);
                Err(self.no_space(run_blocks))
            }
        }
    }

    /// Fails if it is known already that pages cannot be written: then the commit is given up, and nothing else.
    pub(super) fn check_flights(&mut self, flights: &mut Flights, plan: &LogPlan) -> Result<()> {
        match flights.have_failed() {
            true => {
                self.drop_segment(plan.fresh);
                self.staging.land_all(&self.medium, std::mem::take(flights))
            }
            false => Ok(()),
        }
    }

    fn drop_segment(&mut self, segment: Option<SegmentReference>) {
        if let Some(segment) = segment {
            self.log.add_spare(segment.extent);
        }
    }

    /// A segment that is not in use, with a salt of its own; `None` if there is no space for one.
    fn obtain_segment(&mut self, run_blocks: u64) -> Result<Option<SegmentReference>> {
        // The superblock's list of segments must hold them all; a checkpoint lets some go.
        if self.log.segments().count() + self.log.spares().len() >= SEGMENTS_LIMIT {
            return Ok(None);
        }
        let wanted = self.segment_blocks_wanted().max(run_blocks as u32);
        let extent = match self.log.take_spare() {
            Some(extent) if u64::from(extent.blocks) >= run_blocks => extent,
            other => {
                if let Some(small) = other {
                    self.log.add_spare(small);
                }
                // In a fragmented file a short segment is better than none.
                let minimum = self.settings.segment_minimum_blocks().max(run_blocks as u32);
                let request = Request { blocks: wanted, minimum, multiple: 1, purpose: Purpose::Log };
                match self.obtain(&request)? {
                    Some(extent) => extent,
                    None => return Ok(None),
                }
            }
        };
        let salt = self.entropy.draw()?.max(1);
        Ok(Some(SegmentReference { extent, salt }))
    }

    /// Segments grow with the log, so that the superblock's list of them suffices.
    fn segment_blocks_wanted(&self) -> u32 {
        let share = self.checkpoint_due_blocks() / 16;
        self.settings.log_segment_blocks.max(share.min(1024) as u32)
    }

    /// Takes an extent, growing the file if there is none; `None` if it may not or cannot grow.
    pub(super) fn obtain(&mut self, request: &Request) -> Result<Option<Extent>> {
        if let Some(extent) = self.space.allocate(request)? {
            return Ok(Some(extent));
        }
        self.release()?;
        if let Some(extent) = self.space.allocate(request)? {
            return Ok(Some(extent));
        }
        if !self.grow(request.minimum.into())? {
            return Ok(None);
        }
        self.space.allocate(request)
    }

    /// Writes a record where `plan` says, and makes it and its pages durable.
    ///
    /// When this fails, the store is poisoned and the commit's fate unknown.
    pub(super) fn append(
        &mut self,
        draft: &Draft,
        plan: LogPlan,
        pages: RecordPages<'_>,
        generation: Generation,
        durability: Durability,
    ) -> Result<()> {
        let appending = self.begin_append(draft, plan, pages, generation)?;
        self.end_append(appending, durability)
    }

    /// The first half of [`Store::append`]: the record is complete, and on its way if there is something for it to wait
    /// for together with. Until the second half nothing has changed in memory.
    pub(super) fn begin_append(
        &mut self,
        draft: &Draft,
        plan: LogPlan,
        pages: RecordPages<'_>,
        generation: Generation,
    ) -> Result<Appending> {
        let blocks = record_blocks(draft.entries.len(), draft.blob.len());
        let behind_bytes: usize = pages.behind.iter().map(|unit| unit.len().next_multiple_of(BLOCK_LENGTH)).sum();
        let record_bytes = blocks as usize * BLOCK_LENGTH;
        let run_bytes = record_bytes + behind_bytes;
        let run_blocks = (run_bytes / BLOCK_LENGTH) as u32;

        let identity = RecordIdentity { store: self.id, address: plan.placement.address, salt: plan.placement.salt };
        let announced = match plan.placement.segment {
            Which::Current => self.log.announced().or(plan.fresh),
            Which::Next => plan.fresh,
        };
        let header = RecordHeader {
            seal: Seal::default(),
            blocks: blocks as u32,
            run_blocks,
            flags: draft.flags,
            entries: draft.entries.len() as u32,
            blob_length: draft.blob.len() as u32,
            incarnation: self.incarnation,
            salt: identity.salt,
            generation,
            synced_through: self.synced,
            previous_seal: self.log.position().seal,
            next_segment: announced,
            body_length: draft.body_length,
            body_seal: draft.body_seal,
        };
        let (run, seal) = self.staging.run(run_bytes, |run| {
            let (record, mut rest) = run.split_at_mut(record_bytes);
            record.fill(0);
            encode_record(record, &identity, &header, &draft.entries, &draft.blob);
            let seal = finish_record(record, identity.salt, pages.sealed.iter().copied());
            for unit in pages.behind {
                let (target, after) = rest.split_at_mut(unit.len().next_multiple_of(BLOCK_LENGTH));
                let (stored, padding) = target.split_at_mut(unit.len());
                stored.copy_from_slice(unit);
                padding.fill(0);
                rest = after;
            }
            seal
        });
        // A record that a sync has to follow can be on its way while its pages are.
        let sabotaged = self.sabotaged_acknowledge_before_sync() || self.sabotaged_durable_write_for_sync();
        let begins = !pages.flights.is_empty() && self.unsynced_bytes > 0 && !sabotaged;
        let writes = match begins {
            true => {
                let writes = self.medium.begin_vital(plan.placement.address, &run, run_bytes);
                Some(writes.map_err(|source| unknown(generation, source))?)
            }
            false => None,
        };
        let (record_blocks, synced_through, flights) = (blocks, header.synced_through, pages.flights);
        Ok(Appending { plan, generation, run, run_blocks, record_blocks, seal, synced_through, flights, writes })
    }

    /// The second half of [`Store::append`].
    pub(super) fn end_append(&mut self, appending: Appending, durability: Durability) -> Result<()> {
        let Appending { plan, generation, run, run_blocks, record_blocks, seal, synced_through, flights, writes } =
            appending;
        let start = plan.placement.address;
        let bytes = &run[..run_blocks as usize * BLOCK_LENGTH];
        match writes {
            Some(writes) => {
                let landed = self.medium.land_vital(start, writes);
                let synced = landed.and_then(|()| self.sync_record(bytes.len(), flights, durability));
                synced.map_err(|source| in_doubt(generation, source))?;
            }
            None => self.make_durable(start, bytes, flights, durability, generation)?,
        }

        if let Some(fresh) = plan.fresh {
            self.log.announce(fresh);
        }
        self.log.appended(plan.placement, run_blocks, generation, seal);
        self.log_blocks += u64::from(run_blocks);
        self.recorded = synced_through;
        self.counters.record_bytes += record_blocks * BLOCK_BYTES;
        if durability == Durability::Durable {
            self.note_synced(generation);
        }
        Ok(())
    }

    /// S2: nothing is acknowledged before this has returned. The record may be on the disk before its pages: then a
    /// power cut leaves a torn commit.
    fn make_durable(
        &mut self,
        start: Block,
        run: &[u8],
        flights: Flights,
        durability: Durability,
        generation: Generation,
    ) -> Result<()> {
        let unknown = |source| unknown(generation, source);
        let durable = durability == Durability::Durable && !self.sabotaged_skip_sync();
        if durable && self.sabotaged_acknowledge_before_sync() {
            self.counters.syncs += 1;
            self.land_vital(flights).map_err(unknown)?;
            self.medium.sync().map_err(unknown)?;
            return self.medium.write_vital(start, run).map_err(unknown);
        }
        // A durable write covers its own bytes only: it will do if nothing else is unsynced (disk promise D3).
        if durable && (self.unsynced_bytes == 0 || self.sabotaged_durable_write_for_sync()) {
            self.counters.syncs += 1;
            self.land_vital(flights).map_err(unknown)?;
            return self.medium.write_vital_durably(start, run).map_err(unknown);
        }
        self.medium.write_vital(start, run).map_err(unknown)?;
        self.sync_record(run.len(), flights, durability).map_err(|source| in_doubt(generation, source))
    }

    /// S2, for a record of so many bytes that is written.
    fn sync_record(&mut self, bytes: usize, flights: Flights, durability: Durability) -> Result<()> {
        self.land_vital(flights)?;
        if durability == Durability::Deferred || self.sabotaged_skip_sync() {
            self.unsynced_bytes += bytes as u64;
            return Ok(());
        }
        self.counters.syncs += 1;
        self.medium.sync()?;
        self.unsynced_bytes = 0;
        Ok(())
    }

    /// Waits for the pages of a record that is written. A failure poisons.
    fn land_vital(&mut self, flights: Flights) -> Result<()> {
        let landed = self.staging.land_all(&self.medium, flights);
        landed.inspect_err(|error| self.medium.poison_with(error))
    }

    /// Everything through `generation` is durable.
    pub(super) fn note_synced(&mut self, generation: Generation) {
        self.synced = generation;
        self.published.set_synced(generation);
        self.anchored = self.anchored.max(self.recorded);
        self.synced_state = None;
        // Readers see what is acknowledged. If they cannot be told, the next release fails with the reason.
        let _ = self.readers.publish(self.published_state());
    }

    pub(super) fn no_space(&self, needed_blocks: u64) -> Error {
        Error::NoSpace { path: self.medium.path().into(), needed_blocks, free_blocks: self.space.blocks_free() }
    }
}

/// The error of a commit whose record could not be written. If writing was refused, it is not there.
fn unknown(generation: Generation, source: Error) -> Error {
    match source {
        Error::Poisoned { .. } => source,
        source => in_doubt(generation, source),
    }
}

/// The error of a commit whose record may be there: also if a sync is refused because of what failed beside it.
fn in_doubt(generation: Generation, source: Error) -> Error {
    Error::CommitUnknown { generation, source: Box::new(source) }
}
