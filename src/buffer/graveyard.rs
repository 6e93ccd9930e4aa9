//! The pools of the process: of managers that are in use, and of those that are gone while a guard still reads.
//!
//! A guard keeps no count of its manager (two threads that did would slow each other down). So the memory of a manager
//! that is dropped stays until no slot and no counter names a frame of it. That is looked at whenever a manager comes or
//! goes; what no guard holds is given back at once.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::lock;
use super::pool::Pool;
use super::room::is_counted;
use super::sync::heavy_fence;
use super::thread::registry;
use crate::error::Result;
use crate::id::SizeClass;

/// The pools of one manager, reserved as they are wanted.
#[derive(Default)]
pub(super) struct Pools {
    by_class: [OnceLock<Pool>; SizeClass::COUNT],
}

impl Pools {
    /// The pool of a class, if anybody wanted a frame of it yet.
    pub(super) fn get(&self, class: SizeClass) -> Option<&Pool> {
        self.by_class[class.index()].get()
    }

    /// The pool of a class; `make` is called under the room's lock.
    pub(super) fn get_or_make(&self, class: SizeClass, make: impl FnOnce() -> Result<Pool>) -> Result<&Pool> {
        let place = &self.by_class[class.index()];
        match place.get() {
            Some(pool) => Ok(pool),
            None => {
                let pool = make()?;
                Ok(place.get_or_init(|| pool))
            }
        }
    }

    /// The frame at an address.
    pub(super) fn find(&self, address: usize) -> Option<(&Pool, u32)> {
        self.by_class.iter().filter_map(OnceLock::get).find_map(|pool| Some((pool, pool.number(address)?)))
    }

    fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.by_class.iter().filter_map(OnceLock::get)
    }

    /// Whether a guard still reads one of the frames below `end`, by class.
    fn is_read(&self, ends: &[u32; SizeClass::COUNT], slots: &[usize]) -> bool {
        slots.iter().any(|address| self.find(*address).is_some())
            || self.pools().any(|pool| (0..ends[pool.class().index()]).any(|number| is_counted(pool.meta(number))))
    }
}

/// What is known of a manager's pools.
struct Entry {
    pools: Arc<Pools>,
    /// Once the manager is gone: where frames end, by class.
    ends: Option<[u32; SizeClass::COUNT]>,
}

fn all() -> &'static Mutex<Vec<Entry>> {
    static ALL: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
    &ALL
}

/// A manager has come.
pub(super) fn enter(pools: &Arc<Pools>) {
    sweep();
    lock(all()).push(Entry { pools: Arc::clone(pools), ends: None });
}

/// A manager has gone; its frames end there, by class. Nobody can make a guard of one of its frames any more, but from
/// another guard.
pub(super) fn leave(pools: &Arc<Pools>, ends: [u32; SizeClass::COUNT]) {
    for entry in lock(all()).iter_mut().filter(|entry| Arc::ptr_eq(&entry.pools, pools)) {
        entry.ends = Some(ends);
    }
    let mut slots = Vec::new();
    heavy_fence();
    registry().in_slots(&mut slots);
    if pools.is_read(&ends, &slots) {
        for pool in pools.pools() {
            for number in 0..ends[pool.class().index()] {
                let address = pool.address(number).addr().get();
                if slots.binary_search(&address).is_err() && !is_counted(pool.meta(number)) {
                    // SAFETY: no slot and no counter names the frame, and its manager is gone. A refusal leaves it.
                    let _ = unsafe { pool.bury(number) };
                }
            }
        }
    }
    sweep();
}

/// Gives back what no guard reads any more.
fn sweep() {
    let mut slots = Vec::new();
    heavy_fence();
    registry().in_slots(&mut slots);
    lock(all()).retain(|entry| entry.ends.is_none_or(|ends| entry.pools.is_read(&ends, &slots)));
}

/// The counter of guards without slot of the frame at `address`, which a guard of the caller's holds. It is counted up.
pub(super) fn count_up(address: NonNull<u8>) -> Option<NonNull<AtomicU32>> {
    lock(all()).iter().find_map(|entry| {
        let (pool, number) = entry.pools.find(address.addr().get())?;
        let pins = &pool.meta(number).pins;
        // The guard that this is made from is cleared after this: whoever finds no slot finds the count.
        pins.fetch_add(1, Ordering::AcqRel);
        Some(NonNull::from(pins))
    })
}
