//! Zstandard: one frame, without dictionary and checksum. Its contexts take longer to make than a small page takes to
//! encode, so each thread keeps one of either kind.
//!
//! A frame can ask for a window of gigabytes. Decoding in one step into the page's own buffer needs no window, and the
//! context for that has a fixed size (Z1).

use std::cell::RefCell;
use std::ops::RangeInclusive;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::ResetDirective;

use super::{Codec, CodecId, Compression};
use crate::error::Error;

pub(super) const ID: CodecId = CodecId::new(4);
const LEVELS: RangeInclusive<i32> = 1..=22;
const USUAL_LEVEL: i32 = 3;
/// None of the levels: the level is to be set before the next page.
const UNKNOWN_LEVEL: i32 = 0;

impl Compression {
    /// Zstandard at its own default level, 3: fewer bytes than LZ4 for two to three times the time.
    pub const ZSTD: Self = Self::of(ID, USUAL_LEVEL);

    /// Zstandard at a level: 1 (fast) to 22. Beyond 19 a thread that encodes takes tens of megabytes for it.
    ///
    /// # Errors
    /// `InvalidOption` for another level.
    pub fn zstd(level: i32) -> crate::error::Result<Self> {
        match LEVELS.contains(&level) {
            true => Ok(Self::of(ID, level)),
            false => Err(Error::InvalidOption { option: "compression", reason: "Zstandard's levels are 1 to 22" }),
        }
    }
}

/// The codec.
#[derive(Debug)]
pub(super) struct Zstd;

/// An encoder, and the level that it was told last.
struct Encoder {
    level: i32,
    compressor: Compressor<'static>,
}

impl Encoder {
    fn new(level: i32) -> Option<Self> {
        Compressor::new(level).ok().map(|compressor| Self { level, compressor })
    }

    fn encode(&mut self, page: &[u8], level: i32, target: &mut [u8]) -> Option<usize> {
        if self.level != level {
            self.level = UNKNOWN_LEVEL;
            self.compressor.set_compression_level(level).ok()?;
            self.level = level;
        }
        let encoded = self.compressor.compress_to_buffer(page, target);
        // What did not fit leaves the context in the middle of a frame, where it refuses another level.
        if encoded.is_err() && self.compressor.context_mut().reset(ResetDirective::SessionOnly).is_err() {
            self.level = UNKNOWN_LEVEL;
        }
        encoded.ok()
    }
}

thread_local! {
    static ENCODER: RefCell<Option<Encoder>> = const { RefCell::new(None) };
    static DECODER: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Lends the thread's own context; a thread that is ending has none any more, and gets a new one each time.
fn with_kept<T: 'static, R>(
    key: &'static std::thread::LocalKey<RefCell<Option<T>>>,
    make: impl FnOnce() -> Option<T>,
    work: impl FnOnce(&mut T) -> R,
) -> Option<R> {
    let mut context = key.try_with(RefCell::take).ok().flatten().or_else(make)?;
    let result = work(&mut context);
    // Of a thread that is ending, the context ends here.
    let _ = key.try_with(|kept| kept.replace(Some(context)));
    Some(result)
}

impl Codec for Zstd {
    fn name(&self) -> &'static str {
        "zstd"
    }

    fn levels(&self) -> Option<RangeInclusive<i32>> {
        Some(LEVELS)
    }

    fn usual_level(&self) -> i32 {
        USUAL_LEVEL
    }

    fn encode(&self, page: &[u8], level: i32, limit: usize, target: &mut Vec<u8>) -> Option<usize> {
        target.resize(target.len().max(limit), 0);
        let target = &mut target[..limit];
        with_kept(&ENCODER, || Encoder::new(level), |encoder| encoder.encode(page, level, target)).flatten()
    }

    fn decode(&self, stored: &[u8], target: &mut [u8]) -> Result<usize, &'static str> {
        let decoded = with_kept(
            &DECODER,
            || Decompressor::new().ok(),
            |decoder| {
                decoder.decompress_to_buffer(stored, target).map_err(|_| "it is no frame of Zstandard of this length")
            },
        );
        decoded.unwrap_or(Err("there is no memory for a decoder of Zstandard"))
    }
}
