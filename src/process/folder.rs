//! The side folder: where it lies, and its files.
//!
//! - **N1** The owner of the store can always write into the folder and to its files, whoever made them and whatever the
//!   store's own permissions were then: a writer that came later would be locked out for good. Whoever cannot see to
//!   that makes no folder, and a reader then does with the lock alone.
//! - **N2** A folder in which nothing could be made is removed again.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown, lchown};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The name of the writer's file.
const WRITER: &str = "writer";
/// What the names of readers' files begin with.
const READER: &str = "reader-";

/// What its owner may do with the folder: enter it, look through it, and make files there.
const OWNERS_FOLDER: u32 = 0o700;
/// What its owner may do with a file there.
const OWNERS_FILE: u32 = 0o600;
/// Whoever else may write to the store, and so be a writer.
const OTHERS_WRITE: u32 = 0o022;

/// Which file a descriptor or a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    pub(super) fn of_path(path: &Path) -> io::Result<Option<Self>> {
        match fs::symlink_metadata(path) {
            Ok(metadata) => Ok(Some(Self::of(&metadata))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The side folder of one store.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// The permissions of the store's file: who may write to it may write to files of the folder.
    mode: u32,
    /// Whose the store's file is.
    owner: Owner,
}

/// User and group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    user: u32,
    group: u32,
}

impl Owner {
    fn of(metadata: &fs::Metadata) -> Self {
        Self { user: metadata.uid(), group: metadata.gid() }
    }
}

impl Folder {
    /// The folder of the store at `store`, whether or not it exists. Symbolic links are followed, so that every such
    /// name leads to the same folder.
    pub(super) fn of(store: &Path) -> Result<Self> {
        let failed = |source| Error::Io { operation: "open", path: store.into(), offset: None, source };
        let store = fs::canonicalize(store).map_err(failed)?;
        let metadata = fs::metadata(&store).map_err(failed)?;
        let mut path = store.into_os_string();
        path.push(".readers");
        Ok(Self { path: path.into(), mode: metadata.mode() & 0o666, owner: Owner::of(&metadata) })
    }

    /// Fails if the store's file has several names: each would have a folder of its own, and a writer and a reader that
    /// came by different names would not know of each other.
    pub(super) fn check_only_name(store: &Path) -> Result<()> {
        let metadata = fs::metadata(store);
        match metadata.map(|metadata| metadata.nlink()) {
            Ok(0 | 1) => Ok(()),
            Ok(_) => {
                let reason = "the file has several names (hard links); remove all but one, or open it with no readers";
                Err(Error::SideFolder { path: store.into(), reason })
            }
            Err(source) => Err(Error::Io { operation: "stat", path: store.into(), offset: None, source }),
        }
    }

    pub(super) fn writer(&self) -> PathBuf {
        self.path.join(WRITER)
    }

    /// Makes the folder unless it is there (N1).
    pub(super) fn make(&self) -> Result<()> {
        // Who may read and write files may enter as well.
        let mode = OWNERS_FOLDER | self.mode | (self.mode & 0o444) >> 2;
        match fs::DirBuilder::new().mode(mode).create(&self.path) {
            Ok(()) => self.hand_over().map_err(|error| {
                self.remove_if_empty();
                self.failed("create", error)
            }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(self.failed("create", error)),
        }
    }

    /// Makes the folder, which the caller has just made, that of the store's owner. Fails if that cannot be done and
    /// the owner could not write there.
    fn hand_over(&self) -> io::Result<()> {
        let made = match fs::symlink_metadata(&self.path) {
            Err(error) if is_absent(&error) => return Ok(()),
            other => Owner::of(&other?),
        };
        match made.user == self.owner.user {
            true => Ok(()),
            // Where others are writers too, they share the folder by its permissions.
            false => match lchown(&self.path, Some(self.owner.user), Some(self.owner.group)) {
                Err(error) if self.mode & OTHERS_WRITE == 0 && !is_absent(&error) => Err(error),
                _ => Ok(()),
            },
        }
    }

    /// Removes the folder if nothing is in it.
    pub(super) fn remove_if_empty(&self) {
        // If it is not empty, or gone, that is as it should be.
        let _ = fs::remove_dir(&self.path);
    }

    /// A new file under a name of its own, and the name.
    pub(super) fn create_unique(&self, stem: &str) -> io::Result<(File, PathBuf)> {
        loop {
            let number = getrandom::u64().map_err(io::Error::other)?;
            let path = self.path.join(format!("{stem}{}-{number:016x}", std::process::id()));
            match self.options().create_new(true).open(&path) {
                Ok(file) => {
                    if file.metadata()?.uid() != self.owner.user {
                        // Who may not give it away is a writer, or reads beside others who are.
                        let _ = fchown(&file, Some(self.owner.user), Some(self.owner.group));
                    }
                    return Ok((file, path));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// A new file for a reader.
    pub(super) fn create_reader(&self) -> io::Result<(File, PathBuf)> {
        self.create_unique(READER)
    }

    /// The paths of the readers' files; none if the folder is gone.
    pub(super) fn readers(&self) -> io::Result<Vec<PathBuf>> {
        self.files(READER)
    }

    /// The paths of the files whose names begin so; none if the folder is gone.
    pub(super) fn files(&self, stem: &str) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(stem.as_bytes()) {
                paths.push(entry.path());
            }
        }
        Ok(paths)
    }

    /// Opens a file of the folder; `None` if it is not there.
    pub(super) fn open(&self, path: &Path) -> io::Result<Option<File>> {
        absent_is_none(self.options().open(path))
    }

    /// Opens a file of the folder for adding bytes at its end.
    pub(super) fn open_to_append(&self, path: &Path) -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        absent_is_none(options.read(true).append(true).custom_flags(flags()).open(path))
    }

    /// Opens a file of the folder for looking only.
    pub(super) fn open_to_read(&self, path: &Path) -> io::Result<Option<File>> {
        absent_is_none(OpenOptions::new().read(true).custom_flags(flags()).open(path))
    }

    pub(super) fn failed(&self, operation: &'static str, source: io::Error) -> Error {
        Error::Io { operation, path: self.path.clone(), offset: None, source }
    }

    fn options(&self) -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(OWNERS_FILE | self.mode).custom_flags(flags());
        options
    }
}

/// Links are not followed, and nothing is waited for: what lies in the folder may be anybody's.
fn flags() -> i32 {
    use rustix::fs::OFlags;
    (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as i32
}

fn absent_is_none(result: io::Result<File>) -> io::Result<Option<File>> {
    match result {
        Err(error) if is_absent(&error) => Ok(None),
        other => other.map(Some),
    }
}

pub(super) fn is_absent(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
