//! What the policies cost: time of a miss (a victim and an admission), and memory.

use std::hint::black_box;
use std::time::Instant;

use vellum::SizeClass;
use vellum::buffer::policy::{Arrival, EvictionPolicy, Frames, PageHash, Slot, built_in};

use crate::workload::{Random, Zipf};

/// 4 GiB of 4 KiB pages, eight times as many on the disk.
const FRAMES: usize = 1 << 20;
const PAGES: usize = FRAMES * 8;
const MISSES: usize = 1 << 19;
const ROUNDS: usize = 5;

/// A bit for each slot, set by what a round draws.
struct Bits(Vec<u64>);

impl Bits {
    fn set(&mut self, slot: u32) {
        self.0[slot as usize / 64] |= 1 << (slot % 64);
    }
}

impl Frames for Bits {
    fn touched(&mut self, slot: Slot) -> bool {
        let (word, bit) = (&mut self.0[slot.0 as usize / 64], 1 << (slot.0 % 64));
        let was = *word & bit != 0;
        *word &= !bit;
        was
    }

    fn take(&mut self, _slot: Slot) -> bool {
        true
    }
}

/// A full memory.
struct Full {
    policy: Box<dyn EvictionPolicy>,
    bits: Bits,
    random: Random,
}

impl Full {
    fn new(mut policy: Box<dyn EvictionPolicy>) -> Self {
        for slot in 0..FRAMES as u32 {
            policy.admit(Slot(slot), PageHash(Random(u64::from(slot)).next()), SizeClass::MIN, Arrival::Read);
        }
        Self { policy, bits: Bits(vec![0; FRAMES.div_ceil(64)]), random: Random(1) }
    }

    /// Nanoseconds of a victim, and of an admission. Between the misses as many slots are touched, few of them often.
    fn round(&mut self, zipf: &Zipf) -> (f64, f64) {
        const BATCH: usize = 64;
        let (mut victims, mut admissions) = (0, 0);
        for _ in 0..MISSES / BATCH {
            for _ in 0..BATCH {
                self.bits.set((zipf.draw(&mut self.random).wrapping_mul(0x9e37_79b1) % FRAMES as u64) as u32);
            }
            let pages: [u64; BATCH] = std::array::from_fn(|_| self.random.below(PAGES as u64));
            let start = Instant::now();
            let slots: [Slot; BATCH] = std::array::from_fn(|_| self.policy.victim(&mut self.bits).unwrap());
            victims += start.elapsed().as_nanos();
            slots.iter().for_each(|&slot| {
                self.bits.touched(slot);
            });
            let start = Instant::now();
            for (slot, page) in slots.into_iter().zip(pages) {
                self.policy.admit(slot, PageHash(Random(page).next()), SizeClass::MIN, Arrival::Read);
            }
            admissions += start.elapsed().as_nanos();
            black_box(&self.policy);
        }
        (victims as f64 / MISSES as f64, admissions as f64 / MISSES as f64)
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Medians of rounds in which each policy has its turn.
pub(crate) fn table() {
    let zipf = Zipf::new(FRAMES, 0.8);
    let mut memories: Vec<Full> = built_in(1).into_iter().map(Full::new).collect();
    let mut times = vec![(Vec::new(), Vec::new()); memories.len()];
    for _ in 0..ROUNDS {
        for (memory, (victims, admissions)) in memories.iter_mut().zip(&mut times) {
            let (victim, admission) = memory.round(&zipf);
            victims.push(victim);
            admissions.push(admission);
        }
    }
    println!("\n### Cost of a miss, {FRAMES} frames of 4 KiB\n");
    println!("| policy | ns/victim | ns/admission | bytes/frame |\n| --- | ---: | ---: | ---: |");
    for (memory, (victims, admissions)) in memories.iter().zip(times) {
        let bytes = memory.policy.memory_bytes() as f64 / FRAMES as f64;
        println!("| {} | {:.0} | {:.0} | {bytes:.1} |", memory.policy.name(), median(victims), median(admissions));
    }
}
