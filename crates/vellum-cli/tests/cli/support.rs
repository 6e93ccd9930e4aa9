//! Running the program, and trees of files to run it on.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

/// What a run came to.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ran {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).unwrap()
    }

    /// The JSON lines of standard output, each with its envelope.
    pub(crate) fn json(&self) -> Vec<Value> {
        let lines: Vec<Value> = self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.iter().all(|line| line["vellum_json"] == 1 && line["type"].is_string()));
        lines
    }

    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vellum"));
    command.stdin(Stdio::null());
    for variable in ["VELLUM_JSON", "VELLUM_COLOR", "VELLUM_PROGRESS"] {
        command.env_remove(variable);
    }
    command
}

/// Runs the program to its end.
pub(crate) fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ran {
    ran(program().args(arguments))
}

pub(crate) fn ran(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        // A signal would be a crash: no code stands for it.
        code: output.status.code().unwrap_or(-1),
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs the program to its end, while nobody reads its standard output.
pub(crate) fn unheard<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ran {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    ran(program().args(arguments).stdout(writer))
}

/// A program that is to be killed, and the lines it prints.
pub(crate) struct Running {
    child: Child,
    pub(crate) lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    pub(crate) fn start<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Self {
        let mut child = program().args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Kills it, and returns the lines that it had printed and nobody had read. A line cut by the kill counts as none.
    pub(crate) fn kill(mut self) -> Vec<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mut rest = String::new();
        self.lines.map_while(Result::ok).for_each(|line| rest.extend([&line, "\n"]));
        rest.lines().map(str::to_owned).collect()
    }
}

/// Runs a command line whose words are `words`, with `{}` for the store.
pub(crate) fn on(store: &Path, words: &str) -> Ran {
    run(words.split(' ').map(|word| if word == "{}" { store.as_os_str() } else { OsStr::new(word) }))
}

/// A folder that goes when the test ends.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Numbers that follow from a seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 ^ (self.0 >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 11
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// A seed of the test's own, or the one that `VELLUM_SEED` has; printed, so that a failure can be had again.
pub(crate) fn seed(own: u64) -> u64 {
    let seed = std::env::var("VELLUM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(own);
    println!("VELLUM_SEED={seed}");
    seed
}

/// A tree with files of every kind of length, folders with and without content, and links.
pub(crate) fn make_tree(root: &Path, random: &mut Random) {
    fs::create_dir_all(root.join("empty folder")).unwrap();
    fs::create_dir_all(root.join("deep/er/and deeper")).unwrap();
    for (index, length) in [0, 1, 4095, 4096, 4097, 65536, 70_000, 1 << 20, (1 << 20) + 1, 5_000_000].iter().enumerate()
    {
        let folder = ["", "deep", "deep/er", "deep/er/and deeper"][index % 4];
        fs::write(root.join(folder).join(format!("{length} bytes")), random.bytes(*length)).unwrap();
    }
    for index in 0..300 {
        let length = random.below(9000) as usize;
        fs::write(root.join(format!("deep/file {index:03}")), random.bytes(length)).unwrap();
    }
    fs::write(root.join(OsStr::new("name \u{e9}\n")), b"odd name").unwrap();
    use std::os::unix::ffi::OsStrExt;
    fs::write(root.join(OsStr::from_bytes(b"not \xff utf-8")), b"odder name").unwrap();
    symlink("deep/../nowhere", root.join("link")).unwrap();
    fs::set_permissions(root.join("deep/file 001"), fs::Permissions::from_mode(0o444)).unwrap();
    fs::set_permissions(root.join("empty folder"), fs::Permissions::from_mode(0o555)).unwrap();
}

/// Everything that a tree is, by path: kind, permissions, time (but of folders that tests change), and content.
pub(crate) fn picture(root: &Path) -> BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)> {
    let mut picture = BTreeMap::new();
    let mut ahead = vec![root.to_owned()];
    while let Some(folder) = ahead.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_dir() {
                ahead.push(path.clone());
                Vec::new()
            } else if metadata.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            let what = (metadata.mode(), metadata.mtime(), metadata.mtime_nsec(), content);
            picture.insert(path.strip_prefix(root).unwrap().to_owned(), what);
        }
    }
    picture
}

/// Fails with the paths that differ, not with all bytes.
pub(crate) fn assert_same_tree(one: &Path, other: &Path) {
    let (one, other) = (picture(one), picture(other));
    let paths = one.keys().chain(other.keys());
    let different: Vec<_> = paths.filter(|path| one.get(*path) != other.get(*path)).collect();
    assert!(different.is_empty(), "{different:?}");
}

pub(crate) fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
