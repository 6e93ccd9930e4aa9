//! Scratch pages: memory of the budget that is never durable, and that may be more than the budget.
//!
//! For what a query makes on its way: runs of a sort, partitions of a join. A page belongs to whoever has the
//! [`ScratchPage`], is zero at first and gone when that is dropped. When memory is short, pages whose turn has come go to
//! a temporary file without a name, of bounded size; the eviction policy weighs them against pages of stores, each by
//! when it was last used.
//!
//! - **X1** A borrowed page stays in memory.
//! - **X2** A page that could not be written stays in memory, one that could not be read back stays in the file: an error
//!   loses nothing.
//! - **X3** No lock is held while pages are written or read back, or memory is waited for (the file's is while space goes
//!   back to the file system). Whoever moves a page waits for no
//!   other that is moving.

mod file;
mod slot;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::frame::Frame;
use super::lock;
use super::manager::{BufferManager, Inner};
use super::room::charge_of;
use super::spill::Spiller;
use crate::disk::{Caching, Disk, FileDisk};
use crate::error::{Error, Result};
use crate::id::SizeClass;
use file::{SpillFile, Stored};
use slot::{Home, Slot};

/// Bytes written at once, at most, or one page.
const WRITTEN_AT_ONCE: usize = 1 << 20;

/// Where scratch pages go when memory is short.
#[derive(Clone, Debug)]
pub struct ScratchOptions {
    /// The folder of the temporary file. It is made at once, has no name, and goes with the last page.
    pub folder: PathBuf,
    /// What the file may grow to, in bytes. As much of it as the largest page is kept free, so that pages can come back
    /// when both file and memory are full.
    pub limit_bytes: u64,
}

/// Numbers of a [`Scratch`], of one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScratchStats {
    /// Pages there are.
    pub pages: u64,
    /// What the temporary file holds of them, in bytes.
    pub stored_bytes: u64,
    /// What it may hold.
    pub limit_bytes: u64,
    /// Written to it so far, in bytes.
    pub spilled_bytes: u64,
    /// Read back so far, in bytes.
    pub read_back_bytes: u64,
}

/// A source of scratch pages, with its temporary file. Clones are the same; pages keep it.
#[derive(Clone)]
pub struct Scratch {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Arc<Inner>,
    /// As the manager calls this spiller.
    spiller: u32,
    file: SpillFile,
    pages: Mutex<HashMap<u64, Weak<Slot>>>,
    numbers: AtomicU64,
    spilled_bytes: AtomicU64,
    read_back_bytes: AtomicU64,
}

impl BufferManager {
    /// A source of scratch pages, which count in this manager's budget.
    ///
    /// # Errors
    /// `Io` if no temporary file can be made in the folder.
    pub fn scratch(&self, options: &ScratchOptions) -> Result<Scratch> {
        let disk = FileDisk::temporary_in(&options.folder, Caching::DirectIfPossible)?;
        Ok(self.scratch_on(Arc::new(disk), options))
    }

    /// As [`BufferManager::scratch`], on another disk than a temporary file.
    fn scratch_on(&self, disk: Arc<dyn Disk>, options: &ScratchOptions) -> Scratch {
        let file = SpillFile::new(disk, &options.folder, options.limit_bytes);
        let shared = Arc::new_cyclic(|weak: &Weak<Shared>| Shared {
            inner: Arc::clone(&self.inner),
            spiller: self.inner.room().enlist(weak.clone()),
            file,
            pages: Mutex::default(),
            numbers: AtomicU64::new(1),
            spilled_bytes: AtomicU64::new(0),
            read_back_bytes: AtomicU64::new(0),
        });
        Scratch { shared }
    }
}

impl Scratch {
    /// A page of zeros.
    ///
    /// # Errors
    /// [`Error::BudgetTooSmall`] if the budget is smaller than such a page. If memory is short, and no other page can make
    /// room: [`Error::ScratchFull`] if the temporary file is at its limit, `Io` if its disk is full or fails, and
    /// [`Error::BudgetExhausted`] if all is held by others. Once pages are dropped, or less is borrowed, it works again.
    pub fn allocate(&self, class: SizeClass) -> Result<ScratchPage> {
        let shared = &self.shared;
        let (needed_bytes, budget_bytes) = (charge_of(class), shared.inner.limit());
        // Before anything is kept for it in the file.
        if needed_bytes > budget_bytes {
            return Err(Error::BudgetTooSmall { budget_bytes, needed_bytes });
        }
        let slot = Arc::new(Slot::new(shared.numbers.fetch_add(1, Ordering::Relaxed), class));
        shared.file.expect(class);
        let mut frame = shared.obtain(&slot).inspect_err(|_| shared.file.forget(class))?;
        frame.make_zero();
        slot.settle(Home::Memory(frame));
        lock(&shared.pages).insert(slot.number, Arc::downgrade(&slot));
        Ok(ScratchPage { shared: Arc::clone(shared), slot })
    }

    /// Numbers of now.
    pub fn stats(&self) -> ScratchStats {
        let shared = &self.shared;
        ScratchStats {
            pages: lock(&shared.pages).len() as u64,
            stored_bytes: shared.file.used_bytes(),
            limit_bytes: shared.file.limit_bytes(),
            spilled_bytes: shared.spilled_bytes.load(Ordering::Relaxed),
            read_back_bytes: shared.read_back_bytes.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scratch").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Shared {
    /// A frame for the page, with whatever bytes.
    fn obtain(&self, slot: &Slot) -> Result<Frame> {
        let name = self.inner.obtain_scratch(slot.class, self.spiller, slot.number)?;
        Frame::new(Arc::clone(&self.inner), name)
    }

    /// Reads a page back that is in the file, and on its way since the caller said so.
    fn read_back(&self, slot: &Slot, stored: Stored) -> Result<()> {
        self.file.begin_load();
        let result = self.obtain(slot).and_then(|mut frame| {
            // What comes is not zero.
            frame.claim();
            let bytes = frame.get_mut().ok_or(Error::ScratchBorrowed { number: slot.number })?;
            self.file.read(slot.number, &stored, bytes)?;
            Ok(frame)
        });
        let result = match result {
            Ok(frame) => {
                self.read_back_bytes.fetch_add(slot.class.page_bytes(), Ordering::Relaxed);
                self.file.release(stored);
                slot.settle(Home::Memory(frame));
                Ok(())
            }
            Err(error) => {
                slot.settle(Home::Stored(stored));
                Err(error)
            }
        };
        self.file.end_load();
        result
    }

    /// Writes pages that were taken for it, as many as there is space for; gives back those that were not written.
    fn write(&self, pages: Vec<(Arc<Slot>, Frame)>) -> Result<()> {
        let mut result = Ok(());
        let mut placed = Vec::new();
        for (slot, frame) in &pages {
            match self.file.reserve(slot.class) {
                Ok(stored) => placed.push((slot.number, stored, frame)),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        let written = self.file.write(&mut placed);
        let mut stored: Vec<Stored> = placed.into_iter().map(|(_, stored, _)| stored).collect();
        if let Err(error) = written {
            stored.drain(..).for_each(|stored| self.file.release(stored));
            result = Err(error);
        }
        let mut stored = stored.into_iter();
        for (slot, frame) in pages {
            match stored.next() {
                Some(stored) => {
                    self.spilled_bytes.fetch_add(slot.class.page_bytes(), Ordering::Relaxed);
                    slot.settle(Home::Stored(stored));
                    drop(frame);
                }
                None => slot.settle(Home::Memory(frame)),
            }
        }
        result
    }
}

impl Spiller for Shared {
    fn spill(&self, keys: &[u64]) -> Result<()> {
        let mut pages = Vec::new();
        let mut bytes = 0;
        for key in keys {
            let slot = lock(&self.pages).get(key).and_then(Weak::upgrade);
            let Some(slot) = slot else { continue };
            if let Some(frame) = slot.take_idle() {
                bytes += frame.len();
                pages.push((slot, frame));
            }
            if bytes >= WRITTEN_AT_ONCE {
                self.write(std::mem::take(&mut pages))?;
                bytes = 0;
            }
        }
        self.write(pages)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.inner.room().dismiss(self.spiller);
    }
}

/// A page of scratch memory, zero at first. Dropped, its bytes are gone.
pub struct ScratchPage {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
}

impl ScratchPage {
    /// The page's size class.
    pub fn class(&self) -> SizeClass {
        self.slot.class
    }

    /// What errors call the page; of its [`Scratch`] the only one of that number, ever.
    pub fn number(&self) -> u64 {
        self.slot.number
    }

    /// The bytes, for reading. They stay in memory while the guard lives.
    ///
    /// # Errors
    /// [`Error::ScratchBorrowed`] while there is a writer; and for a page that is in the file: those of
    /// [`Scratch::allocate`], of reading the file, and [`Error::ScratchDamaged`].
    pub fn read(&self) -> Result<ScratchRead<'_>> {
        self.borrow(|state| match &state.home {
            Home::Memory(frame) => {
                let frame = frame.clone();
                frame.lend();
                state.readers += 1;
                Some(ScratchRead { page: self, frame: Some(frame) })
            }
            _ => None,
        })
    }

    /// The bytes, for changing. They stay in memory while the guard lives.
    ///
    /// # Errors
    /// [`Error::ScratchBorrowed`] while there is a writer or a reader; else as [`ScratchPage::read`].
    pub fn write(&self) -> Result<ScratchWrite<'_>> {
        self.borrow(|state| {
            if state.readers > 0 {
                return None;
            }
            match std::mem::replace(&mut state.home, Home::Lent) {
                Home::Memory(frame) => {
                    frame.lend();
                    Some(ScratchWrite { page: self, frame: Some(frame) })
                }
                other => {
                    state.home = other;
                    None
                }
            }
        })
    }

    /// Has the page brought to memory, and `lend` try.
    fn borrow<G>(&self, lend: impl Fn(&mut slot::State) -> Option<G>) -> Result<G> {
        loop {
            let mut state = self.slot.settled();
            if !matches!(state.home, Home::Stored(_)) {
                return lend(&mut state).ok_or(Error::ScratchBorrowed { number: self.slot.number });
            }
            if let Home::Stored(stored) = std::mem::replace(&mut state.home, Home::Moving) {
                drop(state);
                self.shared.read_back(&self.slot, stored)?;
            }
        }
    }
}

impl Drop for ScratchPage {
    fn drop(&mut self) {
        lock(&self.shared.pages).remove(&self.slot.number);
        // No guard is left: they borrow the page.
        let home = std::mem::replace(&mut self.slot.settled().home, Home::Lent);
        if let Home::Stored(stored) = home {
            self.shared.file.release(stored);
        }
        self.shared.file.forget(self.slot.class);
    }
}

impl fmt::Debug for ScratchPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScratchPage")
            .field("number", &self.slot.number)
            .field("class", &self.slot.class)
            .finish_non_exhaustive()
    }
}

/// A scratch page's bytes, for reading.
pub struct ScratchRead<'a> {
    page: &'a ScratchPage,
    /// `None` only while it is dropped.
    frame: Option<Frame>,
}

impl Deref for ScratchRead<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.frame.as_deref().unwrap_or_default()
    }
}

impl Drop for ScratchRead<'_> {
    fn drop(&mut self) {
        if let Some(frame) = self.frame.take() {
            frame.take_back();
            // The handle goes first: a writer has to find none but its own.
            drop(frame);
            self.page.slot.state().readers -= 1;
        }
    }
}

impl fmt::Debug for ScratchRead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScratchRead").field("page", self.page).finish_non_exhaustive()
    }
}

/// A scratch page's bytes, for changing.
pub struct ScratchWrite<'a> {
    page: &'a ScratchPage,
    /// `None` only while it is dropped.
    frame: Option<Frame>,
}

impl Deref for ScratchWrite<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.frame.as_deref().unwrap_or_default()
    }
}

impl DerefMut for ScratchWrite<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self.frame.as_mut().and_then(Frame::get_mut) {
            Some(bytes) => bytes,
            None => unreachable!("the writer has the only handle"),
        }
    }
}

impl Drop for ScratchWrite<'_> {
    fn drop(&mut self) {
        if let Some(frame) = self.frame.take() {
            frame.take_back();
            self.page.slot.settle(Home::Memory(frame));
        }
    }
}

impl fmt::Debug for ScratchWrite<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScratchWrite").field("page", self.page).finish_non_exhaustive()
    }
}
