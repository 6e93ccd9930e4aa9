//! Reading a tree without holding all of it: one leaf after the other, one file piece by piece.

use twox_hash::XxHash3_128;
use vellum::{PageId, Read};

use super::TreeError;
use super::codec::{Fault, Reader};
use super::entry::{Entry, Kind};

/// The header's magic number; its last two digits are the version.
pub(super) const HEADER_MAGIC: &[u8; 8] = b"VLtree01";
pub(super) const ROOT_MAGIC: &[u8; 4] = b"VLro";
pub(super) const LEAF_MAGIC: &[u8; 4] = b"VLlf";

/// Bytes of a file that are read at a time: what one pointer of a large page covers.
const PIECE_BYTES: u64 = 1 << 20;

/// What the user header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) root: Option<PageId>,
    pub(crate) entries: u64,
    /// The sum of the files' lengths.
    pub(crate) bytes: u64,
}

/// What a root page says.
#[derive(Clone, Debug, Default)]
pub(super) struct Root {
    pub(super) leaves: Vec<PageId>,
    pub(super) unfinished: Vec<PageId>,
}

/// Decodes a user header; `None` if it is not that of a tree. Without any bytes it is an empty tree's.
pub(crate) fn summary_of(header: &[u8]) -> Option<Summary> {
    if header.is_empty() {
        return Some(Summary::default());
    }
    let mut reader = Reader(header);
    let summary = (|| {
        reader.magic(HEADER_MAGIC)?;
        let root = match reader.u64()? {
            0 => None,
            number => Some(PageId::from_u64(number).ok_or("the root is no page")?),
        };
        Ok::<_, Fault>(Summary { root, entries: reader.u64()?, bytes: reader.u64()? })
    })();
    summary.ok().filter(|_| reader.0.is_empty())
}

pub(super) fn read_summary(source: &impl Read) -> Result<Summary, TreeError> {
    summary_of(&source.header()).ok_or(TreeError::NotATree)
}

pub(super) fn read_root(source: &impl Read, summary: &Summary) -> Result<Root, TreeError> {
    let Some(page) = summary.root else { return Ok(Root::default()) };
    let bytes = source.page(page)?;
    let mut reader = Reader(&bytes);
    let root = (|| {
        reader.magic(ROOT_MAGIC)?;
        reader.u32()?;
        let (leaves, unfinished) = (reader.u64()?, reader.u64()?);
        Ok(Root { leaves: reader.pages(leaves)?, unfinished: reader.pages(unfinished)? })
    })();
    root.map_err(|fault| TreeError::Damaged { page, fault })
}

pub(super) fn read_leaf(source: &impl Read, page: PageId) -> Result<Vec<Entry>, TreeError> {
    let bytes = source.page(page)?;
    let entries = (|| {
        let mut reader = Reader(&bytes);
        reader.magic(LEAF_MAGIC)?;
        let (count, used) = (reader.u32()?, reader.u64()?);
        let mut reader = Reader(reader.bytes(usize::try_from(used).map_err(|_| "it ends too early")?)?);
        let entries = (0..count).map(|_| Entry::decode(&mut reader)).collect::<Result<Vec<_>, _>>()?;
        match entries.is_sorted_by(|a, b| a.path < b.path) && !entries.is_empty() && reader.0.is_empty() {
            true => Ok(entries),
            false => Err("it is empty, or its entries are not in order"),
        }
    })();
    entries.map_err(|fault| TreeError::Damaged { page, fault })
}

/// The entries of a tree in the order of their paths. After an error there are no more.
#[derive(Debug)]
pub(crate) struct Entries<'a, R> {
    source: &'a R,
    leaves: std::vec::IntoIter<PageId>,
    leaf: std::vec::IntoIter<Entry>,
    last: Vec<u8>,
}

impl<'a, R: Read> Entries<'a, R> {
    pub(crate) fn of(source: &'a R) -> Result<Self, TreeError> {
        let root = read_root(source, &read_summary(source)?)?;
        Ok(Self { source, leaves: root.leaves.into_iter(), leaf: Vec::new().into_iter(), last: Vec::new() })
    }

    fn next_leaf(&mut self, page: PageId) -> Result<(), TreeError> {
        let entries = read_leaf(self.source, page)?;
        // The leaf has an entry, and is in order itself (K1).
        let (first, last) = (entries.first().map(|entry| &entry.path), entries.last().map(|entry| &entry.path));
        if first.is_some_and(|first| *first <= self.last) {
            return Err(TreeError::Damaged { page, fault: "its paths do not follow those of the leaf before" });
        }
        self.last = last.cloned().unwrap_or_default();
        self.leaf = entries.into_iter();
        Ok(())
    }
}

impl<R: Read> Iterator for Entries<'_, R> {
    type Item = Result<Entry, TreeError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.leaf.next() {
                return Some(Ok(entry));
            }
            let page = self.leaves.next()?;
            if let Err(error) = self.next_leaf(page) {
                self.leaves = Vec::new().into_iter();
                return Some(Err(error));
            }
        }
    }
}

/// The entry of this path.
pub(crate) fn find(source: &impl Read, path: &[u8]) -> Result<Option<Entry>, TreeError> {
    let leaves = read_root(source, &read_summary(source)?)?.leaves;
    let (mut low, mut high) = (0, leaves.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let entries = read_leaf(source, leaves[middle])?;
        match entries.binary_search_by(|entry| entry.path.as_slice().cmp(path)) {
            Ok(index) => return Ok(entries.into_iter().nth(index)),
            Err(0) => high = middle,
            Err(index) if index == entries.len() => low = middle + 1,
            Err(_) => return Ok(None),
        }
    }
    Ok(None)
}

/// Gives `sink` the bytes of a file in order, a piece at a time, and compares them with the entry's hash at the end.
///
/// # Errors
/// Those of `sink` come back inside.
pub(crate) fn content<E>(
    source: &impl Read,
    entry: &Entry,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<Result<(), E>, TreeError> {
    let Kind::File { length, hash, pages } = &entry.kind else { return Ok(Ok(())) };
    let mut hasher = XxHash3_128::new();
    let mut left = *length;
    let mut buffer = Vec::new();
    for page in pages {
        let in_page = left.min(page.class().page_bytes());
        let mut offset = 0;
        while offset < in_page {
            let count = (in_page - offset).min(PIECE_BYTES) as usize;
            buffer.resize(count, 0);
            source.read_at(*page, offset, &mut buffer)?;
            hasher.write(&buffer);
            if let Err(error) = sink(&buffer) {
                return Ok(Err(error));
            }
            offset += count as u64;
        }
        left -= in_page;
    }
    match hasher.finish_128() {
        found if found == *hash => Ok(Ok(())),
        found => Err(TreeError::Content { expected: format!("{hash:032x}"), found: format!("{found:032x}") }),
    }
}
