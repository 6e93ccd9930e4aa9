//! The buffer where OS pages are larger than the smallest frames: memory then comes and goes by several frames, and
//! descriptors by more of them.
//!
//! The other tests are run again, each time in a process that takes its OS pages for larger than they are. What only a
//! machine that has such pages could refuse (a range that is no whole page of its own) is not seen.

use std::process::Command;

use crate::memory::page_bytes;

/// What depends on the size of OS pages, and takes little time.
const TESTS: [&str; 4] =
    ["buffer::tests::pages::", "buffer::tests::budget::", "buffer::tests::stress::", "buffer::scratch::"];

fn with_pages_of(bytes: usize) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(TESTS)
        .args(["buffer::tests::os_pages::pretended", "--test-threads=2"])
        .env("VELLUM_OS_PAGE_BYTES", bytes.to_string())
        .env("VELLUM_EXPECTED_OS_PAGE_BYTES", bytes.to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("pretended_pages_are_as_large_as_was_said ... ok"), "{said}");
    let passed: usize = said.split("test result: ok. ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(passed > 20, "{said}");
}

#[test]
fn all_works_with_os_pages_of_16_kib() {
    with_pages_of(16 << 10);
}

#[test]
fn all_works_with_os_pages_of_64_kib() {
    with_pages_of(64 << 10);
}

#[test]
fn pretended_pages_are_as_large_as_was_said() {
    if let Ok(expected) = std::env::var("VELLUM_EXPECTED_OS_PAGE_BYTES") {
        assert_eq!(page_bytes().to_string(), expected);
    }
}
