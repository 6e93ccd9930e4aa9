//! `vellum man`.

use clap_mangen::Man;

use crate::arguments::definition;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::Output;

/// Print the manual page, of the program or of a command
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The command, and the one within it if it has any ('stress verify'); without one, the program's own page
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

impl Arguments {
    pub(crate) fn run(&self, output: &Output) -> Result<Exit> {
        let mut definition = definition();
        definition.build();
        // Pages refer to each other by titles like `vellum-stress-verify`.
        let names: Vec<&str> = self.command.iter().flat_map(|name| name.split('-')).collect();
        let mut command = &definition;
        for name in &names {
            command = command.find_subcommand(name).ok_or_else(|| unknown(command, name))?;
        }
        let title = [&["vellum"], &names[..]].concat().join("-");
        let page = Man::new(command.clone()).title(title);
        let mut text = Vec::new();
        page.render(&mut text).map_err(|error| Failure::output(&error))?;
        output.bytes(&text)?;
        Ok(Exit::DONE)
    }
}

fn unknown(command: &clap::Command, name: &str) -> Failure {
    let command = command.get_bin_name().unwrap_or("vellum");
    let (why, next) = (format!("{command} has no command {name:?}"), format!("'{command} --help' lists the commands"));
    Failure::new(Exit::USAGE, "cannot print a manual page", why, next)
}
