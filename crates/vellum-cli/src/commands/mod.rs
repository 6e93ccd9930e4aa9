//! The commands: each file has one, its arguments and what it does.

pub(crate) mod cat;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod create;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod info;
pub(crate) mod inspect;
pub(crate) mod ls;
pub(crate) mod man;
pub(crate) mod readers;
pub(crate) mod stat;
pub(crate) mod stress;

use serde::Serialize;
use vellum::{CodecId, Share};

/// A path in JSON: as text, and where it is not UTF-8 as the hexadecimal digits of its bytes too.
#[derive(Debug, Serialize)]
pub(crate) struct JsonPath {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
}

impl JsonPath {
    pub(crate) fn of(path: &[u8]) -> Self {
        let path_hex = std::str::from_utf8(path).is_err().then(|| hex(path));
        Self { path: String::from_utf8_lossy(path).into_owned(), path_hex }
    }
}

/// What pages of at most 1 MiB and chunks of larger ones take that are stored in one way.
#[derive(Debug, Serialize)]
pub(crate) struct Stored {
    codec: &'static str,
    units: u64,
    page_bytes: u64,
    stored_bytes: u64,
}

impl Stored {
    pub(crate) fn of(codec: CodecId, share: &Share) -> Self {
        let Share { units, page_bytes, stored_bytes } = *share;
        Self { codec: codec.name(), units, page_bytes, stored_bytes }
    }
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A number and a noun in the right number: `1 page`, `2 pages`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    match (count, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{count} {stem}ies"),
        _ => format!("{count} {noun}s"),
    }
}
