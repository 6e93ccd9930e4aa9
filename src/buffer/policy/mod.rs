//! Which page gives up its frame: the eviction policies, and what the buffer manager and a policy promise each other.
//!
//! A read of a page in memory must cost nothing but the read. So it calls nobody, takes no lock, and writes at most one
//! bit: that the page was *touched*. A policy sees a page when it arrives, may read and clear its bit when a victim is
//! wanted, and learns when it leaves. No more.
//!
//! The room of a policy is one lock of the manager's: it is called on misses, on frees and by whoever evicts, never by a
//! reader that finds its page.
//!
//! # What the manager promises
//!
//! - **E1** A [`Slot`] is the number of a frame that holds a page, dense and from zero, the lowest free number first: a
//!   policy's memory grows with the highest it has seen. Between `admit` and the slot's end (named by `victim`,
//!   `remove`d, or the old one of `replace`) it is not admitted again.
//! - **E2** The [`PageHash`] is a good hash of the page's identity (store and page id), the same whenever the page
//!   comes back, whichever version and frame. Policies remember it of pages that have left.
//! - **E3** A slot's bit is clear when it is admitted, and set by reads from then on. The access that a page was loaded
//!   for is none of them: a scope that runs again after its miss clears the bits of what it loaded when it is done (or
//!   does not set them). Where that access is still to come (a prefetch), the slot is admitted as [`Arrival::Ahead`].
//!   Else one access looks like two, and a scan like a hot set: measured, a third of the default's advantage is gone.
//! - **E4** A victim that could not be evicted after all goes back by [`restore`](EvictionPolicy::restore).
//! - **E5** What [`memory_bytes`](EvictionPolicy::memory_bytes) says is charged to the budget.
//!
//! # What a policy promises
//!
//! - **E6** `victim` names an admitted slot, which is thereby no longer admitted, and only one for which
//!   [`Frames::take`] has just said yes.
//! - **E7** `victim` ends whatever it is answered: it asks at most `4 n + 4` questions of `n` admitted slots. It returns
//!   `None` only if every admitted slot refused to be taken in this call.
//! - **E8** All else is O(1), amortised over the slots admitted; refusals apart, so is `victim`.
//! - **E9** Memory is bounded: [`BYTES_PER_SLOT`] for each slot up to the highest seen, in a vector that may hold up to
//!   twice that as it grows; and for pages that have left two tables at most, of [`BYTES_PER_GHOST`] for each 4 KiB of the
//!   frames that were admitted at once (or for each half of a slot, if that is less), and a quarter more as they grow.
//! - **E10** The same calls with the same answers give the same victims: randomness comes from the seed.
//!
//! # Sizes
//!
//! Frames have 4 KiB to 2 GiB. All queues are measured in bytes: a share for new pages, the memory of pages that have
//! left, how old a page is. The order of victims does not depend on size, so a large page neither stays nor goes
//! because it is large: the manager asks until enough bytes are free.
//!
//! # Which
//!
//! [`WeighedAges`] is the default ([`default_policy`]); why, and the hit rates of all, are in ARCHITECTURE.md ("Eviction").
//! The others stay for comparison, and for whoever knows the accesses better. They are simple enough to be written by
//! users too: the trait is public.

mod clock;
mod cooling;
mod ghosts;
mod queues;
mod s3_fifo;
mod sieve;
#[cfg(test)]
mod tests;
mod weighed_ages;

use std::fmt::Debug;

pub use clock::Clock;
pub use cooling::Cooling;
pub use s3_fifo::S3Fifo;
pub use sieve::Sieve;
pub use weighed_ages::WeighedAges;

use crate::id::SizeClass;

/// What is kept for a frame.
pub const BYTES_PER_SLOT: usize = 20;
/// What is kept for a page that has left, with the room that the table leaves.
pub const BYTES_PER_GHOST: usize = 12;

/// The number of a frame that holds a page, dense within the manager (E1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// A hash of a page's identity (E2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageHash(pub u64);

/// How a page came into its frame (E3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Whoever loaded or wrote it has had it, or will not touch it by that: the next touch is another access.
    Read,
    /// It is about to be read: the first touch is what it was loaded for, and says nothing of its future.
    Ahead,
}

/// What a policy may ask of the frames when a victim is wanted.
pub trait Frames {
    /// Whether the page was touched since this was last asked, or since it was admitted. Clears the bit.
    fn touched(&mut self, slot: Slot) -> bool;

    /// Takes the frame from its page. False if that may not be: it is pinned, or in transit.
    fn take(&mut self, slot: Slot) -> bool;
}

/// Decides which page gives up its frame. The contract, E1 to E10, is the module's.
pub trait EvictionPolicy: Debug + Send {
    /// As in options, statistics and benchmarks.
    fn name(&self) -> &'static str;

    /// A frame of this class now holds a page.
    fn admit(&mut self, slot: Slot, page: PageHash, class: SizeClass, arrival: Arrival);

    /// The page has gone, and not for want of memory: freed, or its store closed. It is not remembered.
    fn remove(&mut self, slot: Slot);

    /// A new version of the page is in another frame of the same class: `new` has the place of `old`, which is no
    /// longer admitted. They may be the same.
    fn replace(&mut self, old: Slot, new: Slot);

    /// The slot to evict, already taken. `None` if all refuse.
    fn victim(&mut self, frames: &mut dyn Frames) -> Option<Slot>;

    /// The last victims could not be evicted after all, this among them. It counts as touched.
    fn restore(&mut self, slot: Slot, page: PageHash, class: SizeClass);

    /// Bytes of memory held.
    fn memory_bytes(&self) -> usize;
}

/// What a buffer manager uses if it is not told otherwise.
pub fn default_policy() -> Box<dyn EvictionPolicy> {
    Box::new(WeighedAges::new())
}

/// Every policy of this module, the default first. The seed is for those that draw at random.
pub fn built_in(seed: u64) -> Vec<Box<dyn EvictionPolicy>> {
    vec![
        default_policy(),
        Box::new(S3Fifo::new()),
        Box::new(Sieve::new()),
        Box::new(Clock::new()),
        Box::new(Cooling::new(seed)),
    ]
}
