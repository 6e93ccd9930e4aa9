//! What the commit of a sequence number does, and which state a sequence number makes.
//!
//! The pages live in *slots*. A commit chooses some of them: an empty one gets a new page; a page of a full one is
//! mostly overwritten, now and then replaced by a new one, now and then freed. So pages come and go, and the file lives.

use std::collections::HashSet;

use vellum::SizeClass;

use super::Random;
use super::header::{Header, Span};

/// What is done to a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// It gets a page.
    Fill,
    /// Its page gets new bytes.
    Overwrite,
    /// Its page is freed; it gets another.
    Replace,
    /// Its page is freed.
    Empty,
}

/// By slot, the sequence number of the commit that wrote its page; 0 where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State(pub(super) Vec<u64>);

impl State {
    /// The state that the commits up to the header's sequence number make.
    pub(super) fn of(header: &Header) -> Self {
        let mut state = Self::default();
        for (index, span) in header.spans.iter().enumerate() {
            let until = header.spans.get(index + 1).map_or(header.sequence, |next| next.from - 1);
            for sequence in span.from..=until {
                state.step(header.seed, sequence, span);
            }
        }
        state
    }

    /// Does what the commit of `sequence` does. Returns it: each slot at most once.
    pub(super) fn step(&mut self, seed: u64, sequence: u64, span: &Span) -> Vec<(u32, Action)> {
        if self.0.len() < span.slots as usize {
            self.0.resize(span.slots as usize, 0);
        }
        let mut random = Random(seed ^ sequence.wrapping_mul(0xd6e8_feb8_6659_fd93));
        let chosen = choose(&mut random, span);
        let act = |slot: u32| {
            let written = &mut self.0[slot as usize];
            let action = match (*written, random.below(8)) {
                (0, _) => Action::Fill,
                (_, 0) => Action::Replace,
                (_, 1) => Action::Empty,
                _ => Action::Overwrite,
            };
            *written = if action == Action::Empty { 0 } else { sequence };
            (slot, action)
        };
        chosen.into_iter().map(act).collect()
    }
}

/// Different slots, each as likely as any other (Floyd's way).
fn choose(random: &mut Random, span: &Span) -> Vec<u32> {
    let mut taken = HashSet::new();
    let from = span.slots - span.pages.min(span.slots);
    (from..span.slots)
        .map(|last| {
            let slot = random.below(u64::from(last) + 1) as u32;
            let slot = if taken.contains(&slot) { last } else { slot };
            taken.insert(slot);
            slot
        })
        .collect()
}

/// The class of the page in a slot: one in sixteen is of 16 KiB, the others of 4 KiB.
pub(super) fn class_of(slot: u32) -> SizeClass {
    let bytes = if slot % 16 == 7 { 16 << 10 } else { 4 << 10 };
    SizeClass::of(bytes).unwrap_or(SizeClass::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_happens_and_a_state_can_be_computed_anew() {
        let spans = vec![Span { from: 1, pages: 8, slots: 64 }, Span { from: 501, pages: 3, slots: 100 }];
        let mut header = Header { seed: 5, sequence: 0, spans };
        let mut state = State::default();
        let mut seen = HashSet::new();
        for sequence in 1..=1000 {
            let span = header.spans[usize::from(sequence > 500)];
            let done = state.step(header.seed, sequence, &span);
            assert_eq!(done.len(), span.pages as usize);
            assert_eq!(done.iter().map(|(slot, _)| slot).collect::<HashSet<_>>().len(), done.len());
            seen.extend(done.iter().map(|(_, action)| format!("{action:?}")));
        }
        header.sequence = 1000;
        assert_eq!(State::of(&header), state);
        assert_eq!(seen.len(), 4);
        header.sequence = 999;
        assert_ne!(State::of(&header), state);
    }
}
