//! The reader's side of the side folder.

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, fence};
use std::time::{SystemTime, UNIX_EPOCH};

use super::entry::Entry;
use super::folder::{FileId, Folder, is_absent};
use super::lock::{self, Taken};
use super::pins::PublishedState;
use super::writer::{read_published, sweep};
use crate::error::{Error, Result};
use crate::id::{CheckpointNumber, Generation, StoreId};

/// A reader's place in the side folder: a file that is locked as long as the reader lives, and says what it needs.
///
/// Belongs to the process that made it: in a forked child every call is an error, and dropping it does nothing, for the
/// lock and the file are the parent's.
#[derive(Debug)]
pub struct Registration {
    store: PathBuf,
    folder: Folder,
    process: u32,
    entry: Entry,
    place: Place,
    /// Places that were taken out of the folder. They stay locked until a writer was met that knows the present one:
    /// the one that is there may know only them.
    former: Vec<Place>,
    session: Option<Heard>,
}

/// The reader's own file, under its lock.
#[derive(Debug)]
struct Place {
    file: File,
    id: FileId,
    path: PathBuf,
}

/// The writer's file.
#[derive(Debug)]
struct Heard {
    file: File,
    id: FileId,
}

/// What is to be learned of the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// There is a writer, and this is what it says.
    Live(PublishedState),
    /// There is a writer, and it has said nothing yet.
    Silent,
    /// No writer has the folder. The last one may have left what it said.
    Gone(Option<PublishedState>),
}

impl Registration {
    /// Takes a place beside the store at `store`. From now on everything is pinned.
    ///
    /// # Errors
    /// [`SideFolder`](Error::SideFolder) if the store's file has several names; [`Io`](Error::Io) if the folder beside
    /// it cannot be written.
    pub fn open(store: &Path, id: StoreId, name: &str) -> Result<Self> {
        Folder::check_only_name(store)?;
        let folder = Folder::of(store)?;
        let process = std::process::id();
        let since_seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let entry = Entry {
            process,
            since_seconds,
            store: id,
            name: name.to_owned(),
            states: Vec::new(),
            choosing: true,
            sequence: 0,
        };
        let place = take_place(&folder, &entry)?;
        Ok(Self { store: store.to_owned(), folder, process, entry, place, former: Vec::new(), session: None })
    }

    /// Fails in a child of the process that made this.
    ///
    /// # Errors
    /// [`Forked`](Error::Forked).
    pub fn check_process(&self) -> Result<()> {
        match std::process::id() == self.process {
            true => Ok(()),
            false => Err(Error::Forked { path: self.store.clone() }),
        }
    }

    /// Pins everything: what was pinned before, and whatever may be chosen from now on.
    ///
    /// # Errors
    /// [`Forked`](Error::Forked), [`Io`](Error::Io).
    pub fn pin_everything(&mut self) -> Result<()> {
        self.say(self.entry.states.clone(), true)
    }

    /// Pins these states and nothing else.
    ///
    /// # Errors
    /// [`Forked`](Error::Forked), [`Io`](Error::Io); what was pinned before then still is.
    pub fn pin_states(&mut self, states: Vec<(CheckpointNumber, Generation)>) -> Result<()> {
        self.say(states, false)
    }

    fn say(&mut self, states: Vec<(CheckpointNumber, Generation)>, choosing: bool) -> Result<()> {
        self.check_process()?;
        if self.entry.states == states && self.entry.choosing == choosing {
            return Ok(());
        }
        let entry = Entry { states, choosing, sequence: self.entry.sequence + 1, ..self.entry.clone() };
        write_entry(&self.place.file, &entry).map_err(|source| self.folder.failed("write", source))?;
        self.entry = entry;
        Ok(())
    }

    /// What the writer says. What is pinned when this is called is known to the writer, whoever it is, before it
    /// releases anything of the state that is returned: if the folder was taken away, the place in it is taken anew,
    /// and a writer that came is rung.
    ///
    /// # Errors
    /// [`Forked`](Error::Forked), [`Io`](Error::Io).
    pub fn told(&mut self) -> Result<Told> {
        self.check_process()?;
        loop {
            if FileId::of_path(&self.place.path).map_err(|source| self.folder.failed("read", source))?
                != Some(self.place.id)
            {
                let place = take_place(&self.folder, &self.entry)?;
                self.former.push(std::mem::replace(&mut self.place, place));
                self.session = None;
            }
            match self.look_for_writer() {
                Ok(None) => {}
                Ok(Some(told)) => {
                    if !matches!(told, Told::Gone(_)) {
                        self.former.clear();
                    }
                    return Ok(told);
                }
                Err(source) => return Err(self.folder.failed("read", source)),
            }
        }
    }

    /// `None` if the writer changed meanwhile.
    fn look_for_writer(&mut self) -> io::Result<Option<Told>> {
        let path = self.folder.writer();
        let present = FileId::of_path(&path)?;
        if self.session.as_ref().map(|session| session.id) != present {
            self.session = None;
            let Some(mut file) = self.folder.open_to_append(&path)? else {
                return Ok(present.is_none().then_some(Told::Gone(None)));
            };
            let id = FileId::of(&file.metadata()?);
            // The bell: the writer sees its own file grow, and looks through the folder.
            file.write_all(&[1])?;
            self.session = Some(Heard { file, id });
            // A writer that took the name meanwhile may have looked through the folder before it was rung.
            if FileId::of_path(&path)? != Some(id) {
                return Ok(None);
            }
        }
        let Some(session) = &self.session else { return Ok(Some(Told::Gone(None))) };
        fence(Ordering::SeqCst);
        let said = read_published(&session.file)?.filter(|said| said.store == self.entry.store);
        Ok(Some(match lock::try_shared(&session.file)? {
            Taken::Yes => {
                lock::unlock(&session.file)?;
                Told::Gone(said)
            }
            Taken::No => said.map_or(Told::Silent, Told::Live),
        }))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if std::process::id() != self.process {
            return;
        }
        // What stays behind is swept by whoever meets it.
        let _ = sweep(&self.place.path, self.place.id);
        if FileId::of_path(&self.folder.writer()).is_ok_and(|found| found.is_none()) {
            self.folder.remove_if_empty();
        }
    }
}

/// Makes a file that pins what `entry` says. It counts once it is under its lock and under its name: somebody who met
/// it before it was locked may have swept it.
fn take_place(folder: &Folder, entry: &Entry) -> Result<Place> {
    let attempt = || -> io::Result<Option<Place>> {
        let (file, path) = match folder.create_reader() {
            Err(error) if is_absent(&error) => return Ok(None),
            other => other?,
        };
        lock::exclusive(&file)?;
        write_entry(&file, entry)?;
        let id = FileId::of(&file.metadata()?);
        Ok((FileId::of_path(&path)? == Some(id)).then_some(Place { file, id, path }))
    };
    loop {
        folder.make()?;
        match attempt() {
            Ok(Some(place)) => return Ok(place),
            Ok(None) => {}
            Err(source) => {
                folder.remove_if_empty();
                return Err(folder.failed("write", source));
            }
        }
    }
}

fn write_entry(file: &File, entry: &Entry) -> io::Result<()> {
    file.write_all_at(&entry.encode(), 0)?;
    // A pin counts from before what is read next.
    fence(Ordering::SeqCst);
    Ok(())
}

/// A reader beside a store, as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReaderEntry {
    /// Its process.
    pub process: u32,
    /// What it calls itself.
    pub name: String,
    /// Seconds since 1970 when it came.
    pub since_seconds: u64,
    /// The states it pins.
    pub states: Vec<(CheckpointNumber, Generation)>,
    /// Whether it pins newer ones too, since it is about to choose another.
    pub choosing: bool,
}

/// The readers beside the store at `store` that are alive, the oldest first. Changes nothing.
///
/// # Errors
/// [`Io`](Error::Io) if the folder cannot be read; [`SideFolder`](Error::SideFolder).
pub fn readers(store: &Path) -> Result<Vec<ReaderEntry>> {
    let folder = Folder::of(store)?;
    let look = || -> io::Result<Vec<ReaderEntry>> {
        let mut found = Vec::new();
        for path in folder.readers()? {
            let Some(file) = folder.open_to_read(&path)? else { continue };
            if lock::try_shared(&file)? == Taken::Yes {
                continue;
            }
            let entry = super::writer::read_entry(&file)?;
            found.push(match entry {
                Some(Entry { process, since_seconds, name, states, choosing, .. }) => {
                    ReaderEntry { process, name, since_seconds, states, choosing }
                }
                None => {
                    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    ReaderEntry { process: 0, name, since_seconds: 0, states: Vec::new(), choosing: true }
                }
            });
        }
        found.sort_by_key(|reader| (reader.since_seconds, reader.process));
        Ok(found)
    };
    look().map_err(|source| folder.failed("read", source))
}
