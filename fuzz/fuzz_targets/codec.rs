//! Every codec on any bytes: exactly one page or a fault that leaves zeros, in no more memory than that takes; and what is
//! encoded comes back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vellum::format::codec::decode;
use vellum::{CodecId, Compression};
use vellum_fuzz::memory::{self, Counting};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Beyond the page and its encoded bytes: tables of an encoder, and what the harness itself takes.
const BESIDES: usize = 4 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((&which, data)) = data.split_first() else { return };
    let mut page = vec![0xaa; 4096 << (which >> 4 & 7)];
    memory::limit(page.len() + data.len() + BESIDES);
    match CodecId::from_u8(which & 15) {
        Some(codec) => {
            if decode(codec, data, &mut page).is_err() {
                assert!(page.iter().all(|byte| *byte == 0));
            }
        }
        None => {
            let length = page.len();
            page.iter_mut().zip(data.iter().cycle()).for_each(|(byte, data)| *byte = *data);
            for choice in ["lz4", "zstd:1", "snappy"].iter().filter_map(|text| text.parse::<Compression>().ok()) {
                let mut encoded = Vec::new();
                let Some(count) = choice.encode(&page, &mut encoded) else { continue };
                assert!(count <= length - 4096);
                let mut decoded = vec![0xaa; length];
                decode(choice.codec(), &encoded[..count], &mut decoded).unwrap();
                assert_eq!(decoded, page);
            }
        }
    }
    memory::unlimited();
});
