//! Comparing trees: what changed between two states, and what only one of several states holds.

use super::Nodes;
use super::dirty::{Base, Child};
use super::tree::{Tree, position_of};
use crate::error::Result;
use crate::format::{BlockPointer, NODE_ENTRIES, capacity};

/// A position whose content differs between two states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The position.
    pub position: u64,
    /// What it mapped to.
    pub old: BlockPointer,
    /// What it maps to.
    pub new: BlockPointer,
}

/// Tells `visit` of every position whose birth differs between two states of one line of history, in order.
///
/// Addresses are not compared, so a page that was only moved is no difference; equal subtrees are not read (M4).
///
/// # Errors
/// Those of [`Nodes::node`] and of `visit`, which end the comparison.
pub fn diff(nodes: &Nodes, old: &Tree, new: &Tree, visit: &mut dyn FnMut(Difference) -> Result<()>) -> Result<()> {
    let length = old.length().max(new.length());
    let height = old.height().max(new.height());
    if height == 0 {
        return Ok(());
    }
    Comparison { nodes, old, new, length, visit }.below(height - 1, 0)
}

struct Comparison<'a> {
    nodes: &'a Nodes,
    old: &'a Tree,
    new: &'a Tree,
    length: u64,
    visit: &'a mut dyn FnMut(Difference) -> Result<()>,
}

impl Comparison<'_> {
    /// Compares what the two trees have at `level` from `start` on.
    fn below(&mut self, level: u8, start: u64) -> Result<()> {
        let old = subtree(self.nodes, self.old, level, start)?;
        let new = subtree(self.nodes, self.new, level, start)?;
        if equal_content(&old, &new) {
            return Ok(());
        }
        for slot in 0..NODE_ENTRIES as u8 {
            let position = position_of(start, level, slot);
            if position >= self.length {
                break;
            }
            if level > 0 {
                self.below(level - 1, position)?;
                continue;
            }
            let (old, new) = (self.old.get(self.nodes, position)?, self.new.get(self.nodes, position)?);
            if old.birth != new.birth || old.is_null() != new.is_null() {
                (self.visit)(Difference { position, old, new })?;
            }
        }
        Ok(())
    }
}

/// Whether two subtrees are known to be equal without a look inside.
fn equal_content(old: &Child, new: &Child) -> bool {
    match (old, new) {
        (Child::Clean(a), Child::Clean(b)) => a.birth == b.birth && a.is_null() == b.is_null(),
        _ => old.same(new),
    }
}

/// The node of `level` that covers `start`; null where the tree has none. In a tree that is lower than `level`, the
/// whole tree stands in for the nodes above it.
fn subtree(nodes: &Nodes, tree: &Tree, level: u8, start: u64) -> Result<Child> {
    if tree.height() == 0 || start >= tree.length() {
        return Ok(Child::NULL);
    }
    if level + 1 >= tree.height() {
        return Ok(if start == 0 { tree.root.clone() } else { Child::NULL });
    }
    tree.descend(nodes, start, level + 1)
}

/// Something that only one of several states reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exclusive {
    /// A node of the tree.
    Node(BlockPointer),
    /// What a position maps to.
    Entry {
        /// The position.
        position: u64,
        /// What it maps to.
        pointer: BlockPointer,
    },
}

/// Tells `visit` of every node and every entry of `tree` that none of `others` reaches at the same position. Nodes that
/// are not on disk are left out: they hold no block.
///
/// # Errors
/// Those of [`Nodes::node`] and of `visit`, which end the comparison.
pub fn exclusive(
    nodes: &Nodes,
    tree: &Tree,
    others: &[&Tree],
    visit: &mut dyn FnMut(Exclusive) -> Result<()>,
) -> Result<()> {
    match tree.height() {
        0 => Ok(()),
        height => exclusive_below(nodes, tree, others, &tree.root, height - 1, 0, visit),
    }
}

fn exclusive_below(
    nodes: &Nodes,
    tree: &Tree,
    others: &[&Tree],
    child: &Child,
    level: u8,
    start: u64,
    visit: &mut dyn FnMut(Exclusive) -> Result<()>,
) -> Result<()> {
    if child.is_null() {
        return Ok(());
    }
    for other in others {
        // Only a node of the same level can be the same node.
        if other.height() > level && subtree(nodes, other, level, start)?.same(child) {
            return Ok(());
        }
    }
    let (base, dirty) = match child {
        Child::Clean(pointer) => {
            visit(Exclusive::Node(*pointer))?;
            (*pointer, None)
        }
        Child::Dirty(node) => match node.base {
            Base::Known(base) => (base, Some(node)),
            Base::Inherited => (BlockPointer::default(), Some(node)),
        },
    };
    let base_node = match base.is_null() {
        true => None,
        false => Some(nodes.node(&base, &tree.identity(nodes, level, start))?),
    };
    for slot in 0..NODE_ENTRIES as u8 {
        let position = position_of(start, level, slot);
        if position >= tree.length() {
            break;
        }
        let in_base = base_node.as_ref().map(|node| node.entries()[slot as usize]).unwrap_or_default();
        let clean = Child::Clean(in_base);
        let below = dirty.and_then(|node| node.slot(slot)).unwrap_or(&clean);
        if level > 0 {
            let below = match below {
                Child::Dirty(node) if matches!(node.base, Base::Inherited) => tree.descend(nodes, position, level)?,
                other => other.clone(),
            };
            exclusive_below(nodes, tree, others, &below, level - 1, position, visit)?;
        } else if let Child::Clean(pointer) = below
            && !pointer.is_null()
        {
            let mut shared = false;
            for other in others {
                shared |= other.get(nodes, position)?.birth == pointer.birth
                    && other.get(nodes, position)?.address == pointer.address;
            }
            if !shared {
                visit(Exclusive::Entry { position, pointer: *pointer })?;
            }
        }
    }
    Ok(())
}

impl Tree {
    /// Whether the tree reaches the node on disk that `pointer` leads to, of `level` and from `position` on.
    ///
    /// # Errors
    /// Those of [`Nodes::node`].
    pub fn reaches(&self, nodes: &Nodes, pointer: &BlockPointer, level: u8, position: u64) -> Result<bool> {
        if self.height() <= level || position >= self.length() || !position.is_multiple_of(capacity(level)) {
            return Ok(false);
        }
        Ok(subtree(nodes, self, level, position)?.same(&Child::Clean(*pointer)))
    }
}
