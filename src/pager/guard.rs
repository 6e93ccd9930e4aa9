//! The guard of a page that is being changed.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};

use super::frames::Frame;
use super::private::{Content, Origin, Others, PrivatePage};
use super::read::CHUNK_BYTES;
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
    /// The page's frame, which nobody else has.
    frame: Frame,
    before: Before,
    /// Whether it was asked for as mutable.
    touched: bool,
}

/// What the guard's bytes were at first.
enum Before {
    /// Those of a page that the transaction had not changed: it stays so if they are not touched.
    Unchanged,
    /// The transaction's own: they are put back if they are not touched.
    Own(Option<Frame>),
    /// It does not matter: what the guard has at the end is the page.
    Replaced,
}

impl Transaction {
    pub(super) fn open_page(&self, page: PageId) -> Result<PageMut<'_>> {
        let origin = self.origin_to_change(page)?;
        let own = self.own.inner.borrow_mut().private.take_whole(page);
        let (frame, before) = match own {
            Some(mut frame) => match frame.get_mut() {
                Some(_) => (frame, Before::Own(None)),
                // A savepoint or a reader has it too.
                None => (Frame::copy_of(&frame), Before::Own(Some(frame))),
            },
            None => {
                let mut frame = self.bytes_of(page)?;
                if frame.get_mut().is_none() {
                    frame = Frame::copy_of(&frame);
                }
                (frame, Before::Unchanged)
            }
        };
        Ok(self.guard(page, origin, frame, before))
    }

    pub(super) fn open_zeroed(&self, page: PageId) -> Result<PageMut<'_>> {
        let origin = self.origin_to_change(page)?;
        let mut own = self.own.inner.borrow_mut().private.take_whole(page);
        if let Some(bytes) = own.as_mut().and_then(Frame::get_mut) {
            bytes.fill(0);
        } else {
            own = None;
        }
        let frame = own.unwrap_or_else(|| Frame::zeroed(page.class()));
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
        match &mut self.before {
            Before::Unchanged if !self.touched => {}
            Before::Own(before) if !self.touched => {
                let frame = before.take().unwrap_or(frame);
                self.transaction.own.inner.borrow_mut().private.put_back(self.page, frame);
            }
            _ if self.page.class().is_chunked() => self.put_back_chunks(&frame),
            _ => self.set(Content::Whole(frame)),
        }
    }

    fn put_back_chunks(&self, frame: &Frame) {
        let before = match self.before {
            Before::Replaced => None,
            // What can be opened can be read again; if not, every chunk counts as changed.
            _ => Some(|chunk| self.transaction.chunk(self.page, chunk)),
        };
        let is_zero = |chunk: &[u8]| chunk.iter().all(|byte| *byte == 0);
        let mut changed = BTreeMap::new();
        for (number, chunk) in (0..).zip(frame.chunks(CHUNK_BYTES)) {
            let same = match &before {
                Some(before) => match before(number) {
                    Ok(Some(before)) => before[..] == *chunk,
                    Ok(None) => is_zero(chunk),
                    Err(_) => false,
                },
                None => is_zero(chunk),
            };
            if !same {
                changed.insert(number, Frame::copy_of(chunk));
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
