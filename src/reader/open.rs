//! Opening: on what terms, and at which state.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::frames::Frames;
use super::mapped::Mapped;
use super::options::{ReaderOptions, Writers};
use super::{Inner, ReadOnlyPager, Shared, Standing};
use crate::buffer::BufferManager;
use crate::disk::{Access, Caching, Disk, FileDisk};
use crate::error::{Error, Result};
use crate::memory::ForkMark;
use crate::process::{FileLock, Registration, Told};
use crate::store::{FollowLimit, Follower, store_id};

/// How long is waited before a writer is asked again.
const PAUSE: Duration = Duration::from_millis(1);

/// How often in a row a store may have moved on with nobody having said so.
pub(super) const PATIENT: u32 = 16;

/// Whether pages are read from a mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Frames,
    Mapped,
}

impl ReadOnlyPager {
    /// Opens a store for reading: at the newest durable state, beside a writer or without one. Every byte is compared
    /// with its checksum when it is read from the file.
    ///
    /// # Errors
    /// `Io` if there is no such file, or it may not be read; `NotAFile`, `NotAStore`, `IncompleteCreate`,
    /// `UnsupportedVersion`, `UnsupportedFeatures`, `WrongApplication`; `Locked` if a writer has it and the reader
    /// would keep writers out; `WriterSilent` if a writer has it and does not say, within the options' patience, what
    /// may be read; `SideFolder` if the file has several names; `BudgetTooSmall`;
    /// `Corrupt` if something durable is damaged or missing.
    pub fn open(path: impl AsRef<Path>, options: &ReaderOptions) -> Result<Self> {
        Self::with(path.as_ref(), options, Way::Frames)
    }

    /// Opens a store for reading without copies: pages that are stored as they are (uncompressed, up to 1 MiB) are read
    /// where the file is mapped into memory; others as with [`ReadOnlyPager::open`]. Each place and content is compared
    /// with its checksum once, when it is first read, and read again from the file before damage is reported.
    ///
    /// # Safety
    /// Until the last handle, view and guard of it is gone, nobody but Vellum writes to the file or makes it shorter, in
    /// this process or another; nobody removes the folder of readers beside it while a writer may come; and no device
    /// or file system below changes bytes by itself. (Bytes that change under a `&[u8]` are undefined behaviour; a file
    /// that is cut kills the process by SIGBUS.)
    ///
    /// # Errors
    /// As [`ReadOnlyPager::open`]; `Memory` if the system refuses the mapping.
    #[allow(unsafe_code)]
    pub unsafe fn open_mapped(path: impl AsRef<Path>, options: &ReaderOptions) -> Result<Self> {
        Self::with(path.as_ref(), options, Way::Mapped)
    }

    fn with(path: &Path, options: &ReaderOptions, way: Way) -> Result<Self> {
        let disk = Arc::new(FileDisk::open(path, Access::ReadOnly, Caching::Buffered)?);
        let dynamic: Arc<dyn Disk> = Arc::clone(&disk) as _;
        let open = |limit| Follower::open(Arc::clone(&dynamic), options.application_id, options.cached_nodes, limit);
        let registration = match options.writers {
            Writers::Allowed => match Registration::open(path, store_id(&dynamic)?, &options.name) {
                Err(error) if is_not_allowed(&error) => None,
                other => Some(other?),
            },
            Writers::Excluded | Writers::Absent => None,
        };
        let mut lock = None;
        let (standing, follower, registration, limit) = match (registration, options.writers) {
            (Some(mut registration), _) => {
                let (follower, limit) = beside(&disk, &mut registration, options.patience, open)?;
                (Standing::BesideWriters, follower, Some(registration), limit)
            }
            (None, writers) => {
                if writers != Writers::Absent {
                    lock = Some(FileLock::shared(&disk)?);
                }
                let standing = if lock.is_some() { Standing::WritersExcluded } else { Standing::Immutable };
                let moved = || Error::WriterSilent { path: path.to_owned() };
                (standing, open(FollowLimit::Tail)?.ok_or_else(moved)?, None, FollowLimit::Tail)
            }
        };
        let buffer = match &options.buffer {
            Some(shared) => shared.clone(),
            None => BufferManager::new(options.memory_bytes)?,
        };
        let published = Arc::clone(follower.published());
        let head = published.pin();
        let mapped = match way {
            Way::Frames => None,
            Way::Mapped => Some(Mapped::new(&disk, head.generation)?),
        };
        let mut inner = Inner { disk: Arc::clone(&disk), follower, head, registration, limit, _lock: lock };
        if let Some(registration) = &mut inner.registration {
            registration.pin_states(published.held_states())?;
        }
        let shared = Shared {
            path: path.to_owned(),
            standing,
            nodes: Arc::clone(inner.follower.nodes()),
            published,
            frames: Frames::new(&buffer, inner.follower.nodes(), &inner.head)?,
            mapped,
            fork: ForkMark::new(),
            inner: Mutex::new(inner),
        };
        Ok(Self { shared: Arc::new(shared) })
    }
}

/// Opens at the newest state that a writer published, or that is known to be durable. Everything is pinned meanwhile.
fn beside(
    disk: &FileDisk,
    registration: &mut Registration,
    patience: Duration,
    open: impl Fn(FollowLimit) -> Result<Option<Follower>>,
) -> Result<(Follower, FollowLimit)> {
    // Patience beyond what the clock can say has no end.
    let until = Instant::now().checked_add(patience);
    let mut futile = 0;
    let mut last = None;
    loop {
        let Some(limit) = limit_of(disk, registration.told()?)? else {
            if until.is_some_and(|until| Instant::now() >= until) {
                return Err(Error::WriterSilent { path: disk.path().to_owned() });
            }
            std::thread::sleep(PAUSE);
            continue;
        };
        futile = if last == Some(limit) { futile + 1 } else { 0 };
        last = Some(limit);
        match open(limit) {
            Ok(Some(follower)) => return Ok((follower, limit)),
            // What a writer that is faster left of the state before may look like anything.
            Ok(None) | Err(Error::Corrupt(_)) if futile < PATIENT => std::thread::sleep(PAUSE),
            Ok(None) => return Err(Error::WriterSilent { path: disk.path().to_owned() }),
            Err(error) => return Err(error),
        }
    }
}

/// How far a reader may go by what it was told; `None` while a writer is there and says nothing.
pub(super) fn limit_of(disk: &FileDisk, told: Told) -> Result<Option<FollowLimit>> {
    Ok(match told {
        Told::Live(state) => Some(FollowLimit::Published(state)),
        Told::Silent => None,
        // A writer may be there all the same: it is just coming, or its folder was taken away.
        Told::Gone(said) => match FileLock::shared(disk) {
            Ok(_) => Some(FollowLimit::Durable(said)),
            Err(Error::Locked { .. }) => None,
            Err(error) => return Err(error),
        },
    })
}

/// Whether an error says that the side folder may not be written.
fn is_not_allowed(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. }
        if matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem))
}
