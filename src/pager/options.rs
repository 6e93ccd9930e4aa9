//! What a pager is told when it creates or opens a store.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::encode::Policy;
use crate::buffer::BufferManager;
use crate::disk::Caching;
use crate::error::{Error, Result};
use crate::format::Compression;
use crate::id::{BLOCK_BYTES, SizeClass};
use crate::store::{CheckpointReport, MakeStrategy, NewSpace, RecoveryReport, Settings};

/// Bytes that a decoded node of a tree takes in memory, about.
const NODE_MEMORY_BYTES: usize = 7 << 10;

/// Who does the work that is nobody's commit: checkpoints, and keeping whole segments of the file free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Background {
    /// A thread of the pager's own, beside the commits.
    #[default]
    Thread,
    /// The thread that commits, after the commit is done. All file access then happens on the callers' threads.
    Inline,
}

/// Whether other processes may read the store while it is open for writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readers {
    /// They may: a folder beside the store, with its name and `.readers` behind it, tells who needs what. It is removed
    /// on closing if nobody is in it.
    #[default]
    Beside,
    /// They may not, and no folder is made. If readers of an earlier writer are there, opening fails.
    Refused,
}

/// Something that a program may want to know of, though it asked for nothing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A store was opened; this is what was found and done.
    Opened(RecoveryReport),
    /// A checkpoint was made.
    Checkpoint(CheckpointReport),
    /// A checkpoint or a step of cleaning that nobody asked for failed. No commit is concerned; it will be tried again.
    BackgroundFailed {
        /// What failed.
        reason: String,
    },
    /// Writing is refused from now on, until the store is opened again.
    Poisoned {
        /// The first failure.
        reason: String,
    },
}

/// A function that is told of events.
pub type Listener = dyn Fn(&Event) + Send + Sync;

/// What hears of events.
#[derive(Clone, Default)]
pub(super) struct Hook(Option<Arc<Listener>>);

impl Hook {
    pub(super) fn tell(&self, event: &Event) {
        if let Some(hook) = &self.0 {
            // A panic of the caller's is no reason to leave a commit, or the background's work, half done.
            let _ = catch_unwind(AssertUnwindSafe(|| hook(event)));
        }
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Hook(set)" } else { "Hook(none)" })
    }
}

/// What a pager is told when it creates or opens a store. Only the application's id and version are kept in the file;
/// everything else may differ from open to open.
#[derive(Clone, Debug)]
pub struct Options {
    memory_bytes: usize,
    manager: Option<BufferManager>,
    map_memory_bytes: Option<usize>,
    pub(super) background: Background,
    pub(super) caching: Caching,
    pub(super) clean_target_percent: Option<u8>,
    pub(super) hook: Hook,
    pub(super) compression: Policy,
    pub(super) readers: Readers,
    checkpoint_log_bytes: Option<u64>,
    log_segment_bytes: Option<u32>,
    in_log_pages_bytes: Option<u32>,
    growth_bytes: Option<u64>,
    file_limit_bytes: Option<u64>,
    settings: Settings,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            manager: None,
            map_memory_bytes: None,
            background: Background::default(),
            caching: Caching::Buffered,
            clean_target_percent: None,
            hook: Hook::default(),
            compression: Policy::default(),
            readers: Readers::default(),
            checkpoint_log_bytes: None,
            log_segment_bytes: None,
            in_log_pages_bytes: None,
            growth_bytes: None,
            file_limit_bytes: None,
            settings: Settings::default(),
        }
    }
}

impl Options {
    /// The defaults: 64 MiB for pages, a background thread, buffered file access, no application.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes of memory the pager may take (default 64 MiB, at least 1 MiB): for pages that are read, for what
    /// open transactions have changed, for nodes of the page maps. What finds no room is evicted, or spilled to the file.
    /// A page that is larger can be read and written in parts only.
    pub fn memory(mut self, bytes: usize) -> Self {
        (self.memory_bytes, self.manager) = (bytes, None);
        self
    }

    /// Takes the memory from a manager that other pagers may share.
    pub fn buffer(mut self, manager: &BufferManager) -> Self {
        self.manager = Some(manager.clone());
        self
    }

    /// About how many bytes of the memory are for the page maps' nodes (default: an eighth; 1 MiB is enough for the maps
    /// of 100 MB of 4 KiB pages). A checkpoint is also made when four times as much of them has changed.
    pub fn map_memory(mut self, bytes: usize) -> Self {
        self.map_memory_bytes = Some(bytes);
        self
    }

    /// The manager to take memory from.
    pub(super) fn manager(&self) -> Result<BufferManager> {
        match &self.manager {
            Some(manager) => Ok(manager.clone()),
            None => BufferManager::new(self.memory_bytes),
        }
    }

    /// Bytes for the page maps' nodes, of a budget of so many.
    pub(super) fn map_bytes(&self, budget_bytes: usize) -> usize {
        self.map_memory_bytes.unwrap_or(budget_bytes / 8).min(budget_bytes / 2)
    }

    /// Of these, bytes for nodes that only old states hold.
    pub(super) fn old_map_bytes(&self, budget_bytes: usize) -> usize {
        self.map_bytes(budget_bytes) / 4
    }

    /// Whose store this is, and the version of the application's own format. A store of another application is
    /// refused. The default is 0: created, the store is nobody's in particular; to be opened, any will do.
    pub fn application(mut self, id: u32, version: u32) -> Self {
        self.settings.application_id = id;
        self.settings.application_version = version;
        self
    }

    /// Who makes checkpoints (default: a thread of the pager's own).
    pub fn background(mut self, background: Background) -> Self {
        self.background = background;
        self
    }

    /// Whether new space is written with zeros when the file grows (default: it is, so that commits into it are fast).
    pub fn new_space(mut self, new_space: NewSpace) -> Self {
        self.settings.new_space = new_space;
        self
    }

    /// Whether file access goes through the system's page cache (default: it does).
    pub fn caching(mut self, caching: Caching) -> Self {
        self.caching = caching;
        self
    }

    /// Bytes of log after which a checkpoint is due (default: a quarter of the page maps, but at least 8 MiB and at most
    /// 64 MiB). More makes commits cheaper and opening after a crash slower.
    pub fn checkpoint_log_bytes(mut self, bytes: u64) -> Self {
        self.checkpoint_log_bytes = Some(bytes);
        self
    }

    /// Bytes of a segment of the log, in whole blocks of 4 KiB (default 1 MiB, at least 16 KiB).
    pub fn log_segment_bytes(mut self, bytes: u32) -> Self {
        self.log_segment_bytes = Some(bytes);
        self
    }

    /// Commits of at most so many bytes of pages go out in one write with their record (default 32 KiB; 0: none do).
    pub fn in_log_pages_bytes(mut self, bytes: u32) -> Self {
        self.in_log_pages_bytes = Some(bytes);
        self
    }

    /// Bytes beyond which the file does not grow (default: no limit but the disk's).
    pub fn file_limit_bytes(mut self, bytes: u64) -> Self {
        self.file_limit_bytes = Some(bytes);
        self
    }

    /// Bytes by which the file grows at least (default 1 MiB); a large file grows by more.
    pub fn growth_bytes(mut self, bytes: u64) -> Self {
        self.growth_bytes = Some(bytes);
        self
    }

    /// How many percent of the file's segments (of 1 MiB) are to be wholly free. Pages are moved for that, in proportion
    /// to what is committed.
    ///
    /// By default there are as many as log, nodes and large pages need, and commits fill the holes between pages: that
    /// writes the fewest bytes, and takes the least time where many writes at once cost a device little. Where each
    /// write counts (a rotating disk, a limit on operations), some percent make commits contiguous, at the price of the
    /// moves: pages are moved out of segments of which at most two thirds are in use, under uniform overwrites of a file
    /// 75 % full some 1.4 for each page written. 0: nothing is moved unasked.
    pub fn clean_target(mut self, percent: u8) -> Self {
        self.clean_target_percent = Some(percent);
        self
    }

    /// Whether other processes may read the store meanwhile (default: they may).
    pub fn readers(mut self, readers: Readers) -> Self {
        self.readers = readers;
        self
    }

    /// Which strategy proposes extents (default: [`SegmentFill`](crate::space::SegmentFill)).
    pub fn strategy(mut self, make: MakeStrategy) -> Self {
        self.settings.strategy = make;
        self
    }

    /// How pages are stored that are written from now on (default: as they are). It may differ from open to open; what is
    /// stored stays as it is until it is written again, and can be read whatever the choice. Pages of 4 KiB, and those
    /// that would not get a block (4 KiB) shorter, are stored as they are.
    ///
    /// The first commit that uses a codec writes the newest superblock again with the codec's feature bit: builds of
    /// Vellum without the codec refuse the store from then on.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression.set(compression);
        self
    }

    /// How pages of one class are stored, whatever [`Options::compression`] says of the others.
    pub fn compression_of(mut self, class: SizeClass, compression: Compression) -> Self {
        self.compression.set_class(class, compression);
        self
    }

    /// What is to hear of events. It is called on the thread that an event happens on, with no lock of the pager held;
    /// but other commits wait for it: it may read and ask for statistics, and must not wait for a commit. A panic in it is
    /// printed like any other, and goes no further.
    pub fn events(mut self, hook: Arc<Listener>) -> Self {
        self.hook = Hook(Some(hook));
        self
    }

    /// The same for the core, in blocks.
    pub(super) fn settings(&self) -> Result<Settings> {
        let mut settings = self.settings.clone();
        let budget_bytes = self.manager.as_ref().map_or(self.memory_bytes, |manager| manager.budget().limit_bytes());
        let cached_bytes = self.map_bytes(budget_bytes) - self.old_map_bytes(budget_bytes);
        settings.cached_nodes = cached_bytes / NODE_MEMORY_BYTES;
        settings.grows_ahead = self.background == Background::Thread;
        if self.clean_target_percent.is_some_and(|percent| percent > 50) {
            let reason = "more than 50 percent cannot be kept free";
            return Err(Error::InvalidOption { option: "clean_target", reason });
        }
        let blocks_of_u32 = |bytes: u32| bytes / BLOCK_BYTES as u32;
        if let Some(bytes) = self.log_segment_bytes {
            settings.log_segment_blocks = blocks_of_u32(bytes);
        }
        if let Some(bytes) = self.in_log_pages_bytes {
            settings.in_log_blocks = blocks_of_u32(bytes);
        }
        if let Some(bytes) = self.checkpoint_log_bytes {
            settings.checkpoint_log_blocks = Some((bytes / BLOCK_BYTES).max(1));
        }
        if let Some(bytes) = self.growth_bytes {
            settings.growth_blocks = bytes.div_ceil(BLOCK_BYTES);
        }
        if let Some(bytes) = self.file_limit_bytes {
            settings.blocks_limit = (bytes / BLOCK_BYTES).min(settings.blocks_limit);
        }
        settings.check().map_err(by_its_name_here)?;
        Ok(settings)
    }
}

/// The error names the option that was given, not what the core calls it.
fn by_its_name_here(error: Error) -> Error {
    let Error::InvalidOption { option, reason } = error else { return error };
    let option = match option {
        "log_segment_blocks" => "log_segment_bytes",
        "growth_blocks" => "growth_bytes",
        other => other,
    };
    Error::InvalidOption { option, reason }
}
