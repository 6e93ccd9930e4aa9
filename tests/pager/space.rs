//! Full disks and full stores.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use vellum::disk::{MemoryDisk, Operation};
use vellum::{Background, Error, Options, PageId, Pager, Read, SizeClass, VerifyLevel};

use crate::watched::{Watch, Watched};
use crate::{Random, SMALL, class, create_on, in_memory, inline};

/// Adds `count` pages with content in one commit.
fn add(pager: &Pager, class: SizeClass, count: usize, seed: u8) -> Result<Vec<PageId>, Error> {
    let transaction = pager.begin()?;
    let pages = transaction.allocate_many(class, count)?;
    for page in &pages {
        transaction.overwrite(*page)?.fill(fill_of(*page, seed));
    }
    transaction.commit()?;
    Ok(pages)
}

fn fill_of(page: PageId, seed: u8) -> u8 {
    (page.index() as u8).wrapping_mul(31).wrapping_add(seed) | 1
}

/// Adds pages until there is no space for any more, not even for one.
fn fill(pager: &Pager, seed: u8) -> Vec<PageId> {
    let mut pages = Vec::new();
    for (class, count) in [(class(16), 8), (SMALL, 64), (SMALL, 8), (SMALL, 1)] {
        loop {
            match add(pager, class, count, seed) {
                Ok(more) => pages.extend(more),
                Err(error) if error.is_no_space() => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    pages
}

fn free(pager: &Pager, pages: &[PageId]) -> Result<(), Error> {
    let transaction = pager.begin()?;
    pages.iter().try_for_each(|page| transaction.free(*page))?;
    transaction.commit()?;
    Ok(())
}

fn check(pager: &Pager, pages: &[PageId], seed: u8) {
    let view = pager.view();
    let ids: usize = SizeClass::all().map(|class| view.page_ids(class).count()).sum();
    assert_eq!(ids, pages.len());
    for page in pages {
        let fill = fill_of(*page, seed);
        assert!(view.page(*page).unwrap().iter().all(|byte| *byte == fill), "page {page}");
    }
    let report = pager.verify(VerifyLevel::Full, &mut |_| {}).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

fn a_full_store_is_emptied_and_filled_again(options: Options, batch: usize) {
    let pager = in_memory(&options.file_limit_bytes(12 << 20));
    let mut first = 0;
    for seed in 0..4 {
        let pages = fill(&pager, seed);
        check(&pager, &pages, seed);
        let bytes: u64 = pages.iter().map(|page| page.class().page_bytes()).sum();
        if seed == 0 {
            first = bytes;
            assert!(first > 6 << 20, "{first} bytes in a file of 12 MiB");
        }
        assert!(bytes >= first * 9 / 10, "{bytes} bytes in round {seed}, {first} in the first");
        // From the middle on, so that what is freed is scattered.
        let (left, right) = pages.split_at(pages.len() / 2);
        for pages in right.chunks(batch).chain(left.chunks(batch)) {
            free(&pager, pages).unwrap();
        }
        check(&pager, &[], seed);
    }
}

#[test]
fn a_full_store_can_always_be_emptied_a_page_at_a_time() {
    a_full_store_is_emptied_and_filled_again(inline(), 1);
}

#[test]
fn a_full_store_can_always_be_emptied_in_batches_beside_the_background_thread() {
    a_full_store_is_emptied_and_filled_again(Options::new().background(Background::Thread), 50);
}

#[test]
fn a_full_store_can_be_emptied_at_once() {
    a_full_store_is_emptied_and_filled_again(inline().checkpoint_log_bytes(64 << 10).clean_target(0), usize::MAX);
}

#[test]
fn a_full_disk_fails_that_commit_alone() {
    let disk = Arc::new(MemoryDisk::with_limit(16 << 20));
    let pager = create_on(&disk, &inline());
    let pages = fill(&pager, 1);
    let generation = pager.view().generation();
    match add(&pager, SMALL, 1, 1) {
        Err(Error::NoSpace { needed_blocks, .. }) => assert!(needed_blocks > 0),
        other => panic!("{other:?}"),
    }
    assert_eq!(pager.view().generation(), generation, "nothing was committed");
    check(&pager, &pages, 1);

    let (gone, kept) = pages.split_at(pages.len() / 3);
    free(&pager, gone).unwrap();
    let again = add(&pager, SMALL, 20, 1).unwrap();
    check(&pager, &[kept, &again].concat(), 1);
}

#[test]
fn a_disk_that_is_given_space_again_serves_the_same_pager() {
    let disk = Arc::new(MemoryDisk::with_limit(8 << 20));
    let pager = create_on(&disk, &inline());
    let mut pages = fill(&pager, 2);
    assert!(add(&pager, SMALL, 200, 2).unwrap_err().is_no_space());
    disk.set_limit(None);
    pages.extend(add(&pager, SMALL, 200, 2).unwrap());
    check(&pager, &pages, 2);
}

#[test]
fn a_transaction_larger_than_the_store_is_refused_and_its_indices_come_back() {
    let pager = in_memory(&inline().file_limit_bytes(8 << 20));
    let kept = add(&pager, SMALL, 10, 3).unwrap();
    assert!(add(&pager, SMALL, 5000, 3).unwrap_err().is_no_space());
    let next = add(&pager, SMALL, 1, 3).unwrap();
    assert_eq!(next[0].index(), 10);
    check(&pager, &[kept, next].concat(), 3);
}

/// Overwrites pages at random for a long time in a store of which so many percent are in use, then empties and fills it.
fn commits_go_on(options: &Options, percent: u64) {
    const LIMIT_BYTES: u64 = 128 << 20;
    let options = options.clone().memory(16 << 20).file_limit_bytes(LIMIT_BYTES);
    let options = options.log_segment_bytes(64 << 10).checkpoint_log_bytes(256 << 10);
    let pager = in_memory(&options);
    let used = || {
        let status = pager.stats().status;
        (status.blocks_total - status.blocks_free) * 100 / (LIMIT_BYTES / 4096)
    };
    let mut pages = Vec::new();
    while used() < percent {
        pages.extend(add(&pager, SMALL, 32, 0).unwrap());
    }
    let mut content: Vec<u8> = pages.iter().map(|page| fill_of(*page, 0)).collect();
    let mut random = Random(percent);
    let before = pager.stats().counters;
    for round in 0..3000 {
        let transaction = pager.begin().unwrap();
        for _ in 0..[1, 5, 30][round % 3] {
            let index = random.below(pages.len());
            content[index] = (random.next() as u8) | 1;
            transaction.overwrite(pages[index]).unwrap().fill(content[index]);
        }
        transaction.commit().unwrap_or_else(|error| panic!("commit {round}: {error}"));
    }
    let after = pager.stats().counters;
    let (written, moved) = (after.page_bytes - before.page_bytes, after.moved_bytes - before.moved_bytes);
    assert!(written > LIMIT_BYTES, "every page was written once and more: {written}");
    assert!(moved <= 4 * written, "{moved} bytes moved for {written} written");
    let view = pager.view();
    for (page, content) in pages.iter().zip(&content) {
        assert!(view.page(*page).unwrap().iter().all(|byte| byte == content), "page {page}");
    }
    drop(view);
    assert!(pager.verify(VerifyLevel::Full, &mut |_| {}).unwrap().findings.is_empty());
    for pages in pages.chunks(100) {
        free(&pager, pages).unwrap();
    }
    check(&pager, &[], 0);
    let again = add(&pager, SMALL, pages.len() / 2, 5).unwrap();
    check(&pager, &again, 5);
}

#[test]
fn commits_go_on_when_95_percent_are_in_use() {
    commits_go_on(&inline(), 95);
    commits_go_on(&Options::new().background(Background::Thread), 95);
}

#[test]
fn commits_go_on_when_80_percent_are_in_use() {
    commits_go_on(&inline(), 80);
    commits_go_on(&inline().clean_target(4), 80);
}

/// Knows which threads made the disk longer.
#[derive(Debug, Default)]
struct Grown {
    threads: Mutex<BTreeSet<String>>,
}

impl Watch for Grown {
    fn called(&self, operation: Operation) {
        if operation == Operation::Preallocate {
            self.threads.lock().unwrap().insert(std::thread::current().name().unwrap_or_default().to_owned());
        }
    }
}

#[test]
fn the_background_thread_makes_the_file_longer_beside_many_committing_threads() {
    let disk = Watched::new(Arc::default(), Grown::default());
    let options = Options::new().background(Background::Thread).growth_bytes(1 << 20).memory(16 << 20);
    let pager = create_on(&disk, &options);
    let before = pager.stats().status.blocks_total;
    let pages: Vec<PageId> = std::thread::scope(|scope| {
        let write = |writer: usize| {
            let mut pages = Vec::new();
            for round in 0..60 {
                // Some in the log, some in extents.
                pages.extend(add(&pager, SMALL, if (round + writer).is_multiple_of(2) { 6 } else { 48 }, 9).unwrap());
                let transaction = pager.begin().unwrap();
                let page = pages[round * 7 % pages.len()];
                transaction.overwrite(page).unwrap().fill(fill_of(page, 9));
                transaction.commit().unwrap();
            }
            pages
        };
        let writers: Vec<_> = (0..8).map(|writer| scope.spawn(move || write(writer))).collect();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    assert!(pager.stats().status.blocks_total > before + pages.len() as u64 / 2);
    check(&pager, &pages, 9);
    pager.close().unwrap();
    let threads = disk.threads.lock().unwrap().clone();
    assert!(threads.contains("vellum"), "{threads:?}");
    check(&crate::open_on(&disk, &options), &pages, 9);
}
