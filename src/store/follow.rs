//! Following a store without writing to it: the states of a file that somebody else may be writing just now.
//!
//! - **F1** A follower writes nothing and takes no lock. That what it reads is not used again meanwhile is for its
//!   caller, who pins it (`process`) or keeps writers out.
//! - **F2** A state is the fold of a superblock and the records after it, applied by the code that commits and recovers
//!   (`State::advance`). Whatever was overwritten meanwhile is noticed by links and checksums, and is no error but
//!   *moved on*: the caller asks anew what it may read.
//! - **F3** What is shown is known to be durable, or verified: see [`FollowLimit`].
//! - **F4** To follow costs in proportion to what changed. When there is a newer superblock, the follower stands on
//!   that one from then on, so that the nodes of the older are let go, and applies the records after its fold again.
//! - **F5** Where no writer says on which checkpoint it stands, a newest checkpoint with a damaged root of a page map is
//!   passed over for the older slot, as in recovery: its longer log leads to what the newer one folded, at least. What
//!   the older slot needs is kept as what the newer one needs is (F1): by a pin of everything, followed by one of the
//!   state and checkpoint shown, or since no writer can come. Beside a writer it is not passed over: what the older slot
//!   needs is free as soon as there is a next checkpoint.
//!
//! Callers: `reader`, the command line. One thread at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use super::apply::{Applied, Listing};
use super::body::load_body;
use super::create::{FileState, file_state};
use super::leaves::log_start;
use super::load::{check_readable, load_catalogue, load_deferred, look_at_maps, read_superblocks};
use super::tail::{missing, read_tail};
use super::{Medium, Published, State};
use crate::disk::Disk;
use crate::error::{Corruption, Error, Fault, Result, Structure};
use crate::format::{BlockPointer, DeferredEntry, DeferredKind, Entry, Superblock};
use crate::id::{CheckpointNumber, Generation, Incarnation, PageId, SizeClass, StoreId};
use crate::log::{FoundRecord, LogStart, Scanner};
use crate::map::{Nodes, diff};
use crate::process::PublishedState;

/// How far a follower may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowLimit {
    /// To the state that a writer, who is there, has published: it stands on that checkpoint and ends at that
    /// generation.
    Published(PublishedState),
    /// As far as the file itself says to be durable, or the last writer said. Nobody writes, for all the caller knows;
    /// but a writer may come at any time.
    Durable(Option<PublishedState>),
    /// To the end of the log: what nobody said to be durable is verified with its pages, as recovery does it. Only if
    /// no writer can come: it would write there.
    Tail,
}

/// What a follower found.
#[derive(Clone, Debug)]
pub struct Followed {
    /// The state.
    pub state: State,
    /// What differs from the state before.
    pub changed: Changed,
}

/// What differs from the state before, besides the header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The pages whose bytes differ, or that were moved; perhaps others too.
    pub pages: Vec<PageId>,
    /// Any page may lie elsewhere than before, with the same bytes.
    pub any_may_have_moved: bool,
}

/// The states of a store, one after the other. See the module.
#[derive(Debug)]
pub struct Follower {
    medium: Arc<Medium>,
    nodes: Arc<Nodes>,
    published: Arc<Published>,
    stand: Stand,
}

/// Where a follower stands.
#[derive(Clone, Debug)]
struct Stand {
    superblock: Superblock,
    /// The records applied to its fold, oldest first.
    notes: VecDeque<Arc<Note>>,
    /// Behind the last of them.
    at: LogStart,
}

/// A record, as far as it is needed to apply it again.
#[derive(Debug)]
struct Note {
    generation: Generation,
    incarnation: Incarnation,
    entries: Vec<Entry>,
    blob: Vec<u8>,
}

impl Note {
    fn sets(&self) -> Vec<(PageId, BlockPointer)> {
        let set = |entry: &Entry| match *entry {
            Entry::Set { page, new, .. } | Entry::Move { page, new, .. } => Some((page, new)),
            _ => None,
        };
        self.entries.iter().filter_map(set).collect()
    }
}

impl Follower {
    /// Opens a store at the newest state within `limit`. `None` if it moved on meanwhile.
    ///
    /// `application_id` is the application whose store is expected, 0 for any; about `cached_nodes` nodes of trees are
    /// kept in memory.
    ///
    /// # Errors
    /// `NotAStore`, `IncompleteCreate`, `UnsupportedVersion`, `UnsupportedFeatures`, `WrongApplication`; `Corrupt` if
    /// something is damaged, or missing though it was durable; `Io`.
    pub fn open(
        disk: Arc<dyn Disk>,
        application_id: u32,
        cached_nodes: usize,
        limit: FollowLimit,
    ) -> Result<Option<Self>> {
        check_is_store(disk.as_ref())?;
        let medium = Arc::new(Medium::new(disk));
        let slots = read_superblocks(&medium)?.slots;
        check_readable(&medium, &slots[0], application_id)?;
        let nodes = Arc::new(Nodes::new(Arc::clone(medium.disk()), slots[0].store, cached_nodes));
        let folded = folded(&slots, limit);
        let first_look = candidates(&slots, limit).map(|slot| (slot, Look::Deeper));
        let second_look = candidates(&slots, limit).map(|slot| (slot, Look::NotDeeper));
        let mut first_error = None;
        for (superblock, look) in first_look.chain(second_look) {
            let looked = look_at(&nodes, superblock, &slots, limit, look);
            match looked.and_then(|()| Stand::new(superblock).begin(&medium, &nodes, limit, folded)) {
                Ok(Some((stand, state))) => {
                    let published = Arc::new(Published::new(state));
                    return Ok(Some(Self { medium, nodes, published, stand }));
                }
                Ok(None) => return Ok(None),
                // The older slot, whose log is longer, leads to the same state.
                Err(error @ Error::Corrupt(_)) => drop(first_error.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        first_error.map_or(Ok(None), Err)
    }

    /// The store.
    pub fn store(&self) -> StoreId {
        self.stand.superblock.store
    }

    /// What reads the trees.
    pub fn nodes(&self) -> &Arc<Nodes> {
        &self.nodes
    }

    /// The state that is shown, which views hold.
    pub fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// Looks for a newer state within `limit`. `Ok(None)`: the store moved on meanwhile, so ask for the limit anew.
    /// The state shown stays; [`Follower::show`] changes it.
    ///
    /// # Errors
    /// `Corrupt`, `Io`; nothing has changed then.
    pub fn follow(&mut self, limit: FollowLimit) -> Result<Option<Followed>> {
        let before = self.published.state();
        let slots = match limit {
            FollowLimit::Published(told) if told.base == before.base => Vec::new(),
            _ => read_superblocks(&self.medium)?.slots,
        };
        let folded = folded(&slots, limit);
        let mut newer = None;
        for superblock in candidates(&slots, limit) {
            // What the follower stands on needs no other look.
            let look = if superblock.checkpoint > before.base { Look::Deeper } else { Look::NotDeeper };
            match look_at(&self.nodes, superblock, &slots, limit, look) {
                Ok(()) => {
                    newer = Some(superblock);
                    break;
                }
                Err(Error::Corrupt(_)) => {}
                Err(error) => return Err(error),
            }
        }
        if let FollowLimit::Published(told) = limit
            && told.base != before.base
            && newer.is_none()
        {
            return Ok(None);
        }
        let mut stand = self.stand.clone();
        let newer = newer.filter(|newer| newer.checkpoint > before.base);
        let notes = match (stand.records_after(&self.medium, limit, folded), newer) {
            (Ok(Some(notes)), newer) if reaches(&notes, before.generation, newer) => notes,
            // The records after the present state are gone; the newer superblock has folded them.
            (Ok(_) | Err(Error::Corrupt(_)), Some(newer)) => {
                let begun = Stand::new(newer).begin(&self.medium, &self.nodes, limit, folded)?;
                let Some((stand, state)) = begun.filter(|(_, state)| state.generation >= before.generation) else {
                    return Ok(None);
                };
                let pages = differing(&self.nodes, &before, &state)?;
                self.stand = stand;
                return Ok(Some(Followed { state, changed: Changed { pages, any_may_have_moved: true } }));
            }
            (Ok(_), None) => return Ok(None),
            (Err(error), _) => return Err(error),
        };
        let mut pages: Vec<PageId> =
            notes.iter().flat_map(|note| note.sets().into_iter().map(|(page, _)| page)).collect();
        pages.sort_unstable();
        pages.dedup();
        let mut next_id = next_catalogue_id(&before, &stand.superblock);
        let mut state = (*before).clone();
        for note in notes {
            next_id = advance(&self.medium, &mut state, &note, next_id)?;
            stand.notes.push_back(note);
        }
        if let Some(newer) = newer {
            stand.superblock = newer.clone();
            stand.notes.retain(|note| note.generation > newer.generation);
            state = stand.fold_and_notes(&self.medium, &self.nodes)?;
        }
        self.stand = stand;
        Ok(Some(Followed { state, changed: Changed { pages, any_may_have_moved: false } }))
    }

    /// Makes a state that was found the one that is shown.
    pub fn show(&self, state: State) {
        self.published.replace(state);
    }

    /// How many bytes these states together keep from use, as far as the file knows: what died after them, and nodes
    /// that their checkpoints need and newer ones do not.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub fn bytes_held(&self, states: &[(CheckpointNumber, Generation)]) -> Result<u64> {
        let superblock = &self.stand.superblock;
        let mut dead = load_deferred(&self.nodes, superblock)?.into_entries();
        let snapshot = self.published.state().snapshots().map(|(entry, _)| entry.generation).max();
        for note in &self.stand.notes {
            for entry in &note.entries {
                let (Entry::Set { old, .. } | Entry::Move { old, .. } | Entry::Dead { old }) = entry else { continue };
                let is_snapshots = snapshot.is_some_and(|snapshot| snapshot >= old.birth);
                if !old.extent().is_empty() && !is_snapshots {
                    let (birth, death) = (old.birth, note.generation);
                    let kind = DeferredKind::Data { birth, written: birth, death };
                    dead.push(DeferredEntry { extent: old.extent(), kind });
                }
            }
        }
        let needs = |entry: &&DeferredEntry| {
            states.iter().any(|(base, generation)| match entry.kind {
                DeferredKind::Data { birth, death, .. } => birth <= *generation && *generation < death,
                DeferredKind::Node { first, replaced } => first <= *base && *base < replaced,
            })
        };
        Ok(dead.iter().filter(needs).map(|entry| entry.extent.length_bytes()).sum())
    }
}

/// The id of the store on a disk, whatever else is to be said of it.
///
/// # Errors
/// `NotAStore`, `IncompleteCreate`, `Corrupt` if no superblock is valid, `Io`.
pub fn store_id(disk: &Arc<dyn Disk>) -> Result<StoreId> {
    check_is_store(disk.as_ref())?;
    Ok(read_superblocks(&Medium::new(Arc::clone(disk)))?.slots[0].store)
}

fn check_is_store(disk: &dyn Disk) -> Result<()> {
    match file_state(disk)? {
        FileState::Foreign => Err(Error::NotAStore { path: disk.path().into() }),
        FileState::Incomplete => Err(Error::IncompleteCreate { path: disk.path().into() }),
        FileState::Store => Ok(()),
    }
}

/// The superblocks to try, the best first.
fn candidates(slots: &[Superblock], limit: FollowLimit) -> impl Iterator<Item = &Superblock> {
    slots.iter().filter(move |slot| match limit {
        FollowLimit::Published(told) => slot.checkpoint == told.base && slot.store == told.store,
        FollowLimit::Durable(_) | FollowLimit::Tail => true,
    })
}

/// The generation that the newest superblock has folded, and that is durable therefore, where nobody says what is.
fn folded(slots: &[Superblock], limit: FollowLimit) -> Generation {
    match limit {
        FollowLimit::Published(_) => Generation::default(),
        FollowLimit::Durable(_) | FollowLimit::Tail => slots.first().map(|slot| slot.generation).unwrap_or_default(),
    }
}

/// Whether it is looked at more than is needed to open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    Deeper,
    NotDeeper,
}

/// Fails if a page map of the superblock is damaged, and the other slot could serve in its place (F5).
fn look_at(nodes: &Nodes, superblock: &Superblock, slots: &[Superblock], limit: FollowLimit, look: Look) -> Result<()> {
    let other = candidates(slots, limit).find(|slot| slot.checkpoint != superblock.checkpoint);
    let Some(other) = other.filter(|_| look == Look::Deeper) else { return Ok(()) };
    let listed = load_catalogue(nodes, superblock)?;
    look_at_maps(nodes, superblock, listed.values().map(|entry| &entry.listed), other)
}

/// The pages whose bytes differ between two states, by their trees: in proportion to how many there are.
fn differing(nodes: &Nodes, before: &State, after: &State) -> Result<Vec<PageId>> {
    let mut pages = Vec::new();
    let (before, after) = (before.maps.get(), after.maps.get());
    for (class, (before, after)) in SizeClass::all().zip(before.iter().zip(after.iter())) {
        diff(nodes, before, after, &mut |difference| {
            pages.extend(PageId::new(class, difference.position));
            Ok(())
        })?;
    }
    Ok(pages)
}

/// Whether these records lead from `generation` to the fold of a newer superblock at least.
fn reaches(notes: &[Arc<Note>], generation: Generation, newer: Option<&Superblock>) -> bool {
    let last = notes.last().map_or(generation, |note| note.generation);
    newer.is_none_or(|newer| newer.generation <= last)
}

fn next_catalogue_id(state: &State, superblock: &Superblock) -> u64 {
    let newest = state.catalogue.last().map_or(0, |listed| listed.entry.id.saturating_add(1));
    newest.max(superblock.next_catalogue_id)
}

/// Applies a record. Returns the least id that the catalogue's next entry may have.
fn advance(medium: &Medium, state: &mut State, note: &Note, next_id: u64) -> Result<u64> {
    let record = Applied {
        generation: note.generation,
        incarnation: note.incarnation,
        entries: &note.entries,
        blob: &note.blob,
    };
    let listing = Listing::of(&record, next_id).map_err(|fault| bad_record(medium, fault))?;
    let next_id = listing.next_id;
    state.advance(&record, &note.sets(), listing);
    Ok(next_id)
}

fn bad_record(medium: &Medium, fault: Fault) -> Error {
    Corruption { path: medium.path().into(), structure: Structure::Record, page: None, offset: 0, fault }.into()
}

impl Stand {
    /// At the fold of a superblock.
    fn new(superblock: &Superblock) -> Self {
        Self { superblock: superblock.clone(), notes: VecDeque::new(), at: log_start(superblock) }
    }

    /// Goes from the fold to `limit`; at least to `folded`, which is known to be durable.
    fn begin(
        mut self,
        medium: &Medium,
        nodes: &Nodes,
        limit: FollowLimit,
        folded: Generation,
    ) -> Result<Option<(Self, State)>> {
        let Some(notes) = self.records_after(medium, limit, folded)? else { return Ok(None) };
        self.notes.extend(notes);
        let state = self.fold_and_notes(medium, nodes)?;
        Ok(Some((self, state)))
    }

    fn fold_and_notes(&self, medium: &Medium, nodes: &Nodes) -> Result<State> {
        let listed = load_catalogue(nodes, &self.superblock)?;
        let listed = listed.into_values().map(|entry| entry.listed).collect();
        let mut state = State::of_superblock(&self.superblock, listed);
        let mut next_id = self.superblock.next_catalogue_id;
        for note in &self.notes {
            next_id = advance(medium, &mut state, note, next_id)?;
        }
        Ok(state)
    }

    /// The records behind the present place, within `limit`; the place is then behind the last of them. `None` if they
    /// do not reach as far as a writer published: they were used again. All up to `folded` are durable.
    fn records_after(
        &mut self,
        medium: &Medium,
        limit: FollowLimit,
        folded: Generation,
    ) -> Result<Option<Vec<Arc<Note>>>> {
        let from = self.at.generation;
        if matches!(limit, FollowLimit::Published(told) if told.synced <= from) {
            return Ok(Some(Vec::new()));
        }
        let mut scanner = Scanner::new(Arc::clone(medium.disk()), self.superblock.store, self.at.clone())?;
        let mut found: Vec<(FoundRecord, LogStart)> = Vec::new();
        loop {
            let newest = found.last().map_or(from, |(record, _)| record.header.generation);
            if matches!(limit, FollowLimit::Published(told) if newest >= told.synced) {
                break;
            }
            let Some(record) = scanner.next_record()? else { break };
            let (segment, offset, next) = scanner.place();
            let header = &record.header;
            let at = LogStart { generation: header.generation, seal: header.seal, segment, offset, next };
            found.push((record, at));
        }
        let last = found.last().map_or(from, |(record, _)| record.header.generation);
        let durable = match limit {
            FollowLimit::Published(told) if last < told.synced => return Ok(None),
            FollowLimit::Published(told) => told.synced,
            FollowLimit::Durable(told) => known_durable(from.max(folded), &found, told).max(evidence(&mut scanner)?),
            FollowLimit::Tail => known_durable(from.max(folded), &found, None).max(evidence(&mut scanner)?),
        };
        if durable > last {
            return Err(missing(medium, self.at.segment.extent.start, last));
        }
        let mut left = medium.length_bytes()?;
        let mut notes = Vec::with_capacity(found.len());
        for (mut record, at) in found {
            let generation = record.header.generation;
            if generation > durable && limit != FollowLimit::Tail {
                break;
            }
            load_body(medium, &mut record, &mut left)?;
            if generation > durable && !read_tail(medium, &record, &mut left, Err)?.is_some_and(|tail| tail.seal_fits) {
                break;
            }
            let (incarnation, FoundRecord { entries, blob, .. }) = (record.header.incarnation, record);
            notes.push(Arc::new(Note { generation, incarnation, entries, blob }));
            self.at = at;
        }
        Ok(Some(notes))
    }
}

fn evidence(scanner: &mut Scanner) -> Result<Generation> {
    Ok(scanner.evidence_beyond()?.unwrap_or_default())
}

/// The newest generation that is durable by what the records say, or what their writer said beside them.
fn known_durable(folded: Generation, found: &[(FoundRecord, LogStart)], told: Option<PublishedState>) -> Generation {
    let headers = || found.iter().map(|(record, _)| &record.header);
    // A writer that came to another end of the log is not believed.
    let said = told.filter(|told| {
        headers().any(|header| header.generation == told.synced && header.incarnation == told.incarnation)
    });
    let recorded = headers().map(|header| header.synced_through).fold(folded, Generation::max);
    recorded.max(said.map(|said| said.synced).unwrap_or_default())
}
