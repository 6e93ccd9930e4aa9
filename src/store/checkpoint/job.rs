//! The writing of a checkpoint: nodes in pieces, then a sync, then the superblock (S3).

use super::{CheckpointJob, Progress};
use crate::disk::AlignedBuffer;
use crate::error::Result;
use crate::format::slot_blocks;
use crate::id::{BLOCK_LENGTH, Block};

/// Blocks of nodes written at a time: so few that a commit beside it hardly waits.
const PIECE_BLOCKS: usize = 64;

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Nodes,
    Sync,
    Superblock,
    LastSync,
    Done,
}

impl CheckpointJob {
    /// Does the next piece of writing.
    ///
    /// # Errors
    /// `Io`: if it came of nodes, the checkpoint must be abandoned and can be made again; of a sync or a superblock,
    /// the store is poisoned.
    pub fn write(&mut self) -> Result<Progress> {
        self.stage = match self.stage {
            Stage::Nodes if self.superblock_first && self.written == 0 => {
                self.write_superblock()?;
                self.medium.sync()?;
                self.superblock_first = false;
                Stage::Nodes
            }
            Stage::Nodes if self.written < self.homes.used => {
                self.write_piece()?;
                Stage::Nodes
            }
            Stage::Nodes => Stage::Sync,
            Stage::Sync => {
                self.medium.sync()?;
                Stage::Superblock
            }
            Stage::Superblock => {
                self.write_superblock()?;
                Stage::LastSync
            }
            Stage::LastSync => {
                self.medium.sync()?;
                Stage::Done
            }
            Stage::Done => return Ok(Progress::Done),
        };
        Ok(Progress::More)
    }

    fn write_piece(&mut self) -> Result<()> {
        let blocks = &self.homes.blocks[self.written..self.homes.used];
        let contiguous = blocks.iter().zip(blocks[0].0..).take_while(|(block, expected)| block.0 == *expected);
        let count = contiguous.count().min(PIECE_BLOCKS);
        let at = self.written * BLOCK_LENGTH;
        self.medium.write(blocks[0], &self.homes.bytes[at..at + count * BLOCK_LENGTH])?;
        self.written += count;
        Ok(())
    }

    fn write_superblock(&mut self) -> Result<()> {
        let mut block = AlignedBuffer::zeroed(BLOCK_LENGTH);
        block.copy_from_slice(&self.superblock.encode());
        for copy in slot_blocks(self.superblock.checkpoint) {
            self.medium.write_vital(Block(copy), &block)?;
        }
        Ok(())
    }
}
