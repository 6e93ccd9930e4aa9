//! Numbers and bytes, one after the other: written by [`Writer`], read back by [`Reader`], which stops at the end.

use vellum::PageId;

/// Collects the bytes of a structure.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u32(&mut self, number: u32) {
        self.0.extend(number.to_le_bytes());
    }

    pub(super) fn u64(&mut self, number: u64) {
        self.0.extend(number.to_le_bytes());
    }

    pub(super) fn page(&mut self, page: Option<PageId>) {
        self.u64(page.map_or(0, PageId::to_u64));
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }
}

/// Takes a structure's bytes apart. Every call fails where too few bytes are left.
#[derive(Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

/// What is wrong with the bytes.
pub(super) type Fault = &'static str;

const SHORT: Fault = "it ends too early";

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(SHORT)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn length(&mut self) -> Result<usize, Fault> {
        self.u32().map(|length| length as usize)
    }

    /// A page id that must be one.
    pub(super) fn page(&mut self) -> Result<PageId, Fault> {
        self.array().map(PageId::from_bytes)?.ok_or("a page id is none")
    }

    /// So many page ids. Nothing is allocated for ids that are not there.
    pub(super) fn pages(&mut self, count: u64) -> Result<Vec<PageId>, Fault> {
        let length = count.checked_mul(8).and_then(|length| usize::try_from(length).ok()).ok_or(SHORT)?;
        let mut ids = Reader(self.bytes(length)?);
        (0..count).map(|_| ids.page()).collect()
    }

    pub(super) fn magic(&mut self, magic: &[u8]) -> Result<(), Fault> {
        if self.bytes(magic.len())? == magic { Ok(()) } else { Err("it has another magic number") }
    }
}
