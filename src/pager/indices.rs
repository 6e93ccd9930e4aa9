//! Which index a new page gets: one allocator for all transactions, in memory, so that they never meet in an index.
//!
//! - **A1** An index that a transaction took is in `taken` until its changes are published, or it gave the index back. No
//!   other gets it.
//! - **A2** An index that was freed is given out only if its free is synced, and to a transaction only if it is free in
//!   what that transaction sees.
//! - **A3** Below `cursor`, every index that the newest published map has as free is taken, or was refused under A2 and is
//!   not below `refused`. Indices from the map's end up to `fresh` are taken, or in `returned`.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::handle::Shared;
use super::pending::{Member, Pending};
use super::private::{Candidate, Content, Origin};
use crate::error::{Error, Result};
use crate::id::{Generation, PageId, SizeClass};
use crate::store::{Pinned, State};

/// The indices of all classes.
#[derive(Debug)]
pub(super) struct Indices {
    classes: [Mutex<Class>; SizeClass::COUNT],
}

/// The indices of one class. See A1 to A3.
#[derive(Debug, Default)]
struct Class {
    taken: HashSet<u64>,
    /// Indices beyond the map's end that were taken and given back.
    returned: BTreeSet<u64>,
    cursor: u64,
    /// The lowest index that was refused, and up to which generation a free was accepted then.
    refused: Option<(u64, Generation)>,
    fresh: u64,
}

impl Default for Indices {
    fn default() -> Self {
        Self { classes: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl Indices {
    /// Takes the lowest index that is free for certain, for a transaction that sees `base` with `pending` on it.
    pub(super) fn take(&self, shared: &Shared, base: &Pinned, pending: &Pending, class: SizeClass) -> Result<PageId> {
        let mut indices = self.lock(class);
        // Within the lock: what is published later is not taken out of `taken` before it is given back.
        let newest = shared.published.pin();
        let index = indices.take(shared, &newest, base, pending, class)?;
        let page = PageId::new(class, index).ok_or(Error::Exhausted { counter: "page index" })?;
        indices.taken.insert(index);
        Ok(page)
    }

    /// The members' changes are published, in `newest` or before.
    pub(super) fn published(&self, newest: &State, members: &[&Candidate<'_>]) {
        for alive in members {
            for (page, private) in &*alive.pages {
                match (private.origin, &private.content) {
                    (Origin::New, _) => drop(self.lock(page.class()).taken.remove(&page.index())),
                    (Origin::Committed, Content::Freed) => {
                        let length = newest.maps.get()[page.class().index()].length();
                        self.lock(page.class()).freed(page.index(), length);
                    }
                    _ => {}
                }
            }
        }
        self.give_back(members.iter().flat_map(|alive| alive.member.returned.iter().copied()));
    }

    /// The member's changes will never be published.
    pub(super) fn failed(&self, member: &Member) {
        let pages = member.pages();
        let new = pages.iter().filter(|(_, private)| private.origin == Origin::New).map(|(page, _)| *page);
        self.give_back(new.chain(member.returned.iter().copied()));
    }

    /// Takes back indices that nobody used.
    pub(super) fn give_back(&self, pages: impl Iterator<Item = PageId>) {
        for page in pages {
            self.lock(page.class()).give_back(page.index());
        }
    }

    /// Forgets where it has searched: any index may be free again. Nothing may be taken.
    pub(super) fn search_again(&self) {
        for class in SizeClass::all() {
            *self.lock(class) = Class::default();
        }
    }

    /// A panic while the lock is held leaves what is inside whole.
    fn lock(&self, class: SizeClass) -> MutexGuard<'_, Class> {
        self.classes[class.index()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Class {
    fn take(
        &mut self,
        shared: &Shared,
        newest: &State,
        base: &State,
        pending: &Pending,
        class: SizeClass,
    ) -> Result<u64> {
        let accepted = shared.published.synced().min(base.generation);
        if let Some((index, accepted_then)) = self.refused
            && accepted > accepted_then
        {
            (self.cursor, self.refused) = (self.cursor.min(index), None);
        }
        let maps = newest.maps.get();
        let map = &maps[class.index()];
        let sees = |index| PageId::new(class, index).is_some_and(|page| pending.has(page).is_some());
        let mut refused = None;
        let found = map.next_free(&shared.nodes, self.cursor, |index, since| {
            if self.taken.contains(&index) {
                return false;
            }
            let certain = since <= accepted && !sees(index);
            if !certain && refused.is_none() {
                refused = Some(index);
            }
            certain
        });
        let found = shared.while_open(|| found)?;
        if let Some(index) = refused {
            let first = self.refused.map_or(index, |(first, _)| first.min(index));
            let accepted = self.refused.map_or(accepted, |(_, then)| then.min(accepted));
            self.refused = Some((first, accepted));
        }
        if let Some(index) = found {
            self.returned.remove(&index);
            self.cursor = index + 1;
            return Ok(index);
        }
        self.cursor = self.cursor.max(map.length());
        self.fresh = self.fresh.max(map.length());
        self.returned = self.returned.split_off(&map.length());
        let again = self.returned.iter().copied().find(|index| !sees(*index));
        Ok(match again {
            Some(index) => {
                self.returned.remove(&index);
                index
            }
            None => {
                while sees(self.fresh) {
                    self.returned.insert(self.fresh);
                    self.fresh += 1;
                }
                self.fresh += 1;
                self.fresh - 1
            }
        })
    }

    fn freed(&mut self, index: u64, length: u64) {
        self.cursor = self.cursor.min(index);
        // Allocated and freed by one record, it never came into the map.
        if index >= length {
            self.keep(index);
        }
    }

    fn give_back(&mut self, index: u64) {
        if self.taken.remove(&index) {
            self.cursor = self.cursor.min(index);
            self.keep(index);
        }
    }

    fn keep(&mut self, index: u64) {
        self.returned.insert(index);
        // Many at the end are one number.
        while self.fresh > 0 && self.returned.last() == Some(&(self.fresh - 1)) {
            self.returned.pop_last();
            self.fresh -= 1;
        }
    }
}
