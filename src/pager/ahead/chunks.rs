//! Reading ahead within pages above 1 MiB: the chunks that come next.
//!
//! What a range touches is wanted for certain, so its chunks are begun while the first is read, whatever was said of the
//! order. Beyond the range the next ones are loaded if chunks are read in order, or are said to be.
//!
//! A chunk is looked up under a lock anyway, so what was read last is kept under one too; who does not get it at once
//! reads without reading ahead.

use super::{Access, Ahead, BUDGET_PART, RUN, Source};
use crate::format::{BlockPointer, CodecId};
use crate::id::{PageId, SizeClass};
use crate::store::PageReader;

/// Chunks that are loaded ahead at most.
const WINDOW_CHUNKS: u64 = 4;

/// What was read last of a large page.
#[derive(Debug, Default)]
pub(super) struct ChunkRun {
    page: Option<PageId>,
    /// The chunk that was read last.
    last: u32,
    /// How many before it went up to it.
    run: u32,
    /// The one after those that were loaded ahead.
    end: u32,
}

impl ChunkRun {
    /// A chunk is about to be read; how many were read in order, this one included.
    fn read(&mut self, page: PageId, chunk: u32) -> u32 {
        let is_same = self.page == Some(page);
        if is_same && chunk == self.last {
            return self.run;
        }
        let run = if is_same && chunk == self.last + 1 { self.run.saturating_add(1) } else { 1 };
        // Elsewhere, nothing is known to be on its way.
        let end = if run > 1 { self.end } else { 0 };
        *self = Self { page: Some(page), last: chunk, run, end };
        run
    }
}

impl Ahead {
    /// `chunk` of `page`, which lies at `pointer`, is about to be read, and then those up to `last`. Begins to load what
    /// comes next.
    pub(crate) fn chunk(&self, at: &impl Source, page: PageId, pointer: &BlockPointer, chunk: u32, last: u32) {
        let window = WINDOW_CHUNKS.min(at.pages().budget_bytes() / BUDGET_PART / SizeClass::CHUNK.page_bytes()) as u32;
        let Ok(mut chunks) = self.chunks.try_lock() else { return };
        let run = chunks.read(page, chunk);
        let goes_on = match self.access() {
            Access::Random => false,
            Access::Sequential | Access::Once => true,
            Access::Normal => run >= RUN,
        };
        let in_range = last.saturating_add(1);
        let wanted = if goes_on { u32::MAX } else { in_range };
        let end = wanted.min(chunk.saturating_add(1).saturating_add(window)).min(page.class().chunks() as u32);
        let start = chunks.end.max(chunk + 1);
        if start >= end {
            return;
        }
        chunks.end = end;
        drop(chunks);
        let reader = PageReader::new(at.nodes());
        let mut next = Vec::new();
        for chunk in start..end {
            // Whoever reads it meets the same error, and is told.
            let Ok(pointer) = reader.chunk(page, pointer, chunk) else { return };
            // What was never written, or is all zero, is not read.
            next.extend((!matches!(pointer.codec, CodecId::NULL | CodecId::ZERO)).then_some(pointer));
        }
        at.begin_chunks(page, &next);
    }
}
