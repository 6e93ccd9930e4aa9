//! What is shown of stores, whole and damaged.

use std::fs;
use std::path::Path;

use serde_json::Value;
use vellum::{Background, Options, Pager, SizeClass};

use crate::support::{Place, Random, Running, on, path, run, seed};

/// A store with one file, whose bytes are all `x`.
fn store_with_one_file(place: &Place) -> std::path::PathBuf {
    let (tree, store) = (place.join("tree"), place.join("store"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), [b'x'; 10_000]).unwrap();
    run(["import", path(&store), path(&tree)]).expect(0);
    store
}

fn flip(store: &Path, offset: usize) {
    let mut bytes = fs::read(store).unwrap();
    bytes[offset] ^= 1;
    fs::write(store, bytes).unwrap();
}

#[test]
fn a_flipped_byte_of_a_page_is_found_and_named() {
    let place = Place::new();
    let store = store_with_one_file(&place);
    let bytes = fs::read(&store).unwrap();
    flip(&store, bytes.windows(100).position(|window| window == [b'x'; 100]).unwrap() + 50);

    on(&store, "check {}").expect(0);
    let lines = on(&store, "check {} --level full --json").expect(4).json();
    assert_eq!((&lines[0]["type"], &lines[0]["page"]), (&"finding".into(), &"14:0".into()));
    assert_eq!(lines.last().unwrap()["damages"], 1);
    let cat = on(&store, "cat {} file").expect(4);
    assert!(cat.stderr.contains("14:0") && cat.stderr.lines().count() == 3, "{}", cat.stderr);
    run(["export", path(&store), path(&place.join("out"))]).expect(4);
    assert!(!place.join("out/file").exists());
    let shown = on(&store, "inspect page {} 14:0").expect(4);
    assert!(shown.text().contains("checksum"), "{}", shown.text());
}

#[test]
fn info_and_inspect_show_what_is_left_of_a_damaged_store() {
    let place = Place::new();
    let store = store_with_one_file(&place);
    let copies = |words: &str, code| {
        let lines = on(&store, words).expect(code).json();
        lines.iter().filter(|line| line["valid"] == true).count()
    };
    assert_eq!(copies("inspect superblock {} --json", 0), 4);
    flip(&store, 4096 + 100);
    flip(&store, 2 * 4096 + 100);
    assert_eq!(copies("inspect superblock {} --json", 0), 2);
    assert_eq!(on(&store, "info {} --json").expect(0).json()[0]["superblock_copies_valid"], 2);
    let lines = on(&store, "check {} --level full --json").expect(3).json();
    let severities: Vec<&Value> = lines.iter().map(|line| &line["severity"]).collect();
    assert_eq!(severities[..2], ["repairable"; 2], "{lines:?}");
    assert_eq!((&lines[0]["offset"], &lines[1]["offset"]), (&4096.into(), &8192.into()));
    let summary = lines.last().unwrap();
    assert_eq!((&summary["superblock_copies_damaged"], &summary["damages"]), (&2.into(), &0.into()));
    assert!(summary["repairable"].as_u64() >= Some(2), "{summary}");
    flip(&store, 17 * 4096 + 100);
    flip(&store, 18 * 4096 + 100);
    assert_eq!(copies("inspect superblock {} --json", 4), 0);
    for words in ["info {}", "check {}", "inspect map {}", "inspect record {}", "inspect page {} 12:0", "ls {}"] {
        assert_eq!(on(&store, words).expect(4).stderr.lines().count(), 3, "{words}");
    }
}

#[test]
fn damage_that_recovery_mends_is_told_and_never_nothing_wrong() {
    let place = Place::new();
    let store = store_with_one_file(&place);
    let whole = fs::read(&store).unwrap();
    let newest = &on(&store, "inspect superblock {} --json").expect(0).json();
    let newest = newest.iter().max_by_key(|copy| copy["superblock"]["checkpoint"].as_u64()).unwrap();
    let newest = newest["superblock"].clone();
    // The newest slot and the older one: which is which is the format's affair.
    for copies in [[1, 2], [17, 18]] {
        fs::write(&store, &whole).unwrap();
        copies.iter().for_each(|copy| flip(&store, copy * 4096 + 100));
        let text = on(&store, "check {}").expect(3).text();
        assert!(!text.contains("nothing wrong") && text.contains("repairable: "), "{text}");
    }
    for copy in [1, 2, 17, 18] {
        fs::write(&store, &whole).unwrap();
        flip(&store, copy * 4096 + 100);
        assert_eq!(on(&store, "check {} --json").expect(3).json()[0]["offset"], copy * 4096);
        vellum::Pager::open(&store, &Options::new()).unwrap().close().unwrap();
        on(&store, "check {}").expect(0);
    }
    // A node that the newest checkpoint leads to.
    let map = newest["trees"].as_array().unwrap().iter().find(|tree| tree["tree"] == "bitmap").unwrap();
    let address = map["root"]["address"].as_u64().unwrap() as usize;
    fs::write(&store, &whole).unwrap();
    flip(&store, address * 4096 + 100);
    let ran = on(&store, "check {} --json").expect(3);
    let summary = ran.json().pop().unwrap();
    let mended = summary["fell_back"] == true || summary["bitmap_leaves_made_anew"].as_u64() > Some(0);
    assert!(mended && summary["repairable"] == 1, "{summary}");
    let text = on(&store, "check {}").expect(3).text();
    assert!(!text.contains("nothing wrong"), "{text}");
    // An open for writing repairs it.
    vellum::Pager::open(&store, &Options::new()).unwrap().close().unwrap();
    assert!(on(&store, "check {}").expect(0).text().contains("nothing wrong"));
}

#[test]
fn stat_counts_pages_by_class_and_says_how_old_the_checkpoint_is() {
    let place = Place::new();
    let store = store_with_one_file(&place);
    let stat = &on(&store, "stat {} --json").expect(0).json()[0];
    let classes = stat["classes"].as_array().unwrap();
    let file = classes.iter().find(|class| class["class_bytes"] == 16_384).unwrap();
    assert_eq!((&file["pages"], &file["page_bytes"]), (&1.into(), &16_384.into()));
    let sum = |part: &str| classes.iter().map(|class| class[part].as_u64().unwrap()).sum::<u64>();
    for part in ["pages", "page_bytes", "stored_bytes"] {
        assert_eq!(stat[part], sum(part), "{part}");
    }
    assert!(stat["stored_bytes"].as_u64() >= Some(4096) && stat["stored_bytes"].as_u64() < stat["file_bytes"].as_u64());
    assert_eq!(
        (&stat["checkpoint_lag"], &stat["snapshots"], &stat["readers"]),
        (&0.into(), &Value::Array(vec![]), &Value::Array(vec![]))
    );
    assert!(stat["segments"].as_u64() >= Some(1) && stat["free_bytes"].as_u64() < stat["file_bytes"].as_u64());
    assert!(stat["segments_free"].as_u64() < stat["segments"].as_u64());
    let text = on(&store, "stat {}").expect(0).text();
    assert!(text.contains("of 16.0 KiB: 1 page") && text.contains("0 commits ago"), "{text}");
    assert_eq!(run(["stat", path(&place.join("missing"))]).expect(10).stderr.lines().count(), 3);
    for copy in [1, 2, 17, 18] {
        flip(&store, copy * 4096 + 100);
    }
    on(&store, "stat {}").expect(4);
}

#[test]
fn stat_counts_segments_that_are_wholly_free() {
    let place = Place::new();
    let store = place.join("emptied");
    let free = |store: &Path| on(store, "stat {} --json").expect(0).json()[0]["segments_free"].as_u64().unwrap();
    let class = SizeClass::of(1 << 20).unwrap();
    let pager = Pager::create(&store, &Options::new().background(Background::Inline)).unwrap();
    let txn = pager.begin().unwrap();
    let pages = txn.allocate_many(class, 24).unwrap();
    pages.iter().for_each(|page| txn.overwrite(*page).unwrap().fill(7));
    txn.commit().unwrap();
    pager.close().unwrap();
    let full = free(&store);
    let pager = Pager::open(&store, &Options::new().background(Background::Inline)).unwrap();
    let txn = pager.begin().unwrap();
    pages.iter().for_each(|page| txn.free(*page).unwrap());
    txn.commit().unwrap();
    // What a checkpoint replaces is free after the next one.
    for header in 0..3u8 {
        let txn = pager.begin().unwrap();
        txn.set_header(&[header]).unwrap();
        txn.commit().unwrap();
        pager.checkpoint().unwrap();
    }
    let in_memory = pager.stats().status.segments_free;
    pager.close().unwrap();
    let emptied = free(&store);
    assert!(emptied >= full + 20, "{full} wholly free segments, then {emptied}");
    assert!(emptied.abs_diff(in_memory) <= 2, "{emptied} by the file, {in_memory} by the pager");
}

#[test]
fn every_command_speaks_json() {
    let place = Place::new();
    let store = store_with_one_file(&place);
    let of = |words: &str| on(&store, words).expect(0).json();
    let constants = of("inspect format --json");
    assert!(constants.iter().any(|line| line["name"] == "BLOCK_BYTES" && line["value"] == 4096));
    assert_eq!(of("info {} --json")[0]["tree"]["bytes"], 10_000);
    let file = &of("ls --json {}")[0];
    assert_eq!((&file["path"], &file["kind"], &file["bytes"]), (&"file".into(), &"file".into(), &10_000.into()));
    assert_eq!(file["pages"], Value::from(vec!["14:0"]));
    assert!(of("inspect {} map --json").iter().any(|line| line["class"] == 14 && line["pages"] == 1));
    assert!(of("inspect {} map --pages --json").iter().any(|line| line["page"] == "14:0"));
    assert_eq!(of("inspect page {} 14:0 --json")[0]["fault"], Value::Null);
    assert_eq!(of("check --level full {} --json").last().unwrap()["damages"], 0);
    assert_eq!(run(["create", "--json", path(&place.join("new"))]).expect(0).json()[0]["type"], "created");
    let failed = run(["info", "--json", path(&place.join("nothing"))]).expect(10);
    let error: Value = serde_json::from_str(&failed.stderr).unwrap();
    assert_eq!((&error["type"], &error["exit"], failed.stdout.len()), (&"error".into(), &10.into(), 0));
}

#[test]
fn records_after_the_checkpoint_are_shown_with_their_changes() {
    let place = Place::new();
    let store = place.join("store");
    let slowly = ["stress", "write", path(&store), "100000", "--pause-us", "20000"];
    let mut running = Running::start(slowly);
    let acknowledged = running.lines.by_ref().take(8).map(Result::unwrap).count();
    running.kill();
    let records = on(&store, "inspect record {} --entries --json").expect(0).json();
    assert!(records.len() >= acknowledged);
    for record in &records {
        let sets = record["entries"].as_array().unwrap().iter().filter(|entry| entry["kind"] == "set");
        assert!(sets.count() >= 4, "four pages change, and now and then one is new: {record}");
    }
    let one = on(&store, "inspect record {} --generation 3 --json").expect(0).json();
    assert_eq!((one.len(), &one[0]["generation"]), (1, &3.into()));
    on(&store, "inspect record {} --generation 123456789").expect(10);
}

#[test]
fn help_manual_and_completions_come_from_the_same_definitions() {
    let store = Path::new("unused");
    assert!(on(store, "--help").expect(0).text().contains("Exit codes:"));
    assert!(on(store, "--version").expect(0).text().starts_with("vellum "));
    assert!(on(store, "man").expect(0).text().contains("import"));
    assert!(on(store, "man import").expect(0).text().contains("checksum"));
    for (words, option) in [("stress verify", "ACKED"), ("stress-write", "pause"), ("inspect superblock", "store")] {
        let page = on(store, &format!("man {words}")).expect(0).text();
        let title = format!("vellum-{}", words.replace(' ', "-"));
        assert!(page.contains(&title) && page.contains(option), "{words}: {page}");
    }
    on(store, "man nothing").expect(2);
    assert!(on(store, "man stress nothing").expect(2).stderr.contains("vellum stress has no command"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(on(store, &format!("completions {shell}")).expect(0).text().contains("import"));
    }
}

#[test]
fn no_damage_makes_any_command_panic() {
    let place = Place::new();
    let (store, out) = (store_with_one_file(&place), place.join("out"));
    let whole = fs::read(&store).unwrap();
    let seed = seed(11);
    let mut random = Random(seed);
    for round in 0..60 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random.below(40) {
            // Most of the damage where the structures are.
            let limit = if random.below(4) == 0 { bytes.len() as u64 } else { 40 * 4096 };
            let at = random.below(limit) as usize;
            let length = 1 + random.below(16) as usize;
            let end = bytes.len().min(at + length);
            random.bytes(end - at).iter().zip(&mut bytes[at..end]).for_each(|(new, old)| *old = *new);
        }
        if random.below(5) == 0 {
            bytes.truncate(random.below(whole.len() as u64) as usize);
        }
        fs::write(&store, &bytes).unwrap();
        for words in [
            "info {}",
            "check {} --level full",
            "inspect superblock {}",
            "inspect record {} --entries",
            "inspect map {} --pages",
            "inspect page {} 14:0",
            "ls -l {}",
            "cat {} file",
        ] {
            let code = on(&store, words).code;
            assert!([0, 1, 3, 4, 10, 12].contains(&code), "{words}: exit {code} in round {round}, seed {seed}");
        }
        let code = run(["export", path(&store), path(&out)]).code;
        assert!([0, 1, 4, 10, 12].contains(&code), "export: exit {code} in round {round}, seed {seed}");
        assert!(!out.join("file").exists() || fs::read(out.join("file")).unwrap() == [b'x'; 10_000]);
        let code = on(&store, "stress verify {} 1").code;
        assert_eq!(code, 3, "stress verify: exit {code} in round {round}, seed {seed}");
    }
}

#[test]
fn readers_are_listed_with_what_they_hold() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let pager = vellum::Pager::create(&store, &vellum::Options::new()).unwrap();
    let list = |json: bool| run(["readers", store.to_str().unwrap(), if json { "--json" } else { "-v" }]).expect(0);
    assert!(list(true).json().is_empty());
    assert_eq!(list(false).text(), "");
    let commit = |byte: u8| {
        let transaction = pager.begin().unwrap();
        for index in 0..100 {
            let page = vellum::PageId::new(vellum::SizeClass::MIN, index).unwrap();
            if byte == 1 {
                transaction.allocate(vellum::SizeClass::MIN).unwrap();
            }
            transaction.write(page).unwrap().fill(byte);
        }
        transaction.commit().unwrap();
    };
    commit(1);
    let reader = vellum::ReadOnlyPager::open(&store, &vellum::ReaderOptions::new().name("report")).unwrap();
    commit(2);
    let found = list(true).json();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["name"], "report");
    assert_eq!(found[0]["process"], std::process::id());
    assert_eq!(found[0]["states"][0]["generation"], reader.generation().0);
    assert!(found[0]["held_bytes"].as_u64().unwrap() >= 100 * 4096);
    let text = list(false).text();
    assert!(text.contains("report") && text.contains(&format!("generation {}", reader.generation().0)), "{text}");
    drop(reader);
    assert!(list(true).json().is_empty());
    run(["readers", folder.path().join("nothing").to_str().unwrap()]).expect(10);
    drop(pager);
}
