//! The tree as a value: look-up, change, and search.

use std::ops::ControlFlow;

use super::Nodes;
use super::dirty::{Base, Child, DirtyNode};
use crate::error::Result;
use crate::format::{BlockPointer, NODE_ENTRIES, NodeIdentity, NodeKind, PointerFlags, TreeRoot, capacity, height_of};
use crate::id::{Generation, PageId, SizeClass};

/// What a tree is of: said in each of its nodes' headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// What it maps.
    pub kind: NodeKind,
    /// The logarithm of the pages' size for a map or a page of chunks, else 0.
    pub class: u8,
    /// The number of the page whose chunks it maps, else 0.
    pub owner: u64,
}

impl Shape {
    /// The map of the pages of a class.
    pub const fn map(class: SizeClass) -> Self {
        Self { kind: NodeKind::Map, class: class.log2(), owner: 0 }
    }

    /// The chunks of a page.
    pub const fn chunks(page: PageId) -> Self {
        Self { kind: NodeKind::Chunk, class: page.class().log2(), owner: page.to_u64() }
    }

    /// A tree of something that there is one of in a store.
    pub const fn of(kind: NodeKind) -> Self {
        Self { kind, class: 0, owner: 0 }
    }
}

/// A tree from positions to block pointers: a value, cheap to clone (M1).
#[derive(Clone, Debug)]
pub struct Tree {
    pub(super) shape: Shape,
    pub(super) root: Child,
    length: u64,
    height: u8,
}

/// The slot of `position` in a node of `level`.
pub(super) fn slot_of(position: u64, level: u8) -> u8 {
    let below = if level == 0 { 1 } else { capacity(level - 1) };
    (position / below % NODE_ENTRIES as u64) as u8
}

/// The first position below a slot of the node of `level` that starts at `position`.
pub(super) fn position_of(position: u64, level: u8, slot: u8) -> u64 {
    let below = if level == 0 { 1 } else { capacity(level - 1) };
    position.saturating_add(below.saturating_mul(slot.into()))
}

impl Tree {
    /// The tree without positions.
    pub fn empty(shape: Shape) -> Self {
        Self { shape, root: Child::NULL, length: 0, height: 0 }
    }

    /// The tree that lies on disk under `root`.
    pub fn from_root(shape: Shape, root: TreeRoot) -> Self {
        Self { shape, root: Child::Clean(root.pointer), length: root.length, height: height_of(root.length) }
    }

    /// How many positions there are: one more than the largest ever set.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// How many levels of nodes there are.
    pub fn height(&self) -> u8 {
        self.height
    }

    /// Whether the tree maps to pages or chunks, and not to blocks of Vellum's own.
    pub fn is_of_pages(&self) -> bool {
        matches!(self.shape.kind, NodeKind::Map | NodeKind::Chunk)
    }

    /// The root on disk, or `None` while the tree differs from what is there.
    pub fn clean_root(&self) -> Option<TreeRoot> {
        match self.root {
            Child::Clean(pointer) => Some(TreeRoot { pointer, length: self.length }),
            Child::Dirty(_) => None,
        }
    }

    /// Which node covers `position` at `level`.
    pub(super) fn identity(&self, nodes: &Nodes, level: u8, position: u64) -> NodeIdentity {
        let start = position - position % capacity(level);
        NodeIdentity {
            store: nodes.store(),
            kind: self.shape.kind,
            class: self.shape.class,
            owner: self.shape.owner,
            level,
            position: start,
        }
    }

    /// What `position` maps to; null beyond the length.
    ///
    /// # Errors
    /// Those of [`Nodes::node`].
    pub fn get(&self, nodes: &Nodes, position: u64) -> Result<BlockPointer> {
        if position >= self.length {
            return Ok(BlockPointer::default());
        }
        match self.descend(nodes, position, 0)? {
            // At level 0 the children of a node are what the tree maps to, and always clean.
            Child::Dirty(_) => Ok(BlockPointer::default()),
            Child::Clean(pointer) => Ok(pointer),
        }
    }

    /// What lies below the node of `level` that covers `position`: at level 0, what `position` maps to; else the child
    /// that is a node of `level - 1`. A child in memory whose base is inherited comes back with that base.
    ///
    /// The caller has made sure that `level` is below the height and `position` below the length.
    pub(super) fn descend(&self, nodes: &Nodes, position: u64, level: u8) -> Result<Child> {
        // The clean node that the present node stands for is known by the nearest ancestor whose base is known.
        let mut child = &self.root;
        let mut at = self.height - 1;
        let mut known = (self.height - 1, BlockPointer::default());
        loop {
            match child {
                Child::Clean(pointer) => return self.descend_clean(nodes, *pointer, position, at, level),
                Child::Dirty(node) => {
                    if let Base::Known(base) = node.base {
                        known = (at, base);
                    }
                    match node.slot(slot_of(position, at)) {
                        Some(below) if at == level => {
                            return match below {
                                Child::Clean(_) => Ok(below.clone()),
                                Child::Dirty(inner) => self.with_base(nodes, inner, known, position, at),
                            };
                        }
                        Some(below) => child = below,
                        None => return self.descend_clean(nodes, known.1, position, known.0, level),
                    }
                    at -= 1;
                }
            }
        }
    }

    /// A child in memory, with its base looked up if it is inherited.
    fn with_base(
        &self,
        nodes: &Nodes,
        node: &std::sync::Arc<DirtyNode>,
        known: (u8, BlockPointer),
        position: u64,
        level: u8,
    ) -> Result<Child> {
        if matches!(node.base, Base::Known(_)) {
            return Ok(Child::Dirty(std::sync::Arc::clone(node)));
        }
        let base = match self.descend_clean(nodes, known.1, position, known.0, level)? {
            Child::Clean(pointer) => pointer,
            Child::Dirty(_) => BlockPointer::default(),
        };
        let resolved = DirtyNode { base: Base::Known(base), slots: node.slots.clone() };
        Ok(Child::Dirty(std::sync::Arc::new(resolved)))
    }

    fn descend_clean(
        &self,
        nodes: &Nodes,
        mut pointer: BlockPointer,
        position: u64,
        mut at: u8,
        level: u8,
    ) -> Result<Child> {
        loop {
            if pointer.is_null() {
                return Ok(Child::Clean(BlockPointer::default()));
            }
            let node = nodes.node(&pointer, &self.identity(nodes, at, position))?;
            pointer = node.entries()[slot_of(position, at) as usize];
            if at == level {
                return Ok(Child::Clean(pointer));
            }
            at -= 1;
        }
    }

    /// Maps `position` to `pointer`. Returns how many nodes came to differ from the disk by this.
    pub fn set(&mut self, position: u64, pointer: BlockPointer) -> usize {
        let mut created = 0;
        if position >= self.length {
            self.grow(position, &mut created);
        }
        let node = self.leaf_mut(position, &mut created);
        node.set_slot(slot_of(position, 0), pointer);
        created
    }

    /// The node of level 0 that covers `position`, in memory.
    fn leaf_mut(&mut self, position: u64, created: &mut usize) -> &mut DirtyNode {
        let mut node = self.root.make_dirty(created);
        for level in (1..self.height).rev() {
            node = node.inner_mut(slot_of(position, level), created);
        }
        node
    }

    /// Makes `position` the last one. In a page map the nodes that ended where the tree did are written anew: they have
    /// free indices now. What is skipped beyond them needs no nodes: below a null pointer every index is free.
    fn grow(&mut self, position: u64, created: &mut usize) {
        let skipped = self.length..position;
        self.length = position + 1;
        while self.height < height_of(self.length) {
            if !self.root.is_null() {
                let below = std::mem::replace(&mut self.root, Child::NULL);
                *self.root.make_dirty(created).slots.get_or_insert_with(0, || Child::NULL) = below;
            }
            self.height += 1;
        }
        if self.shape.kind == NodeKind::Map && !skipped.is_empty() {
            self.leaf_mut(skipped.start, created);
        }
    }

    /// The first position from `from` on that maps to something, and to what.
    ///
    /// # Errors
    /// Those of [`Nodes::node`].
    pub fn next(&self, nodes: &Nodes, from: u64) -> Result<Option<(u64, BlockPointer)>> {
        self.search(nodes, from, Child::NULL_SUBTREE_SKIPPED, |_, pointer| !pointer.is_null())
    }

    /// Shows `visit` the positions from `from` on that map to something, in order, until it says to stop; returns the
    /// one at which it did.
    ///
    /// # Errors
    /// Those of [`Nodes::node`].
    pub fn visit(
        &self,
        nodes: &Nodes,
        from: u64,
        mut visit: impl FnMut(u64, &BlockPointer) -> ControlFlow<()>,
    ) -> Result<Option<u64>> {
        let found = self.search(nodes, from, Child::NULL_SUBTREE_SKIPPED, |position, pointer| {
            !pointer.is_null() && visit(position, pointer).is_break()
        })?;
        Ok(found.map(|(position, _)| position))
    }

    /// The first free position from `from` on: one that maps to nothing, and of which `accept` (given the generation
    /// since when) approves. `None` if there is none below the length.
    ///
    /// # Errors
    /// Those of [`Nodes::node`].
    pub fn next_free(
        &self,
        nodes: &Nodes,
        from: u64,
        mut accept: impl FnMut(u64, Generation) -> bool,
    ) -> Result<Option<u64>> {
        let free_below = |pointer: &BlockPointer| pointer.is_null() || pointer.flags.contains(PointerFlags::FREE_BELOW);
        let found = self.search(nodes, from, free_below, |position, pointer| {
            pointer.is_null() && accept(position, pointer.birth)
        })?;
        Ok(found.map(|(position, _)| position))
    }

    /// Walks the positions from `from` on in order, leaving out clean subtrees that `enter` declines, up to the first
    /// that `accept` approves of.
    fn search(
        &self,
        nodes: &Nodes,
        from: u64,
        enter: impl Fn(&BlockPointer) -> bool,
        mut accept: impl FnMut(u64, &BlockPointer) -> bool,
    ) -> Result<Option<(u64, BlockPointer)>> {
        if from >= self.length {
            return Ok(None);
        }
        let base = match self.root {
            Child::Clean(pointer) => pointer,
            Child::Dirty(_) => BlockPointer::default(),
        };
        let mut walk = Walk { tree: self, nodes, from, enter: &enter, accept: &mut accept };
        walk.node(&self.root, base, self.height - 1, 0)
    }
}

impl Child {
    /// A null subtree holds nothing that maps to something.
    const NULL_SUBTREE_SKIPPED: fn(&BlockPointer) -> bool = |pointer| !pointer.is_null();
}

struct Walk<'a, E, A> {
    tree: &'a Tree,
    nodes: &'a Nodes,
    from: u64,
    enter: &'a E,
    accept: &'a mut A,
}

impl<E: Fn(&BlockPointer) -> bool, A: FnMut(u64, &BlockPointer) -> bool> Walk<'_, E, A> {
    /// `inherited` is what the child's base is if it is inherited, or the child itself if it is clean.
    fn node(
        &mut self,
        child: &Child,
        inherited: BlockPointer,
        level: u8,
        start: u64,
    ) -> Result<Option<(u64, BlockPointer)>> {
        let (base, dirty) = match child {
            Child::Clean(pointer) => (*pointer, None),
            Child::Dirty(node) => match node.base {
                Base::Known(base) => (base, Some(node)),
                Base::Inherited => (inherited, Some(node)),
            },
        };
        let base_node = match base.is_null() {
            true => None,
            false => Some(self.nodes.node(&base, &self.tree.identity(self.nodes, level, start))?),
        };
        for slot in 0..NODE_ENTRIES as u8 {
            let position = position_of(start, level, slot);
            if position >= self.tree.length {
                break;
            }
            if level > 0 && position.saturating_add(capacity(level - 1)) <= self.from {
                continue;
            }
            let in_base = base_node.as_ref().map(|node| node.entries()[slot as usize]).unwrap_or_default();
            let clean = Child::Clean(in_base);
            let below = dirty.and_then(|node| node.slot(slot)).unwrap_or(&clean);
            let found = match (level, below) {
                (0, Child::Clean(pointer)) if position >= self.from && (self.accept)(position, pointer) => {
                    Some((position, *pointer))
                }
                (0, _) => None,
                (_, Child::Clean(pointer)) if !(self.enter)(pointer) => None,
                _ => self.node(below, in_base, level - 1, position)?,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}
