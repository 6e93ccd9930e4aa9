//! Where pages of the newest state lie, found in one step: a table by page index beside the trees.
//!
//! - **T1** A slot says: from generation `since` on, up to the newest state, the page lies in these blocks, and they
//!   have been verified. A view at or after `since` may use it; an older one asks its own trees.
//! - **T2** A refresh first says what the newest generation will be, then forgets the slots of all pages that change,
//!   then shows the state. A slot is filled only while `newest` is still the generation whose trees were asked; that is
//!   asked with the slot in hand. So no view of the new state meets a place of the old one.
//! - **T3** Pages that were made together mostly lie together. So where a page lies can be guessed from its index and
//!   little memory, and the processor goes on to the page while the slot, which decides, is still on its way to it.
#![allow(unsafe_code)]

use std::array;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::id::{Block, Generation, PageId, SizeClass};
use crate::memory::{Hint, Reservation};

/// Slots of a class, if the system gives so much address space: 4 TiB of pages of 4 KiB. It becomes memory as it is
/// touched, and stands on huge pages, since a look at a slot is a look at a random place.
const SLOTS_WANTED: usize = 1 << 30;
/// At least so many: others are looked up in the trees.
const SLOTS_LEAST: usize = 1 << 16;

/// Pages that are guessed by one distance, and how many distances there are: 256 KiB of pages of 4 KiB, and 64 KiB.
const RUN: u64 = 64;
const DISTANCES: usize = 16384;

/// A slot that somebody has in hand.
const BUSY: u64 = u64::MAX;
/// A slot that knows nothing.
const EMPTY: u64 = 0;
/// Bits of a slot that are the block's number; blocks beyond 4 PiB of file are looked up in the trees.
const BLOCK_BITS: u32 = 40;
const BLOCK_MASK: u64 = (1 << BLOCK_BITS) - 1;
/// The other bits are the low ones of `since`.
const SINCE_MASK: u64 = (1 << (64 - BLOCK_BITS)) - 1;

/// See the module.
#[derive(Debug)]
pub(super) struct Table {
    classes: [OnceLock<Slots>; SizeClass::COUNT],
    newest: AtomicU64,
}

/// The slots of one class, by page index. None where the system gives no memory for them.
#[derive(Debug)]
struct Slots {
    memory: Option<Reservation>,
    count: u64,
    /// One more than the largest index ever filled.
    filled: AtomicU64,
    /// For each run of indices, the low bits of block minus index of the one filled last (T3): enough for 16 TiB of file.
    distances: Box<[AtomicU32]>,
}

/// Block and `since` in one word, so that a look at random is a look at little memory. Zero bytes are an empty slot.
#[derive(Debug)]
#[repr(transparent)]
struct Slot(AtomicU64);

impl Table {
    pub(super) fn new(newest: Generation) -> Self {
        Self { classes: array::from_fn(|_| OnceLock::new()), newest: AtomicU64::new(newest.0) }
    }

    /// The first block of a page in the state of `generation`, if it is known.
    #[inline]
    pub(super) fn find(&self, page: PageId, generation: Generation) -> Option<Block> {
        let slots = self.classes[page.class().index()].get()?;
        let word = slots.get(page.index())?.0.load(Ordering::Acquire);
        if word == EMPTY || word == BUSY {
            return None;
        }
        // Of `since` the low bits are kept: it is taken for the newest generation that has them. That is never too old,
        // since `newest` is asked after the slot.
        let newest = self.newest.load(Ordering::Relaxed);
        let since = newest.wrapping_sub(newest.wrapping_sub(word >> BLOCK_BITS) & SINCE_MASK);
        (since <= generation.0).then(|| Block(slots.as_guessed(page.index(), word & BLOCK_MASK)))
    }

    #[inline]
    fn slot(&self, page: PageId) -> Option<&Slot> {
        self.classes[page.class().index()].get()?.get(page.index())
    }

    fn slot_made(&self, page: PageId) -> Option<&Slot> {
        let slots = self.classes[page.class().index()].get_or_init(Slots::new);
        let slot = slots.get(page.index())?;
        slots.filled.fetch_max(page.index() + 1, Ordering::Relaxed);
        Some(slot)
    }

    /// Remembers for guesses how far from its index the page lies.
    fn note_distance(&self, page: PageId, block: Block) {
        if let Some(slots) = self.classes[page.class().index()].get() {
            slots.distance(page.index()).store(block.0.wrapping_sub(page.index()) as u32, Ordering::Relaxed);
        }
    }

    /// Keeps that the page has lain in `block` since the generation `since`, as the trees of the state of `asked` say.
    pub(super) fn fill(&self, page: PageId, block: Block, since: Generation, asked: Generation) {
        if asked.0 != self.newest.load(Ordering::Relaxed) || block.0 == 0 || block.0 >= 1 << BLOCK_BITS {
            return;
        }
        let Some(Slot(slot)) = self.slot_made(page) else { return };
        if slot.compare_exchange(EMPTY, BUSY, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return;
        }
        fence(Ordering::SeqCst);
        let word = match self.newest.load(Ordering::Relaxed) == asked.0 {
            true => block.0 | since.0 << BLOCK_BITS,
            false => EMPTY,
        };
        slot.store(if word == BUSY { EMPTY } else { word }, Ordering::Release);
        self.note_distance(page, block);
    }

    /// Forgets these pages: they differ in the state of `newest`, which is to be shown.
    pub(super) fn forget(&self, pages: &[PageId], newest: Generation) {
        self.announce(newest);
        pages.iter().filter_map(|page| self.slot(*page)).for_each(Slot::forget);
    }

    /// Forgets all pages.
    pub(super) fn forget_all(&self, newest: Generation) {
        self.announce(newest);
        for slots in self.classes.iter().filter_map(OnceLock::get) {
            let used = (0..slots.filled.load(Ordering::Relaxed)).filter_map(|index| slots.get(index));
            // Whoever fills an empty one later asks for `newest` first.
            used.filter(|slot| slot.0.load(Ordering::Relaxed) != EMPTY).for_each(Slot::forget);
        }
    }

    fn announce(&self, newest: Generation) {
        self.newest.store(newest.0, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }
}

impl Slots {
    fn new() -> Self {
        let bytes = |slots: usize| slots * size_of::<Slot>();
        let memory = Reservation::at_most(bytes(SLOTS_WANTED), bytes(SLOTS_LEAST)).ok();
        if let Some(memory) = &memory {
            // Without huge pages it is only slower.
            let _ = memory.hint(.., Hint::HugePages);
        }
        let count = memory.as_ref().map_or(0, |memory| (memory.len() / size_of::<Slot>()) as u64);
        let distances = (0..DISTANCES).map(|_| AtomicU32::new(0)).collect();
        Self { memory, count, filled: AtomicU64::new(0), distances }
    }

    #[inline]
    fn distance(&self, index: u64) -> &AtomicU32 {
        &self.distances[(index / RUN) as usize % DISTANCES]
    }

    /// `block`, which the slot says. Where it was to be guessed, what is returned was not waited for: the branch is
    /// foreseen, and nothing after it depends on the slot.
    #[inline]
    fn as_guessed(&self, index: u64, block: u64) -> u64 {
        let guess = u64::from((index as u32).wrapping_add(self.distance(index).load(Ordering::Relaxed)));
        let guessed = opaque(guess);
        match block == guess {
            true => guessed,
            false => not_guessed(block),
        }
    }

    #[inline]
    fn get(&self, index: u64) -> Option<&Slot> {
        let memory = self.memory.as_ref().filter(|_| index < self.count)?;
        // SAFETY: the slot lies within the reservation, which lives as long as `self`, is aligned for it, and is used
        // as slots only; zero bytes are one, and it changes by atomic operations.
        Some(unsafe { memory.start().cast::<Slot>().add(index as usize).as_ref() })
    }
}

/// `guess`, but the compiler does not know that. Else it would find out that what it returns is what it compared with,
/// and return that.
#[inline(always)]
fn opaque(mut guess: u64) -> u64 {
    #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("/* {guess} */", guess = inout(reg) guess, options(nomem, nostack, preserves_flags));
    }
    #[cfg(any(not(any(target_arch = "x86_64", target_arch = "aarch64")), miri))]
    {
        guess = std::hint::black_box(guess);
    }
    guess
}

/// Apart, so that there is a branch.
#[cold]
#[inline(never)]
fn not_guessed(block: u64) -> u64 {
    block
}

impl Slot {
    fn forget(&self) {
        while self.0.swap(BUSY, Ordering::Acquire) == BUSY {
            std::hint::spin_loop();
        }
        self.0.store(EMPTY, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(index: u64) -> PageId {
        PageId::new(SizeClass::MIN, index).unwrap()
    }

    #[test]
    fn a_place_is_for_views_since_it_is_right() {
        let table = Table::new(Generation(10));
        for index in [0, 1, 1023, 1024, 5_000_000] {
            assert_eq!(table.find(page(index), Generation(10)), None);
            table.fill(page(index), Block(index + 100), Generation(7), Generation(10));
            assert_eq!(table.find(page(index), Generation(10)), Some(Block(index + 100)));
            assert_eq!(table.find(page(index), Generation(7)), Some(Block(index + 100)));
            assert_eq!(table.find(page(index), Generation(6)), None);
        }
        table.forget(&[page(1)], Generation(11));
        assert_eq!(table.find(page(1), Generation(11)), None);
        assert_eq!(table.find(page(0), Generation(11)), Some(Block(100)));
        // Who asked the trees of the old state comes too late.
        table.fill(page(1), Block(9), Generation(7), Generation(10));
        assert_eq!(table.find(page(1), Generation(11)), None);
        table.fill(page(1), Block(55), Generation(11), Generation(11));
        assert_eq!(table.find(page(1), Generation(11)), Some(Block(55)));
        assert_eq!(table.find(page(1), Generation(10)), None);
        table.forget_all(Generation(12));
        assert!((0..2000).all(|index| table.find(page(index), Generation(12)).is_none()));
        // After very many generations older views are sent to their trees, never to a wrong place.
        table.fill(page(7), Block(70), Generation(11), Generation(12));
        let later = Generation(12 + 5 * (SINCE_MASK + 1));
        table.forget(&[], later);
        assert_eq!(table.find(page(7), later), Some(Block(70)));
        assert_eq!(table.find(page(7), Generation(12)), None);
        table.forget_all(Generation(later.0 + 1));
        let later = Generation(later.0 + 1);
        // Beyond its reach the table knows nothing, and says so.
        let beyond = page(1 << 40);
        table.fill(beyond, Block(5), Generation(1), later);
        assert_eq!(table.find(beyond, later), None);
        table.fill(page(8), Block(1 << BLOCK_BITS), Generation(1), later);
        assert_eq!(table.find(page(8), later), None);
    }

    #[test]
    fn no_thread_sees_the_place_of_another_time() {
        let table = Table::new(Generation(1));
        let shown = AtomicU64::new(1);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while shown.load(Ordering::Acquire) < 20_000 {
                        let generation = shown.load(Ordering::Acquire);
                        match table.find(page(3), Generation(generation)) {
                            // In each state the page lies in the block of the state's number; nothing newer may show.
                            Some(block) => assert_eq!(block.0, generation),
                            None => {
                                table.fill(page(3), Block(generation), Generation(generation), Generation(generation))
                            }
                        }
                    }
                });
            }
            for generation in 2..=20_000 {
                table.forget(&[page(3)], Generation(generation));
                shown.store(generation, Ordering::Release);
            }
        });
    }
}
