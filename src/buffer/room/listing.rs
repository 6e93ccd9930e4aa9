//! What the policy is told: which frames there are, what is in them, and what goes.

use std::cmp::Reverse;
use std::hint;
use std::sync::atomic::Ordering;

use super::{FrameName, Room};
use crate::buffer::manager::Inner;
use crate::buffer::policy::{Arrival, PageHash, Slot};
use crate::buffer::pool::{Meta, Pool, Use};

impl Room {
    /// A frame that was loaded or private now holds a page or a unit of `store`.
    pub(in super::super) fn list(&mut self, inner: &Inner, name: FrameName, usage: Use, hash: u64, arrival: Arrival) {
        let Some(pool) = inner.pools.get(name.class) else { return };
        let meta = pool.meta(name.number);
        self.end_use(meta, pool.frame_bytes());
        meta.set_usage(usage);
        let slot = self.new_slot(name);
        meta.slot.store(slot, Ordering::Relaxed);
        self.policy.admit(Slot(slot), PageHash(hash), name.class, arrival);
        self.charge_policy(inner);
    }

    /// Looks at what [`Room::list_in_place`] will change of frames that the policy knows by these numbers: at all of them
    /// at once, where the changes would wait for each.
    pub(in super::super) fn look_at(&self, slots: &[u32]) {
        let seen = slots.iter().filter_map(|slot| self.slots.get(*slot as usize));
        hint::black_box(seen.fold(0, |sum, name| sum ^ name.number));
    }

    /// As [`Room::list`], in the place of `old`, which holds an older version of the same page and goes.
    pub(in super::super) fn list_in_place(&mut self, inner: &Inner, name: FrameName, old: u32) {
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
    pub(in super::super) fn unlist_page(&mut self, inner: &Inner, name: FrameName) {
        let Some(pool) = inner.pools.get(name.class) else { return };
        let slot = self.unlist(pool.meta(name.number));
        self.policy.remove(Slot(slot));
    }

    /// A page's frame, which is not listed any more, goes on as a unit.
    pub(in super::super) fn list_unit(&mut self, inner: &Inner, name: FrameName, shard: u64, hash: u64) {
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
    pub(in super::super) fn retire(&mut self, inner: &Inner, name: FrameName) {
        if let Some(pool) = inner.pools.get(name.class) {
            self.banish(pool, name.number);
        }
    }

    pub(super) fn new_slot(&mut self, name: FrameName) -> u32 {
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

    pub(super) fn unlist(&mut self, meta: &Meta) -> u32 {
        let slot = meta.slot.load(Ordering::Relaxed);
        self.free_slots.push(Reverse(slot));
        slot
    }

    /// A frame that nobody names any more.
    pub(super) fn banish(&mut self, pool: &Pool, number: u32) {
        pool.meta(number).set_usage(Use::Limbo);
        self.limbo.add(pool.address(number).addr().get());
    }

    /// The policy's memory counts (E5). It has it already, so room is made for it; where none comes about at once (all is
    /// held, or what is free shares OS pages with what is not), it is charged at a later arrival.
    pub(super) fn charge_policy(&mut self, inner: &Inner) {
        let missing = self.policy.memory_bytes().saturating_sub(self.policy_bytes);
        if missing > inner.available() {
            self.make_room(inner, missing, None, &[]);
        }
        // What was evicted made it larger, perhaps.
        let bytes = self.policy.memory_bytes();
        if bytes <= self.policy_bytes {
            inner.uncharge(self.policy_bytes - bytes);
        } else if !inner.try_charge(bytes - self.policy_bytes) {
            return;
        }
        self.policy_bytes = bytes;
    }
}
