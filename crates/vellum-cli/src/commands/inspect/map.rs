//! `vellum inspect map`.

use std::path::Path;

use serde::Serialize;
use vellum::{PageId, SizeClass};

use super::{Detail, JsonPointer, Subject, said};
use crate::commands::counted;
use crate::exit::Exit;
use crate::failure::Result;
use crate::output::{Format, Output};
use crate::survey::Head;

#[derive(Serialize)]
struct JsonPage {
    page: String,
    pointer: JsonPointer,
}

#[derive(Serialize)]
struct JsonMap {
    class: u8,
    page_bytes: u64,
    /// One more than the highest index ever used.
    indices: u64,
    levels: u8,
    pages: u64,
    /// What kept the rest of the map from being read.
    fault: Option<String>,
}

pub(super) fn show(output: &Output, store: &Path, detail: Detail) -> Result<Exit> {
    let subject = Subject::of(store)?;
    let superblock = subject.newest()?;
    let head = subject.survey.head(superblock).map_err(|error| subject.failed(&error))?;
    let mut exit = Exit::DONE;
    for class in SizeClass::all().filter(|class| head.maps[class.index()].length() > 0) {
        let map = walk(output, &head, class, detail)?;
        if map.fault.is_some() {
            exit = Exit::CORRUPT;
        }
        match output.format {
            Format::Json => output.json("map", &map)?,
            Format::Text => {
                let fault = map.fault.map_or(String::new(), |fault| format!("; the rest cannot be read: {fault}"));
                let (pages, levels) = (counted(map.pages, "page"), counted(map.levels.into(), "level"));
                output.line(format_args!("map of {class}: {pages}, indices below {}, {levels}{fault}", map.indices))?;
            }
        }
    }
    Ok(exit)
}

fn walk(output: &Output, head: &Head, class: SizeClass, detail: Detail) -> Result<JsonMap> {
    let tree = &head.maps[class.index()];
    let mut map = JsonMap {
        class: class.log2(),
        page_bytes: class.page_bytes(),
        indices: tree.length(),
        levels: tree.height(),
        pages: 0,
        fault: None,
    };
    let mut from = 0;
    loop {
        match tree.next(&head.nodes, from) {
            Ok(None) => return Ok(map),
            Ok(Some((index, pointer))) => {
                map.pages += 1;
                from = index + 1;
                if let (Detail::Parts, Some(page)) = (detail, PageId::new(class, index)) {
                    let page = page.to_string();
                    match output.format {
                        Format::Json => output.json("page", &JsonPage { page, pointer: (&pointer).into() })?,
                        Format::Text => output.line(format_args!("page {page}: {}", said(&pointer)))?,
                    }
                }
            }
            Err(error) => {
                map.fault = Some(error.to_string());
                return Ok(map);
            }
        }
    }
}
