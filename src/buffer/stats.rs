//! Numbers of the buffer.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::manager::Inner;
use super::pool::Use;
use super::protocol::record::Record;
use super::room::{Room, is_counted};
use super::thread::registry;
use crate::id::SizeClass;

/// Numbers of a [`BufferManager`](super::BufferManager), of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BufferStats {
    /// The budget.
    pub budget_bytes: u64,
    /// Of it taken: frames with memory (free ones too), what is kept for each, descriptors, reservations.
    pub used_bytes: u64,
    /// Pages and units found in memory. Each thread counts for itself; with more than eight managers in a process, those
    /// beyond share their count.
    pub hits: u64,
    /// Pages and units that had to be loaded.
    pub misses: u64,
    /// Times that a thread waited for another's load.
    pub waits: u64,
    /// Pages and units evicted.
    pub evictions: u64,
    /// Frames being loaded into, in bytes.
    pub loading_bytes: u64,
    /// Private frames, in bytes.
    pub private_bytes: u64,
    /// Scratch pages in memory, in bytes.
    pub scratch_bytes: u64,
    /// Memory of descriptors.
    pub descriptor_bytes: u64,
    /// Memory of the eviction policy.
    pub policy_bytes: u64,
    /// What users reserved.
    pub reserved_bytes: u64,
    /// Who reads ahead.
    pub prefetch_by: PrefetchBy,
    /// Reads ahead that went by the ring.
    pub ring_reads: u64,
    /// The eviction policy.
    pub policy: &'static str,
    /// By size class.
    pub classes: Vec<ClassStats>,
}

/// How pages are read ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PrefetchBy {
    /// Each by a thread: always so without the feature `prefetch-ring`, where the system gives no ring, and until
    /// something was read ahead that a ring can read.
    #[default]
    Threads,
    /// Many by one thread, with Linux's `io_uring`; what does not lie in a file as it is (encoded pages), by threads.
    Ring,
}

/// Numbers of one size class, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClassStats {
    /// The class.
    pub class: SizeClass,
    /// Of frames with memory.
    pub committed_bytes: u64,
    /// Of those that hold pages and units.
    pub resident_bytes: u64,
    /// Of those, and of replaced ones, that guards hold.
    pub guarded_bytes: u64,
    /// Of those that hold nothing.
    pub free_bytes: u64,
    /// Of those that were replaced or evicted, and are still read.
    pub limbo_bytes: u64,
}

impl BufferStats {
    pub(super) fn collect(inner: &Inner, room: &Room) -> Self {
        let (descriptor_bytes, policy_bytes) = room.overhead_bytes();
        let mut slots = Vec::new();
        registry().in_slots(&mut slots);
        let (prefetch_by, ring_reads) = inner.crew.by();
        let reserved: usize = super::lock(&inner.reservations).values().map(|reserved| reserved.bytes).sum();
        Self {
            budget_bytes: inner.limit() as u64,
            used_bytes: inner.used() as u64,
            hits: inner.counters.hits(),
            misses: inner.counters.misses.load(Ordering::Relaxed),
            waits: inner.counters.waits.load(Ordering::Relaxed),
            evictions: room.evictions,
            loading_bytes: room.loading_bytes as u64,
            private_bytes: room.private_bytes as u64,
            scratch_bytes: room.scratch_bytes as u64,
            descriptor_bytes: descriptor_bytes as u64,
            policy_bytes: policy_bytes as u64,
            reserved_bytes: reserved as u64,
            prefetch_by,
            ring_reads,
            policy: room.policy(),
            classes: SizeClass::all().filter_map(|class| ClassStats::collect(inner, room, class, &slots)).collect(),
        }
    }
}

impl ClassStats {
    fn collect(inner: &Inner, room: &Room, class: SizeClass, slots: &[usize]) -> Option<Self> {
        let pool = inner.pools.get(class)?;
        let bytes = class.page_bytes();
        let (committed, free) = room.frames(class);
        let mut stats = Self {
            class,
            committed_bytes: committed * bytes,
            resident_bytes: 0,
            guarded_bytes: 0,
            free_bytes: free * bytes,
            limbo_bytes: 0,
        };
        for number in 0..room.end(class) {
            let meta = pool.meta(number);
            match meta.usage() {
                Use::Page | Use::Unit => stats.resident_bytes += bytes,
                Use::Limbo => stats.limbo_bytes += bytes,
                _ => continue,
            }
            if is_counted(meta) || slots.binary_search(&pool.address(number).addr().get()).is_ok() {
                stats.guarded_bytes += bytes;
            }
        }
        Some(stats)
    }
}

/// What is counted.
pub(super) struct Counters {
    /// Where the threads' records count this manager's hits.
    number: u8,
    /// What was there before.
    hits_before: u64,
    pub(super) misses: AtomicU64,
    pub(super) waits: AtomicU64,
}

/// Which numbers are taken.
static NUMBERS: AtomicU8 = AtomicU8::new(0);

impl Counters {
    pub(super) fn new() -> Self {
        let free = |taken: u8| Some(taken | taken.wrapping_add(1));
        let taken = NUMBERS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, free).unwrap_or(u8::MAX);
        let number = (taken.trailing_ones() as u8).min(7);
        Self { number, hits_before: sum(number), misses: AtomicU64::new(0), waits: AtomicU64::new(0) }
    }

    fn hits(&self) -> u64 {
        sum(self.number).wrapping_sub(self.hits_before)
    }

    /// The number by which hits are counted.
    pub(super) fn number(&self) -> u8 {
        self.number
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        NUMBERS.fetch_and(!(1 << self.number), Ordering::Relaxed);
    }
}

fn sum(number: u8) -> u64 {
    registry()
        .records()
        .map(|record| record.hits[usize::from(number)].load(Ordering::Relaxed))
        .fold(0, u64::wrapping_add)
}

/// Counts a hit, by the record's owner.
#[inline(always)]
pub(super) fn count_hit(record: &Record, number: u8) {
    let hits = &record.hits[usize::from(number & 7)];
    hits.store(hits.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}
