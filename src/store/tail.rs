//! The tail of the log: records of which nobody said that they were durable, read and compared with their seals.

use super::Medium;
use super::apply::contradicts;
use super::commit::stored_pointers;
use crate::disk::AlignedBuffer;
use crate::error::{Corruption, Error, Fault, Result, Structure};
use crate::format::{BlockPointer, RecordFlags, Seal, SealHasher, checksum, sealed_part};
use crate::id::{BLOCK_BYTES, BLOCK_LENGTH, Block, Generation};
use crate::log::FoundRecord;

/// What a record of the tail stores.
pub(super) struct Tail {
    /// Its pages, as far as they are to be verified.
    pub(super) pages: Vec<(Block, AlignedBuffer)>,
    /// Whether record and pages fit the seal; else it is torn.
    pub(super) seal_fits: bool,
}

/// Reads a record of the tail with its pages, and compares both with the seal. `None` if a page is not there: it is
/// torn. `judge` says whether a read error ends the whole.
pub(super) fn read_tail(
    medium: &Medium,
    record: &FoundRecord,
    left: &mut u64,
    judge: impl Fn(Error) -> Result<()>,
) -> Result<Option<Tail>> {
    let mut hasher = SealHasher::new(record.identity.salt);
    hasher.update(sealed_part(&record.bytes));
    let mut pages = Vec::new();
    if !record.header.flags.contains(RecordFlags::DATA_SYNCED) {
        for pointer in stored_pointers(&record.entries) {
            let Some(bytes) = read_stored(medium, pointer, &judge)? else { return Ok(None) };
            spend(medium, left, pointer)?;
            let page = Seal::of(record.identity.salt, &bytes[..pointer.stored_length as usize]);
            hasher.update(&page.0);
            pages.push((pointer.address, bytes));
        }
    }
    Ok(Some(Tail { pages, seal_fits: hasher.finish() == record.header.seal }))
}

/// Takes what a pointer stores off what the file can hold besides: hostile records name one extent again and again.
fn spend(medium: &Medium, left: &mut u64, pointer: &BlockPointer) -> Result<()> {
    let bytes = left.checked_sub(pointer.stored_length.into());
    *left = bytes.ok_or_else(|| contradicts(medium, pointer.extent()))?;
    Ok(())
}

/// The blocks that a pointer stores; `None` if they do not sum to what it says.
fn read_stored(
    medium: &Medium,
    pointer: &BlockPointer,
    judge: impl Fn(Error) -> Result<()>,
) -> Result<Option<AlignedBuffer>> {
    let extent = pointer.extent();
    let file_blocks = medium.length_bytes()? / BLOCK_BYTES;
    if extent.end().0 > file_blocks {
        // The file did not grow in time.
        return Ok(None);
    }
    let mut bytes = AlignedBuffer::zeroed(extent.blocks as usize * BLOCK_LENGTH);
    if let Err(error) = medium.read(extent.start, &mut bytes) {
        return judge(error).map(|()| None);
    }
    let fits = checksum(&bytes[..pointer.stored_length as usize]) == pointer.checksum;
    Ok(fits.then_some(bytes))
}

/// The error of a log that ends with `last` in the segment at `segment`, though more was durable.
pub(super) fn missing(medium: &Medium, segment: Block, last: Generation) -> Error {
    let missing = Generation(last.0 + 1);
    let (path, offset) = (medium.path().into(), segment.offset_bytes());
    let fault = Fault::MissingGeneration { missing, last };
    Corruption { path, structure: Structure::Record, page: None, offset, fault }.into()
}
