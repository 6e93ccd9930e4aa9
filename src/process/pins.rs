//! What readers in other processes pin, and what the writer tells them.

use std::fmt;

use crate::error::Result;
use crate::id::{CheckpointNumber, Generation, Incarnation, StoreId};

/// What one reader of another process needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReaderPin {
    /// The states it needs.
    pub pinned: Pinned,
    /// Who it is, for people: a process number, a program's name.
    pub holder: String,
}

/// The states that a reader needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinned {
    /// Every state: nothing at all may be released. The reader is about to choose one, and nothing is known of which.
    Everything,
    /// This state and every newer one: the reader is about to choose among them. (It may stay so for long: a process
    /// can be stopped at any instruction.)
    From {
        /// The checkpoint whose trees the oldest of them stands on.
        base: CheckpointNumber,
        /// The oldest.
        generation: Generation,
    },
    /// One state.
    State {
        /// The checkpoint whose trees it reads.
        base: CheckpointNumber,
        /// The generation it shows.
        generation: Generation,
    },
}

/// What the writer tells readers: the newest state they may show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedState {
    /// The newest checkpoint whose superblock is durable.
    pub base: CheckpointNumber,
    /// The newest generation that is synced, as all before it are.
    pub synced: Generation,
    /// The writer's own number. A reader that finds another one knows that the writer is another.
    pub incarnation: Incarnation,
    /// The store: a path may be given to another one.
    pub store: StoreId,
}

/// What the writer and readers of other processes share.
///
/// The order that keeps a reader's blocks from reuse, whatever the two do at the same time:
///
/// | reader | writer |
/// | --- | --- |
/// | 1. write [`Pinned::Everything`] | 1. [`publish`](PinTable::publish) the new state |
/// | 2. fence | 2. fence (within `publish`, or within `pins`) |
/// | 3. read the published state | 3. ask for the [`pins`](PinTable::pins) |
/// | 4. write [`Pinned::State`] of it | 4. release what none of them needs |
///
/// If the reader's step 3 misses the writer's step 1, the writer's step 3 sees the reader's step 1 and releases nothing.
/// (Or not quite nothing: what the writer had published before it last looked, and did not see the reader's step 1 yet,
/// the reader's step 3 cannot miss. So it chooses that state or a newer one: [`Pinned::From`]. Else many readers that
/// refresh all the time, each for an instant, would together hold everything for ever.)
/// So the writer calls `publish` *before* `pins`, and uses an answer of `pins` only for what died before it asked.
///
/// Callers: `pager`'s writer, one thread at a time.
pub trait PinTable: Send + Sync + fmt::Debug {
    /// What readers pin, those that are gone left out.
    ///
    /// # Errors
    /// What kept it from looking. The caller must then release nothing: it does not know.
    fn pins(&self) -> Result<Vec<ReaderPin>>;

    /// Tells readers the newest state. Only a state that is durable may be told.
    ///
    /// # Errors
    /// What kept it from telling; readers then show an older state, which stays pinned for them.
    fn publish(&self, state: PublishedState) -> Result<()>;
}

/// No reader in another process, ever: the table of a store in memory, or of one that is not to be shared.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReaders;

impl PinTable for NoReaders {
    fn pins(&self) -> Result<Vec<ReaderPin>> {
        Ok(Vec::new())
    }

    fn publish(&self, _: PublishedState) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_without_readers_tells_and_hears_nothing() {
        let table: Box<dyn PinTable> = Box::new(NoReaders);
        let state = PublishedState {
            base: CheckpointNumber(3),
            synced: Generation(17),
            incarnation: Incarnation(0xABCD),
            store: StoreId([1; 16]),
        };
        table.publish(state).unwrap();
        assert_eq!(table.pins().unwrap(), []);
    }
}
