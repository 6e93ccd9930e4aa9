//! What went wrong, in three lines: what failed, why, and what to do next.

use std::fmt::Display;
use std::io;
use std::path::Path;

use vellum::Error;

use crate::exit::Exit;

/// The result of a command or of a part of one.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a command stops before its end, and with which exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// `None` for a reader of our output that went away: nothing is to be said of that.
    pub(crate) lines: Option<Box<Lines>>,
}

/// The three lines.
#[derive(Debug)]
pub(crate) struct Lines {
    /// What failed, with the path.
    pub(crate) what: String,
    /// Why: what was expected and what was found.
    pub(crate) why: String,
    /// What to try next.
    pub(crate) next: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, what: impl Display, why: impl Display, next: impl Display) -> Self {
        let lines = Lines { what: what.to_string(), why: why.to_string(), next: next.to_string() };
        Self { exit, lines: Some(Box::new(lines)) }
    }

    /// The failure of an operation on a store.
    pub(crate) fn store(what: impl Display, error: &Error) -> Self {
        Self::new(exit_of(error), what, error, advice(error))
    }

    /// The failure of an operation on a file that is not the store.
    pub(crate) fn file(operation: &str, path: &Path, error: &io::Error) -> Self {
        let exit = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Exit::NO_SPACE,
            kind if is_wrong_path(kind) => Exit::NOT_A_STORE,
            _ => Exit::FAILED,
        };
        Self::new(exit, format_args!("cannot {operation} {}", path.display()), error, io_advice(error.kind()))
    }

    /// The failure of our own standard output. A reader that went away has what it wanted: success.
    pub(crate) fn output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self { exit: Exit::DONE, lines: None };
        }
        Self::new(Exit::FAILED, "cannot write the results", error, "send standard output elsewhere")
    }

    pub(crate) fn interrupted(what: impl Display) -> Self {
        let next = "run the same command again to finish";
        Self::new(Exit::INTERRUPTED, what, "interrupted; the store is consistent", next)
    }

    /// The same failure where some of the work was kept.
    pub(crate) fn after_some_work(mut self, kept: impl Display) -> Self {
        if let Some(lines) = &mut self.lines
            && self.exit != Exit::INTERRUPTED
        {
            self.exit = Exit::PARTLY;
            lines.why = format!("{} ({kept})", lines.why);
        }
        self
    }
}

/// The exit code that says what kind of error this is.
pub(crate) fn exit_of(error: &Error) -> Exit {
    match error {
        _ if error.is_corruption() => Exit::CORRUPT,
        _ if error.is_no_space() => Exit::NO_SPACE,
        Error::Io { source, .. } if is_wrong_path(source.kind()) => Exit::NOT_A_STORE,
        Error::NotAStore { .. } | Error::IncompleteCreate { .. } | Error::NotAFile { .. } => Exit::NOT_A_STORE,
        Error::Locked { .. }
        | Error::OpenedTwice { .. }
        | Error::LockedByReaders { .. }
        | Error::WriterSilent { .. }
        | Error::ReaderAhead { .. }
        | Error::Busy => Exit::LOCKED,
        Error::UnsupportedVersion { .. } | Error::UnsupportedFeatures { .. } | Error::WrongApplication { .. } => {
            Exit::UNSUPPORTED
        }
        Error::SnapshotNotFound { .. } => Exit::MISSING,
        Error::PageNotFound { .. } => Exit::NOT_A_STORE,
        Error::InvalidOption { .. } => Exit::USAGE,
        _ => Exit::FAILED,
    }
}

fn advice(error: &Error) -> &'static str {
    match error {
        _ if error.is_corruption() => {
            "run 'vellum check --level full' for all that is wrong, and restore from a backup"
        }
        _ if error.is_no_space() => "free space on the disk, or remove something from the store, and try again",
        Error::Io { source, .. } => io_advice(source.kind()),
        Error::NotAStore { .. } | Error::NotAFile { .. } => {
            "give the path of a store; 'vellum create' makes one under a new name"
        }
        Error::IncompleteCreate { .. } => "create it again: 'vellum create' takes such a file over",
        Error::AlreadyExists { .. } => "choose another name, or use the store that is there",
        Error::ReaderAhead { .. } => "stop that reader, then open the store again",
        Error::SideFolder { .. } => "give the store's file one name only",
        Error::WriterSilent { .. } => "try again when its writer has recovered it, or is gone",
        Error::Locked { .. } | Error::OpenedTwice { .. } | Error::LockedByReaders { .. } | Error::Busy => {
            "wait until the other process is done with it, or stop that one"
        }
        Error::UnsupportedVersion { .. } | Error::UnsupportedFeatures { .. } => "use a newer vellum",
        Error::WrongApplication { .. } => "use the application that made this store",
        Error::Poisoned { .. } | Error::CommitUnknown { .. } => {
            "see to the disk, then open the store again: it recovers"
        }
        Error::PageNotFound { .. } => "'vellum inspect map' counts the pages that exist",
        Error::SnapshotNotFound { .. } => "check the name",
        Error::InvalidOption { .. } | Error::HeaderTooLarge { .. } | Error::InvalidName { .. } => {
            "choose another value"
        }
        _ => "run it again; if this comes back, report it with these three lines",
    }
}

/// Whether nothing can be there: no such name, a part of the path that is no folder, a name that is too long.
fn is_wrong_path(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename)
}

fn io_advice(kind: io::ErrorKind) -> &'static str {
    match kind {
        kind if is_wrong_path(kind) => "check the path",
        io::ErrorKind::PermissionDenied => "check the permissions of the file and of its folder",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free space on the disk, and try again",
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only: use another place",
        io::ErrorKind::AlreadyExists => "choose another name",
        io::ErrorKind::DirectoryNotEmpty => "move that folder away, or choose another place",
        _ => "see to the disk, then try again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let failure = Failure::output(&io::ErrorKind::BrokenPipe.into());
        assert_eq!((failure.exit, failure.lines.is_none()), (Exit::DONE, true));
        assert_eq!(Failure::output(&io::ErrorKind::StorageFull.into()).exit, Exit::FAILED);
    }

    #[test]
    fn work_that_was_kept_makes_a_failure_a_partial_success() {
        let full = Error::NoSpace { path: "x".into(), needed_blocks: 1, free_blocks: 0 };
        assert_eq!(Failure::store("import", &full).exit, Exit::NO_SPACE);
        assert_eq!(Failure::store("import", &full).after_some_work("3 batches kept").exit, Exit::PARTLY);
        assert_eq!(Failure::interrupted("import").after_some_work("3 batches kept").exit, Exit::INTERRUPTED);
    }
}
