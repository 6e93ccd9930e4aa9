//! A reader of Vellum stores written from FORMAT.md alone. It knows nothing of the crate: bytes in, pages out. Section
//! numbers are those of FORMAT.md.

use std::collections::BTreeMap;

const BLOCK: usize = 4096;
/// LZ4 and Zstandard are read; Snappy is not, and a store with its bit is refused.
const FEATURES: u64 = 1 << 3 | 1 << 4;

type Result<T> = std::result::Result<T, String>;

/// A store at rest: its newest state, and its snapshots.
pub(crate) struct Reader<'a> {
    file: &'a [u8],
    store: [u8; 16],
    pub(crate) generation: u64,
    /// Nothing above this generation is surely durable.
    pub(crate) durable: u64,
    pub(crate) state: State,
    /// By name.
    pub(crate) snapshots: BTreeMap<String, State>,
    ids: BTreeMap<u64, String>,
}

/// The maps on disk, the header, and what records changed since.
#[derive(Clone)]
pub(crate) struct State {
    maps: Vec<Root>,
    pub(crate) header: Vec<u8>,
    overlay: BTreeMap<u64, Pointer>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Pointer {
    address: u64,
    codec: u8,
    flags: u8,
    length: usize,
    checksum: u32,
    birth: u64,
}

#[derive(Clone, Copy)]
struct Root {
    pointer: Pointer,
    length: u64,
}

#[derive(Clone, Copy, Default)]
struct Segment {
    address: u64,
    blocks: u64,
    salt: u64,
}

struct Superblock {
    checkpoint: u64,
    generation: u64,
    blocks_total: u64,
    deferred_entries: u64,
    log_seal: [u8; 16],
    log_segment: usize,
    log_offset: u64,
    header: Vec<u8>,
    catalogue: Root,
    deferred: Root,
    maps: Vec<Root>,
    segments: Vec<Segment>,
    store: [u8; 16],
}

struct Record<'a> {
    bytes: &'a [u8],
    segment: Segment,
    offset: u64,
    run: u64,
    flags: u32,
    generation: u64,
    synced_through: u64,
    previous: [u8; 16],
    next: Option<Segment>,
    entries: Vec<Entry>,
    blob: &'a [u8],
}

#[derive(Clone, Copy)]
struct Entry {
    kind: u8,
    id: u64,
    new: Pointer,
}

/// What a tree is: kind, class and owner, as its nodes say.
#[derive(Clone, Copy)]
struct Tree {
    kind: u8,
    class: u8,
    owner: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn seal_at(bytes: &[u8], at: usize) -> [u8; 16] {
    bytes[at..at + 16].try_into().unwrap()
}

fn seal_of(seed: u64, bytes: &[u8]) -> [u8; 16] {
    twox_hash::XxHash3_128::oneshot_with_seed(seed, bytes).to_le_bytes()
}

fn blocks(bytes: usize) -> u64 {
    bytes.div_ceil(BLOCK) as u64
}

impl Pointer {
    fn at(bytes: &[u8], at: usize) -> Result<Self> {
        let bytes = &bytes[at..at + 24];
        let pointer = Self {
            address: u64_at(bytes, 0) & 0xffff_ffff_ffff,
            codec: bytes[6],
            flags: bytes[7],
            length: u32_at(bytes, 8) as usize,
            checksum: u32_at(bytes, 12),
            birth: u64_at(bytes, 16),
        };
        let nothing = pointer.address == 0 && pointer.length == 0 && pointer.checksum == 0;
        let something = (1..=1 << 20).contains(&pointer.length)
            && pointer.address >= 19
            && pointer.address + blocks(pointer.length) <= 1 << 48;
        match (pointer.codec, pointer.flags) {
            (0 | 1, 0..=7) if nothing => Ok(pointer),
            (2, 0..=7) if something => Ok(pointer),
            (3 | 4, 0..=7) if something && pointer.flags & 1 == 0 => Ok(pointer),
            _ => Err(format!("{pointer:?} cannot be")),
        }
    }
}

impl Root {
    fn at(bytes: &[u8], at: usize) -> Result<Self> {
        Ok(Self { pointer: Pointer::at(bytes, at)?, length: u64_at(bytes, at + 24) })
    }

    fn maps(bytes: &[u8], at: usize) -> Result<Vec<Self>> {
        (0..20).map(|class| Self::at(bytes, at + 32 * class)).collect()
    }
}

impl Segment {
    fn at(bytes: &[u8], at: usize) -> Self {
        Self { address: u64_at(bytes, at), blocks: u32_at(bytes, at + 8).into(), salt: u64_at(bytes, at + 16) }
    }
}

impl Superblock {
    /// `None` if it is not valid; an error if it is, and must not be read.
    fn at(file: &[u8], block: usize) -> Result<Option<Self>> {
        let Some(bytes) = file.get(block * BLOCK..(block + 1) * BLOCK) else { return Ok(None) };
        let covered = &bytes[..4072];
        let valid = &bytes[..8] == b"VELLUMsb"
            && u32_at(bytes, 4092) == crc32fast::hash(covered)
            && seal_at(bytes, 4072) == seal_of(0, covered)
            && [1, 17].contains(&(block as u64 - u64_at(bytes, 56) % 2));
        if !valid {
            return Ok(None);
        }
        if u32_at(bytes, 8) != 1 || u64_at(bytes, 16) & !FEATURES != 0 {
            return Err("a version or a feature that is not known".into());
        }
        if bytes[12] != 12 || bytes[13] != 12 {
            return Ok(None);
        }
        let segments = (0..u32_at(bytes, 136) as usize).map(|index| Segment::at(bytes, 1928 + 24 * index)).collect();
        Ok(Some(Self {
            checkpoint: u64_at(bytes, 56),
            generation: u64_at(bytes, 64),
            blocks_total: u64_at(bytes, 80),
            deferred_entries: u64_at(bytes, 96),
            log_seal: seal_at(bytes, 112),
            log_segment: u32_at(bytes, 128) as usize,
            log_offset: u32_at(bytes, 132).into(),
            header: bytes[168..168 + u32_at(bytes, 140) as usize].to_vec(),
            catalogue: Root::at(bytes, 1224)?,
            deferred: Root::at(bytes, 1256)?,
            maps: Root::maps(bytes, 1288)?,
            segments,
            store: seal_at(bytes, 32),
        }))
    }
}

impl<'a> Reader<'a> {
    /// Opens a store: section 8.
    pub(crate) fn open(file: &'a [u8]) -> Result<Self> {
        let mut found = Vec::new();
        for block in [1, 2, 17, 18] {
            found.extend(Superblock::at(file, block)?);
        }
        found.sort_by_key(|superblock| std::cmp::Reverse(superblock.checkpoint));
        let newest = found.first().ok_or("there is no superblock")?;
        let (number, newest_generation) = (newest.checkpoint, newest.generation);
        let older = found.iter().find(|other| other.checkpoint % 2 != number % 2);
        let (mut reader, start) = match Self::load(file, newest) {
            Ok(reader) => (reader, newest),
            Err(error) => {
                let older = older.ok_or(error)?;
                (Self::load(file, older)?, older)
            }
        };
        let records = reader.follow(start, newest_generation)?;
        reader.replay(&records)?;
        Ok(reader)
    }

    /// What a superblock leads to, as far as recovery looks at it.
    fn load(file: &'a [u8], superblock: &Superblock) -> Result<Self> {
        if superblock.blocks_total * BLOCK as u64 > file.len() as u64 {
            return Err("the file is too short".into());
        }
        let (maps, header) = (superblock.maps.clone(), superblock.header.clone());
        let mut reader = Self {
            file,
            store: superblock.store,
            generation: superblock.generation,
            durable: superblock.generation,
            state: State { maps, header, overlay: BTreeMap::new() },
            snapshots: BTreeMap::new(),
            ids: BTreeMap::new(),
        };
        let catalogue = Tree { kind: 4, class: 0, owner: 0 };
        for (_, pointer) in reader.positions(catalogue, superblock.catalogue)? {
            let bytes = reader.stored(&pointer)?;
            if &bytes[..4] != b"VLca" {
                return Err("a catalogue entry without its magic".into());
            }
            let name = String::from_utf8_lossy(&bytes[1712..1712 + u16_at(bytes, 40)]).into_owned();
            reader.ids.insert(u64_at(bytes, 8), name.clone());
            if u32_at(bytes, 4) == 1 {
                let header = bytes[688..688 + u32_at(bytes, 44) as usize].to_vec();
                let state = State { maps: Root::maps(bytes, 48)?, header, overlay: BTreeMap::new() };
                reader.snapshots.insert(name, state);
            }
        }
        let mut entries = 0;
        for (_, pointer) in reader.positions(Tree { kind: 5, class: 0, owner: 0 }, superblock.deferred)? {
            let bytes = reader.stored(&pointer)?;
            entries += (0..102).filter(|index| u32_at(bytes, 40 * index + 12) != 0).count() as u64;
        }
        match entries == superblock.deferred_entries {
            true => Ok(reader),
            false => Err(format!("{entries} dead extents, not {}", superblock.deferred_entries)),
        }
    }

    /// The records that happened: steps 2 to 4.
    fn follow(&mut self, start: &Superblock, newest_generation: u64) -> Result<Vec<Record<'a>>> {
        let mut segment = start.segments[start.log_segment];
        let mut offset = start.log_offset;
        let mut announced = start.segments.get(start.log_segment + 1).copied().filter(|next| next.salt != 0);
        let (mut seal, mut generation) = (start.log_seal, start.generation);
        let mut records: Vec<Record<'a>> = Vec::new();
        loop {
            let places = [Some((segment, offset)), announced.map(|next| (next, 0))];
            let linked = places.into_iter().flatten().find_map(|(segment, offset)| {
                self.whole_record(segment, offset).filter(|record| {
                    record.previous == seal
                        && record.generation == generation + 1
                        && record.synced_through < record.generation
                })
            });
            let Some(record) = linked else { break };
            if record.segment.address != segment.address {
                announced = None;
            }
            segment = record.segment;
            offset = record.offset + record.run;
            announced = record.next.or(announced);
            (seal, generation) = (seal_at(record.bytes, 0), record.generation);
            records.push(record);
        }
        let said = records.iter().map(|record| record.synced_through);
        self.durable = said.fold(newest_generation, u64::max);
        let mut searched: Vec<(Segment, u64)> = vec![(segment, offset)];
        searched.extend(announced.map(|next| (next, 0)));
        let mut index = 0;
        while let Some(&(segment, mut offset)) = searched.get(index) {
            index += 1;
            while offset < segment.blocks {
                let Some(record) = self.whole_record(segment, offset) else {
                    offset += 1;
                    continue;
                };
                self.durable = self.durable.max(record.synced_through);
                offset += record.run;
                let fresh = record.next.filter(|next| searched.iter().all(|(known, _)| known.salt != next.salt));
                searched.extend(fresh.filter(|_| searched.len() < 64).map(|next| (next, 0)));
            }
        }
        if self.durable > generation {
            return Err(format!("generation {} was durable, and is missing", generation + 1));
        }
        let mut happened = Vec::new();
        for mut record in records {
            self.load_body(&mut record)?;
            if record.generation > self.durable && !self.is_whole_commit(&record) {
                break;
            }
            happened.push(record);
        }
        Ok(happened)
    }

    fn whole_record(&self, segment: Segment, offset: u64) -> Option<Record<'a>> {
        if offset >= segment.blocks {
            return None;
        }
        let address = segment.address + offset;
        let start = address as usize * BLOCK;
        let head = self.file.get(start..start + 256)?;
        let (count, blob_length) = (u32_at(head, 36) as usize, u32_at(head, 40) as usize);
        let (own, run) = (u64::from(u32_at(head, 24)), u64::from(u32_at(head, 28)));
        let is_one = &head[20..24] == b"VLrc"
            && head[48..64] == self.store
            && u64_at(head, 72) == segment.salt
            && u64_at(head, 80) == address
            && u32_at(head, 32) & !7 == 0
            && own == blocks(256 + 64 * count + blob_length)
            && (own..=segment.blocks - offset).contains(&run);
        let bytes = self.file.get(start..start + own as usize * BLOCK).filter(|_| is_one)?;
        if u32_at(bytes, 16) != crc32fast::hash(&bytes[20..]) {
            return None;
        }
        let next = Segment::at(bytes, 120);
        Some(Record {
            bytes,
            segment,
            offset,
            run,
            flags: u32_at(bytes, 32),
            generation: u64_at(bytes, 88),
            synced_through: u64_at(bytes, 96),
            previous: seal_at(bytes, 104),
            next: (next.blocks != 0).then_some(next),
            entries: entries(&bytes[256..256 + 64 * count]).ok()?,
            blob: &bytes[256 + 64 * count..256 + 64 * count + blob_length],
        })
    }

    fn load_body(&self, record: &mut Record<'a>) -> Result<()> {
        if record.flags & 4 == 0 {
            return Ok(());
        }
        let mut body = Vec::new();
        for entry in record.entries.iter().filter(|entry| entry.kind == 8) {
            body.extend_from_slice(self.stored(&entry.new)?);
        }
        if seal_of(0, &body) != seal_at(record.bytes, 152) || body.len() as u64 != u64_at(record.bytes, 144) {
            return Err(format!("the body of generation {} is damaged", record.generation));
        }
        record.entries = entries(&body)?;
        Ok(())
    }

    /// Whether a record of the tail and its pages are what was written.
    fn is_whole_commit(&self, record: &Record<'a>) -> bool {
        let salt = u64_at(record.bytes, 72);
        let mut sealed = record.bytes[20..].to_vec();
        if record.flags & 2 == 0 {
            for entry in record.entries.iter().filter(|entry| matches!(entry.kind, 1 | 2 | 4) && entry.new.length > 0) {
                let Ok(bytes) = self.stored(&entry.new) else { return false };
                sealed.extend_from_slice(&seal_of(salt, bytes));
            }
        }
        seal_of(salt, &sealed) == seal_at(record.bytes, 0)
    }

    fn replay(&mut self, records: &[Record<'a>]) -> Result<()> {
        for record in records {
            self.generation = record.generation;
            let range = |id: u64| {
                let (offset, length) = (id as u32 as usize, (id >> 32) as usize);
                record.blob.get(offset..offset + length).ok_or("a range outside of the blob")
            };
            for entry in &record.entries {
                match entry.kind {
                    1 | 4 => {
                        self.state.overlay.insert(entry.id, entry.new);
                    }
                    5 => self.state.header = range(entry.id)?.to_vec(),
                    _ => {}
                }
            }
            for entry in record.entries.iter().filter(|entry| entry.kind == 7) {
                if let Some(name) = self.ids.remove(&entry.id) {
                    self.snapshots.remove(&name);
                }
            }
            for entry in record.entries.iter().filter(|entry| entry.kind == 6) {
                let payload = range(entry.id)?;
                let name = String::from_utf8_lossy(&payload[24..24 + u32_at(payload, 4) as usize]).into_owned();
                self.ids.insert(u64_at(payload, 8), name.clone());
                if u32_at(payload, 0) == 1 {
                    self.snapshots.insert(name, self.state.clone());
                }
            }
        }
        Ok(())
    }

    /// The bytes that a pointer leads to.
    fn stored(&self, pointer: &Pointer) -> Result<&'a [u8]> {
        let start = pointer.address as usize * BLOCK;
        let bytes = self.file.get(start..start + pointer.length).ok_or("beyond the end of the file")?;
        match crc32fast::hash(bytes) == pointer.checksum {
            true => Ok(bytes),
            false => Err(format!("block {} does not have its checksum", pointer.address)),
        }
    }

    /// The node of a level that covers a position, checked.
    fn node(&self, tree: Tree, pointer: &Pointer, level: u32, position: u64) -> Result<&'a [u8]> {
        let bytes = self.stored(pointer)?;
        let start = position - position % 168u64.pow(level + 1);
        let expected = &bytes[..4] == b"VLnd"
            && bytes[4..8] == [tree.kind, level as u8, tree.class, 0]
            && bytes[8..24] == self.store
            && u64_at(bytes, 24) == start
            && u64_at(bytes, 32) <= pointer.birth
            && u64_at(bytes, 56) == tree.owner;
        let births = (0..168).map(|slot| u64_at(bytes, 64 + 24 * slot + 16));
        match expected && births.max() == Some(u64_at(bytes, 32)) {
            true => Ok(bytes),
            false => Err(format!("block {} is not the node that was looked for", pointer.address)),
        }
    }

    /// What a tree maps a position to: section 9, step 2.
    fn look_up(&self, tree: Tree, root: Root, position: u64) -> Result<Pointer> {
        if position >= root.length {
            return Ok(Pointer::default());
        }
        let mut pointer = root.pointer;
        for level in (0..height(root.length)).rev() {
            if pointer.codec == 0 {
                return Ok(Pointer::default());
            }
            let slot = position / 168u64.pow(level) % 168;
            pointer = Pointer::at(self.node(tree, &pointer, level, position)?, 64 + 24 * slot as usize)?;
        }
        Ok(pointer)
    }

    /// Every position that maps to something.
    fn positions(&self, tree: Tree, root: Root) -> Result<Vec<(u64, Pointer)>> {
        let mut found = Vec::new();
        if root.length > 0 {
            self.walk(tree, root, &root.pointer, height(root.length) - 1, 0, &mut found)?;
        }
        Ok(found)
    }

    fn walk(
        &self,
        tree: Tree,
        root: Root,
        pointer: &Pointer,
        level: u32,
        start: u64,
        found: &mut Vec<(u64, Pointer)>,
    ) -> Result<()> {
        if pointer.codec == 0 {
            return Ok(());
        }
        let bytes = self.node(tree, pointer, level, start)?;
        for slot in 0..168 {
            let position = start + slot * 168u64.pow(level);
            let below = Pointer::at(bytes, 64 + 24 * slot as usize)?;
            match level {
                _ if position >= root.length => break,
                0 if below.codec != 0 => found.push((position, below)),
                0 => {}
                _ => self.walk(tree, root, &below, level - 1, position, found)?,
            }
        }
        Ok(())
    }

    /// The ids of all pages of a state.
    pub(crate) fn pages(&self, state: &State) -> Result<Vec<u64>> {
        let mut pages = BTreeMap::new();
        for (root, class) in state.maps.iter().zip(12u8..) {
            for (index, pointer) in self.positions(Tree { kind: 1, class, owner: 0 }, *root)? {
                pages.insert(u64::from(class) << 56 | index, pointer);
            }
        }
        pages.extend(&state.overlay);
        Ok(pages.into_iter().filter(|(_, pointer)| pointer.codec != 0).map(|(page, _)| page).collect())
    }

    /// The bytes of a page: section 9.
    pub(crate) fn page(&self, state: &State, page: u64) -> Result<Vec<u8>> {
        let class = (page >> 56) as u8;
        let pointer = match state.overlay.get(&page) {
            Some(pointer) => *pointer,
            None => {
                let root = state.maps[usize::from(class) - 12];
                self.look_up(Tree { kind: 1, class, owner: 0 }, root, page & 0xffff_ffff_ffff)?
            }
        };
        match pointer.codec {
            0 => Err("there is no such page".into()),
            1 => Ok(vec![0; 1 << class]),
            _ if class <= 20 => self.decoded(&pointer, 1 << class),
            _ if pointer.flags & 1 == 0 => Err("a large page without a tree of chunks".into()),
            _ => self.chunks(page, class, pointer),
        }
    }

    /// What a pointer stores, of a page or a chunk of so many bytes.
    fn decoded(&self, pointer: &Pointer, length: usize) -> Result<Vec<u8>> {
        let stored = self.stored(pointer)?;
        let bytes = match pointer.codec {
            2 => stored.to_vec(),
            3 | 4 if stored.len() > length - BLOCK => return Err("encoded, and no block is saved".into()),
            3 => lz4(stored, length).ok_or("no block of LZ4")?,
            _ => zstd::bulk::decompress(stored, length).map_err(|error| error.to_string())?,
        };
        match bytes.len() == length {
            true => Ok(bytes),
            false => Err(format!("{} bytes of a page of {length}", bytes.len())),
        }
    }

    fn chunks(&self, page: u64, class: u8, pointer: Pointer) -> Result<Vec<u8>> {
        let root = Root { pointer, length: 1 << (class - 20) };
        let mut bytes = vec![0; 1 << class];
        for (chunk, bytes) in bytes.chunks_mut(1 << 20).enumerate() {
            let pointer = self.look_up(Tree { kind: 2, class, owner: page }, root, chunk as u64)?;
            if pointer.codec >= 2 {
                bytes.copy_from_slice(&self.decoded(&pointer, 1 << 20)?);
            }
        }
        Ok(bytes)
    }
}

/// Decodes a block of LZ4; `None` if it is none, or more than `limit` bytes.
fn lz4(stored: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(limit);
    let mut rest = stored.iter().copied();
    let length = |nibble: u8, rest: &mut dyn Iterator<Item = u8>| {
        let mut length = usize::from(nibble);
        if nibble < 15 {
            return Some(length);
        }
        loop {
            let more = rest.next()?;
            length += usize::from(more);
            if more < 255 {
                return Some(length);
            }
        }
    };
    while let Some(token) = rest.next() {
        let literals = length(token >> 4, &mut rest)?;
        if literals > limit - bytes.len() {
            return None;
        }
        for _ in 0..literals {
            bytes.push(rest.next()?);
        }
        let Some(low) = rest.next() else { return Some(bytes) };
        let distance = usize::from(low) | usize::from(rest.next()?) << 8;
        let matched = length(token & 15, &mut rest)? + 4;
        let from = bytes.len().checked_sub(distance).filter(|_| distance > 0)?;
        if matched > limit - bytes.len() {
            return None;
        }
        (from..from + matched).for_each(|at| bytes.push(bytes[at]));
    }
    Some(bytes)
}

/// The fewest levels whose nodes cover so many positions.
fn height(length: u64) -> u32 {
    (1..).find(|height| 168u128.pow(*height) >= length.into()).unwrap()
}

fn entries(bytes: &[u8]) -> Result<Vec<Entry>> {
    let entry = |bytes: &[u8]| {
        let kind = bytes[0];
        let (new, _) = (Pointer::at(bytes, 16)?, Pointer::at(bytes, 40)?);
        match (1..=8).contains(&kind) && bytes[1..8] == [0; 7] {
            true => Ok(Entry { kind, id: u64_at(bytes, 8), new }),
            false => Err(format!("an entry of kind {kind}")),
        }
    };
    bytes.chunks(64).map(entry).collect()
}
