//! `vellum completions`.

use clap_complete::Shell;

use crate::arguments::definition;
use crate::exit::Exit;
use crate::failure::Result;
use crate::output::Output;

/// Print completions for a shell
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Arguments {
    pub(crate) fn run(&self, output: &Output) -> Result<Exit> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut definition(), "vellum", &mut script);
        output.bytes(&script)?;
        Ok(Exit::DONE)
    }
}
