//! The deferred list: extents that are dead, and that somebody may still read. Blocks of 102 entries.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{at_most, reserved_zero};
use crate::error::Fault;
use crate::id::{BLOCK_LENGTH, Block, CheckpointNumber, Extent, Generation};

/// Entries in a block of the list.
pub const DEFERRED_PER_BLOCK: usize = BLOCK_LENGTH / size_of::<RawDeferred>();

const DATA: u32 = 1;
const NODE: u32 = 2;

#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawDeferred {
    address: U64,
    blocks: U32,
    kind: U32,
    first: U64,
    second: U64,
    third: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawDeferredBlock {
    entries: [RawDeferred; DEFERRED_PER_BLOCK],
    reserved: [u8; 16],
}

const _: () = {
    assert!(size_of::<RawDeferred>() == 40);
    assert!(size_of::<RawDeferredBlock>() == BLOCK_LENGTH);
    assert!(DEFERRED_PER_BLOCK == 102);
};

/// A dead extent and what must come to pass before its blocks are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeferredEntry {
    /// The blocks.
    pub extent: Extent,
    /// What they held.
    pub kind: DeferredKind,
}

/// What a dead extent held, and from when to when (rules R1 to R3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeferredKind {
    /// Bytes of a page.
    Data {
        /// The generation whose state was the first to reach them.
        birth: Generation,
        /// The generation that wrote them here: `birth`, or that of the move.
        written: Generation,
        /// The generation whose state was the first not to reach them.
        death: Generation,
    },
    /// A node or a leaf of a tree, or the body of a record.
    Node {
        /// The first checkpoint whose readers can reach it: the one that wrote it; `replaced` for what only superblocks
        /// lead to; 0 where it is not known.
        first: CheckpointNumber,
        /// The checkpoint that replaced it.
        replaced: CheckpointNumber,
    },
}

/// Encodes at most [`DEFERRED_PER_BLOCK`] entries as a block; more are left out.
pub fn encode_deferred(entries: &[DeferredEntry]) -> [u8; BLOCK_LENGTH] {
    let mut block = RawDeferredBlock { entries: [RawDeferred::default(); DEFERRED_PER_BLOCK], reserved: [0; 16] };
    for (raw, entry) in block.entries.iter_mut().zip(entries) {
        let (kind, first, second, third) = match entry.kind {
            DeferredKind::Data { birth, written, death } => (DATA, birth.0, written.0, death.0),
            DeferredKind::Node { first, replaced } => (NODE, first.0, replaced.0, 0),
        };
        *raw = RawDeferred {
            address: U64::new(entry.extent.start.0),
            blocks: U32::new(entry.extent.blocks),
            kind: U32::new(kind),
            first: U64::new(first),
            second: U64::new(second),
            third: U64::new(third),
        };
    }
    zerocopy::transmute!(block)
}

/// Decodes the first `count` entries of a block; the rest of it must be zero.
///
/// # Errors
/// The first field that cannot be.
pub fn decode_deferred(bytes: &[u8; BLOCK_LENGTH], count: usize) -> Result<Vec<DeferredEntry>, Fault> {
    let block: &RawDeferredBlock = zerocopy::transmute_ref!(bytes);
    at_most("deferred entries", DEFERRED_PER_BLOCK as u64, count as u64)?;
    reserved_zero("deferred reserved", &block.reserved)?;
    let (used, unused) = block.entries.split_at(count);
    reserved_zero("deferred unused", unused.as_bytes())?;
    used.iter().map(decode_entry).collect()
}

fn decode_entry(raw: &RawDeferred) -> Result<DeferredEntry, Fault> {
    let extent = Extent { start: Block(raw.address.get()), blocks: raw.blocks.get() };
    at_most("deferred extent", Block::LIMIT, extent.end().0)?;
    let (first, second, third) = (raw.first.get(), raw.second.get(), raw.third.get());
    let kind = match raw.kind.get() {
        DATA => {
            at_most("deferred birth", third, first)?;
            at_most("deferred written", third, second)?;
            DeferredKind::Data { birth: Generation(first), written: Generation(second), death: Generation(third) }
        }
        NODE => {
            at_most("deferred checkpoint", second, first)?;
            at_most("deferred unused", 0, third)?;
            DeferredKind::Node { first: CheckpointNumber(first), replaced: CheckpointNumber(second) }
        }
        found => return Err(Fault::Field { field: "deferred kind", expected: NODE.into(), found: found.into() }),
    };
    if extent.is_empty() || extent.start.0 < super::FIRST_FREE_BLOCK {
        return Err(Fault::Other("a deferred extent is empty or lies in the superblocks"));
    }
    Ok(DeferredEntry { extent, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_their_bytes_and_nonsense_is_refused() {
        let entries = [
            DeferredEntry {
                extent: Extent::new(100, 7),
                kind: DeferredKind::Data { birth: Generation(3), written: Generation(5), death: Generation(9) },
            },
            DeferredEntry {
                extent: Extent::new(200, 1),
                kind: DeferredKind::Node { first: CheckpointNumber(2), replaced: CheckpointNumber(4) },
            },
        ];
        let block = encode_deferred(&entries);
        assert_eq!(decode_deferred(&block, 2).unwrap(), entries);
        assert!(decode_deferred(&block, 1).is_err());
        assert!(decode_deferred(&block, 3).is_err());
        assert!(decode_deferred(&block, 103).is_err());
        // The third number of a node.
        let mut bad = block;
        bad[40 + 32] = 1;
        assert!(decode_deferred(&bad, 2).is_err());
    }
}
