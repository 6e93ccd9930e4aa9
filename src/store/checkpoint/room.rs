//! Room for the next checkpoint: what would leave none is refused, so a full store can always be emptied.

use std::sync::Arc;

use super::super::append::SPARES_NEEDED;
use super::super::prepare::Prepared;
use super::super::state::Listed;
use super::super::{Changes, Store};
use super::trees::gone_from;
use crate::error::Result;
use crate::format::{DEFERRED_PER_BLOCK, capacity};
use crate::id::{PageId, SizeClass};
use crate::map::Shape;
use crate::space::{LEAF_BLOCKS, Purpose, Request};

/// What a checkpoint needs at most, but for the bitmap: how many of its leaves change depends on where the homes lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs {
    /// Blocks of the maps and the catalogue.
    trees: u64,
    /// Entries of the deferred list.
    deferred: u64,
}

impl Needs {
    /// In blocks, if so many of the bitmap's leaves change.
    pub(super) fn blocks(self, leaves: u64, leaves_total: u64) -> u64 {
        let leaves = leaves.min(leaves_total);
        let bitmap = leaves + Shape::nodes_at_most(leaves_total).min(leaves * 3);
        let deferred_blocks = (self.deferred + bitmap).div_ceil(DEFERRED_PER_BLOCK as u64) + 1;
        self.trees + bitmap + deferred_blocks + Shape::nodes_at_most(deferred_blocks) + 8
    }
}

impl Store {
    /// At most how many blocks the next checkpoint needs, wherever they lie: free space may be single blocks in every
    /// leaf of the bitmap, and each leaf that a home lies in is written. There is one for 128 MiB of the file.
    pub(in super::super) fn checkpoint_bound(&self) -> u64 {
        self.checkpoint_needs().blocks(self.leaves_total(), self.leaves_total())
    }

    /// How many leaves the bitmap has, and two that it may grow by.
    pub(super) fn leaves_total(&self) -> u64 {
        self.space.blocks_total().div_ceil(LEAF_BLOCKS.into()) + 2
    }

    /// At most how many leaves change for what was committed since the last checkpoint.
    pub(super) fn leaves_changed(&self) -> u64 {
        2 * self.journal.len() as u64 + 8
    }

    /// What the next checkpoint needs, but for the bitmap.
    pub(super) fn checkpoint_needs(&self) -> Needs {
        let state = self.published.state();
        let fresh = |listed: &&Arc<Listed>| !self.on_disk.contains_key(&listed.entry.id);
        let snapshots = state.catalogue.iter().filter(fresh).count() as u64;
        let maps = (self.dirty_nodes + SizeClass::COUNT as u64) * (1 + snapshots);
        let listed = state.catalogue.len().max(self.on_disk.len()) as u64;
        let gone: Vec<_> = gone_from(&self.on_disk, &state.catalogue).collect();
        let changed = snapshots + gone.len() as u64;
        let catalogue = snapshots + Shape::nodes_at_most(listed + snapshots).min(3 * changed);
        let roots = gone.iter().flat_map(|gone| &gone.listed.entry.maps);
        // A length that damage made up does not make more nodes than there are blocks.
        let total = self.space.blocks_total();
        let of_gone: u64 = roots.map(|root| Shape::nodes_at_most(root.length).min(total)).sum();
        let rewritten = Shape::nodes_at_most(self.deferred_tree.length()) + self.deferred_tree.length();
        let deferred =
            of_gone + self.deferred.len() as u64 + maps + 2 * catalogue + rewritten + self.bodies.len() as u64;
        Needs { trees: maps + catalogue, deferred }
    }

    /// Refuses what would leave no room for the next checkpoint and a commit that frees pages: so a full store can
    /// always be emptied. Commits that only free pages may use that room.
    pub(in super::super) fn admit(&mut self, changes: &Changes<'_>, prepared: &Prepared<'_>) -> Result<()> {
        // A page of zeros that was not there before takes its part of a node.
        if changes.gives_back() && prepared.pages.iter().all(|page| !page.old.is_null()) {
            return Ok(());
        }
        self.keep_room(map_nodes_of(changes.pages.keys()))
    }

    /// Refuses if there is no room for the next checkpoint, with `nodes` nodes more than now, and for a commit that
    /// frees pages.
    pub(in super::super) fn keep_room(&mut self, nodes: u64) -> Result<()> {
        // Log for commits that free: their own segments, since what small commits leave is in single blocks.
        while self.log.spares().len() < SPARES_NEEDED {
            let blocks = self.settings.log_segment_blocks;
            let minimum = self.settings.segment_minimum_blocks();
            let request = Request { blocks, minimum, multiple: 1, purpose: Purpose::Log };
            let spare = self.obtain(&request)?.ok_or_else(|| self.no_space(minimum.into()))?;
            self.log.add_spare(spare);
        }
        let reserve = self.reserve_blocks() + nodes;
        if self.space.blocks_free() < reserve {
            self.release()?;
        }
        let free = self.space.blocks_free();
        if free < reserve && !(self.grow(reserve - free)? && self.space.blocks_free() >= reserve) {
            return Err(self.no_space(reserve));
        }
        Ok(())
    }
}

/// How many nodes the maps have on the way to these pages, which come in order.
fn map_nodes_of<'a>(pages: impl Iterator<Item = &'a PageId>) -> u64 {
    let mut nodes = 0;
    let mut last: Option<PageId> = None;
    for page in pages {
        let fresh = |level: u8| {
            let below = capacity(level);
            last.is_none_or(|last| last.class() != page.class() || last.index() / below != page.index() / below)
        };
        // Six levels cover every index; above the first that is shared, all are.
        nodes += (0..6).take_while(|level| fresh(*level)).count() as u64;
        last = Some(*page);
    }
    nodes
}
