//! Taking many elements out of a vector.
#![allow(unsafe_code)]

use std::fmt;
use std::iter::FusedIterator;
use std::ops::{Bound, Range, RangeBounds};
use std::ptr;
use std::slice;

use super::PagedVec;

impl<T> PagedVec<T> {
    /// Removes the elements of `range` and hands them out. Those that are not taken are dropped with the iterator; if it
    /// is never dropped, the elements from the range's start on leak.
    ///
    /// # Panics
    /// If the range ends beyond the length, or before it starts.
    pub fn drain(&mut self, range: impl RangeBounds<usize>) -> Drain<'_, T> {
        let Range { start, end } = bounds(range, self.length);
        let tail = end..self.length;
        // From here on the drain owns what comes after (V2).
        self.length = start;
        Drain { vector: self, rest: start..end, tail }
    }

    /// Removes the elements that `keep` says `false` of. It sees each once, in order.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.retain_mut(|element| keep(element));
    }

    /// As [`PagedVec::retain`], with a predicate that may change what it sees.
    pub fn retain_mut(&mut self, mut keep: impl FnMut(&mut T) -> bool) {
        let length = std::mem::take(&mut self.length);
        let mut gap = Gap { vector: self, start: 0, end: 0, length };
        while gap.end < gap.length {
            // SAFETY: the element at the gap's end is initialised, and in nobody else's hands: see `Gap`.
            unsafe {
                let element = gap.vector.as_mut_ptr().add(gap.end);
                if keep(&mut *element) {
                    if gap.start != gap.end {
                        ptr::copy(element, gap.vector.as_mut_ptr().add(gap.start), 1);
                    }
                    gap.start += 1;
                    gap.end += 1;
                } else {
                    // Before it is dropped: it may panic (V2).
                    gap.end += 1;
                    element.drop_in_place();
                }
            }
        }
    }
}

/// A vector of `length` elements with a gap of moved-out ones, `start..end`. However it is left, it closes the gap.
struct Gap<'a, T> {
    vector: &'a mut PagedVec<T>,
    start: usize,
    end: usize,
    length: usize,
}

impl<T> Drop for Gap<'_, T> {
    fn drop(&mut self) {
        let tail = self.length - self.end;
        if self.start != self.end {
            let first = self.vector.as_mut_ptr();
            // SAFETY: the elements from the gap's end on are initialised, and move down over ones that are not.
            unsafe { ptr::copy(first.add(self.end), first.add(self.start), tail) };
        }
        self.vector.length = self.start + tail;
    }
}

/// The elements that [`PagedVec::drain`] removes.
pub struct Drain<'a, T> {
    /// Its length is the drained range's start.
    vector: &'a mut PagedVec<T>,
    /// What is still to be handed out.
    rest: Range<usize>,
    /// What stays, behind the drained range.
    tail: Range<usize>,
}

impl<T> Drain<'_, T> {
    /// The elements that are still to be handed out.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: the rest is initialised, and the drain's own (V2).
        unsafe { slice::from_raw_parts(self.vector.as_ptr().add(self.rest.start), self.rest.len()) }
    }
}

impl<T> Iterator for Drain<'_, T> {
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

impl<T> DoubleEndedIterator for Drain<'_, T> {
    fn next_back(&mut self) -> Option<T> {
        let index = self.rest.next_back()?;
        // SAFETY: as in `next`.
        Some(unsafe { self.vector.as_ptr().add(index).read() })
    }
}

impl<T> ExactSizeIterator for Drain<'_, T> {}
impl<T> FusedIterator for Drain<'_, T> {}

impl<T> Drop for Drain<'_, T> {
    fn drop(&mut self) {
        let rest = std::mem::take(&mut self.rest);
        let start = self.vector.length;
        let gap = Gap { vector: self.vector, start, end: self.tail.start, length: self.tail.end };
        // SAFETY: the rest is initialised and not held by anyone else. If one of them panics, the gap closes.
        unsafe { ptr::slice_from_raw_parts_mut(gap.vector.as_mut_ptr().add(rest.start), rest.len()).drop_in_place() };
    }
}

impl<T: fmt::Debug> fmt::Debug for Drain<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Drain").field(&self.as_slice()).finish()
    }
}

/// `range` within `length` elements, or a panic as slices do.
fn bounds(range: impl RangeBounds<usize>, length: usize) -> Range<usize> {
    let start = match range.start_bound() {
        Bound::Included(&start) => Some(start),
        Bound::Excluded(&before) => before.checked_add(1),
        Bound::Unbounded => Some(0),
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last.checked_add(1),
        Bound::Excluded(&end) => Some(end),
        Bound::Unbounded => Some(length),
    };
    match (start, end) {
        (Some(start), Some(end)) if start <= end && end <= length => start..end,
        _ => panic!("the range lies outside of {length} elements"),
    }
}
