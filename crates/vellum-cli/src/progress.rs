//! How far a long job is: on a terminal a line that is written over, else a plain line every ten seconds.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::output::{Output, When};

const ON_TERMINAL: Duration = Duration::from_millis(100);
const ON_FILE: Duration = Duration::from_secs(10);

/// The progress of one job, on standard error.
#[derive(Debug)]
pub(crate) struct Progress {
    job: &'static str,
    style: Style,
    started: Instant,
    told: Instant,
    /// Columns of the line that stands on the terminal.
    shown: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Silent,
    Overwritten,
    Lines,
}

impl Progress {
    pub(crate) fn new(job: &'static str, output: &Output) -> Self {
        let terminal = io::stderr().is_terminal();
        let style = match output.progress {
            When::Never => Style::Silent,
            When::Auto if output.verbosity < 0 => Style::Silent,
            _ if terminal => Style::Overwritten,
            _ => Style::Lines,
        };
        let now = Instant::now();
        Self { job, style, started: now, told: now, shown: 0 }
    }

    /// Tells of `bytes` done and of what `detail` says, if it is time to.
    pub(crate) fn tell<D: Display>(&mut self, bytes: u64, detail: impl FnOnce() -> D) {
        let pause = match self.style {
            Style::Silent => return,
            Style::Overwritten => ON_TERMINAL,
            Style::Lines => ON_FILE,
        };
        if self.told.elapsed() < pause {
            return;
        }
        self.told = Instant::now();
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        let rate = (bytes as f64 / seconds) as u64;
        let line = format!("{}: {}, {}/s, {}", self.job, human_bytes(bytes), human_bytes(rate), detail());
        match self.style {
            Style::Overwritten => {
                let width = self.shown;
                self.shown = line.chars().count();
                let _ = write!(io::stderr(), "\r{line:<width$}");
            }
            _ => {
                let _ = writeln!(io::stderr(), "{line}");
            }
        }
    }

    /// Takes the line off the terminal, so that something else can be said.
    pub(crate) fn clear(&mut self) {
        if self.shown > 0 {
            let _ = write!(io::stderr(), "\r{:width$}\r", "", width = self.shown);
            self.shown = 0;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A number of bytes for people: three digits and a unit.
pub(crate) fn human_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if value < 9.995 => format!("{value:.2} {}", units[unit]),
        _ if value < 99.95 => format!("{value:.1} {}", units[unit]),
        _ => format!("{value:.0} {}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_said_in_three_digits() {
        let said = [0, 999, 1000, 4096, 1 << 20, 10_500_000, 123 << 30, u64::MAX].map(human_bytes);
        assert_eq!(said, ["0 B", "999 B", "0.98 KiB", "4.00 KiB", "1.00 MiB", "10.0 MiB", "123 GiB", "16.0 EiB"]);
    }
}
