//! Reading ahead for scopes.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use super::{Ahead, Source};
use crate::buffer::{Scope, Touch};
use crate::error::Result;
use crate::id::PageId;

/// The page at which a scope's view loads the next ones: one comparison a page.
#[derive(Debug)]
pub(crate) struct Due<'a> {
    page: u64,
    was_read: &'a Cell<bool>,
}

impl Due<'_> {
    /// The page is read.
    #[inline(always)]
    pub(crate) fn note(&self, page: PageId) {
        if page.to_u64() == self.page {
            self.was_read.set(true);
        }
    }
}

impl Ahead {
    /// Runs `read` in a scope of the buffer. It tells [`Due`] of each page that it reads.
    pub(crate) fn scope<A: Source, R>(
        &self,
        at: &A,
        mut read: impl FnMut(&Scope<'_, A>, Due<'_>) -> Result<R>,
    ) -> Result<R> {
        let was_read = Cell::new(false);
        let touch = if self.is_once() { Touch::Unnoticed } else { Touch::Noticed };
        let missed = |page| {
            // The scope goes on for longer than what was loaded ahead.
            if was_read.take() {
                self.load_due(at);
            }
            self.missed(at, page);
        };
        let result = at.pages().scope_with(at, touch, missed, |frames| {
            read(frames, Due { page: self.due.load(Ordering::Relaxed), was_read: &was_read })
        });
        if was_read.get() {
            self.load_due(at);
        }
        result
    }
}
