//! Where things are said: results on standard output, everything else on standard error.
//!
//! - **O1** With `--json` standard output has JSON lines and nothing else, each
//!   `{"vellum_json":1,"type":…}`; fields are only ever added. Bytes are integers, page ids and hashes strings.
//! - **O2** A result that matters to somebody who kills us (a batch, an `ack`) is flushed with [`Output::flush`].
//! - **O3** A reader that goes away ends a command that is there for its output, with success ([`Failure::output`]).
//!   A command that does something else goes on without being heard, and its exit code is as if somebody had listened
//!   ([`Audience`]).
//! - **O4** With `-q` nothing is said of what went well ([`Output::summary`]); what went wrong is ([`Output::fault`]).

use std::cell::{Cell, RefCell};
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

/// What it means for a command that nobody reads its results any more (O3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// There is nothing left to do.
    Needed,
    /// Its work is still to be done.
    Welcome,
}

/// Standard output and standard error, as the global flags want them.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) format: Format,
    /// −1: errors only; 0; 1 and more: details.
    pub(crate) verbosity: i8,
    pub(crate) progress: When,
    color: When,
    audience: Audience,
    results: RefCell<BufWriter<Stdout>>,
    to_terminal: bool,
    /// The reader of the results went away, and nobody minds.
    unheard: Cell<bool>,
}

#[derive(Serialize)]
struct Line<'a, T> {
    vellum_json: u32,
    r#type: &'static str,
    #[serde(flatten)]
    body: &'a T,
}

impl Output {
    pub(crate) fn new(format: Format, verbosity: i8, progress: When, color: When, audience: Audience) -> Self {
        let results = RefCell::new(BufWriter::with_capacity(64 << 10, io::stdout()));
        let (to_terminal, unheard) = (io::stdout().is_terminal(), Cell::new(false));
        Self { format, verbosity, progress, color, audience, results, to_terminal, unheard }
    }

    /// Lets `write` write results, if there may be somebody to read them (O3).
    fn results(&self, write: impl FnOnce(&mut BufWriter<Stdout>) -> io::Result<()>) -> Result<()> {
        if self.unheard.get() {
            return Ok(());
        }
        match write(&mut self.results.borrow_mut()) {
            Err(error) if self.audience == Audience::Welcome && error.kind() == io::ErrorKind::BrokenPipe => {
                self.unheard.set(true);
                Ok(())
            }
            other => other.map_err(|error| Failure::output(&error)),
        }
    }

    /// A line of results.
    pub(crate) fn line(&self, line: impl Display) -> Result<()> {
        self.results(|results| writeln!(results, "{line}"))
    }

    /// A JSON line of results.
    pub(crate) fn json(&self, kind: &'static str, body: &impl Serialize) -> Result<()> {
        self.results(|results| {
            serde_json::to_writer(&mut *results, &Line { vellum_json: 1, r#type: kind, body })?;
            writeln!(results)
        })
    }

    /// What a command did, once it is done: a line for people, which they may do without (`-q`), or JSON.
    pub(crate) fn summary(&self, kind: &'static str, body: &impl Serialize, line: impl Display) -> Result<()> {
        match self.format {
            Format::Json => self.json(kind, body),
            Format::Text if self.verbosity < 0 => Ok(()),
            Format::Text => self.line(line),
        }
    }

    /// Bytes of results, as they are.
    pub(crate) fn bytes(&self, bytes: &[u8]) -> Result<()> {
        self.results(|results| results.write_all(bytes))
    }

    /// A name or path of results. It need not be text: a terminal gets it with what could command it escaped, everybody
    /// else as it is.
    pub(crate) fn name(&self, name: &[u8]) -> Result<()> {
        match self.to_terminal {
            true => self.bytes(escaped(name).as_bytes()),
            false => self.bytes(name),
        }
    }

    /// Sends results off: whoever reads them has them when this returned.
    pub(crate) fn flush(&self) -> Result<()> {
        self.results(Write::flush)
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

    /// Something that went wrong, and does not stop the command.
    pub(crate) fn fault(&self, text: impl Display) {
        complain(format_args!("{} {text}", self.painted("error:", "31;1")));
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

/// A name without control characters, of C1 too, and without bytes that are not UTF-8: as `ls -b` has them, so that no
/// two names look the same.
fn escaped(name: &[u8]) -> String {
    let mut escaped = String::with_capacity(name.len());
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => escaped.push_str("\\\\"),
                '\n' => escaped.push_str("\\n"),
                '\r' => escaped.push_str("\\r"),
                '\t' => escaped.push_str("\\t"),
                _ if character.is_control() => push_octal(&mut escaped, character.encode_utf8(&mut [0; 4]).as_bytes()),
                _ => escaped.push(character),
            }
        }
        push_octal(&mut escaped, chunk.invalid());
    }
    escaped
}

fn push_octal(escaped: &mut String, bytes: &[u8]) {
    escaped.extend(bytes.iter().map(|byte| format!("\\{byte:03o}")));
}

/// Standard error that cannot be written is nothing that could be told anybody.
fn complain(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_name_commands_a_terminal() {
        for (name, expected) in [
            (&b"plain name"[..], "plain name"),
            ("gr\u{fc}n".as_bytes(), "gr\u{fc}n"),
            (b"\x1b]0;title\x07", "\\033]0;title\\007"),
            (b"two\nlines\ttab\r", "two\\nlines\\ttab\\r"),
            ("c1 \u{9b}31m".as_bytes(), "c1 \\302\\23331m"),
            (b"not \xff text\x7f", "not \\377 text\\177"),
            (b"back\\n", "back\\\\n"),
        ] {
            assert_eq!(escaped(name), expected);
        }
    }
}
