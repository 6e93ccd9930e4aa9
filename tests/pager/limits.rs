//! A process that may have few addresses: the store is opened with what there is, or refused by an error that says why.
//! Each test starts the test program again, for itself alone, through a shell that sets the limit.

use std::path::Path;
use std::process::Command;

use vellum::{Error, Options, PageId, Pager, Read, Transaction, VerifyLevel};

use crate::class;

const CHILD: &str = "VELLUM_TEST_LIMITED";
const MIB: usize = 1 << 20;

/// How a process came out that used a store.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Worked,
    Refused,
}

/// Creates a store, fills it with pages of many sizes, more than its budget, and reads them back after reopening it.
fn use_a_store(path: &Path, budget: usize) -> Result<(), Error> {
    let options = Options::new().memory(budget);
    let pager = Pager::create(path, &options)?;
    let mut pages = Vec::new();
    for round in 0..2 {
        let transaction = pager.begin()?;
        for log2 in 12..=18 {
            for _ in 0..(8 * MIB) >> log2 {
                pages.push(filled(&transaction, transaction.allocate(class(log2))?, round)?);
            }
        }
        transaction.commit()?;
    }
    let transaction = pager.begin()?;
    let large = transaction.allocate(class(24))?;
    transaction.write_at(large, 5 * MIB as u64, b"in the middle")?;
    transaction.commit()?;
    pager.checkpoint()?;
    pager.close()?;
    let pager = Pager::open(path, &options)?;
    let view = pager.view();
    for (page, byte) in &pages {
        let guard = view.page(*page)?;
        assert_eq!((guard[0], guard[guard.len() - 1]), (*byte, *byte), "{page}");
    }
    let sum = view
        .scope(|scope| pages.iter().take(50).try_fold(0, |sum, (page, _)| Ok(sum + u64::from(scope.page(*page)?[0]))));
    sum?;
    let report = pager.verify(VerifyLevel::Full, &mut |_| {})?;
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    Ok(())
}

fn filled(transaction: &Transaction, page: PageId, round: u8) -> Result<(PageId, u8), Error> {
    let byte = page.index() as u8 ^ round | 1;
    transaction.overwrite(page)?.fill(byte);
    Ok((page, byte))
}

/// Runs `body` in a process that begins with these shell commands.
fn in_a_child(test: &str, limits: &str, body: impl FnOnce() -> Result<(), Error>) -> Outcome {
    if std::env::var_os(CHILD).is_some() {
        match body() {
            Ok(()) => println!("all of it worked"),
            // What may come: the system has no addresses, or the budget cannot be used because of that.
            Err(error @ (Error::Memory { .. } | Error::BudgetExhausted { .. })) => println!("refused: {error}"),
            Err(error) => panic!("{error}"),
        }
        std::process::exit(0);
    }
    let script = format!("{limits}\nexec \"$0\" --exact limits::{test} --test-threads=1 --nocapture");
    let program = std::env::current_exe().unwrap();
    let output = Command::new("sh").arg("-c").arg(script).arg(program).env(CHILD, "1").output().unwrap();
    assert!(output.status.success(), "{limits}: {output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().rfind(|line| line.contains("worked") || line.contains("refused"));
    println!("{limits}: {last:?}");
    assert!(last.is_some(), "{limits}: {output:?}");
    if said.contains("all of it worked") { Outcome::Worked } else { Outcome::Refused }
}

/// How it comes out under each limit, in MiB. Never is a process ended by the want of addresses.
fn outcomes(test: &str, limit_of: impl Fn(usize) -> String, all_mib: &[usize]) -> Vec<(usize, Outcome)> {
    let folder = tempfile::tempdir().unwrap();
    let one = |mib: &usize| {
        let path = folder.path().join(format!("{mib}.vellum"));
        (*mib, in_a_child(test, &limit_of(*mib), || use_a_store(&path, 32 * MIB)))
    };
    all_mib.iter().map(one).collect()
}

#[test]
fn a_store_under_a_limit_on_addresses_works_or_is_refused_by_an_error() {
    let test = "a_store_under_a_limit_on_addresses_works_or_is_refused_by_an_error";
    let limit_of = |mib| format!("ulimit -v {}", mib * 1024);
    for (mib, outcome) in outcomes(test, limit_of, &[40, 60, 120, 300, 600, 2048]) {
        match mib {
            // The descriptors alone need more.
            ..=60 => assert_eq!(outcome, Outcome::Refused, "{mib} MiB"),
            // The heap reserves 64 MiB for each of a few threads, and may leave too little.
            61..2048 => {}
            _ => assert_eq!(outcome, Outcome::Worked, "{mib} MiB"),
        }
    }
}

#[test]
fn pools_that_have_fewer_addresses_than_the_budget_has_bytes_evict_for_themselves() {
    let test = "pools_that_have_fewer_addresses_than_the_budget_has_bytes_evict_for_themselves";
    // One heap for all threads; pools get a few MiB each, of a budget of 32.
    let limit_of = |mib| format!("export MALLOC_ARENA_MAX=1\nulimit -v {}", mib * 1024);
    for (mib, outcome) in outcomes(test, limit_of, &[220, 400]) {
        assert_eq!(outcome, Outcome::Worked, "{mib} MiB");
    }
}

#[test]
fn a_store_under_a_limit_on_data_works_or_is_refused_by_an_error() {
    let test = "a_store_under_a_limit_on_data_works_or_is_refused_by_an_error";
    let limit_of = |mib| format!("export MALLOC_ARENA_MAX=1\nulimit -d {}", mib * 1024);
    for (mib, outcome) in outcomes(test, limit_of, &[40, 120, 400]) {
        match mib {
            ..=40 => assert_eq!(outcome, Outcome::Refused, "{mib} MiB"),
            41..400 => {}
            _ => assert_eq!(outcome, Outcome::Worked, "{mib} MiB"),
        }
    }
}
