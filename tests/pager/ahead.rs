//! Reading ahead, and what views are told of how they will be read.

use std::sync::Arc;

use vellum::disk::MemoryDisk;
use vellum::{Access, PageId, Pager, Read};

use crate::{SMALL, create_on, inline, open_on};

/// A store with so many pages of 4 KiB, every third id left out, opened anew: nothing is in memory.
fn store(count: u64) -> (Pager, Vec<PageId>) {
    let disk = Arc::new(MemoryDisk::new());
    let pager = create_on(&disk, &inline());
    let transaction = pager.begin().unwrap();
    let mut pages = Vec::new();
    for number in 0..count {
        let page = transaction.allocate(SMALL).unwrap();
        transaction.write(page).unwrap()[..8].copy_from_slice(&number.to_le_bytes());
        pages.push(page);
    }
    transaction.commit().unwrap();
    let transaction = pager.begin().unwrap();
    pages.iter().skip(2).step_by(3).for_each(|page| transaction.free(*page).unwrap());
    transaction.commit().unwrap();
    pager.close().unwrap();
    (open_on(&disk, &inline()), pages)
}

fn number_of(view: &impl Read, page: PageId) -> u64 {
    u64::from_le_bytes(view.page(page).unwrap()[..8].try_into().unwrap())
}

#[test]
fn pages_in_order_are_loaded_ahead_unless_they_are_said_to_be_in_none() {
    for access in [Access::Normal, Access::Sequential, Access::Once, Access::Random] {
        let (pager, pages) = store(900);
        let view = pager.view();
        view.advise(access);
        let before = pager.stats().buffer;
        let ids: Vec<PageId> = view.page_ids(SMALL).map(Result::unwrap).collect();
        assert_eq!(ids.len(), 600);
        for page in &ids {
            assert_eq!(number_of(&view, *page), pages.iter().position(|other| other == page).unwrap() as u64);
        }
        let after = pager.stats().buffer;
        // Each page is loaded once; what was loaded ahead is a hit when it is read.
        assert_eq!(after.misses - before.misses, 600, "{access:?}");
        let hits = after.hits - before.hits;
        match access {
            Access::Random => assert_eq!(hits, 0),
            _ => assert!(hits >= 550, "{access:?}: {hits}"),
        }
    }
}

#[test]
fn pages_in_no_order_are_not_loaded_ahead() {
    let (pager, pages) = store(900);
    let view = pager.view();
    let before = pager.stats().buffer;
    let kept: Vec<PageId> = pages.chunks(3).flat_map(|three| three[..2].to_vec()).collect();
    // 247 and 600 have no common divisor: every page once, far from the last.
    for at in 0..300 {
        number_of(&view, kept[at * 247 % 600]);
    }
    let after = pager.stats().buffer;
    assert_eq!((after.misses - before.misses, after.hits - before.hits), (300, 0));
}

#[test]
fn named_pages_are_loaded_while_one_does_something_else() {
    let (pager, pages) = store(90);
    let view = pager.view();
    view.advise(Access::Random);
    let before = pager.stats().buffer;
    // One that was freed is among them, and one that never was.
    let never = PageId::new(SMALL, 1 << 30).unwrap();
    view.prefetch(&[pages[0], pages[2], never, pages[30], pages[60]]).unwrap();
    [0, 30, 60].iter().for_each(|at| assert_eq!(number_of(&view, pages[*at]), *at as u64));
    let after = pager.stats().buffer;
    assert_eq!((after.misses - before.misses, after.hits - before.hits), (3, 3));
}
