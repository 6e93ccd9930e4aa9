//! Compression: which page is encoded how, and doing it before the commit, or who spills, has the core.
//!
//! Encoding is a function of a page's bytes and the choice made for it, so what is committed does not depend on how many
//! threads did it. The core is not locked meanwhile; other threads read, and a checkpoint goes on.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::format::Compression;
use crate::id::{BLOCK_LENGTH, PageId, SizeClass};
use crate::store::{Changes, Content, PageChange};

/// Bytes to encode for which one more thread is worth starting. A thread takes 30 to 60 µs to start and end; LZ4 encodes
/// so many bytes in about 300 µs (`cargo bench --bench compression`).
const BYTES_PER_THREAD: usize = 64 << 10;
/// More threads than this one commit does not start.
const THREADS_LIMIT: usize = 16;

/// What a pager stores its pages as, where nothing else is said of a page.
#[derive(Clone, Debug, Default)]
pub(super) struct Policy {
    store: Compression,
    classes: [Option<Compression>; SizeClass::COUNT],
}

impl Policy {
    pub(super) fn set(&mut self, compression: Compression) {
        self.store = compression;
    }

    pub(super) fn set_class(&mut self, class: SizeClass, compression: Compression) {
        self.classes[class.index()] = Some(compression);
    }

    pub(super) fn of(&self, class: SizeClass) -> Compression {
        self.classes[class.index()].unwrap_or(self.store)
    }
}

/// Pages and chunks to be encoded, by this thread and others.
#[derive(Default)]
pub(super) struct Work<'a, 'b> {
    parts: Vec<Part<'a, 'b>>,
    bytes: usize,
}

/// One of them: taken by the thread that encodes it, and put back.
struct Part<'a, 'b> {
    content: Mutex<&'b mut Content<'a>>,
    compression: Compression,
}

/// Encodes what is to be encoded of a commit: `choose` says how. Large commits are encoded by several threads.
pub(super) fn encode<'a>(changes: &mut Changes<'a>, choose: impl Fn(PageId) -> Compression) {
    let mut work = Work::default();
    for (page, change) in &mut changes.pages {
        if page.class() == SizeClass::MIN {
            continue;
        }
        let compression = choose(*page);
        match change {
            PageChange::Whole(content) => work.add(content, compression),
            PageChange::Chunks(chunks) | PageChange::OnlyChunks(chunks) => {
                chunks.values_mut().for_each(|content| work.add(content, compression));
            }
            PageChange::Zero | PageChange::Free => {}
        }
    }
    work.run();
}

impl<'a, 'b> Work<'a, 'b> {
    /// Adds a page or chunk, if there is anything to do.
    pub(super) fn add(&mut self, content: &'b mut Content<'a>, compression: Compression) {
        if let Content::Bytes(page) = &*content
            && page.len() > BLOCK_LENGTH
            && !compression.is_none()
        {
            self.bytes += page.len();
            self.parts.push(Part { content: Mutex::new(content), compression });
        }
    }

    /// Encodes everything.
    pub(super) fn run(self) {
        let Self { parts, bytes } = self;
        let next = AtomicUsize::new(0);
        let run = || {
            while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                let mut content = part.content.lock().unwrap_or_else(PoisonError::into_inner);
                if let Content::Bytes(page) = &mut **content {
                    let page = std::mem::take(page);
                    **content = Content::encode(page, part.compression);
                }
            }
        };
        let helpers = (bytes / BYTES_PER_THREAD).min(parts.len()).min(processors()).saturating_sub(1);
        std::thread::scope(|scope| {
            for _ in 0..helpers {
                // Where no thread can be had, the others do its share.
                let _ = std::thread::Builder::new().name("vellum-encode".into()).spawn_scoped(scope, run);
            }
            run();
        });
    }
}

fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, NonZero::get).min(THREADS_LIMIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(pages: &[(PageId, Vec<u8>)]) -> Changes<'_> {
        let mut changes = Changes::default();
        changes.pages = pages.iter().map(|(page, bytes)| (*page, PageChange::Whole(bytes[..].into()))).collect();
        changes
    }

    fn text(length: usize, seed: usize) -> Vec<u8> {
        (0..).flat_map(|line: usize| format!("{} {}\n", line * seed, seed).into_bytes()).take(length).collect()
    }

    #[test]
    fn many_threads_encode_what_one_encodes_and_each_page_as_it_was_chosen() {
        let class = SizeClass::of(64 << 10).unwrap();
        let pages: Vec<_> =
            (0..64).map(|index| (PageId::new(class, index).unwrap(), text(64 << 10, 7 + index as usize))).collect();
        let choose = |page: PageId| match page.index() % 3 {
            0 => Compression::NONE,
            1 => Compression::LZ4,
            _ => Compression::ZSTD,
        };
        let mut encoded = changes(&pages);
        encode(&mut encoded, choose);
        for (page, bytes) in &pages {
            let alone = Content::encode(&bytes[..], choose(*page));
            let PageChange::Whole(content) = &encoded.pages[page] else { panic!("another change") };
            assert_eq!(format!("{content:?}"), format!("{alone:?}"));
            assert_eq!(matches!(content, Content::Encoded(_)), page.index() % 3 != 0);
        }
    }

    #[test]
    fn a_class_may_have_a_choice_of_its_own() {
        let mut policy = Policy::default();
        assert_eq!(policy.of(SizeClass::MAX), Compression::NONE);
        policy.set(Compression::LZ4);
        policy.set_class(SizeClass::MAX, Compression::NONE);
        assert_eq!((policy.of(SizeClass::MAX), policy.of(SizeClass::CHUNK)), (Compression::NONE, Compression::LZ4));
    }
}
