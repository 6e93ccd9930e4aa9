//! What is remembered of pages that have left.
//!
//! A table of small buckets; an entry is a fingerprint of the page and when it left. Time is counted in what was evicted:
//! a page is remembered until [`remembered`](Ghosts::remember) units more have gone. So there is no queue to keep in order,
//! what is too old needs no removal, and sizes are taken into account: a large page that goes makes as many small ones
//! forgotten.
//!
//! - **G1** Whatever is found left at most the given number of units ago. What should be found may be missing, if its
//!   bucket was full of younger ones, and something else may be found in its place, once in 2^32 for each that is
//!   remembered: policies use it as a hint.
//! - **G2** The table has room for twice what it may hold, rounded up to a power of two; it grows with the frames and does
//!   not shrink.

use super::queues::Fingerprint;

const WAYS: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Ghost {
    page: Fingerprint,
    /// The time of its leaving. Wraps after 16 TiB of evictions; then one in 2^32 may look young again.
    left: u32,
}

type Bucket = [Ghost; WAYS];

#[derive(Debug, Default)]
pub(super) struct Ghosts {
    buckets: Vec<Bucket>,
    now: u32,
    span: u32,
}

impl Ghosts {
    /// Units evicted so far, wrapping.
    pub(super) fn now(&self) -> u32 {
        self.now
    }

    /// A page of so many units leaves; it is remembered until `span` units more have left.
    pub(super) fn remember(&mut self, page: Fingerprint, units: u64, span: u64) {
        self.grow(span);
        self.span = span.min(u64::from(u32::MAX / 2)) as u32;
        self.now = self.now.wrapping_add(units as u32);
        self.put(Ghost { page, left: self.now });
    }

    /// Time goes on by what has left without being remembered.
    pub(super) fn pass(&mut self, units: u64) {
        self.now = self.now.wrapping_add(units as u32);
    }

    /// Forgets a page, and says how many units have left since it did.
    pub(super) fn recall(&mut self, page: Fingerprint) -> Option<u32> {
        let (now, span) = (self.now, self.span);
        let index = self.index(page)?;
        let ghost = self.buckets[index].iter_mut().find(|ghost| ghost.page == page)?;
        let age = now.wrapping_sub(ghost.left);
        ghost.left = now.wrapping_sub(u32::MAX / 2);
        (age <= span).then_some(age)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<Bucket>()
    }

    fn index(&self, page: Fingerprint) -> Option<usize> {
        // The low bits of a product are poor, so the high ones choose the bucket.
        let mixed = u64::from(page.0.wrapping_mul(0x9e37_79b1));
        (!self.buckets.is_empty()).then(|| ((mixed * self.buckets.len() as u64) >> 32) as usize)
    }

    fn put(&mut self, ghost: Ghost) {
        let now = self.now;
        let Some(index) = self.index(ghost.page) else { return };
        let bucket = &mut self.buckets[index];
        let same = bucket.iter().position(|other| other.page == ghost.page);
        let place = same.or_else(|| (0..WAYS).max_by_key(|&way| now.wrapping_sub(bucket[way].left)));
        if let Some(way) = place {
            bucket[way] = ghost;
        }
    }

    fn grow(&mut self, span: u64) {
        let wanted = (span as usize * 2).div_ceil(WAYS).max(1).next_power_of_two();
        if wanted <= self.buckets.len() {
            return;
        }
        let nobody = Ghost { page: Fingerprint(0), left: self.now.wrapping_sub(u32::MAX / 2) };
        let old = std::mem::replace(&mut self.buckets, vec![[nobody; WAYS]; wanted]);
        let (now, span) = (self.now, self.span);
        old.into_iter().flatten().filter(|ghost| now.wrapping_sub(ghost.left) <= span).for_each(|ghost| self.put(ghost));
    }
}
