//! Codecs: how the bytes of a page are made fewer on their way to disk, and become a page again.
//!
//! Owns: the numbers that pointers name codecs by, the table of the codecs built in, and what bounds decoding. Does not
//! own: which page is stored how; that is the caller's choice at each write, and pointers alone say what was chosen.
//!
//! One more codec is one file beside this one, and one line of the table `BUILT_IN`.
//!
//! - **Z1** Decoding fills exactly one buffer, which the caller made as long as the page. Nothing is allocated by what
//!   the bytes say: a context of a codec's own has a size of its own.
//! - **Z2** Bytes that do not decode to exactly the buffer's length are a [`Fault`], and leave the buffer all zero, so
//!   that nothing stale or half decoded is taken for a page.
//! - **Z3** Encoding is a function of page, codec and level: the same on every thread, whatever the thread did before.
//! - **Z4** A number that ever stood for a codec never stands for another. Its bit among the incompatible features of the
//!   superblock is set, durably, before the first pointer names it: a build without the codec refuses the store.
//!
//! Thread rules: any thread; contexts that are worth keeping are kept per thread.

mod choice;
mod lz4;
#[cfg(feature = "snappy")]
mod snappy;
mod zstd;

use std::fmt;
use std::ops::RangeInclusive;

pub use choice::Compression;

use super::{at_most, expect};
use crate::error::Fault;
use crate::id::BLOCK_LENGTH;

/// The codecs of this build.
const BUILT_IN: &[BuiltIn] = &[
    BuiltIn { id: lz4::ID, codec: &lz4::Lz4 },
    BuiltIn { id: zstd::ID, codec: &zstd::Zstd },
    #[cfg(feature = "snappy")]
    BuiltIn { id: snappy::ID, codec: &snappy::Snappy },
];

/// A line of the table of codecs.
struct BuiltIn {
    id: CodecId,
    codec: &'static dyn Codec,
}

/// A way to store a page in fewer bytes.
pub trait Codec: Sync + fmt::Debug {
    /// Its name: in options, on the command line, in FORMAT.md.
    fn name(&self) -> &'static str;

    /// The levels that it can be asked for, if it has any; a higher one takes longer and gives fewer bytes.
    fn levels(&self) -> Option<RangeInclusive<i32>> {
        None
    }

    /// The level that is meant where none is named; of no meaning for a codec without levels.
    fn usual_level(&self) -> i32 {
        0
    }

    /// Encodes `page` into the beginning of `target`, which is made as long as that takes, and returns how many bytes
    /// the encoded page has; `None` if it cannot be encoded in `limit` bytes, or for want of memory.
    fn encode(&self, page: &[u8], level: i32, limit: usize, target: &mut Vec<u8>) -> Option<usize>;

    /// Decodes into `target` (Z1), and returns how many bytes of it were filled.
    ///
    /// # Errors
    /// Why it cannot be done, in words.
    fn decode(&self, stored: &[u8], target: &mut [u8]) -> Result<usize, &'static str>;
}

/// How the bytes behind a pointer are stored, as its number on disk.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CodecId(u8);

impl CodecId {
    /// There are none: the pointer to nothing.
    pub const NULL: Self = Self(0);
    /// There are none: every byte of the page is zero.
    pub const ZERO: Self = Self(1);
    /// As they are.
    pub const RAW: Self = Self(2);

    const fn new(number: u8) -> Self {
        assert!(number > Self::RAW.0 && number < 32, "its feature bit would be another's");
        Self(number)
    }

    /// The number on disk.
    pub const fn to_u8(self) -> u8 {
        self.0
    }

    /// The codec of this number, if this build has it.
    pub fn from_u8(number: u8) -> Option<Self> {
        let id = Self(number);
        (number <= Self::RAW.0 || id.codec().is_some()).then_some(id)
    }

    /// What encodes and decodes; `None` where bytes are stored as they are, or not at all.
    pub fn codec(self) -> Option<&'static dyn Codec> {
        BUILT_IN.iter().find(|built_in| built_in.id == self).map(|built_in| built_in.codec)
    }

    /// All that this build has: null, zero, raw, and those that encode.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::NULL, Self::ZERO, Self::RAW].into_iter().chain(BUILT_IN.iter().map(|built_in| built_in.id))
    }

    /// The bit among the incompatible features of a store in which a pointer names this codec (Z4); 0 for those that
    /// every reader knows.
    pub const fn feature(self) -> u64 {
        match self.0 <= Self::RAW.0 {
            true => 0,
            false => 1 << self.0,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::NULL => "null",
            Self::ZERO => "zero",
            Self::RAW => "raw",
            _ => self.codec().map_or("unknown", Codec::name),
        }
    }
}

impl fmt::Display for CodecId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for CodecId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

/// The feature bits of all codecs of this build.
pub(super) const FEATURES: u64 = {
    let (mut bits, mut index) = (0, 0);
    while index < BUILT_IN.len() {
        bits |= BUILT_IN[index].id.feature();
        index += 1;
    }
    bits
};

/// The most bytes that an encoded page (or chunk) of `page_bytes` may have: it saves a block at least, or it is not
/// stored encoded. A page of one block never is.
pub const fn encoded_limit(page_bytes: usize) -> usize {
    page_bytes.saturating_sub(BLOCK_LENGTH)
}

/// Decodes `stored` into `target`, which is as long as the page (or chunk). See Z1 and Z2.
///
/// # Errors
/// `Field` for a length that cannot be, `Undecodable`, `UnknownCodec`.
pub fn decode(codec: CodecId, stored: &[u8], target: &mut [u8]) -> Result<(), Fault> {
    let result = decode_into(codec, stored, target);
    if result.is_err() {
        target.fill(0);
    }
    result
}

fn decode_into(codec: CodecId, stored: &[u8], target: &mut [u8]) -> Result<(), Fault> {
    if codec == CodecId::RAW {
        expect("stored length", target.len() as u64, stored.len() as u64)?;
        target.copy_from_slice(stored);
        return Ok(());
    }
    let codec = codec.codec().ok_or(Fault::UnknownCodec { number: codec.to_u8() })?;
    check_encoded_length(stored.len(), target.len())?;
    match codec.decode(stored, target).map_err(Fault::Undecodable)? {
        length if length == target.len() => Ok(()),
        _ => Err(Fault::Undecodable("it ends before the page does")),
    }
}

/// Whether an encoded page may have so many bytes.
///
/// # Errors
/// `Field`: it may not.
pub fn check_encoded_length(stored_bytes: usize, page_bytes: usize) -> Result<(), Fault> {
    at_most("stored length", encoded_limit(page_bytes) as u64, stored_bytes as u64)
}

#[cfg(test)]
mod tests;
