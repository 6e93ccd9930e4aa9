//! The one place that names the checksum and the seal.

use twox_hash::XxHash3_128;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The CRC32 (IEEE, as in zlib) of `bytes`: what a parent holds of the structure it points to.
pub fn checksum(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// XXH3-128 over a record and the seals of all pages it stores, seeded with the salt of the record's log segment, so that
/// stored data cannot be crafted against it. Little-endian on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(transparent)]
pub struct Seal(pub [u8; 16]);

impl Seal {
    /// Of these bytes, all at once: what the seal of a record covers of a page that it stores.
    pub fn of(salt: u64, bytes: &[u8]) -> Self {
        Self(XxHash3_128::oneshot_with_seed(salt, bytes).to_le_bytes())
    }
}

/// Computes a [`Seal`] piece by piece.
pub struct SealHasher(XxHash3_128);

impl SealHasher {
    /// A seal under `salt` that has seen nothing yet.
    pub fn new(salt: u64) -> Self {
        Self(XxHash3_128::with_seed(salt))
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The seal of everything added.
    pub fn finish(&self) -> Seal {
        Seal(self.0.finish_128().to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_and_seal_have_their_published_values() {
        assert_eq!(checksum(b"123456789"), 0xcbf4_3926);
        let empty = SealHasher::new(0).finish();
        assert_eq!(u128::from_le_bytes(empty.0), 0x99aa_06d3_0147_98d8_6001_c324_468d_497f);
    }

    #[test]
    fn a_seal_depends_on_salt_and_bytes_but_not_on_how_they_are_cut() {
        let seal = |salt, pieces: &[&[u8]]| {
            let mut hasher = SealHasher::new(salt);
            pieces.iter().for_each(|piece| hasher.update(piece));
            hasher.finish()
        };
        assert_eq!(seal(7, &[b"ab", b"cd"]), seal(7, &[b"abcd"]));
        assert_eq!(seal(7, &[b"ab", b"cd"]), Seal::of(7, b"abcd"));
        assert_ne!(seal(7, &[b"abcd"]), seal(8, &[b"abcd"]));
        assert_ne!(seal(7, &[b"abcd"]), seal(7, &[b"abce"]));
    }
}
