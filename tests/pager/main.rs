//! The pager as its users see it: transactions, views, large pages, space, opening, closing.

// The helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

mod ahead;
mod background;
mod closing;
mod compression;
mod concurrent;
mod group;
mod history;
mod large;
mod limits;
mod memory;
mod opening;
#[cfg(all(target_os = "linux", feature = "prefetch-ring"))]
mod ring;
mod space;
mod stress;
mod transactions;
mod views;
mod watched;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vellum::disk::{Disk, MemoryDisk};
use vellum::store::SeededEntropy;
use vellum::{Background, Options, PageId, Pager, SizeClass};

/// Pages of 4 KiB.
const SMALL: SizeClass = SizeClass::MIN;

fn class(log2: u8) -> SizeClass {
    SizeClass::new(log2).unwrap()
}

/// Options without a thread, so that what happens on the disk follows from the calls.
fn inline() -> Options {
    Options::new().background(Background::Inline)
}

fn create_on(disk: &Arc<impl Disk + 'static>, options: &Options) -> Pager {
    Pager::create_on(Arc::clone(disk) as Arc<dyn Disk>, Box::new(SeededEntropy(7)), options).unwrap()
}

fn open_on(disk: &Arc<impl Disk + 'static>, options: &Options) -> Pager {
    Pager::open_on(Arc::clone(disk) as Arc<dyn Disk>, Box::new(SeededEntropy(8)), options).unwrap()
}

fn in_memory(options: &Options) -> Pager {
    create_on(&Arc::new(MemoryDisk::new()), options)
}

/// A page of 4 KiB.
fn page(index: u64) -> PageId {
    PageId::new(SMALL, index).unwrap()
}

/// Makes so many pages of 4 KiB, full of ones.
fn fill(pager: &Pager, count: usize) {
    let transaction = pager.begin().unwrap();
    for id in transaction.allocate_many(SMALL, count).unwrap() {
        transaction.overwrite(id).unwrap().fill(1);
    }
    transaction.commit().unwrap();
}

/// Tells others to end when it is dropped: by a panic too, which they would hide for ever.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// SplitMix64: enough for choosing steps.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
