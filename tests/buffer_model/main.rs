//! Every order of events, as far as the model checker tries them, of the buffer's lock-free core: the very files of
//! `src/buffer/protocol`, over the checker's atomics.
//!
//! The world is small: one page, frames as cells that notice a write beside a read, threads that do once what the buffer
//! does all the time. In each model the reader checks that the bytes it sees are a version that it may see, while others
//! evict, load, publish and use frames again. The checker tries all executions with at most `PREEMPTIONS` switches of
//! threads where none had to be (`LOOM_MAX_PREEMPTIONS` for more), weak orders of memory included.
//!
//! Every rule can be broken on purpose; each time one of the models must fail. The reader's light fence and the
//! evictor's heavy one are both sequentially consistent fences here: what `membarrier` promises is that the pair is as
//! good.
#![allow(dead_code, clippy::unwrap_used)]

#[path = "../../src/buffer/protocol/mod.rs"]
mod protocol;
mod sync;
mod world;

use loom::thread;
use sync::Sabotage;
use world::{Guard, World, check};

#[test]
fn a_page_is_loaded_while_it_is_evicted() {
    check(None, load_and_evict);
}

/// A scope reads while the frame is evicted, given back to the pool, and the page loaded again into the other frame.
fn load_and_evict() {
    let world = World::new();
    world.load(1);
    let reader = {
        let world = world.clone();
        thread::spawn(move || world.read_in_epoch(1))
    };
    world.evict();
    world.sift_and_scribble();
    world.load(1);
    reader.join().unwrap();
}

#[test]
fn a_guard_is_made_while_its_page_is_evicted() {
    check(None, guard_and_evict);
}

fn guard_and_evict() {
    let world = World::new();
    world.load(1);
    let reader = {
        let world = world.clone();
        thread::spawn(move || world.read_by_slot(1))
    };
    world.evict();
    world.sift_and_scribble();
    reader.join().unwrap();
}

#[test]
fn a_version_is_published_while_readers_of_both_generations_look() {
    check(None, publish_and_read);
}

fn publish_and_read() {
    let world = World::new();
    world.load(1);
    let old = {
        let world = world.clone();
        thread::spawn(move || world.read_in_epoch(1))
    };
    world.publish(2);
    world.sift_and_scribble();
    world.read_in_epoch(2);
    old.join().unwrap();
}

#[test]
fn a_version_is_published_while_a_guard_is_made() {
    check(None, publish_and_guard);
}

fn publish_and_guard() {
    let world = World::new();
    world.load(1);
    let old = {
        let world = world.clone();
        thread::spawn(move || world.read_by_slot(1))
    };
    world.publish(2);
    world.sift_and_scribble();
    old.join().unwrap();
}

#[test]
fn a_version_is_published_while_the_one_before_is_loaded() {
    check(None, publish_and_load);
}

fn publish_and_load() {
    let world = World::new();
    let loader = {
        let world = world.clone();
        thread::spawn(move || world.load(1))
    };
    world.publish(2);
    loader.join().unwrap();
    // Whoever was faster: the newest is what readers find, or nothing.
    world.read_newest(2);
}

#[test]
fn the_memory_of_descriptors_is_given_back_while_an_old_view_reads() {
    check(None, forget_and_read);
}

/// A reader of generation 1 meets version 2, which is evicted, and its generation forgotten, while it looks.
fn forget_and_read() {
    let world = World::new();
    world.load(2);
    let reader = {
        let world = world.clone();
        thread::spawn(move || world.read_in_epoch(1))
    };
    world.evict();
    world.forget();
    reader.join().unwrap();
}

#[test]
fn a_page_is_read_as_soon_as_it_is_loaded() {
    check(None, load_and_read);
}

fn load_and_read() {
    let world = World::new();
    let loader = {
        let world = world.clone();
        thread::spawn(move || world.load(1))
    };
    world.read_in_epoch(1);
    loader.join().unwrap();
}

#[test]
fn two_threads_load_the_same_page_and_one_of_them_reads_it() {
    check(None, || {
        let world = World::new();
        let other = {
            let world = world.clone();
            thread::spawn(move || usize::from(world.load(1)))
        };
        let own = usize::from(world.load(1));
        let loads = own + other.join().unwrap();
        assert!(loads == 1, "one loads, the other finds it loading or loaded: {loads}");
        assert!(world.read_in_epoch(1));
    });
}

#[test]
fn a_guard_that_another_thread_drops_holds_until_then() {
    check(None, sent_guard);
}

/// The guard is read and dropped by a thread that is not its slot's.
fn sent_to_another_thread(world: &World, guard: Guard) -> thread::JoinHandle<()> {
    let world = world.clone();
    thread::spawn(move || world.read_and_drop(guard, 1))
}

fn sent_guard() {
    let world = World::new();
    world.load(1);
    let guard = world.guard(1).unwrap();
    let reader = sent_to_another_thread(&world, guard);
    world.evict();
    world.sift_and_scribble();
    reader.join().unwrap();
}

#[test]
fn a_slot_is_filled_again_while_what_it_held_before_is_used_for_something_else() {
    check(None, slot_filled_again);
}

/// The evictor sees the slot with the second frame in it: that must tell it that the first was read before.
fn slot_filled_again() {
    let world = World::new();
    world.load(1);
    let reader = {
        let world = world.clone();
        thread::spawn(move || {
            world.read_by_slot(1);
            world.read_by_slot(2);
        })
    };
    world.publish(2);
    world.sift_and_scribble();
    reader.join().unwrap();
}

#[test]
fn a_slot_that_another_thread_cleared_is_filled_again() {
    check(None, slot_cleared_elsewhere);
}

/// As there, but the first guard is read and dropped by another thread than the slot's.
fn slot_cleared_elsewhere() {
    let world = World::new();
    world.load(1);
    let guard = world.guard(1).unwrap();
    let reader = sent_to_another_thread(&world, guard);
    let owner = {
        let world = world.clone();
        thread::spawn(move || world.read_by_slot(2))
    };
    world.publish(2);
    world.sift_and_scribble();
    reader.join().unwrap();
    owner.join().unwrap();
}

#[test]
fn a_thread_is_in_its_next_scope_while_what_it_read_before_is_used_for_something_else() {
    check(None, next_scope);
}

/// As with slots: an epoch that is seen tells that scopes before it have ended.
fn next_scope() {
    let world = World::new();
    world.load(1);
    let reader = {
        let world = world.clone();
        thread::spawn(move || {
            world.read_in_epoch(1);
            world.read_in_epoch(2);
        })
    };
    world.publish(2);
    world.sift_and_scribble();
    reader.join().unwrap();
}

#[test]
fn every_broken_rule_is_caught() {
    type Model = fn();
    let broken: [(Sabotage, Model); 11] = [
        (Sabotage::SkipReread, forget_and_read),
        (Sabotage::SkipSlots, guard_and_evict),
        (Sabotage::SkipEpochs, load_and_evict),
        (Sabotage::SkipTicket, publish_and_load),
        (Sabotage::FrameFirst, publish_and_read),
        (Sabotage::SkipCeiling, publish_and_read),
        (Sabotage::SkipFence, guard_and_evict),
        (Sabotage::RelaxedFrame, load_and_read),
        (Sabotage::RelaxedClear, guard_and_evict),
        (Sabotage::RelaxedLeave, load_and_evict),
        (Sabotage::RelaxedRefill, slot_cleared_elsewhere),
    ];
    for (rule, model) in broken {
        let outcome = std::panic::catch_unwind(|| check(Some(rule), model));
        assert!(outcome.is_err(), "{rule:?} was broken, and nothing noticed");
    }
}
