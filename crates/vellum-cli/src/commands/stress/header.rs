//! The user header of a store under stress.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | `VLstrs01` |
//! | 8 | 8 | the seed |
//! | 16 | 8 | the sequence number of the newest commit, from 1 on |
//! | 24 | 8 | how many spans follow |
//! | 32 | | spans: from which sequence number on (8), how many pages a commit changes (4), of how many slots (4) |

const MAGIC: [u8; 8] = *b"VLstrs01";
const FIXED_BYTES: usize = 32;
const SPAN_BYTES: usize = 16;
/// Spans that fit: runs with other numbers than the run before.
pub(super) const SPANS_LIMIT: usize = (vellum::format::HEADER_LIMIT - FIXED_BYTES) / SPAN_BYTES;
/// Slots, at most: what fits in memory when a state is computed anew.
pub(super) const SLOTS_LIMIT: u32 = 1 << 26;

/// Commits that change the same number of pages of the same number of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// The sequence number of the first of them.
    pub(super) from: u64,
    /// Pages that each changes: 1 to `slots`.
    pub(super) pages: u32,
    /// Slots that it chooses them from.
    pub(super) slots: u32,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) seed: u64,
    pub(super) sequence: u64,
    /// The first begins at 1, each later one after the one before.
    pub(super) spans: Vec<Span>,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for number in [self.seed, self.sequence, self.spans.len() as u64] {
            bytes.extend(number.to_le_bytes());
        }
        for span in &self.spans {
            bytes.extend(span.from.to_le_bytes());
            bytes.extend(span.pages.to_le_bytes());
            bytes.extend(span.slots.to_le_bytes());
        }
        bytes
    }

    /// Decodes a header; `None` if it is not one.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (fixed, spans) = bytes.split_at_checked(FIXED_BYTES)?;
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
        let (seed, sequence, count) = (number(&fixed[8..16])?, number(&fixed[16..24])?, number(&fixed[24..32])?);
        let spans: Vec<Span> = spans
            .chunks(SPAN_BYTES)
            .map(|span| {
                let (from, counts) = span.split_at_checked(8)?;
                let counts = number(counts)?;
                Some(Span { from: number(from)?, pages: counts as u32, slots: (counts >> 32) as u32 })
            })
            .collect::<Option<_>>()?;
        let header = Self { seed, sequence, spans };
        (fixed[..8] == MAGIC && header.spans.len() as u64 == count && header.holds_together()).then_some(header)
    }

    fn holds_together(&self) -> bool {
        self.spans.first().is_some_and(|span| span.from == 1)
            && self.spans.is_sorted_by(|a, b| a.from < b.from)
            && self.spans.iter().all(|span| (1..=span.slots).contains(&span.pages) && span.slots <= SLOTS_LIMIT)
            && self.spans.iter().all(|span| span.from <= self.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_its_bytes_and_no_cut_passes() {
        let spans = vec![Span { from: 1, pages: 8, slots: 64 }, Span { from: 9, pages: 1, slots: 1 }];
        let header = Header { seed: 7, sequence: 9, spans };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Some(header.clone()));
        assert!((0..bytes.len()).all(|cut| Header::decode(&bytes[..cut]).is_none()));
        for spoil in [
            |header: &mut Header| header.spans.clear(),
            |header: &mut Header| header.spans[0].from = 2,
            |header: &mut Header| header.spans[0].pages = 0,
            |header: &mut Header| header.spans[1].pages = 2,
            |header: &mut Header| header.spans[1].from = 10,
            |header: &mut Header| header.spans.reverse(),
        ] {
            let mut bad = header.clone();
            spoil(&mut bad);
            assert_eq!(Header::decode(&bad.encode()), None);
        }
        let full = Header { sequence: 99, spans: vec![], ..header };
        let spans = (1..=SPANS_LIMIT as u64).map(|from| Span { from, pages: 1, slots: 1 }).collect();
        assert!(Header { spans, ..full }.encode().len() <= vellum::format::HEADER_LIMIT);
    }
}
