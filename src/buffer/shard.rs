//! Loads under way, and how much memory of the descriptors is in use: the locked part of a store's pages, in shards.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, Condvar, Mutex};

use super::lock;
use super::table::Leaf;
use super::units::mix;
use crate::error::Error;
use crate::format::BlockPointer;

/// What one shard's lock protects. Descriptors of one leaf belong to one shard.
#[derive(Default)]
pub(super) struct Shard {
    /// By ticket, loads that somebody waits for.
    pub(super) waited: HashMap<u64, Arc<Wait>>,
    /// Leaves that have memory.
    leaves: HashMap<Leaf, InUse, BuildHasherDefault<LeafHasher>>,
    /// Of these, each once, those that may have no descriptor left that is not evicted. Looked at only when memory is
    /// short: a leaf that comes and goes until then may not be noted each time.
    empty: Vec<Leaf>,
}

/// What is known of a leaf that has memory.
#[derive(Default)]
struct InUse {
    /// Descriptors that are not evicted.
    count: u32,
    /// Whether the leaf is among [`Shard::empty`].
    is_noted: bool,
}

impl Shard {
    /// Whether the leaf has memory, which is charged.
    pub(super) fn has(&self, leaf: Leaf) -> bool {
        self.leaves.contains_key(&leaf)
    }

    /// A descriptor of the leaf is about to stop being evicted. Memory for the leaf has been charged.
    pub(super) fn raise(&mut self, leaf: Leaf) {
        self.leaves.entry(leaf).or_default().count += 1;
    }

    /// A descriptor of the leaf is evicted.
    pub(super) fn lower(&mut self, leaf: Leaf) {
        let Some(in_use) = self.leaves.get_mut(&leaf) else { return };
        in_use.count = in_use.count.saturating_sub(1);
        if in_use.count == 0 && !std::mem::replace(&mut in_use.is_noted, true) {
            self.empty.push(leaf);
        }
    }

    /// A leaf of which every descriptor is evicted. Its memory is the caller's to give back, under the same lock.
    pub(super) fn take_empty(&mut self) -> Option<Leaf> {
        while let Some(leaf) = self.empty.pop() {
            let Some(in_use) = self.leaves.get_mut(&leaf) else { continue };
            in_use.is_noted = false;
            if in_use.count == 0 {
                self.leaves.remove(&leaf);
                return Some(leaf);
            }
        }
        None
    }

    /// The load is over: those who wait for it go on.
    pub(super) fn wake(&mut self, ticket: u64, outcome: Outcome) {
        if let Some(wait) = self.waited.remove(&ticket) {
            wait.end(outcome);
        }
    }
}

/// Leaves are the buffer's own numbers: nobody chooses them to collide.
#[derive(Default)]
pub(super) struct LeafHasher(u64);

impl Hasher for LeafHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = mix(self.0 ^ number);
    }
}

/// How a load ended, for those who waited.
pub(super) enum Outcome {
    /// Look again.
    Again,
    /// What lies at this pointer could not be loaded.
    Failed(BlockPointer, Error),
}

/// Waiting for somebody else's load.
#[derive(Default)]
pub(super) struct Wait {
    outcome: Mutex<Option<Outcome>>,
    ended: Condvar,
}

impl Wait {
    /// Those who wait go on.
    pub(super) fn end(&self, outcome: Outcome) {
        *lock(&self.outcome) = Some(outcome);
        self.ended.notify_all();
    }

    /// Waits for the end. If the load failed, with its error and what it tried to load: of interest for who wants just
    /// that.
    pub(super) fn wait(&self) -> Result<(), (BlockPointer, Error)> {
        let mut outcome = lock(&self.outcome);
        loop {
            match &*outcome {
                None => outcome = self.ended.wait(outcome).unwrap_or_else(std::sync::PoisonError::into_inner),
                Some(Outcome::Again) => return Ok(()),
                Some(Outcome::Failed(pointer, error)) => return Err((*pointer, error.copy())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(number: u64) -> Leaf {
        Leaf { class: 12, number }
    }

    #[test]
    fn a_leaf_that_is_emptied_again_and_again_is_noted_once() {
        let mut shard = Shard::default();
        for round in 0..100_000 {
            for number in 0..3 {
                shard.raise(leaf(number));
            }
            (0..3).for_each(|number| shard.lower(leaf(number)));
            assert!(shard.empty.len() <= 3, "{} after {round} rounds", shard.empty.len());
        }
        // In use again, it is not taken; and noted anew when it is empty the next time.
        shard.raise(leaf(1));
        let mut taken = vec![shard.take_empty().unwrap().number, shard.take_empty().unwrap().number];
        taken.sort_unstable();
        assert_eq!((taken, shard.take_empty()), (vec![0, 2], None));
        assert!(shard.has(leaf(1)) && !shard.has(leaf(0)) && !shard.has(leaf(2)));
        shard.lower(leaf(1));
        assert_eq!((shard.take_empty(), shard.take_empty()), (Some(leaf(1)), None));
        // One that was given back begins anew.
        shard.raise(leaf(1));
        shard.lower(leaf(1));
        assert_eq!((shard.take_empty(), shard.take_empty()), (Some(leaf(1)), None));
    }
}
