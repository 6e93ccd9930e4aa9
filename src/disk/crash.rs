//! The states that a power cut can leave: all of them, or a choice.
//!
//! A state is a choice of one length among the durable one and those that were set since, and, for each block within that
//! length independently, of one content among the durable one and those written since. At most one block is *torn*: its
//! first bytes are of one content, the rest of the one written before or after it.
//!
//! - **I1** [`CrashPoint::states`] gives each such state once: choices that give the same bytes are one choice. (What
//!   lies beyond the chosen length does not exist, and is no choice.)
//! - **I2** [`CrashPoint::count`] is how many it gives.
//!
//! Callers: crash harnesses. A crash point is a value; any thread may build states of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::choices::{BlockChoices, Choices};
use super::image::{Content, Image};
use super::sample;
use super::simulated::Change;
use crate::id::BLOCK_LENGTH;

/// What a crash point was recorded at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The entry of a sync.
    Sync,
    /// The entry of a durable write, its own bytes waiting.
    DurableWrite,
    /// A mark, or a call of [`SimulatedDisk::crash_point`](super::SimulatedDisk::crash_point).
    Mark,
}

/// Where the one torn block of a state may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tear {
    /// No block is torn.
    Never,
    /// At each multiple of 512 bytes: a disk's sector.
    Every512,
    /// At each multiple of 16 bytes: cuts within a structure.
    Every16,
}

impl Tear {
    /// The places where a block may be cut.
    pub(super) fn cuts(self) -> impl ExactSizeIterator<Item = usize> {
        let grain = match self {
            Self::Never => BLOCK_LENGTH,
            Self::Every512 => 512,
            Self::Every16 => 16,
        };
        (1..BLOCK_LENGTH / grain).map(move |cut| cut * grain)
    }
}

/// A moment of a [`SimulatedDisk`](super::SimulatedDisk)'s life: what was durable, and what was written since.
#[derive(Clone, Debug)]
pub struct CrashPoint {
    cause: Cause,
    base: Image,
    /// In the order they were made.
    changes: Vec<Change>,
    marks: usize,
    last_mark: Option<Arc<str>>,
}

/// Which content of a block a state has. Content 0 is the durable one, 1 the first that was written since, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockVersion {
    /// This content.
    Whole(usize),
    /// Bytes up to `cut` of content `prefix`, the rest of content `suffix`.
    Torn {
        /// The content of the first bytes.
        prefix: usize,
        /// The content of the last bytes.
        suffix: usize,
        /// Where the second begins.
        cut: usize,
    },
}

/// What was chosen for a state: for a failing test to print.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StateDescription {
    /// The file's length in bytes.
    pub length: u64,
    /// The blocks that had a choice, by number.
    pub blocks: Vec<(u64, BlockVersion)>,
}

impl CrashPoint {
    pub(super) fn new(
        cause: Cause,
        base: Image,
        changes: Vec<Change>,
        marks: usize,
        last_mark: Option<Arc<str>>,
    ) -> Self {
        Self { cause, base, changes, marks, last_mark }
    }

    /// What the disk was asked for at this moment.
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// How many marks had been made.
    pub fn marks(&self) -> usize {
        self.marks
    }

    /// The last mark that had been made.
    pub fn last_mark(&self) -> Option<&str> {
        self.last_mark.as_deref()
    }

    /// The state in which nothing since the last syncs has reached the medium.
    pub fn durable(&self) -> &Image {
        &self.base
    }

    /// The state in which everything has.
    pub fn newest(&self) -> Image {
        let choices = self.choices();
        let newest: Vec<usize> = choices.blocks.iter().map(|block| block.contents.len() - 1).collect();
        choices.build(choices.length_newest(), newest).1
    }

    /// How many blocks have a choice.
    pub fn pending_blocks(&self) -> usize {
        self.choices().blocks.len()
    }

    /// How many states there are, `u128::MAX` if more. Builds each torn block once.
    pub fn count(&self, tear: Tear) -> u128 {
        self.choices().layers().fold(0, |total, layer| total.saturating_add(layer.count(tear)))
    }

    /// Every state, once.
    pub fn states(&self, tear: Tear) -> impl Iterator<Item = (StateDescription, Image)> + use<> {
        self.choices().layers().flat_map(move |layer| layer.walks(tear)).flatten()
    }

    /// `most` different states, or fewer if so many are not found: extremes first (nothing, everything, one block
    /// only, all but one, what was written up to a moment), then random ones. The same seed gives the same states.
    pub fn states_sampled(
        &self,
        tear: Tear,
        seed: u64,
        most: usize,
    ) -> impl Iterator<Item = (StateDescription, Image)> + use<> {
        sample::states(self.choices(), self.time_line(), tear, seed, most)
    }

    /// Every state if there are at most `limit`, else `limit` sampled ones.
    pub fn states_up_to(
        &self,
        limit: usize,
        tear: Tear,
        seed: u64,
    ) -> Box<dyn Iterator<Item = (StateDescription, Image)>> {
        if self.is_countable(limit, tear) {
            Box::new(self.states(tear))
        } else {
            Box::new(self.states_sampled(tear, seed, limit))
        }
    }

    /// Whether there are at most `limit` states; torn blocks are built only if the whole ones are not too many yet.
    fn is_countable(&self, limit: usize, tear: Tear) -> bool {
        self.count(Tear::Never) <= limit as u128 && self.count(tear) <= limit as u128
    }

    fn choices(&self) -> Choices {
        let mut lengths = vec![self.base.length()];
        let mut blocks: BTreeMap<u64, Vec<Content>> = BTreeMap::new();
        for change in &self.changes {
            match change {
                Change::Length(length) => lengths.push(*length),
                Change::Block(block, content) => {
                    blocks.entry(*block).or_insert_with(|| vec![self.base.get(*block)]).push(content.clone());
                }
            }
        }
        let blocks = blocks.into_iter().map(|(number, contents)| BlockChoices { number, contents }).collect();
        Choices { base: self.base.clone(), lengths, blocks }
    }

    /// For each change, in order, the block it changed; `None` for the length.
    fn time_line(&self) -> Vec<Option<u64>> {
        self.changes.iter().map(Change::place).collect()
    }
}

impl fmt::Display for BlockVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(version) => write!(f, "{version}"),
            Self::Torn { prefix, suffix, cut } => write!(f, "{prefix}|{suffix} cut at {cut}"),
        }
    }
}

impl fmt::Display for StateDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "length {}", self.length)?;
        self.blocks.iter().try_for_each(|(block, version)| write!(f, ", block {block}: {version}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Disk, SimulatedDisk};
    use std::collections::HashSet;

    /// A disk of `blocks` blocks of ones, all durable.
    fn disk_of(blocks: usize) -> SimulatedDisk {
        SimulatedDisk::from_image(&Image::from_bytes(&vec![1; blocks * BLOCK_LENGTH]))
    }

    fn write(disk: &SimulatedDisk, block: u64, byte: u8) {
        disk.write_at(block * BLOCK_LENGTH as u64, &[byte; BLOCK_LENGTH]).unwrap();
    }

    /// All states, checked against their count and against each other.
    fn all(point: &CrashPoint, tear: Tear) -> Vec<Image> {
        let states: Vec<Image> = point.states(tear).map(|(_, image)| image).collect();
        assert_eq!(states.len() as u128, point.count(tear));
        let hashes: HashSet<u128> = states.iter().map(Image::hash).collect();
        assert_eq!(hashes.len(), states.len(), "a state was given twice");
        states
    }

    #[test]
    fn each_block_has_any_of_its_contents() {
        let disk = disk_of(3);
        write(&disk, 0, 2);
        write(&disk, 2, 2);
        write(&disk, 0, 3);
        let point = disk.crash_point();
        let mut found: Vec<(u8, u8, u8)> = all(&point, Tear::Never)
            .iter()
            .map(|image| image.to_bytes())
            .map(|bytes| (bytes[0], bytes[BLOCK_LENGTH], bytes[2 * BLOCK_LENGTH]))
            .collect();
        found.sort_unstable();
        assert_eq!(found, [(1, 1, 1), (1, 1, 2), (2, 1, 1), (2, 1, 2), (3, 1, 1), (3, 1, 2)]);
        assert_eq!(*point.durable(), Image::from_bytes(&[1; 3 * BLOCK_LENGTH]));
        assert_eq!(point.newest(), disk.image());
        assert_eq!(point.pending_blocks(), 2);
    }

    #[test]
    fn one_block_is_torn_between_contents_that_follow_each_other() {
        let disk = disk_of(1);
        write(&disk, 0, 2);
        // Two whole, and two orders at each cut: 7 sectors, 255 pieces of 16 bytes.
        assert_eq!(all(&disk.crash_point(), Tear::Every512).len(), 2 + 2 * 7);
        assert_eq!(all(&disk.crash_point(), Tear::Every16).len(), 2 + 2 * 255);
        write(&disk, 0, 3);
        // The first and the third do not follow each other.
        assert_eq!(all(&disk.crash_point(), Tear::Every512).len(), 3 + 2 * 2 * 7);
        assert_eq!(all(&disk.crash_point(), Tear::Every16).len(), 3 + 2 * 2 * 255);
    }

    #[test]
    fn while_one_block_is_torn_the_others_have_any_whole_content() {
        let disk = disk_of(3);
        write(&disk, 0, 2);
        write(&disk, 1, 2);
        write(&disk, 1, 3);
        write(&disk, 2, 2);
        // Whole: 2 * 3 * 2. Torn: the first block 14 ways with 3 * 2, the second 28 ways with 2 * 2, the third as the first.
        assert_eq!(all(&disk.crash_point(), Tear::Every512).len(), 12 + 14 * 6 + 28 * 4 + 14 * 6);
    }

    #[test]
    fn a_tear_in_equal_bytes_is_no_other_state() {
        let disk = disk_of(1);
        disk.write_at(0, &[2; 32]).unwrap();
        assert_eq!(all(&disk.crash_point(), Tear::Every512).len(), 2);
        // Cut at 16, either half new.
        assert_eq!(all(&disk.crash_point(), Tear::Every16).len(), 4);
        let torn: HashSet<(u8, u8)> = all(&disk.crash_point(), Tear::Every16)
            .iter()
            .map(|image| image.to_bytes())
            .map(|b| (b[0], b[16]))
            .collect();
        assert_eq!(torn, HashSet::from([(1, 1), (1, 2), (2, 1), (2, 2)]));
    }

    #[test]
    fn writing_the_same_bytes_again_adds_no_state() {
        let disk = disk_of(2);
        write(&disk, 0, 1);
        write(&disk, 1, 2);
        write(&disk, 1, 1);
        assert_eq!(all(&disk.crash_point(), Tear::Never).len(), 2);
        assert_eq!(all(&disk.crash_point(), Tear::Every512).len(), 2 + 14);
    }

    #[test]
    fn a_block_beyond_the_length_does_not_exist() {
        let disk = SimulatedDisk::new();
        disk.write_at(0, &[1; 2 * BLOCK_LENGTH]).unwrap();
        // No length: one state. Both blocks: four.
        assert_eq!(all(&disk.crash_point(), Tear::Never).len(), 1 + 4);
        let disk = SimulatedDisk::new();
        write(&disk, 0, 1);
        write(&disk, 1, 1);
        assert_eq!(all(&disk.crash_point(), Tear::Never).len(), 1 + 2 + 4);
        // A hole within the length reads as zero.
        let disk = disk_of(1);
        disk.set_length(3 * BLOCK_LENGTH as u64).unwrap();
        write(&disk, 2, 2);
        let states = all(&disk.crash_point(), Tear::Never);
        assert_eq!(states.len(), 1 + 2);
        for bytes in states.iter().map(Image::to_bytes).filter(|bytes| bytes.len() > BLOCK_LENGTH) {
            assert!(bytes[BLOCK_LENGTH..2 * BLOCK_LENGTH].iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn a_cut_of_the_file_may_be_lost_whole_or_in_part() {
        let disk = disk_of(3);
        disk.set_length(BLOCK_LENGTH as u64).unwrap();
        // Cut: one state. Not cut: each of the two blocks cleared or not.
        assert_eq!(all(&disk.crash_point(), Tear::Never).len(), 1 + 4);
        disk.sync().unwrap();
        assert_eq!(all(&disk.crash_point(), Tear::Never), [Image::from_bytes(&[1; BLOCK_LENGTH])]);
    }

    #[test]
    fn a_length_within_a_block_clips_it() {
        let disk = SimulatedDisk::new();
        disk.write_at(0, &[1; 1000]).unwrap();
        disk.write_at(1000, &[2; 1000]).unwrap();
        // Length 0: 1. Length 1000: nothing or the first thousand; the second write's content is the same there.
        // Length 2000: nothing, the first thousand, both.
        let states = all(&disk.crash_point(), Tear::Never);
        assert_eq!(states.len(), 1 + 2 + 3);
        for image in states {
            assert_eq!(Image::from_bytes(&image.to_bytes()), image);
        }
    }

    #[test]
    fn a_description_says_what_was_chosen() {
        let disk = disk_of(2);
        write(&disk, 0, 2);
        write(&disk, 1, 2);
        let texts: HashSet<String> =
            disk.crash_point().states(Tear::Every512).map(|(description, _)| description.to_string()).collect();
        assert_eq!(texts.len(), 4 + 2 * 14 * 2);
        assert!(texts.contains("length 8192, block 0: 1, block 1: 0"));
        assert!(texts.contains("length 8192, block 0: 1|0 cut at 1536, block 1: 1"));
    }

    #[test]
    fn many_states_are_sampled_and_few_are_all_given() {
        let disk = disk_of(10);
        (0..10).for_each(|block| write(&disk, block, 2));
        let point = disk.crash_point();
        assert_eq!(point.count(Tear::Never), 1024);
        assert_eq!(point.states_up_to(1024, Tear::Never, 1).count(), 1024);
        assert!((500..1024).contains(&point.states_up_to(1023, Tear::Never, 1).count()));
        assert_eq!(point.states_up_to(1024, Tear::Every512, 1).count(), 1024);
        let disk = disk_of(200);
        (0..200).for_each(|block| write(&disk, block, 2));
        assert_eq!(disk.crash_point().count(Tear::Every16), u128::MAX);
    }
}
