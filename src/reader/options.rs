//! What a reader is told when it opens a store.

use std::time::Duration;

use crate::buffer::BufferManager;

/// Bytes that a decoded node of a tree takes in memory, about.
const NODE_MEMORY_BYTES: usize = 7 << 10;

/// Whether others may write while a reader has the store open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writers {
    /// They may: the reader says in a folder beside the store (its name with `.readers` behind it) what it needs, for
    /// which it must be allowed to write there. If it is not (the medium is read-only, or permission is lacking), it
    /// is as with [`Writers::Excluded`]: [`standing`](super::ReadOnlyPager::standing) says which.
    #[default]
    Allowed,
    /// They may not: a shared lock keeps them out, and opening fails if there is one. No file is made.
    Excluded,
    /// Nobody writes, the caller promises: no lock is taken and no file made. If the promise is broken, reads fail or
    /// show mixed states.
    Absent,
}

/// What a reader is told when it opens a store.
#[derive(Clone, Debug)]
pub struct ReaderOptions {
    pub(super) memory_bytes: usize,
    pub(super) buffer: Option<BufferManager>,
    pub(super) cached_nodes: usize,
    pub(super) application_id: u32,
    pub(super) writers: Writers,
    pub(super) name: String,
    pub(super) patience: Duration,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            buffer: None,
            cached_nodes: 16 << 10,
            application_id: 0,
            writers: Writers::default(),
            name: String::new(),
            patience: Duration::from_secs(10),
        }
    }
}

impl ReaderOptions {
    /// The defaults: 64 MiB for pages, writers allowed, any application's store, no name.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes of pages may be kept in a buffer of the reader's own (default 64 MiB, at least 1 MiB). A page that
    /// is larger can be read in parts only, unless it is read from a mapping.
    pub fn memory(mut self, bytes: usize) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// A buffer that is shared with other stores, in place of one of the reader's own.
    pub fn buffer(mut self, buffer: &BufferManager) -> Self {
        self.buffer = Some(buffer.clone());
        self
    }

    /// About how many bytes of the page maps' nodes may be kept (default 112 MiB).
    pub fn map_memory(mut self, bytes: usize) -> Self {
        self.cached_nodes = bytes / NODE_MEMORY_BYTES;
        self
    }

    /// Whose store is expected (default 0: anybody's). A store of another application is refused.
    pub fn application(mut self, id: u32) -> Self {
        self.application_id = id;
        self
    }

    /// Whether others may write meanwhile (default: they may).
    pub fn writers(mut self, writers: Writers) -> Self {
        self.writers = writers;
        self
    }

    /// What the reader is called where readers are listed, besides its process number (default: nothing). What exceeds
    /// 200 bytes is cut off.
    pub fn name(mut self, name: &str) -> Self {
        let end = (0..=name.len().min(200)).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
        self.name = name[..end].to_owned();
        self
    }

    /// How long opening waits for a writer that is there and says nothing: one that is recovering (default 10 s).
    /// `Duration::MAX` waits as long as that takes.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}
