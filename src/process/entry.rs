//! The bytes of the side folder's files: what a reader pins, and what the writer publishes.
//!
//! They speak to processes that are alive now, never to a later version of the crate: a writer and its readers are to
//! be of one version. Nothing in them outlives a power cut in any sense that matters.
//!
//! | file | bytes |
//! | --- | --- |
//! | a reader's | magic, checksum of all that follows it, length of all, process, count of states, time, store, length of the name, whether all newer states are pinned, how often it was written; the states; the name |
//! | the writer's | two slots of 64 bytes in turn: sequence number, checkpoint, generation, incarnation, store, checksum; from byte 4096 on the bell: one byte for each reader that came |

use super::pins::PublishedState;
use crate::id::{CheckpointNumber, Generation, Incarnation, StoreId};

const MAGIC: [u8; 8] = *b"VELLUMpr";
const HEAD_BYTES: usize = 64;
const STATE_BYTES: usize = 16;

/// Bytes of a slot of the writer's file.
const SLOT_BYTES: usize = 64;
/// Bytes of both.
pub(super) const SLOTS_BYTES: usize = 2 * SLOT_BYTES;
/// Where the bell begins.
pub(super) const BELL_START: u64 = 4096;

/// What a reader's file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) process: u32,
    /// Seconds since 1970 when the reader came.
    pub(super) since_seconds: u64,
    pub(super) store: StoreId,
    pub(super) name: String,
    /// The states it reads.
    pub(super) states: Vec<(CheckpointNumber, Generation)>,
    /// Whether it is about to choose another one.
    pub(super) choosing: bool,
    /// Counts what it said.
    pub(super) sequence: u64,
}

impl Entry {
    pub(super) fn encode(&self) -> Vec<u8> {
        let name = self.name.as_bytes();
        let length = HEAD_BYTES + self.states.len() * STATE_BYTES + name.len();
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&(length as u32).to_le_bytes());
        bytes.extend_from_slice(&self.process.to_le_bytes());
        bytes.extend_from_slice(&(self.states.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.since_seconds.to_le_bytes());
        bytes.extend_from_slice(&self.store.0);
        bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&u32::from(self.choosing).to_le_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        for (base, generation) in &self.states {
            bytes.extend_from_slice(&base.0.to_le_bytes());
            bytes.extend_from_slice(&generation.0.to_le_bytes());
        }
        bytes.extend_from_slice(name);
        let sum = crc32fast::hash(&bytes[12..]);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// `None` for bytes that are no entry, or one that is being written just now: they pin everything.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let length = Self::length_of(bytes)?;
        let bytes = bytes.get(..length)?;
        if crc32fast::hash(&bytes[12..]) != u32_at(bytes, 8)? {
            return None;
        }
        let count = u32_at(bytes, 20)?;
        let name_bytes = u32_at(bytes, 48)? as usize;
        let name_start = length.checked_sub(name_bytes)?;
        let states = bytes.get(HEAD_BYTES..name_start)?;
        if states.len() as u64 != u64::from(count) * STATE_BYTES as u64 {
            return None;
        }
        let pair = |at: &[u8]| Some((CheckpointNumber(u64_at(at, 0)?), Generation(u64_at(at, 8)?)));
        let states = states.chunks_exact(STATE_BYTES).map(pair).collect::<Option<Vec<_>>>()?;
        Some(Self {
            process: u32_at(bytes, 16)?,
            since_seconds: u64_at(bytes, 24)?,
            store: StoreId(bytes.get(32..48)?.try_into().ok()?),
            name: String::from_utf8(bytes.get(name_start..)?.to_vec()).ok()?,
            states,
            choosing: u32_at(bytes, 52)? != 0,
            sequence: u64_at(bytes, 56)?,
        })
    }

    /// The whole length that the first bytes announce.
    pub(super) fn length_of(bytes: &[u8]) -> Option<usize> {
        let length = u32_at(bytes, 12)? as usize;
        (bytes.starts_with(&MAGIC) && length >= HEAD_BYTES).then_some(length)
    }

    pub(super) fn holder(&self) -> String {
        match self.name.as_str() {
            "" => format!("process {}", self.process),
            name => format!("{name} (process {})", self.process),
        }
    }
}

/// The slot for a state that is told as number `sequence`, and where it goes.
pub(super) fn encode_slot(sequence: u64, state: &PublishedState) -> (u64, [u8; SLOT_BYTES]) {
    let mut bytes = [0; SLOT_BYTES];
    let numbers = [sequence, state.base.0, state.synced.0, state.incarnation.0];
    for (target, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        target.copy_from_slice(&number.to_le_bytes());
    }
    bytes[32..48].copy_from_slice(&state.store.0);
    let sum = crc32fast::hash(&bytes[..48]);
    bytes[48..52].copy_from_slice(&sum.to_le_bytes());
    (sequence % 2 * SLOT_BYTES as u64, bytes)
}

/// The newest state that the slots tell. A slot that is being written does not fit its checksum; the other then tells
/// the state before.
pub(super) fn decode_slots(bytes: &[u8; SLOTS_BYTES]) -> Option<PublishedState> {
    let decode = |slot: &[u8]| {
        let sequence = u64_at(slot, 0)?;
        let state = PublishedState {
            base: CheckpointNumber(u64_at(slot, 8)?),
            synced: Generation(u64_at(slot, 16)?),
            incarnation: Incarnation(u64_at(slot, 24)?),
            store: StoreId(slot.get(32..48)?.try_into().ok()?),
        };
        (crc32fast::hash(&slot[..48]) == u32_at(slot, 48)? && sequence != 0).then_some((sequence, state))
    };
    bytes.chunks_exact(SLOT_BYTES).filter_map(decode).max_by_key(|(sequence, _)| *sequence).map(|(_, state)| state)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(states: Vec<(CheckpointNumber, Generation)>, choosing: bool) -> Entry {
        let (since_seconds, store, name) = (1_700_000_000, StoreId([3; 16]), "bank".to_owned());
        Entry { process: 7, since_seconds, store, name, states, choosing, sequence: 99 }
    }

    #[test]
    fn an_entry_survives_its_bytes_and_no_damage_passes() {
        let state = (CheckpointNumber(4), Generation(99));
        for entry in [entry(Vec::new(), true), entry(Vec::new(), false), entry(vec![state; 5], true)] {
            let mut bytes = entry.encode();
            assert_eq!(Entry::decode(&bytes), Some(entry.clone()));
            bytes.extend_from_slice(b"what a longer entry left");
            assert_eq!(Entry::decode(&bytes), Some(entry.clone()));
            for at in 0..entry.encode().len() {
                let mut damaged = entry.encode();
                damaged[at] ^= 0x10;
                assert_eq!(Entry::decode(&damaged), None, "byte {at}");
                assert_eq!(Entry::decode(&entry.encode()[..at]), None);
            }
        }
    }

    #[test]
    fn a_torn_slot_shows_the_state_before() {
        let state = |synced| PublishedState {
            base: CheckpointNumber(2),
            synced: Generation(synced),
            incarnation: Incarnation(5),
            store: StoreId([1; 16]),
        };
        let mut file = [0; SLOTS_BYTES];
        assert_eq!(decode_slots(&file), None);
        for sequence in 1..50 {
            let (at, slot) = encode_slot(sequence, &state(sequence + 100));
            for torn in 1..52 {
                let mut half = file;
                half[at as usize..at as usize + torn].copy_from_slice(&slot[..torn]);
                let found = decode_slots(&half);
                let expected = [(sequence > 1).then(|| state(sequence + 99)), Some(state(sequence + 100))];
                assert!(expected.contains(&found), "{sequence} {torn}");
            }
            file[at as usize..at as usize + SLOT_BYTES].copy_from_slice(&slot);
            assert_eq!(decode_slots(&file), Some(state(sequence + 100)));
        }
    }
}
