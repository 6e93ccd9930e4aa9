//! `vellum cat`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::ls::Wanted;
use crate::exit::Exit;
use crate::failure::{Failure, Result};
use crate::open;
use crate::output::Output;
use crate::tree::{self, Kind};

/// Write a file of an imported tree to standard output
///
/// A writer is kept out while this runs, and one that has the store open keeps this out (exit code 11).
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store
    store: PathBuf,
    /// The file's path in the tree
    path: OsString,
}

impl Arguments {
    pub(crate) fn run(&self, output: &Output) -> Result<Exit> {
        let pager = open::read_only(&self.store)?;
        let view = pager.view();
        let (path, store) = (self.path.as_bytes(), self.store.display());
        let what = format!("cannot read {} in {store}", self.path.display());
        let failed = |error: tree::TreeError| error.failure(&what);
        let is_folder = || Failure::new(Exit::FAILED, &what, "it is a folder", "'vellum ls' lists folders");
        let wanted = Wanted::of(path);
        if wanted.is_root() {
            return Err(is_folder());
        }
        let found = tree::find(&view, wanted.path).map_err(failed)?.filter(|entry| wanted.is(entry));
        let entry = found.ok_or_else(|| wanted.not_found(&pager, &self.store))?;
        match &entry.kind {
            Kind::File { .. } => tree::content(&view, &entry, &mut |bytes| output.bytes(bytes)).map_err(failed)??,
            Kind::Link { target } => {
                let why = format!("it is a symbolic link to {}", String::from_utf8_lossy(target));
                return Err(Failure::new(Exit::FAILED, what, why, "give the path that the link leads to"));
            }
            Kind::Folder => return Err(is_folder()),
        }
        Ok(Exit::DONE)
    }
}
