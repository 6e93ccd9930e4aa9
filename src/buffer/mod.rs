//! The buffer: pages in memory, under one budget of bytes, for readers that pay for little but reading.
//!
//! | | what it is |
//! | --- | --- |
//! | [`BufferManager`] | pools of frames for pages of every size class, and the budget; shared by any number of stores |
//! | [`StorePages`] | the pages of one store: guards, scopes, publication, reading ahead |
//! | [`FrameGuard`] | bytes for as long as one likes, in whatever thread |
//! | [`Scope`] | bytes for as long as a closure runs, for less |
//! | [`Frame`] | memory for a page that nobody else sees yet |
//! | [`MemoryBudget`] | memory for what is no page, out of the same bytes |
//! | [`Scratch`], [`ScratchPage`] | pages that are never durable, and go to a temporary file when memory is short |
//! | [`Swip`] | a reference that remembers where its page's descriptor is |
//!
//! A store is a [`PageSource`], a state of it a [`ReadState`]; the room knows nothing else of either. Published bytes
//! never change, so a reader needs no latch, and what it must be spared is only that its frame is used again under it.
//!
//! # A page's descriptor
//!
//! Two words, which lie apart: state and frame; and the generation of the frame's content (P1 to P5 in
//! `protocol/descriptor.rs`).
//!
//! ```text
//!                     begin_load (lock)               finish_load (lock)
//!      ┌──────────┐ ────────────────────▶ ┌─────────┐ ────────────────▶ ┌─────────┐     read      ┌──────────┐
//!      │ evicted  │                       │ loading │                   │ cooling │ ────────────▶ │ resident │
//!      │ all zero │ ◀──────────────────── │ ticket  │                   │ frame   │ ◀──────────── │ frame    │
//!      └──────────┘  cancel_load (lock)   └─────────┘                   └─────────┘ policy asks   └──────────┘
//!        ▲  │  ▲                                                          │  ▲  ▲                    │
//!        │  │  └───────────────────── evict, by the policy ───────────────┘  │  │                    │
//!        │  └──────────────────────── restore (lock), held by a guard ───────┘  │                    │
//!        └── publish (lock), absent, from every state      publish (lock), frame, from every state ──┘
//! ```
//!
//! | transition | function | who |
//! | --- | --- | --- |
//! | evicted → loading | `begin_load` | the first who misses; others wait for the ticket |
//! | loading → cooling | `finish_load` | the same, if its ticket is there still |
//! | loading → evicted | `cancel_load` | the same, on an error, or if its version is not the newest |
//! | cooling → resident | `read` | the first reader since the policy asked: the only write of a hit |
//! | resident → cooling | `cool` | the policy, asking whether the page was touched |
//! | cooling → evicted | `evict` | the policy's choice |
//! | evicted → cooling | `restore` | the evictor, if it turns out that a guard holds the frame |
//! | any → cooling, evicted | `publish` | a commit |
//!
//! # When a frame may be used again
//!
//! A frame that left its descriptor is in limbo until nobody reads it: no slot and no counter names it, and every thread
//! in a scope entered that scope later (P6 to P10 in `protocol/record.rs`). Readers say what they read *before* they
//! look, without a fence where the system has `membarrier`: the evictor, who comes rarely and takes many frames at once,
//! makes the fence for all. So a hit writes nothing that another thread reads, but for the first touch after the policy
//! asked.
//!
//! | who reads | is seen by | costs |
//! | --- | --- | --- |
//! | a scope | the epoch in its thread's record | two stores a scope |
//! | a guard | a slot of its thread's record | two stores |
//! | a guard beyond the slots, a clone | a counter of the frame | a shared write, twice |
//!
//! # Invariants
//!
//! F1 to F4 in `pool.rs` (memory of frames), P1 to P10 in `protocol/` (descriptors, slots, epochs), B1 to B4 in
//! `pages.rs` (loading and publishing), X1 to X3 and T1 to T3 in `scratch/`, E1 to E10 in [`policy`] (eviction); and of
//! all together:
//!
//! - **U1** The bytes charged to the budget are: frames with memory, and what is kept for each of them; OS pages of
//!   descriptors of which one is not evicted; the policy's memory; what users reserved. They do not exceed it.
//! - **U2** Memory that is not charged: a part of a huge page for each class in use, the threads' records, the
//!   entries of units, of loads under way and of scratch pages; and what the policy has grown by, until room for it
//!   has come about: at the next arrivals, unless all is held.
//! - **U3** Nothing waits for ever: whoever finds no memory evicts, has cold scratch pages written, waits for loads and
//!   scopes of others as long as there are any (ten seconds at most), and then says who holds it.
//!
//! # Threads
//!
//! All types are for any number of threads; [`Scope`] stays in its own. Locks, in the order in which they are taken: the
//! room's (one a manager, on misses and publications only), a shard's (descriptors or units), a wait's. No lock is held
//! during input and output, nor in code of the caller's.

mod addresses;
mod budget;
mod frame;
mod graveyard;
mod guard;
mod load;
mod manager;
mod pages;
pub mod policy;
mod pool;
mod prefetch;
mod protocol;
mod publish;
mod room;
mod scope;
mod scratch;
mod shard;
mod source;
mod spill;
mod stats;
mod store;
mod swip;
mod sync;
mod table;
#[cfg(test)]
mod tests;
mod thread;
mod units;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use budget::{BudgetMemory, BudgetReservation, MemoryBudget};
pub use frame::Frame;
pub use guard::FrameGuard;
pub use manager::BufferManager;
pub use pages::StorePages;
pub use publish::{Change, ChunkChange, Newest};
pub use scope::{Scope, Touch};
pub use scratch::{Scratch, ScratchOptions, ScratchPage, ScratchRead, ScratchStats, ScratchWrite};
pub use source::{PageSource, ReadState};
pub use stats::{BufferStats, ClassStats, PrefetchBy};
pub use swip::Swip;

/// Locks. A thread that panicked while it held the lock did so between two of its steps, each of which leaves things
/// whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
