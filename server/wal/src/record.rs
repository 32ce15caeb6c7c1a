//! The bytes of one record. Pure: no I/O, no state.
//!
//! A record is a 40-byte header, the payload, and zeros up to a multiple of 8. All integers are little endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | length of the payload |
//! | 4 | 4 | crc32c of bytes 8..40, begun with the seed of the segment |
//! | 8 | 1 | kind: 1 entry, 2 vote, 3 truncate, 4 purge, 5 committed |
//! | 9 | 1 | flag: a vote is committed; a truncation has an index |
//! | 10 | 2 | blank: how many sectors of the file hold zeros where they hold a part of this record |
//! | 12 | 4 | synced: everything before this offset of the segment was durable when the record was written |
//! | 16 | 8 | term |
//! | 24 | 8 | index (for a vote: the node) |
//! | 32 | 4 | crc of the record before; of the first record: the seed |
//! | 36 | 4 | crc32c of the payload |
//!
//! A record's crc covers the crc before it and so, in a chain, everything before it. It can also be checked alone,
//! which is one thing that tells damage from a torn tail: a later record whose `synced` lies beyond a bad one is proof
//! that the bad one had been durable. The other one is [`can_be_torn`]: a disk writes sectors whole, so a write that the
//! power cut short left zeros in at least one of them (decision 0012).

use crate::state::{LogPos, Vote};

/// Bytes of a record without its payload.
pub const HEADER_BYTES: usize = 40;

/// Records begin at multiples of this, so that a scan for later records has eight times fewer places to try.
const ALIGN: usize = 8;

/// What a disk writes whole or not at all, and a write is cut at: the smallest sector there is.
pub const SECTOR: usize = 512;

/// A record with so many blank sectors or more is not told apart from a torn one.
const BLANK_MAX: u16 = u16::MAX;

const ENTRY: u8 = 1;
const VOTE: u8 = 2;
const TRUNCATE: u8 = 3;
const PURGE: u8 = 4;
const COMMITTED: u8 = 5;

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A raft log entry. The payload is opaque here.
    Entry {
        /// Term of the leader that created it.
        term: u64,
        /// Its index.
        index: u64,
        /// What it carries.
        payload: &'a [u8],
    },
    /// The vote that is in force from here on.
    Vote(Vote),
    /// Entries with an index above `after` are dropped; with None, all are.
    Truncate {
        /// The last index that stays.
        after: Option<u64>,
    },
    /// Everything up to and including this position is gone.
    Purge(LogPos),
    /// The committed position, for an exact replay after a restart.
    Committed(LogPos),
}

impl Record<'_> {
    /// Bytes that the record takes on disk.
    pub fn size(&self) -> usize {
        match self {
            Record::Entry { payload, .. } => size_with(payload.len()),
            _ => HEADER_BYTES,
        }
    }
}

/// Bytes that an entry with a payload of this length takes on disk.
pub fn size_with(payload: usize) -> usize {
    HEADER_BYTES + payload.next_multiple_of(ALIGN)
}

/// What ties a record to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Seed of the segment, see [`crate::segment::seed`].
    pub seed: u32,
    /// Crc of the record before; for the first record, the seed.
    pub previous: u32,
    /// Everything before this offset of the segment is durable.
    pub synced: u32,
    /// Where it begins in the segment.
    pub at: u32,
}

/// A record as found, with what ties it to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// The record.
    pub record: Record<'a>,
    /// Its own crc, which the next record repeats.
    pub crc: u32,
    /// The crc of the record before, as this one claims.
    pub previous: u32,
    /// See [`Link::synced`].
    pub synced: u32,
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// The bytes end before the record does.
    #[error("the record is cut short")]
    Short,
    /// The header's checksum is wrong.
    #[error("the checksum of the record's header is wrong")]
    Header,
    /// The payload's checksum is wrong, or the padding is not zero.
    #[error("the checksum of the record's payload is wrong")]
    Payload,
    /// The record does not follow the one before it.
    #[error("the record does not follow the one before it")]
    Chain,
    /// The checksums are right, but the content is not understood: a newer release, or a bug.
    #[error("a record of kind {kind} and flag {flag} is not understood")]
    Unknown {
        /// Its kind byte.
        kind: u8,
        /// Its flag byte.
        flag: u8,
    },
}

/// Appends the record to `out` and returns its crc.
///
/// The payload must be shorter than 4 GiB; the log refuses anything that does not fit a segment (at most 1 GiB).
pub fn encode(record: &Record<'_>, link: Link, out: &mut Vec<u8>) -> u32 {
    let (kind, flag, term, index, payload): (u8, u8, u64, u64, &[u8]) = match *record {
        Record::Entry { term, index, payload } => (ENTRY, 0, term, index, payload),
        Record::Vote(vote) => (VOTE, vote.committed.into(), vote.term, vote.node, b""),
        Record::Truncate { after } => (TRUNCATE, after.is_some().into(), 0, after.unwrap_or(0), b""),
        Record::Purge(pos) => (PURGE, 0, pos.term, pos.index, b""),
        Record::Committed(pos) => (COMMITTED, 0, pos.term, pos.index, b""),
    };
    let mut header = [0; HEADER_BYTES];
    header[0..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[8] = kind;
    header[9] = flag;
    header[10..12].copy_from_slice(&blank_sectors(payload, link.at as usize + HEADER_BYTES).to_le_bytes());
    header[12..16].copy_from_slice(&link.synced.to_le_bytes());
    header[16..24].copy_from_slice(&term.to_le_bytes());
    header[24..32].copy_from_slice(&index.to_le_bytes());
    header[32..36].copy_from_slice(&link.previous.to_le_bytes());
    header[36..40].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    let crc = header_crc(&header, link.seed);
    header[4..8].copy_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    out.resize(out.len() + payload.len().next_multiple_of(ALIGN) - payload.len(), 0);
    crc
}

/// Reads the record at the start of `bytes`, which may go on behind it. Whether it follows the record before is for
/// the caller to see from [`Found::previous`].
pub fn decode(bytes: &[u8], seed: u32) -> Result<Found<'_>, Flaw> {
    let header = check_header(bytes, seed)?;
    let length = u32_at(header, 0) as usize;
    let body = bytes.get(HEADER_BYTES..size_with(length)).ok_or(Flaw::Short)?;
    let (payload, padding) = body.split_at(length);
    if crc32c::crc32c(payload) != u32_at(header, 36) || padding.iter().any(|&byte| byte != 0) {
        return Err(Flaw::Payload);
    }
    let pos = LogPos { term: u64_at(header, 16), index: u64_at(header, 24) };
    let record = match (header[8], header[9]) {
        (ENTRY, 0) => Record::Entry { term: pos.term, index: pos.index, payload },
        (VOTE, flag @ (0 | 1)) => Record::Vote(Vote { term: pos.term, node: pos.index, committed: flag == 1 }),
        (TRUNCATE, 0) => Record::Truncate { after: None },
        (TRUNCATE, 1) => Record::Truncate { after: Some(pos.index) },
        (PURGE, 0) => Record::Purge(pos),
        (COMMITTED, 0) => Record::Committed(pos),
        (kind, flag) => return Err(Flaw::Unknown { kind, flag }),
    };
    Ok(Found { record, crc: u32_at(header, 4), previous: u32_at(header, 32), synced: u32_at(header, 12) })
}

/// Whether some record behind `bad` proves that what is at `bad` had been durable, and where. `bytes` is the whole
/// segment. Only headers are checked, so the time is linear whatever the payloads contain.
pub fn proof_of_durability(bytes: &[u8], bad: usize, seed: u32) -> Option<usize> {
    let first = (bad + 1).next_multiple_of(ALIGN);
    (first..bytes.len().saturating_sub(HEADER_BYTES - 1)).step_by(ALIGN).find(|&at| {
        let Some(header) = bytes[at..].first_chunk::<HEADER_BYTES>() else { return false };
        // The cheap test first: nearly all places fail it, and only the others pay for a checksum.
        let synced = u32_at(header, 12) as usize;
        synced > bad && synced <= at && header[8] != 0 && check_header(header, seed).is_ok()
    })
}

/// Whether the bad record at `at` can be a write that the power cut short, in a segment that was zeros before. Sectors
/// are written whole, so such a write left zeros in some of them. A record that misses no sector and is bad all the same
/// was written as a whole, and has changed since; then it may well have been acknowledged.
///
/// What it cannot tell: rot that turns a whole sector into zeros.
pub fn can_be_torn(bytes: &[u8], at: usize, seed: u32) -> bool {
    // Nothing can have been written where no header fits.
    let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= HEADER_BYTES) else { return true };
    if let Ok(header) = check_header(rest, seed) {
        let blank = u16::from_le_bytes([header[10], header[11]]);
        let payload = HEADER_BYTES..HEADER_BYTES.saturating_add(u32_at(header, 0) as usize);
        // Without the end of its payload the file itself was cut short.
        let Some(payload) = rest.get(payload) else { return false };
        return blank == BLANK_MAX || blank_sectors(payload, at + HEADER_BYTES) > blank;
    }
    // How long the record is, its header would have said. But the header lies in one sector or two, and what of it is in
    // a sector that was written is not zeros.
    sectors(&rest[..HEADER_BYTES], at).any(is_blank)
}

/// The parts of `bytes`, which begin at offset `at` of the file, by the file's sectors.
fn sectors(bytes: &[u8], at: usize) -> impl Iterator<Item = &[u8]> {
    let (first, rest) = bytes.split_at((at.next_multiple_of(SECTOR) - at).min(bytes.len()));
    std::iter::once(first).filter(|part| !part.is_empty()).chain(rest.chunks(SECTOR))
}

fn is_blank(part: &[u8]) -> bool {
    part.iter().all(|&byte| byte == 0)
}

/// Sectors that hold zeros of this payload and nothing else of its record, which ends where its padding does.
fn blank_sectors(payload: &[u8], at: usize) -> u16 {
    // The rest of the sector in which the header ends is not counted: the header is in it.
    let shared = (at.next_multiple_of(SECTOR) - at).min(payload.len());
    let blank = sectors(&payload[shared..], at + shared).filter(|part| is_blank(part)).count();
    u16::try_from(blank).unwrap_or(BLANK_MAX)
}

fn check_header(bytes: &[u8], seed: u32) -> Result<&[u8; HEADER_BYTES], Flaw> {
    let header = bytes.first_chunk::<HEADER_BYTES>().ok_or(Flaw::Short)?;
    if header_crc(header, seed) != u32_at(header, 4) { Err(Flaw::Header) } else { Ok(header) }
}

/// The length is covered too, because a wrong one misplaces everything that follows.
fn header_crc(header: &[u8; HEADER_BYTES], seed: u32) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &header[0..4]), &header[8..])
}

pub(crate) fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn u64_at<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: Link = Link { seed: 0x1234_5678, previous: 0x9abc_def0, synced: 128, at: 128 };

    fn all() -> Vec<Record<'static>> {
        vec![
            Record::Entry { term: 3, index: 7, payload: b"ferret" },
            Record::Entry { term: u64::MAX, index: 0, payload: b"" },
            Record::Vote(Vote { term: 4, node: 0xfeed, committed: false }),
            Record::Vote(Vote { term: 4, node: 0xfeed, committed: true }),
            Record::Truncate { after: Some(0) },
            Record::Truncate { after: None },
            Record::Purge(LogPos { term: 2, index: 6 }),
            Record::Committed(LogPos { term: 3, index: 7 }),
        ]
    }

    #[test]
    fn every_kind_comes_back_as_it_went() {
        for record in all() {
            let mut bytes = Vec::new();
            let crc = encode(&record, LINK, &mut bytes);
            assert_eq!(bytes.len(), record.size());
            bytes.extend_from_slice(b"what follows does not matter");
            let found = decode(&bytes, LINK.seed).unwrap();
            assert_eq!(found, Found { record, crc, previous: LINK.previous, synced: LINK.synced });
        }
    }

    #[test]
    fn the_format_is_these_bytes() {
        let mut bytes = Vec::new();
        encode(&all()[0], LINK, &mut bytes);
        #[rustfmt::skip]
        let golden = [
            6, 0, 0, 0,                   // length
            0xef, 0x0a, 0x8e, 0xd7,       // crc32c, computed elsewhere
            1, 0, 0, 0,                   // entry, no flag
            128, 0, 0, 0,                 // synced
            3, 0, 0, 0, 0, 0, 0, 0,       // term
            7, 0, 0, 0, 0, 0, 0, 0,       // index
            0xf0, 0xde, 0xbc, 0x9a,       // crc of the record before
            0x98, 0x3a, 0xd4, 0x19,       // crc of the payload
            b'f', b'e', b'r', b'r', b'e', b't', 0, 0,
        ];
        assert_eq!(bytes, golden);
    }

    #[test]
    fn any_flipped_bit_is_seen() {
        for record in all() {
            let mut bytes = Vec::new();
            encode(&record, LINK, &mut bytes);
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(decode(&bytes, LINK.seed).is_err(), "{record:?} with bit {bit} flipped");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn any_shortened_record_is_seen() {
        let mut bytes = Vec::new();
        encode(&all()[0], LINK, &mut bytes);
        for length in 0..bytes.len() {
            assert_eq!(decode(&bytes[..length], LINK.seed), Err(Flaw::Short));
        }
    }

    #[test]
    fn a_record_of_another_segment_is_none() {
        let mut bytes = Vec::new();
        encode(&all()[0], LINK, &mut bytes);
        assert_eq!(decode(&bytes, LINK.seed + 1), Err(Flaw::Header));
    }

    #[test]
    fn an_unknown_kind_with_right_checksums_is_named() {
        let mut bytes = Vec::new();
        encode(&all()[2], LINK, &mut bytes);
        bytes[8] = 77;
        let header = *bytes.first_chunk().unwrap();
        bytes[4..8].copy_from_slice(&header_crc(&header, LINK.seed).to_le_bytes());
        assert_eq!(decode(&bytes, LINK.seed), Err(Flaw::Unknown { kind: 77, flag: 0 }));
    }

    /// A record at this offset in a segment that was zeros.
    fn placed(at: usize, payload: &[u8]) -> (Vec<u8>, usize) {
        let mut bytes = vec![0; at];
        encode(&Record::Entry { term: 1, index: 1, payload }, Link { at: at as u32, ..LINK }, &mut bytes);
        let end = bytes.len();
        bytes.resize(end.next_multiple_of(SECTOR), 0);
        (bytes, end)
    }

    /// Payloads that are awkward: nothing but zeros, zeros in the middle, and none.
    fn payloads() -> [Vec<u8>; 4] {
        let hollow: Vec<u8> = (0..2500).map(|at| if (700..2200).contains(&at) { 0 } else { 0x5a }).collect();
        [vec![0x5a; 1700], vec![0; 1700], hollow, Vec::new()]
    }

    #[test]
    fn a_record_that_misses_sectors_can_be_torn() {
        for (at, payload) in [128, 472, 480, 496, 504, 1024].into_iter().flat_map(|at| payloads().map(|p| (at, p))) {
            let (whole, end) = placed(at, &payload);
            let first = at / SECTOR;
            let sectors = end.div_ceil(SECTOR) - first;
            for missing in 1u32..1 << sectors {
                let mut torn = whole.clone();
                for sector in (0..sectors).filter(|sector| missing >> sector & 1 == 1) {
                    let from = at.max((first + sector) * SECTOR);
                    torn[from..((first + sector + 1) * SECTOR)].fill(0);
                }
                // Where zeros were lost, nothing was.
                if torn != whole {
                    assert!(decode(&torn[at..], LINK.seed).is_err());
                    assert!(can_be_torn(&torn, at, LINK.seed), "at {at}, {} bytes, {missing:b}", payload.len());
                }
            }
        }
    }

    #[test]
    fn a_record_with_a_flipped_bit_cannot() {
        for (at, payload) in [128, 472, 480, 496, 504, 1024].into_iter().flat_map(|at| payloads().map(|p| (at, p))) {
            let (mut bytes, end) = placed(at, &payload);
            for bit in at * 8..end * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(!can_be_torn(&bytes, at, LINK.seed), "at {at}, {} bytes, bit {bit}", payload.len());
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn where_no_record_fits_none_is_missing_and_one_that_leaves_the_file_was_cut_off_with_it() {
        let (bytes, end) = placed(128, &[1; 300]);
        for place in [end, bytes.len() - HEADER_BYTES, bytes.len() - 8, bytes.len(), bytes.len() + 8] {
            assert!(can_be_torn(&bytes, place, LINK.seed), "{place}");
        }
        assert!(!can_be_torn(&bytes[..end - 8], 128, LINK.seed));
    }

    #[test]
    fn only_a_record_written_after_a_sync_beyond_the_bad_place_is_proof() {
        let mut bytes = vec![0; 128];
        encode(&all()[0], LINK, &mut bytes);
        let second = bytes.len();
        encode(&all()[0], LINK, &mut bytes);
        let third = bytes.len();
        encode(&all()[0], Link { synced: second as u32, ..LINK }, &mut bytes);
        assert_eq!(proof_of_durability(&bytes, 128, LINK.seed), Some(third));
        assert_eq!(proof_of_durability(&bytes, second, LINK.seed), None);
        assert_eq!(proof_of_durability(&bytes, 128, LINK.seed ^ 1), None);
        assert_eq!(proof_of_durability(&bytes, bytes.len(), LINK.seed), None);
    }
}
