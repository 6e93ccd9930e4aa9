//! `vellum stress`: for people who want to test their own disk, by pulling the plug on it.
//!
//! `write` makes commits and acknowledges each; `verify` says afterwards whether what was acknowledged is there.
//! Everything that a store of this kind holds follows from a seed, drawn when it was created, and from the sequence
//! number of its newest commit: so any one state can be computed anew and compared byte by byte.
//!
//! - **S1** The user header has the seed, the sequence number, and how many pages commits change since when (`header`).
//! - **S2** What a commit does follows from seed, sequence number and those numbers (`plan`).
//! - **S3** A page's bytes follow from seed, slot and the sequence number of the commit that wrote it (`content`).
//! - **S4** `write` uses one thread and plain positioned calls on the store's path: checkpoints are made inline.

mod content;
mod header;
mod plan;
mod verify;
mod write;

use std::ffi::OsString;

use clap::Subcommand;
use vellum::disk::Caching;
use vellum::{Background, Options};

use crate::arguments::words;
use crate::exit::Exit;
use crate::failure::Result;
use crate::output::Output;

/// The application id of stores that `vellum stress` creates: `strs`.
const APPLICATION: u32 = u32::from_le_bytes(*b"strs");
const APPLICATION_VERSION: u32 = 1;

/// The exit code for a wrong command line of `stress verify`.
pub(crate) const WRONG_USAGE: Exit = Exit::own(64);

/// Test a disk: make commits, cut the power, see whether they are there
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Verb {
    Write(write::Arguments),
    Verify(verify::Arguments),
}

impl Arguments {
    pub(crate) fn run(&self, output: &Output) -> Result<Exit> {
        match &self.verb {
            Verb::Write(arguments) => arguments.run(output),
            Verb::Verify(arguments) => arguments.run(output),
        }
    }
}

/// Whether a command line is one of `stress verify`.
pub(crate) fn is_verify(arguments: &[OsString]) -> bool {
    matches!(words(arguments)[..], [command, verb, ..] if arguments[command] == "stress" && arguments[verb] == "verify")
}

/// How such a store is opened (S4).
fn options() -> Options {
    Options::new()
        .application(APPLICATION, APPLICATION_VERSION)
        .background(Background::Inline)
        .caching(Caching::Buffered)
}

/// Random numbers that follow from a seed (SplitMix64, by Steele, Lea and Flood).
#[derive(Clone, Copy, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `limit`, which is not zero.
    fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }
}
