//! The frames of one size class: their addresses, which of them have memory, and which of those are free.
//!
//! - **F1** Frames lie one after another in one reservation, each at a multiple of its size (up to 2 MiB).
//! - **F2** Memory comes and goes by *slabs*: one frame, or as many as an OS page holds. A slab's bytes are charged to the
//!   budget from before its first use until after it was given back.
//! - **F3** The lowest slab without memory gets it first, so at most one huge page of a class is partly in use until
//!   slabs are given back; a huge page of which a slab was given back is split for good, until all of it is free.
//! - **F4** A frame on the free list is nobody's. Its bytes are what its last page left, unless its memory is new.
//!
//! All of it is called under the manager's lock, but for what finds a frame's [`Meta`].
#![allow(unsafe_code)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::addresses;
use crate::error::Result;
use crate::id::SizeClass;
use crate::memory::{Hint, Reservation, huge_page_bytes};

/// What is known of a frame. All zero: free.
#[repr(C)]
#[derive(Default)]
pub(super) struct Meta {
    /// Guards without a slot; borrowers of a scratch page.
    pub(super) pins: AtomicU32,
    /// Handles of a private frame, and those that outlived its publication; then with the mark [`PUBLISHED`].
    pub(super) handles: AtomicU32,
    /// A [`Use`]. Written under the manager's lock.
    usage: AtomicU8,
    /// Whether all bytes are zero.
    is_zero: AtomicU8,
    /// The number of the store, where a page or a unit is in the frame; of the spiller, where a scratch page is.
    pub(super) store: AtomicU32,
    /// The policy's number, while the frame is listed with it; of a scratch page's that is not, [`NOT_LISTED`].
    pub(super) slot: AtomicU32,
    /// The page's index, the shard of the unit, or the spiller's key.
    pub(super) owner: AtomicU64,
    /// The generation of the page; of a scratch page, whether it was touched.
    pub(super) generation: AtomicU64,
}

const _: () = assert!(size_of::<Meta>() == 40);

/// In [`Meta::slot`]: the policy does not know the frame.
pub(super) const NOT_LISTED: u32 = u32::MAX;

/// Bytes of a frame that are brought into caches: of the smallest, all.
const WARMED: usize = 4096;
const CACHE_LINE: usize = 64;

/// In [`Meta::handles`]: the pool has taken the frame over.
pub(super) const PUBLISHED: u32 = 1 << 31;

/// What a frame is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Use {
    /// For nothing.
    Free = 0,
    /// A page or a unit is being loaded into it.
    Loading = 1,
    /// A writer's own.
    Private = 2,
    /// A page's newest version, named by its descriptor.
    Page = 3,
    /// An old version or a chunk, named by a store's table of units.
    Unit = 4,
    /// Taken from where it was named; perhaps still read.
    Limbo = 5,
    /// A scratch page's: never durable, and written elsewhere when memory is short.
    Scratch = 6,
}

impl Meta {
    pub(super) fn usage(&self) -> Use {
        match self.usage.load(Ordering::Acquire) {
            1 => Use::Loading,
            2 => Use::Private,
            3 => Use::Page,
            4 => Use::Unit,
            5 => Use::Limbo,
            6 => Use::Scratch,
            _ => Use::Free,
        }
    }

    pub(super) fn set_usage(&self, usage: Use) {
        self.usage.store(usage as u8, Ordering::Release);
    }
}

/// Where the frames of a class are: what can be known without the lock. Shared with the graveyard.
pub(super) struct Pool {
    class: SizeClass,
    frames: Reservation,
    metas: Reservation,
    /// The first frame's offset in the reservation.
    skipped: usize,
    capacity: u32,
}

impl Pool {
    /// Address space for `bytes` bytes of frames, or for as much as can be spared, but for one at least.
    pub(super) fn reserve(class: SizeClass, bytes: usize) -> Result<Self> {
        let frame = class.page_bytes() as usize;
        let alignment = frame.min(2 << 20);
        let wanted = bytes.checked_next_multiple_of(frame).unwrap_or(usize::MAX).max(2 << 20);
        let frames = addresses::reserve(wanted, (frame + alignment).min(wanted))?;
        let start = frames.start().addr().get();
        let skipped = start.next_multiple_of(alignment) - start;
        let capacity = u32::try_from((frames.len() - skipped) / frame).unwrap_or(u32::MAX);
        let metas = Reservation::new(capacity as usize * size_of::<Meta>())?;
        frames.start().as_ptr().expose_provenance();
        Ok(Self { class, frames, metas, skipped, capacity })
    }

    pub(super) fn class(&self) -> SizeClass {
        self.class
    }

    pub(super) fn frame_bytes(&self) -> usize {
        self.class.page_bytes() as usize
    }

    pub(super) fn address(&self, number: u32) -> NonNull<u8> {
        debug_assert!(number < self.capacity);
        // SAFETY: the frame lies within the reservation (F1).
        unsafe { self.frames.start().add(self.skipped + ((number as usize) << self.class.log2())) }
    }

    /// The number of the frame at `address`, if it is one of this pool's.
    pub(super) fn number(&self, address: usize) -> Option<u32> {
        let offset = address.checked_sub(self.frames.start().addr().get() + self.skipped)?;
        let number = u32::try_from(offset >> self.class.log2()).ok()?;
        (number < self.capacity).then_some(number)
    }

    pub(super) fn meta(&self, number: u32) -> &Meta {
        debug_assert!(number < self.capacity);
        // SAFETY: in the reservation, which is as long as all metas; zero bytes are one, and it has interior mutability.
        unsafe { self.metas.start().cast::<Meta>().add(number as usize).as_ref() }
    }

    /// Begins to bring the first bytes of a frame, which is soon to be written, and what is known of it, into the
    /// processor's caches.
    pub(super) fn warm(&self, number: u32) {
        bring_near(ptr::from_ref(self.meta(number)).cast());
        let start = self.address(number).as_ptr();
        // No frame is smaller.
        (0..WARMED).step_by(CACHE_LINE).for_each(|line| bring_near(start.wrapping_add(line)));
    }

    fn offset(&self, slab: u32, frames_per_slab: u32) -> usize {
        self.skipped + ((slab as usize * frames_per_slab as usize) << self.class.log2())
    }

    /// Gives back the memory of a frame that nobody uses nor ever will.
    ///
    /// # Safety
    /// Nobody uses the frame.
    pub(super) unsafe fn bury(&self, number: u32) -> Result<()> {
        let start = self.skipped + ((number as usize) << self.class.log2());
        // SAFETY: the caller's promise.
        unsafe { self.frames.give_back(start..start + self.frame_bytes()) }
    }
}

/// What the lock protects of a pool.
pub(super) struct PoolState {
    frames_per_slab: u32,
    slab_bytes: usize,
    huge: bool,
    /// Slabs from here on never had memory.
    fresh: u32,
    /// Slabs below without memory.
    holes: BinaryHeap<Reverse<u32>>,
    free: Vec<u32>,
    /// How many slabs of each huge page have memory, and whether the page was split.
    regions: Vec<Region>,
    committed_slabs: u32,
}

#[derive(Clone, Copy, Default)]
struct Region {
    slabs: u32,
    is_split: bool,
}

impl PoolState {
    /// For frames of `class`, where memory comes in OS pages of `page_bytes`; on huge pages if wanted.
    pub(super) fn new(class: SizeClass, page_bytes: usize, huge: bool) -> Self {
        let frame = class.page_bytes() as usize;
        let frames_per_slab = (page_bytes / frame).max(1) as u32;
        let slab_bytes = frame.max(page_bytes);
        Self {
            frames_per_slab,
            slab_bytes,
            huge,
            fresh: 0,
            holes: BinaryHeap::new(),
            free: Vec::new(),
            regions: Vec::new(),
            committed_slabs: 0,
        }
    }

    /// Bytes that get memory at once.
    pub(super) fn slab_bytes(&self) -> usize {
        self.slab_bytes
    }

    /// Frames that get memory at once.
    pub(super) fn frames_per_slab(&self) -> usize {
        self.frames_per_slab as usize
    }

    /// Frames with memory.
    pub(super) fn committed(&self) -> u64 {
        u64::from(self.committed_slabs) * u64::from(self.frames_per_slab)
    }

    /// Numbers of frames that ever had memory are below this.
    pub(super) fn end(&self) -> u32 {
        self.fresh * self.frames_per_slab
    }

    /// Frames with memory and nothing in them.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// A free frame, the one used last.
    pub(super) fn pop(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// The free frame that comes next.
    pub(super) fn next(&self) -> Option<u32> {
        self.free.last().copied()
    }

    /// Puts back a frame that nobody uses.
    pub(super) fn push(&mut self, number: u32) {
        self.free.push(number);
    }

    /// Whether there are addresses left for another slab.
    pub(super) fn can_grow(&self, pool: &Pool) -> bool {
        !self.holes.is_empty() || (self.fresh + 1).saturating_mul(self.frames_per_slab) <= pool.capacity
    }

    /// Gives memory to the lowest slab that has none, and its frames to the free list. The caller has charged it, and
    /// knows that the pool can grow.
    pub(super) fn grow(&mut self, pool: &Pool) {
        let slab = match self.holes.pop() {
            Some(Reverse(slab)) => slab,
            None => {
                self.fresh += 1;
                self.fresh - 1
            }
        };
        self.committed_slabs += 1;
        if self.huge {
            self.enter_region(pool, slab);
        }
        let first = slab * self.frames_per_slab;
        for number in (first..first + self.frames_per_slab).rev() {
            pool.meta(number).is_zero.store(1, Ordering::Relaxed);
            self.free.push(number);
        }
    }

    /// Gives back the memory of up to `slabs` slabs that are wholly free; returns of how many. Those with the highest
    /// numbers go.
    pub(super) fn shrink(&mut self, pool: &Pool, slabs: usize) -> usize {
        let mut numbers = std::mem::take(&mut self.free);
        numbers.sort_unstable();
        let per_slab = self.frames_per_slab as usize;
        let mut going: Vec<u32> = Vec::new();
        let mut kept = Vec::with_capacity(numbers.len());
        let mut end = numbers.len();
        while end > 0 {
            let slab = numbers[end - 1] / self.frames_per_slab;
            let start = numbers[..end].partition_point(|number| number / self.frames_per_slab < slab);
            match end - start == per_slab && going.len() < slabs {
                true => going.push(slab),
                false => kept.extend(numbers[start..end].iter().rev()),
            }
            end = start;
        }
        // The lowest are used first, so that the highest may go.
        self.free = kept;
        // Neighbours in one call; `going` falls.
        let mut done = 0;
        while done < going.len() {
            let mut run = 1;
            while done + run < going.len() && going[done + run] + run as u32 == going[done] {
                run += 1;
            }
            self.give_back(pool, going[done + run - 1], run as u32);
            done += run;
        }
        going.len()
    }

    fn give_back(&mut self, pool: &Pool, first: u32, slabs: u32) {
        let start = pool.offset(first, self.frames_per_slab);
        let end = start + slabs as usize * self.slab_bytes;
        // SAFETY: the frames were free, and are on no list now (F4).
        let given = unsafe { pool.frames.give_back(start..end) };
        assert!(given.is_ok(), "F2: the slabs lie in the reservation, and the system takes back what it gave");
        for slab in first..first + slabs {
            self.holes.push(Reverse(slab));
            if self.huge {
                self.leave_region(pool, slab);
            }
        }
        self.committed_slabs -= slabs;
    }

    /// Where the huge page that holds a slab lies, if slabs are smaller than it.
    fn region(&self, pool: &Pool, slab: u32) -> Option<usize> {
        let huge = huge_page_bytes();
        (self.slab_bytes < huge).then(|| (pool.offset(slab, self.frames_per_slab) - pool.skipped) / huge)
    }

    fn enter_region(&mut self, pool: &Pool, slab: u32) {
        let Some(at) = self.region(pool, slab) else { return };
        if self.regions.len() <= at {
            self.regions.resize(at + 1, Region::default());
        }
        self.regions[at].slabs += 1;
        if self.regions[at].slabs == 1 && self.regions[at].is_split {
            self.regions[at].is_split = false;
            self.hint(pool, at, Hint::HugePages);
        }
    }

    fn leave_region(&mut self, pool: &Pool, slab: u32) {
        let Some(at) = self.region(pool, slab) else { return };
        self.regions[at].slabs -= 1;
        if !self.regions[at].is_split {
            self.regions[at].is_split = true;
            // Else the system would make the huge page whole again some day, with memory that nobody has charged.
            self.hint(pool, at, Hint::SmallPages);
        }
    }

    fn hint(&self, pool: &Pool, region: usize, hint: Hint) {
        let start = pool.skipped + region * huge_page_bytes();
        // A refusal costs speed, or the memory of one huge page.
        let _ = pool.frames.hint(start..(start + huge_page_bytes()).min(pool.frames.len()), hint);
    }

    /// Asks for huge pages, once.
    pub(super) fn prepare(&self, pool: &Pool) {
        if self.huge {
            // Where there are none, it works without.
            let _ = pool.frames.hint(.., Hint::HugePages);
        }
    }
}

/// Begins to bring a line of memory, which is soon to be written, into the processor's caches.
#[inline(always)]
pub(super) fn bring_near(at: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: a hint reads and writes nothing, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(at.cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// Whether the frame's bytes are known to be zero; they are not, from now on. The caller has the frame to itself.
pub(super) fn take_zero(meta: &Meta) -> bool {
    let is_zero = meta.is_zero.load(Ordering::Relaxed) != 0;
    if is_zero {
        meta.is_zero.store(0, Ordering::Relaxed);
    }
    is_zero
}
