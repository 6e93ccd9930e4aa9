//! A vector as a sequence of `serde`.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use super::PagedVec;
use crate::memory::hint::huge_page_bytes;

impl<T: Serialize> Serialize for PagedVec<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

/// A length that the input states is trusted for a huge page's worth of elements; beyond, the vector grows by what
/// really comes. No memory is an error of the deserializer's.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for PagedVec<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Elements(PhantomData))
    }
}

struct Elements<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Elements<T> {
    type Value = PagedVec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<PagedVec<T>, A::Error> {
        let trusted = huge_page_bytes() / std::mem::size_of::<T>().max(1);
        let mut vector = PagedVec::new();
        vector.try_reserve(sequence.size_hint().unwrap_or(0).min(trusted)).map_err(A::Error::custom)?;
        while let Some(element) = sequence.next_element()? {
            vector.try_reserve(1).map_err(A::Error::custom)?;
            vector.push(element);
        }
        Ok(vector)
    }
}
