//! Every decoder of the format, on any bytes: an answer or a fault, never a panic; and what is decoded encodes to the
//! same bytes again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vellum::format::{
    CatalogueEntry, Node, NodeIdentity, NodeKind, RECORD_HEADER_BYTES, RecordIdentity, Superblock, birth_state,
    decode_body, decode_deferred, decode_entries, decode_header, encode_deferred, encode_entries, height_of,
    verify_checksum,
};
use vellum::map::Shape;
use vellum::{Block, PageId, StoreId};
use vellum_fuzz::memory::{self, Counting};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The bytes as a block: cut, or filled up with zeros.
fn block(data: &[u8]) -> [u8; 4096] {
    let mut block = [0; 4096];
    let length = data.len().min(4096);
    block[..length].copy_from_slice(&data[..length]);
    block
}

/// The bytes as a superblock whose sums fit.
fn mended_superblock(data: &[u8]) -> [u8; 4096] {
    let mut block = block(data);
    block[..8].copy_from_slice(b"VELLUMsb");
    let mut hasher = vellum::format::SealHasher::new(0);
    hasher.update(&block[..4072]);
    let (seal, sum) = (hasher.finish(), vellum::format::checksum(&block[..4072]));
    block[4072..4088].copy_from_slice(&seal.0);
    block[4092..].copy_from_slice(&sum.to_le_bytes());
    block
}

fuzz_target!(|data: &[u8]| {
    let Some((&which, data)) = data.split_first() else { return };
    memory::limit(16 << 20);
    match which % 8 {
        0 => drop(Superblock::decode(&block(data))),
        1 => {
            let bytes = mended_superblock(data);
            if let Ok(Some(superblock)) = Superblock::decode(&bytes)
                && superblock.version == vellum::format::VERSION
                && superblock.features_incompatible == 0
            {
                assert_eq!(superblock.encode(), bytes);
            }
        }
        2 => {
            let bytes = block(data);
            let identity = NodeIdentity {
                store: StoreId(bytes[8..24].try_into().unwrap()),
                kind: [NodeKind::Map, NodeKind::Chunk, NodeKind::Bitmap, NodeKind::Catalogue, NodeKind::Deferred]
                    [bytes[4] as usize % 5],
                level: bytes[5],
                class: bytes[6],
                position: u64::from_le_bytes(bytes[24..32].try_into().unwrap()),
                owner: u64::from_le_bytes(bytes[56..64].try_into().unwrap()),
            };
            if let Ok(node) = Node::decode(&bytes, &identity) {
                assert_eq!(node.encode(&identity, node.summary()), bytes);
            }
        }
        3 => {
            let bytes = block(data);
            if let Ok(entry) = CatalogueEntry::decode(&bytes) {
                assert_eq!(entry.encode(), bytes);
            }
        }
        4 => {
            let (count, data) = data.split_first().unwrap_or((&0, &[]));
            let bytes = block(data);
            if let Ok(entries) = decode_deferred(&bytes, (*count).into()) {
                assert_eq!(encode_deferred(&entries), bytes);
            }
        }
        5 => {
            let bytes = block(data);
            let identity = RecordIdentity {
                store: StoreId(bytes[48..64].try_into().unwrap()),
                address: Block(u64::from_le_bytes(bytes[80..88].try_into().unwrap())),
                salt: u64::from_le_bytes(bytes[72..80].try_into().unwrap()),
            };
            verify_checksum(data);
            if let Some(header) = decode_header(&bytes, &identity) {
                let (entries, blob) = (header.entries.into(), header.blob_length.into());
                drop(decode_body(&bytes[RECORD_HEADER_BYTES..], entries, blob));
            }
        }
        6 => {
            let length = data.len() / 64 * 64;
            if let Ok(entries) = decode_entries(&data[..length], 100) {
                let mut bytes = vec![0; length];
                encode_entries(&mut bytes, &entries);
                assert_eq!(bytes, data[..length]);
            }
            drop(decode_entries(data, u64::MAX));
        }
        _ => {
            let number = u64::from_le_bytes(block(data)[..8].try_into().unwrap());
            if let Some(page) = PageId::from_u64(number) {
                assert_eq!(page.to_string().parse(), Ok(page));
            }
            assert!(height_of(number) <= 9);
            Shape::nodes_at_most(number);
            birth_state(&data[..data.len().min(4096)], number);
        }
    }
    memory::unlimited();
});
