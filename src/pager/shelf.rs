//! Map nodes that only old states hold: how many they are, and where they go when they are too many.
//!
//! A state in memory is a checkpoint's trees on disk and the nodes that differ from them. Those that views hold, and the
//! newest state does not share, are put into space of the file that is reserved as for spilled pages (E1 in
//! `store/spill.rs`: after a crash it is free). So views that live for hours cost disk, not memory.
//!
//! - **O1** What only old states hold is no more than a quarter of what the budget has for the page maps, and what one
//!   commit adds. It is counted when it may have become more, at a guess of two nodes a changed page. Where space or a
//!   node cannot be had, it stays in memory, and is tried again when as much has been added.
//! - **O2** The same nodes are written once for all states that share them; the space is given back when the last of those
//!   states is let go.
//! - **O3** Only states that pins hold are put there, and a checkpoint never sees one (W1 in `store/held.rs`): no
//!   committed tree leads there.
//! - **O4** It is done by a thread that has committed, after those that wait for the commit were told, without the core
//!   but for reserving.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::handle::Shared;
use super::memory::lock;
use crate::disk::AlignedBuffer;
use crate::error::{Error, Result};
use crate::id::{BLOCK_LENGTH, Block, CheckpointNumber};
use crate::map::{Footprint, Home, TreeWriter};
use crate::store::{Content, Maps, OldState, Reserved, State};

/// What is known of the nodes that old states hold.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    /// Bytes that they have at most.
    bytes_at_most: AtomicUsize,
    /// Held by who puts them elsewhere.
    busy: Mutex<()>,
    /// Blocks of the file that they lie in.
    blocks: Arc<AtomicU64>,
}

/// Space for nodes, given back when it is dropped.
struct Space {
    reserved: Vec<Reserved>,
    given_back: Arc<Mutex<Vec<Reserved>>>,
    blocks: Arc<AtomicU64>,
}

impl Drop for Space {
    fn drop(&mut self) {
        self.blocks.fetch_sub(self.reserved.len() as u64, Ordering::Relaxed);
        lock(&self.given_back).append(&mut self.reserved);
    }
}

/// Nodes on their way into reserved blocks.
struct Written {
    reserved: Vec<Reserved>,
    bytes: AlignedBuffer,
    count: usize,
}

impl Home for Written {
    fn place(&mut self, bytes: &[u8; BLOCK_LENGTH]) -> Result<Block> {
        let at = self.count * BLOCK_LENGTH;
        let (Some(reserved), Some(target)) = (self.reserved.get(self.count), self.bytes.get_mut(at..at + BLOCK_LENGTH))
        else {
            // They were counted; to be wrong in that is a bug of ours, and must not overwrite anything.
            return Err(Error::Exhausted { counter: "block for a map node" });
        };
        target.copy_from_slice(bytes);
        self.count += 1;
        Ok(reserved.extent().start)
    }

    /// What only old states read is not to push out what all read.
    fn is_real(&self) -> bool {
        false
    }
}

impl Shelf {
    /// Nobody puts anything elsewhere as long as this is held.
    pub(super) fn when_idle(&self) -> MutexGuard<'_, ()> {
        lock(&self.busy)
    }
}

impl Shared {
    /// What the nodes that only old states hold may take.
    fn shelf_limit_bytes(&self) -> usize {
        self.options.old_map_bytes(self.manager.budget().limit_bytes())
    }

    /// A commit that changed so many pages is published.
    pub(super) fn note_old_nodes(&self, pages: usize) {
        if self.published.held().0 > 0 {
            self.shelf.bytes_at_most.fetch_add(pages * 2 * Footprint::NODE_BYTES, Ordering::Relaxed);
        }
    }

    /// Blocks of the file that nodes of old states lie in.
    pub(super) fn shelved_blocks(&self) -> u64 {
        self.shelf.blocks.load(Ordering::Relaxed)
    }

    /// Bytes of the nodes in memory that old states hold, and the newest does not.
    pub(super) fn old_map_bytes(&self) -> usize {
        let (old, newest) = self.published.old_states();
        let mut seen = seen_in(&newest);
        old.iter().map(|state| footprint(state, &mut seen).bytes).sum()
    }

    /// Puts what only old states hold elsewhere, if it may be too much by now.
    pub(super) fn shelve_if_due(&self) {
        let limit = self.shelf_limit_bytes();
        if self.shelf.bytes_at_most.load(Ordering::Relaxed) <= limit {
            return;
        }
        let Ok(_busy) = self.shelf.busy.try_lock() else { return };
        let mut left = self.old_map_bytes();
        if left > limit && self.while_open(|| self.shelve()).is_ok() {
            left = self.old_map_bytes();
        }
        // What could not be put elsewhere is tried again when as much has been added.
        self.shelf.bytes_at_most.store(left.min(limit), Ordering::Relaxed);
    }

    fn shelve(&self) -> Result<()> {
        let (old, _newest) = self.published.old_states();
        let old: Vec<OldState> = old.into_iter().filter(|state| !state.maps.is_elsewhere()).collect();
        let mut all = Footprint::default();
        let mut seen = HashSet::new();
        old.iter().for_each(|state| all += footprint(state, &mut seen));
        if all.nodes == 0 {
            return Ok(());
        }
        let (mut written, shelved) = self.write_elsewhere(&old, all.nodes)?;
        let unused = written.reserved.split_off(written.count);
        lock(&self.given_back).extend(unused);
        let space = Arc::new(Space {
            reserved: written.reserved,
            given_back: Arc::clone(&self.given_back),
            blocks: Arc::clone(&self.shelf.blocks),
        });
        self.shelf.blocks.fetch_add(space.reserved.len() as u64, Ordering::Relaxed);
        for (state, maps) in old.iter().zip(shelved) {
            state.put_elsewhere(maps, Arc::clone(&space) as _);
        }
        Ok(())
    }

    /// Writes the nodes of these states, which are `count`; returns the states' maps as they then are.
    fn write_elsewhere(&self, states: &[OldState], count: usize) -> Result<(Written, Vec<Maps>)> {
        let bytes = count * BLOCK_LENGTH;
        let memory = |source| Error::Memory { operation: "allocation", bytes, source };
        let buffer = AlignedBuffer::try_zeroed(bytes).map_err(memory)?;
        let reserved = {
            let mut core = self.lock()?;
            self.take_given_back(&mut core.store);
            let mut units: Vec<Content<'_>> = buffer.chunks(BLOCK_LENGTH).map(Content::from).collect();
            let result = core.store.reserve(&mut units);
            // The next who gives the core back tells: a hook that closes the pager would wait for this.
            core.suspect |= result.is_err();
            result?
        };
        let mut written = Written { reserved, bytes: buffer, count: 0 };
        let result = self.write_into(&mut written, states);
        match result {
            Ok(maps) => Ok((written, maps)),
            Err(error) => {
                lock(&self.given_back).append(&mut written.reserved);
                Err(error)
            }
        }
    }

    fn write_into(&self, written: &mut Written, states: &[OldState]) -> Result<Vec<Maps>> {
        let mut writer = TreeWriter::new(&self.nodes, CheckpointNumber(0), written);
        let mut shelved = Vec::with_capacity(states.len());
        for state in states {
            let mut maps = (*state.maps.get()).clone();
            for map in &mut maps {
                *map = writer.write(map)?.0;
            }
            shelved.push(maps);
        }
        drop(writer);
        let nodes: Vec<Content<'_>> = written.bytes.chunks(BLOCK_LENGTH).map(Content::from).collect();
        let units: Vec<(Reserved, &Content<'_>)> =
            written.reserved.iter().copied().zip(&nodes).take(written.count).collect();
        self.medium.spill(&units)?;
        Ok(shelved)
    }
}

/// The nodes that the newest state has, and the snapshots of its catalogue.
fn seen_in(newest: &State) -> HashSet<usize> {
    let mut seen = HashSet::new();
    footprint(newest, &mut seen);
    for maps in newest.catalogue.iter().filter_map(|listed| listed.maps.as_ref()) {
        for map in maps.iter() {
            map.footprint(&mut seen);
        }
    }
    seen
}

fn footprint(state: &State, seen: &mut HashSet<usize>) -> Footprint {
    let mut all = Footprint::default();
    state.maps.get().iter().for_each(|map| all += map.footprint(seen));
    all
}
