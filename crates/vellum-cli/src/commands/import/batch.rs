//! Batches: what is committed together, and what is told once it is durable.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vellum::{BLOCK_BYTES, PageId, Pager, SizeClass, Transaction};

use super::failed;
use crate::commands::{JsonPath, counted};
use crate::failure::Result;
use crate::output::{Format, Output};
use crate::tree::{Catalogue, Entry, TreeError};

/// Bytes of pages in a commit, at most.
pub(super) const BATCH_BYTES: u64 = 64 << 20;
/// What one more entry may add to the catalogue's share: leaves that are split, a longer list of them.
const SLACK_BYTES: u64 = 64 << 10;
/// Entries that are put or removed in a commit, at most: they cost memory even if they have no bytes.
const BATCH_ENTRIES: usize = 1 << 16;

/// The transaction that is open, the catalogue, and what is to be told of it.
pub(super) struct Batch<'a> {
    pager: Pager,
    output: &'a Output,
    store: PathBuf,
    transaction: Option<Transaction>,
    catalogue: Catalogue,
    /// Bytes of files' pages in this batch.
    bytes: u64,
    changes: Vec<Told>,
    committed: u64,
    stored: u64,
    removed: u64,
}

/// A change that is told once it is durable.
struct Told {
    verb: &'static str,
    path: Vec<u8>,
}

#[derive(Serialize)]
struct Acknowledged {
    batch: u64,
    generation: u64,
    /// Entries stored and removed by this import so far.
    stored: u64,
    removed: u64,
    /// Entries that the store has now.
    entries: u64,
    /// The sum of their lengths.
    bytes: u64,
}

#[derive(Serialize)]
struct Changed<'a> {
    verb: &'a str,
    #[serde(flatten)]
    path: JsonPath,
}

impl<'a> Batch<'a> {
    pub(super) fn new(pager: Pager, output: &'a Output, store: &Path) -> Result<Self> {
        let catalogue = Catalogue::load(&pager.view()).map_err(|error| tree_failed(store, &error))?;
        Ok(Self {
            pager,
            output,
            store: store.to_owned(),
            transaction: None,
            catalogue,
            bytes: 0,
            changes: Vec::new(),
            committed: 0,
            stored: 0,
            removed: 0,
        })
    }

    pub(super) fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// How many batches were committed.
    pub(super) fn committed(&self) -> u64 {
        self.committed
    }

    /// How many entries the catalogue has, and the sum of their lengths in bytes.
    pub(super) fn holds(&self) -> (u64, u64) {
        (self.catalogue.summary().entries, self.catalogue.summary().bytes)
    }

    /// Makes room for `page_bytes` more bytes of pages and an entry, by a commit if need be.
    pub(super) fn ensure_room(&mut self, page_bytes: u64) -> Result<()> {
        let bytes = self.bytes + with_nodes(page_bytes) + self.catalogue.changed_bytes() + SLACK_BYTES;
        match bytes > BATCH_BYTES || self.changes.len() >= BATCH_ENTRIES {
            true => self.finish(),
            false => Ok(()),
        }
    }

    pub(super) fn allocate(&mut self, class: SizeClass) -> Result<PageId> {
        let page = self.with(|transaction| transaction.allocate(class))?;
        self.catalogue.begin_page(page);
        Ok(page)
    }

    /// Writes a piece of a page for which there is room.
    pub(super) fn write(&mut self, page: PageId, offset: u64, bytes: &[u8]) -> Result<()> {
        self.bytes += with_nodes(page.class().page_bytes().min(SizeClass::CHUNK.page_bytes()));
        self.with(|transaction| match page.class().is_chunked() {
            true => transaction.write_at(page, offset, bytes),
            false => {
                transaction.overwrite(page)?[offset as usize..][..bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
        })
    }

    /// Frees pages that no entry will name.
    pub(super) fn abandon(&mut self, pages: &[PageId]) -> Result<()> {
        for page in pages {
            self.with(|transaction| transaction.free(*page))?;
            self.catalogue.end_page(*page);
        }
        Ok(())
    }

    /// Frees what an import that was cut short left unfinished.
    pub(super) fn free_unfinished(&mut self) -> Result<()> {
        let pages = self.catalogue.unfinished();
        self.abandon(&pages)
    }

    /// Names an entry's pages, and frees those of the entry that it replaces.
    pub(super) fn put(&mut self, entry: Entry) -> Result<()> {
        entry.pages().iter().for_each(|page| self.catalogue.end_page(*page));
        self.stored += 1;
        self.changes.push(Told { verb: "stored", path: entry.path.clone() });
        let kept = entry.pages().to_vec();
        match self.catalogue.put(entry) {
            Some(old) if old.pages() != kept => self.free_pages(&old),
            _ => self.with(|_| Ok(())),
        }
    }

    pub(super) fn remove(&mut self, path: &[u8]) -> Result<()> {
        let Some(old) = self.catalogue.remove(path) else { return Ok(()) };
        self.removed += 1;
        self.changes.push(Told { verb: "removed", path: old.path.clone() });
        self.free_pages(&old)
    }

    fn free_pages(&mut self, entry: &Entry) -> Result<()> {
        self.with(|transaction| entry.pages().iter().try_for_each(|page| transaction.free(*page)))
    }

    /// Calls the open transaction, after opening one if there is none.
    fn with<R>(&mut self, call: impl FnOnce(&Transaction) -> vellum::Result<R>) -> Result<R> {
        let begun = match self.transaction.take() {
            Some(transaction) => Ok(transaction),
            None => self.pager.begin(),
        };
        begun
            .and_then(|transaction| call(self.transaction.insert(transaction)))
            .map_err(|error| failed(&self.store, &error))
    }

    /// Commits what there is, and tells of it.
    pub(super) fn finish(&mut self) -> Result<()> {
        let Some(transaction) = self.transaction.take() else { return Ok(()) };
        self.catalogue.save(&transaction).map_err(|error| tree_failed(&self.store, &error))?;
        let committed = transaction.commit().map_err(|error| failed(&self.store, &error))?;
        self.committed += 1;
        self.bytes = 0;
        self.tell(committed.generation.0)
    }

    /// Says what is durable now, and makes sure that it is heard before anything else can happen.
    fn tell(&mut self, generation: u64) -> Result<()> {
        let changes = std::mem::take(&mut self.changes);
        let (format, verbosity) = (self.output.format, self.output.verbosity);
        let each = if verbosity >= 2 || (format == Format::Json && verbosity >= 1) { &changes[..] } else { &[] };
        for Told { verb, path } in each {
            match format {
                Format::Json => self.output.json("change", &Changed { verb, path: JsonPath::of(path) })?,
                Format::Text => {
                    self.output.bytes(verb.as_bytes())?;
                    self.output.bytes(b" ")?;
                    self.output.name(path)?;
                    self.output.bytes(b"\n")?;
                }
            }
        }
        let (entries, bytes) = self.holds();
        let (stored, removed) = (self.stored, self.removed);
        let told = Acknowledged { batch: self.committed, generation, stored, removed, entries, bytes };
        match format {
            Format::Json => self.output.json("batch", &told)?,
            Format::Text if verbosity >= 1 => self.output.line(format_args!(
                "batch {}: generation {generation}, {} and {bytes} bytes durable",
                self.committed,
                counted(entries, "entry"),
            ))?,
            Format::Text => {}
        }
        self.output.flush()
    }
}

/// A piece of a page, with the nodes that lead to it: two blocks for a chunk are ample.
fn with_nodes(page_bytes: u64) -> u64 {
    if page_bytes < SizeClass::CHUNK.page_bytes() { page_bytes } else { page_bytes + 2 * BLOCK_BYTES }
}

fn tree_failed(store: &Path, error: &TreeError) -> crate::failure::Failure {
    error.failure(format_args!("cannot import into {}", store.display()))
}
