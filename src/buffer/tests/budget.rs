//! Memory that users take: evict, wait, or be refused and told who holds it.

use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use super::*;
use crate::buffer::policy::{Arrival, EvictionPolicy, Frames, PageHash, Slot, default_policy};

const MEBIBYTE: usize = 1 << 20;

#[test]
fn what_is_taken_evicts_pages_and_spills_scratch() {
    let folder = tempfile::tempdir().unwrap();
    let (manager, source, pages) = with_pages(4 * MEBIBYTE, &[12], 400);
    let _watchdog = Watchdog::new(&manager);
    let state = source.state();
    (0..400).for_each(|index| drop(pages.page(&state, page(12, index)).unwrap()));
    let options = ScratchOptions { folder: folder.path().to_owned(), limit_bytes: 8 << 20 };
    let scratch = manager.scratch(&options).unwrap();
    let class = SizeClass::new(16).unwrap();
    let kept: Vec<ScratchPage> = (0..24).map(|_| scratch.allocate(class).unwrap()).collect();
    kept.iter().for_each(|page| page.write().unwrap().fill(7));
    let mut memory = manager.budget().alloc(3 * MEBIBYTE, "hash table").unwrap();
    assert!(memory.iter().all(|byte| *byte == 0));
    memory.fill(1);
    assert!(manager.budget().used_bytes() <= 4 * MEBIBYTE);
    assert!(manager.stats().evictions > 0);
    assert!(scratch.stats().stored_bytes > 0);
    assert!(kept.iter().all(|page| page.read().unwrap().iter().all(|byte| *byte == 7)));
    assert!(
        manager.budget().held_by().iter().any(|holder| holder.what == "hash table" && holder.bytes == 3 * MEBIBYTE)
    );
    drop(memory);
    let _whole = manager.budget().reserve(3 * MEBIBYTE, "sort").unwrap();
}

#[test]
fn who_cannot_have_it_is_told_who_has_at_once_and_after_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let manager = BufferManager::new(2 * MEBIBYTE).unwrap();
    let _watchdog = Watchdog::new(&manager);
    let options = ScratchOptions { folder: folder.path().to_owned(), limit_bytes: 0 };
    let scratch = manager.scratch(&options).unwrap();
    let _page = scratch.allocate(SizeClass::CHUNK).unwrap();
    let sort = manager.budget().reserve(700_000, "sort").unwrap();
    let held_by = |error| match error {
        Error::BudgetExhausted { held_by, needed_bytes: 500_000, .. } => held_by,
        other => panic!("{other}"),
    };
    for patience in [None, Some(Duration::from_millis(20))] {
        let began = Instant::now();
        let result = match patience {
            None => manager.budget().reserve(500_000, "join"),
            Some(patience) => manager.budget().reserve_within(500_000, "join", patience),
        };
        let held_by = held_by(result.unwrap_err());
        assert!(began.elapsed() >= patience.unwrap_or_default());
        let held: Vec<_> = held_by.iter().map(|holder| (holder.what.as_str(), holder.bytes)).collect();
        assert_eq!(held[..2], [("scratch pages", MEBIBYTE), ("sort", 700_000)]);
    }
    assert!(matches!(manager.budget().alloc(3 * MEBIBYTE, "join"), Err(Error::BudgetTooSmall { .. })));
    // Somebody waits, and gets what is given back meanwhile.
    std::thread::scope(|scope| {
        let waiting =
            scope.spawn(|| manager.budget().reserve_within(500_000, "join", Duration::from_secs(100)).unwrap());
        while manager.inner.waiting_threads() == 0 {
            std::thread::yield_now();
        }
        drop(sort);
        assert_eq!(waiting.join().unwrap().bytes(), 500_000);
    });
}

#[test]
fn many_who_take_and_give_back_all_come_to_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let (manager, source, pages) = with_pages(2 * MEBIBYTE, &[12, 16], 100);
    let _watchdog = Watchdog::new(&manager);
    let options = ScratchOptions { folder: folder.path().to_owned(), limit_bytes: 2 << 20 };
    let scratches = [manager.scratch(&options).unwrap(), manager.scratch(&options).unwrap()];
    let refused = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let (manager, source, pages, scratch) = (&manager, &source, &pages, &scratches[thread as usize % 2]);
            let refused = &refused;
            scope.spawn(move || {
                let mut kept = std::collections::VecDeque::new();
                let mut reserved = Vec::new();
                for at in 0..400u64 {
                    let draw = units::mix(thread << 32 | at);
                    match draw % 4 {
                        0 => match manager.budget().alloc((draw >> 8) as usize % 300_000 + 1, "table") {
                            Ok(memory) => reserved.push(memory),
                            Err(Error::BudgetExhausted { .. }) => reserved.clear(),
                            Err(other) => panic!("{other}"),
                        },
                        1 | 2 => match scratch.allocate(SizeClass::new(12 + (draw >> 8) as u8 % 5).unwrap()) {
                            Ok(page) => match page.write().map(|mut bytes| bytes.fill(at as u8)) {
                                Ok(()) => kept.push_back((page, at as u8)),
                                Err(error) => expected(&error, refused),
                            },
                            Err(error) => {
                                expected(&error, refused);
                                kept.pop_front();
                                reserved.clear();
                            }
                        },
                        _ => match pages.page(&source.state(), page(12 + 4 * (draw >> 8 & 1) as u8, draw >> 10 & 63)) {
                            Ok(guard) => drop(guard),
                            Err(error) => expected(&error, refused),
                        },
                    }
                    if let Some((page, byte)) = kept.get((draw >> 20) as usize % kept.len().max(1)) {
                        match page.read() {
                            Ok(bytes) => assert!(bytes.iter().all(|found| found == byte)),
                            Err(error) => expected(&error, refused),
                        }
                    }
                }
            });
        }
    });
    eprintln!("refused {} times, {:?}", refused.load(Ordering::Relaxed), scratches[0].stats());
    assert!(scratches.iter().all(|scratch| scratch.stats().spilled_bytes > 0 && scratch.stats().stored_bytes == 0));
    let stats = manager.stats();
    assert_eq!((stats.scratch_bytes, stats.reserved_bytes), (0, 0));
    assert!(manager.budget().used_bytes() <= 2 * MEBIBYTE);
}

/// The default, which says that it holds so many bytes more.
#[derive(Debug)]
struct Hoarder(Box<dyn EvictionPolicy>, Arc<AtomicUsize>);

impl EvictionPolicy for Hoarder {
    fn name(&self) -> &'static str {
        "hoarder"
    }
    fn admit(&mut self, slot: Slot, page: PageHash, class: SizeClass, arrival: Arrival) {
        self.0.admit(slot, page, class, arrival);
    }
    fn remove(&mut self, slot: Slot) {
        self.0.remove(slot);
    }
    fn replace(&mut self, old: Slot, new: Slot) {
        self.0.replace(old, new);
    }
    fn victim(&mut self, frames: &mut dyn Frames) -> Option<Slot> {
        self.0.victim(frames)
    }
    fn restore(&mut self, slot: Slot, page: PageHash, class: SizeClass) {
        self.0.restore(slot, page, class);
    }
    fn memory_bytes(&self) -> usize {
        self.0.memory_bytes() + self.1.load(Ordering::Relaxed)
    }
}

#[test]
fn what_the_policy_holds_is_charged_as_soon_as_it_fits_and_never_beyond_the_budget() {
    let hoard = Arc::new(AtomicUsize::new(0));
    let policy = Hoarder(default_policy(), Arc::clone(&hoard));
    let manager = BufferManager::with_policy(MEBIBYTE, Box::new(policy)).unwrap();
    let _watchdog = Watchdog::new(&manager);
    let source = Arc::new(Imagined::default());
    let pages = manager.attach(Arc::clone(&source) as Arc<dyn PageSource>).unwrap();
    let changes: Vec<_> = (0..300).map(|index| (page(12, index), Some(false))).collect();
    let state = source.commit(&manager, &pages, &changes);
    let read = |index| pages.page(&state, page(12, index)).unwrap();
    let mut guards: Vec<_> = (0..200).map(read).collect();
    hoard.store(290_000, Ordering::Relaxed);
    // Guards hold all of it, and the policy has its bytes already.
    guards.push(read(299));
    assert!(manager.budget().used_bytes() <= MEBIBYTE);
    assert!(manager.stats().policy_bytes < 290_000);
    drop(guards);
    // Where frames share OS pages, and only every other one is to go first, it may take a few arrivals.
    (0..200).step_by(2).for_each(|index| drop(read(index)));
    (240..260).for_each(|index| drop(read(index)));
    assert!(manager.stats().policy_bytes >= 290_000, "{:?}", manager.stats());
    assert!(manager.budget().used_bytes() <= MEBIBYTE);
    // What it gives back is given back.
    hoard.store(0, Ordering::Relaxed);
    (0..200).for_each(|index| drop(read(index)));
    assert!(manager.stats().policy_bytes < 100_000);
}

fn expected(error: &Error, count: &AtomicU64) {
    assert!(matches!(error, Error::BudgetExhausted { .. } | Error::ScratchFull { .. }), "{error}");
    count.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn any_budget_from_one_mebibyte_up_will_do() {
    for budget in [usize::MAX, usize::MAX - 1, isize::MAX as usize, 1 << (usize::BITS - 4)] {
        let (manager, source, pages) = with_pages(budget, &[12, 16, 21], 10);
        let state = source.state();
        for class in SizeClass::all() {
            drop(manager.stale_frame(class).unwrap());
        }
        for class in [12, 16, 21] {
            check(page(class, 7), Generation(1), &pages.page(&state, page(class, 7)).unwrap());
        }
        let rest = budget - manager.budget().used_bytes();
        let most = manager.budget().reserve(rest, "most").unwrap();
        assert_eq!(manager.budget().used_bytes(), budget);
        drop(most);
        assert!(matches!(
            manager.budget().alloc(usize::MAX, "all"),
            Err(Error::BudgetTooSmall { .. } | Error::Memory { .. } | Error::BudgetExhausted { .. })
        ));
        assert_eq!(manager.budget().limit_bytes(), budget);
        // A heap without addresses ends the process.
        drop(std::hint::black_box(vec![0u8; 1 << 30]));
    }
}
