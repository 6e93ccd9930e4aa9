//! The command line of Vellum: `vellum --help` says what it does.
//!
//! - **C1** Results go to standard output, progress and complaints to standard error (`output`).
//! - **C2** Every way to end has its exit code (`exit`), and every failure its three lines (`failure`).
//! - **C3** Commands that read open the file for reading only, and change no byte of it (`overlay`, `survey`).
//! - **C4** Nothing here is needed for durability: what a command promises is what `vellum` promises it.

mod arguments;
mod commands;
mod exit;
mod failure;
mod interrupt;
mod open;
mod output;
mod overlay;
mod progress;
mod survey;
mod time;
mod tree;

use std::process::ExitCode;

use exit::Exit;
use failure::Result;
use output::Output;

fn main() -> ExitCode {
    let arguments = match arguments::parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(exit) => return exit.into(),
    };
    let output = arguments.global.output(arguments.command.audience());
    let result = interrupt::outlive_file_limits().and_then(|()| arguments.command.run(&output));
    let exit = result.and_then(|exit| finish(&output, exit)).unwrap_or_else(|failure| {
        // What was found before the failure is still worth having.
        let _ = output.flush();
        output.failure(&failure);
        failure.exit
    });
    exit.into()
}

/// Sends off what is left of the results. The command is done: that nobody reads them changes nothing of what it came
/// to.
fn finish(output: &Output, exit: Exit) -> Result<Exit> {
    match output.flush() {
        Err(failure) if failure.lines.is_some() => Err(failure),
        _ => Ok(exit),
    }
}
