//! Making room: which frame is whose, and how a wanted one comes about. All of it under the manager's one lock.
//!
//! A frame's life:
//!
//! ```text
//!            obtain                    finish, publish
//!   Free ──────────────▶ Loading ─────────────────────▶ Page, Unit
//!    ▲ ▲ ──────────────▶ Private ──────────────────────────┘  │
//!    │ └───────────────────┘ last handle dropped              │ evict, publish over it, detach
//!    │                                                        ▼
//!    └───────────────────── nobody reads it ───────────── Limbo ──▶ back to Page or Unit, if a guard holds it
//! ```
//!
//! A scratch page's frame is listed with the policy like a page's. If its turn comes it is *cold*: taken from the policy,
//! and written elsewhere by whoever wanted the memory, when he holds no lock; what cannot be written is listed again.
//!
//! A frame is looked for in this order, the cheap before the dear: the class's free list; memory that the budget has
//! left; limbo; descriptors of which all are evicted; free frames that other classes have too many of; and then pages are
//! evicted, a batch at a time, until the class has a free frame or enough bytes are free. A batch costs one barrier, and
//! what it frees beyond the need is the reserve that the next ones take from.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::manager::Inner;
use super::policy::{Arrival, EvictionPolicy, Frames, PageHash, Slot};
use super::pool::{Meta, NOT_LISTED, PUBLISHED, Pool, PoolState, Use};
use super::protocol::limbo::{Limbo, Verdict};
use super::spill::{Cold, Spiller};
use super::store::Store;
use super::thread::{is_in_scope, registry};
use super::units::{UnitKey, hash_scratch};
use crate::error::Result;
use crate::id::SizeClass;
use crate::memory::page_bytes;

/// Charged for each frame beside its bytes: its [`Meta`], its place in lists.
pub(super) const FRAME_OVERHEAD: usize = size_of::<Meta>() + 24;
/// Frames evicted at once, if they are small.
const BATCH: usize = 64;
/// Batches in search of one frame: enough to come past pages that guards hold.
const ROUNDS: usize = 256;
/// No batch is more than this part of the budget.
const BATCH_PART: usize = 32;

/// A frame, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameName {
    pub(super) class: SizeClass,
    pub(super) number: u32,
}

/// What the lock protects.
pub(super) struct Room {
    states: Vec<PoolState>,
    limbo: Limbo,
    policy: Box<dyn EvictionPolicy>,
    /// What the policy's numbers stand for.
    slots: Vec<FrameName>,
    free_slots: BinaryHeap<Reverse<u32>>,
    stores: Vec<Option<Arc<Store>>>,
    spillers: Vec<Option<Weak<dyn Spiller>>>,
    /// Scratch pages' frames whose turn has come, to be written elsewhere by who wants memory.
    cold: Vec<FrameName>,
    /// How many of them are being written.
    pub(super) spilling: usize,
    /// Charged for the policy.
    policy_bytes: usize,
    /// Bytes of frames being loaded, and of private ones.
    pub(super) loading_bytes: usize,
    pub(super) private_bytes: usize,
    /// Bytes of scratch pages in memory.
    pub(super) scratch_bytes: usize,
    pub(super) evictions: u64,
}

impl Room {
    pub(super) fn new(policy: Box<dyn EvictionPolicy>, huge: bool) -> Self {
        Self {
            states: SizeClass::all().map(|class| PoolState::new(class, page_bytes(), huge)).collect(),
            limbo: Limbo::default(),
            policy,
            slots: Vec::new(),
            free_slots: BinaryHeap::new(),
            stores: Vec::new(),
            spillers: Vec::new(),
            cold: Vec::new(),
            spilling: 0,
            policy_bytes: 0,
            loading_bytes: 0,
            private_bytes: 0,
            scratch_bytes: 0,
            evictions: 0,
        }
    }

    /// Gives a store its number.
    pub(super) fn attach(&mut self, make: impl FnOnce(u32) -> Store) -> Arc<Store> {
        let number = self.stores.iter().position(Option::is_none).unwrap_or(self.stores.len());
        let store = Arc::new(make(number as u32));
        match self.stores.get_mut(number) {
            Some(place) => *place = Some(Arc::clone(&store)),
            None => self.stores.push(Some(Arc::clone(&store))),
        }
        store
    }

    /// Takes a store's frames back. Nobody reads from it any more; guards may be left.
    pub(super) fn detach(&mut self, inner: &Inner, store: &Store) {
        for class in SizeClass::all() {
            let Some(pool) = inner.pools.get(class) else { continue };
            for number in 0..self.states[class.index()].end() {
                let meta = pool.meta(number);
                if matches!(meta.usage(), Use::Page | Use::Unit) && meta.store.load(Ordering::Relaxed) == store.number()
                {
                    let slot = self.unlist(meta);
                    self.policy.remove(Slot(slot));
                    self.banish(pool, number);
                }
            }
        }
        self.stores[store.number() as usize] = None;
        inner.uncharge(store.descriptor_bytes());
        self.sift(inner, &[]);
    }

    /// A frame of `class` for `usage`, if there is one without evicting anything.
    pub(super) fn take(&mut self, inner: &Inner, class: SizeClass, usage: Use) -> Result<Option<FrameName>> {
        let pool = inner.pool(class, |pool| self.states[class.index()].prepare(pool))?;
        // What was replaced is used again before more memory is.
        if self.states[class.index()].free() == 0 && self.limbo.arrived() >= BATCH {
            self.sift(inner, &[]);
        }
        let state = &mut self.states[class.index()];
        if state.free() == 0 && state.can_grow(pool) && inner.try_charge(Self::slab_charge(state)) {
            state.grow(pool);
        }
        let Some(number) = state.pop() else { return Ok(None) };
        let meta = pool.meta(number);
        debug_assert_eq!(meta.usage(), Use::Free);
        meta.set_usage(usage);
        match usage {
            Use::Private => self.private_bytes += pool.frame_bytes(),
            Use::Scratch => {
                meta.slot.store(NOT_LISTED, Ordering::Relaxed);
                self.scratch_bytes += pool.frame_bytes();
            }
            _ => self.loading_bytes += pool.frame_bytes(),
        }
        Ok(Some(FrameName { class, number }))
    }

    /// Bytes charged for a slab.
    fn slab_charge(state: &PoolState) -> usize {
        state.slab_bytes() + state.frames_per_slab() * FRAME_OVERHEAD
    }

    /// Tries to make `bytes` bytes free in the budget, and for a `class` a frame of that instead. True if there is hope
    /// that it worked, once what is cold by then has been written elsewhere. Spillers of `refusing` are not asked.
    pub(super) fn make_room(
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
            let is_plenty = can_grow && (evicted >= 2 * batch || (class.is_none() && evicted >= batch));
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
    pub(super) fn lacks_addresses(&self, inner: &Inner, class: SizeClass) -> bool {
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
    fn sift(&mut self, inner: &Inner, victims: &[(FrameName, Option<UnitKey>)]) -> usize {
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

    /// A frame that nobody names any more.
    fn banish(&mut self, pool: &Pool, number: u32) {
        pool.meta(number).set_usage(Use::Limbo);
        self.limbo.add(pool.address(number).addr().get());
    }

    fn new_slot(&mut self, name: FrameName) -> u32 {
        match self.free_slots.pop() {
            Some(Reverse(slot)) => {
                self.slots[slot as usize] = name;
                slot
            }
            None => {
                self.slots.push(name);
                (self.slots.len() - 1) as u32
            }
        }
    }

    fn unlist(&mut self, meta: &Meta) -> u32 {
        let slot = meta.slot.load(Ordering::Relaxed);
        self.free_slots.push(Reverse(slot));
        slot
    }

    /// A frame that was loaded or private now holds a page or a unit of `store`.
    pub(super) fn list(&mut self, inner: &Inner, name: FrameName, usage: Use, hash: u64, arrival: Arrival) {
        let Some(pool) = inner.pools.get(name.class) else { return };
        let meta = pool.meta(name.number);
        self.end_use(meta, pool.frame_bytes());
        meta.set_usage(usage);
        let slot = self.new_slot(name);
        meta.slot.store(slot, Ordering::Relaxed);
        self.policy.admit(Slot(slot), PageHash(hash), name.class, arrival);
        self.charge_policy(inner);
    }

    /// As [`Room::list`], in the place of `old`, which holds an older version of the same page and goes.
    pub(super) fn list_in_place(&mut self, inner: &Inner, name: FrameName, old: u32) {
        let Some(pool) = inner.pools.get(name.class) else { return };
        let (meta, old_meta) = (pool.meta(name.number), pool.meta(old));
        self.end_use(meta, pool.frame_bytes());
        meta.set_usage(Use::Page);
        let old_slot = old_meta.slot.load(Ordering::Relaxed);
        // The number stays; what it stands for is another frame.
        meta.slot.store(old_slot, Ordering::Relaxed);
        self.slots[old_slot as usize] = name;
        self.policy.replace(Slot(old_slot), Slot(old_slot));
    }

    /// A page's frame is no longer listed: the page was freed, or is no longer in memory.
    pub(super) fn unlist_page(&mut self, inner: &Inner, name: FrameName) {
        let Some(pool) = inner.pools.get(name.class) else { return };
        let slot = self.unlist(pool.meta(name.number));
        self.policy.remove(Slot(slot));
    }

    /// A page's frame, which is not listed any more, goes on as a unit.
    pub(super) fn list_unit(&mut self, inner: &Inner, name: FrameName, shard: u64, hash: u64) {
        let Some(pool) = inner.pools.get(name.class) else { return };
        let meta = pool.meta(name.number);
        meta.owner.store(shard, Ordering::Relaxed);
        meta.set_usage(Use::Unit);
        let slot = self.new_slot(name);
        meta.slot.store(slot, Ordering::Relaxed);
        self.policy.admit(Slot(slot), PageHash(hash), name.class, Arrival::Read);
        self.charge_policy(inner);
    }

    /// A frame that is neither listed nor named any more goes to limbo.
    pub(super) fn retire(&mut self, inner: &Inner, name: FrameName) {
        if let Some(pool) = inner.pools.get(name.class) {
            self.banish(pool, name.number);
        }
    }

    /// A frame that was loaded or private, and that nobody has seen, is free.
    pub(super) fn release(&mut self, inner: &Inner, name: FrameName) {
        let Some(pool) = inner.pools.get(name.class) else { return };
        let meta = pool.meta(name.number);
        if meta.usage() == Use::Scratch && meta.slot.load(Ordering::Relaxed) != NOT_LISTED {
            let slot = self.unlist(meta);
            self.policy.remove(Slot(slot));
        }
        self.end_use(meta, pool.frame_bytes());
        meta.set_usage(Use::Free);
        self.states[name.class.index()].push(name.number);
    }

    /// Gives a spiller its number.
    pub(super) fn enlist(&mut self, spiller: Weak<dyn Spiller>) -> u32 {
        let number = self.spillers.iter().position(Option::is_none).unwrap_or(self.spillers.len());
        match self.spillers.get_mut(number) {
            Some(place) => *place = Some(spiller),
            None => self.spillers.push(Some(spiller)),
        }
        number as u32
    }

    /// The spiller is gone, and has no frames any more.
    pub(super) fn dismiss(&mut self, spiller: u32) {
        self.spillers[spiller as usize] = None;
    }

    /// A frame that was taken for scratch now belongs to a page of this spiller's.
    pub(super) fn list_scratch(&mut self, inner: &Inner, name: FrameName, spiller: u32, key: u64, hash: u64) {
        let Some(pool) = inner.pools.get(name.class) else { return };
        let meta = pool.meta(name.number);
        meta.store.store(spiller, Ordering::Relaxed);
        meta.owner.store(key, Ordering::Relaxed);
        meta.generation.store(0, Ordering::Relaxed);
        let slot = self.new_slot(name);
        meta.slot.store(slot, Ordering::Relaxed);
        self.policy.admit(Slot(slot), PageHash(hash), name.class, Arrival::Read);
        self.charge_policy(inner);
    }

    /// What is cold, by spiller, to be written when the lock is not held.
    pub(super) fn take_cold(&mut self, inner: &Inner) -> Vec<Cold> {
        let mut all: Vec<Cold> = Vec::new();
        for name in std::mem::take(&mut self.cold) {
            let Some(pool) = inner.pools.get(name.class) else { continue };
            let meta = pool.meta(name.number);
            // Freed meanwhile; perhaps somebody else's by now.
            if meta.usage() != Use::Scratch || meta.slot.load(Ordering::Relaxed) != NOT_LISTED {
                continue;
            }
            let (number, key) = (meta.store.load(Ordering::Relaxed), meta.owner.load(Ordering::Relaxed));
            self.spilling += 1;
            match all.iter_mut().find(|cold| cold.number == number) {
                Some(cold) => cold.frames.push((name, key)),
                None => {
                    let spiller = self.spillers.get(number as usize).and_then(|place| place.as_ref()?.upgrade());
                    all.push(Cold { spiller, number, frames: vec![(name, key)] });
                }
            }
        }
        all
    }

    /// The spiller is done. What it could not write is listed again; returns how many frames were freed.
    pub(super) fn settle_cold(&mut self, inner: &Inner, number: u32, frames: &[(FrameName, u64)]) -> usize {
        self.spilling -= frames.len();
        let mut freed = 0;
        for (name, key) in frames {
            let Some(pool) = inner.pools.get(name.class) else { continue };
            let meta = pool.meta(name.number);
            let is_same = meta.usage() == Use::Scratch
                && meta.slot.load(Ordering::Relaxed) == NOT_LISTED
                && (meta.store.load(Ordering::Relaxed), meta.owner.load(Ordering::Relaxed)) == (number, *key);
            if is_same {
                let slot = self.new_slot(*name);
                meta.slot.store(slot, Ordering::Relaxed);
                self.policy.restore(Slot(slot), PageHash(hash_scratch(number, *key)), name.class);
            } else {
                freed += 1;
            }
        }
        self.charge_policy(inner);
        freed
    }

    fn end_use(&mut self, meta: &Meta, bytes: usize) {
        match meta.usage() {
            Use::Private => self.private_bytes -= bytes,
            Use::Scratch => self.scratch_bytes -= bytes,
            _ => self.loading_bytes -= bytes,
        }
    }

    /// The policy's memory counts (E5). It has it already, so it cannot be refused: room is made for it.
    fn charge_policy(&mut self, inner: &Inner) {
        let missing = self.policy.memory_bytes().saturating_sub(self.policy_bytes);
        if missing > inner.available() {
            self.make_room(inner, missing, None, &[]);
        }
        let bytes = self.policy.memory_bytes();
        if bytes > self.policy_bytes {
            inner.charge(bytes - self.policy_bytes);
        } else {
            inner.uncharge(self.policy_bytes - bytes);
        }
        self.policy_bytes = bytes;
    }

    /// Whether something that holds memory will let go of it soon: loads, spills, and other threads' scopes.
    pub(super) fn is_anything_passing(&self) -> bool {
        self.loading_bytes > 0 || self.spilling > 0 || (self.limbo.young() > 0 && !is_in_scope())
    }

    /// Frames with memory, and free ones, of a class.
    pub(super) fn frames(&self, class: SizeClass) -> (u64, u64) {
        let state = &self.states[class.index()];
        (state.committed(), state.free() as u64)
    }

    /// The numbers of a class's frames are below this.
    pub(super) fn end(&self, class: SizeClass) -> u32 {
        self.states[class.index()].end()
    }

    /// Bytes of descriptors, and of the policy.
    pub(super) fn overhead_bytes(&self) -> (usize, usize) {
        (self.stores.iter().flatten().map(|store| store.descriptor_bytes()).sum(), self.policy_bytes)
    }

    /// The policy's name.
    pub(super) fn policy(&self) -> &'static str {
        self.policy.name()
    }
}

/// Bytes that the budget must have left for a frame of `class` to get memory.
pub(super) fn charge_of(class: SizeClass) -> usize {
    let (frame, page) = (class.page_bytes() as usize, page_bytes());
    frame.max(page) + (page / frame).max(1) * FRAME_OVERHEAD
}

/// Whether a guard without slot, or a handle, holds the frame.
pub(super) fn is_counted(meta: &Meta) -> bool {
    meta.pins.load(Ordering::Acquire) != 0 || meta.handles.load(Ordering::Acquire) & !PUBLISHED != 0
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
