//! Compression: bytes on disk of text, JSON and pages of a B-tree for each codec and page size; speed of the codecs; and
//! durable commits of encoded pages beside plain ones, in one run, interleaved, medians.
//!
//! Pages are made, not loaded: deterministic, and each differs from all others. `cargo bench --bench compression
//! --features snappy`; `VELLUM_BENCH_DIR` says where.

#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vellum::disk::Caching;
use vellum::format::codec;
use vellum::{Background, Compression, Options, PageId, Pager, SizeClass};

const SIZES: [usize; 5] = [4 << 10, 8 << 10, 16 << 10, 64 << 10, 1 << 20];

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    /// Small numbers often, large ones seldom (about Zipf's law).
    fn skewed(&mut self, limit: u64) -> u64 {
        let bits = 1 + self.below(u64::from(limit.ilog2()));
        self.below(1 << bits).min(limit - 1)
    }
}

/// What pages hold.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Json,
    Tree,
}

impl Kind {
    const ALL: [(Self, &'static str); 3] = [(Self::Text, "text"), (Self::Json, "json"), (Self::Tree, "b-tree")];

    fn page(self, length: usize, number: u64) -> Vec<u8> {
        let mut random = Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ length as u64);
        let mut page = match self {
            Self::Text => text(length, &mut random),
            Self::Json => json(length, &mut random, number),
            Self::Tree => tree(length, &mut random, number),
        };
        page.truncate(length);
        page.resize(length, 0);
        page
    }
}

/// A vocabulary of 4096 words made of syllables, of which some are common and most are not.
fn vocabulary() -> Vec<String> {
    const SYLLABLES: [&str; 32] = [
        "an", "ber", "con", "da", "el", "fi", "gra", "ho", "in", "ju", "ker", "lo", "men", "no", "or", "pre", "qui",
        "re", "sta", "tion", "un", "ver", "wa", "xi", "ya", "zo", "the", "ing", "ed", "ly", "mar", "sol",
    ];
    let mut random = Random(7);
    let word = |random: &mut Random| {
        let syllables = 1 + random.below(4);
        (0..syllables).map(|_| SYLLABLES[random.below(32) as usize]).collect()
    };
    (0..4096).map(|_| word(&mut random)).collect()
}

fn text(length: usize, random: &mut Random) -> Vec<u8> {
    let words = vocabulary();
    let mut text = String::with_capacity(length + 32);
    while text.len() < length {
        let sentence = 5 + random.below(14);
        for place in 0..sentence {
            let word = &words[random.skewed(4096) as usize];
            match place {
                0 => text.extend(word[..1].to_uppercase().chars().chain(word[1..].chars())),
                _ => text.push_str(word),
            }
            text.push_str(if place + 1 == sentence { ". " } else { " " });
        }
        if random.below(6) == 0 {
            text.push('\n');
        }
    }
    text.into_bytes()
}

fn json(length: usize, random: &mut Random, number: u64) -> Vec<u8> {
    let words = vocabulary();
    let mut json = String::with_capacity(length + 256);
    let mut id = number * 10_000;
    while json.len() < length {
        id += 1;
        let name = &words[random.skewed(4096) as usize];
        json.push_str(&format!(
            "{{\"id\":{id},\"name\":\"{name}\",\"email\":\"{name}{}@{}.example\",\"active\":{},\"balance\":{}.{:02},\
             \"created\":\"2024-{:02}-{:02}T{:02}:{:02}:{:02}Z\",\"tags\":[\"{}\",\"{}\"]}}\n",
            random.below(1000),
            words[random.skewed(64) as usize],
            random.below(4) != 0,
            random.below(100_000),
            random.below(100),
            1 + random.below(12),
            1 + random.below(28),
            random.below(24),
            random.below(60),
            random.below(60),
            words[random.skewed(256) as usize],
            words[random.skewed(256) as usize],
        ));
    }
    json.into_bytes()
}

/// A leaf, 70 % full: a header, an array of offsets, and from the end down keys that share prefixes with rows of binary
/// fields.
fn tree(length: usize, random: &mut Random, number: u64) -> Vec<u8> {
    let mut page = vec![0; length];
    page[..8].copy_from_slice(&number.to_le_bytes());
    let (mut offsets, mut top, mut key) = (16, length, number << 20);
    while offsets + (length - top) < length * 7 / 10 {
        key += 1 + random.below(50);
        let mut row = format!("customer/{:04}/{key:012}", number % 100).into_bytes();
        row.extend((random.below(1 << 31) as u32).to_le_bytes());
        row.extend((1_700_000_000 + random.below(1 << 24)).to_le_bytes());
        row.extend((random.skewed(1 << 20) as u32).to_le_bytes());
        row.extend([random.below(4) as u8, 0, 0, 0]);
        row.extend(format!("{:08x}", random.below(1 << 31)).into_bytes());
        if top < row.len() + offsets + 4 {
            break;
        }
        top -= row.len();
        page[top..top + row.len()].copy_from_slice(&row);
        page[offsets..offsets + 4].copy_from_slice(&(top as u32).to_le_bytes());
        offsets += 4;
    }
    page[8..12].copy_from_slice(&(offsets as u32).to_le_bytes());
    page
}

fn choices() -> Vec<Compression> {
    ["lz4", "zstd:1", "zstd:3", "zstd:9", "snappy"].iter().filter_map(|text| text.parse().ok()).collect()
}

/// Blocks that the pages take in a store.
fn stored_blocks(folder: &Path, kind: Kind, size: usize, pages: u64, compression: Compression) -> u64 {
    let path = folder.join("sizes.vellum");
    let _ = std::fs::remove_file(&path);
    let options = Options::new().background(Background::Inline).compression(compression).in_log_pages_bytes(0);
    let pager = Pager::create(&path, &options).unwrap();
    let before = pager.stats().counters.page_bytes;
    for from in (0..pages).step_by(64) {
        let transaction = pager.begin().unwrap();
        for number in from..pages.min(from + 64) {
            let id = transaction.allocate(SizeClass::of(size as u64).unwrap()).unwrap();
            transaction.overwrite(id).unwrap().copy_from_slice(&kind.page(size, number));
        }
        transaction.commit().unwrap();
    }
    let allocated = stored_extents(&pager);
    assert!(pager.stats().counters.page_bytes > before);
    pager.close().unwrap();
    allocated
}

/// Blocks of all pages of the newest state, by their pointers' extents.
fn stored_extents(pager: &Pager) -> u64 {
    pager.view().storage().unwrap().values().map(|share| share.stored_bytes / 4096).sum()
}

fn sizes(folder: &Path) {
    println!(
        "bytes on disk, percent of the bytes of the pages (a page is whole blocks of 4 KiB: one of 4 KiB stays one)"
    );
    print!("{:8} {:>8}", "pages", "bytes");
    choices().iter().for_each(|choice| print!(" {:>8}", choice.to_string()));
    println!(" {:>8}", "none");
    for (kind, name) in Kind::ALL {
        for size in SIZES {
            let pages = ((8 << 20) / size as u64).clamp(4, 512);
            print!("{name:8} {size:>8}");
            for choice in choices().into_iter().chain([Compression::NONE]) {
                let blocks = stored_blocks(folder, kind, size, pages, choice);
                print!(" {:>8.1}", 100.0 * (blocks * 4096) as f64 / (pages * size as u64) as f64);
            }
            println!();
        }
    }
}

fn speeds() {
    println!(
        "\nGB/s of pages, encoding / decoding, one thread, medians of 9 rounds (and the encoded bytes in percent)"
    );
    print!("{:8} {:>8}", "pages", "bytes");
    choices().iter().for_each(|choice| print!(" {:>20}", choice.to_string()));
    println!();
    for (kind, name) in Kind::ALL {
        for size in &SIZES[1..] {
            let pages: Vec<Vec<u8>> = (0..((2 << 20) / *size as u64)).map(|number| kind.page(*size, number)).collect();
            print!("{name:8} {size:>8}");
            for choice in choices() {
                let (encode, decode, bytes) = speed(&pages, choice);
                match bytes > 0.0 {
                    true => print!(" {encode:>6.2} /{decode:>5.2} ({bytes:>3.0})"),
                    // No page saves a block.
                    false => print!(" {encode:>6.2} /    - (100)"),
                }
            }
            println!();
        }
    }
}

fn speed(pages: &[Vec<u8>], choice: Compression) -> (f64, f64, f64) {
    let total: usize = pages.iter().map(Vec::len).sum();
    let mut scratch = Vec::new();
    let encoded: Vec<Vec<u8>> = pages
        .iter()
        .map(|page| choice.encode(page, &mut scratch).map_or_else(Vec::new, |length| scratch[..length].to_vec()))
        .collect();
    let (mut encode, mut decode) = (Vec::new(), Vec::new());
    let mut target = vec![0; pages[0].len()];
    for _ in 0..9 {
        let start = Instant::now();
        pages.iter().for_each(|page| _ = black_box(choice.encode(page, &mut scratch)));
        encode.push(start.elapsed());
        let start = Instant::now();
        for stored in encoded.iter().filter(|stored| !stored.is_empty()) {
            codec::decode(choice.codec(), stored, &mut target).unwrap();
            black_box(&target);
        }
        decode.push(start.elapsed());
    }
    let rate = |times: &mut [Duration]| total as f64 / median(times).as_secs_f64() / 1e9;
    let bytes = encoded.iter().map(Vec::len).sum::<usize>() as f64 / total as f64;
    (rate(&mut encode), rate(&mut decode), 100.0 * bytes)
}

/// A pager with pages of 16 KiB to be overwritten.
struct Commits {
    pager: Pager,
    ids: Vec<PageId>,
    contents: Vec<Vec<u8>>,
    random: Random,
}

impl Commits {
    fn new(path: &Path, size: usize, compression: Compression) -> Self {
        let options = Options::new()
            .memory(256 << 20)
            .caching(Caching::Direct)
            .background(Background::Inline)
            .growth_bytes(256 << 20)
            .compression(compression);
        let pager = Pager::create(path, &options).unwrap();
        let contents: Vec<Vec<u8>> = (0..64).map(|number| Kind::Tree.page(size, number)).collect();
        let transaction = pager.begin().unwrap();
        let ids = transaction.allocate_many(SizeClass::of(size as u64).unwrap(), 512 * (16 << 10) / size).unwrap();
        transaction.commit().unwrap();
        Self { pager, ids, contents, random: Random(3) }
    }

    /// From the beginning of the transaction until the commit is durable.
    fn commit(&mut self, count: usize) -> Duration {
        let start = Instant::now();
        let transaction = self.pager.begin().unwrap();
        let first = self.random.below((self.ids.len() - count + 1) as u64) as usize;
        for id in &self.ids[first..first + count] {
            let content = &self.contents[self.random.below(64) as usize];
            transaction.overwrite(*id).unwrap().copy_from_slice(content);
        }
        transaction.commit().unwrap();
        start.elapsed()
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn goal(name: &str, measured: f64, wanted: f64) {
    let good = measured >= wanted;
    println!("goal {name} measured {measured:.2} wanted {wanted:.2} {}", if good { "ok" } else { "short" });
}

fn commits(folder: &Path) {
    println!(
        "\ndurable commits of pages of 16 KiB (b-tree), pages/s and what they are of uncompressed, encoding counted"
    );
    let choices: Vec<Compression> = [Compression::NONE].into_iter().chain(choices()).collect();
    let named = |choice: &Compression, size: usize| folder.join(format!("{size}-{choice}.vellum").replace(':', "-"));
    let mut pagers: Vec<Commits> =
        choices.iter().map(|choice| Commits::new(&named(choice, 16), 16 << 10, *choice)).collect();
    for (count, rounds) in [(1, 400), (8, 200), (64, 60), (256, 24)] {
        let mut times: Vec<Vec<Duration>> = vec![Vec::new(); pagers.len()];
        for _ in 0..rounds {
            pagers.iter_mut().zip(&mut times).for_each(|(pager, times)| times.push(pager.commit(count)));
        }
        let medians: Vec<f64> = times.iter_mut().map(|times| median(times).as_secs_f64()).collect();
        for (choice, time) in choices.iter().zip(&medians) {
            let rate = count as f64 / time;
            println!(
                "{count:>4} pages {:>8} {rate:>10.0} {:>6.2} ({:.0} us)",
                choice.to_string(),
                medians[0] / time,
                time * 1e6
            );
        }
        if count <= 8 {
            let lz4 = choices.iter().position(|choice| *choice == Compression::LZ4).unwrap();
            goal(&format!("commit_{count}_16k_lz4"), medians[0] / medians[lz4], 0.5);
        }
    }
}

fn main() {
    let parent = std::env::var_os("VELLUM_BENCH_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let folder = parent.join(format!("compression-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    sizes(&folder);
    speeds();
    commits(&folder);
    std::fs::remove_dir_all(&folder).unwrap();
}
