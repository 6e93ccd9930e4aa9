//! The bank: a writer moves money between accounts, readers add all of it up, and everybody is killed at random.
//!
//! The sum over all accounts is the same after every commit; a commit's number stands in the header, on every page it
//! wrote, and all over a larger page: a state that is torn, or mixed of two, does not add up.
//!
//! `VELLUM_KILLS=1000` makes the long run; `VELLUM_SEED` chooses other moments.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use vellum::{Durability, Error, PageId, Pager, Read, ReaderOptions, SizeClass};

use crate::children::{command, progress};
use crate::{Random, SMALL, Way, busy, open};

const PAGES: usize = 64;
const ACCOUNTS: usize = 500;
const BALANCE: u64 = 1000;
const READERS: usize = 8;
/// Each of 40 states that readers hold can be a copy of all pages, 272 KiB; and there is log, and what is scattered.
const FILE_LIMIT: u64 = 64 << 20;

fn seed() -> u64 {
    std::env::var("VELLUM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

fn word(page: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(page[index * 8..index * 8 + 8].try_into().unwrap())
}

fn set_word(page: &mut [u8], index: usize, value: u64) {
    page[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
}

fn ledger_class() -> SizeClass {
    SizeClass::of(16 << 10).unwrap()
}

fn create(path: &Path) {
    let pager = Pager::create(path, &busy()).unwrap();
    let transaction = pager.begin().unwrap();
    for _ in 0..PAGES {
        let page = transaction.allocate(SMALL).unwrap();
        let mut page = transaction.write(page).unwrap();
        (0..ACCOUNTS).for_each(|account| set_word(&mut page, account, BALANCE));
    }
    transaction.allocate(ledger_class()).unwrap();
    transaction.set_header(&0u64.to_le_bytes()).unwrap();
    transaction.commit().unwrap();
    pager.close().unwrap();
}

/// Adds everything up. Returns the number of the state's commit.
fn verify(view: &impl Read) -> Result<u64, Error> {
    let header = view.header();
    let number = u64::from_le_bytes(header[..].try_into().unwrap());
    let (mut sum, mut newest, mut count) = (0, 0, 0);
    for page in view.page_ids(SMALL) {
        let page = view.page(page?)?;
        sum += (0..ACCOUNTS).map(|account| word(&page, account)).sum::<u64>();
        newest = newest.max(word(&page, ACCOUNTS));
        count += 1;
    }
    assert_eq!((count, sum), (PAGES, (PAGES * ACCOUNTS) as u64 * BALANCE), "commit {number}");
    assert_eq!(newest, number, "the header is of another commit than the pages");
    let ledger = view.page(PageId::new(ledger_class(), 0).unwrap())?;
    assert!((0..2048).all(|index| word(&ledger, index) == number), "the ledger is of another commit than the header");
    Ok(number)
}

/// A child: commits for ever.
pub(crate) fn play_writer(store: &Path) {
    let mut random = Random(u64::from(std::process::id()));
    let mut done = progress(&store.with_extension("commits"));
    // The last writer's lock is gone with it; its children's would be too.
    let pager = Pager::open(store, &busy()).unwrap();
    let mut number = verify(&pager.view()).unwrap();
    loop {
        let transaction = pager.begin().unwrap();
        number += 1;
        for _ in 0..1 + random.below(3) {
            let [from, to] = [0; 2].map(|_| PageId::new(SMALL, random.below(PAGES as u64)).unwrap());
            let [giver, taker] = [0; 2].map(|_| random.below(ACCOUNTS as u64) as usize);
            let amount = {
                let mut page = transaction.write(from).unwrap();
                let amount = random.below(word(&page, giver) + 1);
                let rest = word(&page, giver) - amount;
                set_word(&mut page, giver, rest);
                set_word(&mut page, ACCOUNTS, number);
                amount
            };
            let mut page = transaction.write(to).unwrap();
            let sum = word(&page, taker) + amount;
            set_word(&mut page, taker, sum);
            set_word(&mut page, ACCOUNTS, number);
        }
        let mut ledger = transaction.write(PageId::new(ledger_class(), 0).unwrap()).unwrap();
        (0..2048).for_each(|index| set_word(&mut ledger, index, number));
        drop(ledger);
        transaction.set_header(&number.to_le_bytes()).unwrap();
        let durability = if random.below(4) == 0 { Durability::Deferred } else { Durability::Durable };
        transaction.commit_with(durability).unwrap();
        if random.below(40) == 0 {
            pager.checkpoint().unwrap();
        }
        done.write_all(b".").unwrap();
    }
}

/// A child: reads for ever, with views that are kept for some time.
pub(crate) fn play_reader(store: &Path, part: &str) {
    let mut random = Random(u64::from(std::process::id()));
    let mut done = progress(&store.with_extension("reads"));
    let way = if part == "mapped" { Way::Mapped } else { Way::Frames };
    loop {
        let reader = open(store, way, &ReaderOptions::new().name(part)).unwrap();
        let mut newest = 0;
        let mut kept = Vec::new();
        for _ in 0..20 + random.below(200) {
            reader.refresh().unwrap();
            let view = reader.view().unwrap();
            let number = verify(&view).unwrap();
            assert!(number >= newest, "back from {newest} to {number}");
            newest = number;
            if random.below(3) == 0 {
                kept.push((view, number));
            }
            if kept.len() > 4 {
                let (view, number) = kept.remove(random.below(4) as usize);
                assert_eq!(verify(&view).unwrap(), number);
            }
            done.write_all(b".").unwrap();
        }
    }
}

struct Actor {
    part: &'static str,
    child: Child,
    errors: PathBuf,
    /// Grows with what all of its kind do.
    progress: PathBuf,
    /// How long it was at first.
    before: u64,
}

/// How often something was done.
fn count(progress: &Path) -> u64 {
    fs::metadata(progress).map_or(0, |metadata| metadata.len())
}

impl Actor {
    fn new(store: &Path, part: &'static str, number: usize) -> Self {
        let errors = store.with_extension(format!("errors-{number}"));
        let mut command = command(&std::env::current_exe().unwrap(), part, store);
        let child = command.stdin(Stdio::null()).stderr(fs::File::create(&errors).unwrap()).spawn().unwrap();
        let progress = store.with_extension(if part == "bank" { "commits" } else { "reads" });
        let before = count(&progress);
        Self { part, child, errors, progress, before }
    }

    /// Waits until something was done since it came.
    fn wait_for_progress(&mut self) {
        while count(&self.progress) == self.before {
            self.assert_alive();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("{} ended with {status}: {}", self.part, fs::read_to_string(&self.errors).unwrap());
        }
    }

    fn kill(&mut self) {
        self.assert_alive();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_bank_adds_up_whoever_is_killed() {
    let kills: usize = std::env::var("VELLUM_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(100);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bank");
    create(&path);
    let mut random = Random(seed());
    let part = |number: usize| ["bank", "frames", "mapped"][if number == 0 { 0 } else { 1 + number % 2 }];
    let mut actors: Vec<Actor> = (0..=READERS).map(|number| Actor::new(&path, part(number), number)).collect();
    let began = Instant::now();
    let mut longest = 0;
    for _ in 0..kills {
        std::thread::sleep(Duration::from_millis(5 + random.below(60)));
        actors.iter_mut().for_each(Actor::assert_alive);
        // The writer as often as all readers together.
        let victim = if random.below(2) == 0 { 0 } else { 1 + random.below(READERS as u64) as usize };
        // One in four may be killed before it has begun.
        if random.below(4) > 0 {
            actors[victim].wait_for_progress();
        }
        actors[victim].kill();
        actors[victim] = Actor::new(&path, part(victim), victim);
        longest = longest.max(fs::metadata(&path).unwrap().len());
    }
    // The last ones have time to do something.
    std::thread::sleep(Duration::from_millis(500));
    actors.iter_mut().for_each(Actor::assert_alive);
    actors.iter_mut().for_each(Actor::kill);
    let [commits, reads] = ["commits", "reads"].map(|extension| count(&path.with_extension(extension)));
    println!(
        "{kills} kills in {:?}: {commits} commits, {reads} states added up, the file at most {} KiB (seed {})",
        began.elapsed(),
        longest >> 10,
        seed(),
    );
    assert!(commits > kills as u64 && reads > kills as u64);
    assert!(longest <= FILE_LIMIT, "{longest}");

    // Nothing is held by the dead.
    let pager = Pager::open(&path, &busy()).unwrap();
    verify(&pager.view()).unwrap();
    assert!(vellum::process::readers(&path).unwrap().is_empty());
    for _ in 0..3 {
        let transaction = pager.begin().unwrap();
        transaction.set_header(&transaction.header()).unwrap();
        transaction.commit().unwrap();
        pager.checkpoint().unwrap();
    }
    let status = pager.stats().status;
    let data = ((PAGES * 4096) as u64 + ledger_class().page_bytes()) / 4096;
    let used = status.blocks_total - status.blocks_free - status.log_blocks;
    assert!(used <= data + 200, "{used} blocks are used for {data} of pages: {status:?}");
    pager.close().unwrap();
    assert!(!folder.path().join("bank.readers").exists(), "the folder is gone with the last of them");
}
