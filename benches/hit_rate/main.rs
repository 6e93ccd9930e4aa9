//! Hit rates of the eviction policies, beside LRU, CLOCK and the optimum: `cargo bench --bench hit_rate`.
//!
//! The buffer's policies run as the buffer runs them ([`simulation`]); what no buffer can have is for comparison
//! ([`exact`]). Workloads and sizes were fixed before any policy was measured; the held-out sizes were not
//! looked at before four candidates were left for the default's constants. `VELLUM_TRACES` names a folder of recorded traces (a number a line, in files
//! `*.txt.gz`); without it only made-up workloads run. Everything but the times is deterministic.
//!
//! Ends with a line for each goal: the shortfall against the better of LRU and CLOCK where it is greatest, and the
//! advantage over each on average, in points of hit rate.

#![allow(clippy::unwrap_used, missing_docs)]

mod exact;
mod simulation;
mod timing;
mod workload;

use exact::{Lru, Optimum, S3Counters};
use simulation::{Cache, Driven};
use vellum::buffer::policy::{EvictionPolicy, built_in};
use workload::{HELD_OUT_SIZES, SIZES, Workload};

const SEED: u64 = 1;
/// What a policy may lose against the better of LRU and CLOCK.
const TOLERATED_POINTS: f64 = 0.5;

/// Hit rates in percent for one workload and one size, in the order of [`names`].
struct Row {
    workload: String,
    /// The memory holds this part of the distinct pages.
    part: usize,
    rates: Vec<f64>,
}

const OPTIMUM: usize = 0;
const LRU: usize = 1;
/// Where the buffer's own policies begin.
const BUILT_IN: usize = 3;

fn names() -> Vec<&'static str> {
    ["optimum", "lru", "s3-fifo-counters"]
        .into_iter()
        .chain(built_in(SEED).iter().map(|policy| policy.name()))
        .collect()
}

fn column(name: &str) -> usize {
    names().iter().position(|other| *other == name).unwrap()
}

fn hit_rate(cache: &mut dyn Cache, accesses: &[u32]) -> f64 {
    let hits = accesses.iter().filter(|&&page| cache.access(page)).count();
    100.0 * hits as f64 / accesses.len() as f64
}

impl Row {
    fn measure(workload: &Workload, part: usize) -> Self {
        let Workload { name, accesses, distinct } = workload;
        let pages = (distinct / part).max(1);
        let driven =
            |policy: Box<dyn EvictionPolicy>| -> Box<dyn Cache> { Box::new(Driven::new(policy, pages, *distinct)) };
        let mut caches: Vec<Box<dyn Cache>> = vec![
            Box::new(Optimum::new(pages, *distinct, accesses)),
            Box::new(Lru::new(pages, *distinct)),
            Box::new(S3Counters::new(pages, *distinct)),
        ];
        caches.extend(built_in(SEED).into_iter().map(driven));
        let rates = caches.iter_mut().map(|cache| hit_rate(cache.as_mut(), accesses)).collect();
        Self { workload: name.clone(), part, rates }
    }

    /// Points above the better of LRU and CLOCK.
    fn advantage(&self, policy: usize) -> f64 {
        self.rates[policy] - self.rates[LRU].max(self.rates[column("clock")])
    }

    fn print(&self) {
        print!("| {} | 1/{} |", self.workload, self.part);
        for (policy, rate) in self.rates.iter().enumerate() {
            let mark = if policy >= BUILT_IN && self.advantage(policy) < -TOLERATED_POINTS { "!" } else { "" };
            print!(" {rate:.2}{mark} |");
        }
        println!();
    }
}

/// All workloads at these sizes.
fn table(title: &str, workloads: &[Workload], sizes: &[usize]) -> Vec<Row> {
    println!(
        "\n### {title}\n\nHit rates in percent; `!`: more than {TOLERATED_POINTS} points below the better of LRU and CLOCK.\n"
    );
    println!("| workload | memory | {} |", names().join(" | "));
    println!("| --- | ---: |{}", " ---: |".repeat(names().len()));
    let mut rows = Vec::new();
    for workload in workloads {
        for &part in sizes {
            let row = Row::measure(workload, part);
            row.print();
            rows.push(row);
        }
    }
    rows
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    sum / f64::from(count.max(1))
}

/// Per workload: the mean of its sizes.
fn condensed(rows: &[Row]) {
    println!("\n### Means of the sizes\n");
    println!("| workload | {} |", names().join(" | "));
    println!("| --- |{}", " ---: |".repeat(names().len()));
    let mut workloads: Vec<&str> = rows.iter().map(|row| row.workload.as_str()).collect();
    workloads.dedup();
    for workload in workloads.iter().copied().chain(["all"]) {
        let of: Vec<&Row> = rows.iter().filter(|row| workload == "all" || row.workload == workload).collect();
        print!("| {workload} |");
        (0..names().len()).for_each(|policy| print!(" {:.1} |", mean(of.iter().map(|row| row.rates[policy]))));
        println!();
    }
    print!("| greatest shortfall, points | |");
    for policy in 1..names().len() {
        let worst = rows.iter().map(|row| row.advantage(policy)).fold(0.0, f64::min);
        print!(" {:.2} |", -worst);
    }
    print!("\n| rows that fall short by more than {TOLERATED_POINTS} | |");
    for policy in 1..names().len() {
        print!(" {} |", rows.iter().filter(|row| row.advantage(policy) < -TOLERATED_POINTS).count());
    }
    println!();
}

fn goal(name: &str, measured: f64, wanted: f64, is_met: bool) {
    let verdict = if is_met { "ok" } else { "short" };
    println!("goal {name} measured {measured:.2} wanted {wanted:.2} {verdict}");
}

/// The default's goals over these rows.
fn goals(name: &str, rows: &[Row]) {
    let default = BUILT_IN;
    let worst = rows.iter().min_by(|a, b| a.advantage(default).total_cmp(&b.advantage(default))).unwrap();
    let shortfall = (-worst.advantage(default)).max(0.0);
    println!("{name}: greatest shortfall at {}, 1/{}", worst.workload, worst.part);
    goal(&format!("{name}-greatest-shortfall-points"), shortfall, TOLERATED_POINTS, shortfall <= TOLERATED_POINTS);
    for (other, column) in [("lru", LRU), ("clock", column("clock"))] {
        let advantage = mean(rows.iter().map(|row| row.rates[default] - row.rates[column]));
        goal(&format!("{name}-mean-points-above-{other}"), advantage, 0.0, advantage > 0.0);
    }
    let gap = mean(rows.iter().map(|row| row.rates[OPTIMUM] - row.rates[default]));
    println!("{name}: {gap:.2} points below the optimum on average");
}

fn main() {
    let mut workloads = workload::synthetic();
    match std::env::var_os("VELLUM_TRACES") {
        Some(folder) => workloads.extend(workload::traces(folder.as_ref()).unwrap()),
        None => println!("VELLUM_TRACES is not set: WITHOUT THE RECORDED TRACES, only made-up workloads."),
    }
    for workload in &workloads {
        println!("{}: {} accesses to {} pages", workload.name, workload.accesses.len(), workload.distinct);
    }
    let rows = table("Sizes fixed beforehand", &workloads, &SIZES);
    condensed(&rows);
    let held_out = table("Held-out sizes", &workloads, &HELD_OUT_SIZES);
    condensed(&held_out);
    timing::table();
    println!();
    goals("hit-rate", &rows);
    goals("held-out", &held_out);
}
