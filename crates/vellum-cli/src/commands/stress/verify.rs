//! `vellum stress verify`.

use std::path::PathBuf;

use serde::Serialize;
use vellum::store::{Severity, VerifyLevel};
use vellum::{Error, Pager, Read, View};

use super::header::Header;
use super::plan::State;
use super::{content, options, plan};
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::Output;

const LOST: Exit = Exit::own(1);
const WRONG: Exit = Exit::own(2);
const CANNOT_OPEN: Exit = Exit::own(3);

/// Check that a store holds what 'stress write' acknowledged
///
/// Opens the store, with recovery, and checks that it holds exactly the state of one sequence number, ACKED or later.
/// Exit codes: 0 it does; 1 an acknowledged commit is lost; 2 wrong or mixed bytes; 3 the store cannot be opened;
/// 64 wrong usage.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The store
    store: PathBuf,
    /// The last sequence number that was acknowledged; 0 for none
    #[arg(value_name = "ACKED")]
    acknowledged: u64,
}

#[derive(Serialize)]
struct Verified {
    sequence: u64,
    acknowledged: u64,
    pages: u64,
}

impl Arguments {
    pub(super) fn run(&self, output: &Output) -> Result<Exit> {
        let store = self.store.display();
        let pager = self.open().map_err(|error| Failure {
            exit: CANNOT_OPEN,
            ..Failure::store(format_args!("cannot open {store}"), &error)
        })?;
        let wrong = |why: String| {
            let next = "this is a bug of Vellum, or the disk lies: keep the file, and report it";
            Failure::new(WRONG, format_args!("{store} holds wrong bytes"), why, next)
        };
        let (sequence, pages) = compare(&pager.view()).map_err(wrong)?;
        let report = pager.verify(VerifyLevel::Full, &mut |_| {}).map_err(|error| wrong(error.to_string()))?;
        if let Some(damage) = report.findings.iter().find(|finding| finding.severity == Severity::Damage) {
            return Err(wrong(damage.message.clone()));
        }
        pager.close().map_err(|error| wrong(format!("closing it: {error}")))?;
        if sequence < self.acknowledged {
            let why = format!("it holds sequence number {sequence}; {} was acknowledged", self.acknowledged);
            let next = "a disk that loses what it synced does this; so would a bug: keep the file, and report it";
            return Err(Failure::new(LOST, format_args!("{store} has lost commits"), why, next));
        }
        let verified = Verified { sequence, acknowledged: self.acknowledged, pages };
        let line = format!("{store}: exactly sequence number {sequence}, {pages} pages");
        output.summary("verified", &verified, line)?;
        Ok(Exit::DONE)
    }

    /// Before anything was acknowledged the power may have gone within the creation. Then the store has to let itself
    /// be created again, and that is its state 0.
    fn open(&self) -> vellum::Result<Pager> {
        match Pager::open(&self.store, &options()) {
            Err(Error::IncompleteCreate { .. }) if self.acknowledged == 0 => Pager::create(&self.store, &options()),
            other => other,
        }
    }
}

/// The sequence number whose state the store holds, and how many pages that has; or what is wrong.
fn compare(view: &View) -> Result<(u64, u64), String> {
    let bytes = view.header();
    let header = match bytes.is_empty() {
        true => Header { seed: 0, sequence: 0, spans: Vec::new() },
        false => Header::decode(&bytes).ok_or("the header is not one of stress")?,
    };
    let mut expected = State::of(&header);
    let mut pages = 0;
    for page in content::pages(view) {
        let page = page.map_err(|error| error.to_string())?;
        let bytes = view.page(page).map_err(|error| error.to_string())?;
        let slot = content::slot_of(&bytes).ok_or_else(|| format!("page {page} is none of stress"))?;
        // Each slot is taken once: what is left over in the end is missing.
        let written = expected.0.get_mut(slot as usize).map_or(0, std::mem::take);
        if written == 0 {
            return Err(format!("page {page} says to be in slot {slot}, which should have none, or has another"));
        }
        if page.class() != plan::class_of(slot) || !content::is_right(&bytes, header.seed, slot, written) {
            let sequence = header.sequence;
            return Err(format!("page {page} in slot {slot} is not what {written} wrote, as of state {sequence}"));
        }
        pages += 1;
    }
    match expected.0.iter().position(|written| *written != 0) {
        None => Ok((header.sequence, pages)),
        Some(slot) => Err(format!("the page of slot {slot} is missing, as of state {}", header.sequence)),
    }
}
