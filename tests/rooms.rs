//! The order of the rooms holds: a room imports only rooms above it (ARCHITECTURE.md, "Rooms").
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// From the top down. Those of one line may not import each other, but for the first, which is one room.
const ORDER: &[&[&str]] = &[
    &["error", "id", "lock"],
    &["memory"],
    &["disk"],
    &["process"],
    &["format"],
    &["space"],
    &["map"],
    &["log"],
    &["store"],
    &["buffer"],
    &["pager"],
    &["reader"],
    &["admin"],
    &["testing"],
];

/// The room that a file belongs to: the first part of its path below `src`.
fn room_of(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, found),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            false => {}
        }
    }
}

/// The text without its comments; every line stays where it is.
fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect()
}

/// The rooms that code names, by `crate::room` or `use crate::{room, …}`, with the lines they are named in.
fn named_rooms(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (at, prefix) in code.match_indices("crate::") {
        let line = code[..at].matches('\n').count() + 1;
        let after = &code[at + prefix.len()..];
        let names = match after.strip_prefix('{') {
            Some(list) => list.split([';', '}']).next().unwrap_or_default().split(',').collect(),
            None => vec![after],
        };
        for name in names {
            let word = name.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
            found.push((line, word.to_owned()));
        }
    }
    found
}

fn rank(room: &str) -> Option<usize> {
    ORDER.iter().position(|rooms| rooms.contains(&room))
}

#[test]
fn a_room_imports_only_rooms_above_it() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&source, &mut files);
    let mut wrong = Vec::new();
    let mut imports: BTreeMap<(String, String), usize> = BTreeMap::new();
    for file in files {
        let path = file.strip_prefix(&source).unwrap();
        let room = room_of(path);
        if room == "lib" {
            continue;
        }
        let Some(own) = rank(&room) else {
            wrong.push(format!("src/{}: {room} is no room of the list", path.display()));
            continue;
        };
        let text = fs::read_to_string(&file).unwrap();
        // A room's own tests may use what they like.
        let is_test =
            path.file_name().is_some_and(|name| name == "tests.rs") || path.iter().any(|part| part == "tests");
        if is_test {
            continue;
        }
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for (line, named) in named_rooms(&without_comments(code)) {
            // Names of the crate's root (re-exports, macros) are nobody's room.
            let Some(other) = rank(&named).filter(|_| named != room) else { continue };
            *imports.entry((room.clone(), named.clone())).or_default() += 1;
            if other > own || (other == own && own != 0) {
                wrong.push(format!("src/{}:{line}: {room} imports {named}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The test looks at something: these hold by the nature of the rooms.
    for (room, named) in [("disk", "id"), ("format", "error"), ("map", "disk"), ("log", "format"), ("store", "space")] {
        assert!(imports.contains_key(&(room.to_owned(), named.to_owned())), "{room} and {named}: {imports:?}");
    }
}

#[test]
fn imports_are_found_in_every_form() {
    let names = |code| named_rooms(&without_comments(code)).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
    assert_eq!(names("use crate::disk::Disk;"), ["disk"]);
    assert_eq!(names("use crate::{\n    error,\n    id::Block\n};"), ["error", "id"]);
    assert_eq!(names("let x: crate::map::Tree = crate::log::new();"), ["map", "log"]);
    assert!(names("// crate::store says why").is_empty());
    assert_eq!(named_rooms("\nuse crate::space::Space;"), [(2, "space".to_owned())]);
    assert!(rank("store") > rank("log") && rank("pager") > rank("store"));
}
