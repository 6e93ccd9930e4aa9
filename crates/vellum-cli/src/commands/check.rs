//! `vellum check`.

use std::path::PathBuf;

use serde::Serialize;
use vellum::store::{Finding, RecoveryReport, Severity, VerifyLevel};

use super::counted;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::open;
use crate::output::{Format, Output};
use crate::progress::{Progress, human_bytes};
use crate::survey::Survey;

/// Check a store, and tell everything that is wrong with it
///
/// Nothing is written: what recovery would change is changed in memory only. A finding is 'damage' (data is lost),
/// 'leak' (space is lost), or 'repairable': damage that costs nothing, and that the store's next writer repairs.
///
/// A writer is kept out while this runs, and one that has the store open keeps this out (exit code 11).
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
    /// What recovery mends: in the file it is as it was.
    repairable: u64,
    records_replayed: u64,
    torn_generation_cut: Option<u64>,
    fell_back: bool,
    bitmap_leaves_made_anew: u64,
    superblock_copies_damaged: u64,
}

/// What the next writer repairs.
#[derive(Default)]
struct Repairable {
    findings: Vec<(Option<u64>, String)>,
    copies: u64,
}

impl Arguments {
    pub(crate) fn run(&self, output: &Output) -> Result<Exit> {
        let pager = open::read_only(&self.store)?;
        let failed = |error| Failure::store(format_args!("cannot check {}", self.store.display()), &error);
        let mut progress = Progress::new("check", output);
        let level = match self.level {
            Level::Quick => VerifyLevel::Quick,
            Level::Full => VerifyLevel::Full,
        };
        let report = pager.verify(level, &mut |bytes| progress.tell(bytes, || "of pages read")).map_err(failed)?;
        progress.clear();
        let recovery = pager.recovery();
        let survey = Survey::of(&self.store).map_err(failed)?;
        let repairable = Repairable::of(&survey, recovery);
        for (offset, message) in &repairable.findings {
            tell(output, &Found { severity: "repairable", page: None, offset: *offset, message })?;
        }
        report.findings.iter().try_for_each(|finding| tell(output, &Found::of(finding)))?;
        let damages = report.findings.iter().filter(|finding| finding.severity == Severity::Damage).count() as u64;
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
            repairable: repairable.findings.len() as u64,
            records_replayed: recovery.records_replayed,
            torn_generation_cut: recovery.cut.map(|generation| generation.0),
            fell_back: recovery.fell_back,
            bitmap_leaves_made_anew: recovery.bitmap_leaves_made_anew,
            superblock_copies_damaged: repairable.copies,
        };
        output.summary("summary", &summary, self.said(&summary))?;
        Ok(match report.worst() {
            // The check mended it for itself; in the file it is as it was.
            None if summary.repairable > 0 => Exit::REPAIRABLE,
            None => Exit::DONE,
            Some(Severity::Leak) => Exit::REPAIRABLE,
            Some(Severity::Damage) => Exit::CORRUPT,
        })
    }

    fn said(&self, summary: &Summary) -> String {
        let repairable = match summary.repairable {
            0 => String::new(),
            count => format!(", {}", counted(count, "repairable finding")),
        };
        let verdict = match (summary.damages, summary.leaks, summary.repairable) {
            (0, 0, 0) => "nothing wrong".to_owned(),
            (damages, leaks, _) => format!("{}, {}{repairable}", counted(damages, "damage"), counted(leaks, "leak")),
        };
        format!(
            "{}: {verdict} at generation {}: {}, {} of them read, {}, {}",
            self.store.display(),
            summary.generation,
            counted(summary.pages, "page"),
            human_bytes(summary.page_bytes),
            counted(summary.nodes, "node"),
            counted(summary.snapshots, "snapshot"),
        )
    }
}

impl Repairable {
    fn of(survey: &Survey, recovery: &RecoveryReport) -> Self {
        let mut found = Self::default();
        for (block, fault) in survey.damaged_copies() {
            found.copies += 1;
            let message = format!("the copy of the superblock in {block} is no good: {fault}");
            found.findings.push((Some(block.offset_bytes()), message));
        }
        if recovery.fell_back {
            let message = "the newest checkpoint is damaged, or what it leads to: the older one served, without loss";
            found.findings.push((None, message.to_owned()));
        }
        if recovery.bitmap_leaves_made_anew > 0 {
            let leaves = counted(recovery.bitmap_leaves_made_anew, "block");
            found.findings.push((None, format!("{leaves} of the bitmap damaged, made anew from all the rest")));
        }
        found
    }
}

impl<'a> Found<'a> {
    fn of(finding: &'a Finding) -> Self {
        let severity = match finding.severity {
            Severity::Leak => "leak",
            Severity::Damage => "damage",
        };
        let page = finding.page.map(|page| page.to_string());
        Self { severity, page, offset: finding.offset, message: &finding.message }
    }
}

fn tell(output: &Output, found: &Found<'_>) -> Result<()> {
    match output.format {
        Format::Json => output.json("finding", found),
        Format::Text => {
            let page = found.page.as_ref().map_or(String::new(), |page| format!(" page {page}:"));
            let offset = found.offset.map_or(String::new(), |offset| format!(" (byte {offset})"));
            output.line(format_args!("{}:{page} {}{offset}", found.severity, found.message))
        }
    }
}
