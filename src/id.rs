//! The numbers of the store, each a type of its own, so that no two can be confused.
//!
//! Pure arithmetic: nothing here knows of disks, formats or memory.

use std::fmt;

/// Bytes in a block: the unit of allocation, of torn writes and of direct I/O.
pub const BLOCK_BYTES: u64 = 4096;

/// [`BLOCK_BYTES`] as a length in memory.
pub const BLOCK_LENGTH: usize = 4096;

/// The number of a block in the file: byte offset divided by [`BLOCK_BYTES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block(pub u64);

impl Block {
    /// One past the largest block number a block pointer can hold (48 bits: files up to 1 EiB).
    pub const LIMIT: u64 = 1 << 48;

    /// The byte offset of the block's first byte, saturating at `u64::MAX`.
    pub const fn offset_bytes(self) -> u64 {
        self.0.saturating_mul(BLOCK_BYTES)
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}", self.0)
    }
}

/// A run of blocks: `[start, start + blocks)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// The first block.
    pub start: Block,
    /// How many blocks; an extent of none is empty, wherever it starts.
    pub blocks: u32,
}

impl Extent {
    /// The extent of `blocks` blocks from block number `start` on.
    pub const fn new(start: u64, blocks: u32) -> Self {
        Self { start: Block(start), blocks }
    }

    /// The first block after the extent.
    pub const fn end(self) -> Block {
        Block(self.start.0.saturating_add(self.blocks as u64))
    }

    /// Whether the extent has no block.
    pub const fn is_empty(self) -> bool {
        self.blocks == 0
    }

    /// The extent's length in bytes.
    pub const fn length_bytes(self) -> u64 {
        (self.blocks as u64) * BLOCK_BYTES
    }

    /// Whether the two extents share a block.
    pub const fn overlaps(self, other: Self) -> bool {
        self.blocks != 0 && other.blocks != 0 && self.start.0 < other.end().0 && other.start.0 < self.end().0
    }

    /// Whether `block` lies in the extent.
    pub const fn contains(self, block: Block) -> bool {
        self.start.0 <= block.0 && block.0 < self.end().0
    }

    /// The first `blocks` blocks, and the rest. `blocks` beyond the extent's length is taken as its length.
    pub const fn split_at(self, blocks: u32) -> (Self, Self) {
        let first = if blocks < self.blocks { blocks } else { self.blocks };
        (Self::new(self.start.0, first), Self::new(self.start.0.saturating_add(first as u64), self.blocks - first))
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks {}..{}", self.start.0, self.end().0)
    }
}

/// The number of the commit that made a state; strictly rising. Zero is the empty store before its first commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one, or `None` at the end of the number line.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}", self.0)
    }
}

/// 64 random bits drawn when a writer opens the store. (generation, incarnation) names a state for ever: one
/// incarnation makes a generation once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

/// The number of a checkpoint; strictly rising. Its parity names the superblock slot it is written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckpointNumber(pub u64);

impl CheckpointNumber {
    /// The number after this one, or `None` at the end of the number line.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

/// 128 random bits that name a store.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub [u8; 16]);

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The base-two logarithm of a page's size in bytes: 12 (4 KiB) to 31 (2 GiB).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SizeClass(u8);

impl SizeClass {
    /// The smallest class: pages of 4 KiB.
    pub const MIN: Self = Self(12);
    /// The largest class: pages of 2 GiB.
    pub const MAX: Self = Self(31);
    /// The largest class whose pages are stored as one extent; larger ones are trees of chunks of this size (1 MiB).
    pub const CHUNK: Self = Self(20);
    /// How many classes there are.
    pub const COUNT: usize = 20;

    /// The class of this logarithm, or `None` outside 12..=31.
    pub const fn new(log2: u8) -> Option<Self> {
        if log2 >= Self::MIN.0 && log2 <= Self::MAX.0 { Some(Self(log2)) } else { None }
    }

    /// The smallest class whose pages hold `bytes` bytes, or `None` above 2 GiB.
    pub const fn of(bytes: u64) -> Option<Self> {
        if bytes > Self::MAX.page_bytes() {
            return None;
        }
        if bytes <= Self::MIN.page_bytes() {
            return Some(Self::MIN);
        }
        Some(Self(bytes.next_power_of_two().trailing_zeros() as u8))
    }

    /// Every class, smallest first.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> + ExactSizeIterator {
        (0..Self::COUNT).map(Self::from_index)
    }

    /// The base-two logarithm of the page size.
    pub const fn log2(self) -> u8 {
        self.0
    }

    /// Position among the classes: 0 for 4 KiB, 19 for 2 GiB.
    pub const fn index(self) -> usize {
        (self.0 - Self::MIN.0) as usize
    }

    pub(crate) const fn from_index(index: usize) -> Self {
        assert!(index < Self::COUNT, "a class index is below COUNT");
        Self(Self::MIN.0 + index as u8)
    }

    /// Bytes in a page of this class.
    pub const fn page_bytes(self) -> u64 {
        1 << self.0
    }

    /// Blocks in a page of this class, stored without compression.
    pub const fn page_blocks(self) -> u64 {
        self.page_bytes() / BLOCK_BYTES
    }

    /// Whether pages of this class are stored as trees of 1 MiB chunks.
    pub const fn is_chunked(self) -> bool {
        self.0 > Self::CHUNK.0
    }

    /// How many chunks a page of this class has; 1 for classes stored as one extent.
    pub const fn chunks(self) -> u64 {
        if self.is_chunked() { 1 << (self.0 - Self::CHUNK.0) } else { 1 }
    }
}

impl fmt::Display for SizeClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            12..=19 => write!(f, "{} KiB", 1u64 << (self.0 - 10)),
            20..=29 => write!(f, "{} MiB", 1u64 << (self.0 - 20)),
            _ => write!(f, "{} GiB", 1u64 << (self.0 - 30)),
        }
    }
}

/// The stable name of a page: its size class and an index within the class. Where the page lies on disk is looked up.
///
/// As a number: the class in the top byte (whose upper three bits are therefore zero), the index below. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(u64);

impl PageId {
    /// One past the largest index of a class.
    pub const INDEX_LIMIT: u64 = 1 << 48;
    const CLASS_SHIFT: u32 = 56;

    /// The page of `class` with this index, or `None` if the index is out of range.
    pub const fn new(class: SizeClass, index: u64) -> Option<Self> {
        if index < Self::INDEX_LIMIT { Some(Self(((class.0 as u64) << Self::CLASS_SHIFT) | index)) } else { None }
    }

    /// The page with this number, or `None` if no page can have it.
    pub const fn from_u64(number: u64) -> Option<Self> {
        match SizeClass::new((number >> Self::CLASS_SHIFT) as u8) {
            Some(class) => Self::new(class, number & ((1 << Self::CLASS_SHIFT) - 1)),
            None => None,
        }
    }

    /// The page's number, for keeping in page bytes.
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    /// The page whose number these eight little-endian bytes are, or `None`.
    pub const fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        Self::from_u64(u64::from_le_bytes(bytes))
    }

    /// The page's number as eight little-endian bytes.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }

    /// The page's size class.
    pub const fn class(self) -> SizeClass {
        SizeClass((self.0 >> Self::CLASS_SHIFT) as u8)
    }

    /// The page's index within its class.
    pub const fn index(self) -> u64 {
        self.0 & ((1 << Self::CLASS_SHIFT) - 1)
    }
}

impl fmt::Debug for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageId({self})")
    }
}

/// As `class:index`, for example `12:7`.
impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.class().0, self.index())
    }
}

/// The inverse of `Display`.
impl std::str::FromStr for PageId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (class, index) = text.split_once(':').ok_or(())?;
        let class = SizeClass::new(class.parse().map_err(|_| ())?).ok_or(())?;
        Self::new(class, index.parse().map_err(|_| ())?).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_of_a_length_is_the_smallest_that_holds_it() {
        assert_eq!(SizeClass::of(0), Some(SizeClass::MIN));
        assert_eq!(SizeClass::of(4096), Some(SizeClass::MIN));
        assert_eq!(SizeClass::of(4097), SizeClass::new(13));
        assert_eq!(SizeClass::of(1 << 31), Some(SizeClass::MAX));
        assert_eq!(SizeClass::of((1 << 31) + 1), None);
        assert_eq!(SizeClass::all().count(), SizeClass::COUNT);
    }

    #[test]
    fn page_ids_survive_their_number_bytes_and_text() {
        for class in SizeClass::all() {
            for index in [0, 1, 167, 168, PageId::INDEX_LIMIT - 1] {
                let id = PageId::new(class, index).unwrap();
                assert_eq!(PageId::from_u64(id.to_u64()), Some(id));
                assert_eq!(PageId::from_bytes(id.to_bytes()), Some(id));
                assert_eq!(id.to_string().parse(), Ok(id));
                assert_eq!(id.to_u64() >> 61, 0);
            }
            assert_eq!(PageId::new(class, PageId::INDEX_LIMIT), None);
        }
        assert_eq!(PageId::from_u64(0), None);
        assert_eq!(PageId::from_u64(u64::MAX), None);
    }

    #[test]
    fn extents_overlap_when_they_share_a_block() {
        let extent = Extent::new(10, 5);
        assert!(extent.overlaps(Extent::new(14, 1)));
        assert!(!extent.overlaps(Extent::new(15, 1)));
        assert!(!extent.overlaps(Extent::new(12, 0)));
        assert_eq!(extent.split_at(2), (Extent::new(10, 2), Extent::new(12, 3)));
        assert_eq!(extent.split_at(9), (extent, Extent::new(15, 0)));
    }
}
