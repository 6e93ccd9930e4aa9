//! One leaf of the bitmap in memory: a bit for each of 32768 blocks, and what is counted of them.
//!
//! Pure bits: a leaf knows neither its place in the file nor where it was loaded from. Blocks and segments are numbered
//! from the leaf's start.
//!
//! - **L1** A bit is set if its block is *free*: the opposite of the file's bits, so that a search looks for ones. A
//!   block beyond the end of the file is not free.
//! - **L2** `segments[s]` is how many blocks of segment `s` are free; `emptiest` and `segments_free` follow from it.
//! - **L3** No run of free blocks is longer than `longest`. It is a bound: a release raises it to what it made, a search
//!   that finds nothing lowers it, taking blocks leaves it. So each bit is looked at again only after it changed.

use std::ops::Range;

use super::summary::Summary;
use super::{LEAF_BLOCKS, LeafBytes};

const WORD_BLOCKS: u32 = u64::BITS;
const WORDS: usize = (LEAF_BLOCKS / WORD_BLOCKS) as usize;

/// What happens to blocks: they are taken into use, or released from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Take,
    Release,
}

/// A leaf that is in memory. See the module for its invariants.
#[derive(Clone)]
pub(super) struct Leaf {
    free: [u64; WORDS],
    segments: Box<[u16]>,
    segment_shift: u32,
    emptiest: u32,
    segments_free: u32,
    longest: u32,
}

impl Leaf {
    /// A leaf whose first `capacity` blocks exist and are free.
    pub(super) fn empty(capacity: u32, segment_blocks: u32) -> Self {
        Self::from_bytes(&[0; 4096], capacity, segment_blocks)
    }

    /// A leaf as a file holds it, of which the first `capacity` blocks exist.
    pub(super) fn from_bytes(bytes: &LeafBytes, capacity: u32, segment_blocks: u32) -> Self {
        let mut free = [0; WORDS];
        for (word, eight) in free.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = !u64::from_le_bytes(*eight);
        }
        for (index, mask) in words(capacity..LEAF_BLOCKS) {
            free[index] &= !mask;
        }
        let segment_shift = segment_blocks.trailing_zeros();
        let segments = vec![0; (LEAF_BLOCKS >> segment_shift) as usize].into_boxed_slice();
        let mut leaf = Self { free, segments, segment_shift, emptiest: 0, segments_free: 0, longest: 0 };
        leaf.recount();
        leaf
    }

    /// The leaf as a file holds it: bit set = in use, and clear for blocks at `capacity` and beyond.
    pub(super) fn to_bytes(&self, capacity: u32) -> LeafBytes {
        let mut bytes = [0; 4096];
        for (index, mask) in words(0..capacity) {
            bytes[index * 8..][..8].copy_from_slice(&(!self.free[index] & mask).to_le_bytes());
        }
        bytes
    }

    /// Whether every one of `blocks` is as it must be before `change`: free to be taken, or in use to be released.
    pub(super) fn allows(&self, blocks: Range<u32>, change: Change) -> bool {
        match change {
            Change::Take => words(blocks).all(|(index, mask)| self.free[index] & mask == mask),
            Change::Release => words(blocks).all(|(index, mask)| self.free[index] & mask == 0),
        }
    }

    /// Changes `blocks`, all of which allow it.
    pub(super) fn apply(&mut self, blocks: Range<u32>, change: Change) {
        debug_assert!(self.allows(blocks.clone(), change), "L1: the caller asked whether the blocks allow the change");
        if blocks.is_empty() {
            return;
        }
        for (index, mask) in words(blocks.clone()) {
            self.free[index] ^= mask;
        }
        if change == Change::Release {
            let run = self.run_before(blocks.start) + blocks.len() as u32 + self.run_length(blocks.end..LEAF_BLOCKS);
            self.longest = self.longest.max(run);
        }
        for segment in blocks.start >> self.segment_shift..=(blocks.end - 1) >> self.segment_shift {
            let extent = self.segment_blocks(segment);
            let changed = (blocks.end.min(extent.end) - blocks.start.max(extent.start)) as u16;
            self.count_segment(segment as usize, changed, change);
        }
    }

    /// The start of the first run of at least `minimum` free blocks inside `within`.
    pub(super) fn find(&self, within: Range<u32>, minimum: u32) -> Option<u32> {
        if within.is_empty() || minimum > self.longest {
            return None;
        }
        if minimum <= WORD_BLOCKS { self.find_short(within, minimum) } else { self.find_long(within, minimum) }
    }

    /// How many blocks at the start of `within` are free.
    pub(super) fn run_length(&self, within: Range<u32>) -> u32 {
        let mut at = within.start;
        while at < within.end {
            let used = !self.free[(at / WORD_BLOCKS) as usize] >> (at % WORD_BLOCKS);
            if used != 0 {
                return (at + used.trailing_zeros()).min(within.end) - within.start;
            }
            at = (at / WORD_BLOCKS + 1) * WORD_BLOCKS;
        }
        within.end.saturating_sub(within.start)
    }

    /// Notes that a search of the whole leaf found no run of `minimum` blocks (L3).
    pub(super) fn no_run_of(&mut self, minimum: u32) {
        self.longest = self.longest.min(minimum.saturating_sub(1));
    }

    /// How many blocks of a segment are free.
    pub(super) fn segment_free(&self, segment: u32) -> u32 {
        self.segments[segment as usize].into()
    }

    /// The first wholly free segment from `segment` on.
    pub(super) fn next_free_segment(&self, segment: u32) -> Option<u32> {
        let whole = 1u16 << self.segment_shift;
        let rest = self.segments.get(segment as usize..)?;
        rest.iter().position(|&free| free == whole).map(|position| segment + position as u32)
    }

    /// What the tree above the leaves needs to know of this one.
    pub(super) fn summary(&self) -> Summary {
        Summary { longest: self.longest, emptiest: self.emptiest, segments_free: self.segments_free.into() }
    }

    /// Asserts L2 and L3.
    pub(super) fn check_invariants(&self) {
        let mut truth = self.clone();
        truth.recount();
        assert_eq!(truth.segments, self.segments, "L2: the segments' counts are those of the bits");
        assert_eq!(truth.emptiest, self.emptiest, "L2: the emptiest segment is noted");
        assert_eq!(truth.segments_free, self.segments_free, "L2: wholly free segments are counted");
        truth.longest = LEAF_BLOCKS;
        assert_eq!(truth.find(0..LEAF_BLOCKS, self.longest + 1), None, "L3: no run is longer than the bound");
    }

    /// Counts everything anew. The bound of L3 starts as what no run can exceed.
    fn recount(&mut self) {
        for segment in 0..self.segments.len() as u32 {
            let ones = words(self.segment_blocks(segment)).map(|(index, mask)| (self.free[index] & mask).count_ones());
            self.segments[segment as usize] = ones.sum::<u32>() as u16;
        }
        let whole = 1u16 << self.segment_shift;
        self.segments_free = self.segments.iter().filter(|&&free| free == whole).count() as u32;
        self.emptiest = self.find_emptiest();
        self.longest = self.segments.iter().map(|&free| u32::from(free)).sum();
    }

    fn count_segment(&mut self, segment: usize, changed: u16, change: Change) {
        let whole = 1u16 << self.segment_shift;
        let before = self.segments[segment];
        let after = match change {
            Change::Take => before - changed,
            Change::Release => before + changed,
        };
        self.segments[segment] = after;
        self.segments_free += u32::from(after == whole);
        self.segments_free -= u32::from(before == whole);
        if after != whole && u32::from(after) >= self.emptiest {
            self.emptiest = after.into();
        } else if u32::from(before) == self.emptiest {
            self.emptiest = self.find_emptiest();
        }
    }

    /// Free blocks of the emptiest segment, wholly free ones apart.
    fn find_emptiest(&self) -> u32 {
        let whole = 1u16 << self.segment_shift;
        self.segments.iter().fold(0, |most, &free| most.max(if free == whole { 0 } else { free })).into()
    }

    fn segment_blocks(&self, segment: u32) -> Range<u32> {
        segment << self.segment_shift..(segment + 1) << self.segment_shift
    }

    /// How many blocks directly before `end` are free.
    fn run_before(&self, end: u32) -> u32 {
        let mut at = end;
        while at > 0 {
            let last = at - 1;
            let used = !self.free[(last / WORD_BLOCKS) as usize] << (WORD_BLOCKS - 1 - last % WORD_BLOCKS);
            if used != 0 {
                return end - (at - used.leading_zeros());
            }
            at = last / WORD_BLOCKS * WORD_BLOCKS;
        }
        end
    }

    /// Runs of up to one word: they lie in a word and its successor, so two words at a time are folded until a bit
    /// stands for `minimum` free blocks from there on.
    fn find_short(&self, within: Range<u32>, minimum: u32) -> Option<u32> {
        let mut masked = words(within).map(|(index, mask)| (index, self.free[index] & mask)).peekable();
        while let Some((index, bits)) = masked.next() {
            if bits == 0 {
                continue;
            }
            let next = masked.peek().map_or(0, |&(_, next)| next);
            let starts = starts_of_runs(u128::from(next) << WORD_BLOCKS | u128::from(bits), minimum) as u64;
            if starts != 0 {
                return Some(index as u32 * WORD_BLOCKS + starts.trailing_zeros());
            }
        }
        None
    }

    /// Runs of more than one word: only what touches a word's edges can belong to one.
    fn find_long(&self, within: Range<u32>, minimum: u32) -> Option<u32> {
        let mut run = 0;
        for (index, mask) in words(within) {
            let bits = self.free[index] & mask;
            let word_start = index as u32 * WORD_BLOCKS;
            if run + bits.trailing_ones() >= minimum {
                return Some(word_start - run);
            }
            run = if bits == u64::MAX { run + WORD_BLOCKS } else { bits.leading_ones() };
        }
        None
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
fn starts_of_runs(mut bits: u128, length: u32) -> u128 {
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

    /// The first run by looking at one bit after the other.
    fn find_slowly(leaf: &Leaf, within: Range<u32>, minimum: u32) -> Option<u32> {
        let is_free = |block: u32| leaf.free[(block / 64) as usize] >> (block % 64) & 1 == 1;
        (within.start..within.end.saturating_sub(minimum - 1)).find(|&start| (start..start + minimum).all(is_free))
    }

    /// Leaves with long and short runs: lengths alternate between used and free.
    fn leaf_of(lengths: &[u32]) -> Leaf {
        let mut leaf = Leaf::empty(LEAF_BLOCKS, 64);
        let mut at = 0;
        for pair in lengths.chunks(2) {
            let used = at..(at + pair[0]).min(LEAF_BLOCKS);
            leaf.apply(used.clone(), Change::Take);
            at = (used.end + pair.get(1).copied().unwrap_or(0)).min(LEAF_BLOCKS);
        }
        leaf
    }

    proptest! {
        #[test]
        fn a_search_finds_what_looking_at_each_bit_finds(
            lengths in proptest::collection::vec(prop_oneof![1u32..4, 60u32..70, 1u32..400], 2..400),
            from in 0u32..LEAF_BLOCKS,
            until in 0u32..=LEAF_BLOCKS,
            minimum in prop_oneof![1u32..9, 60u32..70, 120u32..300],
        ) {
            let leaf = leaf_of(&lengths);
            prop_assert_eq!(leaf.find(from..until, minimum), find_slowly(&leaf, from..until, minimum));
            if let Some(start) = leaf.find(from..until, minimum) {
                let length = leaf.run_length(start..until);
                prop_assert!(length >= minimum);
                prop_assert!(start + length == until || !leaf.allows(start + length..start + length + 1, Change::Take));
            }
            leaf.check_invariants();
        }

        #[test]
        fn bytes_survive_the_way_through_memory(
            lengths in proptest::collection::vec(1u32..300, 2..200),
            capacity in 0u32..=LEAF_BLOCKS,
        ) {
            let bytes = leaf_of(&lengths).to_bytes(capacity);
            let leaf = Leaf::from_bytes(&bytes, capacity, 256);
            prop_assert_eq!(leaf.to_bytes(capacity), bytes);
            prop_assert!(leaf.allows(capacity..LEAF_BLOCKS, Change::Release));
            leaf.check_invariants();
        }
    }

    #[test]
    fn a_failed_search_lowers_the_bound_and_a_release_raises_it() {
        let mut leaf = leaf_of(&[10, 5, 10, 7, LEAF_BLOCKS]);
        assert_eq!(leaf.find(0..LEAF_BLOCKS, 8), None);
        leaf.no_run_of(8);
        assert_eq!(leaf.summary().longest, 7);
        leaf.apply(15..20, Change::Release);
        assert_eq!(leaf.summary().longest, 10);
        assert_eq!(leaf.find(0..LEAF_BLOCKS, 8), Some(10));
        leaf.check_invariants();
    }

    #[test]
    fn the_bit_of_a_block_is_where_the_format_says() {
        let mut leaf = Leaf::empty(LEAF_BLOCKS, 256);
        leaf.apply(83..84, Change::Take);
        let bytes = leaf.to_bytes(LEAF_BLOCKS);
        assert_eq!(bytes[10], 1 << 3);
        assert_eq!(bytes.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    }
}
