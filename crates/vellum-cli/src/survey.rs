//! What can be seen of a store, damaged or not, by looking at the file only. Nothing is written, no lock is needed.
//!
//! - **Y1** What is shown is the newest valid superblock and the records that link to it. Records above the newest
//!   `synced_through` may be cut by the next open: their pages are not compared with their seals here.
//! - **Y2** A structure that cannot be read is described, and what can be read without it is shown all the same.
//!
//! Callers: `info`, `inspect`, `stat`.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use vellum::disk::{Access, Caching, Disk, FileDisk};
use vellum::format::{
    Entry, NodeKind, RecordFlags, SUPERBLOCK_BLOCKS, Superblock, TreeRoot, checksum, decode_entries, slot_blocks,
};
use vellum::log::{FoundRecord, LogStart, Scanner};
use vellum::map::{Nodes, Shape, Tree};
use vellum::process::FileLock;
use vellum::space::{LEAF_BLOCKS, SEGMENT_BLOCKS};
use vellum::store::{FileState, file_state};
use vellum::{BLOCK_BYTES, BLOCK_LENGTH, Block, Error, Generation, SizeClass, Structure};

/// The nodes that a look at a store keeps in memory.
const CACHED_NODES: usize = 4096;

/// A file that is to be a store, and the copies of its superblocks.
#[derive(Debug)]
pub(crate) struct Survey {
    pub(crate) disk: Arc<FileDisk>,
    pub(crate) file_bytes: u64,
    pub(crate) copies: Vec<SuperblockCopy>,
}

/// One copy of a superblock.
#[derive(Debug)]
pub(crate) struct SuperblockCopy {
    pub(crate) block: Block,
    pub(crate) content: Result<Box<Superblock>, String>,
}

/// The fold of the newest superblock with the log's records on top.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) generation: Generation,
    /// The newest generation that a record says to be durable.
    pub(crate) synced: Generation,
    pub(crate) records: u64,
    pub(crate) header: Vec<u8>,
    pub(crate) maps: Vec<Tree>,
    pub(crate) nodes: Arc<Nodes>,
}

impl Survey {
    /// # Errors
    /// `NotAStore`, `IncompleteCreate`, `NotAFile`, `Io`: there is nothing to be seen.
    pub(crate) fn of(path: &Path) -> vellum::Result<Self> {
        let disk = Arc::new(FileDisk::open(path, Access::ReadOnly, Caching::Buffered)?);
        let io = |source| Error::Io { operation: "length", path: path.into(), offset: None, source };
        let file_bytes = disk.length().map_err(io)?;
        let copies = SUPERBLOCK_BLOCKS.map(|block| superblock_copy(&disk, file_bytes, Block(block))).into();
        let survey = Self { disk, file_bytes, copies };
        match file_state(survey.disk.as_ref())? {
            FileState::Store => Ok(survey),
            // A damaged birth block does not hide what lies behind it.
            FileState::Foreign if survey.newest().is_some() => Ok(survey),
            FileState::Foreign => Err(Error::NotAStore { path: path.into() }),
            FileState::Incomplete => Err(Error::IncompleteCreate { path: path.into() }),
        }
    }

    /// The newest valid superblock.
    pub(crate) fn newest(&self) -> Option<&Superblock> {
        let valid = self.copies.iter().filter_map(|copy| copy.content.as_deref().ok());
        valid.max_by_key(|superblock| superblock.checkpoint)
    }

    /// The copies of the superblocks that should be good and are not, and why. A store that has had one checkpoint only
    /// has never written the other slot.
    pub(crate) fn damaged_copies(&self) -> impl Iterator<Item = (Block, &str)> {
        let first =
            self.newest().filter(|newest| newest.checkpoint.0 <= 1).map(|newest| slot_blocks(newest.checkpoint));
        let wanted = move |block: Block| first.is_none_or(|slot| slot.contains(&block.0));
        let damaged = self.copies.iter().filter_map(|copy| Some((copy.block, copy.content.as_ref().err()?.as_str())));
        damaged.filter(move |(block, _)| wanted(*block))
    }

    /// Whether a writer has the store open now.
    ///
    /// # Errors
    /// `Io` if the file system has no locks.
    pub(crate) fn is_locked(&self) -> vellum::Result<bool> {
        match FileLock::shared(&self.disk) {
            Ok(_) => Ok(false),
            Err(Error::Locked { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// What reads the trees.
    pub(crate) fn nodes(&self, superblock: &Superblock) -> Arc<Nodes> {
        Arc::new(Nodes::new(Arc::clone(&self.disk) as Arc<dyn Disk>, superblock.store, CACHED_NODES))
    }

    /// Tells `visit` of each record that links to `superblock`, oldest first, and of all its entries.
    ///
    /// # Errors
    /// `Io`, and those of `visit`.
    pub(crate) fn records<E: From<Error>>(
        &self,
        superblock: &Superblock,
        mut visit: impl FnMut(&FoundRecord, &[Entry]) -> Result<(), E>,
    ) -> Result<(), E> {
        let index = superblock.log_segment as usize;
        let Some(segment) = superblock.segments.get(index).copied() else { return Ok(()) };
        let start = LogStart {
            generation: superblock.generation,
            seal: superblock.log_seal,
            segment,
            offset: superblock.log_offset,
            next: superblock.segments.get(index + 1).copied().filter(|segment| segment.salt != 0),
        };
        let mut scanner = Scanner::new(Arc::clone(&self.disk) as Arc<dyn Disk>, superblock.store, start)?;
        while let Some(record) = scanner.next_record()? {
            let outer = self.outer_entries(&record);
            visit(&record, if outer.is_empty() { &record.entries } else { &outer })?;
        }
        Ok(())
    }

    /// The entries that lie outside of the log, as far as they can be read.
    fn outer_entries(&self, record: &FoundRecord) -> Vec<Entry> {
        let mut entries = Vec::new();
        if !record.header.flags.contains(RecordFlags::EXTERNAL_BODY) {
            return entries;
        }
        for entry in &record.entries {
            let Entry::Body { new } = entry else {
                entries.push(*entry);
                continue;
            };
            let mut bytes = vec![0; new.stored_length as usize];
            let read = self.disk.read_at(new.address.offset_bytes(), &mut bytes);
            if read.is_ok() && checksum(&bytes) == new.checksum {
                entries.extend(decode_entries(&bytes, record.header.blob_length.into()).unwrap_or_default());
            }
        }
        entries
    }

    /// The newest state that can be seen.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn head(&self, superblock: &Superblock) -> vellum::Result<Head> {
        let maps =
            SizeClass::all().map(|class| Tree::from_root(Shape::map(class), superblock.maps[class.index()])).collect();
        let mut head = Head {
            generation: superblock.generation,
            synced: superblock.generation,
            records: 0,
            header: superblock.header.clone(),
            maps,
            nodes: self.nodes(superblock),
        };
        self.records(superblock, |record, entries| {
            head.generation = record.header.generation;
            head.synced = head.synced.max(record.header.synced_through);
            head.records += 1;
            for entry in entries {
                match *entry {
                    Entry::Set { page, new, .. } | Entry::Move { page, new, .. } => {
                        head.maps[page.class().index()].set(page.index(), new);
                    }
                    Entry::Header { offset, length } => {
                        let range = offset as usize..offset as usize + length as usize;
                        head.header = record.blob.get(range).unwrap_or_default().to_vec();
                    }
                    _ => {}
                }
            }
            Ok::<_, Error>(())
        })?;
        Ok(head)
    }

    /// How many snapshots and bookmarks the checkpoint has.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub(crate) fn catalogue_entries(&self, superblock: &Superblock) -> vellum::Result<u64> {
        count(&self.nodes(superblock), NodeKind::Catalogue, superblock.catalogue)
    }

    /// How many segments of the file are wholly free at the checkpoint. Reads the bitmap, whole.
    ///
    /// # Errors
    /// `Io`, `Corrupt`; beside a writer also where it has made the next checkpoints meanwhile.
    pub(crate) fn segments_free(&self, superblock: &Superblock) -> vellum::Result<u64> {
        // The file's last segment is none if the file ends inside of it.
        let whole = superblock.blocks_total / u64::from(SEGMENT_BLOCKS);
        let mut in_use = HashSet::new();
        let nodes = self.nodes(superblock);
        let leaves = Tree::from_root(Shape::of(NodeKind::Bitmap), superblock.bitmap);
        let mut from = 0;
        while let Some((leaf, pointer)) = leaves.next(&nodes, from)? {
            from = leaf + 1;
            if pointer.stored_length == 0 {
                continue;
            }
            let bits = nodes.read_block(&pointer, Structure::Bitmap, None)?;
            let first = leaf * u64::from(LEAF_BLOCKS / SEGMENT_BLOCKS);
            let of_segment = bits.chunks(SEGMENT_BLOCKS as usize / 8).zip(first..);
            in_use
                .extend(of_segment.filter(|(bits, _)| bits.iter().any(|byte| *byte != 0)).map(|(_, segment)| segment));
        }
        // The bitmap has no bits for log.
        for log in &superblock.segments {
            let last = log.extent.end().0.saturating_sub(1);
            in_use.extend((log.extent.start.0..=last).map(|block| block / u64::from(SEGMENT_BLOCKS)));
        }
        Ok(whole - in_use.iter().filter(|segment| **segment < whole).count() as u64)
    }
}

fn count(nodes: &Nodes, kind: NodeKind, root: TreeRoot) -> vellum::Result<u64> {
    let tree = Tree::from_root(Shape::of(kind), root);
    let (mut found, mut from) = (0, 0);
    while let Some((position, _)) = tree.next(nodes, from)? {
        (found, from) = (found + 1, position + 1);
    }
    Ok(found)
}

fn superblock_copy(disk: &FileDisk, file_bytes: u64, block: Block) -> SuperblockCopy {
    let mut bytes = Box::new([0; BLOCK_LENGTH]);
    let content = if block.offset_bytes() + BLOCK_BYTES > file_bytes {
        Err("lies beyond the end of the file".to_owned())
    } else if let Err(error) = disk.read_at(block.offset_bytes(), &mut bytes[..]) {
        Err(format!("cannot be read: {error}"))
    } else {
        match Superblock::decode(&bytes) {
            Ok(None) if bytes.iter().all(|byte| *byte == 0) => Err("zeros: never written".to_owned()),
            Ok(None) => Err("no superblock".to_owned()),
            Ok(Some(superblock)) if !slot_blocks(superblock.checkpoint).contains(&block.0) => {
                Err(format!("misplaced: it is checkpoint {}, of the other slot", superblock.checkpoint.0))
            }
            Ok(Some(superblock)) => Ok(Box::new(superblock)),
            Err(fault) => Err(format!("damaged: {fault}")),
        }
    };
    SuperblockCopy { block, content }
}
