//! What a damaged store may show: what was there, or a typed error. Nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use vellum::disk::Disk;
use vellum::map::Nodes;
use vellum::process::NoReaders;
use vellum::store::{PageReader, RecoveryReport, SeededEntropy, Settings, State, StateMaps, Store};
use vellum::testing::{ModelState, page_bytes};
use vellum::{Error, Generation, PageId, SizeClass, Structure};

/// Opens the store on a disk.
pub(crate) fn open(disk: Arc<dyn Disk>, settings: &Settings) -> vellum::Result<(Store, RecoveryReport)> {
    Store::open(disk, Arc::new(NoReaders), settings.clone(), Box::new(SeededEntropy(1)))
}

/// What a look at a store came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything is right.
    WithoutEffect,
    /// Something cannot be read, and says so.
    Detected,
}

/// Whether an open may fail like this: the damage is told as damage (or, of a store's first block, as no store).
pub(crate) fn is_typed(error: &Error) -> bool {
    matches!(error, Error::Corrupt(_) | Error::NotAStore { .. } | Error::Overlap { .. })
}

/// The places of a page that are read: small pages whole, a sparse chunked page at the start of each chunk.
fn parts(page: PageId) -> impl Iterator<Item = (u64, usize)> {
    let class = page.class();
    let length = if class.is_chunked() { 4096 } else { class.page_bytes() as usize };
    (0..class.chunks()).map(move |chunk| (chunk * SizeClass::CHUNK.page_bytes(), length))
}

/// Reads a page of a state. `Err` says in words what is wrong beyond what damage may do.
pub(crate) fn judge_page(nodes: &Nodes, state: &State, page: PageId, version: u64) -> Result<Outcome, String> {
    let pointer = match state.pointer(nodes, page) {
        Ok(pointer) if pointer.is_null() => return Err(format!("page {page} is gone")),
        Ok(pointer) => pointer,
        Err(Error::Corrupt(_)) => return Ok(Outcome::Detected),
        Err(error) => return Err(format!("page {page}: {error}")),
    };
    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
    for (offset, length) in parts(page) {
        bytes.resize(length, 0);
        expected.resize(length, 0);
        match PageReader::new(nodes).read(page, &pointer, offset, &mut bytes) {
            Ok(()) => {}
            Err(Error::Corrupt(corruption)) if corruption.page == Some(page) => return Ok(Outcome::Detected),
            Err(Error::Corrupt(corruption)) if corruption.structure != Structure::Page => {
                return Ok(Outcome::Detected);
            }
            Err(error) => return Err(format!("page {page}: the error does not name it: {error}")),
        }
        page_bytes(page, version, offset, &mut expected);
        if bytes != expected {
            return Err(format!("page {page} shows wrong bytes"));
        }
    }
    Ok(Outcome::WithoutEffect)
}

fn judge_pages(nodes: &Nodes, state: &State, pages: &BTreeMap<PageId, u64>) -> Result<Outcome, String> {
    let mut outcome = Outcome::WithoutEffect;
    for (page, version) in pages {
        if judge_page(nodes, state, *page, *version)? == Outcome::Detected {
            outcome = Outcome::Detected;
        }
    }
    for (class, map) in SizeClass::all().zip(state.maps.get().iter()) {
        let mut from = 0;
        loop {
            match map.next(nodes, from) {
                Ok(None) => break,
                Ok(Some((index, _))) => {
                    from = index + 1;
                    if PageId::new(class, index).is_none_or(|page| !pages.contains_key(&page)) {
                        return Err(format!("there is a page {index} of {class} too many"));
                    }
                }
                Err(Error::Corrupt(_)) => {
                    outcome = Outcome::Detected;
                    break;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }
    Ok(outcome)
}

/// The states to be looked at: the newest, and each snapshot's, with what they must hold.
#[allow(clippy::type_complexity)]
pub(crate) fn states(state: &State, expected: &ModelState) -> Result<Vec<(State, BTreeMap<PageId, u64>)>, String> {
    if state.header[..] != expected.header[..] {
        return Err("the header is wrong".into());
    }
    let mut states = vec![(state.clone(), expected.pages.clone())];
    let mut names: Vec<&str> = Vec::new();
    for listed in state.catalogue.iter() {
        let name = listed.entry.name.as_str();
        let (Some(maps), Some(pages)) = (&listed.maps, expected.snapshots.get(name)) else {
            return Err(format!("snapshot {name:?} should not be there"));
        };
        names.push(name);
        states.push((State { maps: StateMaps::new(maps.clone()), ..state.clone() }, pages.clone()));
    }
    match names.len() == expected.snapshots.len() {
        true => Ok(states),
        false => Err(format!("the snapshots are {names:?}")),
    }
}

/// Reads everything that a state shows.
pub(crate) fn judge_state(nodes: &Nodes, state: &State, expected: &ModelState) -> Result<Outcome, String> {
    let mut outcome = Outcome::WithoutEffect;
    for (state, pages) in states(state, expected)? {
        if judge_pages(nodes, &state, &pages)? == Outcome::Detected {
            outcome = Outcome::Detected;
        }
    }
    Ok(outcome)
}

/// The generation that recovery found, before its opening record made one more of the same content.
pub(crate) fn recovered(store: &Store, report: &RecoveryReport) -> Generation {
    let newest = store.state().generation;
    Generation(newest.0 - u64::from(report.opened == newest))
}
