//! Following the log from a superblock on, and looking beyond its end for evidence of what is missing.

use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::Disk;
use crate::error::{Corruption, Error, Fault, Result, Structure};
use crate::format::{
    Entry, RECORD_HEADER_BYTES, RecordHeader, RecordIdentity, SEGMENTS_LIMIT, Seal, SegmentReference, decode_body,
    decode_header, verify_checksum,
};
use crate::id::{BLOCK_BYTES, BLOCK_LENGTH, Block, Generation, StoreId};

/// Blocks read at a time where records follow one another.
const WINDOW_BLOCKS: u64 = 32;

/// And where pages lie behind the records: those are not looked at, and are most of the log.
const SPARSE_WINDOW_BLOCKS: u64 = 2;

/// Segments that are searched for evidence beyond the end of the log.
const EVIDENCE_SEGMENTS: usize = SEGMENTS_LIMIT;

/// Where to start: as a superblock tells.
#[derive(Clone, Debug)]
pub struct LogStart {
    /// The generation folded: the first record makes the one after.
    pub generation: Generation,
    /// The seal of that generation's record.
    pub seal: Seal,
    /// The segment in which the first record is expected.
    pub segment: SegmentReference,
    /// The block of it.
    pub offset: u32,
    /// The segment that is announced as the next.
    pub next: Option<SegmentReference>,
}

/// A record that is whole and linked to the one before. Its seal has not been compared with its pages.
#[derive(Clone, Debug)]
pub struct FoundRecord {
    /// Where it lies.
    pub identity: RecordIdentity,
    /// The segment it lies in.
    pub segment: SegmentReference,
    /// Its header.
    pub header: RecordHeader,
    /// The record's own blocks.
    pub bytes: Vec<u8>,
    /// Its entries.
    pub entries: Vec<Entry>,
    /// Its payloads.
    pub blob: Vec<u8>,
}

/// Follows the log.
#[derive(Debug)]
pub struct Scanner {
    disk: Arc<dyn Disk>,
    store: StoreId,
    file_bytes: u64,
    segment: SegmentReference,
    offset: u32,
    next: Option<SegmentReference>,
    seal: Seal,
    generation: Generation,
    window: Window,
}

/// What was read last. Its memory is used again and again.
#[derive(Debug, Default)]
struct Window {
    start: u64,
    /// Bytes from there.
    length: u64,
    memory: Vec<u8>,
    /// Whether pages lie behind the newest record.
    sparse: Sparse,
}

/// Whether records have pages behind them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sparse {
    #[default]
    No,
    Yes,
}

impl Window {
    fn blocks(&self) -> u64 {
        match self.sparse {
            Sparse::No => WINDOW_BLOCKS,
            Sparse::Yes => SPARSE_WINDOW_BLOCKS,
        }
    }

    /// Memory for so many bytes; what it holds is anything.
    fn memory(&mut self, length: u64) -> &mut [u8] {
        let length = length as usize;
        if self.memory.len() < length {
            self.memory = vec![0; length];
        }
        &mut self.memory[..length]
    }
}

impl Scanner {
    /// A scanner that stands at `start`.
    ///
    /// # Errors
    /// `Io` if the file's length cannot be had.
    pub fn new(disk: Arc<dyn Disk>, store: StoreId, start: LogStart) -> Result<Self> {
        let path = PathBuf::from(disk.path());
        let file_bytes =
            disk.length().map_err(|source| Error::Io { operation: "length", path, offset: None, source })?;
        Ok(Self {
            disk,
            store,
            file_bytes,
            segment: start.segment,
            offset: start.offset,
            next: start.next,
            seal: start.seal,
            generation: start.generation,
            window: Window::default(),
        })
    }

    /// The segment that holds the place where the scanner stands, the block of it, and the segment announced.
    pub fn place(&self) -> (SegmentReference, u32, Option<SegmentReference>) {
        (self.segment, self.offset, self.next)
    }

    /// The next record, or `None` where there is none that is whole and linked. A record whose entries cannot be
    /// decoded although its checksum fits is none either: the generation it would make is then missing.
    ///
    /// # Errors
    /// `Io`: a read error is not the end of the log. `Corrupt` for a record that names a codec which this build does not
    /// have: nor is that.
    pub fn next_record(&mut self) -> Result<Option<FoundRecord>> {
        if let Some(found) = self.at(self.segment, self.offset)? {
            return Ok(Some(self.step(found)));
        }
        if let Some(next) = self.next
            && let Some(found) = self.at(next, 0)?
        {
            return Ok(Some(self.step(found)));
        }
        Ok(None)
    }

    fn step(&mut self, found: FoundRecord) -> FoundRecord {
        if found.segment != self.segment {
            self.segment = found.segment;
            self.next = None;
        }
        self.offset = (found.identity.address.0 - found.segment.extent.start.0) as u32 + found.header.run_blocks;
        self.next = found.header.next_segment.or(self.next);
        self.seal = found.header.seal;
        self.generation = found.header.generation;
        self.window.sparse = match found.header.run_blocks > found.header.blocks {
            true => Sparse::Yes,
            false => Sparse::No,
        };
        found
    }

    fn at(&mut self, segment: SegmentReference, offset: u32) -> Result<Option<FoundRecord>> {
        let Some(found) = self.whole_record(segment, offset)? else { return Ok(None) };
        let linked = found.header.previous_seal == self.seal
            && Some(found.header.generation) == self.generation.next()
            && found.header.synced_through < found.header.generation;
        Ok(linked.then_some(found))
    }

    /// A record of the right store, address and salt whose checksum fits, whatever it links to.
    fn whole_record(&mut self, segment: SegmentReference, offset: u32) -> Result<Option<FoundRecord>> {
        let room = segment.extent.blocks.saturating_sub(offset);
        if room == 0 {
            return Ok(None);
        }
        let address = Block(segment.extent.start.0 + u64::from(offset));
        let identity = RecordIdentity { store: self.store, address, salt: segment.salt };
        let header = decode_header(self.read(address, 1, segment)?, &identity);
        let Some(header) = header.filter(|header| header.run_blocks <= room) else { return Ok(None) };
        let bytes = self.read(address, header.blocks, segment)?.to_vec();
        if !verify_checksum(&bytes) {
            return Ok(None);
        }
        let body = decode_body(&bytes[RECORD_HEADER_BYTES..], header.entries.into(), header.blob_length.into());
        let (entries, blob) = match body {
            Ok(body) => body,
            Err(fault @ Fault::UnknownCodec { .. }) => {
                let (path, offset) = (self.disk.path().into(), address.offset_bytes());
                return Err(Corruption { path, structure: Structure::Record, page: None, offset, fault }.into());
            }
            Err(_) => return Ok(None),
        };
        let blob = blob.to_vec();
        Ok(Some(FoundRecord { identity, segment, header, entries, blob, bytes }))
    }

    /// `blocks` blocks from `address` on; what lies beyond the file's end reads as zeros.
    fn read(&mut self, address: Block, blocks: u32, segment: SegmentReference) -> Result<&[u8]> {
        let wanted = u64::from(blocks) * BLOCK_BYTES;
        let start = address.offset_bytes();
        if start < self.window.start || start + wanted > self.window.start + self.window.length {
            let until = (address.0 + u64::from(blocks).max(self.window.blocks())).min(segment.extent.end().0);
            let length = (until - address.0) * BLOCK_BYTES;
            let present = self.file_bytes.saturating_sub(start).min(length) as usize;
            // Nothing of it is believed if the read fails.
            self.window.length = 0;
            let (read, beyond) = self.window.memory(length).split_at_mut(present);
            beyond.fill(0);
            self.disk.read_at(start, read).map_err(|source| {
                let path = self.disk.path().into();
                Error::Io { operation: "read", path, offset: Some(start), source }
            })?;
            (self.window.start, self.window.length) = (start, length);
        }
        let from = (start - self.window.start) as usize;
        Ok(&self.window.memory[from..from + wanted as usize])
    }

    /// The greatest generation that any whole record beyond the present place says to be durable. Such a record, if it
    /// speaks of a generation that was not found, proves that the end of the log is damage and not a torn commit
    /// (design review, finding 16).
    ///
    /// Looked at are the rest of this segment, the announced one, and those that whole records found there announce: a
    /// record that is lost in the middle of a segment must not hide the segments after it.
    ///
    /// # Errors
    /// `Io`.
    pub fn evidence_beyond(&mut self) -> Result<Option<Generation>> {
        let mut evidence = None;
        // Every block is looked at.
        self.window.sparse = Sparse::No;
        let mut segments = vec![(self.segment, self.offset)];
        segments.extend(self.next.map(|next| (next, 0)));
        let mut index = 0;
        while let Some(&(segment, from)) = segments.get(index) {
            index += 1;
            let mut offset = from;
            while offset < segment.extent.blocks {
                let Some(found) = self.whole_record(segment, offset)? else {
                    offset += 1;
                    continue;
                };
                evidence = evidence.max(Some(found.header.synced_through));
                let announced = found.header.next_segment;
                let fresh = announced.filter(|next| segments.iter().all(|(known, _)| known != next));
                if segments.len() < EVIDENCE_SEGMENTS {
                    segments.extend(fresh.map(|next| (next, 0)));
                }
                // Pages behind a record are not looked at.
                offset += found.header.run_blocks;
            }
        }
        Ok(evidence)
    }
}

const _: () = assert!(BLOCK_LENGTH as u64 == BLOCK_BYTES);
