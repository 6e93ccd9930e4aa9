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
    /// Descriptors that are not evicted, of each leaf that has memory.
    leaves: HashMap<Leaf, u32, BuildHasherDefault<LeafHasher>>,
    /// Leaves that may have none left.
    empty: Vec<Leaf>,
}

impl Shard {
    /// Whether the leaf has memory, which is charged.
    pub(super) fn has(&self, leaf: Leaf) -> bool {
        self.leaves.contains_key(&leaf)
    }

    /// A descriptor of the leaf is about to stop being evicted. Memory for the leaf has been charged.
    pub(super) fn raise(&mut self, leaf: Leaf) {
        *self.leaves.entry(leaf).or_default() += 1;
    }

    /// A descriptor of the leaf is evicted.
    pub(super) fn lower(&mut self, leaf: Leaf) {
        let Some(count) = self.leaves.get_mut(&leaf) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.empty.push(leaf);
        }
    }

    /// A leaf of which every descriptor is evicted. Its memory is the caller's to give back, under the same lock.
    pub(super) fn take_empty(&mut self) -> Option<Leaf> {
        while let Some(leaf) = self.empty.pop() {
            if self.leaves.get(&leaf) == Some(&0) {
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
