//! `vellum stat`.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use vellum::process::{self, ReaderEntry};
use vellum::{BLOCK_BYTES, ClassStorage, Error, ReadOnlyPager, ReaderOptions};

use super::counted;
use super::info::no_superblock;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::{Format, Output};
use crate::progress::human_bytes;
use crate::survey::Survey;

/// Count what a store holds: pages, free space, log, snapshots, and who holds old states
///
/// The store is opened as a reader does, beside a writer if there is one. The page maps are read, whole; pages are not.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store
    store: PathBuf,
}

#[derive(Serialize)]
struct Stat {
    path: String,
    generation: u64,
    file_bytes: u64,
    classes: Vec<Class>,
    /// Of all classes.
    pages: u64,
    page_bytes: u64,
    stored_bytes: u64,
    /// At the newest checkpoint.
    free_bytes: u64,
    segments: u64,
    /// Of these, those that are wholly free at the newest checkpoint; `null` if the bitmap cannot be read.
    segments_free: Option<u64>,
    segment_bytes: u64,
    log_segments: u64,
    log_bytes: u64,
    checkpoint: u64,
    /// Commits after the newest checkpoint.
    checkpoint_lag: u64,
    snapshots: Vec<Snapshot>,
    readers: Vec<Reader>,
}

/// The pages of a size class.
#[derive(Serialize)]
struct Class {
    class_bytes: u64,
    pages: u64,
    page_bytes: u64,
    stored_bytes: u64,
}

#[derive(Serialize)]
struct Snapshot {
    name: String,
    kind: &'static str,
    generation: u64,
}

#[derive(Serialize)]
struct Reader {
    process: u32,
    name: String,
    /// The oldest generation that it pins; `null` if it pins none, or is choosing one.
    oldest_generation: Option<u64>,
    choosing: bool,
    /// Seconds since it came; `null` where that is not known.
    age_seconds: Option<u64>,
    /// What its states keep from being used again.
    held_bytes: Option<u64>,
}

impl Arguments {
    pub(crate) fn run(&self, output: &Output) -> Result<Exit> {
        let what = format!("cannot tell what is in {}", self.store.display());
        let failed = |error: Error| Failure::store(&what, &error);
        // Who reads beside us: we are one of them from the next line on.
        let readers = process::readers(&self.store).map_err(failed)?;
        let pager = ReadOnlyPager::open(&self.store, &ReaderOptions::new().name("vellum stat")).map_err(failed)?;
        let view = pager.view().map_err(failed)?;
        let survey = Survey::of(&self.store).map_err(failed)?;
        let Some(superblock) = survey.newest() else { return Err(no_superblock(&what, &survey)) };
        let classes: Vec<Class> = view.classes().map_err(failed)?.iter().map(Class::of).collect();
        let sum = |part: fn(&Class) -> u64| classes.iter().map(part).sum::<u64>();
        let segment_bytes = u64::from(vellum::space::SEGMENT_BLOCKS) * BLOCK_BYTES;
        let generation = pager.generation().0;
        let stat = Stat {
            path: self.store.display().to_string(),
            generation,
            file_bytes: survey.file_bytes,
            pages: sum(|class| class.pages),
            page_bytes: sum(|class| class.page_bytes),
            stored_bytes: sum(|class| class.stored_bytes),
            classes,
            free_bytes: superblock.blocks_free * BLOCK_BYTES,
            segments: (superblock.blocks_total * BLOCK_BYTES).div_ceil(segment_bytes),
            segments_free: survey.segments_free(superblock).ok(),
            segment_bytes,
            log_segments: superblock.segments.len() as u64,
            log_bytes: superblock.segments.iter().map(|segment| segment.extent.length_bytes()).sum(),
            checkpoint: superblock.checkpoint.0,
            checkpoint_lag: generation.saturating_sub(superblock.generation.0),
            snapshots: pager.snapshots().iter().map(Snapshot::of).collect(),
            readers: readers.iter().map(|reader| Reader::of(reader, &pager)).collect(),
        };
        match output.format {
            Format::Json => output.json("stat", &stat)?,
            Format::Text => tell(output, &stat)?,
        }
        Ok(Exit::DONE)
    }
}

impl Class {
    fn of(storage: &ClassStorage) -> Self {
        Self {
            class_bytes: storage.class.page_bytes(),
            pages: storage.pages,
            page_bytes: storage.page_bytes,
            stored_bytes: storage.stored_bytes,
        }
    }
}

impl Snapshot {
    fn of(entry: &vellum::format::CatalogueEntry) -> Self {
        let kind = match entry.kind {
            vellum::format::EntryKind::Snapshot => "snapshot",
            vellum::format::EntryKind::Bookmark => "bookmark",
        };
        Self { name: entry.name.clone(), kind, generation: entry.generation.0 }
    }
}

impl Reader {
    fn of(reader: &ReaderEntry, pager: &ReadOnlyPager) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self {
            process: reader.process,
            name: reader.name.clone(),
            oldest_generation: reader.states.iter().map(|(_, generation)| generation.0).min(),
            choosing: reader.choosing,
            age_seconds: (reader.since_seconds > 0).then(|| now.saturating_sub(reader.since_seconds)),
            held_bytes: pager.bytes_held(&reader.states).ok(),
        }
    }
}

fn tell(output: &Output, stat: &Stat) -> Result<()> {
    let line = |name: &str, value: String| output.line(format_args!("{name:<14} {value}"));
    line("path", stat.path.clone())?;
    line("generation", stat.generation.to_string())?;
    let held = |pages: u64, bytes: u64, stored: u64| {
        format!("{}, {} in {}", counted(pages, "page"), human_bytes(bytes), human_bytes(stored))
    };
    line("pages", held(stat.pages, stat.page_bytes, stat.stored_bytes))?;
    for class in &stat.classes {
        let of = human_bytes(class.class_bytes);
        line("", format!("of {of}: {}", held(class.pages, class.page_bytes, class.stored_bytes)))?;
    }
    let segments = counted(stat.segments, "segment");
    line("file", format!("{}, {segments}", human_bytes(stat.file_bytes)))?;
    let wholly = stat.segments_free.map_or("an unknown number of segments".to_owned(), |free| counted(free, "segment"));
    line("free", format!("{} at the checkpoint, {wholly} of it wholly", human_bytes(stat.free_bytes)))?;
    line("log", format!("{}, {}", counted(stat.log_segments, "segment"), human_bytes(stat.log_bytes)))?;
    let lag = counted(stat.checkpoint_lag, "commit");
    line("checkpoint", format!("{}, {lag} ago", stat.checkpoint))?;
    for snapshot in &stat.snapshots {
        line(snapshot.kind, format!("{} of generation {}", snapshot.name, snapshot.generation))?;
    }
    for reader in &stat.readers {
        let name = if reader.name.is_empty() { "(no name)" } else { &reader.name };
        let pins = match (reader.oldest_generation, reader.choosing) {
            (Some(generation), _) => format!("pins generation {generation}"),
            (None, true) => "pins everything".to_owned(),
            (None, false) => "pins nothing".to_owned(),
        };
        let age =
            reader.age_seconds.map_or("of unknown age".to_owned(), |age| format!("for {}", counted(age, "second")));
        let held = reader.held_bytes.map_or("unknown space".to_owned(), human_bytes);
        line("reader", format!("process {} {name}: {pins} {age}, holds {held}", reader.process))?;
    }
    Ok(())
}
