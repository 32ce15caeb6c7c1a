//! Logs as releases left them, byte for byte: each is read, and the newest is still written so.

// The helpers of a test fail it by panicking; clippy knows only functions marked as tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ferretcd_wal::fs::Fs;
use ferretcd_wal::fs::mem::MemFs;
use ferretcd_wal::{Entry, Identity, LogPos, Options, Recovered, Vote, Wal, WalError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const IDENTITY: Identity = Identity { cluster_id: 0xc1, member_id: 0xfe44e7 };
const VOTE: Vote = Vote { term: 1, node: 0xfe44e7, committed: true };

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A disk with the segments of a golden folder.
fn golden(name: &str) -> MemFs {
    let fs = MemFs::new();
    for file in std::fs::read_dir(folder(name)).unwrap() {
        let file = file.unwrap();
        let path = Path::new("/wal").join(file.file_name());
        fs.create(&path).unwrap();
        fs.set_contents(&path, std::fs::read(file.path()).unwrap());
    }
    fs
}

fn open(fs: &MemFs) -> Result<(Wal, Recovered), WalError> {
    let options = Options { segment_bytes: 4096, cache_bytes: 0, ..Options::default() };
    Wal::open_inline(Arc::new(fs.clone()), Path::new("/wal"), options, IDENTITY)
}

fn entry(index: u64) -> Entry {
    let payload: Vec<u8> = (0..300u64).map(|at| (at + index * 7) as u8).collect();
    Entry { term: 1, index, payload: payload.into() }
}

/// Longer than a sector.
fn zeros() -> Entry {
    Entry { term: 2, index: 29, payload: vec![0; 1200].into() }
}

/// The log that each folder holds, as its release wrote it before it was killed.
fn write(fs: &MemFs) {
    let (wal, _) = open(fs).unwrap();
    let ok = || Box::new(|done: std::io::Result<()>| done.unwrap());
    wal.save_vote(VOTE, ok());
    for index in 0..30 {
        wal.append(vec![entry(index)], ok());
        if index == 20 {
            wal.purge(LogPos { term: 1, index: 20 }, ok());
        }
    }
    wal.truncate_after(Some(28), ok());
    wal.append(vec![zeros()], ok());
    wal.save_committed(LogPos { term: 1, index: 28 }).unwrap();
}

fn holds(fs: &MemFs, committed: Option<LogPos>, entries: &[Entry]) {
    let (wal, found) = open(fs).unwrap();
    let last = entries.last().map(|last| LogPos { term: last.term, index: last.index });
    let purged = Some(LogPos { term: 1, index: 20 });
    let end_index = entries.last().unwrap().index + 1;
    assert_eq!(found, Recovered { vote: Some(VOTE), committed, purged, last, first_index: 21, end_index });
    assert_eq!(wal.read(21, 100, usize::MAX).unwrap(), entries);
    // And it goes on.
    wal.append(vec![Entry { term: 3, index: end_index, payload: vec![7; 900].into() }], Box::new(|done| done.unwrap()));
}

#[test]
fn every_release_s_log_is_read() {
    let committed = Some(LogPos { term: 1, index: 28 });
    let entries: Vec<Entry> = (21..29).map(entry).chain([zeros()]).collect();
    for name in ["first-release", "blank"] {
        holds(&golden(name), committed, &entries);
    }
}

#[test]
fn the_first_releases_left_older_records_behind_the_end() {
    let fs = golden("first-release");
    // As it was when the third segment was the last: a used one, whose older records are not zeros.
    fs.remove(Path::new("/wal/00000004.wal")).unwrap();
    let third = fs.contents(Path::new("/wal/00000003.wal")).unwrap();
    assert!(third[2920..].iter().any(|byte| *byte != 0));
    holds(&fs, None, &(21..29).map(entry).collect::<Vec<_>>());
    // They cut off what they could not read, and so it stays for their segments.
    let fs = golden("first-release");
    let path = Path::new("/wal/00000004.wal");
    let mut fourth = fs.contents(path).unwrap();
    fourth[1368 + 20] ^= 1;
    fs.set_contents(path, fourth);
    assert_eq!(open(&fs).unwrap().1.committed, None);
}

#[test]
fn this_release_writes_these_bytes() {
    let fs = MemFs::new();
    write(&fs);
    let now = fs.fork();
    let names: Vec<String> =
        now.list(Path::new("/wal")).unwrap().into_iter().filter(|name| name.ends_with(".wal")).collect();
    assert_eq!(names, ["00000002.wal", "00000003.wal", "00000004.wal"]);
    for name in names {
        let bytes = now.contents(&Path::new("/wal").join(&name)).unwrap();
        // After a change of the format: a new folder for it, and this one stays to be read.
        if std::env::var_os("FERRETCD_WRITE_GOLDEN").is_some() {
            std::fs::write(folder("blank").join(&name), &bytes).unwrap();
        }
        assert!(bytes == std::fs::read(folder("blank").join(&name)).unwrap(), "{name} is written in another way");
    }
}
