//! The buffer over a store of imagination: what a page holds follows from its id and its birth.

mod budget;
mod hit_rate;
mod loads;
mod os_pages;
mod pages;
mod pool;
mod stress;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use super::*;
use crate::error::{Error, Result};
use crate::format::{BlockPointer, CodecId};
use crate::id::{Block, Generation, PageId, SizeClass};

/// Page maps by generation, and how often pages were read.
#[derive(Debug, Default)]
pub(super) struct Imagined {
    /// What is being published, and what readers begin with.
    newest: RwLock<State>,
    visible: RwLock<State>,
    pub(super) loads: AtomicU64,
    pub(super) fails: AtomicBool,
    pub(super) panics: AtomicBool,
    /// Called within every load.
    pub(super) gate: Mutex<()>,
}

/// A state: births of pages.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) generation: Generation,
    births: Arc<HashMap<PageId, Generation>>,
}

pub(super) fn page(log2: u8, index: u64) -> PageId {
    PageId::new(SizeClass::new(log2).unwrap(), index).unwrap()
}

pub(super) fn pointer_of(page: PageId, birth: Generation) -> BlockPointer {
    let address = Block(100 + (page.index() << 20 | birth.0 & 0xf_ffff));
    let stored_length = page.class().page_bytes().min(1 << 20) as u32;
    BlockPointer { address, codec: CodecId::RAW, stored_length, birth, ..BlockPointer::default() }
}

/// Ends the process if it is not dropped within two minutes, and says who holds the memory: for tests of what must not
/// hang.
pub(super) struct Watchdog(Arc<(Mutex<bool>, std::sync::Condvar)>);

impl Watchdog {
    pub(super) fn new(manager: &BufferManager) -> Self {
        let over = Arc::new((Mutex::new(false), std::sync::Condvar::new()));
        let (watched, manager) = (Arc::clone(&over), manager.clone());
        std::thread::spawn(move || {
            let patience = std::time::Duration::from_secs(120);
            let guard = watched.0.lock().unwrap();
            let (is_over, _) = watched.1.wait_timeout_while(guard, patience, |is_over| !*is_over).unwrap();
            if !*is_over {
                eprintln!("hangs; the memory is held by {:?}", manager.budget().held_by());
                eprintln!("{:?}", manager.stats());
                std::process::abort();
            }
        });
        Self(over)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

/// The first and last words of a page's bytes.
pub(super) fn word_of(page: PageId, birth: Generation) -> u64 {
    units::mix(page.to_u64() ^ units::mix(birth.0))
}

pub(super) fn fill(page: PageId, birth: Generation, target: &mut [u8]) {
    let word = word_of(page, birth).to_le_bytes();
    let last = target.len() - 8;
    target[..8].copy_from_slice(&word);
    target[last..].copy_from_slice(&word);
}

/// Which birth the bytes are of; both ends agree.
pub(super) fn check(page: PageId, birth: Generation, bytes: &[u8]) {
    let word = word_of(page, birth).to_le_bytes();
    assert_eq!(bytes.len() as u64, page.class().page_bytes());
    assert_eq!((&bytes[..8], &bytes[bytes.len() - 8..]), (&word[..], &word[..]), "{page} of {birth}");
}

impl PageSource for Imagined {
    fn newest_pointer(&self, page: PageId) -> Result<BlockPointer> {
        let newest = self.newest.read().unwrap();
        Ok(newest.births.get(&page).map_or(BlockPointer::null(Generation(0)), |birth| pointer_of(page, *birth)))
    }

    fn load(&self, page: PageId, pointer: &BlockPointer, target: &mut [u8]) -> Result<()> {
        drop(self.gate.lock().unwrap());
        self.loads.fetch_add(1, Ordering::Relaxed);
        if self.fails.load(Ordering::Relaxed) {
            return Err(Error::Closed);
        }
        if self.panics.load(Ordering::Relaxed) {
            // As a panic, but for the message.
            std::panic::resume_unwind(Box::new("on purpose"));
        }
        assert!(target.as_ptr().addr().is_multiple_of(4096));
        target.fill(0xee);
        fill(page, pointer.birth, target);
        Ok(())
    }
}

impl ReadState for State {
    fn generation(&self) -> Generation {
        self.generation
    }

    fn pointer(&self, page: PageId) -> Result<BlockPointer> {
        self.births.get(&page).map(|birth| pointer_of(page, *birth)).ok_or(Error::PageNotFound { page })
    }
}

impl State {
    pub(super) fn birth(&self, page: PageId) -> Option<Generation> {
        self.births.get(&page).copied()
    }
}

impl Imagined {
    pub(super) fn state(&self) -> State {
        self.visible.read().unwrap().clone()
    }

    /// A commit: what it frees is `None`. Frames are made for those that say so.
    pub(super) fn commit(
        &self,
        manager: &BufferManager,
        pages: &StorePages,
        changes: &[(PageId, Option<bool>)],
    ) -> State {
        let mut state = self.state();
        state.generation = Generation(state.generation.0 + 1);
        let births = Arc::make_mut(&mut state.births);
        let mut newest = Vec::new();
        for (page, change) in changes {
            match change {
                None => drop(births.remove(page)),
                Some(_) => drop(births.insert(*page, state.generation)),
            }
            newest.push((
                *page,
                match change {
                    Some(true) => {
                        let mut frame = manager.frame(page.class()).unwrap();
                        assert!(frame.iter().all(|byte| *byte == 0), "a new frame is zero");
                        fill(*page, state.generation, frame.get_mut().unwrap());
                        Newest::Frame(frame)
                    }
                    _ => Newest::Absent,
                },
            ));
        }
        *self.newest.write().unwrap() = state.clone();
        pages.publish(state.generation, &mut newest.into_iter());
        *self.visible.write().unwrap() = state.clone();
        state
    }
}

/// A store with pages of these classes, `count` of each, born at generation 1.
pub(super) fn with_pages(budget: usize, classes: &[u8], count: u64) -> (BufferManager, Arc<Imagined>, StorePages) {
    let manager = BufferManager::new(budget).unwrap();
    let source = Arc::new(Imagined::default());
    let pages = manager.attach(Arc::clone(&source) as Arc<dyn PageSource>).unwrap();
    let changes: Vec<_> =
        classes.iter().flat_map(|class| (0..count).map(|index| (page(*class, index), Some(false)))).collect();
    source.commit(&manager, &pages, &changes);
    (manager, source, pages)
}
