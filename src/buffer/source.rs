//! What the buffer asks of a store.

use std::fmt::Debug;
use std::fs::File;

use crate::error::Result;
use crate::format::BlockPointer;
use crate::id::{Generation, PageId};

/// How the buffer reads a store. Called by any thread that misses a page, by many at once.
///
/// Neither method may ask the same buffer for a page: the memory for it may be what is waited for.
///
/// A panic is the reader's whose thread it is; others read for themselves. While pages are read ahead it counts as an
/// error.
pub trait PageSource: Send + Sync + Debug {
    /// The pointer of a page in the newest state that was, *or is being*, published; null if the page is not allocated.
    ///
    /// What [`publish`](super::StorePages::publish) is called with must be known here before that call begins: else a
    /// load beside it could take the version before for the newest.
    ///
    /// # Errors
    /// Those of reading the page map.
    fn newest_pointer(&self, page: PageId) -> Result<BlockPointer>;

    /// Fills `target` with what is stored at `pointer`, checked. `target` is as long as the page; if the pointer is that
    /// of one of the page's chunks, as long as a chunk. It lies at a multiple of 4096, as direct transfers need it, and
    /// its bytes are those of other pages: all of them must be written.
    ///
    /// # Errors
    /// The disk's, and `Corrupt`.
    fn load(&self, page: PageId, pointer: &BlockPointer, target: &mut [u8]) -> Result<()>;

    /// Where [`PageSource::load`] would find exactly the bytes that it returns, if there is such a place: a file, of
    /// which whole blocks can be read at this offset, a multiple of 4096, by whatever means. What was read is then shown
    /// to [`PageSource::is_right`].
    fn place_of(&self, page: PageId, pointer: &BlockPointer) -> Option<(&File, u64)> {
        let _ = (page, pointer);
        None
    }

    /// Whether `bytes` are what [`PageSource::load`] would return of `pointer`. Asked only of what was read from
    /// [`PageSource::place_of`].
    fn is_right(&self, page: PageId, pointer: &BlockPointer, bytes: &[u8]) -> bool {
        let _ = (page, pointer, bytes);
        false
    }
}

/// A state that pages are read at: a view, what a transaction began with. It holds what it reaches: nothing of that is
/// used again while it lives.
pub trait ReadState {
    /// The state's generation.
    fn generation(&self) -> Generation;

    /// The page's pointer in this state.
    ///
    /// # Errors
    /// [`PageNotFound`](crate::Error::PageNotFound) if the page is not allocated in it; those of reading the page map.
    fn pointer(&self, page: PageId) -> Result<BlockPointer>;
}
