//! The committed state as a value, and who holds which one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::held::{OldState, StateMaps};
use crate::error::{Error, Result};
use crate::format::{BlockPointer, CatalogueEntry, Superblock};
use crate::id::{CheckpointNumber, Generation, Incarnation, PageId, SizeClass};
use crate::lock::lock_awake;
use crate::map::{Nodes, Shape, Tree};

/// The page maps, one a size class.
pub type Maps = [Tree; SizeClass::COUNT];

/// A committed state: everything a reader needs. A value; never changes once published.
#[derive(Clone, Debug)]
pub struct State {
    /// The generation.
    pub generation: Generation,
    /// The incarnation that made it.
    pub incarnation: Incarnation,
    /// The checkpoint whose nodes the maps are built on.
    pub base: CheckpointNumber,
    /// The page maps.
    pub maps: StateMaps,
    /// The user header.
    pub header: Arc<[u8]>,
    /// Snapshots and bookmarks, by rising id.
    pub catalogue: Arc<Vec<Arc<Listed>>>,
}

/// A snapshot or a bookmark, as the store knows it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// What the catalogue says. Its roots are those on disk only once `maps` lies there.
    pub entry: CatalogueEntry,
    /// The state's page maps; `None` for a bookmark.
    pub maps: Option<Box<Maps>>,
}

impl State {
    /// The state before the first commit.
    pub(super) fn empty() -> Self {
        Self {
            generation: Generation(0),
            incarnation: Incarnation(0),
            base: CheckpointNumber(0),
            maps: StateMaps::new(empty_maps()),
            header: Arc::from([]),
            catalogue: Arc::default(),
        }
    }

    /// The state that a superblock stands for.
    pub(super) fn of_superblock(superblock: &Superblock, catalogue: Vec<Arc<Listed>>) -> Self {
        Self {
            generation: superblock.generation,
            incarnation: superblock.incarnation,
            base: superblock.checkpoint,
            maps: StateMaps::new(super::load::maps_under(&superblock.maps)),
            header: superblock.header.as_slice().into(),
            catalogue: Arc::new(catalogue),
        }
    }

    /// The page's pointer in this state; null if it is not allocated.
    ///
    /// # Errors
    /// Those of [`Nodes::node`].
    pub fn pointer(&self, nodes: &Nodes, page: PageId) -> Result<BlockPointer> {
        self.maps.get()[page.class().index()].get(nodes, page.index())
    }

    /// The pointer of a page that is to be read.
    ///
    /// # Errors
    /// `PageNotFound` if it is not allocated; those of [`Nodes::node`].
    pub fn pointer_to_read(&self, nodes: &Nodes, page: PageId) -> Result<BlockPointer> {
        let pointer = self.pointer(nodes, page)?;
        if pointer.is_null() { Err(Error::PageNotFound { page }) } else { Ok(pointer) }
    }

    /// The snapshot or bookmark of this name.
    pub fn listed(&self, name: &str) -> Option<&Arc<Listed>> {
        self.catalogue.iter().find(|listed| listed.entry.name == name)
    }

    /// The snapshots (not the bookmarks), oldest first.
    pub(super) fn snapshots(&self) -> impl DoubleEndedIterator<Item = (&CatalogueEntry, &Maps)> {
        self.catalogue.iter().filter_map(|listed| Some((&listed.entry, &**listed.maps.as_ref()?)))
    }
}

pub(super) fn empty_maps() -> Maps {
    std::array::from_fn(|index| Tree::empty(Shape::map(SizeClass::from_index(index))))
}

/// The published state, and the pins of those who read one.
///
/// Its lock is held for a few instructions at a time, by a commit too: never during input or output.
#[derive(Debug)]
pub struct Published {
    inner: Mutex<Inner>,
    synced: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    state: Arc<State>,
    held: BTreeMap<(Generation, CheckpointNumber), Held>,
}

/// States that are held, of one generation on one base: one, but where a snapshot is read, or commits were undone.
#[derive(Debug, Default)]
struct Held {
    count: usize,
    /// The pins' own: the core's is never one of them (W1 in `held.rs`).
    states: Vec<Arc<State>>,
}

/// A state that is held: nothing it reaches is used again while this lives.
#[derive(Debug)]
pub struct Pinned {
    state: Arc<State>,
    published: Arc<Published>,
}

impl Published {
    pub(super) fn new(state: State) -> Self {
        let synced = AtomicU64::new(state.generation.0);
        let inner = Inner { state: Arc::new(state), held: BTreeMap::new() };
        Self { inner: Mutex::new(inner), synced }
    }

    /// The newest generation that is durable, with all before it. Takes no lock. It rises before the state of a durable
    /// commit is published, so it may be one ahead of [`Published::pin`].
    pub fn synced(&self) -> Generation {
        Generation(self.synced.load(Ordering::Acquire))
    }

    pub(super) fn set_synced(&self, synced: Generation) {
        self.synced.store(synced.0, Ordering::Release);
    }

    /// Holds the newest state. Never waits for a commit's input or output.
    pub fn pin(self: &Arc<Self>) -> Pinned {
        let mut inner = self.lock();
        let state = Arc::clone(&inner.state);
        self.hold(&mut inner, &state)
    }

    /// Holds the state of a snapshot of the published state, if it still has it.
    pub fn pin_snapshot(self: &Arc<Self>, name: &str) -> Option<Pinned> {
        let mut inner = self.lock();
        let listed = Arc::clone(inner.state.listed(name)?);
        let state = State {
            generation: listed.entry.generation,
            incarnation: listed.entry.incarnation,
            base: inner.state.base,
            maps: StateMaps::new(*listed.maps.clone()?),
            header: listed.entry.header.as_slice().into(),
            catalogue: Arc::default(),
        };
        Some(self.hold(&mut inner, &state))
    }

    fn hold(self: &Arc<Self>, inner: &mut Inner, state: &State) -> Pinned {
        let held = inner.held.entry((state.generation, state.base)).or_default();
        held.count += 1;
        let is_it = |other: &&Arc<State>| {
            let same_catalogue = Arc::ptr_eq(&other.catalogue, &state.catalogue)
                || other.catalogue.is_empty() && state.catalogue.is_empty();
            other.incarnation == state.incarnation && same_catalogue
        };
        let own = held.states.iter().find(is_it).cloned();
        let state = own.unwrap_or_else(|| {
            held.states.push(Arc::new(state.clone()));
            Arc::clone(&held.states[held.states.len() - 1])
        });
        Pinned { state, published: Arc::clone(self) }
    }

    /// The states that pins hold and that are not the newest, oldest first; and the newest.
    pub fn old_states(&self) -> (Vec<OldState>, Arc<State>) {
        let inner = self.lock();
        let newest = (inner.state.generation, inner.state.base);
        let old = inner.held.iter().filter(|(key, _)| **key != newest);
        (old.flat_map(|(_, held)| held.states.iter().map(OldState::new)).collect(), Arc::clone(&inner.state))
    }

    /// The newest state, not held.
    pub(super) fn state(&self) -> Arc<State> {
        Arc::clone(&self.lock().state)
    }

    /// Makes another state the newest.
    pub(super) fn replace(&self, state: State) {
        self.lock().state = Arc::new(state);
    }

    /// Changes the newest state. Nodes that no pinned state shares are changed in place.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(Arc::make_mut(&mut self.lock().state))
    }

    /// The generations and the base checkpoints that are held.
    pub(super) fn pins(&self) -> Pins {
        let mut pins = Pins::default();
        for (generation, base) in self.lock().held.keys() {
            pins.add(*base, *generation);
        }
        pins
    }

    /// The states that are held: each one's base and generation.
    pub fn held_states(&self) -> Vec<(CheckpointNumber, Generation)> {
        self.lock().held.keys().map(|(generation, base)| (*base, *generation)).collect()
    }

    /// Whether this state is held.
    pub fn holds(&self, base: CheckpointNumber, generation: Generation) -> bool {
        self.lock().held.contains_key(&(generation, base))
    }

    /// How many states are held, and the oldest generation among them.
    pub fn held(&self) -> (usize, Option<Generation>) {
        let inner = self.lock();
        (inner.held.values().map(|held| held.count).sum(), inner.held.keys().next().map(|(generation, _)| *generation))
    }

    /// A panic while the lock is held leaves the counts whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock_awake(&self.inner)
    }
}

impl std::ops::Deref for Pinned {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl Clone for Pinned {
    fn clone(&self) -> Self {
        let mut inner = self.published.lock();
        if let Some(held) = inner.held.get_mut(&(self.state.generation, self.state.base)) {
            held.count += 1;
        }
        Self { state: Arc::clone(&self.state), published: Arc::clone(&self.published) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut inner = self.published.lock();
        let key = (self.state.generation, self.state.base);
        let Some(held) = inner.held.get_mut(&key) else { return };
        held.count -= 1;
        let gone = if held.count == 0 { inner.held.remove(&key) } else { None };
        drop(inner);
        // It may be many nodes, and give space back: not while the lock is held.
        drop(gone);
    }
}

/// What is held, at one instant: rising, without repetition.
#[derive(Clone, Debug, Default)]
pub(super) struct Pins {
    pub(super) generations: Vec<Generation>,
    pub(super) bases: Vec<CheckpointNumber>,
    /// All states from these on are held too: somebody is about to choose one of them.
    pub(super) from: Option<(CheckpointNumber, Generation)>,
}

impl Pins {
    pub(super) fn add(&mut self, base: CheckpointNumber, generation: Generation) {
        if let Err(index) = self.generations.binary_search(&generation) {
            self.generations.insert(index, generation);
        }
        if let Err(index) = self.bases.binary_search(&base) {
            self.bases.insert(index, base);
        }
    }

    pub(super) fn add_from(&mut self, base: CheckpointNumber, generation: Generation) {
        let (old_base, old_generation) = self.from.unwrap_or((base, generation));
        self.from = Some((base.min(old_base), generation.min(old_generation)));
    }

    /// Whether what died at `death` may be reached by a state that somebody is about to choose.
    pub(super) fn may_choose_before(&self, death: Generation) -> bool {
        self.from.is_some_and(|(_, generation)| generation < death)
    }

    /// Whether a checkpoint before `replaced` may be chosen as base.
    pub(super) fn may_stand_before(&self, replaced: CheckpointNumber) -> bool {
        self.from.is_some_and(|(base, _)| base < replaced)
    }

    /// The youngest generation that is held from `birth` on and before `death`.
    pub(super) fn generation_in(&self, birth: Generation, death: Generation) -> Option<Generation> {
        let before = self.generations.partition_point(|generation| *generation < death);
        self.generations[..before].last().copied().filter(|generation| *generation >= birth)
    }

    /// Whether a base is held from checkpoint `first` on and before `replaced`.
    pub(super) fn base_in(&self, first: CheckpointNumber, replaced: CheckpointNumber) -> bool {
        let before = self.bases.partition_point(|base| *base < replaced);
        self.bases[..before].last().is_some_and(|base| *base >= first)
    }
}
