//! What may be done with memory, as types: a mark for each of reading, writing and executing.

/// Data may be read.
#[derive(Debug)]
pub enum AllowRead {}
/// Data may not be read.
#[derive(Debug)]
pub enum DenyRead {}
/// Data may be written.
#[derive(Debug)]
pub enum AllowWrite {}
/// Data may not be written.
#[derive(Debug)]
pub enum DenyWrite {}
/// Data may be executed as machine code.
#[derive(Debug)]
pub enum AllowExec {}
/// Data may not be executed.
#[derive(Debug)]
pub enum DenyExec {}

/// [`AllowRead`] or [`DenyRead`].
pub trait ReadMark: sealed::Mark {}
/// [`AllowWrite`] or [`DenyWrite`].
pub trait WriteMark: sealed::Mark {}
/// [`AllowExec`] or [`DenyExec`].
pub trait ExecMark: sealed::Mark {}

/// A combination of three marks that memory may have: all but writing together with executing, and that one too with
/// the feature `write-exec` (M3).
pub trait Permissions: sealed::Permissions {}

/// What the hardware is told: the marks as values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Protection {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) exec: bool,
}

impl Protection {
    /// The value of a combination of marks.
    pub(super) const fn of<P: Permissions>() -> Self {
        let (read, write, exec) = P::ALLOWED;
        Self { read, write, exec }
    }
}

mod sealed {
    pub trait Mark {
        const ALLOWED: bool;
    }

    pub trait Permissions {
        /// Reading, writing, executing.
        const ALLOWED: (bool, bool, bool);
    }
}

macro_rules! mark {
    ($kind:ident: $allow:ident, $deny:ident) => {
        impl $kind for $allow {}
        impl $kind for $deny {}
        impl sealed::Mark for $allow {
            const ALLOWED: bool = true;
        }
        impl sealed::Mark for $deny {
            const ALLOWED: bool = false;
        }
    };
}

mark!(ReadMark: AllowRead, DenyRead);
mark!(WriteMark: AllowWrite, DenyWrite);
mark!(ExecMark: AllowExec, DenyExec);

impl<R: ReadMark, X: ExecMark> Permissions for (R, DenyWrite, X) {}
impl<R: ReadMark, X: ExecMark> sealed::Permissions for (R, DenyWrite, X) {
    const ALLOWED: (bool, bool, bool) = (R::ALLOWED, false, X::ALLOWED);
}

impl<R: ReadMark> Permissions for (R, AllowWrite, DenyExec) {}
impl<R: ReadMark> sealed::Permissions for (R, AllowWrite, DenyExec) {
    const ALLOWED: (bool, bool, bool) = (R::ALLOWED, true, false);
}

#[cfg(feature = "write-exec")]
impl<R: ReadMark> Permissions for (R, AllowWrite, AllowExec) {}
#[cfg(feature = "write-exec")]
impl<R: ReadMark> sealed::Permissions for (R, AllowWrite, AllowExec) {
    const ALLOWED: (bool, bool, bool) = (R::ALLOWED, true, true);
}
