//! A disk over shared bytes: what is written, or damaged, lies in blocks of its own. Making one copies nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use vellum::disk::Disk;

pub(crate) const BLOCK: usize = 4096;

/// See the module.
#[derive(Debug)]
pub(crate) struct Overlay {
    base: Arc<Vec<u8>>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    blocks: BTreeMap<u64, Box<[u8; BLOCK]>>,
    length: u64,
    reads: BTreeSet<u64>,
    /// Those of them that had not been written here.
    reads_of_base: BTreeSet<u64>,
    unreadable: Option<u64>,
}

impl Overlay {
    pub(crate) fn new(base: &Arc<Vec<u8>>) -> Self {
        let inner = Inner {
            blocks: BTreeMap::new(),
            length: base.len() as u64,
            reads: BTreeSet::new(),
            reads_of_base: BTreeSet::new(),
            unreadable: None,
        };
        Self { base: Arc::clone(base), inner: Mutex::new(inner) }
    }

    /// Replaces a block.
    pub(crate) fn put(&self, block: u64, bytes: &[u8]) {
        let mut copy = Box::new([0; BLOCK]);
        copy.copy_from_slice(bytes);
        self.inner().blocks.insert(block, copy);
    }

    /// Lets every read of a block fail.
    pub(crate) fn make_unreadable(&self, block: u64) {
        self.inner().unreadable = Some(block);
    }

    /// Changes a bit of a block.
    pub(crate) fn flip(&self, block: u64, bit: usize) {
        let mut inner = self.inner();
        inner.own(&self.base, block)[bit / 8] ^= 1 << (bit % 8);
    }

    /// The blocks read since the last call.
    pub(crate) fn take_reads(&self) -> BTreeSet<u64> {
        std::mem::take(&mut self.inner().reads)
    }

    /// The blocks that were ever read before anything was written to them here.
    pub(crate) fn reads_of_base(&self) -> BTreeSet<u64> {
        self.inner().reads_of_base.clone()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }
}

impl Inner {
    fn own(&mut self, base: &[u8], block: u64) -> &mut [u8; BLOCK] {
        self.blocks.entry(block).or_insert_with(|| {
            let mut copy = Box::new([0; BLOCK]);
            let start = block as usize * BLOCK;
            if let Some(bytes) = base.get(start..start + BLOCK) {
                copy.copy_from_slice(bytes);
            }
            copy
        })
    }
}

/// The parts of `[offset, offset + length)` by block: block, start in it, length.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let start = (at % BLOCK as u64) as usize;
        let count = (BLOCK - start).min(length - done);
        done += count;
        (count > 0).then_some((at / BLOCK as u64, start, count))
    })
}

impl Disk for Overlay {
    fn path(&self) -> &Path {
        Path::new("(overlay)")
    }

    fn read_vectored_at(&self, mut offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let mut inner = self.inner();
        for buffer in buffers {
            if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > inner.length) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut done = 0;
            for (block, start, count) in pieces(offset, buffer.len()) {
                let target = &mut buffer[done..done + count];
                let at = block as usize * BLOCK + start;
                match (inner.blocks.get(&block), self.base.get(at..at + count)) {
                    (Some(own), _) => target.copy_from_slice(&own[start..start + count]),
                    (None, Some(bytes)) => target.copy_from_slice(bytes),
                    (None, None) => target.fill(0),
                }
                if inner.unreadable == Some(block) {
                    return Err(io::Error::other("unreadable"));
                }
                inner.reads.insert(block);
                if !inner.blocks.contains_key(&block) {
                    inner.reads_of_base.insert(block);
                }
                done += count;
            }
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    fn write_vectored_at(&self, mut offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let mut inner = self.inner();
        for buffer in buffers {
            let mut done = 0;
            for (block, start, count) in pieces(offset, buffer.len()) {
                inner.own(&self.base, block)[start..start + count].copy_from_slice(&buffer[done..done + count]);
                done += count;
            }
            offset += buffer.len() as u64;
            inner.length = inner.length.max(offset);
        }
        Ok(())
    }

    fn write_durable_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.write_vectored_at(offset, buffers)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.inner().length)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.inner().length = length;
        Ok(())
    }

    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut inner = self.inner();
        inner.length = inner.length.max(offset + length);
        Ok(())
    }

    fn punch_hole(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}
