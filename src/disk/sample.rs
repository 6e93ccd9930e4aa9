//! States of a crash point that has too many: the extremes, then random ones.

use std::collections::HashSet;

use super::choices::{Choices, torn_content};
use super::crash::{BlockVersion, StateDescription, Tear};
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{CrashPoint, Disk, SimulatedDisk};
    use crate::id::BLOCK_LENGTH;

    /// A disk of two durable blocks, grown by two, with something pending in each.
    fn point() -> CrashPoint {
        let disk = SimulatedDisk::from_image(&Image::from_bytes(&[1; 2 * BLOCK_LENGTH]));
        for (block, byte) in [(0, 2), (2, 3), (1, 4), (3, 5), (0, 6)] {
            disk.write_at(block * BLOCK_BYTES, &[byte; BLOCK_LENGTH]).unwrap();
        }
        disk.crash_point()
    }

    fn hashes(states: impl Iterator<Item = (StateDescription, Image)>) -> Vec<u128> {
        states.map(|(_, image)| image.hash()).collect()
    }

    #[test]
    fn every_sample_is_one_of_all_states_and_none_comes_twice() {
        let point = point();
        for tear in [Tear::Never, Tear::Every512] {
            let all: HashSet<u128> = hashes(point.states(tear)).into_iter().collect();
            for seed in 0..20 {
                let sampled = hashes(point.states_sampled(tear, seed, 40));
                assert!(sampled.iter().all(|hash| all.contains(hash)));
                assert_eq!(sampled.iter().collect::<HashSet<_>>().len(), sampled.len());
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_states_and_another_one_others() {
        let sample = |seed| hashes(point().states_sampled(Tear::Every16, seed, 200));
        assert_eq!(sample(1), sample(1));
        assert_ne!(sample(1), sample(2));
        assert_eq!(sample(1).len(), 200);
    }

    #[test]
    fn extremes_come_first() {
        let point = point();
        let sampled: HashSet<u128> = hashes(point.states_sampled(Tear::Never, 3, 60)).into_iter().collect();
        let disk = SimulatedDisk::from_image(point.durable());
        assert!(sampled.contains(&disk.image().hash()));
        for (block, byte) in [(0, 2), (2, 3), (1, 4), (3, 5), (0, 6)] {
            disk.write_at(block * BLOCK_BYTES, &[byte; BLOCK_LENGTH]).unwrap();
            assert!(sampled.contains(&disk.image().hash()), "what was written up to block {block} is not there");
        }
        assert!(sampled.contains(&point.newest().hash()));
        let newest = point.newest().to_bytes();
        let durable = [[1; 2 * BLOCK_LENGTH], [0; 2 * BLOCK_LENGTH]].concat();
        for block in 0..4 {
            let place = block * BLOCK_LENGTH..(block + 1) * BLOCK_LENGTH;
            let (mut only, mut all_but) = (durable.clone(), newest.clone());
            only[place.clone()].copy_from_slice(&newest[place.clone()]);
            all_but[place.clone()].copy_from_slice(&durable[place]);
            assert!(sampled.contains(&Image::from_bytes(&only).hash()), "only block {block}");
            assert!(sampled.contains(&Image::from_bytes(&all_but).hash()), "all but block {block}");
        }
    }

    #[test]
    fn nothing_pending_is_one_state() {
        let disk = SimulatedDisk::new();
        assert_eq!(hashes(disk.crash_point().states_sampled(Tear::Every16, 1, 100)), [Image::new().hash()]);
    }

    #[test]
    fn random_numbers_reach_every_value_below_their_limit() {
        let mut random = Random(1);
        let seen: HashSet<usize> = (0..1000).map(|_| random.below(7)).collect();
        assert_eq!(seen, (0..7).collect());
    }
}
