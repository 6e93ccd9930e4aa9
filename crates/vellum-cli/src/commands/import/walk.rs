//! The tree's files, folders and links: each folder before what lies in it, names in the order of their bytes.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Something in the tree.
#[derive(Debug)]
pub(super) struct Found {
    /// Relative to the tree's root.
    pub(super) path: Vec<u8>,
    pub(super) full: PathBuf,
    /// Of the thing itself, not of what a link leads to.
    pub(super) metadata: Metadata,
}

/// Something in the tree that cannot be looked at.
#[derive(Debug)]
pub(super) struct Unreadable {
    /// Relative to the tree's root; empty for the root itself.
    pub(super) path: Vec<u8>,
    pub(super) full: PathBuf,
    pub(super) error: io::Error,
}

/// See the module. Memory is in proportion to the largest folders on one path.
#[derive(Debug)]
pub(super) struct Walk {
    root: PathBuf,
    /// Relative paths still to be looked at, the next one last.
    ahead: Vec<Vec<u8>>,
    failed: Option<Unreadable>,
}

impl Walk {
    pub(super) fn of(root: &Path) -> Self {
        let mut walk = Self { root: root.to_owned(), ahead: Vec::new(), failed: None };
        walk.enter(&[]);
        walk
    }

    fn full(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(OsString::from_vec(path.to_vec())) }
    }

    /// Puts what lies in a folder ahead; if it cannot be read, that is what comes next.
    fn enter(&mut self, folder: &[u8]) {
        let full = self.full(folder);
        let names: io::Result<Vec<OsString>> =
            fs::read_dir(&full).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
        match names {
            Ok(mut names) => {
                names.sort_unstable_by(|a, b| b.cmp(a));
                self.ahead.extend(names.iter().map(|name| match folder {
                    [] => name.as_bytes().to_vec(),
                    _ => [folder, b"/", name.as_bytes()].concat(),
                }));
            }
            Err(error) => self.failed = Some(Unreadable { path: folder.to_vec(), full, error }),
        }
    }
}

impl Iterator for Walk {
    type Item = Result<Found, Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(failed) = self.failed.take() {
            return Some(Err(failed));
        }
        let path = self.ahead.pop()?;
        let full = self.full(&path);
        match fs::symlink_metadata(&full) {
            Ok(metadata) => {
                if metadata.is_dir() {
                    self.enter(&path);
                }
                Some(Ok(Found { path, full, metadata }))
            }
            Err(error) => Some(Err(Unreadable { path, full, error })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_their_content_and_names_in_order() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["b/d", "a"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        for file in ["b/c", "b/d/e", "a.x", "c"] {
            fs::write(root.path().join(file), file).unwrap();
        }
        let paths: Vec<String> =
            Walk::of(root.path()).map(|found| String::from_utf8(found.unwrap().path).unwrap()).collect();
        assert_eq!(paths, ["a", "a.x", "b", "b/c", "b/d", "b/d/e", "c"]);
    }

    #[test]
    fn a_root_that_is_not_there_is_told() {
        let failed = Walk::of(Path::new("/nonexistent/tree")).next().unwrap().unwrap_err();
        assert_eq!((failed.path, failed.error.kind()), (vec![], io::ErrorKind::NotFound));
    }
}
