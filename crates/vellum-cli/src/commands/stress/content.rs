//! The bytes of a page: magic number, slot, sequence number, seed (8 each), then random numbers that follow from them.

use vellum::{PageId, Read, SizeClass};

use super::Random;

const MAGIC: u64 = u64::from_le_bytes(*b"VLpage01");

/// Fills a page.
pub(super) fn fill(bytes: &mut [u8], seed: u64, slot: u32, sequence: u64) {
    let mut random = Random(seed.rotate_left(32) ^ sequence.rotate_left(20) ^ u64::from(slot));
    let head = [MAGIC, slot.into(), sequence, seed];
    let words = head.into_iter().chain(std::iter::from_fn(|| Some(random.next())));
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

/// Whether a page has exactly the bytes that it should have.
pub(super) fn is_right(found: &[u8], seed: u64, slot: u32, sequence: u64) -> bool {
    let mut right = vec![0; found.len()];
    fill(&mut right, seed, slot, sequence);
    found == right
}

/// The slot that a page says to be in; `None` if it says nothing.
pub(super) fn slot_of(bytes: &[u8]) -> Option<u32> {
    let (head, rest) = bytes.split_first_chunk()?;
    let slot = u64::from_le_bytes(*rest.first_chunk()?);
    (u64::from_le_bytes(*head) == MAGIC).then(|| u32::try_from(slot).ok()).flatten()
}

/// Every page that is allocated.
pub(super) fn pages(source: &impl Read) -> impl Iterator<Item = vellum::Result<PageId>> {
    SizeClass::all().flat_map(|class| source.page_ids(class))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_right_for_one_slot_and_sequence_number_only() {
        let mut page = vec![0; 4096];
        fill(&mut page, 1, 2, 3);
        assert_eq!(slot_of(&page), Some(2));
        assert!(is_right(&page, 1, 2, 3));
        assert!(!is_right(&page, 1, 2, 4) && !is_right(&page, 1, 3, 3) && !is_right(&page, 2, 2, 3));
        page[4095] ^= 1;
        assert!(!is_right(&page, 1, 2, 3));
        assert_eq!(slot_of(&[0; 4096]), None);
    }
}
