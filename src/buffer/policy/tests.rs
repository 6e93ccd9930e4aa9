//! Every policy keeps the contract (E6 to E10), and small sequences give the victims they should.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

pub(super) fn class(log2: u8) -> SizeClass {
    SizeClass::new(log2).unwrap()
}

fn hash(page: u64) -> PageHash {
    let mixed = (page ^ (page >> 30)).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    PageHash((mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb))
}

/// Frames as a test has them.
#[derive(Default)]
struct Bits {
    touched: BTreeSet<Slot>,
    pinned: BTreeSet<Slot>,
    /// Asked for every slot, and never false.
    always_touched: bool,
    questions: usize,
    refused: BTreeSet<Slot>,
    taken: Option<Slot>,
}

impl Frames for Bits {
    fn touched(&mut self, slot: Slot) -> bool {
        self.questions += 1;
        self.touched.remove(&slot) || self.always_touched
    }

    fn take(&mut self, slot: Slot) -> bool {
        self.questions += 1;
        assert_eq!(self.taken, None, "one is taken at a time");
        let is_free = !self.pinned.contains(&slot);
        if is_free {
            self.taken = Some(slot)
        } else {
            self.refused.insert(slot);
        }
        is_free
    }
}

/// A memory of so many pages of 4 KiB under a policy.
pub(super) struct Memory<P> {
    pub(super) policy: P,
    pages: usize,
    bits: Bits,
    slots: BTreeMap<u64, Slot>,
}

impl<P: EvictionPolicy> Memory<P> {
    pub(super) fn new(policy: P, pages: usize) -> Self {
        Self { policy, pages, bits: Bits::default(), slots: BTreeMap::new() }
    }

    pub(super) fn has(&self, page: u64) -> bool {
        self.slots.contains_key(&page)
    }

    pub(super) fn slot(&self, page: u64) -> Slot {
        self.slots[&page]
    }

    pub(super) fn forget(&mut self, page: u64) {
        self.slots.remove(&page);
    }

    /// The page that went for it, if one had to.
    pub(super) fn access(&mut self, page: u64) -> Option<u64> {
        match self.slots.get(&page) {
            Some(&slot) => {
                self.bits.touched.insert(slot);
                None
            }
            None => self.fetch(page, Arrival::Read),
        }
    }

    pub(super) fn load(&mut self, page: u64, arrival: Arrival) {
        self.fetch(page, arrival);
    }

    fn fetch(&mut self, page: u64, arrival: Arrival) -> Option<u64> {
        let mut gone = None;
        if self.slots.len() == self.pages {
            self.bits.taken = None;
            let slot = self.policy.victim(&mut self.bits).unwrap();
            gone = self.slots.iter().find(|(_, other)| **other == slot).map(|(page, _)| *page);
            self.slots.remove(&gone.unwrap());
        }
        let used: BTreeSet<Slot> = self.slots.values().copied().collect();
        let slot = (0..).map(Slot).find(|slot| !used.contains(slot)).unwrap();
        self.bits.touched.remove(&slot);
        self.policy.admit(slot, hash(page), class(12), arrival);
        self.slots.insert(page, slot);
        gone
    }
}

/// The pages that go, in order, when these are accessed.
fn victims(policy: Box<dyn EvictionPolicy>, pages: usize, accesses: &[u64]) -> Vec<u64> {
    let mut memory = Memory::new(policy, pages);
    accesses.iter().filter_map(|&page| memory.access(page)).collect()
}

impl EvictionPolicy for Box<dyn EvictionPolicy> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn admit(&mut self, slot: Slot, page: PageHash, class: SizeClass, arrival: Arrival) {
        (**self).admit(slot, page, class, arrival);
    }

    fn remove(&mut self, slot: Slot) {
        (**self).remove(slot);
    }

    fn replace(&mut self, old: Slot, new: Slot) {
        (**self).replace(old, new);
    }

    fn victim(&mut self, frames: &mut dyn Frames) -> Option<Slot> {
        (**self).victim(frames)
    }

    fn restore(&mut self, slot: Slot, page: PageHash, class: SizeClass) {
        (**self).restore(slot, page, class);
    }

    fn memory_bytes(&self) -> usize {
        (**self).memory_bytes()
    }
}

#[test]
fn small_sequences_have_the_victims_of_the_papers() {
    // Page 1 is touched, gets a second round, and is not touched again.
    assert_eq!(victims(Box::new(Clock::new()), 3, &[1, 2, 3, 1, 4, 5, 6, 7]), [2, 3, 1, 4]);
    // The hand passes by 1 and goes on to the newer ones; 1 keeps its place, and goes when the hand is round.
    assert_eq!(victims(Box::new(Sieve::new()), 3, &[1, 2, 3, 1, 4, 5, 6, 7]), [2, 3, 4, 5]);
    // New pages go through the small queue, so 1, which is in the main one, stays; 2 comes back and joins it.
    assert_eq!(victims(Box::new(S3Fifo::new()), 3, &[1, 2, 3, 1, 4, 2, 5, 6, 7]), [2, 3, 4, 5, 6]);
}

#[test]
fn names_are_distinct_and_the_default_is_first() {
    let names: BTreeSet<&str> = built_in(1).iter().map(|policy| policy.name()).collect();
    assert_eq!(names.len(), built_in(1).len());
    assert_eq!(built_in(1)[0].name(), default_policy().name());
}

/// One call, or what happens between calls. Numbers are reduced to what there is.
#[derive(Clone, Debug)]
enum Step {
    Admit { page: u64, class: u8, ahead: bool },
    Remove(usize),
    Replace(usize),
    ReplaceInPlace(usize),
    Touch(usize),
    Pin(usize),
    Unpin(usize),
    Victim { restored: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..60u64, 12..18u8, any::<bool>()).prop_map(|(page, class, ahead)| Step::Admit { page, class, ahead }),
        1 => any::<usize>().prop_map(Step::Remove),
        1 => any::<usize>().prop_map(Step::Replace),
        1 => any::<usize>().prop_map(Step::ReplaceInPlace),
        6 => any::<usize>().prop_map(Step::Touch),
        1 => any::<usize>().prop_map(Step::Pin),
        1 => any::<usize>().prop_map(Step::Unpin),
        4 => prop::bool::weighted(0.1).prop_map(|restored| Step::Victim { restored }),
    ]
}

/// A policy beside what is admitted, by the contract.
struct Checked {
    policy: Box<dyn EvictionPolicy>,
    bits: Bits,
    /// The page and the class in each admitted slot.
    admitted: BTreeMap<Slot, (u64, u8)>,
    most_slots: usize,
    most_units: usize,
    log: Vec<Option<Slot>>,
}

impl Checked {
    fn new(policy: Box<dyn EvictionPolicy>) -> Self {
        let (bits, admitted, log) = (Bits::default(), BTreeMap::new(), Vec::new());
        Self { policy, bits, admitted, most_slots: 0, most_units: 0, log }
    }

    fn free_slot(&self) -> Slot {
        (0..).map(Slot).find(|slot| !self.admitted.contains_key(slot)).unwrap()
    }

    fn pick(&self, number: usize) -> Option<Slot> {
        self.admitted.keys().nth(number.checked_rem(self.admitted.len())?).copied()
    }

    fn victim(&mut self) -> Option<Slot> {
        (self.bits.questions, self.bits.taken) = (0, None);
        self.bits.refused.clear();
        let slot = self.policy.victim(&mut self.bits);
        let name = self.policy.name();
        assert_eq!(slot, self.bits.taken, "E6: {name}");
        assert!(self.bits.questions <= 4 * self.admitted.len() + 4, "E7: {name}: {}", self.bits.questions);
        match slot {
            Some(slot) => assert!(self.admitted.contains_key(&slot), "E6: {name}"),
            None => assert!(self.admitted.keys().all(|slot| self.bits.refused.contains(slot)), "E7: {name}"),
        }
        self.log.push(slot);
        slot
    }

    fn forget(&mut self, slot: Slot) -> Option<(u64, u8)> {
        self.bits.touched.remove(&slot);
        self.bits.pinned.remove(&slot);
        self.admitted.remove(&slot)
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Admit { page, class: log2, ahead } => {
                if self.admitted.values().any(|(other, _)| *other == page) {
                    return;
                }
                let slot = self.free_slot();
                let arrival = if ahead { Arrival::Ahead } else { Arrival::Read };
                self.policy.admit(slot, hash(page), class(log2), arrival);
                self.admitted.insert(slot, (page, log2));
            }
            Step::Remove(number) => {
                if let Some(slot) = self.pick(number) {
                    self.policy.remove(slot);
                    self.forget(slot);
                }
            }
            Step::Replace(number) => {
                if let Some(old) = self.pick(number) {
                    let new = self.free_slot();
                    self.policy.replace(old, new);
                    let page = self.forget(old).unwrap();
                    self.admitted.insert(new, page);
                }
            }
            Step::ReplaceInPlace(number) => {
                if let Some(slot) = self.pick(number) {
                    self.policy.replace(slot, slot);
                }
            }
            Step::Touch(number) => self.bits.touched.extend(self.pick(number)),
            Step::Pin(number) => self.bits.pinned.extend(self.pick(number)),
            Step::Unpin(number) => {
                if let Some(slot) = self.pick(number) {
                    self.bits.pinned.remove(&slot);
                }
            }
            Step::Victim { restored } => {
                if let Some(slot) = self.victim() {
                    let (page, log2) = self.forget(slot).unwrap();
                    if restored {
                        let slot = self.free_slot();
                        self.policy.restore(slot, hash(page), class(log2));
                        self.admitted.insert(slot, (page, log2));
                    }
                }
            }
        }
        self.check_memory();
    }

    fn check_memory(&mut self) {
        let highest = self.admitted.keys().last().map_or(0, |slot| slot.0 as usize + 1);
        self.most_slots = self.most_slots.max(highest);
        let units: usize = self.admitted.values().map(|(_, log2)| 1 << (log2 - 12)).sum();
        self.most_units = self.most_units.max(units);
        let ghosts = self.most_units.min(2 * self.most_slots);
        // The least that a vector holds, and the last bucket of each table.
        let rounding = 4 * BYTES_PER_SLOT + 2 * 64;
        let most = 2 * self.most_slots * BYTES_PER_SLOT + 2 * ghosts * BYTES_PER_GHOST * 5 / 4 + rounding;
        assert!(self.policy.memory_bytes() <= most, "E9: {}: {}", self.policy.name(), self.policy.memory_bytes());
    }

    /// Whatever is pinned is refused for as long, and everything else goes; then the rest.
    fn drain(&mut self) {
        let unpinned = self.admitted.len() - self.bits.pinned.len();
        for _ in 0..unpinned {
            let slot = self.victim().unwrap();
            self.forget(slot);
        }
        assert_eq!(self.victim(), None);
        self.bits.pinned.clear();
        for _ in 0..self.admitted.len() {
            let slot = self.victim().unwrap();
            self.forget(slot);
        }
        assert!(self.admitted.is_empty());
        assert_eq!(self.victim(), None);
    }
}

proptest! {
    #[test]
    fn every_policy_keeps_the_contract(steps in prop::collection::vec(step(), 0..400), seed in any::<u64>()) {
        for (policy, twin) in built_in(seed).into_iter().zip(built_in(seed)) {
            let (mut checked, mut twin) = (Checked::new(policy), Checked::new(twin));
            for step in &steps {
                checked.apply(step);
                twin.apply(step);
            }
            checked.drain();
            twin.drain();
            prop_assert_eq!(&checked.log, &twin.log, "E10");
        }
    }

    #[test]
    fn pages_that_are_touched_all_the_time_go_all_the_same(pages in 1..200u64, pinned in 0..200usize, seed in any::<u64>()) {
        for policy in built_in(seed) {
            let mut checked = Checked::new(policy);
            (0..pages).for_each(|page| checked.apply(&Step::Admit { page, class: 12 + (page % 5) as u8, ahead: false }));
            (0..pinned).for_each(|number| checked.apply(&Step::Pin(number * 3)));
            checked.bits.always_touched = true;
            checked.drain();
        }
    }
}

#[test]
fn a_replaced_page_keeps_its_place() {
    for policy in [Box::new(Clock::new()) as Box<dyn EvictionPolicy>, Box::new(WeighedAges::new())] {
        let mut checked = Checked::new(policy);
        (0..4).for_each(|page| checked.apply(&Step::Admit { page, class: 12, ahead: false }));
        // The first frame is written again and again, each time into another frame.
        checked.policy.replace(Slot(0), Slot(4));
        checked.policy.replace(Slot(4), Slot(5));
        checked.admitted.insert(Slot(5), (0, 12));
        assert_eq!(checked.victim(), Some(Slot(5)));
        assert_eq!(checked.victim(), Some(Slot(1)));
    }
}
