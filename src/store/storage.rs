//! What the pages of a state take on disk, by how they are stored.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::chunks::chunk_tree;
use crate::error::Result;
use crate::format::{BlockPointer, CodecId};
use crate::id::{BLOCK_BYTES, PageId, SizeClass};
use crate::map::{Nodes, Tree};

/// What is stored by one codec: pages of at most 1 MiB, and chunks of larger ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// How many pages and chunks.
    pub units: u64,
    /// The bytes that they have in memory.
    pub page_bytes: u64,
    /// The bytes of the blocks that they take, without the trees that lead to them.
    pub stored_bytes: u64,
}

impl Share {
    /// Adds a page of at most 1 MiB, or a chunk, stored as `pointer` says.
    pub fn add(&mut self, pointer: &BlockPointer, page_bytes: u64) {
        self.units += 1;
        self.page_bytes += page_bytes;
        self.stored_bytes += u64::from(pointer.extent().blocks) * BLOCK_BYTES;
    }
}

impl std::ops::AddAssign for Share {
    fn add_assign(&mut self, other: Self) {
        self.units += other.units;
        self.page_bytes += other.page_bytes;
        self.stored_bytes += other.stored_bytes;
    }
}

/// Adds to `shares` what a page stores. A chunk that was never written is not counted.
///
/// # Errors
/// `Io`, `Corrupt` while reading the tree of its chunks.
pub fn add_page(
    nodes: &Nodes,
    page: PageId,
    pointer: &BlockPointer,
    shares: &mut BTreeMap<CodecId, Share>,
) -> Result<()> {
    if !page.class().is_chunked() || !pointer.is_indirect() {
        shares.entry(pointer.codec).or_default().add(pointer, page.class().page_bytes());
        return Ok(());
    }
    chunk_tree(page, pointer).visit(nodes, 0, |_, chunk| {
        shares.entry(chunk.codec).or_default().add(chunk, SizeClass::CHUNK.page_bytes());
        ControlFlow::Continue(())
    })?;
    Ok(())
}

/// The pages of one size class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClassStorage {
    /// The class.
    pub class: SizeClass,
    /// How many pages are allocated.
    pub pages: u64,
    /// The bytes that they have for their users.
    pub page_bytes: u64,
    /// The bytes of the blocks that they take: less, where they are zero, sparse or compressed.
    pub stored_bytes: u64,
}

/// What the pages of each class in use take that `maps` (one a size class, from the smallest) lead to. The maps are
/// read, whole; the pages are not.
///
/// # Errors
/// `Io`, `Corrupt` while reading the maps.
pub fn storage_of_classes(nodes: &Nodes, maps: &[Tree]) -> Result<Vec<ClassStorage>> {
    let mut classes = Vec::new();
    for (class, map) in SizeClass::all().zip(maps) {
        let mut of_class = ClassStorage { class, pages: 0, page_bytes: 0, stored_bytes: 0 };
        let mut result = Ok(());
        map.visit(nodes, 0, |index, pointer| {
            let Some(page) = PageId::new(class, index) else { return ControlFlow::Continue(()) };
            let mut shares = BTreeMap::new();
            result = add_page(nodes, page, pointer, &mut shares);
            of_class.pages += 1;
            of_class.page_bytes += class.page_bytes();
            of_class.stored_bytes += shares.values().map(|share| share.stored_bytes).sum::<u64>();
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        result?;
        classes.extend((of_class.pages > 0).then_some(of_class));
    }
    Ok(classes)
}

/// What all pages store that `maps` (one a size class, from the smallest) lead to. The maps are read, whole; the pages
/// are not.
///
/// # Errors
/// `Io`, `Corrupt` while reading the maps.
pub fn storage(nodes: &Nodes, maps: &[Tree]) -> Result<BTreeMap<CodecId, Share>> {
    let mut shares = BTreeMap::new();
    for (class, map) in SizeClass::all().zip(maps) {
        let mut result = Ok(());
        map.visit(nodes, 0, |index, pointer| {
            let Some(page) = PageId::new(class, index) else { return ControlFlow::Continue(()) };
            result = add_page(nodes, page, pointer, &mut shares);
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        result?;
    }
    Ok(shares)
}
