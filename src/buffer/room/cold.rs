//! Frames of scratch pages: listed with the policy like those of pages, and *cold* when their turn has come: taken from
//! the policy, and written elsewhere by whoever wanted the memory, when he holds no lock. What cannot be written is listed
//! again.

use std::sync::Weak;
use std::sync::atomic::Ordering;

use super::{FrameName, Room};
use crate::buffer::manager::Inner;
use crate::buffer::policy::{Arrival, PageHash, Slot};
use crate::buffer::pool::{NOT_LISTED, Use};
use crate::buffer::spill::{Cold, Spiller};
use crate::buffer::units::hash_scratch;

impl Room {
    /// Gives a spiller its number.
    pub(in super::super) fn enlist(&mut self, spiller: Weak<dyn Spiller>) -> u32 {
        let number = self.spillers.iter().position(Option::is_none).unwrap_or(self.spillers.len());
        match self.spillers.get_mut(number) {
            Some(place) => *place = Some(spiller),
            None => self.spillers.push(Some(spiller)),
        }
        number as u32
    }

    /// The spiller is gone, and has no frames any more.
    pub(in super::super) fn dismiss(&mut self, spiller: u32) {
        self.spillers[spiller as usize] = None;
    }

    /// A frame that was taken for scratch now belongs to a page of this spiller's.
    pub(in super::super) fn list_scratch(&mut self, inner: &Inner, name: FrameName, spiller: u32, key: u64, hash: u64) {
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
    pub(in super::super) fn take_cold(&mut self, inner: &Inner) -> Vec<Cold> {
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
    pub(in super::super) fn settle_cold(&mut self, inner: &Inner, number: u32, frames: &[(FrameName, u64)]) -> usize {
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
}
