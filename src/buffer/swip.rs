//! Swips: references to pages that remember where the page's descriptor is.
//!
//! In the bytes of a page a reference is always the `PageId`: published bytes do not change, and mean the same after a
//! restart. A swip is for structures in memory that are followed often: an inner node's children in an array beside it.
//! It saves finding class, segment and place; the page is still reached through its descriptor, so nothing has to be
//! told when a page is evicted or replaced.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::pages::StorePages;
use crate::error::{Error, Result};
use crate::id::PageId;

/// In a swip that knows its descriptor.
const SWIZZLED: u64 = 1;

/// A reference to a page of one store, in eight bytes: the page's id, or, once it was followed, the descriptor's offset
/// in the store's table. See [`Scope::follow`](super::Scope::follow).
///
/// Followed in another store than before it reaches some other page of that one, or none. That is safe, and not what
/// anybody wants.
pub struct Swip(AtomicU64);

impl Swip {
    /// A reference that was not followed yet.
    pub fn new(page: PageId) -> Self {
        // The three highest bits of a page's number are zero.
        Self(AtomicU64::new(page.to_u64() << 1))
    }

    /// The page, in the store that the swip was followed in.
    ///
    /// # Errors
    /// [`Error::SwipOfAnotherStore`] if it was followed in another store, and means no page of this one.
    pub fn page(&self, pages: &StorePages) -> Result<PageId> {
        let cell = self.0.load(Ordering::Relaxed);
        match cell & SWIZZLED {
            0 => PageId::from_u64(cell >> 1),
            _ => pages.store.table.page_at((cell & !SWIZZLED) as usize),
        }
        .ok_or(Error::SwipOfAnotherStore)
    }

    /// Whether it remembers its descriptor.
    pub fn is_swizzled(&self) -> bool {
        self.0.load(Ordering::Relaxed) & SWIZZLED != 0
    }

    /// The offset of the descriptor, if it is known.
    #[inline(always)]
    pub(super) fn offset(&self) -> Option<usize> {
        let cell = self.0.load(Ordering::Relaxed);
        (cell & SWIZZLED != 0).then_some((cell & !SWIZZLED) as usize)
    }

    /// Whoever follows next goes to the descriptor directly. Any number of threads may do this: they store the same.
    pub(super) fn remember(&self, pages: &StorePages, page: PageId) {
        let table = &pages.store.table;
        if let Some(offset) = table.find(page).and_then(|descriptor| table.offset(&descriptor)) {
            self.0.store(offset as u64 | SWIZZLED, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Swip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell = self.0.load(Ordering::Relaxed);
        match PageId::from_u64(cell >> 1).filter(|_| cell & SWIZZLED == 0) {
            Some(page) => write!(f, "Swip({page})"),
            None => write!(f, "Swip(descriptor at {})", cell & !SWIZZLED),
        }
    }
}
