//! External bodies: the entries of a record that lie outside of the log, read back.
//!
//! - **B1** A body was durable before its record was written: one that does not fit is damage, whatever the record is.
//! - **B2** Parts that are named again and again are not read so often: together they are no longer than the file.

use super::Medium;
use crate::error::{Corruption, Error, Fault, Result, Structure};
use crate::format::{CodecId, ENTRY_BYTES, Entry, PointerFlags, RecordFlags, SealHasher, checksum, decode_entries};
use crate::id::{BLOCK_BYTES, Block};
use crate::log::FoundRecord;

/// Puts the entries of a record's external body behind those that lead to it; nothing if it has none. What is read
/// comes off `left`, the bytes that the file can hold besides.
///
/// # Errors
/// `Corrupt`, with the place of the part or of the record; `Io`.
pub(super) fn load_body(medium: &Medium, record: &mut FoundRecord, left: &mut u64) -> Result<()> {
    let damaged = |address: Block, fault| -> Error {
        let path = medium.path().into();
        Corruption { path, structure: Structure::Record, page: None, offset: address.offset_bytes(), fault }.into()
    };
    let header = &record.header;
    let here = record.identity.address;
    let bodies = record.entries.iter().filter(|entry| matches!(entry, Entry::Body { .. })).count();
    let field = |field, expected, found| damaged(here, Fault::Field { field, expected, found });
    if !header.flags.contains(RecordFlags::EXTERNAL_BODY) {
        return match (bodies, header.body_length) {
            (0, 0) => Ok(()),
            (0, length) => Err(field("body length", 0, length)),
            (bodies, _) => Err(field("parts of a body", 0, bodies as u64)),
        };
    }
    if bodies != record.entries.len() {
        return Err(field("parts of a body", record.entries.len() as u64, bodies as u64));
    }
    let file_bytes = medium.length_bytes()?;
    let mut hasher = SealHasher::new(0);
    let mut entries = Vec::new();
    let mut length = 0;
    for part in &record.entries {
        let Entry::Body { new } = part else { continue };
        let fault = |fault| damaged(new.address, fault);
        // It was written before the record was.
        if new.birth >= header.generation {
            let (expected, found) = (header.generation.0.saturating_sub(1), new.birth.0);
            return Err(fault(Fault::Field { field: "birth of a body", expected, found }));
        }
        let whole_entries = (new.stored_length as usize).is_multiple_of(ENTRY_BYTES);
        if new.codec != CodecId::RAW || new.flags != PointerFlags::default() || !whole_entries {
            return Err(fault(Fault::Other("it cannot be a part of a body")));
        }
        if new.extent().end().0 > file_bytes / BLOCK_BYTES {
            return Err(fault(Fault::Truncated { file_bytes }));
        }
        *left = left.checked_sub(new.stored_length.into()).ok_or_else(|| fault(Fault::Overlap))?;
        let mut bytes = vec![0; new.stored_length as usize];
        medium.read(new.address, &mut bytes)?;
        let found = checksum(&bytes);
        if found != new.checksum {
            return Err(fault(Fault::Checksum { expected: new.checksum, found }));
        }
        hasher.update(&bytes);
        length += u64::from(new.stored_length);
        let decoded = decode_entries(&bytes, header.blob_length.into()).map_err(fault)?;
        if decoded.iter().any(|entry| matches!(entry, Entry::Body { .. })) {
            return Err(fault(Fault::Other("a body in a body")));
        }
        entries.extend(decoded);
    }
    if length != header.body_length {
        return Err(field("body length", header.body_length, length));
    }
    if hasher.finish() != header.body_seal {
        return Err(damaged(here, Fault::Seal));
    }
    record.entries.extend(entries);
    Ok(())
}
