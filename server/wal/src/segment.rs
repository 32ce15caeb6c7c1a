//! The header of a segment file, and the names of the files. Pure.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `FERRWAL\0` |
//! | 8 | 4 | format version |
//! | 12 | 4 | sequence |
//! | 16 | 8 | cluster id |
//! | 24 | 8 | member id |
//! | 32 | 4 | where the records of the segment before end (0: there was none) |
//! | 36 | 4 | crc of the last record of the segment before |
//! | 40 | 4 | flags: 1 next, 2 vote, 4 vote committed, 8 purged, 16 committed, 32 blank |
//! | 44 | 4 | zero |
//! | 48 | 8 | index of the next entry |
//! | 56 | 16 | vote: term, node |
//! | 72 | 16 | purged: term, index |
//! | 88 | 16 | committed: term, index |
//! | 104 | 20 | zero |
//! | 124 | 4 | crc32c of bytes 0..124 |

use crate::record::{u32_at, u64_at};
use crate::state::{LogPos, LogState, Vote};
use crate::wal::Identity;

/// Bytes of a segment's header; the first record begins here.
pub const HEADER_BYTES: usize = 128;

/// The format that this release writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// Smallest segment: a header and a few records.
pub const MIN_BYTES: u64 = 4096;

/// Largest segment: offsets are 32 bits in the memory index and in records, and a segment is read whole on recovery.
pub const MAX_BYTES: u64 = 1 << 30;

const MAGIC: &[u8; 8] = b"FERRWAL\0";

const NEXT: u32 = 1;
const VOTE: u32 = 2;
const VOTE_COMMITTED: u32 = 4;
const PURGED: u32 = 8;
const COMMITTED: u32 = 16;
const BLANK: u32 = 32;

/// What a segment says about itself and about the log at its start, so that the segments before it may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whose log it is.
    pub identity: Identity,
    /// Number of the segment, from 1.
    pub sequence: u32,
    /// Where the records of the segment before end, 0 if there was none. With `previous_crc` it proves that the
    /// segment before is whole.
    pub previous_end: u32,
    /// Crc of the last record of the segment before.
    pub previous_crc: u32,
    /// Everything behind the header was zeros when the segment began. The first releases wrote on what a segment had
    /// held before, and did not say so.
    pub blank: bool,
    /// What all segments before add up to.
    pub state: LogState,
}

/// Why bytes are no header that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// Not the magic, a wrong checksum, or too short: the reason.
    Damaged(&'static str),
    /// Written by a newer release: its version.
    Newer(u32),
}

impl Header {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let LogState { vote, committed, purged, next } = self.state;
        let mut bytes = [0; HEADER_BYTES];
        let mut flags = if self.blank { BLANK } else { 0 };
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.identity.cluster_id.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.identity.member_id.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.previous_end.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.previous_crc.to_le_bytes());
        if let Some(next) = next {
            flags |= NEXT;
            bytes[48..56].copy_from_slice(&next.to_le_bytes());
        }
        if let Some(Vote { term, node, committed }) = vote {
            flags |= VOTE | if committed { VOTE_COMMITTED } else { 0 };
            bytes[56..64].copy_from_slice(&term.to_le_bytes());
            bytes[64..72].copy_from_slice(&node.to_le_bytes());
        }
        for (pos, flag, at) in [(purged, PURGED, 72), (committed, COMMITTED, 88)] {
            if let Some(LogPos { term, index }) = pos {
                flags |= flag;
                bytes[at..at + 8].copy_from_slice(&term.to_le_bytes());
                bytes[at + 8..at + 16].copy_from_slice(&index.to_le_bytes());
            }
        }
        bytes[40..44].copy_from_slice(&flags.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..124]);
        bytes[124..128].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the header at the start of a segment. The version is looked at before the checksum, because a newer
    /// release may place the checksum elsewhere.
    pub fn decode(bytes: &[u8]) -> Result<Header, BadHeader> {
        let bytes: &[u8; HEADER_BYTES] =
            bytes.first_chunk().ok_or(BadHeader::Damaged("it is shorter than a segment header"))?;
        if !bytes.starts_with(MAGIC) {
            return Err(BadHeader::Damaged("it does not begin as a segment does"));
        }
        let version = u32_at(bytes, 8);
        if version > VERSION {
            return Err(BadHeader::Newer(version));
        }
        if crc32c::crc32c(&bytes[..124]) != u32_at(bytes, 124) || version == 0 {
            return Err(BadHeader::Damaged("the checksum of the segment header is wrong"));
        }
        let flags = u32_at(bytes, 40);
        let has = |flag| flags & flag != 0;
        let pos = |at| LogPos { term: u64_at(bytes, at), index: u64_at(bytes, at + 8) };
        let vote = Vote { term: u64_at(bytes, 56), node: u64_at(bytes, 64), committed: has(VOTE_COMMITTED) };
        Ok(Header {
            identity: Identity { cluster_id: u64_at(bytes, 16), member_id: u64_at(bytes, 24) },
            sequence: u32_at(bytes, 12),
            previous_end: u32_at(bytes, 32),
            previous_crc: u32_at(bytes, 36),
            blank: has(BLANK),
            state: LogState {
                vote: has(VOTE).then_some(vote),
                committed: has(COMMITTED).then(|| pos(88)),
                purged: has(PURGED).then(|| pos(72)),
                next: has(NEXT).then(|| u64_at(bytes, 48)),
            },
        })
    }
}

/// Where the checksums of a segment's records begin. Two segments of a log differ in the sequence alone, and a crc is
/// one-to-one over 32 bits in one place: their seeds always differ, so the bytes of a recycled segment can never pass.
pub fn seed(identity: Identity, sequence: u32) -> u32 {
    let seed = crc32c::crc32c(&identity.cluster_id.to_le_bytes());
    let seed = crc32c::crc32c_append(seed, &identity.member_id.to_le_bytes());
    crc32c::crc32c_append(seed, &sequence.to_le_bytes())
}

/// Name of the segment with this sequence.
pub fn name(sequence: u32) -> String {
    format!("{sequence:08x}.wal")
}

/// The sequence in a segment's name; None for any other file.
pub fn sequence_of(file_name: &str) -> Option<u32> {
    number(file_name, ".wal")
}

/// Name of a file that waits to become a segment.
pub fn spare_name(number: u32) -> String {
    format!("{number:08x}.spare")
}

/// The number in a spare's name; None for any other file.
pub fn spare_number_of(file_name: &str) -> Option<u32> {
    number(file_name, ".spare")
}

/// Only the exact spelling counts, so that two names never mean one number.
fn number(file_name: &str, suffix: &str) -> Option<u32> {
    let number = u32::from_str_radix(file_name.strip_suffix(suffix)?, 16).ok()?;
    (file_name == format!("{number:08x}{suffix}")).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Header {
        Header {
            identity: Identity { cluster_id: 0x0102_0304_0506_0708, member_id: 9 },
            sequence: 5,
            previous_end: 4000,
            previous_crc: 0xdead_beef,
            blank: true,
            state: LogState {
                vote: Some(Vote { term: 3, node: 9, committed: true }),
                committed: Some(LogPos { term: 3, index: 40 }),
                purged: Some(LogPos { term: 2, index: 30 }),
                next: Some(51),
            },
        }
    }

    #[test]
    fn every_field_comes_back_also_when_absent() {
        let empty = Header { blank: false, state: LogState::default(), ..full() };
        for header in [full(), empty] {
            assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn the_format_is_these_bytes() {
        let bytes = full().encode();
        let mut golden = Vec::new();
        golden.extend_from_slice(b"FERRWAL\0");
        golden.extend_from_slice(&[1, 0, 0, 0, 5, 0, 0, 0]);
        golden.extend_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1, 9, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend_from_slice(&[0xa0, 0x0f, 0, 0, 0xef, 0xbe, 0xad, 0xde]);
        golden.extend_from_slice(&[63, 0, 0, 0, 0, 0, 0, 0]);
        for number in [51u64, 3, 9, 2, 30, 3, 40] {
            golden.extend_from_slice(&number.to_le_bytes());
        }
        golden.extend_from_slice(&[0; 20]);
        assert_eq!(&bytes[..124], &golden[..]);
        assert_eq!(u32_at(&bytes, 124), crc32c::crc32c(&golden));
    }

    #[test]
    fn any_flipped_bit_is_seen() {
        let mut bytes = full().encode();
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_newer_version_is_told_apart_from_damage() {
        let mut bytes = full().encode();
        bytes[8] = 2;
        assert_eq!(Header::decode(&bytes), Err(BadHeader::Newer(2)));
        assert!(matches!(Header::decode(&bytes[..100]), Err(BadHeader::Damaged(_))));
    }

    #[test]
    fn neighbours_never_share_a_seed() {
        let identity = Identity { cluster_id: 1, member_id: 2 };
        let mut seeds: Vec<u32> = (0..10_000).map(|sequence| seed(identity, sequence)).collect();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), 10_000);
    }

    #[test]
    fn names_are_read_back_and_strangers_ignored() {
        assert_eq!(sequence_of(&name(0xab)), Some(0xab));
        assert_eq!(spare_number_of(&spare_name(7)), Some(7));
        for stranger in ["LOCK", "1.wal", "0000000g.wal", "+0000001.wal", "00000001.spare", "000000001.wal"] {
            assert_eq!(sequence_of(stranger), None, "{stranger}");
        }
    }
}
