//! The bytes of a whole file as a value: cheap to clone, to change in a few blocks, and to tell apart.
//!
//! - **I1** A block that is all zero has no content of its own, whether it was written or not; so equal bytes are equal
//!   images.
//! - **I2** No byte beyond the length is anything but zero.
//! - **I3** `hash` is the exclusive or of the hashes of all blocks (a zero block's is 0), each seeded with the block's
//!   number: changing a block costs one hash, not all.
//!
//! Blocks are shared among images in groups; a change copies the list of groups and one group, no other block.

use std::fmt;
use std::io;
use std::sync::Arc;

use twox_hash::XxHash3_128;

use super::pieces;
use super::transfer;
use crate::id::{BLOCK_BYTES, BLOCK_LENGTH};

/// Blocks in a group.
const GROUP_BLOCKS: usize = 32;

/// The longest image: its list of groups is 64 MiB long then.
const LENGTH_LIMIT: u64 = 1 << 40;

/// The seed of the length's part of the hash: no block's number.
const LENGTH_SEED: u64 = u64::MAX;

type Group = [Content; GROUP_BLOCKS];

/// The content of one block.
#[derive(Clone, Default)]
pub(super) struct Content(Option<Arc<Stored>>);

struct Stored {
    hash: u128,
    bytes: [u8; BLOCK_LENGTH],
}

impl Content {
    /// A block of zeros.
    pub(super) const ZERO: Self = Self(None);

    /// The content `bytes` of block number `block`.
    pub(super) fn new(block: u64, bytes: &[u8; BLOCK_LENGTH]) -> Self {
        const ZEROS: [u8; BLOCK_LENGTH] = [0; BLOCK_LENGTH];
        if *bytes == ZEROS {
            return Self::ZERO;
        }
        Self(Some(Arc::new(Stored { hash: XxHash3_128::oneshot_with_seed(block, bytes), bytes: *bytes })))
    }

    pub(super) fn bytes(&self) -> &[u8; BLOCK_LENGTH] {
        static ZEROS: [u8; BLOCK_LENGTH] = [0; BLOCK_LENGTH];
        self.0.as_ref().map_or(&ZEROS, |stored| &stored.bytes)
    }

    pub(super) fn hash(&self) -> u128 {
        self.0.as_ref().map_or(0, |stored| stored.hash)
    }

    /// The content as far as a file of `length` bytes holds it.
    pub(super) fn clipped(&self, block: u64, length: u64) -> Self {
        let held = length.saturating_sub(block * BLOCK_BYTES);
        if held >= BLOCK_BYTES || self.0.is_none() {
            return self.clone();
        }
        let mut bytes = *self.bytes();
        bytes[held as usize..].fill(0);
        Self::new(block, &bytes)
    }
}

/// The bytes of a file: what a [`SimulatedDisk`](super::SimulatedDisk) holds, or what a power cut left of it.
#[derive(Clone, Default)]
pub struct Image {
    length: u64,
    groups: Arc<Vec<Option<Arc<Group>>>>,
    hash: u128,
}

impl Image {
    /// The empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file of these bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut image = Self { length: bytes.len() as u64, ..Self::default() };
        for (block, bytes) in (0..).zip(bytes.chunks(BLOCK_LENGTH)) {
            image.set(block, patched(block, &Content::ZERO, 0, bytes));
        }
        image
    }

    /// A copy of the file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.length as usize];
        for (block, bytes) in (0..).zip(bytes.chunks_mut(BLOCK_LENGTH)) {
            bytes.copy_from_slice(&self.get(block).bytes()[..bytes.len()]);
        }
        bytes
    }

    /// The file's length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// 128 bits that are equal for equal files, and differ for others as far as a hash can tell.
    pub fn hash(&self) -> u128 {
        self.hash ^ XxHash3_128::oneshot_with_seed(LENGTH_SEED, &self.length.to_le_bytes())
    }

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends before.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_vectored_at(offset, &mut [io::IoSliceMut::new(buffer)])
    }

    /// The file with `bytes` at `offset`, longer if need be; for tests that damage it.
    ///
    /// # Errors
    /// [`io::ErrorKind::FileTooLarge`] beyond 1 TiB.
    pub fn with_bytes_at(&self, offset: u64, bytes: &[u8]) -> io::Result<Self> {
        let mut image = self.clone();
        let buffers = &[io::IoSlice::new(bytes)];
        image.set_length(write_end(offset, buffers)?.max(self.length));
        for piece in pieces::of_write(offset, buffers) {
            image.set(piece.block, patched(piece.block, &image.get(piece.block), piece.start, piece.bytes));
        }
        Ok(image)
    }

    pub(super) fn read_vectored_at(&self, offset: u64, buffers: &mut [io::IoSliceMut<'_>]) -> io::Result<()> {
        let length = transfer::length_of_mut(buffers)?;
        if length != 0 && transfer::end(offset, length).is_none_or(|end| end > self.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for piece in pieces::of_read(offset, buffers) {
            piece
                .bytes
                .copy_from_slice(&self.get_ref(piece.block).bytes()[piece.start..piece.start + piece.bytes.len()]);
        }
        Ok(())
    }

    /// The content of a block.
    pub(super) fn get(&self, block: u64) -> Content {
        self.get_ref(block).clone()
    }

    fn get_ref(&self, block: u64) -> &Content {
        let (group, place) = locate(block);
        self.groups.get(group).and_then(Option::as_ref).map_or(&Content::ZERO, |group| &group[place])
    }

    /// Gives a block another content. It must lie within the length, or come to do so before anyone looks (I2).
    pub(super) fn set(&mut self, block: u64, content: Content) {
        let before = self.get_ref(block).hash();
        if before == content.hash() {
            return;
        }
        self.hash ^= before ^ content.hash();
        let (group, place) = locate(block);
        let groups = Arc::make_mut(&mut self.groups);
        if groups.len() <= group {
            groups.resize(group + 1, None);
        }
        let group = groups[group].get_or_insert_with(|| Arc::new([const { Content::ZERO }; GROUP_BLOCKS]));
        Arc::make_mut(group)[place] = content;
    }

    /// Gives the file another length; what is beyond is gone, what is new is zero.
    pub(super) fn set_length(&mut self, length: u64) {
        if length < self.length {
            let boundary = length / BLOCK_BYTES;
            self.set(boundary, self.get_ref(boundary).clipped(boundary, length));
            let beyond: Vec<u64> = self.blocks_from(boundary + 1).collect();
            for block in beyond {
                self.set(block, Content::ZERO);
            }
        }
        self.length = length;
    }

    /// The numbers of the blocks from `first` on that are not zero, in order.
    pub(super) fn blocks_from(&self, first: u64) -> impl Iterator<Item = u64> + '_ {
        let (first_group, _) = locate(first);
        let groups = (0..).zip(self.groups.iter()).skip(first_group);
        groups
            .filter_map(|(number, group)| Some((number, group.as_ref()?)))
            .flat_map(|(number, group)| {
                (number * GROUP_BLOCKS as u64..).zip(group.iter()).filter(|(_, content)| content.0.is_some())
            })
            .map(|(block, _)| block)
            .filter(move |&block| block >= first)
    }
}

impl PartialEq for Image {
    /// By [`Image::hash`].
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.length == other.length
    }
}

impl Eq for Image {}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} bytes, {:032x})", self.length, self.hash())
    }
}

/// The content of a block once `bytes` are written into it at `start`.
pub(super) fn patched(block: u64, before: &Content, start: usize, bytes: &[u8]) -> Content {
    if let Ok(whole) = bytes.try_into() {
        return Content::new(block, whole);
    }
    let mut content = *before.bytes();
    content[start..start + bytes.len()].copy_from_slice(bytes);
    Content::new(block, &content)
}

/// One past the last byte of a write, if an image can hold it.
pub(super) fn write_end(offset: u64, buffers: &[io::IoSlice<'_>]) -> io::Result<u64> {
    held(transfer::write_end(offset, buffers)?)
}

/// `length`, if an image can be that long.
pub(super) fn held(length: u64) -> io::Result<u64> {
    if length > LENGTH_LIMIT { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(length) }
}

fn locate(block: u64) -> (usize, usize) {
    ((block / GROUP_BLOCKS as u64) as usize, (block % GROUP_BLOCKS as u64) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize, seed: u32) -> Vec<u8> {
        (0..length as u32).map(|number| (number.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
    }

    #[test]
    fn equal_bytes_are_equal_images_however_they_came_about() {
        let bytes = noise(300_000, 1);
        let straight = Image::from_bytes(&bytes);
        assert_eq!(straight.to_bytes(), bytes);
        let mut detour = Image::from_bytes(&noise(500_001, 2));
        detour.set_length(100_001);
        detour = detour.with_bytes_at(99_000, &bytes[99_000..]).unwrap().with_bytes_at(0, &bytes[..99_000]).unwrap();
        assert_eq!(detour, straight);
        assert_eq!(detour.hash(), straight.hash());
    }

    #[test]
    fn other_bytes_places_and_lengths_have_other_hashes() {
        let mut seen = std::collections::HashSet::new();
        let base = Image::from_bytes(&noise(50_000, 3));
        assert!(seen.insert(base.hash()));
        for offset in (0..50_000).step_by(1000) {
            let mut byte = [0];
            base.read_at(offset, &mut byte).unwrap();
            assert!(seen.insert(base.with_bytes_at(offset, &[byte[0] ^ 1]).unwrap().hash()));
        }
        let block = [5; BLOCK_LENGTH];
        for number in 20..40 {
            assert!(seen.insert(base.with_bytes_at(number * BLOCK_BYTES, &block).unwrap().hash()));
        }
        let mut longer = base.clone();
        longer.set_length(50_001);
        assert!(seen.insert(longer.hash()));
        assert_ne!(longer, base);
    }

    #[test]
    fn what_was_cut_off_is_zero_when_the_file_grows_again() {
        let mut image = Image::from_bytes(&noise(1_000_000, 4));
        image.set_length(5000);
        image.set_length(1_000_000);
        let bytes = image.to_bytes();
        assert_eq!(bytes[..5000], noise(1_000_000, 4)[..5000]);
        assert!(bytes[5000..].iter().all(|&byte| byte == 0));
        assert_eq!(image.blocks_from(0).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn images_do_not_share_changes() {
        let first = Image::from_bytes(&noise(10 * BLOCK_LENGTH, 5));
        let second = first.with_bytes_at(5 * BLOCK_BYTES, b"second").unwrap();
        assert_eq!(first.to_bytes(), noise(10 * BLOCK_LENGTH, 5));
        let mut read = [0; 6];
        second.read_at(5 * BLOCK_BYTES, &mut read).unwrap();
        assert_eq!(&read, b"second");
        assert_eq!(second.read_at(10 * BLOCK_BYTES - 5, &mut read).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(second.with_bytes_at(1 << 41, b"x").unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
