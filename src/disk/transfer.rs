//! Whole transfers made of raw calls that may be interrupted, short, or both.
//!
//! The raw call is a closure, so that the tests can be a system that misbehaves.
//!
//! - **I1** A call that was interrupted is made again; one that was short is continued where it ended.
//! - **I2** A write of no bytes is [`io::ErrorKind::WriteZero`], a read of none the end of the file: no loop spins.
//! - **I3** No call gets more than [`BUFFERS_A_CALL`] buffers, and none gets only empty ones (its zero would look like
//!   the end of the file).
//! - **I4** No call goes beyond the largest offset the system knows; above it, `pwritev2` would take `u64::MAX` for "at
//!   the current position".

use std::io::{self, IoSlice, IoSliceMut};

/// How many buffers one call may have (IOV_MAX of Linux and of macOS).
pub(super) const BUFFERS_A_CALL: usize = 1024;

/// One past the last byte that a file can have.
const END_OF_ALL_FILES: u64 = i64::MAX as u64;

/// Makes `call` until it was not interrupted.
pub(super) fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Writes all of `buffers` from `offset` on by `call(offset, buffers)`, which says how many bytes it wrote.
pub(super) fn write_all(
    offset: u64,
    buffers: &[IoSlice<'_>],
    mut call: impl FnMut(u64, &[IoSlice<'_>]) -> io::Result<usize>,
) -> io::Result<()> {
    write_end(offset, buffers)?;
    let mut place = Place::default();
    let mut offset = offset;
    while place.settle(buffers) {
        let written = uninterrupted(|| match place.skipped {
            0 => call(offset, &buffers[place.batch(buffers.len())]),
            skipped => call(offset, &[IoSlice::new(&buffers[place.buffer][skipped..])]),
        })?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        place.advance(buffers, written);
        offset += written as u64;
    }
    Ok(())
}

/// Fills `buffers` from `offset` on by `call(offset, buffers)`, which says how many bytes it read, until they are full
/// or the file ends; says how many bytes were read in all.
pub(super) fn read_to_end(
    offset: u64,
    buffers: &mut [IoSliceMut<'_>],
    mut call: impl FnMut(u64, &mut [IoSliceMut<'_>]) -> io::Result<usize>,
) -> io::Result<usize> {
    if end(offset, length_of_mut(buffers)?).is_none() {
        return Ok(0);
    }
    let count = buffers.len();
    let mut place = Place::default();
    let mut total = 0;
    while place.settle(buffers) {
        let read = uninterrupted(|| match place.skipped {
            0 => call(offset + total as u64, &mut buffers[place.batch(count)]),
            skipped => call(offset + total as u64, &mut [IoSliceMut::new(&mut buffers[place.buffer][skipped..])]),
        })?;
        if read == 0 {
            break;
        }
        place.advance(buffers, read);
        total += read;
    }
    Ok(total)
}

/// As [`read_to_end`], but a file that ends too early is an error.
pub(super) fn read_all(
    offset: u64,
    buffers: &mut [IoSliceMut<'_>],
    call: impl FnMut(u64, &mut [IoSliceMut<'_>]) -> io::Result<usize>,
) -> io::Result<()> {
    let wanted = length_of_mut(buffers)?;
    if (read_to_end(offset, buffers, call)? as u64) < wanted {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// One past the last byte of a write of `buffers` at `offset`.
///
/// # Errors
/// [`io::ErrorKind::FileTooLarge`] where no file has such a byte.
pub(super) fn write_end(offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<u64> {
    let length = length_of(buffers)?;
    end(offset, length).ok_or_else(|| io::ErrorKind::FileTooLarge.into())
}

/// Bytes in all of `buffers`.
pub(super) fn length_of(buffers: &[IoSlice<'_>]) -> io::Result<u64> {
    sum(buffers.iter().map(|buffer| buffer.len()))
}

/// Bytes in all of `buffers`.
pub(super) fn length_of_mut(buffers: &[IoSliceMut<'_>]) -> io::Result<u64> {
    sum(buffers.iter().map(|buffer| buffer.len()))
}

/// `offset + length`, if a file can be that long.
pub(super) fn end(offset: u64, length: u64) -> Option<u64> {
    offset.checked_add(length).filter(|&end| end <= END_OF_ALL_FILES)
}

/// The same buffer may be given many times, so the sum need not fit into memory.
fn sum(lengths: impl Iterator<Item = usize>) -> io::Result<u64> {
    lengths
        .map(|length| length as u64)
        .try_fold(0u64, |total, length| total.checked_add(length))
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Where a transfer stands: in which buffer, and how many of its bytes are done.
#[derive(Default)]
struct Place {
    buffer: usize,
    skipped: usize,
}

impl Place {
    /// Steps over buffers that are done or empty; says whether any are left.
    fn settle(&mut self, buffers: &[impl AsBytes]) -> bool {
        while self.buffer < buffers.len() && self.skipped == buffers[self.buffer].length() {
            self.buffer += 1;
            self.skipped = 0;
        }
        self.buffer < buffers.len()
    }

    /// The buffers that the next call gets.
    fn batch(&self, buffers: usize) -> std::ops::Range<usize> {
        self.buffer..buffers.min(self.buffer + BUFFERS_A_CALL)
    }

    /// Steps over `done` bytes.
    fn advance(&mut self, buffers: &[impl AsBytes], done: usize) {
        self.skipped += done;
        while self.buffer < buffers.len() && self.skipped >= buffers[self.buffer].length() {
            self.skipped -= buffers[self.buffer].length();
            self.buffer += 1;
        }
    }
}

/// What the two kinds of buffers have in common.
trait AsBytes {
    fn length(&self) -> usize;
}

impl AsBytes for IoSlice<'_> {
    fn length(&self) -> usize {
        self.len()
    }
}

impl AsBytes for IoSliceMut<'_> {
    fn length(&self) -> usize {
        self.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system that answers each call with the next of its answers, then obeys.
    struct System {
        bytes: Vec<u8>,
        answers: Vec<io::Result<usize>>,
        calls: usize,
        buffers_most: usize,
    }

    impl System {
        fn new(length: usize, answers: Vec<io::Result<usize>>) -> Self {
            let mut answers = answers;
            answers.reverse();
            Self { bytes: vec![0; length], answers, calls: 0, buffers_most: 0 }
        }

        /// How many bytes the next call may transfer.
        fn limit(&mut self, buffers: usize) -> io::Result<usize> {
            self.calls += 1;
            self.buffers_most = self.buffers_most.max(buffers);
            self.answers.pop().unwrap_or(Ok(usize::MAX))
        }

        fn write(&mut self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
            let limit = self.limit(buffers.len())?;
            let bytes: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.iter().copied()).take(limit).collect();
            assert!(limit == 0 || !bytes.is_empty(), "a call without bytes");
            self.bytes[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
            Ok(bytes.len())
        }

        fn read(&mut self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
            let mut left = self.limit(buffers.len())?;
            let mut rest = &self.bytes[(offset as usize).min(self.bytes.len())..];
            let mut read = 0;
            for buffer in buffers {
                let count = buffer.len().min(rest.len()).min(left);
                buffer[..count].copy_from_slice(&rest[..count]);
                rest = &rest[count..];
                left -= count;
                read += count;
            }
            Ok(read)
        }
    }

    fn interrupted() -> io::Result<usize> {
        Err(io::ErrorKind::Interrupted.into())
    }

    #[test]
    fn interrupted_and_short_writes_are_completed() {
        let answers = vec![interrupted(), Ok(1), Ok(3), interrupted(), interrupted(), Ok(2), Ok(5)];
        let mut system = System::new(20, answers);
        let buffers = [b"".as_slice(), b"abc", b"", b"defgh", b"ijklmn", b""].map(IoSlice::new);
        write_all(2, &buffers, |offset, buffers| system.write(offset, buffers)).unwrap();
        assert_eq!(&system.bytes, b"\0\0abcdefghijklmn\0\0\0\0");
        assert!(system.answers.is_empty());
    }

    #[test]
    fn a_write_that_writes_nothing_is_an_error_and_no_spin() {
        let mut system = System::new(20, vec![Ok(2), Ok(0)]);
        let error = write_all(0, &[IoSlice::new(b"abc")], |offset, buffers| system.write(offset, buffers)).unwrap_err();
        assert_eq!((error.kind(), system.calls), (io::ErrorKind::WriteZero, 2));
    }

    #[test]
    fn the_systems_error_is_passed_on_at_once() {
        let mut system = System::new(20, vec![Ok(1), Err(io::ErrorKind::StorageFull.into())]);
        let error = write_all(0, &[IoSlice::new(b"abc")], |offset, buffers| system.write(offset, buffers)).unwrap_err();
        assert_eq!((error.kind(), system.calls), (io::ErrorKind::StorageFull, 2));
        let mut system = System::new(20, vec![Ok(1), Err(io::ErrorKind::Other.into())]);
        let error = read_all(0, &mut [IoSliceMut::new(&mut [0; 3])], |offset, buffers| system.read(offset, buffers));
        assert_eq!((error.unwrap_err().kind(), system.calls), (io::ErrorKind::Other, 2));
    }

    #[test]
    fn interrupted_and_short_reads_are_completed() {
        let mut system = System::new(10, vec![interrupted(), Ok(1), Ok(4), interrupted(), Ok(2)]);
        system.bytes.copy_from_slice(b"0123456789");
        let (mut first, mut second) = ([0; 3], [0; 5]);
        let buffers = &mut [&mut [], &mut first[..], &mut [], &mut second[..]].map(IoSliceMut::new);
        read_all(1, buffers, |offset, buffers| system.read(offset, buffers)).unwrap();
        assert_eq!((&first, &second), (b"123", b"45678"));
    }

    #[test]
    fn a_file_that_ends_too_early_is_said_so() {
        let mut system = System::new(10, vec![Ok(4)]);
        let mut buffer = [0; 8];
        let error = read_all(3, &mut [IoSliceMut::new(&mut buffer)], |offset, buffers| system.read(offset, buffers));
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let read = read_to_end(3, &mut [IoSliceMut::new(&mut buffer)], |offset, buffers| system.read(offset, buffers));
        assert_eq!(read.unwrap(), 7);
    }

    #[test]
    fn many_buffers_go_in_batches() {
        let count = 2 * BUFFERS_A_CALL + 7;
        let bytes: Vec<u8> = (0..count).map(|number| number as u8).collect();
        let mut system = System::new(count, vec![]);
        let buffers: Vec<IoSlice<'_>> = bytes.chunks(1).map(IoSlice::new).collect();
        write_all(0, &buffers, |offset, buffers| system.write(offset, buffers)).unwrap();
        assert_eq!((system.calls, system.buffers_most), (3, BUFFERS_A_CALL));
        let mut copy = vec![0; count];
        let mut buffers: Vec<IoSliceMut<'_>> = copy.chunks_mut(1).map(IoSliceMut::new).collect();
        read_all(0, &mut buffers, |offset, buffers| system.read(offset, buffers)).unwrap();
        assert_eq!((copy, system.calls), (bytes, 6));
    }

    #[test]
    fn nothing_makes_no_call_and_no_offset_overflows() {
        let never_write = |_: u64, _: &[IoSlice<'_>]| -> io::Result<usize> { panic!("no call is due") };
        let never_read = |_: u64, _: &mut [IoSliceMut<'_>]| -> io::Result<usize> { panic!("no call is due") };
        write_all(5, &[], never_write).unwrap();
        write_all(5, &[IoSlice::new(b""), IoSlice::new(b"")], never_write).unwrap();
        read_all(5, &mut [IoSliceMut::new(&mut [])], never_read).unwrap();
        for offset in [u64::MAX, u64::MAX - 1, i64::MAX as u64] {
            let error = write_all(offset, &[IoSlice::new(b"ab")], never_write).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
            let error = read_all(offset, &mut [IoSliceMut::new(&mut [0; 2])], never_read).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
