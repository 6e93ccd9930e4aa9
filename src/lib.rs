//! Vellum: a crash-consistent page store in one file.
//!
//! A [`Pager`] opens the file. A [`Transaction`] allocates, changes and frees pages of 4 KiB to 2 GiB, and its commit
//! is atomic and durable. A [`View`] is a committed state that stays as it is. A page has a stable [`PageId`]; 1024 bytes
//! of header are the database's own root.
//!
//! ```
//! use vellum::{Options, Pager, Read, SizeClass};
//!
//! # fn main() -> vellum::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("accounts.vellum");
//! let pager = Pager::create(&path, &Options::new())?;
//!
//! let transaction = pager.begin()?; // one at a time; dropped, it changes nothing
//! let id = transaction.allocate(SizeClass::of(16 << 10).unwrap())?; // 16 KiB of zeros
//! transaction.write(id)?[..5].copy_from_slice(b"hello");
//! transaction.set_header(&id.to_bytes())?; // atomic with the rest
//! transaction.commit()?; // durable
//!
//! let view = pager.view(); // never waits, and nobody waits for it
//! assert_eq!(view.page(id)?[..5], *b"hello");
//! assert_eq!(view.scope(|scope| Ok(scope.page(id)?[0]))?, b'h');
//! let mut part = [0; 4];
//! view.read_at(id, 1, &mut part)?; // a part of a page, of whatever size
//! assert_eq!(part, *b"ello");
//! drop(view);
//! pager.close()?;
//!
//! let pager = Pager::open(&path, &Options::new())?; // recovers, if it must
//! let id = vellum::PageId::from_bytes(pager.view().header()[..].try_into().unwrap()).unwrap();
//! assert_eq!(pager.view().page(id)?[..5], *b"hello");
//! # Ok(())
//! # }
//! ```

mod error;
mod id;
mod lock;

pub mod buffer;
pub mod disk;
pub mod format;
pub mod log;
pub mod map;
pub mod memory;
pub mod pager;
pub mod process;
pub mod reader;
pub mod space;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use error::{Contended, Corruption, Error, Fault, Holder, Result, Structure};
pub use format::{CodecId, Compression};
pub use id::{
    BLOCK_BYTES, BLOCK_LENGTH, Block, CheckpointNumber, Extent, Generation, Incarnation, PageId, SizeClass, StoreId,
};
pub use pager::{
    Access, Background, Event, Isolation, Listener, Options, PageGuard, PageMut, Pager, Pin, PinKind, Read, Readers,
    Savepoint, Scope, Stats, Ticket, Transaction, View,
};
pub use reader::{ReadOnlyPager, ReaderOptions, ReaderScope, ReaderView, Refreshed, Standing, Writers};
pub use store::{
    CheckpointReport, ClassStorage, Committed, Counters, Durability, Finding, MoveReport, NewSpace, RecoveryReport,
    Severity, Share, Status, VerifyLevel, VerifyReport,
};

/// The example of README.md, so that it compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ExampleOfTheReadme;
