//! Takes a store through the states that power cuts could have left.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::model::Model;
use super::workload::{History, Step};
use crate::disk::{CrashPoint, Disk, Image, SimulatedDisk, StateDescription, Tear};
use crate::error::{Error, Result};
use crate::id::{Generation, SizeClass};
use crate::process::NoReaders;
use crate::store::{FileState, SeededEntropy, Settings, Store, VerifyLevel, file_state};

/// How many states were tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Crash points.
    pub points: u64,
    /// Distinct states recovered from.
    pub states: u64,
    /// Distinct states recovered from after a second crash, during recovery, adoption or the first steps after.
    pub double: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} crash points, {} distinct states, {} after a second crash", self.points, self.states, self.double)
    }
}

/// A state from which recovery did not do what it must.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The protocol under test.
    pub protocol: String,
    /// What was left.
    pub state: StateDescription,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\nleft by the crash: {:?}", self.protocol, self.message, self.state)
    }
}

/// Explores crash states, and counts them.
#[derive(Debug)]
pub struct Explorer {
    /// Where a block may be torn.
    pub tear: Tear,
    /// States of one crash point that are tried; beyond, this many are sampled.
    pub limit: usize,
    /// For each state at the first level, states of a second crash that are tried; 0 for none.
    pub second_limit: usize,
    /// Every how many distinct states a second crash is tried.
    pub second_every: u64,
    /// The seed of all sampling.
    pub seed: u64,
    seen: HashSet<u128>,
    seen_double: HashSet<u128>,
    tallies: BTreeMap<String, Tally>,
    /// States of second crashes since the last first one.
    last_double: u64,
}

impl Explorer {
    /// An explorer that tries every state of crash points with at most `limit` of them.
    pub fn new(tear: Tear, limit: usize, seed: u64) -> Self {
        Self {
            tear,
            limit,
            second_limit: 0,
            second_every: 1,
            seed,
            seen: HashSet::new(),
            seen_double: HashSet::new(),
            tallies: BTreeMap::new(),
            last_double: 0,
        }
    }

    /// What was tried, by protocol.
    pub fn tallies(&self) -> &BTreeMap<String, Tally> {
        &self.tallies
    }

    /// What was tried, all together.
    pub fn total(&self) -> Tally {
        self.tallies.values().fold(Tally::default(), |a, b| Tally {
            points: a.points + b.points,
            states: a.states + b.states,
            double: a.double + b.double,
        })
    }

    /// Recovers from every state of the history's crash points.
    ///
    /// # Errors
    /// The first state that is not recovered as it must be.
    pub fn explore(
        &mut self,
        protocol: &str,
        points: &[CrashPoint],
        model: &Model,
        settings: &Settings,
    ) -> std::result::Result<(), Failure> {
        for point in points {
            let acknowledged = acknowledged(point);
            self.tallies.entry(protocol.to_owned()).or_default().points += 1;
            for (description, image) in point.states_up_to(self.limit, self.tear, self.seed) {
                // What must hold depends on the acknowledged generation too.
                let key = image.hash() ^ u128::from(acknowledged.map_or(u64::MAX, |generation| generation.0)) << 64;
                if !self.seen.insert(key) {
                    continue;
                }
                let tally = self.tallies.entry(protocol.to_owned()).or_default();
                tally.states += 1;
                let second = self.second_limit > 0 && tally.states % self.second_every == 0;
                self.recover(&image, acknowledged, model, settings, second).map_err(|message| Failure {
                    protocol: protocol.to_owned(),
                    state: description,
                    message,
                })?;
                let double = std::mem::take(&mut self.last_double);
                self.tallies.entry(protocol.to_owned()).or_default().double += double;
            }
        }
        Ok(())
    }

    fn recover(
        &mut self,
        image: &Image,
        acknowledged: Option<Generation>,
        model: &Model,
        settings: &Settings,
        second: bool,
    ) -> std::result::Result<(), String> {
        let disk = Arc::new(SimulatedDisk::from_image(image));
        if second {
            disk.start_recording();
        }
        let shared: Arc<dyn Disk> = Arc::clone(&disk) as _;
        let seed = image.hash() as u64 ^ self.seed;
        let Some(generation) = recover_and_check(&shared, acknowledged, model, settings, seed)? else {
            return Ok(());
        };
        if !second {
            return Ok(());
        }
        // Whatever the second crash leaves must show the same state, or what was committed after the first recovery.
        for point in disk.take_crash_points() {
            for (_, image) in point.states_up_to(self.second_limit, self.tear, self.seed ^ 1) {
                if !self.seen_double.insert(image.hash()) {
                    continue;
                }
                self.last_double += 1;
                let shared: Arc<dyn Disk> = Arc::new(SimulatedDisk::from_image(&image));
                let seed = image.hash() as u64 ^ self.seed.rotate_left(7);
                recover_again(&shared, generation, model, settings, seed)
                    .map_err(|message| format!("after a second crash: {message}"))?;
            }
        }
        Ok(())
    }
}

/// The generation that was acknowledged when the crash came; `None` while the store was being created.
fn acknowledged(point: &CrashPoint) -> Option<Generation> {
    point.last_mark().and_then(|mark| mark.parse().ok()).map(Generation)
}

fn open(disk: &Arc<dyn Disk>, settings: &Settings, seed: u64) -> Result<(Store, crate::store::RecoveryReport)> {
    Store::open(Arc::clone(disk), Arc::new(NoReaders), settings.clone(), Box::new(SeededEntropy(seed)))
}

/// Recovers, compares, checks, and works on. Returns the generation of the model that was recovered, or `None` if there
/// was no store yet.
fn recover_and_check(
    disk: &Arc<dyn Disk>,
    acknowledged: Option<Generation>,
    model: &Model,
    settings: &Settings,
    seed: u64,
) -> std::result::Result<Option<Generation>, String> {
    let before_creation = file_state(disk.as_ref()).map_err(|error| error.to_string())?;
    let (store, report) = match open(disk, settings, seed) {
        Ok(opened) => opened,
        Err(Error::IncompleteCreate { .. } | Error::NotAStore { .. })
            if acknowledged.is_none() && before_creation != FileState::Foreign =>
        {
            Store::create(Arc::clone(disk), Arc::new(NoReaders), settings.clone(), Box::new(SeededEntropy(seed)))
                .map_err(|error| format!("an incomplete creation cannot be created again: {error}"))?;
            return Ok(None);
        }
        Err(error) => return Err(format!("the open is refused: {error}")),
    };
    let generation = Generation(report.opened.0.saturating_sub(1).max(report.folded.0));
    if acknowledged.is_some_and(|acknowledged| generation < acknowledged) {
        return Err(format!("{generation} was recovered, {acknowledged:?} was acknowledged"));
    }
    check_recovered(&store, generation, model)?;
    work_on(disk, store, model, generation, settings, seed)?;
    Ok(Some(generation))
}

fn check_recovered(store: &Store, generation: Generation, model: &Model) -> std::result::Result<(), String> {
    let state = store.state();
    let Some(expected) = model.states.get(&generation) else {
        return match generation == Generation(0) && state.maps.iter().all(|map| map.length() == 0) {
            true => Ok(()),
            false => Err(format!("{generation} was recovered, and never committed")),
        };
    };
    match expected.compare(store.nodes(), &state) {
        Ok(None) => Ok(()),
        Ok(Some(difference)) => Err(format!("{generation}: {difference}")),
        Err(error) => Err(format!("{generation}: {error}")),
    }
}

/// Every block has one owner or is free, and none is lost.
pub(super) fn check_space(store: &mut Store) -> std::result::Result<(), String> {
    store.release().map_err(|error| error.to_string())?;
    let report = store.verify(VerifyLevel::Quick, &mut |_| {}).map_err(|error| error.to_string())?;
    match report.findings.first() {
        None => Ok(()),
        Some(finding) => Err(finding.message.clone()),
    }
}

/// The store commits, checkpoints and opens again after a recovery.
fn work_on(
    disk: &Arc<dyn Disk>,
    mut store: Store,
    model: &Model,
    generation: Generation,
    settings: &Settings,
    seed: u64,
) -> std::result::Result<(), String> {
    check_space(&mut store)?;
    let mut after = Model::default();
    let expected = model.states.get(&generation).cloned().unwrap_or_default();
    after.commit(generation, expected);
    // The history's own disk is not used for anything but marks.
    let side = Arc::new(SimulatedDisk::new());
    let mut history = History::on(side, store, after, 1 << 40 | seed >> 32).map_err(|error| error.to_string())?;
    let steps = [
        Step::Write(vec![(12, 0), (12, 1), (13, 0)]),
        Step::Write(vec![(12, 2)]),
        Step::Checkpoint,
        Step::Write(vec![(12, 0), (12, 3), (12, 4)]),
    ];
    for step in &steps {
        history.step(step).map_err(|error| format!("after recovery, {step:?}: {error}"))?;
    }
    history.check().map_err(|message| format!("after recovery: {message}"))?;
    let expected = history.model.newest();
    drop(history);
    let (store, report) = open(disk, settings, seed ^ 2).map_err(|error| format!("the second open: {error}"))?;
    let difference = expected.compare(store.nodes(), &store.state());
    match difference {
        Ok(None) => Ok(()),
        Ok(Some(difference)) => Err(format!("the second open ({report:?}): {difference}")),
        Err(error) => Err(format!("the second open: {error}")),
    }
}

/// After a second crash: the state recovered at first, or one of those committed on top of it.
fn recover_again(
    disk: &Arc<dyn Disk>,
    generation: Generation,
    model: &Model,
    settings: &Settings,
    seed: u64,
) -> std::result::Result<(), String> {
    let (mut store, report) = open(disk, settings, seed).map_err(|error| format!("the open is refused: {error}"))?;
    check_space(&mut store)?;
    let recovered = Generation(report.opened.0.saturating_sub(1));
    if recovered > Generation(generation.0 + 1) {
        // Commits made after the first recovery: their pages have versions of their own; reading them all is the check.
        let state = store.state();
        let reader = crate::store::PageReader::new(store.nodes());
        for (class, map) in SizeClass::all().zip(state.maps.iter()) {
            let mut from = 0;
            while let Some((index, pointer)) = map.next(store.nodes(), from).map_err(|error| error.to_string())? {
                from = index + 1;
                let mut bytes = vec![0; class.page_bytes().min(1 << 20) as usize];
                let page = crate::id::PageId::new(class, index).ok_or("an index is out of range")?;
                reader.read(page, &pointer, 0, &mut bytes).map_err(|error| error.to_string())?;
            }
        }
        return Ok(());
    }
    let Some(expected) = model.states.get(&generation) else { return Ok(()) };
    match expected.compare(store.nodes(), &store.state()) {
        Ok(None) => Ok(()),
        Ok(Some(difference)) => Err(format!("{generation}: {difference}")),
        Err(error) => Err(format!("{generation}: {error}")),
    }
}
