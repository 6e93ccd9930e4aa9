//! The writer's side of the side folder.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::entry::{BELL_START, Entry, SLOTS_BYTES, decode_slots, encode_slot};
use super::folder::{FileId, Folder, is_absent};
use super::lock::{self, Taken};
use super::pins::{PinTable, Pinned, PublishedState, ReaderPin};
use crate::error::Result;

/// How often it is looked whether the folder is still there under its name, and whether readers are still alive. Both
/// cost system calls that a commit should not pay; what is noticed later is held longer, and that is all.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What the writer's file is called before it is the writer's.
const NEW_WRITER: &str = "new-writer-";

/// Reading a reader's file again, before it is taken for damaged.
const ATTEMPTS: u32 = 4;

/// The table of a store's writer: it publishes in the side folder, and knows the readers that have a file there. See
/// the [room](super).
#[derive(Debug)]
pub struct WriterTable {
    folder: Folder,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    session: Session,
    sequence: u64,
    told: Option<PublishedState>,
    /// What had been told when the readers were last looked at.
    looked_at: Option<PublishedState>,
    known: Vec<Known>,
    looked: Instant,
    /// The folder was taken away while there may have been readers in it that were never seen.
    unseen: bool,
}

/// The writer's file, under its lock.
#[derive(Debug)]
struct Session {
    file: File,
    id: FileId,
    /// The bell as it was when the folder was last looked through.
    heard: u64,
}

/// A reader that was alive when it was last looked at. Its file stays open here: it counts though its name be gone.
#[derive(Debug)]
struct Known {
    file: File,
    id: FileId,
    path: PathBuf,
    /// Since when it is choosing, if it was when it was last looked at.
    choosing: Option<Choosing>,
    /// What it had said then.
    sequence: Option<u64>,
}

/// A reader that is about to choose a state.
#[derive(Clone, Copy, Debug)]
struct Choosing {
    /// What had been published before it was: it will choose that or something newer.
    since: Option<PublishedState>,
}

impl WriterTable {
    /// The table of the store at `store`, whose lock the caller has. Readers of an earlier writer that live on are known
    /// from now on.
    ///
    /// # Errors
    /// [`SideFolder`](crate::Error::SideFolder) if the store's file has several names;
    /// [`Io`](crate::Error::Io) if the folder beside it cannot be made or written.
    pub fn open(store: &Path) -> Result<Self> {
        Folder::check_only_name(store)?;
        let folder = Folder::of(store)?;
        let session = begin(&folder, None).map_err(|source| folder.failed("open", source))?;
        let inner = Inner {
            session,
            sequence: 0,
            told: None,
            looked_at: None,
            known: Vec::new(),
            looked: Instant::now(),
            unseen: false,
        };
        let table = Self { folder, inner: Mutex::new(inner) };
        table.lock().look_through(&table.folder).map_err(|source| table.folder.failed("read", source))?;
        Ok(table)
    }

    /// A panic while the lock is held leaves the table whole enough: what it knows is compared with the folder.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PinTable for WriterTable {
    fn pins(&self) -> Result<Vec<ReaderPin>> {
        let mut inner = self.lock();
        // What was published before is seen by whoever pins after what is read now.
        fence(Ordering::SeqCst);
        inner.pins(&self.folder).map_err(|source| self.folder.failed("read", source))
    }

    fn publish(&self, state: PublishedState) -> Result<()> {
        let mut inner = self.lock();
        if inner.told == Some(state) {
            return Ok(());
        }
        inner.sequence += 1;
        let (at, slot) = encode_slot(inner.sequence, &state);
        inner.session.file.write_all_at(&slot, at).map_err(|source| self.folder.failed("write", source))?;
        inner.told = Some(state);
        Ok(())
    }
}

impl Inner {
    fn pins(&mut self, folder: &Folder) -> io::Result<Vec<ReaderPin>> {
        let (length, names) = length_and_names(&self.session.file)?;
        let now = Instant::now();
        let due = now.duration_since(self.looked) >= LOOK_EVERY;
        if names == 0 || (due && FileId::of_path(&folder.writer())? != Some(self.session.id)) {
            self.begin_again(folder, length)?;
        } else if length != self.session.heard {
            self.look_through(folder)?;
        }
        if due {
            self.looked = now;
            self.forget_the_dead()?;
        }
        let mut pins = Vec::new();
        for known in &mut self.known {
            known.pins(self.looked_at, &mut pins)?;
        }
        self.looked_at = self.told;
        if self.unseen {
            let holder = "a reader whose file was taken out of the side folder".to_owned();
            pins.push(ReaderPin { pinned: Pinned::Everything, holder });
        }
        Ok(pins)
    }

    /// Somebody took the folder away, or the writer's file. Readers that are known count on; those that rang and were
    /// not seen cannot be asked, so all is held for them from now on.
    fn begin_again(&mut self, folder: &Folder, bell: u64) -> io::Result<()> {
        self.unseen |= bell != self.session.heard;
        self.session = begin(folder, self.told.map(|state| (self.sequence, state)))?;
        self.look_through(folder)
    }

    /// Looks for readers that are not known yet. The bell is read first: who rings later is looked for later.
    fn look_through(&mut self, folder: &Folder) -> io::Result<()> {
        let bell = self.session.file.metadata()?.len();
        for path in folder.readers()? {
            let Some(file) = folder.open(&path)? else { continue };
            let id = FileId::of(&file.metadata()?);
            if self.known.iter().any(|known| known.id == id) {
                continue;
            }
            match lock::try_exclusive(&file)? {
                Taken::No => self.known.push(Known { file, id, path, choosing: None, sequence: None }),
                Taken::Yes => sweep(&path, id)?,
            }
        }
        self.session.heard = bell;
        Ok(())
    }

    fn forget_the_dead(&mut self) -> io::Result<()> {
        let mut index = 0;
        while let Some(known) = self.known.get(index) {
            match lock::try_exclusive(&known.file)? {
                Taken::No => index += 1,
                Taken::Yes => {
                    sweep(&known.path, known.id)?;
                    self.known.swap_remove(index);
                }
            }
        }
        Ok(())
    }
}

impl Known {
    /// Adds what the reader pins: everything, as long as what it says cannot be read. `before` is what had been
    /// published when it was last looked at.
    fn pins(&mut self, before: Option<PublishedState>, pins: &mut Vec<ReaderPin>) -> io::Result<()> {
        let Some(entry) = read_entry(&self.file)? else {
            self.sequence = None;
            let holder = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            pins.push(ReaderPin { pinned: Pinned::Everything, holder });
            return Ok(());
        };
        let holder = entry.holder();
        for (base, generation) in entry.states {
            pins.push(ReaderPin { pinned: Pinned::State { base, generation }, holder: holder.clone() });
        }
        // It said this after it was last looked at, so after `before` had been published.
        if self.sequence != Some(entry.sequence) {
            self.choosing = entry.choosing.then_some(Choosing { since: before });
            self.sequence = Some(entry.sequence);
        }
        if let Some(Choosing { since }) = self.choosing {
            let from = |since: PublishedState| Pinned::From { base: since.base, generation: since.synced };
            pins.push(ReaderPin { pinned: since.map_or(Pinned::Everything, from), holder });
        }
        Ok(())
    }
}

impl Drop for WriterTable {
    /// Leaves nothing behind if there are no readers.
    fn drop(&mut self) {
        let mut inner = self.lock();
        let quiet = inner.look_through(&self.folder).and_then(|()| inner.forget_the_dead());
        if quiet.is_ok() && inner.known.is_empty() && !inner.unseen {
            let path = self.folder.writer();
            // What cannot be removed is harmless: the next writer takes it over.
            if FileId::of_path(&path).is_ok_and(|found| found == Some(inner.session.id)) {
                let _ = fs::remove_file(&path);
            }
            self.folder.remove_if_empty();
        }
    }
}

/// Begins a session: a new file under the writer's name, locked before it has that name.
fn begin(folder: &Folder, told: Option<(u64, PublishedState)>) -> io::Result<Session> {
    loop {
        folder.make().map_err(|error| match error {
            crate::error::Error::Io { source, .. } => source,
            other => io::Error::other(other),
        })?;
        // A writer that is closing may remove the folder at any time.
        let (file, path) = match folder.create_unique(NEW_WRITER) {
            Err(error) if is_absent(&error) => continue,
            other => other?,
        };
        lock::exclusive(&file)?;
        file.write_all_at(&[0; BELL_START as usize], 0)?;
        if let Some((sequence, state)) = &told {
            let (at, slot) = encode_slot(*sequence, state);
            file.write_all_at(&slot, at)?;
        }
        match fs::rename(&path, folder.writer()) {
            Err(error) if is_absent(&error) => continue,
            other => other?,
        }
        // What writers left that were killed a moment before.
        for left in folder.files(NEW_WRITER)? {
            match fs::remove_file(left) {
                Err(error) if !is_absent(&error) => return Err(error),
                _ => {}
            }
        }
        let id = FileId::of(&file.metadata()?);
        return Ok(Session { file, id, heard: BELL_START });
    }
}

/// How long a file is, and how many names it has.
///
/// Times are not asked for. After such a question Linux gives the next write to the file a time of its own, to be told
/// from the one before, and notes it in the file system's journal: a commit's small write took three times as long.
fn length_and_names(file: &File) -> io::Result<(u64, u64)> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{AtFlags, StatxFlags, statx};
        let wanted = StatxFlags::SIZE | StatxFlags::NLINK;
        if let Ok(found) = statx(file, c"", AtFlags::EMPTY_PATH, wanted)
            && StatxFlags::from_bits_retain(found.stx_mask).contains(wanted)
        {
            return Ok((found.stx_size, found.stx_nlink.into()));
        }
    }
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.nlink()))
}

/// Removes the file of a reader that is gone. The caller has its lock: nobody else removes it, and nobody takes the
/// name for another file meanwhile.
pub(super) fn sweep(path: &Path, id: FileId) -> io::Result<()> {
    if FileId::of_path(path)? != Some(id) {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if !is_absent(&error) => Err(error),
        _ => Ok(()),
    }
}

/// What a reader's file says; `None` if it is not to be understood, even after another look.
pub(super) fn read_entry(file: &File) -> io::Result<Option<Entry>> {
    const USUAL_BYTES: usize = 1024;
    for _ in 0..ATTEMPTS {
        let mut usual = [0; USUAL_BYTES];
        let count = file.read_at(&mut usual, 0)?;
        let bytes = &usual[..count];
        let entry = match Entry::length_of(bytes) {
            Some(length) if length > USUAL_BYTES && length as u64 <= file.metadata()?.len() => {
                let mut long = vec![0; length];
                match file.read_exact_at(&mut long, 0) {
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
                    other => other.map(|()| Entry::decode(&long))?,
                }
            }
            _ => Entry::decode(bytes),
        };
        if entry.is_some() {
            return Ok(entry);
        }
        std::thread::yield_now();
    }
    Ok(None)
}

/// What the writer's file tells.
pub(super) fn read_published(file: &File) -> io::Result<Option<PublishedState>> {
    let mut slots = [0; SLOTS_BYTES];
    match file.read_exact_at(&mut slots, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        other => other.map(|()| decode_slots(&slots)),
    }
}
