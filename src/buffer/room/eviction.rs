//! Making room: memory is moved, or pages are evicted.
//!
//! What is wanted is looked for in this order, the cheap before the dear: limbo; descriptors of which all are evicted;
//! free frames that other classes have too many of; and then pages are evicted, a batch at a time, until the class has a
//! free frame or enough bytes are free. A batch costs one barrier, and what it frees beyond the need is the reserve that
//! the next ones take from.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{BATCH, FrameName, Room, is_counted};
use crate::buffer::manager::Inner;
use crate::buffer::policy::{Frames, PageHash, Slot};
use crate::buffer::pool::{Meta, NOT_LISTED, Use};
use crate::buffer::protocol::limbo::Verdict;
use crate::buffer::store::Store;
use crate::buffer::thread::registry;
use crate::buffer::units::UnitKey;
use crate::id::SizeClass;

/// Batches in search of one frame: enough to come past pages that guards hold.
const ROUNDS: usize = 256;
/// No batch is more than this part of the budget.
const BATCH_PART: usize = 32;

impl Room {
    /// Tries to make `bytes` bytes free in the budget, and for a `class` a frame of that instead. True if there is hope
    /// that it worked, once what is cold by then has been written elsewhere. Spillers of `refusing` are not asked.
    pub(in super::super) fn make_room(
        &mut self,
        inner: &Inner,
        bytes: usize,
        class: Option<SizeClass>,
        refusing: &[u32],
    ) -> bool {
        // Memory for a frame comes in slabs, with what is kept for each of their frames.
        let bytes = class.map_or(bytes, |class| bytes.max(Self::slab_charge(&self.states[class.index()])));
        // A pool that has no addresses left finds room among its own frames only, whatever the budget has.
        let can_grow = !class.is_some_and(|class| self.lacks_addresses(inner, class));
        let is_enough = |room: &Self| {
            class.is_some_and(|class| room.states[class.index()].free() > 0) || (can_grow && inner.available() >= bytes)
        };
        self.sift(inner, &[]);
        if is_enough(self) {
            return true;
        }
        self.reclaim_descriptors(inner, bytes);
        self.shrink_others(inner, bytes, class, true);
        if is_enough(self) {
            return true;
        }
        let batch = bytes
            .max((class.map_or(4096, |class| class.page_bytes() as usize) * BATCH).min(inner.limit() / BATCH_PART));
        // Other classes' pages go too, as the policy has it. If none of this class is among twice as many, memory moves.
        // What guards hold comes back; the policy then names others, sooner or later.
        let mut evicted = 0;
        for _ in 0..ROUNDS {
            let (tried, freed) = self.evict(inner, batch, refusing);
            evicted += freed;
            if class.is_some_and(|class| self.states[class.index()].free() > 0) {
                return true;
            }
            let is_plenty = can_grow && (evicted / 2 >= batch || (class.is_none() && evicted >= batch));
            if tried == 0 || is_plenty {
                break;
            }
        }
        self.reclaim_descriptors(inner, bytes);
        self.shrink_others(inner, bytes, class, true);
        if !is_enough(self) {
            self.shrink_others(inner, bytes, class, false);
        }
        is_enough(self)
    }

    /// Whether the pool of a class has come to the end of its addresses: where the process may have few.
    pub(in super::super) fn lacks_addresses(&self, inner: &Inner, class: SizeClass) -> bool {
        inner.pools.get(class).is_some_and(|pool| !self.states[class.index()].can_grow(pool))
    }

    /// Gives back descriptors of which all are evicted, until `bytes` bytes are free.
    fn reclaim_descriptors(&mut self, inner: &Inner, bytes: usize) {
        for store in self.stores.iter().flatten() {
            if inner.available() >= bytes {
                return;
            }
            inner.uncharge(store.reclaim_descriptors(bytes));
        }
    }

    /// Gives back free frames of other classes, until `bytes` bytes are free; those only that they have too many of, or
    /// all.
    fn shrink_others(&mut self, inner: &Inner, bytes: usize, class: Option<SizeClass>, surplus_only: bool) {
        for other in SizeClass::all().rev().filter(|other| Some(*other) != class) {
            let missing = bytes.saturating_sub(inner.available());
            if missing == 0 {
                return;
            }
            let state = &mut self.states[other.index()];
            let reserve = if surplus_only { BATCH.min((inner.limit() / BATCH_PART) >> other.log2()) } else { 0 };
            let spare = state.free().saturating_sub(reserve) / state.frames_per_slab();
            let wanted = missing.div_ceil(state.slab_bytes());
            if spare > 0
                && let Some(pool) = inner.pools.get(other)
            {
                let given = state.shrink(pool, spare.min(wanted));
                inner.uncharge(given * Self::slab_charge(state));
            }
        }
    }

    /// Evicts pages of `bytes` bytes together, if there are that many; returns how many bytes that were, and how many
    /// without those that guards hold.
    fn evict(&mut self, inner: &Inner, bytes: usize, refusing: &[u32]) -> (usize, usize) {
        let mut victims = Vec::new();
        let mut sum = 0;
        while sum < bytes {
            let mut asked = Asked { inner, stores: &self.stores, slots: &self.slots, refusing, unit: None };
            let Some(slot) = self.policy.victim(&mut asked) else { break };
            let unit = asked.unit.take();
            let name = self.slots[slot.0 as usize];
            let Some(pool) = inner.pools.get(name.class) else { break };
            self.free_slots.push(Reverse(slot.0));
            sum += pool.frame_bytes();
            let meta = pool.meta(name.number);
            if meta.usage() == Use::Scratch {
                meta.slot.store(NOT_LISTED, Ordering::Relaxed);
                self.cold.push(name);
                continue;
            }
            self.banish(pool, name.number);
            victims.push((name, unit));
        }
        self.evictions += victims.len() as u64;
        let restored = self.sift(inner, &victims);
        (sum, sum - restored)
    }

    /// Looks at what is in limbo. `victims` are those that may go back to where they were, if a guard holds them.
    ///
    /// Returns the bytes of those that guards hold.
    pub(super) fn sift(&mut self, inner: &Inner, victims: &[(FrameName, Option<UnitKey>)]) -> usize {
        let Self { limbo, states, .. } = self;
        let pinned = |address| inner.pools.find(address).is_some_and(|(pool, number)| is_counted(pool.meta(number)));
        let mut held: Vec<(FrameName, Option<UnitKey>)> = Vec::new();
        limbo.sift(registry(), pinned, |address, verdict| {
            let Some((pool, number)) = inner.pools.find(address) else { return false };
            let name = FrameName { class: pool.class(), number };
            match verdict {
                Verdict::Free => {
                    pool.meta(number).set_usage(Use::Free);
                    states[name.class.index()].push(number);
                    false
                }
                Verdict::Held if victims.iter().any(|(victim, _)| *victim == name) => {
                    held.extend(victims.iter().find(|(victim, _)| *victim == name));
                    true
                }
                Verdict::Held | Verdict::Young => true,
            }
        });
        let mut bytes = 0;
        for (name, unit) in held {
            bytes += name.class.page_bytes() as usize;
            self.restore(inner, name, unit);
        }
        bytes
    }

    /// A victim that a guard holds goes back to where it was, unless something else is there by now: else the page would
    /// be loaded a second time beside it.
    fn restore(&mut self, inner: &Inner, name: FrameName, unit: Option<UnitKey>) {
        let Some(pool) = inner.pools.get(name.class) else { return };
        let meta = pool.meta(name.number);
        let store = self.stores.get(meta.store.load(Ordering::Relaxed) as usize).cloned().flatten();
        let address = pool.address(name.number).addr().get();
        let hash = store.and_then(|store| store.restore(meta, name.class, address, unit));
        let Some(hash) = hash else { return };
        self.limbo.remove(address);
        meta.set_usage(if unit.is_some() { Use::Unit } else { Use::Page });
        let slot = self.new_slot(name);
        meta.slot.store(slot, Ordering::Relaxed);
        self.policy.restore(Slot(slot), PageHash(hash), name.class);
        self.evictions -= 1;
    }
}

/// What a policy asks, answered from the descriptors.
struct Asked<'a> {
    inner: &'a Inner,
    stores: &'a [Option<Arc<Store>>],
    slots: &'a [FrameName],
    /// Spillers that cannot write now.
    refusing: &'a [u32],
    /// Of the frame that was taken, if it was a unit's.
    unit: Option<UnitKey>,
}

impl Asked<'_> {
    /// What is known of the frame, if it is a scratch page's.
    fn scratch(&self, slot: Slot) -> Option<&Meta> {
        let name = self.slots.get(slot.0 as usize)?;
        let meta = self.inner.pools.get(name.class)?.meta(name.number);
        (meta.usage() == Use::Scratch).then_some(meta)
    }

    fn frame(&self, slot: Slot) -> Option<(&Store, &Meta, FrameName, usize)> {
        let name = *self.slots.get(slot.0 as usize)?;
        let pool = self.inner.pools.get(name.class)?;
        let meta = pool.meta(name.number);
        let store = self.stores.get(meta.store.load(Ordering::Relaxed) as usize)?.as_deref()?;
        Some((store, meta, name, pool.address(name.number).addr().get()))
    }
}

impl Frames for Asked<'_> {
    fn touched(&mut self, slot: Slot) -> bool {
        if let Some(meta) = self.scratch(slot) {
            return meta.generation.swap(0, Ordering::Relaxed) != 0;
        }
        self.frame(slot).is_some_and(|(store, meta, name, address)| store.cool(meta, name.class, address))
    }

    fn take(&mut self, slot: Slot) -> bool {
        if let Some(meta) = self.scratch(slot) {
            let is_borrowed = meta.pins.load(Ordering::Acquire) != 0;
            return !is_borrowed && !self.refusing.contains(&meta.store.load(Ordering::Relaxed));
        }
        let Some((store, meta, name, address)) = self.frame(slot) else { return false };
        if is_counted(meta) {
            return false;
        }
        let taken = store.evict(meta, name.class, address);
        self.unit = taken.unwrap_or_default();
        taken.is_some()
    }
}
