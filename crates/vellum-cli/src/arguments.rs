//! What can be said on the command line. Help, manual page and completions come from these definitions.

use std::ffi::OsString;

use clap::{ArgAction, CommandFactory, Parser, Subcommand};

use crate::commands::{cat, check, completions, create, export, import, info, inspect, ls, man, readers, stat, stress};
use crate::exit::Exit;
use crate::failure::Result;
use crate::output::{Audience, Format, Output, When};

/// Work with Vellum stores: crash-consistent page stores, each in one file.
#[derive(Debug, Parser)]
#[command(name = "vellum", version, max_term_width = 100, after_help = exit_codes())]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// Write results as JSON lines
    #[arg(long, global = true, env = "VELLUM_JSON", value_parser = clap::builder::FalseyValueParser::new())]
    json: bool,
    /// Say nothing but errors, and what was asked for: no summary, note or warning. JSON stays whole
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more; twice, still more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Colour on standard error; NO_COLOR is respected
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value = "auto", env = "VELLUM_COLOR")]
    color: When,
    /// Progress on standard error
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value = "auto", env = "VELLUM_PROGRESS")]
    progress: When,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Create(create::Arguments),
    Info(info::Arguments),
    Check(check::Arguments),
    Import(import::Arguments),
    Export(export::Arguments),
    Ls(ls::Arguments),
    Cat(cat::Arguments),
    Inspect(inspect::Arguments),
    Readers(readers::Arguments),
    Stat(stat::Arguments),
    Stress(stress::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
}

impl Command {
    /// Who does something but print goes on if nobody listens. `stress write` does not: it is there for its
    /// acknowledgements, and says that it stopped.
    pub(crate) fn audience(&self) -> Audience {
        match self {
            Self::Create(_) | Self::Check(_) | Self::Import(_) | Self::Export(_) => Audience::Welcome,
            _ => Audience::Needed,
        }
    }

    pub(crate) fn run(&self, output: &Output) -> Result<Exit> {
        match self {
            Self::Create(arguments) => arguments.run(output),
            Self::Info(arguments) => arguments.run(output),
            Self::Check(arguments) => arguments.run(output),
            Self::Import(arguments) => arguments.run(output),
            Self::Export(arguments) => arguments.run(output),
            Self::Ls(arguments) => arguments.run(output),
            Self::Cat(arguments) => arguments.run(output),
            Self::Inspect(arguments) => arguments.run(output),
            Self::Readers(arguments) => arguments.run(output),
            Self::Stat(arguments) => arguments.run(output),
            Self::Stress(arguments) => arguments.run(output),
            Self::Completions(arguments) => arguments.run(output),
            Self::Man(arguments) => arguments.run(output),
        }
    }
}

impl Global {
    pub(crate) fn output(&self, audience: Audience) -> Output {
        let format = if self.json { Format::Json } else { Format::Text };
        let verbosity = if self.quiet { -1 } else { i8::try_from(self.verbose).unwrap_or(i8::MAX) };
        Output::new(format, verbosity, self.progress, self.color, audience)
    }
}

/// The whole command line, for the manual page and for completions.
pub(crate) fn definition() -> clap::Command {
    Arguments::command()
}

/// Takes the command line apart, or says what is wrong with it and gives the exit code.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Arguments, Exit> {
    let arguments: Vec<OsString> = inspect::noun_first(arguments.collect());
    Arguments::try_parse_from(&arguments).map_err(|error| {
        let wrong = error.use_stderr();
        // If that cannot be written, the exit code still says it.
        let _ = error.print();
        match wrong {
            false => Exit::DONE,
            true if stress::is_verify(&arguments) => stress::WRONG_USAGE,
            true => Exit::USAGE,
        }
    })
}

/// The positions of the words that are no flags and no values of global flags: command, subcommand, operands.
pub(crate) fn words(arguments: &[OsString]) -> Vec<usize> {
    let mut positions = Vec::new();
    let mut value = false;
    for (position, argument) in arguments.iter().enumerate().skip(1) {
        let is_flag = argument.as_encoded_bytes().starts_with(b"-");
        if !value && !is_flag {
            positions.push(position);
        }
        value = argument == "--color" || argument == "--progress";
    }
    positions
}

fn exit_codes() -> String {
    let lines: Vec<String> =
        Exit::TABLE.iter().map(|(exit, meaning)| format!("  {:>3}  {meaning}", exit.code())).collect();
    format!("Exit codes:\n{}\n  Any other code is a failure. 'stress verify' has codes of its own.", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_hold_together() {
        definition().debug_assert();
    }

    #[test]
    fn inspect_takes_store_and_noun_in_either_order() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let expected = words("vellum inspect page store 12:3 --json");
        assert_eq!(inspect::noun_first(words("vellum inspect store page 12:3 --json")), expected);
        assert_eq!(inspect::noun_first(expected.clone()), expected);
        for line in ["vellum inspect format", "vellum inspect", "vellum cat inspect map", "vellum inspect map map"] {
            assert_eq!(inspect::noun_first(words(line)), words(line));
        }
    }
}
