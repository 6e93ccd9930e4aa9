use std::time::Duration;

use super::*;

#[test]
fn a_page_is_loaded_once_and_then_found() {
    let (manager, source, pages) = with_pages(1 << 20, &[12], 10);
    let state = source.state();
    for _ in 0..3 {
        for index in 0..10 {
            check(page(12, index), Generation(1), &pages.page(&state, page(12, index)).unwrap());
            pages
                .scope(&state, |scope| {
                    check(page(12, index), Generation(1), scope.page(page(12, index))?);
                    Ok(())
                })
                .unwrap();
        }
    }
    assert_eq!(source.loads.load(Ordering::Relaxed), 10);
    let stats = manager.stats();
    assert_eq!((stats.misses, stats.evictions), (10, 0));
    assert_eq!(stats.hits, 50);
}

#[test]
fn data_of_many_times_the_budget_is_read_and_the_budget_is_kept() {
    let (manager, source, pages) = with_pages(1 << 20, &[12, 14, 16], 300);
    let state = source.state();
    for round in 0..3 {
        for index in 0..300 {
            for class in [12, 14, 16] {
                let page = page(class, (index * 7 + round) % 300);
                check(page, Generation(1), &pages.page(&state, page).unwrap());
                assert!(manager.budget().used_bytes() <= 1 << 20);
            }
        }
    }
    assert!(manager.stats().evictions > 300);
}

#[test]
fn a_view_sees_its_generation_whatever_was_published_since() {
    let (manager, source, pages) = with_pages(1 << 20, &[12], 4);
    let mut states = vec![source.state()];
    for round in 0..20 {
        let changed = page(12, round % 4);
        let is_in_memory = round % 3 != 0;
        states.push(source.commit(&manager, &pages, &[(changed, Some(is_in_memory))]));
        for state in &states {
            for index in 0..4 {
                let page = page(12, index);
                let birth = state.birth(page).unwrap();
                check(page, birth, &pages.page(state, page).unwrap());
                pages
                    .scope(state, |scope| {
                        check(page, birth, scope.page(page)?);
                        Ok(())
                    })
                    .unwrap();
            }
        }
    }
}

#[test]
fn a_freed_page_is_not_found_but_by_older_views() {
    let (manager, source, pages) = with_pages(1 << 20, &[12], 2);
    let old = source.state();
    let gone = page(12, 1);
    let new = source.commit(&manager, &pages, &[(gone, None)]);
    assert!(matches!(pages.page(&new, gone), Err(Error::PageNotFound { .. })));
    assert!(matches!(pages.scope(&new, |scope| Ok(scope.page(gone)?[0])), Err(Error::PageNotFound { .. })));
    assert!(matches!(pages.page(&new, page(12, 1 << 40)), Err(Error::PageNotFound { .. })));
    assert!(matches!(pages.page(&new, page(31, 5)), Err(Error::PageExceedsBudget { .. })));
    check(gone, Generation(1), &pages.page(&old, gone).unwrap());
}

#[test]
fn a_guard_outlives_its_page_its_store_and_its_manager() {
    let (manager, source, pages) = with_pages(1 << 20, &[12, 13], 300);
    let state = source.state();
    let guards: Vec<_> = (0..100).map(|index| pages.page(&state, page(12, index)).unwrap()).collect();
    let clones: Vec<_> = guards.iter().take(10).cloned().collect();
    source.commit(&manager, &pages, &[(page(12, 0), Some(true)), (page(12, 1), None)]);
    for index in 0..300 {
        pages.page(&state, page(13, index)).unwrap();
    }
    let whole = |guards: &[FrameGuard]| {
        for (index, guard) in guards.iter().enumerate() {
            check(page(12, index as u64), Generation(1), guard);
        }
    };
    whole(&guards);
    drop(pages);
    drop(manager);
    whole(&guards);
    whole(&clones);
    std::thread::spawn(move || drop(guards)).join().unwrap();
    whole(&clones);
}

#[test]
fn more_guards_than_the_budget_holds_are_an_error_that_says_so() {
    let (manager, source, pages) = with_pages(1 << 20, &[12], 400);
    let _watchdog = Watchdog::new(&manager);
    let state = source.state();
    let _sorting = manager.budget().reserve(300_000, "sorting").unwrap();
    let mut guards = Vec::new();
    let error = (0..400).find_map(|index| match pages.page(&state, page(12, index)) {
        Ok(guard) => {
            guards.push(guard);
            None
        }
        Err(error) => Some(error),
    });
    let Some(Error::BudgetExhausted { held_by, .. }) = &error else { panic!("{error:?}") };
    assert!(held_by.iter().any(|holder| holder.what == "sorting" && holder.bytes == 300_000));
    assert!(held_by.iter().any(|holder| holder.what.contains("guards") && holder.bytes > 600_000), "{held_by:?}");
    assert!(error.unwrap().to_string().contains("sorting 300000"));
    guards.truncate(5);
    check(page(12, 399), Generation(1), &pages.page(&state, page(12, 399)).unwrap());
}

#[test]
fn a_scope_that_needs_more_than_the_budget_fails_and_smaller_ones_go_on() {
    let (manager, source, pages) = with_pages(1 << 20, &[14], 100);
    let _watchdog = Watchdog::new(&manager);
    let state = source.state();
    let sum_of = |count| {
        pages.scope(&state, |scope| {
            (0..count).try_for_each(|index| {
                check(page(14, index), Generation(1), scope.page(page(14, index))?);
                Ok(())
            })
        })
    };
    assert!(matches!(sum_of(100), Err(Error::BudgetExhausted { .. })));
    sum_of(50).unwrap();
}

#[test]
fn a_scope_runs_again_even_if_the_error_is_swallowed_and_scopes_nest() {
    let (_manager, source, pages) = with_pages(1 << 20, &[12], 100);
    let state = source.state();
    let found = pages.scope(&state, |scope| Ok(scope.page(page(12, 3)).is_ok())).unwrap();
    assert!(found);
    pages
        .scope(&state, |outer| {
            let outside = outer.page(page(12, 4))?;
            for index in 5..90 {
                pages.scope(&state, |inner| {
                    check(page(12, index), Generation(1), inner.page(page(12, index))?);
                    Ok(())
                })?;
            }
            let guard = pages.page(&state, page(12, 91))?;
            check(page(12, 91), Generation(1), &guard);
            check(page(12, 4), Generation(1), outside);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_failed_load_fails_all_who_wait_and_the_next_one_works() {
    let (manager, source, pages) = with_pages(1 << 20, &[12], 1);
    let state = source.state();
    source.fails.store(true, Ordering::Relaxed);
    let gate = source.gate.lock().unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| matches!(pages.page(&state, page(12, 0)), Err(Error::Closed)))).collect();
        while manager.stats().waits < 3 {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(gate);
        assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
    });
    assert_eq!(source.loads.load(Ordering::Relaxed), 1);
    source.fails.store(false, Ordering::Relaxed);
    check(page(12, 0), Generation(1), &pages.page(&state, page(12, 0)).unwrap());
}

#[test]
fn a_load_that_ends_while_its_page_is_looked_for_is_not_taken_for_a_newer_version() {
    const PAGES: u64 = 40_000;
    let (manager, source, pages) = with_pages(256 << 20, &[12], PAGES);
    let _watchdog = Watchdog::new(&manager);
    let state = source.state();
    let looked = AtomicU64::new(0);
    // Awake, to be in time; but the other may have to get a processor first.
    let wait_for = |condition: &dyn Fn() -> bool| {
        for look in 1u32.. {
            match condition() {
                true => return,
                false if look % 1024 == 0 => std::thread::yield_now(),
                false => std::hint::spin_loop(),
            }
        }
    };
    std::thread::scope(|scope| {
        let (source, state, pages, looked) = (&source, &state, &pages, &looked);
        scope.spawn(move || {
            for index in 0..PAGES {
                wait_for(&|| looked.load(Ordering::Relaxed) >= index);
                check(page(12, index), Generation(1), &pages.page(state, page(12, index)).unwrap());
            }
        });
        // The other looks for each page about when its load ends: a little earlier, or a little later.
        for index in 0..PAGES {
            wait_for(&|| source.loads.load(Ordering::Relaxed) > index);
            (0..index % 400).for_each(|step| _ = std::hint::black_box(step));
            check(page(12, index), Generation(1), &pages.page(state, page(12, index)).unwrap());
            looked.store(index + 1, Ordering::Relaxed);
        }
    });
    assert_eq!(source.loads.load(Ordering::Relaxed), PAGES);
    assert_eq!((manager.stats().misses, manager.stats().evictions), (PAGES, 0));
}

#[test]
fn a_publication_overtakes_a_load() {
    let (manager, source, pages) = with_pages(1 << 20, &[12], 1);
    let old = source.state();
    for is_in_memory in [true, false] {
        let old = if is_in_memory { old.clone() } else { source.state() };
        source.commit(&manager, &pages, &[(page(12, 0), Some(false))]);
        let old_birth = source.state().birth(page(12, 0)).unwrap();
        let before = source.state();
        let gate = source.gate.lock().unwrap();
        let new = std::thread::scope(|scope| {
            let misses = manager.stats().misses;
            let reader = scope.spawn(|| pages.page(&before, page(12, 0)).unwrap());
            while manager.stats().misses == misses {
                std::thread::sleep(Duration::from_millis(1));
            }
            let new = source.commit(&manager, &pages, &[(page(12, 0), Some(is_in_memory))]);
            drop(gate);
            check(page(12, 0), old_birth, &reader.join().unwrap());
            new
        });
        check(page(12, 0), new.generation, &pages.page(&new, page(12, 0)).unwrap());
        check(page(12, 0), old_birth, &pages.page(&before, page(12, 0)).unwrap());
        let _ = old;
    }
}

#[test]
fn private_frames_are_exclusive_until_they_are_shared_and_never_again_after_publication() {
    let (manager, source, pages) = with_pages(1 << 20, &[12], 1);
    let mut frame = manager.frame(SizeClass::MIN).unwrap();
    assert!(frame.get_mut().is_some());
    let mut second = frame.clone();
    assert!(frame.get_mut().is_none() && second.get_mut().is_none());
    drop(frame);
    fill(page(12, 0), Generation(7), second.get_mut().unwrap());
    let mut reader = second.clone();
    pages.publish(Generation(7), &mut [(page(12, 0), Newest::Frame(second))].into_iter());
    assert!(reader.is_published() && reader.get_mut().is_none());
    pages.publish(Generation(8), &mut [(page(12, 0), Newest::Absent)].into_iter());
    let state = source.state();
    for _ in 0..3 {
        let others: Vec<_> = (0..200).map_while(|_| manager.frame(SizeClass::MIN).ok()).collect();
        assert!(others.len() > 100);
        check(page(12, 0), Generation(7), &reader);
    }
    drop(reader);
    let _ = pages.page(&state, page(12, 0)).unwrap();
    assert_eq!(manager.stats().private_bytes, 0);
}

#[test]
fn chunks_and_old_versions_are_found_by_pointer() {
    let (manager, source, pages) = with_pages(4 << 20, &[12, 23], 2);
    let big = page(23, 0);
    let chunk = BlockPointer { address: Block(77), ..pointer_of(big, Generation(1)) };
    for _ in 0..2 {
        let guard = pages.unit(big, &chunk, SizeClass::CHUNK).unwrap();
        assert_eq!((guard.len(), &guard[..8]), (1 << 20, &word_of(big, Generation(1)).to_le_bytes()[..]));
    }
    assert_eq!(source.loads.load(Ordering::Relaxed), 1);
    let old = source.state();
    pages.page(&old, page(12, 0)).unwrap();
    let loads = source.loads.load(Ordering::Relaxed);
    let replaced = Some(pointer_of(page(12, 0), Generation(1)));
    let mut frame = manager.frame(SizeClass::MIN).unwrap();
    fill(page(12, 0), Generation(2), frame.get_mut().unwrap());
    let change = Change { page: page(12, 0), newest: Newest::Frame(frame), replaced };
    pages.publish_keeping(Generation(2), &mut [change].into_iter());
    check(page(12, 0), Generation(1), &pages.page(&old, page(12, 0)).unwrap());
    assert_eq!(source.loads.load(Ordering::Relaxed), loads, "the replaced frame was kept for older views");
}

#[test]
fn descriptors_give_their_memory_back_however_their_pages_left() {
    let (manager, source, pages) = with_pages(2 << 20, &[12], 100);
    let state = source.state();
    (0..90).for_each(|index| drop(pages.page(&state, page(12, index)).unwrap()));
    // Replaced by frames, or new; replaced by none; freed; the rest are evicted.
    let changes =
        |range: std::ops::Range<u64>, change| range.map(|index| (page(12, index), change)).collect::<Vec<_>>();
    for (range, change) in [(60..100, Some(true)), (0..70, Some(false)), (30..40, Some(true)), (30..80, None)] {
        source.commit(&manager, &pages, &changes(range, change));
    }
    assert!(manager.stats().descriptor_bytes > 0);
    let left = (2 << 20) - manager.stats().policy_bytes as usize;
    let all = manager.budget().reserve(left, "everything").unwrap();
    assert_eq!(manager.stats().descriptor_bytes, 0);
    drop(all);
}

#[test]
fn everything_is_given_back_when_the_store_goes() {
    let (manager, source, pages) = with_pages(2 << 20, &[12, 15], 100);
    let state = source.state();
    for index in 0..100 {
        pages.page(&state, page(12, index)).unwrap();
        pages.page(&state, page(15, index)).unwrap();
    }
    let guard = pages.page(&state, page(12, 99)).unwrap();
    drop(pages);
    let stats = manager.stats();
    assert_eq!(stats.descriptor_bytes, 0);
    assert_eq!(stats.classes.iter().map(|class| class.resident_bytes).sum::<u64>(), 0);
    assert_eq!(stats.classes.iter().map(|class| class.limbo_bytes).sum::<u64>(), 4096);
    drop(guard);
    let all = manager.budget().reserve((2 << 20) - stats.policy_bytes as usize, "everything").unwrap();
    drop(all);
}

#[test]
fn budgets_are_of_any_size_from_one_mebibyte_up() {
    assert!(matches!(BufferManager::new((1 << 20) - 1), Err(Error::BudgetTooSmall { .. })));
    let manager = BufferManager::new((1 << 20) + 4097).unwrap();
    let _watchdog = Watchdog::new(&manager);
    assert!(matches!(manager.frame(SizeClass::new(21).unwrap()), Err(Error::BudgetTooSmall { .. })));
    assert!(manager.frame(SizeClass::new(20).unwrap()).is_ok());
    assert!(matches!(manager.budget().reserve(2 << 20, "too much"), Err(Error::BudgetTooSmall { .. })));
    let mut memory = manager.budget().alloc(10_000, "a query").unwrap();
    assert_eq!((memory.len(), memory[9_999]), (10_000, 0));
    memory[0] = 1;
    let held = manager.budget().used_bytes();
    drop(memory);
    assert_eq!(held - manager.budget().used_bytes(), 10_000_usize.next_multiple_of(crate::memory::page_bytes()));
    let refused = {
        let _large = manager.budget().reserve(900_000, "a hog").unwrap();
        manager.budget().reserve_within(200_000, "a query", Duration::from_millis(5))
    };
    assert!(matches!(refused, Err(Error::BudgetExhausted { .. })));
}

#[test]
fn a_swip_reaches_its_page_before_and_after_it_was_followed_evicted_and_published() {
    let (manager, source, pages) = with_pages(1 << 20, &[12, 16], 200);
    let state = source.state();
    let swips: Vec<Swip> = (0..200).map(|index| Swip::new(page(12, index))).collect();
    for _ in 0..3 {
        for (index, swip) in swips.iter().enumerate() {
            let id = page(12, index as u64);
            assert_eq!(swip.page(&pages).unwrap(), id);
            pages
                .scope(&state, |scope| {
                    check(id, Generation(1), scope.follow(swip)?);
                    Ok(())
                })
                .unwrap();
            assert!(swip.is_swizzled());
            assert_eq!(swip.page(&pages).unwrap(), id);
            pages.page(&state, page(16, index as u64)).unwrap();
        }
    }
    let new = source.commit(&manager, &pages, &[(page(12, 0), Some(true)), (page(12, 1), None)]);
    pages
        .scope(&new, |scope| {
            check(page(12, 0), new.generation, scope.follow(&swips[0])?);
            Ok(())
        })
        .unwrap();
    pages
        .scope(&state, |scope| {
            check(page(12, 0), Generation(1), scope.follow(&swips[0])?);
            Ok(())
        })
        .unwrap();
    assert!(matches!(pages.scope(&new, |scope| Ok(scope.follow(&swips[1])?[0])), Err(Error::PageNotFound { .. })));
    // In another store: an error, or a page of that one.
    let other = manager.attach(Arc::clone(&source) as Arc<dyn PageSource>).unwrap();
    assert!(matches!(other.scope(&state, |scope| Ok(scope.follow(&swips[7])?[0])), Err(Error::SwipOfAnotherStore)));
}

#[test]
fn what_is_read_unnoticed_is_the_first_to_go() {
    let (manager, source, pages) = with_pages(2 << 20, &[12], 1000);
    let state = source.state();
    let read = |index| check(page(12, index), Generation(1), &pages.page(&state, page(12, index)).unwrap());
    assert!(pages.page_unnoticed(&state, page(12, 0)).is_none() && pages.page_in_memory(&state, page(12, 0)).is_none());
    (0..400).for_each(read);
    for _ in 0..3 {
        for index in 0..200 {
            check(page(12, index), Generation(1), &pages.page_unnoticed(&state, page(12, index)).unwrap());
            check(page(12, 200 + index), Generation(1), &pages.page_in_memory(&state, page(12, 200 + index)).unwrap());
        }
    }
    (400..600).for_each(read);
    let left = |range: std::ops::Range<u64>| {
        range.filter(|index| pages.page_unnoticed(&state, page(12, *index)).is_some()).count()
    };
    assert_eq!(left(200..400), 200);
    assert!(left(0..200) < 120, "{} {:?}", left(0..200), manager.stats());
}

#[test]
fn pages_read_ahead_are_there_or_on_their_way() {
    let (manager, source, pages) = with_pages(4 << 20, &[12], 2000);
    let state = source.state();
    for batch in 0..20 {
        let ids: Vec<PageId> = (0..64).map(|index| page(12, batch * 64 + index)).collect();
        pages.prefetch(&state, &ids).unwrap();
        pages.prefetch(&state, &[page(12, 1 << 30)]).unwrap();
        for id in ids {
            check(id, Generation(1), &pages.page(&state, id).unwrap());
        }
    }
    assert_eq!(source.loads.load(Ordering::Relaxed), 1280);
    assert_eq!(manager.stats().misses, 1280);
    source.fails.store(true, Ordering::Relaxed);
    pages.prefetch(&state, &[page(12, 1900)]).unwrap();
    while manager.stats().loading_bytes > 0 {
        std::thread::yield_now();
    }
    source.fails.store(false, Ordering::Relaxed);
    check(page(12, 1900), Generation(1), &pages.page(&state, page(12, 1900)).unwrap());
}
