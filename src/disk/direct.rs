//! Which parts of a transfer can go around the page cache, and the copies that others need.
//!
//! The system transfers directly what starts at a block's offset, is whole blocks long, and lies in memory at a
//! multiple of 4096. Everything the store writes is like that. For the rest:
//!
//! - Whole blocks in memory that lies otherwise are copied through aligned memory of the thread, and go directly.
//! - A read of a part of a block reads the block directly, and copies the part.
//! - A write of a part of a block goes through the page cache. The alternative, to read, change and write the block,
//!   would lengthen a file that ends in the block, and two threads that write different parts of one block would undo
//!   each other's work. The system keeps both ways coherent for calls that follow each other: a direct transfer first
//!   writes back, and a direct write then drops, what the cache holds of its range.
//!
//! **Callers** must not make calls at the same time that touch the same block, or, where one of them writes a part of
//! a block, the same page of the operating system (4, 16 or 64 KiB); between a direct and a cached transfer the system
//! promises no order. The store writes whole blocks only.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};

use super::aligned::AlignedBuffer;
use super::transfer;
use crate::id::{BLOCK_BYTES, BLOCK_LENGTH};

/// Length of a thread's aligned memory: one chunk of a large page.
const SCRATCH_LENGTH: usize = 1 << 20;

/// The way a piece of a write has to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Whole blocks in aligned memory.
    Direct,
    /// A part of a block.
    Cached,
}

/// The descriptors of a file.
#[derive(Debug)]
pub(super) struct Descriptors {
    /// The file.
    pub(super) cached: File,
    /// The same file, for whole blocks; `None` where the file system has no such way.
    pub(super) direct: Option<File>,
}

impl Descriptors {
    /// The one for a raw call at `offset`. A direct call that was short may end inside of a block; what is left of it
    /// goes through the cache.
    pub(super) fn for_call(&self, way: Way, offset: u64) -> &File {
        match &self.direct {
            Some(direct) if way == Way::Direct && is_block_offset(offset) => direct,
            _ => &self.cached,
        }
    }
}

/// Whether a transfer at `offset` between these buffers needs no copy.
pub(super) fn is_aligned<B: std::ops::Deref<Target = [u8]>>(offset: u64, buffers: &[B]) -> bool {
    is_block_offset(offset)
        && buffers.iter().all(|buffer| {
            buffer.len().is_multiple_of(BLOCK_LENGTH) && buffer.as_ptr().addr().is_multiple_of(BLOCK_LENGTH)
        })
}

/// Whether `offset` is a block's.
pub(super) fn is_block_offset(offset: u64) -> bool {
    offset.is_multiple_of(BLOCK_BYTES)
}

/// Writes `buffers`, whose memory or place is not aligned, as pieces: `write(way, offset, bytes)`.
pub(super) fn write_pieces(
    offset: u64,
    buffers: &[IoSlice<'_>],
    mut write: impl FnMut(Way, u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let end = transfer::write_end(offset, buffers)?;
    let mut source = Source { buffers, skipped: 0 };
    with_scratch(|scratch| {
        let mut offset = offset;
        while offset < end {
            let (way, length) = next_piece(offset, end);
            let piece = &mut scratch[..length];
            source.copy_to(piece);
            write(way, offset, piece)?;
            offset += length as u64;
        }
        Ok(())
    })
}

/// How many pieces [`write_pieces`] makes of `length` bytes at `offset`.
pub(super) fn piece_count(offset: u64, length: u64) -> usize {
    let end = offset + length;
    let mut offset = offset;
    std::iter::from_fn(|| (offset < end).then(|| offset += next_piece(offset, end).1 as u64)).count()
}

/// The next piece of `[offset, end)`: up to the next block's start, whole blocks, or what is left of the last block.
fn next_piece(offset: u64, end: u64) -> (Way, usize) {
    let left = end - offset;
    let to_block = offset.next_multiple_of(BLOCK_BYTES) - offset;
    if to_block != 0 {
        (Way::Cached, to_block.min(left) as usize)
    } else if left < BLOCK_BYTES {
        (Way::Cached, left as usize)
    } else {
        let whole = left - left % BLOCK_BYTES;
        (Way::Direct, whole.min(SCRATCH_LENGTH as u64) as usize)
    }
}

/// Fills `buffers`, whose memory or place is not aligned, through aligned memory: `read(offset, memory)` fills the
/// memory from a block's offset on, as far as the file goes, and says how far.
pub(super) fn read_pieces(
    offset: u64,
    buffers: &mut [IoSliceMut<'_>],
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<usize>,
) -> io::Result<()> {
    let length = transfer::length_of_mut(buffers)?;
    let end = transfer::end(offset, length).ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut target = Target { buffers, buffer: 0, filled: 0 };
    with_scratch(|scratch| {
        let mut offset = offset;
        while offset < end {
            let start = offset - offset % BLOCK_BYTES;
            let window = (end.next_multiple_of(BLOCK_BYTES) - start).min(SCRATCH_LENGTH as u64);
            let wanted = offset..end.min(start + window);
            let available = read(start, &mut scratch[..window as usize])? as u64;
            if start + available < wanted.end {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            target.copy_from(&scratch[(wanted.start - start) as usize..(wanted.end - start) as usize]);
            offset = wanted.end;
        }
        Ok(())
    })
}

/// Lends the thread's aligned memory to `work`.
///
/// It is taken out meanwhile: should `work` ask for it again, it gets memory of its own.
fn with_scratch<T>(work: impl FnOnce(&mut AlignedBuffer) -> io::Result<T>) -> io::Result<T> {
    thread_local! {
        static SCRATCH: Cell<Option<AlignedBuffer>> = const { Cell::new(None) };
    }
    // A thread that is ending may have lost the cell already.
    let mut scratch = match SCRATCH.try_with(Cell::take).ok().flatten() {
        Some(scratch) => scratch,
        None => AlignedBuffer::try_zeroed(SCRATCH_LENGTH)?,
    };
    let result = work(&mut scratch);
    let _ = SCRATCH.try_with(|cell| cell.set(Some(scratch)));
    result
}

/// What is still to be copied out of the buffers of a write.
struct Source<'a> {
    buffers: &'a [IoSlice<'a>],
    skipped: usize,
}

impl Source<'_> {
    /// Fills `piece` with the bytes that come next; the caller never asks for more than there are.
    fn copy_to(&mut self, mut piece: &mut [u8]) {
        while let (false, Some((first, rest))) = (piece.is_empty(), self.buffers.split_first()) {
            let bytes = &first[self.skipped..];
            let count = bytes.len().min(piece.len());
            let (filled, left) = piece.split_at_mut(count);
            filled.copy_from_slice(&bytes[..count]);
            piece = left;
            self.skipped += count;
            if self.skipped == first.len() {
                (self.buffers, self.skipped) = (rest, 0);
            }
        }
    }
}

/// What is still to be filled of the buffers of a read.
struct Target<'a, 'b> {
    buffers: &'a mut [IoSliceMut<'b>],
    buffer: usize,
    filled: usize,
}

impl Target<'_, '_> {
    /// Puts `piece` where the next bytes belong; the caller never brings more than fit.
    fn copy_from(&mut self, mut piece: &[u8]) {
        while let (false, Some(buffer)) = (piece.is_empty(), self.buffers.get_mut(self.buffer)) {
            let free = &mut buffer[self.filled..];
            let count = free.len().min(piece.len());
            free[..count].copy_from_slice(&piece[..count]);
            piece = &piece[count..];
            self.filled += count;
            if self.filled == buffer.len() {
                self.buffer += 1;
                self.filled = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of a write: way, offset, length.
    fn pieces(offset: u64, length: usize) -> Vec<(Way, u64, usize)> {
        let bytes: Vec<u8> = (0..length).map(|number| (number % 251) as u8).collect();
        let (first, second) = bytes.split_at(length / 3);
        let mut copy = Vec::new();
        let mut pieces = Vec::new();
        write_pieces(offset, &[first, &[], second].map(IoSlice::new), |way, offset, bytes| {
            assert!(way == Way::Cached || bytes.as_ptr().addr().is_multiple_of(BLOCK_LENGTH));
            copy.extend_from_slice(bytes);
            pieces.push((way, offset, bytes.len()));
            Ok(())
        })
        .unwrap();
        assert_eq!(copy, bytes);
        assert_eq!(pieces.len(), piece_count(offset, length as u64));
        pieces
    }

    #[test]
    fn parts_of_blocks_go_through_the_cache_and_whole_blocks_around_it() {
        assert_eq!(pieces(0, 0), []);
        assert_eq!(pieces(0, 4096), [(Way::Direct, 0, 4096)]);
        assert_eq!(pieces(100, 50), [(Way::Cached, 100, 50)]);
        assert_eq!(pieces(100, 3996), [(Way::Cached, 100, 3996)]);
        assert_eq!(pieces(4000, 9000), [(Way::Cached, 4000, 96), (Way::Direct, 4096, 8192), (Way::Cached, 12288, 712)]);
        assert_eq!(
            pieces(4096, (1 << 20) + 4097),
            [(Way::Direct, 4096, 1 << 20), (Way::Direct, 4096 + (1 << 20), 4096), (Way::Cached, 8192 + (1 << 20), 1)]
        );
    }

    #[test]
    fn reads_of_any_place_are_reads_of_whole_blocks() {
        let file: Vec<u8> = (0..3_000_001u32).map(|number| (number % 249) as u8).collect();
        for (offset, length) in [(0, 0), (0, 4096), (5, 1), (4095, 2), (4097, 2_500_000), (2_999_999, 2)] {
            let mut read = vec![0; length];
            let (first, second) = read.split_at_mut(length / 2);
            let buffers = &mut [first, &mut [], second].map(IoSliceMut::new);
            read_pieces(offset, buffers, |offset, memory| {
                assert!(is_aligned(offset, &[&*memory]));
                let available = memory.len().min(file.len() - offset as usize);
                memory[..available].copy_from_slice(&file[offset as usize..][..available]);
                Ok(available)
            })
            .unwrap();
            assert_eq!(read, file[offset as usize..][..length]);
        }
        let error = read_pieces(4096, &mut [IoSliceMut::new(&mut [0; 10])], |_, _| Ok(9)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
