//! Reading ahead, and what views are told of how they will be read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vellum::disk::{Disk, MemoryDisk, Operation};
use vellum::{Access, Error, PageId, Pager, Read, Result, View};

use crate::watched::{Watch, Watched};
use crate::{SMALL, class, create_on, inline, open_on};

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

/// Counts reads: those of the threads that read ahead, and those of others.
#[derive(Debug, Default)]
struct Counting {
    ahead: AtomicU64,
    others: AtomicU64,
}

impl Counting {
    /// Reads ahead, and others, since this was last asked.
    fn take(&self) -> (u64, u64) {
        (self.ahead.swap(0, Ordering::Relaxed), self.others.swap(0, Ordering::Relaxed))
    }
}

impl Watch for Counting {
    fn called(&self, operation: Operation) {
        match (operation, std::thread::current().name()) {
            (Operation::Read, Some("vellum-prefetch")) => self.ahead.fetch_add(1, Ordering::Relaxed),
            (Operation::Read, _) => self.others.fetch_add(1, Ordering::Relaxed),
            _ => return,
        };
    }
}

/// So many pages of a class, of which `fill` writes each, in a store that was opened anew on a disk that counts.
fn counted(
    log2: u8,
    count: usize,
    fill: impl Fn(&vellum::Transaction, PageId),
) -> (Arc<Watched<Counting>>, Pager, Vec<PageId>) {
    let disk = Arc::new(MemoryDisk::new());
    let pager = create_on(&disk, &inline());
    let transaction = pager.begin().unwrap();
    let pages = transaction.allocate_many(class(log2), count).unwrap();
    pages.iter().for_each(|page| fill(&transaction, *page));
    transaction.commit().unwrap();
    pager.close().unwrap();
    let disk = Watched::new(disk, Counting::default());
    let pager = open_on(&disk, &inline());
    disk.take();
    (disk, pager, pages)
}

#[test]
fn whatever_way_pages_are_read_in_order_they_are_loaded_ahead() {
    fn is(bytes: &[u8], page: PageId) {
        assert_eq!(bytes[..8], page.index().to_le_bytes());
    }
    type Way = (&'static str, fn(&Pager, Access, &[PageId]) -> Result<()>);
    fn with(pager: &Pager, access: Access, read: impl Fn(&View) -> Result<()>) -> Result<()> {
        let view = pager.view();
        view.advise(access);
        read(&view)
    }
    let ways: [Way; 6] = [
        ("guards", |pager, access, pages| {
            with(pager, access, |view| pages.iter().try_for_each(|page| view.page(*page).map(|it| is(&it, *page))))
        }),
        ("scopes", |pager, access, pages| {
            with(pager, access, |view| {
                pages.iter().try_for_each(|page| view.scope(|scope| scope.page(*page).map(|it| is(it, *page))))
            })
        }),
        ("one scope", |pager, access, pages| {
            with(pager, access, |view| {
                view.scope(|scope| pages.iter().try_for_each(|page| scope.page(*page).map(|it| is(it, *page))))
            })
        }),
        ("in parts", |pager, access, pages| {
            with(pager, access, |view| {
                pages.iter().try_for_each(|page| {
                    let mut bytes = [0; 8];
                    view.read_at(*page, 0, &mut bytes).map(|()| is(&bytes, *page))
                })
            })
        }),
        ("in a transaction", |pager, access, pages| {
            let transaction = pager.begin()?;
            transaction.advise(access);
            pages.iter().try_for_each(|page| transaction.page(*page).map(|it| is(&it, *page)))
        }),
        ("opened for changing", |pager, access, pages| {
            let transaction = pager.begin()?;
            transaction.advise(access);
            pages.iter().try_for_each(|page| transaction.write(*page).map(|it| is(&it, *page)))
        }),
    ];
    for (name, read) in ways {
        for access in [Access::Normal, Access::Sequential, Access::Once, Access::Random] {
            let fill = |transaction: &vellum::Transaction, page: PageId| {
                transaction.write(page).unwrap()[..8].copy_from_slice(&page.index().to_le_bytes());
            };
            let (disk, pager, pages) = counted(12, 600, fill);
            read(&pager, access, &pages).unwrap();
            let (ahead, others) = disk.take();
            // The others are nodes of the map too: one for 168 pages, and what is above.
            match access {
                Access::Random => assert!(ahead == 0 && (600..620).contains(&others), "{name}: {ahead}, {others}"),
                _ => assert!(ahead >= 590 && others <= 20, "{name}, {access:?}: {ahead}, {others}"),
            }
            assert_eq!(pager.stats().buffer.misses, 600, "{name}, {access:?}: each page once");
        }
    }
}

#[test]
fn what_a_scope_reads_once_is_evicted_before_what_others_read() {
    let fill = |transaction: &vellum::Transaction, page: PageId| transaction.write(page).unwrap()[0] = 1;
    let disk = Arc::new(MemoryDisk::new());
    let options = inline().memory(2 << 20);
    let pager = create_on(&disk, &options);
    let transaction = pager.begin().unwrap();
    let pages = transaction.allocate_many(SMALL, 2000).unwrap();
    pages.iter().for_each(|page| fill(&transaction, *page));
    transaction.commit().unwrap();
    pager.close().unwrap();
    let left = |access: Access| {
        let pager = open_on(&disk, &options);
        let (wanted, scanned) = pages.split_at(100);
        let view = pager.view();
        view.advise(Access::Random);
        for _ in 0..3 {
            wanted.iter().for_each(|page| assert_eq!(view.page(*page).unwrap()[0], 1));
        }
        let scan = pager.view();
        scan.advise(access);
        for page in scanned {
            // Each several times in a row, as somebody who goes through the entries of a page does.
            for _ in 0..3 {
                scan.scope(|scope| scope.page(*page).map(|bytes| assert_eq!(bytes[0], 1))).unwrap();
            }
        }
        let before = pager.stats().buffer.misses;
        wanted.iter().for_each(|page| assert_eq!(view.page(*page).unwrap()[0], 1));
        100 - (pager.stats().buffer.misses - before)
    };
    let (noticed, once) = (left(Access::Sequential), left(Access::Once));
    assert!(once >= 90 && once > noticed, "left of 100: {once} beside a scan that says so, {noticed} beside another");
}

#[test]
fn the_chunks_that_come_next_are_loaded_ahead() {
    const CHUNKS: u64 = 24;
    let fill = |transaction: &vellum::Transaction, page: PageId| {
        for chunk in 0..CHUNKS {
            transaction.write_at(page, chunk << 20, &[chunk as u8 + 1; 16]).unwrap();
        }
    };
    let part = |view: &dyn Read, page: PageId, chunk: u64| {
        let mut bytes = [0; 16];
        view.read_at(page, chunk << 20, &mut bytes).unwrap();
        assert_eq!(bytes, [if chunk < CHUNKS { chunk as u8 + 1 } else { 0 }; 16]);
    };
    // In parts, in order: by a view, and by a transaction.
    for access in [Access::Normal, Access::Sequential, Access::Random] {
        let (disk, pager, pages) = counted(25, 2, fill);
        let (view, transaction) = (pager.view(), pager.begin().unwrap());
        view.advise(access);
        transaction.advise(access);
        for (reader, page) in [(&view as &dyn Read, pages[0]), (&transaction, pages[1])] {
            // Beyond the last one nothing is stored.
            (0..32).for_each(|chunk| part(reader, page, chunk));
            let (ahead, others) = disk.take();
            match access {
                Access::Random => assert!(ahead == 0 && others >= CHUNKS, "{ahead}, {others}"),
                Access::Normal => assert!(ahead >= CHUNKS - 3 && others <= 8, "{ahead}, {others}"),
                _ => assert!(ahead >= CHUNKS - 1 && others <= 6, "{access:?}: {ahead}, {others}"),
            }
        }
        assert_eq!(pager.stats().buffer.misses, 2 * CHUNKS, "{access:?}: each chunk once");
    }
    // What a range touches is wanted for certain.
    let (disk, pager, pages) = counted(25, 1, fill);
    let view = pager.view();
    view.advise(Access::Random);
    let mut bytes = vec![0; 6 << 20];
    view.read_at(pages[0], 3 << 20, &mut bytes).unwrap();
    assert!((0..6).all(|chunk| bytes[chunk << 20] == chunk as u8 + 4));
    let (ahead, _) = disk.take();
    assert_eq!((ahead, pager.stats().buffer.misses), (5, 6));
    // In no order, nothing more is.
    [20, 0, 11, 15].iter().for_each(|chunk| part(&view, pages[0], *chunk));
    assert_eq!((disk.take().0, pager.stats().buffer.misses), (0, 10));
}

#[test]
fn a_page_that_cannot_be_read_ahead_is_the_error_of_who_reads_it() {
    let fill = |transaction: &vellum::Transaction, page: PageId| {
        transaction.overwrite(page).unwrap()[..8].copy_from_slice(&page.to_u64().to_le_bytes());
    };
    let (disk, pager, pages) = counted(12, 100, fill);
    let bad = pages[50];
    let offset = pager.inspect(|store| {
        let pointer = store.state().pointer(store.nodes(), bad).unwrap();
        pointer.address.offset_bytes()
    });
    let mut bytes = [0; 4096];
    disk.disk.read_at(offset, &mut bytes).unwrap();
    bytes[100] ^= 1;
    disk.disk.write_at(offset, &bytes).unwrap();
    let view = pager.view();
    view.advise(Access::Sequential);
    for page in &pages {
        match view.page(*page) {
            Ok(guard) => assert_eq!(guard[..8], page.to_u64().to_le_bytes()),
            Err(error) => assert!(*page == bad && matches!(error, Error::Corrupt(_)), "{page:?}: {error}"),
        }
    }
    assert!(disk.take().0 >= 99);
    assert!(matches!(view.scope(|scope| scope.page(bad).map(drop)), Err(Error::Corrupt(_))));
}
