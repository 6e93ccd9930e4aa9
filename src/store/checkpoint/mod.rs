//! Checkpoints: fold the records through a generation into the trees, then switch the superblock.
//!
//! A checkpoint runs beside commits. It has three steps, of which only the first and the last touch the store:
//!
//! | step | what | fails with |
//! | --- | --- | --- |
//! | [`Store::checkpoint_begin`] | fixes the fold c, takes homes, encodes every node, leaf and list | no space: nothing happened |
//! | [`CheckpointJob::write`] | writes them, in pieces, then syncs, then writes both copies of the superblock, syncs | a failed write of nodes: nothing happened; of a sync or superblock: poison |
//! | [`Store::checkpoint_finish`] | the superblock is durable: re-base, release, retire log segments | |
//!
//! - **R5** The homes are taken in the step that fixes c, and c is what is synced then. A block that is free then was
//!   released by R2 with a death at or before c; and every record after c is written later, so none mentions it.
//! - **S3** The superblock is written only after the sync of all it leads to has returned.
//! - **R4** The log goes on where it is: the superblock says where the record after c is expected.

mod build;
mod homes;
mod job;
mod room;
mod trees;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::append::SPARES_NEEDED;
use super::apply::set_all;
use super::held::StateMaps;
use super::state::Listed;
use super::{Maps, Medium, OnDisk, Running, Store};
use crate::error::{Error, Result};
use crate::format::{DeferredEntry, SEGMENTS_LIMIT, Superblock};
use crate::id::{BLOCK_BYTES, CheckpointNumber, Generation, SizeClass};
use crate::map::{Shape, Tree};
use homes::Homes;
use job::Stage;

/// A checkpoint between its begin and its end.
#[derive(Debug)]
pub struct CheckpointJob {
    medium: Arc<Medium>,
    superblock: Superblock,
    homes: Homes,
    /// How many of the homes' blocks are written.
    written: usize,
    stage: Stage,
    superblock_first: bool,
    maps: Box<Maps>,
    listed: Vec<Arc<Listed>>,
    on_disk: BTreeMap<u64, OnDisk>,
    bitmap: Tree,
    catalogue: Tree,
    deferred: Tree,
    replaced: Vec<DeferredEntry>,
    journal_seen: usize,
    bodies_folded: Generation,
    log_blocks: u64,
}

/// Whether a job has more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Call again.
    More,
    /// The superblock is durable.
    Done,
}

/// What a checkpoint did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointReport {
    /// Its number.
    pub checkpoint: CheckpointNumber,
    /// The generation folded.
    pub generation: Generation,
    /// Blocks written, superblocks included.
    pub blocks: u64,
}

impl Store {
    /// Whether a checkpoint is due: by the length of the log, or by the number of nodes that differ from the disk.
    pub fn checkpoint_due(&self) -> bool {
        let segments = self.log.segments().count() + self.log.spares().len();
        self.checkpoint_running == Running::No
            && (self.log_blocks >= self.checkpoint_due_blocks()
                || self.dirty_nodes >= 4 * self.settings.cached_nodes as u64
                || segments >= SEGMENTS_LIMIT * 3 / 4)
    }

    /// Blocks of log after which a checkpoint is due: a quarter of the maps, at least 8 MiB, at most 64 MiB. But in a file
    /// that may not grow much more, no more than a 64th of what is free: some three times as much is log, and where
    /// space is scarce, what is kept for log is paid for by moving pages.
    pub(super) fn checkpoint_due_blocks(&self) -> u64 {
        self.settings.checkpoint_log_blocks.unwrap_or_else(|| {
            let nodes: u64 = self.folded.maps.iter().map(|root| Shape::nodes_at_most(root.length)).sum();
            let room = self.space.blocks_free() + self.settings.blocks_limit.saturating_sub(self.space.blocks_total());
            (nodes / 4).clamp(8 << 20 >> 12, 64 << 20 >> 12).min((room / 64).max(1 << 20 >> 12))
        })
    }

    /// Makes a checkpoint from begin to end, unless nothing changed since the last.
    ///
    /// **Durability**: when it returned, both superblock copies are durable; commits were so before.
    ///
    /// # Errors
    /// `NoSpace`: nothing happened. `Io`, `Poisoned`: see the steps.
    pub fn checkpoint(&mut self) -> Result<Option<CheckpointReport>> {
        self.sync()?;
        if self.folded.generation == self.synced && self.folded.checkpoint.0 > 1 {
            return Ok(None);
        }
        let mut job = self.checkpoint_begin()?;
        let written = loop {
            match job.write() {
                Ok(Progress::More) => {}
                Ok(Progress::Done) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        match written {
            Ok(()) => self.checkpoint_finish(job).map(Some),
            Err(error) => {
                self.checkpoint_abandon(job)?;
                Err(error)
            }
        }
    }

    /// Fixes what the checkpoint will fold, and where it will go.
    ///
    /// # Errors
    /// `NoSpace`, and those of reading trees; nothing happened then.
    pub fn checkpoint_begin(&mut self) -> Result<CheckpointJob> {
        self.medium.check()?;
        if self.checkpoint_running == Running::Yes {
            return Err(Error::Busy);
        }
        self.release()?;
        let anew = self.bitmap_source.anew();
        let mut extents = Vec::new();
        match self.take_homes(&mut extents, anew.len()).and_then(|()| self.build_job(&extents, &anew)) {
            Ok(job) => {
                self.checkpoint_running = Running::Yes;
                Ok(job)
            }
            Err(error) => {
                for extent in extents {
                    self.space.release(extent)?;
                }
                Err(error)
            }
        }
    }

    /// The superblock is durable: the store stands on it from now on.
    ///
    /// # Errors
    /// Those of releasing; the checkpoint itself is done.
    pub fn checkpoint_finish(&mut self, job: CheckpointJob) -> Result<CheckpointReport> {
        self.checkpoint_running = Running::No;
        let folded = job.superblock.generation;
        let report = CheckpointReport {
            checkpoint: job.superblock.checkpoint,
            generation: folded,
            blocks: job.homes.used as u64 + 2,
        };
        self.counters.checkpoints += 1;
        self.counters.checkpoint_bytes += report.blocks * BLOCK_BYTES;
        self.counters.syncs += 2;
        self.folded_before = std::mem::replace(&mut self.folded, job.superblock).generation;
        // Not the new fold: without its superblock, recovery verifies what the older one leads to.
        let anchoring = if self.sabotaged_fold_anchors() { folded } else { self.folded_before };
        self.anchored = self.anchored.max(anchoring);
        self.journal.forget(folded, job.journal_seen);
        self.bitmap = job.bitmap.clone();
        self.set_bitmap_source(job.bitmap);
        self.catalogue = job.catalogue;
        self.deferred_tree = job.deferred;
        self.on_disk = job.on_disk;
        self.bodies.retain(|(_, generation)| *generation > job.bodies_folded);
        job.replaced.into_iter().for_each(|entry| self.deferred.push(entry));
        self.log_blocks -= job.log_blocks;

        // Re-base: the fold's trees, and the records after it on top. Views keep what they hold.
        self.notes.retain(|note| note.generation > folded);
        let (notes, number) = (&self.notes, self.folded.checkpoint);
        let mut listed = job.listed;
        let mut maps = job.maps;
        let mut created = 0;
        self.published.change(|state| {
            // Snapshots made after the fold stand on the new trees as well.
            let newer = state.catalogue.iter().filter(|listed| listed.entry.generation > folded);
            listed.retain(|old| state.catalogue.iter().any(|present| present.entry.id == old.entry.id));
            let mut newer: Vec<Listed> = newer.map(|listed| (**listed).clone()).collect();
            for note in notes {
                created += set_all(&mut maps, &note.sets) as u64;
                let here = newer.iter_mut().filter(|listed| listed.entry.generation == note.generation);
                here.filter(|listed| listed.maps.is_some()).for_each(|listed| listed.maps = Some(maps.clone()));
            }
            listed.extend(newer.into_iter().map(Arc::new));
            state.maps = StateMaps::new(*maps);
            state.base = number;
            state.catalogue = Arc::new(listed);
        });
        self.dirty_nodes = created;
        if self.synced_state.is_some() {
            self.rebase_synced_state();
        }

        let retire_through = if self.sabotaged_restart_log() { folded } else { self.folded_before };
        for segment in self.log.retire(retire_through) {
            // The log's working set is kept, so that it need not look for room in a full and fragmented file.
            let spare_blocks: u64 = self.log.spares().iter().map(|extent| u64::from(extent.blocks)).sum();
            let kept = self.log.blocks_in_use() + spare_blocks;
            // One that is too short for these settings is kept only for want of others: it would have bodies of records put
            // outside of the log.
            let blocks = segment.reference.extent.blocks;
            let will_do = blocks >= self.settings.segment_minimum_blocks() || self.log.spares().len() < SPARES_NEEDED;
            if segment.is_without_pages() && will_do && kept <= 2 * self.checkpoint_due_blocks() {
                self.log.add_spare(segment.reference.extent);
                continue;
            }
            for run in segment.blocks_without_pages() {
                self.space.release(run)?;
            }
        }
        self.release()?;
        #[cfg(feature = "tracing")]
        tracing::debug!(checkpoint = report.checkpoint.0, generation = folded.0, blocks = report.blocks, "checkpoint");
        Ok(report)
    }

    /// The synced state stands on the new checkpoint too, or a later checkpoint would build on nodes that are gone.
    fn rebase_synced_state(&mut self) {
        let mut state = (*self.published.state()).clone();
        let Some(old) = self.synced_state.take() else { return };
        let of_fold: Maps = std::array::from_fn(|index| {
            Tree::from_root(Shape::map(SizeClass::from_index(index)), self.folded.maps[index])
        });
        state.maps = StateMaps::new(of_fold);
        for note in self.notes.iter().filter(|note| note.generation <= old.generation) {
            set_all(state.maps.get_mut(), &note.sets);
        }
        let catalogue = old.catalogue.iter().map(|old| {
            let newer = state.catalogue.iter().find(|newer| newer.entry.id == old.entry.id);
            Arc::clone(newer.unwrap_or(old))
        });
        state.catalogue = Arc::new(catalogue.collect());
        state.generation = old.generation;
        state.incarnation = old.incarnation;
        state.header = Arc::clone(&old.header);
        self.synced_state = Some(Arc::new(state));
    }

    /// A checkpoint that could not be written: its homes are free again.
    ///
    /// # Errors
    /// Those of loading the bitmap.
    pub fn checkpoint_abandon(&mut self, job: CheckpointJob) -> Result<()> {
        self.checkpoint_running = Running::No;
        for extent in job.homes.extents {
            self.space.release(extent)?;
        }
        Ok(())
    }
}
