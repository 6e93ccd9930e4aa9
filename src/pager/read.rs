//! Reading: the trait that everything readable has, the guard of a page, and the way from a pointer to bytes.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::cache::Cache;
use super::frames::Frame;
use crate::error::{Error, Result};
use crate::format::{BlockPointer, Codec};
use crate::id::{Generation, PageId, SizeClass};
use crate::map::Nodes;
use crate::store::{PageReader, State, read_part};

/// Bytes of a chunk of a large page.
pub(super) const CHUNK_BYTES: usize = SizeClass::CHUNK.page_bytes() as usize;

/// What can be read: a [`View`](super::View), or a [`Transaction`](super::Transaction), which sees its own changes.
///
/// Every read of bytes can fail with `PageNotFound`, with `Io`, with `Corrupt` (which names the page) if the file does
/// not hold what was written there, and with `Closed`; a transaction's also with `PageBorrowed` while the page's
/// [`PageMut`](super::PageMut) is open.
pub trait Read {
    /// The whole page, as it is now: what is written later does not show in the guard.
    ///
    /// # Errors
    /// `PageExceedsBudget` if the page is larger than the memory given to the pager; those of the trait.
    fn page(&self, page: PageId) -> Result<PageGuard>;

    /// Fills `target` with the page's bytes from byte `offset` on. Of pages above 1 MiB only the chunks (of 1 MiB each)
    /// are read that the range touches; pages of every size can be read, whatever the memory budget.
    ///
    /// # Errors
    /// `OutOfPage` if the range leaves the page; those of the trait.
    fn read_at(&self, page: PageId, offset: u64, target: &mut [u8]) -> Result<()>;

    /// Whether the page is allocated.
    ///
    /// # Errors
    /// Those of reading the page map: `Io`, `Corrupt`, `Closed`.
    fn contains(&self, page: PageId) -> Result<bool>;

    /// The user header: at most 1024 bytes that are the database's own root. Empty until it is set.
    fn header(&self) -> Arc<[u8]>;

    /// The generation of the state that is read; for a transaction, of the state it began with.
    fn generation(&self) -> Generation;

    /// The allocated pages of a size class, in rising order. An item is an error if the page map cannot be read; the
    /// iteration ends with it. Pages that a transaction allocates or frees meanwhile may be seen or not.
    fn page_ids(&self, class: SizeClass) -> Box<dyn Iterator<Item = Result<PageId>> + '_>;
}

/// The bytes of a page as they were when it was read. Owned: it outlives what it was read from, and may be sent to
/// other threads.
#[derive(Clone)]
pub struct PageGuard {
    page: PageId,
    bytes: Frame,
}

impl PageGuard {
    pub(super) fn new(page: PageId, bytes: Frame) -> Self {
        Self { page, bytes }
    }

    /// The page.
    pub fn id(&self) -> PageId {
        self.page
    }
}

impl Deref for PageGuard {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for PageGuard {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for PageGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageGuard").field("page", &self.page).finish_non_exhaustive()
    }
}

/// Reads committed pages, by way of the cache.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) nodes: &'a Nodes,
    pub(super) cache: &'a Cache,
}

impl Source<'_> {
    /// The pointer of an allocated page.
    pub(super) fn pointer(&self, state: &State, page: PageId) -> Result<BlockPointer> {
        let pointer = state.pointer(self.nodes, page)?;
        if pointer.is_null() { Err(Error::PageNotFound { page }) } else { Ok(pointer) }
    }

    /// The bytes of a page of at most 1 MiB, or of a chunk.
    pub(super) fn unit(&self, page: PageId, pointer: &BlockPointer) -> Result<Arc<[u8]>> {
        let stored = !matches!(pointer.codec, Codec::Zero);
        if stored && let Some(bytes) = self.cache.find(pointer) {
            return Ok(bytes);
        }
        let mut bytes = zeros(page.class().page_bytes().min(CHUNK_BYTES as u64) as usize);
        if stored {
            read_part(self.nodes.disk().as_ref(), page, pointer, 0, Arc::make_mut(&mut bytes))?;
            self.cache.keep(pointer, &bytes);
        }
        Ok(bytes)
    }

    /// One chunk of a page above 1 MiB; `None` if it is all zero.
    pub(super) fn chunk(&self, page: PageId, pointer: &BlockPointer, chunk: u32) -> Result<Option<Arc<[u8]>>> {
        let chunk = PageReader::new(self.nodes).chunk(page, pointer, chunk)?;
        if matches!(chunk.codec, Codec::Null | Codec::Zero) {
            return Ok(None);
        }
        self.unit(page, &chunk).map(Some)
    }

    /// The bytes of a whole page, whatever its class and the budget.
    pub(super) fn whole(&self, page: PageId, pointer: &BlockPointer) -> Result<Arc<[u8]>> {
        if !page.class().is_chunked() {
            return self.unit(page, pointer);
        }
        if pointer.is_indirect()
            && let Some(bytes) = self.cache.find(pointer)
        {
            return Ok(bytes);
        }
        let mut bytes = zeros(page.class().page_bytes() as usize);
        if pointer.is_indirect() {
            PageReader::new(self.nodes).read(page, pointer, 0, Arc::make_mut(&mut bytes))?;
            self.cache.keep(pointer, &bytes);
        }
        Ok(bytes)
    }

    /// Fills `target` with a part of a page. The caller has checked the range.
    pub(super) fn part(&self, page: PageId, pointer: &BlockPointer, offset: u64, target: &mut [u8]) -> Result<()> {
        if !page.class().is_chunked() {
            let start = offset as usize;
            target.copy_from_slice(&self.unit(page, pointer)?[start..start + target.len()]);
            return Ok(());
        }
        for part in parts(offset, target.len()) {
            let target = &mut target[part.at..part.at + part.length];
            match self.chunk(page, pointer, part.chunk)? {
                Some(bytes) => target.copy_from_slice(&bytes[part.start..part.start + part.length]),
                None => target.fill(0),
            }
        }
        Ok(())
    }

    /// Fails if the page as a whole is more than may be held in memory.
    pub(super) fn check_budget(&self, page: PageId) -> Result<()> {
        match page.class().page_bytes() > self.cache.limit_bytes() as u64 {
            true => Err(Error::PageExceedsBudget { page }),
            false => Ok(()),
        }
    }
}

/// What a range of a chunked page has of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) chunk: u32,
    /// Where in the chunk.
    pub(super) start: usize,
    /// Where in the range.
    pub(super) at: usize,
    pub(super) length: usize,
}

/// Splits the range of `length` bytes from `offset` on at the ends of chunks.
pub(super) fn parts(offset: u64, length: usize) -> impl Iterator<Item = Part> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let position = offset + at as u64;
        let start = (position % CHUNK_BYTES as u64) as usize;
        let count = (length - at).min(CHUNK_BYTES - start);
        let part = Part { chunk: (position / CHUNK_BYTES as u64) as u32, start, at, length: count };
        at += count;
        (count > 0).then_some(part)
    })
}

/// Fails if the range leaves the page.
pub(super) fn check_range(page: PageId, offset: u64, length: usize) -> Result<()> {
    let length = length as u64;
    match offset.checked_add(length).is_some_and(|end| end <= page.class().page_bytes()) {
        true => Ok(()),
        false => Err(Error::OutOfPage { page, offset, length }),
    }
}

/// A buffer of zeros, owned by nobody else.
pub(super) fn zeros(length: usize) -> Arc<[u8]> {
    std::iter::repeat_n(0, length).collect()
}

/// The allocated pages of a class in a state, from `from` on.
pub(super) fn next_committed(nodes: &Nodes, state: &State, class: SizeClass, from: u64) -> Result<Option<u64>> {
    Ok(state.maps[class.index()].next(nodes, from)?.map(|(index, _)| index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_split_at_the_ends_of_chunks() {
        let mib = CHUNK_BYTES;
        let split: Vec<Part> = parts(mib as u64 - 10, mib + 30).collect();
        assert_eq!(
            split,
            [
                Part { chunk: 0, start: mib - 10, at: 0, length: 10 },
                Part { chunk: 1, start: 0, at: 10, length: mib },
                Part { chunk: 2, start: 0, at: mib + 10, length: 20 },
            ]
        );
        assert_eq!(parts(5, 0).count(), 0);
    }

    #[test]
    fn a_range_that_leaves_the_page_is_refused() {
        let page = PageId::new(SizeClass::MIN, 3).unwrap();
        assert!(check_range(page, 4096, 0).is_ok());
        assert!(check_range(page, 4095, 1).is_ok());
        for (offset, length) in [(4096, 1), (0, 4097), (u64::MAX, 1), (u64::MAX, usize::MAX)] {
            assert!(matches!(check_range(page, offset, length), Err(Error::OutOfPage { .. })));
        }
    }
}
