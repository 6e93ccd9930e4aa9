//! What the system says of mapped memory: permissions, residency, flags, faults.
#![allow(unsafe_code)]

use super::*;
use std::fs;
use std::io::Read;

/// The line of `/proc/self/maps` for the mapping that holds the address, and its lines of `/proc/self/smaps`.
fn mapping_at(address: *const u8) -> (String, String) {
    let text = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut found = None::<(String, String)>;
    for line in text.lines() {
        let range = line.split(' ').next().and_then(|word| word.split_once('-'));
        let range = range.and_then(|(start, end)| {
            Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
        });
        match (range, &mut found) {
            (Some(range), None) if range.contains(&address.addr()) => found = Some((line.to_owned(), String::new())),
            (Some(_), Some(_)) => break,
            (None, Some((_, rest))) => rest.extend([line, "\n"]),
            _ => {}
        }
    }
    found.unwrap_or_default()
}

fn permissions_at(address: *const u8) -> String {
    mapping_at(address).0.split(' ').nth(1).unwrap_or_default().to_owned()
}

fn has_flag(address: *const u8, flag: &str) -> bool {
    let (_, rest) = mapping_at(address);
    rest.lines().filter(|line| line.starts_with("VmFlags:")).any(|line| line.split(' ').any(|word| word == flag))
}

/// How many OS pages of the run have memory.
fn resident_pages(start: *const u8, pages: usize) -> usize {
    let mut pagemap = fs::File::open("/proc/self/pagemap").unwrap();
    pagemap.seek(SeekFrom::Start((start.addr() / page_bytes() * 8) as u64)).unwrap();
    let mut entries = vec![0u8; pages * 8];
    pagemap.read_exact(&mut entries).unwrap();
    entries.chunks_exact(8).filter(|entry| entry[7] & 0x80 != 0).count()
}

/// Page faults of this thread so far.
fn faults() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/stat").unwrap();
    let after_name = text.rsplit(") ").next().unwrap();
    after_name.split(' ').nth(7).unwrap().parse().unwrap()
}

#[test]
fn the_hardware_is_told_what_the_type_says() {
    let pages = Pages::new(1).unwrap();
    let address = pages.as_ptr();
    assert_eq!(permissions_at(address), "rw-p");
    let pages = pages.deny_write().unwrap();
    assert_eq!(permissions_at(address), "r--p");
    let pages = pages.deny_read().unwrap();
    assert_eq!(permissions_at(address), "---p");
    let pages = pages.allow_write().unwrap();
    assert_eq!(permissions_at(address), "-w-p");
    let pages = pages.set_protected_exec().unwrap();
    assert_eq!(permissions_at(address), "--xp");
    let pages = pages.allow_read().unwrap();
    assert_eq!(permissions_at(address), "r-xp");
    let pages = pages.set_protected_write().unwrap();
    assert_eq!(permissions_at(address), "rw-p");
    drop(pages);
}

#[cfg(feature = "write-exec")]
#[test]
fn memory_is_writable_and_executable_with_the_feature_only() {
    let mut pages: Pages<AllowRead, AllowWrite, AllowExec> = Pages::new(1).unwrap().allow_exec().unwrap();
    pages[0] = 0xc3;
    assert_eq!(permissions_at(pages.as_ptr()), "rwxp");
    let pages = pages.deny_write().unwrap().allow_write().unwrap();
    assert_eq!(permissions_at(pages.as_ptr()), "rwxp");
}

#[test]
fn hints_reach_the_system() {
    let pages = Pages::new(16 * page_bytes()).unwrap();
    let flag_after = |hint, flag| {
        pages.hint(.., hint).unwrap();
        has_flag(pages.as_ptr(), flag)
    };
    assert!(flag_after(Hint::Sequential, "sr"));
    assert!(flag_after(Hint::Random, "rr"));
    assert!(!flag_after(Hint::Normal, "rr"));
    if HugePageSetting::of_the_system() != HugePageSetting::Unknown {
        assert!(flag_after(Hint::HugePages, "hg"));
        assert!(flag_after(Hint::SmallPages, "nh"));
        assert!(!flag_after(Hint::SmallPages, "hg"));
    }
    pages.hint(.., Hint::WillNeed).unwrap();
}

#[test]
fn populated_pages_have_memory_at_once_and_decommitted_ones_none() {
    const COUNT: usize = 64;
    let page = page_bytes();
    let mut pages = Pages::new(COUNT * page).unwrap();
    pages.hint(.., Hint::SmallPages).unwrap();
    let resident = |pages: &Pages| resident_pages(pages.as_ptr(), COUNT);
    assert_eq!(resident(&pages), 0);
    pages.hint(8 * page..16 * page, Hint::Populate).unwrap();
    assert_eq!(resident(&pages), 8);
    pages.hint(.., Hint::Populate).unwrap();
    assert_eq!(resident(&pages), COUNT);
    // Three whole pages, and one at either end in part.
    pages.decommit(10 * page - 1..13 * page + 1).unwrap();
    assert_eq!(resident(&pages), COUNT - 3);
    pages.decommit(..).unwrap();
    assert_eq!(resident(&pages), 0);
}

#[test]
fn released_pages_of_a_file_are_not_resident() {
    const COUNT: usize = 64;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![7; COUNT * page_bytes()]).unwrap();
    // SAFETY: nobody else knows the file, and it is not written while it is mapped.
    let mapped = unsafe { Pages::map(&file) }.unwrap();
    mapped.hint(.., Hint::Populate).unwrap();
    assert_eq!(resident_pages(mapped.as_ptr(), COUNT), COUNT);
    mapped.release(..).unwrap();
    assert_eq!(resident_pages(mapped.as_ptr(), COUNT), 0);
    assert_eq!(mapped[COUNT * page_bytes() - 1], 7);
    assert_eq!(permissions_at(mapped.as_ptr()), "r--s");
}

#[test]
fn what_has_room_for_a_huge_page_starts_at_one() {
    let huge = huge_page_bytes();
    // Odd lengths: newer kernels align the even ones by themselves.
    for bytes in [huge, huge + 1, 3 * huge + 5 * page_bytes(), 10 * huge] {
        let pages = Pages::new(bytes).unwrap();
        let neighbour = Pages::new(page_bytes()).unwrap();
        assert!(pages.as_ptr().addr().is_multiple_of(huge), "{bytes} bytes");
        assert_eq!(pages.len(), bytes.next_multiple_of(page_bytes()));
        assert!(Reservation::new(bytes).unwrap().start().addr().get().is_multiple_of(huge));
        drop(neighbour);
    }
}

#[test]
fn a_large_vector_asks_for_huge_pages_unless_it_was_told_otherwise() {
    let large = 2 * huge_page_bytes();
    let ask = |vector: &PagedVec<u8>| has_flag(vector.as_ptr(), "hg");
    if HugePageSetting::of_the_system() == HugePageSetting::Unknown {
        return;
    }
    assert!(!ask(&PagedVec::with_capacity(large - 1)));
    assert!(ask(&PagedVec::with_capacity(large)));
    let mut grown = PagedVec::from(vec![1]);
    grown.reserve(large);
    assert!(ask(&grown));
    let mut small = PagedVec::new();
    small.hint(Hint::SmallPages).unwrap();
    small.reserve(large);
    assert!(!ask(&small));
    let mut huge = PagedVec::new();
    huge.hint(Hint::HugePages).unwrap();
    huge.push(1);
    assert!(ask(&huge));
    assert_eq!(huge.capacity(), huge_page_bytes());
}

#[test]
fn a_vector_grows_without_a_fault_for_what_it_holds() {
    let page = page_bytes();
    let mut vector = PagedVec::<u8>::new();
    vector.hint(Hint::SmallPages).unwrap();
    vector.resize(4096 * page, 3);
    let before = faults();
    for _ in 0..4 {
        vector.reserve_exact(vector.capacity() + 1);
    }
    let needed = faults() - before;
    assert!(vector.capacity() > 4 * 4096 * page);
    // A copy would have taken one for each of the 4096 pages, each time.
    assert!(needed < 500, "{needed} faults");
    assert!(vector.iter().all(|byte| *byte == 3));
}

#[test]
fn memory_with_hints_for_parts_of_it_is_resized_too() {
    let page = page_bytes();
    let mut pages = Pages::new(16 * page).unwrap();
    pages.iter_mut().enumerate().for_each(|(index, byte)| *byte = index as u8);
    pages.hint(4 * page..8 * page, Hint::Random).unwrap();
    pages.resize(1000 * page).unwrap();
    assert!((0..16 * page).all(|index| pages[index] == index as u8));
    assert!(pages[16 * page..].iter().all(|byte| *byte == 0));
    pages.hint(..page, Hint::Random).unwrap();
    pages.resize(2 * page).unwrap();
    assert!((0..2 * page).all(|index| pages[index] == index as u8));
}

#[test]
fn a_given_back_part_of_a_reservation_has_no_memory() {
    const COUNT: usize = 1 << 12;
    let page = page_bytes();
    // A terabyte, where addresses are not limited; it takes no memory.
    let reservation = Reservation::at_most(1 << 40, COUNT * page).unwrap();
    reservation.hint(..COUNT * page, Hint::SmallPages).unwrap();
    let resident = || resident_pages(reservation.start().as_ptr(), COUNT);
    assert_eq!(resident(), 0);
    for index in 0..COUNT / 2 {
        // SAFETY: in the reservation (M1), which only this test uses.
        unsafe { reservation.start().add(index * page).write(1) };
    }
    assert_eq!(resident(), COUNT / 2);
    // SAFETY: as above.
    unsafe { reservation.give_back(..COUNT / 4 * page).unwrap() };
    assert_eq!(resident(), COUNT / 4);
    // SAFETY: as above.
    unsafe { reservation.give_back(..).unwrap() };
    assert_eq!(resident(), 0);
}

#[test]
fn dropped_memory_is_unmapped() {
    let pages = Pages::new(300 * page_bytes()).unwrap();
    let address = pages.as_ptr();
    let pages = pages.deny_read().unwrap();
    assert_eq!(permissions_at(address), "-w-p");
    drop(pages);
    // Another thread may map something there, but nothing of this kind.
    assert_ne!(permissions_at(address), "-w-p");
}
