//! The on-disk format, declared once. FORMAT.md says the same in words and tables; a test compares the two.
//!
//! Owns: every structure that goes to disk, its bytes, its checksums, and the checks a structure can make of itself.
//! Does not own: where a structure lies, or when it is written (`map`, `log`, `store`).
//!
//! Invariants:
//! - **F1** Everything is little-endian, and every structure has the size and the offsets asserted beside it.
//! - **F2** Decoding is pure and bounded: it allocates no more than the bytes it was given justify, follows nothing,
//!   and answers hostile bytes with a [`Fault`], never with a panic.
//! - **F3** A checksum field is never inside the range it covers.
//! - **F4** Reserved bytes are written as zero and must be zero.
//! - **F5** No tag has the value 0, so zeroed bytes are no structure; but a zeroed [`BlockPointer`] is the pointer to
//!   nothing that was never anything.
//!
//! Callers: any room below. Thread rules: none, there is no state.

mod birth;
mod catalogue;
mod checksum;
pub mod codec;
mod deferred;
mod node;
mod pointer;
mod record;
mod superblock;
mod table;

pub use birth::{BIRTH_BLOCK, BirthState, birth_block, birth_state};
pub use catalogue::{CatalogueEntry, EntryKind, NAME_LIMIT, NOTE_LIMIT, check_name};
pub use checksum::{Seal, SealHasher, checksum};
pub use codec::{Codec, CodecId, Compression};
pub use deferred::{DEFERRED_PER_BLOCK, DeferredEntry, DeferredKind, decode_deferred, encode_deferred};
pub use node::{NODE_ENTRIES, Node, NodeIdentity, NodeKind, NodeSummary, capacity, height_of};
pub use pointer::{BlockPointer, PointerFlags, STORED_LIMIT};
pub use record::{
    ENTRY_BYTES, Entry, RECORD_BLOCKS_LIMIT, RECORD_HEADER_BYTES, RecordFlags, RecordHeader, RecordIdentity,
    decode_body, decode_entries, decode_header, encode_entries, encode_record, finish_record, record_blocks,
    sealed_part, verify_checksum,
};
pub use superblock::{
    FEATURES_INCOMPATIBLE_KNOWN, FEATURES_READ_COMPATIBLE_KNOWN, FIRST_FREE_BLOCK, HEADER_LIMIT, SEGMENT_BLOCKS_LIMIT,
    SEGMENTS_LIMIT, SUPERBLOCK_BLOCKS, SegmentReference, Superblock, TreeRoot, VERSION, slot_blocks,
};
pub use table::{Constant, constants};

use crate::error::Fault;

/// A reserved field must be zero (F4).
fn reserved_zero(field: &'static str, bytes: &[u8]) -> Result<(), Fault> {
    match bytes.iter().find(|byte| **byte != 0) {
        None => Ok(()),
        Some(byte) => Err(Fault::Field { field, expected: 0, found: u64::from(*byte) }),
    }
}

/// A field must have one value.
fn expect(field: &'static str, expected: u64, found: u64) -> Result<(), Fault> {
    if expected == found { Ok(()) } else { Err(Fault::Field { field, expected, found }) }
}

/// A field must not exceed a bound.
fn at_most(field: &'static str, limit: u64, found: u64) -> Result<(), Fault> {
    if found <= limit { Ok(()) } else { Err(Fault::Field { field, expected: limit, found }) }
}
