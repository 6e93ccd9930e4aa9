//! Gathering units for the disk: they are copied once, into aligned pieces, and a piece is on its way while the next one
//! is filled and summed up, and while the seal is made. So the processor's work on a large commit hides behind the
//! device's.
//!
//! A copy beats gathering from where the pages lie: the system's work for a slice of 4 KiB is several times that of
//! copying it, and a device takes a few hundred slices at a time. The pieces lie in huge pages where there are any.
//!
//! - **G1** A piece is not touched between its begin and its landing: it is shared until then.
//! - **G2** Whoever drops [`Flights`] waits for them. So the extents of a commit that failed are not written any more
//!   when they are given back.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Medium;
use super::prepare::Unit;
use crate::disk::{AlignedBuffer, InFlight, WritePart};
use crate::error::Result;
use crate::id::{BLOCK_LENGTH, Block};

/// Blocks of the longest piece.
const PIECE_BLOCKS: usize = 128;

/// Blocks of the shortest piece, but for what is left at an end.
const PIECE_BLOCKS_LEAST: usize = 32;

/// Pieces that are on their way at a time.
const PIECES: usize = 4;

/// Memory that is used again and again.
#[derive(Debug, Default)]
pub(super) struct Staging {
    pieces: Vec<Arc<AlignedBuffer>>,
    /// A record with the pages behind it.
    run: Arc<AlignedBuffer>,
}

/// Pieces on their way to the disk.
#[derive(Debug, Default)]
pub(super) struct Flights(VecDeque<Flight>);

#[derive(Debug)]
struct Flight {
    writes: InFlight,
    piece: Piece,
}

/// What is gathered to go out together: one run of blocks or several.
#[derive(Debug)]
struct Piece {
    bytes: Arc<AlignedBuffer>,
    parts: Vec<WritePart>,
    filled: usize,
}

impl Staging {
    /// A run of `length` bytes, filled by `fill`, to be written; what its memory holds before is anything.
    pub(super) fn run<T>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> T) -> (Arc<AlignedBuffer>, T) {
        // Memory that somebody still shares is not ours to change.
        if self.run.len() < length || Arc::get_mut(&mut self.run).is_none() {
            self.run = Arc::new(AlignedBuffer::zeroed(length));
        }
        let memory = Arc::get_mut(&mut self.run).and_then(|run| run.get_mut(..length)).unwrap_or_default();
        let result = fill(memory);
        (Arc::clone(&self.run), result)
    }

    /// Sends units to their extents, and sums them up as far as that was not done, for a record with this salt if its seal
    /// is to cover them. Those that lie there already are left out. Returns the number of contiguous runs.
    pub(super) fn send(
        &mut self,
        medium: &Medium,
        units: &mut [Unit<'_>],
        salt: Option<u64>,
        flights: &mut Flights,
    ) -> Result<u64> {
        let blocks: u64 = units.iter().map(|unit| unit.to_write().len().div_ceil(BLOCK_LENGTH) as u64).sum();
        let piece_blocks = (blocks as usize / PIECES).clamp(PIECE_BLOCKS_LEAST, PIECE_BLOCKS);
        let piece_length = piece_blocks * BLOCK_LENGTH;
        let mut runs = 0;
        let mut piece: Option<Piece> = None;
        let mut next = Block(0);
        for unit in units.iter_mut().filter(|unit| !unit.to_write().is_empty()) {
            unit.sum_up(salt);
            runs += u64::from(unit.address != next);
            next = Block(unit.address.0 + unit.blocks());
            let mut at = unit.address;
            for part in unit.to_write().chunks(piece_length) {
                let length = part.len().next_multiple_of(BLOCK_LENGTH);
                if piece.as_ref().is_some_and(|piece| piece.filled + length > piece_length) {
                    self.begin(medium, piece.take(), flights)?;
                }
                let mut filling = match piece.take() {
                    Some(piece) => piece,
                    None => Piece { bytes: self.memory(medium, flights)?, parts: Vec::new(), filled: 0 },
                };
                filling.add(at, part, length);
                at.0 += (length / BLOCK_LENGTH) as u64;
                piece = Some(filling);
            }
        }
        self.begin(medium, piece, flights)?;
        Ok(runs)
    }

    fn begin(&self, medium: &Medium, piece: Option<Piece>, flights: &mut Flights) -> Result<()> {
        if let Some(piece) = piece {
            let writes = medium.begin_writes(&piece.bytes, &piece.parts)?;
            flights.0.push_back(Flight { writes, piece });
        }
        Ok(())
    }

    /// Memory for a piece; the oldest one's, if enough are on their way.
    fn memory(&mut self, medium: &Medium, flights: &mut Flights) -> Result<Arc<AlignedBuffer>> {
        if flights.0.len() >= PIECES
            && let Some(flight) = flights.0.pop_front()
        {
            self.land(medium, flight)?;
        }
        let mut spare = self.pieces.pop();
        // Memory that somebody still shares is not ours to change.
        match spare.as_mut().and_then(Arc::get_mut) {
            Some(_) => Ok(spare.unwrap_or_default()),
            None => Ok(Arc::new(AlignedBuffer::huge(PIECE_BLOCKS * BLOCK_LENGTH))),
        }
    }

    fn land(&mut self, medium: &Medium, flight: Flight) -> Result<()> {
        medium.land(&flight.piece.parts, flight.writes)?;
        self.pieces.push(flight.piece.bytes);
        Ok(())
    }

    /// Waits for all.
    ///
    /// # Errors
    /// The first one's; then all have ended.
    pub(super) fn land_all(&mut self, medium: &Medium, flights: Flights) -> Result<()> {
        let mut result = Ok(());
        for flight in flights.0 {
            result = result.and(self.land(medium, flight));
        }
        result
    }
}

impl Flights {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one is known to have failed.
    pub(super) fn have_failed(&self) -> bool {
        self.0.iter().any(|flight| flight.writes.has_failed())
    }
}

impl Piece {
    /// Adds bytes for the blocks from `start` on, with zeros behind them up to `length`.
    fn add(&mut self, start: Block, bytes: &[u8], length: usize) {
        let range = self.filled..self.filled + length;
        if let Some(target) = Arc::get_mut(&mut self.bytes).and_then(|piece| piece.get_mut(range.clone())) {
            target[..bytes.len()].copy_from_slice(bytes);
            target[bytes.len()..].fill(0);
        }
        self.filled = range.end;
        let offset = start.offset_bytes();
        match self.parts.last_mut() {
            Some(last) if last.offset + last.range.len() as u64 == offset => last.range.end = range.end,
            _ => self.parts.push(WritePart { offset, range }),
        }
    }
}
