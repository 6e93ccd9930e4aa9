//! `vellum stress`: on a disk that keeps its word, what was acknowledged is there, however the writer ended.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::{Place, Random, Running, on, path, run, seed};

fn write(store: &Path, commits: u64) -> Vec<u64> {
    let ran = run(["stress", "write", path(store), &commits.to_string()]).expect(0);
    ran.text().lines().map(|line| line.strip_prefix("ack ").unwrap().parse().unwrap()).collect()
}

#[test]
fn sequence_numbers_go_on_from_run_to_run() {
    let place = Place::new();
    let store = place.join("store");
    assert_eq!(write(&store, 3), [1, 2, 3]);
    assert_eq!(write(&store, 2), [4, 5]);
    on(&store, "stress write {} 200 --pages 9 --total 500").expect(0);
    on(&store, "stress write {} 100 --pages 1 --total 10").expect(0);
    assert_eq!(write(&store, 1), [306]);
    on(&store, "stress verify {} 306").expect(0);
    on(&store, "stress verify {} 0").expect(0);
    on(&store, "stress verify {} 307").expect(1);
    on(&store, "check {} --level full").expect(0);
    assert_eq!(on(&store, "stress verify {} 306 --json").expect(0).json()[0]["sequence"], 306);
}

#[test]
fn what_was_acknowledged_survives_kills() {
    let place = Place::new();
    let store = place.join("store");
    let seed = seed(7);
    let mut random = Random(seed);
    let mut acknowledged = 0;
    for round in 0..40 {
        let (pages, total) = (1 + random.below(20), 40 + random.below(2) * 400);
        let (pages, total) = (pages.to_string(), total.to_string());
        let mut running =
            Running::start(["stress", "write", path(&store), "1000000", "--pages", &pages, "--total", &total]);
        let sequence_of = |line: &str| line.strip_prefix("ack ").unwrap().parse::<u64>().unwrap();
        // Some rounds end before the first commit, within opening or creation.
        if random.below(4) > 0 {
            for _ in 0..random.below(300) {
                acknowledged = sequence_of(&running.lines.next().unwrap().unwrap());
            }
        }
        std::thread::sleep(Duration::from_micros(random.below(5_000)));
        // The last line may be cut; one of the kill's making is then the start of a greater number, or no number.
        let rest = running.kill();
        if let Some(last) = rest.iter().rev().skip(1).find(|line| line.starts_with("ack ")) {
            acknowledged = sequence_of(last);
        }
        if !store.exists() {
            continue;
        }
        let verified = on(&store, &format!("stress verify {{}} {acknowledged}"));
        assert_eq!(verified.code, 0, "round {round}, seed {seed}: {verified:?}");
    }
    assert!(acknowledged > 0);
    on(&store, "check {} --level full").expect(0);
}

#[test]
fn verify_tells_lost_wrong_and_unopenable_apart() {
    let place = Place::new();
    let (store, older) = (place.join("store"), place.join("older"));
    write(&store, 20);
    fs::copy(&store, &older).unwrap();
    write(&store, 20);
    on(&older, "stress verify {} 20").expect(0);
    on(&older, "stress verify {} 40").expect(1);

    // Any byte of a page of stress: 4096 bytes that begin with its magic number.
    let whole = fs::read(&store).unwrap();
    let view = vellum::Pager::open(&store, &vellum::Options::new()).unwrap();
    let pointers: Vec<u64> = view.inspect(|core| {
        let maps = core.state().maps.get();
        let nodes = core.nodes();
        (0..maps[0].length()).map(|index| maps[0].get(nodes, index).unwrap().address.0).collect()
    });
    drop(view);
    let address = pointers.into_iter().find(|address| *address != 0).unwrap() as usize * 4096;
    let mut bad = whole.clone();
    bad[address + 1000] ^= 4;
    fs::write(&store, &bad).unwrap();
    on(&store, "stress verify {} 40").expect(2);

    fs::write(&store, vec![b'#'; 50_000]).unwrap();
    on(&store, "stress verify {} 0").expect(3);
    on(&place.join("nothing"), "stress verify {} 0").expect(3);
    let mut superblocks_gone = whole;
    superblocks_gone[4096..19 * 4096].fill(1);
    fs::write(&store, &superblocks_gone).unwrap();
    on(&store, "stress verify {} 0").expect(3);
}

#[test]
fn a_creation_that_was_cut_short_can_be_created_again() {
    let place = Place::new();
    let (whole, store) = (place.join("whole"), place.join("store"));
    run(["create", path(&whole)]).expect(0);
    let bytes = fs::read(&whole).unwrap();
    for length in [0, 16, 4096] {
        fs::write(&store, &bytes[..length]).unwrap();
        on(&store, "stress verify {} 1").expect(3);
        on(&store, "stress verify {} 0").expect(0);
        fs::write(&store, &bytes[..length]).unwrap();
        assert_eq!(write(&store, 1), [1]);
        fs::remove_file(&store).unwrap();
    }
}

#[test]
fn a_full_disk_is_an_error_and_no_panic() {
    // What cannot grow: a file behind a limit of the process.
    let place = Place::new();
    let store = place.join("store");
    write(&store, 1);
    let blocks = fs::metadata(&store).unwrap().len() / 1024 + 8;
    let script =
        format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" stress write \"$1\" 100000 --pages 64 --total 4096");
    let output = std::process::Command::new("bash")
        .args(["-c", &script, env!("CARGO_BIN_EXE_vellum"), path(&store)])
        .output()
        .unwrap();
    let code = output.status.code().unwrap();
    assert!((1..=14).contains(&code), "{code}: {}", String::from_utf8_lossy(&output.stderr));
    let acknowledged =
        String::from_utf8(output.stdout).unwrap().lines().last().map_or(1, |line| line[4..].parse().unwrap());
    on(&store, &format!("stress verify {{}} {acknowledged}")).expect(0);
}
