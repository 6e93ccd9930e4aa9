//! The birth block: block 0, the same bytes in every store, written first of all and never again.
//!
//! It tells a store whose creation was cut short from a file of somebody else: `create` may overwrite the one, never
//! the other. All its 16-byte units are known beforehand, so however its first write was torn, the file is recognised.

use crate::id::BLOCK_LENGTH;

/// The birth block's number.
pub const BIRTH_BLOCK: u64 = 0;

const TEXT: &[u8] = b"\x89VELLUM\r\n\x1a\n\0\0\0\0\0\
This file is a Vellum page store. Its format is described in the FORMAT.md of the crate vellum. \
Bytes of this block never change.\n";

/// The birth block's bytes.
pub fn birth_block() -> [u8; BLOCK_LENGTH] {
    let mut block = [0; BLOCK_LENGTH];
    // A unit of 16 bytes that is not zero everywhere, so that a torn block differs from a whole one.
    for (index, unit) in block.chunks_exact_mut(16).enumerate() {
        unit.copy_from_slice(b"vellum birth\0\0\0\0");
        unit[12..].copy_from_slice(&(index as u32).to_le_bytes());
    }
    block[..TEXT.len()].copy_from_slice(TEXT);
    block
}

/// What the first bytes of a file say of its birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BirthState {
    /// The whole birth block is there: a store, or a creation that was cut short.
    Whole,
    /// A file of at most one block that holds nothing but parts of a birth block: a creation that was cut short at
    /// its very first write. An empty file is one.
    Torn,
    /// Somebody else's file.
    Foreign,
}

/// Judges a file by its first bytes (at most one block of them) and its length in bytes.
pub fn birth_state(head: &[u8], file_bytes: u64) -> BirthState {
    let whole = birth_block();
    if head == whole {
        return BirthState::Whole;
    }
    let torn = file_bytes <= BLOCK_LENGTH as u64
        && head.len() as u64 == file_bytes
        && head
            .chunks(16)
            .zip(whole.chunks(16))
            .all(|(found, unit)| found.iter().all(|byte| *byte == 0) || found == &unit[..found.len()]);
    if torn { BirthState::Torn } else { BirthState::Foreign }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tear_of_the_first_write_is_recognised_and_nothing_else() {
        let whole = birth_block();
        assert_eq!(birth_state(&whole, 4096), BirthState::Whole);
        assert_eq!(birth_state(&whole, 1 << 30), BirthState::Whole);
        assert_eq!(birth_state(&[], 0), BirthState::Torn);
        for cut in (0..4096).step_by(16) {
            let mut prefix = [0; 4096];
            prefix[..cut].copy_from_slice(&whole[..cut]);
            assert_eq!(birth_state(&prefix, 4096), BirthState::Torn);
            assert_eq!(birth_state(&whole[..cut], cut as u64), BirthState::Torn);
            let mut suffix = whole;
            suffix[..cut].fill(0);
            assert_ne!(birth_state(&suffix, 4096), BirthState::Foreign);
        }
        assert_eq!(birth_state(b"hello", 5), BirthState::Foreign);
        assert_eq!(birth_state(&[0; 4096], 8192), BirthState::Foreign);
        assert_eq!(birth_state(&[0xff; 4096], 4096), BirthState::Foreign);
    }
}
