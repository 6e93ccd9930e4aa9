//! What can go wrong with a [`FaultyDisk`](super::FaultyDisk), and when.

use std::io;

use rustix::io::Errno;

/// A method of [`Disk`](super::Disk).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Disk::read_vectored_at`](super::Disk::read_vectored_at).
    Read,
    /// [`Disk::write_vectored_at`](super::Disk::write_vectored_at).
    Write,
    /// [`Disk::write_durable_at`](super::Disk::write_durable_at).
    DurableWrite,
    /// [`Disk::sync`](super::Disk::sync).
    Sync,
    /// [`Disk::length`](super::Disk::length).
    Length,
    /// [`Disk::set_length`](super::Disk::set_length).
    SetLength,
    /// [`Disk::preallocate`](super::Disk::preallocate).
    Preallocate,
    /// [`Disk::punch_hole`](super::Disk::punch_hole).
    PunchHole,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 8] = [
        Self::Read,
        Self::Write,
        Self::DurableWrite,
        Self::Sync,
        Self::Length,
        Self::SetLength,
        Self::Preallocate,
        Self::PunchHole,
    ];

    pub(super) fn changes(self) -> bool {
        !matches!(self, Self::Read | Self::Length)
    }
}

/// Which operations a plan counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operations {
    /// All.
    Any,
    /// All that change the file or make changes durable.
    Changing,
    /// Those of one kind.
    Only(Operation),
}

impl Operations {
    pub(super) fn include(self, operation: Operation) -> bool {
        match self {
            Self::Any => true,
            Self::Changing => operation.changes(),
            Self::Only(kind) => kind == operation,
        }
    }
}

/// How often a plan fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// At one operation.
    Once,
    /// At that operation and all later ones.
    FromThenOn,
}

/// How much of an operation is done although it fails. An operation without bytes is done or not: half of it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Performed {
    /// Nothing.
    Nothing,
    /// The first half of a transfer's bytes; those of a durable write are not durable.
    Half,
    /// All: only the answer is an error.
    All,
}

/// An error of the operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SystemError {
    /// EIO.
    Io,
    /// ENOSPC.
    NoSpace,
    /// EDQUOT.
    Quota,
    /// EFBIG.
    FileTooLarge,
    /// EAGAIN.
    Again,
    /// EINTR.
    Interrupted,
    /// ESTALE.
    Stale,
    /// ENXIO.
    NoDevice,
}

impl SystemError {
    pub(super) fn to_error(self) -> io::Error {
        match self {
            Self::Io => Errno::IO,
            Self::NoSpace => Errno::NOSPC,
            Self::Quota => Errno::DQUOT,
            Self::FileTooLarge => Errno::FBIG,
            Self::Again => Errno::AGAIN,
            Self::Interrupted => Errno::INTR,
            Self::Stale => Errno::STALE,
            Self::NoDevice => Errno::NXIO,
        }
        .into()
    }
}

/// What happens at an operation. What does not apply to it (a misdirected sync) does not fire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails.
    Fail {
        /// The answer.
        error: SystemError,
        /// What is done all the same.
        performed: Performed,
    },
    /// It does nothing, and succeeds: a lost write, a sync that is a lie.
    Lose,
    /// A read or write goes to this byte offset instead of its own.
    Misdirect {
        /// The offset.
        offset: u64,
    },
    /// A read or write transfers bytes of which one is changed.
    Flip {
        /// The byte, counted from the transfer's first. A shorter transfer is not changed.
        byte: u64,
        /// The bits that change.
        mask: u8,
    },
}

impl Effect {
    pub(super) fn applies_to(self, operation: Operation, length: u64) -> bool {
        let transfers = matches!(operation, Operation::Read | Operation::Write | Operation::DurableWrite);
        match self {
            Self::Fail { .. } => true,
            Self::Lose => operation.changes(),
            Self::Misdirect { .. } => transfers,
            Self::Flip { byte, mask } => transfers && mask != 0 && byte < length,
        }
    }
}

/// When something is to happen, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultPlan {
    /// The operations that are counted.
    pub operations: Operations,
    /// The number of the first one to be hit, counted from when the plan is made; the next one is 1.
    pub nth: u64,
    /// How often.
    pub span: Span,
    /// What happens.
    pub effect: Effect,
}
