//! The exit codes: one table, printed in the manual page and relied on by scripts.

use std::process::ExitCode;

/// What a run of the program came to. Codes that are not in [`Exit::TABLE`] are to be taken as failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit(u8);

impl Exit {
    pub(crate) const DONE: Self = Self(0);
    pub(crate) const FAILED: Self = Self(1);
    pub(crate) const USAGE: Self = Self(2);
    pub(crate) const REPAIRABLE: Self = Self(3);
    pub(crate) const CORRUPT: Self = Self(4);
    pub(crate) const PARTLY: Self = Self(5);
    pub(crate) const NOT_A_STORE: Self = Self(10);
    pub(crate) const LOCKED: Self = Self(11);
    pub(crate) const UNSUPPORTED: Self = Self(12);
    pub(crate) const NO_SPACE: Self = Self(13);
    pub(crate) const MISSING: Self = Self(14);
    pub(crate) const INTERRUPTED: Self = Self(130);

    /// Every code of every command but `stress verify`, which has codes of its own.
    pub(crate) const TABLE: [(Self, &str); 12] = [
        (Self::DONE, "done; a check found nothing wrong"),
        (Self::FAILED, "the operation failed (an I/O error, or something unexpected)"),
        (Self::USAGE, "wrong usage"),
        (Self::REPAIRABLE, "finished; found problems that cost no data: leaks, or damage to what there is twice"),
        (Self::CORRUPT, "finished or stopped; found damaged or unreadable data"),
        (Self::PARTLY, "partly done: some work was kept, an error stopped the rest"),
        (Self::NOT_A_STORE, "the file or the entry was not found, or is no Vellum store"),
        (Self::LOCKED, "another process has the store open"),
        (Self::UNSUPPORTED, "a version, a feature or an application that this build or command does not know"),
        (Self::NO_SPACE, "no space"),
        (Self::MISSING, "a base or a snapshot is missing"),
        (Self::INTERRUPTED, "interrupted; the store is consistent"),
    ];

    /// A code outside of the table, for commands that have their own.
    pub(crate) const fn own(code: u8) -> Self {
        Self(code)
    }

    pub(crate) const fn code(self) -> u8 {
        self.0
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.0)
    }
}
