//! What readers see beside a writer. All in one process: locks and files do not know the difference.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use vellum::disk::{Access, Caching, Disk, FileDisk};
use vellum::format::{SUPERBLOCK_BLOCKS, Superblock};
use vellum::process::Registration;
use vellum::store::store_id;
use vellum::{
    Compression, Durability, Error, Generation, Options, PageId, Pager, Read, ReadOnlyPager, ReaderOptions, Readers,
    SizeClass, Standing, Writers,
};

use crate::{SMALL, WAYS, Way, allocate, assert_full, busy, fill, open, reader};

#[test]
fn a_reader_follows_commits_and_checkpoints_and_old_views_stay() {
    let stored_as = [Compression::NONE, Compression::LZ4, Compression::ZSTD];
    for (way, compression) in WAYS.into_iter().flat_map(|way| stored_as.map(|compression| (way, compression))) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let pager = Pager::create(&path, &busy().compression(compression)).unwrap();
        let classes = [SMALL, SizeClass::of(64 << 10).unwrap(), SizeClass::CHUNK, SizeClass::of(2 << 20).unwrap()];
        let pages: Vec<_> = classes.iter().flat_map(|class| allocate(&pager, *class, 2)).collect();
        let reader = reader(&path, way);
        assert_eq!(reader.standing(), Standing::BesideWriters);
        assert_full(&reader.view().unwrap(), &pages, 0);
        let mut kept = Vec::new();
        for byte in 1..60 {
            fill(&pager, &pages, byte);
            if byte % 7 == 0 {
                pager.checkpoint().unwrap();
            }
            if byte % 3 == 0 {
                let found = reader.refresh().unwrap();
                assert!(found.changed && found.writer);
                assert_eq!(found.generation, pager.view().generation());
                assert!(!reader.refresh().unwrap().changed);
            }
            let view = reader.view().unwrap();
            assert_full(&view, &pages, byte - byte % 3);
            kept.push((view, byte - byte % 3));
            if kept.len() > 8 {
                kept.remove(usize::from(byte) % 8);
            }
            kept.iter().for_each(|(view, byte)| assert_full(view, &pages, *byte));
        }
        // Those of 4 KiB are never shorter.
        let stored = pager.view().storage().unwrap();
        assert_eq!(stored[&compression.codec()].units, if compression.is_none() { 10 } else { 8 });
    }
}

#[test]
fn a_reader_that_was_away_for_long_comes_back() {
    for way in WAYS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let pager = Pager::create(&path, &busy()).unwrap();
        let pages = allocate(&pager, SMALL, 100);
        let reader = reader(&path, way);
        let view = reader.view().unwrap();
        // Several checkpoints: the records that the reader would have gone on with have been used again.
        for byte in 1..=200 {
            fill(&pager, &pages, byte);
        }
        assert_full(&view, &pages, 0);
        assert!(reader.refresh().unwrap().changed);
        assert_full(&reader.view().unwrap(), &pages, 200);
        assert_full(&view, &pages, 0);
    }
}

#[test]
fn frees_headers_and_snapshots_are_followed() {
    for way in WAYS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let pager = Pager::create(&path, &busy()).unwrap();
        let pages = allocate(&pager, SMALL, 10);
        fill(&pager, &pages, 1);
        pager.snapshot("one", "").unwrap();
        fill(&pager, &pages, 2);
        let transaction = pager.begin().unwrap();
        transaction.free(pages[3]).unwrap();
        transaction.set_header(b"root").unwrap();
        transaction.commit().unwrap();
        let reader = reader(&path, way);
        for step in 0..3 {
            let view = reader.view().unwrap();
            assert!(!view.contains(pages[3]).unwrap());
            assert!(matches!(view.page(pages[3]), Err(Error::PageNotFound { page }) if page == pages[3]));
            assert_eq!(&view.header()[..], b"root");
            assert_eq!(view.page_ids(SMALL).map(Result::unwrap).count(), 9);
            assert_eq!(reader.snapshots().len(), 1);
            assert_full(&reader.open_snapshot("one").unwrap(), &pages, 1);
            assert!(matches!(reader.open_snapshot("two"), Err(Error::SnapshotNotFound { .. })));
            if step == 0 {
                pager.checkpoint().unwrap();
            }
            reader.refresh().unwrap();
        }
        // A view of a snapshot outlives the snapshot.
        let old = reader.open_snapshot("one").unwrap();
        pager.remove("one").unwrap();
        for byte in 3..60 {
            fill(&pager, &pages[..3], byte);
            pager.checkpoint().unwrap();
            reader.refresh().unwrap();
        }
        assert!(reader.snapshots().is_empty());
        assert_full(&old, &pages, 1);
    }
}

#[test]
fn only_synced_states_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let pager = Pager::create(&path, &busy()).unwrap();
    let pages = allocate(&pager, SMALL, 3);
    let reader = reader(&path, Way::Frames);
    let durable = reader.generation();
    for _ in 0..5 {
        let transaction = pager.begin().unwrap();
        transaction.write(pages[0]).unwrap().fill(9);
        transaction.commit_with(Durability::Deferred).unwrap();
        assert!(!reader.refresh().unwrap().changed);
        assert_eq!(reader.generation(), durable);
    }
    pager.sync().unwrap();
    assert!(reader.refresh().unwrap().changed);
    assert_full(&reader.view().unwrap(), &pages[..1], 9);
}

#[test]
fn what_was_superseded_between_two_held_states_is_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let pager = Pager::create(&path, &busy()).unwrap();
    let pages = allocate(&pager, SMALL, 200);
    fill(&pager, &pages, 1);
    let first = reader(&path, Way::Frames);
    let (old, second) = (first.view().unwrap(), reader(&path, Way::Mapped));
    let mut lengths = Vec::new();
    for round in 0..1000u32 {
        fill(&pager, &pages, (round % 250) as u8 + 2);
        second.refresh().unwrap();
        lengths.push(fs::metadata(&path).unwrap().len());
    }
    assert_full(&old, &pages, 1);
    println!("{:?}", lengths.iter().step_by(100).collect::<Vec<_>>());
    // 1000 rounds of 800 KiB are 800 MB; two states and the log are some 3 MB.
    assert!(lengths[999] <= 16 << 20, "{} bytes", lengths[999]);
    assert_eq!(lengths[500], lengths[999], "it does not grow any more");
    drop((old, first, second));
}

#[test]
fn what_readers_held_is_free_when_they_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let pager = Pager::create(&path, &busy()).unwrap();
    let pages = allocate(&pager, SMALL, 500);
    fill(&pager, &pages, 1);
    let reader = reader(&path, Way::Frames);
    let view = reader.view().unwrap();
    fill(&pager, &pages, 2);
    reader.refresh().unwrap();
    fill(&pager, &pages[..1], 3);
    let held = pager.stats().status.deferred_extents;
    assert!(held > 0);
    let states = vellum::process::readers(&path).unwrap()[0].states.clone();
    let bytes = reader.bytes_held(&states).unwrap();
    assert_eq!(states.len(), 2);
    assert!(bytes >= 500 * 4096, "{states:?} {bytes}");
    drop(view);
    fill(&pager, &pages[..1], 4);
    assert!(pager.stats().status.deferred_extents < held);
}

#[test]
fn one_who_is_choosing_holds_what_died_since_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let pager = Pager::create(&path, &busy()).unwrap();
    let pages = allocate(&pager, SMALL, 300);
    let disk: Arc<dyn Disk> = Arc::new(FileDisk::open(&path, Access::ReadOnly, Caching::Buffered).unwrap());
    let mut slow = Registration::open(&path, store_id(&disk).unwrap(), "slow").unwrap();
    slow.told().unwrap();
    slow.pin_states(Vec::new()).unwrap();
    let dead = || pager.stats().status.deferred_extents;
    (1..5).for_each(|byte| fill(&pager, &pages, byte));
    let usual = dead();
    for _ in 0..3 {
        // Stopped here, for as long as it takes to commit four times.
        slow.pin_everything().unwrap();
        (5..9).for_each(|byte| fill(&pager, &pages, byte));
        let held = dead();
        assert!((usual + 600..usual + 1500).contains(&held), "{usual} and {held}");
        // It chose, and is choosing again before the writer looks: it may have chosen what died since it was seen, no more.
        slow.pin_states(Vec::new()).unwrap();
        slow.pin_everything().unwrap();
        (1..3).for_each(|_| fill(&pager, &pages[..1], 1));
        assert!(dead() < held - 600, "{} of {held}", dead());
        slow.pin_states(Vec::new()).unwrap();
        (1..3).for_each(|_| fill(&pager, &pages[..1], 1));
        assert!(dead() <= usual + 10, "{} and {usual}", dead());
    }
}

#[test]
fn a_reader_may_come_before_and_after_a_writer() {
    for way in WAYS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let pager = Pager::create(&path, &busy()).unwrap();
        let pages = allocate(&pager, SMALL, 5);
        fill(&pager, &pages, 1);
        pager.close().unwrap();
        let reader = reader(&path, way);
        let first = reader.view().unwrap();
        assert_full(&first, &pages, 1);
        assert!(!reader.refresh().unwrap().writer);
        for byte in 2..6 {
            let pager = Pager::open(&path, &busy()).unwrap();
            fill(&pager, &pages, byte);
            let found = reader.refresh().unwrap();
            assert!(found.changed && found.writer);
            assert_full(&reader.view().unwrap(), &pages, byte);
            fill(&pager, &pages, byte + 100);
            pager.close().unwrap();
            let found = reader.refresh().unwrap();
            assert!(found.changed && !found.writer);
            assert_full(&reader.view().unwrap(), &pages, byte + 100);
            assert_full(&first, &pages, 1);
        }
        drop((reader, first));
        Pager::open(&path, &busy()).unwrap().close().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left but the store");
    }
}

#[test]
fn readers_and_writers_that_exclude_each_other_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let excluded = ReaderOptions::new().writers(Writers::Excluded);
    let pager = Pager::create(&path, &busy()).unwrap();
    let pages = allocate(&pager, SMALL, 2);
    assert!(matches!(open(&path, Way::Frames, &excluded), Err(Error::Locked { .. })));
    pager.close().unwrap();
    {
        let readers = WAYS.map(|way| open(&path, way, &excluded).unwrap());
        assert!(readers.iter().all(|reader| reader.standing() == Standing::WritersExcluded));
        assert_full(&readers[1].view().unwrap(), &pages, 0);
        let error = Pager::open(&path, &busy()).unwrap_err();
        assert!(matches!(error, Error::LockedByReaders { .. }), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no file is made");
        assert!(!readers[0].refresh().unwrap().writer);
    }
    // A writer that wants no readers refuses them, and is refused while there are some.
    let pager = Pager::open(&path, &busy().readers(Readers::Refused)).unwrap();
    let hasty = ReaderOptions::new().patience(std::time::Duration::ZERO);
    assert!(matches!(open(&path, Way::Frames, &hasty), Err(Error::WriterSilent { .. })));
    drop(pager);
    let reader = reader(&path, Way::Frames);
    let error = Pager::open(&path, &busy().readers(Readers::Refused)).unwrap_err();
    assert!(matches!(error, Error::LockedByReaders { .. }), "{error}");
    drop(reader);
}

#[test]
fn a_reader_may_be_as_patient_as_it_likes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let pager = Pager::create(&path, &busy()).unwrap();
    let pages = allocate(&pager, SMALL, 2);
    for way in WAYS {
        let reader = open(&path, way, &ReaderOptions::new().patience(std::time::Duration::MAX)).unwrap();
        assert_full(&reader.view().unwrap(), &pages, 0);
    }
}

#[test]
fn an_immutable_store_is_read_without_lock_or_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let pager = Pager::create(&path, &busy()).unwrap();
    let pages = allocate(&pager, SMALL, 2);
    fill(&pager, &pages, 7);
    pager.close().unwrap();
    let options = ReaderOptions::new().writers(Writers::Absent);
    let readers = WAYS.map(|way| open(&path, way, &options).unwrap());
    assert!(readers.iter().all(|reader| reader.standing() == Standing::Immutable));
    readers.iter().for_each(|reader| assert_full(&reader.view().unwrap(), &pages, 7));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    // There is no lock that would say that the promise is broken.
    Pager::open(&path, &busy()).unwrap();
}

#[test]
fn what_is_no_store_and_whose_store_it_is_are_asked_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("letter");
    fs::write(&path, b"Dear Sir or Madam").unwrap();
    for way in WAYS {
        let open = |options: &ReaderOptions| open(&path, way, options).unwrap_err();
        for writers in [Writers::Allowed, Writers::Excluded, Writers::Absent] {
            assert!(matches!(open(&ReaderOptions::new().writers(writers)), Error::NotAStore { .. }));
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let path = folder.path().join("store");
    let pager = Pager::create(&path, &Options::new().application(5, 1)).unwrap();
    let wrong = open(&path, Way::Frames, &ReaderOptions::new().application(6)).unwrap_err();
    assert!(matches!(wrong, Error::WrongApplication { expected: 6, found: 5, .. }));
    assert!(open(&path, Way::Frames, &ReaderOptions::new().application(5)).is_ok());
    drop(pager);
}

#[test]
fn a_large_page_is_read_in_parts_below_any_budget() {
    for way in WAYS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let pager = Pager::create(&path, &busy()).unwrap();
        let page = allocate(&pager, SizeClass::of(16 << 20).unwrap(), 1)[0];
        let transaction = pager.begin().unwrap();
        transaction.write_at(page, (5 << 20) - 3, b"hello").unwrap();
        transaction.commit().unwrap();
        let reader = open(&path, way, &ReaderOptions::new().memory(4 << 20)).unwrap();
        let view = reader.view().unwrap();
        let mut part = [1; 7];
        view.read_at(page, (5 << 20) - 4, &mut part).unwrap();
        assert_eq!(&part, b"\0hello\0");
        assert!(matches!(view.page(page), Err(Error::PageExceedsBudget { .. })));
        assert!(matches!(view.read_at(page, (16 << 20) - 6, &mut part), Err(Error::OutOfPage { .. })));
    }
}

#[test]
fn damage_is_named_and_the_rest_is_read() {
    for way in WAYS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let pager = Pager::create(&path, &busy()).unwrap();
        let pages = allocate(&pager, SizeClass::of(16 << 10).unwrap(), 3);
        for (index, page) in pages.iter().enumerate() {
            fill(&pager, &[*page], 0x40 + index as u8);
        }
        pager.close().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.windows(4096).position(|window| window.iter().all(|byte| *byte == 0x41)).unwrap();
        bytes[at + 5000] ^= 1;
        fs::write(&path, bytes).unwrap();
        let reader = reader(&path, way);
        let view = reader.view().unwrap();
        assert_full(&view, &pages[..1], 0x40);
        let error = view.page(pages[1]).unwrap_err();
        assert!(matches!(&error, Error::Corrupt(corruption) if corruption.page == Some(pages[1])), "{error}");
        assert!(view.scope(|scope| Ok(scope.page(pages[1])?[0])).unwrap_err().is_corruption());
        assert_full(&view, &pages[2..], 0x42);
    }
}

/// The newest superblock of a file.
fn newest_superblock(bytes: &[u8]) -> Superblock {
    let copies = SUPERBLOCK_BLOCKS.iter().filter_map(|block| bytes[*block as usize * 4096..].first_chunk());
    let whole = copies.filter_map(|copy| Superblock::decode(copy).ok().flatten());
    whole.max_by_key(|superblock| superblock.checkpoint).unwrap()
}

/// A closed store of these pages' bytes, with the root of its newest page map damaged; the older slot's map is another.
fn with_damaged_map(path: &Path, byte: u8) -> Vec<PageId> {
    let pager = Pager::create(path, &busy()).unwrap();
    let pages = allocate(&pager, SMALL, 300);
    pager.checkpoint().unwrap();
    fill(&pager, &pages, byte);
    pager.close().unwrap();
    damage_newest_map(path);
    pages
}

fn damage_newest_map(path: &Path) {
    let bytes = fs::read(path).unwrap();
    let root = newest_superblock(&bytes).maps[SMALL.index()].pointer;
    let at = root.address.0 * 4096 + 100;
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[bytes[at as usize] ^ 1], at).unwrap();
}

#[test]
fn a_damaged_map_of_the_newest_checkpoint_is_read_by_the_older_slot() {
    for writers in [Writers::Allowed, Writers::Excluded, Writers::Absent] {
        for way in WAYS {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("store");
            let pages = with_damaged_map(&path, 0x33);
            let newest = newest_superblock(&fs::read(&path).unwrap()).generation;
            let reader = open(&path, way, &ReaderOptions::new().writers(writers)).unwrap();
            // Not an older state: what the damaged checkpoint stood for was durable.
            let view = reader.view().unwrap();
            assert!(view.generation() >= newest, "{writers:?} {way:?}");
            assert_full(&view, &pages, 0x33);
            assert!(!reader.refresh().unwrap().changed);
            if writers == Writers::Allowed {
                a_writer_repairs_it_beside(&path, &reader, &pages);
            }
            assert_full(&view, &pages, 0x33);
        }
    }
}

fn a_writer_repairs_it_beside(path: &Path, reader: &ReadOnlyPager, pages: &[PageId]) {
    let pager = Pager::open(path, &busy()).unwrap();
    reader.refresh().unwrap();
    assert_full(&reader.view().unwrap(), pages, 0x33);
    for byte in 1..20 {
        fill(&pager, pages, byte);
        assert!(reader.refresh().unwrap().changed);
        assert_full(&reader.view().unwrap(), pages, byte);
    }
    pager.close().unwrap();
    reader.refresh().unwrap();
    assert_full(&reader.view().unwrap(), pages, 19);
}

#[test]
fn a_writer_that_went_and_left_a_damaged_map_is_followed_by_the_older_slot() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let pager = Pager::create(&path, &busy()).unwrap();
    let pages = allocate(&pager, SMALL, 300);
    pager.checkpoint().unwrap();
    let readers = WAYS.map(|way| reader(&path, way));
    fill(&pager, &pages, 5);
    pager.close().unwrap();
    damage_newest_map(&path);
    for reader in &readers {
        assert!(reader.refresh().unwrap().changed);
        assert_full(&reader.view().unwrap(), &pages, 5);
    }
}

#[test]
fn many_threads_read_while_one_refreshes() {
    for way in WAYS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let pager = Pager::create(&path, &busy()).unwrap();
        let pages = allocate(&pager, SMALL, 50);
        fill(&pager, &pages, 0);
        let reader = reader(&path, way);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reads: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let (mut rounds, mut newest) = (0u64, Generation(0));
                        while !done.load(std::sync::atomic::Ordering::Relaxed) || rounds == 0 {
                            let view = reader.view().unwrap();
                            let first = view.page(pages[0]).unwrap()[0];
                            let same = view.scope(|scope| {
                                pages.iter().try_fold(true, |same, page| {
                                    let page = scope.page(*page)?;
                                    Ok(same && page.iter().all(|byte| *byte == first))
                                })
                            });
                            assert!(same.unwrap(), "pages of two states");
                            assert!(view.generation() >= newest);
                            newest = view.generation();
                            rounds += 1;
                        }
                        rounds
                    })
                })
                .collect();
            let end = Ending(&done);
            for round in 0..400u32 {
                fill(&pager, &pages, (round % 251) as u8);
                reader.refresh().unwrap();
            }
            drop(end);
            assert!(reads.into_iter().all(|read| read.join().unwrap() > 0));
        });
    }
}

/// Tells others to end when it is dropped: by a panic too, which they would hide for ever.
struct Ending<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
