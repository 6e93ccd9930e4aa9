//! Bad input: each kind its own exit code and its three lines, and no file is harmed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;

use crate::support::{Place, on, path, program, ran, run};

const READING: [&str; 8] = [
    "info {}",
    "check {}",
    "ls {}",
    "cat {} file",
    "inspect superblock {}",
    "inspect record {}",
    "inspect page {} 12:0",
    "inspect map {}",
];

fn refused(store: &Path, words: &str, code: i32) {
    let ran = on(store, words).expect(code);
    assert!(ran.stdout.is_empty(), "{words}");
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(lines.len(), 3, "{words}: {}", ran.stderr);
    assert!(lines[0].starts_with("error: ") && lines[1].contains("why: ") && lines[2].contains("next: "), "{lines:?}");
    assert!(ran.stderr.contains(path(store)), "{words}: {}", ran.stderr);
}

#[test]
fn what_is_no_store_is_refused_and_not_touched() {
    let place = Place::new();
    let nothing = place.join("nothing");
    let empty = place.join("empty");
    fs::write(&empty, b"").unwrap();
    let foreign = place.join("foreign");
    fs::write(&foreign, vec![b'#'; 100_000]).unwrap();
    let folder = place.join("folder");
    fs::create_dir(&folder).unwrap();
    let socket = place.join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let (below, long) = (foreign.join("below"), place.join(&"n".repeat(300)));
    for store in [&below, &long] {
        assert!(on(store, "info {}").stderr.contains("check the path"));
        run(["import", path(&nothing), path(store)]).expect(10);
    }
    for store in [&nothing, &empty, &foreign, &folder, &socket, &below, &long] {
        for words in READING {
            refused(store, words, 10);
        }
    }
    drop(listener);
    let tree = place.join("tree");
    fs::create_dir(&tree).unwrap();
    for store in [&foreign, &folder] {
        run(["import", path(store), path(&tree)]).expect(10);
        run(["stress", "write", path(store), "1"]).expect(10);
    }
    run(["create", path(&foreign)]).expect(1);
    run(["create", path(&folder)]).expect(10);
    assert_eq!(fs::read(&foreign).unwrap(), vec![b'#'; 100_000]);
    assert!(!nothing.exists());
    run(["create", path(&empty)]).expect(0);
    run(["create", path(&empty)]).expect(1);
    on(&empty, "check {}").expect(0);
}

#[test]
fn a_truncated_store_is_corrupt() {
    let place = Place::new();
    let store = place.join("store");
    run(["create", path(&store)]).expect(0);
    let bytes = fs::read(&store).unwrap();
    for length in [bytes.len() / 2, 19 * 4096, 3 * 4096] {
        fs::write(&store, &bytes[..length]).unwrap();
        refused(&store, "check {}", 4);
    }
}

#[test]
fn a_store_of_another_application_or_version_is_unsupported() {
    let place = Place::new();
    let (store, tree) = (place.join("store"), place.join("tree"));
    fs::create_dir(&tree).unwrap();
    run(["stress", "write", path(&store), "3"]).expect(0);
    run(["import", path(&store), path(&tree)]).expect(12);
    refused(&store, "ls {}", 12);
    let other = place.join("other");
    run(["create", "--application", "0x4d", path(&other)]).expect(0);
    assert!(on(&other, "info {}").expect(0).text().contains("0x0000004d"));
    run(["create", "--application", "0x1ffffffff", path(&place.join("none"))]).expect(2);
    run(["stress", "write", path(&other), "1"]).expect(12);
    // A store of nobody in particular becomes one of a tree.
    let plain = place.join("plain");
    run(["create", path(&plain)]).expect(0);
    fs::write(tree.join("file"), b"file").unwrap();
    run(["import", path(&plain), path(&tree)]).expect(0);
    assert_eq!(on(&plain, "cat {} file").expect(0).text(), "file");
}

#[test]
fn a_store_in_use_is_locked() {
    let place = Place::new();
    let store = place.join("store");
    run(["create", path(&store)]).expect(0);
    let pager = vellum::Pager::open(&store, &vellum::Options::new()).unwrap();
    for words in ["check {}", "ls {}"] {
        refused(&store, words, 11);
    }
    refused(&store, "stress write {} 1", 11);
    refused(&store, "import {} /tmp", 11);
    let info = on(&store, "info {} --json").expect(0).json();
    assert_eq!(info[0]["open_for_writing"], true);
    on(&store, "inspect superblock {}").expect(0);
    pager.close().unwrap();
    on(&store, "check {}").expect(0);
}

#[test]
fn what_is_not_in_the_store_is_not_found() {
    let place = Place::new();
    let (store, tree) = (place.join("store"), place.join("tree"));
    fs::create_dir_all(tree.join("folder")).unwrap();
    run(["import", path(&store), path(&tree)]).expect(0);
    refused(&store, "cat {} nothing", 10);
    refused(&store, "cat {} folder", 1);
    refused(&store, "ls {} nothing", 10);
    refused(&store, "cat {} .", 1);
    let ls = |words: &str| on(&store, words).expect(0).text();
    assert_eq!(ls("ls {} folder/"), "folder\n");
    assert_eq!((ls("ls {} /"), ls("ls {} ."), ls("ls {} /folder")), (ls("ls {}"), ls("ls {}"), ls("ls {} folder")));
    fs::write(tree.join("file"), b"").unwrap();
    run(["import", path(&store), path(&tree)]).expect(0);
    on(&store, "cat {} /file").expect(0);
    for words in ["cat {} file/", "ls {} file/", "ls {} /nothing", "cat {} /nothing"] {
        refused(&store, words, 10);
        let asked = words.rsplit(' ').next().unwrap();
        assert!(on(&store, words).stderr.contains(&format!("'{asked}'")), "{words}");
    }
    refused(&store, "inspect page {} 12:99", 10);
    run(["import", path(&store), path(&place.join("nowhere"))]).expect(10);
    run(["import", path(&store), path(&store)]).expect(10);
}

#[test]
fn wrong_usage_is_2_and_64_for_stress_verify() {
    let store = Path::new("unused");
    for words in [
        "",
        "nothing",
        "info",
        "check {} --level most",
        "inspect page {} 12",
        "stress write {}",
        "stress write {} 1 --pages 0",
        "stress write {} 1 --pages 9 --total 8",
    ] {
        assert_eq!(on(store, words).expect(2).stdout.len(), 0, "{words}");
    }
    for words in [
        "stress verify",
        "stress verify {}",
        "stress verify {} x",
        "--json stress verify {} -1",
        "stress verify {} 1 2",
    ] {
        on(store, words).expect(64);
    }
    on(store, "stress verify --help").expect(0);
}

#[test]
fn a_root_that_cannot_be_read_makes_no_store() {
    let place = Place::new();
    let (tree, store) = (place.join("tree"), place.join("store"));
    fs::create_dir(&tree).unwrap();
    fs::set_permissions(place.join(""), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(&tree, fs::Permissions::from_mode(0o311)).unwrap();
    let mut import = program();
    import.args(["import", path(&store), path(&tree)]);
    if fs::read_dir(&tree).is_ok() {
        // We may do anything: somebody else is to try, unless the program lies where nobody else comes.
        fs::set_permissions(&tree, fs::Permissions::from_mode(0o700)).unwrap();
        import.uid(65534);
        if import.output().is_err() {
            println!("skipped: nobody else may run the program");
            return;
        }
    }
    let ran = ran(&mut import).expect(1);
    assert!(ran.stderr.contains(path(&tree)) && ran.stderr.contains("permissions"), "{}", ran.stderr);
    assert!(!store.exists());
}
