//! What the buffer knows of one store: descriptors, loads, units. And what eviction does to them.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::lock;
use super::pool::{Meta, Use};
use super::protocol::descriptor::{Descriptor, Word};
use super::shard::Shard;
use super::source::PageSource;
use super::table::{Leaf, Table};
use super::units::{UnitKey, UnitShard, hash_page, hash_unit, mix};
use crate::id::{PageId, SizeClass};
use crate::memory::page_bytes;

const SHARDS: usize = 64;
/// Charged for each leaf of descriptors beside its memory.
const LEAF_OVERHEAD: usize = 64;

/// See the module.
pub(super) struct Store {
    number: u32,
    pub(super) source: Arc<dyn PageSource>,
    pub(super) table: Table,
    shards: Box<[Mutex<Shard>]>,
    units: Box<[Mutex<UnitShard>]>,
    /// Leaves with memory, of all shards.
    leaves: AtomicUsize,
}

impl Store {
    pub(super) fn new(number: u32, source: Arc<dyn PageSource>, table: Table) -> Self {
        Self {
            number,
            source,
            table,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            units: (0..SHARDS).map(|_| Mutex::default()).collect(),
            leaves: AtomicUsize::new(0),
        }
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Charged for the descriptors.
    pub(super) fn descriptor_bytes(&self) -> usize {
        self.leaves.load(Ordering::Relaxed) * leaf_charge()
    }

    /// The shard that the page's descriptor belongs to, locked.
    pub(super) fn shard(&self, page: PageId) -> (Leaf, MutexGuard<'_, Shard>) {
        let leaf = self.table.leaf(page);
        (leaf, self.shard_of(leaf))
    }

    fn shard_of(&self, leaf: Leaf) -> MutexGuard<'_, Shard> {
        let at = mix(leaf.number ^ u64::from(leaf.class) << 56) as usize % SHARDS;
        lock(&self.shards[at])
    }

    /// A new leaf has been charged.
    pub(super) fn count_leaf(&self) {
        self.leaves.fetch_add(1, Ordering::Relaxed);
    }

    /// The shard of a unit, locked, and its number.
    pub(super) fn unit_shard(&self, key: &UnitKey) -> (u64, MutexGuard<'_, UnitShard>) {
        let at = hash_unit(0, key) as usize % SHARDS;
        (at as u64, lock(&self.units[at]))
    }

    fn unit_shard_of(&self, meta: &Meta) -> MutexGuard<'_, UnitShard> {
        lock(&self.units[meta.owner.load(Ordering::Relaxed) as usize % SHARDS])
    }

    fn page_of(&self, meta: &Meta, class: SizeClass) -> Option<(PageId, Descriptor<'_>)> {
        let page = PageId::new(class, meta.owner.load(Ordering::Relaxed))?;
        Some((page, self.table.find(page)?))
    }

    /// Whether what is in the frame was touched since this was last asked. Under the room's lock.
    pub(super) fn cool(&self, meta: &Meta, class: SizeClass, address: usize) -> bool {
        match meta.usage() {
            Use::Page => self
                .page_of(meta, class)
                .is_some_and(|(_, descriptor)| descriptor.cool(Word::cooling(address, class.log2()))),
            Use::Unit => self.unit_shard_of(meta).cool(address),
            _ => false,
        }
    }

    /// Takes the frame from what is in it: of a unit, with its key. Under the room's lock.
    pub(super) fn evict(&self, meta: &Meta, class: SizeClass, address: usize) -> Option<Option<UnitKey>> {
        match meta.usage() {
            Use::Page => {
                let (page, descriptor) = self.page_of(meta, class)?;
                if !descriptor.evict(Word::cooling(address, class.log2())) {
                    return None;
                }
                let (leaf, mut shard) = self.shard(page);
                shard.lower(leaf);
                Some(None)
            }
            Use::Unit => self.unit_shard_of(meta).evict(address).map(Some),
            _ => None,
        }
    }

    /// Undoes [`Store::evict`], if nothing happened since; with the page's hash. Under the room's lock.
    pub(super) fn restore(&self, meta: &Meta, class: SizeClass, address: usize, unit: Option<UnitKey>) -> Option<u64> {
        if let Some(key) = unit {
            let mut shard = self.unit_shard_of(meta);
            if shard.units.contains_key(&key) {
                return None;
            }
            shard.insert(key, address);
            return Some(hash_unit(self.number, &key));
        }
        let (page, descriptor) = self.page_of(meta, class)?;
        let (leaf, mut shard) = self.shard(page);
        if !shard.has(leaf) {
            return None;
        }
        // Counted before, as always (`Shard::raise`).
        shard.raise(leaf);
        let generation = meta.generation.load(Ordering::Relaxed);
        if !descriptor.restore(generation, Word::cooling(address, class.log2())) {
            shard.lower(leaf);
            return None;
        }
        Some(hash_page(self.number, page))
    }

    /// Gives back memory of descriptors that are all evicted, until it is `bytes` bytes; returns how many bytes are no
    /// longer to be charged. Under the room's lock.
    #[allow(unsafe_code)]
    pub(super) fn reclaim_descriptors(&self, bytes: usize) -> usize {
        let mut freed = 0;
        for shard in &self.shards {
            let mut shard = lock(shard);
            while freed < bytes
                && let Some(leaf) = shard.take_empty()
            {
                // SAFETY: every descriptor of the leaf is evicted, and only under the shard's lock one stops being so.
                unsafe { self.table.give_back(leaf) };
                self.leaves.fetch_sub(1, Ordering::Relaxed);
                freed += leaf_charge();
            }
        }
        freed
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("number", &self.number).field("source", &self.source).finish_non_exhaustive()
    }
}

/// Charged for a leaf.
pub(super) fn leaf_charge() -> usize {
    page_bytes().min(64 << 10) + LEAF_OVERHEAD
}
