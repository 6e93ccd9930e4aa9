//! The page maps of a state, which may come to lie elsewhere while the state is held.
//!
//! Views keep the nodes of their maps in memory: what changed between their base, a checkpoint, and them. Of states that
//! only they hold this can be put on disk, into space that nothing committed reaches: the same maps, in other nodes.
//!
//! - **W1** Only the maps of states that pins alone hold are put elsewhere. The core's own states ([`Published`] gives
//!   pins a state of their own) never are: a checkpoint writes them, and what it writes must lead to committed nodes.
//! - **W2** What the nodes lie in is kept as long as the state.
//!
//! [`Published`]: super::Published

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock};

use super::state::{Maps, State};

/// The page maps of a state: a value, whoever puts its nodes elsewhere.
pub struct StateMaps(RwLock<Shown>);

#[derive(Clone)]
struct Shown {
    maps: Arc<Maps>,
    /// What the nodes lie in, if that is not for the store to know.
    place: Option<Arc<dyn Any + Send + Sync>>,
}

impl StateMaps {
    /// These maps.
    pub fn new(maps: impl Into<Arc<Maps>>) -> Self {
        Self(RwLock::new(Shown { maps: maps.into(), place: None }))
    }

    /// The maps. To be used while the state is held.
    pub fn get(&self) -> Arc<Maps> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).maps)
    }

    /// The maps, for changing: those of clones stay as they are.
    pub(super) fn get_mut(&mut self) -> &mut Maps {
        let shown = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut shown.maps)
    }

    /// Whether the nodes lie elsewhere.
    pub fn is_elsewhere(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).place.is_some()
    }

    /// Puts other nodes in the place of those that are there (W1).
    fn put_elsewhere(&self, maps: Maps, place: Arc<dyn Any + Send + Sync>) {
        let shown = Shown { maps: Arc::new(maps), place: Some(place) };
        let before = std::mem::replace(&mut *self.0.write().unwrap_or_else(PoisonError::into_inner), shown);
        // It may be many nodes: not while the lock is held.
        drop(before);
    }
}

/// A state that pins hold, and that is not the newest: one of the pins' own (W1).
#[derive(Clone, Debug)]
pub struct OldState(Arc<State>);

impl OldState {
    pub(super) fn new(state: &Arc<State>) -> Self {
        Self(Arc::clone(state))
    }

    /// Puts `maps`, which must be the same in other nodes, in the place of the state's; `place` is what the nodes lie
    /// in, and is dropped with the state.
    pub fn put_elsewhere(&self, maps: Maps, place: Arc<dyn Any + Send + Sync>) {
        self.0.maps.put_elsewhere(maps, place);
    }
}

impl Deref for OldState {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl Clone for StateMaps {
    fn clone(&self) -> Self {
        Self(RwLock::new(self.0.read().unwrap_or_else(PoisonError::into_inner).clone()))
    }
}

impl fmt::Debug for StateMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateMaps").field("is_elsewhere", &self.is_elsewhere()).finish_non_exhaustive()
    }
}
