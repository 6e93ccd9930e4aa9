//! Files that are no stores, stores that are not to be opened, and paths that are neither.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use vellum::format::{SUPERBLOCK_BLOCKS, Superblock, birth_block};
use vellum::{BLOCK_BYTES, Background, Error, Options, PageId, Pager, Read};

use crate::{SMALL, inline};

/// A store at `path` with one page.
fn store(path: &Path) -> PageId {
    let pager = Pager::create(path, &inline()).unwrap();
    let transaction = pager.begin().unwrap();
    let page = transaction.allocate(SMALL).unwrap();
    transaction.write(page).unwrap()[..4].copy_from_slice(b"data");
    transaction.commit().unwrap();
    pager.close().unwrap();
    page
}

/// The error of opening, which must name the path; `create` must leave the file as it is.
fn refused(path: &Path) -> Error {
    let before = fs::read(path).unwrap_or_default();
    let error = Pager::open(path, &Options::new()).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    assert!(Pager::create(path, &Options::new()).is_err());
    assert!(Pager::open_or_create(path, &Options::new()).is_err());
    assert_eq!(fs::read(path).unwrap_or_default(), before, "{error}");
    error
}

/// Changes all superblocks of the store.
fn change_superblocks(path: &Path, change: impl Fn(&mut Superblock)) {
    let mut bytes = fs::read(path).unwrap();
    for block in SUPERBLOCK_BLOCKS {
        let at = (block * BLOCK_BYTES) as usize;
        let copy: &mut [u8; 4096] = (&mut bytes[at..at + 4096]).try_into().unwrap();
        let mut superblock = Superblock::decode(copy).unwrap().unwrap();
        change(&mut superblock);
        *copy = superblock.encode();
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_store_survives_closing_and_opening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let page = store(&path);
    for background in [Background::Inline, Background::Thread] {
        let pager = Pager::open(&path, &Options::new().background(background)).unwrap();
        assert_eq!(pager.view().page(page).unwrap()[..4], *b"data");
        assert_eq!(pager.path(), path);
    }
}

#[test]
fn what_is_not_a_store_is_refused_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("letter");
    for content in [&b"Dear Sir or Madam"[..], &[0; 100_000], &[0xff; 4096], b"VELLUM"] {
        fs::write(&path, content).unwrap();
        assert!(matches!(refused(&path), Error::NotAStore { .. }));
        assert!(matches!(Pager::create(&path, &Options::new()), Err(Error::AlreadyExists { .. })));
    }
}

#[test]
fn an_existing_store_is_not_created_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let page = store(&path);
    assert!(matches!(Pager::create(&path, &Options::new()), Err(Error::AlreadyExists { .. })));
    let pager = Pager::open_or_create(&path, &Options::new()).unwrap();
    assert!(pager.view().contains(page).unwrap());
}

#[test]
fn an_empty_file_and_an_interrupted_creation_are_created_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let remains = [Vec::new(), birth_block().to_vec(), birth_block()[..100].to_vec()];
    for content in &remains {
        for create in [Pager::create, Pager::open_or_create] {
            fs::write(&path, content).unwrap();
            assert!(matches!(Pager::open(&path, &Options::new()), Err(Error::IncompleteCreate { .. })));
            create(path.as_path(), &Options::new()).unwrap().close().unwrap();
            Pager::open(&path, &Options::new()).unwrap();
        }
    }
}

#[test]
fn another_version_and_unknown_features_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    store(&path);
    let good = fs::read(&path).unwrap();
    change_superblocks(&path, |superblock| superblock.version = 9);
    assert!(matches!(refused(&path), Error::UnsupportedVersion { found: 9, supported: 1, .. }));
    fs::write(&path, &good).unwrap();
    change_superblocks(&path, |superblock| superblock.features_incompatible = 1 << 40);
    assert!(matches!(refused(&path), Error::UnsupportedFeatures { bits, .. } if bits == 1 << 40));
    fs::write(&path, &good).unwrap();
    change_superblocks(&path, |superblock| superblock.features_read_compatible = 4);
    assert!(matches!(refused(&path), Error::UnsupportedFeatures { bits: 4, .. }));
    fs::write(&path, &good).unwrap();
    Pager::open(&path, &Options::new()).unwrap();
}

#[test]
fn a_store_of_another_application_is_refused_unless_any_will_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let ours = Options::new().application(0x4c45_4447, 3);
    Pager::create(&path, &ours).unwrap().close().unwrap();
    let theirs = Options::new().application(0x4d41_494c, 3);
    match Pager::open(&path, &theirs) {
        Err(Error::WrongApplication { expected: 0x4d41_494c, found: 0x4c45_4447, .. }) => {}
        other => panic!("{other:?}"),
    }
    Pager::open(&path, &ours).unwrap();
    Pager::open(&path, &Options::new()).unwrap();
}

#[test]
fn a_truncated_store_is_refused_wherever_it_ends_or_has_lost_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let page = store(&path);
    let good = fs::read(&path).unwrap();
    let mut refusals = 0;
    for part in 1..=64 {
        // Blocks, and bytes within blocks.
        let length = good.len() * part / 64 - part % 2;
        fs::write(&path, &good[..length]).unwrap();
        match Pager::open(&path, &inline()) {
            Ok(pager) => match pager.view().page(page) {
                Ok(guard) => assert_eq!(guard[..4], *b"data"),
                Err(error) => assert!(error.is_corruption(), "{error}"),
            },
            Err(error) => {
                refusals += 1;
                assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
                assert!(Pager::create(&path, &inline()).is_err(), "cut to {length} bytes it still was a store");
            }
        }
    }
    assert!(refusals > 0);
}

#[test]
fn a_folder_a_fifo_and_a_missing_path_are_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(refused(folder.path()), Error::NotAFile { kind: "a directory", .. }));

    let fifo = folder.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    for result in [Pager::open(&fifo, &inline()), Pager::create(&fifo, &inline())] {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::NotAFile { kind: "a FIFO", .. }), "{error}");
        assert!(error.to_string().contains(fifo.to_str().unwrap()));
    }

    let is_missing = |result: Result<Pager, Error>, path: &Path| match result.unwrap_err() {
        Error::Io { path: named, source, .. } => named == path && source.kind() == io::ErrorKind::NotFound,
        other => panic!("{other}"),
    };
    let missing = folder.path().join("missing");
    assert!(is_missing(Pager::open(&missing, &inline()), &missing));
    let nowhere = folder.path().join("nowhere/store");
    assert!(is_missing(Pager::create(&nowhere, &inline()), &nowhere));
    assert!(is_missing(Pager::open_or_create(&nowhere, &inline()), &nowhere));
}

#[test]
fn a_path_that_vanishes_leaves_the_open_store_working() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let page = store(&path);
    let pager = Pager::open(&path, &inline()).unwrap();
    fs::remove_file(&path).unwrap();
    let transaction = pager.begin().unwrap();
    transaction.write(page).unwrap()[0] = b'D';
    transaction.commit().unwrap();
    assert_eq!(pager.view().page(page).unwrap()[..4], *b"Data");
    pager.close().unwrap();
    assert!(matches!(Pager::open(&path, &inline()), Err(Error::Io { operation: "open", .. })));
}

#[test]
fn a_file_without_permission_is_refused_by_its_name() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    store(&path);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // Whom the system lets in all the same (root), the pager does too.
    let system = fs::OpenOptions::new().read(true).write(true).open(&path);
    match (system, Pager::open(&path, &inline())) {
        (Ok(_), opened) => drop(opened.unwrap()),
        (Err(_), Err(Error::Io { path: named, source, .. })) => {
            assert_eq!((named, source.kind()), (path, io::ErrorKind::PermissionDenied));
        }
        (Err(expected), other) => panic!("{expected}, but {other:?}"),
    }
}

#[test]
fn a_store_is_open_for_writing_once_in_a_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    store(&path);
    let pager = Pager::open(&path, &inline()).unwrap();
    let view = pager.view();
    assert!(matches!(refused(&path), Error::OpenedTwice { .. }));
    drop(pager);
    assert!(matches!(refused(&path), Error::OpenedTwice { .. }), "the view keeps it open");
    drop(view);
    let pager = Pager::open(&path, &inline()).unwrap();
    let view = pager.view();
    pager.close().unwrap();
    Pager::open(&path, &inline()).unwrap();
    drop(view);
}

/// Set for the child that holds the lock.
const LOCKED_PATH: &str = "VELLUM_TEST_LOCKED_PATH";

#[test]
fn a_store_is_open_for_writing_in_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    store(&path);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "opening::child_that_holds_the_lock", "--nocapture"])
        .env(LOCKED_PATH, &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("locked")), "the child could not open the store");
    assert!(matches!(refused(&path), Error::Locked { .. }));
    // It dies with the lock in its hands: the kernel drops it.
    child.kill().unwrap();
    child.wait().unwrap();
    Pager::open(&path, &inline()).unwrap();
}

/// Not a test of its own: what [`a_store_is_open_for_writing_in_one_process`] runs in another process. Without the
/// variable there is nothing to do.
#[test]
fn child_that_holds_the_lock() {
    let Some(path) = std::env::var_os(LOCKED_PATH) else { return };
    let _pager = Pager::open(path, &inline()).unwrap();
    println!("locked");
    io::stdout().flush().unwrap();
    // Until the parent kills this process, or is gone itself.
    let _ = io::stdin().read_line(&mut String::new());
}

#[test]
fn options_that_cannot_work_are_refused_before_a_file_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let invalid = [
        (Options::new().clean_target(99), "clean_target"),
        (Options::new().growth_bytes(0), "growth_bytes"),
        (Options::new().log_segment_bytes(1), "log_segment_bytes"),
    ];
    for (options, name) in invalid {
        let error = Pager::create(&path, &options).unwrap_err();
        assert!(matches!(error, Error::InvalidOption { option, .. } if option == name), "{error}");
        assert!(!path.exists());
    }
}
