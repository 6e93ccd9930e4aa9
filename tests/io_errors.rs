//! Errors of the disk: the Nth operation fails, for N = 1, 2, … until nothing fails any more, in every protocol.
//!
//! After a failed write or sync the commit is not acknowledged; where its fate is open, the store says so and refuses
//! to write on; anywhere else the next attempt succeeds. Reads show the last good state all the while; reopening shows
//! that state or the one in flight, also after a power cut; and no block is lost or claimed twice.
#![allow(clippy::unwrap_used)]

#[path = "io_errors/bench.rs"]
mod bench;
#[path = "io_errors/silent.rs"]
mod silent;

use std::sync::Arc;

use bench::{Base, base, check_error, cut, is_durable, open, reopen, settings, shows};
use vellum::Error;
use vellum::disk::{
    Disk, Effect, FaultPlan, FaultyDisk, Operation, Operations, Performed, SimulatedDisk, Span, SystemError, Tear,
};
use vellum::process::NoReaders;
use vellum::store::{SeededEntropy, Store};
use vellum::testing::{ModelState, Outcome, Step};

/// The protocols, each as the steps that run it.
pub(crate) fn scripts() -> Vec<(&'static str, Vec<Step>)> {
    let many = (0..260).map(|index| (12, index)).collect();
    vec![
        ("commit in the log", vec![Step::Write(vec![(12, 0), (12, 1)]), Step::Write(vec![(12, 2)])]),
        (
            "commit with extents",
            vec![Step::Write(vec![(15, 0), (13, 1), (12, 3)]), Step::Write(vec![(15, 0), (12, 8)])],
        ),
        ("free", vec![Step::Free(vec![(12, 0), (14, 0)]), Step::Header(8), Step::Free(vec![(12, 2)])]),
        ("external body", vec![Step::Write(many), Step::Write(vec![(12, 7)])]),
        (
            "deferred commits",
            vec![Step::WriteDeferred(vec![(12, 0)]), Step::WriteDeferred(vec![(14, 1), (12, 2)]), Step::Sync],
        ),
        ("checkpoint", vec![Step::Checkpoint, Step::Write(vec![(12, 0)]), Step::Checkpoint]),
        (
            "checkpoint beside commits",
            vec![Step::CheckpointBegin, Step::Write(vec![(13, 0)]), Step::CheckpointEnd, Step::Write(vec![(12, 4)])],
        ),
        ("snapshots", vec![Step::Snapshot(5), Step::Write(vec![(12, 0)]), Step::DeleteSnapshot(0), Step::Checkpoint]),
        ("roll-back", vec![Step::RollBack(0), Step::Write(vec![(12, 1)]), Step::Sync, Step::Checkpoint]),
        ("move", vec![Step::Move(vec![(12, 0), (12, 5), (14, 0)]), Step::Write(vec![(12, 5)])]),
        ("large page", vec![Step::Write(vec![(21, 0)])]),
        ("encoded pages", vec![Step::WriteEncoded(vec![(14, 0), (13, 1)]), Step::WriteEncoded(vec![(13, 0), (14, 2)])]),
        (
            "spilled encoded pages",
            vec![Step::SpillEncoded(vec![(14, 3), (14, 0), (13, 2)]), Step::WriteSpilled(vec![(12, 4)])],
        ),
        ("growth", vec![Step::Write(vec![(17, 0)]), Step::Write(vec![(17, 1), (16, 0)])]),
    ]
}

/// Runs a script with one fault planned. Says whether the fault fired.
fn run(base: &Base, script: &[Step], states: &[ModelState], plan: FaultPlan) -> Result<bool, String> {
    let mut bench = base.bench();
    let number = bench.faulty.plan(plan);
    let history = &mut bench.history;
    let mut shown = vec![history.model.newest()];
    let mut durable = 0;
    for (index, step) in script.iter().enumerate() {
        if let Err(error) = history.try_step(step) {
            let poison = history.store.medium().poison();
            check_error(&error, poison.is_some()).map_err(|message| format!("{step:?}: {message}"))?;
            let reads_fail = plan.operations == Operations::Only(Operation::Read);
            if reads_fail || poison.is_none() {
                bench.faulty.heal();
            }
            shows(&history.store, &shown[shown.len() - 1])
                .map_err(|message| format!("{step:?} failed, and then: {message}"))?;
            if poison.is_some() {
                bench.faulty.heal();
                // Written no more, whatever is asked.
                for step in [Step::Write(vec![(12, 0)]), Step::Checkpoint, Step::Sync, Step::Snapshot(9)] {
                    match history.try_step(&step) {
                        Err(Error::Poisoned { .. }) => {}
                        // One is running: there is nothing to ask the store.
                        Ok(Outcome::Skipped) if step == Step::Checkpoint => {}
                        other => return Err(format!("poisoned, {step:?} gives {other:?}")),
                    }
                }
                shown.push(states[index + 1].clone());
                cut(&bench.below, &base.settings, &shown[durable..], plan.nth)?;
                let disk: Arc<dyn Disk> = Arc::clone(&bench.below) as _;
                reopen(&disk, &base.settings, &shown[shown.len() - 2..])?;
                return Ok(bench.faulty.fired(number) > 0);
            }
            // A checkpoint that failed at its end is gone; another one can be made.
            let again = if *step == Step::CheckpointEnd { &Step::Checkpoint } else { step };
            history.try_step(again).map_err(|error| format!("{step:?} again: {error}"))?;
        }
        shown.push(history.model.newest());
        if is_durable(step) {
            durable = shown.len() - 1;
        }
    }
    let fired = bench.faulty.fired(number) > 0;
    bench.faulty.heal();
    history.check()?;
    cut(&bench.below, &base.settings, &shown[durable..], plan.nth)?;
    let disk: Arc<dyn Disk> = Arc::clone(&bench.below) as _;
    reopen(&disk, &base.settings, &shown[shown.len() - 1..])?;
    Ok(fired)
}

/// Every combination of error, duration and what is done all the same.
fn failures() -> Vec<(Span, Effect)> {
    let mut failures = Vec::new();
    for error in [SystemError::Io, SystemError::NoSpace, SystemError::Quota] {
        for span in [Span::Once, Span::FromThenOn] {
            for performed in [Performed::Nothing, Performed::Half, Performed::All] {
                failures.push((span, Effect::Fail { error, performed }));
            }
        }
    }
    failures
}

#[test]
fn every_failing_write_and_sync_is_told_and_survived() {
    let base = base();
    let mut total = 0;
    for (name, script) in scripts() {
        let states = base.states(&script);
        let mut fired = 0;
        for (span, effect) in failures() {
            for nth in 1.. {
                let plan = FaultPlan { operations: Operations::Changing, nth, span, effect };
                match run(&base, &script, &states, plan) {
                    Ok(true) => fired += 1,
                    Ok(false) => break,
                    Err(message) => panic!("{name}, {plan:?}: {message}"),
                }
            }
        }
        println!("{name}: {fired} faults");
        total += fired;
    }
    assert!(total >= 2_000, "{total} faults fired");
}

#[test]
fn every_failing_read_is_told_and_harms_nothing() {
    let base = base();
    let mut total = 0;
    for (name, script) in scripts() {
        let states = base.states(&script);
        for span in [Span::Once, Span::FromThenOn] {
            for nth in 1.. {
                let effect = Effect::Fail { error: SystemError::Io, performed: Performed::Nothing };
                let plan = FaultPlan { operations: Operations::Only(Operation::Read), nth, span, effect };
                match run(&base, &script, &states, plan) {
                    Ok(true) => total += 1,
                    Ok(false) => break,
                    Err(message) => panic!("{name}, {plan:?}: {message}"),
                }
            }
        }
    }
    println!("{total} faults");
    assert!(total >= 40, "{total} faults fired");
}

#[test]
fn an_open_that_fails_can_be_repeated() {
    let base = base();
    // What was durable before the two deferred commits is not asked for: nothing was cut here but the open.
    let candidates = [base.expected.clone()];
    let mut total = 0;
    for (span, effect) in failures() {
        for nth in 1.. {
            let below = Arc::new(SimulatedDisk::from_image(&base.image));
            let faulty = Arc::new(FaultyDisk::new(Arc::clone(&below) as _));
            let plan = faulty.plan(FaultPlan { operations: Operations::Any, nth, span, effect });
            let disk: Arc<dyn Disk> = Arc::clone(&faulty) as _;
            let told = |message: String| panic!("{effect:?} at {nth}, {span:?}: {message}");
            let opened = open(&disk, &base.settings, 6);
            let fired = faulty.fired(plan) > 0;
            faulty.heal();
            match opened {
                Ok(store) => shows(&store, &base.expected).unwrap_or_else(told),
                Err(Error::Io { .. } | Error::NoSpace { .. } | Error::CommitUnknown { .. }) => {}
                Err(error) => told(format!("an unexpected error: {error}")),
            }
            cut(&below, &base.settings, &candidates, nth).unwrap_or_else(told);
            let disk: Arc<dyn Disk> = Arc::clone(&below) as _;
            reopen(&disk, &base.settings, &candidates).unwrap_or_else(told);
            if !fired {
                break;
            }
            total += 1;
        }
    }
    println!("{total} faults");
    assert!(total >= 200, "{total} faults fired");
}

#[test]
fn a_creation_that_fails_opens_or_can_be_repeated() {
    let create = |disk: &Arc<dyn Disk>| {
        Store::create(Arc::clone(disk), Arc::new(NoReaders), settings(), Box::new(SeededEntropy(3)))
    };
    // Opened or created again, it is empty and can be used.
    let usable = |disk: &Arc<dyn Disk>| -> Result<(), String> {
        let opened = match open(disk, &settings(), 4) {
            Err(Error::IncompleteCreate { .. }) => create(disk),
            other => other,
        };
        shows(&opened.map_err(|error| error.to_string())?, &ModelState::default())
    };
    let mut total = 0;
    for (span, effect) in failures() {
        for nth in 1.. {
            let below = Arc::new(SimulatedDisk::new());
            let faulty = Arc::new(FaultyDisk::new(Arc::clone(&below) as _));
            let plan = faulty.plan(FaultPlan { operations: Operations::Any, nth, span, effect });
            let disk: Arc<dyn Disk> = Arc::clone(&faulty) as _;
            let told = |message: String| panic!("{effect:?} at {nth}, {span:?}: {message}");
            let created = create(&disk).map(drop);
            let fired = faulty.fired(plan) > 0;
            match created {
                Ok(()) | Err(Error::Io { .. } | Error::NoSpace { .. }) => {}
                Err(error) => told(format!("an unexpected error: {error}")),
            }
            for (description, image) in below.crash_point().states_up_to(12, Tear::Every512, nth) {
                let disk: Arc<dyn Disk> = Arc::new(SimulatedDisk::from_image(&image));
                usable(&disk).unwrap_or_else(|message| told(format!("{description:?}: {message}")));
            }
            let disk: Arc<dyn Disk> = Arc::clone(&below) as _;
            usable(&disk).unwrap_or_else(told);
            if !fired {
                break;
            }
            total += 1;
        }
    }
    println!("{total} faults");
    assert!(total >= 200, "{total} faults fired");
}

#[test]
fn the_scripts_do_what_they_say() {
    let base = base();
    for (name, script) in scripts() {
        let mut bench = base.bench();
        let (before, steps) = (bench.history.store.counters(), script.len());
        for step in &script {
            assert_eq!(bench.history.try_step(step).unwrap(), Outcome::Done, "{name}: {step:?}");
        }
        let after = bench.history.store.counters();
        match name {
            "commit in the log" => assert_eq!(after.commits_in_log - before.commits_in_log, steps as u64),
            "commit with extents" | "growth" => assert_eq!(after.commits_in_log, before.commits_in_log),
            "checkpoint" => assert_eq!(after.checkpoints - before.checkpoints, 2),
            "move" => assert!(after.moved_bytes > 0),
            _ => {}
        }
    }
}
