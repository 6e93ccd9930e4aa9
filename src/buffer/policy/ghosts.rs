//! What is remembered of pages that have left.
//!
//! A table of small buckets; an entry is a fingerprint of the page and when it left. Time is counted in what was evicted:
//! a page is remembered until so much more has gone. So there is no queue to keep in order, what is too old needs no
//! removal, and sizes are taken into account: a large page that goes makes as many small ones forgotten.
//!
//! - **G1** Whatever is found left at most the given number of units ago. What should be found may be missing, if its
//!   bucket was full of younger ones, and another page may be taken for one that is remembered, once in 2^32 for each:
//!   policies use it as a hint.
//! - **G2** The table has room for half as many again as are to be remembered, which are no more than the units, and no
//!   more than two for each slot. It grows by a quarter or more at a time and does not shrink.

use super::queues::Fingerprint;

const WAYS: usize = 8;

/// A page that has left.
#[derive(Clone, Copy, Debug)]
struct Ghost {
    page: Fingerprint,
    /// The time of its leaving, in units. Wraps after 16 TiB of evictions; then one that is very old may look young once.
    left: u32,
}

const _: () = assert!(size_of::<Ghost>() * 3 / 2 == super::BYTES_PER_GHOST);

type Bucket = [Ghost; WAYS];

/// The longest that anything is remembered, in units: 8 TiB.
const LONGEST: u32 = u32::MAX / 2;

#[derive(Debug, Default)]
pub(super) struct Ghosts {
    buckets: Vec<Bucket>,
    /// Units that have left so far, wrapping.
    now: u32,
    span: u32,
}

impl Ghosts {
    /// A page of so many units leaves. It is remembered until `span` units more have left, if a table for so many slots
    /// has room.
    pub(super) fn remember(&mut self, page: Fingerprint, units: u64, span: u64, slots: usize) {
        self.grow(span, slots);
        self.span = span.min(u64::from(LONGEST)) as u32;
        self.now = self.now.wrapping_add(units as u32);
        self.put(Ghost { page, left: self.now });
    }

    /// Forgets a page, and says how many units have left since it did.
    pub(super) fn recall(&mut self, page: Fingerprint) -> Option<u64> {
        let (now, span) = (self.now, self.span);
        let index = self.index(page)?;
        let ghost = self.buckets[index].iter_mut().find(|ghost| ghost.page == page)?;
        let age = now.wrapping_sub(ghost.left);
        ghost.left = now.wrapping_sub(LONGEST);
        (age <= span).then_some(u64::from(age))
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<Bucket>()
    }

    fn index(&self, page: Fingerprint) -> Option<usize> {
        // The fingerprint is part of a good hash, so its high bits may choose.
        (!self.buckets.is_empty()).then(|| ((u64::from(page.0) * self.buckets.len() as u64) >> 32) as usize)
    }

    /// In place of the same page, or of the one that left first.
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

    fn grow(&mut self, span: u64, slots: usize) {
        let wanted = (span.min(slots as u64 * 2) as usize * 3 / 2).div_ceil(WAYS).max(1);
        let old_length = self.buckets.len();
        if wanted <= old_length {
            return;
        }
        let nobody = Ghost { page: Fingerprint(0), left: self.now.wrapping_sub(LONGEST) };
        let length = wanted.max(old_length + old_length / 4);
        let old = std::mem::replace(&mut self.buckets, vec![[nobody; WAYS]; length]);
        let (now, span) = (self.now, self.span);
        let is_remembered = |ghost: &Ghost| now.wrapping_sub(ghost.left) <= span;
        old.into_iter().flatten().filter(is_remembered).for_each(|ghost| self.put(ghost));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u32) -> Fingerprint {
        Fingerprint(number.wrapping_mul(0x9e37_79b1))
    }

    #[test]
    fn a_page_is_remembered_for_its_span_and_forgotten_once_recalled() {
        let mut ghosts = Ghosts::default();
        assert_eq!(ghosts.recall(page(1)), None);
        (1..=100).for_each(|number| ghosts.remember(page(number), 1, 50, 100));
        assert_eq!(ghosts.recall(page(100)), Some(0));
        assert_eq!(ghosts.recall(page(100)), None);
        assert_eq!(ghosts.recall(page(60)), Some(40));
        assert_eq!(ghosts.recall(page(49)), None);
    }

    #[test]
    fn time_is_counted_in_bytes() {
        let mut ghosts = Ghosts::default();
        ghosts.remember(page(1), 1, 1000, 100);
        ghosts.remember(page(2), 600, 1000, 100);
        ghosts.remember(page(3), 300, 1000, 100);
        assert_eq!(ghosts.recall(page(1)), Some(900));
        ghosts.remember(page(4), 701, 1000, 100);
        assert_eq!(ghosts.recall(page(2)), None);
        assert_eq!(ghosts.recall(page(3)), Some(701));
    }

    #[test]
    fn nearly_all_survive_in_a_table_that_grows() {
        let mut ghosts = Ghosts::default();
        let mixed = |number: u32| Fingerprint((u64::from(number).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as u32);
        (1..=10_000).for_each(|number| ghosts.remember(mixed(number), 1, u64::from(number), number as usize));
        let found = (1..=10_000).filter(|&number| ghosts.recall(mixed(number)).is_some()).count();
        assert!(found > 9_500, "{found}");
        assert!(ghosts.memory_bytes() <= 10_000 * super::super::BYTES_PER_GHOST * 5 / 4 + 64);
    }

    #[test]
    fn large_pages_need_no_table_for_small_ones() {
        let mut ghosts = Ghosts::default();
        (0..10).for_each(|number| ghosts.remember(page(number), 1 << 19, 9 << 19, 10));
        assert!(ghosts.memory_bytes() < 1024);
        assert_eq!(ghosts.recall(page(5)), Some(4 << 19));
    }
}
