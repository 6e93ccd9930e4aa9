//! When a dead extent may be used again: rules R1 to R3, and R6 for replay.
//!
//! An extent is on the deferred list from its death until nobody can reach it any more: no committed state that a
//! recovery could fall back to, and no reader. (A snapshot's extents are not on the list at all: the snapshot's tree
//! owns them, and its deletion puts them here.)
//!
//! - **R2** data: its death is synced, what wrote it cannot be cut off by a recovery any more (is *anchored*), and no
//!   held generation lies between birth and death.
//! - **R3** a node that checkpoint n replaced: checkpoint n + 1 is durable, so that no superblock leads to it, and no
//!   held base lies between the checkpoint that wrote it and n.
//!
//! While a reader in another process is about to choose a state, every state from some generation on counts as held.

use std::collections::{BTreeMap, VecDeque};

use super::state::Pins;
use crate::format::{DeferredEntry, DeferredKind};
use crate::id::{CheckpointNumber, Extent, Generation};

/// What is known to be durable, and what is held: all that the rules ask.
#[derive(Debug)]
pub(super) struct Conditions<'a> {
    pub(super) synced: Generation,
    pub(super) anchored: Generation,
    pub(super) checkpoint: CheckpointNumber,
    pub(super) pins: &'a Pins,
}

/// The deferred list.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    /// Data not yet looked at, by rising death.
    data: VecDeque<DeferredEntry>,
    /// Data that a held generation keeps, by that generation.
    held: BTreeMap<Generation, Vec<DeferredEntry>>,
    /// Nodes, and data recovered without order.
    nodes: Vec<DeferredEntry>,
    /// What `nodes` was last compared with; `None` if something was added since.
    nodes_judged: Option<NodesJudged>,
}

/// The newest checkpoint, the bases held, and the base from which on all are.
type NodesJudged = (CheckpointNumber, Vec<CheckpointNumber>, Option<CheckpointNumber>);

impl Deferred {
    /// The list with these entries, in any order.
    pub(super) fn new(mut entries: Vec<DeferredEntry>) -> Self {
        let nodes = entries.extract_if(.., |entry| matches!(entry.kind, DeferredKind::Node { .. })).collect();
        entries.sort_by_key(|entry| (death(entry), entry.extent));
        Self { data: entries.into(), nodes, ..Self::default() }
    }

    /// Adds a death. Data must come in the order of deaths.
    pub(super) fn push(&mut self, entry: DeferredEntry) {
        match entry.kind {
            DeferredKind::Data { .. } => self.data.push_back(entry),
            DeferredKind::Node { .. } => {
                self.nodes.push(entry);
                self.nodes_judged = None;
            }
        }
    }

    /// Every entry.
    pub(super) fn entries(&self) -> impl Iterator<Item = &DeferredEntry> {
        self.data.iter().chain(self.held.values().flatten()).chain(&self.nodes)
    }

    pub(super) fn len(&self) -> usize {
        self.data.len() + self.held.values().map(Vec::len).sum::<usize>() + self.nodes.len()
    }

    /// Takes out the entries whose blocks may be used again.
    pub(super) fn release(&mut self, conditions: &Conditions<'_>) -> Vec<DeferredEntry> {
        let mut released = Vec::new();
        let held_still = |generation: &Generation| conditions.pins.generations.binary_search(generation).is_ok();
        let let_go: Vec<Generation> = self.held.keys().copied().filter(|generation| !held_still(generation)).collect();
        for generation in let_go {
            for entry in self.held.remove(&generation).unwrap_or_default() {
                match conditions.pins.may_choose_before(death(&entry)) {
                    // To be judged again next time: nobody holds the generation that it is filed under.
                    true => self.held.entry(generation).or_default().push(entry),
                    false => self.judge(entry, conditions, &mut released),
                }
            }
        }
        while let Some(entry) = self.data.front().copied() {
            let DeferredKind::Data { written, death, .. } = entry.kind else { break };
            let chosen = conditions.pins.may_choose_before(death);
            if death > conditions.synced || written > conditions.anchored || chosen {
                break;
            }
            self.data.pop_front();
            self.judge(entry, conditions, &mut released);
        }
        // Nodes are let go by checkpoints and by readers that leave, not by commits.
        let pins = conditions.pins;
        let judged = Some((conditions.checkpoint, pins.bases.clone(), pins.from.map(|(base, _)| base)));
        if self.nodes_judged != judged {
            released.extend(self.nodes.extract_if(.., |entry| match entry.kind {
                DeferredKind::Node { first, replaced } => {
                    replaced < conditions.checkpoint
                        && !pins.base_in(first, replaced)
                        && !pins.may_stand_before(replaced)
                }
                DeferredKind::Data { .. } => false,
            }));
            self.nodes_judged = judged;
        }
        released
    }

    /// Whether a synced and anchored death is held by somebody.
    fn judge(&mut self, entry: DeferredEntry, conditions: &Conditions<'_>, released: &mut Vec<DeferredEntry>) {
        let DeferredKind::Data { birth, death, .. } = entry.kind else { return };
        match conditions.pins.generation_in(birth, death) {
            Some(generation) => self.held.entry(generation).or_default().push(entry),
            None => released.push(entry),
        }
    }
}

pub(super) fn death(entry: &DeferredEntry) -> Generation {
    match entry.kind {
        DeferredKind::Data { death, .. } => death,
        DeferredKind::Node { .. } => Generation(0),
    }
}

/// The deferred list while records are replayed: deaths add to it, allocations take out of it (R6).
#[derive(Debug, Default)]
pub(super) struct Replayed {
    /// By first block; no two overlap.
    entries: BTreeMap<u64, DeferredEntry>,
}

impl Replayed {
    /// Adds a death. `Err` if a part of the extent is dead already.
    pub(super) fn add(&mut self, entry: DeferredEntry) -> Result<(), Extent> {
        let before = self.entries.range(..entry.extent.end().0).next_back();
        if let Some((_, other)) = before.filter(|(_, other)| other.extent.overlaps(entry.extent)) {
            return Err(other.extent);
        }
        self.entries.insert(entry.extent.start.0, entry);
        Ok(())
    }

    /// Takes out whatever part of the list lies in `extent`: it was released and is used again. Returns those parts.
    pub(super) fn cancel(&mut self, extent: Extent) -> Vec<Extent> {
        let mut cancelled = Vec::new();
        while let Some((&start, &entry)) =
            self.entries.range(..extent.end().0).next_back().filter(|(_, entry)| entry.extent.overlaps(extent))
        {
            self.entries.remove(&start);
            let (from, until) = (start.max(extent.start.0), entry.extent.end().0.min(extent.end().0));
            cancelled.push(Extent::new(from, (until - from) as u32));
            let left = Extent::new(start, (from - start) as u32);
            let right = Extent::new(until, (entry.extent.end().0 - until) as u32);
            for extent in [left, right].into_iter().filter(|extent| !extent.is_empty()) {
                self.entries.insert(extent.start.0, DeferredEntry { extent, ..entry });
            }
        }
        cancelled
    }

    /// What [`Replayed::cancel`] would take out: for the planted bug that leaves it in.
    pub(super) fn overlapping(&self, extent: Extent) -> Vec<Extent> {
        let parts = self.entries.range(..extent.end().0).filter(|(_, entry)| entry.extent.overlaps(extent));
        parts
            .map(|(start, entry)| {
                let (from, until) = ((*start).max(extent.start.0), entry.extent.end().0.min(extent.end().0));
                Extent::new(from, (until - from) as u32)
            })
            .collect()
    }

    pub(super) fn into_entries(self) -> Vec<DeferredEntry> {
        self.entries.into_values().collect()
    }
}
