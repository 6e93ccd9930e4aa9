//! The persistent tree: positions to block pointers. A generation is a root.
//!
//! One kind of tree serves everywhere: page maps (page index to page), the chunks of a large page, the leaves of the
//! bitmap, the catalogue and the deferred list. Owns: look-up, change, iteration, comparison and writing of trees.
//! Does not own: where a node is put and when its old place is free again (`store`).
//!
//! Invariants:
//! - **M1** A [`Tree`] is a value: a clone never changes. Changing one copies only nodes that another clone shares.
//! - **M2** Changing a tree reads nothing: a changed node is its place on disk (its *base*) and the slots that differ.
//!   So replaying a log costs in proportion to the log, whatever the store's size.
//! - **M3** A node is believed only if its checksum is the one its parent holds and its header names the place where
//!   it was looked for, also when it is in memory already: so a walk meets each block of the file once at most.
//! - **M4** A node's birth is the youngest birth below it; so equal births at one position in one line of history
//!   mean equal content, and [`diff`] skips such subtrees. Moves change addresses, not births.
//!
//! Callers: `store`, `pager` (views), `reader`, `admin`. Thread rules: trees are `Send + Sync` values; a [`Nodes`] is
//! shared by all threads.

mod compare;
mod dirty;
mod footprint;
mod many;
mod nodes;
mod slots;
mod tree;
mod write;

pub use compare::{Difference, Exclusive, diff, exclusive};
pub use footprint::Footprint;
pub use nodes::Nodes;
pub(crate) use nodes::PointerHasher;
pub use tree::{Shape, Tree};
pub use write::{Home, Replaced, TreeWriter};
