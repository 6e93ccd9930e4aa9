//! Random transactions, savepoints and reopening, against a plain map.

use std::collections::BTreeMap;
use std::sync::Arc;

use vellum::disk::MemoryDisk;
use vellum::{
    Background, Durability, Error, Options, PageId, Pager, Read, Savepoint, SizeClass, Ticket, Transaction, VerifyLevel,
};

use crate::{Random, class, create_on, open_on};

/// A page's bytes follow from one number at a time in each of its first places; the rest is zero.
type Page = BTreeMap<u64, u8>;

#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    pages: BTreeMap<PageId, Page>,
    header: Vec<u8>,
}

fn places(class: SizeClass) -> Vec<u64> {
    let bytes = class.page_bytes();
    vec![0, bytes / 2 - 1, bytes / 2, bytes - 1]
}

fn check(model: &Model, read: &impl Read, random: &mut Random) {
    assert_eq!(read.header()[..], model.header[..]);
    let mut ids = Vec::new();
    for class in SizeClass::all() {
        ids.extend(read.page_ids(class).map(Result::unwrap));
    }
    assert_eq!(ids, model.pages.keys().copied().collect::<Vec<_>>());
    for (id, page) in &model.pages {
        let whole = random.below(8) == 0;
        let guard = whole.then(|| read.page(*id).unwrap());
        for place in places(id.class()) {
            let mut byte = [0];
            match &guard {
                Some(guard) => byte[0] = guard[place as usize],
                None => read.read_at(*id, place, &mut byte).unwrap(),
            }
            assert_eq!(byte[0], page.get(&place).copied().unwrap_or(0), "page {id} at {place}");
        }
    }
}

fn change(model: &mut Model, transaction: &Transaction, random: &mut Random) {
    let any = |model: &Model, random: &mut Random| {
        let count = model.pages.len();
        (count > 0).then(|| model.pages.keys().nth(random.below(count)).copied()).flatten()
    };
    match random.below(10) {
        0..=2 if model.pages.len() < 60 => {
            let class = [class(12), class(12), class(13), class(16), class(21)][random.below(5)];
            let id = transaction.allocate(class).unwrap();
            assert!(model.pages.insert(id, Page::new()).is_none(), "{id} is in use");
        }
        3 | 4 => {
            let Some(id) = any(model, random) else { return };
            transaction.free(id).unwrap();
            model.pages.remove(&id);
        }
        5 => {
            let Some(id) = any(model, random) else { return };
            let byte = random.next() as u8;
            transaction.overwrite(id).unwrap()[0] = byte;
            model.pages.insert(id, Page::from([(0, byte)]));
        }
        6 => {
            model.header = vec![random.next() as u8; random.below(20)];
            transaction.set_header(&model.header).unwrap();
        }
        step => {
            let Some(id) = any(model, random) else { return };
            let place = places(id.class())[random.below(4)];
            let byte = random.next() as u8;
            match step {
                7 => transaction.write(id).unwrap()[place as usize] = byte,
                _ => transaction.write_at(id, place, &[byte]).unwrap(),
            }
            model.pages.get_mut(&id).unwrap().insert(place, byte);
        }
    }
}

fn run(seed: u64, options: &Options, transactions: usize) {
    println!("seed {seed}");
    let mut random = Random(seed);
    let disk = Arc::new(MemoryDisk::new());
    let mut pager = create_on(&disk, options);
    let mut committed = Model::default();
    let mut tickets: Vec<Ticket> = Vec::new();
    for _ in 0..transactions {
        let transaction = pager.begin().unwrap();
        let mut model = committed.clone();
        let mut savepoints: Vec<(Savepoint, Model)> = Vec::new();
        for _ in 0..1 + random.below(12) {
            match random.below(8) {
                0 => savepoints.push((transaction.savepoint().unwrap(), model.clone())),
                1 if !savepoints.is_empty() => {
                    savepoints.truncate(1 + random.below(savepoints.len()));
                    let (savepoint, then) = savepoints.last().unwrap();
                    transaction.rollback_to(savepoint).unwrap();
                    model = then.clone();
                }
                2 if !savepoints.is_empty() => {
                    // Given up, wherever it is among the others.
                    savepoints.remove(random.below(savepoints.len()));
                }
                _ => change(&mut model, &transaction, &mut random),
            }
        }
        check(&model, &transaction, &mut random);
        match random.below(10) {
            0 | 1 => transaction.abort(),
            step => {
                let durability = if step < 6 { Durability::Deferred } else { Durability::Durable };
                tickets.push(transaction.commit_start_with(durability).unwrap());
                committed = model;
            }
        }
        // Later transactions build on what was started; views see it when it is done.
        if random.below(3) > 0 {
            continue;
        }
        for ticket in tickets.drain(..) {
            ticket.wait().unwrap();
        }
        check(&committed, &pager.view(), &mut random);
        match random.below(20) {
            0 => {
                pager.checkpoint().unwrap();
            }
            1 => pager.sync().unwrap(),
            2 => {
                // Pages are moved to blocks that are free; the file does not grow for them.
                let refused = pager.clean(64).err();
                assert!(refused.iter().all(Error::is_no_space), "{refused:?}");
            }
            3 => pager = reopen(pager, &disk, options, &mut random),
            _ => {}
        }
    }
    drop(tickets);
    let report = pager.verify(VerifyLevel::Full, &mut |_| {}).unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    let pager = reopen(pager, &disk, options, &mut random);
    check(&committed, &pager.view(), &mut random);
}

fn reopen(pager: Pager, disk: &Arc<MemoryDisk>, options: &Options, random: &mut Random) -> Pager {
    match random.below(2) {
        0 => pager.close().unwrap(),
        _ => drop(pager),
    }
    open_on(disk, options)
}

#[test]
fn random_transactions_give_what_a_plain_map_gives() {
    let options = Options::new().memory(8 << 20).checkpoint_log_bytes(256 << 10).log_segment_bytes(64 << 10);
    for seed in 0..6 {
        run(seed, &options.clone().background(Background::Inline), 200);
        run(seed, &options.clone().background(Background::Thread), 200);
    }
}
