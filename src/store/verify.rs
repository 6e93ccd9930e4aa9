//! Checking a store: everything reachable is read and compared with its checksum, and no two things claim a block.
//! Every finding is told, not the first only; nothing is written.

use std::collections::{BTreeMap, HashSet};

use super::{Maps, Store};
use crate::error::{Error, Result};
use crate::format::{BlockPointer, DeferredKind};
use crate::id::{BLOCK_LENGTH, Block, Extent, PageId, SizeClass};
use crate::map::{Exclusive, Tree, exclusive};

use super::chunks::chunk_tree;
use super::read::{decode_stored, read_stored};

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyLevel {
    /// The trees, and whether blocks are claimed once.
    Quick,
    /// The bytes of every page too.
    Full,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Space is lost, no data: blocks in use that nothing reaches.
    Leak,
    /// Data is damaged, or in danger.
    Damage,
}

/// Something that is not as it should be.
#[derive(Clone, Debug)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The page concerned, if one is.
    pub page: Option<PageId>,
    /// Where in the file, in bytes, if it is somewhere.
    pub offset: Option<u64>,
    /// What it is.
    pub message: String,
}

/// What a check saw.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Pages of the live state.
    pub pages: u64,
    /// Bytes of pages read (each once, however many snapshots share it).
    pub page_bytes: u64,
    /// Nodes of trees read.
    pub nodes: u64,
    /// Snapshots walked.
    pub snapshots: u64,
    /// Blocks that something reaches or that wait to be free.
    pub blocks_claimed: u64,
    /// Everything that is not as it should be.
    pub findings: Vec<Finding>,
}

impl VerifyReport {
    /// The worst finding, if there is one.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }
}

/// Who has which blocks: runs by first block, no two overlapping.
#[derive(Default)]
struct Claims {
    runs: BTreeMap<u64, u64>,
}

impl Claims {
    /// Claims an extent; whether nobody had any of it.
    fn claim(&mut self, extent: Extent) -> bool {
        let (mut start, mut end) = (extent.start.0, extent.end().0);
        let before = self.runs.range(..end).next_back().map(|(start, end)| (*start, *end));
        if before.is_some_and(|(_, before_end)| before_end > start) {
            return false;
        }
        if let Some((before_start, _)) = before.filter(|(_, before_end)| *before_end == start) {
            start = before_start;
        }
        if let Some(after_end) = self.runs.remove(&end) {
            end = after_end;
        }
        self.runs.insert(start, end);
        true
    }

    fn blocks(&self) -> u64 {
        self.runs.iter().map(|(start, end)| end - start).sum()
    }

    /// The runs between `0` and `total` that nobody claims.
    fn gaps(&self, total: u64) -> Vec<Extent> {
        let mut gaps = Vec::new();
        let mut from = 0;
        for (&start, &end) in self.runs.iter().chain([(&total, &total)]) {
            while from < start {
                let blocks = (start - from).min(u32::MAX.into()) as u32;
                gaps.push(Extent::new(from, blocks));
                from += u64::from(blocks);
            }
            from = from.max(end);
        }
        gaps
    }
}

struct Verifier<'a> {
    store: &'a mut Store,
    level: VerifyLevel,
    claims: Claims,
    /// Nodes claimed already: states share them.
    nodes_seen: HashSet<BlockPointer>,
    report: VerifyReport,
    progress: &'a mut dyn FnMut(u64),
}

impl Store {
    /// Reads everything that can be reached, and says what is wrong. `progress` hears of the bytes of pages read so
    /// far. Commits and checkpoints must not go on meanwhile.
    ///
    /// # Errors
    /// Only what keeps it from going on at all: findings are in the report.
    pub fn verify(&mut self, level: VerifyLevel, progress: &mut dyn FnMut(u64)) -> Result<VerifyReport> {
        let claims = Claims::default();
        let (report, nodes_seen) = (VerifyReport::default(), HashSet::new());
        let mut verifier = Verifier { store: self, level, claims, nodes_seen, report, progress };
        verifier.everything()?;
        verifier.report.blocks_claimed = verifier.claims.blocks();
        Ok(verifier.report)
    }
}

impl Verifier<'_> {
    fn everything(&mut self) -> Result<()> {
        self.claim(Extent::new(0, crate::format::FIRST_FREE_BLOCK as u32), "the superblocks", None);
        let state = self.store.state();
        let live = state.maps.get();
        self.maps(&live, None)?;
        // The newest checkpoint's own nodes, as far as newer ones in memory stand for them.
        for class in SizeClass::all() {
            let shape = crate::map::Shape::map(class);
            let base = Tree::from_root(shape, self.store.folded.maps[class.index()]);
            self.tree(&base, &[&live[class.index()]], None, &mut |_, _| {});
        }
        // Each snapshot adds what the states before it in this walk do not reach.
        let snapshots: Vec<_> = state.snapshots().collect();
        for (index, (entry, maps)) in snapshots.iter().enumerate().rev() {
            let newer = snapshots.get(index + 1).map_or(&*live, |(_, maps)| *maps);
            self.report.snapshots += 1;
            let before = self.report.findings.len();
            self.maps(maps, Some(newer))?;
            for finding in &mut self.report.findings[before..] {
                finding.message = format!("snapshot {:?}: {}", entry.name, finding.message);
            }
        }
        // Snapshots that are deleted, and still in the catalogue on disk: their nodes wait for the next checkpoint.
        let on_disk: Vec<_> = self.store.on_disk.values().filter_map(|entry| entry.listed.maps.clone()).collect();
        for maps in on_disk {
            maps.iter().for_each(|map| self.tree(map, &[], None, &mut |_, _| {}));
        }
        for tree in [self.store.bitmap.clone(), self.store.catalogue.clone(), self.store.deferred_tree.clone()] {
            self.tree(&tree, &[], None, &mut |_, _| {});
        }
        let deferred: Vec<_> = self.store.deferred.entries().copied().collect();
        for entry in deferred {
            let what = match entry.kind {
                DeferredKind::Data { .. } => "a dead extent",
                DeferredKind::Node { .. } => "a replaced node",
            };
            self.claim(entry.extent, what, None);
        }
        for extent in self.store.closed.iter().flat_map(|(_, closed)| closed.clone()).collect::<Vec<_>>() {
            self.claim(extent, "a segment that is being emptied", None);
        }
        for extent in self.store.reservations.extents().collect::<Vec<_>>() {
            self.claim(extent, "reserved space", None);
        }
        for (extent, _) in self.store.bodies.clone() {
            self.claim(extent, "the body of a record", None);
        }
        let segments: Vec<Extent> =
            self.store.log.segments().flat_map(|segment| segment.blocks_without_pages()).collect();
        for extent in segments.into_iter().chain(self.store.log.spares().to_vec()) {
            self.claim(extent, "the log", None);
        }
        self.compare_with_space()
    }

    /// What nobody claims must be free, and nothing else may be.
    fn compare_with_space(&mut self) -> Result<()> {
        let gaps = self.claims.gaps(self.store.space.blocks_total());
        let free = self.store.space.free_extents()?;
        for extent in subtract(&gaps, &free) {
            self.find(
                Severity::Leak,
                None,
                Some(extent.start),
                format!("{extent} are in use, but nothing reaches them"),
            );
        }
        for extent in subtract(&free, &gaps) {
            self.find(
                Severity::Damage,
                None,
                Some(extent.start),
                format!("{extent} are free, but something reaches them"),
            );
        }
        Ok(())
    }

    /// Walks the maps of a state; what `newer` reaches too has been walked already.
    fn maps(&mut self, maps: &Maps, newer: Option<&Maps>) -> Result<()> {
        for class in SizeClass::all() {
            let others: Vec<&Tree> = newer.into_iter().map(|maps| &maps[class.index()]).collect();
            let mut pages = Vec::new();
            self.tree(&maps[class.index()], &others, None, &mut |position, pointer| pages.push((position, pointer)));
            for (index, pointer) in pages {
                let Some(page) = PageId::new(class, index) else { continue };
                self.report.pages += u64::from(newer.is_none());
                if !pointer.is_indirect() {
                    self.page(page, &pointer);
                    continue;
                }
                let mut neighbours = Vec::new();
                for other in &others {
                    neighbours.push(chunk_tree(page, &other.get(&self.store.nodes, index)?));
                }
                let neighbours: Vec<&Tree> = neighbours.iter().collect();
                let mut chunks = Vec::new();
                self.tree(&chunk_tree(page, &pointer), &neighbours, Some(page), &mut |_, chunk| chunks.push(chunk));
                chunks.iter().for_each(|chunk| self.page(page, chunk));
            }
        }
        Ok(())
    }

    /// Claims the nodes of a tree, and tells `each` of its entries. Damage ends the walk of this tree.
    fn tree(&mut self, tree: &Tree, others: &[&Tree], page: Option<PageId>, each: &mut dyn FnMut(u64, BlockPointer)) {
        let nodes = std::sync::Arc::clone(&self.store.nodes);
        let mut found = Vec::new();
        let mut entries = Vec::new();
        let result = exclusive(&nodes, tree, others, &mut |exclusive| {
            match exclusive {
                Exclusive::Node(pointer) => found.push(pointer),
                Exclusive::Entry { position, pointer } => entries.push((position, pointer)),
            }
            Ok(())
        });
        for pointer in found {
            if !self.nodes_seen.insert(pointer) {
                continue;
            }
            self.report.nodes += 1;
            self.claim(pointer.extent(), "a node", page);
            if let Err(error) = nodes.read_block(&pointer, crate::error::Structure::MapNode, page) {
                self.failed(page, &error);
            }
        }
        if let Err(error) = result {
            self.failed(page, &error);
        }
        let raw_leaves = !tree.is_of_pages();
        for (position, pointer) in entries {
            if raw_leaves && !pointer.extent().is_empty() {
                self.claim(pointer.extent(), "a leaf", None);
                if let Err(error) = nodes.read_block(&pointer, crate::error::Structure::Bitmap, None) {
                    self.failed(None, &error);
                }
            }
            each(position, pointer);
        }
    }

    fn page(&mut self, page: PageId, pointer: &BlockPointer) {
        if pointer.extent().is_empty() {
            return;
        }
        self.claim(pointer.extent(), "a page", Some(page));
        if self.level == VerifyLevel::Quick {
            return;
        }
        let mut bytes = crate::disk::AlignedBuffer::zeroed(pointer.extent().blocks as usize * BLOCK_LENGTH);
        let disk = self.store.medium.disk().as_ref();
        let checked = read_stored(disk, page, pointer, &mut bytes).and_then(|()| match pointer.codec.codec() {
            None => Ok(()),
            Some(_) => {
                // Its checksum fits; whether it is a page, decoding says.
                let unit = page.class().page_bytes().min(SizeClass::CHUNK.page_bytes());
                decode_stored(disk, page, pointer, &bytes, &mut vec![0; unit as usize])
            }
        });
        match checked {
            Ok(()) => self.report.page_bytes += bytes.len() as u64,
            Err(error) => self.failed(Some(page), &error),
        }
        (self.progress)(self.report.page_bytes);
    }

    fn claim(&mut self, extent: Extent, what: &str, page: Option<PageId>) {
        if !extent.is_empty() && !self.claims.claim(extent) {
            let message = format!("{extent} ({what}) belong to something else too");
            self.find(Severity::Damage, page, Some(extent.start), message);
        }
    }

    fn failed(&mut self, page: Option<PageId>, error: &Error) {
        let (page, offset) = match error {
            Error::Corrupt(corruption) => (corruption.page.or(page), Some(corruption.offset)),
            Error::Io { offset, .. } => (page, *offset),
            _ => (page, None),
        };
        let message = error.to_string();
        if !self.report.findings.iter().any(|finding| finding.message == message) {
            self.report.findings.push(Finding { severity: Severity::Damage, page, offset, message });
        }
    }

    fn find(&mut self, severity: Severity, page: Option<PageId>, block: Option<Block>, message: String) {
        self.report.findings.push(Finding { severity, page, offset: block.map(Block::offset_bytes), message });
    }
}

/// The parts of `from` (rising, disjoint) that are in none of `what` (likewise).
fn subtract(from: &[Extent], what: &[Extent]) -> Vec<Extent> {
    let mut left = Vec::new();
    for extent in from {
        let (mut start, end) = (extent.start.0, extent.end().0);
        let first = what.partition_point(|other| other.end().0 <= start);
        for other in what[first..].iter().take_while(|other| other.start.0 < end) {
            if other.start.0 > start {
                left.push(Extent::new(start, (other.start.0 - start) as u32));
            }
            start = start.max(other.end().0);
        }
        if start < end {
            left.push(Extent::new(start, (end - start) as u32));
        }
    }
    left
}
