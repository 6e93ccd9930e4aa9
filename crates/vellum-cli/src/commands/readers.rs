//! `vellum readers`.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use vellum::disk::{Access, Caching, Disk, FileDisk};
use vellum::process::{self, ReaderEntry};
use vellum::store::store_id;
use vellum::{Error, ReadOnlyPager, ReaderOptions};

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::{Format, Output};
use crate::progress::human_bytes;
use crate::time::rfc3339;

/// List the readers beside a store: who they are, what they pin, since when, and how much space that holds
///
/// Readers that keep writers out by a lock are not in the list: they hold no space.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store
    store: PathBuf,
}

#[derive(Serialize)]
struct Reader {
    process: u32,
    name: String,
    /// `null` where the reader's file cannot be read.
    since: Option<String>,
    states: Vec<State>,
    /// It is about to choose another state, and holds all newer ones.
    choosing: bool,
    /// What its states keep from being used again; `null` where it is not known.
    held_bytes: Option<u64>,
}

#[derive(Serialize)]
struct State {
    checkpoint: u64,
    generation: u64,
}

impl Arguments {
    pub(crate) fn run(&self, output: &Output) -> Result<Exit> {
        let what = format!("cannot list the readers of {}", self.store.display());
        let failed = |error: Error| Failure::store(&what, &error);
        let disk: Arc<dyn Disk> =
            Arc::new(FileDisk::open(&self.store, Access::ReadOnly, Caching::Buffered).map_err(failed)?);
        store_id(&disk).map_err(failed)?;
        let readers = process::readers(&self.store).map_err(failed)?;
        if readers.is_empty() {
            output.note("no readers");
            return Ok(Exit::DONE);
        }
        // Now we are one of them; the list is older.
        let own = ReadOnlyPager::open(&self.store, &ReaderOptions::new().name("vellum readers"));
        if let Err(error) = &own {
            output.warn(format_args!("what they hold is not known: {error}"));
        }
        for reader in &readers {
            let held_bytes = own.as_ref().ok().and_then(|own| own.bytes_held(&reader.states).ok());
            self.tell(output, reader, held_bytes)?;
        }
        Ok(Exit::DONE)
    }

    fn tell(&self, output: &Output, reader: &ReaderEntry, held_bytes: Option<u64>) -> Result<()> {
        let since =
            (reader.since_seconds > 0).then(|| rfc3339(i64::try_from(reader.since_seconds).unwrap_or(i64::MAX), 0));
        let state = |(base, generation): &(vellum::CheckpointNumber, vellum::Generation)| State {
            checkpoint: base.0,
            generation: generation.0,
        };
        let states: Vec<State> = reader.states.iter().map(state).collect();
        if output.format == Format::Json {
            let (process, name, choosing) = (reader.process, reader.name.clone(), reader.choosing);
            return output.json("reader", &Reader { process, name, since, states, choosing, held_bytes });
        }
        let generations: Vec<String> = states.iter().map(|state| state.generation.to_string()).collect();
        let noun = if states.len() == 1 { "generation" } else { "generations" };
        let pins = match (states.is_empty(), reader.choosing) {
            (true, true) => "everything".to_owned(),
            (true, false) => "nothing".to_owned(),
            (false, true) => format!("{noun} {} and all newer ones", generations.join(", ")),
            (false, false) => format!("{noun} {}", generations.join(", ")),
        };
        let held = held_bytes.map_or_else(|| "unknown space".to_owned(), human_bytes);
        let name = if reader.name.is_empty() { "(no name)" } else { &reader.name };
        let since = since.unwrap_or_else(|| "an unknown time".to_owned());
        output.line(format_args!("process {} {name}: pins {pins}, holds {held}, since {since}", reader.process))
    }
}
