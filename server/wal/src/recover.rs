//! From the bytes of a directory back to a log. [`replay_segment`] is pure; [`recover`] reads the files, and [`repair`]
//! makes the end of the last one fit to be written on.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{info, warn};

use crate::error::WalError;
use crate::fs::{File, Fs};
use crate::memory::Memory;
use crate::record;
use crate::segment::{self, BadHeader, Header};
use crate::wal::Identity;

/// A segment in use.
pub(crate) struct Segment {
    pub sequence: u32,
    pub path: PathBuf,
    pub file: Arc<dyn File>,
    /// Its length.
    pub bytes: u64,
    /// The index that was next when it began, see [`crate::LogState::next`].
    pub next_at_start: Option<u64>,
}

/// A log as found.
pub(crate) struct Log {
    pub memory: Memory,
    /// Oldest first; never empty.
    pub segments: VecDeque<Segment>,
    /// Purged segments whose removal did not become durable.
    pub leftovers: Vec<PathBuf>,
    /// Where the last segment ends.
    pub end: End,
    /// The last segment's bytes from [`End::synced`] on.
    pub tail: Vec<u8>,
}

/// Where the records of a segment end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// Behind the last record.
    pub offset: u32,
    /// Crc of the last record, or the seed.
    pub crc: u32,
    /// What is before this offset is known to have been durable.
    pub synced: u32,
}

/// Where a segment does not fit, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    pub offset: usize,
    pub reason: String,
}

/// Replays all records of a segment into `memory`. In the last segment (`next` is None) a bad record ends the log if a
/// write that was cut short can have left it so, and nothing proves that it had been durable; in any other, the records
/// must end where the next segment's header says.
pub(crate) fn replay_segment(
    memory: &mut Memory,
    bytes: &[u8],
    header: &Header,
    next: Option<&Header>,
) -> Result<End, Damage> {
    let seed = segment::seed(header.identity, header.sequence);
    let mut at = segment::HEADER_BYTES;
    let mut end = End { offset: at as u32, crc: seed, synced: at as u32 };
    let flaw = loop {
        let found = match record::decode(bytes.get(at..).unwrap_or_default(), seed) {
            Ok(found) if found.previous == end.crc && (end.synced..=at as u32).contains(&found.synced) => found,
            Ok(_) => break record::Flaw::Chain,
            Err(flaw @ record::Flaw::Unknown { .. }) => return Err(Damage { offset: at, reason: flaw.to_string() }),
            Err(flaw) => break flaw,
        };
        memory.replay(&found.record, header.sequence, at as u32).map_err(|rule| Damage { offset: at, reason: rule })?;
        at += found.record.size();
        end = End { offset: at as u32, crc: found.crc, synced: found.synced };
    };
    let reason = match next {
        None => match record::proof_of_durability(bytes, at, seed) {
            Some(proof) => Some(format!("{flaw}, yet the record at {proof} was written after it was durable")),
            // A record of this segment that follows another one than is there: no write that was cut short does that.
            None if header.blank && (flaw == record::Flaw::Chain || !record::can_be_torn(bytes, at, seed)) => {
                Some(format!("{flaw}, and no sector of it is missing as after a write that was cut short"))
            }
            None => None,
        },
        Some(next) if (next.previous_end, next.previous_crc) == (end.offset, end.crc) => {
            let disagrees = next.state != *memory.state();
            disagrees.then(|| "the next segment begins with another state than this one ends with".to_owned())
        }
        Some(next) => Some(format!("{flaw}, yet the next segment says that this one ends at {}", next.previous_end)),
    };
    reason.map_or(Ok(end), |reason| Err(Damage { offset: at, reason }))
}

/// The last index of the entries that were in segments before the first, if not all of them are purged. A segment goes
/// only when a purge of all before the next one is durable.
fn missing_until(first: &Header, memory: &Memory) -> Option<u64> {
    let first_kept = memory.state().purged.map_or(0, |purged| purged.index.saturating_add(1));
    first.state.next.filter(|&next| next > first_kept).map(|next| next - 1)
}

/// Reads the log in `dir`, of whose files `sequences` are the segments. None: there is no log yet. Changes nothing.
pub(crate) fn recover(
    fs: &dyn Fs,
    dir: &Path,
    mut sequences: Vec<u32>,
    identity: Identity,
    cache_bytes: usize,
) -> Result<Option<Log>, WalError> {
    sequences.sort_unstable();
    // Segments are removed oldest first, but a power loss may bring back some of them and not others. What lies before
    // a gap is such a remainder, or else the check for missing entries fails.
    let breaks = sequences.windows(2).rposition(|pair| pair[1] != pair[0] + 1).map_or(0, |at| at + 1);
    let leftovers = sequences.drain(..breaks).map(|sequence| dir.join(segment::name(sequence))).collect();
    let mut headers = Vec::with_capacity(sequences.len());
    for &sequence in &sequences {
        headers.push(read_header(fs, &dir.join(segment::name(sequence)), sequence, identity)?);
    }
    let Some((first, _)) = headers.first() else { return Ok(None) };

    let mut memory = Memory::new(first.state, cache_bytes);
    let mut segments = VecDeque::with_capacity(headers.len());
    let mut last = None;
    for (number, (header, file)) in headers.iter().enumerate() {
        let path = dir.join(segment::name(header.sequence));
        let bytes = read_whole(file.as_ref()).map_err(WalError::io("read", &path))?;
        let next = headers.get(number + 1).map(|(next, _)| next);
        let end = replay_segment(&mut memory, &bytes, header, next).map_err(|damage| WalError::Damaged {
            file: path.clone(),
            offset: damage.offset as u64,
            reason: damage.reason,
        })?;
        segments.push_back(Segment {
            sequence: header.sequence,
            path,
            file: file.clone(),
            bytes: bytes.len() as u64,
            next_at_start: header.state.next,
        });
        last = Some((end, bytes));
    }
    if let Some(until) = missing_until(first, &memory) {
        return Err(WalError::Missing { dir: dir.to_owned(), first: first.sequence, until });
    }
    Ok(last.map(|(end, mut bytes)| {
        let tail = bytes.split_off(end.synced as usize);
        Log { memory, segments, leftovers, end, tail }
    }))
}

/// Makes the last segment fit to be written on: what was read is durable, and what follows is zeros.
///
/// The records behind the last known sync are written again, because after a failed sync the page cache may show what
/// the disk never got, and a new sync would not write it. The rest is zeroed, because a later record of a torn batch
/// would be valid again if the one before it were written once more.
pub(crate) fn repair(fs: &dyn Fs, dir: &Path, log: &Log) -> Result<(), WalError> {
    let Some(Segment { path, file, .. }) = log.segments.back() else { return Ok(()) };
    let (kept, rest) = log.tail.split_at((log.end.offset - log.end.synced) as usize);
    let mut zeroed = 0;
    let done = || -> io::Result<()> {
        if !kept.is_empty() {
            file.write_at(log.end.synced.into(), kept)?;
        }
        let mut at = u64::from(log.end.offset);
        for piece in rest.chunks(ZERO_PIECE) {
            if piece.iter().any(|&byte| byte != 0) {
                file.write_at(at, &vec![0; piece.len()])?;
                zeroed += piece.len();
            }
            at += piece.len() as u64;
        }
        file.sync_all()?;
        fs.sync_dir(dir)
    }();
    done.map_err(WalError::io("repair the end of", path))?;
    for leftover in &log.leftovers {
        fs.remove(leftover).map_err(WalError::io("remove the purged segment", leftover))?;
        info!(file = %leftover.display(), "removed a purged log segment that was still there");
    }
    if zeroed > 0 {
        info!(file = %path.display(), offset = log.end.offset, zeroed, "cleared what follows the last record of the log");
    }
    Ok(())
}

/// Only pieces of this size that are not zero yet are written.
const ZERO_PIECE: usize = 64 << 10;

fn read_header(
    fs: &dyn Fs,
    path: &Path,
    sequence: u32,
    identity: Identity,
) -> Result<(Header, Arc<dyn File>), WalError> {
    let damaged = |reason: &str| WalError::Damaged { file: path.to_owned(), offset: 0, reason: reason.to_owned() };
    let file = fs.open(path).map_err(WalError::io("open", path))?;
    let length = file.len().map_err(WalError::io("read the length of", path))?;
    if length > segment::MAX_BYTES {
        return Err(damaged("it is longer than a segment can be"));
    }
    let mut bytes = vec![0; segment::HEADER_BYTES.min(length as usize)];
    file.read_at(0, &mut bytes).map_err(WalError::io("read", path))?;
    let header = Header::decode(&bytes).map_err(|bad| match bad {
        BadHeader::Damaged(reason) => damaged(reason),
        BadHeader::Newer(found) => WalError::NewerFormat { file: path.to_owned(), found, supported: segment::VERSION },
    })?;
    if header.identity != identity {
        return Err(WalError::Foreign { file: path.to_owned(), found: header.identity, expected: identity });
    }
    if header.sequence != sequence {
        warn!(file = %path.display(), sequence = header.sequence, "a log segment has the name of another");
        return Err(damaged("its header has another sequence number than its name"));
    }
    Ok((header, file))
}

fn read_whole(file: &dyn File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; file.len()? as usize];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::mem::MemFs;
    use crate::record::{Link, Record};
    use crate::state::LogState;
    use crate::wal::{Options, Wal};
    use ferretcd_fuzz::Fuzz;

    const HEADER: Header = Header {
        identity: Identity { cluster_id: 1, member_id: 2 },
        sequence: 3,
        previous_end: 0,
        previous_crc: 0,
        blank: true,
        state: LogState { vote: None, committed: None, purged: None, next: None },
    };

    fn entry(term: u64, index: u64) -> Record<'static> {
        Record::Entry { term, index, payload: b"payload" }
    }

    /// A segment with these records, each synced before the next.
    fn segment(records: &[Record<'_>]) -> Vec<u8> {
        let mut bytes = HEADER.encode().to_vec();
        let seed = segment::seed(HEADER.identity, HEADER.sequence);
        let mut previous = seed;
        for record in records {
            let synced = bytes.len() as u32;
            previous = record::encode(record, Link { seed, previous, synced, at: synced }, &mut bytes);
        }
        bytes.resize(4096, 0);
        bytes
    }

    fn replay(bytes: &[u8], next: Option<&Header>) -> Result<(End, Option<u64>), Damage> {
        let mut memory = Memory::new(HEADER.state, 0);
        let end = replay_segment(&mut memory, bytes, &HEADER, next)?;
        Ok((end, memory.state().next))
    }

    #[test]
    fn records_are_replayed_to_the_last() {
        let (end, next) = replay(&segment(&[entry(1, 0), entry(1, 1)]), None).unwrap();
        assert_eq!((end.offset, end.synced, next), (128 + 2 * 48, 128 + 48, Some(2)));
        let (end, next) = replay(&HEADER.encode(), None).unwrap();
        assert_eq!((end.offset, end.synced, next), (128, 128, None));
    }

    #[test]
    fn a_record_that_was_exchanged_for_another_breaks_the_chain() {
        let mut bytes = segment(&[entry(1, 0), entry(1, 1), entry(1, 2)]);
        let other = segment(&[entry(1, 0), entry(9, 1), entry(1, 2)]);
        bytes[128 + 48..128 + 96].copy_from_slice(&other[128 + 48..128 + 96]);
        let damage = replay(&bytes, None).unwrap_err();
        assert_eq!(damage.offset, 128 + 96, "the last does not follow this one");
        // The first releases wrote on what was there, so that it may be a rest of an earlier life.
        let mut memory = Memory::new(HEADER.state, 0);
        let end = replay_segment(&mut memory, &bytes, &Header { blank: false, ..HEADER }, None).unwrap();
        assert_eq!((end.offset, memory.state().next), (128 + 96, Some(2)), "nothing proves more");
    }

    #[test]
    fn a_record_with_an_impossible_sync_offset_is_none() {
        let mut bytes = HEADER.encode().to_vec();
        let seed = segment::seed(HEADER.identity, HEADER.sequence);
        record::encode(&entry(1, 0), Link { seed, previous: seed, synced: 4000, at: 128 }, &mut bytes);
        bytes.resize(4096, 0);
        assert_eq!(replay(&bytes, None).unwrap_err().offset, 128);
    }

    #[test]
    fn a_record_that_breaks_the_rules_is_damage_though_its_checksum_is_right() {
        let damage = replay(&segment(&[entry(1, 0), entry(1, 5)]), None).unwrap_err();
        assert_eq!(damage, Damage { offset: 176, reason: "entry 5 follows where entry 1 is due".into() });
    }

    #[test]
    fn the_next_segment_must_begin_where_and_as_this_one_ends() {
        let bytes = segment(&[entry(1, 0)]);
        let (end, next) = replay(&bytes, None).unwrap();
        let state = LogState { next, ..HEADER.state };
        let fits = Header { sequence: 4, previous_end: end.offset, previous_crc: end.crc, state, ..HEADER };
        replay(&bytes, Some(&fits)).unwrap();
        for bad in [
            Header { previous_end: 128, ..fits },
            Header { previous_crc: 0, ..fits },
            Header { state: HEADER.state, ..fits },
        ] {
            assert_eq!(replay(&bytes, Some(&bad)).unwrap_err().offset, 176);
        }
    }

    #[test]
    fn entries_of_segments_that_are_gone_must_be_purged() {
        let first = |next| Header { state: LogState { next, ..HEADER.state }, ..HEADER };
        let memory = |purged: Option<u64>| {
            let purged = purged.map(|index| crate::LogPos { term: 1, index });
            Memory::new(LogState { purged, next: Some(20), ..LogState::default() }, 0)
        };
        assert_eq!(missing_until(&first(None), &memory(None)), None);
        assert_eq!(missing_until(&first(Some(10)), &memory(None)), Some(9));
        assert_eq!(missing_until(&first(Some(10)), &memory(Some(8))), Some(9));
        assert_eq!(missing_until(&first(Some(10)), &memory(Some(9))), None);
    }

    const DIR: &str = "/wal";

    /// What numbers a segment is written from.
    struct Numbers<'a>(&'a [u8]);

    impl<'a> Numbers<'a> {
        fn byte(&mut self) -> Option<u8> {
            self.0.split_off_first().copied()
        }

        /// A small one is a byte, others have eight behind it.
        fn number(&mut self) -> u64 {
            let byte = self.byte().unwrap_or(0);
            match self.0.split_first_chunk::<8>() {
                Some((eight, rest)) if byte >= 0xf0 => {
                    self.0 = rest;
                    u64::from_le_bytes(*eight)
                }
                _ => byte.into(),
            }
        }

        fn pos(&mut self) -> crate::LogPos {
            crate::LogPos { term: self.number(), index: self.number() }
        }

        fn bytes(&mut self) -> &'a [u8] {
            let length = self.byte().unwrap_or(0);
            self.0.split_off(..self.0.len().min(length.into())).unwrap_or_default()
        }
    }

    /// A segment as somebody writes it who knows the format, its checksums and its chain: only what it says is at will.
    fn written(input: &[u8]) -> Vec<u8> {
        let mut input = Numbers(input);
        let has = input.byte().unwrap_or(0);
        let state = LogState {
            next: (has & 1 != 0).then(|| input.number()),
            vote: (has & 2 != 0).then(|| {
                let crate::LogPos { term, index: node } = input.pos();
                crate::Vote { term, node, committed: has & 4 != 0 }
            }),
            purged: (has & 8 != 0).then(|| input.pos()),
            committed: (has & 16 != 0).then(|| input.pos()),
        };
        let previous_end = if has & 32 != 0 { input.number() as u32 } else { 0 };
        let mut bytes = Header { state, previous_end, ..HEADER }.encode().to_vec();
        let seed = segment::seed(HEADER.identity, HEADER.sequence);
        let mut previous = seed;
        while let Some(kind) = input.byte().filter(|_| bytes.len() < 16 << 10) {
            let record = match kind % 8 {
                0..3 => Record::Entry { term: input.number(), index: input.number(), payload: input.bytes() },
                3 => {
                    let crate::LogPos { term, index: node } = input.pos();
                    Record::Vote(crate::Vote { term, node, committed: kind & 8 != 0 })
                }
                4 => Record::Truncate { after: Some(input.number()) },
                5 => Record::Truncate { after: None },
                6 => Record::Purge(input.pos()),
                _ => Record::Committed(input.pos()),
            };
            let synced = if kind < 128 { bytes.len() as u32 } else { input.number() as u32 };
            let at = bytes.len() as u32;
            previous = record::encode(&record, Link { seed, previous, synced, at }, &mut bytes);
        }
        bytes.resize(bytes.len().max(4096).next_multiple_of(4096), 0);
        bytes
    }

    fn open_log(fs: &MemFs) -> Result<(Wal, u64, u64), String> {
        let options = Options { segment_bytes: 4096, cache_bytes: 0, ..Options::default() };
        let opened = Wal::open_inline(Arc::new(fs.clone()), Path::new(DIR), options, HEADER.identity);
        let (wal, _) = opened.map_err(|e| e.to_string())?;
        let (first, end) = (wal.first_index(), wal.end_index());
        let read = wal.read(first, u64::MAX, 1 << 20).map_err(|e| e.to_string())?;
        assert_eq!(read.first().map_or(end, |entry| entry.index), if read.is_empty() { end } else { first });
        Ok((wal, first, end))
    }

    fn open_file(fs: &MemFs, bytes: Vec<u8>) -> Result<(Wal, u64, u64), String> {
        fs.set_contents(&Path::new(DIR).join(segment::name(HEADER.sequence)), bytes);
        open_log(fs)
    }

    #[test]
    fn fuzz_log_records() {
        // Entries 0 and 1, a vote, entry 2, committed up to 1, purged up to 0, cut behind 1, entry 2 anew; and one that
        // goes on from a header.
        let seeds: [&[u8]; 2] = [
            b"\0\0\x01\0\x02ab\0\x01\x01\0\x0b\x02\x02\0\x02\x02\x01c\x07\x01\x01\x06\x01\0\x04\x01\0\x03\x02\0",
            b"\x09\x07\x01\x06\0\x01\x07\0",
        ];
        let fs = MemFs::new();
        let next = |seed: &[u8]| open_file(&fs.fork(), written(seed)).map(|(_, _, end)| end);
        assert_eq!(seeds.map(next), [Ok(3), Ok(8)]);
        let fuzz = Fuzz::new(env!("CARGO_MANIFEST_DIR"), "log_records").seeds(seeds);
        fuzz.run(|bytes| {
            let fs = fs.fork();
            let (wal, first, end) = match open_file(&fs, written(bytes)) {
                Ok(opened) => opened,
                Err(why) => return why,
            };
            let said = format!("{} {:?} {:?}", "x".repeat((end - first).min(9) as usize), wal.vote(), wal.purged());
            // It can be gone on with, and is found again with what came.
            if end < u64::MAX {
                let entry = crate::Entry { term: 9, index: end, payload: vec![1; 3].into() };
                wal.append(vec![entry], Box::new(|done| done.unwrap()));
                drop(wal);
                let (_, first_again, end_again) = open_log(&fs).expect("a log that was opened opens again");
                assert_eq!((first_again, end_again), (if first == end { end } else { first }, end + 1));
            }
            said
        });
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut noise = 1u64;
        for round in 0..2000 {
            let mut bytes = segment(&[entry(1, 0), entry(1, 1), Record::Truncate { after: None }]);
            for _ in 0..=round % 7 {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                bytes[(noise >> 33) as usize % 300] = (noise >> 50) as u8;
            }
            bytes.truncate(if round % 3 == 0 { (noise >> 40) as usize % 400 } else { 4096 });
            let _ = replay(&bytes, None);
        }
    }
}
