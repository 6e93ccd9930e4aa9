//! Buffers of pages and chunks lately used, within a bound of bytes.
//!
//! - **K1** The key is the whole block pointer: birth and checksum with the address. Blocks that are used again have a
//!   pointer of another birth, so what they held before is never served for what they hold now.
//! - **K2** A buffer never changes once it is in the cache: it is shared with whoever reads it.
//! - **K3** The buffers that the cache holds never sum to more than its bound. (Guards may keep others alive.)

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::format::{BlockPointer, CodecId};
use crate::map::PointerHasher;
use crate::store::StoredPages;

/// A shard is not made smaller than this, so that several chunks of 1 MiB find room in it.
const SHARD_BYTES: usize = 8 << 20;

const SHARDS_LIMIT: usize = 16;

/// Counts of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Look-ups that found their buffer.
    pub hits: u64,
    /// Look-ups that did not.
    pub misses: u64,
    /// Bytes of the buffers held.
    pub bytes: usize,
    /// Bytes that may be held.
    pub limit_bytes: usize,
}

/// A bounded map from pointers to the bytes they lead to.
#[derive(Debug)]
pub(crate) struct Cache {
    shards: Vec<Mutex<Shard>>,
    limit_bytes: usize,
    /// Bytes of one of a shard's two halves.
    half_bytes: usize,
}

type Half = HashMap<BlockPointer, Arc<[u8]>, BuildHasherDefault<PointerHasher>>;

/// Two halves: a buffer that is found in the older half moves to the younger; when the younger is full, the older is
/// forgotten and the younger takes its place. Second chance without a list.
#[derive(Debug, Default)]
struct Shard {
    young: Half,
    old: Half,
    young_bytes: usize,
    old_bytes: usize,
    hits: u64,
    misses: u64,
}

impl Cache {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        let shards = (limit_bytes / SHARD_BYTES).clamp(1, SHARDS_LIMIT);
        let half_bytes = limit_bytes / shards / 2;
        Self { shards: (0..shards).map(|_| Mutex::default()).collect(), limit_bytes, half_bytes }
    }

    /// Bytes that may be held.
    pub(super) fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    pub(super) fn find(&self, pointer: &BlockPointer) -> Option<Arc<[u8]>> {
        let mut shard = self.shard(pointer);
        let found = shard.find(pointer, self.half_bytes);
        match found {
            Some(_) => shard.hits += 1,
            None => shard.misses += 1,
        }
        found
    }

    /// Keeps a buffer, unless it is too large to be worth what it would push out.
    pub(super) fn keep(&self, pointer: &BlockPointer, bytes: &Arc<[u8]>) {
        if bytes.len() <= self.half_bytes {
            self.shard(pointer).keep(*pointer, Arc::clone(bytes), self.half_bytes);
        }
    }

    pub(crate) fn counts(&self) -> CacheCounts {
        let mut counts = CacheCounts { limit_bytes: self.limit_bytes, ..CacheCounts::default() };
        for shard in &self.shards {
            let shard = lock(shard);
            counts.hits += shard.hits;
            counts.misses += shard.misses;
            counts.bytes += shard.young_bytes + shard.old_bytes;
        }
        counts
    }

    fn shard(&self, pointer: &BlockPointer) -> MutexGuard<'_, Shard> {
        let mixed = pointer.address.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        lock(&self.shards[mixed as usize % self.shards.len()])
    }
}

impl StoredPages for Cache {
    fn stored(&self, pointer: &BlockPointer) -> Option<Arc<[u8]>> {
        // What is cached are the bytes of the page; only a raw page is stored as them.
        (pointer.codec == CodecId::RAW).then(|| self.find(pointer)).flatten()
    }

    fn moved(&self, pointer: &BlockPointer, stored: &Arc<[u8]>) {
        if pointer.codec == CodecId::RAW {
            self.keep(pointer, stored);
        }
    }

    fn superseded(&self, pointer: &BlockPointer) {
        self.shard(pointer).forget(pointer);
    }
}

impl Shard {
    fn find(&mut self, pointer: &BlockPointer, half_bytes: usize) -> Option<Arc<[u8]>> {
        if let Some(bytes) = self.young.get(pointer) {
            return Some(Arc::clone(bytes));
        }
        let bytes = self.old.remove(pointer)?;
        self.old_bytes -= bytes.len();
        self.keep(*pointer, Arc::clone(&bytes), half_bytes);
        Some(bytes)
    }

    fn forget(&mut self, pointer: &BlockPointer) {
        if let Some(bytes) = self.young.remove(pointer) {
            self.young_bytes -= bytes.len();
        } else if let Some(bytes) = self.old.remove(pointer) {
            self.old_bytes -= bytes.len();
        }
    }

    fn keep(&mut self, pointer: BlockPointer, bytes: Arc<[u8]>, half_bytes: usize) {
        if self.young.contains_key(&pointer) {
            return;
        }
        if let Some(older) = self.old.remove(&pointer) {
            self.old_bytes -= older.len();
        }
        if self.young_bytes + bytes.len() > half_bytes {
            self.old = std::mem::take(&mut self.young);
            self.old_bytes = std::mem::take(&mut self.young_bytes);
        }
        self.young_bytes += bytes.len();
        self.young.insert(pointer, bytes);
    }
}

/// A panic while a shard is locked leaves it whole, so its poison means nothing.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Block, Generation};

    fn pointer(address: u64, birth: u64) -> BlockPointer {
        BlockPointer {
            address: Block(address),
            codec: CodecId::RAW,
            stored_length: 4096,
            ..BlockPointer::null(Generation(birth))
        }
    }

    #[test]
    fn the_bound_holds_and_what_is_used_again_stays() {
        let cache = Cache::new(16 * 4096);
        let buffer: Arc<[u8]> = vec![7; 4096].into();
        for address in 100..200 {
            cache.keep(&pointer(100, 1), &buffer);
            cache.keep(&pointer(address, 1), &buffer);
            assert!(cache.find(&pointer(100, 1)).is_some(), "used all the time, so never pushed out");
            assert!(cache.counts().bytes <= 16 * 4096);
        }
        assert!(cache.find(&pointer(101, 1)).is_none(), "long unused");
    }

    #[test]
    fn a_block_that_is_used_again_is_another_key() {
        let cache = Cache::new(1 << 20);
        cache.keep(&pointer(100, 1), &vec![1; 4096].into());
        assert!(cache.find(&pointer(100, 2)).is_none());
        assert_eq!(cache.find(&pointer(100, 1)).as_deref(), Some(&[1; 4096][..]));
    }

    #[test]
    fn a_buffer_beyond_half_a_shard_is_not_kept() {
        let cache = Cache::new(8192);
        cache.keep(&pointer(100, 1), &vec![1; 8192].into());
        assert_eq!(cache.counts(), CacheCounts { limit_bytes: 8192, ..CacheCounts::default() });
        assert!(Cache::new(0).find(&pointer(1, 1)).is_none());
    }
}
