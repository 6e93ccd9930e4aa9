use std::time::Instant;

use super::*;

/// Set when it is dropped, by a panic too: the threads that wait for it would hide the panic for ever.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Threads that read at old and new states, commit, free and evict, against what each page must hold.
fn storm(budget: usize, classes: &[u8], count: u64, readers: usize, commits: u64) {
    let (manager, source, pages) = with_pages(budget, classes, count);
    let _watchdog = Watchdog::new(&manager);
    let done = AtomicBool::new(false);
    let kept = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for reader in 0..readers {
            let (source, pages, done, kept) = (&source, &pages, &done, &kept);
            scope.spawn(move || {
                let mut random = reader as u64;
                let mut state = source.state();
                let mut guards = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    random = units::mix(random);
                    if random.is_multiple_of(13) {
                        state = source.state();
                    }
                    let page = page(classes[random as usize / 64 % classes.len()], random / 1024 % count);
                    let Some(birth) = state.birth(page) else {
                        assert!(matches!(pages.page(&state, page), Err(Error::PageNotFound { .. })));
                        continue;
                    };
                    match random / 16 % 4 {
                        0 => {
                            let guard = pages.page(&state, page).unwrap();
                            check(page, birth, &guard);
                            guards.push((page, birth, guard));
                        }
                        1 => {
                            let guard = pages.page(&state, page).unwrap();
                            check(page, birth, &guard.clone());
                            kept.lock().unwrap().push((page, birth, guard));
                        }
                        _ => pages
                            .scope(&state, |scope| {
                                check(page, birth, scope.page(page)?);
                                Ok(())
                            })
                            .unwrap(),
                    }
                    if guards.len() > 6 {
                        guards.drain(..).for_each(|(page, birth, guard)| check(page, birth, &guard));
                    }
                    let mut kept = kept.lock().unwrap();
                    if kept.len() > 8 {
                        let (page, birth, guard) = kept.remove(random as usize % 8);
                        drop(kept);
                        check(page, birth, &guard);
                    }
                }
            });
        }
        let _end = SetAtEnd(&done);
        let began = Instant::now();
        let mut random = 99;
        for _ in 0..commits {
            let mut changes: Vec<(PageId, Option<bool>)> = Vec::new();
            for _ in 0..3 {
                random = units::mix(random);
                let page = page(classes[random as usize / 64 % classes.len()], random / 1024 % count);
                if changes.iter().all(|(other, _)| *other != page) {
                    changes.push((page, [None, Some(true), Some(true), Some(false)][random as usize / 7 % 4]));
                }
            }
            source.commit(&manager, &pages, &changes);
            assert!(manager.budget().used_bytes() <= budget);
        }
        eprintln!("{commits} commits in {:?}, {:?}", began.elapsed(), manager.stats());
    });
    kept.into_inner().unwrap().iter().for_each(|(page, birth, guard)| check(*page, *birth, guard));
}

#[test]
fn readers_see_their_states_while_pages_are_published_freed_and_evicted() {
    storm(2 << 20, &[12], 2000, 6, 3000);
}

#[test]
fn the_same_with_pages_of_several_sizes() {
    storm(4 << 20, &[12, 13, 16], 400, 6, 2000);
}

#[test]
fn the_same_when_all_of_it_fits() {
    storm(64 << 20, &[12, 14], 64, 4, 5000);
}
