//! Between the store and the buffer: what the buffer reads, and what it is told of commits.
//!
//! - **U1** The pointers of a publication are in `beginning` before the buffer's descriptors are swapped, and stay there
//!   at least until the new state is visible: so the newest pointer is known from before the swap on.
//! - **U2** Every descriptor of a commit is swapped before any view of its generation exists (the store's P2).

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex};

use crate::buffer::{Change, ChunkChange, Frame, Newest, PageSource, StorePages};
use crate::error::Result;
use crate::format::{BlockPointer, CodecId};
use crate::id::{PageId, SizeClass};
use crate::lock::lock_awake;
use crate::map::Nodes;
use crate::store::{PageReader, Publication, PublishHook, Published, StoredBytes, StoredPages};
use crate::store::{file_place, is_stored, read_page};

/// How the buffer reads the store.
#[derive(Debug)]
pub(super) struct Source {
    nodes: Arc<Nodes>,
    published: Arc<Published>,
    /// The pages of the newest publication, in rising order.
    beginning: Mutex<Vec<(PageId, BlockPointer)>>,
}

/// What tells the buffer of commits.
#[derive(Debug)]
pub(super) struct Publisher {
    pages: StorePages,
    source: Arc<Source>,
    /// Frames of the commit that is on its way.
    frames: Mutex<Frames>,
}

/// Frames of a commit.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Of pages of at most 1 MiB, in rising order.
    pub(super) pages: Vec<(PageId, Frame)>,
    /// Of chunks of larger ones, by number.
    pub(super) chunks: Vec<((PageId, u32), Frame)>,
}

impl Source {
    pub(super) fn new(nodes: &Arc<Nodes>, published: &Arc<Published>) -> Self {
        Self { nodes: Arc::clone(nodes), published: Arc::clone(published), beginning: Mutex::default() }
    }
}

impl PageSource for Source {
    fn newest_pointer(&self, page: PageId) -> Result<BlockPointer> {
        {
            let beginning = lock_awake(&self.beginning);
            if let Ok(place) = beginning.binary_search_by_key(&page, |(page, _)| *page) {
                return Ok(beginning[place].1);
            }
        }
        self.published.pin().pointer(&self.nodes, page)
    }

    fn load(&self, page: PageId, pointer: &BlockPointer, target: &mut [u8]) -> Result<()> {
        if target.len() as u64 == page.class().page_bytes() && page.class().is_chunked() {
            if pointer.is_indirect() {
                return PageReader::new(&self.nodes).read(page, pointer, 0, target);
            }
            if pointer.codec == CodecId::ZERO {
                target.fill(0);
                return Ok(());
            }
        }
        read_page(self.nodes.disk().as_ref(), page, pointer, target)
    }

    fn place_of(&self, page: PageId, pointer: &BlockPointer) -> Option<(&File, u64)> {
        file_place(self.nodes.disk().as_ref(), pointer, page.class().min(SizeClass::CHUNK).page_bytes())
    }

    fn is_right(&self, _page: PageId, pointer: &BlockPointer, bytes: &[u8]) -> bool {
        is_stored(pointer, bytes)
    }
}

impl Publisher {
    pub(super) fn new(pages: StorePages, source: Arc<Source>) -> Self {
        Self { pages, source, frames: Mutex::default() }
    }

    /// The frames of the next commit; they are published with it, if it happens.
    pub(super) fn set_frames(&self, frames: Frames) {
        *lock_awake(&self.frames) = frames;
    }
}

impl PublishHook for Publisher {
    fn prepare(&self, publication: &Publication<'_>) {
        self.pages.prepare_to_publish(&mut publication.pages().map(|update| update.page));
    }

    fn publish(&self, publication: &Publication<'_>) {
        let Frames { pages, chunks } = std::mem::take(&mut *lock_awake(&self.frames));
        let mut frames = pages.into_iter().peekable();
        let mut beginning: Vec<_> =
            publication.pages().chain(publication.moves()).map(|update| (update.page, update.new)).collect();
        // They are in order but for pages of chunks, which may come last.
        beginning.sort_unstable_by_key(|(page, _)| *page);
        *lock_awake(&self.source.beginning) = beginning;
        let is_held = self.source.published.held().0 > 0;
        self.publish_chunks(publication, chunks, is_held);
        let mut updates: Vec<_> = publication.pages().collect();
        updates.sort_unstable_by_key(|update| update.page);
        let mut changes = updates.into_iter().map(|update| {
            while frames.next_if(|(page, _)| *page < update.page).is_some() {}
            let frame = frames.next_if(|(page, _)| *page == update.page).map(|(_, frame)| frame);
            // A page that came out as zeros has no place, and takes no memory until it is read.
            let frame = frame.filter(|_| !update.new.extent().is_empty());
            let keep = is_held && !update.old.extent().is_empty();
            Change {
                page: update.page,
                newest: frame.map_or(Newest::Absent, Newest::Frame),
                replaced: keep.then_some(update.old),
            }
        });
        self.pages.publish_keeping(publication.generation, &mut changes);
    }
}

impl Publisher {
    /// What was written of large pages is in memory, as small pages are. What nobody can ask for any more is not.
    fn publish_chunks(&self, publication: &Publication<'_>, frames: Vec<((PageId, u32), Frame)>, is_held: bool) {
        let mut frames: HashMap<(PageId, u32), Frame> = frames.into_iter().collect();
        let mut changes = publication.chunks.iter().map(|update| ChunkChange {
            new: update.new,
            // Zeros have no place, and are not looked for.
            frame: frames.remove(&(update.page, update.chunk)).filter(|_| !update.new.extent().is_empty()),
            gone: (!is_held && !update.old.extent().is_empty()).then_some(update.old),
        });
        self.pages.publish_chunks(&mut changes);
    }
}

impl StoredPages for Publisher {
    /// What is in memory are the bytes of the page: of a raw one they are what is stored.
    fn stored(&self, page: PageId, pointer: &BlockPointer) -> Option<StoredBytes> {
        if pointer.codec != CodecId::RAW || pointer.is_indirect() {
            return None;
        }
        Some(Box::new(self.pages.newest_resident(page)?))
    }
}
