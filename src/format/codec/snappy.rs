//! Snappy, the block format (its length in front, no frame). A feature: it is a little faster than LZ4 to encode and
//! takes twice as long to decode, for about as many bytes.

use super::{Codec, CodecId, Compression};

pub(super) const ID: CodecId = CodecId::new(5);

impl Compression {
    /// Snappy (feature `snappy`).
    pub const SNAPPY: Self = Self::of(ID, 0);
}

/// The codec.
#[derive(Debug)]
pub(super) struct Snappy;

impl Codec for Snappy {
    fn name(&self) -> &'static str {
        "snappy"
    }

    fn encode(&self, page: &[u8], _: i32, limit: usize, target: &mut Vec<u8>) -> Option<usize> {
        target.resize(target.len().max(snap::raw::max_compress_len(page.len())), 0);
        let length = snap::raw::Encoder::new().compress(page, target).ok()?;
        (length <= limit).then_some(length)
    }

    fn decode(&self, stored: &[u8], target: &mut [u8]) -> Result<usize, &'static str> {
        snap::raw::Decoder::new().decompress(stored, target).map_err(|_| "it is no block of Snappy of this length")
    }
}
