//! A disk that remembers what a power cut could leave.
//!
//! It keeps what reads return (the *cache*), what is surely on the medium (the *durable* image), and the *pieces* in
//! between, in the order they were made: contents of single blocks, and lengths of the file. At each sync, at each
//! durable write and at each mark it can record a [`CrashPoint`]: durable image and pieces, from which every state that
//! a power cut at any moment since the last such point could have left can be built.
//!
//! - **I1** A write becomes one piece for each block it touches, with the block's whole new content, since a cache
//!   holds whole blocks. A change of the length is a piece, and so is each block that a shorter length clears.
//! - **I2** A sync settles every waiting piece: the newest one of each block, and the newest length, become durable.
//! - **I3** A durable write settles its own blocks and the length they need, nothing else (D3). Older pieces of the
//!   same blocks are thereby gone; other pieces wait on.
//! - **I4** A failed sync makes all waiting pieces *stray*: they may be on the medium or not, for ever, and no later sync
//!   settles them (the cache takes them for clean), until their block is written again (D5). Reads return what was
//!   written all the same. A failed durable write does so to its own pieces.
//!
//! Callers: tests, and users' tests. Any thread; the order of calls is the order of locking.

use std::collections::HashSet;
use std::io::{self, IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::crash::{Cause, CrashPoint};
use super::image::{self, Content, Image};
use super::{Disk, pieces};
use crate::id::BLOCK_BYTES;

/// Something that was written and is not surely on the medium.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) change: Change,
    fate: Fate,
}

/// What a piece changes.
#[derive(Clone)]
pub(super) enum Change {
    /// The content of a block.
    Block(u64, Content),
    /// The length of the file.
    Length(u64),
}

impl Change {
    /// The block it changes; `None` for the length.
    pub(super) fn place(&self) -> Option<u64> {
        match self {
            Self::Block(block, _) => Some(*block),
            Self::Length(_) => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The next sync settles it.
    Waiting,
    /// A failed sync has forgotten it (I4).
    Stray,
}

/// A disk in memory that can tell what a power cut could leave of it.
#[derive(Debug, Default)]
pub struct SimulatedDisk {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    cache: Image,
    durable: Image,
    pieces: Vec<Piece>,
    marks: Vec<Arc<str>>,
    points: Option<Vec<CrashPoint>>,
    syncs: Calls,
    durable_writes: Calls,
}

/// Counts calls of one kind, and knows which one is to fail.
#[derive(Debug, Default)]
struct Calls {
    made: u64,
    failing: Option<u64>,
    failed: u64,
}

impl Calls {
    /// Counts a call; says whether it is the one to fail.
    fn is_failing(&mut self) -> bool {
        self.made += 1;
        let fails = self.failing == Some(self.made);
        self.failed += u64::from(fails);
        fails
    }
}

impl SimulatedDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// A disk that holds `image`, all of it durable: what the store meets after the power came back.
    pub fn from_image(image: &Image) -> Self {
        let state = State { cache: image.clone(), durable: image.clone(), ..State::default() };
        Self { state: Mutex::new(state) }
    }

    /// What reads return: what is left when only the process dies.
    pub fn image(&self) -> Image {
        self.state().cache.clone()
    }

    /// What is surely on the medium.
    pub fn durable_image(&self) -> Image {
        self.state().durable.clone()
    }

    /// Begins to record a crash point at each sync, durable write and mark; forgets those recorded before.
    pub fn start_recording(&self) {
        self.state().points = Some(Vec::new());
    }

    /// The crash points recorded so far, oldest first. Recording goes on.
    pub fn take_crash_points(&self) -> Vec<CrashPoint> {
        self.state().points.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Notes that something has happened (a commit was acknowledged, say): crash points from now on count it among
    /// their marks. It makes one itself.
    pub fn mark(&self, label: &str) {
        let mut state = self.state();
        state.marks.push(label.into());
        state.record(Cause::Mark);
    }

    /// All marks made so far, oldest first.
    pub fn marks(&self) -> Vec<Arc<str>> {
        self.state().marks.clone()
    }

    /// What a power cut at this moment could leave. Needs no recording.
    pub fn crash_point(&self) -> CrashPoint {
        self.state().crash_point(Cause::Mark)
    }

    /// Lets the `nth` sync from now on fail (1 is the next one), with the consequences of I4.
    pub fn fail_sync_at(&self, nth: u64) {
        let calls = &mut self.state().syncs;
        calls.failing = Some(calls.made + nth);
    }

    /// Lets the `nth` durable write from now on fail (1 is the next one), with the consequences of I4.
    pub fn fail_durable_write_at(&self, nth: u64) {
        let calls = &mut self.state().durable_writes;
        calls.failing = Some(calls.made + nth);
    }

    /// How many syncs and durable writes were made to fail: a test's proof that its fault fired.
    pub fn failures(&self) -> u64 {
        let state = self.state();
        state.syncs.failed + state.durable_writes.failed
    }

    // No operation can panic half way, so a poisoned lock hides nothing wrong.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn crash_point(&self, cause: Cause) -> CrashPoint {
        let changes = self.pieces.iter().map(|piece| piece.change.clone()).collect();
        CrashPoint::new(cause, self.durable.clone(), changes, self.marks.len(), self.marks.last().cloned())
    }

    fn record(&mut self, cause: Cause) {
        if self.points.is_some() {
            let point = self.crash_point(cause);
            self.points.get_or_insert_default().push(point);
        }
    }

    fn change(&mut self, change: Change) {
        match &change {
            Change::Block(block, content) => self.cache.set(*block, content.clone()),
            Change::Length(length) => self.cache.set_length(*length),
        }
        self.pieces.push(Piece { change, fate: Fate::Waiting });
    }

    /// Puts a write into the cache (I1). Returns one past its last byte, or `None` if it has no bytes.
    fn write(&mut self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<Option<u64>> {
        let end = image::write_end(offset, buffers)?;
        if end == offset {
            return Ok(None);
        }
        if end > self.cache.length() {
            self.change(Change::Length(end));
        }
        let mut current: Option<(u64, Content)> = None;
        for piece in pieces::of_write(offset, buffers) {
            let before = match current.take() {
                Some((block, content)) if block == piece.block => content,
                other => {
                    other.into_iter().for_each(|(block, content)| self.change(Change::Block(block, content)));
                    self.cache.get(piece.block)
                }
            };
            current = Some((piece.block, image::patched(piece.block, &before, piece.start, piece.bytes)));
        }
        current.into_iter().for_each(|(block, content)| self.change(Change::Block(block, content)));
        Ok(Some(end))
    }

    /// Clears what lies in `[offset, end)` (I1); the length stays.
    fn clear(&mut self, offset: u64, end: u64) {
        let touched: Vec<u64> =
            self.cache.blocks_from(offset / BLOCK_BYTES).take_while(|block| block * BLOCK_BYTES < end).collect();
        for block in touched {
            let base = block * BLOCK_BYTES;
            let (from, to) = (offset.saturating_sub(base) as usize, (end - base).min(BLOCK_BYTES) as usize);
            let mut bytes = *self.cache.get(block).bytes();
            bytes[from..to].fill(0);
            self.change(Change::Block(block, Content::new(block, &bytes)));
        }
    }

    /// A sync that succeeds (I2).
    fn settle_all(&mut self) {
        let mut blocks = HashSet::new();
        let mut length_settled = false;
        for piece in self.pieces.iter().filter(|piece| piece.fate == Fate::Waiting) {
            match &piece.change {
                Change::Block(block, content) => {
                    blocks.insert(*block);
                    self.durable.set(*block, content.clone());
                    // A block beyond the durable length brings the length with it, though that be a stray piece.
                    length_settled |= (block + 1) * BLOCK_BYTES > self.durable.length();
                }
                Change::Length(_) => length_settled = true,
            }
        }
        if length_settled {
            self.durable.set_length(self.cache.length());
        }
        self.pieces.retain(|piece| match &piece.change {
            Change::Block(block, _) => !blocks.contains(block),
            Change::Length(_) => !length_settled,
        });
    }

    /// A durable write of `[offset, end)` that succeeds (I3); its pieces are the newest of their blocks.
    fn settle_range(&mut self, offset: u64, end: u64) {
        let blocks = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        // Whole blocks become durable, so the length must hold all that is in them.
        let end = (blocks.end * BLOCK_BYTES).min(self.cache.length());
        self.pieces.retain(|piece| match &piece.change {
            Change::Block(block, _) => !blocks.contains(block),
            Change::Length(length) => *length >= end,
        });
        if self.durable.length() < end {
            let oldest = self.pieces.iter().position(|piece| matches!(piece.change, Change::Length(_)));
            if let Some(Change::Length(length)) = oldest.map(|place| self.pieces.remove(place).change) {
                self.durable.set_length(length);
            }
        }
        for block in blocks {
            self.durable.set(block, self.cache.get(block));
        }
    }

    /// A sync that fails, for the pieces from number `first` on (I4), and older ones of the same blocks: the cache takes
    /// the whole block for clean.
    fn stray_from(&mut self, first: usize) -> io::Error {
        let places: HashSet<_> = self.pieces[first..].iter().map(|piece| piece.change.place()).collect();
        for piece in self.pieces.iter_mut().filter(|piece| places.contains(&piece.change.place())) {
            piece.fate = Fate::Stray;
        }
        rustix::io::Errno::IO.into()
    }
}

impl Disk for SimulatedDisk {
    fn path(&self) -> &Path {
        Path::new("(simulated)")
    }

    fn read_vectored_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        // Reading is from a clone, so that readers do not wait for each other.
        let cache = self.state().cache.clone();
        cache.read_vectored_at(offset, buffers)
    }

    fn write_vectored_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.state().write(offset, buffers).map(|_| ())
    }

    fn write_durable_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let mut state = self.state();
        let first = state.pieces.len();
        let Some(end) = state.write(offset, buffers)? else { return Ok(()) };
        state.record(Cause::DurableWrite);
        if state.durable_writes.is_failing() {
            return Err(state.stray_from(first));
        }
        state.settle_range(offset, end);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        state.record(Cause::Sync);
        if state.syncs.is_failing() {
            return Err(state.stray_from(0));
        }
        state.settle_all();
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.state().cache.length())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let length = image::held(length)?;
        let mut state = self.state();
        let before = state.cache.length();
        if length < before {
            state.clear(length, before);
        }
        if length != before {
            state.change(Change::Length(length));
        }
        Ok(())
    }

    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let end = image::held(offset.checked_add(length).ok_or(io::ErrorKind::FileTooLarge)?)?;
        let mut state = self.state();
        if length != 0 && end > state.cache.length() {
            state.change(Change::Length(end));
        }
        Ok(())
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut state = self.state();
        let end = offset.saturating_add(length).min(state.cache.length());
        if offset < end {
            state.clear(offset, end);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Block(block, content) => write!(f, "block {block} = {:032x}", content.hash()),
            Self::Length(length) => write!(f, "length = {length}"),
        }
    }
}
