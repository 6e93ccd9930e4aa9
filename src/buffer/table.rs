//! The descriptors of a store's pages: from a page's id to its descriptor by arithmetic.
//!
//! For each class an array that grows without moving: segment `k` has `4096 << k` descriptors, reserved when the first
//! of them is wanted, and zero, that is evicted, until it is written. What memory of it is in use, `shard` counts.
//!
//! In a segment, 256 times word 0 and then 256 times word 1 make a *block*, and blocks follow each other. Most looks need
//! word 0 only (P1), so the processor's caches hold twice as many of them as if the two words lay side by side. On huge
//! pages they are no faster.
//!
//! Segments are cut from one range of addresses as long as it lasts. A descriptor there has an *offset*, from which it is
//! found without class, index and segment: what a [`Swip`](super::Swip) remembers.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use super::addresses;
use super::lock;
use super::pool::bring_near;
use super::protocol::descriptor::Descriptor;
use crate::error::Result;
use crate::id::{PageId, SizeClass};
use crate::memory::Reservation;

/// Descriptors in the first segment.
const FIRST: u64 = 4096;
/// Bytes of a word.
const WORD: usize = size_of::<AtomicU64>();
/// Bytes of a descriptor.
const DESCRIPTOR: usize = 2 * WORD;
/// Descriptors in a block; all their words 0 come first.
const BLOCK: usize = 256;
/// From word 0 to word 1.
const TO_GENERATION: usize = BLOCK * WORD;
/// Bytes of a block: no OS page is smaller.
const BLOCK_BYTES: usize = BLOCK * DESCRIPTOR;
const _: () = assert!((FIRST as usize).is_multiple_of(BLOCK) && BLOCK_BYTES == 4096);
/// Segments that are enough for every index.
const SEGMENTS: usize = 37;
const _: () = assert!(FIRST * ((1 << SEGMENTS) - 1) >= PageId::INDEX_LIMIT);

/// See the module.
pub(super) struct Table {
    classes: Box<[[AtomicPtr<u8>; SEGMENTS]; SizeClass::COUNT]>,
    /// The highest generation that a descriptor has, or had (P1).
    ceiling: AtomicU64,
    arena: Reservation,
    grown: Mutex<Grown>,
    descriptors_per_os_page: u64,
}

/// What the lock protects.
#[derive(Default)]
struct Grown {
    /// Bytes of the arena that are segments.
    used: usize,
    /// Segments of the arena: where each starts, and its first page.
    segments: Vec<(usize, PageId)>,
    /// Segments that did not fit.
    others: Vec<Reservation>,
}

/// Addresses for the descriptors of 2 TiB in pages of 4 KiB.
const ARENA_BYTES: usize = 16 << 30;
/// With less the table does not begin.
const ARENA_LEAST: usize = 16 << 20;

/// An OS page of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Leaf {
    pub(super) class: u8,
    pub(super) number: u64,
}

/// Where the word 0 of a segment's descriptor lies.
#[inline(always)]
fn offset_of(at: usize) -> usize {
    at / BLOCK * BLOCK_BYTES + at % BLOCK * WORD
}

/// The number of the descriptor whose word 0 lies there.
fn number_at(offset: usize) -> usize {
    offset / BLOCK_BYTES * BLOCK + offset % BLOCK_BYTES / WORD
}

/// Where an index lies: the segment, and the descriptor in it.
#[inline(always)]
fn place(index: u64) -> (usize, usize) {
    let rank = index / FIRST + 1;
    let segment = rank.ilog2();
    (segment as usize, (index - FIRST * ((1 << segment) - 1)) as usize)
}

impl Table {
    pub(super) fn new(page_bytes: usize) -> Result<Self> {
        let segments = || std::array::from_fn(|_| AtomicPtr::new(ptr::null_mut()));
        // An OS page of descriptors may not reach over the end of the first segment.
        let descriptors_per_os_page = ((page_bytes / DESCRIPTOR) as u64).min(FIRST);
        Ok(Self {
            classes: Box::new(std::array::from_fn(|_| segments())),
            ceiling: AtomicU64::new(0),
            arena: addresses::reserve(ARENA_BYTES, ARENA_LEAST)?,
            grown: Mutex::default(),
            descriptors_per_os_page,
        })
    }

    /// The descriptor at an offset of the arena. Where no segment is, it is evicted, and stays so.
    #[inline(always)]
    pub(super) fn at(&self, offset: usize) -> Option<Descriptor<'_>> {
        if offset >= self.arena.len() || !offset.is_multiple_of(WORD) || offset % BLOCK_BYTES >= TO_GENERATION {
            return None;
        }
        // SAFETY: a word 0 of the arena, which consists of blocks, all zero where none was made yet.
        Some(unsafe { self.descriptor(self.arena.start().as_ptr().add(offset)) })
    }

    /// The descriptor whose word 0 lies there.
    ///
    /// # Safety
    /// It is one of a segment, which is never given up before the table; zero bytes are a descriptor.
    #[inline(always)]
    unsafe fn descriptor(&self, word: *const u8) -> Descriptor<'_> {
        // SAFETY: both words lie in the block (the caller), aligned, and change by atomic operations.
        unsafe {
            let generation = &*word.add(TO_GENERATION).cast();
            Descriptor { word: &*word.cast(), generation, ceiling: &self.ceiling }
        }
    }

    /// The offset of a descriptor, if it lies in the arena.
    pub(super) fn offset(&self, descriptor: &Descriptor<'_>) -> Option<usize> {
        let offset = ptr::from_ref(descriptor.word).addr().checked_sub(self.arena.start().addr().get())?;
        (offset < self.arena.len()).then_some(offset)
    }

    /// The page whose descriptor is at an offset.
    pub(super) fn page_at(&self, offset: usize) -> Option<PageId> {
        let grown = lock(&self.grown);
        let (start, first) =
            *grown.segments.get(grown.segments.partition_point(|(start, _)| *start <= offset).checked_sub(1)?)?;
        PageId::new(first.class(), first.index() + number_at(offset - start) as u64)
    }

    /// The page's descriptor; `None` if nobody ever asked for it or its neighbours.
    #[inline(always)]
    pub(super) fn find(&self, page: PageId) -> Option<Descriptor<'_>> {
        let (segment, at) = place(page.index());
        let start = self.classes[page.class().index()][segment].load(Ordering::Acquire);
        if start.is_null() {
            return None;
        }
        // SAFETY: the segment has that many descriptors.
        Some(unsafe { self.descriptor(start.add(offset_of(at))) })
    }

    /// Begins to bring the page's descriptor into the processor's caches.
    pub(super) fn look_ahead(&self, page: PageId) {
        if let Some(descriptor) = self.find(page) {
            bring_near(ptr::from_ref(descriptor.word).cast());
        }
    }

    /// The page's descriptor.
    pub(super) fn find_or_reserve(&self, page: PageId) -> Result<Descriptor<'_>> {
        if let Some(found) = self.find(page) {
            return Ok(found);
        }
        let mut grown = lock(&self.grown);
        let (segment, at) = place(page.index());
        let slot = &self.classes[page.class().index()][segment];
        let mut start = slot.load(Ordering::Acquire);
        if start.is_null() {
            start = self.grow(&mut grown, page, segment, at)?;
            slot.store(start, Ordering::Release);
        }
        // SAFETY: as above.
        Ok(unsafe { self.descriptor(start.add(offset_of(at))) })
    }

    /// A new segment, in which the page's descriptor is number `at`.
    fn grow(&self, grown: &mut Grown, page: PageId, segment: usize, at: usize) -> Result<*mut u8> {
        let bytes = (FIRST as usize * DESCRIPTOR).checked_shl(segment as u32).unwrap_or(usize::MAX);
        let first = PageId::new(page.class(), page.index() - at as u64);
        if let Some(first) = first
            && bytes <= self.arena.len() - grown.used
        {
            let start = grown.used;
            grown.used += bytes;
            grown.segments.push((start, first));
            // SAFETY: the segment lies in the arena.
            return Ok(unsafe { self.arena.start().as_ptr().add(start) });
        }
        let memory = Reservation::new(bytes)?;
        let start = memory.start().as_ptr();
        grown.others.push(memory);
        Ok(start)
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
        let page =
            SizeClass::new(leaf.class).and_then(|class| PageId::new(class, leaf.number * self.descriptors_per_os_page));
        let Some(first) = page.and_then(|page| self.find(page)) else { return };
        let address = ptr::from_ref(first.word).addr();
        let bytes = self.descriptors_per_os_page as usize * DESCRIPTOR;
        for memory in std::iter::once(&self.arena).chain(&lock(&self.grown).others) {
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
        let table = Table::new(4096).unwrap();
        let page = |index| PageId::new(SizeClass::MIN, index).unwrap();
        assert!(table.find(page(5)).is_none());
        let first = ptr::from_ref(table.find_or_reserve(page(5)).unwrap().word);
        for index in [4095, 4096, 100_000, 1 << 30] {
            table.find_or_reserve(page(index)).unwrap();
        }
        assert_eq!(ptr::from_ref(table.find(page(5)).unwrap().word), first);
        assert!(table.find(PageId::new(SizeClass::MAX, 5).unwrap()).is_none());
        for index in [0, 5, 255, 256, 4095, 4096, 100_000] {
            let offset = table.offset(&table.find_or_reserve(page(index)).unwrap()).unwrap();
            assert_eq!(table.page_at(offset), Some(page(index)));
            let (by_offset, by_page) = (table.at(offset).unwrap(), table.find(page(index)).unwrap());
            assert!(ptr::eq(by_offset.word, by_page.word) && ptr::eq(by_offset.generation, by_page.generation));
            assert!(!ptr::eq(by_page.word, by_page.generation));
        }
        assert!(table.at(4).is_none() && table.at(2048).is_none() && table.at(1 << 40).is_none());
    }
}
