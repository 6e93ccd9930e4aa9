//! Pages above 1 MiB: trees of chunks, written by the commit and sealed with it. Chunks and nodes are data extents
//! under R1 and R2.

use super::Store;
use super::prepare::{OtherChunks, PreparedPage, Unit};
use super::publish::ChunkUpdate;
use crate::error::Result;
use crate::format::{BlockPointer, Entry, PointerFlags, TreeRoot};
use crate::id::{BLOCK_LENGTH, Block, CheckpointNumber, Extent, Generation, PageId};
use crate::map::{Exclusive, Home, Shape, Tree, TreeWriter, exclusive};
use crate::space::{Purpose, Request};

/// A tree of chunks as a commit changes it.
#[derive(Debug)]
pub(super) struct BuiltChunks {
    pub(super) entries: Vec<Entry>,
    pub(super) nodes: Vec<Unit<'static>>,
    pub(super) chunks: Vec<ChunkUpdate>,
}

/// The tree of a page's chunks.
pub(crate) fn chunk_tree(page: PageId, pointer: &BlockPointer) -> Tree {
    let root = if pointer.is_indirect() { *pointer } else { BlockPointer::default() };
    Tree::from_root(Shape::chunks(page), TreeRoot { pointer: root, length: page.class().chunks() })
}

impl Store {
    /// The page's new tree: nodes to be written, and the entries that tell of what was stored and what died.
    pub(super) fn build_chunks(
        &mut self,
        page: &PreparedPage,
        chunks: &[(u32, Option<usize>)],
        others: OtherChunks,
        units: &[Unit<'_>],
        generation: Generation,
        taken: &mut Vec<Extent>,
    ) -> Result<BuiltChunks> {
        let (mut entries, mut updates) = (Vec::new(), Vec::new());
        let mut tree = match others {
            OtherChunks::Stay => chunk_tree(page.page, &page.old),
            OtherChunks::Zero => {
                if page.old.is_indirect() {
                    entries.extend(self.dead_chunks(page.page, &page.old)?);
                }
                chunk_tree(page.page, &BlockPointer::default())
            }
        };
        for (chunk, unit) in chunks {
            let old = tree.get(&self.nodes, (*chunk).into())?;
            if !old.extent().is_empty() {
                entries.push(Entry::Dead { old });
            }
            let new = match unit {
                Some(unit) => units[*unit].pointer(generation),
                None => BlockPointer::zero(generation),
            };
            tree.set((*chunk).into(), new);
            updates.push(ChunkUpdate { page: page.page, chunk: *chunk, old, new });
            if new.stored_length > 0 {
                entries.push(Entry::Stored { page: page.page, new });
            }
        }
        let mut home = ChunkHome { store: self, taken, nodes: Vec::new() };
        let nodes_reader = std::sync::Arc::clone(&home.store.nodes);
        let (tree, replaced) = TreeWriter::new(&nodes_reader, CheckpointNumber(0), &mut home).write(&tree)?;
        let nodes = home.nodes;
        let root = tree.clean_root().map(|root| root.pointer).unwrap_or_default();
        // The page's own pointer tells of the old root's death and of the new one's birth.
        let dead = replaced.iter().filter(|node| node.pointer.address != page.old.address);
        entries.extend(dead.map(|node| Entry::Dead { old: node.pointer }));
        let new = match root.is_null() {
            true => BlockPointer::zero(generation),
            false => BlockPointer { flags: PointerFlags::INDIRECT, birth: generation, ..root },
        };
        entries.push(Entry::Set { page: page.page, new, old: page.old });
        for node in &nodes {
            // The root is told of by the page's own pointer.
            if node.address != new.address {
                entries.push(Entry::Stored { page: page.page, new: node.pointer(generation) });
            }
        }
        Ok(BuiltChunks { entries, nodes, chunks: updates })
    }

    /// The deaths of everything below a page's root.
    pub(super) fn dead_chunks(&self, page: PageId, old: &BlockPointer) -> Result<Vec<Entry>> {
        let mut dead = Vec::new();
        exclusive(&self.nodes, &chunk_tree(page, old), &[], &mut |found| {
            match found {
                Exclusive::Node(pointer) if pointer.address == old.address => {}
                Exclusive::Node(pointer) | Exclusive::Entry { pointer, .. } => {
                    if !pointer.extent().is_empty() {
                        dead.push(Entry::Dead { old: pointer });
                    }
                }
            }
            Ok(())
        })?;
        Ok(dead)
    }
}

/// Gives each node of a tree of chunks a block of its own.
struct ChunkHome<'a> {
    store: &'a mut Store,
    taken: &'a mut Vec<Extent>,
    nodes: Vec<Unit<'static>>,
}

impl Home for ChunkHome<'_> {
    fn place(&mut self, bytes: &[u8; BLOCK_LENGTH]) -> Result<Block> {
        let request = Request { blocks: 1, minimum: 1, multiple: 1, purpose: Purpose::Data };
        let extent = self.store.obtain(&request)?.ok_or_else(|| self.store.no_space(1))?;
        self.taken.push(extent);
        self.nodes.push(Unit { address: extent.start, ..Unit::new(bytes.to_vec(), None) });
        Ok(extent.start)
    }
}
