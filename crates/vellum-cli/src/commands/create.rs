//! `vellum create`.

use std::num::ParseIntError;
use std::path::PathBuf;

use serde::Serialize;
use vellum::{Background, Options, Pager};

use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::output::Output;

/// Create an empty store
///
/// A file whose creation was interrupted is taken over; any other file that exists is left alone.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The file to create
    store: PathBuf,
    /// The id of the application whose store it is to be, also as 0x and hexadecimal digits; 0 for none in particular
    #[arg(long, value_name = "ID", default_value_t = 0, value_parser = number)]
    application: u32,
    /// The version of that application's format
    #[arg(long, value_name = "VERSION", default_value_t = 0)]
    application_version: u32,
}

#[derive(Serialize)]
struct Created {
    path: String,
    store: String,
    bytes: u64,
}

/// A number as people write it, or as `info` prints ids.
fn number(text: &str) -> Result<u32, ParseIntError> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    }
}

impl Arguments {
    pub(crate) fn run(&self, output: &Output) -> Result<Exit> {
        let path = self.store.display();
        let failed = |error| Failure::store(format_args!("cannot create {path}"), &error);
        let options =
            Options::new().application(self.application, self.application_version).background(Background::Inline);
        let pager = Pager::create(&self.store, &options).map_err(failed)?;
        let status = pager.stats().status;
        pager.close().map_err(failed)?;
        let created = Created {
            path: path.to_string(),
            store: status.id.to_string(),
            bytes: status.blocks_total * vellum::BLOCK_BYTES,
        };
        output.summary("created", &created, format_args!("created {path}, store {}", created.store))?;
        Ok(Exit::DONE)
    }
}
