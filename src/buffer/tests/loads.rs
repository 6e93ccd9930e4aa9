//! How loads end: in panics of the store, and beside other loads of the same.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::super::load::{Filling, UnitLoad};
use super::super::policy::Arrival;
use super::super::units::UnitKey;
use super::*;

/// Long enough for whatever does not hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// Reads pages in a thread of its own: what must not hang. Tells how it went.
fn read_beside(pages: &StorePages, state: &State, ids: Vec<PageId>) -> Receiver<Result<()>> {
    let (sender, receiver) = channel();
    let (pages, state) = (pages.clone(), state.clone());
    std::thread::spawn(move || {
        let read = |id: &PageId| {
            check(*id, Generation(1), &pages.page(&state, *id)?);
            Ok(())
        };
        let _ = sender.send(ids.iter().try_for_each(read));
    });
    receiver
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn loads_ahead_that_panic_are_cancelled_and_later_ones_are_done() {
    let (manager, source, pages) = with_pages(4 << 20, &[12], 200);
    let state = source.state();
    source.panics.store(true, Ordering::Relaxed);
    // More panics than there are threads.
    let panicked: Vec<PageId> = (0..100).map(|index| page(12, index)).collect();
    for id in &panicked {
        let before = source.loads.load(Ordering::Relaxed);
        pages.prefetch(&state, &[*id]).unwrap();
        wait_until("nobody reads ahead any more", || source.loads.load(Ordering::Relaxed) > before);
        wait_until("its frame is not given back", || manager.stats().loading_bytes == 0);
    }
    source.panics.store(false, Ordering::Relaxed);
    let read = read_beside(&pages, &state, panicked).recv_timeout(PATIENCE);
    assert!(read.expect("A1: nobody waits for ever").is_ok());
    let ahead: Vec<PageId> = (100..164).map(|index| page(12, index)).collect();
    pages.prefetch(&state, &ahead).unwrap();
    wait_until("what is read ahead does not come", || ahead.iter().all(|id| pages.is_in_memory(state.generation, *id)));
}

#[test]
fn a_load_of_a_chunk_ahead_that_panics_is_cancelled() {
    let (manager, source, pages) = with_pages(8 << 20, &[], 0);
    let (large, pointer) = (page(22, 0), pointer_of(page(22, 0), Generation(1)));
    source.panics.store(true, Ordering::Relaxed);
    pages.prefetch_chunks(large, &[pointer]);
    wait_until("it is not read", || source.loads.load(Ordering::Relaxed) == 1);
    wait_until("its frame is not given back", || manager.stats().loading_bytes == 0);
    source.panics.store(false, Ordering::Relaxed);
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(pages.unit(large, &pointer, SizeClass::CHUNK).map(drop)));
    assert!(receiver.recv_timeout(PATIENCE).expect("A1: nobody waits for ever").is_ok());
}

#[test]
fn a_load_that_panics_is_cancelled_and_its_frame_is_free() {
    let (manager, source, pages) = with_pages(4 << 20, &[12], 10);
    let state = source.state();
    let old = pointer_of(page(12, 5), Generation(1));
    source.panics.store(true, Ordering::Relaxed);
    let panics = |read: &dyn Fn() -> Result<FrameGuard>| catch_unwind(AssertUnwindSafe(|| drop(read()))).is_err();
    assert!(panics(&|| pages.page(&state, page(12, 3))));
    assert!(panics(&|| pages.unit(page(12, 5), &old, SizeClass::MIN)));
    assert!(panics(&|| pages.scope(&state, |scope| scope.page(page(12, 3)).map(|_| unreachable!()))));
    assert_eq!(manager.stats().loading_bytes, 0);
    source.panics.store(false, Ordering::Relaxed);
    let read = read_beside(&pages, &state, vec![page(12, 3)]).recv_timeout(PATIENCE);
    assert!(read.expect("the load was cancelled").is_ok());
    check(page(12, 5), Generation(1), &pages.unit(page(12, 5), &old, SizeClass::MIN).unwrap());
}

#[test]
fn a_failed_load_of_a_unit_ends_no_later_load_of_the_same() {
    let (manager, _source, pages) = with_pages(8 << 20, &[], 0);
    let (large, pointer) = (page(20, 0), pointer_of(page(20, 0), Generation(1)));
    let key = UnitKey { pointer, class: SizeClass::CHUNK };
    let read = || Filling::read(&pages, large, &pointer, SizeClass::CHUNK).unwrap();
    let mut first = UnitLoad::begin(&pages, key).unwrap();
    // Who read the page for its descriptor, and was overtaken, enters the unit; it leaves memory again.
    drop(pages.enter_unit(key, read(), Arrival::Read));
    let other = pointer_of(large, Generation(2));
    pages.publish_chunks(&mut std::iter::once(ChunkChange { new: other, frame: None, gone: Some(pointer) }));
    let second = UnitLoad::begin(&pages, key).unwrap();
    let (sender, receiver) = channel();
    let waiting = pages.clone();
    std::thread::spawn(move || sender.send(waiting.unit(large, &pointer, SizeClass::CHUNK).map(drop)));
    wait_until("it does not wait", || manager.stats().waits == 1);
    first.fail(Error::Closed);
    assert!(UnitLoad::begin(&pages, key).is_none(), "the second load is under way");
    drop(second.finish(read(), Arrival::Read));
    receiver.recv_timeout(PATIENCE).expect("it goes on").expect("the error is not of what it waited for");
}

/// A store in a file that has a place for each page, and panics when it is shown what was read there.
#[cfg(all(target_os = "linux", feature = "prefetch-ring"))]
#[derive(Debug)]
struct Placed {
    imagined: Imagined,
    file: std::fs::File,
    shown: AtomicU64,
}

#[cfg(all(target_os = "linux", feature = "prefetch-ring"))]
impl PageSource for Placed {
    fn newest_pointer(&self, page: PageId) -> Result<BlockPointer> {
        self.imagined.newest_pointer(page)
    }

    fn load(&self, page: PageId, pointer: &BlockPointer, target: &mut [u8]) -> Result<()> {
        self.imagined.load(page, pointer, target)
    }

    fn place_of(&self, page: PageId, _: &BlockPointer) -> Option<(&std::fs::File, u64)> {
        Some((&self.file, page.index() * 4096))
    }

    fn is_right(&self, _: PageId, _: &BlockPointer, _: &[u8]) -> bool {
        self.shown.fetch_add(1, Ordering::Relaxed);
        std::panic::resume_unwind(Box::new("on purpose"))
    }
}

#[test]
#[cfg(all(target_os = "linux", feature = "prefetch-ring"))]
fn a_store_that_panics_over_what_a_ring_has_read_ends_no_ring() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 * 4096).unwrap();
    let source = Arc::new(Placed { imagined: Imagined::default(), file, shown: AtomicU64::new(0) });
    let manager = BufferManager::new(4 << 20).unwrap();
    let pages = manager.attach(Arc::clone(&source) as Arc<dyn PageSource>).unwrap();
    let changes: Vec<_> = (0..64).map(|index| (page(12, index), Some(false))).collect();
    let state = source.imagined.commit(&manager, &pages, &changes);
    for first in [0, 32] {
        let ids: Vec<PageId> = (first..first + 32).map(|index| page(12, index)).collect();
        pages.prefetch(&state, &ids).unwrap();
        wait_until("what is read ahead does not come", || {
            ids.iter().all(|id| pages.is_in_memory(state.generation, *id))
        });
        let read = read_beside(&pages, &state, ids).recv_timeout(PATIENCE);
        assert!(read.expect("A1: nobody waits for ever").is_ok());
    }
    let is_by_ring = manager.stats().prefetch_by == PrefetchBy::Ring;
    assert_eq!(source.shown.load(Ordering::Relaxed), if is_by_ring { 64 } else { 0 });
}
