//! Memory of a transaction: private frames, and spilling them when they become too many.
//!
//! - **M1** The private frames of all transactions, and what is sequenced and not yet written, are to be no more than half
//!   of the budget. Who wants more spills its own frames first: those it has not changed for longest, to the extents
//!   that its commit will name (`store/spill.rs`). It is the thread that uses the transaction that does so, and pages
//!   that are open for changing are left alone: so nobody's `&mut` is written from (the borrow flags decide). What only
//!   savepoints hold is spilled in the same way, each frame once. They are encoded like those that a commit finds in
//!   memory, [`BATCH_BYTES`] at a time: that is what it takes beside the budget.
//!   What is all zero is let go and takes no space: that it is zero is what is kept of it.
//! - **M2** What is spilled is read back into memory of its own, and becomes private again when it is changed; its space
//!   is given back when nobody refers to it any more, unless a commit took it over.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::bytes::{Bytes, Held, Spill};
use super::encode::Work;
use super::handle::Shared;
use super::transaction::Transaction;
use crate::buffer::{BufferManager, Frame};
use crate::disk::AlignedBuffer;
use crate::error::{Error, Result};
use crate::format::Compression;
use crate::id::{PageId, SizeClass};
use crate::store::{self, Reserved, Store, read_page};

/// At least so many bytes are spilled at once.
const SPILL_BYTES: usize = 256 << 10;

/// Pages are encoded and written so many bytes at a time, when more are spilled.
const BATCH_BYTES: usize = 4 << 20;

/// A unit of a page: the whole of it, or a chunk.
pub(super) type Unit = (PageId, Option<u32>);

impl Transaction {
    /// A frame of zeros for this transaction; others are spilled for it if need be.
    pub(super) fn frame(&self, class: SizeClass) -> Result<Frame> {
        self.frame_by(class, BufferManager::frame)
    }

    /// As [`Transaction::frame`], with whatever bytes: the caller fills all of it.
    pub(super) fn stale_frame(&self, class: SizeClass) -> Result<Frame> {
        self.frame_by(class, BufferManager::stale_frame)
    }

    fn frame_by(&self, class: SizeClass, obtain: fn(&BufferManager, SizeClass) -> Result<Frame>) -> Result<Frame> {
        let shared = self.shared();
        let bytes = class.page_bytes() as usize;
        if self.report_memory() + bytes > shared.private_limit_bytes {
            self.spill((shared.private_limit_bytes / 4).max(SPILL_BYTES).max(bytes))?;
        }
        match obtain(&shared.manager, class) {
            Err(Error::BudgetExhausted { .. }) => {
                // Everything that can go, goes.
                self.spill(usize::MAX)?;
                match obtain(&shared.manager, class) {
                    Err(Error::BudgetExhausted { .. }) => {
                        shared.flush();
                        obtain(&shared.manager, class)
                    }
                    other => other,
                }
            }
            other => other,
        }
    }

    /// Tells how much memory the transaction's frames take; how much those of all take.
    fn report_memory(&self) -> usize {
        let mut inner = self.own.inner.borrow_mut();
        let (now, before) = (inner.private.memory_bytes(), inner.reported_bytes);
        inner.reported_bytes = now;
        let all = &self.shared().private_bytes;
        match now >= before {
            true => all.fetch_add(now - before, Ordering::Relaxed) + (now - before),
            false => all.fetch_sub(before - now, Ordering::Relaxed) - (before - now),
        }
    }

    /// Bytes of a page, or of a chunk of it, all of which `fill` sets. Where the budget has no room for them, they go to
    /// their place at once, by way of memory that is not the budget's, for as long as that takes.
    pub(super) fn new_bytes(&self, page: PageId, fill: impl FnOnce(&mut [u8])) -> Result<Bytes> {
        let class = page.class().min(SizeClass::CHUNK);
        match self.stale_frame(class) {
            Ok(mut frame) => {
                if let Some(bytes) = frame.get_mut() {
                    fill(bytes);
                }
                Ok(Bytes::Frame(frame))
            }
            Err(error @ (Error::BudgetTooSmall { .. } | Error::BudgetExhausted { .. })) => {
                let mut buffer = buffer(class)?;
                fill(&mut buffer);
                let spilled = spill_units(&self.turn.handle.shared, &[(&buffer[..], self.compression(page))])?;
                spilled.into_iter().next().ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    /// The bytes in memory.
    pub(super) fn held(&self, page: PageId, bytes: &Bytes) -> Result<Held> {
        match bytes {
            Bytes::Frame(frame) => Ok(Held::Frame(frame.clone())),
            Bytes::Spilled(spill) => {
                let mut frame = self.stale_frame(page.class().min(SizeClass::CHUNK))?;
                if let Some(target) = frame.get_mut() {
                    self.read_spilled(page, spill, target)?;
                }
                Ok(Held::Frame(frame))
            }
            Bytes::Zeros(zeros) => Ok(Held::Lent(Arc::new(*zeros))),
        }
    }

    /// Whether a page or chunk has these bytes.
    pub(super) fn equals(&self, page: PageId, bytes: &Bytes, other: &[u8]) -> Result<bool> {
        match bytes {
            Bytes::Frame(frame) => Ok(frame[..] == *other),
            Bytes::Spilled(spill) => {
                let mut whole = buffer(page.class().min(SizeClass::CHUNK))?;
                self.read_spilled(page, spill, &mut whole)?;
                Ok(whole[..] == *other)
            }
            Bytes::Zeros(zeros) => Ok(**zeros == *other),
        }
    }

    /// Fills `target` with a part of the bytes of a page or chunk.
    pub(super) fn copy_part(&self, page: PageId, bytes: &Bytes, start: usize, target: &mut [u8]) -> Result<()> {
        match bytes {
            Bytes::Frame(frame) => target.copy_from_slice(&frame[start..start + target.len()]),
            Bytes::Spilled(spill) => {
                let mut whole = buffer(page.class().min(SizeClass::CHUNK))?;
                self.read_spilled(page, spill, &mut whole)?;
                target.copy_from_slice(&whole[start..start + target.len()]);
            }
            Bytes::Zeros(_) => target.fill(0),
        }
        Ok(())
    }

    fn read_spilled(&self, page: PageId, spill: &Spill, target: &mut [u8]) -> Result<()> {
        let shared = self.shared();
        shared.while_open(|| read_page(shared.nodes.disk().as_ref(), page, &spill.spilled.pointer(), target))
    }

    /// Spills about `wanted` bytes of this transaction's frames, the coldest first; as many as there are.
    fn spill(&self, wanted: usize) -> Result<()> {
        let victims = self.own.inner.borrow().coldest(wanted);
        if victims.is_empty() {
            return Ok(());
        }
        let mut rest = &victims[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let is_within = |(_, frame): &&(Unit, Frame)| {
                bytes += frame.len();
                bytes <= BATCH_BYTES
            };
            let (batch, others) = rest.split_at(rest.iter().take_while(is_within).count().max(1));
            let units: Vec<(&[u8], Compression)> =
                batch.iter().map(|((page, _), frame)| (&frame[..], self.compression(*page))).collect();
            let spilled = spill_units(&self.turn.handle.shared, &units)?;
            let mut inner = self.own.inner.borrow_mut();
            for ((unit, frame), instead) in batch.iter().zip(&spilled) {
                inner.private.spilled(*unit, frame, instead);
            }
            rest = others;
        }
        self.report_memory();
        Ok(())
    }

    /// How the transaction stores a page.
    fn compression(&self, page: PageId) -> Compression {
        let said = self.own.inner.borrow().private.compression(page);
        said.unwrap_or_else(|| self.shared().options.compression.of(page.class()))
    }
}

/// Memory beside the budget, for as long as a call takes.
fn buffer(class: SizeClass) -> Result<AlignedBuffer> {
    let bytes = class.page_bytes() as usize;
    AlignedBuffer::try_zeroed(bytes).map_err(|source| Error::Memory { operation: "allocation", bytes, source })
}

/// As many zeros as these bytes are, if they are zeros.
fn zeros_like(bytes: &[u8]) -> Result<Option<&'static [u8]>> {
    static ZEROS: OnceLock<AlignedBuffer> = OnceLock::new();
    if bytes.iter().any(|byte| *byte != 0) {
        return Ok(None);
    }
    if ZEROS.get().is_none() {
        // Who comes second drops its own.
        let _ = ZEROS.set(buffer(SizeClass::CHUNK)?);
    }
    Ok(ZEROS.get().and_then(|zeros| zeros.get(..bytes.len())))
}

/// Keeps units without memory: writes them, encoded as is said of each, to space of their own, unless they are zeros.
fn spill_units(shared: &Arc<Shared>, units: &[(&[u8], Compression)]) -> Result<Vec<Bytes>> {
    let zeros = units.iter().map(|(bytes, _)| zeros_like(bytes)).collect::<Result<Vec<_>>>()?;
    let others = units.iter().zip(&zeros).filter(|(_, zeros)| zeros.is_none()).map(|(unit, _)| *unit);
    let mut written = write_units(shared, &others.collect::<Vec<_>>())?.into_iter();
    let kept = zeros.into_iter().map(|zeros| match zeros {
        Some(zeros) => Some(Bytes::Zeros(zeros)),
        None => written.next().map(Bytes::Spilled),
    });
    Ok(kept.flatten().collect())
}

/// Writes units, encoded as is said of each, to space of their own.
fn write_units(shared: &Arc<Shared>, units: &[(&[u8], Compression)]) -> Result<Vec<Arc<Spill>>> {
    if units.is_empty() {
        return Ok(Vec::new());
    }
    let mut contents: Vec<store::Content<'_>> = units.iter().map(|(bytes, _)| (*bytes).into()).collect();
    let mut work = Work::default();
    for (content, (_, compression)) in contents.iter_mut().zip(units) {
        work.add(content, *compression);
    }
    work.run();
    let reserved = {
        let mut core = shared.lock()?;
        shared.take_given_back(&mut core.store);
        let mut result = core.store.reserve(&mut contents);
        if result.as_ref().is_err_and(Error::is_no_space) {
            let (returned, reclaimed) = shared.reclaim(core);
            core = returned;
            result = reclaimed.and_then(|()| core.store.reserve(&mut contents));
        }
        shared.settle(core, result)?
    };
    let pairs: Vec<(Reserved, &store::Content<'_>)> = reserved.iter().copied().zip(&contents).collect();
    match shared.medium.spill(&pairs) {
        Ok(spilled) => Ok(spilled.into_iter().map(|spilled| Arc::new(Spill::new(spilled, shared))).collect()),
        Err(error) => {
            reserved.into_iter().for_each(|reserved| shared.give_back(reserved));
            Err(error)
        }
    }
}

impl super::transaction::Inner {
    /// Frames that can be spilled, about `wanted` bytes of them, those that were changed longest ago.
    fn coldest(&self, wanted: usize) -> Vec<(Unit, Frame)> {
        let mut found: Vec<(u64, Unit, &Frame)> = Vec::new();
        for (page, private) in self.private.pages() {
            if self.borrowed.contains(page) {
                continue;
            }
            let frames = private.content.frames();
            found.extend(frames.map(|(chunk, frame)| (private.changed, (*page, chunk), frame)));
        }
        // These do not change, whether the page is open or not (V1).
        found.extend(self.private.savepoints().frames());
        found.sort_unstable_by_key(|(changed, unit, _)| (*changed, *unit));
        let mut bytes = 0;
        let enough = |(_, _, frame): &(u64, Unit, &Frame)| {
            let more = bytes < wanted;
            bytes += frame.len();
            more
        };
        let mut victims: Vec<(Unit, Frame)> =
            found.into_iter().take_while(enough).map(|(_, unit, frame)| (unit, frame.clone())).collect();
        // In the order of their pages, which is how they may be read again.
        victims.sort_unstable_by_key(|(unit, _)| *unit);
        victims
    }
}

impl Shared {
    /// Gives reserved space back: at once if the core is free, else with the next commit.
    pub(super) fn give_back(&self, reserved: Reserved) {
        lock(&self.given_back).push(reserved);
        if let Ok(mut core) = self.core.try_lock() {
            self.take_given_back(&mut core.store);
        }
    }
}

impl Shared {
    /// Makes space free that was given back since.
    pub(super) fn take_given_back(&self, store: &mut Store) {
        for reserved in std::mem::take(&mut *lock(&self.given_back)) {
            // It fails only for what is not reserved any more, and for a bitmap that cannot be read, which the next
            // commit will say.
            let _ = store.give_back_reserved(reserved);
        }
    }
}

/// A panic while the lock is held leaves the list whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
