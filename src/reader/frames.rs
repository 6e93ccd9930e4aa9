//! Pages in frames of a buffer manager.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use super::Shared;
use crate::buffer::{BufferManager, FrameGuard, Newest, PageSource, ReadState, StorePages};
use crate::error::{Error, Result};
use crate::format::{BlockPointer, CodecId};
use crate::id::{Extent, Generation, PageId, SizeClass};
use crate::map::Nodes;
use crate::pager::ahead;
use crate::store::{PageReader, Pinned, State, file_place, is_stored, read_page};

/// A reader's pages in the buffer.
#[derive(Debug)]
pub(super) struct Frames {
    source: Arc<Source>,
    pages: StorePages,
}

/// How the buffer reads the store.
#[derive(Debug)]
struct Source {
    nodes: Arc<Nodes>,
    /// The state that is shown, or is about to be.
    newest: Mutex<Arc<State>>,
}

/// A state, as the buffer asks for it.
#[derive(Debug)]
pub(super) struct At<'a> {
    pub(super) state: &'a Pinned,
    pub(super) shared: &'a Shared,
}

impl ReadState for At<'_> {
    fn generation(&self) -> Generation {
        self.state.generation
    }

    fn pointer(&self, page: PageId) -> Result<BlockPointer> {
        self.state.pointer_to_read(&self.shared.nodes, page)
    }
}

impl ahead::Source for At<'_> {
    fn state(&self) -> &State {
        self.state
    }

    fn nodes(&self) -> &Nodes {
        &self.shared.nodes
    }

    #[inline]
    fn pages(&self) -> &StorePages {
        &self.shared.frames.pages
    }

    /// What is mapped is read by the system; what is not right there, by whoever meets it.
    fn begin(&self, pages: &[PageId]) -> Result<()> {
        let Some(mapped) = &self.shared.mapped else { return self.pages().prefetch(self, pages) };
        // Pages that were made together mostly lie together: one call for all of them.
        let mut run = Extent::default();
        for page in pages {
            let extent = match self.pointer(*page) {
                Err(Error::PageNotFound { .. }) => continue,
                pointer => pointer?.extent(),
            };
            if extent.start == run.end() {
                run.blocks = run.blocks.saturating_add(extent.blocks);
            } else {
                mapped.will_need(run);
                run = extent;
            }
        }
        mapped.will_need(run);
        Ok(())
    }

    fn begin_chunks(&self, page: PageId, chunks: &[BlockPointer]) {
        match &self.shared.mapped {
            Some(mapped) => chunks.iter().for_each(|chunk| mapped.will_need(chunk.extent())),
            None => self.pages().prefetch_chunks(page, chunks),
        }
    }
}

impl PageSource for Source {
    fn newest_pointer(&self, page: PageId) -> Result<BlockPointer> {
        let newest = Arc::clone(&self.newest.lock().unwrap_or_else(PoisonError::into_inner));
        newest.pointer(&self.nodes, page)
    }

    fn load(&self, page: PageId, pointer: &BlockPointer, target: &mut [u8]) -> Result<()> {
        match target.len() as u64 == page.class().page_bytes() {
            true => PageReader::new(&self.nodes).read(page, pointer, 0, target),
            false => read_page(self.nodes.disk().as_ref(), page, pointer, target),
        }
    }

    fn place_of(&self, page: PageId, pointer: &BlockPointer) -> Option<(&File, u64)> {
        file_place(self.nodes.disk().as_ref(), pointer, page.class().min(SizeClass::CHUNK).page_bytes())
    }

    fn is_right(&self, _page: PageId, pointer: &BlockPointer, bytes: &[u8]) -> bool {
        is_stored(pointer, bytes)
    }
}

impl Frames {
    pub(super) fn new(buffer: &BufferManager, nodes: &Arc<Nodes>, newest: &State) -> Result<Self> {
        let newest = Mutex::new(Arc::new(newest.clone()));
        let source = Arc::new(Source { nodes: Arc::clone(nodes), newest });
        let pages = buffer.attach(Arc::clone(&source) as _)?;
        Ok(Self { source, pages })
    }

    pub(super) fn pages(&self) -> &StorePages {
        &self.pages
    }

    /// The pages that differ in a state that is to be shown are not the newest any more.
    pub(super) fn change(&self, newest: &State, pages: &[PageId]) {
        *self.source.newest.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(newest.clone());
        self.pages.publish(newest.generation, &mut pages.iter().map(|page| (*page, Newest::Absent)));
    }

    /// One chunk of a page above 1 MiB; `None` if it is all zero.
    pub(super) fn chunk(&self, page: PageId, chunk: &BlockPointer) -> Result<Option<FrameGuard>> {
        match chunk.codec {
            CodecId::NULL | CodecId::ZERO => Ok(None),
            _ => self.pages.unit(page, chunk, SizeClass::CHUNK).map(Some),
        }
    }
}
