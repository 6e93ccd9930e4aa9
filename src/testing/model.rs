//! What a store should hold, kept in the simplest way there is.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::id::{Generation, PageId};
use crate::map::Nodes;
use crate::store::{PageReader, State, StateMaps};

/// What one generation holds: for each page a number from which its bytes follow, and the user header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelState {
    /// Pages by id; version 0 is a page of zeros.
    pub pages: BTreeMap<PageId, u64>,
    /// The user header.
    pub header: Vec<u8>,
    /// Snapshots by name, with their pages.
    pub snapshots: BTreeMap<String, BTreeMap<PageId, u64>>,
}

/// Every generation's state, as committed.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// By generation.
    pub states: BTreeMap<Generation, ModelState>,
}

/// The bytes of a page: they follow from its id and a version. The first 32 bytes and the last 16 of each MiB differ from
/// page to page and version to version, the others are zero: so a torn page has few distinct states, and all of them
/// can be tried.
pub fn page_bytes(page: PageId, version: u64, offset: u64, target: &mut [u8]) {
    target.fill(0);
    if version == 0 {
        return;
    }
    let unit = page.class().page_bytes().min(1 << 20);
    for (index, word) in target.chunks_mut(8).enumerate() {
        let at = offset + 8 * index as u64;
        if (32..unit - 16).contains(&(at % unit)) {
            continue;
        }
        let mixed = (page.to_u64() ^ version.rotate_left(32) ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bytes = (mixed ^ (mixed >> 29) | 1).to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
}

impl Model {
    /// The newest state.
    pub fn newest(&self) -> ModelState {
        self.states.values().next_back().cloned().unwrap_or_default()
    }

    /// Records the state of a generation.
    pub fn commit(&mut self, generation: Generation, state: ModelState) {
        self.states.insert(generation, state);
    }
}

impl ModelState {
    /// Compares a state of a store with this one; says what differs first.
    ///
    /// # Errors
    /// Those of reading the store.
    pub fn compare(&self, nodes: &Nodes, state: &State) -> Result<Option<String>> {
        if state.header[..] != self.header[..] {
            return Ok(Some(format!("the header is {:?}, not {:?}", state.header, self.header)));
        }
        if let Some(difference) = compare_pages(&self.pages, nodes, state)? {
            return Ok(Some(difference));
        }
        let names: Vec<&str> =
            state.catalogue.iter().filter(|l| l.maps.is_some()).map(|l| l.entry.name.as_str()).collect();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        if sorted != self.snapshots.keys().map(String::as_str).collect::<Vec<_>>() {
            return Ok(Some(format!("the snapshots are {names:?}, not {:?}", self.snapshots.keys())));
        }
        for listed in state.catalogue.iter() {
            let (Some(maps), Some(pages)) = (&listed.maps, self.snapshots.get(&listed.entry.name)) else { continue };
            let of_snapshot = State { maps: StateMaps::new((**maps).clone()), ..state.clone() };
            if let Some(difference) = compare_pages(pages, nodes, &of_snapshot)? {
                return Ok(Some(format!("snapshot {:?}: {difference}", listed.entry.name)));
            }
        }
        Ok(None)
    }
}

fn compare_pages(pages: &BTreeMap<PageId, u64>, nodes: &Nodes, state: &State) -> Result<Option<String>> {
    let reader = PageReader::new(nodes);
    let mut found = 0;
    for (class, map) in crate::id::SizeClass::all().zip(state.maps.get().iter()) {
        let mut from = 0;
        while let Some((index, pointer)) = map.next(nodes, from)? {
            from = index + 1;
            found += 1;
            let Some(page) = PageId::new(class, index) else { return Ok(Some("an index is out of range".into())) };
            let Some(version) = pages.get(&page) else {
                return Ok(Some(format!("page {page} is there, and should not be")));
            };
            let piece = class.page_bytes().min(1 << 20) as usize;
            let (mut bytes, mut expected) = (vec![0; piece], vec![0; piece]);
            for offset in (0..class.page_bytes()).step_by(piece) {
                reader.read(page, &pointer, offset, &mut bytes)?;
                page_bytes(page, *version, offset, &mut expected);
                if bytes != expected {
                    return Ok(Some(format!("page {page} does not have the bytes of version {version}")));
                }
            }
        }
    }
    match found == pages.len() {
        true => Ok(None),
        false => Ok(Some(format!("{found} pages are there, not {}", pages.len()))),
    }
}
