//! The room: which frame is whose, and how a wanted one comes about. All of it under the manager's one lock.
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
//! | file | what it does |
//! | --- | --- |
//! | this one | what the lock protects; stores; frames from the free list, and back to it |
//! | `eviction` | makes room: whose memory goes, and what becomes of it |
//! | `listing` | tells the policy what is there |
//! | `cold` | scratch pages, which are written elsewhere |

mod cold;
mod eviction;
mod listing;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::manager::Inner;
use super::policy::{EvictionPolicy, Slot};
use super::pool::{Meta, NOT_LISTED, PUBLISHED, PoolState, Use};
use super::protocol::limbo::Limbo;
use super::spill::Spiller;
use super::store::Store;
use super::thread::is_in_scope;
use crate::error::Result;
use crate::id::SizeClass;
use crate::memory::page_bytes;

/// Charged for each frame beside its bytes: its [`Meta`], its place in lists.
pub(super) const FRAME_OVERHEAD: usize = size_of::<Meta>() + 24;
/// Frames evicted at once, if they are small.
const BATCH: usize = 128;

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
    /// Charged for the policy; what it has beyond that is charged as soon as it fits.
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
        if self.states[class.index()].free() == 0 {
            self.sift_many(inner);
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

    /// Makes frames free that were replaced and that nobody uses, if there are many: it costs a barrier.
    pub(super) fn sift_many(&mut self, inner: &Inner) {
        if self.limbo.arrived() >= BATCH {
            self.sift(inner, &[]);
        }
    }

    /// The free frame of a class that is taken next, unless another comes to be free.
    pub(super) fn next(&self, class: SizeClass) -> Option<u32> {
        self.states[class.index()].next()
    }

    /// Bytes charged for a slab.
    fn slab_charge(state: &PoolState) -> usize {
        state.slab_bytes() + state.frames_per_slab() * FRAME_OVERHEAD
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

    fn end_use(&mut self, meta: &Meta, bytes: usize) {
        match meta.usage() {
            Use::Private => self.private_bytes -= bytes,
            Use::Scratch => self.scratch_bytes -= bytes,
            _ => self.loading_bytes -= bytes,
        }
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
