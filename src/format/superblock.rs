//! The superblock: where everything else is found. Two slots used in turn, each with a second copy 64 KiB away.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::{Seal, SealHasher, checksum};
use super::pointer::{BlockPointer, RawPointer};
use super::{at_most, expect, reserved_zero};
use crate::error::Fault;
use crate::id::{BLOCK_LENGTH, Block, CheckpointNumber, Extent, Generation, Incarnation, PageId, SizeClass, StoreId};

/// The format version that this build writes and reads.
pub const VERSION: u32 = 1;
/// Bits of features without which the store must not be opened, as far as this build has them: one for each codec that a
/// pointer of the store may name ([`CodecId::feature`](super::CodecId::feature)).
pub const FEATURES_INCOMPATIBLE_KNOWN: u64 = super::codec::FEATURES;
/// Bits of features without which the store may be read but not written: none are defined yet.
pub const FEATURES_READ_COMPATIBLE_KNOWN: u64 = 0;
/// Bytes of the user header.
pub const HEADER_LIMIT: usize = 1024;
/// Log segments that a superblock can list.
pub const SEGMENTS_LIMIT: usize = 64;
/// Blocks of the longest log segment: what one leaf of the bitmap speaks of.
pub const SEGMENT_BLOCKS_LIMIT: u32 = 32768;
/// The blocks of the four copies: slot 0, slot 1, and their second copies 64 KiB further on.
pub const SUPERBLOCK_BLOCKS: [u64; 4] = [1, 2, 17, 18];
/// The first block that an extent may take. What lies before is the birth block, the superblocks, and unused.
pub const FIRST_FREE_BLOCK: u64 = 19;

const MAGIC: [u8; 8] = *b"VELLUMsb";
const BLOCK_LOG2: u8 = 12;
const RESERVED: usize = BLOCK_LENGTH - 1192 - SizeClass::COUNT * 32 - SEGMENTS_LIMIT * 24 - 24;

/// The two copies of a checkpoint's superblock.
pub const fn slot_blocks(checkpoint: CheckpointNumber) -> [u64; 2] {
    let slot = (checkpoint.0 % 2) as usize;
    [SUPERBLOCK_BLOCKS[slot], SUPERBLOCK_BLOCKS[slot + 2]]
}

#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawRoot {
    pointer: RawPointer,
    length: U64,
}

#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawSegment {
    address: U64,
    blocks: U32,
    reserved: U32,
    salt: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSuperblock {
    magic: [u8; 8],
    version: U32,
    block_log2: u8,
    unit_log2: u8,
    reserved_a: [u8; 2],
    features_incompatible: U64,
    features_read_compatible: U64,
    store: [u8; 16],
    application_id: U32,
    application_version: U32,
    checkpoint: U64,
    generation: U64,
    incarnation: U64,
    blocks_total: U64,
    blocks_free: U64,
    deferred_entries: U64,
    next_catalogue_id: U64,
    log_seal: Seal,
    log_segment: U32,
    log_offset: U32,
    segments: U32,
    header_length: U32,
    reserved_b: [u8; 24],
    header: [u8; HEADER_LIMIT],
    bitmap: RawRoot,
    catalogue: RawRoot,
    deferred: RawRoot,
    maps: [RawRoot; SizeClass::COUNT],
    segment_list: [RawSegment; SEGMENTS_LIMIT],
    reserved_c: [u8; RESERVED - 96],
    seal: Seal,
    reserved_d: [u8; 4],
    checksum: U32,
}

const COVERED: usize = BLOCK_LENGTH - 24;

const _: () = {
    assert!(size_of::<RawRoot>() == 32);
    assert!(size_of::<RawSegment>() == 24);
    assert!(size_of::<RawSuperblock>() == BLOCK_LENGTH);
    assert!(std::mem::offset_of!(RawSuperblock, store) == 32);
    assert!(std::mem::offset_of!(RawSuperblock, checkpoint) == 56);
    assert!(std::mem::offset_of!(RawSuperblock, log_seal) == 112);
    assert!(std::mem::offset_of!(RawSuperblock, header) == 168);
    assert!(std::mem::offset_of!(RawSuperblock, bitmap) == 1192);
    assert!(std::mem::offset_of!(RawSuperblock, maps) == 1288);
    assert!(std::mem::offset_of!(RawSuperblock, segment_list) == 1928);
    assert!(std::mem::offset_of!(RawSuperblock, seal) == COVERED);
    assert!(std::mem::offset_of!(RawSuperblock, checksum) == BLOCK_LENGTH - 4);
};

/// The root of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TreeRoot {
    /// The root node; null where the tree is empty.
    pub pointer: BlockPointer,
    /// How many positions the tree has; the number of its levels follows.
    pub length: u64,
}

impl TreeRoot {
    pub(super) fn to_raw(self) -> RawRoot {
        RawRoot { pointer: self.pointer.to_raw(), length: U64::new(self.length) }
    }

    pub(super) fn from_raw(raw: &RawRoot) -> Result<Self, Fault> {
        let root = Self { pointer: BlockPointer::from_raw(&raw.pointer)?, length: raw.length.get() };
        at_most("tree length", PageId::INDEX_LIMIT, root.length)?;
        if root.length == 0 && !root.pointer.is_null() {
            return Err(Fault::Other("an empty tree has a root"));
        }
        Ok(root)
    }
}

/// A log segment: where it lies, and the salt of its present use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SegmentReference {
    /// The blocks.
    pub extent: Extent,
    /// The salt under which its records are sealed; 0 for a segment that is not in use.
    pub salt: u64,
}

impl SegmentReference {
    pub(super) fn to_raw(self) -> RawSegment {
        RawSegment {
            address: U64::new(self.extent.start.0),
            blocks: U32::new(self.extent.blocks),
            reserved: U32::new(0),
            salt: U64::new(self.salt),
        }
    }

    pub(super) fn from_raw(raw: &RawSegment) -> Result<Self, Fault> {
        reserved_zero("segment reserved", raw.reserved.as_bytes())?;
        let extent = Extent { start: Block(raw.address.get()), blocks: raw.blocks.get() };
        at_most("segment end", Block::LIMIT, extent.end().0)?;
        at_most("segment length", SEGMENT_BLOCKS_LIMIT.into(), extent.blocks.into())?;
        if extent.is_empty() || extent.start.0 < FIRST_FREE_BLOCK {
            return Err(Fault::Other("a log segment is empty or lies in the superblocks"));
        }
        Ok(Self { extent, salt: raw.salt.get() })
    }
}

/// What a checkpoint says of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The format version.
    pub version: u32,
    /// Features without which the store must not be opened.
    pub features_incompatible: u64,
    /// Features without which the store must not be written.
    pub features_read_compatible: u64,
    /// The store's id.
    pub store: StoreId,
    /// The id of the application whose store this is; 0 for none in particular.
    pub application_id: u32,
    /// The application's own format version.
    pub application_version: u32,
    /// The checkpoint's number.
    pub checkpoint: CheckpointNumber,
    /// The generation folded.
    pub generation: Generation,
    /// The incarnation that made it.
    pub incarnation: Incarnation,
    /// Blocks of the file that the bitmap speaks of.
    pub blocks_total: u64,
    /// Blocks among them whose bit is clear. (Those of log segments that hold no page are clear too.)
    pub blocks_free: u64,
    /// Entries of the deferred list.
    pub deferred_entries: u64,
    /// The id of the next catalogue entry.
    pub next_catalogue_id: u64,
    /// The seal of the record of `generation`, to which the next record links.
    pub log_seal: Seal,
    /// The segment (index in `segments`) in which the next record is expected.
    pub log_segment: u32,
    /// The block within that segment at which it is expected.
    pub log_offset: u32,
    /// The user header.
    pub header: Vec<u8>,
    /// The bitmap's leaves.
    pub bitmap: TreeRoot,
    /// The catalogue's entries.
    pub catalogue: TreeRoot,
    /// The deferred list's blocks.
    pub deferred: TreeRoot,
    /// The page maps, one a size class; their lengths are the high-water marks.
    pub maps: [TreeRoot; SizeClass::COUNT],
    /// The log segments in the order of their use, from the oldest that is still needed; then those not in use.
    pub segments: Vec<SegmentReference>,
}

impl Superblock {
    /// The superblock's block. Header and segment list must be within their limits (callers check before).
    pub fn encode(&self) -> [u8; BLOCK_LENGTH] {
        let mut header = [0; HEADER_LIMIT];
        let header_length = self.header.len().min(HEADER_LIMIT);
        header[..header_length].copy_from_slice(&self.header[..header_length]);
        let mut segment_list = [RawSegment::default(); SEGMENTS_LIMIT];
        for (raw, segment) in segment_list.iter_mut().zip(&self.segments) {
            *raw = segment.to_raw();
        }
        let raw = RawSuperblock {
            magic: MAGIC,
            version: U32::new(self.version),
            block_log2: BLOCK_LOG2,
            unit_log2: BLOCK_LOG2,
            reserved_a: [0; 2],
            features_incompatible: U64::new(self.features_incompatible),
            features_read_compatible: U64::new(self.features_read_compatible),
            store: self.store.0,
            application_id: U32::new(self.application_id),
            application_version: U32::new(self.application_version),
            checkpoint: U64::new(self.checkpoint.0),
            generation: U64::new(self.generation.0),
            incarnation: U64::new(self.incarnation.0),
            blocks_total: U64::new(self.blocks_total),
            blocks_free: U64::new(self.blocks_free),
            deferred_entries: U64::new(self.deferred_entries),
            next_catalogue_id: U64::new(self.next_catalogue_id),
            log_seal: self.log_seal,
            log_segment: U32::new(self.log_segment),
            log_offset: U32::new(self.log_offset),
            segments: U32::new(self.segments.len().min(SEGMENTS_LIMIT) as u32),
            header_length: U32::new(header_length as u32),
            reserved_b: [0; 24],
            header,
            bitmap: self.bitmap.to_raw(),
            catalogue: self.catalogue.to_raw(),
            deferred: self.deferred.to_raw(),
            maps: self.maps.map(TreeRoot::to_raw),
            segment_list,
            reserved_c: [0; RESERVED - 96],
            seal: Seal::default(),
            reserved_d: [0; 4],
            checksum: U32::new(0),
        };
        let mut block: [u8; BLOCK_LENGTH] = zerocopy::transmute!(raw);
        let (seal, checksum) = sums(&block);
        block[COVERED..COVERED + 16].copy_from_slice(&seal.0);
        block[BLOCK_LENGTH - 4..].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    /// Decodes a block. `None`: it is no superblock at all (zeros, or somebody's bytes).
    ///
    /// A superblock of an unknown version or with unknown features is decoded as far as the fields that say so; the
    /// caller looks at those first.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(block: &[u8; BLOCK_LENGTH]) -> Result<Option<Self>, Fault> {
        let raw: &RawSuperblock = zerocopy::transmute_ref!(block);
        if raw.magic != MAGIC {
            return Ok(None);
        }
        let (seal, checksum) = sums(block);
        if raw.checksum.get() != checksum {
            return Err(Fault::Checksum { expected: raw.checksum.get(), found: checksum });
        }
        if raw.seal != seal {
            return Err(Fault::Seal);
        }
        let mut superblock = Self {
            version: raw.version.get(),
            features_incompatible: raw.features_incompatible.get(),
            features_read_compatible: raw.features_read_compatible.get(),
            store: StoreId(raw.store),
            application_id: raw.application_id.get(),
            application_version: raw.application_version.get(),
            checkpoint: CheckpointNumber(raw.checkpoint.get()),
            generation: Generation(raw.generation.get()),
            incarnation: Incarnation(raw.incarnation.get()),
            blocks_total: raw.blocks_total.get(),
            blocks_free: raw.blocks_free.get(),
            deferred_entries: raw.deferred_entries.get(),
            next_catalogue_id: raw.next_catalogue_id.get(),
            log_seal: raw.log_seal,
            log_segment: raw.log_segment.get(),
            log_offset: raw.log_offset.get(),
            header: Vec::new(),
            bitmap: TreeRoot::default(),
            catalogue: TreeRoot::default(),
            deferred: TreeRoot::default(),
            maps: [TreeRoot::default(); SizeClass::COUNT],
            segments: Vec::new(),
        };
        if superblock.version == VERSION && superblock.features_incompatible & !FEATURES_INCOMPATIBLE_KNOWN == 0 {
            superblock.decode_rest(raw)?;
        }
        Ok(Some(superblock))
    }

    fn decode_rest(&mut self, raw: &RawSuperblock) -> Result<(), Fault> {
        expect("block size (log2)", BLOCK_LOG2.into(), raw.block_log2.into())?;
        expect("allocation unit (log2)", BLOCK_LOG2.into(), raw.unit_log2.into())?;
        for reserved in [&raw.reserved_a[..], &raw.reserved_b, &raw.reserved_c, &raw.reserved_d] {
            reserved_zero("superblock reserved", reserved)?;
        }
        at_most("file length in blocks", Block::LIMIT, self.blocks_total)?;
        at_most("free blocks", self.blocks_total, self.blocks_free)?;
        at_most("header length", HEADER_LIMIT as u64, raw.header_length.get().into())?;
        self.header = raw.header[..raw.header_length.get() as usize].to_vec();
        self.bitmap = TreeRoot::from_raw(&raw.bitmap)?;
        self.catalogue = TreeRoot::from_raw(&raw.catalogue)?;
        self.deferred = TreeRoot::from_raw(&raw.deferred)?;
        for (root, raw) in self.maps.iter_mut().zip(&raw.maps) {
            *root = TreeRoot::from_raw(raw)?;
        }
        let segments = raw.segments.get();
        at_most("log segments", SEGMENTS_LIMIT as u64, segments.into())?;
        let (used, unused) = raw.segment_list.split_at(segments as usize);
        reserved_zero("segment list", unused.as_bytes())?;
        self.segments = used.iter().map(SegmentReference::from_raw).collect::<Result<_, _>>()?;
        let current = self.segments.get(self.log_segment as usize).ok_or(Fault::Field {
            field: "log segment",
            expected: segments.into(),
            found: self.log_segment.into(),
        })?;
        at_most("log offset", current.extent.blocks.into(), self.log_offset.into())
    }
}

fn sums(block: &[u8; BLOCK_LENGTH]) -> (Seal, u32) {
    let covered = &block[..COVERED];
    let mut hasher = SealHasher::new(0);
    hasher.update(covered);
    (hasher.finish(), checksum(covered))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        Superblock {
            version: VERSION,
            features_incompatible: 0,
            features_read_compatible: 0,
            store: StoreId([3; 16]),
            application_id: 7,
            application_version: 8,
            checkpoint: CheckpointNumber(5),
            generation: Generation(100),
            incarnation: Incarnation(9),
            blocks_total: 1000,
            blocks_free: 10,
            deferred_entries: 0,
            next_catalogue_id: 1,
            log_seal: Seal([1; 16]),
            log_segment: 0,
            log_offset: 3,
            header: b"root".to_vec(),
            bitmap: TreeRoot::default(),
            catalogue: TreeRoot::default(),
            deferred: TreeRoot::default(),
            maps: [TreeRoot::default(); SizeClass::COUNT],
            segments: vec![SegmentReference { extent: Extent::new(19, 16), salt: 77 }],
        }
    }

    #[test]
    fn a_superblock_survives_its_bytes_and_no_flipped_bit_passes() {
        let block = sample().encode();
        assert_eq!(Superblock::decode(&block).unwrap().unwrap(), sample());
        for bit in 0..BLOCK_LENGTH * 8 {
            let mut bad = block;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(Superblock::decode(&bad), Ok(Some(_))), "bit {bit}");
        }
    }

    #[test]
    fn unknown_versions_and_features_are_told_apart_from_damage() {
        let block = Superblock { version: 9, ..sample() }.encode();
        assert_eq!(Superblock::decode(&block).unwrap().unwrap().version, 9);
        let block = Superblock { features_incompatible: 1 << 40, ..sample() }.encode();
        assert_eq!(Superblock::decode(&block).unwrap().unwrap().features_incompatible, 1 << 40);
    }

    #[test]
    fn the_slots_alternate() {
        assert_eq!(slot_blocks(CheckpointNumber(2)), [1, 17]);
        assert_eq!(slot_blocks(CheckpointNumber(3)), [2, 18]);
    }
}
