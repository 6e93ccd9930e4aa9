//! What the room's types do, on whatever memory. What only mapped memory shows is in `system`; what needs a process of
//! its own, for its limits or to be weighed, in `process`.

#[cfg(not(any(miri, vellum_heap_memory)))]
mod process;
#[cfg(not(any(miri, vellum_heap_memory)))]
mod system;

use std::io::{Seek, SeekFrom, Write};

use super::*;
use crate::Error;

fn is_refusal<T>(result: crate::Result<T>, part_of_text: &str) -> bool {
    match result {
        Err(error @ Error::Memory { .. }) => error.to_string().contains(part_of_text),
        _ => false,
    }
}

#[test]
fn lengths_are_rounded_up_to_os_pages() {
    let page = page_bytes();
    for (bytes, pages) in [(0, 0), (1, 1), (page, 1), (page + 1, 2), (10 * page - 1, 10)] {
        assert_eq!(Pages::new(bytes).unwrap().len(), pages * page, "{bytes} bytes");
        assert_eq!(Reservation::new(bytes).unwrap().len(), pages * page, "{bytes} bytes");
    }
    assert!(Pages::new(0).unwrap().is_empty());
}

#[test]
fn new_memory_is_zero_and_keeps_what_is_written() {
    let mut pages = Pages::new(3 * page_bytes()).unwrap();
    assert!(pages.iter().all(|byte| *byte == 0));
    pages[page_bytes()] = 7;
    pages[2 * page_bytes()..].fill(8);
    let pages = pages.deny_write().unwrap();
    assert_eq!((pages[page_bytes()], pages[3 * page_bytes() - 1], pages[0]), (7, 8, 0));
}

#[test]
fn permissions_change_and_the_bytes_stay() {
    let mut pages = Pages::new(1).unwrap();
    pages[..3].copy_from_slice(b"abc");
    let write_only = pages.deny_read().unwrap();
    let mut write_only: Pages<DenyRead, AllowWrite, DenyExec> = write_only;
    write_only.write_at(3, b"def").unwrap();
    let code: Pages<DenyRead, DenyWrite, AllowExec> = write_only.set_protected_exec().unwrap();
    let code: Pages<AllowRead, DenyWrite, AllowExec> = code.allow_read().unwrap();
    let data: Pages<AllowRead, DenyWrite, DenyExec> = code.deny_exec().unwrap();
    assert_eq!(&data[..6], b"abcdef");
    let mut data: Pages = data.allow_exec().unwrap().set_protected_write().unwrap();
    data[0] = b'A';
    assert_eq!(&data[..6], b"Abcdef");
    assert_eq!(data.deny_write().unwrap().allow_write().unwrap()[1], b'b');
    // Memory of no bytes has all permissions too.
    assert!(Pages::new(0).unwrap().deny_write().unwrap().is_empty());
}

#[test]
fn writes_that_do_not_fit_are_refused_and_change_nothing() {
    let mut pages = Pages::new(1).unwrap();
    let length = pages.len();
    assert!(pages.write_at(length, b"").is_ok());
    assert!(is_refusal(pages.write_at(length, b"x"), "write of 1 bytes of memory failed"));
    assert!(is_refusal(pages.write_at(length - 1, b"xy"), "outside"));
    assert!(is_refusal(pages.write_at(usize::MAX, b"xy"), "outside"));
    assert!(pages.iter().all(|byte| *byte == 0));
}

#[test]
#[allow(clippy::reversed_empty_ranges)]
fn ranges_outside_are_refused() {
    let mut pages = Pages::new(1).unwrap();
    let length = pages.len();
    for (start, end) in [(0, length + 1), (length + 1, length + 2), (2, 1), (0, usize::MAX)] {
        assert!(is_refusal(pages.decommit(start..end), "decommit"), "{start}..{end}");
        assert!(is_refusal(pages.hint(start..end, Hint::Random), "advice"), "{start}..{end}");
    }
    assert!(is_refusal(pages.decommit(..=usize::MAX), "outside"));
    let reservation = Reservation::new(1).unwrap();
    assert!(is_refusal(reservation.range(..length + 1), "outside"));
    assert_eq!(reservation.range(length..).unwrap().len(), 0);
}

#[test]
fn more_memory_than_there_are_addresses_is_refused() {
    for bytes in [usize::MAX, isize::MAX as usize, usize::MAX / 4] {
        assert!(is_refusal(Pages::new(bytes), "allocation of"), "{bytes}");
        assert!(is_refusal(Pages::new(bytes), "ulimit -v"), "{bytes}");
        assert!(is_refusal(Reservation::new(bytes), "reservation of"), "{bytes}");
        assert!(is_refusal(PagedVec::<u8>::try_with_capacity(bytes), "bytes of memory failed"), "{bytes}");
        assert!(is_refusal(PagedVec::<u64>::try_with_capacity(bytes), "bytes of memory failed"), "{bytes}");
        assert!(is_refusal(PagedVec::<u64>::zeroed(bytes), "bytes of memory failed"), "{bytes}");
    }
    let mut pages = Pages::new(1).unwrap();
    pages[0] = 9;
    assert!(is_refusal(pages.resize(usize::MAX / 4), "resize of"));
    assert_eq!((pages[0], pages.len()), (9, page_bytes()));
}

#[test]
fn decommitted_bytes_are_zero_and_their_neighbours_stay() {
    let page = page_bytes();
    let ranges = [
        0..0,
        0..4 * page,
        page..2 * page,
        1..4 * page - 1,
        page - 1..page + 1,
        page + 1..2 * page - 1,
        page / 2..3 * page + page / 2,
        4 * page..4 * page,
    ];
    for range in ranges {
        let mut pages = Pages::new(4 * page).unwrap();
        pages.fill(0xee);
        pages.decommit(range.clone()).unwrap();
        for (offset, byte) in pages.iter().enumerate() {
            assert_eq!(*byte == 0, range.contains(&offset), "byte {offset} of {range:?}");
        }
        // And it is memory still.
        pages.fill(1);
        assert!(pages.iter().all(|byte| *byte == 1));
    }
}

#[test]
fn resizing_keeps_what_both_sizes_have_and_adds_zeros() {
    let page = page_bytes();
    let mut pages = Pages::new(0).unwrap();
    let mut expected = Vec::new();
    let many = if cfg!(miri) { 30 } else { 600 };
    for (step, length) in [1, 5, 3, many, 2, 0, 7, 7].into_iter().enumerate() {
        pages.resize(length * page).unwrap();
        expected.resize(length * page, 0);
        assert_eq!(*pages, expected[..], "step {step}");
        pages.fill(step as u8 + 1);
        expected.fill(step as u8 + 1);
    }
}

#[test]
#[cfg_attr(miri, ignore = "it maps no files")]
fn a_mapped_file_shows_its_bytes_and_no_more() {
    let mut file = tempfile::tempfile().unwrap();
    let content: Vec<u8> = (0..3 * page_bytes() + 5).map(|index| (index % 251) as u8).collect();
    file.write_all(&content).unwrap();
    #[allow(unsafe_code)]
    // SAFETY: nobody else knows the file, and it is not written while it is mapped.
    let mapped = unsafe { Pages::map(&file) }.unwrap();
    assert_eq!(*mapped, content[..]);
    drop(file);
    mapped.hint(.., Hint::Sequential).unwrap();
    mapped.hint(1..2 * page_bytes() + 1, Hint::WillNeed).unwrap();
    assert!(is_refusal(mapped.hint(..content.len() + 1, Hint::Random), "outside"));
    mapped.release(..).unwrap();
    mapped.release(7..9).unwrap();
    assert!(is_refusal(mapped.release(..=content.len()), "outside"));
    assert_eq!(*mapped, content[..]);
}

#[test]
#[cfg_attr(miri, ignore = "it maps no files")]
fn an_empty_file_is_mapped_as_no_bytes() {
    let mut file = tempfile::tempfile().unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    #[allow(unsafe_code)]
    // SAFETY: nobody else knows the file.
    let mapped = unsafe { Pages::map(&file) }.unwrap();
    assert!(mapped.is_empty());
    mapped.hint(.., Hint::Random).unwrap();
    mapped.release(..).unwrap();
}

#[test]
#[cfg_attr(miri, ignore = "it maps no files")]
fn a_folder_is_not_mapped() {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::File::open(folder.path()).unwrap();
    #[allow(unsafe_code)]
    // SAFETY: nothing is mapped.
    let mapped = unsafe { Pages::map(&file) };
    assert!(is_refusal(mapped, "map of"));
}

#[test]
#[allow(unsafe_code)]
fn a_reservation_is_zero_memory_where_it_is_touched_and_after_it_is_given_back() {
    let page = page_bytes();
    let reservation = Reservation::new(64 * page).unwrap();
    let read = |offset: usize| {
        // SAFETY: in the reservation (M1), which only this test uses.
        unsafe { reservation.start().add(offset).read() }
    };
    let offsets = [0, page, 17 * page + 5, 64 * page - 1];
    for offset in offsets {
        assert_eq!(read(offset), 0);
        // SAFETY: as above.
        unsafe { reservation.start().add(offset).write(0xaa) };
        assert_eq!(read(offset), 0xaa);
    }
    // SAFETY: as above.
    unsafe { reservation.give_back(page..18 * page).unwrap() };
    assert_eq!(offsets.map(read), [0xaa, 0, 0, 0xaa]);
    // SAFETY: nothing is given back.
    let outside = unsafe { reservation.give_back(..65 * page) };
    assert!(is_refusal(outside, "outside"));
    assert_eq!(reservation.range(page..3 * page).unwrap().len(), 2 * page);
}

#[test]
fn a_reservation_shrinks_until_the_system_agrees_but_not_below_the_least() {
    let reservation = Reservation::at_most(isize::MAX as usize / 2, 1 << 20).unwrap();
    assert!(reservation.len() >= 1 << 20);
    assert!(reservation.len() < isize::MAX as usize / 2);
    assert!(is_refusal(Reservation::at_most(isize::MAX as usize, usize::MAX / 4), "reservation of"));
    assert_eq!(Reservation::at_most(0, 1).unwrap().len(), page_bytes());
}

#[test]
fn all_kinds_of_memory_move_between_threads() {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Pages>();
    is_send_and_sync::<Pages<AllowRead, DenyWrite, DenyExec, MappedFile>>();
    is_send_and_sync::<Reservation>();
    is_send_and_sync::<PagedVec<String>>();
    let vector = PagedVec::from(vec![String::from("made here")]);
    let there = std::thread::spawn(move || vector[0].len()).join().unwrap();
    assert_eq!(there, 9);
}

#[test]
fn debug_names_the_permissions() {
    let text = format!("{:?}", Pages::new(1).unwrap().set_protected_exec().unwrap());
    assert!(text.contains("read: AllowRead, write: DenyWrite, exec: AllowExec"), "{text}");
}
