//! Memory from the system itself: its permissions are types, it grows without being copied, and it can be given back.
//!
//! | | what it is | what for |
//! | --- | --- | --- |
//! | [`Pages`] | memory in whole OS pages, readable, writable and executable as its type says; or a file, for reading | private buffers, generated code, mapped files |
//! | [`PagedVec`] | a vector on such memory | many elements |
//! | [`Reservation`] | addresses that become memory as they are touched | the buffer pools |
//!
//! All of it rests on `Mapping`: a run of OS pages with one owner, the only place that asks the system for memory. The
//! room knows nothing of stores. Its callers: `buffer` (pools), `reader` (mapped files), and users of the crate.
//!
//! # Invariants
//!
//! - **M1** A mapping consists of whole OS pages from a start that is a multiple of the OS page (which may be 4, 16 or
//!   64 KiB). It has one owner; nobody else unmaps, moves or protects any of them.
//! - **M2** Memory allows what its type says: `Pages` by its marks, `PagedVec` and `Reservation` reading and writing.
//!   Permissions change only through a value that is consumed, so no reference is left that relied on the old ones.
//! - **M3** Memory is never writable and executable at the same time, but with the feature `write-exec`: such a
//!   combination of marks is not a [`Permissions`].
//! - **M4** Anonymous memory is zero until it is written, and zero again after it was given back: it is always
//!   initialised, and never shows what another process left.
//! - **M5** References into memory borrow its owner: shared ones for reading, exclusive ones for writing, resizing and
//!   giving back.
//! - **M6** A mapped file neither changes nor shrinks: what the caller of [`Pages::map`] promises.
//! - **M7** A [`Reservation`] gives out addresses only. Which bytes are used by whom is the pool's affair, and M5 for
//!   them its promise.
//!
//! The vector adds V1 and V2, in its own file. `mapping` upholds M1 and M4, `pages` M2 and M5, `protection` M3.
//!
//! # When the system says no
//!
//! Every refusal is an [`Error::Memory`](crate::Error::Memory) that says what was tried, on how many bytes, and which
//! limits to look at; only where `Vec` has no way to say so either does [`PagedVec`] end the process. A change of
//! permission that fails may have changed a part of the pages, so the memory is given back rather than handed out with
//! a type that may be untrue (M2). Where a refusal costs nothing but speed (huge pages, an alignment that would suit
//! them) there is none.
//!
//! # Huge pages
//!
//! A page fault for each 4 KiB is what most of the time goes into when much memory is first used, and misses of the TLB
//! what random access waits for; both are mended by huge pages. With the system's setting `madvise`, memory gets them
//! if it asks and starts at their boundary. So mappings that have room for one are aligned for it, [`PagedVec`] asks
//! from two of them on, and [`Pages`] and [`Reservation`] leave the choice to [`Hint::HugePages`].
//!
//! # Threads
//!
//! All types are `Send` and `Sync` as far as their elements are. Nothing here locks, and no call blocks but on the
//! system's own locks for the process's memory map.
//!
//! # Other systems than Linux
//!
//! A vector that grows copies its elements; [`Hint::HugePages`], [`Hint::SmallPages`] and [`Hint::Populate`] are
//! refused. All else is the same.

mod file;
mod fork;
#[cfg(feature = "exec")]
mod function;
mod hint;
mod mapping;
mod must_not_compile;
mod pages;
mod protection;
mod reservation;
#[cfg(test)]
mod tests;
mod vector;

pub use file::{GrowingFile, MappedFile};
pub use fork::ForkMark;
#[cfg(feature = "exec")]
pub use function::{CFunction, Function};
pub use hint::{Hint, HugePageSetting, huge_page_bytes, page_bytes};
pub use pages::{Anonymous, Backing, Pages};
pub use protection::{
    AllowExec, AllowRead, AllowWrite, DenyExec, DenyRead, DenyWrite, ExecMark, Permissions, ReadMark, WriteMark,
};
pub use reservation::Reservation;
pub use vector::{Drain, IntoIter, PagedVec};
