//! Compression as callers choose it: for all pages, by class, by page; and what comes of it on disk.

use std::sync::Arc;

use vellum::disk::MemoryDisk;
use vellum::{CodecId, Compression, PageId, Pager, Read, Share, SizeClass, VerifyLevel};

use crate::{class, create_on, in_memory, inline, open_on};

fn text(length: usize, seed: usize) -> Vec<u8> {
    (0..).flat_map(|line: usize| format!("line {line}: {}\n", line * seed).into_bytes()).take(length).collect()
}

fn noise(length: usize) -> Vec<u8> {
    let mut bits = 1_u64;
    let next = || {
        bits = bits.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (bits >> 56) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Commits a new page of these bytes.
fn store(pager: &Pager, bytes: &[u8], choice: Option<Compression>) -> PageId {
    let transaction = pager.begin().unwrap();
    let id = transaction.allocate(SizeClass::of(bytes.len() as u64).unwrap()).unwrap();
    transaction.write_at(id, 0, bytes).unwrap();
    if let Some(choice) = choice {
        transaction.set_compression(id, choice).unwrap();
    }
    transaction.commit().unwrap();
    id
}

fn share(pager: &Pager, id: PageId) -> (CodecId, Share) {
    let shares = pager.view().storage_of(id).unwrap();
    assert_eq!(shares.len(), 1, "{id}: {shares:?}");
    shares.into_iter().next().unwrap()
}

#[test]
fn pages_are_stored_as_options_class_and_transaction_say_and_read_whatever_they_say() {
    let disk = Arc::new(MemoryDisk::new());
    let options = inline().compression(Compression::LZ4).compression_of(class(16), Compression::ZSTD);
    let pager = create_on(&disk, &options);
    let mut pages = Vec::new();
    for (log2, choice, expected) in [
        (12_u8, None, CodecId::RAW),
        (14, None, Compression::LZ4.codec()),
        (16, None, Compression::ZSTD.codec()),
        (14, Some(Compression::zstd(9).unwrap()), Compression::ZSTD.codec()),
        (16, Some(Compression::NONE), CodecId::RAW),
        (20, None, Compression::LZ4.codec()),
        (22, None, Compression::LZ4.codec()),
    ] {
        let bytes = text(1 << log2, usize::from(log2));
        let id = store(&pager, &bytes, choice);
        let (codec, share) = share(&pager, id);
        assert_eq!(codec, expected, "2^{log2} bytes");
        assert_eq!(share.page_bytes, 1 << log2);
        assert_eq!(share.stored_bytes < share.page_bytes, codec != CodecId::RAW);
        pages.push((id, bytes));
    }
    let incompressible = noise(64 << 10);
    let id = store(&pager, &incompressible, None);
    assert_eq!(share(&pager, id).0, CodecId::RAW, "it would not get shorter");
    pages.push((id, incompressible));
    let id = store(&pager, &vec![0; 64 << 10], None);
    assert_eq!(share(&pager, id), (CodecId::ZERO, Share { units: 1, page_bytes: 64 << 10, stored_bytes: 0 }));
    pages.push((id, vec![0; 64 << 10]));

    let total = pager.view().storage().unwrap();
    assert_eq!(
        total.values().map(|share| share.page_bytes).sum::<u64>(),
        pages.iter().map(|(_, page)| page.len() as u64).sum()
    );
    assert_eq!(pager.verify(VerifyLevel::Full, &mut |_| {}).unwrap().worst(), None);
    pager.close().unwrap();

    // Another choice at the next open: what is stored stays, and is read; what is written again follows.
    let pager = open_on(&disk, &inline());
    for (id, bytes) in &pages {
        assert!(pager.view().page(*id).unwrap()[..] == bytes[..], "{id}");
        let mut part = vec![0; 1000];
        pager.view().read_at(*id, 1500, &mut part).unwrap();
        assert!(part == bytes[1500..2500], "{id}");
    }
    let (id, _) = pages[1];
    let transaction = pager.begin().unwrap();
    transaction.write(id).unwrap()[0] ^= 1;
    transaction.commit().unwrap();
    assert_eq!(share(&pager, id).0, CodecId::RAW);
    pager.close().unwrap();
}

#[test]
fn a_part_of_a_large_page_is_encoded_by_itself() {
    let pager = in_memory(&inline());
    let id = store(&pager, &text(4 << 20, 3), None);
    let transaction = pager.begin().unwrap();
    transaction.set_compression(id, Compression::ZSTD).unwrap();
    transaction.write_at(id, (1 << 20) + 17, b"changed").unwrap();
    transaction.commit().unwrap();
    let shares = pager.view().storage_of(id).unwrap();
    assert_eq!(shares[&CodecId::RAW].units, 3);
    assert_eq!(shares[&Compression::ZSTD.codec()].units, 1);
    let mut part = [0; 7];
    pager.view().read_at(id, (1 << 20) + 17, &mut part).unwrap();
    assert_eq!(&part, b"changed");
    pager.close().unwrap();
}

#[test]
fn a_large_commit_and_many_small_ones_give_the_same_bytes_on_disk() {
    let stored = |per_commit: usize| -> Vec<(CodecId, Share)> {
        let pager = in_memory(&inline().compression(Compression::ZSTD));
        let pages: Vec<Vec<u8>> = (1..65).map(|seed| text(32 << 10, seed)).collect();
        let mut ids = Vec::new();
        for pages in pages.chunks(per_commit) {
            let transaction = pager.begin().unwrap();
            for page in pages {
                let id = transaction.allocate(class(15)).unwrap();
                transaction.overwrite(id).unwrap().copy_from_slice(page);
                ids.push(id);
            }
            transaction.commit().unwrap();
        }
        let view = pager.view();
        ids.iter().zip(&pages).for_each(|(id, page)| assert!(view.page(*id).unwrap()[..] == page[..]));
        ids.iter().map(|id| share(&pager, *id)).collect()
    };
    assert_eq!(stored(64), stored(1));
}

#[test]
fn the_pages_of_an_import_larger_than_memory_are_encoded_too() {
    let disk = Arc::new(MemoryDisk::new());
    let options = inline().memory(1 << 20).compression(Compression::LZ4);
    let pager = create_on(&disk, &options);
    let transaction = pager.begin().unwrap();
    let pages = transaction.allocate_many(class(16), 200).unwrap();
    let large = transaction.allocate(class(23)).unwrap();
    transaction.set_compression(pages[7], Compression::ZSTD).unwrap();
    transaction.set_compression(pages[8], Compression::NONE).unwrap();
    let mut expected: Vec<Vec<u8>> = (1..=pages.len()).map(|seed| text(64 << 10, seed)).collect();
    for (id, bytes) in pages.iter().zip(&expected) {
        transaction.overwrite(*id).unwrap().copy_from_slice(bytes);
    }
    let large_bytes = text(8 << 20, 1000);
    transaction.write_at(large, 0, &large_bytes).unwrap();
    let stats = pager.stats();
    assert!(stats.dirty_bytes <= 512 << 10 && stats.spilled_blocks > 0, "{stats:?}");
    let raw_blocks = (200 * (64 << 10) + (8 << 20)) / 4096;
    assert!(stats.spilled_blocks < raw_blocks * 2 / 3, "{} of {raw_blocks} blocks", stats.spilled_blocks);
    // What was spilled is read, and changed, as if it had not been.
    for (id, bytes) in pages.iter().zip(&mut expected).step_by(3) {
        assert!(transaction.page(*id).unwrap()[..] == bytes[..], "{id}");
        transaction.write(*id).unwrap()[5] ^= 1;
        bytes[5] ^= 1;
    }
    let mut part = vec![0; 3000];
    transaction.read_at(large, (3 << 20) - 1000, &mut part).unwrap();
    assert!(part == large_bytes[(3 << 20) - 1000..][..3000]);
    transaction.commit().unwrap();

    for (index, id) in pages.iter().enumerate() {
        let expected = match index {
            7 => Compression::ZSTD.codec(),
            8 => CodecId::RAW,
            _ => Compression::LZ4.codec(),
        };
        assert_eq!(share(&pager, *id).0, expected, "page {index}");
    }
    assert_eq!(share(&pager, large).0, Compression::LZ4.codec());
    assert_eq!(pager.verify(VerifyLevel::Full, &mut |_| {}).unwrap().worst(), None);
    pager.close().unwrap();
    let view = open_on(&disk, &options).view();
    pages.iter().zip(&expected).for_each(|(id, bytes)| assert!(view.page(*id).unwrap()[..] == bytes[..], "{id}"));
    let mut whole = vec![0; 8 << 20];
    view.read_at(large, 0, &mut whole).unwrap();
    assert!(whole == large_bytes);
}

#[test]
fn zeros_take_no_space_however_large_the_transaction_and_savepoints_go_back_to_what_was() {
    for choice in [Compression::NONE, Compression::LZ4] {
        let disk = Arc::new(MemoryDisk::new());
        let options = inline().memory(4 << 20).compression(choice);
        let pager = create_on(&disk, &options);
        let large = store(&pager, &text(8 << 20, 77), None);
        let transaction = pager.begin().unwrap();
        let pages = transaction.allocate_many(class(16), 200).unwrap();
        for id in &pages {
            transaction.overwrite(*id).unwrap().fill(0);
        }
        // Chunks of a page that has other bytes below, in memory and beyond it.
        transaction.write_at(large, 1 << 20, &vec![0; 6 << 20]).unwrap();
        assert_eq!(pager.stats().spilled_blocks, 0, "{choice:?}");
        let is_zero = |id: &PageId| transaction.page(*id).unwrap().iter().all(|byte| *byte == 0);
        assert!(pages.iter().all(is_zero));
        let zeros = transaction.savepoint().unwrap();
        for (seed, id) in pages.iter().enumerate() {
            transaction.overwrite(*id).unwrap().copy_from_slice(&text(64 << 10, seed + 1));
        }
        let texts = transaction.savepoint().unwrap();
        for id in &pages {
            transaction.write(*id).unwrap().fill(0);
        }
        transaction.rollback_to(&texts).unwrap();
        for (seed, id) in pages.iter().enumerate() {
            assert!(transaction.page(*id).unwrap()[..] == text(64 << 10, seed + 1)[..], "{id}");
        }
        transaction.rollback_to(&zeros).unwrap();
        assert!(pages.iter().all(is_zero));
        // What is zero can be changed as any other page.
        transaction.write(pages[3]).unwrap()[9] = 1;
        let mut part = [1; 300];
        transaction.read_at(large, (3 << 20) - 100, &mut part).unwrap();
        assert_eq!(part, [0; 300]);
        drop((zeros, texts));
        transaction.commit().unwrap();
        assert_eq!((pager.stats().spilled_blocks, pager.stats().dirty_bytes), (0, 0));

        let stored = |id: PageId| share(&pager, id).1.stored_bytes;
        assert!(pages.iter().all(|id| (stored(*id) == 0) == (*id != pages[3])), "{choice:?}");
        let whole: u64 = pager.view().storage_of(large).unwrap().values().map(|share| share.stored_bytes).sum();
        assert!(whole <= 2 << 20, "two of eight chunks are stored, not {whole} bytes");
        assert!(pager.verify(VerifyLevel::Full, &mut |_| {}).unwrap().findings.is_empty());
        pager.close().unwrap();
        let view = open_on(&disk, &options).view();
        for id in &pages {
            let page = view.page(*id).unwrap();
            assert!(page.iter().enumerate().all(|(at, byte)| *byte == u8::from(*id == pages[3] && at == 9)), "{id}");
        }
        let (mut found, mut expected) = (vec![1; 8 << 20], text(8 << 20, 77));
        view.read_at(large, 0, &mut found).unwrap();
        expected[1 << 20..7 << 20].fill(0);
        assert!(found == expected);
    }
}

#[test]
fn a_page_that_is_not_there_has_no_compression() {
    let pager = in_memory(&inline());
    let transaction = pager.begin().unwrap();
    let missing = PageId::new(class(14), 7).unwrap();
    let error = transaction.set_compression(missing, Compression::LZ4).unwrap_err();
    assert!(matches!(error, vellum::Error::PageNotFound { page } if page == missing));
    assert!(matches!(pager.view().storage_of(missing), Err(vellum::Error::PageNotFound { .. })));
}
