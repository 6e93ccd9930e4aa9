//! Encoded contents: bytes of a page that were made fewer before the commit.
//!
//! Encoding is the caller's work, on the caller's threads and before the store is locked ([`Content::encode`]): the store
//! takes what it is given, and pointers say how it is stored. Nothing in the file says how the next page will be.
//!
//! - **Z5** Before the first record that names a codec is written, the codec's bit is durable in both copies of the
//!   newest superblock ([`Store::permit_codecs`]); every later superblock has it too. So a build that does not have the
//!   codec refuses the store, and never takes a record for the end of the log.
//! - **Z6** While a checkpoint runs, no bit is added, since the checkpoint's superblock is made already: what needs one is
//!   stored as it is meanwhile. (Encoded bytes without the page behind them come from the store itself, which has the
//!   bit; and so has what was spilled, E5.)

use std::borrow::Cow;
use std::cell::RefCell;

use super::{Changes, Content, PageChange, Running, Store};
use crate::disk::AlignedBuffer;
use crate::error::Result;
use crate::format::{BlockPointer, CodecId, Compression, Entry, checksum, slot_blocks};
use crate::id::{BLOCK_LENGTH, Block};

/// A page (or a chunk) as a codec made it.
#[derive(Clone, Debug)]
pub struct Encoded<'a> {
    pub(super) codec: CodecId,
    pub(super) stored: Vec<u8>,
    pub(super) checksum: u32,
    pub(super) page_bytes: u32,
    /// The page, to be stored as it is if the codec may not be used now.
    pub(super) page: Option<Cow<'a, [u8]>>,
}

impl Encoded<'_> {
    /// How it is stored.
    pub fn codec(&self) -> CodecId {
        self.codec
    }

    /// How many bytes are stored.
    pub fn stored_length(&self) -> u32 {
        self.stored.len() as u32
    }
}

thread_local! {
    /// Where this thread encodes. Grows to a little more than 1 MiB at most.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl<'a> Content<'a> {
    /// The page (or chunk) as `compression` makes it; as it is, if that would not save a block, and if every byte is
    /// zero. A function of its arguments, which takes a while: to be called before the store is locked.
    pub fn encode(page: impl Into<Cow<'a, [u8]>>, compression: Compression) -> Self {
        let page = page.into();
        let Ok(page_bytes) = u32::try_from(page.len()) else { return Self::Bytes(page) };
        if compression.is_none() || page.len() <= BLOCK_LENGTH || page.iter().all(|byte| *byte == 0) {
            return Self::Bytes(page);
        }
        let mut scratch = SCRATCH.try_with(RefCell::take).unwrap_or_default();
        let stored = compression.encode(&page, &mut scratch).map(|length| scratch[..length].to_vec());
        // Of a thread that is ending, the scratch ends here.
        let _ = SCRATCH.try_with(|kept| kept.replace(scratch));
        match stored {
            None => Self::Bytes(page),
            Some(stored) => {
                let checksum = checksum(&stored);
                Self::Encoded(Encoded { codec: compression.codec(), stored, checksum, page_bytes, page: Some(page) })
            }
        }
    }

    /// The same encoded bytes as an older state of this store has them.
    pub(super) fn copied(pointer: &BlockPointer, stored: Vec<u8>, page_bytes: u32) -> Self {
        let (codec, checksum) = (pointer.codec, pointer.checksum);
        Self::Encoded(Encoded { codec, stored, checksum, page_bytes, page: None })
    }
}

impl Store {
    /// The incompatible features that the commit may use: those that the newest superblock has when this returns.
    ///
    /// # Errors
    /// `Io`, `Poisoned` while the superblock is written.
    pub(super) fn permit_codecs(&mut self, changes: &Changes<'_>) -> Result<u64> {
        self.permit_features(changes.pages.values().map(features_of).fold(0, |bits, more| bits | more))
    }

    /// As [`Store::permit_codecs`], for these features.
    pub(super) fn permit_features(&mut self, needed: u64) -> Result<u64> {
        let missing = needed & !self.folded.features_incompatible;
        if missing == 0 || self.checkpoint_running == Running::Yes {
            return Ok(self.folded.features_incompatible);
        }
        let mut superblock = self.folded.clone();
        superblock.features_incompatible |= missing;
        let mut block = AlignedBuffer::zeroed(BLOCK_LENGTH);
        block.copy_from_slice(&superblock.encode());
        // One copy after the other: whatever is torn, the other copy is whole.
        for copy in slot_blocks(superblock.checkpoint) {
            self.medium.write_vital(Block(copy), &block)?;
            self.medium.sync()?;
            self.counters.syncs += 1;
            self.counters.checkpoint_bytes += BLOCK_LENGTH as u64;
        }
        self.folded = superblock;
        Ok(self.folded.features_incompatible)
    }

    /// Replay: a superblock older than the one that had the bit first leads to a record that needs it (Z5).
    pub(super) fn permit_replayed(&mut self, entries: &[Entry]) {
        for entry in entries {
            if let Entry::Set { new, .. } | Entry::Move { new, .. } | Entry::Stored { new, .. } = entry {
                self.folded.features_incompatible |= new.codec.feature();
            }
        }
    }
}

fn features_of(change: &PageChange<'_>) -> u64 {
    let of = |content: &Content<'_>| content.codec().feature();
    match change {
        PageChange::Whole(content) => of(content),
        PageChange::Chunks(chunks) | PageChange::OnlyChunks(chunks) => chunks.values().map(of).fold(0, |a, b| a | b),
        PageChange::Zero | PageChange::Free => 0,
    }
}

#[cfg(test)]
mod tests;
