//! The choices that make a state after a power cut, and the walk through their product.
//!
//! A *layer* is all states of one length; a *digit* is one block's choices within it. A layer is walked once with all
//! blocks whole, and then once for each block, with that block's torn contents for its choices. Contents that are equal
//! bytes are one choice, so no walk meets a state twice, and no two walks the same one.

use std::collections::HashSet;

use super::crash::{BlockVersion, StateDescription, Tear};
use super::image::{Content, Image};
use crate::id::BLOCK_BYTES;

/// What can be chosen.
pub(super) struct Choices {
    pub(super) base: Image,
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
    pub(super) fn layers(self) -> impl Iterator<Item = Layer> {
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
pub(super) struct Layer {
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
                let (first, second) = (&self.contents[prefix], &self.contents[suffix]);
                let mut cut_before = 0;
                for cut in tear.cuts() {
                    // Where the two are equal, a cut further on gives the bytes that the cut before gave.
                    let moved = first.bytes()[cut_before..cut] != second.bytes()[cut_before..cut];
                    cut_before = cut;
                    let content = if moved { torn_content(self.block, first, second, cut) } else { continue };
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
    pub(super) fn count(&self, tear: Tear) -> u128 {
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
    pub(super) fn walks(self, tear: Tear) -> impl Iterator<Item = Walk> {
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
pub(super) struct Walk {
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
