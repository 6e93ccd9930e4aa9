//! The manager against the policy that it runs, driven alone: batches, limbo and the rest of the machine may not cost
//! hits.

use super::super::policy::{Arrival, Frames, PageHash, Slot, default_policy};
use super::*;

/// What the manager may differ by, in points of hit rate: it evicts in batches, so that on average some frames are free
/// that the simulation uses.
const TOLERATED_POINTS: f64 = 1.0;
const ACCESSES: usize = 300_000;

struct Bits(Vec<bool>);

impl Frames for Bits {
    fn touched(&mut self, slot: Slot) -> bool {
        std::mem::take(&mut self.0[slot.0 as usize])
    }

    fn take(&mut self, _slot: Slot) -> bool {
        true
    }
}

/// The hit rate of the default policy with so many frames, in percent.
fn simulated(frames: usize, accesses: &[u64]) -> f64 {
    let mut policy = default_policy();
    let mut bits = Bits(Vec::new());
    let mut held: Vec<u64> = Vec::new();
    let mut slots: HashMap<u64, u32> = HashMap::new();
    let mut hits = 0;
    for access in accesses {
        if let Some(slot) = slots.get(access) {
            bits.0[*slot as usize] = true;
            hits += 1;
            continue;
        }
        let slot = if held.len() < frames {
            held.push(*access);
            bits.0.push(false);
            Slot(held.len() as u32 - 1)
        } else {
            let slot = policy.victim(&mut bits).unwrap();
            slots.remove(&std::mem::replace(&mut held[slot.0 as usize], *access));
            bits.0[slot.0 as usize] = false;
            slot
        };
        slots.insert(*access, slot.0);
        policy.admit(slot, PageHash(units::mix(*access)), SizeClass::MIN, Arrival::Read);
    }
    100.0 * hits as f64 / accesses.len() as f64
}

/// The manager's hit rate, and the frames that held pages on average.
fn managed(accesses: &[u64], pages_in_all: u64, by_scope: bool) -> (f64, usize) {
    let (manager, source, pages) = with_pages(2 << 20, &[12], pages_in_all);
    let state = source.state();
    let (mut resident, mut samples) = (0, 0);
    for (at, access) in accesses.iter().enumerate() {
        let id = page(12, *access);
        match by_scope {
            true => pages
                .scope(&state, |scope| {
                    check(id, Generation(1), scope.page(id)?);
                    Ok(())
                })
                .unwrap(),
            false => check(id, Generation(1), &pages.page(&state, id).unwrap()),
        }
        if at > accesses.len() / 10 && at % 997 == 0 {
            resident += manager.stats().classes[0].resident_bytes / 4096;
            samples += 1;
        }
    }
    let misses = source.loads.load(Ordering::Relaxed);
    assert_eq!(manager.stats().misses, misses);
    (100.0 - 100.0 * misses as f64 / accesses.len() as f64, (resident / samples) as usize)
}

/// Numbers in 0..1, the same ones every time.
fn fractions() -> impl Iterator<Item = f64> {
    (1u64..).map(|at| units::mix(at) as f64 / u64::MAX as f64)
}

/// Points of which the `n`-th page gets a share of about 1/n.
fn points(pages: u64) -> impl Iterator<Item = u64> {
    fractions().map(move |fraction| ((pages as f64).powf(fraction) - 1.0) as u64)
}

fn compare(accesses: &[u64], pages_in_all: u64) {
    for by_scope in [true, false] {
        let (managed, frames) = managed(accesses, pages_in_all, by_scope);
        let simulated = simulated(frames, accesses);
        eprintln!("by scope: {by_scope}, {frames} frames: manager {managed:.2} %, simulation {simulated:.2} %");
        assert!((managed - simulated).abs() <= TOLERATED_POINTS, "{managed:.2} {simulated:.2}");
    }
}

#[test]
fn skewed_points_hit_as_in_the_simulation() {
    let accesses: Vec<u64> = points(5000).take(ACCESSES).collect();
    compare(&accesses, 5000);
}

#[test]
fn points_beside_scans_hit_as_in_the_simulation() {
    let mut accesses = Vec::new();
    let mut points = points(3000);
    while accesses.len() < ACCESSES {
        accesses.extend(points.by_ref().take(10_000));
        for page in 3000..5000 {
            accesses.extend([page, points.next().unwrap()]);
        }
    }
    compare(&accesses, 5000);
}
