//! A disk with faults: errors at chosen operations, and data that goes wrong without a word.
//!
//! A [`FaultPlan`] says at which operation, by its number among those it counts, something happens, and whether once or
//! from then on. Every plan counts how often it fired, so that a test can prove that it tested something. Where several
//! plans meet at one operation, the first one made applies.
//!
//! Callers: tests, and users' tests. Any thread.

use std::io::{self, IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::{Disk, pieces};
use crate::id::BLOCK_BYTES;

/// A method of [`Disk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Disk::read_vectored_at`].
    Read,
    /// [`Disk::write_vectored_at`].
    Write,
    /// [`Disk::write_durable_at`].
    DurableWrite,
    /// [`Disk::sync`].
    Sync,
    /// [`Disk::length`].
    Length,
    /// [`Disk::set_length`].
    SetLength,
    /// [`Disk::preallocate`].
    Preallocate,
    /// [`Disk::punch_hole`].
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

    fn changes(self) -> bool {
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
    fn include(self, operation: Operation) -> bool {
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
    fn to_error(self) -> io::Error {
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
    fn applies_to(self, operation: Operation, length: u64) -> bool {
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

/// The name of a plan, for asking how often it fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlanNumber(usize);

/// A disk that passes on every operation to another one, except where a plan says otherwise.
#[derive(Debug)]
pub struct FaultyDisk {
    disk: Arc<dyn Disk>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    counts: [u64; Operation::ALL.len()],
    plans: Vec<Plan>,
    rot: Vec<Rot>,
}

#[derive(Debug)]
struct Plan {
    plan: FaultPlan,
    seen: u64,
    fired: u64,
}

/// Bits that read wrong.
#[derive(Debug)]
struct Rot {
    offset: u64,
    mask: u8,
    fired: u64,
}

impl FaultyDisk {
    /// A disk without faults so far.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, state: Mutex::default() }
    }

    /// Adds a plan.
    pub fn plan(&self, plan: FaultPlan) -> PlanNumber {
        let mut state = self.state();
        state.plans.push(Plan { plan, seen: 0, fired: 0 });
        PlanNumber(state.plans.len() - 1)
    }

    /// Adds a plan that lets the `nth` of `operations` fail with `error`, with nothing done.
    pub fn fail(&self, operations: Operations, nth: u64, span: Span, error: SystemError) -> PlanNumber {
        let effect = Effect::Fail { error, performed: Performed::Nothing };
        self.plan(FaultPlan { operations, nth, span, effect })
    }

    /// From now on the byte at `offset` of the file reads with the bits of `mask` changed, whatever is written there.
    pub fn rot(&self, offset: u64, mask: u8) {
        self.state().rot.push(Rot { offset, mask, fired: 0 });
    }

    /// Ends all plans and all rot. What they did to the file stays, and so do the counts.
    pub fn heal(&self) {
        let mut state = self.state();
        state.plans.iter_mut().for_each(|plan| plan.plan.nth = u64::MAX);
        state.rot.iter_mut().for_each(|rot| rot.mask = 0);
    }

    /// How often a plan fired.
    pub fn fired(&self, plan: PlanNumber) -> u64 {
        self.state().plans.get(plan.0).map_or(0, |plan| plan.fired)
    }

    /// How often any plan fired, and any rotten byte was read.
    pub fn fired_total(&self) -> u64 {
        let state = self.state();
        state.plans.iter().map(|plan| plan.fired).sum::<u64>() + state.rot.iter().map(|rot| rot.fired).sum::<u64>()
    }

    /// How many operations of these kinds were asked for.
    pub fn count(&self, operations: Operations) -> u64 {
        let state = self.state();
        Operation::ALL.iter().filter(|kind| operations.include(**kind)).map(|&kind| state.counts[kind as usize]).sum()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation, and says what is to happen to it.
    fn enter(&self, operation: Operation, length: u64) -> Option<Effect> {
        let mut state = self.state();
        state.counts[operation as usize] += 1;
        let mut effect = None;
        for plan in state.plans.iter_mut().filter(|plan| plan.plan.operations.include(operation)) {
            plan.seen += 1;
            let due = match plan.plan.span {
                Span::Once => plan.seen == plan.plan.nth,
                Span::FromThenOn => plan.seen >= plan.plan.nth,
            };
            if due && effect.is_none() && plan.plan.effect.applies_to(operation, length) {
                plan.fired += 1;
                effect = Some(plan.plan.effect);
            }
        }
        effect
    }

    /// Enters an operation that transfers nothing.
    fn without_bytes(&self, operation: Operation, perform: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self.enter(operation, 0) {
            Some(Effect::Fail { error, performed: Performed::All }) => perform().and(Err(error.to_error())),
            Some(Effect::Fail { error, .. }) => Err(error.to_error()),
            Some(Effect::Lose) => Ok(()),
            _ => perform(),
        }
    }

    /// Enters a write; `perform` is that of the disk below, `halfway` the one that half of the bytes go by.
    fn write(
        &self,
        operation: Operation,
        offset: u64,
        buffers: &[IoSlice<'_>],
        perform: impl Fn(u64, &[IoSlice<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        let length: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        let bytes = || buffers.iter().flat_map(|buffer| buffer.iter().copied());
        match self.enter(operation, length as u64) {
            None => perform(offset, buffers),
            Some(Effect::Lose) => Ok(()),
            Some(Effect::Misdirect { offset }) => perform(offset, buffers),
            Some(Effect::Flip { byte, mask }) => {
                let mut changed: Vec<u8> = bytes().collect();
                changed[byte as usize] ^= mask;
                perform(offset, &[IoSlice::new(&changed)])
            }
            Some(Effect::Fail { error, performed }) => {
                match performed {
                    Performed::Nothing => {}
                    Performed::Half => {
                        let half: Vec<u8> = bytes().take(length / 2).collect();
                        self.disk.write_at(offset, &half)?;
                    }
                    Performed::All => perform(offset, buffers)?,
                }
                Err(error.to_error())
            }
        }
    }

    /// Changes the rotten bits of what was read from `offset` on.
    fn rot_read(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) {
        let mut state = self.state();
        if state.rot.iter().all(|rot| rot.mask == 0) {
            return;
        }
        for piece in pieces::of_read(offset, buffers) {
            let start = piece.block * BLOCK_BYTES + piece.start as u64;
            for rot in state.rot.iter_mut().filter(|rot| rot.mask != 0) {
                let place = rot.offset.checked_sub(start).and_then(|place| usize::try_from(place).ok());
                if let Some(byte) = place.and_then(|place| piece.bytes.get_mut(place)) {
                    *byte ^= rot.mask;
                    rot.fired += 1;
                }
            }
        }
    }
}

impl Disk for FaultyDisk {
    fn path(&self) -> &Path {
        self.disk.path()
    }

    fn read_vectored_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let length = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        let effect = self.enter(Operation::Read, length);
        let source = match effect {
            Some(Effect::Fail { error, performed: Performed::Nothing }) => return Err(error.to_error()),
            Some(Effect::Misdirect { offset }) => offset,
            _ => offset,
        };
        self.disk.read_vectored_at(source, buffers)?;
        self.rot_read(source, buffers);
        match effect {
            Some(Effect::Fail { error, .. }) => Err(error.to_error()),
            Some(Effect::Flip { byte, mask }) => {
                let mut bytes = buffers.iter_mut().flat_map(|buffer| buffer.iter_mut());
                bytes.nth(byte as usize).into_iter().for_each(|byte| *byte ^= mask);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn write_vectored_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.write(Operation::Write, offset, buffers, |offset, buffers| self.disk.write_vectored_at(offset, buffers))
    }

    fn write_durable_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.write(Operation::DurableWrite, offset, buffers, |offset, buffers| {
            self.disk.write_durable_at(offset, buffers)
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.without_bytes(Operation::Sync, || self.disk.sync())
    }

    fn length(&self) -> io::Result<u64> {
        self.without_bytes(Operation::Length, || Ok(()))?;
        self.disk.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.without_bytes(Operation::SetLength, || self.disk.set_length(length))
    }

    fn preallocate(&self, offset: u64, length: u64) -> io::Result<()> {
        self.without_bytes(Operation::Preallocate, || self.disk.preallocate(offset, length))
    }

    fn punch_hole(&self, offset: u64, length: u64) -> io::Result<()> {
        self.without_bytes(Operation::PunchHole, || self.disk.punch_hole(offset, length))
    }
}
