//! What a caller asks a commit to do, and what it gets back.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{Encoded, Spilled};
use crate::format::{CatalogueEntry, CodecId, checksum};
use crate::id::{Generation, Incarnation, PageId};

/// The bytes of a page of at most 1 MiB, or of a chunk of a larger one.
#[derive(Clone, Debug)]
pub enum Content<'a> {
    /// These. Those that lie at a multiple of 4096 in memory can be written from where they lie.
    Bytes(Cow<'a, [u8]>),
    /// These, as a codec made them ([`Content::encode`]).
    Encoded(Encoded<'a>),
    /// Those that were written to reserved space before; the commit takes that space over.
    Spilled(Spilled),
}

impl Content<'_> {
    /// How it is stored.
    pub fn codec(&self) -> CodecId {
        match self {
            Self::Bytes(_) => CodecId::RAW,
            Self::Encoded(encoded) => encoded.codec(),
            Self::Spilled(spilled) => spilled.codec(),
        }
    }

    /// Bytes of the page (or chunk).
    pub(super) fn length_bytes(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Encoded(encoded) => encoded.page_bytes.into(),
            Self::Spilled(spilled) => spilled.unit_bytes.into(),
        }
    }

    /// What is to be written of it: nothing of what was.
    pub(super) fn to_write(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Encoded(encoded) => &encoded.stored,
            Self::Spilled(_) => &[],
        }
    }

    /// The sum of the bytes as they are stored.
    pub(super) fn checksum(&self) -> u32 {
        match self {
            Self::Bytes(bytes) => checksum(bytes),
            Self::Encoded(encoded) => encoded.checksum,
            Self::Spilled(spilled) => spilled.checksum,
        }
    }

    /// The page again, if it is encoded, and not by one of these features.
    pub(super) fn keep_within(&mut self, features: u64) {
        if self.codec().feature() & !features != 0
            && let Self::Encoded(encoded) = self
            && let Some(page) = encoded.page.take()
        {
            *self = Self::Bytes(page);
        }
    }
}

impl<'a> From<&'a [u8]> for Content<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(Cow::Borrowed(bytes))
    }
}

impl From<Vec<u8>> for Content<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(Cow::Owned(bytes))
    }
}

impl From<Spilled> for Content<'_> {
    fn from(spilled: Spilled) -> Self {
        Self::Spilled(spilled)
    }
}

/// What becomes of a page.
#[derive(Clone, Debug)]
pub enum PageChange<'a> {
    /// These are its bytes, all of them. For classes up to 1 MiB.
    Whole(Content<'a>),
    /// Every byte is zero.
    Zero,
    /// These chunks of it (1 MiB each, by number) have these bytes; the others stay, or are zero in a new page. For
    /// classes above 1 MiB.
    Chunks(BTreeMap<u32, Content<'a>>),
    /// As `Chunks`, and every other chunk becomes zero.
    OnlyChunks(BTreeMap<u32, Content<'a>>),
    /// It is freed.
    Free,
}

/// Everything that one commit changes. The bytes of pages are borrowed: nothing is copied before they are written.
#[derive(Clone, Debug, Default)]
pub struct Changes<'a> {
    /// Pages, by id. Writing a page that is not allocated allocates it.
    pub pages: BTreeMap<PageId, PageChange<'a>>,
    /// The new user header, if it changes.
    pub header: Option<Vec<u8>>,
    /// Snapshots and bookmarks of the new state; id, generation, incarnation, roots and header are filled in.
    pub(super) added: Vec<CatalogueEntry>,
    /// Catalogue entries to remove, with the extents that nobody holds then.
    pub(super) removed: Vec<u64>,
    pub(super) dead: Vec<crate::format::BlockPointer>,
}

impl Changes<'_> {
    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty() && self.header.is_none() && self.added.is_empty() && self.removed.is_empty()
    }

    /// Whether the commit gives space back: it frees or clears pages, or removes snapshots, and does nothing else but
    /// set the header.
    pub(super) fn gives_back(&self) -> bool {
        let frees = self.pages.values().all(|change| matches!(change, PageChange::Free | PageChange::Zero));
        frees && self.added.is_empty() && !(self.pages.is_empty() && self.removed.is_empty())
    }
}

/// When a commit counts as done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// When a power cut cannot undo it any more.
    #[default]
    Durable,
    /// When it is written; a later durable commit, or a sync, makes it durable. A power cut before that undoes it,
    /// whole, with every later one.
    Deferred,
}

/// A commit that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its generation.
    pub generation: Generation,
    /// The incarnation that made it.
    pub incarnation: Incarnation,
}
