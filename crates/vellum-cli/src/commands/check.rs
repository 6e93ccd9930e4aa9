//! `vellum check`.

use std::path::PathBuf;

use serde::Serialize;
use vellum::store::{Finding, Severity, VerifyLevel};

use super::counted;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::open;
use crate::output::{Format, Output};
use crate::progress::{Progress, human_bytes};

/// Check a store, and tell everything that is wrong with it
///
/// Nothing is written: what recovery would change is changed in memory only.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store
    store: PathBuf,
    /// How much is read
    #[arg(long, value_enum, default_value = "quick")]
    level: Level,
}

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Level {
    /// The trees, and whether blocks are claimed once
    Quick,
    /// The bytes of every page too
    Full,
}

#[derive(Serialize)]
struct Found<'a> {
    severity: &'static str,
    page: Option<String>,
    offset: Option<u64>,
    message: &'a str,
}

#[derive(Serialize)]
struct Summary {
    level: &'static str,
    generation: u64,
    pages: u64,
    page_bytes: u64,
    nodes: u64,
    snapshots: u64,
    bytes_claimed: u64,
    damages: u64,
    leaks: u64,
    records_replayed: u64,
    torn_generation_cut: Option<u64>,
    fell_back: bool,
    bitmap_leaves_made_anew: u64,
}

impl Arguments {
    pub(crate) fn run(&self, output: &Output) -> Result<Exit> {
        let pager = open::read_only(&self.store)?;
        let mut progress = Progress::new("check", output);
        let level = match self.level {
            Level::Quick => VerifyLevel::Quick,
            Level::Full => VerifyLevel::Full,
        };
        let report = pager
            .verify(level, &mut |bytes| progress.tell(bytes, || "of pages read"))
            .map_err(|error| Failure::store(format_args!("cannot check {}", self.store.display()), &error))?;
        progress.clear();
        report.findings.iter().try_for_each(|finding| tell(output, finding))?;
        let damages = report.findings.iter().filter(|finding| finding.severity == Severity::Damage).count() as u64;
        let recovery = pager.recovery();
        let summary = Summary {
            level: if self.level == Level::Full { "full" } else { "quick" },
            generation: open::generation_of(&pager).0,
            pages: report.pages,
            page_bytes: report.page_bytes,
            nodes: report.nodes,
            snapshots: report.snapshots,
            bytes_claimed: report.blocks_claimed * vellum::BLOCK_BYTES,
            damages,
            leaks: report.findings.len() as u64 - damages,
            records_replayed: recovery.records_replayed,
            torn_generation_cut: recovery.cut.map(|generation| generation.0),
            fell_back: recovery.fell_back,
            bitmap_leaves_made_anew: recovery.bitmap_leaves_made_anew,
        };
        match output.format {
            Format::Json => output.json("summary", &summary)?,
            Format::Text => output.line(self.said(&summary))?,
        }
        Ok(match report.worst() {
            // The check mended them for itself; in the file they are as they were.
            None if summary.bitmap_leaves_made_anew > 0 => Exit::REPAIRABLE,
            None => Exit::DONE,
            Some(Severity::Leak) => Exit::REPAIRABLE,
            Some(Severity::Damage) => Exit::CORRUPT,
        })
    }

    fn said(&self, summary: &Summary) -> String {
        let verdict = match (summary.damages, summary.leaks) {
            (0, 0) => "nothing wrong".to_owned(),
            (damages, leaks) => format!("{}, {}", counted(damages, "damage"), counted(leaks, "leak")),
        };
        let mut said = format!(
            "{}: {verdict} at generation {}: {}, {} of them read, {}, {}",
            self.store.display(),
            summary.generation,
            counted(summary.pages, "page"),
            human_bytes(summary.page_bytes),
            counted(summary.nodes, "node"),
            counted(summary.snapshots, "snapshot"),
        );
        if summary.fell_back {
            said += "; the older checkpoint served, and opening the store for writing makes a new one";
        }
        if summary.bitmap_leaves_made_anew > 0 {
            let leaves = counted(summary.bitmap_leaves_made_anew, "block");
            said += &format!("; {leaves} of the bitmap damaged, which opening the store for writing makes anew");
        }
        said
    }
}

fn tell(output: &Output, finding: &Finding) -> Result<()> {
    let severity = match finding.severity {
        Severity::Leak => "leak",
        Severity::Damage => "damage",
    };
    let page = finding.page.map(|page| page.to_string());
    match output.format {
        Format::Json => {
            output.json("finding", &Found { severity, page, offset: finding.offset, message: &finding.message })
        }
        Format::Text => {
            let page = page.map_or(String::new(), |page| format!(" page {page}:"));
            let offset = finding.offset.map_or(String::new(), |offset| format!(" (byte {offset})"));
            output.line(format_args!("{severity}:{page} {}{offset}", finding.message))
        }
    }
}
