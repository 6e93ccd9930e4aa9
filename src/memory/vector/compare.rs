//! What a vector shares with the slice that it holds: copies, comparison, hashes, text.

use std::borrow::{Borrow, BorrowMut};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use super::PagedVec;

impl<T: Clone> Clone for PagedVec<T> {
    /// The same elements, with the capacity that they need.
    fn clone(&self) -> Self {
        let mut clone = Self::with_capacity(self.len());
        clone.extend_from_slice(self);
        clone
    }

    /// Keeps the memory that is there.
    fn clone_from(&mut self, source: &Self) {
        self.truncate(source.len());
        let (shared, rest) = source.split_at(self.len());
        self.clone_from_slice(shared);
        self.extend_from_slice(rest);
    }
}

impl<T: Clone> From<&[T]> for PagedVec<T> {
    fn from(elements: &[T]) -> Self {
        let mut vector = Self::with_capacity(elements.len());
        vector.extend_from_slice(elements);
        vector
    }
}

impl<T> From<Vec<T>> for PagedVec<T> {
    fn from(elements: Vec<T>) -> Self {
        elements.into_iter().collect()
    }
}

impl<T> From<PagedVec<T>> for Vec<T> {
    fn from(elements: PagedVec<T>) -> Self {
        elements.into_iter().collect()
    }
}

impl<T: fmt::Debug> fmt::Debug for PagedVec<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_slice(), f)
    }
}

macro_rules! equal {
    ($([$($constant:tt)*] $left:ty, $right:ty;)*) => {$(
        impl<T: PartialEq<U>, U, $($constant)*> PartialEq<$right> for $left {
            fn eq(&self, other: &$right) -> bool {
                self[..] == other[..]
            }
        }
    )*};
}

equal! {
    [] PagedVec<T>, PagedVec<U>;
    [] PagedVec<T>, [U];
    [] PagedVec<T>, &[U];
    [] PagedVec<T>, &mut [U];
    [] PagedVec<T>, Vec<U>;
    [] Vec<T>, PagedVec<U>;
    [] [T], PagedVec<U>;
    [] &[T], PagedVec<U>;
    [const N: usize] PagedVec<T>, [U; N];
    [const N: usize] PagedVec<T>, &[U; N];
}

impl<T: Eq> Eq for PagedVec<T> {}

impl<T: PartialOrd> PartialOrd for PagedVec<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.as_slice().partial_cmp(other.as_slice())
    }
}

impl<T: Ord> Ord for PagedVec<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_slice().cmp(other.as_slice())
    }
}

impl<T: Hash> Hash for PagedVec<T> {
    /// As the slice, and as `Vec` (what `Borrow` asks for).
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_slice().hash(state);
    }
}

impl<T> AsRef<[T]> for PagedVec<T> {
    fn as_ref(&self) -> &[T] {
        self
    }
}

impl<T> AsMut<[T]> for PagedVec<T> {
    fn as_mut(&mut self) -> &mut [T] {
        self
    }
}

impl<T> Borrow<[T]> for PagedVec<T> {
    fn borrow(&self) -> &[T] {
        self
    }
}

impl<T> BorrowMut<[T]> for PagedVec<T> {
    fn borrow_mut(&mut self) -> &mut [T] {
        self
    }
}
