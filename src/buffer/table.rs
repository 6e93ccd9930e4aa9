//! The descriptors of a store's pages: from a page's id to its descriptor by arithmetic.
//!
//! For each class an array that grows without moving: segment `k` has `4096 << k` descriptors, reserved when the first
//! of them is wanted, and zero, that is evicted, until it is written. What memory of it is in use, `shard` counts.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::lock;
use super::protocol::descriptor::Descriptor;
use crate::error::Result;
use crate::id::{PageId, SizeClass};
use crate::memory::Reservation;

/// Descriptors in the first segment.
const FIRST: u64 = 4096;
const _: () = assert!(size_of::<Descriptor>() == 16);
/// Segments that are enough for every index.
const SEGMENTS: usize = 37;
const _: () = assert!(FIRST * ((1 << SEGMENTS) - 1) >= PageId::INDEX_LIMIT);

/// See the module.
pub(super) struct Table {
    classes: Box<[[AtomicPtr<Descriptor>; SEGMENTS]; SizeClass::COUNT]>,
    reserved: Mutex<Vec<Reservation>>,
    descriptors_per_os_page: u64,
}

/// An OS page of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Leaf {
    pub(super) class: u8,
    pub(super) number: u64,
}

/// Where an index lies: the segment, and the descriptor in it.
#[inline(always)]
fn place(index: u64) -> (usize, usize) {
    let rank = index / FIRST + 1;
    let segment = rank.ilog2();
    (segment as usize, (index - FIRST * ((1 << segment) - 1)) as usize)
}

impl Table {
    pub(super) fn new(page_bytes: usize) -> Self {
        let segments = || std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut()));
        // An OS page of descriptors may not reach over the end of the first segment.
        let descriptors_per_os_page = ((page_bytes / size_of::<Descriptor>()) as u64).min(FIRST);
        Self {
            classes: Box::new(std::array::from_fn(|_| segments())),
            reserved: Mutex::default(),
            descriptors_per_os_page,
        }
    }

    /// The page's descriptor; `None` if nobody ever asked for it or its neighbours.
    #[inline(always)]
    pub(super) fn find(&self, page: PageId) -> Option<&Descriptor> {
        let (segment, at) = place(page.index());
        let start = self.classes[page.class().index()][segment].load(Ordering::Acquire);
        if start.is_null() {
            return None;
        }
        // SAFETY: the segment has that many descriptors, is never given up before the table, and zero bytes are one.
        Some(unsafe { &*start.add(at) })
    }

    /// The page's descriptor.
    pub(super) fn find_or_reserve(&self, page: PageId) -> Result<&Descriptor> {
        if let Some(found) = self.find(page) {
            return Ok(found);
        }
        let mut reserved = lock(&self.reserved);
        let (segment, at) = place(page.index());
        let slot = &self.classes[page.class().index()][segment];
        let mut start = slot.load(Ordering::Acquire);
        if start.is_null() {
            let bytes = (FIRST as usize * size_of::<Descriptor>()) << segment;
            let memory = Reservation::new(bytes)?;
            start = memory.start().as_ptr().cast();
            reserved.push(memory);
            slot.store(start, Ordering::Release);
        }
        // SAFETY: as above.
        Ok(unsafe { &*start.add(at) })
    }

    /// The OS page that the page's descriptor lies in.
    pub(super) fn leaf(&self, page: PageId) -> Leaf {
        Leaf { class: page.class().log2(), number: page.index() / self.descriptors_per_os_page }
    }

    /// Makes a leaf's descriptors zero, and gives their memory back.
    ///
    /// # Safety
    /// All of them are evicted, and stay so until this returns.
    pub(super) unsafe fn give_back(&self, leaf: Leaf) {
        let page = SizeClass::new(leaf.class).and_then(|class| PageId::new(class, leaf.number * self.descriptors_per_os_page));
        let Some(first) = page.and_then(|page| self.find(page)) else { return };
        let address = ptr::from_ref(first).addr();
        let bytes = self.descriptors_per_os_page as usize * size_of::<Descriptor>();
        for memory in lock(&self.reserved).iter() {
            let start = memory.start().addr().get();
            if (start..start + memory.len()).contains(&address) {
                let offset = address - start;
                // SAFETY: nobody writes them (the caller). Readers load atomically, and find evicted before and after.
                let given = unsafe { memory.give_back(offset..offset + bytes) };
                assert!(given.is_ok(), "the leaf lies in the reservation, and the system takes back what it gave");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_has_one_place_and_segments_follow_each_other() {
        let mut expected = (0, 0);
        for index in 0..100_000 {
            assert_eq!(place(index), expected);
            expected.1 += 1;
            if expected.1 == 4096 << expected.0 {
                expected = (expected.0 + 1, 0);
            }
        }
        assert_eq!(place(PageId::INDEX_LIMIT - 1).0, SEGMENTS - 1);
    }

    #[test]
    fn a_descriptor_stays_where_it_is_while_others_come() {
        let table = Table::new(4096);
        let page = |index| PageId::new(SizeClass::MIN, index).unwrap();
        assert!(table.find(page(5)).is_none());
        let first = ptr::from_ref(table.find_or_reserve(page(5)).unwrap());
        for index in [4095, 4096, 100_000, 1 << 30] {
            table.find_or_reserve(page(index)).unwrap();
        }
        assert_eq!(ptr::from_ref(table.find(page(5)).unwrap()), first);
        assert!(table.find(PageId::new(SizeClass::MAX, 5).unwrap()).is_none());
    }
}
