//! Nodes in memory that differ from the disk: a base, and the slots that differ (M2).

use std::sync::Arc;

use super::slots::Slots;
use crate::format::BlockPointer;
use crate::id::Generation;

/// What a slot leads to.
#[derive(Clone, Debug)]
pub(super) enum Child {
    /// What lies on disk; at level 0, what the tree maps to.
    Clean(BlockPointer),
    /// A node that differs from the disk.
    Dirty(Arc<DirtyNode>),
}

/// The node on disk that a changed node stands for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Base {
    /// This one; null where there is none.
    Known(BlockPointer),
    /// The one in the same slot of the parent's base. To know it, that would have to be read.
    Inherited,
}

/// A node that differs from the disk.
#[derive(Clone, Debug)]
pub(super) struct DirtyNode {
    /// The node on disk that this one will replace.
    pub(super) base: Base,
    /// The slots that differ from the base.
    pub(super) slots: Slots,
}

impl Child {
    pub(super) const NULL: Self = Self::Clean(BlockPointer::null(Generation(0)));

    pub(super) fn is_null(&self) -> bool {
        matches!(self, Self::Clean(pointer) if pointer.is_null())
    }

    /// Whether both are one and the same thing: one place on disk, or one node in memory.
    pub(super) fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Clean(a), Self::Clean(b)) => a.address == b.address && a.birth == b.birth && a.codec == b.codec,
            (Self::Dirty(a), Self::Dirty(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The node in memory, made from the place on disk if there is none yet; `created` counts those made.
    pub(super) fn make_dirty(&mut self, created: &mut usize) -> &mut DirtyNode {
        if let Self::Clean(pointer) = *self {
            *created += 1;
            *self = Self::Dirty(Arc::new(DirtyNode { base: Base::Known(pointer), slots: Slots::default() }));
        }
        match self {
            Self::Dirty(node) => Arc::make_mut(node),
            Self::Clean(_) => unreachable!("it was made dirty just above"),
        }
    }
}

impl DirtyNode {
    pub(super) fn slot(&self, slot: u8) -> Option<&Child> {
        self.slots.get(slot)
    }

    /// The inner node in a slot, made if there is none in memory yet; `created` counts those made.
    pub(super) fn inner_mut(&mut self, slot: u8, created: &mut usize) -> &mut DirtyNode {
        let child = self.slots.get_or_insert_with(slot, || {
            *created += 1;
            Child::Dirty(Arc::new(DirtyNode { base: Base::Inherited, slots: Slots::default() }))
        });
        child.make_dirty(created)
    }

    /// Sets what a slot at level 0 maps to.
    pub(super) fn set_slot(&mut self, slot: u8, pointer: BlockPointer) {
        *self.slots.get_or_insert_with(slot, || Child::NULL) = Child::Clean(pointer);
    }
}
