//! `vellum inspect record`.

use std::path::Path;

use serde::Serialize;
use vellum::format::{BlockPointer, Entry, RecordFlags, RecordHeader};
use vellum::log::FoundRecord;

use super::{Detail, JsonPointer, Subject, said};
use crate::commands::{counted, hex};
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::{Format, Output};

#[derive(Serialize)]
struct JsonRecord {
    address: u64,
    blocks: u32,
    run_blocks: u32,
    generation: u64,
    incarnation: String,
    synced_through: u64,
    flags: Vec<&'static str>,
    salt: String,
    seal: String,
    previous_seal: String,
    entry_count: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<Vec<JsonEntry>>,
}

#[derive(Serialize)]
struct JsonEntry {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    page: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<JsonPointer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    old: Option<JsonPointer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
}

pub(super) fn show(output: &Output, store: &Path, wanted: Option<u64>, detail: Detail) -> Result<Exit> {
    let subject = Subject::of(store)?;
    let superblock = subject.newest()?;
    let mut shown = 0u64;
    subject
        .survey
        .records(superblock, |record, entries| {
            if wanted.is_some_and(|wanted| wanted != record.header.generation.0) {
                return Ok(());
            }
            shown += 1;
            tell(output, record, entries, detail).map_err(Stop::Told)
        })
        .map_err(|stop| match stop {
            Stop::Store(error) => subject.failed(&error),
            Stop::Told(failure) => failure,
        })?;
    if let (Some(wanted), 0) = (wanted, shown) {
        let why = format!("no record after {} that links to it makes generation {wanted}", superblock.generation);
        return Err(Failure::new(
            Exit::NOT_A_STORE,
            &subject.what,
            why,
            "'vellum inspect record' shows those there are",
        ));
    }
    if output.format == Format::Text && wanted.is_none() {
        output.line(format_args!("{} after {}", counted(shown, "record"), superblock.generation))?;
    }
    Ok(Exit::DONE)
}

/// What ends the walk.
enum Stop {
    Store(vellum::Error),
    Told(Failure),
}

impl From<vellum::Error> for Stop {
    fn from(error: vellum::Error) -> Self {
        Self::Store(error)
    }
}

fn flags(header: &RecordHeader) -> Vec<&'static str> {
    let named = [
        (RecordFlags::OPENING, "opening"),
        (RecordFlags::DATA_SYNCED, "data synced"),
        (RecordFlags::EXTERNAL_BODY, "external body"),
    ];
    named.into_iter().filter(|(flag, _)| header.flags.contains(*flag)).map(|(_, name)| name).collect()
}

fn tell(output: &Output, record: &FoundRecord, entries: &[Entry], detail: Detail) -> Result<()> {
    let header = &record.header;
    if output.format == Format::Json {
        let entry_count = entries.len();
        let entries = (detail == Detail::Parts).then(|| entries.iter().map(json_entry).collect());
        return output.json(
            "record",
            &JsonRecord {
                address: record.identity.address.0,
                blocks: header.blocks,
                run_blocks: header.run_blocks,
                generation: header.generation.0,
                incarnation: format!("{:016x}", header.incarnation.0),
                synced_through: header.synced_through.0,
                flags: flags(header),
                salt: format!("{:016x}", header.salt),
                seal: hex(&header.seal.0),
                previous_seal: hex(&header.previous_seal.0),
                entry_count,
                entries,
            },
        );
    }
    let mut line = format!(
        "{}: {}, synced through {}, {} of {}, {}",
        record.identity.address,
        header.generation,
        header.synced_through.0,
        counted(header.blocks.into(), "block"),
        header.run_blocks,
        counted(entries.len() as u64, "entry"),
    );
    flags(header).into_iter().for_each(|flag| line.extend([", ", flag]));
    output.line(line)?;
    let shown = if detail == Detail::Parts { entries } else { &[] };
    shown.iter().try_for_each(|entry| output.line(format_args!("  {}", said_entry(&json_entry(entry), entry))))
}

fn json_entry(entry: &Entry) -> JsonEntry {
    let empty = JsonEntry { kind: "", page: None, new: None, old: None, bytes: None, id: None };
    let pointer = |pointer: &BlockPointer| Some(JsonPointer::from(pointer));
    match entry {
        Entry::Set { page, new, old } => {
            JsonEntry { kind: "set", page: Some(page.to_string()), new: pointer(new), old: pointer(old), ..empty }
        }
        Entry::Stored { page, new } => {
            JsonEntry { kind: "stored", page: Some(page.to_string()), new: pointer(new), ..empty }
        }
        Entry::Dead { old } => JsonEntry { kind: "dead", old: pointer(old), ..empty },
        Entry::Move { page, new, old } => {
            JsonEntry { kind: "move", page: Some(page.to_string()), new: pointer(new), old: pointer(old), ..empty }
        }
        Entry::Header { length, .. } => JsonEntry { kind: "header", bytes: Some(*length), ..empty },
        Entry::CatalogueAdd { length, .. } => JsonEntry { kind: "catalogue add", bytes: Some(*length), ..empty },
        Entry::CatalogueRemove { id } => JsonEntry { kind: "catalogue remove", id: Some(*id), ..empty },
        Entry::Body { new } => JsonEntry { kind: "body", new: pointer(new), ..empty },
    }
}

fn said_entry(json: &JsonEntry, entry: &Entry) -> String {
    let mut text = json.kind.to_owned();
    if let Some(page) = &json.page {
        text.extend([" ", page]);
    }
    let (new, old) = match entry {
        Entry::Set { new, old, .. } | Entry::Move { new, old, .. } => (Some(new), Some(old)),
        Entry::Stored { new, .. } | Entry::Body { new } => (Some(new), None),
        Entry::Dead { old } => (None, Some(old)),
        _ => (None, None),
    };
    if let Some(new) = new {
        text.extend([": ", &said(new)]);
    }
    if let Some(old) = old {
        text.extend(["; was ", &said(old)]);
    }
    if let Some(bytes) = json.bytes {
        text.push_str(&format!(" of {bytes} bytes"));
    }
    if let Some(id) = json.id {
        text.push_str(&format!(" {id}"));
    }
    text
}
