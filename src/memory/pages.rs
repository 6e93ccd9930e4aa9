//! Memory whose permissions are its type.
//!
//! Each operation is written for exactly the marks it needs, so the compiler refuses the rest; `must_not_compile`
//! holds it to that. A change of permission consumes the value: no slice, and no function, outlives what it relied on
//! (M2).
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, RangeBounds};
use std::ptr::NonNull;
use std::slice;

use super::hint::{Hint, page_bytes};
use super::mapping::{Charge, Mapping, checked_range, refused};
use super::protection::{
    AllowExec, AllowRead, AllowWrite, DenyExec, DenyRead, DenyWrite, ExecMark, Permissions, Protection, ReadMark,
    WriteMark,
};
use crate::Result;

/// Memory in whole OS pages, obtained from the system itself, with the permissions that its type states: `R` for
/// reading, `W` for writing, `X` for executing. `B` is what stands behind it: nothing but memory ([`Anonymous`]), or
/// a file ([`MappedFile`](super::MappedFile)).
///
/// Readable memory is a `[u8]` by `Deref`, memory that is writable too by `DerefMut`. The methods that change a
/// permission take the value and return it with its new type; if the system refuses, its memory is given back.
///
/// ```
/// use vellum::memory::{AllowRead, DenyExec, DenyWrite, Pages};
///
/// let mut pages = Pages::new(10_000)?; // readable, writable, all zero
/// pages[..5].copy_from_slice(b"hello");
/// let pages: Pages<AllowRead, DenyWrite, DenyExec> = pages.deny_write()?;
/// assert_eq!(&pages[..5], b"hello"); // pages[0] = b'H' does not compile any more
/// # Ok::<(), vellum::Error>(())
/// ```
pub struct Pages<R = AllowRead, W = AllowWrite, X = DenyExec, B = Anonymous> {
    backing: B,
    marks: PhantomData<(R, W, X)>,
}

/// What stands behind [`Pages`]: [`Anonymous`] or [`MappedFile`](super::MappedFile).
pub trait Backing: sealed::Backing {}

/// Memory with nothing behind it.
pub struct Anonymous(Mapping);

impl Backing for Anonymous {}
impl sealed::Backing for Anonymous {
    fn start(&self) -> NonNull<u8> {
        self.0.start()
    }

    fn length(&self) -> usize {
        self.0.length()
    }

    fn advise(&self, range: impl RangeBounds<usize>, hint: Hint) -> Result<()> {
        self.0.advise(range, hint)
    }
}

pub(super) mod sealed {
    use super::*;

    /// A run of initialised bytes that stays where it is, and what it is, until its owner says otherwise (M4).
    pub trait Backing {
        fn start(&self) -> NonNull<u8>;
        fn length(&self) -> usize;
        fn advise(&self, range: impl RangeBounds<usize>, hint: Hint) -> Result<()>;
    }
}

impl Pages {
    /// Readable and writable memory of at least `bytes` zero bytes, rounded up to whole OS pages. It takes memory page
    /// by page as it is touched.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the system refuses.
    pub fn new(bytes: usize) -> Result<Self> {
        Ok(Self::from_backing(Anonymous(Mapping::new(bytes, page_bytes(), Charge::WhenMapped)?)))
    }
}

impl<R, W, X, B: Backing> Pages<R, W, X, B> {
    /// The marks must say no more than what the backing allows (M2).
    pub(super) fn from_backing(backing: B) -> Self {
        Self { backing, marks: PhantomData }
    }

    pub(super) fn backing(&self) -> &B {
        &self.backing
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.backing.length()
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells the system how the bytes of `range`, and the rest of their OS pages, are going to be used.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the range lies outside, or the system refuses or does not know the
    /// hint.
    pub fn hint(&self, range: impl RangeBounds<usize>, hint: Hint) -> Result<()> {
        self.backing.advise(range, hint)
    }
}

impl<W, X, B: Backing> Deref for Pages<AllowRead, W, X, B> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: readable (M2) and initialised (M4) for its length, and shared for as long as `self` is: whoever
        // writes needs `&mut self`.
        unsafe { slice::from_raw_parts(self.backing.start().as_ptr(), self.len()) }
    }
}

impl<X> DerefMut for Pages<AllowRead, AllowWrite, X> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: readable and writable (M2), initialised (M4), and ours alone for as long as `&mut self` is.
        unsafe { slice::from_raw_parts_mut(self.backing.0.start().as_ptr(), self.len()) }
    }
}

impl<X> Pages<AllowRead, AllowWrite, X> {
    /// Changes the length to at least `bytes`, rounded up to whole OS pages. New bytes are zero; memory beyond the new
    /// length goes back to the system. The memory may move, without being copied (on Linux, unless parts of it were
    /// given hints of their own, which are lost then).
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the system refuses; then nothing has changed.
    pub fn resize(&mut self, bytes: usize) -> Result<()> {
        // SAFETY: readable and writable (M2), and `&mut self` says that nothing refers to it.
        unsafe { self.backing.0.resize(bytes, page_bytes()) }
    }
}

impl<R, X> Pages<R, AllowWrite, X> {
    /// Writes `bytes` from `offset` on. For memory that may be written but not read; else slices do it.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if they do not fit.
    pub fn write_at(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, "the bytes lie outside");
        let end = offset.checked_add(bytes.len()).filter(|end| *end <= self.len());
        end.ok_or_else(|| refused("write", bytes.len(), outside()))?;
        // SAFETY: writable (M2) from `offset` to the end that was checked; `bytes` cannot overlap with what `&mut self`
        // owns alone.
        unsafe {
            self.backing.0.start().add(offset).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len())
        };
        Ok(())
    }

    /// Makes the bytes of `range` zero, and gives the memory of every OS page that lies wholly in it back to the
    /// system until it is touched again.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the range lies outside, or the system refuses; then bytes of the
    /// range may be zero already.
    #[doc(alias = "dont_need")]
    pub fn decommit(&mut self, range: impl RangeBounds<usize>) -> Result<()> {
        let range = checked_range("decommit", range, self.len())?;
        // SAFETY: writable (M2), and `&mut self` says that nothing refers to it.
        unsafe { self.backing.0.discard(range) }
    }
}

/// Changes of permission. Each is one system call, and none if nothing changes.
impl<R: ReadMark, W: WriteMark, X: ExecMark> Pages<R, W, X> {
    /// Readable; the rest as before.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the system refuses; then the memory is given back to it.
    pub fn allow_read(self) -> Result<Pages<AllowRead, W, X>>
    where
        (AllowRead, W, X): Permissions,
    {
        self.protect()
    }

    /// Not readable; the rest as before.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the system refuses; then the memory is given back to it.
    pub fn deny_read(self) -> Result<Pages<DenyRead, W, X>>
    where
        (DenyRead, W, X): Permissions,
    {
        self.protect()
    }

    /// Writable; the rest as before. Exists for executable memory only with the feature `write-exec`: see
    /// [`Pages::set_protected_write`].
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the system refuses; then the memory is given back to it.
    pub fn allow_write(self) -> Result<Pages<R, AllowWrite, X>>
    where
        (R, AllowWrite, X): Permissions,
    {
        self.protect()
    }

    /// Not writable; the rest as before.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the system refuses; then the memory is given back to it.
    pub fn deny_write(self) -> Result<Pages<R, DenyWrite, X>> {
        self.protect()
    }

    /// Executable; the rest as before. Exists for writable memory only with the feature `write-exec`: see
    /// [`Pages::set_protected_exec`].
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the system refuses; then the memory is given back to it.
    pub fn allow_exec(self) -> Result<Pages<R, W, AllowExec>>
    where
        (R, W, AllowExec): Permissions,
    {
        self.protect()
    }

    /// Not executable; the rest as before.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the system refuses; then the memory is given back to it.
    pub fn deny_exec(self) -> Result<Pages<R, W, DenyExec>>
    where
        (R, W, DenyExec): Permissions,
    {
        self.protect()
    }

    /// Executable and not writable, in one step: there is no moment at which it is both.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the system refuses; then the memory is given back to it.
    pub fn set_protected_exec(self) -> Result<Pages<R, DenyWrite, AllowExec>> {
        self.protect()
    }

    /// Writable and not executable, in one step: there is no moment at which it is both.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the system refuses; then the memory is given back to it.
    pub fn set_protected_write(self) -> Result<Pages<R, AllowWrite, DenyExec>> {
        self.protect()
    }

    fn protect<R2: ReadMark, W2: WriteMark, X2: ExecMark>(mut self) -> Result<Pages<R2, W2, X2>>
    where
        (R2, W2, X2): Permissions,
    {
        self.backing.0.protect(Protection::of::<(R2, W2, X2)>())?;
        Ok(Pages::from_backing(self.backing))
    }
}

/// Address, length and marks, not the bytes.
impl<R, W, X, B: Backing> fmt::Debug for Pages<R, W, X, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = |name: &'static str| name.rsplit("::").next().unwrap_or(name);
        f.debug_struct("Pages")
            .field("start", &self.backing.start())
            .field("bytes", &self.len())
            .field("read", &format_args!("{}", mark(std::any::type_name::<R>())))
            .field("write", &format_args!("{}", mark(std::any::type_name::<W>())))
            .field("exec", &format_args!("{}", mark(std::any::type_name::<X>())))
            .finish()
    }
}
