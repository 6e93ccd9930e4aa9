//! `vellum inspect superblock`.

use std::path::Path;

use serde::Serialize;
use vellum::SizeClass;
use vellum::format::{Superblock, TreeRoot};

use super::{JsonPointer, Subject, said};
use crate::commands::hex;
use crate::exit::Exit;
use crate::failure::Result;
use crate::output::{Format, Output};

#[derive(Serialize)]
struct JsonCopy {
    block: u64,
    valid: bool,
    fault: Option<String>,
    superblock: Option<JsonSuperblock>,
}

#[derive(Serialize)]
struct JsonSuperblock {
    version: u32,
    features_incompatible: String,
    features_read_compatible: String,
    store: String,
    application_id: u32,
    application_version: u32,
    checkpoint: u64,
    generation: u64,
    incarnation: String,
    blocks_total: u64,
    blocks_free: u64,
    deferred_entries: u64,
    next_catalogue_id: u64,
    log_seal: String,
    log_segment: u32,
    log_offset: u32,
    header: String,
    trees: Vec<JsonTree>,
    segments: Vec<JsonSegment>,
}

#[derive(Serialize)]
struct JsonTree {
    tree: String,
    length: u64,
    root: JsonPointer,
}

#[derive(Serialize)]
struct JsonSegment {
    address: u64,
    blocks: u32,
    salt: String,
}

pub(super) fn show(output: &Output, store: &Path) -> Result<Exit> {
    let subject = Subject::of(store)?;
    for copy in &subject.survey.copies {
        let (block, valid) = (copy.block.0, copy.content.is_ok());
        match (output.format, &copy.content) {
            (Format::Json, content) => {
                let fault = content.as_ref().err().cloned();
                let superblock = content.as_deref().ok().map(json);
                output.json("superblock", &JsonCopy { block, valid, fault, superblock })?;
            }
            (Format::Text, Ok(superblock)) => tell(output, block, superblock)?,
            (Format::Text, Err(fault)) => output.line(format_args!("block {block}: {fault}"))?,
        }
    }
    Ok(if subject.survey.newest().is_some() { Exit::DONE } else { Exit::CORRUPT })
}

/// The trees with their names; empty maps are left out.
fn trees(superblock: &Superblock) -> Vec<(String, TreeRoot)> {
    let maps = SizeClass::all().map(|class| (format!("map of {class}"), superblock.maps[class.index()]));
    let others = [
        ("bitmap".to_owned(), superblock.bitmap),
        ("catalogue".to_owned(), superblock.catalogue),
        ("deferred".to_owned(), superblock.deferred),
    ];
    others.into_iter().chain(maps.filter(|(_, root)| root.length > 0)).collect()
}

fn tell(output: &Output, block: u64, superblock: &Superblock) -> Result<()> {
    output.line(format_args!("block {block}: checkpoint {}", superblock.checkpoint.0))?;
    let line = |name: &str, value: String| output.line(format_args!("  {name:<18} {value}"));
    let (incompatible, compatible) = (superblock.features_incompatible, superblock.features_read_compatible);
    line("version", format!("{}, features {incompatible:#x} / {compatible:#x}", superblock.version))?;
    line("store", superblock.store.to_string())?;
    line("application", format!("{:#010x}, version {}", superblock.application_id, superblock.application_version))?;
    line("folds", format!("{} of incarnation {:016x}", superblock.generation, superblock.incarnation.0))?;
    line("blocks", format!("{}, {} free", superblock.blocks_total, superblock.blocks_free))?;
    line("deferred entries", superblock.deferred_entries.to_string())?;
    line("header", format!("{} bytes {}", superblock.header.len(), hex(&superblock.header)))?;
    line("log", format!("segment {}, block {} of it", superblock.log_segment, superblock.log_offset))?;
    line("log seal", hex(&superblock.log_seal.0))?;
    for (name, root) in trees(superblock) {
        line(&name, format!("{} positions, root {}", root.length, said(&root.pointer)))?;
    }
    for segment in &superblock.segments {
        line("log segment", format!("{}, salt {:016x}", segment.extent, segment.salt))?;
    }
    Ok(())
}

fn json(superblock: &Superblock) -> JsonSuperblock {
    JsonSuperblock {
        version: superblock.version,
        features_incompatible: format!("{:#x}", superblock.features_incompatible),
        features_read_compatible: format!("{:#x}", superblock.features_read_compatible),
        store: superblock.store.to_string(),
        application_id: superblock.application_id,
        application_version: superblock.application_version,
        checkpoint: superblock.checkpoint.0,
        generation: superblock.generation.0,
        incarnation: format!("{:016x}", superblock.incarnation.0),
        blocks_total: superblock.blocks_total,
        blocks_free: superblock.blocks_free,
        deferred_entries: superblock.deferred_entries,
        next_catalogue_id: superblock.next_catalogue_id,
        log_seal: hex(&superblock.log_seal.0),
        log_segment: superblock.log_segment,
        log_offset: superblock.log_offset,
        header: hex(&superblock.header),
        trees: trees(superblock)
            .into_iter()
            .map(|(tree, root)| JsonTree { tree, length: root.length, root: (&root.pointer).into() })
            .collect(),
        segments: superblock
            .segments
            .iter()
            .map(|segment| JsonSegment {
                address: segment.extent.start.0,
                blocks: segment.extent.blocks,
                salt: format!("{:016x}", segment.salt),
            })
            .collect(),
    }
}
