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
//! - **V5** The cost is in proportion to the log: no leaf of a map or of the bitmap is read but for log segments.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use super::append::Draft;
use super::apply::{Applied, Mode};
use super::commit::stored_pointers;
use super::create::{FileState, file_state};
use super::reuse::{Deferred, Replayed};
use super::state::Listed;
use super::{Counters, Durability, Entropy, Medium, OnDisk, Published, Running, Settings, State, Store};
use crate::disk::{AlignedBuffer, Disk};
use crate::error::{Corruption, Error, Fault, Result, Structure};
use crate::format::{
    BlockPointer, CatalogueEntry, DEFERRED_PER_BLOCK, Entry, FEATURES_INCOMPATIBLE_KNOWN,
    FEATURES_READ_COMPATIBLE_KNOWN, NodeKind, RecordFlags, SUPERBLOCK_BLOCKS, SealHasher, SegmentReference, Superblock,
    VERSION, checksum, decode_deferred, decode_entries, sealed_part, slot_blocks,
};
use crate::id::{BLOCK_BYTES, BLOCK_LENGTH, Block, Extent, Generation, Incarnation, SizeClass};
use crate::log::{FoundRecord, Hold, Log, LogStart, Placement, Scanner, Segment, Which};
use crate::map::{Nodes, Shape, Tree};
use crate::process::PinTable;
use crate::space::{LEAF_BLOCKS, LeafBytes, LeafSource, LeafState, Space};

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
    /// Copies of superblocks that were damaged and have been written again.
    pub copies_repaired: u32,
    /// The generation of the opening record.
    pub opened: Generation,
}

/// Leaves of the bitmap, by way of the newest checkpoint's tree. A leaf that is not in memory has not changed since
/// the store was opened, so every later checkpoint's tree has it unchanged.
#[derive(Debug)]
pub(super) struct BitmapSource {
    nodes: Arc<Nodes>,
    tree: Mutex<Tree>,
}

impl BitmapSource {
    pub(super) fn new(nodes: &Arc<Nodes>, tree: Tree) -> Arc<Self> {
        Arc::new(Self { nodes: Arc::clone(nodes), tree: Mutex::new(tree) })
    }

    fn set(&self, tree: Tree) {
        *self.tree.lock().unwrap_or_else(PoisonError::into_inner) = tree;
    }
}

impl LeafSource for BitmapSource {
    fn load(&self, leaf: u64) -> Result<Box<LeafBytes>> {
        let pointer = {
            let tree = self.tree.lock().unwrap_or_else(PoisonError::into_inner);
            tree.get(&self.nodes, leaf)?
        };
        match pointer.stored_length {
            0 => Ok(Box::new([0; BLOCK_LENGTH])),
            _ => self.nodes.read_block(&pointer, Structure::Bitmap, None),
        }
    }
}

/// The superblocks of a file: the best copy of each slot, newest first, and the copies that are no good.
struct Superblocks {
    slots: Vec<Superblock>,
    damaged: Vec<Block>,
}

/// What a superblock leads to, as far as an open needs it.
struct Loaded {
    superblock: Superblock,
    nodes: Arc<Nodes>,
    bitmap: Tree,
    catalogue: Tree,
    on_disk: BTreeMap<u64, OnDisk>,
    listed: Vec<Arc<Listed>>,
    deferred_tree: Tree,
    replayed: Replayed,
}

/// The log after a superblock.
struct FoundLog {
    records: Vec<FoundRecord>,
    /// The highest generation that anything says to be durable.
    durable: Generation,
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
        let newest = &superblocks.slots[0];
        check_usable(&medium, newest, &settings)?;
        let (loaded, fell_back) = load_any(&medium, &superblocks, &settings)?;
        let folded_before = superblocks
            .slots
            .iter()
            .find(|slot| slot.checkpoint != loaded.superblock.checkpoint)
            .map_or(Generation(0), |slot| slot.generation.min(loaded.superblock.generation));
        let other_slot_is_missing = superblocks.slots.len() < 2;
        let mut report =
            RecoveryReport { folded: loaded.superblock.generation, fell_back, ..RecoveryReport::default() };

        let mut store = Self::from_loaded(medium, readers, settings, entropy, loaded, folded_before)?;
        let log = store.follow_log(newest.generation)?;
        report.cut = log.cut;
        store.replay(log, &mut report)?;
        store.adopt_superblock(&superblocks, &mut report)?;
        store.append_opening_record(&mut report)?;
        if other_slot_is_missing || fell_back {
            // Both slots should be good. If there is no space for that, one has to do.
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
        self.bitmap_source.set(tree);
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
        let leaves_known = superblock.blocks_total.div_ceil(LEAF_BLOCKS.into());
        let leaves = (0..file_blocks.div_ceil(LEAF_BLOCKS.into()))
            .map(|leaf| if leaf < leaves_known { LeafState::Stored } else { LeafState::Empty })
            .collect();
        let bitmap_source = BitmapSource::new(&loaded.nodes, loaded.bitmap.clone());
        let source: Arc<dyn LeafSource + Send + Sync> = Arc::clone(&bitmap_source) as _;
        let free = superblock.blocks_free + (file_blocks - superblock.blocks_total);
        let strategy = (settings.strategy)();
        let space = Space::from_persisted(file_blocks, settings.segment_blocks, strategy, leaves, source, free);
        let maps = Box::new(std::array::from_fn(|index| {
            Tree::from_root(Shape::map(SizeClass::from_index(index)), superblock.maps[index])
        }));
        let state = State {
            generation: superblock.generation,
            incarnation: superblock.incarnation,
            base: superblock.checkpoint,
            maps,
            header: superblock.header.as_slice().into(),
            catalogue: Arc::new(loaded.listed),
        };
        let mut store = Self {
            bitmap_source,
            nodes: loaded.nodes,
            readers,
            published: Arc::new(Published::new(state)),
            incarnation: Incarnation(entropy.draw()?),
            settings,
            entropy,
            id: superblock.store,
            space,
            log: Log::new(Vec::new(), 0, superblock.log_offset, superblock.log_seal, Vec::new()),
            deferred: Deferred::default(),
            journal: Default::default(),
            notes: VecDeque::new(),
            staging: AlignedBuffer::zeroed(0),
            stored_pages: None,
            publish_hook: None,
            reservations: Default::default(),
            closed: Vec::new(),
            bodies: Vec::new(),
            synced: superblock.generation,
            anchored: superblock.generation,
            recorded: superblock.generation,
            synced_state: None,
            stale_state: None,
            // Whatever an earlier writer left in the system's cache is unsynced, for all we know.
            unsynced_bytes: 1,
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
        };
        store.list_segments()?;
        Ok(store)
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
        let index = self.folded.log_segment as usize;
        let start = LogStart {
            generation: self.folded.generation,
            seal: self.folded.log_seal,
            segment: self.folded.segments[index],
            offset: self.folded.log_offset,
            next: self.folded.segments.get(index + 1).copied().filter(|segment| segment.salt != 0),
        };
        let mut scanner = Scanner::new(Arc::clone(self.medium.disk()), self.id, start)?;
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
        let mut durable =
            records.iter().map(|record| record.header.synced_through).fold(newest_folded, Generation::max);
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
            self.load_body(&mut record, &mut left)?;
            if record.header.generation > durable && !self.adopt(&record, &mut left)? {
                cut = Some(record.header.generation);
                break;
            }
            kept.push(record);
        }
        Ok(FoundLog { records: kept, durable, cut })
    }

    fn missing(&self, last: Generation) -> Error {
        let missing = Generation(last.0 + 1);
        Corruption {
            path: self.medium.path().into(),
            structure: Structure::Record,
            page: None,
            offset: self.log.position().segment.offset_bytes(),
            fault: Fault::MissingGeneration { missing, last },
        }
        .into()
    }

    /// Reads the entries that lie outside of the log. They were durable before the record was written.
    fn load_body(&self, record: &mut FoundRecord, left: &mut u64) -> Result<()> {
        if !record.header.flags.contains(RecordFlags::EXTERNAL_BODY) {
            return Ok(());
        }
        let damaged = |offset: u64, fault| -> Error {
            let path = self.medium.path().into();
            Corruption { path, structure: Structure::Record, page: None, offset, fault }.into()
        };
        let mut hasher = SealHasher::new(0);
        let mut entries = Vec::new();
        for entry in &record.entries {
            let Entry::Body { new } = entry else { continue };
            self.spend(left, new)?;
            let offset = new.address.offset_bytes();
            let mut bytes = vec![0; new.stored_length as usize];
            self.medium.read(new.address, &mut bytes)?;
            let found = checksum(&bytes);
            if found != new.checksum {
                return Err(damaged(offset, Fault::Checksum { expected: new.checksum, found }));
            }
            hasher.update(&bytes);
            let decoded = decode_entries(&bytes, record.header.blob_length.into());
            entries.extend(decoded.map_err(|fault| damaged(offset, fault))?);
        }
        if hasher.finish() != record.header.body_seal {
            return Err(damaged(record.identity.address.offset_bytes(), Fault::Seal));
        }
        record.entries.retain(|entry| matches!(entry, Entry::Body { .. }));
        record.entries.extend(entries);
        Ok(())
    }

    /// Takes what a pointer stores off what the file can hold besides: hostile records name one extent again and again.
    fn spend(&self, left: &mut u64, pointer: &BlockPointer) -> Result<()> {
        let bytes = left.checked_sub(pointer.stored_length.into());
        *left = bytes.ok_or_else(|| self.record_contradicts(pointer.extent()))?;
        Ok(())
    }

    /// Verifies a record of the tail with its pages, and writes both again where they lie (V4). `false`: it is torn.
    fn adopt(&mut self, record: &FoundRecord, left: &mut u64) -> Result<bool> {
        let mut hasher = SealHasher::new(record.identity.salt);
        hasher.update(sealed_part(&record.bytes));
        let mut pages = Vec::new();
        if !record.header.flags.contains(RecordFlags::DATA_SYNCED) {
            for pointer in stored_pointers(&record.entries) {
                let Some(bytes) = self.read_stored(pointer)? else { return Ok(self.sabotaged_trust_tail()) };
                self.spend(left, pointer)?;
                hasher.update(&bytes[..pointer.stored_length as usize]);
                pages.push((pointer.address, bytes));
            }
        }
        if hasher.finish() != record.header.seal && !self.sabotaged_trust_tail() {
            return Ok(false);
        }
        if self.sabotaged_no_adoption() {
            return Ok(true);
        }
        for (address, bytes) in &pages {
            self.medium.write_vital(*address, bytes)?;
        }
        let mut bytes = AlignedBuffer::zeroed(record.bytes.len());
        bytes.copy_from_slice(&record.bytes);
        self.medium.write_vital(record.identity.address, &bytes)?;
        Ok(true)
    }

    /// The blocks that a pointer stores; `None` if they do not sum to what it says.
    fn read_stored(&self, pointer: &BlockPointer) -> Result<Option<AlignedBuffer>> {
        let extent = pointer.extent();
        let file_blocks = self.medium.length_bytes()? / BLOCK_BYTES;
        if extent.end().0 > file_blocks {
            // The file did not grow in time.
            return Ok(None);
        }
        let mut bytes = AlignedBuffer::zeroed(extent.blocks as usize * BLOCK_LENGTH);
        match self.medium.read(extent.start, &mut bytes) {
            Err(_) if self.sabotaged_read_error_is_tear() => return Ok(None),
            other => other?,
        }
        let fits = checksum(&bytes[..pointer.stored_length as usize]) == pointer.checksum;
        Ok(fits.then_some(bytes))
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
        self.anchored = log.durable;
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
    /// system's cache only. The bytes are the same, so a power cut in between harms neither.
    fn adopt_superblock(&mut self, superblocks: &Superblocks, report: &mut RecoveryReport) -> Result<()> {
        let mut block = AlignedBuffer::zeroed(BLOCK_LENGTH);
        block.copy_from_slice(&self.folded.encode());
        for copy in slot_blocks(self.folded.checkpoint) {
            report.copies_repaired += u32::from(superblocks.damaged.contains(&Block(copy)));
            self.medium.write_vital(Block(copy), &block)?;
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
        self.append(&draft, plan, &[], std::iter::empty(), generation, Durability::Durable)?;
        self.apply(&Applied { generation, incarnation, entries, blob }, Mode::Commit)?;
        report.opened = generation;
        Ok(())
    }
}

/// Reads all four copies. A copy that cannot be read counts as damaged: the other copy, or the older slot and its
/// longer log, lead to the same state.
fn read_superblocks(medium: &Medium) -> Result<Superblocks> {
    let file_bytes = medium.length_bytes()?;
    let mut slots: Vec<Superblock> = Vec::new();
    let mut damaged = Vec::new();
    let mut first_error = None;
    for copy in SUPERBLOCK_BLOCKS {
        let mut bytes = Box::new([0; BLOCK_LENGTH]);
        if (copy + 1) * BLOCK_BYTES > file_bytes {
            damaged.push(Block(copy));
            continue;
        }
        let read = medium.read(Block(copy), &mut bytes[..]);
        let decoded = read.and_then(|()| {
            Superblock::decode(&bytes).map_err(|fault| {
                let (path, offset) = (medium.path().into(), copy * BLOCK_BYTES);
                Corruption { path, structure: Structure::Superblock, page: None, offset, fault }.into()
            })
        });
        match decoded {
            // A superblock in the other slot's place was misdirected.
            Ok(Some(superblock)) if slot_blocks(superblock.checkpoint).contains(&copy) => slots.push(superblock),
            Ok(_) => damaged.push(Block(copy)),
            Err(error) => {
                damaged.push(Block(copy));
                first_error.get_or_insert(error);
            }
        }
    }
    slots.sort_by_key(|slot| std::cmp::Reverse(slot.checkpoint));
    // Of two good copies of one slot the newer is the slot; the older was not written in time, and is damage.
    let mut best: Vec<Superblock> = Vec::new();
    for slot in slots {
        match best.iter().find(|better| better.checkpoint.0 % 2 == slot.checkpoint.0 % 2) {
            None => best.push(slot),
            Some(better) if better.checkpoint == slot.checkpoint => {}
            Some(better) => damaged.extend(slot_blocks(better.checkpoint).map(Block)),
        }
    }
    match (best.is_empty(), first_error) {
        (false, _) => Ok(Superblocks { slots: best, damaged }),
        (true, Some(error @ Error::Io { .. })) => Err(error),
        (true, _) => Err(Corruption {
            path: medium.path().into(),
            structure: Structure::Superblock,
            page: None,
            offset: SUPERBLOCK_BLOCKS[0] * BLOCK_BYTES,
            fault: Fault::NoSuperblock,
        }
        .into()),
    }
}

/// Whether this build, with these settings, may write the store.
fn check_usable(medium: &Medium, superblock: &Superblock, settings: &Settings) -> Result<()> {
    let path = medium.path().to_path_buf();
    if superblock.version != VERSION {
        return Err(Error::UnsupportedVersion { path, found: superblock.version, supported: VERSION });
    }
    let bits = superblock.features_incompatible & !FEATURES_INCOMPATIBLE_KNOWN
        | superblock.features_read_compatible & !FEATURES_READ_COMPATIBLE_KNOWN;
    if bits != 0 {
        return Err(Error::UnsupportedFeatures { path, bits });
    }
    if settings.application_id != 0 && settings.application_id != superblock.application_id {
        return Err(Error::WrongApplication {
            path,
            expected: settings.application_id,
            found: superblock.application_id,
        });
    }
    Ok(())
}

/// Loads what the newest superblock leads to; if that is damaged, what the older one leads to.
fn load_any(medium: &Medium, superblocks: &Superblocks, settings: &Settings) -> Result<(Loaded, bool)> {
    match load(medium, &superblocks.slots[0], settings) {
        Err(error @ Error::Corrupt(_)) => match superblocks.slots.get(1) {
            Some(older) => load(medium, older, settings).map(|loaded| (loaded, true)).map_err(|_| error),
            None => Err(error),
        },
        // Without its slot's good copies the older one serves; that is a fall-back too.
        other => other.map(|loaded| (loaded, superblocks.slots.len() < 2 && superblocks.slots[0].checkpoint.0 > 1)),
    }
}

fn load(medium: &Medium, superblock: &Superblock, settings: &Settings) -> Result<Loaded> {
    let file_bytes = medium.length_bytes()?;
    if superblock.blocks_total * BLOCK_BYTES > file_bytes {
        let path = medium.path().into();
        let fault = Fault::Truncated { file_bytes };
        let offset = superblock.blocks_total * BLOCK_BYTES;
        return Err(Corruption { path, structure: Structure::File, page: None, offset, fault }.into());
    }
    let nodes = Arc::new(Nodes::new(Arc::clone(medium.disk()), superblock.store, settings.cached_nodes));
    let tree = |kind, root| Tree::from_root(Shape::of(kind), root);
    let mut on_disk = BTreeMap::new();
    let mut listed = Vec::new();
    let catalogue = tree(NodeKind::Catalogue, superblock.catalogue);
    let mut position = 0;
    while let Some((slot, pointer)) = catalogue.next(&nodes, position)? {
        position = slot + 1;
        let bytes = nodes.read_block(&pointer, Structure::Catalogue, None)?;
        let entry = CatalogueEntry::decode(&bytes)
            .map_err(|fault| damaged(medium, Structure::Catalogue, pointer.address, fault))?;
        let entry = Arc::new(Listed { maps: maps_of(&entry), entry });
        let id = entry.entry.id;
        if on_disk.insert(id, OnDisk { slot, listed: Arc::clone(&entry) }).is_some()
            || id >= superblock.next_catalogue_id
        {
            let fault = Fault::Field { field: "catalogue id", expected: superblock.next_catalogue_id, found: id };
            return Err(damaged(medium, Structure::Catalogue, pointer.address, fault));
        }
        listed.push(entry);
    }
    listed.sort_by_key(|listed| listed.entry.id);

    let deferred_tree = tree(NodeKind::Deferred, superblock.deferred);
    let mut replayed = Replayed::default();
    let mut left = superblock.deferred_entries;
    for position in 0..deferred_tree.length() {
        let pointer = deferred_tree.get(&nodes, position)?;
        let bytes = nodes.read_block(&pointer, Structure::DeferredList, None)?;
        let count = left.min(DEFERRED_PER_BLOCK as u64);
        left -= count;
        let entries = decode_deferred(&bytes, count as usize)
            .map_err(|fault| damaged(medium, Structure::DeferredList, pointer.address, fault))?;
        for entry in entries {
            let end = entry.extent.end().0;
            if end > superblock.blocks_total {
                let fault = Fault::Field { field: "deferred extent", expected: superblock.blocks_total, found: end };
                return Err(damaged(medium, Structure::DeferredList, pointer.address, fault));
            }
            replayed
                .add(entry)
                .map_err(|_| damaged(medium, Structure::DeferredList, pointer.address, Fault::Overlap))?;
        }
    }
    if left != 0 {
        let fault = Fault::Field {
            field: "deferred entries",
            expected: superblock.deferred_entries - left,
            found: superblock.deferred_entries,
        };
        return Err(damaged(medium, Structure::DeferredList, Block(0), fault));
    }
    Ok(Loaded {
        bitmap: tree(NodeKind::Bitmap, superblock.bitmap),
        superblock: superblock.clone(),
        nodes,
        catalogue,
        on_disk,
        listed,
        deferred_tree,
        replayed,
    })
}

/// The page maps of a snapshot on disk; none for a bookmark.
fn maps_of(entry: &CatalogueEntry) -> Option<Box<super::Maps>> {
    (entry.kind == crate::format::EntryKind::Snapshot).then(|| {
        Box::new(std::array::from_fn(|index| {
            Tree::from_root(Shape::map(SizeClass::from_index(index)), entry.maps[index])
        }))
    })
}

fn damaged(medium: &Medium, structure: Structure, address: Block, fault: Fault) -> Error {
    let path = medium.path().into();
    Corruption { path, structure, page: None, offset: address.offset_bytes(), fault }.into()
}
