//! What a checkpoint is made of: the state that is folded, its trees, and the superblock that leads to them.

use std::sync::Arc;

use super::super::{State, Store};
use super::CheckpointJob;
use super::homes::Homes;
use super::job::Stage;
use super::trees::root_of;
use crate::disk::AlignedBuffer;
use crate::error::{Error, Result};
use crate::format::{SegmentReference, Superblock};
use crate::id::{BLOCK_LENGTH, Block, Extent};

impl Store {
    /// The state to fold: the newest that is synced.
    pub(super) fn state_to_fold(&self) -> Arc<State> {
        if let Some(stale) = self.stale_state.as_ref().filter(|state| state.base == self.folded.checkpoint) {
            return Arc::clone(stale);
        }
        self.synced_state.clone().unwrap_or_else(|| self.published.state())
    }

    pub(super) fn build_job(&mut self, extents: &[Extent], leaves_anew: &[u64]) -> Result<CheckpointJob> {
        let number = self.folded.checkpoint.next().ok_or(Error::Exhausted { counter: "checkpoint" })?;
        let state = self.state_to_fold();
        let blocks: Vec<Block> =
            extents.iter().flat_map(|extent| (extent.start.0..extent.end().0).map(Block)).collect();
        let bytes = AlignedBuffer::zeroed(blocks.len() * BLOCK_LENGTH);
        let mut homes = Homes { extents: extents.to_vec(), blocks, bytes, used: 0 };

        let (maps, listed, mut replaced) = self.write_maps(&state, number, &mut homes)?;
        let mut on_disk = self.on_disk.clone();
        self.replaced_with_snapshots(&state, number, &mut replaced)?;
        let catalogue = self.write_catalogue(&state, &listed, &mut on_disk, number, &mut homes, &mut replaced)?;
        let changes = self.bitmap_changes(&state, &homes, leaves_anew);
        let (bitmap_blocks, bitmap_replaced) = self.count_bitmap(&changes, number)?;
        replaced.extend(bitmap_replaced);
        self.replaced_lists(number, state.generation, &mut replaced)?;
        let (deferred, deferred_entries) = self.write_deferred(&state, &replaced, number, &mut homes)?;
        let used = homes.used + bitmap_blocks;
        if used > homes.blocks.len() {
            return Err(Error::Exhausted { counter: "checkpoint home" });
        }
        let (bitmap, blocks_free) = self.write_bitmap(changes, used, number, &state, &mut homes)?;
        let superblock = Superblock {
            checkpoint: number,
            generation: state.generation,
            incarnation: state.incarnation,
            blocks_total: self.space.blocks_total(),
            blocks_free,
            deferred_entries,
            next_catalogue_id: self.next_catalogue_id,
            header: state.header.to_vec(),
            bitmap: root_of(&bitmap),
            catalogue: root_of(&catalogue),
            deferred: root_of(&deferred),
            maps: std::array::from_fn(|index| root_of(&maps[index])),
            ..self.folded.clone()
        };
        let superblock = self.with_log(superblock);
        // What the bound took too much of goes back at once; no record knows of it.
        for rest in homes.runs(homes.used, homes.blocks.len()) {
            self.space.release(rest)?;
        }
        homes.blocks.truncate(homes.used);
        homes.extents = homes.runs(0, homes.used);
        Ok(CheckpointJob {
            medium: Arc::clone(&self.medium),
            superblock,
            homes,
            written: 0,
            stage: Stage::Nodes,
            superblock_first: self.sabotaged_superblock_first(),
            maps,
            listed,
            on_disk,
            bitmap,
            catalogue,
            deferred,
            replaced,
            journal_seen: self.journal.len(),
            bodies_folded: state.generation,
            log_blocks: self.log_blocks,
        })
    }

    /// Says where the record after the fold is expected, and which segments are log.
    fn with_log(&self, mut superblock: Superblock) -> Superblock {
        let folded = superblock.generation;
        let note = self.notes.iter().rev().find(|note| note.generation == folded);
        let position = match note {
            Some(note) => note.position,
            None if self.folded.generation == folded => self.folded_position(),
            None => self.log.position(),
        };
        // A segment that both slots have folded when this superblock is durable is log no more (R4).
        let folded_by_both = match self.sabotaged_restart_log() {
            true => folded,
            false => self.folded.generation,
        };
        let all: Vec<_> = self.log.segments().collect();
        let here = all.iter().position(|segment| segment.reference.extent.start == position.segment).unwrap_or(0);
        let needed = |index: usize| index >= here || all[index].last > folded_by_both;
        superblock.log_segment = (0..here).filter(|index| needed(*index)).count() as u32;
        superblock.segments = (0..all.len()).filter(|index| needed(*index)).map(|index| all[index].reference).collect();
        let spares = self.log.spares().iter().map(|extent| SegmentReference { extent: *extent, salt: 0 });
        superblock.segments.extend(spares);
        superblock.log_offset = position.offset;
        superblock.log_seal = position.seal;
        superblock
    }

    fn folded_position(&self) -> crate::log::LogPosition {
        let segment = self.folded.segments.get(self.folded.log_segment as usize);
        crate::log::LogPosition {
            segment: segment.map(|segment| segment.extent.start).unwrap_or_default(),
            offset: self.folded.log_offset,
            seal: self.folded.log_seal,
        }
    }
}
