//! `vellum inspect`: decodes the structures of a store, damaged or not, and writes nothing.

mod map;
mod page;
mod record;
mod superblock;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;
use vellum::Error;
use vellum::format::{BlockPointer, Superblock, constants};

use super::info::no_superblock;
use crate::arguments::words;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::{Format, Output};
use crate::survey::Survey;

/// Show the structures of a store, damaged or not
///
/// Nothing is written. The store may also be given before the noun: 'vellum inspect STORE map'.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    noun: Noun,
}

/// What to show.
#[derive(Debug, Subcommand)]
enum Noun {
    /// Every copy of the superblocks
    Superblock {
        /// The store
        store: PathBuf,
    },
    /// The records of the log, from the newest superblock on
    Record {
        /// The store
        store: PathBuf,
        /// Only the record that makes this generation
        #[arg(long)]
        generation: Option<u64>,
        /// The changes in each record too
        #[arg(long)]
        entries: bool,
    },
    /// Where a page lies, whether its bytes are right, and the first of them
    Page {
        /// The store
        store: PathBuf,
        /// The page, as class:index: 12:0 is the first page of 4 KiB
        id: String,
        /// Write the page's bytes, and nothing else
        #[arg(long)]
        raw: bool,
    },
    /// The page maps: pages that exist, by size class
    Map {
        /// The store
        store: PathBuf,
        /// A line for each page
        #[arg(long)]
        pages: bool,
    },
    /// The constants of the file format
    Format,
}

const NOUNS: [&str; 5] = ["superblock", "record", "page", "map", "format"];

/// Puts noun and store of `inspect` in the order in which they are defined.
pub(crate) fn noun_first(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let is_noun = |word: &OsString| NOUNS.iter().any(|noun| word == noun);
    if let [command, first, second, ..] = words(&arguments)[..]
        && arguments[command] == "inspect"
        && !is_noun(&arguments[first])
        && is_noun(&arguments[second])
    {
        arguments.swap(first, second);
    }
    arguments
}

#[derive(Serialize)]
struct JsonConstant {
    name: &'static str,
    value: u64,
}

impl Arguments {
    pub(crate) fn run(&self, output: &Output) -> Result<Exit> {
        match &self.noun {
            Noun::Superblock { store } => superblock::show(output, store),
            Noun::Record { store, generation, entries } => {
                record::show(output, store, *generation, Detail::where_wanted(*entries))
            }
            Noun::Page { store, id, raw: true } => page::write(output, store, id),
            Noun::Page { store, id, raw: false } => page::show(output, store, id),
            Noun::Map { store, pages } => map::show(output, store, Detail::where_wanted(*pages)),
            Noun::Format => format(output),
        }
    }
}

fn format(output: &Output) -> Result<Exit> {
    for constant in constants() {
        match output.format {
            Format::Json => output.json("constant", &JsonConstant { name: constant.name, value: constant.value })?,
            Format::Text => output.line(format_args!("{:<24} {}", constant.name, constant.value))?,
        }
    }
    Ok(Exit::DONE)
}

/// How much is shown of something that has many parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    Summary,
    Parts,
}

impl Detail {
    fn where_wanted(wanted: bool) -> Self {
        if wanted { Self::Parts } else { Self::Summary }
    }
}

/// A store under inspection.
struct Subject {
    survey: Survey,
    what: String,
}

impl Subject {
    fn of(store: &Path) -> Result<Self> {
        let what = format!("cannot inspect {}", store.display());
        let survey = Survey::of(store).map_err(|error| Failure::store(&what, &error))?;
        Ok(Self { survey, what })
    }

    fn newest(&self) -> Result<&Superblock> {
        self.survey.newest().ok_or_else(|| no_superblock(&self.what, &self.survey))
    }

    fn failed(&self, error: &Error) -> Failure {
        Failure::store(&self.what, error)
    }
}

/// A block pointer in JSON.
#[derive(Serialize)]
struct JsonPointer {
    address: u64,
    codec: String,
    flags: u8,
    stored_bytes: u32,
    checksum: u32,
    birth: u64,
}

impl From<&BlockPointer> for JsonPointer {
    fn from(pointer: &BlockPointer) -> Self {
        Self {
            address: pointer.address.0,
            codec: pointer.codec.to_string(),
            flags: pointer.flags.bits(),
            stored_bytes: pointer.stored_length,
            checksum: pointer.checksum,
            birth: pointer.birth.0,
        }
    }
}

/// A block pointer in words.
fn said(pointer: &BlockPointer) -> String {
    let JsonPointer { address, codec, flags, stored_bytes, checksum, birth } = pointer.into();
    match stored_bytes {
        0 => format!("{codec}, born {birth}"),
        _ => format!("block {address}, {stored_bytes} bytes {codec}, flags {flags}, crc {checksum:08x}, born {birth}"),
    }
}
