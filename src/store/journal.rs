//! What happened to the bitmap since the last checkpoint, in order, so that a checkpoint at generation c can persist
//! the bitmap as of c: neither reservations nor anything later (R6).

use std::collections::BTreeMap;

use crate::id::{Extent, Generation};
use crate::space::LEAF_BLOCKS;

/// A change of committed bits.
#[derive(Clone, Copy, Debug)]
pub(super) enum BitEvent {
    /// The commit of this generation took the extent.
    Taken(Extent, Generation),
    /// The extent, dead since this generation, was released.
    Released(Extent, Generation),
}

/// Changes of committed bits since the last checkpoint.
#[derive(Debug, Default)]
pub(super) struct Journal {
    events: Vec<BitEvent>,
}

/// A leaf's changes: extents (within the leaf, in blocks of the file) and whether they are taken.
pub(super) type LeafChanges = BTreeMap<u64, Vec<(Extent, Bit)>>;

/// What a bit becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bit {
    Used,
    Free,
}

impl Journal {
    pub(super) fn taken(&mut self, extent: Extent, generation: Generation) {
        if !extent.is_empty() {
            self.events.push(BitEvent::Taken(extent, generation));
        }
    }

    pub(super) fn released(&mut self, extent: Extent, death: Generation) {
        self.events.push(BitEvent::Released(extent, death));
    }

    /// How many events there are: an upper bound for the leaves they touch.
    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    /// The changes that belong to the state of generation `folded`, by leaf, in order. They stay in the journal until
    /// [`Journal::forget`].
    pub(super) fn changes_through(&self, folded: Generation) -> LeafChanges {
        let mut changes = LeafChanges::new();
        for event in &self.events {
            match *event {
                BitEvent::Taken(extent, generation) if generation <= folded => {
                    add_change(&mut changes, extent, Bit::Used);
                }
                BitEvent::Released(extent, death) if death <= folded => add_change(&mut changes, extent, Bit::Free),
                _ => {}
            }
        }
        changes
    }

    /// Forgets the first `seen` events as far as they belong to the state of generation `folded`: they are durable.
    pub(super) fn forget(&mut self, folded: Generation, seen: usize) {
        let mut index = 0;
        self.events.retain(|event| {
            let generation = match *event {
                BitEvent::Taken(_, generation) | BitEvent::Released(_, generation) => generation,
            };
            index += 1;
            index > seen || generation > folded
        });
    }
}

/// Adds a change to the leaves it touches.
pub(super) fn add_change(changes: &mut LeafChanges, extent: Extent, bit: Bit) {
    let mut rest = extent;
    while !rest.is_empty() {
        let leaf = rest.start.0 / u64::from(LEAF_BLOCKS);
        let room = (leaf + 1) * u64::from(LEAF_BLOCKS) - rest.start.0;
        let (first, after) = rest.split_at(room.min(u32::MAX.into()) as u32);
        changes.entry(leaf).or_default().push((first, bit));
        rest = after;
    }
}

/// Applies a leaf's changes to its bits.
pub(super) fn apply_changes(bits: &mut [u8; 4096], leaf: u64, changes: &[(Extent, Bit)]) {
    for (extent, bit) in changes {
        let start = extent.start.0 - leaf * u64::from(LEAF_BLOCKS);
        for index in start..start + u64::from(extent.blocks) {
            let mask = 1 << (index % 8);
            match bit {
                Bit::Used => bits[(index / 8) as usize] |= mask,
                Bit::Free => bits[(index / 8) as usize] &= !mask,
            }
        }
    }
}
