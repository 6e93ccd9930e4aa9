//! Frames found by what a pointer says: old versions of pages, and chunks of large ones.
//!
//! Fewer and rarer than pages at their newest, so a lock for each look-up is right here. The key is the whole pointer:
//! blocks that are used again have another birth.

use std::collections::HashMap;
use std::sync::Arc;

use super::shard::Wait;
use crate::format::BlockPointer;
use crate::id::{PageId, SizeClass};

/// What a unit is found by. Where nothing is stored (zeros), pages share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct UnitKey {
    pub(super) pointer: BlockPointer,
    pub(super) class: SizeClass,
}

/// A unit's state.
pub(super) enum Unit {
    Loading(Arc<Wait>),
    /// At this address.
    Resident {
        address: usize,
        touched: bool,
    },
}

/// What one lock protects.
#[derive(Default)]
pub(super) struct UnitShard {
    pub(super) units: HashMap<UnitKey, Unit>,
    /// Of those that are resident.
    keys: HashMap<usize, UnitKey>,
}

impl UnitShard {
    /// Enters a frame.
    pub(super) fn insert(&mut self, key: UnitKey, address: usize) {
        self.units.insert(key, Unit::Resident { address, touched: false });
        self.keys.insert(address, key);
    }

    /// Takes out a unit that is in memory; returns its address.
    pub(super) fn remove(&mut self, key: &UnitKey) -> Option<usize> {
        let Some(Unit::Resident { address, .. }) = self.units.get(key) else { return None };
        let address = *address;
        self.keys.remove(&address);
        self.units.remove(key);
        Some(address)
    }

    /// Whether the frame was touched since this was last asked.
    pub(super) fn cool(&mut self, address: usize) -> bool {
        match self.keys.get(&address).and_then(|key| self.units.get_mut(key)) {
            Some(Unit::Resident { touched, .. }) => std::mem::take(touched),
            _ => false,
        }
    }

    /// Takes a frame out, unless it was touched.
    pub(super) fn evict(&mut self, address: usize) -> Option<UnitKey> {
        let key = *self.keys.get(&address)?;
        if matches!(self.units.get(&key), Some(Unit::Resident { touched: true, .. })) {
            return None;
        }
        self.keys.remove(&address);
        self.units.remove(&key);
        Some(key)
    }
}

/// A number that depends on every bit of the key: for shards, and for policies.
pub(super) fn hash_unit(store: u32, key: &UnitKey) -> u64 {
    let pointer = &key.pointer;
    let place = pointer.address.0 ^ u64::from(pointer.checksum) << 32 ^ u64::from(key.class.log2()) << 56;
    mix(mix(place ^ u64::from(store) << 40) ^ pointer.birth.0)
}

/// As [`hash_unit`], of a page.
pub(super) fn hash_page(store: u32, page: PageId) -> u64 {
    mix(page.to_u64() ^ mix(u64::from(store)))
}

/// As [`hash_unit`], of a scratch page.
pub(super) fn hash_scratch(spiller: u32, key: u64) -> u64 {
    mix(mix(!u64::from(spiller)) ^ key)
}

/// The finaliser of SplitMix64: every bit of the result depends on every bit of the number.
pub(super) fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}
