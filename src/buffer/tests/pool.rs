use super::super::pool::{Pool, PoolState};
use super::*;

fn class(log2: u8) -> SizeClass {
    SizeClass::new(log2).unwrap()
}

#[test]
fn frames_lie_at_multiples_of_their_size() {
    for log2 in [12, 15, 20, 21, 23] {
        let pool = Pool::reserve(class(log2), 8 << 20).unwrap();
        for number in 0..(8 << 20) >> log2 {
            let address = pool.address(number).addr().get();
            assert!(address.is_multiple_of(1 << log2.min(21)));
            assert_eq!(pool.number(address), Some(number));
        }
        assert_eq!(pool.number(pool.address(0).addr().get() - 1), None);
    }
}

#[test]
fn large_os_pages_come_and_go_whole() {
    for os_page in [4 << 10, 16 << 10, 64 << 10] {
        let pool = Pool::reserve(SizeClass::MIN, 1 << 20).unwrap();
        let mut state = PoolState::new(SizeClass::MIN, os_page, false);
        let frames = os_page / 4096;
        assert_eq!((state.slab_bytes(), state.frames_per_slab()), (os_page, frames));
        for slab in 0..4 {
            assert!(state.can_grow(&pool));
            state.grow(&pool);
            assert_eq!((state.free(), state.committed()), ((slab + 1) * frames, ((slab + 1) * frames) as u64));
        }
        let taken: Vec<u32> = (0..4 * frames).map(|_| state.pop().unwrap()).collect();
        assert!(state.pop().is_none());
        // One frame of the second slab stays in use: only the other three may go.
        for number in taken.iter().filter(|number| **number as usize != frames) {
            state.push(*number);
        }
        assert_eq!(state.shrink(&pool, 100), 3);
        assert_eq!((state.committed(), state.free()), (frames as u64, frames - 1));
        state.push(frames as u32);
        assert_eq!(state.shrink(&pool, 100), 1);
        // The lowest come back first.
        state.grow(&pool);
        assert_eq!(state.pop(), Some(0));
    }
}

#[test]
fn a_pool_without_addresses_left_does_not_grow() {
    let pool = Pool::reserve(SizeClass::CHUNK, 2 << 20).unwrap();
    let mut state = PoolState::new(SizeClass::CHUNK, 4096, true);
    state.prepare(&pool);
    while state.can_grow(&pool) {
        state.grow(&pool);
    }
    assert!((2..=4).contains(&state.committed()), "{}", state.committed());
}
