//! Savepoints: what undoes the changes since each, and the frames that only they hold.
//!
//! - **V1** A frame that a segment holds does not change: whoever changes a page copies a frame that is shared (W3).
//! - **V2** `bytes` are those of the frames that segments hold and the transaction's pages do not, each counted once,
//!   however many segments hold it. So they can be spilled like any others, and are: they are the oldest.
//! - **V3** The count of a frame in `shares` is the number of segments' pages that hold it. What no segment holds is not
//!   there, so a transaction without savepoints pays nothing.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use super::bytes::Bytes;
use super::memory::Unit;
use super::private::PrivatePage;
use crate::buffer::Frame;
use crate::error::{Error, Result};
use crate::id::PageId;

/// A point in a transaction that it can go back to. Dropping it gives up that possibility, and the memory it takes.
#[derive(Debug)]
pub struct Savepoint {
    alive: Arc<Alive>,
}

/// Lives as long as its savepoint.
#[derive(Debug)]
struct Alive;

/// What undoes everything since a savepoint.
#[derive(Debug)]
pub(super) struct Segment {
    savepoint: Weak<Alive>,
    pub(super) pages: HashMap<PageId, Option<PrivatePage>>,
    pub(super) header: Option<Option<Arc<[u8]>>>,
}

/// Who has a frame.
#[derive(Debug)]
struct Share {
    /// Pages of segments.
    segments: usize,
    /// Whether the transaction's page has it too.
    in_page: bool,
}

/// The savepoints of a transaction.
#[derive(Debug, Default)]
pub(super) struct Savepoints {
    segments: Vec<Segment>,
    /// By the frames' addresses.
    shares: HashMap<usize, Share>,
    bytes: usize,
}

impl Savepoints {
    /// A new one.
    pub(super) fn add(&mut self) -> Savepoint {
        self.prune();
        let alive = Arc::new(Alive);
        self.segments.push(Segment::new(&alive));
        Savepoint { alive }
    }

    /// The segments down to the savepoint's, newest first, to be undone in this order. It can be gone back to again.
    pub(super) fn take_to(&mut self, savepoint: &Savepoint) -> Result<Vec<Segment>> {
        let is_it = |segment: &Segment| std::ptr::eq(segment.savepoint.as_ptr(), Arc::as_ptr(&savepoint.alive));
        let depth = self.segments.iter().position(is_it).ok_or(Error::SavepointNotFound)?;
        let mut taken = self.segments.split_off(depth);
        taken.reverse();
        for private in taken.iter().flat_map(|segment| segment.pages.values()).flatten() {
            Self::release(&mut self.shares, &mut self.bytes, private);
        }
        self.segments.push(Segment::new(&savepoint.alive));
        Ok(taken)
    }

    /// Notes what a page is, if a savepoint wants to know.
    pub(super) fn note(&mut self, page: PageId, private: Option<&PrivatePage>) {
        self.prune();
        let Some(segment) = self.segments.last_mut() else { return };
        if segment.pages.contains_key(&page) {
            return;
        }
        for (_, frame) in private.iter().flat_map(|private| private.content.frames()) {
            let share = self.shares.entry(address(frame)).or_insert(Share { segments: 0, in_page: true });
            share.segments += 1;
        }
        segment.pages.insert(page, private.cloned());
    }

    /// Notes what the header is, if a savepoint wants to know.
    pub(super) fn note_header(&mut self, header: Option<&Arc<[u8]>>) {
        self.prune();
        if let Some(segment) = self.segments.last_mut() {
            segment.header.get_or_insert_with(|| header.cloned());
        }
    }

    /// The transaction's page does not have the frame any more.
    pub(super) fn left(&mut self, frame: &Frame) {
        if let Some(share) = self.shares.get_mut(&address(frame))
            && std::mem::take(&mut share.in_page)
        {
            self.bytes += frame.len();
        }
    }

    /// The transaction's page has the frame.
    pub(super) fn entered(&mut self, frame: &Frame) {
        if let Some(share) = self.shares.get_mut(&address(frame))
            && !std::mem::replace(&mut share.in_page, true)
        {
            self.bytes -= frame.len();
        }
    }

    /// Bytes of the frames that only savepoints hold.
    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes
    }

    /// Those frames, and when they were changed last.
    pub(super) fn frames(&self) -> impl Iterator<Item = (u64, Unit, &Frame)> {
        let mut seen = HashSet::new();
        let pages = self.segments.iter().flat_map(|segment| &segment.pages);
        let frames =
            pages.filter_map(|(page, private)| Some((*page, private.as_ref()?))).flat_map(|(page, private)| {
                private.content.frames().map(move |(chunk, frame)| (private.changed, (page, chunk), frame))
            });
        frames.filter(move |(_, _, frame)| {
            let at = address(frame);
            self.shares.get(&at).is_some_and(|share| !share.in_page) && seen.insert(at)
        })
    }

    /// The frame's bytes are not in memory any more; the page's own were seen to before.
    pub(super) fn spilled(&mut self, (page, chunk): Unit, frame: &Frame, instead: &Bytes) {
        let Some(share) = self.shares.remove(&address(frame)) else { return };
        if !share.in_page {
            self.bytes -= frame.len();
        }
        let mut left = share.segments;
        for segment in &mut self.segments {
            let bytes = segment.pages.get_mut(&page).and_then(Option::as_mut).and_then(|it| it.content.unit_mut(chunk));
            if let Some(bytes) = bytes.filter(|bytes| bytes.is_frame(frame)) {
                *bytes = instead.clone();
                left -= 1;
            }
            if left == 0 {
                break;
            }
        }
    }

    /// Merges the newest segments whose savepoints are gone into the one below: that one then undoes both.
    fn prune(&mut self) {
        while self.segments.last().is_some_and(|segment| segment.savepoint.strong_count() == 0) {
            let Some(gone) = self.segments.pop() else { return };
            let mut below = self.segments.last_mut();
            for (page, private) in gone.pages {
                match &mut below {
                    Some(below) if !below.pages.contains_key(&page) => drop(below.pages.insert(page, private)),
                    _ => private.iter().for_each(|it| Self::release(&mut self.shares, &mut self.bytes, it)),
                }
            }
            if let Some(below) = below {
                below.header = below.header.take().or(gone.header);
            }
        }
    }

    /// A segment does not hold the page's frames any more.
    fn release(shares: &mut HashMap<usize, Share>, bytes: &mut usize, private: &PrivatePage) {
        for (_, frame) in private.content.frames() {
            let at = address(frame);
            let Some(share) = shares.get_mut(&at) else { continue };
            share.segments -= 1;
            if share.segments == 0 {
                *bytes -= if share.in_page { 0 } else { frame.len() };
                shares.remove(&at);
            }
        }
    }
}

impl Segment {
    fn new(alive: &Arc<Alive>) -> Self {
        Self { savepoint: Arc::downgrade(alive), pages: HashMap::new(), header: None }
    }
}

/// By what a frame is known as long as it is held.
fn address(frame: &Frame) -> usize {
    frame.as_ptr().addr()
}

#[cfg(test)]
mod tests {
    use super::super::private::{Content, Origin, Private};
    use super::*;
    use crate::buffer::BufferManager;
    use crate::id::SizeClass;

    fn page(index: u64) -> PageId {
        PageId::new(SizeClass::MIN, index).unwrap()
    }

    fn manager() -> BufferManager {
        BufferManager::new(8 << 20).unwrap()
    }

    fn new_page(manager: &BufferManager, byte: u8) -> Option<PrivatePage> {
        let mut frame = manager.frame(SizeClass::MIN).unwrap();
        frame.get_mut().unwrap().fill(byte);
        Some(PrivatePage::new(Origin::New, Content::Whole(Bytes::Frame(frame))))
    }

    fn first_byte(private: &Private, index: u64) -> Option<u8> {
        match &private.get(page(index))?.content {
            Content::Whole(Bytes::Frame(frame)) => Some(frame[0]),
            _ => None,
        }
    }

    #[test]
    fn going_back_restores_contents_allocations_and_header() {
        let manager = manager();
        let mut private = Private::default();
        private.set(page(0), new_page(&manager, 1));
        private.set_header(Arc::from(*b"one"));
        let first = private.savepoint();
        private.set(page(0), new_page(&manager, 2));
        private.set(page(1), new_page(&manager, 2));
        let second = private.savepoint();
        private.set(page(0), None);
        private.set_header(Arc::from(*b"two"));
        assert_eq!(private.lowest_returned(SizeClass::MIN), Some(0));

        private.rollback_to(&second).unwrap();
        assert_eq!((first_byte(&private, 0), first_byte(&private, 1)), (Some(2), Some(2)));
        assert_eq!(private.lowest_returned(SizeClass::MIN), None);
        private.rollback_to(&first).unwrap();
        assert_eq!((first_byte(&private, 0), first_byte(&private, 1)), (Some(1), None));
        assert_eq!(private.lowest_returned(SizeClass::MIN), Some(1));
        assert_eq!(private.header().map(|header| &header[..]), Some(&b"one"[..]));
        assert!(matches!(private.rollback_to(&second), Err(Error::SavepointNotFound)));
        private.rollback_to(&first).unwrap();
    }

    #[test]
    fn a_savepoint_given_up_leaves_older_ones_right_and_no_old_buffers() {
        let manager = manager();
        let mut private = Private::default();
        private.set(page(0), new_page(&manager, 0));
        let outer = private.savepoint();
        for byte in 1..100 {
            let inner = private.savepoint();
            private.set(page(0), new_page(&manager, byte));
            drop(inner);
        }
        // One for `outer`, one that is about to be merged into it.
        assert!(private.memory_bytes() <= 3 * 4096, "{} bytes", private.memory_bytes());
        private.rollback_to(&outer).unwrap();
        assert_eq!((first_byte(&private, 0), private.memory_bytes()), (Some(0), 4096));
        drop(outer);
        private.set(page(0), new_page(&manager, 7));
        assert_eq!(private.memory_bytes(), 4096);
    }

    #[test]
    fn a_savepoint_of_another_transaction_is_refused() {
        let savepoint = Private::default().savepoint();
        assert!(matches!(Private::default().rollback_to(&savepoint), Err(Error::SavepointNotFound)));
    }

    #[test]
    fn what_savepoints_hold_is_counted_once_however_it_came_about() {
        let manager = manager();
        // Each step against a count over everything that is held.
        let mut private = Private::default();
        let mut savepoints = Vec::new();
        let mut random = 5u64;
        let mut below = |limit: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % limit
        };
        for step in 0..20_000 {
            let index = below(8);
            match below(10) {
                0 if savepoints.len() < 50 => savepoints.push(private.savepoint()),
                1 if !savepoints.is_empty() => {
                    savepoints.truncate(1 + below(savepoints.len() as u64) as usize);
                    private.rollback_to(savepoints.last().unwrap()).unwrap();
                }
                2 if !savepoints.is_empty() => drop(savepoints.remove(below(savepoints.len() as u64) as usize)),
                3 => private.set(page(index), None),
                4 | 5 => {
                    if let Some(bytes) = private.take_whole(page(index)) {
                        private.put_back(page(index), bytes);
                    }
                }
                _ => private.set(page(index), new_page(&manager, step as u8)),
            }
            let saved = private.savepoints().segments.iter().flat_map(|segment| segment.pages.values().flatten());
            let held = private.pages().values().chain(saved).flat_map(|it| it.content.frames());
            let frames: HashSet<usize> = held.map(|(_, frame)| address(frame)).collect();
            assert_eq!(private.memory_bytes(), frames.len() * 4096, "step {step}");
        }
        drop(savepoints);
        private.set(page(0), None);
        assert!(private.savepoints().shares.is_empty());
    }
}
