//! Reads nodes and leaves, believes none unchecked (M3), and keeps those lately used.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::Disk;
use crate::error::{Corruption, Error, Fault, Result, Structure};
use crate::format::{BlockPointer, CodecId, Node, NodeIdentity, NodeKind, checksum};
use crate::id::{BLOCK_LENGTH, PageId, StoreId};

const SHARDS: usize = 16;

/// The nodes of one store: its disk, and a cache of decoded nodes of bounded size.
#[derive(Debug)]
pub struct Nodes {
    disk: Arc<dyn Disk>,
    store: StoreId,
    shards: [Mutex<Shard>; SHARDS],
    shard_limit: usize,
}

/// Two halves: a node that is found in the older half moves to the younger; when the younger is full, the older is
/// forgotten and the younger takes its place. Second chance without a list.
#[derive(Debug, Default)]
struct Shard {
    young: HashMap<BlockPointer, Kept, BuildHasherDefault<PointerHasher>>,
    old: HashMap<BlockPointer, Kept, BuildHasherDefault<PointerHasher>>,
}

/// A node, and which one it is. A pointer alone does not say: a file made to harm has it in many places.
#[derive(Clone, Debug)]
struct Kept {
    identity: NodeIdentity,
    node: Arc<Node>,
}

impl Nodes {
    /// The nodes of the store `store` on `disk`; about `cache_nodes` nodes (of some 7 KiB each) are kept.
    pub fn new(disk: Arc<dyn Disk>, store: StoreId, cache_nodes: usize) -> Self {
        Self { disk, store, shards: Default::default(), shard_limit: (cache_nodes / SHARDS / 2).max(1) }
    }

    /// The disk.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The store's id.
    pub fn store(&self) -> StoreId {
        self.store
    }

    /// The file's name, for errors.
    pub fn path(&self) -> &Path {
        self.disk.path()
    }

    /// The node that `pointer` leads to, which must be `identity`.
    ///
    /// # Errors
    /// `Io` if it cannot be read, `Corrupt` if it is not that node.
    pub fn node(&self, pointer: &BlockPointer, identity: &NodeIdentity) -> Result<Arc<Node>> {
        let shard = &self.shards[pointer.address.0 as usize % SHARDS];
        if let Some(node) = lock(shard).find(pointer, identity) {
            return Ok(node);
        }
        let bytes = self.read_block(pointer, structure_of(identity.kind), PageId::from_u64(identity.owner))?;
        let node = Node::decode(&bytes, identity)
            .and_then(|node| match node.summary().birth <= pointer.birth {
                true => Ok(Arc::new(node)),
                false => {
                    Err(Fault::Field { field: "node birth", expected: pointer.birth.0, found: node.summary().birth.0 })
                }
            })
            .map_err(|fault| self.corrupt(pointer, structure_of(identity.kind), fault))?;
        lock(shard).keep(*pointer, Kept { identity: *identity, node: Arc::clone(&node) }, self.shard_limit);
        Ok(node)
    }

    /// Keeps a node that is being written, so that it need not be read.
    pub(super) fn remember(&self, pointer: BlockPointer, identity: &NodeIdentity, node: Node) {
        let shard = &self.shards[pointer.address.0 as usize % SHARDS];
        lock(shard).keep(pointer, Kept { identity: *identity, node: Arc::new(node) }, self.shard_limit);
    }

    /// The block that `pointer` leads to, checked against the pointer's checksum.
    ///
    /// # Errors
    /// `Io` if it cannot be read, `Corrupt` if the checksum differs or the pointer is not one to a block.
    pub fn read_block(
        &self,
        pointer: &BlockPointer,
        structure: Structure,
        page: Option<PageId>,
    ) -> Result<Box<[u8; BLOCK_LENGTH]>> {
        let with_page = |error: Error| match (error, page) {
            (Error::Corrupt(corruption), Some(_)) => Error::Corrupt(Box::new(Corruption { page, ..*corruption })),
            (error, _) => error,
        };
        if pointer.codec != CodecId::RAW {
            let (expected, found) = (CodecId::RAW.to_u8().into(), pointer.codec.to_u8().into());
            let fault = Fault::Field { field: "codec of a block", expected, found };
            return Err(with_page(self.corrupt(pointer, structure, fault)));
        }
        if pointer.stored_length as usize != BLOCK_LENGTH {
            let (expected, found) = (BLOCK_LENGTH as u64, pointer.stored_length.into());
            let fault = Fault::Field { field: "block length", expected, found };
            return Err(with_page(self.corrupt(pointer, structure, fault)));
        }
        let mut bytes = Box::new([0; BLOCK_LENGTH]);
        let offset = pointer.address.offset_bytes();
        self.disk.read_at(offset, &mut bytes[..]).map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                let file_bytes = self.disk.length().unwrap_or(0);
                with_page(self.corrupt(pointer, structure, Fault::Truncated { file_bytes }))
            }
            _ => Error::Io { operation: "read", path: self.path().into(), offset: Some(offset), source },
        })?;
        let found = checksum(&bytes[..]);
        if found != pointer.checksum {
            let fault = Fault::Checksum { expected: pointer.checksum, found };
            return Err(with_page(self.corrupt(pointer, structure, fault)));
        }
        Ok(bytes)
    }

    fn corrupt(&self, pointer: &BlockPointer, structure: Structure, fault: Fault) -> Error {
        let offset = pointer.address.offset_bytes();
        Corruption { path: self.path().into(), structure, page: None, offset, fault }.into()
    }
}

impl Shard {
    /// The node, if it is kept and is the one looked for; reading it says what is wrong if it is another.
    fn find(&mut self, pointer: &BlockPointer, identity: &NodeIdentity) -> Option<Arc<Node>> {
        if let Some(kept) = self.young.get(pointer) {
            return kept.if_it_is(identity);
        }
        let kept = self.old.remove(pointer)?;
        let node = kept.if_it_is(identity);
        self.young.insert(*pointer, kept);
        node
    }

    fn keep(&mut self, pointer: BlockPointer, kept: Kept, limit: usize) {
        if self.young.len() >= limit {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(pointer, kept);
    }
}

impl Kept {
    fn if_it_is(&self, identity: &NodeIdentity) -> Option<Arc<Node>> {
        (self.identity == *identity).then(|| Arc::clone(&self.node))
    }
}

/// A panic while a shard is locked leaves it whole, so its poison means nothing.
fn lock(shard: &Mutex<Shard>) -> std::sync::MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn structure_of(kind: NodeKind) -> Structure {
    match kind {
        NodeKind::Map => Structure::MapNode,
        NodeKind::Chunk => Structure::ChunkNode,
        NodeKind::Bitmap => Structure::Bitmap,
        NodeKind::Catalogue => Structure::Catalogue,
        NodeKind::Deferred => Structure::DeferredList,
    }
}

/// Pointers hold a checksum and an address: mixing them is hash enough.
#[derive(Default)]
pub(crate) struct PointerHasher(u64);

impl Hasher for PointerHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(26) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use crate::format::{NodeSummary, PointerFlags};
    use crate::id::{Block, CheckpointNumber, Generation};

    /// Whether it was read, or written by this process and remembered.
    #[test]
    fn a_node_in_memory_is_believed_only_to_be_what_it_is() {
        let disk = Arc::new(MemoryDisk::new());
        let store = StoreId([1; 16]);
        let identity = NodeIdentity { store, kind: NodeKind::Map, class: 12, owner: 0, level: 1, position: 168 * 168 };
        let mut node = Node::empty();
        let summary = NodeSummary { birth: Generation(0), checkpoint: CheckpointNumber(1), free_entries: 0 };
        node.set_summary(summary);
        let bytes = node.encode(&identity, summary);
        let pointer = BlockPointer {
            address: Block(30),
            codec: CodecId::RAW,
            flags: PointerFlags::default(),
            stored_length: BLOCK_LENGTH as u32,
            checksum: checksum(&bytes),
            birth: Generation(0),
        };
        disk.write_at(pointer.address.offset_bytes(), &bytes).unwrap();
        for remembered in [false, true] {
            let nodes = Nodes::new(Arc::clone(&disk) as _, store, 64);
            if remembered {
                nodes.remember(pointer, &identity, node.clone());
            }
            let first = nodes.node(&pointer, &identity).unwrap();
            for wrong in [
                NodeIdentity { kind: NodeKind::Chunk, ..identity },
                NodeIdentity { class: 13, ..identity },
                NodeIdentity { owner: 1, ..identity },
                NodeIdentity { level: 0, ..identity },
                NodeIdentity { position: 0, ..identity },
                NodeIdentity { position: 2 * 168 * 168, ..identity },
            ] {
                let unread = Nodes::new(Arc::clone(&disk) as _, store, 64).node(&pointer, &wrong).unwrap_err();
                let found = nodes.node(&pointer, &wrong).map(drop).unwrap_err();
                assert!(matches!(found, Error::Corrupt(_)), "{wrong:?}: {found}");
                assert_eq!(found.to_string(), unread.to_string());
            }
            assert!(Arc::ptr_eq(&first, &nodes.node(&pointer, &identity).unwrap()), "it stays in memory");
        }
    }
}
