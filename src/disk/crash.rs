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

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::image::{Content, Image};
use super::sample;
use super::simulated::Change;
use crate::id::{BLOCK_BYTES, BLOCK_LENGTH};

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

/// What can be chosen.
pub(super) struct Choices {
    base: Image,
    /// The durable length, then those set since.
    pub(super) lengths: Vec<u64>,
    /// By number.
    pub(super) blocks: Vec<BlockChoices>,
}

pub(super) struct BlockChoices {
    pub(super) number: u64,
    /// The durable content, then those written since: two at least.
    pub(super) contents: Vec<Content>,
}

impl Choices {
    pub(super) fn length_newest(&self) -> u64 {
        self.lengths.last().copied().unwrap_or_default()
    }

    /// The state of this length with this content of each block.
    pub(super) fn build(&self, length: u64, contents: Vec<usize>) -> (StateDescription, Image) {
        let mut image = self.base.clone();
        image.set_length(length);
        let mut blocks = Vec::with_capacity(contents.len());
        for (block, version) in self.blocks.iter().zip(contents) {
            if block.number * BLOCK_BYTES < length {
                image.set(block.number, block.contents[version].clipped(block.number, length));
                blocks.push((block.number, BlockVersion::Whole(version)));
            }
        }
        (StateDescription { length, blocks }, image)
    }

    /// The choices of the blocks, for each length.
    fn layers(self) -> impl Iterator<Item = Layer> {
        let mut lengths = self.lengths.clone();
        lengths.sort_unstable();
        lengths.dedup();
        lengths.into_iter().map(move |length| self.layer(length))
    }

    fn layer(&self, length: u64) -> Layer {
        let mut image = self.base.clone();
        image.set_length(length);
        let digits = self
            .blocks
            .iter()
            .filter(|block| block.number * BLOCK_BYTES < length)
            .map(|block| {
                Digit::new(block.number, block.contents.iter().map(|c| c.clipped(block.number, length)).collect())
            })
            .collect();
        Layer { length, image, digits }
    }
}

/// All states of one length.
struct Layer {
    length: u64,
    /// The durable content of each block.
    image: Image,
    digits: Vec<Digit>,
}

/// One block's choices within a length.
#[derive(Clone)]
struct Digit {
    block: u64,
    /// In the order they were written, from the durable one on.
    contents: Vec<Content>,
    /// Those of them that differ, the durable one first.
    choices: Vec<(BlockVersion, Content)>,
}

impl Digit {
    fn new(block: u64, contents: Vec<Content>) -> Self {
        let mut seen = HashSet::new();
        let choices = contents
            .iter()
            .enumerate()
            .filter(|(_, content)| seen.insert(content.hash()))
            .map(|(version, content)| (BlockVersion::Whole(version), content.clone()))
            .collect();
        Self { block, contents, choices }
    }

    /// The torn contents that differ from each other and from the whole ones.
    fn torn(&self, tear: Tear) -> Vec<(BlockVersion, Content)> {
        let mut seen: HashSet<u128> = self.choices.iter().map(|(_, content)| content.hash()).collect();
        let mut torn = Vec::new();
        for earlier in 0..self.contents.len() - 1 {
            for (prefix, suffix) in [(earlier + 1, earlier), (earlier, earlier + 1)] {
                for cut in tear.cuts() {
                    let content = torn_content(self.block, &self.contents[prefix], &self.contents[suffix], cut);
                    if seen.insert(content.hash()) {
                        torn.push((BlockVersion::Torn { prefix, suffix, cut }, content));
                    }
                }
            }
        }
        torn
    }
}

/// The first `cut` bytes of one content, the rest of another.
pub(super) fn torn_content(block: u64, prefix: &Content, suffix: &Content, cut: usize) -> Content {
    let mut bytes = *suffix.bytes();
    bytes[..cut].copy_from_slice(&prefix.bytes()[..cut]);
    Content::new(block, &bytes)
}

impl Layer {
    /// How many states there are: none torn, and each block torn in turn while the others are whole.
    fn count(&self, tear: Tear) -> u128 {
        let product = |of: &mut dyn Iterator<Item = usize>| of.fold(1u128, |all, one| all.saturating_mul(one as u128));
        let whole = product(&mut self.digits.iter().map(|digit| digit.choices.len()));
        self.digits.iter().enumerate().fold(whole, |total, (torn, digit)| {
            let others = self.digits.iter().enumerate().filter(|(place, _)| *place != torn);
            let others = product(&mut others.map(|(_, digit)| digit.choices.len()));
            let count = if tear == Tear::Never { 0 } else { digit.torn(tear).len() as u128 };
            total.saturating_add(count.saturating_mul(others))
        })
    }

    /// The walks through all states.
    fn walks(self, tear: Tear) -> impl Iterator<Item = Walk> {
        let torn_digits = if tear == Tear::Never { 0 } else { self.digits.len() };
        std::iter::once(None).chain((0..torn_digits).map(Some)).filter_map(move |torn| {
            let mut digits = self.digits.clone();
            if let Some(place) = torn {
                digits[place].choices = digits[place].torn(tear);
            }
            Walk::new(self.length, self.image.clone(), digits)
        })
    }
}

/// A walk through the product of some choices, like an odometer: each step changes as few blocks as can be.
struct Walk {
    length: u64,
    image: Image,
    digits: Vec<Digit>,
    positions: Vec<usize>,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Start,
    Under,
    Over,
}

impl Walk {
    /// `None` if there is a digit without a choice.
    fn new(length: u64, mut image: Image, digits: Vec<Digit>) -> Option<Self> {
        for digit in &digits {
            image.set(digit.block, digit.choices.first()?.1.clone());
        }
        let positions = vec![0; digits.len()];
        Some(Self { length, image, digits, positions, phase: Phase::Start })
    }

    /// Turns to the next state; says whether there is one.
    fn step(&mut self) -> bool {
        for (digit, position) in self.digits.iter().zip(&mut self.positions) {
            let turned = *position + 1 < digit.choices.len();
            *position = if turned { *position + 1 } else { 0 };
            self.image.set(digit.block, digit.choices[*position].1.clone());
            if turned {
                return true;
            }
        }
        false
    }

    fn describe(&self) -> StateDescription {
        let digits = self.digits.iter().zip(&self.positions);
        let blocks = digits.map(|(digit, &position)| (digit.block, digit.choices[position].0)).collect();
        StateDescription { length: self.length, blocks }
    }
}

impl Iterator for Walk {
    type Item = (StateDescription, Image);

    fn next(&mut self) -> Option<Self::Item> {
        let there = match self.phase {
            Phase::Start => true,
            Phase::Under => self.step(),
            Phase::Over => false,
        };
        self.phase = if there { Phase::Under } else { Phase::Over };
        there.then(|| (self.describe(), self.image.clone()))
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
