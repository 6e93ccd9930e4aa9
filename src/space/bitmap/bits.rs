//! The bits of one leaf, and searches in them.
//!
//! A bit is set if its block is *free*: the opposite of the file's bits, so that a search looks for ones. Everything
//! works on words of 64 blocks at a time.

use std::ops::Range;

use crate::space::{LEAF_BLOCKS, LeafBytes};

const WORD_BLOCKS: u32 = u64::BITS;

/// A bit for each of 32768 blocks, set if the block is free.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Bits([u64; (LEAF_BLOCKS / WORD_BLOCKS) as usize]);

impl Bits {
    /// The bits that a file's leaf stands for. Blocks at `capacity` and beyond do not exist, and are not free.
    pub(super) fn from_bytes(bytes: &LeafBytes, capacity: u32) -> Self {
        let mut bits = Self([0; (LEAF_BLOCKS / WORD_BLOCKS) as usize]);
        for (word, eight) in bits.0.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = !u64::from_le_bytes(*eight);
        }
        for (index, mask) in words(capacity..LEAF_BLOCKS) {
            bits.0[index] &= !mask;
        }
        bits
    }

    /// The leaf as a file holds it: bit set = in use, and clear for blocks at `capacity` and beyond.
    pub(super) fn to_bytes(&self, capacity: u32) -> LeafBytes {
        let mut bytes = [0; 4096];
        for (index, mask) in words(0..capacity) {
            bytes[index * 8..][..8].copy_from_slice(&(!self.0[index] & mask).to_le_bytes());
        }
        bytes
    }

    /// Whether all of `blocks` are free.
    pub(super) fn all_free(&self, blocks: Range<u32>) -> bool {
        words(blocks).all(|(index, mask)| self.0[index] & mask == mask)
    }

    /// Whether none of `blocks` is free.
    pub(super) fn none_free(&self, blocks: Range<u32>) -> bool {
        words(blocks).all(|(index, mask)| self.0[index] & mask == 0)
    }

    /// How many of `blocks` are free.
    pub(super) fn count_free(&self, blocks: Range<u32>) -> u32 {
        words(blocks).map(|(index, mask)| (self.0[index] & mask).count_ones()).sum()
    }

    /// Makes what is free used, and what is used free.
    pub(super) fn flip(&mut self, blocks: Range<u32>) {
        for (index, mask) in words(blocks) {
            self.0[index] ^= mask;
        }
    }

    /// The start of the first run of at least `minimum` free blocks inside `within`.
    pub(super) fn find(&self, within: Range<u32>, minimum: u32) -> Option<u32> {
        // A run lies inside one word, or its first part ends a word and all words until its last part are ones.
        let mut run_before = 0;
        for (index, mask) in words(within) {
            let bits = self.0[index] & mask;
            let word_start = index as u32 * WORD_BLOCKS;
            if run_before + bits.trailing_ones() >= minimum {
                return Some(word_start - run_before);
            }
            let starts = starts_of_runs(bits, minimum);
            if starts != 0 {
                return Some(word_start + starts.trailing_zeros());
            }
            run_before = if bits == u64::MAX { run_before + WORD_BLOCKS } else { bits.leading_ones() };
        }
        None
    }

    /// The length of the longest run of free blocks inside `within`.
    pub(super) fn longest_run(&self, within: Range<u32>) -> u32 {
        let (mut longest, mut run_before) = (0, 0);
        for (index, mask) in words(within) {
            let bits = self.0[index] & mask;
            if bits == u64::MAX {
                run_before += WORD_BLOCKS;
                continue;
            }
            longest = longest.max(run_before + bits.trailing_ones());
            run_before = bits.leading_ones();
            // What touches an edge is counted; the rest matters only if it is longer than what is known.
            let inner = bits & (bits + 1) & !(!0u64).checked_shl(WORD_BLOCKS - run_before).unwrap_or(0);
            while starts_of_runs(inner, longest + 1) != 0 {
                longest += 1;
            }
        }
        longest.max(run_before)
    }

    /// How many blocks at the start of `within` are free.
    pub(super) fn run_after(&self, within: Range<u32>) -> u32 {
        let mut at = within.start;
        while at < within.end {
            let used = !self.0[(at / WORD_BLOCKS) as usize] >> (at % WORD_BLOCKS);
            if used != 0 {
                return (at + used.trailing_zeros()).min(within.end) - within.start;
            }
            at = (at / WORD_BLOCKS + 1) * WORD_BLOCKS;
        }
        within.end.saturating_sub(within.start)
    }

    /// How many blocks at the end of `within` are free.
    pub(super) fn run_before(&self, within: Range<u32>) -> u32 {
        let mut at = within.end;
        while at > within.start {
            let last = at - 1;
            let used = !self.0[(last / WORD_BLOCKS) as usize] << (WORD_BLOCKS - 1 - last % WORD_BLOCKS);
            if used != 0 {
                return within.end - (at - used.leading_zeros()).max(within.start);
            }
            at = last / WORD_BLOCKS * WORD_BLOCKS;
        }
        within.end.saturating_sub(within.start)
    }

    /// The length of the run that `blocks`, which are free, are part of inside `within`.
    pub(super) fn run_around(&self, blocks: Range<u32>, within: Range<u32>) -> u32 {
        self.run_before(within.start..blocks.end) + self.run_after(blocks.end..within.end)
    }
}

/// The words that hold the bits of `blocks`, each with a mask of those bits.
fn words(blocks: Range<u32>) -> impl Iterator<Item = (usize, u64)> {
    let (first, last) = (blocks.start / WORD_BLOCKS, blocks.end.saturating_sub(1) / WORD_BLOCKS);
    let count = if blocks.is_empty() { 0 } else { last - first + 1 };
    (first..first + count).map(move |index| {
        let mut mask = u64::MAX;
        if index == first {
            mask &= u64::MAX << (blocks.start % WORD_BLOCKS);
        }
        if index == last {
            mask &= u64::MAX >> (WORD_BLOCKS - 1 - (blocks.end - 1) % WORD_BLOCKS);
        }
        (index as usize, mask)
    })
}

/// The positions in `bits` from which `length` ones follow.
fn starts_of_runs(mut bits: u64, length: u32) -> u64 {
    if length > WORD_BLOCKS {
        return 0;
    }
    let mut covered = 1;
    while covered < length {
        let step = covered.min(length - covered);
        bits &= bits >> step;
        covered += step;
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bits with long and short runs: the lengths alternate between used and free.
    fn bits_of(lengths: &[u32]) -> Bits {
        let mut bits = Bits::from_bytes(&[0; 4096], LEAF_BLOCKS);
        let mut at = 0;
        for pair in lengths.chunks(2) {
            let used = at..(at + pair[0]).min(LEAF_BLOCKS);
            bits.flip(used.clone());
            at = (used.end + pair.get(1).copied().unwrap_or(0)).min(LEAF_BLOCKS);
        }
        bits
    }

    fn lengths() -> impl Strategy<Value = Vec<u32>> {
        proptest::collection::vec(prop_oneof![1u32..4, 60u32..70, 1u32..400], 2..400)
    }

    fn is_free(bits: &Bits, block: u32) -> bool {
        bits.all_free(block..block + 1)
    }

    proptest! {
        #[test]
        fn searches_find_what_looking_at_each_bit_finds(
            lengths in lengths(),
            from in 0..LEAF_BLOCKS,
            until in 0..=LEAF_BLOCKS,
            minimum in prop_oneof![1u32..9, 60u32..70, 120u32..300],
        ) {
            let bits = bits_of(&lengths);
            let (mut found, mut run, mut longest) = (None, 0, 0);
            for block in from..until {
                run = if is_free(&bits, block) { run + 1 } else { 0 };
                longest = longest.max(run);
                if run == minimum {
                    found = found.or(Some(block + 1 - minimum));
                }
            }
            prop_assert_eq!(bits.find(from..until, minimum), found);
            prop_assert_eq!(bits.longest_run(from..until), longest);
            let after = (from..until).take_while(|&block| is_free(&bits, block)).count() as u32;
            prop_assert_eq!(bits.run_after(from..until), after);
            let before = (from..until).rev().take_while(|&block| is_free(&bits, block)).count() as u32;
            prop_assert_eq!(bits.run_before(from..until), before);
            prop_assert_eq!(bits.count_free(from..until), (from..until).filter(|&block| is_free(&bits, block)).count() as u32);
        }

        #[test]
        fn bytes_survive_the_way_through_memory(lengths in lengths(), capacity in 0..=LEAF_BLOCKS) {
            let bytes = bits_of(&lengths).to_bytes(capacity);
            let bits = Bits::from_bytes(&bytes, capacity);
            prop_assert_eq!(bits.to_bytes(capacity), bytes);
            prop_assert!(bits.none_free(capacity..LEAF_BLOCKS));
        }
    }

    #[test]
    fn the_bit_of_a_block_is_where_the_format_says() {
        let mut bits = Bits::from_bytes(&[0; 4096], LEAF_BLOCKS);
        bits.flip(83..84);
        let bytes = bits.to_bytes(LEAF_BLOCKS);
        assert_eq!(bytes[10], 1 << 3);
        assert_eq!(bytes.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    }
}
