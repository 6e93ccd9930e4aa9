//! Ctrl-C in jobs that can stop at a better place than where they are. A second one stops at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGXFSZ};
use signal_hook::flag;

use crate::exit::Exit;
use crate::failure::{Failure, Result};

/// Lets a write beyond the limit on the length of files (`ulimit -f`) be an error like any other: the signal that comes
/// with it would end the program without a word.
pub(crate) fn outlive_file_limits() -> Result<()> {
    let registered = flag::register(SIGXFSZ, Arc::default());
    let failed = |error: io::Error| Failure::new(Exit::FAILED, "cannot take over a signal", error, "try again");
    registered.map(drop).map_err(failed)
}

/// Whether somebody wants this job to stop.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes SIGINT over, for the rest of the program.
    pub(crate) fn watch() -> Result<Self> {
        let wanted = Arc::new(AtomicBool::new(false));
        // In this order: the first signal finds the flag down and only raises it, the second finds it up.
        flag::register_conditional_shutdown(SIGINT, Exit::INTERRUPTED.code().into(), Arc::clone(&wanted))
            .and_then(|_| flag::register(SIGINT, Arc::clone(&wanted)))
            .map_err(|error: io::Error| Failure::new(Exit::FAILED, "cannot watch for Ctrl-C", error, "try again"))?;
        Ok(Self(wanted))
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
