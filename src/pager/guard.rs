//! The guard of a page that is being changed.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::private::{Content, Origin, Others, PrivatePage};
use super::read::{CHUNK_BYTES, zeros};
use super::transaction::Transaction;
use crate::error::Result;
use crate::id::PageId;

/// A page that is open for changing. While it is, the transaction's other ways to the page fail with `PageBorrowed`;
/// dropping it puts the bytes into the transaction. (If it is leaked instead, the page stays borrowed, and the
/// transaction cannot be committed.)
pub struct PageMut<'a> {
    transaction: &'a Transaction,
    page: PageId,
    origin: Origin,
    /// The page's buffer, taken out of the transaction; a committed one is copied when it is first changed.
    bytes: Arc<[u8]>,
    before: Before,
}

/// What the guard's bytes were at first.
enum Before {
    /// These, which the transaction still has.
    Kept(Arc<[u8]>),
    /// It does not matter: what the guard has at the end is the page.
    Replaced,
}

impl Transaction {
    pub(super) fn open_page(&self, page: PageId) -> Result<PageMut<'_>> {
        let origin = self.origin(page)?;
        let own = self.inner.borrow_mut().private.take_whole(page);
        let (bytes, before) = match own {
            Some(bytes) => (bytes, Before::Replaced),
            None => {
                let bytes = self.bytes_of(page)?;
                (Arc::clone(&bytes), Before::Kept(bytes))
            }
        };
        Ok(self.guard(page, origin, bytes, before))
    }

    pub(super) fn open_zeroed(&self, page: PageId) -> Result<PageMut<'_>> {
        let origin = self.origin(page)?;
        let bytes = zeros(page.class().page_bytes() as usize);
        Ok(self.guard(page, origin, bytes, Before::Replaced))
    }

    fn guard(&self, page: PageId, origin: Origin, bytes: Arc<[u8]>, before: Before) -> PageMut<'_> {
        self.inner.borrow_mut().borrowed.insert(page);
        PageMut { transaction: self, page, origin, bytes, before }
    }
}

impl PageMut<'_> {
    /// The page.
    pub fn id(&self) -> PageId {
        self.page
    }

    /// Puts the page into the transaction, as far as it differs from what is there.
    fn put_back(&mut self) {
        let bytes = std::mem::replace(&mut self.bytes, Arc::from([]));
        if !self.page.class().is_chunked() {
            if !matches!(&self.before, Before::Kept(before) if Arc::ptr_eq(before, &bytes)) {
                self.set(Content::Whole(bytes));
            }
            return;
        }
        let before = match &self.before {
            Before::Kept(before) if Arc::ptr_eq(before, &bytes) => return,
            Before::Kept(before) => Some(before),
            Before::Replaced => None,
        };
        let is_zero = |chunk: &[u8]| chunk.iter().all(|byte| *byte == 0);
        let mut changed = BTreeMap::new();
        for (number, chunk) in (0..).zip(bytes.chunks(CHUNK_BYTES)) {
            let start = number as usize * CHUNK_BYTES;
            let same = match before {
                Some(before) => before[start..start + chunk.len()] == *chunk,
                None => is_zero(chunk),
            };
            if !same {
                changed.insert(number, Arc::from(chunk));
            }
        }
        match before {
            Some(_) if changed.is_empty() => {}
            Some(_) => self.transaction.set_chunks(self.page, changed),
            None => self.set(Content::Chunks(changed, Others::Zero)),
        }
    }

    fn set(&self, content: Content) {
        let private = PrivatePage { origin: self.origin, content };
        self.transaction.inner.borrow_mut().private.set(self.page, Some(private));
    }
}

impl Deref for PageMut<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for PageMut<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        Arc::make_mut(&mut self.bytes)
    }
}

impl Drop for PageMut<'_> {
    fn drop(&mut self) {
        self.put_back();
        self.transaction.inner.borrow_mut().borrowed.remove(&self.page);
    }
}

impl fmt::Debug for PageMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageMut").field("page", &self.page).finish_non_exhaustive()
    }
}
