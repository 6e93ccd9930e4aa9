//! Tests that need a process for themselves: under limits, or to be weighed. Each starts the test program again, for
//! itself alone, through a shell that sets the limits.
#![allow(unsafe_code)]

use std::env;
use std::fs;
use std::process::{Command, Output};

use super::*;

const CHILD: &str = "VELLUM_TEST_CHILD";
const MIB: usize = 1 << 20;

/// Runs `body` in a process of its own, after `limits` (shell commands), and returns how it ended. In that process,
/// it does not return.
fn in_a_child(test: &str, limits: &str, body: impl FnOnce()) -> Output {
    if env::var_os(CHILD).is_some() {
        body();
        std::process::exit(0);
    }
    let script = format!("{limits}\nexec \"$0\" --exact memory::tests::process::{test} --test-threads=1 --nocapture");
    let program = env::current_exe().unwrap();
    Command::new("sh").arg("-c").arg(script).arg(program).env(CHILD, "1").output().unwrap()
}

fn succeeds(test: &str, limits: &str, body: impl FnOnce()) {
    let output = in_a_child(test, limits, body);
    assert!(output.status.success(), "{output:?}");
}

/// Memory of its own that the process takes now, in bytes: not its code, which comes to be there as it is run.
fn resident_bytes() -> usize {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let kib = text.lines().find_map(|line| line.strip_prefix("RssAnon:")?.strip_suffix("kB")).unwrap();
    kib.trim().parse::<usize>().unwrap() * 1024
}

/// What `resident_bytes` changes by while `change` runs, in whole MiB, rounded to the nearest.
fn change_in_mib(change: impl FnOnce()) -> isize {
    let before = resident_bytes() as isize;
    change();
    (resident_bytes() as isize - before + MIB as isize / 2).div_euclid(MIB as isize)
}

#[test]
fn memory_falls_when_pages_are_decommitted() {
    succeeds("memory_falls_when_pages_are_decommitted", "", || {
        let mut pages = Pages::new(64 * MIB).unwrap();
        assert_eq!(change_in_mib(|| pages.fill(7)), 64);
        assert_eq!(change_in_mib(|| pages.decommit(16 * MIB..48 * MIB).unwrap()), -32);
        assert_eq!((pages[16 * MIB - 1], pages[16 * MIB], pages[48 * MIB]), (7, 0, 7));
        assert_eq!(change_in_mib(|| pages.resize(8 * MIB).unwrap()), -24);
        assert_eq!(change_in_mib(|| drop(pages)), -8);
    });
}

#[test]
fn memory_falls_when_a_vector_is_released_shrunk_or_dropped() {
    succeeds("memory_falls_when_a_vector_is_released_shrunk_or_dropped", "", || {
        let fill = |vector: &mut PagedVec<u64>, bytes: usize| vector.resize(bytes / 8, u64::MAX);
        let mut vector = PagedVec::new();
        assert_eq!(change_in_mib(|| fill(&mut vector, 64 * MIB)), 64);
        let capacity = vector.capacity();
        assert_eq!(change_in_mib(|| vector.clear_and_release().unwrap()), -64);
        assert_eq!((vector.len(), vector.capacity()), (0, capacity));
        assert_eq!(change_in_mib(|| fill(&mut vector, 64 * MIB)), 64);
        assert_eq!(change_in_mib(|| vector.truncate(2 * MIB)), 0);
        assert_eq!(change_in_mib(|| vector.shrink_to_fit()), -48);
        assert_eq!(vector.capacity(), 2 * MIB);
        assert!(vector.iter().all(|element| *element == u64::MAX));
        assert_eq!(change_in_mib(|| drop(vector)), -16);
    });
}

#[test]
fn a_reservation_takes_memory_only_where_it_is_touched() {
    succeeds("a_reservation_takes_memory_only_where_it_is_touched", "", || {
        let mut reservation = None;
        assert_eq!(change_in_mib(|| reservation = Reservation::at_most(1 << 40, 64 * MIB).ok()), 0);
        let reservation = reservation.unwrap();
        let touch = || {
            // SAFETY: in the reservation (M1), which only this test uses.
            unsafe { reservation.start().add(MIB).write_bytes(1, 32 * MIB) };
        };
        assert_eq!(change_in_mib(touch), 32);
        // SAFETY: as above.
        assert_eq!(change_in_mib(|| unsafe { reservation.give_back(..17 * MIB).unwrap() }), -16);
        assert_eq!(change_in_mib(|| drop(reservation)), -16);
    });
}

/// What must hold when some limit allows more than 16 MiB, but not `too_much`.
fn reservations_are_small_or_refused(too_much: usize) {
    let refused = format!("reservation of {too_much} bytes of memory failed");
    assert!(is_refusal(Reservation::new(too_much), &refused));
    assert!(is_refusal(Reservation::new(too_much), "see `ulimit -v`, `ulimit -d`, vm.overcommit_memory"));
    assert!(is_refusal(Reservation::at_most(2 * too_much, too_much), &refused));
    let smaller = Reservation::at_most(2 * too_much, 16 * MIB).unwrap();
    assert!((16 * MIB..too_much).contains(&smaller.len()), "{} bytes", smaller.len());
    // SAFETY: in the reservation (M1), which only this test uses.
    unsafe { smaller.start().write_bytes(1, 16 * MIB) };
    // SAFETY: as above.
    unsafe { smaller.give_back(..).unwrap() };
    // SAFETY: as above.
    assert_eq!(unsafe { smaller.start().read() }, 0);
}

#[test]
fn a_reservation_is_smaller_under_a_limit_on_addresses() {
    succeeds("a_reservation_is_smaller_under_a_limit_on_addresses", "ulimit -v 1000000", || {
        reservations_are_small_or_refused(1024 * MIB);
    });
}

#[test]
fn a_reservation_is_smaller_under_a_limit_on_data() {
    succeeds("a_reservation_is_smaller_under_a_limit_on_data", "ulimit -d 1000000", || {
        reservations_are_small_or_refused(1024 * MIB);
    });
}

/// Whether overcommit is strict is the system's setting, and not a test's to change: `.ci/strict-overcommit` does, on a
/// machine of its own.
#[test]
fn a_reservation_is_as_large_as_overcommit_allows() {
    const MORE_THAN_ANY_MEMORY: usize = 1 << 45;
    succeeds("a_reservation_is_as_large_as_overcommit_allows", "", || {
        let mode = fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap();
        match mode.trim() {
            "2" => reservations_are_small_or_refused(MORE_THAN_ANY_MEMORY),
            _ => assert_eq!(Reservation::at_most(MORE_THAN_ANY_MEMORY, 1).unwrap().len(), MORE_THAN_ANY_MEMORY),
        }
    });
}

#[test]
fn a_vector_that_gets_no_more_memory_keeps_its_elements() {
    succeeds("a_vector_that_gets_no_more_memory_keeps_its_elements", "ulimit -v 700000", || {
        let mut vector = PagedVec::<u8>::new();
        vector.resize(384 * MIB, 5);
        assert!(is_refusal(vector.try_reserve(1024 * MIB), "resize of"));
        assert_eq!((vector.len(), vector.capacity()), (384 * MIB, 384 * MIB));
        // Twice as much does not fit, what is needed does.
        vector.try_reserve(64 * MIB).unwrap();
        assert_eq!(vector.capacity(), 448 * MIB);
        assert!(vector.iter().all(|byte| *byte == 5));
    });
}

#[test]
fn a_vector_without_memory_ends_the_process_as_vec_does() {
    let output = in_a_child("a_vector_without_memory_ends_the_process_as_vec_does", "ulimit -v 1000000", || {
        PagedVec::<u8>::with_capacity(2048 * MIB);
    });
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("memory allocation of 2147483648 bytes failed"), "{text}");
}

#[test]
fn a_refused_permission_is_an_error_and_its_memory_is_given_back() {
    succeeds("a_refused_permission_is_an_error_and_its_memory_is_given_back", "ulimit -d 200000", || {
        // Read-only memory is no data in the limit's sense, until it is to be written.
        let read_only = Pages::new(128 * MIB).unwrap().deny_write().unwrap();
        let _data = Pages::new(128 * MIB).unwrap();
        assert!(is_refusal(read_only.allow_write(), "protection of 134217728 bytes of memory failed"));
    });
}

#[test]
fn a_write_to_read_only_memory_ends_the_process() {
    use std::os::unix::process::ExitStatusExt;
    const SEGMENTATION_FAULT: i32 = 11;
    let output = in_a_child("a_write_to_read_only_memory_ends_the_process", "ulimit -c 0", || {
        let pages = Pages::new(1).unwrap().deny_write().unwrap();
        // SAFETY: none: the process is to die of it.
        unsafe { pages.as_ptr().cast_mut().write_volatile(1) };
    });
    assert_eq!(output.status.signal(), Some(SEGMENTATION_FAULT), "{output:?}");
}
