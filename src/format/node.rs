//! The tree node: one block, a header of 64 bytes and 168 block pointers.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::pointer::RawPointer;
use super::{BlockPointer, expect, reserved_zero};
use crate::error::Fault;
use crate::id::{BLOCK_LENGTH, CheckpointNumber, Generation, StoreId};

/// Pointers in a node.
pub const NODE_ENTRIES: usize = 168;

const MAGIC: u32 = u32::from_le_bytes(*b"VLnd");

/// What a tree maps, and so what a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeKind {
    /// Page indices of one size class to pages.
    Map,
    /// Chunk numbers of one large page to chunks.
    Chunk,
    /// Leaf numbers to leaves of the allocation bitmap.
    Bitmap,
    /// Slots to entries of the catalogue of snapshots and bookmarks.
    Catalogue,
    /// Numbers to blocks of the deferred list.
    Deferred,
}

impl NodeKind {
    const fn id(self) -> u8 {
        match self {
            Self::Map => 1,
            Self::Chunk => 2,
            Self::Bitmap => 3,
            Self::Catalogue => 4,
            Self::Deferred => 5,
        }
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawNode {
    magic: U32,
    kind: u8,
    level: u8,
    class: u8,
    reserved: u8,
    store: [u8; 16],
    position: U64,
    birth: U64,
    checkpoint: U64,
    free_entries: U64,
    owner: U64,
    entries: [RawPointer; NODE_ENTRIES],
}

const _: () = {
    assert!(size_of::<RawNode>() == BLOCK_LENGTH);
    assert!(std::mem::offset_of!(RawNode, store) == 8);
    assert!(std::mem::offset_of!(RawNode, position) == 24);
    assert!(std::mem::offset_of!(RawNode, birth) == 32);
    assert!(std::mem::offset_of!(RawNode, checkpoint) == 40);
    assert!(std::mem::offset_of!(RawNode, free_entries) == 48);
    assert!(std::mem::offset_of!(RawNode, owner) == 56);
    assert!(std::mem::offset_of!(RawNode, entries) == 64);
};

/// Which node this is: what a reader that followed a pointer must find in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    /// The store.
    pub store: StoreId,
    /// What the tree maps.
    pub kind: NodeKind,
    /// The size class (its logarithm) of a map's pages or of a chunked page, else 0.
    pub class: u8,
    /// The chunked page's id, else 0.
    pub owner: u64,
    /// Height above the entries: 0 where the pointers lead to what the tree maps.
    pub level: u8,
    /// The first of the positions that the node covers.
    pub position: u64,
}

/// What a node's header says of its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeSummary {
    /// The youngest birth among the entries.
    pub birth: Generation,
    /// The checkpoint that wrote the node; 0 for a node that a commit wrote.
    pub checkpoint: CheckpointNumber,
    /// Free page indices below the node (maps only).
    pub free_entries: u64,
}

/// How many positions a node of this level covers, saturating.
pub const fn capacity(level: u8) -> u64 {
    let mut capacity = NODE_ENTRIES as u64;
    let mut above = level;
    while above > 0 {
        capacity = capacity.saturating_mul(NODE_ENTRIES as u64);
        above -= 1;
    }
    capacity
}

/// How many levels a tree of this many positions has; 0 for an empty one.
pub const fn height_of(length: u64) -> u8 {
    if length == 0 {
        return 0;
    }
    let mut height = 1;
    while capacity(height - 1) < length {
        height += 1;
    }
    height
}

/// A decoded node. Its pointers were checked when it was decoded.
#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    entries: Box<[BlockPointer; NODE_ENTRIES]>,
    summary: NodeSummary,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("summary", &self.summary).finish_non_exhaustive()
    }
}

impl Node {
    /// A node of null pointers.
    pub fn empty() -> Self {
        Self { entries: Box::new([BlockPointer::default(); NODE_ENTRIES]), summary: NodeSummary::default() }
    }

    /// The pointers.
    pub fn entries(&self) -> &[BlockPointer; NODE_ENTRIES] {
        &self.entries
    }

    /// The pointers, to be changed before [`Node::encode`].
    pub fn entries_mut(&mut self) -> &mut [BlockPointer; NODE_ENTRIES] {
        &mut self.entries
    }

    /// What the header says.
    pub fn summary(&self) -> NodeSummary {
        self.summary
    }

    /// Sets what the header says, as [`Node::encode`] was told.
    pub fn set_summary(&mut self, summary: NodeSummary) {
        self.summary = summary;
    }

    /// The node's block.
    pub fn encode(&self, identity: &NodeIdentity, summary: NodeSummary) -> [u8; BLOCK_LENGTH] {
        let raw = RawNode {
            magic: U32::new(MAGIC),
            kind: identity.kind.id(),
            level: identity.level,
            class: identity.class,
            reserved: 0,
            store: identity.store.0,
            position: U64::new(identity.position),
            birth: U64::new(summary.birth.0),
            checkpoint: U64::new(summary.checkpoint.0),
            free_entries: U64::new(summary.free_entries),
            owner: U64::new(identity.owner),
            entries: std::array::from_fn(|index| self.entries[index].to_raw()),
        };
        zerocopy::transmute!(raw)
    }

    /// Decodes a block that is to be the node `identity`.
    ///
    /// # Errors
    /// The first field that is not as it must be.
    pub fn decode(bytes: &[u8; BLOCK_LENGTH], identity: &NodeIdentity) -> Result<Self, Fault> {
        let raw: &RawNode = zerocopy::transmute_ref!(bytes);
        expect("node magic", MAGIC.into(), raw.magic.get().into())?;
        expect("node kind", identity.kind.id().into(), raw.kind.into())?;
        expect("node level", identity.level.into(), raw.level.into())?;
        expect("node class", identity.class.into(), raw.class.into())?;
        reserved_zero("node reserved", &[raw.reserved])?;
        if raw.store != identity.store.0 {
            return Err(Fault::Other("the node belongs to another store"));
        }
        expect("node position", identity.position, raw.position.get())?;
        expect("node owner", identity.owner, raw.owner.get())?;
        let mut node = Self::empty();
        let mut birth = Generation(0);
        for (entry, raw) in node.entries.iter_mut().zip(&raw.entries) {
            *entry = BlockPointer::from_raw(raw)?;
            birth = birth.max(entry.birth);
        }
        expect("node birth", birth.0, raw.birth.get())?;
        node.summary = NodeSummary {
            birth,
            checkpoint: CheckpointNumber(raw.checkpoint.get()),
            free_entries: raw.free_entries.get(),
        };
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{CodecId, PointerFlags};
    use crate::id::Block;

    #[test]
    fn heights_follow_from_lengths() {
        assert_eq!(height_of(0), 0);
        assert_eq!(height_of(1), 1);
        assert_eq!(height_of(168), 1);
        assert_eq!(height_of(169), 2);
        assert_eq!(height_of(168 * 168 + 1), 3);
        assert_eq!(height_of(u64::MAX), 9);
    }

    fn sample() -> (Node, NodeIdentity, NodeSummary) {
        let identity = NodeIdentity {
            store: StoreId([7; 16]),
            kind: NodeKind::Map,
            class: 12,
            owner: 0,
            level: 1,
            position: 168 * 168,
        };
        let mut node = Node::empty();
        node.entries_mut()[5] = BlockPointer {
            address: Block(99),
            codec: CodecId::RAW,
            flags: PointerFlags::FREE_BELOW,
            stored_length: 4096,
            checksum: 0xdead_beef,
            birth: Generation(12),
        };
        node.entries_mut()[6] = BlockPointer::null(Generation(13));
        node.entries_mut()[7] = BlockPointer::zero(Generation(4));
        let summary = NodeSummary { birth: Generation(13), checkpoint: CheckpointNumber(3), free_entries: 1 };
        (node, identity, summary)
    }

    #[test]
    fn a_node_survives_its_bytes() {
        let (node, identity, summary) = sample();
        let read = Node::decode(&node.encode(&identity, summary), &identity).unwrap();
        assert_eq!(read.entries(), node.entries());
        assert_eq!(read.summary(), summary);
    }

    #[test]
    fn a_node_of_another_place_is_refused() {
        let (node, identity, summary) = sample();
        let bytes = node.encode(&identity, summary);
        for wrong in [
            NodeIdentity { store: StoreId([8; 16]), ..identity },
            NodeIdentity { kind: NodeKind::Chunk, ..identity },
            NodeIdentity { class: 13, ..identity },
            NodeIdentity { owner: 1, ..identity },
            NodeIdentity { level: 0, ..identity },
            NodeIdentity { position: 0, ..identity },
        ] {
            assert!(Node::decode(&bytes, &wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn hostile_pointers_are_refused() {
        let (node, identity, summary) = sample();
        let good = node.encode(&identity, summary);
        let entry = 64 + 5 * 24;
        for (offset, value) in [(6, 77), (7, 0x80), (11, 0xff), (0, 3)] {
            let mut bad = good;
            bad[entry + offset] = value;
            assert!(Node::decode(&bad, &identity).is_err(), "byte {offset} = {value}");
        }
    }
}
