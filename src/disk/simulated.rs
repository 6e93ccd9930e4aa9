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
use std::ops::Range;
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
        let waiting = |piece: &&Piece| piece.fate == Fate::Waiting;
        let settled: HashSet<_> = self.pieces.iter().filter(waiting).map(|piece| piece.change.place()).collect();
        self.pieces.retain(|piece| !settled.contains(&piece.change.place()));
        if settled.contains(&None) {
            self.durable.set_length(self.cache.length());
        }
        let blocks: Vec<u64> = settled.into_iter().flatten().collect();
        self.settle_blocks(&blocks);
    }

    /// A durable write of these blocks that succeeds (I3); its pieces are the newest of them.
    fn settle_range(&mut self, blocks: Range<u64>) {
        self.pieces.retain(|piece| piece.change.place().is_none_or(|block| !blocks.contains(&block)));
        self.settle_blocks(&blocks.collect::<Vec<_>>());
    }

    /// Makes these blocks durable as the cache has them, and a length that holds them: whichever of the open ones does.
    fn settle_blocks(&mut self, blocks: &[u64]) {
        let end = blocks.iter().max().map_or(0, |last| (last + 1) * BLOCK_BYTES).min(self.cache.length());
        self.pieces.retain(|piece| !matches!(piece.change, Change::Length(length) if length < end));
        if self.durable.length() < end {
            let oldest = self.pieces.iter().position(|piece| piece.change.place().is_none());
            if let Some(Change::Length(length)) = oldest.map(|place| self.pieces.remove(place).change) {
                self.durable.set_length(length);
            }
        }
        for &block in blocks {
            if block * BLOCK_BYTES < self.durable.length() {
                self.durable.set(block, self.cache.get(block));
            }
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
        state.settle_range(offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Tear;
    use crate::id::BLOCK_LENGTH;

    fn write(disk: &SimulatedDisk, block: u64, byte: u8) {
        disk.write_at(block * BLOCK_BYTES, &[byte; BLOCK_LENGTH]).unwrap();
    }

    fn write_durable(disk: &SimulatedDisk, block: u64, byte: u8) -> io::Result<()> {
        disk.write_durable_at(block * BLOCK_BYTES, &[IoSlice::new(&[byte; BLOCK_LENGTH])])
    }

    /// The first byte of each block that a power cut now may leave, over all states.
    fn bytes_left(disk: &SimulatedDisk, block: u64) -> Vec<u8> {
        let mut found: Vec<u8> = disk
            .crash_point()
            .states(Tear::Never)
            .filter_map(|(_, image)| {
                let mut byte = [0];
                image.read_at(block * BLOCK_BYTES, &mut byte).ok().map(|()| byte[0])
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    fn three_blocks() -> SimulatedDisk {
        SimulatedDisk::from_image(&Image::from_bytes(&[1; 3 * BLOCK_LENGTH]))
    }

    #[test]
    fn a_sync_makes_everything_durable() {
        let disk = three_blocks();
        write(&disk, 0, 2);
        write(&disk, 4, 3);
        disk.punch_hole(BLOCK_BYTES, BLOCK_BYTES).unwrap();
        disk.sync().unwrap();
        assert_eq!(disk.durable_image(), disk.image());
        assert_eq!(disk.crash_point().count(Tear::Every16), 1);
        assert_eq!(
            [0, 1, 2, 3, 4].map(|block| bytes_left(&disk, block)),
            [vec![2], vec![0], vec![1], vec![0], vec![3]]
        );
    }

    #[test]
    fn a_durable_write_makes_nothing_durable_that_was_written_before() {
        let disk = three_blocks();
        write(&disk, 0, 2);
        disk.set_length(5 * BLOCK_BYTES).unwrap();
        write_durable(&disk, 1, 3).unwrap();
        assert_eq!([0, 1, 2].map(|block| bytes_left(&disk, block)), [vec![1, 2], vec![3], vec![1]]);
        let lengths: Vec<u64> = disk.crash_point().states(Tear::Never).map(|(_, image)| image.length()).collect();
        assert!(lengths.contains(&(3 * BLOCK_BYTES)) && lengths.contains(&(5 * BLOCK_BYTES)));
    }

    #[test]
    fn a_durable_write_takes_the_place_of_older_writes_and_has_the_length_it_needs() {
        let disk = three_blocks();
        write(&disk, 5, 2);
        write(&disk, 6, 2);
        write_durable(&disk, 5, 4).unwrap();
        assert_eq!([4, 5, 6].map(|block| bytes_left(&disk, block)), [vec![0], vec![4], vec![0, 2]]);
        write(&disk, 5, 5);
        assert_eq!(bytes_left(&disk, 5), [4, 5]);
        // A part of a block: the cache holds, and writes, the whole.
        disk.write_durable_at(5 * BLOCK_BYTES + 8, &[IoSlice::new(b"part")]).unwrap();
        assert_eq!(bytes_left(&disk, 5), [5]);
    }

    #[test]
    fn a_crash_point_is_recorded_where_something_is_about_to_become_durable() {
        let disk = three_blocks();
        disk.sync().unwrap();
        disk.start_recording();
        write(&disk, 0, 2);
        write_durable(&disk, 1, 3).unwrap();
        disk.mark("first");
        disk.sync().unwrap();
        disk.mark("second");
        let points = disk.take_crash_points();
        let seen: Vec<_> =
            points.iter().map(|point| (point.cause(), point.marks(), point.count(Tear::Never))).collect();
        // At the durable write its own block and the older one are open; then the older one; then none.
        let expected = [(Cause::DurableWrite, 0, 4), (Cause::Mark, 1, 2), (Cause::Sync, 1, 2), (Cause::Mark, 2, 1)];
        assert_eq!(seen, expected);
        assert_eq!(
            points.iter().map(CrashPoint::last_mark).collect::<Vec<_>>(),
            [None, Some("first"), Some("first"), Some("second")]
        );
        assert_eq!(disk.take_crash_points().len(), 0);
        disk.sync().unwrap();
        assert_eq!(disk.take_crash_points().len(), 1);
        assert_eq!(disk.marks().len(), 2);
    }

    #[test]
    fn after_a_failed_sync_the_cache_says_what_the_medium_may_not_hold() {
        let disk = three_blocks();
        write(&disk, 0, 2);
        write(&disk, 1, 2);
        disk.fail_sync_at(2);
        disk.sync().unwrap();
        write(&disk, 0, 3);
        write(&disk, 4, 3);
        assert_eq!(disk.sync().unwrap_err().raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
        assert_eq!(disk.failures(), 1);
        // Reads return what was written, and a later sync says all is well.
        let mut byte = [0];
        disk.read_at(4 * BLOCK_BYTES, &mut byte).unwrap();
        assert_eq!(byte, [3]);
        write(&disk, 1, 4);
        disk.sync().unwrap();
        assert_eq!([0, 1, 4].map(|block| bytes_left(&disk, block)), [vec![2, 3], vec![4], vec![0, 3]]);
        assert_eq!(disk.durable_image().length(), 3 * BLOCK_BYTES);
        // What is written again, though with the same bytes, is settled by the next sync, the length with it.
        write(&disk, 0, 3);
        write(&disk, 4, 3);
        disk.sync().unwrap();
        assert_eq!(disk.crash_point().count(Tear::Never), 1);
        assert_eq!(disk.durable_image(), disk.image());
    }

    #[test]
    fn a_failed_durable_write_leaves_its_own_blocks_in_doubt() {
        let disk = three_blocks();
        write(&disk, 0, 2);
        write(&disk, 1, 2);
        disk.fail_durable_write_at(1);
        write_durable(&disk, 1, 3).unwrap_err();
        disk.sync().unwrap();
        assert_eq!([0, 1].map(|block| bytes_left(&disk, block)), [vec![2], vec![1, 2, 3]]);
        assert_eq!(disk.failures(), 1);
        write_durable(&disk, 1, 3).unwrap();
        assert_eq!(bytes_left(&disk, 1), [3]);
    }
}
