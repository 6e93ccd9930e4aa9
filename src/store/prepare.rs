//! What a commit will do, found before any space is taken: which bytes are to be stored, as what, and what they replace.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use super::{Changes, Content, PageChange, Reserved, Spilled, Store};
use crate::error::{Error, Result};
use crate::format::{BlockPointer, CodecId, Entry, HEADER_LIMIT, PointerFlags, STORED_LIMIT, Seal, checksum};
use crate::id::{BLOCK_LENGTH, Block, Generation, PageId};

/// Bytes that are to be stored in an extent of their own.
#[derive(Debug)]
pub(super) struct Unit<'a> {
    pub(super) bytes: UnitBytes<'a>,
    /// Its extent, once it has one.
    pub(super) address: Block,
    /// Once it is known.
    pub(super) checksum: Option<u32>,
    /// What the record's seal covers of it, and under which salt, once it is known.
    pub(super) seal: Option<(u64, Seal)>,
    /// How the bytes are a page's.
    pub(super) codec: CodecId,
}

/// Where a unit's bytes are.
#[derive(Debug)]
pub(super) enum UnitBytes<'a> {
    /// In memory, to be written.
    Here(Cow<'a, [u8]>),
    /// In their extent: so many were written there before.
    Written(u32),
}

/// What a commit will do, before any space is taken.
#[derive(Debug, Default)]
pub(super) struct Prepared<'a> {
    pub(super) units: Vec<Unit<'a>>,
    pub(super) pages: Vec<PreparedPage>,
    /// Whether the pages' old pointers are known.
    looked_up: LookedUp,
    /// Reservations that the commit takes over.
    pub(super) spilled: Vec<Reserved>,
    /// The features of the store: what is encoded otherwise is stored as it is.
    features: u64,
}

/// Whether pointers are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LookedUp {
    #[default]
    NotYet,
    Already,
}

/// A page that changes.
#[derive(Debug)]
pub(super) struct PreparedPage {
    pub(super) page: PageId,
    pub(super) old: BlockPointer,
    pub(super) new: NewPage,
}

/// What a page becomes.
#[derive(Debug)]
pub(super) enum NewPage {
    /// Nothing.
    Free,
    /// Zeros.
    Zero,
    /// One unit, by number.
    Unit(usize),
    /// A tree of chunks: numbers of chunks, and the units they become (`None`: zeros).
    Chunks {
        chunks: Vec<(u32, Option<usize>)>,
        /// Whether chunks that are not named stay.
        others: OtherChunks,
    },
}

/// What becomes of the chunks of a page that a change does not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OtherChunks {
    Stay,
    Zero,
}

impl Store {
    /// Finds the bytes to be stored; looks up what the changes replace, if that must be known before they are written.
    pub(super) fn prepare<'a>(&self, changes: &'a Changes<'_>, features: u64) -> Result<Prepared<'a>> {
        if let Some(header) = changes.header.as_ref().filter(|header| header.len() > HEADER_LIMIT) {
            return Err(Error::HeaderTooLarge { length: header.len(), limit: HEADER_LIMIT });
        }
        let state = self.state();
        let mut prepared = Prepared { features, ..Prepared::default() };
        prepared.looked_up = match changes.pages.values().all(|change| matches!(change, PageChange::Whole(_))) {
            true => LookedUp::NotYet,
            false => LookedUp::Already,
        };
        for (&page, change) in &changes.pages {
            let old = match prepared.looked_up {
                LookedUp::NotYet => BlockPointer::default(),
                LookedUp::Already => state.pointer(&self.nodes, page)?,
            };
            let new = match change {
                PageChange::Free if old.is_null() => return Err(Error::PageNotFound { page }),
                PageChange::Free => NewPage::Free,
                PageChange::Zero => NewPage::Zero,
                PageChange::Whole(content) => {
                    let length = content.length_bytes();
                    if length != page.class().page_bytes() || page.class().is_chunked() {
                        return Err(Error::OutOfPage { page, offset: 0, length });
                    }
                    match prepared.unit(content) {
                        Some(unit) => NewPage::Unit(unit),
                        None => NewPage::Zero,
                    }
                }
                PageChange::Chunks(chunks) if chunks.is_empty() && !old.is_null() => continue,
                PageChange::Chunks(chunks) | PageChange::OnlyChunks(chunks) if chunks.is_empty() => NewPage::Zero,
                PageChange::Chunks(chunks) => prepared.chunks(page, chunks, OtherChunks::Stay)?,
                PageChange::OnlyChunks(chunks) => prepared.chunks(page, chunks, OtherChunks::Zero)?,
            };
            prepared.pages.push(PreparedPage { page, old, new });
        }
        self.check_spilled(&prepared.spilled)?;
        Ok(prepared)
    }

    /// Looks up what the changes replace, unless that was done.
    pub(super) fn look_up(&self, prepared: &mut Prepared<'_>) -> Result<()> {
        if std::mem::replace(&mut prepared.looked_up, LookedUp::Already) == LookedUp::Already {
            return Ok(());
        }
        let maps = self.state().maps.get();
        for pages in prepared.pages.chunk_by_mut(|a, b| a.page.class() == b.page.class()) {
            let positions: Vec<u64> = pages.iter().map(|page| page.page.index()).collect();
            let found = maps[pages[0].page.class().index()].get_many(&self.nodes, &positions)?;
            pages.iter_mut().zip(found).for_each(|(page, old)| page.old = old);
        }
        Ok(())
    }

    /// Every spilled unit has its reservation, and is named once (E3).
    fn check_spilled(&self, spilled: &[Reserved]) -> Result<()> {
        let mut named = HashSet::new();
        for reserved in spilled {
            self.reservations.check(reserved)?;
            if !named.insert(reserved.extent().start) {
                return Err(Error::NotReserved { extent: reserved.extent() });
            }
        }
        Ok(())
    }
}

impl<'a> Unit<'a> {
    /// Bytes in memory, to be stored.
    pub(super) fn new(bytes: impl Into<Cow<'a, [u8]>>, checksum: Option<u32>) -> Self {
        Self { bytes: UnitBytes::Here(bytes.into()), address: Block(0), checksum, seal: None, codec: CodecId::RAW }
    }

    /// Makes the checksum known, and the seal, under the salt that the record is to have, if its seal is to cover it.
    pub(super) fn sum_up(&mut self, salt: Option<u64>) {
        self.checksum = Some(self.checksum());
        self.seal = salt.map(|salt| (salt, self.seal(salt)));
    }

    /// What the seal of a record with this salt covers of it.
    pub(super) fn seal(&self, salt: u64) -> Seal {
        match self.seal {
            Some((known, seal)) if known == salt => seal,
            _ => Seal::of(salt, self.to_write()),
        }
    }

    fn checksum(&self) -> u32 {
        self.checksum.unwrap_or_else(|| checksum(self.to_write()))
    }

    fn spilled(spilled: &Spilled) -> Self {
        let (address, bytes) = (spilled.reserved.extent().start, UnitBytes::Written(spilled.stored_length));
        Self { bytes, address, checksum: Some(spilled.checksum), seal: None, codec: spilled.codec() }
    }

    /// The bytes that are not on disk yet.
    pub(super) fn to_write(&self) -> &[u8] {
        match &self.bytes {
            UnitBytes::Here(bytes) => bytes,
            UnitBytes::Written(_) => &[],
        }
    }

    pub(super) fn stored_length(&self) -> u32 {
        match &self.bytes {
            UnitBytes::Here(bytes) => bytes.len() as u32,
            UnitBytes::Written(length) => *length,
        }
    }

    pub(super) fn blocks(&self) -> u64 {
        u64::from(self.stored_length()).div_ceil(BLOCK_LENGTH as u64)
    }

    pub(super) fn pointer(&self, birth: Generation) -> BlockPointer {
        BlockPointer {
            address: self.address,
            codec: self.codec,
            flags: PointerFlags::default(),
            stored_length: self.stored_length(),
            checksum: self.checksum(),
            birth,
        }
    }
}

impl<'a> Prepared<'a> {
    /// Adds bytes to be stored; `None` if they are all zero and need no place.
    fn unit(&mut self, content: &'a Content<'_>) -> Option<usize> {
        let unit = match content {
            Content::Bytes(bytes) if bytes.iter().all(|byte| *byte == 0) => return None,
            Content::Bytes(bytes) => Unit::new(&bytes[..], None),
            Content::Encoded(encoded) => match &encoded.page {
                Some(page) if encoded.codec.feature() & !self.features != 0 => Unit::new(&page[..], None),
                _ => Unit { codec: encoded.codec, ..Unit::new(&encoded.stored[..], Some(encoded.checksum)) },
            },
            Content::Spilled(spilled) => {
                self.spilled.push(spilled.reserved);
                Unit::spilled(spilled)
            }
        };
        self.units.push(unit);
        Some(self.units.len() - 1)
    }

    fn chunks(&mut self, page: PageId, chunks: &'a BTreeMap<u32, Content<'_>>, others: OtherChunks) -> Result<NewPage> {
        let mut units = Vec::with_capacity(chunks.len());
        for (&chunk, content) in chunks {
            let (offset, length) = (u64::from(chunk) * u64::from(STORED_LIMIT), content.length_bytes());
            if u64::from(chunk) >= page.class().chunks()
                || length != u64::from(STORED_LIMIT)
                || !page.class().is_chunked()
            {
                return Err(Error::OutOfPage { page, offset, length });
            }
            units.push((chunk, self.unit(content)));
        }
        Ok(NewPage::Chunks { chunks: units, others })
    }

    /// The entry of a page that is not a tree of chunks.
    pub(super) fn entry(&self, page: &PreparedPage, generation: Generation) -> Entry {
        let new = match page.new {
            NewPage::Free => BlockPointer::null(generation),
            NewPage::Unit(unit) => self.units[unit].pointer(generation),
            NewPage::Zero | NewPage::Chunks { .. } => BlockPointer::zero(generation),
        };
        Entry::Set { page: page.page, new, old: page.old }
    }
}
