//! Publication: what a commit wrote becomes what readers find.

use std::hint;
use std::sync::atomic::Ordering;

use super::frame::Frame;
use super::manager::Inner;
use super::pages::StorePages;
use super::policy::Arrival;
use super::pool::{NOT_LISTED, Use};
use super::protocol::descriptor::{Descriptor, Word};
use super::room::{FrameName, Room};
use super::shard::Outcome;
use super::store::leaf_charge;
use super::units::{UnitKey, hash_page, hash_unit};
use crate::format::BlockPointer;
use crate::id::{Generation, PageId, SizeClass};

/// Pages that are published under one hold of the lock.
const AT_ONCE: usize = 64;

/// What a page is from now on.
#[derive(Debug)]
pub enum Newest {
    /// These bytes.
    Frame(Frame),
    /// Freed, zero, or not in memory: whoever wants it loads it.
    Absent,
}

/// A page of a commit.
#[derive(Debug)]
pub struct Change {
    /// The page.
    pub page: PageId,
    /// What it is from now on.
    pub newest: Newest,
    /// The pointer that the page had until now, if older views may still ask for it: its frame is then kept where they
    /// look, as long as memory lasts.
    pub replaced: Option<BlockPointer>,
}

/// A chunk of a commit's large page.
#[derive(Debug)]
pub struct ChunkChange {
    /// Where it lies from now on.
    pub new: BlockPointer,
    /// Its bytes, if they are in memory.
    pub frame: Option<Frame>,
    /// Where it was until now, if nobody asks for that any more: its frame is then free.
    pub gone: Option<BlockPointer>,
}

impl StorePages {
    /// Chunks that a commit stored are to be found in memory as if they had been read. Called before the commit's pages
    /// are published. A frame that is not a chunk's of this manager counts as none.
    pub fn publish_chunks(&self, changes: &mut dyn Iterator<Item = ChunkChange>) {
        for ChunkChange { new, frame, gone } in changes {
            let mut room = self.inner.room();
            if let Some(gone) = gone {
                self.forget_unit(&mut room, UnitKey { pointer: gone, class: SizeClass::CHUNK });
            }
            let usable = |frame: &Frame| frame.is_of(&self.inner) && frame.class() == SizeClass::CHUNK;
            let unused = match frame {
                Some(frame) if usable(&frame) && !frame.is_published() => self.publish_unit(&mut room, new, frame),
                other => other,
            };
            drop(room);
            // Not while the lock is held.
            drop(unused);
        }
        self.inner.announce();
    }

    /// Enters a private frame as a unit; returns it if there is one already, or one on its way.
    fn publish_unit(&self, room: &mut Room, pointer: BlockPointer, frame: Frame) -> Option<Frame> {
        let key = UnitKey { pointer, class: frame.class() };
        let (name, address) = frame.place();
        let (number, mut shard) = self.store.unit_shard(&key);
        let Some(pool) = self.inner.pools.get(name.class).filter(|_| !shard.units.contains_key(&key)) else {
            return Some(frame);
        };
        shard.insert(key, address);
        drop(shard);
        let meta = pool.meta(name.number);
        meta.owner.store(number, Ordering::Relaxed);
        meta.store.store(self.store.number(), Ordering::Relaxed);
        frame.hand_over();
        room.list(&self.inner, name, Use::Unit, hash_unit(self.store.number(), &key), Arrival::Read);
        None
    }

    /// A unit that nobody asks for any more leaves memory, as soon as no guard holds it.
    fn forget_unit(&self, room: &mut Room, key: UnitKey) {
        let address = self.store.unit_shard(&key).1.remove(&key);
        if let Some((pool, number)) = address.and_then(|address| self.inner.pools.find(address)) {
            let name = FrameName { class: pool.class(), number };
            room.unlist_page(&self.inner, name);
            room.retire(&self.inner, name);
        }
    }

    /// As [`StorePages::publish`]; what is replaced stays in memory for older views where the change says so.
    pub fn publish_keeping(&self, generation: Generation, changes: &mut dyn Iterator<Item = Change>) {
        let mut batch: Vec<Change> = Vec::with_capacity(AT_ONCE);
        loop {
            batch.extend((&mut *changes).take(AT_ONCE));
            if batch.is_empty() {
                return;
            }
            let slots = self.warm(&mut batch.iter().map(|change| change.page));
            // Frames that cannot be used are dropped when the lock is not held.
            let mut unused = Vec::new();
            let mut room = self.inner.room();
            room.look_at(&slots);
            for change in batch.drain(..) {
                unused.extend(self.publish_one(&mut room, generation, change));
            }
            drop(room);
            self.inner.announce();
        }
    }

    /// Pages are going to be published soon, perhaps: what that will change is looked at beforehand, and frames that
    /// nobody uses any more are made ready for those who come next. For whoever waits for something else.
    pub fn prepare_to_publish(&self, pages: &mut dyn Iterator<Item = PageId>) {
        let mut pages = pages.peekable();
        while pages.peek().is_some() {
            let slots = self.warm(&mut (&mut pages).take(AT_ONCE));
            self.inner.room().look_at(&slots);
        }
        self.inner.room().sift_many(&self.inner);
        self.inner.announce();
    }

    /// Looks at what publishing the pages will change. Nothing depends on what is seen; but these looks do not wait for
    /// one another, as the changes would. Returns what the policy knows the frames by that are there now.
    fn warm(&self, pages: &mut dyn Iterator<Item = PageId>) -> [u32; AT_ONCE] {
        let mut addresses = [0; AT_ONCE];
        let mut seen = 0;
        for (page, address) in pages.zip(&mut addresses) {
            if let Some(descriptor) = self.store.table.find(page) {
                let word = descriptor.word();
                seen ^= descriptor.generation.load(Ordering::Relaxed);
                *address = if word.has_frame() { word.address() } else { 0 };
            }
        }
        let mut slots = [NOT_LISTED; AT_ONCE];
        for (address, slot) in addresses.iter().zip(&mut slots).filter(|(address, _)| **address != 0) {
            if let Some((pool, number)) = self.inner.pools.find(*address) {
                let meta = pool.meta(number);
                *slot = meta.slot.load(Ordering::Relaxed);
                seen ^= meta.generation.load(Ordering::Relaxed);
            }
        }
        hint::black_box(seen);
        slots
    }

    fn publish_one(&self, room: &mut Room, generation: Generation, change: Change) -> Option<Frame> {
        let Change { page, newest, replaced } = change;
        let mut unused = None;
        let usable = |frame: &Frame| frame.is_of(&self.inner) && frame.class() == page.class() && !frame.is_published();
        let frame = match newest {
            Newest::Frame(frame) if usable(&frame) => Some(frame),
            Newest::Frame(frame) => {
                unused = Some(frame);
                None
            }
            Newest::Absent => None,
        };
        // A page without descriptor is not in memory, and stays so if none can be had.
        let descriptor = match (&frame, self.store.table.find(page)) {
            (_, Some(descriptor)) => descriptor,
            (None, None) => return unused,
            (Some(_), None) => match self.store.table.find_or_reserve(page) {
                Ok(descriptor) => descriptor,
                Err(_) => return frame,
            },
        };
        match self.swap(room, generation, page, descriptor, frame, replaced) {
            None => unused,
            refused => refused,
        }
    }

    /// Puts the frame, or nothing, where readers look. Returns the frame if there is no memory for the descriptor.
    fn swap(
        &self,
        room: &mut Room,
        generation: Generation,
        page: PageId,
        descriptor: Descriptor<'_>,
        frame: Option<Frame>,
        replaced: Option<BlockPointer>,
    ) -> Option<Frame> {
        let (inner, store) = (&*self.inner, &*self.store);
        let (leaf, mut shard) = store.shard(page);
        let mut refused = None;
        let mut entering = None;
        // It stays so: pages are evicted under the room's lock.
        let has_frame = descriptor.word().has_frame();
        if let Some(frame) = frame {
            if has_frame || shard.has(leaf) {
                entering = Some(frame);
            } else if inner.try_charge(leaf_charge()) {
                store.count_leaf();
                entering = Some(frame);
            } else {
                refused = Some(frame);
            }
        }
        // What is evicted stays so, without a write: its leaf may have no memory.
        if entering.is_none() && descriptor.word().is_evicted() {
            return refused;
        }
        let place = entering.as_ref().map(Frame::place);
        if let Some((name, _)) = place
            && let Some(pool) = inner.pools.get(name.class)
        {
            let meta = pool.meta(name.number);
            meta.owner.store(page.index(), Ordering::Relaxed);
            meta.store.store(store.number(), Ordering::Relaxed);
            meta.generation.store(generation.0, Ordering::Relaxed);
            // Counted before (`Shard::raise`), but for one frame in another's place.
            if !has_frame {
                shard.raise(leaf);
            }
        }
        let word = place.map(|(_, address)| Word::cooling(address, page.class().log2()));
        let old = descriptor.publish(generation.0, word);
        debug_assert_eq!(old.has_frame(), has_frame);
        let is_in_its_place = has_frame && word.is_some();
        if !(is_in_its_place || old.is_evicted()) {
            shard.lower(leaf);
        }
        if let Some(ticket) = old.ticket() {
            shard.wake(ticket, Outcome::Again);
        }
        drop(shard);
        if let Some(frame) = entering {
            frame.hand_over();
        }
        self.settle(room, inner, page, place.map(|(name, _)| name), old, replaced);
        refused
    }

    /// Tells the policy, and sees to the frame that was replaced.
    fn settle(
        &self,
        room: &mut Room,
        inner: &Inner,
        page: PageId,
        new: Option<FrameName>,
        old: Word,
        replaced: Option<BlockPointer>,
    ) {
        let store = &*self.store;
        let old_name = old.has_frame().then(|| inner.pools.find(old.address())).flatten();
        let old_name = old_name.map(|(pool, number)| FrameName { class: pool.class(), number });
        match (new, old_name) {
            (Some(new), Some(old)) => room.list_in_place(inner, new, old.number),
            (Some(new), None) => room.list(inner, new, Use::Page, hash_page(store.number(), page), Arrival::Read),
            (None, Some(old)) => room.unlist_page(inner, old),
            (None, None) => {}
        }
        let Some(old_name) = old_name else { return };
        if let Some(pointer) = replaced {
            let key = UnitKey { pointer, class: page.class() };
            let (number, mut shard) = store.unit_shard(&key);
            if !shard.units.contains_key(&key) {
                shard.insert(key, old.address());
                drop(shard);
                room.list_unit(inner, old_name, number, hash_unit(store.number(), &key));
                return;
            }
        }
        room.retire(inner, old_name);
    }
}
