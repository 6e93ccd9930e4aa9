//! What a command does, and its exit code, do not depend on who reads its output; and `-q` silences what went well
//! only.

use std::fs::{self, File};

use crate::support::{Place, on, path, run, unheard};

#[test]
fn an_import_that_nobody_reads_is_finished() {
    let place = Place::new();
    let (tree, store) = (place.join("tree"), place.join("store"));
    fs::create_dir(&tree).unwrap();
    // Two batches, of holes that take no room.
    for name in ["a", "b"] {
        File::create(tree.join(name)).unwrap().set_len(50 << 20).unwrap();
    }
    fs::write(tree.join("c"), b"last").unwrap();
    unheard(["import", "-vv", "--compression", "lz4", path(&store), path(&tree)]).expect(0);
    assert_eq!(on(&store, "cat {} c").expect(0).text(), "last");
}

#[test]
fn an_export_that_nobody_reads_is_finished() {
    let place = Place::new();
    let (tree, store, out) = (place.join("tree"), place.join("store"), place.join("out"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), b"file").unwrap();
    run(["import", path(&store), path(&tree)]).expect(0);
    unheard(["export", path(&store), path(&out)]).expect(0);
    assert_eq!(fs::read(out.join("file")).unwrap(), b"file");
    // What cannot be written is in the exit code.
    fs::remove_file(out.join("file")).unwrap();
    fs::create_dir_all(out.join("file/within")).unwrap();
    unheard(["export", path(&store), path(&out)]).expect(5);
}

#[test]
fn what_was_found_is_in_the_exit_code_of_a_check_that_nobody_reads() {
    let place = Place::new();
    let (tree, store) = (place.join("tree"), place.join("store"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), [b'x'; 10_000]).unwrap();
    run(["import", path(&store), path(&tree)]).expect(0);
    let mut bytes = fs::read(&store).unwrap();
    let at = bytes.windows(100).position(|window| window == [b'x'; 100]).unwrap();
    bytes[at + 50] ^= 1;
    fs::write(&store, bytes).unwrap();
    for format in [&[][..], &["--json"]] {
        unheard([&["check", path(&store), "--level", "full"], format].concat()).expect(4);
        unheard([&["inspect", "page", path(&store), "14:0"], format].concat()).expect(4);
    }
    unheard(["cat", path(&store), "file"]).expect(4);
    unheard(["ls", path(&store)]).expect(0);
    unheard(["info", path(&store)]).expect(0);
    unheard(["info", path(&place.join("nothing"))]).expect(10);
}

#[test]
fn commits_that_nobody_hears_of_are_no_success() {
    let place = Place::new();
    let store = place.join("store");
    let ran = unheard(["stress", "write", path(&store), "9"]).expect(5);
    assert!(ran.stderr.contains("acknowledge"), "{}", ran.stderr);
    on(&store, "stress verify {} 1").expect(0);
}

#[test]
fn quiet_commands_say_nothing_of_what_went_well() {
    let place = Place::new();
    let (tree, store, out) = (place.join("tree"), place.join("store"), place.join("out"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), b"file").unwrap();
    let said = |words: &[&str]| {
        let ran = run(words).expect(0);
        (ran.text(), ran.stderr)
    };
    let nothing = (String::new(), String::new());
    assert_eq!(said(&["-q", "create", path(&place.join("new"))]), nothing);
    assert_eq!(said(&["-q", "import", path(&store), path(&tree)]), nothing);
    assert_eq!(said(&["-q", "check", path(&store)]), nothing);
    assert_eq!(said(&["-q", "export", path(&store), path(&out)]), nothing);
    assert_eq!(said(&["-q", "readers", path(&store)]), nothing);
    // What was asked for.
    assert_eq!(said(&["-q", "ls", path(&store)]).0, "file\n");
    assert!(said(&["-q", "--json", "check", path(&store)]).0.contains("summary"));
}
