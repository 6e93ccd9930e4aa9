//! Random steps.

use vellum::testing::Step;

/// SplitMix64: enough for choosing steps.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn pages(&mut self) -> Vec<(u8, u64)> {
        (0..1 + self.below(5)).map(|_| (12 + self.below(3) as u8, self.below(12))).collect()
    }

    pub(crate) fn step(&mut self) -> Step {
        match self.below(37) {
            0..=9 => Step::Write(self.pages()),
            10..=12 => Step::WriteDeferred(self.pages()),
            13..=14 => Step::Free(self.pages()),
            15 => Step::Header(self.below(256) as u8),
            16 => Step::Sync,
            17..=18 => Step::Checkpoint,
            19 => Step::CheckpointBegin,
            20..=21 => Step::CheckpointEnd,
            22 => Step::Snapshot(self.below(4) as u8),
            23 => Step::DeleteSnapshot(self.below(4) as u8),
            24 => Step::RollBack(self.below(4) as u8),
            25..=26 => Step::Move(self.pages()),
            27 => Step::View,
            30 => match self.pages() {
                pages if pages.len().is_multiple_of(2) => Step::SpillEncoded(pages),
                pages => Step::Spill(pages),
            },
            31..=32 => Step::WriteSpilled(self.pages()),
            33 => Step::GiveBackSpilled,
            34..=36 => Step::WriteEncoded(self.pages()),
            _ => Step::CloseView,
        }
    }
}
