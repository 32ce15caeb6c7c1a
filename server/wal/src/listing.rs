//! What a log's directory holds, for people who look into one: read and checked as at a start, and not changed.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::WalError;
use crate::fs::{Fs, Lock};
use crate::record::{self, Record};
use crate::recover::{self, Log};
use crate::segment;
use crate::state::LogState;
use crate::wal::{Identity, Recovered};

/// A log, as its files tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// What opening it would find.
    pub recovered: Recovered,
    /// Its segments, oldest first; empty where no log was begun.
    pub segments: Vec<ListedSegment>,
}

/// One segment of a [`Listing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedSegment {
    /// Its number.
    pub sequence: u32,
    /// Its file.
    pub path: PathBuf,
    /// Length of the file in bytes, unused zeros included.
    pub bytes: u64,
    /// Bytes of its header and records.
    pub used_bytes: u64,
    /// The index that was next when it began; None before the first entry of all.
    pub next_at_start: Option<u64>,
}

/// Keeps other processes from opening the log in `dir` while the guard lives. None where no log was ever opened: a look
/// makes no lock file.
///
/// # Errors
/// [`WalError::Locked`] when another process has it open.
pub fn lock(fs: &dyn Fs, dir: &Path) -> Result<Option<Box<dyn Lock>>, WalError> {
    let path = dir.join("LOCK");
    if !fs.list(dir).map_err(WalError::io("list", dir))?.iter().any(|name| name == "LOCK") {
        return Ok(None);
    }
    fs.lock(&path).map(Some).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => WalError::Locked { path: path.clone() },
        _ => WalError::Io { what: "lock", path: path.clone(), source: error },
    })
}

/// Reads the log in `dir` and hands every record over, oldest first, with its segment's number and its offset. The
/// caller holds [`lock`].
///
/// # Errors
/// Those of [`crate::Wal::open`]. Nothing was changed.
pub fn list(
    fs: &dyn Fs,
    dir: &Path,
    identity: Identity,
    mut visit: impl FnMut(u32, u64, &Record<'_>),
) -> Result<Listing, WalError> {
    let names = fs.list(dir).map_err(WalError::io("list", dir))?;
    let sequences = names.iter().filter_map(|name| segment::sequence_of(name)).collect();
    let Some(Log { memory, segments, end, .. }) = recover::recover(fs, dir, sequences, identity, 0)? else {
        let nothing = Recovered { vote: None, committed: None, purged: None, last: None, first_index: 0, end_index: 0 };
        return Ok(Listing { recovered: nothing, segments: Vec::new() });
    };
    let mut listed = Vec::with_capacity(segments.len());
    for (number, segment) in segments.iter().enumerate() {
        let is_last = number + 1 == segments.len();
        let mut bytes = vec![0; segment.bytes as usize];
        segment.file.read_at(0, &mut bytes).map_err(WalError::io("read", &segment.path))?;
        let seed = segment::seed(identity, segment.sequence);
        let mut at = segment::HEADER_BYTES;
        // The records were checked: they go on to where the last segment ends, and in the others to the first zeros.
        while let Ok(found) = record::decode(bytes.get(at..).unwrap_or_default(), seed) {
            if is_last && at >= end.offset as usize {
                break;
            }
            visit(segment.sequence, at as u64, &found.record);
            at += found.record.size();
        }
        listed.push(ListedSegment {
            sequence: segment.sequence,
            path: segment.path.clone(),
            bytes: segment.bytes,
            used_bytes: at as u64,
            next_at_start: segment.next_at_start,
        });
    }
    let LogState { vote, committed, purged, next: _ } = *memory.state();
    let (first_index, end_index) = (memory.first_index(), memory.end_index());
    let recovered = Recovered { vote, committed, purged, last: memory.last(), first_index, end_index };
    Ok(Listing { recovered, segments: listed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::OsFs;
    use crate::state::{LogPos, Vote};
    use crate::wal::{Entry, Options, Wal};
    use std::sync::Arc;

    const ME: Identity = Identity { cluster_id: 1, member_id: 2 };

    #[test]
    fn a_look_tells_every_record_and_changes_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("wal");
        let options = Options { segment_bytes: 4096, ..Options::default() };
        let (wal, _) = Wal::open_inline(Arc::new(OsFs), &dir, options, ME).unwrap();
        wal.save_vote(Vote { term: 1, node: 2, committed: true }, Box::new(|done| done.unwrap()));
        for index in 0..4 {
            let entry = Entry { term: 1, index, payload: vec![b'x'; 1500].into() };
            wal.append(vec![entry], Box::new(|done| done.unwrap()));
        }
        assert!(matches!(lock(&OsFs, &dir), Err(WalError::Locked { .. })));
        wal.close().unwrap();
        let _held = lock(&OsFs, &dir).unwrap().unwrap();

        let contents = || {
            let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().path()).collect();
            files.sort();
            files.into_iter().map(|file| (std::fs::read(&file).unwrap(), file)).collect::<Vec<_>>()
        };
        let before = contents();
        let mut indexes = Vec::new();
        let listing = list(&OsFs, &dir, ME, |segment, _, record| {
            if let Record::Entry { index, .. } = record {
                indexes.push((segment, *index));
            }
        });
        let listing = listing.unwrap();
        assert_eq!(indexes, [(1, 0), (1, 1), (2, 2), (2, 3)]);
        assert_eq!(listing.recovered.last, Some(LogPos { term: 1, index: 3 }));
        assert_eq!(listing.segments.len(), 2);
        assert!(listing.segments[1].used_bytes > 3000 && listing.segments[1].used_bytes <= 4096);
        assert!(before == contents(), "a file changed");
        let other = Identity { member_id: 3, ..ME };
        assert!(matches!(list(&OsFs, &dir, other, |_, _, _| {}), Err(WalError::Foreign { .. })));
    }

    #[test]
    fn an_empty_directory_has_no_log() {
        let tmp = tempfile::tempdir().unwrap();
        assert!(lock(&OsFs, tmp.path()).unwrap().is_none());
        assert!(list(&OsFs, tmp.path(), ME, |_, _, _| {}).unwrap().segments.is_empty());
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
        assert!(list(&OsFs, &tmp.path().join("none"), ME, |_, _, _| {}).is_err());
    }
}
