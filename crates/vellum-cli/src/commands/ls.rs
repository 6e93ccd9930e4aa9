//! `vellum ls`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

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
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store
    store: PathBuf,
    /// Only this file, or what lies in this folder
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
        let wanted = self.path.as_ref().map(|path| trimmed(path.as_bytes()));
        let mut found = wanted.is_none();
        for entry in Entries::of(&view).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if wanted.is_none_or(|wanted| is_at_or_below(&entry.path, wanted)) {
                found = true;
                let storage = self.storage.then(|| stored(&view, &entry)).transpose();
                self.tell(output, &entry, storage.map_err(|error| open::failed_to_read(&self.store, &error))?)?;
            }
        }
        match found {
            true => Ok(Exit::DONE),
            false => Err(not_found(&pager, wanted.unwrap_or_default(), &self.store)),
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
                // Bytes as they are: a path need not be text.
                output.bytes(&entry.path)?;
                match &entry.kind {
                    Kind::Link { target } if self.long => {
                        output.bytes(b" -> ")?;
                        output.bytes(target)?;
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

/// A path as the catalogue has it: people put `./` before and `/` behind.
pub(super) fn trimmed(mut path: &[u8]) -> &[u8] {
    while let Some(rest) = path.strip_prefix(b"./") {
        path = rest;
    }
    while let Some(rest) = path.strip_suffix(b"/") {
        path = rest;
    }
    path
}

fn is_at_or_below(path: &[u8], folder: &[u8]) -> bool {
    folder == b"." || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// The failure of a look for a path that the store does not have.
pub(super) fn not_found(pager: &Pager, path: &[u8], store: &std::path::Path) -> Failure {
    let what = format!("cannot find {} in {}", String::from_utf8_lossy(path), store.display());
    let generation = open::generation_of(pager);
    Failure::new(
        Exit::NOT_A_STORE,
        what,
        format_args!("no entry has this path at {generation}"),
        "'vellum ls' lists them",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_names_itself_and_what_lies_in_it() {
        assert!(is_at_or_below(b"a/b", b"a") && is_at_or_below(b"a", b"a") && is_at_or_below(b"a", b"."));
        assert!(!is_at_or_below(b"ab", b"a") && !is_at_or_below(b"a", b"a/b"));
        assert_eq!((trimmed(b"././a/b//"), trimmed(b".")), (&b"a/b"[..], &b"."[..]));
    }
}
