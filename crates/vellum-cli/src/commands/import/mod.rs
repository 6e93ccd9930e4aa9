//! `vellum import`: makes a store hold a tree of files, in commits of at most [`batch::BATCH_BYTES`].
//!
//! - **B1** Each commit leaves a whole tree: every entry names pages that hold all of its file. Pages of a file that
//!   is larger than a batch are listed as unfinished until the entry names them.
//! - **B2** What a commit acknowledged is told, and flushed, after it and before the next.
//! - **B3** What went is removed last, after everything new is in; but what stands in the way of something new (a
//!   folder where a file is now) is removed with it, so that no state has a file within a file.
//! - **B4** A file of the tree that cannot be read, or changes while it is read, keeps what the store has of it; so
//!   does all that lies in a folder that cannot be read.
//!
//! State of a file: found (`walk`) → compared (`compare`) → read and stored (`file`) → named in the catalogue →
//! committed (`batch`) → told.

mod batch;
mod compare;
mod file;
mod walk;

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use vellum::{Compression, Error, Options, Pager};

use super::counted;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::progress::{Progress, human_bytes};
use crate::survey::Survey;
use crate::tree::{APPLICATION, APPLICATION_VERSION, Entry, Kind};

use batch::Batch;
use compare::{Change, Trust, change_of};
use file::Trouble;
use walk::{Found, Walk};

/// Make a store hold a tree of files
///
/// Files, folders and symbolic links are stored with their permissions and times. Importing again replaces what
/// changed and removes what went. The store is created if it does not exist. If the import is cut short, by whatever,
/// the store holds the files of the batches committed so far, each whole.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store
    store: PathBuf,
    /// The tree's root folder
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Compare files by their content, not by time and length
    #[arg(long)]
    checksum: bool,
    /// How the files' pages are stored: none, lz4, zstd, zstd:LEVEL (1 to 22), snappy
    ///
    /// Of what this import stores only: nothing in the store remembers it. Pages that would not get a block of 4 KiB
    /// shorter are stored as they are.
    #[arg(long, value_name = "CODEC", default_value = "none")]
    compression: Compression,
}

/// What an import did.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Totals {
    batches: u64,
    /// Entries that are new or replaced.
    stored: u64,
    /// Bytes of the files among them.
    stored_bytes: u64,
    unchanged: u64,
    removed: u64,
    /// Neither files, folders nor links.
    skipped: u64,
    /// Could not be read, or changed meanwhile.
    failed: u64,
    /// Entries that the store has in the end.
    entries: u64,
    bytes: u64,
}

impl Arguments {
    pub(crate) fn run(&self, output: &Output) -> Result<Exit> {
        let metadata = std::fs::metadata(&self.folder).map_err(|error| Failure::file("read", &self.folder, &error))?;
        if !metadata.is_dir() {
            let why = "it is no folder";
            let what = format!("cannot import {}", self.folder.display());
            return Err(Failure::new(Exit::NOT_A_STORE, what, why, "give the root folder of a tree"));
        }
        // Before the store is made: of a root that cannot be read there is nothing to import.
        std::fs::read_dir(&self.folder).map_err(|error| Failure::file("read", &self.folder, &error))?;
        let interrupt = Interrupt::watch()?;
        let pager = open_or_create(&self.store, self.compression)?;
        let batch = Batch::new(pager.clone(), output, &self.store)?;
        let trust = if self.checksum { Trust::Content } else { Trust::TimeAndLength };
        let mut import = Import {
            batch,
            output,
            trust,
            interrupt,
            progress: Progress::new("import", output),
            left: BTreeSet::new(),
            totals: Totals::default(),
        };
        let result = import.everything(&self.folder, &self.store);
        import.progress.clear();
        import.totals.batches = import.batch.committed();
        if let Err(failure) = result {
            let committed = import.totals.batches;
            let kept = format!("{} of this import kept", counted(committed, "commit"));
            return Err(if committed > 0 { failure.after_some_work(kept) } else { failure });
        }
        (import.totals.entries, import.totals.bytes) = import.batch.holds();
        let totals = import.totals.clone();
        drop(import);
        pager.close().map_err(|error| failed(&self.store, &error))?;
        output.summary("summary", &totals, said(&self.store, &totals))?;
        Ok(if totals.failed > 0 { Exit::PARTLY } else { Exit::DONE })
    }
}

fn said(store: &Path, totals: &Totals) -> String {
    format!(
        "{}: {} ({}); {} stored ({}), {} unchanged, {} removed, {} skipped, {} failed",
        store.display(),
        counted(totals.entries, "entry"),
        human_bytes(totals.bytes),
        totals.stored,
        human_bytes(totals.stored_bytes),
        totals.unchanged,
        totals.removed,
        totals.skipped,
        totals.failed
    )
}

fn failed(store: &Path, error: &Error) -> Failure {
    Failure::store(format_args!("cannot import into {}", store.display()), error)
}

/// Opens the store for writing, or creates it. A store of no application in particular will do if it is empty.
fn open_or_create(store: &Path, compression: Compression) -> Result<Pager> {
    let any = Options::new().compression(compression);
    let own = any.clone().application(APPLICATION, APPLICATION_VERSION);
    let application = Survey::of(store).ok().and_then(|survey| Some(survey.newest()?.application_id));
    let options = if application == Some(0) { any } else { own };
    Pager::open_or_create(store, &options).map_err(|error| failed(store, &error))
}

/// An import under way.
struct Import<'a> {
    batch: Batch<'a>,
    output: &'a Output,
    trust: Trust,
    interrupt: Interrupt,
    progress: Progress,
    /// Paths that the store has and the tree was not seen to have.
    left: BTreeSet<Vec<u8>>,
    totals: Totals,
}

/// The folder beside the store in which readers say what they need, while we have the store open.
fn side_folder(store: &Path) -> Option<PathBuf> {
    let mut path = std::fs::canonicalize(store).ok()?.into_os_string();
    path.push(".readers");
    Some(path.into())
}

fn is_or_lies_in(path: &Path, folder: &Path) -> bool {
    let is_folder = |path: &Path| {
        path.file_name() == folder.file_name() && std::fs::canonicalize(path).is_ok_and(|found| found == folder)
    };
    is_folder(path) || path.parent().is_some_and(is_folder)
}

impl Import<'_> {
    fn everything(&mut self, folder: &Path, store: &Path) -> Result<()> {
        self.left = self.batch.catalogue().entries().map(|entry| entry.path.clone()).collect();
        self.batch.free_unfinished()?;
        // The store may lie within the tree that it is to hold.
        let own = std::fs::metadata(store).map(|metadata| (metadata.dev(), metadata.ino())).ok();
        let side = side_folder(store);
        for found in Walk::of(folder) {
            if self.interrupt.is_wanted() {
                return Err(Failure::interrupted(format_args!("import into {} stopped", store.display())));
            }
            match found {
                Ok(found) if own == Some((found.metadata.dev(), found.metadata.ino())) => {
                    self.output.note(format_args!("{} is the store itself: left out", found.full.display()));
                }
                Ok(found) if side.as_deref().is_some_and(|side| is_or_lies_in(&found.full, side)) => {}
                Ok(found) => self.one(&found)?,
                Err(unreadable) => {
                    self.failed_to_read(&unreadable.full, &unreadable.error);
                    self.keep(&unreadable.path);
                }
            }
            let totals = &self.totals;
            self.progress
                .tell(totals.stored_bytes, || format!("{} stored, {} unchanged", totals.stored, totals.unchanged));
        }
        for path in std::mem::take(&mut self.left) {
            self.batch.ensure_room(0)?;
            self.remove(&path)?;
        }
        self.batch.finish()
    }

    /// Brings one file, folder or link of the tree into the store, if it is not there as it is.
    fn one(&mut self, found: &Found) -> Result<()> {
        let old = self.batch.catalogue().get(&found.path).cloned();
        let change = match change_of(found, old.as_ref(), self.trust) {
            Ok(change) => change,
            Err(error) => {
                self.failed_to_read(&found.full, &error);
                self.keep(&found.path);
                return Ok(());
            }
        };
        match change {
            Change::Nothing => self.totals.unchanged += 1,
            Change::Unsupported(kind) => {
                self.progress.clear();
                self.output.warn(format_args!("{} is {kind}: skipped", found.full.display()));
                self.totals.skipped += 1;
                // What the store has under this name went.
                return Ok(());
            }
            Change::Metadata(entry) => {
                self.batch.ensure_room(0)?;
                self.put(entry)?;
            }
            Change::Content => match file::store(&mut self.batch, found) {
                Ok(entry) => {
                    self.totals.stored_bytes += entry.length();
                    self.put(entry)?;
                }
                Err(Trouble::Source(error)) => {
                    self.failed_to_read(&found.full, &error);
                    self.keep(&found.path);
                    return Ok(());
                }
                Err(Trouble::Store(failure)) => return Err(failure),
            },
        }
        self.left.remove(&found.path);
        Ok(())
    }

    fn put(&mut self, entry: Entry) -> Result<()> {
        self.totals.stored += 1;
        if entry.kind != Kind::Folder {
            // What lay in a folder of this name cannot stay (B3).
            for path in self.below(&entry.path) {
                self.left.remove(&path);
                self.remove(&path)?;
            }
        }
        self.batch.put(entry)
    }

    fn remove(&mut self, path: &[u8]) -> Result<()> {
        self.totals.removed += 1;
        self.batch.remove(path)
    }

    /// The paths in the store that were not seen in the tree yet, below a path.
    fn below(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let folder = [path, b"/"].concat();
        let after = self.left.range(folder.clone()..);
        after.take_while(|path| path.starts_with(&folder)).cloned().collect()
    }

    /// What the store has of this path and below stays (B4).
    fn keep(&mut self, path: &[u8]) {
        match path {
            [] => self.left.clear(),
            _ => {
                self.left.remove(path);
                for path in self.below(path) {
                    self.left.remove(&path);
                }
            }
        }
    }

    fn failed_to_read(&mut self, path: &Path, error: &std::io::Error) {
        self.totals.failed += 1;
        self.progress.clear();
        self.output.fault(format_args!("cannot read {}: {error}", path.as_os_str().as_bytes().escape_ascii()));
    }
}
