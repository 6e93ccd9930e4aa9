//! What can go wrong, said once: what, where, which page, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::id::{CheckpointNumber, Extent, Generation, PageId, SizeClass};

/// The result of every fallible call of the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that a call can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The system refused an operation on the file.
    #[error("{operation} of {} failed{}: {source}{}", path.display(), at(*offset), what_to_do(source))]
    Io {
        /// What was tried: `read`, `write`, `sync`, `open`, …
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The byte offset of the transfer, where there is one.
        offset: Option<u64>,
        /// The system's answer.
        source: io::Error,
    },

    /// The system refused memory, or an operation on memory.
    #[error("{operation} of {bytes} bytes of memory failed: {source}{}", what_limits_memory(source))]
    Memory {
        /// What was tried: `allocation`, `reservation`, `protection`, `resize`, …
        operation: &'static str,
        /// Bytes that it was tried on.
        bytes: usize,
        /// The system's answer.
        source: io::Error,
    },

    /// Bytes of the file are not what Vellum wrote there.
    #[error(transparent)]
    Corrupt(Box<Corruption>),

    /// The file is not a Vellum store. It was not touched.
    #[error("{} is not a Vellum store; give the path of a store, or create one under a new name", path.display())]
    NotAStore {
        /// The file.
        path: PathBuf,
    },

    /// Creating this store was interrupted before it was complete. It holds no data: create it again.
    #[error("creating {} was interrupted; it holds no data, create it again", path.display())]
    IncompleteCreate {
        /// The file.
        path: PathBuf,
    },

    /// The path is no regular file.
    #[error("{} is {kind}, not a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is: `a directory`, `a FIFO`, …
        kind: &'static str,
    },

    /// A file with content is where a new store was to be created. It was not touched.
    #[error("{} already exists; open it, or create the store under another name", path.display())]
    AlreadyExists {
        /// The file.
        path: PathBuf,
    },

    /// Another writer has the store open, in another process or (where it is asked for as a reader) in this one.
    #[error("{} is open for writing elsewhere, in another process as a rule; wait for it or stop it", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },

    /// This process has the store open for writing already, under this name or another.
    #[error("{} is open for writing in this process already; use the pager that is there, or close it first", path.display())]
    OpenedTwice {
        /// The file.
        path: PathBuf,
    },

    /// Readers have the store open in a way that keeps writers out: without write access, or because they asked for it.
    #[error("{} is open for reading elsewhere, by readers that keep writers out; wait for them or stop them", path.display())]
    LockedByReaders {
        /// The file.
        path: PathBuf,
    },

    /// A writer has the store open, and did not tell readers of other processes what they may read.
    #[error("{} is open for writing, and its writer tells readers nothing (it may be recovering, or refuse readers)", path.display())]
    WriterSilent {
        /// The file.
        path: PathBuf,
    },

    /// What a reader in another process reads is newer than what could be recovered: blocks it reads would be used
    /// again. Nothing was written; stop the reader, then open again.
    #[error("{} could be recovered to checkpoint {} only, but {holder} reads {}; stop it, then open again", path.display(), recovered.0, newer(*base))]
    ReaderAhead {
        /// The file.
        path: PathBuf,
        /// Who it is.
        holder: String,
        /// The checkpoint that it reads; `None` if it is choosing one just now.
        base: Option<CheckpointNumber>,
        /// The checkpoint that could be recovered.
        recovered: CheckpointNumber,
    },

    /// The folder beside the store, in which readers say what they need, cannot serve.
    #[error("readers beside {} cannot be kept account of: {reason}", path.display())]
    SideFolder {
        /// The store's file.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },

    /// A reader is used in a child of the process that opened it. What it pins belongs to the parent; open the store
    /// anew in the child.
    #[error("the reader of {} was opened by the parent of this process; open the store anew in the child", path.display())]
    Forked {
        /// The store's file.
        path: PathBuf,
    },

    /// The file was written in a format version this build does not know.
    #[error("{} has format version {found}, this build knows {supported}; use a newer Vellum", path.display())]
    UnsupportedVersion {
        /// The file.
        path: PathBuf,
        /// The file's version.
        found: u32,
        /// The newest version this build knows.
        supported: u32,
    },

    /// The file uses features this build does not know.
    #[error("{} needs features {bits:#x} that this build does not know; use a newer Vellum", path.display())]
    UnsupportedFeatures {
        /// The file.
        path: PathBuf,
        /// The unknown bits.
        bits: u64,
    },

    /// The store belongs to another application, by its application id or version.
    #[error("{} belongs to application {found:#010x}, not {expected:#010x}", path.display())]
    WrongApplication {
        /// The file.
        path: PathBuf,
        /// The id that the options ask for.
        expected: u32,
        /// The id in the store.
        found: u32,
    },

    /// The store may not grow, or the disk is full. The commit that met this changed nothing; once space or pages are
    /// freed the same pager commits again.
    #[error("no space: {needed_blocks} blocks of 4 KiB needed, {free_blocks} free in {}; free pages or disk space", path.display())]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Blocks that were asked for, with what must stay in reserve.
        needed_blocks: u64,
        /// Blocks that are free in the file.
        free_blocks: u64,
    },

    /// An earlier write or sync failed, so what is durable is unknown until the store is opened again. Reads go on.
    #[error("writing to {} is refused since an earlier failure ({reason}); reads go on, reopen to recover", path.display())]
    Poisoned {
        /// The file.
        path: PathBuf,
        /// The first failure.
        reason: String,
    },

    /// Space that a caller names is not reserved any more.
    #[error("{extent} are not reserved: they were given back, or a commit took them; reserve space anew")]
    NotReserved {
        /// The blocks.
        extent: Extent,
    },

    /// The commit's fate is not known until the store is opened again: it is there whole, or not at all.
    #[error("the fate of {generation} is unknown until the store is reopened: {source}")]
    CommitUnknown {
        /// The commit's generation.
        generation: Generation,
        /// What failed.
        source: Box<Error>,
    },

    /// The id names no page that is allocated in this state.
    #[error("page {page} is not allocated")]
    PageNotFound {
        /// The page.
        page: PageId,
    },

    /// The page is borrowed by another guard of the same transaction in a way that excludes this one.
    #[error("page {page} is borrowed by another guard of this transaction")]
    PageBorrowed {
        /// The page.
        page: PageId,
    },

    /// A range goes beyond the page's end.
    #[error("bytes {offset}+{length} lie outside of page {page}")]
    OutOfPage {
        /// The page.
        page: PageId,
        /// Where the range starts in the page.
        offset: u64,
        /// The range's length in bytes.
        length: u64,
    },

    /// A page is larger than what may be held in memory at once; use `read_at` and `write_at`.
    #[error("page {page} exceeds the memory budget as a whole; use read_at and write_at")]
    PageExceedsBudget {
        /// The page.
        page: PageId,
    },

    /// The user header is larger than the superblock holds.
    #[error("a header of {length} bytes exceeds the {limit} that the superblock holds")]
    HeaderTooLarge {
        /// Bytes given.
        length: usize,
        /// Bytes that fit.
        limit: usize,
    },

    /// A snapshot's or bookmark's name is empty, too long, or taken.
    #[error("{name:?} cannot name a snapshot: {reason}")]
    InvalidName {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },

    /// There is no snapshot of that name.
    #[error("there is no snapshot {name:?}")]
    SnapshotNotFound {
        /// The name.
        name: String,
    },

    /// A counter of the store has come to its end.
    #[error("the store's {counter} counter is exhausted")]
    Exhausted {
        /// Which counter: `generation`, `page index`, …
        counter: &'static str,
    },

    /// An option has a value that cannot work.
    #[error("option {option}: {reason}")]
    InvalidOption {
        /// The option.
        option: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// An allocation strategy proposed what it may not propose. Nothing was allocated.
    #[error("the allocation strategy {name} proposed {extent}: {reason}")]
    BadStrategy {
        /// The strategy.
        name: &'static str,
        /// What it proposed.
        extent: Extent,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// Blocks were to be taken or released that are so already: two structures claim them.
    #[error("{extent}: {reason}")]
    Overlap {
        /// The blocks.
        extent: Extent,
        /// What they are: `in use already`, `free already`, …
        reason: &'static str,
    },

    /// The bitmap does not have as many free blocks as the store says.
    #[error("the bitmap has {found} free blocks, the store says {expected}")]
    FreeCount {
        /// What the store says.
        expected: u64,
        /// What the bits give.
        found: u64,
    },

    /// The savepoint belongs to another transaction, or the transaction went back to an older one.
    #[error("the savepoint belongs to another transaction, or it was undone with an older one")]
    SavepointNotFound,

    /// The memory budget is smaller than what was asked for at once.
    #[error("a memory budget of {budget_bytes} bytes cannot hold {needed_bytes}; give a larger one")]
    BudgetTooSmall {
        /// The budget.
        budget_bytes: usize,
        /// What it would have to be at least.
        needed_bytes: usize,
    },

    /// The memory budget is used up by what cannot be evicted. Once some of it is given up, the same call works.
    #[error("no {needed_bytes} bytes are left of a memory budget of {budget_bytes}: {}", listed(held_by))]
    BudgetExhausted {
        /// What was asked for.
        needed_bytes: usize,
        /// The budget.
        budget_bytes: usize,
        /// Who holds how much, the most first.
        held_by: Vec<Holder>,
    },

    /// Within a scope: the page has to be loaded first. To be passed on by `?`; the scope loads it and runs again.
    #[error("page {page} is not in memory; pass this error on, and the scope runs again")]
    PageNotInMemory {
        /// The page.
        page: PageId,
    },

    /// The swip was followed in another store, and means nothing in this one.
    #[error("the swip was followed in another store, and means no page of this one")]
    SwipOfAnotherStore,

    /// A scratch page is borrowed by a guard that excludes this one.
    #[error("scratch page {number} is borrowed by another guard; drop that one first")]
    ScratchBorrowed {
        /// The page's number.
        number: u64,
    },

    /// Memory is used up, and the temporary file of scratch pages may not grow. Nothing is lost; once scratch pages are
    /// dropped, the same call works.
    #[error("scratch pages in {} fill their limit of {limit_bytes} bytes, and {needed_bytes} more are needed; drop some, or raise the limit", folder.display())]
    ScratchFull {
        /// The folder of the temporary file.
        folder: PathBuf,
        /// The bound.
        limit_bytes: u64,
        /// What was to be written.
        needed_bytes: u64,
    },

    /// What the temporary file holds of a scratch page is not what was written there.
    #[error("scratch page {number} is damaged in its temporary file in {} at byte {offset}", folder.display())]
    ScratchDamaged {
        /// The folder of the temporary file.
        folder: PathBuf,
        /// The page's number.
        number: u64,
        /// Where in the file the page begins.
        offset: u64,
    },

    /// The pager was closed.
    #[error("the pager is closed")]
    Closed,

    /// Another transaction is open, and the caller did not want to wait.
    #[error("another transaction is open")]
    Busy,

    /// Another transaction changed, since this one began, what this one is about to change (or, where it is
    /// serializable, has read); or it is about to. Drop the transaction and begin again.
    #[error("conflict: another transaction {} {on}", if *open { "is changing" } else { "has changed" })]
    Conflict {
        /// What both want.
        on: Contended,
        /// Whether the other one is still open: it may abort.
        open: bool,
    },

    /// The view's deadline is over: what it held is let go.
    #[error("the view of {generation} is beyond its deadline; open another one")]
    ViewExpired {
        /// The view's generation.
        generation: Generation,
    },

    /// Not committed, since a commit that it was built on was not committed. Begin again.
    #[error("not committed: a commit that it was built on failed ({reason})")]
    PredecessorFailed {
        /// What that one failed with.
        reason: String,
    },
}

/// What transactions can be in each other's way for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Contended {
    /// A page.
    Page(PageId),
    /// The user header.
    Header,
    /// Which pages of a size class are allocated.
    Allocation(SizeClass),
}

impl std::fmt::Display for Contended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Page(page) => write!(f, "page {page}"),
            Self::Header => f.write_str("the user header"),
            Self::Allocation(class) => write!(f, "which pages of {} bytes there are", class.page_bytes()),
        }
    }
}

/// Who holds a part of the memory budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// What or who: `guards`, `private frames`, or the owner that a reservation was made for.
    pub what: String,
    /// How much.
    pub bytes: usize,
}

/// Bytes that are not what Vellum wrote: which structure, where, of which page, and what is wrong with them.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: corrupt {structure}{} at byte {offset}: {fault}", path.display(), of_page(*page))]
pub struct Corruption {
    /// The file.
    pub path: PathBuf,
    /// The structure that was read.
    pub structure: Structure,
    /// The page it belongs to, where it belongs to one.
    pub page: Option<PageId>,
    /// The structure's byte offset in the file.
    pub offset: u64,
    /// What is wrong.
    pub fault: Fault,
}

/// A structure of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Structure {
    /// A superblock.
    Superblock,
    /// A node of a page map.
    MapNode,
    /// A node of a large page's tree of chunks.
    ChunkNode,
    /// A node or a leaf of the bitmap.
    Bitmap,
    /// A node or an entry of the catalogue of snapshots and bookmarks.
    Catalogue,
    /// A node or a leaf of the deferred list.
    DeferredList,
    /// A record of the log.
    Record,
    /// The bytes of a page, or of a chunk of one.
    Page,
    /// The file as a whole.
    File,
}

impl std::fmt::Display for Structure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Superblock => "superblock",
            Self::MapNode => "map node",
            Self::ChunkNode => "chunk node",
            Self::Bitmap => "bitmap",
            Self::Catalogue => "catalogue",
            Self::DeferredList => "deferred list",
            Self::Record => "log record",
            Self::Page => "page",
            Self::File => "file",
        })
    }
}

/// What is wrong with a structure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The checksum that the parent holds does not fit the bytes.
    #[error("its checksum is {found:#010x}, its parent says {expected:#010x}")]
    Checksum {
        /// What the parent says.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
    /// A field has a value that it cannot have.
    #[error("{field} is {found}, expected {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// The value it should have, or its upper bound.
        expected: u64,
        /// The value it has.
        found: u64,
    },
    /// The seal over a record and its pages does not fit.
    #[error("its seal does not fit")]
    Seal,
    /// The structure lies outside of the file.
    #[error("it lies beyond the file's end at byte {file_bytes}")]
    Truncated {
        /// The file's length.
        file_bytes: u64,
    },
    /// A stored page does not decode to exactly one page.
    #[error("it does not decode: {0}")]
    Undecodable(&'static str),
    /// A pointer names a codec that this build does not have.
    #[error("codec {number} is none that this build has; use a newer Vellum, or one with that codec's feature")]
    UnknownCodec {
        /// The codec's number.
        number: u8,
    },
    /// Two structures claim the same blocks.
    #[error("its blocks belong to something else too")]
    Overlap,
    /// An acknowledged commit is missing from the log.
    #[error("{missing} was durable, and cannot be read (the log ends at {last})")]
    MissingGeneration {
        /// The first generation that is missing.
        missing: Generation,
        /// The last generation found.
        last: Generation,
    },
    /// No superblock is valid.
    #[error("no superblock is valid")]
    NoSuperblock,
    /// Something else, said in words.
    #[error("{0}")]
    Other(&'static str),
}

impl Error {
    /// Whether bytes of the file are damaged.
    pub fn is_corruption(&self) -> bool {
        matches!(self, Self::Corrupt(_))
    }

    /// Whether space is what is lacking: on the disk, under a quota, or under a limit on the length of files.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Io { source, .. } => {
                use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
                matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge)
            }
            _ => false,
        }
    }
}

impl Error {
    /// The same error for another one who waited for the same thing.
    pub(crate) fn copy(&self) -> Self {
        match self {
            Self::Io { operation, path, offset, source } => {
                Self::Io { operation, path: path.clone(), offset: *offset, source: copy_of(source) }
            }
            Self::Memory { operation, bytes, source } => {
                Self::Memory { operation, bytes: *bytes, source: copy_of(source) }
            }
            Self::Corrupt(corruption) => Self::Corrupt(corruption.clone()),
            Self::PageNotFound { page } => Self::PageNotFound { page: *page },
            Self::PageExceedsBudget { page } => Self::PageExceedsBudget { page: *page },
            Self::BudgetTooSmall { budget_bytes, needed_bytes } => {
                Self::BudgetTooSmall { budget_bytes: *budget_bytes, needed_bytes: *needed_bytes }
            }
            Self::BudgetExhausted { needed_bytes, budget_bytes, held_by } => Self::BudgetExhausted {
                needed_bytes: *needed_bytes,
                budget_bytes: *budget_bytes,
                held_by: held_by.clone(),
            },
            Self::Poisoned { path, reason } => Self::Poisoned { path: path.clone(), reason: reason.clone() },
            Self::Closed => Self::Closed,
            // What loading a page does not fail with.
            other => Self::Io {
                operation: "load",
                path: PathBuf::new(),
                offset: None,
                source: io::Error::other(other.to_string()),
            },
        }
    }
}

/// The system's error number, or kind and text.
fn copy_of(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

fn listed(held_by: &[Holder]) -> String {
    let parts: Vec<String> = held_by.iter().map(|holder| format!("{} {}", holder.what, holder.bytes)).collect();
    parts.join(", ")
}

impl From<Corruption> for Error {
    fn from(corruption: Corruption) -> Self {
        Self::Corrupt(Box::new(corruption))
    }
}

fn at(offset: Option<u64>) -> String {
    offset.map(|offset| format!(" at byte {offset}")).unwrap_or_default()
}

fn what_to_do(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => "; check the path, or create the store there",
        io::ErrorKind::PermissionDenied => "; check the permissions of the file and of its folder",
        io::ErrorKind::StorageFull => "; free space on the disk",
        io::ErrorKind::QuotaExceeded => "; free space under the quota",
        io::ErrorKind::FileTooLarge => "; raise the limit on the length of files (`ulimit -f`), or of the file system",
        _ => "",
    }
}

fn what_limits_memory(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::OutOfMemory => " (see `ulimit -v`, `ulimit -d`, vm.overcommit_memory and vm.max_map_count)",
        _ => "",
    }
}

fn newer(base: Option<CheckpointNumber>) -> String {
    base.map_or_else(|| "one that may be newer".to_owned(), |base| format!("checkpoint {}", base.0))
}

fn of_page(page: Option<PageId>) -> String {
    page.map(|page| format!(" of page {page}")).unwrap_or_default()
}
