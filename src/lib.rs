//! Vellum: a crash-consistent page store in one file.

mod error;
mod id;

pub mod disk;
pub mod format;
pub mod log;
pub mod map;
pub mod process;
pub mod space;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod memory;

pub use error::{Corruption, Error, Fault, Result, Structure};
pub use id::{
    BLOCK_BYTES, BLOCK_LENGTH, Block, CheckpointNumber, Extent, Generation, Incarnation, PageId, SizeClass, StoreId,
};
