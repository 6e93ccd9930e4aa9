//! Importing and exporting.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use crate::support::{Place, Random, Running, assert_same_tree, make_tree, on, path, picture, program, ran, run, seed};

#[test]
fn what_is_imported_exports_identical() {
    let place = Place::new();
    let (tree, store, out) = (place.join("tree"), place.join("store"), place.join("out"));
    make_tree(&tree, &mut Random(1));
    let ran = run(["import", "--json", path(&store), path(&tree)]).expect(0);
    let summary = ran.json().pop().unwrap();
    assert_eq!(summary["entries"], picture(&tree).len());
    assert_eq!((&summary["failed"], &summary["removed"]), (&0.into(), &0.into()));
    on(&store, "check {} --level full").expect(0);
    run(["export", path(&store), path(&out)]).expect(0);
    assert_same_tree(&tree, &out);
    // Once more over what is there.
    run(["export", path(&store), path(&out)]).expect(0);
    assert_same_tree(&tree, &out);
}

#[test]
fn reading_changes_no_byte_of_the_store_even_after_a_kill() {
    let place = Place::new();
    let (tree, store) = (place.join("tree"), place.join("store"));
    make_tree(&tree, &mut Random(2));
    run(["import", path(&store), path(&tree)]).expect(0);
    let mut running = Running::start(["stress", "write", path(&place.join("stress")), "1000000"]);
    running.lines.by_ref().take(50).for_each(|line| drop(line.unwrap()));
    running.kill();
    for store in [store, place.join("stress")] {
        let mut permissions = fs::metadata(&store).unwrap().permissions();
        permissions.set_mode(0o400);
        fs::set_permissions(&store, permissions).unwrap();
        let before = fs::read(&store).unwrap();
        for words in [
            "info {}",
            "check {} --level full",
            "inspect superblock {}",
            "inspect record {} --entries",
            "inspect map {} --pages",
        ] {
            on(&store, words).expect(0);
        }
        assert_eq!(fs::read(&store).unwrap(), before);
    }
    let tree_store = place.join("store");
    run(["ls", "-l", path(&tree_store)]).expect(0);
    run(["export", path(&tree_store), path(&place.join("out"))]).expect(0);
}

#[test]
fn importing_again_replaces_what_changed_and_frees_what_went() {
    let place = Place::new();
    let (tree, store, out) = (place.join("tree"), place.join("store"), place.join("out"));
    let mut random = Random(seed(3));
    make_tree(&tree, &mut random);
    run(["import", path(&store), path(&tree)]).expect(0);

    let unchanged = run(["import", "--json", path(&store), path(&tree)]).expect(0).json().pop().unwrap();
    assert_eq!((&unchanged["stored"], &unchanged["removed"], &unchanged["batches"]), (&0.into(), &0.into(), &0.into()));

    fs::write(tree.join("deep/file 000"), random.bytes(50_000)).unwrap();
    fs::write(tree.join("deep/new"), b"new").unwrap();
    fs::remove_file(tree.join("deep/file 002")).unwrap();
    fs::remove_file(tree.join("deep/er/and deeper/5000000 bytes")).ok();
    fs::set_permissions(tree.join("deep/file 003"), fs::Permissions::from_mode(0o600)).unwrap();
    // A folder becomes a file, a file a folder, a link something else.
    fs::remove_dir_all(tree.join("deep/er")).unwrap();
    fs::write(tree.join("deep/er"), b"no folder any more").unwrap();
    fs::remove_file(tree.join("deep/file 004")).unwrap();
    fs::create_dir(tree.join("deep/file 004")).unwrap();
    fs::write(tree.join("deep/file 004/within"), b"within").unwrap();
    fs::remove_file(tree.join("link")).unwrap();
    fs::write(tree.join("link"), b"no link any more").unwrap();
    run(["import", path(&store), path(&tree)]).expect(0);
    on(&store, "check {} --level full").expect(0);
    run(["export", path(&store), path(&out)]).expect(0);
    assert_same_tree(&tree, &out);

    // Everything goes: so do the pages.
    fs::set_permissions(tree.join("empty folder"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_dir_all(&tree).unwrap();
    fs::create_dir(&tree).unwrap();
    run(["import", path(&store), path(&tree)]).expect(0);
    assert_eq!(on(&store, "ls {}").expect(0).text(), "");
    let summary = on(&store, "check {} --level full --json").expect(0).json().pop().unwrap();
    assert_eq!(summary["pages"], 0);
}

#[test]
fn checksum_finds_what_time_and_length_hide() {
    let place = Place::new();
    let (tree, store) = (place.join("tree"), place.join("store"));
    fs::create_dir(&tree).unwrap();
    let file = tree.join("file");
    fs::write(&file, b"one").unwrap();
    run(["import", path(&store), path(&tree)]).expect(0);
    let time = fs::metadata(&file).unwrap().modified().unwrap();
    fs::write(&file, b"two").unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
    run(["import", path(&store), path(&tree)]).expect(0);
    assert_eq!(on(&store, "cat {} file").expect(0).text(), "one");
    run(["import", "--checksum", path(&store), path(&tree)]).expect(0);
    assert_eq!(on(&store, "cat {} ./file").expect(0).text(), "two");
    // The bytes are the same, only the time is not: no page is written for them.
    fs::write(&file, b"two").unwrap();
    let summary = run(["import", "--checksum", "--json", path(&store), path(&tree)]).expect(0).json().pop().unwrap();
    assert_eq!(summary["stored_bytes"], 0);
}

#[test]
fn a_file_larger_than_a_batch_is_stored_over_several() {
    let place = Place::new();
    let (tree, store, out) = (place.join("tree"), place.join("store"), place.join("out"));
    fs::create_dir(&tree).unwrap();
    let mut random = Random(5);
    let piece = random.bytes(1 << 20);
    let mut content = Vec::new();
    for index in 0..150u8 {
        content.extend(&piece);
        content.push(index);
    }
    fs::write(tree.join("large"), &content).unwrap();
    fs::write(tree.join("small"), b"small").unwrap();
    let ran = run(["import", "--json", path(&store), path(&tree)]).expect(0);
    assert!(ran.json().pop().unwrap()["batches"].as_u64().unwrap() >= 3);
    on(&store, "check {} --level full").expect(0);
    run(["export", path(&store), path(&out)]).expect(0);
    assert_same_tree(&tree, &out);
    assert!(on(&store, "cat {} large").expect(0).stdout == content);
}

#[test]
fn an_import_that_is_killed_keeps_whole_files_and_can_be_finished() {
    let place = Place::new();
    let tree = place.join("tree");
    fs::create_dir(&tree).unwrap();
    let mut random = Random(seed(6));
    for index in 0..100 {
        let length = 1_000_000 + random.below(100_000) as usize;
        fs::write(tree.join(format!("file {index:03}")), vec![random.next() as u8; length]).unwrap();
    }
    fs::write(tree.join("zz large"), vec![7; 100 << 20]).unwrap();
    for round in 0..3 {
        let (store, out) = (place.join(&format!("store {round}")), place.join(&format!("out {round}")));
        let mut running = Running::start(["import", "-vv", path(&store), path(&tree)]);
        // Up to a batch of the round's choice, then a moment more.
        let mut acknowledged: Vec<String> = Vec::new();
        let mut batches = 0;
        while batches <= round {
            let line = running.lines.next().unwrap().unwrap();
            batches += u64::from(line.starts_with("batch "));
            acknowledged.extend(line.strip_prefix("stored ").map(str::to_owned));
        }
        std::thread::sleep(std::time::Duration::from_micros(random.below(30_000)));
        // A line that the kill cut is an acknowledgement that nobody got.
        let mut rest = running.kill();
        rest.pop();
        acknowledged.extend(rest.iter().filter_map(|line| line.strip_prefix("stored ")).map(str::to_owned));

        on(&store, "check {} --level full").expect(0);
        run(["export", path(&store), path(&out)]).expect(0);
        let (whole, found) = (picture(&tree), picture(&out));
        assert!(found.iter().all(|(path, what)| whole.get(path) == Some(what)), "round {round}");
        assert!(acknowledged.iter().all(|path| found.contains_key(std::path::Path::new(path))), "round {round}");
        run(["import", path(&store), path(&tree)]).expect(0);
        let summary = on(&store, "check {} --level full --json").expect(0).json().pop().unwrap();
        run(["export", path(&store), path(&out)]).expect(0);
        assert_same_tree(&tree, &out);
        // The files, leaves of the catalogue and their root: no page of an unfinished file is left.
        let pages = summary["pages"].as_u64().unwrap();
        assert!((101 + 2..101 + 8).contains(&pages), "round {round}: {pages} pages");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let place = Place::new();
    let (tree, store) = (place.join("tree"), place.join("store"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), vec![1; 3 << 20]).unwrap();
    run(["import", path(&store), path(&tree)]).expect(0);
    let mut cat = program();
    let mut child = cat.args(["cat", path(&store), "file"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!((first, child.wait().unwrap().code()), ([1; 10], Some(0)));
}

#[test]
fn what_cannot_be_stored_is_told_and_the_rest_is_kept() {
    let place = Place::new();
    let (tree, store) = (place.join("tree"), place.join("tree/store"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), b"file").unwrap();
    let socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    let ran = run(["import", "--json", path(&store), path(&tree)]).expect(0);
    let summary = ran.json().pop().unwrap();
    assert_eq!((&summary["skipped"], &summary["entries"]), (&1.into(), &1.into()));
    assert!(ran.stderr.contains("socket") && ran.stderr.contains("the store itself"), "{}", ran.stderr);
    drop(socket);
}

#[test]
fn an_export_never_leaves_its_folder() {
    let place = Place::new();
    let (tree, store, out, outside) =
        (place.join("tree"), place.join("store"), place.join("out"), place.join("outside"));
    fs::create_dir_all(tree.join("folder")).unwrap();
    fs::write(tree.join("folder/file"), b"new").unwrap();
    run(["import", path(&store), path(&tree)]).expect(0);
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("file"), b"old").unwrap();
    fs::create_dir(&out).unwrap();
    std::os::unix::fs::symlink(&outside, out.join("folder")).unwrap();
    run(["export", path(&store), path(&out)]).expect(0);
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"old");
    assert_same_tree(&tree, &out);
}

#[test]
fn an_export_replaces_what_is_of_another_kind_but_no_folder_with_content() {
    let place = Place::new();
    let (tree, store, out) = (place.join("tree"), place.join("store"), place.join("out"));
    fs::create_dir_all(tree.join("folder")).unwrap();
    fs::write(tree.join("file"), b"new").unwrap();
    fs::write(tree.join("folder/within"), b"within").unwrap();
    std::os::unix::fs::symlink("file", tree.join("link")).unwrap();
    run(["import", path(&store), path(&tree)]).expect(0);
    fs::create_dir_all(out.join("file")).unwrap();
    fs::create_dir(out.join("link")).unwrap();
    fs::write(out.join("folder"), b"old").unwrap();
    run(["export", path(&store), path(&out)]).expect(0);
    assert_same_tree(&tree, &out);

    fs::remove_file(out.join("file")).unwrap();
    fs::create_dir(out.join("file")).unwrap();
    fs::write(out.join("file/of somebody"), b"kept").unwrap();
    fs::write(out.join("folder/within"), b"old").unwrap();
    let ran = run(["export", path(&store), path(&out)]).expect(5);
    assert!(ran.stderr.contains("a folder that is not empty"), "{}", ran.stderr);
    assert_eq!(fs::read(out.join("file/of somebody")).unwrap(), b"kept");
    assert_eq!(fs::read(out.join("folder/within")).unwrap(), b"within");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 3, "nothing is left of the attempt");
}

#[test]
fn an_export_to_a_full_disk_stops_at_once() {
    let place = Place::new();
    let (tree, store, disk) = (place.join("tree"), place.join("store"), place.join("disk"));
    fs::create_dir(&tree).unwrap();
    fs::create_dir(&disk).unwrap();
    for index in 0..50 {
        fs::write(tree.join(format!("file {index}")), vec![7; 50_000]).unwrap();
    }
    run(["import", path(&store), path(&tree)]).expect(0);
    let small = |script: &str| {
        let script = format!("mount -t tmpfs -o size=512k none \"$1\" && {script}");
        let mut command = std::process::Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, env!("CARGO_BIN_EXE_vellum")]);
        command.args([&disk, &store]);
        command
    };
    if !small("true").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: no file system may be mounted here");
        return;
    }
    let ran = ran(&mut small("exec \"$0\" export \"$2\" \"$1\"")).expect(13);
    assert_eq!(ran.stderr.lines().count(), 3, "{}", ran.stderr);
    assert!(ran.stderr.contains("free space on the disk"), "{}", ran.stderr);
}

#[test]
fn names_do_not_command_a_terminal() {
    let place = Place::new();
    let (tree, store) = (place.join("tree"), place.join("store"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("red\u{1b}[31m"), b"").unwrap();
    run(["import", path(&store), path(&tree)]).expect(0);
    assert_eq!(on(&store, "ls {}").expect(0).text(), "red\u{1b}[31m\n");
    let command = format!("{} ls {}", env!("CARGO_BIN_EXE_vellum"), path(&store));
    match std::process::Command::new("script").args(["-qec", &command, "/dev/null"]).output() {
        Ok(output) => assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), "red\\033[31m"),
        Err(_) => println!("skipped: nothing here makes a terminal"),
    }
}

#[test]
fn what_cannot_be_read_any_more_keeps_what_the_store_has_of_it() {
    let place = Place::new();
    let (tree, store) = (place.join("tree"), place.join("store"));
    // A path so long that one more folder above it makes it too long for the system.
    let deep = ["d".repeat(200).as_str(); 18].join("/");
    fs::create_dir_all(tree.join(&deep)).unwrap();
    fs::write(tree.join(&deep).join("file"), b"deep").unwrap();
    fs::write(tree.join("other"), b"old").unwrap();
    run(["import", path(&store), path(&tree)]).expect(0);
    let further = place.join(&["e".repeat(250), "e".repeat(250)].join("/"));
    fs::create_dir_all(&further).unwrap();
    let moved = further.join("tree");
    fs::rename(&tree, &moved).unwrap();
    fs::write(moved.join("other"), b"newer").unwrap();

    let ran = run(["import", "--json", path(&store), path(&moved)]).expect(5);
    let summary = ran.json().pop().unwrap();
    assert_eq!((&summary["removed"], &summary["stored"]), (&0.into(), &1.into()), "{}", ran.stderr);
    let quiet = run(["-q", "import", path(&store), path(&moved)]).expect(5);
    assert!(quiet.stdout.is_empty() && quiet.stderr.starts_with("error: cannot read"), "{quiet:?}");
    assert_eq!(on(&store, &format!("cat {{}} {deep}/file")).expect(0).text(), "deep");
    assert_eq!(on(&store, "cat {} other").expect(0).text(), "newer");
    fs::rename(&moved, &tree).unwrap();
}

#[test]
fn a_tree_is_stored_as_it_is_told_and_exports_identical() {
    let place = Place::new();
    let (tree, out) = (place.join("tree"), place.join("out"));
    fs::create_dir(&tree).unwrap();
    let text: String = (0..60_000).map(|line| format!("line {line} of a long text\n")).collect();
    fs::write(tree.join("text"), &text).unwrap();
    fs::write(tree.join("noise"), Random(9).bytes(131_072)).unwrap();
    fs::write(tree.join("small"), "small").unwrap();
    for (codec, name) in [("lz4", "lz4"), ("zstd", "zstd"), ("zstd:9", "zstd"), ("snappy", "snappy")] {
        let store = place.join(codec);
        run(["import", "--compression", codec, path(&store), path(&tree)]).expect(0);
        on(&store, "check {} --level full").expect(0);
        run(["export", path(&store), path(&out)]).expect(0);
        assert_same_tree(&tree, &out);
        let info = on(&store, "info {} --storage --json").expect(0).json();
        let shares = info[0]["storage"].as_array().unwrap();
        let of = |codec: &str| shares.iter().find(|share| share["codec"] == codec).unwrap();
        let bytes = |share: &serde_json::Value, what: &str| share[what].as_u64().unwrap();
        assert!(bytes(of(name), "stored_bytes") * 2 < bytes(of(name), "page_bytes"), "{info:?}");
        assert_eq!(bytes(of("raw"), "stored_bytes"), bytes(of("raw"), "page_bytes"));
        let listed = on(&store, "ls {} --storage").expect(0).text();
        let line = |file: &str| listed.lines().find(|line| line.ends_with(file)).unwrap().to_owned();
        assert!(line(" text").contains(&format!(" {name} ")), "{listed}");
        assert!(line(" noise").contains(" raw ") && line(" small").contains(" raw "), "{listed}");
    }
    let refused = run(["import", "--compression", "gzip", path(&place.join("none")), path(&tree)]).expect(2);
    assert!(refused.stderr.contains("compression"), "{}", refused.stderr);
    assert!(!place.join("none").exists());
}
