//! Transactions that run beside each other: which of them may change what.
//!
//! - **C1** A page (or the header) is claimed by at most one open transaction; who claims it second is refused at once,
//!   and so is who claims what was changed by a transaction sequenced after its own beginning.
//! - **C2** An entry is forgotten only when every open transaction began after the last change it tells of.
//! - **C3** Serial transactions claim nothing: none is open beside them.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::handle::Shared;
use super::pending::Sequence;
use crate::error::{Contended, Error, Result};
use crate::id::SizeClass;

/// What a concurrent transaction is protected from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// It sees one state, and its own changes; no two change the same page. What it has only *read* may be changed
    /// beside it (write skew), unless it was [locked](super::Transaction::lock).
    #[default]
    Snapshot,
    /// As if the transactions had run one after the other: it is refused at its commit if anything that it read was
    /// changed beside it.
    Serializable,
}

const SHARDS: usize = 64;

/// A shard is searched for entries to forget when it has so many.
const PRUNE_AT: usize = 64;

/// Who changes what, for all open concurrent transactions.
#[derive(Debug)]
pub(super) struct Claims {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Shard {
    entries: HashMap<Contended, Entry>,
    prune_at: usize,
}

#[derive(Debug)]
struct Entry {
    owner: Arc<Owner>,
    /// The last change before the owner's.
    before: Sequence,
}

/// A concurrent transaction, and what became of it.
#[derive(Debug, Default)]
struct Owner(AtomicU64);

const OPEN: u64 = u64::MAX;
const ABORTED: u64 = u64::MAX - 1;

/// What a concurrent transaction has claimed and read. Dropped without being sequenced, it was aborted.
#[derive(Debug)]
pub(super) struct Claim {
    owner: Arc<Owner>,
    began: Sequence,
    shared: Arc<Shared>,
    reads: Option<RefCell<Reads>>,
}

#[derive(Debug, Default)]
struct Reads {
    units: HashSet<Contended>,
    classes: u32,
}

impl Default for Claims {
    fn default() -> Self {
        let shard = || Mutex::new(Shard { entries: HashMap::new(), prune_at: PRUNE_AT });
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), hasher: RandomState::new() }
    }
}

impl Claims {
    /// A panic while a shard is locked leaves it whole.
    fn shard(&self, unit: Contended) -> MutexGuard<'_, Shard> {
        let index = self.hasher.hash_one(unit) as usize % SHARDS;
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    /// Forgets what no open transaction needs to know (C2).
    fn prune(&mut self, oldest_open: Sequence) {
        self.entries.retain(|_, entry| match entry.owner.0.load(Ordering::Acquire) {
            OPEN => true,
            ABORTED => entry.before > oldest_open,
            sequence => Sequence(sequence) > oldest_open,
        });
        self.prune_at = (2 * self.entries.len()).max(PRUNE_AT);
    }
}

impl Entry {
    /// The last change, if it is sequenced.
    fn last(&self) -> Sequence {
        match self.owner.0.load(Ordering::Acquire) {
            OPEN | ABORTED => self.before,
            sequence => Sequence(sequence),
        }
    }
}

impl Claim {
    pub(super) fn new(shared: &Arc<Shared>, began: Sequence, isolation: Isolation) -> Self {
        let reads = (isolation == Isolation::Serializable).then(RefCell::default);
        Self { owner: Arc::new(Owner(AtomicU64::new(OPEN))), began, shared: Arc::clone(shared), reads }
    }

    /// Claims what the transaction is about to change (C1).
    pub(super) fn claim(&self, unit: Contended) -> Result<()> {
        let mut shard = self.room_in_shard(unit);
        let before = match shard.entries.get(&unit) {
            Some(entry) if Arc::ptr_eq(&entry.owner, &self.owner) => return Ok(()),
            Some(entry) if entry.owner.0.load(Ordering::Acquire) == OPEN => {
                return Err(Error::Conflict { on: unit, open: true });
            }
            Some(entry) if entry.last() > self.began => return Err(Error::Conflict { on: unit, open: false }),
            Some(entry) => entry.last(),
            None => Sequence::default(),
        };
        shard.entries.insert(unit, Entry { owner: Arc::clone(&self.owner), before });
        Ok(())
    }

    /// Notes what the transaction has made, which nobody else can: who has seen that it was not there has read it.
    pub(super) fn appeared(&self, unit: Contended) {
        let mut shard = self.room_in_shard(unit);
        let before = shard.entries.get(&unit).map(Entry::last).unwrap_or_default();
        shard.entries.insert(unit, Entry { owner: Arc::clone(&self.owner), before });
    }

    /// The unit's shard, in which what no open transaction needs to know is forgotten now and then.
    fn room_in_shard(&self, unit: Contended) -> MutexGuard<'_, Shard> {
        let shard = self.shared.claims.shard(unit);
        if shard.entries.len() < shard.prune_at {
            return shard;
        }
        // The head's lock comes before those of the shards.
        drop(shard);
        let oldest_open = self.shared.head.oldest_open();
        let mut shard = self.shared.claims.shard(unit);
        shard.prune(oldest_open);
        shard
    }

    /// Notes what the transaction has read.
    pub(super) fn read(&self, unit: Contended) {
        if let Some(reads) = &self.reads {
            reads.borrow_mut().units.insert(unit);
        }
    }

    /// Notes that the transaction has asked which pages of the class there are.
    pub(super) fn walked(&self, class: SizeClass) {
        if let Some(reads) = &self.reads {
            reads.borrow_mut().classes |= 1 << class.index();
        }
    }

    pub(super) fn is_serializable(&self) -> bool {
        self.reads.is_some()
    }

    pub(super) fn classes_walked(&self) -> impl Iterator<Item = SizeClass> {
        let classes = self.reads.as_ref().map_or(0, |reads| reads.borrow().classes);
        SizeClass::all().filter(move |class| classes & (1 << class.index()) != 0)
    }

    /// Fails if anything that was read has been changed by a transaction sequenced since.
    pub(super) fn validate(&self) -> Result<()> {
        let Some(reads) = &self.reads else { return Ok(()) };
        for unit in &reads.borrow().units {
            let shard = self.shared.claims.shard(*unit);
            if shard.entries.get(unit).is_some_and(|entry| entry.last() > self.began) {
                return Err(Error::Conflict { on: *unit, open: false });
            }
        }
        Ok(())
    }

    /// The transaction has its place in the order. Called with the head's lock held.
    pub(super) fn sequenced(&self, sequence: Sequence) {
        self.owner.0.store(sequence.0, Ordering::Release);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let _ = self.owner.0.compare_exchange(OPEN, ABORTED, Ordering::AcqRel, Ordering::Relaxed);
    }
}
