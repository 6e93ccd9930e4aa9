//! Creating a store, in place: birth block, sync; then a first and a second checkpoint, so that both slots are valid
//! before anybody is told that the store exists.
//!
//! However creation is cut short, what is left is either a store (from the first superblock on) or a file that
//! [`file_state`] knows for an incomplete creation, which may be created again. Nothing else is ever overwritten.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::leaves::BitmapSource;
use super::{Counters, Entropy, Medium, Published, Running, Settings, State, Store};
use crate::disk::{AlignedBuffer, Disk};
use crate::error::{Error, Result};
use crate::format::{
    BIRTH_BLOCK, BirthState, FIRST_FREE_BLOCK, NodeKind, SUPERBLOCK_BLOCKS, Seal, SegmentReference, Superblock,
    VERSION, birth_block, birth_state,
};
use crate::id::{BLOCK_BYTES, BLOCK_LENGTH, Block, CheckpointNumber, Extent, Generation, Incarnation, StoreId};
use crate::log::{Log, Segment};
use crate::map::{Nodes, Shape, Tree};
use crate::process::PinTable;
use crate::space::Space;

/// What a file is, as far as opening or creating a store goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileState {
    /// A store, or a damaged one.
    Store,
    /// Empty, or the remains of a creation that was cut short.
    Incomplete,
    /// Somebody else's.
    Foreign,
}

/// Looks at a file's first blocks.
///
/// # Errors
/// `Io`.
pub fn file_state(disk: &dyn Disk) -> Result<FileState> {
    let io = |operation, offset, source| Error::Io { operation, path: disk.path().into(), offset, source };
    let length = disk.length().map_err(|source| io("length", None, source))?;
    let mut head = vec![0; length.min(BLOCK_BYTES) as usize];
    disk.read_at(0, &mut head).map_err(|source| io("read", Some(0), source))?;
    let birth = birth_state(&head, length);
    if birth == BirthState::Torn {
        return Ok(FileState::Incomplete);
    }
    // The first checkpoint goes to slot 1. Until the second, slot 0 is zero; after it, never again.
    let mut valid = false;
    let mut slot_0_is_zero = true;
    for (index, block) in SUPERBLOCK_BLOCKS.into_iter().enumerate() {
        let mut bytes = [0; BLOCK_LENGTH];
        let offset = block * BLOCK_BYTES;
        let present = length.saturating_sub(offset).min(BLOCK_BYTES) as usize;
        // A copy that cannot be read is not zero, for all we know; the others may serve.
        let read = disk.read_at(offset, &mut bytes[..present]);
        valid |= read.is_ok() && matches!(Superblock::decode(&bytes), Ok(Some(_)));
        slot_0_is_zero &= index % 2 == 1 || (read.is_ok() && bytes.iter().all(|byte| *byte == 0));
    }
    Ok(match birth {
        // A store is one also with a damaged birth block, which nothing else depends on.
        BirthState::Foreign if !valid => FileState::Foreign,
        BirthState::Whole if !valid && slot_0_is_zero => FileState::Incomplete,
        _ => FileState::Store,
    })
}

impl Store {
    /// Creates a store on a disk that is empty or holds the remains of an incomplete creation.
    ///
    /// **Durability**: when this returned, the store exists whatever happens. (That the file's name does is for the
    /// caller, who knows the folder.)
    ///
    /// # Errors
    /// `AlreadyExists` if the file holds anything else; `InvalidOption`; `NoSpace`; `Io`. After a failure the file can
    /// be created again, until it is a store: one that failed once the first superblock may be in the file can only be
    /// opened ([`Store::open`]), and is empty. `create` says `AlreadyExists` of it then, since nothing tells it from
    /// somebody's. There is no failure after which a sound disk has neither.
    pub fn create(
        disk: Arc<dyn Disk>,
        readers: Arc<dyn PinTable>,
        settings: Settings,
        mut entropy: Box<dyn Entropy>,
    ) -> Result<Self> {
        settings.check()?;
        if file_state(disk.as_ref())? != FileState::Incomplete {
            return Err(Error::AlreadyExists { path: disk.path().into() });
        }
        let medium = Arc::new(Medium::new(disk));
        write_birth(&medium)?;

        let mut id = [0; 16];
        id[..8].copy_from_slice(&entropy.draw()?.to_le_bytes());
        id[8..].copy_from_slice(&entropy.draw()?.to_le_bytes());
        let id = StoreId(id);
        let incarnation = Incarnation(entropy.draw()?);
        let segment_blocks = settings.log_segment_blocks;
        let mut segments = Vec::new();
        for number in 0..2 {
            let start = FIRST_FREE_BLOCK + number * u64::from(segment_blocks);
            let salt = entropy.draw()?.max(1);
            segments.push(SegmentReference { extent: Extent::new(start, segment_blocks), salt });
        }
        let body = FIRST_FREE_BLOCK + 2 * u64::from(segment_blocks);
        let blocks_total = body + settings.growth_blocks.max(16);
        if blocks_total > settings.blocks_limit {
            let path = medium.path().into();
            return Err(Error::NoSpace { path, needed_blocks: blocks_total, free_blocks: settings.blocks_limit });
        }
        medium.grow(Block(body), blocks_total - body, settings.new_space)?;
        let zeros = AlignedBuffer::zeroed(segment_blocks as usize * BLOCK_LENGTH);
        for segment in &segments {
            medium.write(segment.extent.start, &zeros)?;
        }

        let reserved = Extent::new(0, FIRST_FREE_BLOCK as u32);
        let mut space = Space::new(blocks_total, settings.segment_blocks, (settings.strategy)());
        space.take(reserved)?;
        for segment in &segments {
            space.take(segment.extent)?;
        }
        let nodes = Arc::new(Nodes::new(Arc::clone(medium.disk()), id, settings.cached_nodes));
        let tree = |kind| Tree::empty(Shape::of(kind));
        let folded = Superblock {
            version: VERSION,
            features_incompatible: 0,
            features_read_compatible: 0,
            store: id,
            application_id: settings.application_id,
            application_version: settings.application_version,
            checkpoint: CheckpointNumber(0),
            generation: Generation(0),
            incarnation,
            blocks_total,
            blocks_free: blocks_total,
            deferred_entries: 0,
            next_catalogue_id: 1,
            log_seal: Seal::default(),
            log_segment: 0,
            log_offset: 0,
            header: Vec::new(),
            bitmap: Default::default(),
            catalogue: Default::default(),
            deferred: Default::default(),
            maps: Default::default(),
            segments: segments.clone(),
        };
        let mut state = State::empty();
        state.incarnation = incarnation;
        let published = Arc::new(Published::new(state));
        let bitmap = tree(NodeKind::Bitmap);
        let mut store = Self {
            bitmap_source: BitmapSource::new(&medium, &nodes, &published, folded.clone(), bitmap.clone()),
            medium,
            nodes,
            readers,
            published,
            settings,
            entropy,
            id,
            incarnation,
            space,
            log: Log::new(segments.into_iter().map(Segment::new).collect(), 0, 0, Seal::default(), Vec::new()),
            deferred: Default::default(),
            journal: Default::default(),
            notes: VecDeque::new(),
            staging: Default::default(),
            stored_pages: None,
            publish_hook: None,
            reservations: Default::default(),
            closed: VecDeque::new(),
            growing: None,
            bodies: Vec::new(),
            synced: Generation(0),
            anchored: Generation(0),
            recorded: Generation(0),
            synced_state: None,
            stale_state: None,
            unsynced_bytes: 0,
            late_error: None,
            folded,
            folded_before: Generation(0),
            bitmap,
            catalogue: tree(NodeKind::Catalogue),
            deferred_tree: tree(NodeKind::Deferred),
            on_disk: BTreeMap::new(),
            next_catalogue_id: 1,
            dirty_nodes: 0,
            log_blocks: 0,
            recovering: Default::default(),
            checkpoint_running: Running::No,
            counters: Counters::default(),
        };
        store.journal.taken(reserved, Generation(0));
        store.checkpoint()?;
        store.checkpoint()?;
        Ok(store)
    }
}

/// The file is recognised from the first durable byte on.
fn write_birth(medium: &Medium) -> Result<()> {
    medium.disk().set_length(0).map_err(|source| medium.error("set length", None, source))?;
    let mut block = AlignedBuffer::zeroed(BLOCK_LENGTH);
    block.copy_from_slice(&birth_block());
    medium.write_vital(Block(BIRTH_BLOCK), &block)?;
    medium.sync()
}
