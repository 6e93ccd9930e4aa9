//! Writer and readers in one process: locks belong to open files, so it makes no difference.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::id::{CheckpointNumber, Generation, Incarnation, StoreId};

const STORE: StoreId = StoreId([7; 16]);

fn store(folder: &Path) -> PathBuf {
    let path = folder.join("store");
    fs::write(&path, b"x").unwrap();
    path
}

fn state(base: u64, synced: u64) -> PublishedState {
    PublishedState {
        base: CheckpointNumber(base),
        synced: Generation(synced),
        incarnation: Incarnation(9),
        store: STORE,
    }
}

fn pair(base: u64, generation: u64) -> (CheckpointNumber, Generation) {
    (CheckpointNumber(base), Generation(generation))
}

fn pinned(table: &WriterTable) -> Vec<Pinned> {
    table.pins().unwrap().into_iter().map(|pin| pin.pinned).collect()
}

/// Beyond the time within which the writer looks only at what it knows.
fn wait() {
    std::thread::sleep(Duration::from_millis(25));
}

#[test]
fn a_reader_is_heard_from_its_first_moment_to_its_last() {
    let folder = tempfile::tempdir().unwrap();
    let path = store(folder.path());
    let table = WriterTable::open(&path).unwrap();
    assert_eq!(pinned(&table), []);
    let mut reader = Registration::open(&path, STORE, "test").unwrap();
    assert_eq!(reader.told().unwrap(), Told::Silent);
    assert_eq!(pinned(&table), [Pinned::Everything]);
    table.publish(state(3, 17)).unwrap();
    assert_eq!(reader.told().unwrap(), Told::Live(state(3, 17)));
    reader.pin_states(vec![pair(3, 17), pair(2, 9)]).unwrap();
    let expected = [(3, 17), (2, 9)]
        .map(|(base, generation)| Pinned::State { base: CheckpointNumber(base), generation: Generation(generation) });
    assert_eq!(pinned(&table), expected);
    assert!(table.pins().unwrap()[0].holder.contains("test"));
    reader.pin_everything().unwrap();
    // Whatever it chooses is no older than what had been said before it was seen choosing.
    let from = Pinned::From { base: CheckpointNumber(3), generation: Generation(17) };
    assert_eq!(pinned(&table), [expected[0], expected[1], from]);
    table.publish(state(4, 20)).unwrap();
    assert_eq!(pinned(&table)[2], from, "it may have read that before");
    reader.pin_states(vec![pair(4, 20)]).unwrap();
    reader.pin_everything().unwrap();
    let later = Pinned::From { base: CheckpointNumber(4), generation: Generation(20) };
    assert_eq!(pinned(&table)[1], later, "it is choosing anew, though it was never seen otherwise");
    let listed = readers(&path).unwrap();
    assert_eq!((listed.len(), listed[0].name.as_str(), listed[0].process), (1, "test", std::process::id()));
    drop(reader);
    wait();
    assert_eq!(pinned(&table), []);
    assert!(readers(&path).unwrap().is_empty());
    drop(table);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left but the store");
}

#[test]
fn readers_of_an_earlier_writer_are_heard_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = store(folder.path());
    let first = WriterTable::open(&path).unwrap();
    first.publish(state(1, 5)).unwrap();
    let mut reader = Registration::open(&path, STORE, "").unwrap();
    assert_eq!(reader.told().unwrap(), Told::Live(state(1, 5)));
    reader.pin_states(vec![pair(1, 5)]).unwrap();
    drop(first);
    assert_eq!(reader.told().unwrap(), Told::Gone(Some(state(1, 5))));
    let next = WriterTable::open(&path).unwrap();
    assert_eq!(pinned(&next), [Pinned::State { base: CheckpointNumber(1), generation: Generation(5) }]);
    assert_eq!(reader.told().unwrap(), Told::Silent);
    next.publish(state(2, 8)).unwrap();
    assert_eq!(reader.told().unwrap(), Told::Live(state(2, 8)));
}

#[test]
fn what_another_store_says_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let path = store(folder.path());
    let table = WriterTable::open(&path).unwrap();
    table.publish(PublishedState { store: StoreId([8; 16]), ..state(1, 5) }).unwrap();
    let mut reader = Registration::open(&path, STORE, "").unwrap();
    assert_eq!(reader.told().unwrap(), Told::Silent);
}

#[test]
fn the_files_of_the_dead_are_swept() {
    let folder = tempfile::tempdir().unwrap();
    let path = store(folder.path());
    let side = folder.path().join("store.readers");
    fs::create_dir(&side).unwrap();
    fs::write(side.join("reader-1-0"), b"no lock on it").unwrap();
    let table = WriterTable::open(&path).unwrap();
    assert_eq!(pinned(&table), []);
    assert!(!side.join("reader-1-0").exists());
}

#[test]
fn a_file_that_cannot_be_understood_pins_everything_while_it_is_locked() {
    let folder = tempfile::tempdir().unwrap();
    let path = store(folder.path());
    let table = WriterTable::open(&path).unwrap();
    let mut reader = Registration::open(&path, STORE, "").unwrap();
    reader.pin_states(vec![pair(1, 5)]).unwrap();
    let file = fs::read_dir(folder.path().join("store.readers")).unwrap();
    let file = file.map(|entry| entry.unwrap().path()).find(|path| path.to_str().unwrap().contains("reader-")).unwrap();
    fs::write(file, b"scribble").unwrap();
    reader.told().unwrap();
    assert_eq!(pinned(&table), [Pinned::Everything]);
    // What the reader says next is understood again.
    reader.pin_states(vec![pair(1, 6)]).unwrap();
    assert_eq!(pinned(&table), [Pinned::State { base: CheckpointNumber(1), generation: Generation(6) }]);
}

#[test]
fn a_folder_that_was_taken_away_splits_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = store(folder.path());
    let side = folder.path().join("store.readers");
    let table = WriterTable::open(&path).unwrap();
    table.publish(state(1, 5)).unwrap();
    let mut reader = Registration::open(&path, STORE, "").unwrap();
    reader.told().unwrap();
    reader.pin_states(vec![pair(1, 5)]).unwrap();
    let pin = Pinned::State { base: CheckpointNumber(1), generation: Generation(5) };
    assert_eq!(pinned(&table), [pin]);
    for rename in [false, true] {
        match rename {
            true => fs::rename(&side, folder.path().join("elsewhere")).unwrap(),
            false => fs::remove_dir_all(&side).unwrap(),
        }
        // Before the writer has noticed, the reader finds nobody, and is heard at its old place.
        assert_eq!(reader.told().unwrap(), Told::Gone(None));
        wait();
        let pins = pinned(&table);
        assert!(!pins.is_empty() && pins.iter().all(|found| *found == pin), "{pins:?}");
        assert_eq!(reader.told().unwrap(), Told::Live(state(1, 5)), "the writer says again what it said");
        wait();
        assert_eq!(pinned(&table), [pin], "the old place is given up");
    }
}

#[test]
fn a_reader_that_was_never_seen_in_a_folder_that_is_gone_holds_everything() {
    let folder = tempfile::tempdir().unwrap();
    let path = store(folder.path());
    let table = WriterTable::open(&path).unwrap();
    let mut reader = Registration::open(&path, STORE, "").unwrap();
    reader.told().unwrap();
    reader.pin_states(vec![pair(1, 5)]).unwrap();
    fs::remove_dir_all(folder.path().join("store.readers")).unwrap();
    assert_eq!(pinned(&table), [Pinned::Everything]);
}

#[test]
fn a_store_of_several_names_has_no_readers() {
    let folder = tempfile::tempdir().unwrap();
    let path = store(folder.path());
    fs::hard_link(&path, folder.path().join("link")).unwrap();
    for error in [WriterTable::open(&path).err(), Registration::open(&path, STORE, "").err()] {
        assert!(matches!(error, Some(crate::Error::SideFolder { .. })), "{error:?}");
    }
    let symbolic = folder.path().join("symbolic");
    fs::remove_file(folder.path().join("link")).unwrap();
    std::os::unix::fs::symlink(&path, &symbolic).unwrap();
    let table = WriterTable::open(&symbolic).unwrap();
    let _reader = Registration::open(&path, STORE, "").unwrap();
    assert!(table.pins().unwrap().is_empty(), "it rings when it asks");
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn the_owner_can_write_into_the_folder_whatever_the_store_permits() {
    for mode in [0o400, 0o440, 0o444, 0o600, 0o640, 0o664] {
        let folder = tempfile::tempdir().unwrap();
        let path = store(folder.path());
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let reader = Registration::open(&path, STORE, "").unwrap();
        let beside = folder.path().join("store.readers");
        assert_eq!(mode_of(&beside) & 0o700, 0o700, "the folder beside a store of {mode:o}");
        for file in fs::read_dir(&beside).unwrap() {
            assert_eq!(mode_of(&file.unwrap().path()) & 0o600, 0o600, "a file beside a store of {mode:o}");
        }
        // Nobody else may more than they may with the store.
        assert_eq!(mode_of(&beside) & 0o066 & !mode, 0, "{mode:o}");
        // The owner, who makes the store writable again, is not locked out by a reader that is there.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let table = WriterTable::open(&path).unwrap();
        assert_eq!(pinned(&table), [Pinned::Everything]);
        drop((reader, table));
        assert!(!beside.exists(), "nothing is left");
    }
}

#[test]
fn the_folder_beside_somebody_elses_store_is_its_owners() {
    let folder = tempfile::tempdir().unwrap();
    let path = store(folder.path());
    if chown(&path, Some(12_345), Some(12_346)).is_err() {
        eprintln!("skipped: only root can give a file away");
        return;
    }
    let _reader = Registration::open(&path, STORE, "").unwrap();
    let beside = folder.path().join("store.readers");
    let files = fs::read_dir(&beside).unwrap().map(|file| file.unwrap().path());
    for path in files.chain([beside.clone()]) {
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.uid(), found.gid()), (12_345, 12_346), "{}", path.display());
    }
}
