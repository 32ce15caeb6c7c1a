//! What a server lives through with its log: restarts, purges, damage, failing disks.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use ferretcd_wal::fs::mem::{Call, MemFs, PowerLoss};
use ferretcd_wal::fs::{File, Fs, Lock};
use ferretcd_wal::{Done, Entry, Identity, LogPos, Observer, Options, OsFs, Recovered, Vote, Wal, WalError};

const IDENTITY: Identity = Identity { cluster_id: 0xc1, member_id: 0xfe44e7 };

fn dir() -> &'static Path {
    Path::new("/wal")
}

/// Segments small enough that a few entries fill one, and no payload cache, so that reads come from the files.
fn small() -> Options {
    Options { segment_bytes: 4096, cache_bytes: 0, ..Options::default() }
}

fn open(fs: &MemFs) -> (Wal, Recovered) {
    Wal::open_inline(Arc::new(fs.clone()), dir(), small(), IDENTITY).unwrap()
}

fn refused(fs: &MemFs) -> WalError {
    Wal::open_inline(Arc::new(fs.clone()), dir(), small(), IDENTITY).expect_err("this log must be refused")
}

fn pos(term: u64, index: u64) -> LogPos {
    LogPos { term, index }
}

fn entry(term: u64, index: u64, size: usize) -> Entry {
    let payload: Vec<u8> = (0..size).map(|at| (at as u64 + index * 7 + term * 31) as u8).collect();
    Entry { term, index, payload: payload.into() }
}

fn entries(term: u64, indexes: std::ops::Range<u64>, size: usize) -> Vec<Entry> {
    indexes.map(|index| entry(term, index, size)).collect()
}

/// A callback, and where its answer arrives.
fn answer() -> (Done, Receiver<io::Result<()>>) {
    let (sender, receiver) = mpsc::channel();
    (Box::new(move |result| sender.send(result).unwrap()), receiver)
}

/// Hands over one request and waits for its answer; the wait ends a test that hangs.
fn wait(request: impl FnOnce(Done)) -> io::Result<()> {
    let (done, answered) = answer();
    request(done);
    answered.recv_timeout(Duration::from_secs(60)).expect("an answer")
}

fn append(wal: &Wal, entries: Vec<Entry>) -> io::Result<()> {
    wait(|done| wal.append(entries, done))
}

fn all(wal: &Wal) -> Vec<Entry> {
    wal.read(wal.first_index(), u64::MAX, usize::MAX).unwrap()
}

fn segment(sequence: u32) -> PathBuf {
    dir().join(format!("{sequence:08x}.wal"))
}

fn files(fs: &MemFs, suffix: &str) -> usize {
    fs.list(dir()).unwrap().iter().filter(|name| name.ends_with(suffix)).count()
}

#[test]
fn a_new_log_is_empty() {
    let (wal, recovered) = open(&MemFs::new());
    let empty = Recovered { vote: None, committed: None, purged: None, last: None, first_index: 0, end_index: 0 };
    assert_eq!(recovered, empty);
    assert_eq!(wal.read(0, 10, 1000).unwrap(), []);
    assert_eq!((wal.last(), wal.vote(), wal.term_of(0)), (None, None, None));
}

#[test]
fn everything_is_there_after_a_restart() {
    let fs = MemFs::new();
    let (wal, _) = open(&fs);
    let vote = Vote { term: 2, node: 7, committed: true };
    append(&wal, entries(1, 0..60, 300)).unwrap();
    wait(|done| wal.save_vote(vote, done)).unwrap();
    wal.save_committed(pos(1, 58)).unwrap();
    append(&wal, entries(2, 60..62, 0)).unwrap();
    wal.close().unwrap();

    let (wal, recovered) = open(&fs);
    assert_eq!(
        recovered,
        Recovered {
            vote: Some(vote),
            committed: Some(pos(1, 58)),
            purged: None,
            last: Some(pos(2, 61)),
            first_index: 0,
            end_index: 62
        }
    );
    let expected: Vec<Entry> = entries(1, 0..60, 300).into_iter().chain(entries(2, 60..62, 0)).collect();
    assert_eq!(all(&wal), expected);
    assert!(files(&fs, ".wal") > 4, "the story needs several segments");
    append(&wal, entries(2, 62..63, 10)).unwrap();
}

#[test]
fn the_same_on_real_files_with_threads() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("member/wal");
    let open = || Wal::open(Arc::new(OsFs), &dir, Options { segment_bytes: 64 << 10, ..small() }, IDENTITY).unwrap();
    let (wal, _) = open();
    for index in 0..200 {
        append(&wal, vec![entry(1, index, 1000)]).unwrap();
    }
    assert_eq!(all(&wal), entries(1, 0..200, 1000));
    wait(|done| wal.purge(pos(1, 150), done)).unwrap();
    wal.close().unwrap();
    let (wal, recovered) = open();
    assert_eq!((recovered.first_index, recovered.last), (151, Some(pos(1, 199))));
    assert_eq!(all(&wal), entries(1, 151..200, 1000));
    let on_disk: u64 = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    wal.close().unwrap();
    assert!(on_disk <= 5 * (64 << 10), "{on_disk} bytes are left after the purge");
}
