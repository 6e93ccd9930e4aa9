//! Recovery: from whatever a power cut left to the newest committed state, and on from there.
//!
//! ```text
//!  newest valid superblock --> trees, lists --> follow the log --> verify and adopt the tail --> replay
//!        |  (damaged: the older slot, whose log is longer, gives the same state)                  |
//!        +--> evidence of a missing acknowledged commit: an error that names it      opening record, sync --> open
//! ```
//! - **V1** A record at or below the highest `synced_through` seen was durable: it is replayed as it is, and a bad page
//!   of it is that page's error. A record above is verified with its pages; the first that fails is a torn commit, and
//!   the log ends before it.
//! - **V2** If anything says that a generation was durable and it is not found, the open fails. Nothing is rolled back
//!   in silence.
//! - **V3** A read error is not a torn commit: it fails the open. (A later open might read what this one dropped.)
//! - **V4** *Adoption*: what is taken from the tail may lie in the cache of the system only, where an earlier failed sync
//!   left it. It is written again in place with the same bytes, an opening record with a new incarnation ends the log,
//!   and one sync covers all; only then is anything published.
//! - **V5** The cost is in proportion to the log: no leaf of the bitmap is read but for log segments, and of each page map
//!   one path, to see whether the newest checkpoint's is sound; so the older slot serves while it is there to serve.
//! - **V7** Both slots lead to the same state. Which one served is told in the report, and a checkpoint makes both good.
//! - **V6** What readers of other processes hold is asked before anything is released; one that reads a checkpoint
//!   newer than the one recovered fails the open.

use std::collections::VecDeque;
use std::sync::Arc;

use super::append::{Draft, RecordPages};
use super::apply::{Applied, Mode};
use super::body::load_body;
use super::create::{FileState, file_state};
use super::leaves::{BitmapSource, log_start};
use super::load::{Loaded, Superblocks, check_usable, load, no_superblock, read_superblocks};
use super::reuse::{Deferred, Replayed};
use super::settings::GROWTH_BLOCKS_LIMIT;
use super::tail::{missing, read_tail};
use super::{Counters, Durability, Entropy, Medium, Published, Running, Settings, State, Store};
use crate::disk::{AlignedBuffer, Disk};
use crate::error::{Error, Result, Structure};
use crate::format::{RecordFlags, SegmentReference, slot_blocks};
use crate::id::{BLOCK_BYTES, BLOCK_LENGTH, Block, Extent, Generation, Incarnation};
use crate::log::{FoundRecord, Hold, Log, Placement, Scanner, Segment, Which};
use crate::map::{Nodes, Tree};
use crate::process::{PinTable, Pinned};
use crate::space::{LEAF_BLOCKS, LeafSource, LeafState, Space};

/// What an open found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// The generation that the superblock folded.
    pub folded: Generation,
    /// Records replayed on top of it.
    pub records_replayed: u64,
    /// Among them, records of the unsynced tail, which were verified with their pages and written again.
    pub records_adopted: u64,
    /// The first commit that was cut off because it was torn, if one could be seen.
    pub cut: Option<Generation>,
    /// Whether the newest superblock, or what it leads to, was damaged and the older slot served.
    pub fell_back: bool,
    /// Damaged leaves of the bitmap that the open needed, and made anew from everything else.
    pub bitmap_leaves_made_anew: u64,
    /// Copies of superblocks that were damaged and have been written again.
    pub copies_repaired: u32,
    /// The generation of the opening record.
    pub opened: Generation,
}

/// The log after a superblock.
struct FoundLog {
    records: Vec<FoundRecord>,
    /// The highest generation that anything says to be durable.
    durable: Generation,
    /// The highest that a record says to be.
    said: Generation,
    cut: Option<Generation>,
}

impl Store {
    /// Opens a store for writing, recovering what a crash left.
    ///
    /// **Durability**: what is published when this returned is durable.
    ///
    /// # Errors
    /// `NotAStore`, `IncompleteCreate`, `UnsupportedVersion`, `UnsupportedFeatures`, `WrongApplication`;
    /// `Corrupt` if acknowledged data is damaged or missing; `Io`; `NoSpace` if not even the opening record fits.
    pub fn open(
        disk: Arc<dyn Disk>,
        readers: Arc<dyn PinTable>,
        settings: Settings,
        entropy: Box<dyn Entropy>,
    ) -> Result<(Self, RecoveryReport)> {
        settings.check()?;
        match file_state(disk.as_ref())? {
            FileState::Foreign => return Err(Error::NotAStore { path: disk.path().into() }),
            FileState::Incomplete => return Err(Error::IncompleteCreate { path: disk.path().into() }),
            FileState::Store => {}
        }
        let medium = Arc::new(Medium::new(disk));
        let superblocks = read_superblocks(&medium)?;
        check_usable(&medium, &superblocks.slots[0], &settings)?;
        let (mut store, log, fell_back) = Self::stand_on_any(&medium, &superblocks, &readers, settings, entropy)?;
        refuse_readers_ahead(&store, fell_back)?;
        let folded = store.folded.generation;
        let mut report = RecoveryReport { folded, fell_back, cut: log.cut, ..RecoveryReport::default() };
        store.replay(log, &mut report)?;
        store.restore_length()?;
        store.adopt_superblock(&superblocks, &mut report)?;
        store.append_opening_record(&mut report)?;
        report.bitmap_leaves_made_anew = store.bitmap_source.made_anew();
        if superblocks.slots.len() < 2 || fell_back || report.bitmap_leaves_made_anew > 0 {
            // Both slots should be good, and lead to what is good. If there is no space for that, one has to do.
            match store.checkpoint() {
                Err(error) if error.is_no_space() => {}
                other => drop(other?),
            }
        }
        #[cfg(feature = "tracing")]
        tracing::info!(?report, "opened");
        Ok((store, report))
    }

    pub(super) fn set_bitmap_source(&self, tree: Tree) {
        self.bitmap_source.set(self.folded.clone(), tree);
    }

    /// Stands on the newest slot, and follows the log from there. Where a tree is damaged, the older slot is tried: its
    /// log is longer, and leads to the same state. Where the older one serves no better, what an open does not need may
    /// be damaged, and is the error of whoever meets it. Says whether not the newest superblock serves.
    fn stand_on_any(
        medium: &Arc<Medium>,
        superblocks: &Superblocks,
        readers: &Arc<dyn PinTable>,
        settings: Settings,
        mut entropy: Box<dyn Entropy>,
    ) -> Result<(Self, FoundLog, bool)> {
        let slots = &superblocks.slots;
        let newest = &slots[0];
        // Without its slot's good copies the older one serves; that is a fall-back too.
        let alone = slots.len() < 2 && newest.checkpoint.0 > 1;
        let first_look = slots.iter().enumerate().map(|(index, slot)| (slot, slots.get(1 - index)));
        let second_look = slots.iter().map(|slot| (slot, None)).filter(|_| slots.len() > 1);
        let mut damage = None;
        for (slot, instead) in first_look.chain(second_look) {
            let folded_before = slots
                .iter()
                .find(|other| other.checkpoint != slot.checkpoint)
                .map_or(Generation(0), |other| other.generation.min(slot.generation));
            let nodes = Arc::new(Nodes::new(Arc::clone(medium.disk()), slot.store, settings.cached_nodes));
            let loaded = load(&nodes, slot).and_then(|loaded| {
                instead.map_or(Ok(()), |other| loaded.look_deeper(other))?;
                Ok(loaded)
            });
            let loaded = match loaded {
                Err(error @ Error::Corrupt(_)) => {
                    damage.get_or_insert(error);
                    continue;
                }
                other => other?,
            };
            let (medium, readers) = (Arc::clone(medium), Arc::clone(readers));
            let mut store = Self::from_loaded(medium, readers, settings.clone(), entropy, loaded, folded_before)?;
            match store.list_segments().and_then(|()| store.follow_log(newest.generation)) {
                Ok(log) => return Ok((store, log, alone || slot.checkpoint != newest.checkpoint)),
                // A log that does not lead where it must is no reason to try the older slot, whose log is the same.
                Err(Error::Corrupt(corruption))
                    if instead.is_some()
                        && (corruption.structure == Structure::Bitmap || slot.checkpoint != newest.checkpoint) =>
                {
                    damage.get_or_insert(Error::Corrupt(corruption));
                    entropy = store.entropy;
                }
                Err(error) => return Err(damage.unwrap_or(error)),
            }
        }
        Err(damage.unwrap_or_else(|| no_superblock(medium)))
    }

    /// A store that stands at the fold of the superblock; nothing is replayed yet.
    fn from_loaded(
        medium: Arc<Medium>,
        readers: Arc<dyn PinTable>,
        settings: Settings,
        mut entropy: Box<dyn Entropy>,
        loaded: Loaded,
        folded_before: Generation,
    ) -> Result<Self> {
        let superblock = loaded.superblock;
        let file_blocks = medium.length_bytes()? / BLOCK_BYTES;
        // Memory is set aside for what is kept account of, and a long file costs nobody anything. What lies further on
        // comes when a record mentions it, or when the file would grow.
        let blocks_total = file_blocks.min(superblock.blocks_total + GROWTH_BLOCKS_LIMIT);
        let leaves_known = superblock.blocks_total.div_ceil(LEAF_BLOCKS.into());
        let leaves = (0..leaves_known).map(|_| LeafState::Stored);
        let free = superblock.blocks_free + blocks_total.saturating_sub(superblock.blocks_total);
        let state = State::of_superblock(&superblock, loaded.listed);
        let published = Arc::new(Published::new(state));
        let bitmap_source =
            BitmapSource::new(&medium, &loaded.nodes, &published, superblock.clone(), loaded.bitmap.clone());
        let source: Arc<dyn LeafSource + Send + Sync> = Arc::clone(&bitmap_source) as _;
        let strategy = (settings.strategy)();
        let space = Space::from_persisted(blocks_total, settings.segment_blocks, strategy, leaves, source, free)?;
        Ok(Self {
            bitmap_source,
            nodes: loaded.nodes,
            readers,
            published,
            incarnation: Incarnation(entropy.draw()?),
            settings,
            entropy,
            id: superblock.store,
            space,
            log: Log::new(Vec::new(), 0, superblock.log_offset, superblock.log_seal, Vec::new()),
            deferred: Deferred::default(),
            journal: Default::default(),
            notes: VecDeque::new(),
            staging: Default::default(),
            stored_pages: None,
            publish_hook: None,
            reservations: Default::default(),
            closed: VecDeque::new(),
            growing: None,
            bodies: Vec::new(),
            synced: superblock.generation,
            anchored: superblock.generation,
            recorded: superblock.generation,
            synced_state: None,
            stale_state: None,
            // Whatever an earlier writer left in the system's cache is unsynced, for all we know.
            unsynced_bytes: 1,
            late_error: None,
            folded_before,
            bitmap: loaded.bitmap,
            catalogue: loaded.catalogue,
            deferred_tree: loaded.deferred_tree,
            on_disk: loaded.on_disk,
            next_catalogue_id: superblock.next_catalogue_id,
            dirty_nodes: 0,
            log_blocks: 0,
            checkpoint_running: Running::No,
            counters: Counters::default(),
            folded: superblock,
            medium,
            recovering: loaded.replayed,
        })
    }

    /// Takes the superblock's segments out of the free space, but for the pages that lie in them.
    fn list_segments(&mut self) -> Result<()> {
        let current = self.folded.log_segment as usize;
        let references = self.folded.segments.clone();
        let mut segments = Vec::new();
        let mut spares = Vec::new();
        for (index, reference) in references.into_iter().enumerate() {
            let segment = self.masked(reference)?;
            match reference.salt {
                0 if index > current => spares.push(reference.extent),
                _ => segments.push(segment),
            }
        }
        for segment in segments.iter_mut().take(current + 1) {
            segment.last = self.folded.generation;
        }
        let (offset, seal) = (self.folded.log_offset, self.folded.log_seal);
        self.log = Log::new(segments, current, offset, seal, spares);
        Ok(())
    }

    fn masked(&mut self, reference: SegmentReference) -> Result<Segment> {
        let mut segment = Segment::new(reference);
        let extent = reference.extent;
        self.cover(extent)?;
        let mut from = extent.start.0;
        while from < extent.end().0 {
            let leaf = from / u64::from(LEAF_BLOCKS);
            let until = extent.end().0.min((leaf + 1) * u64::from(LEAF_BLOCKS));
            let bits = self.bitmap_source.load(leaf)?;
            for block in from..until {
                let index = block % u64::from(LEAF_BLOCKS);
                if bits[(index / 8) as usize] >> (index % 8) & 1 == 1 {
                    segment.set_pages(Extent::new(block, 1), Hold::Page);
                }
            }
            from = until;
        }
        for run in segment.blocks_without_pages() {
            self.space.take(run).map_err(|error| self.contradiction(error))?;
        }
        Ok(segment)
    }

    /// Follows the log to its end, and decides where that is (V1, V2).
    fn follow_log(&mut self, newest_folded: Generation) -> Result<FoundLog> {
        let mut scanner = Scanner::new(Arc::clone(self.medium.disk()), self.id, log_start(&self.folded))?;
        let mut records: Vec<FoundRecord> = Vec::new();
        loop {
            match scanner.next_record() {
                Ok(Some(record)) => records.push(record),
                Ok(None) => break,
                Err(_) if self.sabotaged_read_error_is_tear() => break,
                Err(error) => return Err(error),
            }
        }
        let last = records.last().map_or(self.folded.generation, |record| record.header.generation);
        let said = records.iter().map(|record| record.header.synced_through).max().unwrap_or_default();
        let mut durable = newest_folded.max(said);
        if self.sabotaged_ignore_synced_through() {
            durable = self.folded.generation;
        } else {
            durable = durable.max(scanner.evidence_beyond()?.unwrap_or_default());
        }
        if durable > last {
            return Err(self.missing(last));
        }
        let mut cut = None;
        let mut kept = Vec::with_capacity(records.len());
        // What bodies and unsynced pages take is disjoint (R2, R4): all of it together is no more than the file.
        let mut left = self.medium.length_bytes()?;
        for mut record in records {
            load_body(&self.medium, &mut record, &mut left)?;
            if record.header.generation > durable && !self.adopt(&record, &mut left)? {
                cut = Some(record.header.generation);
                break;
            }
            kept.push(record);
        }
        Ok(FoundLog { records: kept, durable, said, cut })
    }

    fn missing(&self, last: Generation) -> Error {
        missing(&self.medium, self.log.position().segment, last)
    }

    /// Verifies a record of the tail with its pages, and writes both again where they lie (V4). `false`: it is torn.
    fn adopt(&mut self, record: &FoundRecord, left: &mut u64) -> Result<bool> {
        let tail = read_tail(&self.medium, record, left, |error| match self.sabotaged_read_error_is_tear() {
            true => Ok(()),
            false => Err(error),
        })?;
        let Some(tail) = tail else { return Ok(self.sabotaged_trust_tail()) };
        if !tail.seal_fits && !self.sabotaged_trust_tail() {
            return Ok(false);
        }
        if self.sabotaged_no_adoption() {
            return Ok(true);
        }
        for (address, bytes) in &tail.pages {
            self.medium.write_vital(*address, bytes)?;
        }
        let mut bytes = AlignedBuffer::zeroed(record.bytes.len());
        bytes.copy_from_slice(&record.bytes);
        self.medium.write_vital(record.identity.address, &bytes)?;
        Ok(true)
    }

    fn replay(&mut self, log: FoundLog, report: &mut RecoveryReport) -> Result<()> {
        let mut replayed = std::mem::take(&mut self.recovering);
        for record in &log.records {
            self.replay_record(record, &mut replayed)?;
            report.records_replayed += 1;
            report.records_adopted += u64::from(record.header.generation > log.durable);
        }
        self.deferred = Deferred::new(replayed.into_entries());
        self.synced = log.durable;
        // The newest superblock may yet be lost; the opening record will say what it says.
        self.anchored = log.said.max(self.folded_before);
        Ok(())
    }

    fn replay_record(&mut self, record: &FoundRecord, replayed: &mut Replayed) -> Result<()> {
        let header = &record.header;
        let current = self.log.position().segment == record.segment.extent.start;
        let which = if current { Which::Current } else { Which::Next };
        let placement = Placement { address: record.identity.address, salt: record.identity.salt, segment: which };
        self.log.appended(placement, header.run_blocks, header.generation, header.seal);
        self.log_blocks += u64::from(header.run_blocks);
        self.recorded = header.synced_through;
        if let Some(next) = header.next_segment.filter(|next| self.log.announced() != Some(*next)) {
            let extent = next.extent;
            for part in self.take_segment_again(extent, replayed)? {
                self.journal.released(part, header.generation);
            }
            self.log.announce(next);
        }
        self.permit_replayed(&record.entries);
        let applied = Applied {
            generation: header.generation,
            incarnation: header.incarnation,
            entries: &record.entries,
            blob: &record.blob,
        };
        self.apply(&applied, Mode::Replay(replayed))
    }

    /// Replay: the blocks become log. Returns those that the bitmap on disk still has in use.
    fn take_segment_again(&mut self, extent: Extent, replayed: &mut Replayed) -> Result<Vec<Extent>> {
        let cancelled = replayed.overlapping(extent);
        self.take_again(extent, replayed)?;
        Ok(cancelled)
    }

    /// Writes both copies of the superblock again that this open stands on: one may be damaged, and both may lie in the
    /// system's cache only. Where the bytes are the same, a power cut in between harms neither; where replay has added a
    /// feature (Z5), one copy is durable before the other, if that is the only good one, is touched.
    fn adopt_superblock(&mut self, superblocks: &Superblocks, report: &mut RecoveryReport) -> Result<()> {
        let mut block = AlignedBuffer::zeroed(BLOCK_LENGTH);
        block.copy_from_slice(&self.folded.encode());
        let is_as_it_was = superblocks.slots.contains(&self.folded);
        let mut copies = slot_blocks(self.folded.checkpoint).map(Block);
        copies.sort_by_key(|copy| !superblocks.damaged.contains(copy));
        for copy in copies {
            report.copies_repaired += u32::from(superblocks.damaged.contains(&copy));
            self.medium.write_vital(copy, &block)?;
            if !is_as_it_was {
                self.medium.sync()?;
            }
        }
        Ok(())
    }

    /// An empty commit with the new incarnation: it ends whatever torn record stands at the end of the log, and its
    /// sync covers everything adopted (V4).
    fn append_opening_record(&mut self, report: &mut RecoveryReport) -> Result<()> {
        let last = self.state().generation;
        let generation = last.next().ok_or(Error::Exhausted { counter: "generation" })?;
        if self.sabotaged_no_opening_record() {
            self.medium.sync()?;
            self.unsynced_bytes = 0;
            self.note_synced(last);
            return Ok(());
        }
        let draft = Draft { flags: RecordFlags::OPENING, ..Draft::default() };
        let plan = self.plan_log(1)?;
        let (incarnation, entries, blob) = (self.incarnation, &[][..], &[][..]);
        self.append(&draft, plan, RecordPages::default(), generation, Durability::Durable)?;
        self.apply(&Applied { generation, incarnation, entries, blob }, Mode::Commit)?;
        report.opened = generation;
        Ok(())
    }
}

/// A reader that an earlier writer left may stand on a checkpoint that is lost. This writer does not know that
/// checkpoint's nodes, and would use their blocks again (V6).
fn refuse_readers_ahead(store: &Store, fell_back: bool) -> Result<()> {
    let recovered = store.folded.checkpoint;
    for reader in store.readers.pins()? {
        let base = match reader.pinned {
            Pinned::State { base, .. } if base > recovered => Some(base),
            Pinned::Everything | Pinned::From { .. } if fell_back => None,
            _ => continue,
        };
        let path = store.medium.path().into();
        return Err(Error::ReaderAhead { path, holder: reader.holder, base, recovered });
    }
    Ok(())
}
