//! A cache of another make, as a check on [`SimulatedDisk`](super::SimulatedDisk): it writes back single blocks and the
//! length whenever it likes, and forgets what a failed sync did not write. Whatever it leaves on its medium at any moment
//! must be among the states that the simulated disk says a power cut could leave.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::IoSlice;
use std::ops::Range;

use super::{Disk, Image, SimulatedDisk, Tear};
use crate::id::{BLOCK_BYTES, BLOCK_LENGTH};

type Bytes = Vec<u8>;

#[derive(Default)]
struct Cache {
    contents: Bytes,
    dirty: BTreeSet<usize>,
    /// Changed since the last sync, written back since or not: the next sync needs a length that holds them.
    changed: BTreeSet<usize>,
    length_dirty: bool,
    medium: BTreeMap<usize, Bytes>,
    medium_length: usize,
}

impl Cache {
    fn block(&self, number: usize) -> Bytes {
        let start = (number * BLOCK_LENGTH).min(self.contents.len());
        let mut block = self.contents[start..self.contents.len().min(start + BLOCK_LENGTH)].to_vec();
        block.resize(BLOCK_LENGTH, 0);
        block
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if end > self.contents.len() {
            self.contents.resize(end, 0);
            self.length_dirty = true;
        }
        self.contents[offset..end].copy_from_slice(bytes);
        self.soil(offset..end);
    }

    fn clear(&mut self, hole: Range<usize>) {
        self.soil(hole.clone());
        self.contents[hole].fill(0);
    }

    fn soil(&mut self, place: Range<usize>) {
        let blocks = place.start / BLOCK_LENGTH..place.end.div_ceil(BLOCK_LENGTH);
        self.dirty.extend(blocks.clone());
        self.changed.extend(blocks);
    }

    fn set_length(&mut self, length: usize) {
        if length < self.contents.len() {
            self.soil(length..self.contents.len());
        }
        self.length_dirty |= length != self.contents.len();
        self.contents.resize(length, 0);
    }

    fn write_back_block(&mut self, number: usize) {
        self.medium.insert(number, self.block(number));
        self.dirty.remove(&number);
    }

    fn write_back_length(&mut self) {
        self.medium_length = self.contents.len();
        self.length_dirty = false;
    }

    fn sync(&mut self) {
        let end = self.changed.last().map_or(0, |last| (last + 1) * BLOCK_LENGTH).min(self.contents.len());
        self.length_dirty |= end > self.medium_length;
        self.changed.clear();
        let dirty: Vec<usize> = self.dirty.iter().copied().collect();
        dirty.into_iter().for_each(|number| self.write_back_block(number));
        if self.length_dirty {
            self.write_back_length();
        }
    }

    /// Some of it may have been written back before; the rest is forgotten, and taken for clean.
    fn fail_to_sync(&mut self) {
        self.dirty.clear();
        self.changed.clear();
        self.length_dirty = false;
    }

    fn sync_range(&mut self, offset: usize, length: usize) {
        let blocks = offset / BLOCK_LENGTH..(offset + length).div_ceil(BLOCK_LENGTH);
        if (blocks.end * BLOCK_LENGTH).min(self.contents.len()) > self.medium_length {
            self.write_back_length();
        }
        blocks.for_each(|number| self.write_back_block(number));
    }

    fn after_power_cut(&self) -> Image {
        let length = self.medium_length;
        let mut bytes = vec![0; length];
        for (number, block) in &self.medium {
            let (start, end) = (number * BLOCK_LENGTH, length.min((number + 1) * BLOCK_LENGTH));
            if start < end {
                bytes[start..end].copy_from_slice(&block[..end - start]);
            }
        }
        Image::from_bytes(&bytes)
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

#[test]
fn whatever_a_cache_that_writes_back_at_will_leaves_is_a_state_of_the_simulated_disk() {
    let (mut cuts, mut states_met) = (0, HashSet::new());
    for seed in 0..400 {
        let mut random = Random(seed);
        let mut cache = Cache::default();
        let disk = SimulatedDisk::new();
        for step in 0..30 {
            // In whole blocks in one history of two, in any bytes in the others.
            let grain = if seed % 2 == 0 { BLOCK_LENGTH } else { 1 };
            let mut place = |limit: usize| random.below(limit / grain) * grain;
            let offset = place(5 * BLOCK_LENGTH);
            let length = place(2 * BLOCK_LENGTH) + grain;
            let bytes = vec![random.below(256) as u8; length];
            match random.below(12) {
                0..=4 => {
                    cache.write(offset, &bytes);
                    disk.write_at(offset as u64, &bytes).unwrap();
                }
                5 | 6 => {
                    cache.write(offset, &bytes);
                    cache.sync_range(offset, length);
                    disk.write_durable_at(offset as u64, &[IoSlice::new(&bytes)]).unwrap();
                }
                7 => {
                    cache.set_length(offset);
                    disk.set_length(offset as u64).unwrap();
                }
                8 | 9 => {
                    cache.sync();
                    disk.sync().unwrap();
                }
                10 => {
                    cache.fail_to_sync();
                    disk.fail_sync_at(1);
                    disk.sync().unwrap_err();
                }
                _ => {
                    let hole = offset.min(cache.contents.len())..(offset + length).min(cache.contents.len());
                    cache.clear(hole);
                    disk.punch_hole(offset as u64, length as u64).unwrap();
                }
            }
            assert_eq!(disk.image(), Image::from_bytes(&cache.contents), "seed {seed}, step {step}");
            for _ in 0..random.below(3) {
                let dirty: Vec<usize> = cache.dirty.iter().copied().collect();
                match random.below(dirty.len() + 1) {
                    0 if cache.length_dirty => cache.write_back_length(),
                    0 => {}
                    number => cache.write_back_block(dirty[number - 1]),
                }
            }
            let point = disk.crash_point();
            if point.count(Tear::Never) <= 3000 {
                let left = cache.after_power_cut();
                let found = point.states(Tear::Never).any(|(_, image)| image == left);
                assert!(found, "seed {seed}, step {step}: {left:?} is none of {point:#?}");
                cuts += 1;
                states_met.insert(left.hash());
            }
        }
        assert!(disk.length().unwrap() <= 7 * BLOCK_BYTES);
    }
    assert!(cuts > 5000 && states_met.len() > 2000, "{cuts} cuts, {} states", states_met.len());
}
