use proptest::prelude::*;

use super::*;
use crate::error::Error;

fn encoding() -> impl Iterator<Item = Compression> {
    let text = ["lz4", "zstd", "zstd:1", "zstd:19", "snappy"].into_iter();
    text.filter_map(|text| text.parse().ok())
}

/// Bytes of which a part repeats.
fn page(length: usize, seed: u64) -> Vec<u8> {
    let mut bits = seed | 1;
    let mut page = Vec::with_capacity(length);
    while page.len() < length {
        bits = bits.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        page.extend_from_slice(format!("key {:06} = value of {};", bits >> 44, bits >> 59).as_bytes());
    }
    page.truncate(length);
    page
}

fn noise(length: usize) -> Vec<u8> {
    let mut bits = 7_u64;
    let next = || {
        bits = bits.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (bits >> 56) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn numbers_and_features_are_those_of_the_format() {
    let numbers: Vec<u8> = CodecId::all().map(CodecId::to_u8).collect();
    assert!(numbers.starts_with(&[0, 1, 2, 3, 4]));
    assert!(numbers.iter().all(|number| CodecId::from_u8(*number).map(CodecId::to_u8) == Some(*number)));
    assert_eq!(CodecId::from_u8(31), None);
    assert_eq!(CodecId::RAW.feature() | CodecId::ZERO.feature() | CodecId::NULL.feature(), 0);
    assert_eq!(FEATURES & 0b1_1111, 0b1_1000);
    assert_eq!(FEATURES >> 5, u64::from(cfg!(feature = "snappy")));
}

#[test]
fn a_page_comes_back_and_one_that_saves_no_block_stays_as_it_is() {
    let mut target = Vec::new();
    for compression in encoding() {
        for log2 in 14..=20 {
            let page = page(1 << log2, log2);
            let length = compression.encode(&page, &mut target).expect("text gets shorter");
            assert!(length <= page.len() - BLOCK_LENGTH);
            let mut decoded = vec![1; page.len()];
            decode(compression.codec(), &target[..length], &mut decoded).unwrap();
            assert!(decoded == page, "{compression}, 2^{log2} bytes");
        }
        assert_eq!(compression.encode(&noise(64 << 10), &mut target), None, "{compression}: noise");
        assert_eq!(compression.encode(&page(4096, 1), &mut target), None, "{compression}: a page of one block");
    }
    assert_eq!(Compression::NONE.encode(&page(64 << 10, 1), &mut target), None);
}

#[test]
fn encoding_depends_on_nothing_but_page_codec_and_level() {
    let pages: Vec<Vec<u8>> = (0..6).map(|seed| page(8192 << seed, seed)).collect();
    for compression in encoding() {
        let encoded = |page: &Vec<u8>| {
            let mut target = Vec::new();
            let length = compression.encode(page, &mut target)?;
            Some(target[..length].to_vec())
        };
        let fresh: Vec<_> = std::thread::scope(|scope| {
            pages.iter().map(|page| scope.spawn(move || encoded(page)).join().unwrap()).collect()
        });
        for _ in 0..2 {
            // The same thread, in other orders, after other codecs and levels.
            let again: Vec<_> = pages.iter().rev().map(encoded).collect();
            assert!(again.into_iter().rev().eq(fresh.iter().cloned()), "{compression}");
            for other in encoding() {
                other.encode(&pages[3], &mut Vec::new());
                assert_eq!(other.encode(&noise(32 << 10), &mut Vec::new()), None);
            }
        }
    }
}

#[test]
fn what_is_not_exactly_one_page_is_refused_and_leaves_zeros() {
    let mut target = Vec::new();
    for compression in encoding() {
        let whole = page(32 << 10, 5);
        let length = compression.encode(&whole, &mut target).unwrap();
        let stored = target[..length].to_vec();
        for (bytes, page_bytes) in [(&stored[..], 16 << 10), (&stored[..], 64 << 10), (&stored[..length - 1], 32 << 10)]
        {
            let mut decoded = vec![0xaa; page_bytes];
            decode(compression.codec(), bytes, &mut decoded).unwrap_err();
            assert!(decoded.iter().all(|byte| *byte == 0), "{compression}: bytes were left");
        }
        let mut decoded = vec![0xaa; 32 << 10];
        decode(compression.codec(), &[], &mut decoded).unwrap_err();
    }
}

#[test]
fn a_frame_that_asks_for_a_terabyte_gets_nothing() {
    // Magic, a descriptor with a content size of 8 bytes in one segment, 1 TiB, and a block of a repeated byte.
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1110_0000];
    bomb.extend((1_u64 << 40).to_le_bytes());
    bomb.extend([0x03, 0x00, 0x10, 0x00]);
    // The same without a content size, and with the largest window.
    let unsized_bomb = [0x28, 0xb5, 0x2f, 0xfd, 0, 0xff, 0x03, 0x00, 0x10, 0x00];
    // Snappy: a length of 4 GiB - 1, and a literal.
    let snappy = [0xff, 0xff, 0xff, 0xff, 0x0f, 0x00, 0x61];
    // LZ4: one literal, then a match of any length.
    let mut lz4 = vec![0x1f, 0x61, 0x01, 0x00];
    lz4.extend([0xff; 2000]);
    lz4.push(0);
    for stored in [&bomb[..], &unsized_bomb, &snappy, &lz4] {
        for codec in CodecId::all() {
            let mut decoded = vec![0xaa; 16 << 10];
            decode(codec, stored, &mut decoded).unwrap_err();
            assert!(decoded.iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn choices_are_text_and_text_is_a_choice() {
    for text in ["none", "lz4", "zstd:1", "zstd:3", "zstd:22"] {
        assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
    }
    assert_eq!("zstd".parse::<Compression>().unwrap(), Compression::ZSTD);
    for text in ["", "LZ4", "lz4:1", "none:1", "zstd:0", "zstd:23", "zstd:x", "raw", "gzip"] {
        assert!(matches!(text.parse::<Compression>(), Err(Error::InvalidOption { .. })), "{text:?}");
    }
    assert!(Compression::zstd(23).is_err() && Compression::zstd(22).is_ok());
    assert_eq!("snappy".parse::<Compression>().is_ok(), cfg!(feature = "snappy"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 }))]

    #[test]
    fn hostile_bytes_never_fill_more_than_the_page_and_never_half_of_it(
        stored in prop::collection::vec(any::<u8>(), 0..3000),
        codec in 0_u8..8,
        page_bytes in prop::sample::select(vec![0_usize, 4096, 8192, 65536]),
    ) {
        let Some(codec) = CodecId::from_u8(codec) else { return Ok(()) };
        let mut decoded = vec![0xaa; page_bytes];
        if decode(codec, &stored, &mut decoded).is_err() {
            prop_assert!(decoded.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn a_damaged_page_decodes_to_a_page_or_to_zeros(
        seed in any::<u64>(), at in any::<prop::sample::Index>(), bit in 0_u8..8, cut in any::<bool>(),
    ) {
        for compression in encoding() {
            let mut target = Vec::new();
            let length = compression.encode(&page(16 << 10, seed), &mut target).unwrap();
            let mut stored = target[..length].to_vec();
            match cut {
                true => stored.truncate(at.index(length)),
                false => stored[at.index(length)] ^= 1_u8 << bit,
            }
            let mut decoded = vec![0xaa; 16 << 10];
            if decode(compression.codec(), &stored, &mut decoded).is_err() {
                prop_assert!(decoded.iter().all(|byte| *byte == 0));
            }
        }
    }

    #[test]
    fn any_page_comes_back(
        words in prop::collection::vec(any::<u16>(), 1..200), repeats in 1_usize..400, log2 in 13_u32..17,
    ) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut page: Vec<u8> = bytes.repeat(repeats);
        page.resize(1 << log2, 0);
        for compression in encoding() {
            let mut target = Vec::new();
            if let Some(length) = compression.encode(&page, &mut target) {
                let mut decoded = vec![0xaa; page.len()];
                decode(compression.codec(), &target[..length], &mut decoded).unwrap();
                prop_assert!(decoded == page);
            }
        }
    }
}
