//! `vellum export`: makes a folder hold the tree that a store holds.
//!
//! - **E1** A file appears under its name only when it is whole and its hash is right: it is written under another
//!   name in the same folder, then renamed.
//! - **E2** Nothing outside of the folder is written, whatever the store holds: paths are relative and without `..`
//!   (K1 of `tree`), and each part of one but the last must be a real folder, no link.
//! - **E3** Folders get their permissions and times last, from the inside out: what lies in them would change both.

use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use serde::Serialize;
use vellum::View;

use super::counted;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::open;
use crate::output::Output;
use crate::progress::{Progress, human_bytes};
use crate::tree::{self, Entries, Entry, Kind, TreeError};

/// Make a folder hold the tree that a store holds
///
/// Files, folders and links get the permissions and times they were imported with. What is in the folder already and
/// not in the store is left alone; what has the same name is replaced, but a folder that is not empty by a folder only.
///
/// A writer is kept out while this runs, and one that has the store open keeps this out (exit code 11).
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store
    store: PathBuf,
    /// The folder; created if it does not exist
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// What an export did.
#[derive(Debug, Default, Serialize)]
struct Totals {
    generation: u64,
    files: u64,
    folders: u64,
    links: u64,
    bytes: u64,
    /// Could not be read from the store, or not be written.
    failed: u64,
}

/// Why one entry was not exported; the others still are.
enum Trouble {
    /// Its bytes in the store are damaged or out of reach.
    Store(TreeError),
    /// Its place in the folder cannot be written.
    Target(io::Error),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Target(error)
    }
}

impl Arguments {
    pub(crate) fn run(&self, output: &Output) -> Result<Exit> {
        let pager = open::read_only(&self.store)?;
        let view = pager.view();
        let interrupt = Interrupt::watch()?;
        fs::create_dir_all(&self.folder).map_err(|error| Failure::file("create", &self.folder, &error))?;
        let mut totals = Totals { generation: open::generation_of(&pager).0, ..Totals::default() };
        let mut progress = Progress::new("export", output);
        let mut folders: Vec<Entry> = Vec::new();
        let mut exit = Exit::DONE;
        let mut full = None;
        let what = format!("cannot export {}", self.store.display());
        for entry in Entries::of(&view).map_err(|error| error.failure(&what))? {
            if interrupt.is_wanted() {
                return Err(Failure::interrupted(format_args!("export to {} stopped", self.folder.display())));
            }
            let entry = entry.map_err(|error| error.failure(&what))?;
            match self.one(&view, &entry) {
                Ok(()) => totals.count(&entry),
                Err(trouble) => {
                    progress.clear();
                    if let Some(failure) = self.full_disk(&entry, &trouble, exit) {
                        full = Some(failure);
                        break;
                    }
                    exit = worse(exit, self.tell_trouble(output, &entry, &trouble));
                    totals.failed += 1;
                    continue;
                }
            }
            progress.tell(totals.bytes, || counted(totals.files, "file"));
            if entry.kind == Kind::Folder {
                folders.push(entry);
            }
        }
        for entry in folders.iter().rev() {
            if let Err(error) = finish_folder(&self.place(entry), entry) {
                exit = worse(exit, self.tell_trouble(output, entry, &error.into()));
                totals.failed += 1;
            }
        }
        progress.clear();
        if let Some(failure) = full {
            return Err(failure);
        }
        let said = format!(
            "{}: {} ({}), {}, {} of generation {}; {} failed",
            self.folder.display(),
            counted(totals.files, "file"),
            human_bytes(totals.bytes),
            counted(totals.folders, "folder"),
            counted(totals.links, "link"),
            totals.generation,
            totals.failed
        );
        output.summary("summary", &totals, said)?;
        Ok(exit)
    }

    fn place(&self, entry: &Entry) -> PathBuf {
        self.folder.join(OsStr::from_bytes(&entry.path))
    }

    /// The failure that ends the export where the disk is full: each entry to come would fail in the same way.
    fn full_disk(&self, entry: &Entry, trouble: &Trouble, so_far: Exit) -> Option<Failure> {
        let Trouble::Target(error) = trouble else { return None };
        let failure = Failure::file("write", &self.place(entry), error);
        (failure.exit == Exit::NO_SPACE).then(|| Failure { exit: worse(so_far, failure.exit), ..failure })
    }

    fn tell_trouble(&self, output: &Output, entry: &Entry, trouble: &Trouble) -> Exit {
        let path = self.place(entry);
        match trouble {
            Trouble::Store(error) => {
                output.failure(&error.failure(format_args!("cannot export {}", path.display())));
                if error.is_corruption() { Exit::CORRUPT } else { Exit::PARTLY }
            }
            Trouble::Target(error) => {
                output.failure(&Failure::file("write", &path, error));
                Exit::PARTLY
            }
        }
    }

    fn one(&self, view: &View, entry: &Entry) -> Result<(), Trouble> {
        let place = self.place(entry);
        check_parents(&self.folder, &entry.path)?;
        match &entry.kind {
            Kind::Folder => Ok(make_folder(&place)?),
            Kind::Link { target } => {
                let temporary = temporary(&place);
                let _ = fs::remove_file(&temporary);
                symlink(OsStr::from_bytes(target), &temporary)?;
                let times = Timestamps { last_access: timespec(entry), last_modification: timespec(entry) };
                let finished = utimensat(CWD, &temporary, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from);
                Ok(finished.and_then(|()| put(&temporary, &place)).inspect_err(|_| discard(&temporary))?)
            }
            Kind::File { .. } => {
                let temporary = temporary(&place);
                write_file(view, entry, &temporary)
                    .and_then(|()| Ok(put(&temporary, &place)?))
                    .inspect_err(|_| discard(&temporary))
            }
        }
    }
}

impl Totals {
    fn count(&mut self, entry: &Entry) {
        match entry.kind {
            Kind::File { length, .. } => {
                self.files += 1;
                self.bytes += length;
            }
            Kind::Folder => self.folders += 1,
            Kind::Link { .. } => self.links += 1,
        }
    }
}

/// Damage says more than a full disk.
fn worse(one: Exit, other: Exit) -> Exit {
    if one == Exit::CORRUPT { one } else { other }
}

/// Each part of the path but the last must be a folder in the tree, so that no link leads elsewhere (E2).
fn check_parents(root: &Path, path: &[u8]) -> io::Result<()> {
    for (slash, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        let parent = root.join(OsStr::from_bytes(&path[..slash]));
        if !fs::symlink_metadata(&parent)?.is_dir() {
            let why = format!("{} is no folder", parent.display());
            return Err(io::Error::new(io::ErrorKind::NotADirectory, why));
        }
    }
    Ok(())
}

/// A folder that we may write to, whatever its permissions will be. A file or link of its name is replaced.
fn make_folder(place: &Path) -> io::Result<()> {
    let make = || fs::DirBuilder::new().mode(0o700).create(place);
    match make() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match fs::symlink_metadata(place)?.is_dir() {
            true => fs::set_permissions(place, Permissions::from_mode(0o700)),
            false => fs::remove_file(place).and_then(|()| make()),
        },
        other => other,
    }
}

/// Gives a file or link that is whole its name. What else has this name is replaced, a folder only if it is empty.
fn put(temporary: &Path, place: &Path) -> io::Result<()> {
    match fs::rename(temporary, place) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            fs::remove_dir(place).map_err(|error| match error.kind() {
                kind @ io::ErrorKind::DirectoryNotEmpty => {
                    io::Error::new(kind, "a folder that is not empty has this name")
                }
                _ => error,
            })?;
            fs::rename(temporary, place)
        }
        other => other,
    }
}

fn finish_folder(place: &Path, entry: &Entry) -> io::Result<()> {
    let folder = File::open(place)?;
    folder.set_times(times(entry))?;
    folder.set_permissions(Permissions::from_mode(entry.mode))
}

/// A name beside `place` that nobody else has: ours from an export that was cut short is taken over.
fn temporary(place: &Path) -> PathBuf {
    let mut hash = twox_hash::XxHash3_128::oneshot(place.as_os_str().as_bytes());
    hash ^= u128::from(std::process::id());
    place.with_file_name(format!(".vellum-export-{hash:032x}"))
}

fn write_file(view: &View, entry: &Entry, temporary: &Path) -> Result<(), Trouble> {
    let _ = fs::remove_file(temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    tree::content(view, entry, &mut |bytes| file.write_all(bytes)).map_err(Trouble::Store)??;
    file.set_times(times(entry))?;
    file.set_permissions(Permissions::from_mode(entry.mode))?;
    Ok(())
}

/// That this fails is no worse than why it is called.
fn discard(temporary: &Path) {
    let _ = fs::remove_file(temporary);
}

fn times(entry: &Entry) -> FileTimes {
    let seconds = Duration::from_secs(entry.mtime_seconds.unsigned_abs());
    let nanoseconds = Duration::from_nanos(entry.mtime_nanoseconds.into());
    let whole = match entry.mtime_seconds < 0 {
        true => SystemTime::UNIX_EPOCH.checked_sub(seconds),
        false => SystemTime::UNIX_EPOCH.checked_add(seconds),
    };
    // A time that the system cannot have is left as it comes.
    whole
        .and_then(|time| time.checked_add(nanoseconds))
        .map_or(FileTimes::new(), |time| FileTimes::new().set_modified(time))
}

fn timespec(entry: &Entry) -> Timespec {
    Timespec { tv_sec: entry.mtime_seconds, tv_nsec: entry.mtime_nanoseconds.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_the_way_is_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("link")).unwrap();
        fs::create_dir(root.path().join("real")).unwrap();
        assert!(check_parents(root.path(), b"real/file").is_ok());
        assert!(check_parents(root.path(), b"file").is_ok());
        assert!(check_parents(root.path(), b"link/file").is_err());
        assert!(check_parents(root.path(), b"none/file").is_err());
        // The link is replaced, and what it leads to stays.
        make_folder(&root.path().join("link")).unwrap();
        assert!(check_parents(root.path(), b"link/file").is_ok() && outside.path().exists());
    }
}
