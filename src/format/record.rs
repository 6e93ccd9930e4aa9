//! The log record: what one commit changed, and the seal that decides whether it happened.
//!
//! A record is a header of 256 bytes, entries of 64 bytes, and a blob of payloads (user header, names), padded with
//! zeros to whole blocks. Its checksum covers the record from the byte after the checksum on; its seal covers the same
//! bytes and then every stored page of the commit, in the order of the entries.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::{Seal, SealHasher, checksum};
use super::codec::{CodecId, check_encoded_length};
use super::pointer::{BlockPointer, RawPointer};
use super::superblock::{RawSegment, SegmentReference};
use super::{at_most, expect, reserved_zero};
use crate::error::Fault;
use crate::id::{BLOCK_LENGTH, Block, Generation, Incarnation, PageId, StoreId};

/// Bytes of a record's header.
pub const RECORD_HEADER_BYTES: usize = 256;
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 64;
/// Blocks of the longest record, without the pages behind it: a larger one has its body elsewhere.
pub const RECORD_BLOCKS_LIMIT: u32 = 64;
/// Where what checksum and seal cover begins.
const COVERED: usize = 20;

const MAGIC: u32 = u32::from_le_bytes(*b"VLrc");

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRecord {
    seal: Seal,
    checksum: U32,
    magic: U32,
    blocks: U32,
    run_blocks: U32,
    flags: U32,
    entries: U32,
    blob_length: U32,
    reserved_a: U32,
    store: [u8; 16],
    incarnation: U64,
    salt: U64,
    address: U64,
    generation: U64,
    synced_through: U64,
    previous_seal: Seal,
    next_segment: RawSegment,
    body_length: U64,
    body_seal: Seal,
    reserved_b: [u8; 88],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    kind: u8,
    reserved: [u8; 7],
    id: U64,
    new: RawPointer,
    old: RawPointer,
}

const _: () = {
    assert!(size_of::<RawRecord>() == RECORD_HEADER_BYTES);
    assert!(std::mem::offset_of!(RawRecord, magic) == COVERED);
    assert!(std::mem::offset_of!(RawRecord, blocks) == 24);
    assert!(std::mem::offset_of!(RawRecord, store) == 48);
    assert!(std::mem::offset_of!(RawRecord, generation) == 88);
    assert!(std::mem::offset_of!(RawRecord, previous_seal) == 104);
    assert!(std::mem::offset_of!(RawRecord, next_segment) == 120);
    assert!(std::mem::offset_of!(RawRecord, body_length) == 144);
    assert!(std::mem::offset_of!(RawRecord, reserved_b) == 168);
    assert!(size_of::<RawEntry>() == ENTRY_BYTES);
};

/// Properties of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RecordFlags(u32);

impl RecordFlags {
    /// The first record of an incarnation: it changes nothing, and ends whatever torn record stood there.
    pub const OPENING: Self = Self(1);
    /// The pages were synced before the record was written: the seal does not cover them.
    pub const DATA_SYNCED: Self = Self(2);
    /// The entries lie in extents of their own (the `Body` entries), sealed by `body_seal`.
    pub const EXTERNAL_BODY: Self = Self(4);
    const KNOWN: u32 = 7;

    /// The bits on disk.
    pub const fn bits(self) -> u32 {
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

/// What the finder of a record knows beforehand: nothing else at this place is a record (design review, finding 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordIdentity {
    /// The store.
    pub store: StoreId,
    /// Where the record lies.
    pub address: Block,
    /// The salt of the segment's present use.
    pub salt: u64,
}

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// The seal over the record and its pages.
    pub seal: Seal,
    /// Blocks of the record itself.
    pub blocks: u32,
    /// Blocks of the record and of the pages that lie directly behind it: the next record starts after them, or in
    /// the next segment.
    pub run_blocks: u32,
    /// Properties.
    pub flags: RecordFlags,
    /// How many entries there are in the record's own blocks.
    pub entries: u32,
    /// Bytes of payload behind the entries.
    pub blob_length: u32,
    /// The writer that made it.
    pub incarnation: Incarnation,
    /// The salt it is sealed with.
    pub salt: u64,
    /// The generation it makes.
    pub generation: Generation,
    /// The newest generation that was known to be durable, with all before it, when this was written.
    pub synced_through: Generation,
    /// The seal of the record before.
    pub previous_seal: Seal,
    /// The segment that follows when this one is full.
    pub next_segment: Option<SegmentReference>,
    /// Bytes of the external body; 0 without one.
    pub body_length: u64,
    /// The seal of the external body.
    pub body_seal: Seal,
}

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The page's pointer was `old` and is `new`; null in `new` frees the page, null in `old` allocates it.
    Set {
        /// The page.
        page: PageId,
        /// What it is.
        new: BlockPointer,
        /// What it was.
        old: BlockPointer,
    },
    /// An extent that this commit wrote and that the page's tree of chunks reaches.
    Stored {
        /// The page.
        page: PageId,
        /// A chunk, or a node of the tree.
        new: BlockPointer,
    },
    /// An extent that died with this commit, beside those that `Set` and `Move` tell of.
    Dead {
        /// What lay there.
        old: BlockPointer,
    },
    /// The page's bytes were copied from `old` to `new`; nothing else of it changed.
    Move {
        /// The page.
        page: PageId,
        /// Where they are.
        new: BlockPointer,
        /// Where they were.
        old: BlockPointer,
    },
    /// The user header is these bytes of the blob.
    Header {
        /// Where they start in the blob.
        offset: u32,
        /// How many they are.
        length: u32,
    },
    /// A snapshot or a bookmark of this generation's state is made; these bytes of the blob are its catalogue entry,
    /// without roots and header.
    CatalogueAdd {
        /// Where they start in the blob.
        offset: u32,
        /// How many they are.
        length: u32,
    },
    /// The snapshot or bookmark of this id is removed.
    CatalogueRemove {
        /// The entry's id.
        id: u64,
    },
    /// A part of the record's external body.
    Body {
        /// Where it lies.
        new: BlockPointer,
    },
}

const SET: u8 = 1;
const STORED: u8 = 2;
const DEAD: u8 = 3;
const MOVE: u8 = 4;
const HEADER: u8 = 5;
const CATALOGUE_ADD: u8 = 6;
const CATALOGUE_REMOVE: u8 = 7;
const BODY: u8 = 8;
// 9 is reserved for the cutting of the file, 10 for a delta over a base pointer.

impl Entry {
    fn to_raw(self) -> RawEntry {
        let null = BlockPointer::default();
        let range = |offset: u32, length: u32| u64::from(offset) | u64::from(length) << 32;
        let (kind, id, new, old) = match self {
            Self::Set { page, new, old } => (SET, page.to_u64(), new, old),
            Self::Stored { page, new } => (STORED, page.to_u64(), new, null),
            Self::Dead { old } => (DEAD, 0, null, old),
            Self::Move { page, new, old } => (MOVE, page.to_u64(), new, old),
            Self::Header { offset, length } => (HEADER, range(offset, length), null, null),
            Self::CatalogueAdd { offset, length } => (CATALOGUE_ADD, range(offset, length), null, null),
            Self::CatalogueRemove { id } => (CATALOGUE_REMOVE, id, null, null),
            Self::Body { new } => (BODY, 0, new, null),
        };
        RawEntry { kind, reserved: [0; 7], id: U64::new(id), new: new.to_raw(), old: old.to_raw() }
    }

    fn from_raw(raw: &RawEntry, blob_length: u64) -> Result<Self, Fault> {
        reserved_zero("entry reserved", &raw.reserved)?;
        let (new, old) = (BlockPointer::from_raw(&raw.new)?, BlockPointer::from_raw(&raw.old)?);
        let id = raw.id.get();
        let page = || PageId::from_u64(id).ok_or(Fault::Field { field: "page id", expected: 0, found: id });
        let range = || {
            let (offset, length) = (id as u32, (id >> 32) as u32);
            at_most("blob range", blob_length, u64::from(offset) + u64::from(length))?;
            Ok((offset, length))
        };
        let fits = |page: PageId, pointer: &BlockPointer| {
            at_most("stored length", page.class().page_bytes(), pointer.stored_length.into())?;
            if !pointer.is_null() && pointer.stored_length > 0 && pointer.is_indirect() != page.class().is_chunked() {
                return Err(Fault::Other("a pointer is indirect where it must not be, or direct where it must not"));
            }
            if pointer.codec.codec().is_some() {
                check_encoded_length(pointer.stored_length as usize, page.class().page_bytes() as usize)?;
            }
            Ok(page)
        };
        let entry = match raw.kind {
            SET => Self::Set { page: fits(fits(page()?, &new)?, &old)?, new, old },
            STORED => Self::Stored { page: page()?, new },
            DEAD => Self::Dead { old },
            MOVE => Self::Move { page: fits(fits(page()?, &new)?, &old)?, new, old },
            HEADER => range().map(|(offset, length)| Self::Header { offset, length })?,
            CATALOGUE_ADD => range().map(|(offset, length)| Self::CatalogueAdd { offset, length })?,
            CATALOGUE_REMOVE => Self::CatalogueRemove { id },
            BODY => Self::Body { new },
            found => return Err(Fault::Field { field: "entry kind", expected: BODY.into(), found: found.into() }),
        };
        if raw.kind == BODY {
            expect("codec of a body", CodecId::RAW.to_u8().into(), new.codec.to_u8().into())?;
        }
        if matches!(raw.kind, DEAD | BODY) && id != 0 {
            return Err(Fault::Field { field: "entry id", expected: 0, found: id });
        }
        let unused_old = matches!(raw.kind, STORED | HEADER | CATALOGUE_ADD | CATALOGUE_REMOVE | BODY);
        let unused_new = matches!(raw.kind, DEAD | HEADER | CATALOGUE_ADD | CATALOGUE_REMOVE);
        if (unused_old && old != BlockPointer::default()) || (unused_new && new != BlockPointer::default()) {
            return Err(Fault::Other("an entry has a pointer that its kind does not use"));
        }
        Ok(entry)
    }
}

/// Blocks of a record with so many entries and bytes of payload.
pub const fn record_blocks(entries: usize, blob_length: usize) -> u64 {
    ((RECORD_HEADER_BYTES + entries * ENTRY_BYTES + blob_length) as u64).div_ceil(BLOCK_LENGTH as u64)
}

/// Writes a record without its seal and checksum into `target`, which has exactly [`record_blocks`] blocks, zeroed.
/// `entries`, `blob_length` and `blocks` of the header are taken from the arguments, not from `header`.
pub fn encode_record(
    target: &mut [u8],
    identity: &RecordIdentity,
    header: &RecordHeader,
    entries: &[Entry],
    blob: &[u8],
) {
    let raw = RawRecord {
        seal: Seal::default(),
        checksum: U32::new(0),
        magic: U32::new(MAGIC),
        blocks: U32::new((target.len() / BLOCK_LENGTH) as u32),
        run_blocks: U32::new(header.run_blocks),
        flags: U32::new(header.flags.bits()),
        entries: U32::new(entries.len() as u32),
        blob_length: U32::new(blob.len() as u32),
        reserved_a: U32::new(0),
        store: identity.store.0,
        incarnation: U64::new(header.incarnation.0),
        salt: U64::new(identity.salt),
        address: U64::new(identity.address.0),
        generation: U64::new(header.generation.0),
        synced_through: U64::new(header.synced_through.0),
        previous_seal: header.previous_seal,
        next_segment: header.next_segment.map(SegmentReference::to_raw).unwrap_or_default(),
        body_length: U64::new(header.body_length),
        body_seal: header.body_seal,
        reserved_b: [0; 88],
    };
    target[..RECORD_HEADER_BYTES].copy_from_slice(raw.as_bytes());
    let body = &mut target[RECORD_HEADER_BYTES..];
    encode_body(body, entries, blob);
}

fn encode_body(target: &mut [u8], entries: &[Entry], blob: &[u8]) {
    let (entry_bytes, rest) = target.split_at_mut(entries.len() * ENTRY_BYTES);
    for (bytes, entry) in entry_bytes.chunks_exact_mut(ENTRY_BYTES).zip(entries) {
        bytes.copy_from_slice(entry.to_raw().as_bytes());
    }
    rest[..blob.len()].copy_from_slice(blob);
}

/// Seals an encoded record: `pages` are the seals, under the same salt, of the stored bytes that its seal covers, in the
/// order of the entries.
pub fn finish_record(record: &mut [u8], salt: u64, pages: impl Iterator<Item = Seal>) -> Seal {
    let sum = checksum(&record[COVERED..]);
    let mut hasher = SealHasher::new(salt);
    hasher.update(&record[COVERED..]);
    pages.for_each(|page| hasher.update(&page.0));
    let seal = hasher.finish();
    record[..16].copy_from_slice(&seal.0);
    record[16..20].copy_from_slice(&sum.to_le_bytes());
    seal
}

/// Decodes the header in the first block of what may be a record at `identity`; `None`: there is none. Only the
/// header's own fields are judged; the record's length, now known, must be read and [`verify_checksum`] asked.
pub fn decode_header(block: &[u8], identity: &RecordIdentity) -> Option<RecordHeader> {
    let (raw, _) = RawRecord::ref_from_prefix(block).ok()?;
    let known = raw.magic.get() == MAGIC
        && raw.store == identity.store.0
        && raw.address.get() == identity.address.0
        && raw.salt.get() == identity.salt
        && raw.flags.get() & !RecordFlags::KNOWN == 0
        && (1..=RECORD_BLOCKS_LIMIT).contains(&raw.blocks.get())
        && raw.run_blocks.get() >= raw.blocks.get()
        && raw.reserved_a.get() == 0
        && raw.reserved_b.iter().all(|byte| *byte == 0)
        && record_blocks(raw.entries.get() as usize, raw.blob_length.get() as usize) == u64::from(raw.blocks.get());
    if !known {
        return None;
    }
    let next_segment = match raw.next_segment.as_bytes().iter().all(|byte| *byte == 0) {
        true => None,
        false => Some(SegmentReference::from_raw(&raw.next_segment).ok()?),
    };
    Some(RecordHeader {
        seal: raw.seal,
        blocks: raw.blocks.get(),
        run_blocks: raw.run_blocks.get(),
        flags: RecordFlags(raw.flags.get()),
        entries: raw.entries.get(),
        blob_length: raw.blob_length.get(),
        incarnation: Incarnation(raw.incarnation.get()),
        salt: raw.salt.get(),
        generation: Generation(raw.generation.get()),
        synced_through: Generation(raw.synced_through.get()),
        previous_seal: raw.previous_seal,
        next_segment,
        body_length: raw.body_length.get(),
        body_seal: raw.body_seal,
    })
}

/// Whether the checksum of a whole record fits. (Its seal covers its pages too: see [`sealed_part`].)
pub fn verify_checksum(record: &[u8]) -> bool {
    let Ok((raw, _)) = RawRecord::ref_from_prefix(record) else { return false };
    raw.checksum.get() == checksum(&record[COVERED..])
}

/// The entries and the blob of a record, or of an external body (`bytes` from its first entry on).
///
/// # Errors
/// The first entry that cannot be.
pub fn decode_body(bytes: &[u8], entries: u64, blob_length: u64) -> Result<(Vec<Entry>, &[u8]), Fault> {
    let needed = entries.checked_mul(ENTRY_BYTES as u64).and_then(|length| length.checked_add(blob_length));
    at_most("record length", bytes.len() as u64, needed.unwrap_or(u64::MAX))?;
    let (entry_bytes, rest) = bytes.split_at(entries as usize * ENTRY_BYTES);
    let (blob, padding) = rest.split_at(blob_length as usize);
    reserved_zero("record padding", padding)?;
    Ok((decode_entries(entry_bytes, blob_length)?, blob))
}

/// The entries that are these bytes; their ranges lie in a blob of `blob_length` bytes.
///
/// # Errors
/// The first entry that cannot be.
pub fn decode_entries(bytes: &[u8], blob_length: u64) -> Result<Vec<Entry>, Fault> {
    bytes
        .chunks(ENTRY_BYTES)
        .map(|bytes| {
            let raw = RawEntry::ref_from_bytes(bytes).map_err(|_| Fault::Other("an entry is cut short"))?;
            Entry::from_raw(raw, blob_length)
        })
        .collect()
}

/// What the seal of a record covers of the record itself.
pub fn sealed_part(record: &[u8]) -> &[u8] {
    &record[COVERED..]
}

/// Writes entries as an external body has them; `target` is at least as long as they are.
pub fn encode_entries(target: &mut [u8], entries: &[Entry]) {
    encode_body(target, entries, &[]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Extent, SizeClass};

    fn pointer(address: u64, birth: u64) -> BlockPointer {
        BlockPointer {
            address: Block(address),
            codec: CodecId::RAW,
            stored_length: 4096,
            checksum: 5,
            ..BlockPointer::null(Generation(birth))
        }
    }

    #[test]
    fn a_record_survives_its_bytes_and_no_flipped_bit_passes() {
        let page = PageId::new(SizeClass::MIN, 3).unwrap();
        let entries = [
            Entry::Set { page, new: pointer(100, 8), old: pointer(200, 2) },
            Entry::Stored { page, new: pointer(101, 8) },
            Entry::Dead { old: pointer(300, 1) },
            Entry::Move { page, new: pointer(102, 2), old: pointer(100, 2) },
            Entry::Header { offset: 0, length: 5 },
            Entry::CatalogueAdd { offset: 1, length: 4 },
            Entry::CatalogueRemove { id: u64::MAX },
            Entry::Body { new: pointer(400, 8) },
        ];
        let identity = RecordIdentity { store: StoreId([4; 16]), address: Block(50), salt: 99 };
        let header = RecordHeader {
            seal: Seal::default(),
            blocks: 1,
            run_blocks: 2,
            flags: RecordFlags::default(),
            entries: entries.len() as u32,
            blob_length: 5,
            incarnation: Incarnation(1),
            salt: 99,
            generation: Generation(8),
            synced_through: Generation(7),
            previous_seal: Seal([2; 16]),
            next_segment: Some(SegmentReference { extent: Extent::new(500, 16), salt: 3 }),
            body_length: 0,
            body_seal: Seal::default(),
        };
        let mut record = vec![0; 4096];
        encode_record(&mut record, &identity, &header, &entries, b"hello");
        let seal = finish_record(&mut record, 99, [Seal::of(99, &[1; 4096])].into_iter());
        let read = decode_header(&record, &identity).unwrap();
        assert_eq!(read, RecordHeader { seal, ..header });
        assert!(verify_checksum(&record));
        let (found, blob) = decode_body(&record[RECORD_HEADER_BYTES..], 8, 5).unwrap();
        assert_eq!((found.as_slice(), blob), (&entries[..], &b"hello"[..]));

        for bit in 16 * 8..4096 * 8 {
            let mut bad = record.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_header(&bad, &identity).is_none() || !verify_checksum(&bad), "bit {bit}");
        }
        for other in [
            RecordIdentity { address: Block(51), ..identity },
            RecordIdentity { salt: 98, ..identity },
            RecordIdentity { store: StoreId([5; 16]), ..identity },
        ] {
            assert!(decode_header(&record, &other).is_none());
        }
    }
}
