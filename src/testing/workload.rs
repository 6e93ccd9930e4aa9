//! Steps on a store, and a history of them on a disk that remembers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::model::{Model, ModelState, page_bytes};
use crate::disk::{Disk, SimulatedDisk};
use crate::error::{Error, Result};
use crate::format::{Compression, EntryKind};
use crate::id::{Generation, PageId, SizeClass};
use crate::process::NoReaders;
use crate::space::FirstFit;
use crate::store::{
    Changes, CheckpointJob, Committed, Content, Durability, NewSpace, PageChange, Pinned, Progress, SeededEntropy,
    Settings, Spilled, Store,
};

/// One thing that a history does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Commits new versions of these pages (class logarithm, index).
    Write(Vec<(u8, u64)>),
    /// The same, without a sync.
    WriteDeferred(Vec<(u8, u64)>),
    /// As `Write`, encoded: by LZ4 or Zstandard, as versions go. Pages of 4 KiB stay as they are.
    WriteEncoded(Vec<(u8, u64)>),
    /// Reserves space for new versions of these pages and writes them there, for a later step to commit.
    Spill(Vec<(u8, u64)>),
    /// The same, encoded as by `WriteEncoded`.
    SpillEncoded(Vec<(u8, u64)>),
    /// Commits everything that was spilled, with new versions of these pages.
    WriteSpilled(Vec<(u8, u64)>),
    /// Gives back everything that was spilled.
    GiveBackSpilled,
    /// Frees these pages; those that are not there are left out.
    Free(Vec<(u8, u64)>),
    /// Sets the user header.
    Header(u8),
    /// Makes everything durable.
    Sync,
    /// A whole checkpoint.
    Checkpoint,
    /// Begins a checkpoint that later steps run beside.
    CheckpointBegin,
    /// Ends it.
    CheckpointEnd,
    /// Makes a snapshot of this number.
    Snapshot(u8),
    /// Deletes it, if it is there.
    DeleteSnapshot(u8),
    /// Rolls back to it, if it is there.
    RollBack(u8),
    /// Moves pages.
    Move(Vec<(u8, u64)>),
    /// Opens a view, which later steps must leave as it is.
    View,
    /// Closes the oldest view.
    CloseView,
}

/// Views that a history holds, with what they must show.
pub type Views = Vec<(Pinned, ModelState)>;

/// Settings with a geometry so small that a few commits meet every boundary.
pub fn tiny() -> Settings {
    Settings {
        log_segment_blocks: 6,
        checkpoint_log_blocks: Some(96),
        in_log_blocks: 2,
        growth_blocks: 8,
        new_space: NewSpace::Obtained,
        segment_blocks: 4,
        cached_nodes: 256,
        ..Settings::default()
    }
}

/// As [`tiny`], with a strategy that uses again what was freed last and lowest, and next to no cache of nodes: so that
/// an extent that is free too early is overwritten, and seen to be.
pub fn tiny_and_reusing() -> Settings {
    Settings { strategy: || Box::<FirstFit>::default(), cached_nodes: 0, growth_blocks: 4, ..tiny() }
}

/// A store, its model, and the disk under it.
#[derive(Debug)]
pub struct History {
    /// The disk.
    pub disk: Arc<SimulatedDisk>,
    /// The store.
    pub store: Store,
    /// What it should hold.
    pub model: Model,
    /// The views that are open.
    pub views: Views,
    version: u64,
    spilled: BTreeMap<PageId, (u64, Vec<Spilled>)>,
    job: Option<CheckpointJob>,
    synced: Generation,
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Done,
    /// There was nothing to do, or no space to do it.
    Skipped,
}

fn page_of(&(log2, index): &(u8, u64)) -> Option<PageId> {
    PageId::new(SizeClass::new(log2)?, index)
}

/// The bytes of a version of a page: whole, or in chunks.
fn units_of(page: PageId, version: u64) -> Vec<Vec<u8>> {
    let unit = page.class().page_bytes().min(SizeClass::CHUNK.page_bytes());
    let offsets = (0..page.class().page_bytes()).step_by(unit as usize);
    offsets
        .map(|offset| {
            let mut bytes = vec![0; unit as usize];
            page_bytes(page, version, offset, &mut bytes);
            bytes
        })
        .collect()
}

/// How a version of a page is encoded.
fn compression_of(version: u64) -> Compression {
    if version.is_multiple_of(2) { Compression::LZ4 } else { Compression::ZSTD }
}

/// The change that gives a page these units, all it has.
fn change_of<'a>(page: PageId, units: impl Iterator<Item = Content<'a>>, fresh: bool) -> PageChange<'a> {
    let mut units = (0..).zip(units);
    match (page.class().is_chunked(), fresh) {
        (false, _) => units.next().map_or(PageChange::Zero, |(_, unit)| PageChange::Whole(unit)),
        (true, true) => PageChange::OnlyChunks(units.collect()),
        (true, false) => PageChange::Chunks(units.collect()),
    }
}

impl History {
    /// Creates a store on a new disk, with recording on from the start if `recorded`.
    ///
    /// # Errors
    /// Those of [`Store::create`].
    pub fn create(settings: Settings, seed: u64) -> Result<Self> {
        let disk = Arc::new(SimulatedDisk::new());
        disk.start_recording();
        let shared: Arc<dyn Disk> = Arc::clone(&disk) as _;
        let store = Store::create(shared, Arc::new(NoReaders), settings, Box::new(SeededEntropy(seed)))?;
        Self::on(disk, store, Model::default(), 1)
    }

    /// Goes on with an open store.
    ///
    /// # Errors
    /// None; for symmetry.
    pub fn on(disk: Arc<SimulatedDisk>, store: Store, model: Model, version: u64) -> Result<Self> {
        let synced = store.state().generation;
        let mut history =
            Self { disk, store, model, views: Vec::new(), version, spilled: BTreeMap::new(), job: None, synced };
        let generation = history.store.state().generation;
        let state = history.model.newest();
        history.model.commit(generation, state);
        history.acknowledge();
        Ok(history)
    }

    /// Tells the disk's recording which generation is acknowledged.
    fn acknowledge(&mut self) {
        self.disk.mark(&format!("{}", self.synced.0));
    }

    fn committed(&mut self, committed: Committed, state: ModelState, durability: Durability) {
        self.model.commit(committed.generation, state);
        if durability == Durability::Durable {
            self.synced = committed.generation;
            self.acknowledge();
        }
    }

    /// Does one step. A full disk skips it.
    ///
    /// # Errors
    /// Those of the store.
    pub fn step(&mut self, step: &Step) -> Result<Outcome> {
        match self.try_step(step) {
            Err(error) if error.is_no_space() => Ok(Outcome::Skipped),
            Err(Error::Busy) => Ok(Outcome::Skipped),
            other => other,
        }
    }

    /// As [`History::step`], but a full disk is an error, and so is a checkpoint that runs already.
    ///
    /// # Errors
    /// Those of the store.
    pub fn try_step(&mut self, step: &Step) -> Result<Outcome> {
        let mut state = self.model.newest();
        match step {
            Step::Write(pages) | Step::WriteDeferred(pages) => {
                let durability = match step {
                    Step::Write(_) => Durability::Durable,
                    _ => Durability::Deferred,
                };
                let mut changes = Changes::default();
                for page in pages.iter().filter_map(page_of) {
                    let fresh = !state.pages.contains_key(&page);
                    changes.pages.insert(page, self.new_version(page, fresh));
                    state.pages.insert(page, self.version);
                }
                let committed = self.store.commit(&changes, durability)?;
                self.committed(committed, state, durability);
            }
            Step::WriteEncoded(pages) => {
                let mut changes = Changes::default();
                for page in pages.iter().filter_map(page_of) {
                    let fresh = !state.pages.contains_key(&page);
                    self.version += 1;
                    let compression = compression_of(self.version);
                    let units = units_of(page, self.version).into_iter();
                    let encoded = units.map(|unit| Content::encode(unit, compression));
                    changes.pages.insert(page, change_of(page, encoded, fresh));
                    state.pages.insert(page, self.version);
                }
                let committed = self.store.commit(&changes, Durability::Durable)?;
                self.committed(committed, state, Durability::Durable);
            }
            Step::Spill(pages) => {
                for page in pages.iter().filter_map(page_of) {
                    self.spill(page, Compression::NONE)?;
                }
            }
            Step::SpillEncoded(pages) => {
                for page in pages.iter().filter_map(page_of) {
                    self.spill(page, compression_of(self.version + 1))?;
                }
            }
            Step::WriteSpilled(pages) => {
                let spilled = self.spilled.clone();
                let mut changes = Changes::default();
                for (page, (version, units)) in &spilled {
                    let fresh = !state.pages.contains_key(page);
                    changes.pages.insert(*page, change_of(*page, units.iter().map(|unit| (*unit).into()), fresh));
                    state.pages.insert(*page, *version);
                }
                for page in pages.iter().filter_map(page_of).filter(|page| !spilled.contains_key(page)) {
                    let fresh = !state.pages.contains_key(&page);
                    changes.pages.insert(page, self.new_version(page, fresh));
                    state.pages.insert(page, self.version);
                }
                let committed = self.store.commit(&changes, Durability::Durable)?;
                self.spilled.clear();
                self.committed(committed, state, Durability::Durable);
            }
            Step::GiveBackSpilled => {
                for unit in std::mem::take(&mut self.spilled).into_values().flat_map(|(_, units)| units) {
                    self.store.give_back_reserved(unit.reserved())?;
                }
            }
            Step::Free(pages) => {
                let mut changes = Changes::default();
                for page in pages.iter().filter_map(page_of) {
                    if state.pages.remove(&page).is_some() {
                        changes.pages.insert(page, PageChange::Free);
                    }
                }
                let committed = self.store.commit(&changes, Durability::Durable)?;
                self.committed(committed, state, Durability::Durable);
            }
            Step::Header(byte) => {
                state.header = vec![*byte; 5];
                let mut changes = Changes::default();
                changes.header = Some(state.header.clone());
                let committed = self.store.commit(&changes, Durability::Durable)?;
                self.committed(committed, state, Durability::Durable);
            }
            Step::Sync => {
                self.store.sync()?;
                self.synced = self.store.state().generation;
                self.acknowledge();
            }
            Step::Checkpoint => {
                if self.job.is_some() {
                    return Ok(Outcome::Skipped);
                }
                self.store.checkpoint()?;
                self.synced = self.store.state().generation;
                self.acknowledge();
            }
            Step::CheckpointBegin => {
                if self.job.is_some() {
                    return Ok(Outcome::Skipped);
                }
                self.job = Some(self.store.checkpoint_begin()?);
            }
            Step::CheckpointEnd => {
                let Some(mut job) = self.job.take() else { return Ok(Outcome::Skipped) };
                loop {
                    match job.write() {
                        Ok(Progress::More) => {}
                        Ok(Progress::Done) => break,
                        Err(error) => {
                            self.store.checkpoint_abandon(job)?;
                            return Err(error);
                        }
                    }
                }
                self.store.checkpoint_finish(job)?;
            }
            Step::Snapshot(number) => {
                let name = format!("s{number}");
                if state.snapshots.contains_key(&name) {
                    return Ok(Outcome::Skipped);
                }
                state.snapshots.insert(name.clone(), state.pages.clone());
                let committed = self.store.name_state(EntryKind::Snapshot, &name, "", 0)?;
                self.committed(committed, state, Durability::Durable);
            }
            Step::DeleteSnapshot(number) => {
                let name = format!("s{number}");
                if self.job.is_some() || state.snapshots.remove(&name).is_none() {
                    return Ok(Outcome::Skipped);
                }
                let committed = self.store.remove_name(&name)?;
                self.committed(committed, state, Durability::Durable);
            }
            Step::RollBack(number) => {
                let name = format!("s{number}");
                let Some(pages) = state.snapshots.get(&name).cloned() else { return Ok(Outcome::Skipped) };
                let header = self.store.state().listed(&name).map(|listed| listed.entry.header.clone());
                state.pages = pages;
                state.header = header.unwrap_or_default();
                let committed = self.store.roll_back(&name)?;
                self.committed(committed, state, Durability::Durable);
            }
            Step::Move(pages) => {
                let pages: Vec<PageId> = pages.iter().filter_map(page_of).collect();
                let Some(committed) = self.store.move_pages(&pages, Durability::Durable)? else {
                    return Ok(Outcome::Skipped);
                };
                self.committed(committed, state, Durability::Durable);
            }
            Step::View => self.views.push((self.store.published().pin(), state)),
            Step::CloseView => {
                if !self.views.is_empty() {
                    self.views.remove(0);
                }
            }
        }
        Ok(Outcome::Done)
    }

    /// A change that gives a page its next version.
    fn new_version(&mut self, page: PageId, fresh: bool) -> PageChange<'static> {
        self.version += 1;
        change_of(page, units_of(page, self.version).into_iter().map(Content::from), fresh)
    }

    /// Writes a page's next version to space of its own.
    fn spill(&mut self, page: PageId, compression: Compression) -> Result<()> {
        let units = units_of(page, self.version + 1).into_iter();
        let mut units: Vec<_> = units.map(|unit| Content::encode(unit, compression)).collect();
        let reserved = self.store.reserve(&mut units)?;
        self.version += 1;
        let with_bytes: Vec<_> = reserved.into_iter().zip(&units).collect();
        let spilled = match self.store.medium().spill(&with_bytes) {
            Ok(spilled) => spilled,
            Err(error) => {
                with_bytes.iter().try_for_each(|(reserved, _)| self.store.give_back_reserved(*reserved))?;
                return Err(error);
            }
        };
        for unit in self.spilled.insert(page, (self.version, spilled)).into_iter().flat_map(|(_, units)| units) {
            self.store.give_back_reserved(unit.reserved())?;
        }
        Ok(())
    }

    /// The last version given to a page.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Compares the store and every view with the model, and checks the store.
    ///
    /// # Errors
    /// What differs, in words.
    pub fn check(&mut self) -> std::result::Result<(), String> {
        let nodes = Arc::clone(self.store.nodes());
        let newest = self.model.newest();
        let difference = newest.compare(&nodes, &self.store.state()).map_err(|error| error.to_string())?;
        if let Some(difference) = difference {
            return Err(format!("the newest state: {difference}"));
        }
        for (view, state) in &self.views {
            // A view shows pages and header; its catalogue may have changed since.
            let expected = ModelState { snapshots: BTreeMap::new(), ..state.clone() };
            let shown = crate::store::State { catalogue: Arc::default(), ..(**view).clone() };
            let difference = expected.compare(&nodes, &shown).map_err(|error| format!("a view: {error}"))?;
            if let Some(difference) = difference {
                return Err(format!("the view of {}: {difference}", view.generation));
            }
        }
        if self.job.is_none() {
            super::explore::check_space(&mut self.store)?;
        }
        Ok(())
    }
}
