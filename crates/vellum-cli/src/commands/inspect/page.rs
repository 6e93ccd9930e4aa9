//! `vellum inspect page`.

use std::path::Path;

use serde::Serialize;
use vellum::format::BlockPointer;
use vellum::store::PageReader;
use vellum::{Error, PageId, SizeClass};

use super::{JsonPointer, Subject, said};
use crate::commands::hex;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::{Format, Output};
use crate::survey::Head;

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

/// A page that exists.
struct Found {
    subject: Subject,
    head: Head,
    page: PageId,
    pointer: BlockPointer,
}

impl Found {
    fn of(store: &Path, id: &str) -> Result<Self> {
        let page: PageId = id.parse().map_err(|()| {
            let why = format!("{id:?} is no page id: those are class:index with a class of 12 to 31, like 12:0");
            Failure::new(Exit::USAGE, "cannot inspect a page", why, "'vellum inspect map --pages' lists the pages")
        })?;
        let subject = Subject::of(store)?;
        let head = subject.survey.head(subject.newest()?).map_err(|error| subject.failed(&error))?;
        let pointer = head.maps[page.class().index()].get(&head.nodes, page.index());
        let pointer = pointer.map_err(|error| subject.failed(&error))?;
        match pointer.is_null() {
            true => Err(subject.failed(&Error::PageNotFound { page })),
            false => Ok(Self { subject, head, page, pointer }),
        }
    }

    /// Gives `sink` the page's bytes, a piece at a time, up to the first that cannot be read.
    fn read(&self, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<Result<(), Error>> {
        let mut piece = vec![0; self.page.class().page_bytes().min(SizeClass::CHUNK.page_bytes()) as usize];
        for offset in (0..self.page.class().page_bytes()).step_by(piece.len()) {
            if let Err(error) = PageReader::new(&self.head.nodes).read(self.page, &self.pointer, offset, &mut piece) {
                return Ok(Err(error));
            }
            sink(&piece)?;
        }
        Ok(Ok(()))
    }
}

/// Writes the page's bytes to standard output.
pub(super) fn write(output: &Output, store: &Path, id: &str) -> Result<Exit> {
    let found = Found::of(store, id)?;
    found.read(|piece| output.bytes(piece))?.map_err(|error| found.subject.failed(&error))?;
    Ok(Exit::DONE)
}

pub(super) fn show(output: &Output, store: &Path, id: &str) -> Result<Exit> {
    let found = Found::of(store, id)?;
    let mut first = Vec::new();
    let read = found.read(|piece| {
        let missing = SHOWN_BYTES - first.len();
        first.extend(&piece[..missing.min(piece.len())]);
        Ok(())
    })?;
    let fault = read.err().map(|error| error.to_string());
    let exit = if fault.is_some() { Exit::CORRUPT } else { Exit::DONE };
    let (page, page_bytes, generation) = (found.page, found.page.class().page_bytes(), found.head.generation.0);
    match output.format {
        Format::Json => {
            let (page, pointer, first) = (page.to_string(), (&found.pointer).into(), hex(&first));
            output.json("page", &JsonPage { page, page_bytes, generation, pointer, fault, first })?;
        }
        Format::Text => {
            output.line(format_args!("page {page} of {page_bytes} bytes at generation {generation}"))?;
            output.line(format_args!("  lies at {}", said(&found.pointer)))?;
            output.line(format_args!("  {}", fault.as_deref().unwrap_or("every byte is right")))?;
            for (row, bytes) in first.chunks(ROW_BYTES).enumerate() {
                output.line(row_of(row * ROW_BYTES, bytes))?;
            }
        }
    }
    Ok(exit)
}

/// A row of a dump: offset, digits, and what of it is text.
fn row_of(offset: usize, bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x} ")).collect();
    let text: String =
        bytes.iter().map(|byte| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '.' }).collect();
    format!("  {offset:04x}  {digits} {text}")
}
