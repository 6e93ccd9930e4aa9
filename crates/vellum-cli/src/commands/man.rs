//! `vellum man`.

use clap_mangen::Man;

use crate::arguments::definition;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::Output;

/// Print the manual page, of the program or of a command
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The command; without one, the program's own page
    command: Option<String>,
}

impl Arguments {
    pub(crate) fn run(&self, output: &Output) -> Result<Exit> {
        let mut definition = definition();
        definition.build();
        let page = match &self.command {
            None => Man::new(definition),
            Some(name) => {
                let command = definition.find_subcommand(name).cloned().ok_or_else(|| {
                    let next = "'vellum --help' lists the commands";
                    Failure::new(Exit::USAGE, "cannot print a manual page", format_args!("no command {name:?}"), next)
                })?;
                Man::new(command).title(format!("vellum-{name}"))
            }
        };
        let mut text = Vec::new();
        page.render(&mut text).map_err(|error| Failure::output(&error))?;
        output.bytes(&text)?;
        Ok(Exit::DONE)
    }
}
