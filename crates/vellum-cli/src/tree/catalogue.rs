//! The catalogue in memory, as an import changes it: only the leaves that changed are written again.

use std::collections::BTreeSet;

use vellum::{PageId, Read, SizeClass, Transaction};

use super::TreeError;
use super::codec::Writer;
use super::entry::Entry;
use super::reading::{HEADER_MAGIC, LEAF_MAGIC, ROOT_MAGIC, Summary, read_leaf, read_root, read_summary};

/// The class of the page of a full leaf. A leaf whose only entry is larger takes a larger page.
const LEAF_CLASS: SizeClass = match SizeClass::of(16 << 10) {
    Some(class) => class,
    None => SizeClass::MIN,
};
const LEAF_HEADER_BYTES: usize = 16;
const ROOT_HEADER_BYTES: usize = 24;
/// Bytes of entries in a full leaf.
const LEAF_LIMIT: usize = LEAF_CLASS.page_bytes() as usize - LEAF_HEADER_BYTES;

/// See the module. After a failed [`Catalogue::save`] or commit it must not be used any more.
#[derive(Debug)]
pub(crate) struct Catalogue {
    /// In the order of their paths; none is empty.
    leaves: Vec<Leaf>,
    root: Option<PageId>,
    unfinished: BTreeSet<PageId>,
    entries: u64,
    bytes: u64,
    /// Whether the list of leaves, or that of unfinished pages, differs from the root page.
    list_changed: bool,
    /// Pages of leaves that are no more.
    dropped: Vec<PageId>,
    /// Bytes of pages that the changed leaves will take, at most.
    changed_bytes: u64,
}

#[derive(Debug)]
struct Leaf {
    page: Option<PageId>,
    entries: Vec<Entry>,
    /// Bytes of the entries as they are encoded.
    bytes: usize,
    changed: bool,
}

impl Leaf {
    fn new(page: Option<PageId>, entries: Vec<Entry>) -> Self {
        let bytes = entries.iter().map(Entry::encoded_bytes).sum();
        Self { page, entries, bytes, changed: page.is_none() }
    }

    fn position(&self, path: &[u8]) -> Result<usize, usize> {
        self.entries.binary_search_by(|entry| entry.path.as_slice().cmp(path))
    }

    fn first_path(&self) -> &[u8] {
        self.entries.first().map_or(&[], |entry| &entry.path)
    }

    /// Marks the leaf as changed. Returns the bytes of the page that is to be written because of that.
    fn touch(&mut self) -> u64 {
        let before = std::mem::replace(&mut self.changed, true);
        if before { 0 } else { class_of(LEAF_HEADER_BYTES + self.bytes).page_bytes().max(LEAF_CLASS.page_bytes()) }
    }

    /// Takes out what a new leaf is to have, if this one is too full. After an insertion at the end that is only the
    /// last entry: so paths that come in their order fill the leaves.
    fn split(&mut self, inserted: usize) -> Option<Self> {
        if self.bytes <= LEAF_LIMIT || self.entries.len() < 2 {
            return None;
        }
        let at = if inserted + 1 == self.entries.len() { inserted } else { self.entries.len() / 2 };
        let taken = Self::new(None, self.entries.split_off(at));
        self.bytes -= taken.bytes;
        Some(taken)
    }

    fn encode(&self) -> Vec<u8> {
        let mut writer = Writer(Vec::with_capacity(LEAF_HEADER_BYTES + self.bytes));
        writer.bytes(LEAF_MAGIC);
        writer.u32(self.entries.len() as u32);
        writer.u64(self.bytes as u64);
        self.entries.iter().for_each(|entry| entry.encode(&mut writer));
        writer.0
    }
}

impl Catalogue {
    /// The catalogue of a store, whole.
    pub(crate) fn load(source: &impl Read) -> Result<Self, TreeError> {
        let summary = read_summary(source)?;
        let root = read_root(source, &summary)?;
        let mut leaves: Vec<Leaf> = Vec::with_capacity(root.leaves.len());
        let (mut entries, mut bytes) = (0, 0u64);
        for page in root.leaves {
            let leaf = Leaf::new(Some(page), read_leaf(source, page)?);
            let before = leaves.last().and_then(|leaf| leaf.entries.last()).map(|entry| entry.path.as_slice());
            if before.is_some_and(|before| leaf.first_path() <= before) {
                return Err(TreeError::Damaged { page, fault: "its paths do not follow those of the leaf before" });
            }
            entries += leaf.entries.len() as u64;
            bytes = leaf.entries.iter().map(Entry::length).fold(bytes, u64::saturating_add);
            leaves.push(leaf);
        }
        if let (Some(page), true) = (summary.root, (entries, bytes) != (summary.entries, summary.bytes)) {
            return Err(TreeError::Damaged { page, fault: "its leaves have other entries than the header counts" });
        }
        let unfinished = root.unfinished.into_iter().collect();
        Ok(Self {
            leaves,
            root: summary.root,
            unfinished,
            entries,
            bytes,
            list_changed: false,
            dropped: Vec::new(),
            changed_bytes: 0,
        })
    }

    /// What a header would say of it.
    pub(crate) fn summary(&self) -> Summary {
        Summary { root: self.root, entries: self.entries, bytes: self.bytes }
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.leaves.iter().flat_map(|leaf| &leaf.entries)
    }

    /// The leaf in which `path` is, or would be. There is at least one leaf.
    fn leaf_of(&self, path: &[u8]) -> usize {
        self.leaves.partition_point(|leaf| leaf.first_path() <= path).saturating_sub(1)
    }

    pub(crate) fn get(&self, path: &[u8]) -> Option<&Entry> {
        let leaf = self.leaves.get(self.leaf_of(path))?;
        leaf.position(path).ok().map(|index| &leaf.entries[index])
    }

    /// Puts an entry in, and returns the one of the same path that was there.
    pub(crate) fn put(&mut self, entry: Entry) -> Option<Entry> {
        if self.leaves.is_empty() {
            self.leaves.push(Leaf::new(None, Vec::new()));
            self.list_changed = true;
        }
        let index = self.leaf_of(&entry.path);
        self.changed_bytes += self.leaves[index].touch() + oversize_bytes(&entry);
        let leaf = &mut self.leaves[index];
        leaf.bytes += entry.encoded_bytes();
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(entry.length());
        let (position, old) = match leaf.position(&entry.path) {
            Ok(position) => (position, Some(std::mem::replace(&mut leaf.entries[position], entry))),
            Err(position) => {
                leaf.entries.insert(position, entry);
                (position, None)
            }
        };
        if let Some(old) = &old {
            leaf.bytes -= old.encoded_bytes();
            self.entries -= 1;
            self.bytes = self.bytes.saturating_sub(old.length());
        }
        if let Some(new) = self.leaves[index].split(position) {
            self.changed_bytes += LEAF_CLASS.page_bytes();
            self.leaves.insert(index + 1, new);
            self.list_changed = true;
        }
        old
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, path: &[u8]) -> Option<Entry> {
        let index = self.leaf_of(path);
        let leaf = self.leaves.get_mut(index)?;
        let entry = leaf.entries.remove(leaf.position(path).ok()?);
        self.changed_bytes += leaf.touch();
        leaf.bytes -= entry.encoded_bytes();
        self.entries -= 1;
        self.bytes = self.bytes.saturating_sub(entry.length());
        self.merge_with_next(index);
        if self.leaves[index].entries.is_empty() {
            self.drop_leaf(index);
        }
        Some(entry)
    }

    /// Two leaves that are not half full together become one.
    fn merge_with_next(&mut self, index: usize) {
        let Some([leaf, next]) = self.leaves.get_mut(index..).and_then(|leaves| leaves.first_chunk_mut()) else {
            return;
        };
        if leaf.bytes + next.bytes > LEAF_LIMIT / 2 {
            return;
        }
        leaf.entries.append(&mut next.entries);
        leaf.bytes += next.bytes;
        self.drop_leaf(index + 1);
    }

    fn drop_leaf(&mut self, index: usize) {
        self.dropped.extend(self.leaves.remove(index).page);
        self.list_changed = true;
    }

    /// Pages of files that were never finished (K2).
    pub(crate) fn unfinished(&self) -> Vec<PageId> {
        self.unfinished.iter().copied().collect()
    }

    /// Takes note of a page that no entry names yet.
    pub(crate) fn begin_page(&mut self, page: PageId) {
        self.list_changed |= self.unfinished.insert(page);
    }

    /// Takes note that a page is named by an entry now, or is freed.
    pub(crate) fn end_page(&mut self, page: PageId) {
        self.list_changed |= self.unfinished.remove(&page);
    }

    /// Bytes of pages that [`Catalogue::save`] would write now, at most.
    pub(crate) fn changed_bytes(&self) -> u64 {
        let root_bytes = ROOT_HEADER_BYTES + (self.leaves.len() + self.unfinished.len()) * 8;
        self.changed_bytes + class_of(root_bytes).page_bytes()
    }

    /// Writes what changed. It is durable with the transaction's commit.
    pub(crate) fn save(&mut self, transaction: &Transaction) -> Result<(), TreeError> {
        self.changed_bytes = 0;
        for page in self.dropped.drain(..) {
            transaction.free(page)?;
        }
        for leaf in self.leaves.iter_mut().filter(|leaf| leaf.changed) {
            let page = put_page(transaction, leaf.page, &leaf.encode())?;
            self.list_changed |= leaf.page != Some(page);
            (leaf.page, leaf.changed) = (Some(page), false);
        }
        if self.list_changed {
            self.save_root(transaction)?;
        }
        let mut header = Writer::default();
        header.bytes(HEADER_MAGIC);
        header.page(self.root);
        header.u64(self.entries);
        header.u64(self.bytes);
        transaction.set_header(&header.0)?;
        Ok(())
    }

    fn save_root(&mut self, transaction: &Transaction) -> Result<(), TreeError> {
        self.list_changed = false;
        if self.leaves.is_empty() && self.unfinished.is_empty() {
            return Ok(self.root.take().map_or(Ok(()), |page| transaction.free(page))?);
        }
        let mut writer = Writer::default();
        writer.bytes(ROOT_MAGIC);
        writer.u32(0);
        writer.u64(self.leaves.len() as u64);
        writer.u64(self.unfinished.len() as u64);
        self.leaves.iter().for_each(|leaf| writer.page(leaf.page));
        self.unfinished.iter().for_each(|page| writer.page(Some(*page)));
        self.root = Some(put_page(transaction, self.root, &writer.0)?);
        Ok(())
    }
}

/// The class of a page of the catalogue. Beyond 2 GiB there is none; a catalogue of as many entries does not fit in
/// memory before that.
fn class_of(bytes: usize) -> SizeClass {
    SizeClass::of(bytes as u64).unwrap_or(SizeClass::MAX)
}

/// What an entry that is larger than a leaf takes, beyond what a leaf does.
fn oversize_bytes(entry: &Entry) -> u64 {
    if entry.encoded_bytes() > LEAF_LIMIT { 2 * class_of(entry.encoded_bytes()).page_bytes() } else { 0 }
}

/// Puts `bytes` into `page` if that is of the right class, else into a new one in its stead.
fn put_page(transaction: &Transaction, page: Option<PageId>, bytes: &[u8]) -> Result<PageId, TreeError> {
    let class = class_of(bytes.len());
    let page = match page {
        Some(page) if page.class() == class => page,
        old => {
            old.map_or(Ok(()), |old| transaction.free(old))?;
            transaction.allocate(class)?
        }
    };
    if class.is_chunked() {
        transaction.write_at(page, 0, bytes)?;
    } else {
        transaction.overwrite(page)?[..bytes.len()].copy_from_slice(bytes);
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Kind;
    use crate::tree::reading::{Entries, find};
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use vellum::disk::MemoryDisk;
    use vellum::store::SeededEntropy;
    use vellum::{Background, Options, Pager};

    fn folder(path: String, mode: u32) -> Entry {
        Entry { path: path.into_bytes(), mode, mtime_seconds: 1, mtime_nanoseconds: 2, kind: Kind::Folder }
    }

    fn pager() -> Pager {
        let options = Options::new().background(Background::Inline);
        Pager::create_on(Arc::new(MemoryDisk::new()), Box::new(SeededEntropy(1)), &options).unwrap()
    }

    fn save(pager: &Pager, catalogue: &mut Catalogue) {
        let transaction = pager.begin().unwrap();
        catalogue.save(&transaction).unwrap();
        transaction.commit().unwrap();
    }

    fn live_pages(pager: &Pager) -> usize {
        let view = pager.view();
        SizeClass::all().map(|class| view.page_ids(class).count()).sum()
    }

    #[test]
    fn a_saved_catalogue_is_what_a_plain_map_says_and_leaves_no_page_behind() {
        let pager = pager();
        let mut catalogue = Catalogue::load(&pager.view()).unwrap();
        let mut model = BTreeMap::new();
        let mut random = 1u64;
        for round in 0..40 {
            for _ in 0..100 {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let path = format!("folder {:03}/z{}", random >> 33 & 7, "x".repeat((random >> 50) as usize & 0xff));
                // Grows in the first half of the rounds, shrinks in the second.
                if (random >> 20) % 40 >= round {
                    let entry = folder(path.clone(), round as u32);
                    assert_eq!(catalogue.put(entry.clone()), model.insert(path, entry));
                } else {
                    assert_eq!(catalogue.remove(path.as_bytes()), model.remove(&path));
                }
            }
            assert!(catalogue.entries().eq(model.values()));
            save(&pager, &mut catalogue);
            let view = pager.view();
            let read: Vec<Entry> = Entries::of(&view).unwrap().map(Result::unwrap).collect();
            assert!(read.iter().eq(model.values()));
            assert_eq!(read.len() as u64, catalogue.summary().entries);
            let again = Catalogue::load(&view).unwrap();
            assert_eq!(again.summary(), catalogue.summary());
            assert_eq!(live_pages(&pager), catalogue.leaves.len() + 1);
            for entry in model.values().step_by(7) {
                assert_eq!(find(&view, &entry.path).unwrap().as_ref(), Some(entry));
                assert_eq!(catalogue.get(&entry.path), Some(entry));
            }
            assert_eq!(find(&view, b"folder 000/y").unwrap(), None);
        }
        let paths: Vec<Vec<u8>> = catalogue.entries().map(|entry| entry.path.clone()).collect();
        assert!(!paths.is_empty());
        paths.iter().for_each(|path| assert!(catalogue.remove(path).is_some()));
        save(&pager, &mut catalogue);
        assert_eq!(live_pages(&pager), 0);
        assert_eq!(Entries::of(&pager.view()).unwrap().count(), 0);
    }

    #[test]
    fn paths_in_their_order_fill_the_leaves_and_one_change_writes_one_leaf() {
        let pager = pager();
        let mut catalogue = Catalogue::load(&pager.view()).unwrap();
        for index in 0..10_000 {
            catalogue.put(folder(format!("file {index:05}"), 0o755));
        }
        let full = LEAF_LIMIT / folder("file 00000".into(), 0).encoded_bytes();
        assert_eq!(catalogue.leaves.len(), 10_000usize.div_ceil(full));
        save(&pager, &mut catalogue);
        let (_, all_but_last) = catalogue.leaves.split_last().unwrap();
        assert!(all_but_last.iter().all(|leaf| leaf.page.is_some_and(|page| page.class() == LEAF_CLASS)));

        catalogue.put(folder("file 05000".into(), 0o700));
        let changed: Vec<&Leaf> = catalogue.leaves.iter().filter(|leaf| leaf.changed).collect();
        assert_eq!((changed.len(), catalogue.list_changed), (1, false));
    }

    #[test]
    fn unfinished_pages_are_remembered_until_they_are_named_or_freed() {
        let pager = pager();
        let mut catalogue = Catalogue::load(&pager.view()).unwrap();
        let transaction = pager.begin().unwrap();
        let page = transaction.allocate(SizeClass::CHUNK).unwrap();
        catalogue.begin_page(page);
        catalogue.save(&transaction).unwrap();
        transaction.commit().unwrap();
        let mut catalogue = Catalogue::load(&pager.view()).unwrap();
        assert_eq!(catalogue.unfinished(), [page]);
        catalogue.end_page(page);
        save(&pager, &mut catalogue);
        assert_eq!(Catalogue::load(&pager.view()).unwrap().unfinished(), []);
    }

    #[test]
    fn a_catalogue_that_is_no_catalogue_is_refused() {
        let pager = pager();
        let transaction = pager.begin().unwrap();
        let page = transaction.allocate(SizeClass::MIN).unwrap();
        transaction.set_header(b"VLtree01 but no more").unwrap();
        transaction.commit().unwrap();
        assert!(matches!(Catalogue::load(&pager.view()), Err(TreeError::NotATree)));

        let mut writer = Writer::default();
        writer.bytes(HEADER_MAGIC);
        writer.page(Some(page));
        writer.u64(1);
        writer.u64(0);
        for bytes in
            [&b""[..], b"VLro", b"VLro\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\x1f", b"VLro\0\0\0\0\x01\0\0\0\0\0\0\0"]
        {
            let transaction = pager.begin().unwrap();
            transaction.overwrite(page).unwrap()[..bytes.len()].copy_from_slice(bytes);
            transaction.set_header(&writer.0).unwrap();
            transaction.commit().unwrap();
            assert!(matches!(Catalogue::load(&pager.view()), Err(TreeError::Damaged { .. })), "{bytes:?}");
        }
    }
}
