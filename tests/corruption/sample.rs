//! The store that is damaged: small, and of everything something.

use std::collections::BTreeMap;
use std::sync::Arc;

use vellum::space::FirstFit;
use vellum::store::{Changes, Durability, PageChange, Settings};
use vellum::testing::{History, Model, Step};
use vellum::{Generation, PageId, SizeClass};

/// Blocks of the file as they were at one time.
pub(crate) type Bytes = Arc<Vec<u8>>;

/// A store's bytes, what it holds, and what the file was before.
pub(crate) struct Sample {
    pub(crate) bytes: Bytes,
    pub(crate) earlier: Vec<Bytes>,
    pub(crate) model: Model,
    /// What the store said to be beyond the reach of any recovery.
    pub(crate) anchored: Generation,
    /// What its newest superblock folds.
    pub(crate) folded: Generation,
    pub(crate) settings: Settings,
}

impl Sample {
    fn of(history: &mut History, earlier: Vec<Bytes>) -> Self {
        let status = history.store.status();
        let bytes = Arc::new(history.disk.image().to_bytes());
        let model = history.model.clone();
        Self { bytes, earlier, model, anchored: status.anchored, folded: status.folded, settings: settings() }
    }
}

pub(crate) fn settings() -> Settings {
    Settings {
        log_segment_blocks: 6,
        checkpoint_log_blocks: Some(64),
        in_log_blocks: 2,
        growth_blocks: 4,
        segment_blocks: 1024,
        cached_nodes: 0,
        strategy: || Box::<FirstFit>::default(),
        ..Settings::default()
    }
}

fn record(history: &History, earlier: &mut Vec<Bytes>) {
    earlier.push(Arc::new(history.disk.image().to_bytes()));
}

/// A page of 2 MiB whose first chunk was written as zeros: it has a tree of chunks, and one block.
fn write_sparse_page(history: &mut History) {
    let page = PageId::new(SizeClass::new(21).unwrap(), 0).unwrap();
    let zeros = vec![0; 1 << 20].into();
    let mut changes = Changes::default();
    changes.pages.insert(page, PageChange::Chunks(BTreeMap::from([(0, zeros)])));
    let committed = history.store.commit(&changes, Durability::Durable).unwrap();
    let mut state = history.model.newest();
    state.pages.insert(page, 0);
    history.model.commit(committed.generation, state);
}

fn closed_history() -> (History, Vec<Bytes>) {
    let mut history = History::create(settings(), 11).unwrap();
    let mut earlier = Vec::new();
    let steps = [
        Step::Write(vec![(12, 0), (12, 1), (13, 0)]),
        Step::Header(7),
        Step::Snapshot(0),
        Step::Write(vec![(12, 0), (14, 0)]),
        Step::Checkpoint,
        Step::View,
        Step::Write(vec![(12, 0), (12, 3)]),
        Step::Free(vec![(12, 1), (14, 0)]),
        Step::WriteEncoded(vec![(14, 1), (12, 2)]),
        Step::Snapshot(1),
        Step::Write(vec![(13, 0), (12, 4), (15, 0)]),
    ];
    for step in &steps {
        history.step(step).unwrap();
        record(&history, &mut earlier);
    }
    write_sparse_page(&mut history);
    history.step(&Step::Write(vec![(12, 2)])).unwrap();
    record(&history, &mut earlier);
    history.step(&Step::Checkpoint).unwrap();
    assert!(history.store.superblock().deferred_entries > 4, "the view holds dead extents");
    (history, earlier)
}

/// Pages of four classes, one freed, a chunked one, two snapshots, dead extents that a view held, records; the last
/// checkpoint folded all of it.
pub(crate) fn closed() -> Sample {
    let (mut history, earlier) = closed_history();
    Sample::of(&mut history, earlier)
}

/// As [`closed`], and then a tail of commits that no checkpoint folded; the last two were never synced.
pub(crate) fn crashed() -> Sample {
    let (mut history, mut earlier) = closed_history();
    record(&history, &mut earlier);
    let steps = [
        Step::Write(vec![(12, 0), (12, 5)]),
        Step::WriteEncoded(vec![(13, 0), (14, 1)]),
        Step::Free(vec![(12, 3)]),
        Step::DeleteSnapshot(0),
        Step::Write(vec![(12, 0)]),
        Step::Write(vec![(12, 4), (12, 6)]),
        Step::Header(9),
        Step::Write(vec![(15, 0), (12, 3)]),
        Step::WriteDeferred(vec![(12, 0), (12, 7)]),
        Step::WriteDeferred(vec![(14, 1)]),
    ];
    for step in &steps {
        history.step(step).unwrap();
        record(&history, &mut earlier);
    }
    Sample::of(&mut history, earlier)
}
