//! A vector for much data: it grows without copying, on huge pages, and gives its memory back.
//!
//! - **V1** `length <= capacity`, and the mapping holds `capacity` elements at a start that is aligned for them. (Types
//!   without size need no mapping: the capacity is `usize::MAX`, and the start is aligned for every type.)
//! - **V2** The first `length` elements are initialised, and each is dropped once. Where foreign code runs between
//!   (`drop`, `clone`, a predicate, an iterator), `length` covers no element that is moved out or dropped already, so
//!   that a panic there, or a value that is never dropped, leaks elements at worst.
//!
//! What the files are for: here capacity, and the operations on single elements; `drain` takes many out, `iterate`
//! brings many in and hands all out, `compare` is all that makes it look like a slice.
#![allow(unsafe_code)]

mod compare;
mod drain;
mod iterate;
#[cfg(feature = "serde")]
mod serde;
#[cfg(test)]
mod tests;

use std::alloc::{Layout, handle_alloc_error};
use std::io::ErrorKind;
use std::marker::PhantomData;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::ptr;
use std::slice;

use super::hint::{Hint, huge_page_bytes, page_bytes};
use super::mapping::{Mapping, refused};
use crate::Result;

pub use drain::Drain;
pub use iterate::IntoIter;

/// A vector in memory obtained from the system itself: much like `Vec`, for many elements.
///
/// - It grows without copying its elements: the system moves the memory, not the bytes (on Linux).
/// - From 4 MiB on (two huge pages) it asks for huge pages, where the system's setting allows that; see
///   [`PagedVec::hint`].
/// - [`PagedVec::clear_and_release`], [`PagedVec::shrink_to_fit`] and dropping it give memory back at once.
///
/// It takes an OS page at least, and system calls to grow: for few elements `Vec` is the better choice. Where `Vec`
/// panics (an index out of bounds, more than `isize::MAX` bytes) or ends the process (no memory), so does this type;
/// [`PagedVec::try_with_capacity`] and [`PagedVec::try_reserve`] give errors instead.
///
/// ```
/// use vellum::memory::PagedVec;
///
/// let mut squares: PagedVec<u64> = (0..1000).map(|number| number * number).collect();
/// assert_eq!(squares[31], 961);
/// squares.retain(|square| square % 2 == 0);
/// assert_eq!(squares.pop(), Some(998 * 998));
/// ```
pub struct PagedVec<T> {
    mapping: Mapping,
    capacity: usize,
    length: usize,
    page_size: PageSize,
    elements: PhantomData<T>,
}

/// Which pages are to back the elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageSize {
    /// Huge ones, once the vector is large enough.
    BySize,
    /// Huge ones: the caller said so.
    Huge,
    /// Small ones: the caller said so.
    Small,
}

impl<T> PagedVec<T> {
    /// Types without size take no memory, however many.
    const CAPACITY_WITHOUT_MAPPING: usize = if mem::size_of::<T>() == 0 { usize::MAX } else { 0 };

    /// An empty vector, that takes no memory yet.
    pub const fn new() -> Self {
        Self {
            mapping: Mapping::EMPTY,
            capacity: Self::CAPACITY_WITHOUT_MAPPING,
            length: 0,
            page_size: PageSize::BySize,
            elements: PhantomData,
        }
    }

    /// An empty vector with address space for `capacity` elements or more. It takes memory as elements come.
    ///
    /// # Panics
    /// If they are more than `isize::MAX` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        let mut vector = Self::new();
        vector.reserve_exact(capacity);
        vector
    }

    /// As [`PagedVec::with_capacity`], with an error for a refusal.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the system refuses, or for more than `isize::MAX` bytes.
    pub fn try_with_capacity(capacity: usize) -> Result<Self> {
        let mut vector = Self::new();
        vector.set_capacity(capacity)?;
        Ok(vector)
    }

    /// A vector of `length` elements whose bytes are all zero, without writing any: memory comes as it is touched.
    ///
    /// # Errors
    /// As for [`PagedVec::try_with_capacity`].
    pub fn zeroed(length: usize) -> Result<Self>
    where
        T: zerocopy::FromZeros,
    {
        let mut vector = Self::try_with_capacity(length)?;
        // The memory is new, so it is zero (M4), and zeros are valid elements.
        vector.length = length;
        Ok(vector)
    }

    /// How many elements there is address space for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes room for `additional` more elements, and for more than that where the vector has to grow, so that many
    /// small steps cost no more than a few large ones.
    ///
    /// # Panics
    /// If they are more than `isize::MAX` bytes.
    pub fn reserve(&mut self, additional: usize) {
        if additional > self.capacity - self.length {
            let result = self.try_reserve(additional);
            self.end_if_refused(result, additional);
        }
    }

    /// As [`PagedVec::reserve`], with an error for a refusal.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the system refuses, or for more than `isize::MAX` bytes. Then nothing
    /// has changed.
    pub fn try_reserve(&mut self, additional: usize) -> Result<()> {
        if additional <= self.capacity - self.length {
            return Ok(());
        }
        let needed = self.length_with(additional)?;
        match self.set_capacity(needed.max(self.capacity.saturating_mul(2))) {
            // Twice as much may be more than the system has left, where what is needed is not.
            Err(_) if needed < self.capacity.saturating_mul(2) => self.set_capacity(needed),
            reserved_or_refused => reserved_or_refused,
        }
    }

    /// Makes room for `additional` more elements, and little more.
    ///
    /// # Panics
    /// If they are more than `isize::MAX` bytes.
    pub fn reserve_exact(&mut self, additional: usize) {
        if additional > self.capacity - self.length {
            let result = self.length_with(additional).and_then(|needed| self.set_capacity(needed));
            self.end_if_refused(result, additional);
        }
    }

    /// Gives address space and memory beyond the last element back to the system, in whole OS pages, as far as it
    /// takes them.
    pub fn shrink_to_fit(&mut self) {
        if self.length < self.capacity {
            // A refusal changes nothing, and a vector that is too large is as good.
            let _ = self.set_capacity(self.length);
        }
    }

    /// Removes all elements and gives all memory back to the system. The address space stays, and so does the capacity.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the system refuses; the elements are removed all the same.
    #[doc(alias = "dont_need")]
    pub fn clear_and_release(&mut self) -> Result<()> {
        self.clear();
        // SAFETY: writable (M2), and no element is left that anything could refer to.
        unsafe { self.mapping.discard(..) }
    }

    /// Tells the system how all elements are going to be used. [`Hint::HugePages`] and [`Hint::SmallPages`] hold from
    /// then on, whatever the size; other hints are given to the address space that is there.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the system refuses or does not know the hint.
    pub fn hint(&mut self, hint: Hint) -> Result<()> {
        // The whole mapping, so that it stays in one piece for the system and can be moved.
        self.mapping.advise(.., hint)?;
        match hint {
            Hint::HugePages => self.page_size = PageSize::Huge,
            Hint::SmallPages => self.page_size = PageSize::Small,
            _ => {}
        }
        Ok(())
    }

    /// Makes the mapping fit `capacity` elements, which is not below the length.
    fn set_capacity(&mut self, capacity: usize) -> Result<()> {
        debug_assert!(self.length <= capacity, "V1: the elements stay");
        if mem::size_of::<T>() == 0 {
            return Ok(());
        }
        let mut bytes = capacity.saturating_mul(mem::size_of::<T>());
        let huge = huge_page_bytes();
        let hint = match self.page_size {
            // With two of them, what is not used of the last one does not weigh much.
            PageSize::BySize if bytes < 2 * huge => None,
            PageSize::BySize | PageSize::Huge => Some(Hint::HugePages),
            PageSize::Small => Some(Hint::SmallPages),
        };
        if hint == Some(Hint::HugePages) {
            // Whole ones, so that the last elements are on one too.
            bytes = bytes.checked_next_multiple_of(huge).unwrap_or(bytes);
        }
        // SAFETY: readable and writable (M2); `&mut self` says that nothing refers to the elements.
        unsafe { self.mapping.resize(bytes, mem::align_of::<T>().max(page_bytes())) }?;
        self.capacity = self.mapping.length() / mem::size_of::<T>();
        if let Some(hint) = hint {
            // A system without huge pages refuses; its pages do.
            let _ = self.mapping.advise(.., hint);
        }
        Ok(())
    }

    fn length_with(&self, additional: usize) -> Result<usize> {
        self.length.checked_add(additional).ok_or_else(|| refused("resize", usize::MAX, ErrorKind::OutOfMemory))
    }

    /// What `Vec` does when it gets no memory.
    fn end_if_refused(&self, result: Result<()>, additional: usize) {
        if result.is_err() {
            match self.length.checked_add(additional).map(Layout::array::<T>) {
                Some(Ok(layout)) => handle_alloc_error(layout),
                _ => panic!("capacity overflow"),
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self) {
        self.reserve(1);
    }

    /// The address of the first element.
    #[inline]
    pub fn as_ptr(&self) -> *const T {
        self.mapping.start().as_ptr().cast()
    }

    /// The address of the first element.
    #[inline]
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self.mapping.start().as_ptr().cast()
    }

    /// Appends an element.
    ///
    /// # Panics
    /// If there are more than `isize::MAX` bytes of elements.
    #[inline]
    pub fn push(&mut self, value: T) {
        if self.length == self.capacity {
            self.grow();
        }
        // SAFETY: there is room for an element beyond the length (V1).
        unsafe { self.as_mut_ptr().add(self.length).write(value) };
        self.length += 1;
    }

    /// Removes the last element and returns it.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        self.length = self.length.checked_sub(1)?;
        // SAFETY: the element was initialised, and the length does not cover it any more (V2).
        Some(unsafe { self.as_ptr().add(self.length).read() })
    }

    /// Inserts an element before the one at `index`, or at the end.
    ///
    /// # Panics
    /// If `index` is beyond the length.
    pub fn insert(&mut self, index: usize, value: T) {
        assert!(index <= self.length, "index {index} is beyond the length {}", self.length);
        if self.length == self.capacity {
            self.grow();
        }
        // SAFETY: there is room for one more (V1); the elements from the index on (V2) move up by one, and the value
        // takes the place that was left. Nothing here can panic.
        unsafe {
            let place = self.as_mut_ptr().add(index);
            ptr::copy(place, place.add(1), self.length - index);
            place.write(value);
        }
        self.length += 1;
    }

    /// Removes the element at `index` and returns it; those after it move down.
    ///
    /// # Panics
    /// If there is no such element.
    pub fn remove(&mut self, index: usize) -> T {
        assert!(index < self.length, "index {index} is beyond the last of {} elements", self.length);
        self.length -= 1;
        // SAFETY: the element is initialised (V2); those after it move down over it, once it is moved out.
        unsafe {
            let place = self.as_mut_ptr().add(index);
            let value = place.read();
            ptr::copy(place.add(1), place, self.length - index);
            value
        }
    }

    /// Removes the element at `index` and returns it; the last one takes its place.
    ///
    /// # Panics
    /// If there is no such element.
    pub fn swap_remove(&mut self, index: usize) -> T {
        assert!(index < self.length, "index {index} is beyond the last of {} elements", self.length);
        self.length -= 1;
        // SAFETY: both elements are initialised (V2), and the length does not cover the last place any more.
        unsafe {
            let place = self.as_mut_ptr().add(index);
            let value = place.read();
            ptr::copy(self.as_ptr().add(self.length), place, 1);
            value
        }
    }

    /// Removes the elements from `length` on; nothing if there are none. Keeps the memory.
    pub fn truncate(&mut self, length: usize) {
        if length >= self.length {
            return;
        }
        let removed = self.length - length;
        // Before they are dropped: one of them may panic (V2).
        self.length = length;
        // SAFETY: initialised elements, that the length does not cover any more (V2).
        unsafe { ptr::slice_from_raw_parts_mut(self.as_mut_ptr().add(length), removed).drop_in_place() };
    }

    /// Removes all elements. Keeps the memory.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Makes the length `length`: removes elements from the end, or appends clones of `value`.
    ///
    /// # Panics
    /// If they are more than `isize::MAX` bytes.
    pub fn resize(&mut self, length: usize, value: T)
    where
        T: Clone,
    {
        match length.checked_sub(self.length) {
            Some(additional) => self.extend(std::iter::repeat_n(value, additional)),
            None => self.truncate(length),
        }
    }

    /// The elements.
    #[inline]
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: initialised elements (V2) at an aligned address (V1), of `isize::MAX` bytes at most.
        unsafe { slice::from_raw_parts(self.as_ptr(), self.length) }
    }

    /// The elements.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and `&mut self` says that they are ours alone.
        unsafe { slice::from_raw_parts_mut(self.as_mut_ptr(), self.length) }
    }
}

impl<T> Deref for PagedVec<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        self.as_slice()
    }
}

impl<T> DerefMut for PagedVec<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        self.as_mut_slice()
    }
}

impl<T> Drop for PagedVec<T> {
    fn drop(&mut self) {
        if mem::needs_drop::<T>() {
            self.clear();
        }
    }
}

impl<T> Default for PagedVec<T> {
    fn default() -> Self {
        Self::new()
    }
}
