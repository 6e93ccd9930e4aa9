//! Memory that direct I/O can use as it is: aligned to a block.

use std::alloc::{Layout, handle_alloc_error};
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::id::BLOCK_LENGTH;
use crate::memory::{Hint, Pages, huge_page_bytes};

/// A block of memory; its type is what aligns the buffer.
#[derive(Clone, FromBytes, IntoBytes, Immutable)]
#[repr(C, align(4096))]
struct AlignedBlock([u8; BLOCK_LENGTH]);

const _: () = assert!(align_of::<AlignedBlock>() == BLOCK_LENGTH);

/// Bytes that start at a multiple of 4096 in memory, of any length.
///
/// What is read into or written from such a buffer, at a block's offset and in whole blocks, takes no copy on a disk
/// opened with [`Caching::Direct`](super::Caching::Direct). It derefs to `[u8]`.
pub struct AlignedBuffer {
    memory: Memory,
    length: usize,
}

enum Memory {
    /// From the allocator.
    Blocks(Vec<AlignedBlock>),
    /// From the system, in huge pages where it has them.
    Pages(Pages),
}

impl AlignedBuffer {
    /// A buffer of `length` bytes, all zero. Memory is taken in whole blocks.
    ///
    /// Where the length comes from a file, use [`AlignedBuffer::try_zeroed`]: like every container of the standard
    /// library, this one ends the process when there is no memory.
    pub fn zeroed(length: usize) -> Self {
        Self::try_zeroed(length).unwrap_or_else(|_| {
            let layout = Layout::from_size_align(length, BLOCK_LENGTH);
            handle_alloc_error(layout.unwrap_or(Layout::new::<AlignedBlock>()))
        })
    }

    /// As [`AlignedBuffer::zeroed`], with an error where there is no memory.
    ///
    /// # Errors
    /// [`io::ErrorKind::OutOfMemory`].
    pub fn try_zeroed(length: usize) -> io::Result<Self> {
        let blocks = AlignedBlock::new_vec_zeroed(length.div_ceil(BLOCK_LENGTH))
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self { memory: Memory::Blocks(blocks), length })
    }

    /// As [`AlignedBuffer::zeroed`], in memory that is backed by huge pages where the system has them: the device then
    /// finds it in one piece. At least one huge page is taken; it is for buffers that are used again and again.
    pub fn huge(length: usize) -> Self {
        match Pages::new(length.next_multiple_of(huge_page_bytes())) {
            Ok(pages) => {
                // Without huge pages it serves as well, and is slower.
                let _ = pages.hint(.., Hint::HugePages);
                Self { memory: Memory::Pages(pages), length }
            }
            Err(_) => Self::zeroed(length),
        }
    }

    /// A buffer that holds a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let bytes = match &self.memory {
            Memory::Blocks(blocks) => blocks.as_slice().as_bytes(),
            Memory::Pages(pages) => pages,
        };
        &bytes[..self.length]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let bytes = match &mut self.memory {
            Memory::Blocks(blocks) => blocks.as_mut_slice().as_mut_bytes(),
            Memory::Pages(pages) => pages,
        };
        &mut bytes[..self.length]
    }
}

impl Clone for AlignedBuffer {
    fn clone(&self) -> Self {
        Self::copy_of(self)
    }
}

impl Default for AlignedBuffer {
    fn default() -> Self {
        Self { memory: Memory::Blocks(Vec::new()), length: 0 }
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuffer({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_starts_at_a_multiple_of_a_block_and_is_zero() {
        for length in [1, 16, 4095, 4096, 4097, 1 << 20] {
            let mut buffer = AlignedBuffer::zeroed(length);
            assert_eq!(buffer.as_ptr().addr() % BLOCK_LENGTH, 0);
            assert_eq!(buffer.len(), length);
            assert!(buffer.iter().all(|&byte| byte == 0));
            buffer.fill(7);
            let copy = buffer.clone();
            assert_eq!(copy.as_ptr().addr() % BLOCK_LENGTH, 0);
            assert_eq!(*copy, *buffer);
        }
        assert!(AlignedBuffer::zeroed(0).is_empty());
    }

    #[test]
    fn a_length_that_no_memory_has_is_an_error() {
        for length in [usize::MAX, isize::MAX as usize] {
            let error = AlignedBuffer::try_zeroed(length).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        }
    }
}
