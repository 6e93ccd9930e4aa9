//! Where things are said: results on standard output, everything else on standard error.
//!
//! - **O1** With `--json` standard output has JSON lines and nothing else, each
//!   `{"vellum_json":1,"type":…}`; fields are only ever added. Bytes are integers, page ids and hashes strings.
//! - **O2** A result that matters to somebody who kills us (a batch, an `ack`) is flushed with [`Output::flush`].
//! - **O3** A reader that goes away ends the program with success ([`Failure::output`]).

use std::cell::RefCell;
use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use serde::Serialize;

use crate::failure::{Failure, Result};

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// When something is done that only a terminal wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum When {
    /// If it is a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Standard output and standard error, as the global flags want them.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) format: Format,
    /// −1: errors only; 0; 1 and more: details.
    pub(crate) verbosity: i8,
    pub(crate) progress: When,
    color: When,
    results: RefCell<BufWriter<Stdout>>,
}

#[derive(Serialize)]
struct Line<'a, T> {
    vellum_json: u32,
    r#type: &'static str,
    #[serde(flatten)]
    body: &'a T,
}

impl Output {
    pub(crate) fn new(format: Format, verbosity: i8, progress: When, color: When) -> Self {
        let results = RefCell::new(BufWriter::with_capacity(64 << 10, io::stdout()));
        Self { format, verbosity, progress, color, results }
    }

    /// A line of results.
    pub(crate) fn line(&self, line: impl Display) -> Result<()> {
        writeln!(self.results.borrow_mut(), "{line}").map_err(|error| Failure::output(&error))
    }

    /// A JSON line of results.
    pub(crate) fn json(&self, kind: &'static str, body: &impl Serialize) -> Result<()> {
        let mut results = self.results.borrow_mut();
        serde_json::to_writer(&mut *results, &Line { vellum_json: 1, r#type: kind, body })
            .map_err(io::Error::from)
            .and_then(|()| writeln!(results))
            .map_err(|error| Failure::output(&error))
    }

    /// Bytes of results, as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<()> {
        self.results.borrow_mut().write_all(bytes).map_err(|error| Failure::output(&error))
    }

    /// Sends results off: whoever reads them has them when this returned.
    pub(crate) fn flush(&self) -> Result<()> {
        self.results.borrow_mut().flush().map_err(|error| Failure::output(&error))
    }

    /// Something good to know; not with `-q`.
    pub(crate) fn note(&self, text: impl Display) {
        if self.verbosity >= 0 {
            complain(format_args!("{text}"));
        }
    }

    /// Something that is not as the user may expect; not with `-q`.
    pub(crate) fn warn(&self, text: impl Display) {
        if self.verbosity >= 0 {
            complain(format_args!("{} {text}", self.painted("warning:", "33")));
        }
    }

    /// A failure, in its three lines or as JSON.
    pub(crate) fn failure(&self, failure: &Failure) {
        let Some(lines) = &failure.lines else { return };
        match self.format {
            Format::Text => {
                complain(format_args!("{} {}", self.painted("error:", "31;1"), lines.what));
                complain(format_args!("  why:  {}", lines.why));
                complain(format_args!("  next: {}", lines.next));
            }
            Format::Json => {
                let line = serde_json::json!({
                    "vellum_json": 1, "type": "error", "exit": failure.exit.code(),
                    "what": lines.what, "why": lines.why, "next": lines.next,
                });
                complain(line);
            }
        }
    }

    fn painted(&self, text: &str, style: &str) -> String {
        let paint = match self.color {
            When::Always => true,
            When::Never => false,
            When::Auto => {
                std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && io::stderr().is_terminal()
            }
        };
        if paint { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Standard error that cannot be written is nothing that could be told anybody.
fn complain(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}
