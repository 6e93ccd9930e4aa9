//! How commands open stores.

use std::path::Path;
use std::sync::Arc;

use vellum::store::SystemEntropy;
use vellum::{Background, Error, Generation, Options, Pager};

use crate::failure::{Failure, Result};
use crate::overlay::Overlay;

/// Opens a store for commands that only read. What recovery has to write goes to memory, so the file is not changed,
/// need not be writable, and shows the same state that an open for writing would bring.
pub(crate) fn read_only(path: &Path) -> Result<Pager> {
    // Without a thread of its own: there is nothing to checkpoint.
    let options = Options::new().background(Background::Inline);
    Overlay::open(path)
        .and_then(|disk| Pager::open_on(Arc::new(disk), Box::new(SystemEntropy), &options))
        .map_err(|error| Failure::store(format_args!("cannot open {}", path.display()), &error))
}

/// A store that was opened, and of which something cannot be read.
pub(crate) fn failed_to_read(path: &Path, error: &Error) -> Failure {
    Failure::store(format_args!("cannot read {}", path.display()), error)
}

/// The generation that the file holds. The pager's own is one later: that of the opening record, which is in memory.
pub(crate) fn generation_of(pager: &Pager) -> Generation {
    Generation(pager.recovery().opened.0.saturating_sub(1))
}
