//! An entry of the catalogue: a snapshot, or a bookmark. One block each.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::superblock::{HEADER_LIMIT, RawRoot, TreeRoot};
use super::{at_most, expect, reserved_zero};
use crate::error::Fault;
use crate::id::{BLOCK_LENGTH, Generation, Incarnation, SizeClass};

/// Bytes in a name.
pub const NAME_LIMIT: usize = 255;
/// Bytes in a note.
pub const NOTE_LIMIT: usize = 1024;

const MAGIC: u32 = u32::from_le_bytes(*b"VLca");
const RESERVED: usize = BLOCK_LENGTH - 48 - SizeClass::COUNT * 32 - HEADER_LIMIT - 256 - NOTE_LIMIT;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    magic: U32,
    kind: U32,
    id: U64,
    generation: U64,
    incarnation: U64,
    created_seconds: U64,
    name_length: U16,
    note_length: U16,
    header_length: U32,
    maps: [RawRoot; SizeClass::COUNT],
    header: [u8; HEADER_LIMIT],
    name: [u8; 256],
    note: [u8; NOTE_LIMIT],
    reserved: [u8; RESERVED],
}

const _: () = {
    assert!(size_of::<RawEntry>() == BLOCK_LENGTH);
    assert!(std::mem::offset_of!(RawEntry, maps) == 48);
    assert!(std::mem::offset_of!(RawEntry, header) == 688);
    assert!(std::mem::offset_of!(RawEntry, name) == 1712);
    assert!(std::mem::offset_of!(RawEntry, note) == 1968);
};

/// What an entry of the catalogue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// A named durable state, which holds its space.
    Snapshot,
    /// A remembered identity, which holds none: the base of an incremental backup.
    Bookmark,
}

impl EntryKind {
    /// The kind's number on disk.
    pub const fn id(self) -> u32 {
        match self {
            Self::Snapshot => 1,
            Self::Bookmark => 2,
        }
    }

    /// The kind with this number.
    pub const fn from_id(id: u32) -> Option<Self> {
        match id {
            1 => Some(Self::Snapshot),
            2 => Some(Self::Bookmark),
            _ => None,
        }
    }
}

/// A snapshot or a bookmark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogueEntry {
    /// Which of the two.
    pub kind: EntryKind,
    /// The entry's number; never used again in this store.
    pub id: u64,
    /// The state's generation.
    pub generation: Generation,
    /// The state's incarnation.
    pub incarnation: Incarnation,
    /// When it was made, in seconds since 1970; said by the caller, trusted by nobody.
    pub created_seconds: u64,
    /// The name: 1 to [`NAME_LIMIT`] bytes, unique in the store.
    pub name: String,
    /// A note: at most [`NOTE_LIMIT`] bytes.
    pub note: String,
    /// The user header of the state (empty for a bookmark).
    pub header: Vec<u8>,
    /// The roots of the page maps of the state (empty trees for a bookmark).
    pub maps: [TreeRoot; SizeClass::COUNT],
}

/// Whether `name` can name a snapshot or a bookmark.
///
/// # Errors
/// Why it cannot, in words.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        Err("it is empty")
    } else if name.len() > NAME_LIMIT {
        Err("it has more than 255 bytes")
    } else if name.chars().any(char::is_control) {
        Err("it has control characters")
    } else {
        Ok(())
    }
}

impl CatalogueEntry {
    /// The entry's block. A name, note or header beyond its limit is cut (callers check before).
    pub fn encode(&self) -> [u8; BLOCK_LENGTH] {
        let mut raw = RawEntry {
            magic: U32::new(MAGIC),
            kind: U32::new(self.kind.id()),
            id: U64::new(self.id),
            generation: U64::new(self.generation.0),
            incarnation: U64::new(self.incarnation.0),
            created_seconds: U64::new(self.created_seconds),
            name_length: U16::new(0),
            note_length: U16::new(0),
            header_length: U32::new(0),
            maps: self.maps.map(TreeRoot::to_raw),
            header: [0; HEADER_LIMIT],
            name: [0; 256],
            note: [0; NOTE_LIMIT],
            reserved: [0; RESERVED],
        };
        raw.name_length = U16::new(put(&mut raw.name[..NAME_LIMIT], self.name.as_bytes()) as u16);
        raw.note_length = U16::new(put(&mut raw.note, self.note.as_bytes()) as u16);
        raw.header_length = U32::new(put(&mut raw.header, &self.header) as u32);
        zerocopy::transmute!(raw)
    }

    /// Decodes a block.
    ///
    /// # Errors
    /// The first field that is not as it must be.
    pub fn decode(bytes: &[u8; BLOCK_LENGTH]) -> Result<Self, Fault> {
        let raw: &RawEntry = zerocopy::transmute_ref!(bytes);
        expect("catalogue magic", MAGIC.into(), raw.magic.get().into())?;
        let kind = EntryKind::from_id(raw.kind.get()).ok_or(Fault::Field {
            field: "catalogue kind",
            expected: 2,
            found: raw.kind.get().into(),
        })?;
        let name = take(&raw.name[..NAME_LIMIT], "name length", raw.name_length.get().into())?;
        let note = take(&raw.note, "note length", raw.note_length.get().into())?;
        let header = take(&raw.header, "header length", raw.header_length.get() as usize)?;
        reserved_zero("catalogue reserved", &raw.name[NAME_LIMIT..])?;
        reserved_zero("catalogue reserved", &raw.reserved)?;
        let mut maps = [TreeRoot::default(); SizeClass::COUNT];
        for (root, raw) in maps.iter_mut().zip(&raw.maps) {
            *root = TreeRoot::from_raw(raw)?;
        }
        let text =
            |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| Fault::Other("a name or note is not UTF-8"));
        let name = text(name)?;
        check_name(&name).map_err(Fault::Other)?;
        Ok(Self {
            kind,
            id: raw.id.get(),
            generation: Generation(raw.generation.get()),
            incarnation: Incarnation(raw.incarnation.get()),
            created_seconds: raw.created_seconds.get(),
            name,
            note: text(note)?,
            header: header.to_vec(),
            maps,
        })
    }
}

/// Copies what fits and says how much did.
fn put(target: &mut [u8], source: &[u8]) -> usize {
    let length = source.len().min(target.len());
    target[..length].copy_from_slice(&source[..length]);
    length
}

/// The first `length` bytes of a field whose other bytes are zero.
fn take<'a>(field: &'a [u8], name: &'static str, length: usize) -> Result<&'a [u8], Fault> {
    at_most(name, field.len() as u64, length as u64)?;
    let (used, unused) = field.split_at(length);
    reserved_zero(name, unused)?;
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_survives_its_bytes() {
        let entry = CatalogueEntry {
            kind: EntryKind::Snapshot,
            id: 9,
            generation: Generation(77),
            incarnation: Incarnation(5),
            created_seconds: 1_700_000_000,
            name: "before the migration".into(),
            note: "größer".into(),
            header: vec![1, 2, 3],
            maps: [TreeRoot::default(); SizeClass::COUNT],
        };
        assert_eq!(CatalogueEntry::decode(&entry.encode()).unwrap(), entry);
        let mut bad = entry.encode();
        bad[40] = 200;
        bad[41] = 200;
        assert!(CatalogueEntry::decode(&bad).is_err());
        assert!(check_name("").is_err() && check_name("a\nb").is_err() && check_name(&"x".repeat(256)).is_err());
    }
}
