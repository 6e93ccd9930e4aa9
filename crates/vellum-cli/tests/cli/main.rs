//! The real program on real files: what it prints, what it leaves behind, and how it ends.

#![allow(clippy::unwrap_used, reason = "the lint knows test functions, not the helpers beside them")]

mod bad_input;
mod inspection;
mod stress;
mod support;
mod trees;
mod unheard;
