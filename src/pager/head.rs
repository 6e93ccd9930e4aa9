//! The sequenced head: in what order transactions are committed, and which of them one record will make durable.
//!
//! A committed transaction is *sequenced* first: it becomes a [`Member`] of the youngest *group*, and from then on others
//! build on it. One thread at a time is the *leader*: it takes the oldest group, which is closed then, and commits it as
//! one record (`group.rs`).
//!
//! - **H1** The lock is never held over input or output.
//! - **H2** A group is removed only after its changes are published, or its members have failed. So who takes what is
//!   pending and pins the published state under this lock misses nothing.
//! - **H3** A member fails together with every one sequenced later that began when it was seen; who is open and began
//!   then cannot commit.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, ThreadId};

use super::conflict::Claim;
use super::group::Group;
use super::pending::{Member, Pending, Sequence};
use super::private::Pages;
use crate::error::{Contended, Error, Result};
use crate::id::{PageId, SizeClass};
use crate::lock::lock_awake;
use crate::store::{Durability, Pinned, Published};

/// A group is not joined any more beyond so many bytes …
const GROUP_BYTES_LIMIT: usize = 8 << 20;

/// … or so many members.
const GROUP_MEMBERS_LIMIT: usize = 512;

/// The head. See the module.
#[derive(Debug, Default)]
pub(super) struct Head {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// That of the youngest sequenced transaction, or of the youngest failure.
    sequence: Sequence,
    /// Oldest first.
    layers: VecDeque<Layer>,
    bytes: usize,
    leader: Leader,
    /// How many open transactions began at which sequence.
    open: BTreeMap<Sequence, usize>,
    /// Who began from the first on and before the second has seen a member that failed.
    failures: Vec<(Sequence, Sequence)>,
    failure: String,
    /// By class, the youngest transaction that allocated or freed pages of it.
    allocated: [Sequence; SizeClass::COUNT],
}

/// A group as the head knows it.
#[derive(Debug)]
struct Layer {
    group: Arc<Group>,
    top: Arc<Member>,
    members: usize,
    bytes: usize,
    durability: Durability,
    stage: Stage,
}

/// Whether a group can be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    Closed,
}

/// Who leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Leader {
    #[default]
    Nobody,
    Thread(ThreadId),
}

/// What a transaction wants to commit.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) pages: Pages,
    pub(super) header: Option<Arc<[u8]>>,
    pub(super) returned: Vec<PageId>,
    pub(super) bytes: usize,
    pub(super) durability: Durability,
    /// Bits of the classes of which it allocates or frees pages.
    pub(super) allocates: u32,
}

/// Why a transaction has no place in the order, and what it wanted.
pub(super) type Refused = Box<(Error, Draft)>;

/// A group that its leader is to commit.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) group: Arc<Group>,
    pub(super) top: Arc<Member>,
    pub(super) durability: Durability,
}

impl Head {
    /// What a transaction begins with: the published state, and what is pending on it.
    pub(super) fn begin(&self, published: &Arc<Published>) -> (Pinned, Pending) {
        let mut inner = self.lock();
        let tops = inner.layers.iter().rev().map(|layer| Arc::clone(&layer.top)).collect();
        let began = inner.sequence;
        if !inner.failures.is_empty() && inner.open.is_empty() && inner.layers.is_empty() {
            inner.failures.clear();
        }
        *inner.open.entry(began).or_default() += 1;
        let youngest_group = inner.layers.back().map(|layer| Arc::clone(&layer.group));
        (published.pin(), Pending::new(tops, youngest_group, began))
    }

    /// A transaction ends that was not sequenced.
    pub(super) fn end(&self, began: Sequence) {
        self.lock().ended(began);
    }

    /// What the oldest open transaction began with.
    pub(super) fn oldest_open(&self) -> Sequence {
        let inner = self.lock();
        inner.open.keys().next().copied().unwrap_or(inner.sequence)
    }

    /// Bytes that wait for being committed.
    pub(super) fn pending_bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Gives a transaction its place in the order, unless it has read or built on what does not hold any more. Its
    /// registration as an open one ends in any case.
    pub(super) fn sequence(
        &self,
        began: Sequence,
        draft: Draft,
        claim: Option<&Claim>,
    ) -> std::result::Result<(Arc<Group>, Sequence), Refused> {
        // What was read is compared without the lock as long as nobody comes in between.
        let mut compared = claim.filter(|claim| claim.is_serializable()).map(|claim| {
            let sequence = self.lock().sequence;
            (sequence, claim.validate())
        });
        let mut inner = self.lock();
        inner.ended(began);
        if let (Some(claim), Some((sequence, result))) = (claim, &mut compared) {
            if *sequence != inner.sequence {
                *result = claim.validate();
            }
            if result.is_ok() {
                *result = inner.validate_allocation(claim, began);
            }
        }
        let result = inner.check_not_built_on_failure(began).and(compared.map_or(Ok(()), |(_, result)| result));
        if let Err(error) = result {
            return Err(Box::new((error, draft)));
        }
        let sequence = inner.next_sequence();
        for class in SizeClass::all() {
            if draft.allocates & (1 << class.index()) != 0 {
                inner.allocated[class.index()] = sequence;
            }
        }
        if let Some(claim) = claim {
            claim.sequenced(sequence);
        }
        Ok((inner.push(sequence, began, draft), sequence))
    }

    /// Checks a transaction that changed nothing, and ends it.
    pub(super) fn end_unchanged(&self, began: Sequence, claim: Option<&Claim>) -> Result<()> {
        let mut inner = self.lock();
        inner.ended(began);
        inner.check_not_built_on_failure(began)?;
        if let Some(claim) = claim.filter(|claim| claim.is_serializable()) {
            claim.validate()?;
            inner.validate_allocation(claim, began)?;
        }
        Ok(())
    }

    /// The group that is sequenced last, if any waits.
    pub(super) fn youngest_group(&self) -> Option<Arc<Group>> {
        self.lock().layers.back().map(|layer| Arc::clone(&layer.group))
    }

    /// The group that is committed next, if any waits.
    pub(super) fn oldest_group(&self) -> Option<Arc<Group>> {
        self.lock().layers.front().map(|layer| Arc::clone(&layer.group))
    }

    /// Makes the caller the leader, if there is none.
    pub(super) fn lead(&self) -> bool {
        let mut inner = self.lock();
        inner.leader == Leader::Nobody && {
            inner.leader = Leader::Thread(thread::current().id());
            true
        }
    }

    /// Whether the caller is the leader: it must not wait for a commit, which it would have to make itself.
    pub(super) fn is_led_here(&self) -> bool {
        self.lock().leader == Leader::Thread(thread::current().id())
    }

    /// The leader takes the oldest group, which nobody joins from now on.
    pub(super) fn take(&self) -> Option<Taken> {
        let mut inner = self.lock();
        let layer = inner.layers.front_mut()?;
        layer.stage = Stage::Closed;
        let (group, top) = (Arc::clone(&layer.group), Arc::clone(&layer.top));
        Some(Taken { group, top, durability: layer.durability })
    }

    /// The leader is done with the group that it took (H2); how much memory its frames took.
    pub(super) fn remove_oldest(&self) -> usize {
        let mut inner = self.lock();
        let bytes = inner.layers.pop_front().map_or(0, |layer| layer.bytes);
        inner.bytes -= bytes;
        bytes
    }

    /// The leader leads no more; the groups that are left, oldest first.
    pub(super) fn resign(&self) -> Vec<Arc<Group>> {
        let mut inner = self.lock();
        inner.leader = Leader::Nobody;
        inner.layers.iter().map(|layer| Arc::clone(&layer.group)).collect()
    }

    /// A member failed: it is not seen any more, nor is any that was built on it (H3).
    pub(super) fn fail(&self, member: &Member, reason: &Error) {
        let mut inner = self.lock();
        let until = inner.next_sequence();
        let built_on = |other: &Member| other.began >= member.sequence && other.began < until;
        member.fail(until);
        for layer in &inner.layers {
            layer.top.chain().filter(|other| built_on(other)).for_each(|other| other.fail(until));
        }
        inner.failures.push((member.sequence, until));
        inner.failure = reason.to_string();
    }

    /// What a member that was built on a failed one fails with.
    pub(super) fn predecessor_failed(&self) -> Error {
        Error::PredecessorFailed { reason: self.lock().failure.clone() }
    }

    /// A panic while the lock is held leaves what is inside whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock_awake(&self.inner)
    }
}

impl Inner {
    fn next_sequence(&mut self) -> Sequence {
        self.sequence.0 += 1;
        self.sequence
    }

    fn ended(&mut self, began: Sequence) {
        if let Some(count) = self.open.get_mut(&began) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&began);
            }
        }
    }

    fn check_not_built_on_failure(&self, began: Sequence) -> Result<()> {
        match self.failures.iter().any(|(from, until)| (*from..*until).contains(&began)) {
            true => Err(Error::PredecessorFailed { reason: self.failure.clone() }),
            false => Ok(()),
        }
    }

    /// Fails if pages were allocated or freed in a class that the transaction has walked through.
    fn validate_allocation(&self, claim: &Claim, began: Sequence) -> Result<()> {
        let mut walked = claim.classes_walked();
        match walked.find(|class| self.allocated[class.index()] > began) {
            Some(class) => Err(Error::Conflict { on: Contended::Allocation(class), open: false }),
            None => Ok(()),
        }
    }

    fn push(&mut self, sequence: Sequence, began: Sequence, draft: Draft) -> Arc<Group> {
        let Draft { pages, header, returned, bytes, durability, .. } = draft;
        self.bytes += bytes;
        let joins = |layer: &&mut Layer| {
            let full = layer.members >= GROUP_MEMBERS_LIMIT || layer.bytes + bytes > GROUP_BYTES_LIMIT;
            layer.stage == Stage::Open && !full
        };
        let member = |before| Arc::new(Member::new((sequence, began), pages, header, returned, before));
        match self.layers.back_mut().filter(joins) {
            Some(layer) => {
                layer.top = member(Some(Arc::clone(&layer.top)));
                layer.members += 1;
                layer.bytes += bytes;
                if durability == Durability::Durable {
                    layer.durability = Durability::Durable;
                }
                Arc::clone(&layer.group)
            }
            None => {
                let group = Arc::new(Group::default());
                let layer = Layer {
                    group: Arc::clone(&group),
                    top: member(None),
                    members: 1,
                    bytes,
                    durability,
                    stage: Stage::Open,
                };
                self.layers.push_back(layer);
                group
            }
        }
    }
}
