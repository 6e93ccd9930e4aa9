//! Readers beside writers: in one process, in many, and killed at any moment.

// The helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

mod ahead;
mod bank;
mod beside;
mod children;
mod processes;

use std::path::Path;

use vellum::{Background, Options, PageId, Pager, Read, ReadOnlyPager, ReaderOptions, SizeClass};

/// Pages of 4 KiB.
const SMALL: SizeClass = SizeClass::MIN;

/// Options with which checkpoints come often, on the committing thread.
fn busy() -> Options {
    Options::new().background(Background::Inline).checkpoint_log_bytes(256 << 10).log_segment_bytes(64 << 10)
}

/// Whether a reader copies pages, or reads them where the file is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Frames,
    Mapped,
}

const WAYS: [Way; 2] = [Way::Frames, Way::Mapped];

fn open(path: &Path, way: Way, options: &ReaderOptions) -> vellum::Result<ReadOnlyPager> {
    match way {
        Way::Frames => ReadOnlyPager::open(path, options),
        #[allow(unsafe_code)]
        // SAFETY: in these tests only Vellum writes to stores that are mapped.
        Way::Mapped => unsafe { ReadOnlyPager::open_mapped(path, options) },
    }
}

fn reader(path: &Path, way: Way) -> ReadOnlyPager {
    open(path, way, &ReaderOptions::new().name("test")).unwrap()
}

/// Sets every byte of these pages, which are allocated if they are not yet.
fn fill(pager: &Pager, pages: &[PageId], byte: u8) {
    let transaction = pager.begin().unwrap();
    for page in pages {
        transaction.overwrite(*page).unwrap().fill(byte);
    }
    transaction.commit().unwrap();
}

fn allocate(pager: &Pager, class: SizeClass, count: usize) -> Vec<PageId> {
    let transaction = pager.begin().unwrap();
    let pages = (0..count).map(|_| transaction.allocate(class).unwrap()).collect();
    transaction.commit().unwrap();
    pages
}

/// Whether each of these pages is full of this byte, by every way of reading.
fn assert_full(view: &impl Read, pages: &[PageId], byte: u8) {
    for page in pages {
        let guard = view.page(*page).unwrap();
        assert_eq!(guard.len() as u64, page.class().page_bytes());
        assert!(guard.iter().all(|found| *found == byte), "page {page} at {}: {byte}, {}", view.generation(), guard[0]);
        let mut part = [!byte; 100];
        view.read_at(*page, page.class().page_bytes() - 100, &mut part).unwrap();
        assert_eq!(part, [byte; 100]);
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
