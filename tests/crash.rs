//! Power cuts: every state that one could have left, for every short workload, and a choice for long ones.
//!
//! `VELLUM_CRASH=long` tries many more (see README); `VELLUM_SEED` replays a sampled one.
#![allow(clippy::unwrap_used)]

#[path = "crash/exhaustive.rs"]
mod exhaustive;
#[path = "crash/pager.rs"]
mod pager;
#[path = "crash/random.rs"]
mod random;
#[path = "crash/reopened.rs"]
mod reopened;
#[path = "crash/sampled.rs"]
mod sampled;
#[path = "pager/watched.rs"]
mod watched;
