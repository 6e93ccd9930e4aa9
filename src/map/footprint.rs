//! What the nodes of trees that differ from the disk take in memory.

use std::collections::HashSet;
use std::sync::Arc;

use super::dirty::{Child, DirtyNode};
use super::tree::Tree;

/// Nodes in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// How many.
    pub nodes: usize,
    /// Their bytes.
    pub bytes: usize,
}

impl Footprint {
    /// At most so many bytes for a node.
    pub const NODE_BYTES: usize = size_of::<DirtyNode>() + COUNTS + 256 * size_of::<Child>();
}

/// What a counted reference adds to what it counts.
const COUNTS: usize = 2 * size_of::<usize>();

impl std::ops::AddAssign for Footprint {
    fn add_assign(&mut self, other: Self) {
        self.nodes += other.nodes;
        self.bytes += other.bytes;
    }
}

impl Tree {
    /// The nodes of the tree that differ from the disk and are not among those `seen`, to which they are added. Nodes are
    /// known by their addresses, so whatever was seen must live as long as `seen` is used.
    pub fn footprint(&self, seen: &mut HashSet<usize>) -> Footprint {
        let mut found = Footprint::default();
        if let Child::Dirty(root) = &self.root {
            add(root, self.height().saturating_sub(1), seen, &mut found);
        }
        found
    }
}

/// What is below a node that was seen was seen with it.
fn add(node: &Arc<DirtyNode>, level: u8, seen: &mut HashSet<usize>, found: &mut Footprint) {
    if !seen.insert(Arc::as_ptr(node).addr()) {
        return;
    }
    let bytes = size_of::<DirtyNode>() + COUNTS + node.slots.memory_bytes();
    *found += Footprint { nodes: 1, bytes };
    // At level 0 the children are what the tree maps to.
    if level == 0 {
        return;
    }
    for (_, child) in node.slots.iter() {
        if let Child::Dirty(below) = child {
            add(below, level - 1, seen, found);
        }
    }
}
