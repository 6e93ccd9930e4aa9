//! Pages that are larger than the memory they may take.

use std::sync::Arc;

use vellum::disk::MemoryDisk;
use vellum::{Error, PageId, Pager, Read};

use crate::{class, create_on, in_memory, inline, open_on};

const MIB: u64 = 1 << 20;

/// Bytes of pages that `act` writes to the disk.
fn bytes_written(pager: &Pager, act: impl FnOnce()) -> u64 {
    let before = pager.stats().counters.page_bytes;
    act();
    pager.stats().counters.page_bytes - before
}

#[test]
fn a_page_beyond_the_memory_budget_is_read_and_written_in_parts() {
    let pager = in_memory(&inline().memory(1 << 20));
    let transaction = pager.begin().unwrap();
    let page = transaction.allocate(class(22)).unwrap();
    let pattern: Vec<u8> = (0..4 * MIB).map(|at| (at % 251) as u8).collect();
    let is_refused = |result: Result<(), Error>| matches!(result, Err(Error::PageExceedsBudget { .. }));
    assert!(is_refused(transaction.page(page).map(drop)));
    assert!(is_refused(transaction.write(page).map(drop)));
    assert!(is_refused(transaction.overwrite(page).map(drop)));
    transaction.write_at(page, 0, &pattern).unwrap();
    transaction.write_at(page, MIB - 2, b"edge").unwrap();
    let mut edge = [0; 6];
    transaction.read_at(page, MIB - 3, &mut edge).unwrap();
    assert_eq!(edge[1..5], *b"edge");
    transaction.commit().unwrap();

    let view = pager.view();
    assert!(is_refused(view.page(page).map(drop)));
    let mut read = vec![0; 4 * MIB as usize];
    view.read_at(page, 0, &mut read).unwrap();
    let mut expected = pattern;
    expected[MIB as usize - 2..MIB as usize + 2].copy_from_slice(b"edge");
    assert!(read == expected);
    assert!(pager.stats().buffer.used_bytes <= 1 << 20);
}

#[test]
fn a_small_page_beyond_the_memory_budget_is_read_and_written_in_parts() {
    let pager = in_memory(&inline().memory(1 << 20));
    let transaction = pager.begin().unwrap();
    let page = transaction.allocate(class(20)).unwrap();
    assert!(matches!(transaction.write(page), Err(Error::PageExceedsBudget { .. })));
    transaction.write_at(page, MIB - 3, b"end").unwrap();
    transaction.commit().unwrap();
    let mut end = [9; 5];
    pager.view().read_at(page, MIB - 5, &mut end).unwrap();
    assert_eq!(end, *b"\0\0end");
}

#[test]
fn only_the_chunks_that_change_are_written() {
    let pager = in_memory(&inline());
    let transaction = pager.begin().unwrap();
    let page = transaction.allocate(class(23)).unwrap();
    transaction.write(page).unwrap().fill(1);
    transaction.commit().unwrap();
    // A commit of a chunk writes the chunk and the nodes above it: one here.
    let one_chunk = MIB + 4096;
    let change = |act: &dyn Fn(&vellum::Transaction)| {
        bytes_written(&pager, || {
            let transaction = pager.begin().unwrap();
            act(&transaction);
            transaction.commit().unwrap();
        })
    };
    assert_eq!(change(&|transaction| transaction.write_at(page, 3 * MIB, b"x").unwrap()), one_chunk);
    assert_eq!(change(&|transaction| transaction.write(page).unwrap()[5 * MIB as usize] = 2), one_chunk);
    assert_eq!(change(&|transaction| drop(transaction.write(page).unwrap().first_mut())), 0);
    let zeroed = change(&|transaction| transaction.overwrite(page).unwrap()[0] = 3);
    assert_eq!(zeroed, one_chunk, "zeros take no space");
    let view = pager.view();
    let guard = view.page(page).unwrap();
    assert!(guard[0] == 3 && guard[1..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_page_of_two_gibibytes_takes_the_space_and_memory_of_what_was_written() {
    let disk = Arc::new(MemoryDisk::new());
    let options = inline().memory(2 << 20);
    let pager = create_on(&disk, &options);
    let transaction = pager.begin().unwrap();
    let page = transaction.allocate(class(31)).unwrap();
    let places = [0, 5 * MIB + 123, 700 * MIB - 4, 2048 * MIB - 8];
    for (byte, place) in (1..).zip(places) {
        transaction.write_at(page, place, &[byte; 8]).unwrap();
    }
    let savepoint = transaction.savepoint().unwrap();
    transaction.write_at(page, places[1], &[77; 8]).unwrap();
    transaction.write_at(page, 900 * MIB, &[77; 8]).unwrap();
    transaction.rollback_to(&savepoint).unwrap();
    transaction.commit().unwrap();
    assert!(disk.allocated_bytes() < 64 * MIB, "{} bytes", disk.allocated_bytes());
    pager.close().unwrap();

    let pager = open_on(&disk, &options);
    let check = |pager: &Pager, second: u8| {
        let view = pager.view();
        for (byte, place) in (1..).zip(places) {
            let mut read = [9; 8];
            view.read_at(page, place, &mut read).unwrap();
            assert_eq!(read, [if byte == 2 { second } else { byte }; 8]);
        }
        let mut between = vec![9; 3 * MIB as usize];
        view.read_at(page, 899 * MIB, &mut between).unwrap();
        assert!(between.iter().all(|byte| *byte == 0));
    };
    check(&pager, 2);
    let transaction = pager.begin().unwrap();
    transaction.write_at(page, places[1], &[22; 8]).unwrap();
    transaction.commit().unwrap();
    check(&pager, 22);

    let transaction = pager.begin().unwrap();
    transaction.free(page).unwrap();
    transaction.commit().unwrap();
    assert_eq!(pager.view().page_ids(class(31)).count(), 0);
    assert!(matches!(pager.view().read_at(page, 0, &mut [0]), Err(Error::PageNotFound { .. })));
    let transaction = pager.begin().unwrap();
    assert_eq!(transaction.allocate(class(31)).unwrap(), PageId::new(class(31), 0).unwrap());
}

#[test]
fn what_was_written_of_a_large_page_is_in_memory_after_the_commit_and_what_it_replaced_is_not() {
    let pager = in_memory(&inline().memory(64 << 20));
    let transaction = pager.begin().unwrap();
    let page = transaction.allocate(class(23)).unwrap();
    let resident = |pager: &Pager| {
        let stats = pager.stats().buffer;
        let of_chunks = stats.classes.iter().find(|class| class.class == vellum::SizeClass::CHUNK);
        of_chunks.map_or(0, |class| class.resident_bytes / MIB)
    };
    for chunk in 0..8 {
        transaction.write_at(page, chunk * MIB, &[chunk as u8 + 1; 9]).unwrap();
    }
    transaction.commit().unwrap();
    let check = |view: &vellum::View, expected: [u8; 8]| {
        for (chunk, byte) in (0..).zip(expected) {
            let mut read = [0; 10];
            view.read_at(page, chunk * MIB, &mut read).unwrap();
            assert_eq!(read, [byte, byte, byte, byte, byte, byte, byte, byte, byte, 0]);
        }
    };
    check(&pager.view(), [1, 2, 3, 4, 5, 6, 7, 8]);
    let stats = pager.stats().buffer;
    assert_eq!((stats.misses, stats.private_bytes, resident(&pager)), (0, 0, 8));
    // Nobody asks for what is replaced: its memory is free at once.
    for round in 1..20 {
        let transaction = pager.begin().unwrap();
        transaction.write_at(page, 3 * MIB, &[round; 9]).unwrap();
        transaction.commit().unwrap();
        assert_eq!(resident(&pager), 8);
    }
    check(&pager.view(), [1, 2, 3, 19, 5, 6, 7, 8]);
    assert_eq!(pager.stats().buffer.misses, 0);
    // A view keeps what it reads.
    let before = pager.view();
    let transaction = pager.begin().unwrap();
    transaction.write_at(page, 7 * MIB, &[77; 9]).unwrap();
    transaction.commit().unwrap();
    assert_eq!(resident(&pager), 9);
    check(&before, [1, 2, 3, 19, 5, 6, 7, 8]);
    check(&pager.view(), [1, 2, 3, 19, 5, 6, 7, 77]);
    assert_eq!(pager.stats().buffer.misses, 0);
}
