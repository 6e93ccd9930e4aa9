//! One suite for every disk: what a caller of [`Disk`] relies on, whatever the disk is made of.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;

use super::{AlignedBuffer, Caching, Disk, FaultyDisk, FileDisk, MemoryDisk, SimulatedDisk};
use crate::id::BLOCK_BYTES;

/// Every kind of disk, empty, with its name.
fn each_disk(check: impl Fn(&str, &dyn Disk)) {
    let folder = tempfile::tempdir().unwrap();
    let create = |name: &str, caching| FileDisk::create_new(folder.path().join(name), caching).unwrap();
    check("memory", &MemoryDisk::new());
    check("simulated", &SimulatedDisk::new());
    check("faulty", &FaultyDisk::new(Arc::new(MemoryDisk::new())));
    check("file", &create("buffered", Caching::Buffered));
    check("direct file", &create("direct", Caching::DirectIfPossible));
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    /// A place: whole blocks in one case of two, else anything; never empty.
    fn range(&mut self) -> (u64, usize) {
        match self.below(2) {
            0 => (self.below(20) * BLOCK_BYTES, (1 + self.below(5)) as usize * BLOCK_BYTES as usize),
            _ => (self.below(80_000), 1 + self.below(15_000) as usize),
        }
    }
}

/// Writes and reads of any alignment, in aligned memory and in other memory, and every change of length, beside a
/// vector of bytes that is told the same.
#[test]
fn a_disk_holds_what_was_written_and_zeros_elsewhere() {
    each_disk(|name, disk| {
        let mut random = Random(7);
        let mut model: Vec<u8> = Vec::new();
        for step in 0..1500u64 {
            let (offset, length) = random.range();
            let end = offset as usize + length;
            let action = random.below(10);
            match action {
                0..=4 => {
                    let mut bytes = AlignedBuffer::zeroed(length + 1);
                    bytes.fill_with(|| random.below(256) as u8);
                    // In aligned memory, or one byte beside it; in one buffer, or three.
                    let bytes = &bytes[random.below(2) as usize..][..length];
                    let (first, rest) = bytes.split_at(if random.below(2) == 0 { 0 } else { length / 3 });
                    let buffers = [first, &[], rest].map(IoSlice::new);
                    if action < 3 {
                        disk.write_vectored_at(offset, &buffers).unwrap();
                    } else {
                        disk.write_durable_at(offset, &buffers).unwrap();
                    }
                    model.resize(model.len().max(end), 0);
                    model[offset as usize..end].copy_from_slice(bytes);
                }
                5 => {
                    disk.set_length(offset).unwrap();
                    model.resize(offset as usize, 0);
                }
                6 => {
                    disk.preallocate(offset, length as u64).unwrap();
                    model.resize(model.len().max(end), 0);
                }
                7 => {
                    disk.punch_hole(offset, length as u64).unwrap();
                    let end = end.min(model.len());
                    model[(offset as usize).min(end)..end].fill(0);
                }
                8 => disk.sync().unwrap(),
                _ => {
                    let mut bytes = AlignedBuffer::zeroed(length + 1);
                    let bytes = &mut bytes[random.below(2) as usize..][..length];
                    let (first, rest) = bytes.split_at_mut(length / 2);
                    let result = disk.read_vectored_at(offset, &mut [first, &mut [], rest].map(IoSliceMut::new));
                    match model.get(offset as usize..end) {
                        Some(expected) => assert!(result.is_ok() && bytes == expected, "{name}, step {step}"),
                        None => assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{name}, {step}"),
                    }
                }
            }
            assert_eq!(disk.length().unwrap(), model.len() as u64, "{name}, step {step}, action {action}");
        }
        let mut bytes = vec![0; model.len()];
        disk.read_at(0, &mut bytes).unwrap();
        assert!(bytes == model, "{name}");
    });
}

#[test]
fn a_read_beyond_the_end_is_unexpected_eof_however_far() {
    each_disk(|name, disk| {
        disk.write_at(0, &[1; 5000]).unwrap();
        for (offset, length) in [(0, 5001), (4096, 905), (5000, 1), (8192, 4096), (u64::MAX, 1), (u64::MAX - 3, 4096)] {
            let mut buffer = AlignedBuffer::zeroed(length);
            let error = disk.read_at(offset, &mut buffer).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{name}: {length} bytes at {offset}");
        }
        disk.read_at(4999, &mut [0]).unwrap();
    });
}

#[test]
fn a_place_that_no_file_has_cannot_be_written() {
    each_disk(|name, disk| {
        for offset in [u64::MAX, u64::MAX - 4095, i64::MAX as u64] {
            let kinds = [
                disk.write_at(offset, &[1; 8192]),
                disk.write_durable_at(offset, &[IoSlice::new(&[1; 8192])]),
                disk.preallocate(offset, 8192),
            ]
            .map(|result| result.unwrap_err().kind());
            assert_eq!(kinds, [io::ErrorKind::FileTooLarge; 3], "{name}, {offset}");
            disk.punch_hole(offset, 8192).unwrap();
        }
        assert_eq!(disk.set_length(u64::MAX).unwrap_err().kind(), io::ErrorKind::FileTooLarge, "{name}");
        assert_eq!(disk.length().unwrap(), 0, "{name}");
    });
}

#[test]
fn a_transfer_of_nothing_does_nothing() {
    each_disk(|name, disk| {
        disk.write_at(9000, &[]).unwrap();
        disk.write_durable_at(9000, &[IoSlice::new(&[])]).unwrap();
        disk.read_at(9000, &mut []).unwrap();
        disk.preallocate(9000, 0).unwrap();
        disk.punch_hole(9000, 0).unwrap();
        assert_eq!(disk.length().unwrap(), 0, "{name}");
    });
}

#[test]
fn many_buffers_are_one_transfer() {
    each_disk(|name, disk| {
        let bytes: Vec<u8> = (0..3000u32).map(|number| (number % 253) as u8).collect();
        let buffers: Vec<IoSlice<'_>> = bytes.chunks(1).map(IoSlice::new).collect();
        disk.write_durable_at(100, &buffers).unwrap();
        let mut copy = vec![0; 3000];
        let mut buffers: Vec<IoSliceMut<'_>> = copy.chunks_mut(1).map(IoSliceMut::new).collect();
        disk.read_vectored_at(100, &mut buffers).unwrap();
        assert_eq!(copy, bytes, "{name}");
    });
}

#[test]
fn threads_write_and_read_different_blocks_at_the_same_time() {
    each_disk(|name, disk| {
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                scope.spawn(move || {
                    let mut buffer = AlignedBuffer::zeroed(BLOCK_BYTES as usize);
                    for round in 0..50u64 {
                        let offset = (round * 4 + thread) * BLOCK_BYTES;
                        buffer.fill((round + thread) as u8);
                        disk.write_at(offset, &buffer).unwrap();
                        buffer.fill(0xFF);
                        disk.read_at(offset, &mut buffer).unwrap();
                        assert!(buffer.iter().all(|&byte| byte == (round + thread) as u8), "{name}");
                    }
                });
            }
        });
    });
}
