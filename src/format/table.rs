//! The format's constants as a table: printed by `vellum inspect format`, compared with FORMAT.md by a test.

use super::{
    BIRTH_BLOCK, DEFERRED_PER_BLOCK, ENTRY_BYTES, FIRST_FREE_BLOCK, HEADER_LIMIT, NAME_LIMIT, NODE_ENTRIES, NOTE_LIMIT,
    RECORD_BLOCKS_LIMIT, RECORD_HEADER_BYTES, SEGMENT_BLOCKS_LIMIT, SEGMENTS_LIMIT, STORED_LIMIT, SUPERBLOCK_BLOCKS,
    VERSION,
};
use crate::id::{BLOCK_BYTES, SizeClass};

/// A constant of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constant {
    /// Its name, as FORMAT.md has it.
    pub name: &'static str,
    /// Its value.
    pub value: u64,
}

/// Every constant of the format.
pub fn constants() -> Vec<Constant> {
    [
        ("VERSION", u64::from(VERSION)),
        ("BLOCK_BYTES", BLOCK_BYTES),
        ("BIRTH_BLOCK", BIRTH_BLOCK),
        ("SUPERBLOCK_SLOT_0", SUPERBLOCK_BLOCKS[0]),
        ("SUPERBLOCK_SLOT_1", SUPERBLOCK_BLOCKS[1]),
        ("SUPERBLOCK_SLOT_0_COPY", SUPERBLOCK_BLOCKS[2]),
        ("SUPERBLOCK_SLOT_1_COPY", SUPERBLOCK_BLOCKS[3]),
        ("FIRST_FREE_BLOCK", FIRST_FREE_BLOCK),
        ("SIZE_CLASS_MIN", u64::from(SizeClass::MIN.log2())),
        ("SIZE_CLASS_MAX", u64::from(SizeClass::MAX.log2())),
        ("CHUNK_CLASS", u64::from(SizeClass::CHUNK.log2())),
        ("POINTER_BYTES", 24),
        ("STORED_LIMIT", u64::from(STORED_LIMIT)),
        ("NODE_HEADER_BYTES", 64),
        ("NODE_ENTRIES", NODE_ENTRIES as u64),
        ("BITMAP_LEAF_BLOCKS", BLOCK_BYTES * 8),
        ("RECORD_HEADER_BYTES", RECORD_HEADER_BYTES as u64),
        ("ENTRY_BYTES", ENTRY_BYTES as u64),
        ("DEFERRED_PER_BLOCK", DEFERRED_PER_BLOCK as u64),
        ("SEGMENTS_LIMIT", SEGMENTS_LIMIT as u64),
        ("SEGMENT_BLOCKS_LIMIT", u64::from(SEGMENT_BLOCKS_LIMIT)),
        ("RECORD_BLOCKS_LIMIT", u64::from(RECORD_BLOCKS_LIMIT)),
        ("HEADER_LIMIT", HEADER_LIMIT as u64),
        ("NAME_LIMIT", NAME_LIMIT as u64),
        ("NOTE_LIMIT", NOTE_LIMIT as u64),
    ]
    .map(|(name, value)| Constant { name, value })
    .to_vec()
}
