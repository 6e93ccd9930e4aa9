//! Damage without a word: writes that are lost, go elsewhere or change a bit, and reads that do. What is shown then is
//! right, or an error; at worst whole commits are missing at the end, where nothing later tells of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use vellum::disk::{Disk, Effect, FaultPlan, Image, Operations, Span};
use vellum::format::Superblock;
use vellum::map::Nodes;
use vellum::store::{PageReader, State, Store};
use vellum::testing::{ModelState, Step, page_bytes};
use vellum::{Error, PageId, SizeClass};

use crate::bench::{Base, base, open};
use crate::scripts;

/// Whether a state shows nothing but what is right, as far as it can be read.
fn shows_nothing_wrong(nodes: &Nodes, state: &State, expected: &ModelState) -> Result<(), String> {
    let told = |error: Error| match error {
        Error::Corrupt(_) => Ok(()),
        other => Err(other.to_string()),
    };
    if state.header[..] != expected.header[..] {
        return Err("the header is wrong".into());
    }
    for (page, version) in &expected.pages {
        let pointer = match state.pointer(nodes, *page) {
            Ok(pointer) if pointer.is_null() => return Err(format!("page {page} is gone")),
            Ok(pointer) => pointer,
            Err(error) => {
                told(error)?;
                continue;
            }
        };
        let mut bytes = vec![0; page.class().page_bytes() as usize];
        match PageReader::new(nodes).read(*page, &pointer, 0, &mut bytes) {
            Ok(()) => {
                let mut right = vec![0; bytes.len()];
                page_bytes(*page, *version, 0, &mut right);
                if bytes != right {
                    return Err(format!("page {page} shows wrong bytes"));
                }
            }
            Err(error) => told(error)?,
        }
    }
    for (class, map) in SizeClass::all().zip(state.maps.get().iter()) {
        let mut from = 0;
        loop {
            match map.next(nodes, from) {
                Ok(None) => break,
                Ok(Some((index, _))) => {
                    from = index + 1;
                    let page = PageId::new(class, index);
                    if page.is_none_or(|page| !expected.pages.contains_key(&page)) {
                        return Err(format!("page {index} of {class} should not be there"));
                    }
                }
                Err(error) => {
                    told(error)?;
                    break;
                }
            }
        }
    }
    Ok(())
}

fn newest_shows_nothing_wrong(store: &Store, expected: &ModelState) -> Result<(), String> {
    shows_nothing_wrong(store.nodes(), &store.state(), expected)
}

/// The records in a file: for each salt of a segment, their blocks, with what names each of them.
type Records = BTreeMap<u64, BTreeMap<u64, [u8; 24]>>;

fn add_records(image: &Image, records: &mut Records) {
    for block in 19..image.length() / 4096 {
        let mut head = [0; 80];
        image.read_at(block * 4096, &mut head).unwrap();
        if head[20..24] == *b"VLrc" {
            let (name, salt) = (*head.first_chunk().unwrap(), *head.last_chunk().unwrap());
            records.entry(u64::from_le_bytes(salt)).or_default().insert(block, name);
        }
    }
}

/// Whether a write that went astray took every record of a segment: nothing announces the segments after it then, and
/// that they were there cannot be known. (A segment is longer than any write of a small commit, and has two records.)
fn a_segment_is_lost(image: &Image, records: &Records) -> bool {
    let mut left = Records::new();
    add_records(image, &mut left);
    let is_left = |salt: &u64, block: &u64, name: &[u8; 24]| {
        left.get(salt).and_then(|blocks| blocks.get(block)).is_some_and(|found| found == name)
    };
    records.iter().any(|(salt, blocks)| !blocks.iter().any(|(block, name)| is_left(salt, block, name)))
}

/// Whether no copy of a superblock is left, and those of the first slot are zero.
fn superblocks_are_gone(image: &Image) -> bool {
    [1, 2, 17, 18].into_iter().all(|block| {
        let mut bytes = [0; 4096];
        image.read_at(block * 4096, &mut bytes).unwrap();
        let is_superblock = matches!(Superblock::decode(&bytes), Ok(Some(_)));
        !is_superblock && (block % 16 == 2 || bytes.iter().all(|byte| *byte == 0))
    })
}

/// Runs a script with silent damage. Says whether it was done.
fn run(base: &Base, script: &[Step], plan: FaultPlan) -> Result<bool, String> {
    let mut bench = base.bench();
    let number = bench.faulty.plan(plan);
    let history = &mut bench.history;
    // What was beyond the reach of any recovery before the damage: the damaged write may itself have been the proof of
    // more.
    let mut anchored = history.store.status().anchored;
    let mut records = Records::new();
    for step in script {
        if bench.faulty.fired(number) == 0 {
            anchored = history.store.status().anchored;
            add_records(&bench.below.image(), &mut records);
        }
        match history.try_step(step) {
            Ok(_) => {}
            // Damage that a later step met.
            Err(Error::Corrupt(_)) => break,
            Err(error) => return Err(format!("{step:?}: {error}")),
        }
        newest_shows_nothing_wrong(&history.store, &history.model.newest())
            .map_err(|message| format!("{step:?}, and then: {message}"))?;
    }
    let fired = bench.faulty.fired(number) > 0;
    bench.faulty.heal();
    let disk: Arc<dyn Disk> = Arc::clone(&bench.below) as _;
    match open(&disk, &base.settings, 9) {
        Err(Error::Corrupt(_) | Error::NotAStore { .. } | Error::Overlap { .. }) => Ok(fired),
        // A long write that went astray laid zeros over every superblock: as a creation cut short leaves them.
        Err(Error::IncompleteCreate { .. }) if superblocks_are_gone(&bench.below.image()) => Ok(fired),
        Err(error) => Err(format!("reopening: {error}")),
        Ok(store) => {
            let generation = store.state().generation.0 - 1;
            let model = &history.model.states;
            let Some((_, expected)) = model.iter().find(|(known, _)| known.0 == generation) else {
                return Err(format!("generation {generation} is shown, {anchored} was anchored"));
            };
            if generation < anchored.0 && !a_segment_is_lost(&bench.below.image(), &records) {
                return Err(format!("generation {generation} is shown, {anchored} was anchored"));
            }
            newest_shows_nothing_wrong(&store, expected).map_err(|message| format!("reopened: {message}"))?;
            Ok(fired)
        }
    }
}

#[test]
fn silent_damage_is_never_shown_as_right() {
    let base = base();
    let mut effects = vec![Effect::Lose];
    // Blocks of all kinds are hit by what went astray: superblocks, log, nodes, pages, free ones.
    effects.extend((1..60).step_by(3).map(|block| Effect::Misdirect { offset: block * 4096 }));
    effects.extend([0, 8, 70, 300, 4095, 5000, 9000].map(|byte| Effect::Flip { byte, mask: 0x40 }));
    let mut total = 0;
    for (name, script) in scripts() {
        let mut fired = 0;
        for effect in &effects {
            let mut misses = 0;
            // Every operation in turn; of the hundreds of like ones in the longest script, ever fewer.
            let numbers = std::iter::successors(Some(1), |nth: &u64| Some(nth + 1 + nth / 48));
            for nth in numbers {
                let plan = FaultPlan { operations: Operations::Any, nth, span: Span::Once, effect: *effect };
                match run(&base, &script, plan) {
                    Ok(true) => (fired, misses) = (fired + 1, 0),
                    // Not every operation can be hit by every effect.
                    Ok(false) if misses < 60 => misses += 1,
                    Ok(false) => break,
                    Err(message) => panic!("{name}, {plan:?}: {message}"),
                }
            }
        }
        println!("{name}: {fired} faults");
        total += fired;
    }
    assert!(total >= 2_000, "{total} faults fired");
}
