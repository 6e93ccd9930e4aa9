//! Readers in other processes: a store's committed states, beside the writer that makes them, or without one.
//!
//! Owns: what a reader shows, and for whom it is kept. Does not own: what a state is (`store`), who hears of pins
//! (`process`), how pages are read (`pager`'s reading trait, which readers share).
//!
//! # Invariants
//! - **R1** Nothing is shown that a power cut could undo. Beside a writer that is what the writer has published; without
//!   one what the file says to be durable; and only who keeps writers out sees the tail, verified.
//! - **R2** What is shown is pinned in the side folder before it is read, by the protocol in
//!   [`PinTable`](crate::process::PinTable), and stays so while a view of it lives.
//! - **R3** The store's file is never written.
//! - **R4** Mapped bytes are handed out only after they were compared with their checksum, once for each place and
//!   content; as long as a view lives, nobody who keeps the contract of [`ReadOnlyPager::open_mapped`] changes them.
//! - **R5** A reader belongs to the process that opened it: in a forked child each call is
//!   [`Forked`](crate::Error::Forked).
//!
//! # Threads
//! [`ReadOnlyPager`] and [`ReaderView`] are used by any number of threads. Reading takes no lock that a refresh holds
//! for long; refreshes take turns.
//!
//! | what | where |
//! | --- | --- |
//! | who may open how | `open.rs` |
//! | refresh | `refresh.rs` |
//! | reading | `view.rs`; in frames: `frames.rs`; from the mapping: `mapped.rs`, `table.rs` |

mod frames;
mod mapped;
mod open;
mod options;
mod refresh;
mod table;
mod view;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use options::{ReaderOptions, Writers};
pub use view::{ReaderScope, ReaderView};

use crate::disk::FileDisk;
use crate::error::{Error, Result};
use crate::format::CatalogueEntry;
use crate::id::{Generation, Incarnation};
use crate::map::Nodes;
use crate::memory::ForkMark;
use crate::process::{FileLock, Registration};
use crate::store::{FollowLimit, Follower, Pinned, Published};
use frames::Frames;
use mapped::Mapped;

/// A store that is open for reading: there is nothing here to write with. Clones are handles of the same one.
///
/// ```
/// use vellum::{Options, Pager, Read, ReadOnlyPager, ReaderOptions, SizeClass};
///
/// # fn main() -> vellum::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("accounts.vellum");
/// let pager = Pager::create(&path, &Options::new())?;
/// let reader = ReadOnlyPager::open(&path, &ReaderOptions::new())?; // in any process
///
/// let transaction = pager.begin()?;
/// let id = transaction.allocate(SizeClass::of(4096).unwrap())?;
/// transaction.write(id)?[..5].copy_from_slice(b"hello");
/// transaction.commit()?;
///
/// let before = reader.view()?; // stays as it is
/// reader.refresh()?; // what was committed since
/// assert_eq!(reader.view()?.page(id)?[..5], *b"hello");
/// assert!(!before.contains(id)?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ReadOnlyPager {
    shared: Arc<Shared>,
}

/// On what terms a reader has a store open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// It has a place in the side folder: writers may come, write and go.
    BesideWriters,
    /// It has a shared lock that keeps writers out, and shows the log to its verified end.
    WritersExcluded,
    /// It has nothing: the caller promised that nobody writes.
    Immutable,
}

/// What a refresh found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refreshed {
    /// The generation shown from now on.
    pub generation: Generation,
    /// Whether that is another than before.
    pub changed: bool,
    /// Whether there is a writer that says what is durable. Without one nothing new can come.
    pub writer: bool,
}

/// What the handles and views of one reader share.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    standing: Standing,
    published: Arc<Published>,
    nodes: Arc<Nodes>,
    frames: Frames,
    mapped: Option<Mapped>,
    fork: ForkMark,
    inner: Mutex<Inner>,
}

/// What one refresh at a time changes.
#[derive(Debug)]
struct Inner {
    disk: Arc<FileDisk>,
    follower: Follower,
    /// The state shown, held.
    head: Pinned,
    registration: Option<Registration>,
    /// What the newest look was limited by.
    limit: FollowLimit,
    _lock: Option<FileLock>,
}

impl ReadOnlyPager {
    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// On what terms the store is open.
    pub fn standing(&self) -> Standing {
        self.shared.standing
    }

    /// The generation that views show.
    pub fn generation(&self) -> Generation {
        self.shared.published.pin().generation
    }

    /// The incarnation that made it: with the generation, its name for ever.
    pub fn incarnation(&self) -> Incarnation {
        self.shared.published.pin().incarnation
    }

    /// A view of the state that the newest refresh found. It stays as it is, and what it needs is kept, while it lives.
    ///
    /// # Errors
    /// `Forked`.
    pub fn view(&self) -> Result<ReaderView> {
        self.shared.check_process()?;
        // Held in the side folder too: a refresh that shows another state says first what is held.
        Ok(ReaderView::new(Arc::clone(&self.shared), self.shared.published.pin()))
    }

    /// Snapshots and bookmarks of the state shown, oldest first.
    pub fn snapshots(&self) -> Vec<CatalogueEntry> {
        let pinned = self.shared.published.pin();
        pinned.catalogue.iter().map(|listed| listed.entry.clone()).collect()
    }

    /// A view of a snapshot's state.
    ///
    /// # Errors
    /// `SnapshotNotFound` if the state shown has none of that name, or it is a bookmark; `Forked`; `Io` if the side
    /// folder cannot be written.
    pub fn open_snapshot(&self, name: &str) -> Result<ReaderView> {
        self.shared.check_process()?;
        let mut inner = self.shared.lock();
        let pinned = self.shared.published.pin_snapshot(name);
        let pinned = pinned.ok_or_else(|| Error::SnapshotNotFound { name: name.to_owned() })?;
        // Until this is said, the state shown keeps what the snapshot needs: it has it in its catalogue.
        self.shared.say_pins(&mut inner)?;
        drop(inner);
        Ok(ReaderView::new(Arc::clone(&self.shared), pinned))
    }

    /// How many bytes of the file these states together keep from being used again, as far as the file says: for what
    /// [`process::readers`](crate::process::readers) lists.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn bytes_held(&self, states: &[(crate::id::CheckpointNumber, Generation)]) -> Result<u64> {
        self.shared.lock().follower.bytes_held(states)
    }
}

impl Shared {
    fn check_process(&self) -> Result<()> {
        match self.fork.is_same_process() {
            true => Ok(()),
            false => Err(Error::Forked { path: self.path.clone() }),
        }
    }

    /// A panic of another thread leaves what it was about to replace.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says in the side folder which states are held.
    fn say_pins(&self, inner: &mut Inner) -> Result<()> {
        match &mut inner.registration {
            Some(registration) => registration.pin_states(self.published.held_states()),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for ReadOnlyPager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = &self.shared;
        f.debug_struct("ReadOnlyPager")
            .field("path", &shared.path)
            .field("standing", &shared.standing)
            .finish_non_exhaustive()
    }
}

const _: () = {
    const fn shared_between_threads<T: Send + Sync + 'static>() {}
    shared_between_threads::<ReadOnlyPager>();
    shared_between_threads::<ReaderView>();
};
