use super::super::tests::{Watchdog, check, page, with_pages};
use super::super::units::mix;
use super::*;
use crate::disk::MemoryDisk;
use crate::id::Generation;

const MEBIBYTE: usize = 1 << 20;

fn class(log2: u8) -> SizeClass {
    SizeClass::new(log2).unwrap()
}

/// Scratch pages over a disk in memory, which the test can damage.
fn on_memory(budget: usize, limit_bytes: u64) -> (BufferManager, Arc<MemoryDisk>, Scratch) {
    let manager = BufferManager::new(budget).unwrap();
    let disk = Arc::new(MemoryDisk::new());
    let options = ScratchOptions { folder: "/scratch".into(), limit_bytes };
    let scratch = manager.scratch_on(Arc::clone(&disk) as Arc<dyn Disk>, &options);
    (manager, disk, scratch)
}

fn fill(page: &ScratchPage) {
    let number = page.number();
    for (at, word) in page.write().unwrap().chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&mix(number << 32 | at as u64).to_le_bytes());
    }
}

fn is_whole(page: &ScratchPage) -> bool {
    let words = page.read().unwrap();
    let mut words = words.chunks_exact(8).enumerate();
    words.all(|(at, word)| word == mix(page.number() << 32 | at as u64).to_le_bytes())
}

#[test]
fn pages_are_zero_at_first_and_four_times_the_budget_comes_back_as_written() {
    let folder = tempfile::tempdir().unwrap();
    let manager = BufferManager::new(2 * MEBIBYTE).unwrap();
    let _watchdog = Watchdog::new(&manager);
    let options = ScratchOptions { folder: folder.path().to_owned(), limit_bytes: 16 << 20 };
    let scratch = manager.scratch(&options).unwrap();
    let mut pages = Vec::new();
    for round in 0..2 {
        while pages.iter().map(|page: &ScratchPage| page.class().page_bytes()).sum::<u64>() < 8 << 20 {
            let page = scratch.allocate(class(12 + pages.len() as u8 % 7)).unwrap();
            assert!(page.read().unwrap().iter().all(|byte| *byte == 0));
            fill(&page);
            assert!(manager.budget().used_bytes() <= 2 * MEBIBYTE);
            pages.push(page);
        }
        assert!(pages.iter().all(is_whole));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
        let stats = scratch.stats();
        assert_eq!(stats.pages, pages.len() as u64);
        assert!(stats.spilled_bytes >= 6 << 20 && stats.stored_bytes <= 8 << 20, "{round} {stats:?}");
        pages = pages.into_iter().step_by(3).collect();
    }
    drop(pages);
    assert_eq!((scratch.stats().pages, scratch.stats().stored_bytes), (0, 0));
    assert_eq!(manager.stats().scratch_bytes, 0);
}

#[test]
fn a_page_is_borrowed_by_one_writer_or_by_readers() {
    let (_manager, _disk, scratch) = on_memory(MEBIBYTE, 0);
    let page = scratch.allocate(class(12)).unwrap();
    let borrowed =
        |result: Result<()>| matches!(result, Err(Error::ScratchBorrowed { number }) if number == page.number());
    let mut writer = page.write().unwrap();
    writer[0] = 1;
    assert!(borrowed(page.read().map(drop)) && borrowed(page.write().map(drop)));
    drop(writer);
    let readers = (page.read().unwrap(), page.read().unwrap());
    assert_eq!((readers.0[0], readers.1[0]), (1, 1));
    assert!(borrowed(page.write().map(drop)));
    drop(readers);
    page.write().unwrap()[0] = 2;
    let page = std::thread::spawn(move || {
        page.write().unwrap()[1] = 3;
        page
    });
    assert_eq!(page.join().unwrap().read().unwrap()[..2], [2, 3]);
}

#[test]
fn at_the_limit_an_allocation_fails_nothing_is_lost_and_dropped_pages_make_room() {
    let (manager, disk, scratch) = on_memory(2 * MEBIBYTE, 1 << 20);
    let _watchdog = Watchdog::new(&manager);
    let mut pages = Vec::new();
    for _ in 0..3 {
        let error = loop {
            match scratch.allocate(class(14)) {
                Ok(page) => {
                    fill(&page);
                    pages.push(page);
                }
                Err(error) => break error,
            }
        };
        let Error::ScratchFull { limit_bytes, needed_bytes, .. } = &error else { panic!("{error}") };
        assert_eq!((*limit_bytes, *needed_bytes), (1 << 20, 16 << 10));
        // Nearly all of budget and limit together.
        assert!(pages.len() > 175, "{}", pages.len());
        // Both are full, and still every page can be had, in whatever order.
        for at in 0..500 {
            let at = mix(at) as usize % pages.len();
            assert!(is_whole(&pages[at]));
        }
        assert!(disk.allocated_bytes() <= 1 << 20);
        pages.drain(..20);
    }
    drop(pages);
    assert_eq!(disk.allocated_bytes(), 0);
}

/// How many pages of 64 KiB there can be beside what there is.
fn pages_that_fit(scratch: &Scratch) -> usize {
    let mut pages = Vec::new();
    loop {
        match scratch.allocate(class(16)) {
            Ok(page) => pages.push(page),
            Err(Error::ScratchFull { .. }) => return pages.len(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn what_is_kept_free_of_the_file_is_that_of_the_largest_page_there_is() {
    let (manager, _disk, scratch) = on_memory(2 * MEBIBYTE, 4 << 20);
    let _watchdog = Watchdog::new(&manager);
    let all = pages_that_fit(&scratch);
    assert!(all > 80, "{all}");
    // Refused at once, and refused for lack of memory that others hold: no such page exists.
    assert!(matches!(scratch.allocate(SizeClass::MAX), Err(Error::BudgetTooSmall { .. })));
    assert_eq!(pages_that_fit(&scratch), all);
    let sorting = manager.budget().reserve(3 * MEBIBYTE / 2, "sorting").unwrap();
    assert!(matches!(scratch.allocate(class(20)), Err(Error::BudgetExhausted { .. })));
    drop(sorting);
    assert_eq!(pages_that_fit(&scratch), all);
    // Sixteen times as much is kept for it, as long as the last of its size is there.
    let large = [scratch.allocate(class(20)).unwrap(), scratch.allocate(class(20)).unwrap()];
    let [one, other] = large;
    drop(one);
    assert_eq!(pages_that_fit(&scratch), all - 31);
    drop(other);
    assert_eq!(pages_that_fit(&scratch), all);
}

#[test]
fn on_a_full_disk_pages_stay_in_memory_and_the_error_names_the_folder() {
    let (manager, disk, scratch) = on_memory(MEBIBYTE, 1 << 30);
    let _watchdog = Watchdog::new(&manager);
    disk.set_limit(Some(256 << 10));
    let mut pages = Vec::new();
    for limit in [256 << 10, 512 << 10] {
        disk.set_limit(Some(limit));
        let error = loop {
            match scratch.allocate(class(13)) {
                Ok(page) => {
                    fill(&page);
                    pages.push(page);
                }
                Err(error) => break error,
            }
        };
        assert!(error.is_no_space(), "{error}");
        assert!(error.to_string().contains("/scratch"), "{error}");
        assert!(pages.len() as u64 * 8192 > limit + (700 << 10), "{}", pages.len());
        // What is in memory can be read; what is in the file, when something makes room.
        drop(pages.drain(pages.len() - 12..));
        assert!(pages.iter().all(is_whole));
    }
    pages.truncate(10);
    disk.set_limit(None);
    pages.extend((0..200).map(|_| scratch.allocate(class(13)).unwrap()));
    pages.iter().skip(10).for_each(fill);
    assert!(pages.iter().all(is_whole));
}

#[test]
fn a_damaged_file_is_an_error_that_names_the_page_and_harms_no_other() {
    let (_manager, disk, scratch) = on_memory(MEBIBYTE, 1 << 24);
    let pages: Vec<ScratchPage> = (0..400).map(|_| scratch.allocate(class(12)).unwrap()).inspect(fill).collect();
    // A bit of the first block, and the second one where the third was.
    let block = |number: u64| {
        let mut bytes = vec![0; 4096];
        disk.read_at(number * 4096, &mut bytes).unwrap();
        bytes
    };
    let mut first = block(0);
    first[1000] ^= 1;
    let second = block(1);
    disk.write_at(0, &first).unwrap();
    disk.write_at(8192, &second).unwrap();
    let mut damaged = Vec::new();
    for page in &pages {
        match page.read() {
            Ok(bytes) => drop(bytes),
            Err(error) => {
                let Error::ScratchDamaged { number, offset, .. } = error else { panic!("{error}") };
                assert_eq!(number, page.number());
                damaged.push((number, offset));
                assert!(matches!(page.write(), Err(Error::ScratchDamaged { .. })), "it stays so");
                continue;
            }
        }
        assert!(is_whole(page));
    }
    damaged.sort_unstable_by_key(|(_, offset)| *offset);
    assert_eq!(damaged.iter().map(|(_, offset)| *offset).collect::<Vec<_>>(), [0, 8192]);
}

#[test]
fn borrowed_pages_stay_where_they_are() {
    let (manager, _disk, scratch) = on_memory(MEBIBYTE, 1 << 24);
    let _watchdog = Watchdog::new(&manager);
    let pages: Vec<ScratchPage> = (0..40).map(|_| scratch.allocate(class(14)).unwrap()).inspect(fill).collect();
    let guards: Vec<ScratchRead<'_>> = pages.iter().map(|page| page.read().unwrap()).collect();
    let others: Vec<ScratchPage> = (0..100).map(|_| scratch.allocate(class(14)).unwrap()).collect();
    others.iter().for_each(fill);
    assert!(guards.iter().zip(&pages).all(|(guard, page)| guard[..8] == mix(page.number() << 32).to_le_bytes()));
    // All of it borrowed: refused, and told by whom it is held.
    let mut all = Vec::new();
    let error = others.iter().find_map(|page| page.write().map(|guard| all.push(guard)).err()).unwrap();
    let Error::BudgetExhausted { held_by, .. } = &error else { panic!("{error}") };
    assert!(held_by.iter().any(|holder| holder.what == "scratch pages" && holder.bytes > 900_000), "{held_by:?}");
    drop((guards, all));
    assert!(others.iter().chain(&pages).all(is_whole));
}

#[test]
fn the_coldest_goes_be_it_a_page_or_scratch() {
    let (manager, source, pages) = with_pages(2 * MEBIBYTE, &[12], 2000);
    let disk = Arc::new(MemoryDisk::new());
    let options = ScratchOptions { folder: "/scratch".into(), limit_bytes: 1 << 24 };
    let scratch = manager.scratch_on(disk, &options);
    let state = source.state();
    let read = |index: u64| check(page(12, index), Generation(1), &pages.page(&state, page(12, index)).unwrap());
    // Scratch that nobody looks at, beside pages that are read again and again, some 60 more than there is room for.
    let cold: Vec<ScratchPage> = (0..100).map(|_| scratch.allocate(class(12)).unwrap()).inspect(fill).collect();
    for _ in 0..10 {
        (0..450).for_each(read);
    }
    let misses = manager.stats().misses;
    (0..450).for_each(read);
    let missed = manager.stats().misses - misses;
    assert!(scratch.stats().stored_bytes >= 55 * 4096, "{:?}", scratch.stats());
    assert!(missed < 45, "{missed}");
    // Scratch that is used again and again, beside pages that are read once: it stays.
    let read_back = scratch.stats().read_back_bytes;
    assert!(cold.iter().all(is_whole));
    let came = scratch.stats().read_back_bytes - read_back;
    assert!(came >= 55 * 4096);
    for at in 450..2000 {
        read(at);
        assert!(is_whole(&cold[at as usize % 100]));
    }
    let again = scratch.stats().read_back_bytes - read_back - came;
    assert!(again < 30 * 4096, "{again}");
}

#[test]
fn two_users_fill_memory_and_files_from_many_threads_without_a_deadlock() {
    let manager = BufferManager::new(MEBIBYTE).unwrap();
    let _watchdog = Watchdog::new(&manager);
    let scratches: Vec<Scratch> = (0..2)
        .map(|_| {
            let options = ScratchOptions { folder: "/scratch".into(), limit_bytes: 1 << 20 };
            manager.scratch_on(Arc::new(MemoryDisk::new()), &options)
        })
        .collect();
    let shared: Vec<ScratchPage> = scratches
        .iter()
        .flat_map(|scratch| (0..50).map(|_| scratch.allocate(class(13)).unwrap()))
        .inspect(fill)
        .collect();
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let (shared, scratch) = (&shared, &scratches[thread as usize % 2]);
            scope.spawn(move || {
                let mut own = Vec::new();
                for at in 0..1500u64 {
                    let draw = mix(thread << 40 | at) as usize;
                    match shared[draw % shared.len()].read() {
                        Ok(bytes) => assert_eq!(bytes.len(), 8192),
                        Err(Error::BudgetExhausted { .. } | Error::ScratchFull { .. }) => own.clear(),
                        Err(error) => panic!("{error}"),
                    }
                    match scratch.allocate(class(12 + (draw >> 40) as u8 % 3)) {
                        Ok(page) => own.push(page),
                        Err(Error::BudgetExhausted { .. } | Error::ScratchFull { .. }) => own.clear(),
                        Err(error) => panic!("{error}"),
                    }
                    if own.len() > 20 {
                        own.swap_remove(draw % own.len());
                    }
                }
            });
        }
    });
    assert!(shared.iter().all(is_whole));
}
