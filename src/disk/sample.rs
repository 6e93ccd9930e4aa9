//! States of a crash point that has too many: the extremes, then random ones.

use std::collections::HashSet;

use super::crash::{BlockVersion, Choices, StateDescription, Tear, torn_content};
use super::image::Image;
use crate::id::BLOCK_BYTES;

/// How many states may be built for one that is new.
const TRIES: usize = 4;

/// `most` different states, or fewer; see [`CrashPoint::states_sampled`](super::CrashPoint::states_sampled).
pub(super) fn states(
    choices: Choices,
    time_line: Vec<Option<u64>>,
    tear: Tear,
    seed: u64,
    most: usize,
) -> impl Iterator<Item = (StateDescription, Image)> {
    let mut sampler = Sampler { choices, time_line, random: Random(seed) };
    let extremes = sampler.extremes();
    // Not more than half of the states are extremes; where there are more, those that come first by a random order.
    let half = most.div_ceil(2);
    let mut order: Vec<usize> = (0..extremes).collect();
    if extremes > half {
        (0..half.min(extremes)).for_each(|place| order.swap(place, place + sampler.random.below(extremes - place)));
        order.truncate(half);
    }
    let mut order = order.into_iter();
    let mut seen = HashSet::new();
    let candidates = (0..most.saturating_mul(TRIES)).map(move |_| match order.next() {
        Some(number) => sampler.extreme(number),
        None => sampler.random(tear),
    });
    candidates.filter(move |(_, image)| seen.insert(image.hash())).take(most)
}

struct Sampler {
    choices: Choices,
    time_line: Vec<Option<u64>>,
    random: Random,
}

impl Sampler {
    /// How many extremes there are: prefixes in time, for each length all blocks old and all blocks new, for each block
    /// only this one new and only this one old.
    fn extremes(&self) -> usize {
        self.time_line.len() + 1 + 2 * self.choices.lengths.len() + 2 * self.choices.blocks.len()
    }

    fn extreme(&self, number: usize) -> (StateDescription, Image) {
        let prefixes = self.time_line.len() + 1;
        let lengths = &self.choices.lengths;
        if number < prefixes {
            return self.prefix(number);
        }
        let (number, new) = ((number - prefixes) / 2, (number - prefixes).is_multiple_of(2));
        match number.checked_sub(lengths.len()) {
            None => self.choices.build(lengths[number], self.each_block(|_| new)),
            Some(block) => {
                self.choices.build(self.choices.length_newest(), self.each_block(|other| (other == block) == new))
            }
        }
    }

    /// What was written up to a moment, and nothing after it.
    fn prefix(&self, changes: usize) -> (StateDescription, Image) {
        let past = &self.time_line[..changes];
        let count = |place: Option<u64>| past.iter().filter(|&&other| other == place).count();
        let contents = self.choices.blocks.iter().map(|block| count(Some(block.number))).collect();
        self.choices.build(self.choices.lengths[count(None)], contents)
    }

    /// The newest content of each block for which `new`, by its place in the list, the durable one of others.
    fn each_block(&self, new: impl Fn(usize) -> bool) -> Vec<usize> {
        let blocks = self.choices.blocks.iter().enumerate();
        blocks.map(|(place, block)| if new(place) { block.contents.len() - 1 } else { 0 }).collect()
    }

    fn random(&mut self, tear: Tear) -> (StateDescription, Image) {
        let lengths = &self.choices.lengths;
        let length = match self.random.below(2) {
            0 => self.choices.length_newest(),
            _ => lengths[self.random.below(lengths.len())],
        };
        // Few, half, or most of the blocks are new; each of them in its newest content, or in any.
        let eighths = [1, 4, 7][self.random.below(3)];
        let any = self.random.below(2) == 0;
        let mut contents = Vec::with_capacity(self.choices.blocks.len());
        for block in &self.choices.blocks {
            let new = self.random.below(8) < eighths;
            let newest = block.contents.len() - 1;
            contents.push(if !new {
                0
            } else if any {
                self.random.below(newest + 1)
            } else {
                newest
            });
        }
        let (mut description, mut image) = self.choices.build(length, contents);
        if tear != Tear::Never && self.random.below(2) == 0 {
            self.tear_one(tear, &mut description, &mut image);
        }
        (description, image)
    }

    /// Tears one block of the state.
    fn tear_one(&mut self, tear: Tear, description: &mut StateDescription, image: &mut Image) {
        let length = description.length;
        // The description lists the blocks within the length, which come first.
        if description.blocks.is_empty() {
            return;
        }
        let place = self.random.below(description.blocks.len());
        let block = &self.choices.blocks[place];
        debug_assert!(block.number * BLOCK_BYTES < length);
        let earlier = self.random.below(block.contents.len() - 1);
        let (prefix, suffix) = if self.random.below(2) == 0 { (earlier, earlier + 1) } else { (earlier + 1, earlier) };
        let mut cuts = tear.cuts();
        let Some(cut) = cuts.nth(self.random.below(cuts.len())) else { return };
        let content = torn_content(block.number, &block.contents[prefix], &block.contents[suffix], cut);
        image.set(block.number, content.clipped(block.number, length));
        description.blocks[place].1 = BlockVersion::Torn { prefix, suffix, cut };
    }
}

/// A generator of numbers that look random (splitmix64): the same seed, the same numbers, everywhere and for ever.
struct Random(u64);

impl Random {
    /// A number below `limit`, which is not 0.
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        ((u128::from(mixed) * limit as u128) >> 64) as usize
    }
}
