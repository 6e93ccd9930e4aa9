//! A history of transactions on a pager, with its disk remembering.

use std::sync::Arc;

use super::model::{Model, ModelState, page_bytes};
use crate::disk::{CrashPoint, Disk, SimulatedDisk};
use crate::error::{Error, Result};
use crate::id::{Generation, PageId, SizeClass};
use crate::pager::{Background, Isolation, Options, Pager, Read, Ticket, Transaction};
use crate::store::{Durability, NewSpace, SeededEntropy};

/// One thing that a history does. Numbers choose among what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PagerStep {
    /// A transaction, committed and waited for.
    Commit(Vec<PageStep>, Durability),
    /// A transaction whose commit is started.
    Start(Vec<PageStep>, Durability),
    /// Two transactions side by side, both started.
    Beside(Vec<PageStep>, Vec<PageStep>),
    /// A transaction that is aborted.
    Abort(Vec<PageStep>),
    /// Waits for all commits that were started.
    Wait,
    /// Makes everything durable.
    Sync,
    /// A checkpoint.
    Checkpoint,
    /// A step of cleaning.
    Clean,
}

/// One thing that a transaction does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PageStep {
    /// Gives a new page of this class (by logarithm) a version.
    Allocate(u8),
    /// Gives a page a new version.
    Write(u64),
    /// Changes so many pages of 64 KiB that the transaction does not fit into memory, and frees them, but for one, again
    /// if it is even.
    Flood(u64),
    /// Frees a page.
    Free(u64),
    /// Sets the user header.
    Header(u8),
}

/// Options with a geometry so small that a few commits meet every boundary.
pub fn tiny_options() -> Options {
    Options::new()
        .background(Background::Inline)
        .memory(1 << 20)
        .map_memory(1 << 20)
        .log_segment_bytes(6 << 12)
        .checkpoint_log_bytes(48 << 12)
        .in_log_pages_bytes(2 << 12)
        .growth_bytes(8 << 12)
        .new_space(NewSpace::Obtained)
}

/// A pager, its model, and the disk under it.
#[derive(Debug)]
pub struct PagerHistory {
    /// The pager.
    pub pager: Pager,
    /// What it should hold.
    pub model: Model,
    disk: Arc<SimulatedDisk>,
    /// What transactions that begin now should see.
    head: ModelState,
    /// With what the commit leaves, unless it is empty.
    started: Vec<(Ticket, Option<ModelState>, Durability)>,
    version: u64,
}

impl PagerHistory {
    /// Creates a store on a new disk, with recording on.
    ///
    /// # Errors
    /// Those of [`Pager::create_on`].
    pub fn create(options: &Options, seed: u64) -> Result<Self> {
        let disk = Arc::new(SimulatedDisk::new());
        disk.start_recording();
        let shared: Arc<dyn Disk> = Arc::clone(&disk) as _;
        let pager = Pager::create_on(shared, Box::new(SeededEntropy(seed)), options)?;
        let mut model = Model::default();
        model.commit(pager.view().generation(), ModelState::default());
        let history = Self { pager, model, disk, head: ModelState::default(), started: Vec::new(), version: 0 };
        history.acknowledge(history.pager.view().generation());
        Ok(history)
    }

    /// Tells the disk's recording which generation is acknowledged.
    fn acknowledge(&self, generation: Generation) {
        self.disk.mark(&format!("{}", generation.0));
    }

    /// Does one step. A full disk skips it.
    ///
    /// # Errors
    /// Those of the pager.
    pub fn step(&mut self, step: &PagerStep) -> Result<()> {
        match step {
            PagerStep::Commit(pages, durability) => {
                let transaction = self.pager.begin()?;
                let changes = self.change(&transaction, pages)?;
                self.start(transaction, changes, *durability)?;
                self.wait()
            }
            PagerStep::Start(pages, durability) => {
                let transaction = self.pager.begin()?;
                let changes = self.change(&transaction, pages)?;
                self.start(transaction, changes, *durability)
            }
            PagerStep::Beside(first_pages, second_pages) => {
                let first = self.pager.begin_concurrent(Isolation::Snapshot)?;
                let second = self.pager.begin_concurrent(Isolation::Snapshot)?;
                let first_changes = self.change(&first, first_pages)?;
                self.start(first, first_changes, Durability::Durable)?;
                let second_changes = self.change(&second, second_pages)?;
                self.start(second, second_changes, Durability::Durable)
            }
            PagerStep::Abort(pages) => {
                let before = self.head.clone();
                let transaction = self.pager.begin()?;
                self.change(&transaction, pages)?;
                self.head = before;
                transaction.abort();
                Ok(())
            }
            PagerStep::Wait => self.wait(),
            PagerStep::Sync => {
                self.wait()?;
                self.pager.sync()?;
                self.everything_is_durable();
                Ok(())
            }
            PagerStep::Checkpoint => {
                self.wait()?;
                match self.pager.checkpoint() {
                    Ok(_) => self.everything_is_durable(),
                    Err(error) if error.is_no_space() => {}
                    Err(error) => return Err(error),
                }
                Ok(())
            }
            PagerStep::Clean => match self.pager.clean(8) {
                Err(error) if !error.is_no_space() => Err(error),
                _ => Ok(()),
            },
        }
    }

    fn everything_is_durable(&self) {
        self.acknowledge(self.pager.view().generation());
    }

    fn start(&mut self, transaction: Transaction, changes: usize, durability: Durability) -> Result<()> {
        let ticket = transaction.commit_start_with(durability)?;
        self.started.push((ticket, (changes > 0).then(|| self.head.clone()), durability));
        Ok(())
    }

    /// Waits for every commit that was started.
    fn wait(&mut self) -> Result<()> {
        for (ticket, state, durability) in std::mem::take(&mut self.started) {
            let committed = ticket.wait()?;
            // Of one record's members, the last one's state is what the record leaves.
            if let Some(state) = state {
                self.model.commit(committed.generation, state);
            }
            if durability == Durability::Durable {
                self.acknowledge(committed.generation);
            }
        }
        Ok(())
    }

    /// Changes pages that the transaction sees, and the model's head with them. Pages that another one is changing are
    /// left out. Returns how many changes there were.
    fn change(&mut self, transaction: &Transaction, steps: &[PageStep]) -> Result<usize> {
        let mut changes = 0;
        for step in steps {
            let among = |number: u64, head: &ModelState| {
                let count = head.pages.len() as u64;
                (count > 0).then(|| head.pages.keys().nth((number % count) as usize).copied()).flatten()
            };
            let result = match step {
                PageStep::Allocate(log2) => {
                    let Some(class) = SizeClass::new(*log2) else { continue };
                    let page = transaction.allocate(class)?;
                    self.write(transaction, page)
                }
                PageStep::Write(number) => match among(*number, &self.head) {
                    Some(page) => self.write(transaction, page),
                    None => continue,
                },
                PageStep::Flood(number) => self.flood(transaction, *number),
                PageStep::Free(number) => match among(*number, &self.head) {
                    Some(page) => transaction.free(page).map(|()| {
                        self.head.pages.remove(&page);
                    }),
                    None => continue,
                },
                PageStep::Header(byte) => transaction.set_header(&[*byte; 7]).map(|()| {
                    self.head.header = vec![*byte; 7];
                }),
            };
            match result {
                // Beside another one, what that one allocated is not there.
                Ok(()) => changes += 1,
                Err(Error::Conflict { .. } | Error::PageNotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(changes)
    }

    fn flood(&mut self, transaction: &Transaction, number: u64) -> Result<()> {
        let Some(class) = SizeClass::new(16) else { return Ok(()) };
        let pages = transaction.allocate_many(class, 12)?;
        for page in &pages {
            self.write(transaction, *page)?;
        }
        // The first ones are spilled by now.
        for page in pages.iter().skip(1).filter(|_| number.is_multiple_of(2)) {
            transaction.free(*page)?;
            self.head.pages.remove(page);
        }
        Ok(())
    }

    fn write(&mut self, transaction: &Transaction, page: PageId) -> Result<()> {
        self.version += 1;
        let mut bytes = transaction.overwrite(page)?;
        page_bytes(page, self.version, 0, &mut bytes);
        self.head.pages.insert(page, self.version);
        Ok(())
    }

    /// Waits for what was started, and returns the crash points of the whole history.
    ///
    /// # Errors
    /// Those of the pager.
    pub fn finish(&mut self) -> Result<Vec<CrashPoint>> {
        self.wait()?;
        // Generations without a commit of ours are of moved pages: they hold what the one before holds.
        let newest = self.pager.view().generation();
        let mut last = ModelState::default();
        for generation in 0..=newest.0 {
            last = self.model.states.entry(Generation(generation)).or_insert(last).clone();
        }
        Ok(self.disk.take_crash_points())
    }

    /// Compares the pager's newest state with the model.
    ///
    /// # Errors
    /// What differs, in words.
    pub fn check(&self) -> std::result::Result<(), String> {
        let view = self.pager.view();
        let mut found = 0;
        for class in SizeClass::all() {
            for page in view.page_ids(class) {
                let page = page.map_err(|error| error.to_string())?;
                let bytes = view.page(page).map_err(|error| error.to_string())?;
                let Some(version) = self.head.pages.get(&page) else {
                    return Err(format!("page {page} is there, and should not be"));
                };
                let mut expected = vec![0; bytes.len()];
                page_bytes(page, *version, 0, &mut expected);
                if bytes[..] != expected[..] {
                    return Err(format!("page {page} does not have the bytes of version {version}"));
                }
                found += 1;
            }
        }
        match found == self.head.pages.len() && view.header()[..] == self.head.header[..] {
            true => Ok(()),
            false => Err(format!("{found} pages are there, not {}, or the header differs", self.head.pages.len())),
        }
    }
}
