//! `vellum stress write`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use vellum::store::{Entropy, SystemEntropy};
use vellum::{Error, PageId, Pager, Read, Transaction};

use super::header::{Header, SLOTS_LIMIT, SPANS_LIMIT, Span};
use super::plan::{Action, State, class_of};
use super::{content, options};
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::Output;

/// Make commits, and acknowledge each once it is durable
///
/// Prints 'ack SEQ' on a line of its own, flushed, after each commit. The sequence numbers go on where an earlier run
/// stopped, however it did.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The store; created if it does not exist
    store: PathBuf,
    /// How many commits to make
    #[arg(value_name = "N")]
    commits: u64,
    /// Pages that each commit changes
    #[arg(long, value_name = "K", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=i64::from(SLOTS_LIMIT)))]
    pages: u32,
    /// Microseconds to wait after each commit
    #[arg(long, value_name = "U", default_value_t = 0)]
    pause_us: u64,
    /// Slots for pages, from which each commit chooses
    #[arg(long, value_name = "T", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=i64::from(SLOTS_LIMIT)))]
    total: u32,
}

/// A run under way.
struct Run {
    header: Header,
    state: State,
    /// By slot.
    pages: Vec<Option<PageId>>,
}

impl Arguments {
    pub(super) fn run(&self, output: &Output) -> Result<Exit> {
        let failed = |error: Error| Failure::store(format_args!("stress on {} failed", self.store.display()), &error);
        if self.pages > self.total {
            let why = format!("--pages {} is more than --total {}", self.pages, self.total);
            return Err(Failure::new(
                Exit::USAGE,
                "cannot put a store under stress",
                why,
                "give fewer pages or more in total",
            ));
        }
        let pager = Pager::open_or_create(&self.store, &options()).map_err(failed)?;
        let mut run = Run::resume(&pager, &self.store)?;
        let span = run.begin_span(self.pages, self.total, &self.store)?;
        for _ in 0..self.commits {
            let transaction = pager.begin().map_err(failed)?;
            run.change(&transaction, &span).map_err(failed)?;
            transaction.commit().map_err(failed)?;
            let told = output.line(format_args!("ack {}", run.header.sequence)).and_then(|()| output.flush());
            told.map_err(|failure| unheard(failure, run.header.sequence))?;
            if self.pause_us > 0 {
                std::thread::sleep(Duration::from_micros(self.pause_us));
            }
        }
        pager.close().map_err(failed)?;
        Ok(Exit::DONE)
    }
}

/// Commits that nobody hears of are no test: that is not the success which it is for output alone.
fn unheard(failure: Failure, sequence: u64) -> Failure {
    match failure.lines {
        Some(_) => failure,
        None => {
            let why = format!("standard output was closed; {sequence} is durable, and was not acknowledged");
            Failure::new(Exit::PARTLY, "cannot acknowledge commits", why, "read all that it prints, or ask for fewer")
        }
    }
}

impl Run {
    /// Stands where the newest commit of an earlier run left the store.
    fn resume(pager: &Pager, store: &Path) -> Result<Self> {
        let view = pager.view();
        let what = format!("cannot go on with the stress on {}", store.display());
        let failed = |error: Error| Failure::store(&what, &error);
        if view.header().is_empty() {
            let seed = SystemEntropy.draw().map_err(failed)?;
            return Ok(Self {
                header: Header { seed, sequence: 0, spans: Vec::new() },
                state: State::default(),
                pages: Vec::new(),
            });
        }
        let damaged = |why: &str| Failure::new(Exit::CORRUPT, &what, why, "'vellum stress verify' says more");
        let header = Header::decode(&view.header()).ok_or_else(|| damaged("the header is not one of stress"))?;
        let state = State::of(&header);
        let mut pages = vec![None; state.0.len()];
        for page in content::pages(&view) {
            let page = page.map_err(failed)?;
            let bytes = view.page(page).map_err(failed)?;
            let place = content::slot_of(&bytes).and_then(|slot| pages.get_mut(slot as usize));
            if place.ok_or_else(|| damaged("a page is in no slot"))?.replace(page).is_some() {
                return Err(damaged("two pages are in one slot"));
            }
        }
        match pages.iter().map(Option::is_some).eq(state.0.iter().map(|sequence| *sequence != 0)) {
            true => Ok(Self { header, state, pages }),
            false => Err(damaged("other slots have pages than should")),
        }
    }

    /// The span of the commits to come; a new one where the numbers differ from those of the last run.
    fn begin_span(&mut self, pages: u32, slots: u32, store: &Path) -> Result<Span> {
        let span = Span { from: self.header.sequence + 1, pages, slots };
        match self.header.spans.last() {
            Some(last) if (last.pages, last.slots) == (pages, slots) => return Ok(*last),
            _ if self.header.spans.len() >= SPANS_LIMIT => {}
            _ => {
                self.header.spans.push(span);
                return Ok(span);
            }
        }
        let what = format!("cannot go on with the stress on {}", store.display());
        let why = format!("--pages and --total were changed {SPANS_LIMIT} times, and the store remembers no more");
        Err(Failure::new(Exit::USAGE, what, why, "give the numbers of the last run, or take a new store"))
    }

    /// Does in the transaction what the next commit is to do.
    fn change(&mut self, transaction: &Transaction, span: &Span) -> vellum::Result<()> {
        self.header.sequence += 1;
        let (seed, sequence) = (self.header.seed, self.header.sequence);
        let actions = self.state.step(seed, sequence, span);
        self.pages.resize(self.state.0.len(), None);
        for (slot, action) in actions {
            let place = &mut self.pages[slot as usize];
            let old = if action == Action::Overwrite { None } else { place.take() };
            if let Some(old) = old {
                transaction.free(old)?;
            }
            if action == Action::Empty {
                continue;
            }
            let page = match *place {
                Some(page) => page,
                None => *place.insert(transaction.allocate(class_of(slot))?),
            };
            content::fill(&mut transaction.overwrite(page)?, seed, slot, sequence);
        }
        transaction.set_header(&self.header.encode())
    }
}
