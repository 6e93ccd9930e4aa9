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

use super::fault::{Effect, FaultPlan, Operation, Operations, Performed, Span, SystemError};
use super::{Disk, pieces};
use crate::id::BLOCK_BYTES;

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

    /// Enters a write; `perform` is that of the disk below. Half of a write goes by a plain one, durable or not.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use crate::id::BLOCK_LENGTH;
    use rustix::io::Errno;

    const TWO_BLOCKS: usize = 2 * BLOCK_LENGTH;

    /// Two blocks: one of ones, one of twos.
    fn disk() -> (Arc<MemoryDisk>, FaultyDisk) {
        let below = Arc::new(MemoryDisk::from_bytes(&[[1; BLOCK_LENGTH], [2; BLOCK_LENGTH]].concat()));
        (Arc::clone(&below), FaultyDisk::new(below))
    }

    fn once(operation: Operation, nth: u64, effect: Effect) -> FaultPlan {
        FaultPlan { operations: Operations::Only(operation), nth, span: Span::Once, effect }
    }

    /// Asks for an operation of each kind, in the order of [`Operation::ALL`].
    fn each_operation(disk: &FaultyDisk) -> [io::Result<()>; 8] {
        [
            disk.read_at(0, &mut [0]),
            disk.write_at(0, &[1]),
            disk.write_durable_at(0, &[IoSlice::new(&[1])]),
            disk.sync(),
            disk.length().map(|_| ()),
            disk.set_length(TWO_BLOCKS as u64),
            disk.preallocate(0, BLOCK_BYTES),
            disk.punch_hole(0, 1),
        ]
    }

    #[test]
    fn the_nth_operation_of_a_kind_fails_and_no_other() {
        for (place, kind) in Operation::ALL.into_iter().enumerate() {
            let (_, disk) = disk();
            let plan = disk.fail(Operations::Only(kind), 2, Span::Once, SystemError::Io);
            for round in 1..=3 {
                for (other, result) in each_operation(&disk).into_iter().enumerate() {
                    let failed = result.is_err_and(|error| error.raw_os_error() == Some(Errno::IO.raw_os_error()));
                    assert_eq!(failed, other == place && round == 2, "{kind:?}, round {round}");
                }
            }
            assert_eq!((disk.fired(plan), disk.fired_total(), disk.count(Operations::Only(kind))), (1, 1, 3));
        }
    }

    #[test]
    fn operations_are_counted_over_all_kinds_too() {
        let (_, disk) = disk();
        let any = disk.fail(Operations::Any, 10, Span::FromThenOn, SystemError::Quota);
        let results: Vec<_> = [each_operation(&disk), each_operation(&disk)].into_iter().flatten().collect();
        assert!(results[..9].iter().all(Result::is_ok));
        assert!(
            results[9..]
                .iter()
                .all(|result| { result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::QuotaExceeded) })
        );
        assert_eq!(disk.fired(any), 7);
        assert_eq!((disk.count(Operations::Any), disk.count(Operations::Changing)), (16, 12));
        disk.heal();
        assert!(each_operation(&disk).iter().all(Result::is_ok));
        assert_eq!(disk.fired(any), 7);
    }

    #[test]
    fn every_system_error_is_the_one_that_the_system_gives() {
        for (error, kind) in [
            (SystemError::NoSpace, io::ErrorKind::StorageFull),
            (SystemError::Quota, io::ErrorKind::QuotaExceeded),
            (SystemError::FileTooLarge, io::ErrorKind::FileTooLarge),
            (SystemError::Again, io::ErrorKind::WouldBlock),
            (SystemError::Interrupted, io::ErrorKind::Interrupted),
            (SystemError::Stale, io::ErrorKind::StaleNetworkFileHandle),
        ] {
            assert_eq!(error.to_error().kind(), kind);
        }
        assert_eq!(SystemError::NoDevice.to_error().raw_os_error(), Some(Errno::NXIO.raw_os_error()));
    }

    #[test]
    fn a_failing_write_is_done_not_at_all_or_half_or_whole() {
        for kind in [Operation::Write, Operation::DurableWrite] {
            for (performed, ones) in
                [(Performed::Nothing, TWO_BLOCKS), (Performed::Half, BLOCK_LENGTH), (Performed::All, 0)]
            {
                let below = Arc::new(MemoryDisk::from_bytes(&[1; TWO_BLOCKS]));
                let disk = FaultyDisk::new(Arc::clone(&below) as Arc<dyn Disk>);
                disk.plan(once(kind, 1, Effect::Fail { error: SystemError::NoSpace, performed }));
                let buffers = [[7; BLOCK_LENGTH], [7; BLOCK_LENGTH]];
                let buffers = [IoSlice::new(&buffers[0]), IoSlice::new(&buffers[1])];
                let result = match kind {
                    Operation::Write => disk.write_vectored_at(0, &buffers),
                    _ => disk.write_durable_at(0, &buffers),
                };
                assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
                assert_eq!(below.to_bytes().iter().filter(|&&byte| byte == 1).count(), ones);
                assert_eq!(disk.fired_total(), 1);
            }
        }
    }

    #[test]
    fn a_failing_operation_without_bytes_is_done_or_not() {
        for (performed, length) in [(Performed::Nothing, 0), (Performed::Half, 0), (Performed::All, 100)] {
            let below = Arc::new(MemoryDisk::new());
            let disk = FaultyDisk::new(Arc::clone(&below) as Arc<dyn Disk>);
            disk.plan(once(Operation::SetLength, 1, Effect::Fail { error: SystemError::Io, performed }));
            disk.set_length(100).unwrap_err();
            assert_eq!(below.length().unwrap(), length);
        }
    }

    #[test]
    fn a_lost_write_succeeds_and_changes_nothing() {
        let (below, disk) = disk();
        let plan = disk.plan(once(Operation::Write, 2, Effect::Lose));
        disk.write_at(0, &[7]).unwrap();
        disk.write_at(1, &[7]).unwrap();
        disk.write_at(2, &[7]).unwrap();
        assert_eq!(below.to_bytes()[..4], [7, 1, 7, 1]);
        assert_eq!(disk.fired(plan), 1);
    }

    #[test]
    fn misdirected_transfers_go_elsewhere() {
        let (below, disk) = disk();
        disk.plan(once(Operation::Write, 1, Effect::Misdirect { offset: BLOCK_BYTES }));
        disk.plan(once(Operation::Read, 1, Effect::Misdirect { offset: BLOCK_BYTES }));
        disk.write_at(0, &[7]).unwrap();
        assert_eq!((below.to_bytes()[0], below.to_bytes()[BLOCK_LENGTH]), (1, 7));
        let mut bytes = [0; 2];
        disk.read_at(0, &mut bytes).unwrap();
        assert_eq!(bytes, [7, 2]);
        disk.read_at(0, &mut bytes).unwrap();
        assert_eq!((bytes, disk.fired_total()), ([1, 1], 2));
    }

    #[test]
    fn flipped_bits_are_written_or_read_once() {
        let (below, disk) = disk();
        let flip = Effect::Flip { byte: 5, mask: 0x80 };
        disk.plan(once(Operation::Write, 1, flip));
        disk.plan(once(Operation::Read, 1, flip));
        let too_far = disk.plan(once(Operation::Read, 2, flip));
        disk.write_vectored_at(0, &[IoSlice::new(&[3; 4]), IoSlice::new(&[3; 4])]).unwrap();
        assert_eq!(below.to_bytes()[..9], [3, 3, 3, 3, 3, 0x83, 3, 3, 1]);
        let (mut first, mut second) = ([0; 2], [0; 6]);
        disk.read_vectored_at(0, &mut [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)]).unwrap();
        assert_eq!((first, second), ([3, 3], [3, 3, 3, 3, 3, 3]));
        disk.read_at(0, &mut [0; 5]).unwrap();
        assert_eq!((disk.fired_total(), disk.fired(too_far)), (2, 0));
    }

    #[test]
    fn a_rotten_byte_reads_wrong_wherever_the_read_begins() {
        let (_, disk) = disk();
        let place = BLOCK_BYTES + 3;
        disk.rot(place, 0x01);
        for start in [0, BLOCK_BYTES - 10, BLOCK_BYTES, place] {
            let mut bytes = vec![0; TWO_BLOCKS - start as usize];
            disk.read_at(start, &mut bytes).unwrap();
            let wrong: Vec<usize> = (0..bytes.len())
                .filter(|&index| bytes[index] != if start as usize + index < BLOCK_LENGTH { 1 } else { 2 })
                .collect();
            assert_eq!(wrong, [(place - start) as usize]);
        }
        disk.read_at(place + 1, &mut [0]).unwrap();
        assert_eq!(disk.fired_total(), 4);
        disk.heal();
        let mut byte = [0];
        disk.read_at(place, &mut byte).unwrap();
        assert_eq!((byte, disk.fired_total()), ([2], 4));
    }
}
