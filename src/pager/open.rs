//! Creating and opening: which file, whose lock, and what is already there.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::Pager;
use super::handle::{Handle, Shared};
use super::maintenance;
use super::options::{Background, Event, Options, Readers};
use crate::disk::{Access, Disk, FileDisk};
use crate::error::{Error, Result};
use crate::process::{self, FileLock, NoReaders, PinTable, WriterTable};
use crate::store::{Entropy, RecoveryReport, Store, SystemEntropy};

impl Pager {
    /// Creates a store in a new file, and opens it. A file that is empty, or what an interrupted creation left, is
    /// created again; anything else is never overwritten.
    ///
    /// **Durability**: when this returned, the store exists under its name whatever happens.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotAFile`, `Locked`, `InvalidOption`, `NoSpace`, `Io`. After a failure the store can be
    /// created again, or is there, empty, and can be opened.
    pub fn create(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let path = path.as_ref();
        options.settings()?;
        let disk = match FileDisk::create_new(path, options.caching) {
            Err(Error::AlreadyExists { .. }) => FileDisk::open(path, Access::ReadWrite, options.caching)?,
            other => other?,
        };
        let lock = FileLock::exclusive(&disk)?;
        let disk = Arc::new(disk);
        let store = Store::create(
            Arc::clone(&disk) as Arc<dyn Disk>,
            readers_of(path, options.readers)?,
            options.settings()?,
            Box::new(SystemEntropy),
        )?;
        disk.sync_folder().map_err(|source| {
            let path = path.to_owned();
            Error::Io { operation: "sync of the folder", path, offset: None, source }
        })?;
        Self::start(store, RecoveryReport::default(), options, Some(lock))
    }

    /// Opens a store for writing, and recovers what a crash left.
    ///
    /// **Durability**: every state that can be seen when this returned is durable.
    ///
    /// # Errors
    /// `Io` if there is no such file or it may not be read and written; `NotAFile`, `NotAStore`, `IncompleteCreate`,
    /// `UnsupportedVersion`, `UnsupportedFeatures`, `WrongApplication`; `OpenedTwice` if it is open for writing in this
    /// process, `Locked` if in another; `LockedByReaders` if readers
    /// keep writers out; `ReaderAhead` if one of an earlier writer reads what could not be recovered; `SideFolder`;
    /// `Corrupt` if something that was durable is damaged or missing; `InvalidOption`; `NoSpace`.
    pub fn open(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let path = path.as_ref();
        let disk = FileDisk::open(path, Access::ReadWrite, options.caching)?;
        let lock = FileLock::exclusive(&disk)?;
        let readers = readers_of(path, options.readers)?;
        let (store, report) = Store::open(Arc::new(disk), readers, options.settings()?, Box::new(SystemEntropy))?;
        Self::start(store, report, options, Some(lock))
    }

    /// Opens a store, or creates it if there is no such file, an empty one, or what an interrupted creation left.
    ///
    /// **Durability**: as [`Pager::create`] and [`Pager::open`].
    ///
    /// # Errors
    /// Those of [`Pager::open`] and [`Pager::create`].
    pub fn open_or_create(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let path = path.as_ref();
        match Self::open(path, options) {
            Err(Error::IncompleteCreate { .. }) => {}
            Err(Error::Io { operation: "open", source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        match Self::create(path, options) {
            // Somebody else created it in between.
            Err(Error::AlreadyExists { .. }) => Self::open(path, options),
            other => other,
        }
    }

    /// Creates a store on a disk that is empty, or holds what an interrupted creation left. No lock is taken: that
    /// nobody else writes to the disk is for the caller to know.
    ///
    /// **Durability**: when this returned, the store exists, as far as the disk keeps what it promises.
    ///
    /// # Errors
    /// As [`Pager::create`].
    pub fn create_on(disk: Arc<dyn Disk>, entropy: Box<dyn Entropy>, options: &Options) -> Result<Self> {
        let store = Store::create(disk, Arc::new(NoReaders), options.settings()?, entropy)?;
        Self::start(store, RecoveryReport::default(), options, None)
    }

    /// Opens a store on any disk. No lock is taken, as with [`Pager::create_on`].
    ///
    /// **Durability**: as [`Pager::open`].
    ///
    /// # Errors
    /// As [`Pager::open`].
    pub fn open_on(disk: Arc<dyn Disk>, entropy: Box<dyn Entropy>, options: &Options) -> Result<Self> {
        let (store, report) = Store::open(disk, Arc::new(NoReaders), options.settings()?, entropy)?;
        Self::start(store, report, options, None)
    }

    fn start(store: Store, report: RecoveryReport, options: &Options, lock: Option<FileLock>) -> Result<Self> {
        let opened = Event::Opened(report.clone());
        let shared = Arc::new(Shared::new(store, report, options, lock)?);
        let thread = match options.background {
            Background::Inline => None,
            Background::Thread => {
                let for_thread = Arc::clone(&shared);
                let thread = std::thread::Builder::new().name("vellum".into());
                Some(thread.spawn(move || maintenance::run(&for_thread)).map_err(|source| {
                    let path = shared.medium.path().to_owned();
                    Error::Io { operation: "starting a thread", path, offset: None, source }
                })?)
            }
        };
        options.hook.tell(&opened);
        Ok(Self { handle: Arc::new(Handle::new(shared, thread)) })
    }
}

/// What readers of other processes say, and hear.
fn readers_of(path: &Path, readers: Readers) -> Result<Arc<dyn PinTable>> {
    match readers {
        Readers::Beside => Ok(Arc::new(WriterTable::open(path)?)),
        Readers::Refused if process::readers(path)?.is_empty() => Ok(Arc::new(NoReaders)),
        Readers::Refused => Err(Error::LockedByReaders { path: path.to_owned() }),
    }
}
