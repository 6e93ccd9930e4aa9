//! What no buffer can have, for comparison: the optimum, which knows the future, and policies that hear of every access.

use std::collections::{BTreeSet, VecDeque};

use crate::simulation::Cache;

/// The least recently used page goes.
pub(crate) struct Lru {
    pages: usize,
    now: u64,
    last: Vec<u64>,
    by_age: BTreeSet<(u64, u32)>,
}

impl Lru {
    pub(crate) fn new(pages: usize, distinct: usize) -> Self {
        Self { pages, now: 0, last: vec![0; distinct], by_age: BTreeSet::new() }
    }
}

impl Cache for Lru {
    fn access(&mut self, page: u32) -> bool {
        self.now += 1;
        let last = std::mem::replace(&mut self.last[page as usize], self.now);
        let is_hit = last != 0 && self.by_age.remove(&(last, page));
        if !is_hit && self.by_age.len() == self.pages {
            self.by_age.pop_first();
        }
        self.by_age.insert((self.now, page));
        is_hit
    }
}

/// The page goes that is wanted last. (Belady, 1966.)
pub(crate) struct Optimum {
    pages: usize,
    now: usize,
    /// For each access, when the same page is accessed next.
    next: Vec<u32>,
    /// For each page in memory, when it is wanted next; 0: not in memory.
    wanted: Vec<u32>,
    by_want: BTreeSet<(u32, u32)>,
}

impl Optimum {
    pub(crate) fn new(pages: usize, distinct: usize, accesses: &[u32]) -> Self {
        let mut next = vec![u32::MAX; accesses.len()];
        let mut after = vec![u32::MAX; distinct];
        for (at, &page) in accesses.iter().enumerate().rev() {
            next[at] = std::mem::replace(&mut after[page as usize], at as u32);
        }
        Self { pages, now: 0, next, wanted: vec![0; distinct], by_want: BTreeSet::new() }
    }
}

impl Cache for Optimum {
    fn access(&mut self, page: u32) -> bool {
        let wanted = self.wanted[page as usize];
        let is_hit = wanted != 0;
        if is_hit {
            self.by_want.remove(&(wanted, page));
        } else if self.by_want.len() == self.pages
            && let Some((_, victim)) = self.by_want.pop_last()
        {
            self.wanted[victim as usize] = 0;
        }
        self.wanted[page as usize] = self.next[self.now];
        self.by_want.insert((self.next[self.now], page));
        self.now += 1;
        is_hit
    }
}

/// S3-FIFO as published: counters up to 3, and two accesses more to leave the small queue for the main one.
pub(crate) struct S3Counters {
    pages: usize,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
    count: Vec<Option<u8>>,
    /// When each page was forgotten, in evictions from the small queue; 0: never.
    left: Vec<usize>,
    evicted: usize,
}

impl S3Counters {
    pub(crate) fn new(pages: usize, distinct: usize) -> Self {
        let (small, main) = (VecDeque::new(), VecDeque::new());
        Self { pages, small, main, count: vec![None; distinct], left: vec![0; distinct], evicted: 0 }
    }

    fn evict(&mut self) {
        let small_pages = (self.pages / 10).max(1);
        loop {
            let is_small = self.small.len() >= small_pages || self.main.is_empty();
            let queue = if is_small { &mut self.small } else { &mut self.main };
            let Some(page) = queue.pop_front() else { return };
            let count = &mut self.count[page as usize];
            match (*count, is_small) {
                (Some(2..), true) => self.main.push_back(page),
                (Some(seen @ 1..), false) => {
                    *count = Some(seen - 1);
                    self.main.push_back(page);
                }
                _ => {
                    *count = None;
                    if is_small {
                        self.evicted += 1;
                        self.left[page as usize] = self.evicted;
                    }
                    return;
                }
            }
        }
    }
}

impl Cache for S3Counters {
    fn access(&mut self, page: u32) -> bool {
        if let Some(count) = &mut self.count[page as usize] {
            *count = 3.min(*count + 1);
            return true;
        }
        if self.small.len() + self.main.len() == self.pages {
            self.evict();
        }
        let left = std::mem::take(&mut self.left[page as usize]);
        let is_ghost = left != 0 && self.evicted - left < self.pages - self.pages / 10;
        if is_ghost {
            self.main.push_back(page)
        } else {
            self.small.push_back(page)
        };
        self.count[page as usize] = Some(0);
        false
    }
}
