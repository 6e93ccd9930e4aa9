//! Takes a store through the states that power cuts could have left.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::model::Model;
use super::workload::{History, Step};
use crate::disk::{CrashPoint, Disk, Image, SimulatedDisk, StateDescription, Tear};
use crate::error::{Error, Result};
use crate::format::{SUPERBLOCK_BLOCKS, Superblock, slot_blocks};
use crate::id::{BLOCK_BYTES, BLOCK_LENGTH, Generation};
use crate::process::NoReaders;
use crate::store::{FileState, SeededEntropy, Settings, Store, VerifyLevel, file_state};

/// The mark of a recovery that has ended.
const OPENED: &str = "opened";

/// How far a state is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    /// Recovered, compared and checked.
    Recover,
    /// And worked on with, and opened again.
    WorkOn,
    /// And the power cut again at every moment of that.
    SecondCrash,
}

/// How many states were tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Crash points.
    pub points: u64,
    /// Crash points with more states than the limit: of these some were tried, not all.
    pub sampled_points: u64,
    /// The most blocks that were unsynced at any one crash point.
    pub pending_blocks_most: u64,
    /// Distinct states recovered from.
    pub states: u64,
    /// Distinct states recovered from after a second crash, during recovery, adoption or the first steps after.
    pub double: u64,
    /// States recovered from once more without their newest superblock.
    pub superblock_lost: u64,
}

impl std::iter::Sum for Tally {
    /// Points are the same for all who share them; states are added.
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), |a, b| Self {
            points: a.points.max(b.points),
            sampled_points: a.sampled_points.max(b.sampled_points),
            pending_blocks_most: a.pending_blocks_most.max(b.pending_blocks_most),
            states: a.states + b.states,
            double: a.double + b.double,
            superblock_lost: a.superblock_lost + b.superblock_lost,
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { points, sampled_points, pending_blocks_most, states, double, superblock_lost } = self;
        write!(f, "{points} crash points ({sampled_points} sampled) of up to {pending_blocks_most} unsynced blocks, ")?;
        write!(f, "{states} distinct states, {double} after a second crash, ")?;
        write!(f, "{superblock_lost} without the newest superblock")
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
    /// Every how many distinct states the recovered store is worked on with, and opened again; 1 for always.
    pub work_every: u64,
    /// Which part of the states this explorer takes, of how many: so that threads can share the work.
    pub share: (u64, u64),
    /// Every how many distinct states both copies of the newest superblock are lost as well; 0 for never.
    pub lose_superblock_every: u64,
    /// The seed of all sampling.
    pub seed: u64,
    seen: HashSet<u128>,
    seen_double: HashSet<u128>,
    tallies: BTreeMap<String, Tally>,
    /// States after a second crash, by what it cut short.
    second: BTreeMap<&'static str, u64>,
    /// States of second crashes since the last first one.
    last_double: u64,
    /// States tried without their newest superblock since then.
    last_lost: u64,
}

impl Explorer {
    /// An explorer that tries every state of crash points with at most `limit` of them.
    pub fn new(tear: Tear, limit: usize, seed: u64) -> Self {
        Self {
            tear,
            limit,
            second_limit: 0,
            second_every: 1,
            work_every: 1,
            share: (0, 1),
            lose_superblock_every: 0,
            seed,
            seen: HashSet::new(),
            seen_double: HashSet::new(),
            tallies: BTreeMap::new(),
            second: BTreeMap::new(),
            last_double: 0,
            last_lost: 0,
        }
    }

    /// What was tried, by protocol.
    pub fn tallies(&self) -> &BTreeMap<String, Tally> {
        &self.tallies
    }

    /// How many of the states after a second crash were left by which protocol: `recovery` without anything to adopt,
    /// `adoption`, or the `first steps after` either.
    pub fn second_crashes(&self) -> &BTreeMap<&'static str, u64> {
        &self.second
    }

    /// What was tried, all together.
    pub fn total(&self) -> Tally {
        self.tallies.values().fold(Tally::default(), |a, b| Tally {
            points: a.points + b.points,
            sampled_points: a.sampled_points + b.sampled_points,
            pending_blocks_most: a.pending_blocks_most.max(b.pending_blocks_most),
            states: a.states + b.states,
            double: a.double + b.double,
            superblock_lost: a.superblock_lost + b.superblock_lost,
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
            let tally = self.tallies.entry(protocol.to_owned()).or_default();
            tally.points += 1;
            tally.sampled_points += u64::from(point.count(self.tear) > self.limit as u128);
            tally.pending_blocks_most = tally.pending_blocks_most.max(point.pending_blocks() as u64);
            for (description, image) in point.states_up_to(self.limit, self.tear, self.seed) {
                // What must hold depends on the acknowledged generation too.
                let key = image.hash() ^ u128::from(acknowledged.map_or(u64::MAX, |generation| generation.0)) << 64;
                if (image.hash() >> 7) as u64 % self.share.1 != self.share.0 || !self.seen.insert(key) {
                    continue;
                }
                let tally = self.tallies.entry(protocol.to_owned()).or_default();
                tally.states += 1;
                let second = self.second_limit > 0 && tally.states.is_multiple_of(self.second_every);
                let lose = self.lose_superblock_every > 0 && tally.states.is_multiple_of(self.lose_superblock_every);
                let failure = |message| Failure { protocol: protocol.to_owned(), state: description, message };
                let work = tally.states.is_multiple_of(self.work_every);
                let how = match (second, work) {
                    (true, _) => Depth::SecondCrash,
                    (false, true) => Depth::WorkOn,
                    (false, false) => Depth::Recover,
                };
                let mut result = self.recover(&image, acknowledged, model, settings, how);
                if let Some(image) = without_newest_superblock(&image).filter(|_| lose && result.is_ok()) {
                    self.last_lost += 1;
                    result = self
                        .recover(&image, acknowledged, model, settings, Depth::WorkOn)
                        .map_err(|message| format!("without the newest superblock: {message}"));
                }
                result.map_err(failure)?;
                let tally = self.tallies.entry(protocol.to_owned()).or_default();
                tally.double += std::mem::take(&mut self.last_double);
                tally.superblock_lost += std::mem::take(&mut self.last_lost);
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
        depth: Depth,
    ) -> std::result::Result<(), String> {
        let disk = Arc::new(SimulatedDisk::from_image(image));
        if depth == Depth::SecondCrash {
            disk.start_recording();
        }
        let shared: Arc<dyn Disk> = Arc::clone(&disk) as _;
        let seed = image.hash() as u64 ^ self.seed;
        let opened = || disk.mark(OPENED);
        let Some((after, adopted)) = recover_and_check(&shared, acknowledged, model, settings, seed, depth, &opened)?
        else {
            return Ok(());
        };
        if depth != Depth::SecondCrash {
            return Ok(());
        }
        // Once the first recovery has shown a state, a second crash must leave it, or what was committed on top. Before,
        // it may leave any that the first one could have.
        for point in disk.take_crash_points() {
            let cut_short = match (point.last_mark() == Some(OPENED), adopted) {
                (true, _) => "first steps after",
                (false, true) => "adoption",
                (false, false) => "recovery",
            };
            for (description, image) in point.states_up_to(self.second_limit, self.tear, self.seed ^ 1) {
                if !self.seen_double.insert(image.hash()) {
                    continue;
                }
                self.last_double += 1;
                *self.second.entry(cut_short).or_default() += 1;
                let shared: Arc<dyn Disk> = Arc::new(SimulatedDisk::from_image(&image));
                let seed = image.hash() as u64 ^ self.seed.rotate_left(7);
                let after = (point.last_mark() == Some(OPENED)).then_some(&after);
                recover_again(&shared, after, acknowledged, model, settings, seed)
                    .map_err(|message| format!("after a second crash, which left {description:?}: {message}"))?;
            }
        }
        Ok(())
    }
}

/// The image with both copies of its newest superblock gone; `None` if the other slot has none.
fn without_newest_superblock(image: &Image) -> Option<Image> {
    let mut slots = Vec::new();
    for block in SUPERBLOCK_BLOCKS {
        let mut bytes = [0; BLOCK_LENGTH];
        image.read_at(block * BLOCK_BYTES, &mut bytes).ok()?;
        slots.extend(Superblock::decode(&bytes).ok().flatten().map(|superblock| superblock.checkpoint));
    }
    let newest = slots.iter().max()?;
    slots.iter().find(|slot| slot.0 % 2 != newest.0 % 2)?;
    let mut image = image.clone();
    for block in slot_blocks(*newest) {
        image = image.with_bytes_at(block * BLOCK_BYTES, &[0xa5; BLOCK_LENGTH]).ok()?;
    }
    Some(image)
}

/// The generation that was acknowledged when the crash came; `None` while the store was being created.
fn acknowledged(point: &CrashPoint) -> Option<Generation> {
    point.last_mark().and_then(|mark| mark.parse().ok()).map(Generation)
}

fn open(disk: &Arc<dyn Disk>, settings: &Settings, seed: u64) -> Result<(Store, crate::store::RecoveryReport)> {
    Store::open(Arc::clone(disk), Arc::new(NoReaders), settings.clone(), Box::new(SeededEntropy(seed)))
}

/// Recovers, compares, checks, and works on. Returns what was shown then and committed on top, by generation, and whether
/// a tail was adopted; or `None` if there was no store yet.
fn recover_and_check(
    disk: &Arc<dyn Disk>,
    acknowledged: Option<Generation>,
    model: &Model,
    settings: &Settings,
    seed: u64,
    depth: Depth,
    opened: &dyn Fn(),
) -> std::result::Result<Option<(Model, bool)>, String> {
    let before_creation = file_state(disk.as_ref()).map_err(|error| error.to_string())?;
    let (mut store, report) = match open(disk, settings, seed) {
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
    opened();
    let generation = recovered_generation(&store, &report);
    if acknowledged.is_some_and(|acknowledged| generation < acknowledged) {
        return Err(format!("{generation} was recovered, {acknowledged:?} was acknowledged"));
    }
    check_recovered(&store, generation, model)?;
    check_length(disk.as_ref(), &mut store)?;
    if depth == Depth::Recover {
        check_space(&mut store)?;
        return Ok(None);
    }
    let adopted = report.records_adopted > 0;
    work_on(disk, store, model, generation, settings, seed).map(|after| Some((after, adopted)))
}

fn check_recovered(store: &Store, generation: Generation, model: &Model) -> std::result::Result<(), String> {
    let state = store.state();
    let Some(expected) = model.states.get(&generation) else {
        return match generation == Generation(0) && state.maps.get().iter().all(|map| map.length() == 0) {
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

/// The next superblock will say how long the file is, and one that says more than there is cannot be opened.
fn check_length(disk: &dyn Disk, store: &mut Store) -> std::result::Result<(), String> {
    let blocks = disk.length().map_err(|error| error.to_string())? / BLOCK_BYTES;
    match store.status().blocks_total {
        total if total > blocks => Err(format!("{total} blocks are counted on, and the file has {blocks}")),
        _ => Ok(()),
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
) -> std::result::Result<Model, String> {
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
    let after = history.model.clone();
    let expected = after.newest();
    drop(history);
    let (store, report) = open(disk, settings, seed ^ 2).map_err(|error| format!("the second open: {error}"))?;
    let difference = expected.compare(store.nodes(), &store.state());
    match difference {
        Ok(None) => Ok(after),
        Ok(Some(difference)) => Err(format!("the second open ({report:?}): {difference}")),
        Err(error) => Err(format!("the second open: {error}")),
    }
}

/// The generation that was found, before the opening record made one more of the same content.
fn recovered_generation(store: &Store, report: &crate::store::RecoveryReport) -> Generation {
    let newest = store.state().generation;
    // Without an opening record (a planted bug) there is none to take off.
    Generation(newest.0.saturating_sub(u64::from(report.opened == newest)))
}

/// After a second crash: a state of `after`, which the first recovery had shown, or which was committed on top of it;
/// if it had shown none, any that is not older than what was acknowledged.
fn recover_again(
    disk: &Arc<dyn Disk>,
    after: Option<&Model>,
    acknowledged: Option<Generation>,
    model: &Model,
    settings: &Settings,
    seed: u64,
) -> std::result::Result<(), String> {
    let (mut store, report) = open(disk, settings, seed).map_err(|error| format!("the open is refused: {error}"))?;
    check_space(&mut store)?;
    let recovered = recovered_generation(&store, &report);
    if let Some(after) = after {
        // Working on ended with another open, whose opening record may be there too.
        let newest = after.states.keys().next_back().copied().unwrap_or_default();
        return check_recovered(&store, recovered.min(newest), after)
            .map_err(|message| format!("{message} ({report:?})"));
    }
    // The first recovery's opening record may be there already: it has the content of the generation before it.
    let generations = [Some(recovered), recovered.0.checked_sub(1).map(Generation)];
    let mut result = Err("nothing was recovered".to_owned());
    for generation in generations.into_iter().flatten().filter(|generation| Some(*generation) >= acknowledged) {
        result = check_recovered(&store, generation, model);
        if result.is_ok() {
            break;
        }
    }
    result.map_err(|message| format!("{message} ({report:?})"))
}
