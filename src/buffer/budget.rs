//! Memory that users take from the budget, for what is no page.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::lock;
use super::manager::Inner;
use crate::error::{Error, Holder, Result};
use crate::memory::{Pages, page_bytes};

/// What a reservation is for, and how large it is.
pub(super) struct Reserved {
    pub(super) owner: String,
    pub(super) bytes: usize,
}

/// The bytes that a manager and its users may take together.
#[derive(Clone)]
pub struct MemoryBudget {
    inner: Arc<Inner>,
}

impl MemoryBudget {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// The budget, in bytes.
    pub fn limit_bytes(&self) -> usize {
        self.inner.limit()
    }

    /// Bytes that are taken: by frames (free ones too), descriptors, reservations.
    pub fn used_bytes(&self) -> usize {
        self.inner.used()
    }

    /// Who holds how much of it, the most first.
    pub fn held_by(&self) -> Vec<Holder> {
        self.inner.holders(&self.inner.room())
    }

    /// Takes `bytes` bytes of the budget for memory that the caller obtains elsewhere. Pages are evicted for it, and
    /// scratch pages written to their file. `owner`
    /// is what errors call the holder.
    ///
    /// # Errors
    /// [`Error::BudgetTooSmall`] if the whole budget is less; [`Error::BudgetExhausted`], which says who holds what.
    pub fn reserve(&self, bytes: usize, owner: &str) -> Result<BudgetReservation> {
        self.reserve_at_most_waiting(bytes, owner, None)
    }

    /// As [`MemoryBudget::reserve`]; waits for up to `patience` for others to give memory back.
    ///
    /// # Errors
    /// As there.
    pub fn reserve_within(&self, bytes: usize, owner: &str, patience: Duration) -> Result<BudgetReservation> {
        self.reserve_at_most_waiting(bytes, owner, Some(patience))
    }

    fn reserve_at_most_waiting(
        &self,
        bytes: usize,
        owner: &str,
        patience: Option<Duration>,
    ) -> Result<BudgetReservation> {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        if bytes > self.inner.limit() {
            return Err(Error::BudgetTooSmall { budget_bytes: self.inner.limit(), needed_bytes: bytes });
        }
        self.inner.obtain_bytes(bytes, patience)?;
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        lock(&self.inner.reservations).insert(number, Reserved { owner: owner.to_owned(), bytes });
        Ok(BudgetReservation { inner: Arc::clone(&self.inner), number, bytes })
    }

    /// Zeroed memory of `bytes` bytes, in whole OS pages, charged to the budget under the name `owner`.
    ///
    /// # Errors
    /// As [`MemoryBudget::reserve`], and `Memory` if the system refuses.
    pub fn alloc(&self, bytes: usize, owner: &str) -> Result<BudgetMemory> {
        self.alloc_at_most_waiting(bytes, owner, None)
    }

    /// As [`MemoryBudget::alloc`]; waits for up to `patience` for others to give memory back.
    ///
    /// # Errors
    /// As there.
    pub fn alloc_within(&self, bytes: usize, owner: &str, patience: Duration) -> Result<BudgetMemory> {
        self.alloc_at_most_waiting(bytes, owner, Some(patience))
    }

    fn alloc_at_most_waiting(&self, bytes: usize, owner: &str, patience: Option<Duration>) -> Result<BudgetMemory> {
        let whole = bytes.checked_next_multiple_of(page_bytes()).unwrap_or(usize::MAX);
        let reservation = self.reserve_at_most_waiting(whole, owner, patience)?;
        Ok(BudgetMemory { pages: Pages::new(bytes)?, bytes, reservation })
    }
}

impl fmt::Debug for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (limit, used) = (self.limit_bytes(), self.used_bytes());
        f.debug_struct("MemoryBudget").field("limit_bytes", &limit).field("used_bytes", &used).finish()
    }
}

/// A part of the budget, given back when it is dropped.
pub struct BudgetReservation {
    inner: Arc<Inner>,
    number: u64,
    bytes: usize,
}

impl BudgetReservation {
    /// The length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for BudgetReservation {
    fn drop(&mut self) {
        lock(&self.inner.reservations).remove(&self.number);
        self.inner.uncharge(self.bytes);
        self.inner.announce();
    }
}

impl fmt::Debug for BudgetReservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BudgetReservation").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// Owned memory that counts in the budget; zero at first. It starts at an OS page.
pub struct BudgetMemory {
    // Given back before its charge is.
    pages: Pages,
    bytes: usize,
    reservation: BudgetReservation,
}

impl Deref for BudgetMemory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.pages[..self.bytes]
    }
}

impl DerefMut for BudgetMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.pages[..self.bytes]
    }
}

impl fmt::Debug for BudgetMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BudgetMemory").field("reservation", &self.reservation).finish_non_exhaustive()
    }
}
