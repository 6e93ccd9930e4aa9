//! `vellum ls`.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vellum::{CodecId, Pager, Share, View};

use super::{JsonPath, Stored};
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::{Format, Output};
use crate::time::rfc3339;
use crate::tree::{Entries, Entry, Kind};
use crate::{open, tree};

/// List the files of an imported tree
///
/// On a terminal what could command it is escaped in names; elsewhere they are written as they are. A writer is kept
/// out while this runs, and one that has the store open keeps this out (exit code 11).
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store
    store: PathBuf,
    /// Only this file, or this folder and what lies in it; '.' or '/' is the tree's root
    path: Option<OsString>,
    /// Kind, permissions, length and time too
    #[arg(short, long)]
    long: bool,
    /// The bytes that each file takes on disk too, and how it is stored
    #[arg(long)]
    storage: bool,
}

/// An entry in JSON.
#[derive(Serialize)]
struct Listed<'a> {
    #[serde(flatten)]
    path: JsonPath,
    kind: &'static str,
    mode: u32,
    mtime: String,
    bytes: u64,
    pages: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    storage: Option<Vec<Stored>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<std::borrow::Cow<'a, str>>,
}

impl Arguments {
    pub(crate) fn run(&self, output: &Output) -> Result<Exit> {
        let pager = open::read_only(&self.store)?;
        let view = pager.view();
        let failed = |error: tree::TreeError| error.failure(format_args!("cannot list {}", self.store.display()));
        let wanted = Wanted::of(self.path.as_deref().map_or(b".", OsStr::as_bytes));
        let mut found = wanted.is_root();
        for entry in Entries::of(&view).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if wanted.has(&entry) {
                found = true;
                let storage = self.storage.then(|| stored(&view, &entry)).transpose();
                self.tell(output, &entry, storage.map_err(|error| open::failed_to_read(&self.store, &error))?)?;
            }
        }
        match found {
            true => Ok(Exit::DONE),
            false => Err(wanted.not_found(&pager, &self.store)),
        }
    }

    fn tell(&self, output: &Output, entry: &Entry, storage: Option<Vec<Stored>>) -> Result<()> {
        match output.format {
            Format::Json => output.json("entry", &Listed { storage, ..listed(entry) }),
            Format::Text => {
                if self.long {
                    let time = rfc3339(entry.mtime_seconds, 0);
                    let line = format!("{:6} {:04o} {:>12} {time} ", entry.kind_name(), entry.mode, entry.length());
                    output.bytes(line.as_bytes())?;
                }
                if let Some(shares) = &storage {
                    let bytes: u64 = shares.iter().map(|share| share.stored_bytes).sum();
                    let codecs: Vec<&str> = shares.iter().map(|share| share.codec).collect();
                    output.bytes(format!("{bytes:>12} {:8} ", codecs.join("+")).as_bytes())?;
                }
                output.name(&entry.path)?;
                match &entry.kind {
                    Kind::Link { target } if self.long => {
                        output.bytes(b" -> ")?;
                        output.name(target)?;
                    }
                    _ => {}
                }
                output.bytes(b"\n")
            }
        }
    }
}

/// What a file's pages take.
fn stored(view: &View, entry: &Entry) -> vellum::Result<Vec<Stored>> {
    let mut all = BTreeMap::<CodecId, Share>::new();
    for page in entry.pages() {
        for (codec, share) in view.storage_of(*page)? {
            *all.entry(codec).or_default() += share;
        }
    }
    Ok(all.iter().map(|(codec, share)| Stored::of(*codec, share)).collect())
}

fn listed(entry: &Entry) -> Listed<'_> {
    let (hash, target) = match &entry.kind {
        Kind::File { hash, .. } => (Some(format!("{hash:032x}")), None),
        Kind::Folder => (None, None),
        Kind::Link { target } => (None, Some(String::from_utf8_lossy(target))),
    };
    Listed {
        path: JsonPath::of(&entry.path),
        kind: entry.kind_name(),
        mode: entry.mode,
        mtime: rfc3339(entry.mtime_seconds, entry.mtime_nanoseconds),
        bytes: entry.length(),
        pages: entry.pages().iter().map(ToString::to_string).collect(),
        storage: None,
        hash,
        target,
    }
}

/// A path of the tree as somebody asks for it: `sub`, `./sub`, `/sub` and `sub/` are one, `.` and `/` are the root.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// As it was asked for.
    asked: &'a [u8],
    /// As the catalogue has it; empty for the root.
    pub(super) path: &'a [u8],
    /// A slash at the end asks for a folder.
    folder: bool,
}

impl<'a> Wanted<'a> {
    pub(super) fn of(asked: &'a [u8]) -> Self {
        let mut path = asked;
        while let Some(rest) = path.strip_prefix(b"./").or_else(|| path.strip_prefix(b"/")) {
            path = rest;
        }
        let mut folder = false;
        while let Some(rest) = path.strip_suffix(b"/.").or_else(|| path.strip_suffix(b"/")) {
            (path, folder) = (rest, true);
        }
        let path = if path == b"." { b"" } else { path };
        Self { asked, path, folder }
    }

    /// Nothing at all is no path, of the root neither.
    pub(super) fn is_root(&self) -> bool {
        self.path.is_empty() && !self.asked.is_empty()
    }

    /// Whether it is this entry, and not asked for as a folder without being one.
    pub(super) fn is(&self, entry: &Entry) -> bool {
        self.path == entry.path && (!self.folder || entry.kind == Kind::Folder)
    }

    /// Whether it is this entry or a folder above it.
    fn has(&self, entry: &Entry) -> bool {
        let below = |rest: &[u8]| rest.first() == Some(&b'/');
        self.is_root() || self.is(entry) || entry.path.strip_prefix(self.path).is_some_and(below)
    }

    /// The failure of a look for what the store does not have.
    pub(super) fn not_found(&self, pager: &Pager, store: &Path) -> Failure {
        let what = format!("cannot find '{}' in {}", String::from_utf8_lossy(self.asked), store.display());
        let (noun, generation) = (if self.folder { "folder" } else { "entry" }, open::generation_of(pager));
        let why = format!("no {noun} has this path at {generation}");
        Failure::new(Exit::NOT_A_STORE, what, why, "'vellum ls' lists them")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry { path: path.into(), mode: 0, mtime_seconds: 0, mtime_nanoseconds: 0, kind }
    }

    #[test]
    fn a_folder_names_itself_and_what_lies_in_it() {
        let has = |asked: &str, path: &str| Wanted::of(asked.as_bytes()).has(&entry(path, Kind::Folder));
        for asked in ["a", "a/", "./a", "/a", "././a//", "a/."] {
            assert!(has(asked, "a") && has(asked, "a/b") && !has(asked, "ab"), "{asked}");
        }
        assert!(!has("a/b", "a") && !has("", "a") && !has("..", "a"));
        assert!(
            [".", "/", "./", "//", "/."].iter().all(|root| has(root, "a") && Wanted::of(root.as_bytes()).is_root())
        );
    }

    #[test]
    fn a_slash_asks_for_a_folder() {
        let file = entry("a", Kind::Link { target: b"b".to_vec() });
        assert!(Wanted::of(b"a").is(&file) && !Wanted::of(b"a/").is(&file) && !Wanted::of(b"a/").has(&file));
    }
}
