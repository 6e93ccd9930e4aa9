//! Writing trees: every changed node gets a place, bottom up, and the tree is clean again.

use std::collections::HashMap;
use std::sync::Arc;

use super::Nodes;
use super::dirty::{Base, Child, DirtyNode};
use super::tree::{Shape, Tree, position_of};
use crate::error::Result;
use crate::format::{
    BlockPointer, CodecId, NODE_ENTRIES, Node, NodeIdentity, NodeKind, NodeSummary, PointerFlags, TreeRoot, checksum,
};
use crate::id::{BLOCK_LENGTH, Block, CheckpointNumber, Generation};

/// Where a node goes.
pub trait Home {
    /// Takes a node's bytes and says in which block they will lie.
    ///
    /// # Errors
    /// Whatever keeps it from taking more.
    fn place(&mut self, bytes: &[u8; BLOCK_LENGTH]) -> Result<Block>;

    /// Whether the blocks are real, and what goes there is worth keeping in memory.
    fn is_real(&self) -> bool {
        true
    }
}

/// A node on disk that a node just written replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// Where it lies.
    pub pointer: BlockPointer,
    /// The checkpoint that wrote it.
    pub checkpoint: CheckpointNumber,
    /// Its level.
    pub level: u8,
    /// The first position it covers.
    pub position: u64,
}

/// Writes trees that share changed nodes; each such node is written once.
pub struct TreeWriter<'a> {
    nodes: &'a Nodes,
    checkpoint: CheckpointNumber,
    home: &'a mut dyn Home,
    /// Nodes already written, by their address in memory. They are kept alive here, so that no other takes it.
    written: HashMap<usize, (Arc<DirtyNode>, Outcome)>,
}

/// A node that was written, or one that stays.
#[derive(Clone, Copy)]
struct Outcome {
    pointer: BlockPointer,
    /// Free indices in the nodes from here on down; what lies below a null pointer is not counted.
    free: u64,
}

impl<'a> TreeWriter<'a> {
    /// Writes nodes to `home`, marked as those of `checkpoint` (0: a commit's).
    pub fn new(nodes: &'a Nodes, checkpoint: CheckpointNumber, home: &'a mut dyn Home) -> Self {
        Self { nodes, checkpoint, home, written: HashMap::new() }
    }

    /// Writes the changed nodes of `tree`. Returns the tree as it then lies on disk, and the nodes on disk that it no
    /// longer reaches and the tree it came from did.
    ///
    /// # Errors
    /// Those of [`Nodes::node`] (a changed node is merged with its base) and of [`Home::place`].
    pub fn write(&mut self, tree: &Tree) -> Result<(Tree, Vec<Replaced>)> {
        let mut replaced = Vec::new();
        let pointer = match &tree.root {
            Child::Clean(pointer) => *pointer,
            Child::Dirty(node) => {
                let top = tree.height() - 1;
                self.node(tree, node, BlockPointer::default(), top, 0, &mut replaced)?.pointer
            }
        };
        Ok((Tree::from_root(tree.shape, TreeRoot { pointer, length: tree.length() }), replaced))
    }

    fn node(
        &mut self,
        tree: &Tree,
        node: &Arc<DirtyNode>,
        inherited: BlockPointer,
        level: u8,
        start: u64,
        replaced: &mut Vec<Replaced>,
    ) -> Result<Outcome> {
        let base = match node.base {
            Base::Known(base) => base,
            Base::Inherited => inherited,
        };
        let identity = tree.identity(self.nodes, level, start);
        let base_node = match base.is_null() {
            true => None,
            false => Some(self.nodes.node(&base, &identity)?),
        };
        if let Some(base_node) = &base_node {
            let checkpoint = base_node.summary().checkpoint;
            replaced.push(Replaced { pointer: base, checkpoint, level, position: start });
        }
        if let Some((_, outcome)) = self.written.get(&(Arc::as_ptr(node) as usize)) {
            let outcome = *outcome;
            // Its children were written too, but what they replace belongs on this tree's list as well.
            for (slot, child) in node.slots.iter().filter(|_| level > 0) {
                if let Child::Dirty(below) = child {
                    let in_base = base_node.as_ref().map(|node| node.entries()[slot as usize]).unwrap_or_default();
                    self.node(tree, below, in_base, level - 1, position_of(start, level, slot), replaced)?;
                }
            }
            return Ok(outcome);
        }
        let mut merged = base_node.as_deref().cloned().unwrap_or_else(Node::empty);
        let mut free = merged.summary().free_entries;
        for (slot, child) in node.slots.iter() {
            let in_base = merged.entries()[slot as usize];
            let position = position_of(start, level, slot);
            let pointer = match (level, child) {
                (0, Child::Clean(pointer)) => *pointer,
                (0, Child::Dirty(_)) => unreachable!("a child at level 0 is what the tree maps to"),
                (_, child) => {
                    let before = self.free_below(tree, &in_base, level - 1, position)?;
                    let outcome = match child {
                        Child::Dirty(below) => self.node(tree, below, in_base, level - 1, position, replaced)?,
                        Child::Clean(pointer) => {
                            Outcome { pointer: *pointer, free: self.free_below(tree, pointer, level - 1, position)? }
                        }
                    };
                    free = (free + outcome.free).saturating_sub(before);
                    outcome.pointer
                }
            };
            merged.entries_mut()[slot as usize] = pointer;
        }
        if tree.shape.kind != NodeKind::Map {
            free = 0;
        } else if level == 0 {
            let inside = tree.length().saturating_sub(start).min(NODE_ENTRIES as u64) as usize;
            free = merged.entries()[..inside].iter().filter(|pointer| pointer.is_null()).count() as u64;
        }
        let flags = match tree.shape.kind == NodeKind::Map && (free > 0 || has_gap(&merged, tree, level, start)) {
            true => PointerFlags::FREE_BELOW,
            false => PointerFlags::default(),
        };
        let outcome = self.place(merged, &identity, free, flags)?;
        self.written.insert(Arc::as_ptr(node) as usize, (Arc::clone(node), outcome));
        Ok(outcome)
    }

    /// How many free indices a clean subtree has; its header says.
    fn free_below(&self, tree: &Tree, pointer: &BlockPointer, level: u8, position: u64) -> Result<u64> {
        if pointer.is_null() || tree.shape.kind != NodeKind::Map {
            return Ok(0);
        }
        Ok(self.nodes.node(pointer, &tree.identity(self.nodes, level, position))?.summary().free_entries)
    }

    fn place(&mut self, mut node: Node, identity: &NodeIdentity, free: u64, flags: PointerFlags) -> Result<Outcome> {
        let birth = node.entries().iter().map(|pointer| pointer.birth).max().unwrap_or(Generation(0));
        let summary = NodeSummary { birth, checkpoint: self.checkpoint, free_entries: free };
        let bytes = node.encode(identity, summary);
        let address = self.home.place(&bytes)?;
        let pointer = BlockPointer {
            address,
            codec: CodecId::RAW,
            flags,
            stored_length: BLOCK_LENGTH as u32,
            checksum: checksum(&bytes),
            birth,
        };
        if self.home.is_real() {
            // Whoever reads the new tree next finds its nodes in memory.
            node.set_summary(summary);
            self.nodes.remember(pointer, identity, node);
        }
        Ok(Outcome { pointer, free })
    }
}

/// Whether a node has a null pointer to what lies before the tree's end.
fn has_gap(node: &Node, tree: &Tree, level: u8, start: u64) -> bool {
    let inside = (0..NODE_ENTRIES as u8).take_while(|slot| position_of(start, level, *slot) < tree.length());
    inside.zip(node.entries()).any(|(_, pointer)| pointer.is_null())
}

impl Shape {
    /// At most how many nodes a tree of `length` positions has.
    pub fn nodes_at_most(length: u64) -> u64 {
        let mut level = length;
        let mut nodes = 0;
        while level > 1 || (nodes == 0 && level == 1) {
            level = level.div_ceil(NODE_ENTRIES as u64);
            nodes += level;
        }
        nodes
    }
}
