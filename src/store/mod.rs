//! The durable core: commit, checkpoint, recovery, and the rules of when a block may be used again.
//!
//! Deterministic and single-threaded: the same calls on the same disk with the same random numbers write the same
//! bytes. No threads, no frames, no clocks; so crash tests can drive it through every state. Concurrency is the
//! `pager`'s, which contains no rule of durability.
//!
//! # Terms
//! *Generation*: the number of a commit. *Synced*: the largest generation g such that the syncs of all generations up
//! to g have returned. *Anchored*: the highest `synced_through` inside a record that is itself synced, or the fold of
//! the older superblock, whichever is higher: what no recovery can cut off, not even one that has lost the newest
//! superblock. *Fold*: the state that a checkpoint writes.
//!
//! # States of a commit
//! ```text
//!  prepared --write pages--> written --write record--> in flight --sync--> durable --apply--> published
//!     |                         |                          |
//!     +-- no space, I/O error --+--> not committed         +-- error --> unknown (poisoned; reopen to know)
//! ```
//! | transition | where |
//! | --- | --- |
//! | prepared: the bytes to be stored are known, then extents are taken, old pointers looked up | `prepare.rs`, `commit.rs` |
//! | written: pages are on their way to their extents (or will go out with the record) | `commit.rs`, `Store::send_units` |
//! | in flight, durable | `append.rs`, `Store::append` |
//! | applied: maps, journal, deferred list; the same code replays a record | `apply.rs`, `Store::apply` |
//!
//! # Rules of reuse (R1 to R8, design section 4)
//! R1, R2, R3: `reuse.rs`. R4: `log` (L4) and `checkpoint/`. R5: `checkpoint/` takes homes in the same step that
//! fixes the fold, when every free block has been free since before the fold. R6: `apply.rs` and `journal.rs`. R7:
//! every change is an [`Entry`](crate::format::Entry) of a record. R8: a move's old place dies like data that no
//! snapshot holds, and only extents that no snapshot reaches are moved (`moves.rs`).
//!
//! # Invariants
//! - **S1** No block that a committed state, snapshot or held state reaches is ever written.
//! - **S2** A commit is acknowledged only after it, and all before it, are durable.
//! - **S3** A superblock is written only after everything it leads to is durable.
//! - **S4** In memory a block is free in [`Space`] only if it is free in the committed layer and not reserved.

mod append;
mod apply;
mod body;
mod changes;
mod checkpoint;
mod chunks;
mod clean;
mod commit;
mod create;
mod encoded;
mod follow;
mod growth;
mod held;
mod journal;
mod leaves;
mod load;
mod medium;
mod moves;
mod prepare;
mod publish;
mod read;
mod recovery;
mod reuse;
mod sabotage;
mod settings;
mod snapshots;
mod spill;
mod staging;
mod state;
mod storage;
mod tail;
mod verify;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub use changes::{Changes, Committed, Content, Durability, PageChange};
pub use checkpoint::{CheckpointJob, CheckpointReport, Progress};
pub use clean::{Cleaner, MoveReport, Victims};
pub use create::{FileState, file_state};
pub use encoded::Encoded;
pub use follow::{Changed, FollowLimit, Followed, Follower, store_id};
pub use growth::GrowthJob;
pub use held::{OldState, StateMaps};
pub use medium::Medium;
pub use moves::{StoredBytes, StoredPages};
pub use publish::{ChunkUpdate, PageUpdate, Publication, PublishHook};
pub use read::{PageReader, file_place, is_stored, read_page, read_part};
pub use recovery::RecoveryReport;
#[cfg(any(test, feature = "testing"))]
pub use sabotage::Sabotage;
pub use settings::{Entropy, MakeStrategy, NewSpace, SeededEntropy, Settings, SystemEntropy};
pub use spill::{Reserved, Spilled};
pub use state::{Listed, Maps, Pinned, Published, State};
pub use storage::{ClassStorage, Share, add_page, storage, storage_of_classes};
pub use verify::{Finding, Severity, VerifyLevel, VerifyReport};

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::Superblock;
use crate::id::{CheckpointNumber, Extent, Generation, Incarnation, PageId, StoreId};
use crate::log::{Log, LogPosition};
use crate::map::{Nodes, Tree};
use crate::process::{self, PinTable, PublishedState};
use crate::space::Space;

use journal::Journal;
use reuse::{Conditions, Deferred};
use spill::Reservations;
use staging::Staging;
use state::Pins;

/// An open store: the committed state, and how it changes. See the module.
#[derive(Debug)]
pub struct Store {
    medium: Arc<Medium>,
    nodes: Arc<Nodes>,
    readers: Arc<dyn PinTable>,
    published: Arc<Published>,
    settings: Settings,
    entropy: Box<dyn Entropy>,
    id: StoreId,
    incarnation: Incarnation,
    space: Space,
    log: Log,
    deferred: Deferred,
    journal: Journal,
    /// What each record since the last fold did to the maps, oldest first; a checkpoint that ends beside commits
    /// applies those after its fold to the maps it wrote.
    notes: VecDeque<Note>,
    /// Memory in which pages are gathered for writing.
    staging: Staging,
    /// Where pages may be found in memory.
    stored_pages: Option<Arc<dyn StoredPages>>,
    /// Who hears of every commit before readers can see it.
    publish_hook: Option<Arc<dyn PublishHook>>,
    /// Space taken for units that a later commit may name. Memory only.
    reservations: Reservations,
    /// Free blocks of segments that were emptied, kept from use until the rest of the segment is free too: until the
    /// generation that emptied it is anchored.
    closed: VecDeque<(Generation, Vec<Extent>)>,
    /// New space that is being made ready beside commits.
    growing: Option<Arc<growth::Growth>>,
    /// Bodies of records that lie outside of the log, with the records' generations.
    bodies: Vec<(Extent, Generation)>,
    synced: Generation,
    anchored: Generation,
    /// The `synced_through` of the youngest record.
    recorded: Generation,
    /// The state at `synced`, where that is not the newest one.
    synced_state: Option<Arc<State>>,
    /// The state before the newest, kept only for the planted bug that folds it.
    stale_state: Option<Arc<State>>,
    /// Bytes written since the last sync.
    unsynced_bytes: u64,
    /// What giving blocks free came upon when it was too late for a commit to fail with it.
    late_error: Option<Error>,
    /// The newest durable checkpoint, as written.
    folded: Superblock,
    /// The fold of the other slot.
    folded_before: Generation,
    bitmap: Tree,
    /// Where the bitmap's leaves are loaded from: the same tree, shared with `space`.
    bitmap_source: Arc<leaves::BitmapSource>,
    catalogue: Tree,
    deferred_tree: Tree,
    /// The catalogue's entries as they lie on disk, by id.
    on_disk: BTreeMap<u64, OnDisk>,
    next_catalogue_id: u64,
    /// At most how many nodes of the maps differ from the disk.
    dirty_nodes: u64,
    /// Blocks of log written since the last fold.
    log_blocks: u64,
    /// The deferred list while the log is replayed; empty otherwise.
    recovering: reuse::Replayed,
    /// Whether a checkpoint has begun and not ended.
    checkpoint_running: Running,
    counters: Counters,
}

/// An entry of the catalogue that lies on disk: its position in the catalogue's tree, and what it is.
#[derive(Clone, Debug)]
struct OnDisk {
    slot: u64,
    listed: Arc<Listed>,
}

/// Whether a checkpoint runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Running {
    Yes,
    No,
}

/// What a record did to the maps, and where the log stood behind it.
#[derive(Debug)]
struct Note {
    generation: Generation,
    position: LogPosition,
    sets: Vec<(PageId, crate::format::BlockPointer)>,
}

/// Counts since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commits, of all kinds.
    pub commits: u64,
    /// Commits whose pages went out with their record in one write.
    pub commits_in_log: u64,
    /// Checkpoints.
    pub checkpoints: u64,
    /// Bytes of pages written.
    pub page_bytes: u64,
    /// Bytes of records written.
    pub record_bytes: u64,
    /// Bytes of nodes, bitmap, catalogue, deferred list and superblocks written.
    pub checkpoint_bytes: u64,
    /// Bytes of pages moved.
    pub moved_bytes: u64,
    /// Syncs, durable writes included.
    pub syncs: u64,
    /// Writes of pages: one for each contiguous run.
    pub page_writes: u64,
    /// Damaged leaves of the bitmap, made anew from everything else.
    pub bitmap_leaves_made_anew: u64,
}

/// Where the store stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The store.
    pub id: StoreId,
    /// The newest generation.
    pub generation: Generation,
    /// The newest generation that is durable, with all before it.
    pub synced: Generation,
    /// The newest generation that no recovery can cut off.
    pub anchored: Generation,
    /// The newest durable checkpoint.
    pub checkpoint: CheckpointNumber,
    /// The generation it folds.
    pub folded: Generation,
    /// Blocks of the file.
    pub blocks_total: u64,
    /// Blocks that are free now.
    pub blocks_free: u64,
    /// Dead extents that may not be used yet.
    pub deferred_extents: u64,
    /// Blocks of log segments, spare ones included.
    pub log_blocks: u64,
    /// Wholly free segments.
    pub segments_free: u64,
}

impl Store {
    /// What reads and writes the disk.
    pub fn medium(&self) -> &Arc<Medium> {
        &self.medium
    }

    /// What reads the trees.
    pub fn nodes(&self) -> &Arc<Nodes> {
        &self.nodes
    }

    /// The published state, which readers hold without asking the store.
    pub fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// The newest committed state.
    pub fn state(&self) -> Arc<State> {
        self.published.state()
    }

    /// The newest generation that is durable, with all before it.
    pub fn synced(&self) -> Generation {
        self.synced
    }

    /// How far the log has grown since the last fold, in percent of the length at which a checkpoint is due.
    pub fn checkpoint_lag_percent(&self) -> u64 {
        self.log_blocks.saturating_mul(100) / self.checkpoint_due_blocks().max(1)
    }

    /// The incarnation of this open.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The newest superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.folded
    }

    /// Counts since the store was opened.
    pub fn counters(&self) -> Counters {
        Counters { bitmap_leaves_made_anew: self.bitmap_source.made_anew(), ..self.counters }
    }

    /// Where the store stands.
    pub fn status(&mut self) -> Status {
        let spares: u64 = self.log.spares().iter().map(|extent| u64::from(extent.blocks)).sum();
        Status {
            id: self.id,
            generation: self.state().generation,
            synced: self.synced,
            anchored: self.anchored,
            checkpoint: self.folded.checkpoint,
            folded: self.folded.generation,
            blocks_total: self.space.blocks_total(),
            blocks_free: self.space.blocks_free(),
            deferred_extents: self.deferred.len() as u64,
            log_blocks: self.log.blocks_in_use() + spares,
            segments_free: self.space.free_space().segments_free(),
        }
    }

    /// Every free extent: for tests and for pictures.
    ///
    /// # Errors
    /// Those of loading the bitmap.
    pub fn free_extents(&mut self) -> Result<Vec<Extent>> {
        self.space.free_extents()
    }

    /// Releases every dead extent that the rules let go (R2, R3).
    ///
    /// # Errors
    /// Those of the table of readers, and of loading the bitmap.
    pub fn release(&mut self) -> Result<()> {
        let Some(pins) = self.pins()? else { return Ok(()) };
        let conditions = Conditions {
            synced: if self.sabotaged_committed_for_synced() { Generation(u64::MAX) } else { self.synced },
            anchored: if self.sabotaged_ignore_anchored() { Generation(u64::MAX) } else { self.anchored },
            checkpoint: if self.sabotaged_ignore_replaced() {
                CheckpointNumber(u64::MAX)
            } else {
                self.folded.checkpoint
            },
            pins: &pins,
        };
        for entry in self.deferred.release(&conditions) {
            self.journal.released(entry.extent, reuse::death(&entry));
            self.give_back(entry.extent)?;
        }
        self.open_emptied()
    }

    /// What readers of other processes may show.
    fn published_state(&self) -> PublishedState {
        let (base, synced) = (self.folded.checkpoint, self.synced);
        PublishedState { base, synced, incarnation: self.incarnation, store: self.id }
    }

    /// Who holds which state, in this process and in others; `None` while somebody holds everything.
    fn pins(&self) -> Result<Option<Pins>> {
        self.readers.publish(self.published_state())?;
        let mut pins = self.published.pins();
        for reader in self.readers.pins()? {
            match reader.pinned {
                process::Pinned::Everything => return Ok(None),
                process::Pinned::From { base, generation } => pins.add_from(base, generation),
                process::Pinned::State { base, generation } => pins.add(base, generation),
            }
        }
        Ok(Some(pins))
    }

    /// Makes blocks free in memory; those in a log segment only cease to hold a page.
    fn give_back(&mut self, extent: Extent) -> Result<()> {
        match self.log.segment_of(extent.start) {
            Some(segment) => {
                segment.set_pages(extent, crate::log::Hold::Nothing);
                Ok(())
            }
            None => self.space.release(extent),
        }
    }
}

/// Opens disks by whatever they are; kept here so that callers need not name the type.
pub type SharedDisk = Arc<dyn Disk>;
