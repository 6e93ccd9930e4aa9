//! Looking up and setting many positions at once: every node on the way is met once.

use std::cell::OnceCell;
use std::sync::Arc;

use super::Nodes;
use super::dirty::{Base, Child, DirtyNode};
use super::tree::{Tree, slot_of};
use crate::error::Result;
use crate::format::{BlockPointer, Node};

/// A node in memory on the way down, and the node on disk that it stands for: read when a slot of it is wanted.
struct Above<'a> {
    tree: &'a Tree,
    nodes: &'a Nodes,
    node: &'a DirtyNode,
    parent: Option<&'a Above<'a>>,
    level: u8,
    position: u64,
    base: OnceCell<Option<Arc<Node>>>,
}

impl Above<'_> {
    /// What the node on disk has in the slot that covers `position`.
    fn in_base(&self, position: u64) -> Result<BlockPointer> {
        let base = match self.base.get() {
            Some(base) => base,
            None => {
                let pointer = match (self.node.base, self.parent) {
                    (Base::Known(pointer), _) => pointer,
                    (Base::Inherited, Some(parent)) => parent.in_base(self.position)?,
                    (Base::Inherited, None) => BlockPointer::default(),
                };
                let base = node_at(self.tree, self.nodes, &pointer, self.level, self.position)?;
                self.base.get_or_init(|| base)
            }
        };
        let slot = slot_of(position, self.level);
        Ok(base.as_ref().map(|node| node.entries()[slot as usize]).unwrap_or_default())
    }
}

fn node_at(tree: &Tree, nodes: &Nodes, pointer: &BlockPointer, level: u8, position: u64) -> Result<Option<Arc<Node>>> {
    match pointer.is_null() {
        true => Ok(None),
        false => nodes.node(pointer, &tree.identity(nodes, level, position)).map(Some),
    }
}

impl Tree {
    /// What each of `positions` maps to, as [`Tree::get`] says; they rise.
    ///
    /// # Errors
    /// Those of [`Nodes::node`].
    pub fn get_many(&self, nodes: &Nodes, positions: &[u64]) -> Result<Vec<BlockPointer>> {
        let inside = positions.partition_point(|position| *position < self.length());
        let mut found = Vec::with_capacity(positions.len());
        if inside > 0 {
            self.many(nodes, &self.root, None, self.height() - 1, &positions[..inside], &mut found)?;
        }
        found.resize(positions.len(), BlockPointer::default());
        Ok(found)
    }

    /// Adds what `positions`, all below one node of `level`, map to.
    fn many(
        &self,
        nodes: &Nodes,
        child: &Child,
        parent: Option<&Above<'_>>,
        level: u8,
        positions: &[u64],
        found: &mut Vec<BlockPointer>,
    ) -> Result<()> {
        let Some(&first) = positions.first() else { return Ok(()) };
        let dirty = match child {
            Child::Clean(pointer) => {
                let node = node_at(self, nodes, pointer, level, first)?;
                for group in groups(positions, level) {
                    let slot = slot_of(group[0], level);
                    let below = node.as_ref().map(|node| node.entries()[slot as usize]).unwrap_or_default();
                    match level {
                        0 => found.push(below),
                        _ => self.many(nodes, &Child::Clean(below), None, level - 1, group, found)?,
                    }
                }
                return Ok(());
            }
            Child::Dirty(node) => node,
        };
        let above = Above { tree: self, nodes, node: dirty, parent, level, position: first, base: OnceCell::new() };
        for group in groups(positions, level) {
            let clean;
            let below = match dirty.slot(slot_of(group[0], level)) {
                Some(below) => below,
                None => {
                    clean = Child::Clean(above.in_base(group[0])?);
                    &clean
                }
            };
            match (level, below) {
                (0, Child::Clean(pointer)) => found.push(*pointer),
                // At level 0 the children of a node are what the tree maps to, and always clean.
                (0, Child::Dirty(_)) => found.push(BlockPointer::default()),
                (_, below) => self.many(nodes, below, Some(&above), level - 1, group, found)?,
            }
        }
        Ok(())
    }

    /// Maps each position to its pointer, as [`Tree::set`] does; the positions rise. Returns how many nodes came to
    /// differ from the disk by this.
    pub fn set_many(&mut self, changes: &[(u64, BlockPointer)]) -> usize {
        let inside = changes.partition_point(|(position, _)| *position < self.length());
        let (inside, beyond) = changes.split_at(inside);
        let mut created = 0;
        if !inside.is_empty() {
            let top = self.height() - 1;
            set_below(self.root.make_dirty(&mut created), top, inside, &mut created);
        }
        beyond.iter().for_each(|(position, pointer)| created += self.set(*position, *pointer));
        created
    }
}

fn set_below(node: &mut DirtyNode, level: u8, changes: &[(u64, BlockPointer)], created: &mut usize) {
    for group in changes.chunk_by(|a, b| slot_of(a.0, level) == slot_of(b.0, level)) {
        match level {
            0 => group.iter().for_each(|(position, pointer)| node.set_slot(slot_of(*position, 0), *pointer)),
            _ => set_below(node.inner_mut(slot_of(group[0].0, level), created), level - 1, group, created),
        }
    }
}

/// The positions by the slots that cover them.
fn groups(positions: &[u64], level: u8) -> impl Iterator<Item = &[u64]> {
    positions.chunk_by(move |a, b| slot_of(*a, level) == slot_of(*b, level))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Disk, MemoryDisk};
    use crate::format::{Codec, TreeRoot};
    use crate::id::{BLOCK_LENGTH, Block, CheckpointNumber, Generation, SizeClass, StoreId};
    use crate::map::{Home, Shape, TreeWriter};

    /// Puts nodes one behind the other.
    struct Behind<'a> {
        disk: &'a MemoryDisk,
        next: u64,
    }

    impl Home for Behind<'_> {
        fn place(&mut self, bytes: &[u8; BLOCK_LENGTH]) -> Result<Block> {
            self.next += 1;
            self.disk.write_at(Block(self.next).offset_bytes(), bytes).unwrap();
            Ok(Block(self.next))
        }
    }

    fn pointer(address: u64, birth: u64) -> BlockPointer {
        BlockPointer {
            address: Block(1 << 20 | address),
            codec: Codec::Raw,
            stored_length: 4096,
            ..BlockPointer::null(Generation(birth))
        }
    }

    #[test]
    fn many_at_once_are_what_they_are_one_by_one() {
        let disk = Arc::new(MemoryDisk::new());
        let nodes = Nodes::new(Arc::clone(&disk) as _, StoreId([1; 16]), 64);
        let mut home = Behind { disk: &disk, next: 64 };
        let mut tree = Tree::empty(Shape::map(SizeClass::MIN));
        let mut twin = tree.clone();
        let mut random = 1u64;
        let mut below = |limit: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % limit
        };
        let mut written = 0;
        for round in 1..120 {
            let limit = [200, 30_000, 6_000_000][round as usize % 3];
            let mut positions: Vec<u64> = (0..1 + below(60)).map(|_| below(limit)).collect();
            positions.sort_unstable();
            positions.dedup();
            let changes: Vec<_> = positions.iter().map(|at| (*at, pointer(below(1 << 20), round))).collect();
            let created = tree.set_many(&changes);
            let one_by_one: usize = changes.iter().map(|(at, pointer)| twin.set(*at, *pointer)).sum();
            assert_eq!((created, tree.length()), (one_by_one, twin.length()));
            if below(8) == 0 {
                let root = TreeWriter::new(&nodes, CheckpointNumber(1), &mut home).write(&tree).unwrap().0;
                let TreeRoot { pointer, length } = root.clean_root().unwrap();
                tree = Tree::from_root(Shape::map(SizeClass::MIN), TreeRoot { pointer, length });
                twin = tree.clone();
                written += 1;
            }
            let mut asked: Vec<u64> = (0..200).map(|_| below(limit + 400)).chain(positions).collect();
            asked.sort_unstable();
            asked.dedup();
            let found = tree.get_many(&nodes, &asked).unwrap();
            let expected: Vec<_> = asked.iter().map(|at| twin.get(&nodes, *at).unwrap()).collect();
            assert_eq!(found, expected, "round {round}");
        }
        assert!(written > 3);
        assert!(tree.get_many(&nodes, &[]).unwrap().is_empty());
    }
}
