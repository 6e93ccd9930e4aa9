//! Growing the file: ahead of need, beside commits, or at once for a commit that needs it.
//!
//! | step | what | where |
//! | --- | --- | --- |
//! | [`Store::growth_begin`] | says where the file will be longer, and by how much | with the store |
//! | [`GrowthJob::write`] | obtains the space, and writes it with zeros, piece by piece | beside commits |
//! | [`Store::growth_finish`] | what is ready is free space from now on | with the store |
//!
//! - **G1** A block is handed out only after its zeros were written, and no zero is written after that: whoever hands
//!   out ends the job first, under the lock under which pieces are written. A commit waits for one piece at most.
//! - **G2** Nothing of it is durable: how long the file is, the next checkpoint says, or the records that mention the
//!   new blocks. A crash leaves a file that is longer than it need be.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::append::SPARES_NEEDED;
use super::{Medium, NewSpace, Progress, Store};
use crate::error::Result;
use crate::id::{BLOCK_BYTES, Block};
use crate::space::LEAF_BLOCKS;

/// Zeros are written up to the next multiple of so many blocks, 2 MiB: what the page cache gets in one piece it keeps in one,
/// and a reader that maps the file finds it in one step. It takes less than a millisecond.
const PIECE_BLOCKS: u64 = 2 << 20 >> 12;

/// The file grows by an eighth, but by no more than so many blocks at a time, 64 MiB, unless more is asked for.
const STEP_LIMIT_BLOCKS: u64 = 64 << 20 >> 12;

/// New space on its way.
#[derive(Debug)]
pub struct GrowthJob {
    medium: Arc<Medium>,
    new_space: NewSpace,
    growth: Arc<Growth>,
}

/// What a job and the store both know.
#[derive(Debug)]
pub(super) struct Growth {
    from: u64,
    blocks: u64,
    done: Mutex<Done>,
}

#[derive(Debug, Default)]
struct Done {
    obtained: bool,
    /// Blocks that are ready to be used.
    ready: u64,
    /// Whether nothing may be written any more (G1).
    ended: bool,
}

impl Growth {
    /// A panic while the lock is held leaves the values whole.
    fn lock(&self) -> MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl GrowthJob {
    /// Does the next piece.
    ///
    /// # Errors
    /// Those of the disk. What was ready before is still to be handed to [`Store::growth_finish`].
    pub fn write(&mut self) -> Result<Progress> {
        let mut done = self.growth.lock();
        if done.ended {
            return Ok(Progress::Done);
        }
        let (from, blocks) = (self.growth.from, self.growth.blocks);
        if !done.obtained {
            self.medium.grow(Block(from), blocks, NewSpace::Obtained)?;
            done.obtained = true;
            if self.new_space == NewSpace::Obtained {
                done.ready = blocks;
            }
        } else {
            let at = from + done.ready;
            let piece = (PIECE_BLOCKS - at % PIECE_BLOCKS).min(blocks - done.ready);
            self.medium.write_zeros(Block(at), piece)?;
            done.ready += piece;
        }
        Ok(if done.ready == blocks { Progress::Done } else { Progress::More })
    }
}

impl Store {
    /// Whether free space runs low, and the file should grow before a commit has to wait for it. Never, unless the
    /// settings say that somebody grows it ahead.
    pub fn growth_due(&self) -> bool {
        let step = self.growth_step();
        self.settings.grows_ahead
            && self.growing.is_none()
            && step > 0
            && self.space.blocks_free() < self.reserve_blocks() + step / 2
    }

    /// Blocks that are kept for the next checkpoint and for commits that free.
    pub(super) fn reserve_blocks(&self) -> u64 {
        self.checkpoint_bound() + u64::from(self.settings.log_segment_blocks) + 16
    }

    /// Whether the file may become longer by a segment.
    pub fn may_grow(&self) -> bool {
        self.settings.blocks_limit.saturating_sub(self.space.blocks_total()) >= self.settings.segment_blocks.into()
    }

    /// By how many blocks the file grows when there is time; 0 if it may not.
    fn growth_step(&self) -> u64 {
        let total = self.space.blocks_total();
        let step = self.settings.growth_blocks.max((total / 8).min(STEP_LIMIT_BLOCKS));
        step.min(self.settings.blocks_limit.saturating_sub(total))
    }

    /// Begins to grow the file ahead of need; `None` if it is growing, or may not.
    pub fn growth_begin(&mut self) -> Option<GrowthJob> {
        let blocks = self.growth_step();
        if blocks == 0 || self.growing.is_some() {
            return None;
        }
        let growth = Arc::new(Growth { from: self.space.blocks_total(), blocks, done: Mutex::default() });
        self.growing = Some(Arc::clone(&growth));
        Some(GrowthJob { medium: Arc::clone(&self.medium), new_space: self.settings.new_space, growth })
    }

    /// What the job made ready is free space from now on, unless a commit was quicker to take it. Returns how many
    /// blocks that is.
    pub fn growth_finish(&mut self, job: &GrowthJob) -> u64 {
        match &self.growing {
            Some(growing) if Arc::ptr_eq(growing, &job.growth) => self.end_growth(),
            _ => 0,
        }
    }

    /// Ends a job that is under way and takes what it has made ready (G1).
    fn end_growth(&mut self) -> u64 {
        let Some(growth) = self.growing.take() else { return 0 };
        let mut done = growth.lock();
        done.ended = true;
        if done.ready == 0 || self.space.blocks_total() != growth.from {
            return 0;
        }
        // Without the memory to keep account of it, the file is longer than it need be, and no more (G2).
        match self.space.grow(growth.from + done.ready) {
            Ok(()) => done.ready,
            Err(_) => 0,
        }
    }

    /// Grows the file by at least `blocks` blocks, or else gives back what log can be spared; whether it did either.
    pub(super) fn grow(&mut self, blocks: u64) -> Result<bool> {
        let before = self.space.blocks_total();
        if self.end_growth() >= needed_after(before, blocks) {
            return Ok(true);
        }
        let total = self.space.blocks_total();
        let needed = needed_after(total, blocks);
        // Where somebody grows the file ahead, a commit does not wait for more than it needs.
        let generous = match self.settings.grows_ahead {
            true => self.settings.growth_blocks,
            false => self.settings.growth_blocks.max((total / 8).min(STEP_LIMIT_BLOCKS)),
        };
        for step in [generous.max(needed), needed] {
            if total + step > self.settings.blocks_limit {
                continue;
            }
            match self.medium.grow(Block(total), step, self.settings.new_space) {
                Ok(()) => {
                    self.space.grow(total + step)?;
                    return Ok(true);
                }
                Err(error) if error.is_no_space() => {}
                Err(error) => return Err(error),
            }
        }
        self.shed_spares()
    }

    /// Recovery: gives the file back what it lost of its growth ([`Store::cover`]), before a superblock counts on it. The
    /// sync of the opening record makes it durable.
    pub(super) fn restore_length(&mut self) -> Result<()> {
        let (known, total) = (self.medium.length_bytes()? / BLOCK_BYTES, self.space.blocks_total());
        let lost = total.saturating_sub(known);
        if lost == 0 {
            return Ok(());
        }
        // More than this was hardly lost: a record says so, and is believed as far as it costs nothing.
        if lost <= self.settings.growth_blocks.max(STEP_LIMIT_BLOCKS) {
            match self.medium.grow(Block(known), lost, self.settings.new_space) {
                // A full disk must not keep the store from being opened. Whoever writes there then may find it full.
                Err(error) if error.is_no_space() => {}
                other => return other,
            }
        }
        self.medium.lengthen(Block(total))
    }

    /// Gives back the log segments that are kept for convenience only; whether there were any.
    fn shed_spares(&mut self) -> Result<bool> {
        let shed = self.log.shed_spares(SPARES_NEEDED);
        shed.iter().try_for_each(|extent| self.space.release(*extent))?;
        Ok(!shed.is_empty())
    }
}

/// By how much a file of `total` blocks must grow for a run of `blocks`: an extent lies in one leaf, so growth across
/// the end of a leaf must leave room behind it.
fn needed_after(total: u64, blocks: u64) -> u64 {
    let leaf = u64::from(LEAF_BLOCKS);
    match (total % leaf) + blocks > leaf {
        true => leaf - total % leaf + blocks,
        false => blocks,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::disk::MemoryDisk;
    use crate::id::{PageId, SizeClass};
    use crate::process::NoReaders;
    use crate::store::{Changes, Durability, PageChange, SeededEntropy, Settings, VerifyLevel};

    fn store() -> Store {
        let settings =
            Settings { grows_ahead: true, growth_blocks: 2048, log_segment_blocks: 16, ..Settings::default() };
        let disk = Arc::new(MemoryDisk::new());
        Store::create(disk, Arc::new(NoReaders), settings, Box::new(SeededEntropy(1))).unwrap()
    }

    fn commit(store: &mut Store, first: u64, pages: u64) {
        let mut changes = Changes::default();
        for index in first..first + pages {
            let page = PageId::new(SizeClass::MIN, index).unwrap();
            changes.pages.insert(page, PageChange::Whole(vec![index as u8 | 1; 4096].into()));
        }
        store.commit(&changes, Durability::Durable).unwrap();
    }

    /// Commits until free space runs low; returns how many pages there are.
    fn until_due(store: &mut Store) -> u64 {
        let pages = (0..).step_by(50).take(100).find(|first| {
            commit(store, *first, 50);
            store.growth_due()
        });
        pages.unwrap() + 50
    }

    fn is_sound(store: &mut Store) -> bool {
        store.verify(VerifyLevel::Full, &mut |_| {}).unwrap().findings.is_empty()
    }

    #[test]
    fn what_a_job_made_ready_is_free_when_it_is_finished() {
        let mut store = store();
        until_due(&mut store);
        let mut job = store.growth_begin().unwrap();
        assert!(store.growth_begin().is_none() && !store.growth_due(), "one at a time");
        let before = store.space.blocks_free();
        while job.write().unwrap() == Progress::More {}
        assert_eq!(store.space.blocks_free(), before, "nothing is handed out before the end");
        assert_eq!(store.growth_finish(&job), 2048);
        assert_eq!(store.space.blocks_free(), before + 2048);
        assert!(is_sound(&mut store));
    }

    #[test]
    fn a_commit_that_needs_space_ends_the_job_and_no_zero_is_written_after_that() {
        let mut store = store();
        let pages = until_due(&mut store);
        let mut job = store.growth_begin().unwrap();
        let total = store.space.blocks_total();
        // Obtained, and two pieces of zeros.
        assert!((0..3).all(|_| job.write().unwrap() == Progress::More));
        assert!(store.grow(100).unwrap());
        let ready = (total / PIECE_BLOCKS + 2) * PIECE_BLOCKS;
        assert_eq!(store.space.blocks_total(), ready, "what was ready is enough");
        commit(&mut store, pages, 600);
        assert_eq!(job.write().unwrap(), Progress::Done);
        assert_eq!(store.growth_finish(&job), 0);
        assert!(is_sound(&mut store));
    }
}
