//! The example `external_sort`, with little memory.
#![allow(clippy::unwrap_used)]

#[path = "../examples/external_sort.rs"]
mod example;

#[test]
fn four_times_the_budget_is_sorted_within_it() {
    for budget in [1 << 20, 3_000_001] {
        let folder = tempfile::tempdir().unwrap();
        let report = example::sort(budget, folder.path().to_owned()).unwrap();
        assert_eq!(report.data_bytes, (budget as u64 * 4) / 16 * 16);
        assert!(report.peak_bytes <= budget, "{report:?}");
        // What the budget cannot hold, and little more than all of it, once.
        assert!(report.spilled_bytes >= report.data_bytes - budget as u64, "{report:?}");
        assert!(report.spilled_bytes <= report.data_bytes + report.data_bytes / 4, "{report:?}");
        assert!(report.read_back_bytes <= report.spilled_bytes, "{report:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
