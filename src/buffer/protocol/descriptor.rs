//! A page's descriptor: two words that say where the page is in memory.
//!
//! - **P1** Word 0 is the state and the frame. Word 1 is the generation of the frame's content, written before word 0
//!   names the frame; it does not fall while word 0 names a frame. The *ceiling* of all descriptors of a store rises to
//!   that generation before either is written, and never falls: who may see the ceiling need not look at word 1, which
//!   lies apart, so that looks at random are looks at little memory.
//! - **P2** Writers of word 1 hold the descriptor's lock. Evicting and touching need none: they change word 0 only, by
//!   compare-and-swap from what they saw.
//! - **P3** A reader is in an epoch, or has the frame in a slot, before the loads of [`Descriptor::read`]. So the frame
//!   cannot leave and come back between them, and the second look at word 0 proves that the generation is its.
//! - **P4** The word of a load carries a ticket that no other load ever has. Whoever finishes a load finds its own
//!   ticket, or was overtaken.
//! - **P5** All zero is evicted, so descriptors of evicted pages need no memory.

use super::super::sync::{AtomicU64, Ordering, Sabotage, release_unless, sabotaged};

/// Word 0: in the two lowest bits the state; of a page in memory the frame's address, of a load the ticket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Word(u64);

const HAS_FRAME: u64 = 0b10;
const TOUCHED: u64 = 0b01;
const LOADING: u64 = 0b01;
const STATE: u64 = 0b11;
const CLASS_SHIFT: u32 = 2;
const CLASS_MASK: u64 = 0b111_1100;
/// Frames start at multiples of this.
const FRAME_ALIGNMENT: u64 = 4096;

impl Word {
    pub(in super::super) const EVICTED: Self = Self(0);

    /// Being loaded, by the holder of the ticket.
    pub(in super::super) fn loading(ticket: u64) -> Self {
        Self(ticket << 2 | LOADING)
    }

    /// In memory at `address`, not touched yet. `class` is the size's logarithm.
    pub(in super::super) fn cooling(address: usize, class: u8) -> Self {
        debug_assert!((address as u64).is_multiple_of(FRAME_ALIGNMENT) && class < 32);
        Self(address as u64 | u64::from(class) << CLASS_SHIFT | HAS_FRAME)
    }

    pub(in super::super) fn is_evicted(self) -> bool {
        self.0 == 0
    }

    /// Whether the page is in memory: cooling or resident.
    #[inline(always)]
    pub(in super::super) fn has_frame(self) -> bool {
        self.0 & HAS_FRAME != 0
    }

    /// The ticket of the load, if there is one.
    pub(in super::super) fn ticket(self) -> Option<u64> {
        (self.0 & STATE == LOADING).then_some(self.0 >> 2)
    }

    /// The frame's address.
    #[inline(always)]
    pub(in super::super) fn address(self) -> usize {
        (self.0 & !(FRAME_ALIGNMENT - 1)) as usize
    }

    /// The logarithm of the frame's size.
    #[inline(always)]
    pub(in super::super) fn class(self) -> u8 {
        ((self.0 & CLASS_MASK) >> CLASS_SHIFT) as u8
    }

    /// The same frame, touched or not.
    #[inline(always)]
    pub(in super::super) fn same_frame(self, other: Self) -> bool {
        (self.0 ^ other.0) & !TOUCHED == 0
    }

    fn touched(self) -> Self {
        Self(self.0 | TOUCHED)
    }

    fn untouched(self) -> Self {
        Self(self.0 & !TOUCHED)
    }

    #[inline(always)]
    fn is_touched(self) -> bool {
        self.0 & TOUCHED != 0
    }
}

/// What a reader finds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Seen {
    /// The page as the reader wants it.
    Frame(Word),
    /// A newer version than the reader may see.
    Newer,
    /// Not in memory.
    Absent,
}

/// See the module.
#[derive(Clone, Copy)]
pub(in super::super) struct Descriptor<'a> {
    /// Word 0.
    pub(in super::super) word: &'a AtomicU64,
    /// Word 1.
    pub(in super::super) generation: &'a AtomicU64,
    pub(in super::super) ceiling: &'a AtomicU64,
}

impl Descriptor<'_> {
    /// Word 0.
    #[inline(always)]
    pub(in super::super) fn word(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    /// What a reader at `generation` finds. The caller has protected itself (P3), for a guard with the frame that it is
    /// going to compare.
    #[inline(always)]
    pub(in super::super) fn read(&self, generation: u64) -> Seen {
        let seen = self.find(generation);
        if let Seen::Frame(found) = seen
            && !found.is_touched()
        {
            self.touch(found);
        }
        seen
    }

    /// As [`Descriptor::read`], of which the policy is not to hear.
    #[inline(always)]
    pub(in super::super) fn find(&self, generation: u64) -> Seen {
        loop {
            let first = self.word();
            if !first.has_frame() {
                return Seen::Absent;
            }
            // Read after the word, so at least what the frame's generation made it.
            if self.ceiling.load(Ordering::Relaxed) <= generation {
                return Seen::Frame(first);
            }
            let found = self.generation.load(Ordering::Acquire);
            let again = Word(self.word.load(Ordering::Relaxed));
            if !again.same_frame(first) && !sabotaged(Sabotage::SkipReread) {
                continue;
            }
            if found > generation {
                return Seen::Newer;
            }
            return Seen::Frame(first);
        }
    }

    /// The only write of a hit, and only of the first since the policy asked.
    #[inline(never)]
    fn touch(&self, seen: Word) {
        // A failure means that somebody else touched it, or that it is gone: either way there is nothing to say.
        let _ = self.word.compare_exchange(seen.0, seen.touched().0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Evicted → loading. Under the lock.
    pub(in super::super) fn begin_load(&self, ticket: u64) -> bool {
        let loading = Word::loading(ticket);
        self.word.compare_exchange(0, loading.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Loading → cooling, unless the load was overtaken. Under the lock.
    pub(in super::super) fn finish_load(&self, ticket: u64, generation: u64, frame: Word) -> bool {
        if self.word() != Word::loading(ticket) && !sabotaged(Sabotage::SkipTicket) {
            return false;
        }
        self.set_generation(generation);
        self.word.store(frame.untouched().0, release_unless(Sabotage::RelaxedFrame));
        true
    }

    /// Before the frame is named.
    fn set_generation(&self, generation: u64) {
        // Who finds it high enough hands on what made it so, as whoever raises it does.
        if self.ceiling.load(Ordering::Relaxed) < generation && !sabotaged(Sabotage::SkipCeiling) {
            self.ceiling.fetch_max(generation, Ordering::Relaxed);
        }
        self.generation.store(generation, Ordering::Release);
    }

    /// Loading → evicted, unless the load was overtaken. Under the lock.
    pub(in super::super) fn cancel_load(&self, ticket: u64) -> bool {
        let loading = Word::loading(ticket);
        self.word.compare_exchange(loading.0, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whatever → cooling with a new version, or evicted. Returns what was there. Under the lock.
    pub(in super::super) fn publish(&self, generation: u64, frame: Option<Word>) -> Word {
        let word = frame.map_or(Word::EVICTED, Word::untouched);
        if sabotaged(Sabotage::FrameFirst) {
            let old = self.word.swap(word.0, Ordering::AcqRel);
            self.set_generation(generation);
            return Word(old);
        }
        // A reader that sees the frame sees its generation. One that sees the generation with the old frame takes that
        // for newer than it is, and looks elsewhere (P1).
        self.set_generation(generation);
        Word(self.word.swap(word.0, Ordering::AcqRel))
    }

    /// Resident → cooling. Returns whether the page was touched since this was last asked.
    pub(in super::super) fn cool(&self, seen: Word) -> bool {
        let (touched, untouched) = (seen.touched().0, seen.untouched().0);
        self.word.compare_exchange(touched, untouched, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Cooling → evicted. False if the page was touched, replaced or is gone.
    pub(in super::super) fn evict(&self, seen: Word) -> bool {
        self.word.compare_exchange(seen.untouched().0, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Evicted → cooling with the frame that was there, which somebody holds. Nothing was published since. Under the
    /// lock.
    pub(in super::super) fn restore(&self, generation: u64, frame: Word) -> bool {
        if !self.word().is_evicted() {
            return false;
        }
        self.set_generation(generation);
        self.word.compare_exchange(0, frame.untouched().0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// What a descriptor becomes when its memory is given back.
    #[allow(dead_code)]
    pub(in super::super) fn forget(&self) {
        self.generation.store(0, Ordering::Release);
    }
}
