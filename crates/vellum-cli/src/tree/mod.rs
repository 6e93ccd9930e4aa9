//! A tree of files in a store: what the pages of such a store hold.
//!
//! Each file's bytes lie in a page of the smallest class that holds them (a file larger than 2 GiB in several, all but
//! the last of 2 GiB; an empty one in none), zeros behind them. Names and metadata lie in the *catalogue*: leaves with
//! entries, a root page that lists the leaves, and the store's user header that names the root.
//!
//! # Format
//! All numbers are little-endian. The store's application id is [`APPLICATION`], or 0 where somebody else created it.
//!
//! *User header*, 32 bytes; a store without a header is an empty tree:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | `VLtree01` |
//! | 8 | 8 | id of the root page; 0 for an empty catalogue |
//! | 16 | 8 | how many entries there are |
//! | 24 | 8 | sum of the files' lengths |
//!
//! *Root page*: `VLro`, four zero bytes, count of leaves (8), count of unfinished pages (8), then the ids of the leaves
//! in the order of their paths, then those of the *unfinished* pages: pages of a file that is too large for one commit
//! and not whole yet. No entry names them; the next import frees them.
//!
//! *Leaf*: `VLlf`, count of entries (4), bytes used by them (8), then the entries in the order of their paths:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 1 | kind: 1 file, 2 folder, 3 symbolic link |
//! | 1 | 3 | zero |
//! | 4 | 4 | permission bits |
//! | 8 | 8 | time of the last modification: seconds since 1970, signed |
//! | 16 | 4 | its nanoseconds |
//! | 20 | 4 | bytes of the path |
//! | 24 | 4 | bytes of the link's target; 0 for other kinds |
//! | 28 | 4 | count of pages |
//! | 32 | 8 | the file's length in bytes; 0 for other kinds |
//! | 40 | 16 | XXH3-128 of the file's bytes, seed 0; 0 for other kinds |
//! | 56 | | path, target, page ids (8 each) |
//!
//! # Invariants
//! - **K1** Paths are relative, of components that are neither empty nor `.` nor `..`, separated by single slashes,
//!   unique, and rise byte by byte through the leaves.
//! - **K2** Every live page is named once: by an entry, as a leaf, as the root, or as unfinished.
//! - **K3** An entry's pages are as its length wants them ([`classes_of`]): so the length says what each page holds.
//! - **K4** Whoever reads a catalogue from a store believes no number in it unchecked.
//!
//! Callers: the commands `import`, `export`, `ls`, `cat`, `info`. Thread rules: none, these are values.

mod catalogue;
mod codec;
mod entry;
mod reading;

pub(crate) use catalogue::Catalogue;
pub(crate) use entry::{Entry, Kind, check_path};
pub(crate) use reading::{Entries, content, find, summary_of};

use vellum::{PageId, SizeClass};

use crate::exit::Exit;
use crate::failure::Failure;

/// The application id of stores that `vellum import` creates: `tree`.
pub(crate) const APPLICATION: u32 = u32::from_le_bytes(*b"tree");
/// The version of the format above.
pub(crate) const APPLICATION_VERSION: u32 = 1;

/// What is wrong with a tree of files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TreeError {
    /// The store itself fails.
    #[error(transparent)]
    Store(#[from] vellum::Error),
    /// The store holds something else than a tree of files.
    #[error("the store's header is not that of a tree of files")]
    NotATree,
    /// A page of the catalogue is not what it should be.
    #[error("page {page} of the catalogue: {fault}")]
    Damaged {
        /// The page.
        page: PageId,
        /// What is wrong.
        fault: &'static str,
    },
    /// The bytes of a file are not those that were imported.
    #[error("the hash of its bytes is {found}, not {expected}")]
    Content {
        /// What the entry says.
        expected: String,
        /// What the bytes give.
        found: String,
    },
}

impl TreeError {
    /// The failure of a command that met this.
    pub(crate) fn failure(&self, what: impl std::fmt::Display) -> Failure {
        let next = match self {
            Self::Store(error) => return Failure::store(what, error),
            Self::NotATree => "use a store that 'vellum import' made, or import into a new one",
            Self::Damaged { .. } => "restore the store from a backup, or import the tree into a new one",
            Self::Content { .. } => "run 'vellum check --level full'; import the file again",
        };
        let exit = if matches!(self, Self::NotATree) { Exit::UNSUPPORTED } else { Exit::CORRUPT };
        Failure::new(exit, what, self, next)
    }

    /// Whether data is damaged, and not just out of reach.
    pub(crate) fn is_corruption(&self) -> bool {
        match self {
            Self::Store(error) => error.is_corruption(),
            Self::NotATree => false,
            Self::Damaged { .. } | Self::Content { .. } => true,
        }
    }
}

/// The classes of the pages that hold a file of `length` bytes, in order (K3).
pub(crate) fn classes_of(length: u64) -> impl Iterator<Item = SizeClass> {
    let largest = SizeClass::MAX.page_bytes();
    let rest = Some(length % largest).filter(|rest| *rest != 0).and_then(SizeClass::of);
    (0..length / largest).map(|_| SizeClass::MAX).chain(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_takes_the_smallest_page_that_holds_it_and_several_beyond_two_gib() {
        let logs = |length| classes_of(length).map(SizeClass::log2).collect::<Vec<_>>();
        assert_eq!(logs(0), [0u8; 0]);
        assert_eq!(logs(1), [12]);
        assert_eq!(logs(4097), [13]);
        assert_eq!(logs(1 << 31), [31]);
        assert_eq!(logs((1 << 31) + 1), [31, 12]);
        assert_eq!(logs((1 << 32) + (1 << 30) + 1), [31, 31, 31]);
    }
}
