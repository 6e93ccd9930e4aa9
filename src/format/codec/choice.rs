//! What a caller chooses: a codec and a level.

use std::fmt;
use std::str::FromStr;

use super::{BUILT_IN, CodecId, encoded_limit};
use crate::error::{Error, Result};

/// How pages are to be stored from now on: a codec, and a level where it has levels. A wish, not a promise: a page that
/// does not get at least one block shorter is stored as it is, and so is every page of 4 KiB.
///
/// As text: `none`, `lz4`, `zstd` (level 3), `zstd:9`, and with the feature of that name `snappy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Compression {
    codec: CodecId,
    level: i32,
}

impl Default for Compression {
    fn default() -> Self {
        Self::NONE
    }
}

impl Compression {
    /// Pages are stored as they are.
    pub const NONE: Self = Self::of(CodecId::RAW, 0);

    pub(super) const fn of(codec: CodecId, level: i32) -> Self {
        Self { codec, level }
    }

    /// The codec; [`CodecId::RAW`] for none.
    pub const fn codec(self) -> CodecId {
        self.codec
    }

    /// Whether there is a codec at all.
    pub fn is_none(self) -> bool {
        self.codec == CodecId::RAW
    }

    /// Encodes a page (or a chunk) into the beginning of `target`, which grows to what that takes, and returns how many
    /// bytes it has then; `None` if that would not save a block.
    pub fn encode(self, page: &[u8], target: &mut Vec<u8>) -> Option<usize> {
        let limit = encoded_limit(page.len());
        match limit {
            0 => None,
            _ => self.codec.codec()?.encode(page, self.level, limit, target),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.codec.codec() {
            None => f.write_str("none"),
            Some(codec) if codec.levels().is_some() => write!(f, "{}:{}", codec.name(), self.level),
            Some(codec) => f.write_str(codec.name()),
        }
    }
}

impl FromStr for Compression {
    type Err = Error;

    /// # Errors
    /// `InvalidOption` for a codec that this build does not have, or a level that the codec does not have.
    fn from_str(text: &str) -> Result<Self> {
        let invalid = |reason| Error::InvalidOption { option: "compression", reason };
        let (name, level) = match text.split_once(':') {
            None => (text, None),
            Some((name, level)) => (name, Some(level)),
        };
        let level = level.map(str::parse::<i32>).transpose().map_err(|_| invalid("a level is a number"))?;
        if name == "none" && level.is_none() {
            return Ok(Self::NONE);
        }
        let built_in = BUILT_IN.iter().find(|built_in| built_in.codec.name() == name);
        let built_in = built_in.ok_or_else(|| invalid("this build has none of that name"))?;
        match (built_in.codec.levels(), level) {
            (_, None) => Ok(Self::of(built_in.id, built_in.codec.usual_level())),
            (Some(levels), Some(level)) if levels.contains(&level) => Ok(Self::of(built_in.id, level)),
            (Some(_), Some(_)) => Err(invalid("the codec does not have this level")),
            (None, Some(_)) => Err(invalid("the codec has no levels")),
        }
    }
}
