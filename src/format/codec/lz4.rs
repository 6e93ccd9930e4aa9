//! LZ4, the block format: no frame, no length. Encoder and decoder are safe code.

use super::{Codec, CodecId, Compression};

pub(super) const ID: CodecId = CodecId::new(3);

impl Compression {
    /// LZ4: fast in both directions, about half the bytes for text.
    pub const LZ4: Self = Self::of(ID, 0);
}

/// The codec.
#[derive(Debug)]
pub(super) struct Lz4;

impl Codec for Lz4 {
    fn name(&self) -> &'static str {
        "lz4"
    }

    fn encode(&self, page: &[u8], _: i32, limit: usize, target: &mut Vec<u8>) -> Option<usize> {
        target.resize(target.len().max(lz4_flex::block::get_maximum_output_size(page.len())), 0);
        let length = lz4_flex::block::compress_into(page, target).ok()?;
        (length <= limit).then_some(length)
    }

    fn decode(&self, stored: &[u8], target: &mut [u8]) -> Result<usize, &'static str> {
        lz4_flex::block::decompress_into(stored, target).map_err(|_| "it is no block of LZ4 of this length")
    }
}
