//! The block pointer: where a page, a chunk or a node lies, how it is stored, and what its bytes must sum to.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{CodecId, at_most, expect};
use crate::error::Fault;
use crate::id::{BLOCK_BYTES, Block, Extent, Generation};

/// The most bytes that one pointer covers: a chunk of 1 MiB. Beyond 512 MiB a CRC32 would repeat.
pub const STORED_LIMIT: u32 = 1 << 20;

/// A block pointer as it lies on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawPointer {
    address: [u8; 6],
    codec: u8,
    flags: u8,
    stored_length: U32,
    checksum: U32,
    birth: U64,
}

const _: () = {
    assert!(size_of::<RawPointer>() == 24);
    assert!(std::mem::offset_of!(RawPointer, codec) == 6);
    assert!(std::mem::offset_of!(RawPointer, stored_length) == 8);
    assert!(std::mem::offset_of!(RawPointer, checksum) == 12);
    assert!(std::mem::offset_of!(RawPointer, birth) == 16);
};

/// Properties of what a pointer leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PointerFlags(u8);

impl PointerFlags {
    /// The pointer leads to the root of a page's tree of chunks.
    pub const INDIRECT: Self = Self(1);
    /// The bytes were moved after their birth: the extent is younger than `birth` says.
    pub const RELOCATED: Self = Self(2);
    /// In a pointer to a map node: somewhere below is a free index.
    pub const FREE_BELOW: Self = Self(4);
    const KNOWN: u8 = 7;

    /// The bits on disk.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all of `other`'s bits are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags and `other`'s.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Where a page, a chunk or a node lies, and how to know that its bytes are right.
///
/// A *null* pointer leads nowhere; its birth is the generation at which it became null, so that an increment can tell
/// of a page that went (OpenZFS learnt this late, as `hole_birth`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BlockPointer {
    /// The first block; 0 where there are no stored bytes.
    pub address: Block,
    /// How the bytes are stored.
    pub codec: CodecId,
    /// Properties of what lies there.
    pub flags: PointerFlags,
    /// Bytes stored, at most [`STORED_LIMIT`]; the extent is this, rounded up to blocks.
    pub stored_length: u32,
    /// [`super::checksum`] of the stored bytes.
    pub checksum: u32,
    /// The generation that wrote these bytes; in a pointer to a node, the youngest birth below it.
    pub birth: Generation,
}

impl BlockPointer {
    /// The pointer to nothing, since `birth`.
    pub const fn null(birth: Generation) -> Self {
        Self { address: Block(0), codec: CodecId::NULL, flags: PointerFlags(0), stored_length: 0, checksum: 0, birth }
    }

    /// The pointer to a page of zeros.
    pub const fn zero(birth: Generation) -> Self {
        Self { codec: CodecId::ZERO, ..Self::null(birth) }
    }

    /// Whether the pointer leads nowhere.
    pub const fn is_null(&self) -> bool {
        matches!(self.codec, CodecId::NULL)
    }

    /// The extent that the stored bytes occupy; empty where there are none.
    pub const fn extent(&self) -> Extent {
        Extent::new(self.address.0, (self.stored_length as u64).div_ceil(BLOCK_BYTES) as u32)
    }

    /// Whether the pointer leads to the root of a tree of chunks.
    pub const fn is_indirect(&self) -> bool {
        self.flags.contains(PointerFlags::INDIRECT)
    }

    pub(super) fn to_raw(self) -> RawPointer {
        let mut address = [0; 6];
        address.copy_from_slice(&self.address.0.to_le_bytes()[..6]);
        RawPointer {
            address,
            codec: self.codec.to_u8(),
            flags: self.flags.bits(),
            stored_length: U32::new(self.stored_length),
            checksum: U32::new(self.checksum),
            birth: U64::new(self.birth.0),
        }
    }

    pub(super) fn from_raw(raw: &RawPointer) -> Result<Self, Fault> {
        let [a, b, c, d, e, f] = raw.address;
        let codec = CodecId::from_u8(raw.codec).ok_or(Fault::UnknownCodec { number: raw.codec })?;
        at_most("pointer flags", PointerFlags::KNOWN.into(), raw.flags.into())?;
        let pointer = Self {
            address: Block(u64::from_le_bytes([a, b, c, d, e, f, 0, 0])),
            codec,
            flags: PointerFlags(raw.flags),
            stored_length: raw.stored_length.get(),
            checksum: raw.checksum.get(),
            birth: Generation(raw.birth.get()),
        };
        if matches!(codec, CodecId::NULL | CodecId::ZERO) {
            expect("address of nothing", 0, pointer.address.0)?;
            expect("length of nothing", 0, pointer.stored_length.into())?;
            expect("checksum of nothing", 0, pointer.checksum.into())?;
        } else {
            if pointer.is_indirect() {
                expect("codec of a tree of chunks", CodecId::RAW.to_u8().into(), raw.codec.into())?;
            }
            at_most("stored length", STORED_LIMIT.into(), pointer.stored_length.into())?;
            if pointer.stored_length == 0 {
                return Err(Fault::Field { field: "stored length", expected: STORED_LIMIT.into(), found: 0 });
            }
            if pointer.address.0 < super::FIRST_FREE_BLOCK {
                let expected = super::FIRST_FREE_BLOCK;
                return Err(Fault::Field { field: "address", expected, found: pointer.address.0 });
            }
            at_most("address", Block::LIMIT - u64::from(pointer.extent().blocks), pointer.address.0)?;
        }
        Ok(pointer)
    }
}
