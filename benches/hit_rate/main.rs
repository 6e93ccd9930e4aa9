//! proto
#![allow(clippy::unwrap_used, missing_docs)]
mod exact;
mod simulation;
mod workload;

use exact::{Lru, Optimum, S3Counters};
use simulation::{Cache, Driven};
use vellum::buffer::policy::*;
use workload::{SIZES, Workload};

fn rate(cache: &mut dyn Cache, accesses: &[u32]) -> f64 {
    let hits = accesses.iter().filter(|&&page| cache.access(page)).count();
    100.0 * hits as f64 / accesses.len() as f64
}

fn driven(policy: Box<dyn EvictionPolicy>, pages: usize, w: &Workload) -> f64 {
    let mut cache = Driven::new(policy, pages, w.distinct);
    let r = rate(&mut cache, &w.accesses);
    assert!(cache.policy().memory_bytes() < usize::MAX);
    r
}

fn main() {
    let mut workloads = workload::synthetic();
    if let Some(folder) = std::env::var_os("VELLUM_TRACES") {
        workloads.extend(workload::traces(folder.as_ref()).unwrap());
    }
    let make: Vec<(&str, fn() -> Box<dyn EvictionPolicy>)> = vec![
        ("s3", || Box::new(S3Fifo::new())),
        ("wa", || Box::new(WeighedAges::new())),
        //CANDIDATES
    ];
    print!("{:<26} {:>3} {:>6} {:>6} {:>6} {:>6}", "", "", "opt", "lru", "clock", "s3cnt");
    make.iter().for_each(|(n, _)| print!(" {n:>7}"));
    println!();
    let mut worst = vec![(0.0f64, String::new()); make.len() + 1];
    let mut short = vec![0; make.len() + 1];
    let mut sum = vec![(0.0, 0.0); make.len() + 1];
    let mut count = 0;
    let fast = std::env::var_os("FAST").is_some();
    let only = std::env::var("ONLY").unwrap_or_default();
    for w in workloads.iter().filter(|w| w.name.contains(&only)) {
        for part in if std::env::var_os("HELD").is_some() { [3, 7, 15, 30, 100] } else { SIZES } {
            let pages = (w.distinct / part).max(1);
            let opt = if fast { 0.0 } else { rate(&mut Optimum::new(pages, w.distinct, &w.accesses), &w.accesses) };
            let lru = rate(&mut Lru::new(pages, w.distinct), &w.accesses);
            let clock = driven(Box::new(Clock::new()), pages, w);
            let mut rates = vec![rate(&mut S3Counters::new(pages, w.distinct), &w.accesses)];
            rates.extend(make.iter().map(|(_, make)| driven(make(), pages, w)));
            if fast && rates[1..].iter().all(|r| (r - rates[1]).abs() < 0.4) && rates[1] > lru.max(clock) - 0.4 {
            } else {
                print!("{:<26} {:>3} {opt:>6.2} {lru:>6.2} {clock:>6.2}", w.name, part);
            }
            for (i, r) in rates.iter().enumerate() {
                let d = r - lru.max(clock);
                if !(fast && rates[1..].iter().all(|r| (r - rates[1]).abs() < 0.4) && rates[1] > lru.max(clock) - 0.4) {
                    print!(" {r:>6.2}{}", if d < -0.5 { '!' } else { ' ' });
                }
                if d < -0.5 {
                    short[i] += 1;
                }
                if d < worst[i].0 {
                    worst[i] = (d, format!("{} {}", w.name, part));
                }
                sum[i].0 += r - lru;
                sum[i].1 += r - clock;
            }
            println!();
            count += 1;
        }
    }
    for (i, name) in std::iter::once("s3cnt").chain(make.iter().map(|m| m.0)).enumerate() {
        println!(
            "{name:<8} worst {:>7.2} at {:<32} short {:>3} over lru {:.2} over clock {:.2}",
            worst[i].0,
            worst[i].1,
            short[i],
            sum[i].0 / count as f64,
            sum[i].1 / count as f64
        );
    }
}
