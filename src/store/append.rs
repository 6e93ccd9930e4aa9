//! Appending a record to the log, and making it durable: the one place where a commit becomes fact.

use super::{Durability, Store};
use crate::disk::AlignedBuffer;
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
        if !self.grow(request.minimum.into())? {
            return Ok(None);
        }
        self.space.allocate(request)
    }

    /// Grows the file by at least `blocks` blocks, or else gives back what log can be spared; whether it did either.
    pub(super) fn grow(&mut self, blocks: u64) -> Result<bool> {
        let total = self.space.blocks_total();
        // An extent lies in one leaf, so growth across the end of a leaf must leave room behind it.
        let leaf = u64::from(crate::space::LEAF_BLOCKS);
        let needed = match (total % leaf) + blocks > leaf {
            true => leaf - total % leaf + blocks,
            false => blocks,
        };
        let generous = needed.max(self.settings.growth_blocks).max((total / 8).min(64 << 20 >> 12));
        for step in [generous, needed] {
            if total + step > self.settings.blocks_limit {
                continue;
            }
            match self.medium.grow(Block(total), step, self.settings.new_space) {
                Ok(()) => {
                    self.space.grow(total + step);
                    return Ok(true);
                }
                Err(error) if error.is_no_space() => {}
                Err(error) => return Err(error),
            }
        }
        self.shed_spares()
    }

    /// Gives back the log segments that are kept for convenience only; whether there were any.
    fn shed_spares(&mut self) -> Result<bool> {
        let shed = self.log.shed_spares(SPARES_NEEDED);
        shed.iter().try_for_each(|extent| self.space.release(*extent))?;
        Ok(!shed.is_empty())
    }

    /// Writes a record where `plan` says, with `pages` (stored bytes, whole blocks) directly behind it, and makes it
    /// durable. `sealed` are the pages that the seal covers, in the order of the entries, wherever they lie.
    ///
    /// When this fails, the store is poisoned and the commit's fate unknown.
    pub(super) fn append<'a>(
        &mut self,
        draft: &Draft,
        plan: LogPlan,
        behind: &[&[u8]],
        sealed: impl Iterator<Item = &'a [u8]>,
        generation: Generation,
        durability: Durability,
    ) -> Result<()> {
        let blocks = record_blocks(draft.entries.len(), draft.blob.len());
        let behind_bytes: usize = behind.iter().map(|pages| pages.len()).sum();
        let record_bytes = blocks as usize * BLOCK_LENGTH;
        let mut run = AlignedBuffer::zeroed(record_bytes + behind_bytes);
        let run_blocks = (run.len() / BLOCK_LENGTH) as u32;

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
        let (record, mut rest) = run.split_at_mut(record_bytes);
        encode_record(record, &identity, &header, &draft.entries, &draft.blob);
        let seal = finish_record(record, identity.salt, sealed);
        for pages in behind {
            let (target, after) = rest.split_at_mut(pages.len());
            target.copy_from_slice(pages);
            rest = after;
        }
        self.make_durable(plan.placement.address, &run, durability).map_err(|source| match source {
            Error::Poisoned { .. } => source,
            source => Error::CommitUnknown { generation, source: Box::new(source) },
        })?;

        if let Some(fresh) = plan.fresh {
            self.log.announce(fresh);
        }
        self.log.appended(plan.placement, run_blocks, generation, seal);
        self.log_blocks += u64::from(run_blocks);
        self.recorded = header.synced_through;
        self.counters.record_bytes += blocks * BLOCK_BYTES;
        if durability == Durability::Durable {
            self.note_synced(generation);
        }
        Ok(())
    }

    /// S2: nothing is acknowledged before this has returned.
    fn make_durable(&mut self, start: Block, run: &[u8], durability: Durability) -> Result<()> {
        if durability == Durability::Deferred || self.sabotaged_skip_sync() {
            self.unsynced_bytes += run.len() as u64;
            return self.medium.write_vital(start, run);
        }
        self.counters.syncs += 1;
        if self.sabotaged_acknowledge_before_sync() {
            self.medium.sync()?;
            return self.medium.write_vital(start, run);
        }
        // A durable write covers its own bytes only: it will do if nothing else is unsynced (disk promise D3).
        if self.unsynced_bytes == 0 || self.sabotaged_durable_write_for_sync() {
            return self.medium.write_vital_durably(start, run);
        }
        self.medium.write_vital(start, run)?;
        self.medium.sync()?;
        self.unsynced_bytes = 0;
        Ok(())
    }

    /// Everything through `generation` is durable.
    pub(super) fn note_synced(&mut self, generation: Generation) {
        self.synced = generation;
        self.published.set_synced(generation);
        self.anchored = self.anchored.max(self.recorded);
        self.synced_state = None;
    }

    pub(super) fn no_space(&self, needed_blocks: u64) -> Error {
        Error::NoSpace { path: self.medium.path().into(), needed_blocks, free_blocks: self.space.blocks_free() }
    }
}
