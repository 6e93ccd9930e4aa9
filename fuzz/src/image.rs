//! An image of a store that can be damaged, and whose checksums and seals can then be mended: so that what is hostile in
//! it is met behind the checks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use vellum::format::{
    BlockPointer, Entry, RECORD_HEADER_BYTES, RecordFlags, RecordIdentity, Seal, SealHasher, checksum, decode_body,
    decode_header, finish_record,
};
use vellum::testing::{History, Step};
use vellum::{Block, StoreId};

const BLOCK: usize = 4096;
const SUPERBLOCKS: [u64; 4] = [1, 2, 17, 18];
/// What a superblock's sums cover.
const SUPERBLOCK_COVERED: usize = BLOCK - 24;

/// A change of an image.
#[derive(Arbitrary, Debug)]
pub enum Mutation {
    /// Eight bytes of a structure become this number.
    Number { block: u16, word: u16, value: Value },
    /// A byte of a structure changes.
    Byte { block: u16, offset: u16, mask: u8 },
    /// A field of a pointer becomes this number.
    Pointer { number: u16, field: Field, value: Value },
    /// A pointer becomes what another one is.
    Alias { from: u16, to: u16 },
    /// A block becomes what another one is.
    Copy { from: u16, to: u16 },
    /// The file ends here.
    Cut { block: u16 },
}

/// A field of a block pointer.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Field {
    Address,
    Codec,
    Flags,
    Length,
    Birth,
}

/// A number: near something, or any.
#[derive(Arbitrary, Debug)]
pub enum Value {
    Small(u8),
    Power { bit: u8, minus: u8 },
    Any(u64),
    /// The old one, and a little more or less.
    Near(i8),
}

impl Value {
    fn of(&self, old: u64) -> u64 {
        match *self {
            Self::Small(value) => value.into(),
            Self::Power { bit, minus } => (1u64 << (bit % 64)).wrapping_sub(minus.into()),
            Self::Any(value) => value,
            Self::Near(delta) => old.wrapping_add_signed(delta.into()),
        }
    }
}

/// A place where a block pointer lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    block: u64,
    offset: usize,
}

/// An image, and what points to what in it.
#[derive(Clone)]
pub struct Image {
    pub bytes: Vec<u8>,
    store: StoreId,
    pointers: Vec<Place>,
    dirty: BTreeSet<u64>,
}

/// Images to start from: closed, with a tail of records, with a large record.
pub fn images() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let beginning = vec![
            Step::Write(vec![(12, 0), (12, 1), (13, 0)]),
            Step::Header(7),
            Step::Snapshot(0),
            Step::Write(vec![(12, 0), (14, 0), (12, 200)]),
            Step::Checkpoint,
            Step::View,
            Step::Write(vec![(12, 0), (12, 3)]),
            Step::Free(vec![(12, 1), (14, 0)]),
            Step::Snapshot(1),
            Step::Write(vec![(13, 0), (12, 4)]),
            Step::Checkpoint,
        ];
        let tails = [
            vec![],
            vec![
                Step::Write(vec![(12, 0), (14, 1)]),
                Step::DeleteSnapshot(0),
                Step::Move(vec![(12, 3), (12, 4)]),
                Step::Write(vec![(12, 0), (12, 7)]),
                Step::WriteDeferred(vec![(12, 3)]),
                Step::WriteDeferred(vec![(13, 0), (14, 1)]),
            ],
            vec![Step::Write((0..250).map(|index| (12, index)).collect()), Step::Free(vec![(12, 9)])],
        ];
        tails
            .into_iter()
            .map(|tail| {
                let mut history = History::create(crate::settings(), 4).expect("a store is created");
                for step in beginning.iter().chain(&tail) {
                    history.step(step).expect("a step is taken");
                }
                Image::new(history.disk.image().to_bytes(), history.store.status().id)
            })
            .collect()
    })
}

impl Image {
    fn new(bytes: Vec<u8>, store: StoreId) -> Self {
        let mut image = Self { bytes, store, pointers: Vec::new(), dirty: BTreeSet::new() };
        for block in 0..image.blocks() {
            image.pointers.extend(image.pointers_in(block).map(|offset| Place { block, offset }));
        }
        image
    }

    fn blocks(&self) -> u64 {
        (self.bytes.len() / BLOCK) as u64
    }

    fn block(&self, block: u64) -> &[u8] {
        &self.bytes[block as usize * BLOCK..][..BLOCK]
    }

    fn block_mut(&mut self, block: u64) -> &mut [u8] {
        self.dirty.insert(block);
        &mut self.bytes[block as usize * BLOCK..][..BLOCK]
    }

    /// Where block pointers lie in a block, by what it is.
    fn pointers_in(&self, block: u64) -> impl Iterator<Item = usize> + use<> {
        let bytes = self.block(block);
        let (start, count, step): (usize, usize, usize) = match () {
            _ if SUPERBLOCKS.contains(&block) && bytes.starts_with(b"VELLUMsb") => (1192, 23, 32),
            _ if bytes.starts_with(b"VLnd") => (64, 168, 24),
            _ if bytes.starts_with(b"VLca") => (48, 20, 32),
            _ if bytes[20..24] == *b"VLrc" => (RECORD_HEADER_BYTES + 16, 59, 64),
            _ => (0, 0, 1),
        };
        let is_record = bytes[20..24] == *b"VLrc";
        (0..count).flat_map(move |index| {
            let at = start + index * step;
            // A record's entry has two.
            [Some(at), is_record.then_some(at + 24)].into_iter().flatten()
        })
    }

    fn number(&self, place: Place, offset: usize, length: usize) -> u64 {
        let mut number = [0; 8];
        number[..length].copy_from_slice(&self.block(place.block)[place.offset + offset..][..length]);
        u64::from_le_bytes(number)
    }

    /// The pointers that are not null, with what they point to: first block and bytes.
    fn targets(&self) -> Vec<(Place, u64, usize)> {
        let places = self.pointers.iter().filter(|place| place.block < self.blocks());
        places
            .map(|place| (*place, self.number(*place, 0, 6), self.number(*place, 8, 4) as usize))
            .filter(|(_, address, length)| *length > 0 && *length <= 1 << 20 && address.checked_add(256).is_some())
            .collect()
    }

    /// Changes the image.
    pub fn mutate(&mut self, mutation: &Mutation) {
        let blocks = self.blocks();
        if blocks == 0 {
            return;
        }
        let places: Vec<Place> = self.pointers.iter().copied().filter(|place| place.block < blocks).collect();
        let place_of = |number: &u16| (!places.is_empty()).then(|| places[*number as usize % places.len()]);
        match mutation {
            Mutation::Number { block, word, value } => {
                let at = *word as usize % (BLOCK / 4 - 1) * 4;
                let block = u64::from(*block) % blocks;
                let old = self.number(Place { block, offset: at }, 0, 8);
                self.block_mut(block)[at..at + 8].copy_from_slice(&value.of(old).to_le_bytes());
            }
            Mutation::Byte { block, offset, mask } => {
                self.block_mut(u64::from(*block) % blocks)[*offset as usize % BLOCK] ^= mask;
            }
            Mutation::Pointer { number, field, value } => {
                let Some(place) = place_of(number) else { return };
                let (offset, length) = match field {
                    Field::Address => (0, 6),
                    Field::Codec => (6, 1),
                    Field::Flags => (7, 1),
                    Field::Length => (8, 4),
                    Field::Birth => (16, 8),
                };
                let value = value.of(self.number(place, offset, length)).to_le_bytes();
                self.block_mut(place.block)[place.offset + offset..][..length].copy_from_slice(&value[..length]);
            }
            Mutation::Alias { from, to } => {
                let (Some(from), Some(to)) = (place_of(from), place_of(to)) else { return };
                let pointer = self.block(from.block)[from.offset..][..24].to_vec();
                self.block_mut(to.block)[to.offset..][..24].copy_from_slice(&pointer);
            }
            Mutation::Copy { from, to } => {
                let bytes = self.block(u64::from(*from) % blocks).to_vec();
                self.block_mut(u64::from(*to) % blocks).copy_from_slice(&bytes);
            }
            Mutation::Cut { block } => self.bytes.truncate((u64::from(*block) % (blocks + 1)) as usize * BLOCK),
        }
    }

    /// Makes every checksum and seal fit again that what was changed had broken.
    pub fn mend(&mut self) {
        // The births that nodes tell of are sums as well. Leaves first: each round mends one level of trees.
        for _ in 0..12 {
            let dirty = std::mem::take(&mut self.dirty);
            if dirty.is_empty() {
                break;
            }
            let blocks = self.blocks();
            for block in dirty.iter().copied().filter(|block| *block < blocks) {
                self.mend_birth(block);
            }
            for (place, address, length) in self.targets() {
                let until = address + length.div_ceil(BLOCK) as u64;
                if dirty.range(address..until).next().is_none() || until > self.blocks() {
                    continue;
                }
                let sum = checksum(&self.bytes[address as usize * BLOCK..][..length]);
                if self.number(place, 12, 4) != u64::from(sum) {
                    self.block_mut(place.block)[place.offset + 12..][..4].copy_from_slice(&sum.to_le_bytes());
                }
            }
        }
        self.mend_records();
        let blocks = self.blocks();
        for block in SUPERBLOCKS.into_iter().filter(|block| *block < blocks) {
            self.mend_superblock(block);
        }
    }

    fn mend_birth(&mut self, block: u64) {
        if self.block(block).starts_with(b"VLnd") {
            let births = (0..168).map(|entry| self.number(Place { block, offset: 64 + 24 * entry }, 16, 8));
            let birth = births.max().unwrap_or(0);
            let at = block as usize * BLOCK + 32;
            self.bytes[at..at + 8].copy_from_slice(&birth.to_le_bytes());
        }
    }

    fn mend_superblock(&mut self, block: u64) {
        if !self.block(block).starts_with(b"VELLUMsb") {
            return;
        }
        let covered = &self.block(block)[..SUPERBLOCK_COVERED];
        let mut hasher = SealHasher::new(0);
        hasher.update(covered);
        let (seal, sum) = (hasher.finish(), checksum(covered));
        let bytes = self.block_mut(block);
        bytes[SUPERBLOCK_COVERED..][..16].copy_from_slice(&seal.0);
        bytes[BLOCK - 4..].copy_from_slice(&sum.to_le_bytes());
    }

    /// Seals the records anew, in order, so that each links to the one before.
    fn mend_records(&mut self) {
        let mut records: BTreeMap<u64, u64> = BTreeMap::new();
        for block in 19..self.blocks() {
            if self.block(block)[20..24] == *b"VLrc" {
                records.insert(self.number(Place { block, offset: 0 }, 88, 8), block);
            }
        }
        for (generation, block) in &records {
            let at = *block as usize * BLOCK;
            let before = generation.checked_sub(1).and_then(|before| records.get(&before)).copied();
            if let Some(before) = before {
                let seal = self.block(before)[..16].to_vec();
                self.bytes[at + 104..at + 120].copy_from_slice(&seal);
            }
            let salt = self.number(Place { block: *block, offset: 0 }, 72, 8);
            let identity = RecordIdentity { store: self.store, address: Block(*block), salt };
            let Some(header) = decode_header(self.block(*block), &identity) else { continue };
            let Some(record) = self.bytes.get(at..at + header.blocks as usize * BLOCK) else { continue };
            let mut record = record.to_vec();
            let body = decode_body(&record[RECORD_HEADER_BYTES..], header.entries.into(), header.blob_length.into());
            let Ok((entries, _)) = body else { continue };
            let bytes = &self.bytes;
            let stored = |pointer: &BlockPointer| {
                let start = (pointer.address.0 as usize).checked_mul(BLOCK)?;
                bytes.get(start..start.checked_add(pointer.stored_length as usize)?)
            };
            let pages = entries.iter().filter_map(|entry| match entry {
                Entry::Set { new, .. } | Entry::Move { new, .. } | Entry::Stored { new, .. } => {
                    stored(new).filter(|bytes| !bytes.is_empty())
                }
                _ => None,
            });
            let synced = header.flags.contains(RecordFlags::DATA_SYNCED);
            let pages = pages.filter(|_| !synced).map(|page| Seal::of(salt, page));
            finish_record(&mut record, salt, pages);
            self.bytes[at..at + record.len()].copy_from_slice(&record);
        }
        // The superblocks know the seal of the record they folded.
        let blocks = self.blocks();
        for block in SUPERBLOCKS.into_iter().filter(|block| *block < blocks) {
            let folded = self.number(Place { block, offset: 0 }, 64, 8);
            if let Some(record) = records.get(&folded)
                && self.block(block).starts_with(b"VELLUMsb")
            {
                let seal = self.block(*record)[..16].to_vec();
                self.bytes[block as usize * BLOCK + 112..][..16].copy_from_slice(&seal);
            }
        }
    }
}
