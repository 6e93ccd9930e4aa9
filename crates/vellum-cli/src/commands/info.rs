//! `vellum info`.

use std::path::PathBuf;

use serde::Serialize;
use vellum::format::{FEATURES_INCOMPATIBLE_KNOWN, Superblock};
use vellum::store::storage;
use vellum::{BLOCK_BYTES, Error, SizeClass};

use super::Stored;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::{Format, Output};
use crate::progress::human_bytes;
use crate::survey::{Head, Survey};
use crate::tree;

/// Tell what a store is, from its superblocks and its log
///
/// Nothing is written, and damaged stores are shown as far as they can be read.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store
    store: PathBuf,
    /// What the pages take on disk, by how they are stored; reads the page maps, whole
    #[arg(long)]
    storage: bool,
}

#[derive(Serialize)]
struct Info {
    path: String,
    store: String,
    format_version: u32,
    application_id: u32,
    application_version: u32,
    checkpoint: u64,
    folded_generation: u64,
    generation: u64,
    synced_generation: u64,
    log_records: u64,
    file_bytes: u64,
    free_bytes: u64,
    superblock_copies_valid: usize,
    superblock_copies: usize,
    log_segments: usize,
    log_bytes: u64,
    /// `null` where the catalogue cannot be read.
    catalogue_entries: Option<u64>,
    classes: Vec<Class>,
    #[serde(skip_serializing_if = "Option::is_none")]
    storage: Option<Vec<Stored>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tree: Option<Files>,
    /// `null` where the file system has no locks.
    open_for_writing: Option<bool>,
}

/// A size class in use.
#[derive(Serialize)]
struct Class {
    page_bytes: u64,
    /// One more than the highest page index ever used.
    indices: u64,
}

#[derive(Serialize)]
struct Files {
    entries: u64,
    bytes: u64,
}

impl Arguments {
    pub(crate) fn run(&self, output: &Output) -> Result<Exit> {
        let what = format!("cannot tell what {} is", self.store.display());
        let failed = |error: Error| Failure::store(&what, &error);
        let survey = Survey::of(&self.store).map_err(failed)?;
        let Some(superblock) = survey.newest() else { return Err(no_superblock(&what, &survey)) };
        if superblock.version != vellum::format::VERSION {
            let (path, found) = (self.store.clone(), superblock.version);
            let error = Error::UnsupportedVersion { path, found, supported: vellum::format::VERSION };
            return Err(failed(error));
        }
        let bits = superblock.features_incompatible & !FEATURES_INCOMPATIBLE_KNOWN;
        if bits != 0 {
            return Err(failed(Error::UnsupportedFeatures { path: self.store.clone(), bits }));
        }
        let head = survey.head(superblock).map_err(failed)?;
        let mut info = self.gather(&survey, superblock, &head);
        if self.storage {
            let shares = storage(&head.nodes, &head.maps).map_err(failed)?;
            info.storage = Some(shares.iter().map(|(codec, share)| Stored::of(*codec, share)).collect());
        }
        match output.format {
            Format::Json => output.json("info", &info)?,
            Format::Text => tell(output, &info)?,
        }
        Ok(Exit::DONE)
    }

    fn gather(&self, survey: &Survey, superblock: &Superblock, head: &Head) -> Info {
        let summary = tree::summary_of(&head.header);
        let is_tree = superblock.application_id == tree::APPLICATION || !head.header.is_empty();
        Info {
            path: self.store.display().to_string(),
            store: superblock.store.to_string(),
            format_version: superblock.version,
            application_id: superblock.application_id,
            application_version: superblock.application_version,
            checkpoint: superblock.checkpoint.0,
            folded_generation: superblock.generation.0,
            generation: head.generation.0,
            synced_generation: head.synced.0,
            log_records: head.records,
            file_bytes: survey.file_bytes,
            free_bytes: superblock.blocks_free * BLOCK_BYTES,
            superblock_copies_valid: survey.copies.iter().filter(|copy| copy.content.is_ok()).count(),
            superblock_copies: survey.copies.len(),
            log_segments: superblock.segments.len(),
            log_bytes: superblock.segments.iter().map(|segment| segment.extent.length_bytes()).sum(),
            catalogue_entries: survey.catalogue_entries(superblock).ok(),
            classes: SizeClass::all()
                .map(|class| Class { page_bytes: class.page_bytes(), indices: head.maps[class.index()].length() })
                .filter(|class| class.indices > 0)
                .collect(),
            storage: None,
            tree: summary.filter(|_| is_tree).map(|summary| Files { entries: summary.entries, bytes: summary.bytes }),
            open_for_writing: survey.is_locked().ok(),
        }
    }
}

/// The failure of a look at a store that has lost every superblock.
pub(super) fn no_superblock(what: &str, survey: &Survey) -> Failure {
    let copies = survey.copies.iter().filter_map(|copy| {
        let fault = copy.content.as_ref().err()?;
        Some(format!("{} {fault}", copy.block))
    });
    let why = format!("no superblock is valid: {}", copies.collect::<Vec<_>>().join("; "));
    Failure::new(Exit::CORRUPT, what, why, "restore the store from a backup")
}

fn tell(output: &Output, info: &Info) -> Result<()> {
    let line = |name: &str, value: String| output.line(format_args!("{name:<14} {value}"));
    line("path", info.path.clone())?;
    line("store", format!("{}, format version {}", info.store, info.format_version))?;
    line("application", format!("{:#010x}, version {}", info.application_id, info.application_version))?;
    line(
        "generation",
        format!(
            "{} (checkpoint {} at {}, then {} in the log, durable at least up to {})",
            info.generation,
            info.checkpoint,
            info.folded_generation,
            super::counted(info.log_records, "record"),
            info.synced_generation
        ),
    )?;
    line("file", format!("{}, {} free at the checkpoint", human_bytes(info.file_bytes), human_bytes(info.free_bytes)))?;
    line("superblocks", format!("{} of {} copies valid", info.superblock_copies_valid, info.superblock_copies))?;
    line("log", format!("{}, {}", super::counted(info.log_segments as u64, "segment"), human_bytes(info.log_bytes)))?;
    let catalogue = info.catalogue_entries.map_or("not readable".to_owned(), |count| count.to_string());
    line("snapshots", format!("{catalogue} (bookmarks included)"))?;
    for class in &info.classes {
        line("pages", format!("up to {} of {}", class.indices, human_bytes(class.page_bytes)))?;
    }
    for share in info.storage.iter().flatten() {
        line(
            "stored",
            format!(
                "{}: {} of {}, in {}",
                share.codec,
                super::counted(share.units, "unit"),
                human_bytes(share.page_bytes),
                human_bytes(share.stored_bytes)
            ),
        )?;
    }
    if let Some(files) = &info.tree {
        line("tree", format!("{}, {}", super::counted(files.entries, "entry"), human_bytes(files.bytes)))?;
    }
    let lock = match info.open_for_writing {
        Some(true) => "open for writing elsewhere",
        Some(false) => "not open for writing",
        None => "unknown: the file system has no locks",
    };
    line("lock", lock.to_owned())
}
