//! Frames that no descriptor names any more, and that somebody may still read.

use super::super::sync::{Sabotage, heavy_fence, sabotaged};
use super::record::Registry;

/// Frames on their way from a descriptor to their next use. Under a lock.
#[derive(Default)]
pub(in super::super) struct Limbo {
    /// Taken from their descriptors, in no epoch yet.
    arrived: Vec<usize>,
    /// With the epoch before whose end they were taken.
    waiting: Vec<(usize, u64)>,
    /// How many of them only a scope held, when they were last looked at.
    young: usize,
    /// Kept for its memory.
    slots: Vec<usize>,
}

/// What a look at a frame in limbo gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Verdict {
    /// Nobody uses it: it is no longer in limbo.
    Free,
    /// A guard holds it.
    Held,
    /// A scope that is older may read it.
    Young,
}

impl Limbo {
    /// A frame that a moment ago was taken from its descriptor.
    pub(in super::super) fn add(&mut self, address: usize) {
        self.arrived.push(address);
    }

    /// The frame is where it was before.
    pub(in super::super) fn remove(&mut self, address: usize) {
        self.waiting.retain(|(other, _)| *other != address);
    }

    /// Frames that nobody has looked at yet.
    pub(in super::super) fn arrived(&self) -> usize {
        self.arrived.len()
    }

    /// Frames that are free as soon as scopes end.
    pub(in super::super) fn young(&self) -> usize {
        self.young
    }

    /// Looks at every frame, and lets go those that nobody uses. `is_pinned` knows of guards that have no slot; `judged`
    /// is told each verdict, and says whether a frame that is held stays in limbo.
    pub(in super::super) fn sift(
        &mut self,
        registry: &Registry,
        mut is_pinned: impl FnMut(usize) -> bool,
        mut judged: impl FnMut(usize, Verdict) -> bool,
    ) {
        if !self.arrived.is_empty() {
            if !sabotaged(Sabotage::SkipFence) {
                heavy_fence();
            }
            let epoch = registry.advance();
            self.waiting.extend(self.arrived.drain(..).map(|address| (address, epoch)));
        }
        self.young = 0;
        if self.waiting.is_empty() {
            return;
        }
        let oldest = registry.oldest();
        registry.in_slots(&mut self.slots);
        let (slots, young) = (&self.slots, &mut self.young);
        self.waiting.retain(|(address, epoch)| {
            // Counted guards are asked last: one may be made from a guard with a slot, which is then cleared.
            let verdict = if slots.binary_search(address).is_ok() || is_pinned(*address) {
                Verdict::Held
            } else if *epoch >= oldest {
                *young += 1;
                Verdict::Young
            } else {
                Verdict::Free
            };
            judged(*address, verdict) && verdict != Verdict::Free
        });
    }
}
