//! What processes tell each other about one file: who may write, and what readers still need.
//!
//! - **P1** At most one writer has a file open for writing, in any process of any machine that sees the same locks. The
//!   lock is on the file itself (its inode), so another name or a link is the same file; the kernel drops it with its
//!   holder. A file system that refuses locks is an error, never ignored.
//! - **P2** What a reader of another process pins is known to the writer before it releases a block: the order of
//!   calls that makes this true is in [`PinTable`].
//!
//! Callers: `pager` (lock, pins), `reader`. Knows nothing of formats or stores.

mod entry;
mod folder;
mod lock;
mod pins;
mod registration;
#[cfg(test)]
mod tests;
mod writer;

pub use lock::FileLock;
pub use pins::{NoReaders, PinTable, Pinned, PublishedState, ReaderPin};
pub use registration::{ReaderEntry, Registration, Told, readers};
pub use writer::WriterTable;
