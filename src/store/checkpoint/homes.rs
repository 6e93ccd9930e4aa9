//! Where a checkpoint's blocks go: taken in one step, counted beforehand, filled in order.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::super::Store;
use crate::disk::AlignedBuffer;
use crate::error::{Error, Result};
use crate::format::{BlockPointer, CodecId, PointerFlags, checksum};
use crate::id::{BLOCK_LENGTH, Block, Extent, Generation};
use crate::map::Home;
use crate::space::{LEAF_BLOCKS, Purpose, Request};

/// Blocks taken for a checkpoint, and what goes into them, in order.
#[derive(Debug)]
pub(super) struct Homes {
    pub(super) extents: Vec<Extent>,
    pub(super) blocks: Vec<Block>,
    pub(super) bytes: AlignedBuffer,
    pub(super) used: usize,
}

impl Home for Homes {
    fn place(&mut self, bytes: &[u8; BLOCK_LENGTH]) -> Result<Block> {
        // The bound was counted beforehand; to exceed it is a bug of ours, and must not overwrite anything.
        let address = *self.blocks.get(self.used).ok_or(Error::Exhausted { counter: "checkpoint home" })?;
        let at = self.used * BLOCK_LENGTH;
        self.bytes[at..at + BLOCK_LENGTH].copy_from_slice(bytes);
        self.used += 1;
        Ok(address)
    }
}

impl Homes {
    pub(super) fn place_leaf(&mut self, bytes: &[u8; BLOCK_LENGTH], birth: Generation) -> Result<BlockPointer> {
        Ok(BlockPointer {
            address: self.place(bytes)?,
            codec: CodecId::RAW,
            flags: PointerFlags::default(),
            stored_length: BLOCK_LENGTH as u32,
            checksum: checksum(bytes),
            birth,
        })
    }

    /// The extents that the blocks from number `from` to `until` are, as few as can be.
    pub(super) fn runs(&self, from: usize, until: usize) -> Vec<Extent> {
        let mut runs: Vec<Extent> = Vec::new();
        for block in &self.blocks[from..until] {
            match runs.last_mut() {
                Some(run) if run.end() == *block => run.blocks += 1,
                _ => runs.push(Extent { start: *block, blocks: 1 }),
            }
        }
        runs
    }
}

/// The leaves of the bitmap that an extent lies in.
pub(super) fn leaves_of(extent: Extent) -> RangeInclusive<u64> {
    let leaf = u64::from(LEAF_BLOCKS);
    extent.start.0 / leaf..=(extent.end().0 - 1) / leaf
}

/// Counts the nodes that a writer would place, and places none.
pub(super) struct Counting(pub(super) u64);

impl Home for Counting {
    fn place(&mut self, _: &[u8; BLOCK_LENGTH]) -> Result<Block> {
        self.0 += 1;
        // Any block will do: what is encoded is thrown away.
        Ok(Block(crate::format::FIRST_FREE_BLOCK))
    }

    fn is_real(&self) -> bool {
        false
    }
}

impl Store {
    /// Takes at least as many blocks as the checkpoint can need, in as few extents as can be. Each leaf of the bitmap that
    /// one of them lies in is written, so more are needed the farther they lie apart: at most what
    /// [`Store::checkpoint_bound`] says. Leaves that were damaged are written besides, each with the nodes above it.
    pub(super) fn take_homes(&mut self, extents: &mut Vec<Extent>, leaves_anew: usize) -> Result<()> {
        let needs = self.checkpoint_needs();
        let mut leaves = BTreeSet::new();
        let mut taken = 0;
        loop {
            // To obtain can release what is dead, and make the file longer: both are looked at anew.
            let changed = self.leaves_changed() + leaves.len() as u64;
            let needed = needs.blocks(changed, self.leaves_total()) + 4 * leaves_anew as u64;
            if taken >= needed {
                return Ok(());
            }
            let blocks = (needed - taken).min(LEAF_BLOCKS.into()) as u32;
            let request = Request { blocks, minimum: 1, multiple: 1, purpose: Purpose::Node };
            let extent = self.obtain(&request)?.ok_or_else(|| self.no_space(needed - taken))?;
            extents.push(extent);
            leaves.extend(leaves_of(extent));
            taken += u64::from(extent.blocks);
        }
    }
}
