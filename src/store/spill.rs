//! Early spill: the bytes of a page go to disk before the commit that makes them the page's, so that a transaction
//! may be larger than memory.
//!
//! ```text
//!  Store::reserve --> Reserved --Medium::spill--> Spilled --a commit that names it--> a page's extent, as any other
//!                        |                           |
//!                        +---- Store::give_back -----+--> free
//! ```
//! - **E1** A reservation is in memory only (S4): no record names it, and no checkpoint persists it (R6), since what is
//!   persisted of the bitmap is what the journal says, and the journal hears of commits only. After a crash the blocks
//!   are free.
//! - **E2** A commit that names spilled units syncs before its record is written, and says in the record that its data
//!   is durable. Only what [`Medium::spill`] has written can be named.
//! - **E3** A reservation ends once: by the commit that names it, or by being given back. Naming it again is an error,
//!   as is naming it twice in one commit. After a commit that failed and was not committed, it is as before.
//! - **E4** What is reserved leaves room for the next checkpoint and a commit that frees pages, as a commit does.
//! - **E5** What is spilled encoded has its codec's bit in the newest superblock since before its space was reserved
//!   (Z5): the commit that names it could not store it otherwise any more. Where the bit cannot be had (Z6), the page is
//!   spilled as it is.
//!
//! `reserve` and `give_back` need the store; `spill` needs only its medium, so that writing does not hold commits up.

use std::collections::BTreeMap;
use std::io::IoSlice;

use super::{Content, Medium, Store};
use crate::disk::AlignedBuffer;
use crate::error::{Error, Result};
use crate::format::{BlockPointer, CodecId, PointerFlags, STORED_LIMIT};
use crate::id::{BLOCK_LENGTH, Extent, Generation};
use crate::space::{LEAF_BLOCKS, Purpose, Request};

/// Space that is kept for one unit: a page of at most 1 MiB, or a chunk of a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    number: u64,
    extent: Extent,
    /// How the unit is to be stored there.
    codec: CodecId,
}

impl Reserved {
    /// The blocks.
    pub fn extent(&self) -> Extent {
        self.extent
    }
}

/// A unit that was written to reserved space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spilled {
    pub(super) reserved: Reserved,
    pub(super) stored_length: u32,
    pub(super) checksum: u32,
    pub(super) unit_bytes: u32,
}

impl Spilled {
    /// Where the bytes lie: to read them back before the commit. It has no birth yet, so it must not be taken for a
    /// key: the same space may be given back, and reserved for other bytes.
    pub fn pointer(&self) -> BlockPointer {
        BlockPointer {
            address: self.reserved.extent.start,
            codec: self.codec(),
            flags: PointerFlags::default(),
            stored_length: self.stored_length,
            checksum: self.checksum,
            birth: Generation(0),
        }
    }

    /// How it is stored.
    pub fn codec(&self) -> CodecId {
        self.reserved.codec
    }

    /// The reservation, to be given back if no commit is to name this.
    pub fn reserved(&self) -> Reserved {
        self.reserved
    }
}

/// The reservations of a store, by number.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    held: BTreeMap<u64, Extent>,
    next: u64,
}

impl Reservations {
    pub(super) fn extents(&self) -> impl Iterator<Item = Extent> {
        self.held.values().copied()
    }

    /// Fails unless the reservation stands (E3).
    pub(super) fn check(&self, reserved: &Reserved) -> Result<()> {
        match self.held.get(&reserved.number) == Some(&reserved.extent) {
            true => Ok(()),
            false => Err(Error::NotReserved { extent: reserved.extent }),
        }
    }

    /// Ends the reservation.
    pub(super) fn end(&mut self, reserved: &Reserved) -> Result<()> {
        self.check(reserved)?;
        self.held.remove(&reserved.number);
        Ok(())
    }

    fn begin(&mut self, extent: Extent, codec: CodecId) -> Reserved {
        let number = self.next;
        self.next += 1;
        self.held.insert(number, extent);
        Reserved { number, extent, codec }
    }
}

impl Store {
    /// Reserves space for units (each at most 1 MiB, in memory), in as few runs as can be; all of it, or after an error
    /// none. An encoded one whose codec may not be used now is its page again.
    ///
    /// **Durability**: none. A reservation is memory only, and ends with the process.
    ///
    /// # Errors
    /// `NoSpace`, `Poisoned`, `Io` and `Corrupt` while loading the bitmap, `Io` while a codec's bit is written,
    /// `InvalidOption` for a length that no unit has.
    pub fn reserve(&mut self, units: &mut [Content<'_>]) -> Result<Vec<Reserved>> {
        self.medium.check()?;
        let is_unit = |unit: &Content<'_>| (1..=STORED_LIMIT as usize).contains(&unit.to_write().len());
        if !units.iter().all(is_unit) {
            return Err(Error::InvalidOption { option: "length", reason: "a unit has 1 byte to 1 MiB" });
        }
        let needed = units.iter().fold(0, |bits, unit| bits | unit.codec().feature());
        let features = self.permit_features(needed)?;
        units.iter_mut().for_each(|unit| unit.keep_within(features));
        self.release()?;
        let lengths: Vec<u32> = units.iter().map(|unit| unit.to_write().len() as u32).collect();
        let mut taken = Vec::new();
        match self.take_for(&lengths, &mut taken) {
            Ok(extents) => {
                let codecs = units.iter().map(Content::codec);
                Ok(extents
                    .into_iter()
                    .zip(codecs)
                    .map(|(extent, codec)| self.reservations.begin(extent, codec))
                    .collect())
            }
            Err(error) => {
                taken.into_iter().try_for_each(|extent| self.space.release(extent))?;
                Err(error)
            }
        }
    }

    fn take_for(&mut self, lengths: &[u32], taken: &mut Vec<Extent>) -> Result<Vec<Extent>> {
        let blocks_of = |length: u32| length.div_ceil(BLOCK_LENGTH as u32);
        let mut left: u64 = lengths.iter().map(|length| u64::from(blocks_of(*length))).sum();
        let mut extents = Vec::with_capacity(lengths.len());
        let mut free = Extent::default();
        for blocks in lengths.iter().map(|length| blocks_of(*length)) {
            if free.blocks < blocks {
                self.return_rest(free, taken)?;
                let wanted = left.min(LEAF_BLOCKS.into()) as u32;
                let request = Request { blocks: wanted, minimum: blocks, multiple: 1, purpose: Purpose::Data };
                free = self.obtain(&request)?.ok_or_else(|| self.no_space(left))?;
                taken.push(free);
            }
            let (own, rest) = free.split_at(blocks);
            extents.push(own);
            free = rest;
            left -= u64::from(blocks);
        }
        self.return_rest(free, taken)?;
        self.keep_room(lengths.len() as u64)?;
        Ok(extents)
    }

    /// Makes reserved space free again, whether anything was written there or not.
    ///
    /// # Errors
    /// `NotReserved` if a commit took it, or it was given back before; those of loading the bitmap.
    pub fn give_back_reserved(&mut self, reserved: Reserved) -> Result<()> {
        self.reservations.end(&reserved)?;
        self.space.release(reserved.extent)
    }

    /// How many blocks are reserved.
    pub fn blocks_reserved(&self) -> u64 {
        self.reservations.extents().map(|extent| u64::from(extent.blocks)).sum()
    }
}

impl Medium {
    /// Writes units to their reserved space, neighbours in one call. A failure harms nothing but the caller's own work.
    ///
    /// Nobody else may write to the same reservations meanwhile, and none may be given back.
    ///
    /// **Durability**: none, until a commit names what was spilled.
    ///
    /// # Errors
    /// `NotReserved` if the bytes are more, or fewer blocks, than were asked for, or otherwise encoded; `Io`,
    /// `Poisoned`.
    pub fn spill(&self, units: &[(Reserved, &Content<'_>)]) -> Result<Vec<Spilled>> {
        for (reserved, unit) in units {
            let blocks = unit.to_write().len().div_ceil(BLOCK_LENGTH);
            if blocks != reserved.extent.blocks as usize || unit.codec() != reserved.codec {
                return Err(Error::NotReserved { extent: reserved.extent });
            }
        }
        let padded: Vec<Option<AlignedBuffer>> = units.iter().map(|(_, unit)| padded(unit.to_write())).collect();
        let whole = |index: usize| padded[index].as_deref().unwrap_or(units[index].1.to_write());
        let mut next = 0;
        while let Some((first, _)) = units.get(next) {
            let mut slices = Vec::new();
            let mut end = first.extent.start;
            while let Some((reserved, _)) = units.get(next)
                && reserved.extent.start == end
            {
                slices.push(IoSlice::new(whole(next)));
                end.0 += (whole(next).len() / BLOCK_LENGTH) as u64;
                next += 1;
            }
            self.write_vectored(first.extent.start, &slices)?;
        }
        let spilled = units.iter().map(|(reserved, unit)| Spilled {
            reserved: *reserved,
            stored_length: unit.to_write().len() as u32,
            checksum: unit.checksum(),
            unit_bytes: unit.length_bytes() as u32,
        });
        Ok(spilled.collect())
    }
}

/// The bytes with zeros behind them, if they do not fill their last block.
fn padded(bytes: &[u8]) -> Option<AlignedBuffer> {
    (!bytes.len().is_multiple_of(BLOCK_LENGTH)).then(|| {
        let mut whole = AlignedBuffer::zeroed(bytes.len().next_multiple_of(BLOCK_LENGTH));
        whole[..bytes.len()].copy_from_slice(bytes);
        whole
    })
}
