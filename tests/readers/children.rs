//! Children: this test program again, playing a part.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use vellum::{Error, PageId, Pager, Read, ReaderView, Writers};

use crate::{Way, assert_full, busy, fill, open};

const PART: &str = "VELLUM_TEST_PART";
const STORE: &str = "VELLUM_TEST_STORE";

/// A child that does what it is told, a line at a time, and answers each with a line.
pub(crate) struct Puppet {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Puppet {
    pub(crate) fn new(store: &Path) -> Self {
        Self::from(command(&std::env::current_exe().unwrap(), "puppet", store))
    }

    pub(crate) fn from(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut puppet = Self { child, orders, answers };
        // What the test harness says first is no answer.
        while puppet.line() != "ready" {}
        puppet
    }

    /// Gives an order, and waits for the answer.
    pub(crate) fn tell(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let count = self.answers.read_line(&mut line).unwrap();
        assert!(count > 0, "the child is gone");
        line.trim_end().to_owned()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command for a child that plays `part`.
pub(crate) fn command(program: &Path, part: &str, store: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["--exact", "children::a_part_is_played", "--nocapture", "--test-threads=1"]);
    command.env(PART, part).env(STORE, store).stdout(Stdio::null());
    command
}

/// Not a test by itself: what a child does.
#[test]
fn a_part_is_played() {
    let (Some(part), Some(store)) = (std::env::var_os(PART), std::env::var_os(STORE)) else { return };
    let (part, store) = (part.into_string().unwrap(), Path::new(&store));
    match part.as_str() {
        "puppet" => play_puppet(store),
        "bank" => crate::bank::play_writer(store),
        _ => crate::bank::play_reader(store, &part),
    }
    // The harness would say something about the test, and nobody listens any more.
    std::process::exit(0);
}

#[derive(Default)]
struct Stage {
    pager: Option<Pager>,
    reader: Option<vellum::ReadOnlyPager>,
    views: Vec<ReaderView>,
}

fn play_puppet(store: &Path) {
    // The harness has said the test's name without an end of line.
    println!("\nready");
    let mut stage = Stage::default();
    for order in std::io::stdin().lines() {
        let answer = match stage.obey(store, &order.unwrap()) {
            Ok(answer) => answer,
            Err(error) => format!("{} {error}", kind(&error)),
        };
        println!("{answer}");
    }
}

fn kind(error: &Error) -> &'static str {
    match error {
        Error::Locked { .. } => "Locked",
        Error::LockedByReaders { .. } => "LockedByReaders",
        Error::WriterSilent { .. } => "WriterSilent",
        Error::ReaderAhead { .. } => "ReaderAhead",
        _ => "Other",
    }
}

impl Stage {
    fn obey(&mut self, store: &Path, order: &str) -> vellum::Result<String> {
        let words: Vec<&str> = order.split(' ').collect();
        let number = |index: usize| words[index].parse::<u64>().unwrap();
        let page = |index: usize| PageId::from_u64(number(index)).unwrap();
        match words[0] {
            "write" => self.pager = Some(Pager::open(store, &busy())?),
            "close" => return self.pager.take().unwrap().close().map(|()| "done".to_owned()),
            "fill" => fill(self.pager.as_ref().unwrap(), &[page(1)], number(2) as u8),
            "churn" => {
                for byte in 0..number(2) {
                    fill(self.pager.as_ref().unwrap(), &[page(1)], byte as u8);
                    self.pager.as_ref().unwrap().checkpoint()?;
                }
            }
            "read" | "map" => {
                let way = if words[0] == "map" { Way::Mapped } else { Way::Frames };
                self.reader = Some(open(store, way, &vellum::ReaderOptions::new().name("puppet"))?);
                return Ok(format!("{:?}", self.reader.as_ref().unwrap().standing()));
            }
            "exclude" => {
                let options = vellum::ReaderOptions::new().writers(Writers::Excluded);
                self.reader = Some(open(store, Way::Frames, &options)?);
            }
            "refresh" => {
                let found = self.reader.as_ref().unwrap().refresh()?;
                return Ok(format!("{} {}", found.generation.0, if found.writer { "writer" } else { "alone" }));
            }
            "view" => self.views.push(self.reader.as_ref().unwrap().view()?),
            "check" => assert_full(&self.views[number(1) as usize], &[page(2)], number(3) as u8),
            "drop" => self.views.clear(),
            "header" => {
                let header = self.views[number(1) as usize].header();
                return Ok(format!("header {}", header.len()));
            }
            other => panic!("{other}"),
        }
        Ok("done".to_owned())
    }
}

/// A file that a child makes longer by a byte for each thing done.
pub(crate) fn progress(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).unwrap()
}
