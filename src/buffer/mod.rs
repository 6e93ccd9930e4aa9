//! The buffer: pages in memory, for readers that pay for nothing but reading.

mod budget;
mod frame;
mod graveyard;
mod guard;
mod manager;
mod pages;
pub mod policy;
mod pool;
mod prefetch;
mod protocol;
mod publish;
mod room;
mod scope;
mod second_chance;
mod shard;
mod source;
mod stats;
mod store;
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
pub use publish::{Change, Newest};
pub use scope::Scope;
pub use source::{PageSource, ReadState};
pub use stats::{BufferStats, ClassStats};

/// Locks. A thread that panicked while it held the lock did so between two of its steps, each of which leaves things
/// whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
