//! A store on a faulty disk on a simulated one, a script of steps on it, and what must be left.

use std::sync::Arc;

use vellum::Error;
use vellum::disk::{Disk, FaultyDisk, Image, SimulatedDisk, Tear};
use vellum::process::NoReaders;
use vellum::store::{SeededEntropy, Settings, Store, VerifyLevel};
use vellum::testing::{History, Model, ModelState, Outcome, Step, tiny};

/// Where every script begins.
pub(crate) struct Base {
    pub(crate) image: Image,
    pub(crate) model: Model,
    pub(crate) expected: ModelState,
    pub(crate) version: u64,
    pub(crate) settings: Settings,
}

pub(crate) fn settings() -> Settings {
    // Few nodes stay in memory, so that there are reads to fail.
    Settings { cached_nodes: 0, ..tiny() }
}

/// Pages of three classes, a snapshot, a checkpoint, and records after it; the last two not synced.
pub(crate) fn base() -> Base {
    let mut history = History::create(settings(), 21).unwrap();
    for step in [
        Step::Write(vec![(12, 0), (12, 1), (13, 0)]),
        Step::Header(3),
        Step::Snapshot(0),
        Step::Write(vec![(12, 0), (12, 2), (14, 0)]),
        Step::Free(vec![(12, 1)]),
        Step::Checkpoint,
        Step::Write(vec![(13, 0)]),
        Step::Write(vec![(12, 2), (12, 5)]),
        Step::WriteDeferred(vec![(12, 0)]),
        Step::WriteDeferred(vec![(14, 0), (12, 3)]),
    ] {
        assert_eq!(history.step(&step).unwrap(), Outcome::Done);
    }
    history.check().unwrap();
    Base {
        image: history.disk.image(),
        model: history.model.clone(),
        expected: history.model.newest(),
        version: history.version(),
        settings: settings(),
    }
}

pub(crate) fn open(disk: &Arc<dyn Disk>, settings: &Settings, seed: u64) -> vellum::Result<Store> {
    let entropy = Box::new(SeededEntropy(seed));
    Store::open(Arc::clone(disk), Arc::new(NoReaders), settings.clone(), entropy).map(|(store, _)| store)
}

/// The disks, and the store on them.
pub(crate) struct Bench {
    pub(crate) below: Arc<SimulatedDisk>,
    pub(crate) faulty: Arc<FaultyDisk>,
    pub(crate) history: History,
}

impl Base {
    /// Opens the store; no fault is planned yet.
    pub(crate) fn bench(&self) -> Bench {
        let below = Arc::new(SimulatedDisk::from_image(&self.image));
        let faulty = Arc::new(FaultyDisk::new(Arc::clone(&below) as _));
        let disk: Arc<dyn Disk> = Arc::clone(&faulty) as _;
        let store = open(&disk, &self.settings, 5).unwrap();
        let mut model = self.model.clone();
        model.commit(store.state().generation, self.expected.clone());
        // The disk of the history is for its marks only.
        let history = History::on(Arc::new(SimulatedDisk::new()), store, model, self.version).unwrap();
        Bench { below, faulty, history }
    }

    /// The states that a script goes through: before it, and after each step.
    pub(crate) fn states(&self, script: &[Step]) -> Vec<ModelState> {
        let mut bench = self.bench();
        let mut states = vec![bench.history.model.newest()];
        for step in script {
            assert_eq!(bench.history.try_step(step).unwrap(), Outcome::Done, "{step:?}");
            states.push(bench.history.model.newest());
        }
        bench.history.check().unwrap();
        states
    }
}

/// Whether a state of the store is `expected`.
pub(crate) fn shows(store: &Store, expected: &ModelState) -> Result<(), String> {
    match expected.compare(store.nodes(), &store.state()) {
        Ok(None) => Ok(()),
        Ok(Some(difference)) => Err(difference),
        Err(error) => Err(error.to_string()),
    }
}

/// Opens what is on a disk: it must show one of `candidates`, and the check must find nothing.
pub(crate) fn reopen(disk: &Arc<dyn Disk>, settings: &Settings, candidates: &[ModelState]) -> Result<(), String> {
    let mut store = open(disk, settings, 9).map_err(|error| format!("reopening: {error}"))?;
    let mut difference = String::new();
    for candidate in candidates {
        match shows(&store, candidate) {
            Ok(()) => {
                store.release().map_err(|error| error.to_string())?;
                let verified = store.verify(VerifyLevel::Full, &mut |_| {}).map_err(|error| error.to_string())?;
                return match verified.findings.first() {
                    None => Ok(()),
                    Some(finding) => Err(format!("after reopening: {}", finding.message)),
                };
            }
            Err(message) => difference = message,
        }
    }
    Err(format!("reopened, it shows none of {} states: {difference}", candidates.len()))
}

/// Whether a step, once it returned, has made everything so far durable.
pub(crate) fn is_durable(step: &Step) -> bool {
    !matches!(step, Step::WriteDeferred(_) | Step::CheckpointBegin | Step::SpillEncoded(_))
}

/// After a failure: the error is of the kind that its consequences call for.
pub(crate) fn check_error(error: &Error, poisoned: bool) -> Result<(), String> {
    let vital = match error {
        Error::CommitUnknown { .. } | Error::Poisoned { .. } => true,
        Error::Io { operation, .. } => matches!(*operation, "sync" | "durable write"),
        Error::NoSpace { .. } | Error::Corrupt(_) => false,
        other => return Err(format!("an unexpected error: {other}")),
    };
    // A superblock that cannot be written poisons too; its error is that of a write.
    let superblock = |error: &Error| match error {
        Error::Io { operation: "write", offset: Some(offset), .. } => *offset < 19 * 4096,
        _ => false,
    };
    match poisoned == (vital || superblock(error)) {
        true => Ok(()),
        false => Err(format!("poisoned: {poisoned}, with {error}")),
    }
}

/// What power cuts after the failure leave: a few states of each.
pub(crate) fn cut(
    below: &SimulatedDisk,
    settings: &Settings,
    candidates: &[ModelState],
    seed: u64,
) -> Result<(), String> {
    for (description, image) in below.crash_point().states_up_to(6, Tear::Never, seed) {
        let disk: Arc<dyn Disk> = Arc::new(SimulatedDisk::from_image(&image));
        reopen(&disk, settings, candidates)
            .map_err(|message| format!("a power cut left {description:?}: {message}"))?;
    }
    Ok(())
}
