//! The tree above the leaves: of each leaf, and of each pair below, what a search needs to pass it by.
//!
//! A complete binary tree in an array, 24 bytes a node: 384 KiB for the 8192 leaves of a terabyte. A change climbs
//! only as far as it changes a node, which for most is nowhere.

use super::reserve_total;
use crate::error::Result;

/// What is known of one leaf, or of all leaves below a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// No run of free blocks is longer (the most of any leaf). A bound, not a promise.
    pub(super) longest: u32,
    /// Bit `n` is set if some segment's longest hole has `2^n` blocks or more, and less than twice that.
    pub(super) hole_classes: u32,
    /// Free blocks of the emptiest segment that is not wholly free (the most of any leaf).
    pub(super) emptiest: u32,
    /// Wholly free segments (the sum of all leaves).
    pub(super) segments_free: u64,
}

impl Summary {
    fn join(self, other: Self) -> Self {
        Self {
            longest: self.longest.max(other.longest),
            hole_classes: self.hole_classes | other.hole_classes,
            emptiest: self.emptiest.max(other.emptiest),
            segments_free: self.segments_free + other.segments_free,
        }
    }
}

/// The summaries of all leaves. Node 1 is the root, node `n` has the children `2n` and `2n + 1`.
#[derive(Debug, Default)]
pub(super) struct SummaryTree {
    nodes: Vec<Summary>,
}

impl SummaryTree {
    /// The tree over these leaves.
    pub(super) fn new(leaves: impl ExactSizeIterator<Item = Summary>) -> Self {
        let mut tree = Self { nodes: Vec::new() };
        tree.rebuild(leaves);
        tree
    }

    /// Makes it the tree over these leaves.
    pub(super) fn rebuild(&mut self, leaves: impl ExactSizeIterator<Item = Summary>) {
        let width = leaves.len().next_power_of_two();
        let nodes = &mut self.nodes;
        nodes.clear();
        nodes.resize(width * 2, Summary::default());
        for (node, summary) in nodes[width..].iter_mut().zip(leaves) {
            *node = summary;
        }
        for node in (1..width).rev() {
            nodes[node] = nodes[node * 2].join(nodes[node * 2 + 1]);
        }
    }

    /// Obtains the memory for so many leaves.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory).
    pub(super) fn reserve(&mut self, leaves: usize) -> Result<()> {
        let nodes = leaves.checked_next_power_of_two().and_then(|width| width.checked_mul(2)).unwrap_or(usize::MAX);
        reserve_total(&mut self.nodes, nodes)
    }

    /// How many leaves there is room for.
    pub(super) fn width(&self) -> usize {
        self.nodes.len() / 2
    }

    /// The summary of everything.
    pub(super) fn root(&self) -> Summary {
        self.nodes[1]
    }

    /// The summary of one leaf.
    pub(super) fn leaf(&self, leaf: usize) -> Summary {
        self.nodes[self.width() + leaf]
    }

    /// Notes what a leaf has become.
    pub(super) fn update(&mut self, leaf: usize, summary: Summary) {
        let mut node = self.width() + leaf;
        let mut changed = summary;
        while self.nodes[node] != changed {
            self.nodes[node] = changed;
            if node == 1 {
                break;
            }
            changed = self.nodes[node].join(self.nodes[node ^ 1]);
            node /= 2;
        }
    }

    /// The first leaf from `leaf` on that is `wanted`, which must be true of a node if it is true of a leaf below.
    pub(super) fn next(&self, leaf: usize, wanted: impl Fn(&Summary) -> bool) -> Option<usize> {
        let width = self.width();
        if leaf >= width {
            return None;
        }
        let mut node = width + leaf;
        while !wanted(&self.nodes[node]) {
            // To the right, from the lowest ancestor that has anything there.
            node >>= node.trailing_ones();
            if node == 0 {
                return None;
            }
            node += 1;
        }
        while node < width {
            node *= 2;
            if !wanted(&self.nodes[node]) {
                node += 1;
            }
        }
        Some(node - width)
    }

    /// Visits leaves with a segment that is partly free, those with the emptiest segments first, until `visit`
    /// declines. It is told the leaf and the free blocks of the leaf's emptiest segment.
    pub(super) fn visit_emptiest(&self, mut visit: impl FnMut(usize, u32) -> std::ops::ControlFlow<()>) {
        let mut frontier = std::collections::BinaryHeap::from([(self.root().emptiest, std::cmp::Reverse(1))]);
        while let Some((emptiest, std::cmp::Reverse(node))) = frontier.pop() {
            if emptiest == 0 {
                return;
            }
            if node < self.width() {
                for child in [node * 2, node * 2 + 1] {
                    frontier.push((self.nodes[child].emptiest, std::cmp::Reverse(child)));
                }
            } else if visit(node - self.width(), emptiest).is_break() {
                return;
            }
        }
    }

    /// Asserts that every node is the join of its children.
    pub(super) fn check_invariants(&self) {
        for node in 1..self.width() {
            let joined = self.nodes[node * 2].join(self.nodes[node * 2 + 1]);
            assert_eq!(self.nodes[node], joined, "S3: node {node} of the tree is the join of its children");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ops::ControlFlow;

    fn with_longest(longest: u32) -> Summary {
        Summary { longest, hole_classes: 0, emptiest: longest, segments_free: longest.into() }
    }

    proptest! {
        #[test]
        fn the_tree_finds_what_a_walk_along_the_leaves_finds(
            leaves in proptest::collection::vec(0u32..9, 1..40),
            changes in proptest::collection::vec((0usize..40, 0u32..9), 0..40),
            from in 0usize..50,
            minimum in 1u32..10,
        ) {
            let mut leaves = leaves;
            let mut tree = SummaryTree::new(leaves.iter().map(|&longest| with_longest(longest)));
            for (leaf, longest) in changes {
                if let Some(place) = leaves.get_mut(leaf) {
                    *place = longest;
                    tree.update(leaf, with_longest(longest));
                }
            }
            tree.check_invariants();
            let walked = (from..leaves.len()).find(|&leaf| leaves[leaf] >= minimum);
            prop_assert_eq!(tree.next(from, |summary| summary.longest >= minimum), walked);
            prop_assert_eq!(tree.root().segments_free, leaves.iter().map(|&free| u64::from(free)).sum::<u64>());

            let mut visited = Vec::new();
            tree.visit_emptiest(|leaf, emptiest| {
                visited.push((emptiest, leaf));
                ControlFlow::Continue(())
            });
            prop_assert!(visited.is_sorted_by(|a, b| a.0 >= b.0));
            prop_assert_eq!(visited.len(), leaves.iter().filter(|&&free| free > 0).count());
            prop_assert!(visited.iter().all(|&(emptiest, leaf)| leaves[leaf] == emptiest));
        }
    }
}
