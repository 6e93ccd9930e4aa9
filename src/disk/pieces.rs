//! A transfer cut at block boundaries, for the disks that keep blocks in memory.

use std::io::{IoSlice, IoSliceMut};

use crate::id::BLOCK_LENGTH;

/// The part of a transfer that lies in one block and in one buffer.
pub(super) struct Piece<B> {
    /// The block's number.
    pub(super) block: u64,
    /// Where in the block the piece starts.
    pub(super) start: usize,
    /// The piece of the buffer.
    pub(super) bytes: B,
}

/// Cuts a write; in order.
pub(super) fn of_write<'a>(offset: u64, buffers: &'a [IoSlice<'_>]) -> impl Iterator<Item = Piece<&'a [u8]>> {
    let mut rest: &[u8] = &[];
    let mut buffers = buffers.iter();
    let mut offset = offset;
    std::iter::from_fn(move || {
        while rest.is_empty() {
            rest = buffers.next()?;
        }
        let (block, start) = locate(offset);
        let bytes = rest.split_off(..rest.len().min(BLOCK_LENGTH - start))?;
        offset += bytes.len() as u64;
        Some(Piece { block, start, bytes })
    })
}

/// Cuts a read; in order.
pub(super) fn of_read<'a>(offset: u64, buffers: &'a mut [IoSliceMut<'_>]) -> impl Iterator<Item = Piece<&'a mut [u8]>> {
    let mut rest: &mut [u8] = &mut [];
    let mut buffers = buffers.iter_mut();
    let mut offset = offset;
    std::iter::from_fn(move || {
        while rest.is_empty() {
            rest = buffers.next()?;
        }
        let (block, start) = locate(offset);
        let length = rest.len().min(BLOCK_LENGTH - start);
        let bytes = rest.split_off_mut(..length)?;
        offset += length as u64;
        Some(Piece { block, start, bytes })
    })
}

fn locate(offset: u64) -> (u64, usize) {
    (offset / BLOCK_LENGTH as u64, (offset % BLOCK_LENGTH as u64) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_at_blocks_and_at_buffers() {
        let buffers = [vec![1; 5000], vec![], vec![2; 4096], vec![3; 1]];
        let slices: Vec<IoSlice<'_>> = buffers.iter().map(|buffer| IoSlice::new(buffer)).collect();
        let pieces: Vec<_> = of_write(8000, &slices)
            .map(|piece| (piece.block, piece.start, piece.bytes.len(), piece.bytes[0]))
            .collect();
        assert_eq!(
            pieces,
            [(1, 3904, 192, 1), (2, 0, 4096, 1), (3, 0, 712, 1), (3, 712, 3384, 2), (4, 0, 712, 2), (4, 712, 1, 3)]
        );
        let mut copies = buffers.clone();
        let mut slices: Vec<IoSliceMut<'_>> = copies.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        let read: Vec<_> = of_read(8000, &mut slices)
            .map(|piece| (piece.block, piece.start, piece.bytes.len(), piece.bytes[0]))
            .collect();
        assert_eq!(read, pieces);
        assert_eq!(of_write(3, &[IoSlice::new(b"")]).count(), 0);
    }
}
