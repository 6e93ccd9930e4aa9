//! The slots of a node in memory that differ from the disk: a bitmap that says which, and what they lead to, one behind
//! the other. Where a slot's child is, the bits below it tell (Bagwell, "Ideal Hash Trees", 2001): a look-up touches one
//! child, and not those that a binary search would compare.

use super::dirty::Child;
use crate::format::NODE_ENTRIES;

const WORDS: usize = NODE_ENTRIES.div_ceil(64);

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots {
    present: [u64; WORDS],
    /// In rising order of their slots.
    children: Vec<Child>,
}

impl Slots {
    /// How many slots below this one are present, and whether it is.
    fn place(&self, slot: u8) -> (usize, bool) {
        let (word, bit) = (usize::from(slot) / 64, 1 << (slot % 64));
        let before: u32 = self.present[..word].iter().map(|bits| bits.count_ones()).sum();
        let within = (self.present[word] & (bit - 1)).count_ones();
        ((before + within) as usize, self.present[word] & bit != 0)
    }

    pub(super) fn get(&self, slot: u8) -> Option<&Child> {
        match self.place(slot) {
            (index, true) => self.children.get(index),
            (_, false) => None,
        }
    }

    /// What the slot leads to, made by `make` if it is not present.
    pub(super) fn get_or_insert_with(&mut self, slot: u8, make: impl FnOnce() -> Child) -> &mut Child {
        let (index, present) = self.place(slot);
        if !present {
            self.present[usize::from(slot) / 64] |= 1 << (slot % 64);
            self.children.insert(index, make());
        }
        &mut self.children[index]
    }

    /// The slots that are present, in rising order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u8, &Child)> {
        let words = self.present.iter().enumerate();
        let slots = words.flat_map(|(word, bits)| {
            let mut left = *bits;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                left &= left.checked_sub(1)?;
                Some((word * 64) as u8 + bit as u8)
            })
        });
        slots.zip(&self.children)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::BlockPointer;
    use crate::id::Generation;

    fn child(birth: u64) -> Child {
        Child::Clean(BlockPointer::null(Generation(birth)))
    }

    fn birth(child: &Child) -> u64 {
        match child {
            Child::Clean(pointer) => pointer.birth.0,
            Child::Dirty(_) => u64::MAX,
        }
    }

    #[test]
    fn slots_are_found_and_walked_in_order_however_they_came() {
        let mut slots = Slots::default();
        let mut expected = std::collections::BTreeMap::new();
        for step in 0..u64::from(u8::MAX) {
            let slot = (step * 101 % NODE_ENTRIES as u64) as u8;
            *slots.get_or_insert_with(slot, || child(0)) = child(step);
            expected.insert(slot, step);
            for slot in 0..NODE_ENTRIES as u8 {
                assert_eq!(slots.get(slot).map(birth), expected.get(&slot).copied());
            }
            let walked: Vec<(u8, u64)> = slots.iter().map(|(slot, child)| (slot, birth(child))).collect();
            assert_eq!(walked, expected.iter().map(|(slot, step)| (*slot, *step)).collect::<Vec<_>>());
        }
        assert_eq!(expected.len(), NODE_ENTRIES);
    }
}
