//! `vellum inspect page`.

use std::path::Path;

use serde::Serialize;
use vellum::store::PageReader;
use vellum::{Error, PageId, SizeClass};

use super::{JsonPointer, Subject, said};
use crate::commands::hex;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::{Format, Output};

/// Bytes of a page that are shown.
const SHOWN_BYTES: usize = 256;
const ROW_BYTES: usize = 16;

#[derive(Serialize)]
struct JsonPage {
    page: String,
    page_bytes: u64,
    generation: u64,
    pointer: JsonPointer,
    /// `null`: every byte was read, and is right.
    fault: Option<String>,
    /// The first bytes, in hexadecimal digits.
    first: String,
}

pub(super) fn show(output: &Output, store: &Path, id: &str, raw: bool) -> Result<Exit> {
    let page: PageId = id.parse().map_err(|()| {
        let why = format!("{id:?} is no page id: those are class:index with a class of 12 to 31, like 12:0");
        Failure::new(Exit::USAGE, "cannot inspect a page", why, "'vellum inspect map --pages' lists the pages")
    })?;
    let subject = Subject::of(store)?;
    let superblock = subject.newest()?;
    let failed = |error: Error| subject.failed(&error);
    let head = subject.survey.head(superblock).map_err(failed)?;
    let pointer = head.maps[page.class().index()].get(&head.nodes, page.index()).map_err(failed)?;
    if pointer.is_null() {
        return Err(failed(Error::PageNotFound { page }));
    }
    let reader = PageReader::new(&head.nodes);
    let mut first = Vec::new();
    let mut piece = vec![0; page.class().page_bytes().min(SizeClass::CHUNK.page_bytes()) as usize];
    let mut fault = None;
    for offset in (0..page.class().page_bytes()).step_by(piece.len()) {
        match reader.read(page, &pointer, offset, &mut piece) {
            Ok(()) if raw => output.bytes(&piece)?,
            Ok(()) => {}
            Err(error) if raw => return Err(failed(error)),
            Err(error) => {
                fault = Some(error.to_string());
                break;
            }
        }
        if offset == 0 {
            first = piece[..SHOWN_BYTES].to_vec();
        }
    }
    if !raw {
        let (page, page_bytes, generation) = (page.to_string(), page.class().page_bytes(), head.generation.0);
        match output.format {
            Format::Json => {
                let pointer = (&pointer).into();
                let first = hex(&first);
                output
                    .json("page", &JsonPage { page, page_bytes, generation, pointer, fault: fault.clone(), first })?;
            }
            Format::Text => {
                output.line(format_args!("page {page} of {page_bytes} bytes at generation {generation}"))?;
                output.line(format_args!("  lies at {}", said(&pointer)))?;
                output.line(format_args!("  {}", fault.as_deref().unwrap_or("every byte is right")))?;
                for (row, bytes) in first.chunks(ROW_BYTES).enumerate() {
                    output.line(row_of(row * ROW_BYTES, bytes))?;
                }
            }
        }
    }
    Ok(if fault.is_some() { Exit::CORRUPT } else { Exit::DONE })
}

/// A row of a dump: offset, digits, and what of it is text.
fn row_of(offset: usize, bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x} ")).collect();
    let text: String = bytes
        .iter()
        .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' })
        .collect();
    format!("  {offset:04x}  {digits} {text}")
}
