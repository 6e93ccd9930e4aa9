//! What an open reads before the log: the superblocks, and what one of them leads to.
//!
//! - **O1** A block that cannot be read is an error, but for the copies of the superblocks, which are four.
//! - **O2** Nothing is believed that is not checked: a list has as many entries as the superblock says, and all of them
//!   lie in the file; a tree is no longer than what it is of.

use std::collections::{BTreeMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::reuse::Replayed;
use super::state::Listed;
use super::{Maps, Medium, OnDisk, Settings};
use crate::error::{Corruption, Error, Fault, Result, Structure};
use crate::format::{
    CatalogueEntry, DEFERRED_PER_BLOCK, EntryKind, FEATURES_INCOMPATIBLE_KNOWN, FEATURES_READ_COMPATIBLE_KNOWN,
    FIRST_FREE_BLOCK, NodeKind, SUPERBLOCK_BLOCKS, Superblock, TreeRoot, VERSION, decode_deferred, slot_blocks,
};
use crate::id::{BLOCK_BYTES, BLOCK_LENGTH, Block, SizeClass};
use crate::map::{Nodes, Shape, Tree};
use crate::space::LEAF_BLOCKS;

/// The superblocks of a file: the best copy of each slot, newest first, and the copies that are no good.
pub(super) struct Superblocks {
    pub(super) slots: Vec<Superblock>,
    pub(super) damaged: Vec<Block>,
}

/// What a superblock leads to, as far as an open needs it.
pub(super) struct Loaded {
    pub(super) superblock: Superblock,
    pub(super) nodes: Arc<Nodes>,
    pub(super) bitmap: Tree,
    pub(super) catalogue: Tree,
    pub(super) on_disk: BTreeMap<u64, OnDisk>,
    pub(super) listed: Vec<Arc<Listed>>,
    pub(super) deferred_tree: Tree,
    pub(super) replayed: Replayed,
}

/// Reads all four copies. A copy that cannot be read counts as damaged: the other copy, or the older slot and its
/// longer log, lead to the same state.
pub(super) fn read_superblocks(medium: &Medium) -> Result<Superblocks> {
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
        (true, _) => Err(no_superblock(medium)),
    }
}

/// No superblock is valid: the file was cut, or they are damaged.
pub(super) fn no_superblock(medium: &Medium) -> Error {
    let (path, offset) = (medium.path().into(), SUPERBLOCK_BLOCKS[0] * BLOCK_BYTES);
    if let Ok(file_bytes) = medium.length_bytes()
        && file_bytes < FIRST_FREE_BLOCK * BLOCK_BYTES
    {
        let (fault, offset) = (Fault::Truncated { file_bytes }, file_bytes);
        return Corruption { path, structure: Structure::File, page: None, offset, fault }.into();
    }
    Corruption { path, structure: Structure::Superblock, page: None, offset, fault: Fault::NoSuperblock }.into()
}

/// Whether this build, with these settings, may write the store.
pub(super) fn check_usable(medium: &Medium, superblock: &Superblock, settings: &Settings) -> Result<()> {
    check_readable(medium, superblock, settings.application_id)?;
    match superblock.features_read_compatible & !FEATURES_READ_COMPATIBLE_KNOWN {
        0 => Ok(()),
        bits => Err(Error::UnsupportedFeatures { path: medium.path().into(), bits }),
    }
}

/// Whether this build may read the store, for the application of this id (0: for any).
pub(super) fn check_readable(medium: &Medium, superblock: &Superblock, application_id: u32) -> Result<()> {
    let path = medium.path().to_path_buf();
    if superblock.version != VERSION {
        return Err(Error::UnsupportedVersion { path, found: superblock.version, supported: VERSION });
    }
    let bits = superblock.features_incompatible & !FEATURES_INCOMPATIBLE_KNOWN;
    if bits != 0 {
        return Err(Error::UnsupportedFeatures { path, bits });
    }
    if application_id != 0 && application_id != superblock.application_id {
        return Err(Error::WrongApplication { path, expected: application_id, found: superblock.application_id });
    }
    Ok(())
}

/// Loads what a superblock leads to, as far as an open needs it.
///
/// # Errors
/// `Corrupt` if any of that is damaged; `Io`.
pub(super) fn load(nodes: &Arc<Nodes>, superblock: &Superblock) -> Result<Loaded> {
    let file_bytes = length_of(nodes)?;
    if superblock.blocks_total * BLOCK_BYTES > file_bytes {
        let path = nodes.path().into();
        let fault = Fault::Truncated { file_bytes };
        let offset = superblock.blocks_total * BLOCK_BYTES;
        return Err(Corruption { path, structure: Structure::File, page: None, offset, fault }.into());
    }
    let leaves = superblock.blocks_total.div_ceil(LEAF_BLOCKS.into());
    check_length(nodes, superblock, "leaves of the bitmap", leaves, superblock.bitmap)?;
    let tree = |kind, root| Tree::from_root(Shape::of(kind), root);
    let on_disk = load_catalogue(nodes, superblock)?;
    Ok(Loaded {
        bitmap: tree(NodeKind::Bitmap, superblock.bitmap),
        superblock: superblock.clone(),
        nodes: Arc::clone(nodes),
        catalogue: tree(NodeKind::Catalogue, superblock.catalogue),
        listed: on_disk.values().map(|entry| Arc::clone(&entry.listed)).collect(),
        on_disk,
        deferred_tree: tree(NodeKind::Deferred, superblock.deferred),
        replayed: load_deferred(nodes, superblock)?,
    })
}

/// Whether a tree is no longer than what the superblock says of it allows: a walk of it ends where there is nothing more
/// that it could tell.
fn check_length(
    nodes: &Nodes,
    superblock: &Superblock,
    field: &'static str,
    expected: u64,
    root: TreeRoot,
) -> Result<()> {
    if root.length <= expected {
        return Ok(());
    }
    let [copy, _] = slot_blocks(superblock.checkpoint);
    Err(damaged(nodes, Structure::Superblock, Block(copy), Fault::Field { field, expected, found: root.length }))
}

/// The entries of the catalogue that a superblock leads to, by id.
///
/// # Errors
/// `Corrupt`, `Io`.
pub(super) fn load_catalogue(nodes: &Nodes, superblock: &Superblock) -> Result<BTreeMap<u64, OnDisk>> {
    let catalogue = Tree::from_root(Shape::of(NodeKind::Catalogue), superblock.catalogue);
    let mut on_disk = BTreeMap::new();
    let mut position = 0;
    while let Some((slot, pointer)) = catalogue.next(nodes, position)? {
        position = slot + 1;
        let bytes = nodes.read_block(&pointer, Structure::Catalogue, None)?;
        let entry = CatalogueEntry::decode(&bytes)
            .map_err(|fault| damaged(nodes, Structure::Catalogue, pointer.address, fault))?;
        let listed = Arc::new(Listed { maps: maps_of(&entry), entry });
        let id = listed.entry.id;
        if on_disk.insert(id, OnDisk { slot, listed }).is_some() || id >= superblock.next_catalogue_id {
            let fault = Fault::Field { field: "catalogue id", expected: superblock.next_catalogue_id, found: id };
            return Err(damaged(nodes, Structure::Catalogue, pointer.address, fault));
        }
    }
    Ok(on_disk)
}

/// The deferred list that a superblock leads to.
///
/// # Errors
/// `Corrupt`, `Io`.
pub(super) fn load_deferred(nodes: &Nodes, superblock: &Superblock) -> Result<Replayed> {
    let blocks = superblock.deferred_entries.div_ceil(DEFERRED_PER_BLOCK as u64);
    check_length(nodes, superblock, "blocks of the deferred list", blocks, superblock.deferred)?;
    let deferred_tree = Tree::from_root(Shape::of(NodeKind::Deferred), superblock.deferred);
    let mut replayed = Replayed::default();
    let mut left = superblock.deferred_entries;
    for position in 0..deferred_tree.length() {
        let pointer = deferred_tree.get(nodes, position)?;
        let bytes = nodes.read_block(&pointer, Structure::DeferredList, None)?;
        let count = left.min(DEFERRED_PER_BLOCK as u64);
        left -= count;
        let entries = decode_deferred(&bytes, count as usize)
            .map_err(|fault| damaged(nodes, Structure::DeferredList, pointer.address, fault))?;
        for entry in entries {
            let end = entry.extent.end().0;
            if end > superblock.blocks_total {
                let fault = Fault::Field { field: "deferred extent", expected: superblock.blocks_total, found: end };
                return Err(damaged(nodes, Structure::DeferredList, pointer.address, fault));
            }
            replayed
                .add(entry)
                .map_err(|_| damaged(nodes, Structure::DeferredList, pointer.address, Fault::Overlap))?;
        }
    }
    if left != 0 {
        let fault = Fault::Field {
            field: "deferred entries",
            expected: superblock.deferred_entries - left,
            found: superblock.deferred_entries,
        };
        return Err(damaged(nodes, Structure::DeferredList, Block(0), fault));
    }
    Ok(replayed)
}

/// The page maps of a snapshot on disk; none for a bookmark.
fn maps_of(entry: &CatalogueEntry) -> Option<Box<Maps>> {
    (entry.kind == EntryKind::Snapshot).then(|| Box::new(maps_under(&entry.maps)))
}

/// The page maps under these roots.
pub(super) fn maps_under(roots: &[TreeRoot; SizeClass::COUNT]) -> Maps {
    std::array::from_fn(|index| Tree::from_root(Shape::map(SizeClass::from_index(index)), roots[index]))
}

fn length_of(nodes: &Nodes) -> Result<u64> {
    let failed = |source| Error::Io { operation: "length", path: nodes.path().into(), offset: None, source };
    nodes.disk().length().map_err(failed)
}

fn damaged(nodes: &Nodes, structure: Structure, address: Block, fault: Fault) -> Error {
    let path = nodes.path().into();
    Corruption { path, structure, page: None, offset: address.offset_bytes(), fault }.into()
}

impl Loaded {
    /// Looks at what an open does not read, and what `other`, the slot that could serve instead, does not share: the
    /// nodes of the bitmap (not its leaves), and the first path of each page map, of the live state and of snapshots.
    ///
    /// # Errors
    /// `Corrupt` for the first that is damaged; `Io`.
    pub(super) fn look_deeper(&self, other: &Superblock) -> Result<()> {
        self.bitmap.visit(&self.nodes, 0, |_, _| ControlFlow::Continue(()))?;
        look_at_maps(&self.nodes, &self.superblock, self.listed.iter(), other)
    }
}

/// Looks at the first path of each page map that `superblock` leads to and `other` does not, of the live state and of
/// the snapshots that are listed.
///
/// # Errors
/// `Corrupt` for the first that is damaged; `Io`.
pub(super) fn look_at_maps<'a>(
    nodes: &Nodes,
    superblock: &Superblock,
    listed: impl Iterator<Item = &'a Arc<Listed>>,
    other: &Superblock,
) -> Result<()> {
    let shared: HashSet<TreeRoot> = other.maps.iter().copied().collect();
    let live = maps_under(&superblock.maps);
    let fresh = |listed: &&Arc<Listed>| listed.entry.generation > other.generation;
    let snapshots = listed.filter(fresh).filter_map(|listed| listed.maps.as_deref());
    for map in snapshots.chain([&live]).flatten() {
        if map.clean_root().is_some_and(|root| !shared.contains(&root)) {
            map.get(nodes, 0)?;
        }
    }
    Ok(())
}
