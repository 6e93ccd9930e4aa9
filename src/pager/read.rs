//! Reading: the trait that everything readable has, the guard of a page, and the way from a pointer to bytes.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::ahead::{self, Ahead};
use super::bytes::Held;
use super::handle::Shared;
use crate::buffer::{ReadState, StorePages};
use crate::disk::{AlignedBuffer, Disk};
use crate::error::{Error, Result};
use crate::format::{BlockPointer, CodecId, checksum};
use crate::id::{Generation, PageId, SizeClass};
use crate::map::Nodes;
use crate::store::{PageReader, State, read_page};

/// Bytes of a chunk of a large page.
pub(crate) const CHUNK_BYTES: usize = SizeClass::CHUNK.page_bytes() as usize;

/// What can be read: a [`View`](super::View), or a [`Transaction`](super::Transaction), which sees its own changes.
///
/// Every read of bytes can fail with `PageNotFound`, with `Io`, with `Corrupt` (which names the page) if the file does
/// not hold what was written there, and with `Closed`; a transaction's also with `PageBorrowed` while the page's
/// [`PageMut`](super::PageMut) is open.
pub trait Read {
    /// The whole page, as it is now: what is written later does not show in the guard.
    ///
    /// # Errors
    /// `PageExceedsBudget` if the page is larger than the memory budget; `BudgetExhausted`, which says who holds what, if
    /// nothing can be evicted for it; those of the trait.
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
/// other threads. What it holds is not evicted.
#[derive(Clone)]
pub struct PageGuard {
    page: PageId,
    bytes: Held,
}

impl PageGuard {
    pub(super) fn new(page: PageId, bytes: Held) -> Self {
        Self { page, bytes }
    }

    /// A guard of bytes that `owner` keeps as they are.
    pub(crate) fn lent(page: PageId, owner: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        Self { page, bytes: Held::Lent(owner) }
    }

    /// The page.
    pub fn id(&self) -> PageId {
        self.page
    }
}

impl Deref for PageGuard {
    type Target = [u8];

    #[inline]
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

/// A published state that is held, as the buffer reads it.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    pub(super) state: &'a State,
    pub(super) shared: &'a Shared,
}

impl ReadState for At<'_> {
    #[inline]
    fn generation(&self) -> Generation {
        self.state.generation
    }

    fn pointer(&self, page: PageId) -> Result<BlockPointer> {
        self.state.pointer_to_read(&self.shared.nodes, page)
    }
}

impl ahead::Source for At<'_> {
    fn state(&self) -> &State {
        self.state
    }

    fn nodes(&self) -> &Nodes {
        &self.shared.nodes
    }

    #[inline]
    fn pages(&self) -> &StorePages {
        &self.shared.pages
    }

    fn begin(&self, pages: &[PageId]) -> Result<()> {
        self.shared.pages.prefetch(self, pages)
    }

    fn begin_chunks(&self, page: PageId, chunks: &[BlockPointer]) {
        self.shared.pages.prefetch_chunks(page, chunks);
    }
}

impl At<'_> {
    /// Whether a chunk of a page has these bytes.
    pub(super) fn chunk_equals(&self, page: PageId, chunk: u32, bytes: &[u8]) -> Result<bool> {
        let Some(pointer) = self.chunk_pointer(page, chunk)? else {
            return Ok(bytes.iter().all(|byte| *byte == 0));
        };
        // The checksum is of what is stored: of the bytes themselves only if they are stored as they are.
        Ok((pointer.codec != CodecId::RAW || pointer.checksum == checksum(bytes)) && {
            let mut same = true;
            self.with_unit(page, &pointer, &mut |unit| same = unit == bytes)?;
            same
        })
    }

    /// Where a chunk is; `None` if it is all zero.
    fn chunk_pointer(&self, page: PageId, chunk: u32) -> Result<Option<BlockPointer>> {
        let pointer = PageReader::new(&self.shared.nodes).chunk(page, &self.pointer(page)?, chunk)?;
        Ok((!matches!(pointer.codec, CodecId::NULL | CodecId::ZERO)).then_some(pointer))
    }

    /// Fills `target` with a part of a page. The caller has checked the range.
    pub(super) fn part(&self, ahead: &Ahead, page: PageId, offset: u64, target: &mut [u8]) -> Result<()> {
        if !page.class().is_chunked() {
            let start = offset as usize;
            let part = |bytes: &[u8], target: &mut [u8]| target.copy_from_slice(&bytes[start..start + target.len()]);
            return match ahead.page(self, page) {
                Ok(guard) => {
                    part(&guard, target);
                    Ok(())
                }
                Err(Error::PageExceedsBudget { .. } | Error::BudgetExhausted { .. }) => {
                    let pointer = self.pointer(page)?;
                    self.without_budget(page, &pointer, &mut |bytes| part(bytes, target))
                }
                Err(error) => Err(error),
            };
        }
        let pointer = self.pointer(page)?;
        let last = last_chunk(offset, target.len());
        for part in parts(offset, target.len()) {
            ahead.chunk(self, page, &pointer, part.chunk, last);
            self.part_of_chunk(page, part, &mut target[part.at..part.at + part.length])?;
        }
        Ok(())
    }

    /// Fills `target` with what a range has of one chunk.
    pub(super) fn part_of_chunk(&self, page: PageId, part: Part, target: &mut [u8]) -> Result<()> {
        match self.chunk_pointer(page, part.chunk)? {
            Some(pointer) => self.with_unit(page, &pointer, &mut |bytes| {
                target.copy_from_slice(&bytes[part.start..part.start + part.length]);
            }),
            None => {
                target.fill(0);
                Ok(())
            }
        }
    }

    /// Shows the bytes of a chunk.
    fn with_unit(&self, page: PageId, pointer: &BlockPointer, show: &mut dyn FnMut(&[u8])) -> Result<()> {
        match self.shared.pages.unit(page, pointer, SizeClass::CHUNK) {
            Ok(guard) => {
                show(&guard);
                Ok(())
            }
            Err(Error::PageExceedsBudget { .. } | Error::BudgetExhausted { .. }) => {
                self.without_budget(page, pointer, show)
            }
            Err(error) => Err(error),
        }
    }

    /// Shows the bytes of a page or chunk, read into memory that is not the budget's, for as long as that takes.
    fn without_budget(&self, page: PageId, pointer: &BlockPointer, show: &mut dyn FnMut(&[u8])) -> Result<()> {
        let bytes = page.class().min(SizeClass::CHUNK).page_bytes() as usize;
        let buffer = AlignedBuffer::try_zeroed(bytes);
        let mut buffer = buffer.map_err(|source| Error::Memory { operation: "allocation", bytes, source })?;
        read_page(self.disk(), page, pointer, &mut buffer)?;
        show(&buffer);
        Ok(())
    }

    fn disk(&self) -> &dyn Disk {
        self.shared.nodes.disk().as_ref()
    }
}

/// What a range of a chunked page has of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) chunk: u32,
    /// Where in the chunk.
    pub(crate) start: usize,
    /// Where in the range.
    pub(crate) at: usize,
    pub(crate) length: usize,
}

/// Splits the range of `length` bytes from `offset` on at the ends of chunks.
pub(crate) fn parts(offset: u64, length: usize) -> impl Iterator<Item = Part> {
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

/// The last chunk that a range touches.
pub(crate) fn last_chunk(offset: u64, length: usize) -> u32 {
    (offset.saturating_add((length as u64).saturating_sub(1)) / CHUNK_BYTES as u64) as u32
}

/// Fails if the range leaves the page.
pub(crate) fn check_range(page: PageId, offset: u64, length: usize) -> Result<()> {
    let length = length as u64;
    match offset.checked_add(length).is_some_and(|end| end <= page.class().page_bytes()) {
        true => Ok(()),
        false => Err(Error::OutOfPage { page, offset, length }),
    }
}

/// The allocated pages of a class in a state, from `from` on.
pub(crate) fn next_committed(nodes: &Nodes, state: &State, class: SizeClass, from: u64) -> Result<Option<u64>> {
    Ok(state.maps.get()[class.index()].next(nodes, from)?.map(|(index, _)| index))
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
