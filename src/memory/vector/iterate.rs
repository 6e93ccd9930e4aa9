//! Bringing many elements into a vector, and handing all of them out.
#![allow(unsafe_code)]

use std::fmt;
use std::iter::FusedIterator;
use std::mem;
use std::ops::Range;
use std::ptr;
use std::slice;

use super::PagedVec;

impl<T> PagedVec<T> {
    /// Appends clones of `elements`.
    ///
    /// # Panics
    /// If they are more than `isize::MAX` bytes.
    pub fn extend_from_slice(&mut self, elements: &[T])
    where
        T: Clone,
    {
        self.reserve(elements.len());
        let mut tail = Tail::of(self);
        for element in elements {
            // SAFETY: room for all of them was reserved.
            unsafe { tail.push(element.clone()) };
        }
    }

    /// Moves the elements of `other` to the end, and leaves it empty.
    ///
    /// # Panics
    /// If they are more than `isize::MAX` bytes.
    pub fn append(&mut self, other: &mut Self) {
        self.reserve(other.length);
        let moved = mem::take(&mut other.length);
        // SAFETY: there is room for them (V1), they are initialised (V2), and `other` does not hold them any more.
        unsafe { ptr::copy_nonoverlapping(other.as_ptr(), self.as_mut_ptr().add(self.length), moved) };
        self.length += moved;
    }
}

/// The end of a vector while elements are appended. Its length is told to the vector when it is left, so that a loop
/// can keep it in a register.
struct Tail<'a, T> {
    vector: &'a mut PagedVec<T>,
    length: usize,
}

impl<'a, T> Tail<'a, T> {
    fn of(vector: &'a mut PagedVec<T>) -> Self {
        let length = vector.length;
        Self { vector, length }
    }

    /// # Safety
    /// The vector's capacity has room for it.
    unsafe fn push(&mut self, value: T) {
        debug_assert!(self.length < self.vector.capacity, "V1: there is room");
        // SAFETY: there is room (the caller).
        unsafe { self.vector.as_mut_ptr().add(self.length).write(value) };
        self.length += 1;
    }
}

impl<T> Drop for Tail<'_, T> {
    fn drop(&mut self) {
        self.vector.length = self.length;
    }
}

impl<T> Extend<T> for PagedVec<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, elements: I) {
        let mut elements = elements.into_iter();
        loop {
            // At each growth, since the hint may be anything but is mostly right.
            let Some(first) = elements.next() else { return };
            self.reserve(elements.size_hint().0.saturating_add(1));
            let room = self.capacity - self.length;
            let mut tail = Tail::of(self);
            // SAFETY: room for one was reserved, and no more than the rest is taken.
            unsafe {
                tail.push(first);
                elements.by_ref().take(room - 1).for_each(|element| tail.push(element));
            }
        }
    }
}

impl<'a, T: Copy + 'a> Extend<&'a T> for PagedVec<T> {
    fn extend<I: IntoIterator<Item = &'a T>>(&mut self, elements: I) {
        self.extend(elements.into_iter().copied());
    }
}

impl<T> FromIterator<T> for PagedVec<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        let elements = elements.into_iter();
        let mut vector = Self::with_capacity(elements.size_hint().0);
        vector.extend(elements);
        vector
    }
}

impl<'a, T> IntoIterator for &'a PagedVec<T> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;

    fn into_iter(self) -> slice::Iter<'a, T> {
        self.iter()
    }
}

impl<'a, T> IntoIterator for &'a mut PagedVec<T> {
    type Item = &'a mut T;
    type IntoIter = slice::IterMut<'a, T>;

    fn into_iter(self) -> slice::IterMut<'a, T> {
        self.iter_mut()
    }
}

impl<T> IntoIterator for PagedVec<T> {
    type Item = T;
    type IntoIter = IntoIter<T>;

    fn into_iter(self) -> IntoIter<T> {
        let mut vector = self;
        let rest = 0..mem::take(&mut vector.length);
        IntoIter { vector, rest }
    }
}

/// The elements of a [`PagedVec`], by value.
pub struct IntoIter<T> {
    /// Of length zero: the elements are the iterator's (V2).
    vector: PagedVec<T>,
    /// What is still to be handed out.
    rest: Range<usize>,
}

impl<T> IntoIter<T> {
    /// The elements that are still to be handed out.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: the rest is initialised, and the iterator's own.
        unsafe { slice::from_raw_parts(self.vector.as_ptr().add(self.rest.start), self.rest.len()) }
    }
}

impl<T> Iterator for IntoIter<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let index = self.rest.next()?;
        // SAFETY: an element of the rest, which does not hold it any more.
        Some(unsafe { self.vector.as_ptr().add(index).read() })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.rest.size_hint()
    }
}

impl<T> DoubleEndedIterator for IntoIter<T> {
    fn next_back(&mut self) -> Option<T> {
        let index = self.rest.next_back()?;
        // SAFETY: as in `next`.
        Some(unsafe { self.vector.as_ptr().add(index).read() })
    }
}

impl<T> ExactSizeIterator for IntoIter<T> {}
impl<T> FusedIterator for IntoIter<T> {}

impl<T> Drop for IntoIter<T> {
    fn drop(&mut self) {
        let rest = mem::take(&mut self.rest);
        // SAFETY: the rest is initialised and nobody else's; the vector, of length zero, drops none of them again.
        unsafe { ptr::slice_from_raw_parts_mut(self.vector.as_mut_ptr().add(rest.start), rest.len()).drop_in_place() };
    }
}

impl<T: fmt::Debug> fmt::Debug for IntoIter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IntoIter").field(&self.as_slice()).finish()
    }
}
