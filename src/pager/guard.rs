//! The guard of a page that is being changed.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};

use super::bytes::Bytes;
use super::private::{Content, Origin, Others, PrivatePage};
use super::read::{CHUNK_BYTES, Read};
use super::transaction::Transaction;
use crate::buffer::Frame;
use crate::error::Result;
use crate::id::PageId;

/// A page that is open for changing. While it is, the transaction's other ways to the page fail with `PageBorrowed`;
/// dropping it puts the bytes into the transaction. (If it is leaked instead, the page stays borrowed, and the
/// transaction cannot be committed.)
pub struct PageMut<'a> {
    transaction: &'a Transaction,
    page: PageId,
    origin: Origin,
    /// The page's frame, which nobody else has.
    frame: Frame,
    before: Before,
    /// Whether it was asked for as mutable.
    touched: bool,
}

/// What the guard's bytes were at first.
enum Before {
    /// Those that the page still has, elsewhere: it stays so if they are not touched.
    Unchanged,
    /// The transaction's own, taken out of it: they are put back.
    Own,
    /// It does not matter: what the guard has at the end is the page.
    Replaced,
}

impl Transaction {
    pub(super) fn open_page(&self, page: PageId) -> Result<PageMut<'_>> {
        let origin = self.origin_to_change(page)?;
        let own = self.own.inner.borrow_mut().private.take_whole(page);
        let Some(own) = own else {
            let mut frame = self.stale_frame(page.class())?;
            if let Some(target) = frame.get_mut() {
                self.read_at(page, 0, target)?;
            }
            return Ok(self.guard(page, origin, frame, Before::Unchanged));
        };
        if let Bytes::Frame(mut frame) = own {
            if frame.get_mut().is_some() {
                return Ok(self.guard(page, origin, frame, Before::Own));
            }
            // A savepoint or a reader has it too.
            self.own.inner.borrow_mut().private.put_back(page, Bytes::Frame(frame));
        } else {
            self.own.inner.borrow_mut().private.put_back(page, own);
        }
        let mut frame = self.stale_frame(page.class())?;
        if let Some(target) = frame.get_mut() {
            self.read_at(page, 0, target)?;
        }
        Ok(self.guard(page, origin, frame, Before::Unchanged))
    }

    pub(super) fn open_zeroed(&self, page: PageId) -> Result<PageMut<'_>> {
        let origin = self.origin_to_change(page)?;
        let own = self.own.inner.borrow_mut().private.take_whole(page);
        if let Some(Bytes::Frame(mut frame)) = own {
            if let Some(bytes) = frame.get_mut() {
                bytes.fill(0);
                return Ok(self.guard(page, origin, frame, Before::Replaced));
            }
            self.own.inner.borrow_mut().private.put_back(page, Bytes::Frame(frame));
        } else if let Some(own) = own {
            self.own.inner.borrow_mut().private.put_back(page, own);
        }
        let frame = self.frame(page.class())?;
        Ok(self.guard(page, origin, frame, Before::Replaced))
    }

    fn guard(&self, page: PageId, origin: Origin, frame: Frame, before: Before) -> PageMut<'_> {
        self.own.inner.borrow_mut().borrowed.insert(page);
        PageMut { transaction: self, page, origin, frame, before, touched: false }
    }
}

impl PageMut<'_> {
    /// The page.
    pub fn id(&self) -> PageId {
        self.page
    }

    /// Puts the page into the transaction, as far as it differs from what is there.
    fn put_back(&mut self) {
        let frame = self.frame.clone();
        match self.before {
            Before::Unchanged if !self.touched => {}
            Before::Own if !self.touched => {
                self.transaction.own.inner.borrow_mut().private.put_back(self.page, Bytes::Frame(frame));
            }
            _ if self.page.class().is_chunked() => {
                if let Err(error) = self.put_back_chunks(&frame) {
                    // There is nobody here to tell: the commit does.
                    self.transaction.own.inner.borrow_mut().failed.get_or_insert(error);
                }
            }
            _ => self.set(Content::Whole(Bytes::Frame(frame))),
        }
    }

    fn put_back_chunks(&self, frame: &Frame) -> Result<()> {
        let replaced = matches!(self.before, Before::Replaced);
        let is_zero = |chunk: &[u8]| chunk.iter().all(|byte| *byte == 0);
        let mut changed = BTreeMap::new();
        for (number, chunk) in (0..).zip(frame.chunks(CHUNK_BYTES)) {
            let same = match replaced {
                true => is_zero(chunk),
                false => match self.transaction.chunk(self.page, number)? {
                    Some(before) => self.transaction.chunk_equals(self.page, &before, chunk)?,
                    None => is_zero(chunk),
                },
            };
            if !same {
                let bytes = self.transaction.new_bytes(self.page, |target| target.copy_from_slice(chunk))?;
                changed.insert(number, bytes);
            }
        }
        match replaced {
            false if changed.is_empty() => {}
            false => self.transaction.set_chunks(self.page, changed),
            true => self.set(Content::Chunks(changed, Others::Zero)),
        }
        Ok(())
    }

    fn set(&self, content: Content) {
        let private = PrivatePage::new(self.origin, content);
        self.transaction.own.inner.borrow_mut().private.set(self.page, Some(private));
    }
}

impl Deref for PageMut<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.frame
    }
}

impl DerefMut for PageMut<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.touched = true;
        // Nobody else has the frame.
        self.frame.get_mut().unwrap_or_default()
    }
}

impl Drop for PageMut<'_> {
    fn drop(&mut self) {
        self.put_back();
        self.transaction.own.inner.borrow_mut().borrowed.remove(&self.page);
    }
}

impl fmt::Debug for PageMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageMut").field("page", &self.page).finish_non_exhaustive()
    }
}
