//! An entry of the catalogue: one file, folder or symbolic link.

use vellum::PageId;

use super::classes_of;
use super::codec::{Fault, Reader, Writer};

/// Bytes in a path, and in the target of a link. Linux takes no more in a call.
pub(super) const PATH_LIMIT: usize = 4096;

/// Bytes of an entry before its path.
const FIXED_BYTES: usize = 56;

/// What an entry is, with what only that kind has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File {
        /// In bytes.
        length: u64,
        /// XXH3-128 of the bytes.
        hash: u128,
        /// Where they are (K3).
        pages: Vec<PageId>,
    },
    Folder,
    Link {
        target: Vec<u8>,
    },
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Relative to the tree's root (K1).
    pub(crate) path: Vec<u8>,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Last modified, in seconds since 1970.
    pub(crate) mtime_seconds: i64,
    /// And nanoseconds.
    pub(crate) mtime_nanoseconds: u32,
    pub(crate) kind: Kind,
}

/// Whether `path` names something below a folder, and nothing outside of it (K1).
pub(crate) fn check_path(path: &[u8]) -> Result<(), Fault> {
    if path.len() > PATH_LIMIT {
        return Err("a path is too long");
    }
    if path.contains(&0) {
        return Err("a path has a zero byte");
    }
    match path.split(|byte| *byte == b'/').find(|component| matches!(component, [] | [b'.'] | [b'.', b'.'])) {
        None => Ok(()),
        Some(_) => Err("a path leads out of the tree, or has an empty part"),
    }
}

impl Entry {
    pub(crate) fn pages(&self) -> &[PageId] {
        match &self.kind {
            Kind::File { pages, .. } => pages,
            _ => &[],
        }
    }

    /// The file's length in bytes; 0 for what is none.
    pub(crate) fn length(&self) -> u64 {
        match &self.kind {
            Kind::File { length, .. } => *length,
            _ => 0,
        }
    }

    pub(crate) fn kind_name(&self) -> &'static str {
        match &self.kind {
            Kind::File { .. } => "file",
            Kind::Folder => "folder",
            Kind::Link { .. } => "link",
        }
    }

    /// Bytes that the entry takes in a leaf.
    pub(super) fn encoded_bytes(&self) -> usize {
        let target = if let Kind::Link { target } = &self.kind { target.len() } else { 0 };
        FIXED_BYTES + self.path.len() + target + self.pages().len() * 8
    }

    pub(super) fn encode(&self, writer: &mut Writer) {
        let (tag, target, hash): (u8, &[u8], u128) = match &self.kind {
            Kind::File { hash, .. } => (1, &[], *hash),
            Kind::Folder => (2, &[], 0),
            Kind::Link { target } => (3, target, 0),
        };
        writer.bytes(&[tag, 0, 0, 0]);
        writer.u32(self.mode);
        writer.u64(self.mtime_seconds.cast_unsigned());
        writer.u32(self.mtime_nanoseconds);
        writer.u32(self.path.len() as u32);
        writer.u32(target.len() as u32);
        writer.u32(self.pages().len() as u32);
        writer.u64(self.length());
        writer.bytes(&hash.to_le_bytes());
        writer.bytes(&self.path);
        writer.bytes(target);
        self.pages().iter().for_each(|page| writer.page(Some(*page)));
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, Fault> {
        let [tag, reserved @ ..] = reader.array::<4>()?;
        let mode = reader.u32()?;
        let mtime_seconds = reader.u64()?.cast_signed();
        let mtime_nanoseconds = reader.u32()?;
        let (path_length, target_length, pages) = (reader.length()?, reader.length()?, reader.u32()?);
        let length = reader.u64()?;
        let hash = reader.array().map(u128::from_le_bytes)?;
        let path = reader.bytes(path_length)?.to_vec();
        let target = reader.bytes(target_length)?.to_vec();
        let pages = reader.pages(pages.into())?;
        check_path(&path)?;
        if reserved != [0; 3] || mode > 0o7777 || mtime_nanoseconds >= 1_000_000_000 {
            return Err("an entry has a field out of its range");
        }
        if tag != 1 && (length != 0 || hash != 0 || !pages.is_empty()) || tag != 3 && !target.is_empty() {
            return Err("an entry has what its kind cannot have");
        }
        let kind = match tag {
            1 if pages.iter().map(|page| page.class()).eq(classes_of(length)) => Kind::File { length, hash, pages },
            1 => return Err("a file's pages are not those that its length wants"),
            2 => Kind::Folder,
            3 if !target.is_empty() && target.len() <= PATH_LIMIT && !target.contains(&0) => Kind::Link { target },
            3 => return Err("a link's target cannot be one"),
            _ => return Err("an entry is of an unknown kind"),
        };
        Ok(Self { path, mode, mtime_seconds, mtime_nanoseconds, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> [Entry; 3] {
        let page = PageId::new(vellum::SizeClass::MIN, 5).unwrap();
        let entry = |path: &[u8], kind| Entry {
            path: path.to_vec(),
            mode: 0o4755,
            mtime_seconds: -5,
            mtime_nanoseconds: 999_999_999,
            kind,
        };
        [
            entry(b"a/b\xff", Kind::File { length: 17, hash: u128::MAX, pages: vec![page] }),
            entry(b"a", Kind::Folder),
            entry(b"...", Kind::Link { target: b"../anything".to_vec() }),
        ]
    }

    #[test]
    fn entries_survive_their_bytes_and_no_cut_passes() {
        for entry in samples() {
            let mut writer = Writer::default();
            entry.encode(&mut writer);
            let bytes = writer.0;
            assert_eq!(bytes.len(), entry.encoded_bytes());
            assert_eq!(Entry::decode(&mut Reader(&bytes)), Ok(entry));
            for cut in 0..bytes.len() {
                assert!(Entry::decode(&mut Reader(&bytes[..cut])).is_err());
            }
        }
    }

    #[test]
    fn hostile_entries_are_refused() {
        let mut writer = Writer::default();
        samples()[0].encode(&mut writer);
        for (offset, bytes) in [
            (0, vec![9]),            // kind
            (0, vec![2]),            // a folder with pages
            (1, vec![1]),            // reserved
            (16, vec![0xff; 4]),     // nanoseconds
            (28, vec![0xff; 4]),     // pages
            (32, vec![0xff; 8]),     // length
            (20, vec![0xff; 4]),     // path length
            (56, b"../b".to_vec()),  // path
            (56 + 4, vec![0xff; 8]), // page id
        ] {
            let mut bad = writer.0.clone();
            bad[offset..offset + bytes.len()].copy_from_slice(&bytes);
            assert!(Entry::decode(&mut Reader(&bad)).is_err(), "{bytes:?} at {offset}");
        }
    }

    #[test]
    fn paths_that_lead_out_of_the_tree_are_refused() {
        for path in ["a", "a/b", "..a", "a../b", "\u{e9}"] {
            assert_eq!(check_path(path.as_bytes()), Ok(()), "{path}");
        }
        for path in ["", "/", "/a", "a/", "a//b", "..", "a/..", "../a", "a/../b", ".", "./a", "a\0"] {
            assert!(check_path(path.as_bytes()).is_err(), "{path}");
        }
    }
}
