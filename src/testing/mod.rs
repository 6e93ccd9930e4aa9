//! Crash tests (feature `testing`): the simulated disk in use. Vellum's own tests stand on this, and those of a
//! database on Vellum can.
//!
//! ```text
//!  Step, Step, …  ──run──►  Store on a SimulatedDisk  ──recording──►  crash points, with what was acknowledged
//!        │                                                                  │ every state, or a seeded choice
//!        └──────────►  Model: pages by generation  ──compare──  recovered store ◄── Image
//! ```
//! [`History::step`] runs a step on a store and on the model; [`Explorer`] takes the store through every state that a
//! power cut could have left, recovers each, and compares. [`PagerHistory`] does the same with transactions on a pager:
//! deferred, started and waited for later, side by side. The checks:
//! - what is recovered is one committed state, whole, and not older than the last one acknowledged;
//! - no block is claimed twice, and exactly the unclaimed ones are free (the reference for the rules of reuse);
//! - the store works on: it commits, checkpoints, and opens again.

mod explore;
mod model;
mod pager_history;
mod workload;

pub use explore::{Explorer, Failure, Tally};
pub use model::{Model, ModelState, page_bytes};
pub use pager_history::{PageStep, PagerHistory, PagerStep, tiny_options};
pub use workload::{History, Outcome, Step, Views, tiny, tiny_and_reusing};
