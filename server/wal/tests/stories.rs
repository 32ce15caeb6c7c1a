//! What a server lives through with its log: restarts, purges, damage, failing disks.

// The helpers of a test fail it by panicking; clippy knows only functions marked as tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

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
fn a_committed_position_that_no_request_follows_is_written_all_the_same() {
    struct Writes(Mutex<mpsc::Sender<u64>>);
    impl Observer for Writes {
        fn fsync_duration(&self, _: Duration) {}
        fn write_duration(&self, _: Duration) {}
        fn written(&self, bytes: u64) {
            let _ = self.0.lock().unwrap().send(bytes);
        }
    }
    let (sender, written) = mpsc::channel();
    let options = Options { observer: Arc::new(Writes(Mutex::new(sender))), ..small() };
    let (wal, _) = Wal::open(Arc::new(MemFs::new()), dir(), options, IDENTITY).unwrap();
    append(&wal, entries(1, 0..3, 10)).unwrap();
    written.recv_timeout(Duration::from_secs(60)).unwrap();
    // Once right behind the entries, and once when the writer has fallen asleep.
    for index in [1, 2] {
        wal.save_committed(pos(1, index)).unwrap();
        written.recv_timeout(Duration::from_secs(60)).unwrap();
    }
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

/// A sync into blocks that are there need not write where they are.
#[test]
fn the_blocks_of_a_new_segment_are_there_before_it_is_written() {
    use std::os::unix::fs::MetadataExt;
    let home = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 4 << 20, ..small() };
    let (wal, _) = Wal::open(Arc::new(OsFs), home.path(), options, IDENTITY).unwrap();
    append(&wal, vec![entry(1, 0, 100)]).unwrap();
    wal.close().unwrap();
    let mut segments = 0;
    for file in std::fs::read_dir(home.path()).unwrap().map(Result::unwrap) {
        let (name, found) = (file.file_name(), file.metadata().unwrap());
        if name.to_str().unwrap().ends_with(".wal") {
            segments += 1;
            assert_eq!(found.len(), 4 << 20);
            assert!(found.blocks() * 512 >= found.len(), "{name:?} has {} blocks", found.blocks());
        }
    }
    assert_eq!(segments, 1);
}

#[test]
fn other_terms_replace_what_was_truncated() {
    let fs = MemFs::new();
    let (wal, _) = open(&fs);
    append(&wal, entries(1, 0..40, 300)).unwrap();
    wait(|done| wal.truncate_after(Some(9), done)).unwrap();
    assert_eq!((wal.last(), wal.term_of(10)), (Some(pos(1, 9)), None));
    append(&wal, entries(5, 10..30, 100)).unwrap();
    let expected: Vec<Entry> = entries(1, 0..10, 300).into_iter().chain(entries(5, 10..30, 100)).collect();
    assert_eq!(all(&wal), expected);
    wal.close().unwrap();

    let (wal, recovered) = open(&fs);
    assert_eq!(recovered.last, Some(pos(5, 29)));
    assert_eq!(all(&wal), expected);
    assert_eq!((wal.term_of(9), wal.term_of(10)), (Some(1), Some(5)));

    wait(|done| wal.truncate_after(None, done)).unwrap();
    assert_eq!(wal.last(), None);
    append(&wal, entries(6, 0..2, 1)).unwrap();
    wal.close().unwrap();
    assert_eq!(all(&open(&fs).0), entries(6, 0..2, 1));
}

#[test]
fn the_log_behind_an_entry_is_as_long_as_its_records() {
    let fs = MemFs::new();
    let (wal, _) = open(&fs);
    assert_eq!(wal.bytes_behind(0), 0, "a segment that is ready counts for nothing");
    append(&wal, entries(1, 0..200, 300)).unwrap();
    for (behind, records) in [(0, 199), (99, 100), (198, 1), (199, 0), (500, 0)] {
        let (bytes, least) = (wal.bytes_behind(behind), records * 300);
        // Segments of this size hold 11 such records, with their heads, and some room.
        assert!((least..=least * 4 / 3 + 40).contains(&bytes), "{bytes} behind {behind}, of {least}");
    }
    wait(|done| wal.purge(pos(1, 149), done)).unwrap();
    assert_eq!(wal.bytes_behind(0), wal.bytes_behind(149), "what is gone does not count");
}

#[test]
fn of_appends_that_are_durable_together_the_last_answers_for_those_before_it_unless_they_failed() {
    for fails in [false, true] {
        let fs = MemFs::new();
        let (wal, _) = Wal::open_driven(Arc::new(fs.clone()), dir(), small(), IDENTITY, Box::new(|| ())).unwrap();
        let (sender, answers) = mpsc::channel();
        let numbered = |number: u64| -> Done {
            let sender = sender.clone();
            Box::new(move |result| sender.send((number, result.is_ok())).unwrap())
        };
        for index in 0..3 {
            wal.append_covered(entries(1, index..index + 1, 10), numbered(index));
        }
        wal.truncate_after(Some(1), numbered(3));
        wal.append_covered(entries(1, 2..3, 10), numbered(4));
        wal.append(entries(1, 3..4, 10), numbered(5));
        wal.append_covered(entries(1, 4..5, 10), numbered(6));
        if fails {
            fs.fail(Call::Sync, 0, io::ErrorKind::StorageFull);
        }
        wal.drive();
        let called: Vec<_> = answers.try_iter().collect();
        match fails {
            false => assert_eq!(called, [2, 3, 4, 5, 6].map(|number| (number, true))),
            true => assert_eq!(called, [0, 1, 2, 3, 4, 5, 6].map(|number| (number, false))),
        }
    }
}

#[test]
fn purged_segments_are_used_again() {
    let fs = MemFs::new();
    let (wal, _) = open(&fs);
    wait(|done| wal.save_vote(Vote { term: 1, node: 1, committed: true }, done)).unwrap();
    for round in 0..50 {
        append(&wal, entries(1, round * 20..(round + 1) * 20, 300)).unwrap();
        wait(|done| wal.purge(pos(1, round * 20 + 14), done)).unwrap();
        assert_eq!(wal.first_index(), round * 20 + 15);
        assert!(wal.disk_bytes() <= 6 * 4096, "{} bytes in round {round}", wal.disk_bytes());
        if round % 7 == 3 {
            // A restart in the middle, without a proper end.
            let (again, _) = open(&fs.fork());
            assert_eq!(all(&again), all(&wal));
        }
    }
    assert!(files(&fs, ".spare") <= 2);
    assert!(fs.calls_of(Call::Create) < 20, "{} files created for some 90 segments", fs.calls_of(Call::Create));
    wal.close().unwrap();

    let (wal, recovered) = open(&fs);
    assert_eq!((recovered.purged, recovered.first_index), (Some(pos(1, 994)), 995));
    assert_eq!(recovered.vote, Some(Vote { term: 1, node: 1, committed: true }), "from a header: its record is gone");
    assert_eq!(all(&wal), entries(1, 995..1000, 300));
    assert_eq!((wal.term_of(994), wal.term_of(993)), (Some(1), None));
    assert_eq!(wal.read(994, 996, 1).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn purged_segments_that_could_not_be_removed_go_at_the_next_start() {
    let fs = MemFs::new();
    let (wal, _) = open(&fs);
    append(&wal, entries(1, 0..60, 300)).unwrap();
    for skip in 0..10 {
        fs.fail(Call::Rename, skip, io::ErrorKind::PermissionDenied);
        fs.fail(Call::Remove, skip, io::ErrorKind::PermissionDenied);
    }
    wait(|done| wal.purge(pos(1, 59), done)).unwrap();
    assert_eq!(files(&fs, ".wal"), 6);
    let fs = fs.fork();
    assert_eq!(open(&fs).1.first_index, 60);
    assert_eq!((files(&fs, ".wal"), files(&fs, ".spare")), (1, 2));
}

#[test]
fn a_purged_segment_that_comes_back_from_a_power_loss_is_removed() {
    let fs = MemFs::new();
    let (wal, _) = open(&fs);
    append(&wal, entries(1, 0..60, 300)).unwrap();
    let first = fs.contents(&segment(1)).unwrap();
    wait(|done| wal.purge(pos(1, 45), done)).unwrap();
    let fs = fs.fork();
    assert!(fs.contents(&segment(1)).is_err() && fs.contents(&segment(2)).is_err());
    fs.set_contents(&segment(1), first);
    assert_eq!(all(&open(&fs).0), entries(1, 46..60, 300));
    assert!(fs.contents(&segment(1)).is_err());
}

#[test]
fn a_purge_beyond_the_end_moves_the_log_there() {
    let fs = MemFs::new();
    let (wal, _) = open(&fs);
    append(&wal, entries(1, 0..5, 10)).unwrap();
    wait(|done| wal.purge(pos(9, 1000), done)).unwrap();
    assert_eq!((wal.last(), wal.first_index(), wal.end_index()), (Some(pos(9, 1000)), 1001, 1001));
    wait(|done| wal.purge(pos(1, 3), done)).unwrap();
    assert_eq!(wal.purged(), Some(pos(9, 1000)), "a purge never goes back");
    assert!(append(&wal, entries(9, 5..6, 10)).is_err());
    append(&wal, entries(9, 1001..1003, 10)).unwrap();
    wal.close().unwrap();
    let (wal, recovered) = open(&fs);
    assert_eq!((recovered.purged, recovered.last), (Some(pos(9, 1000)), Some(pos(9, 1002))));
    assert_eq!(all(&wal), entries(9, 1001..1003, 10));
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let (wal, _) = open(&MemFs::new());
    append(&wal, entries(1, 0..10, 10)).unwrap();
    wait(|done| wal.purge(pos(1, 4), done)).unwrap();
    let refuse = |problem: io::Result<()>, text: &str| {
        let error = problem.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(text), "{error}");
    };
    refuse(append(&wal, entries(1, 11..12, 10)), "entry 11 follows where entry 10 is due");
    refuse(append(&wal, entries(1, 9..12, 10)), "entry 9 follows where entry 10 is due");
    refuse(append(&wal, vec![entry(1, 10, 1), entry(1, 12, 1)]), "entry 12 follows where entry 11 is due");
    refuse(append(&wal, entries(1, 10..11, 4096 - 128 - 40 + 1)), "does not fit a log segment of 4096 bytes");
    refuse(wait(|done| wal.truncate_after(Some(3), done)), "is purged");
    refuse(wait(|done| wal.truncate_after(None, done)), "is purged");
    append(&wal, entries(1, 10..11, 4096 - 128 - 40)).unwrap();
    assert_eq!(wal.read(9, 11, usize::MAX).unwrap().len(), 2);
}

#[test]
fn reads_are_bounded_and_come_from_memory_or_disk() {
    for cache_bytes in [0, 500, 1 << 20] {
        let fs = Arc::new(MemFs::new());
        let (wal, _) = Wal::open_inline(fs, dir(), Options { cache_bytes, ..small() }, IDENTITY).unwrap();
        append(&wal, entries(1, 0..60, 300)).unwrap();
        assert_eq!(wal.in_memory(0), cache_bytes == 1 << 20);
        assert_eq!(wal.in_memory(59), cache_bytes > 0);
        assert!(wal.in_memory(60));
        assert_eq!(wal.read(0, 60, usize::MAX).unwrap(), entries(1, 0..60, 300));
        assert_eq!(wal.read(55, 999, usize::MAX).unwrap(), entries(1, 55..60, 300));
        assert_eq!(wal.read(7, 60, 0).unwrap(), entries(1, 7..8, 300), "always one");
        assert_eq!(wal.read(7, 60, 3 * 340).unwrap(), entries(1, 7..10, 300));
        assert_eq!(wal.read(7, 60, 3 * 340 - 1).unwrap(), entries(1, 7..9, 300));
        assert_eq!(wal.read(60, 70, 1).unwrap(), []);
        assert_eq!(wal.read(9, 9, 1).unwrap(), []);
    }
}

#[test]
fn a_read_that_finds_other_bytes_says_where() {
    let fs = MemFs::new();
    let (wal, _) = open(&fs);
    append(&wal, entries(1, 0..3, 100)).unwrap();
    fs.open(&segment(1)).unwrap().write_at(128 + 144 + 60, b"rot").unwrap();
    let error = wal.read(0, 3, usize::MAX).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert_eq!(error.to_string(), "cannot read /wal/00000001.wal: at offset 272 is not entry 1 as it was written");
    assert_eq!(wal.read(2, 3, 1).unwrap(), entries(1, 2..3, 100));
}

/// A log of two segments, killed: four entries of 500 bytes in the last, each synced. Returns the starts of the
/// records in the last segment, and where they end.
fn killed_log() -> (MemFs, Vec<usize>, usize) {
    let fs = MemFs::new();
    let (wal, _) = open(&fs);
    let size = 40 + 504;
    for index in 0..11 {
        append(&wal, entries(1, index..index + 1, 500)).unwrap();
    }
    assert_eq!(files(&fs, ".wal"), 2);
    (fs.fork(), (0..4).map(|number| 128 + number * size).collect(), 128 + 4 * size)
}

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

#[test]
fn a_torn_tail_is_cut_whichever_sectors_of_the_last_record_the_disk_got() {
    for (size, zeros) in [(500, false), (1100, false), (1100, true)] {
        let fs = MemFs::new();
        let (wal, _) = open(&fs);
        append(&wal, entries(1, 0..3, 500)).unwrap();
        let start = 128 + 3 * 544;
        let payload = if zeros { vec![0; size] } else { vec![0x5a; size] };
        append(&wal, vec![Entry { term: 1, index: 3, payload: payload.into() }]).unwrap();
        let end = start + 40 + size.next_multiple_of(8);
        let whole = fs.contents(&segment(1)).unwrap();
        let (first, last) = (start / SECTOR, (end - 1) / SECTOR);
        for missing in 1u32..1 << (last - first + 1) {
            let mut bytes = whole.clone();
            for sector in (first..=last).filter(|sector| missing >> (sector - first) & 1 == 1) {
                bytes[start.max(sector * SECTOR)..(sector + 1) * SECTOR].fill(0);
            }
            if bytes == whole {
                continue;
            }
            let torn = fs.fork();
            torn.set_contents(&segment(1), bytes);
            let (wal, recovered) = open(&torn);
            assert_eq!(recovered.last, Some(pos(1, 2)), "torn, without {missing:b}");
            assert_eq!(all(&wal), entries(1, 0..3, 500));
            append(&wal, entries(2, 3..4, 20)).unwrap();
            let (_, recovered) = open(&torn.fork());
            assert_eq!(recovered.last, Some(pos(2, 3)), "torn, without {missing:b}");
        }
    }
}

#[test]
fn a_flipped_bit_in_the_last_record_is_damage_and_not_a_torn_tail() {
    let (fs, starts, end) = killed_log();
    let whole = fs.contents(&segment(2)).unwrap();
    for at in starts[3]..end {
        let rotten = fs.fork();
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        rotten.set_contents(&segment(2), bytes.clone());
        match refused(&rotten) {
            WalError::Damaged { file, offset, .. } => {
                assert_eq!((file, offset as usize), (segment(2), starts[3]), "byte {at}");
            }
            other => panic!("byte {at}: {other}"),
        }
        assert_eq!(rotten.contents(&segment(2)).unwrap(), bytes, "a refusal changes nothing");
    }
}

#[test]
fn a_refusal_says_what_to_do() {
    let (fs, starts, _) = killed_log();
    let mut bytes = fs.contents(&segment(2)).unwrap();
    bytes[starts[3] + 100] ^= 1;
    fs.set_contents(&segment(2), bytes);
    assert_eq!(
        refused(&fs).to_string(),
        "/wal/00000002.wal is damaged at offset 1760: the checksum of the record's payload is wrong, and no sector of it \
         is missing as after a write that was cut short; remove this member from the cluster and add it anew with an \
         empty data directory, or restore a cluster of one from a snapshot"
    );
}

#[test]
fn what_a_segment_held_before_is_gone_before_it_is_used_again() {
    for killed in [false, true] {
        let fs = MemFs::new();
        let (wal, _) = open(&fs);
        append(&wal, entries(1, 0..12, 300)).unwrap();
        wait(|done| wal.purge(pos(1, 11), done)).unwrap();
        assert_eq!((files(&fs, ".wal"), files(&fs, ".spare")), (1, 1));
        let fs = if killed { fs.fork() } else { fs };
        let wal = if killed { open(&fs).0 } else { wal };
        append(&wal, entries(1, 12..24, 300)).unwrap();
        assert_eq!((files(&fs, ".wal"), files(&fs, ".spare")), (2, 0), "it was used");
        let third = fs.contents(&segment(3)).unwrap();
        assert_eq!(wal.last(), Some(pos(1, 23)));
        let used = third.iter().rposition(|byte| *byte != 0).unwrap();
        assert!(used < 4096 / 2, "there are bytes at {used}");
    }
}

#[test]
fn a_record_behind_a_torn_one_does_not_come_back_when_that_is_written_again() {
    let fs = MemFs::new();
    let (wal, _) = open(&fs);
    append(&wal, entries(1, 0..1, 500)).unwrap();
    append(&wal, entries(1, 1..3, 500)).unwrap();
    // The power goes during the second append: of its two records, the disk got only the second.
    let fs = fs.fork();
    let mut bytes = fs.contents(&segment(1)).unwrap();
    bytes[128 + 544..128 + 2 * 544].fill(0);
    fs.set_contents(&segment(1), bytes);
    let (wal, recovered) = open(&fs);
    assert_eq!(recovered.last, Some(pos(1, 0)));
    // The leader sends the first again. The very same bytes get to the very same place.
    append(&wal, entries(1, 1..2, 500)).unwrap();
    let (_, recovered) = open(&fs.fork());
    assert_eq!(recovered.last, Some(pos(1, 1)), "nobody handed entry 2 over in this life");
}

#[test]
fn a_flipped_byte_before_the_last_record_is_damage_with_its_place() {
    let (fs, starts, _) = killed_log();
    for (number, ends) in [(1, 128 + 7 * 544), (2, starts[3])] {
        let whole = fs.contents(&segment(number)).unwrap();
        for at in 128..ends {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs.set_contents(&segment(number), bytes.clone());
            let record = (at - 128) / 544 * 544 + 128;
            match refused(&fs) {
                WalError::Damaged { file, offset, .. } => {
                    assert_eq!((file, offset as usize), (segment(number), record), "flipped at {at}");
                }
                other => panic!("flipped at {at}: {other}"),
            }
            assert_eq!(fs.contents(&segment(number)).unwrap(), bytes, "a refusal changes nothing");
        }
        fs.set_contents(&segment(number), whole);
    }
    open(&fs);
}

#[test]
fn what_a_start_found_is_known_to_be_durable() {
    let (fs, starts, _) = killed_log();
    let (wal, _) = open(&fs);
    append(&wal, entries(2, 11..12, 1)).unwrap();
    let fs = fs.fork();
    let mut bytes = fs.contents(&segment(2)).unwrap();
    bytes[starts[3] + 100] ^= 1;
    fs.set_contents(&segment(2), bytes);
    assert!(matches!(refused(&fs), WalError::Damaged { offset, .. } if offset as usize == starts[3]));
}

#[test]
fn after_a_proper_end_a_flip_in_the_last_entry_is_damage_too() {
    let fs = MemFs::new();
    let (wal, _) = open(&fs);
    wait(|done| wal.save_vote(Vote { term: 1, node: 1, committed: false }, done)).unwrap();
    append(&wal, entries(1, 0..1, 100)).unwrap();
    wal.close().unwrap();
    let mut bytes = fs.contents(&segment(1)).unwrap();
    bytes[128 + 40 + 90] ^= 1;
    fs.set_contents(&segment(1), bytes);
    assert!(matches!(refused(&fs), WalError::Damaged { offset: 168, .. }));
}

#[test]
fn a_segment_that_ends_early_is_damage_unless_it_is_the_last() {
    let (fs, ..) = killed_log();
    let mut bytes = fs.contents(&segment(1)).unwrap();
    bytes[128 + 6 * 544..].fill(0);
    fs.set_contents(&segment(1), bytes);
    let error = refused(&fs).to_string();
    assert!(error.starts_with("/wal/00000001.wal is damaged at offset 3392: "), "{error}");
    assert!(error.contains("the next segment says that this one ends at 3936"), "{error}");
}

#[test]
fn a_segment_that_is_gone_is_missed() {
    let fs = MemFs::new();
    let (wal, _) = open(&fs);
    append(&wal, entries(1, 0..40, 300)).unwrap();
    wal.close().unwrap();
    for sequence in [1, 2] {
        let fs = fs.fork();
        fs.remove(&segment(sequence)).unwrap();
        let error = refused(&fs);
        assert!(matches!(&error, WalError::Missing { first, .. } if *first == sequence + 1), "{error}");
    }
}

#[test]
fn another_members_log_is_refused_by_both_names() {
    let fs = MemFs::new();
    open(&fs).0.close().unwrap();
    let other = Identity { cluster_id: 0xc1, member_id: 0xbad };
    let error = Wal::open_inline(Arc::new(fs.clone()), dir(), small(), other).unwrap_err().to_string();
    assert_eq!(
        error,
        "/wal/00000001.wal was written by member fe44e7 of cluster c1, \
         but this server is member bad of cluster c1; check the data directory"
    );
    let other = Identity { cluster_id: 0xc2, ..IDENTITY };
    let refused = Wal::open_inline(Arc::new(fs), dir(), small(), other);
    assert!(matches!(refused, Err(WalError::Foreign { .. })));
}

#[test]
fn a_newer_format_is_refused() {
    let fs = MemFs::new();
    open(&fs).0.close().unwrap();
    let mut bytes = fs.contents(&segment(1)).unwrap();
    bytes[8] = 9;
    fs.set_contents(&segment(1), bytes);
    assert_eq!(
        refused(&fs).to_string(),
        "/wal/00000001.wal has format version 9, this release reads up to 1; run the newer release"
    );
}

#[test]
fn a_damaged_header_is_refused() {
    let (fs, ..) = killed_log();
    for at in [0, 13, 20, 33, 127] {
        let fs = fs.fork();
        let mut bytes = fs.contents(&segment(2)).unwrap();
        bytes[at] ^= 4;
        fs.set_contents(&segment(2), bytes);
        assert!(matches!(refused(&fs), WalError::Damaged { offset: 0, .. }), "byte {at}");
    }
    fs.set_contents(&segment(2), vec![1; 50]);
    assert!(matches!(refused(&fs), WalError::Damaged { offset: 0, .. }));
    fs.set_contents(&segment(2), fs.contents(&segment(1)).unwrap());
    assert!(refused(&fs).to_string().contains("another sequence number than its name"));
}

#[test]
fn a_bad_segment_size_is_refused() {
    for segment_bytes in [0, 4095, 5000, (1 << 30) + 4096] {
        let options = Options { segment_bytes, ..small() };
        let refused = Wal::open_inline(Arc::new(MemFs::new()), dir(), options, IDENTITY);
        assert!(matches!(refused, Err(WalError::BadOption(_))), "{segment_bytes}");
    }
}

#[test]
fn another_segment_size_holds_from_the_next_segment_on() {
    let fs = MemFs::new();
    let (wal, _) = open(&fs);
    append(&wal, entries(1, 0..20, 300)).unwrap();
    wal.close().unwrap();
    let larger = Options { segment_bytes: 8192, ..small() };
    let (wal, _) = Wal::open_inline(Arc::new(fs.clone()), dir(), larger, IDENTITY).unwrap();
    append(&wal, entries(1, 20..60, 300)).unwrap();
    append(&wal, entries(1, 60..61, 8000)).unwrap();
    wait(|done| wal.purge(pos(1, 57), done)).unwrap();
    wal.close().unwrap();
    assert_eq!(all(&open(&fs).0), [entries(1, 58..60, 300), entries(1, 60..61, 8000)].concat());
}

#[test]
fn a_log_has_one_owner() {
    let home = tempfile::tempdir().unwrap();
    let disks: [(Arc<dyn Fs>, &Path); 2] = [(Arc::new(MemFs::new()), dir()), (Arc::new(OsFs), home.path())];
    for (fs, dir) in disks {
        let open = || Wal::open(fs.clone(), dir, small(), IDENTITY);
        let (wal, _) = open().unwrap();
        let error = open().unwrap_err();
        assert!(matches!(&error, WalError::Locked { path } if *path == dir.join("LOCK")), "{error}");
        let clone = wal.clone();
        drop(wal);
        assert!(open().is_err(), "a handle is left");
        clone.close().unwrap();
        let (wal, _) = open().unwrap();
        drop(wal);
        open().unwrap();
    }
}

#[test]
fn a_closed_log_refuses() {
    let fs = MemFs::new();
    for threads in [false, true] {
        let open = if threads { Wal::open } else { Wal::open_inline };
        let (wal, _) = open(Arc::new(fs.clone()), dir(), small(), IDENTITY).unwrap();
        wal.close().unwrap();
        wal.close().unwrap();
        assert_eq!(append(&wal, vec![]).unwrap_err().to_string(), "the log is closed");
        assert!(wal.save_committed(pos(1, 1)).is_err() && wal.read(0, 1, 1).is_err());
    }
}

#[test]
fn after_a_failed_sync_nothing_is_accepted() {
    for threads in [false, true] {
        let fs = MemFs::new();
        let open = if threads { Wal::open } else { Wal::open_inline };
        let (wal, _) =
            open(Arc::new(fs.clone()), dir(), Options { segment_bytes: 1 << 20, ..small() }, IDENTITY).unwrap();
        append(&wal, entries(1, 0..1, 10)).unwrap();
        if threads {
            // The background thread's own sync must not take the fault.
            wait_for(|| files(&fs, ".spare") == 1 && fs.calls_of(Call::Sync) >= 4);
        }
        fs.fail(Call::Sync, 0, io::ErrorKind::StorageFull);
        let error = append(&wal, entries(1, 1..2, 10)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().starts_with("cannot sync /wal/00000001.wal: "), "{error}");
        let syncs = fs.calls_of(Call::Sync);
        let again = [
            append(&wal, entries(1, 2..3, 10)),
            wait(|done| wal.save_vote(Vote { term: 9, node: 9, committed: false }, done)),
            wait(|done| wal.truncate_after(Some(0), done)),
            wait(|done| wal.purge(pos(1, 0), done)),
            wal.save_committed(pos(1, 0)),
            wal.read(0, 1, 1).map(|_| ()),
            wal.close(),
        ];
        for refused in again {
            assert_eq!(refused.unwrap_err().to_string(), error.to_string());
        }
        assert_eq!(fs.calls_of(Call::Sync), syncs, "a sync is never tried again");
    }
}

/// It is written without anybody who waits for it.
#[test]
fn a_committed_position_that_cannot_be_written_is_a_failure_of_the_log() {
    for threads in [false, true] {
        let fs = MemFs::new();
        let open = if threads { Wal::open } else { Wal::open_inline };
        let (wal, _) = open(Arc::new(fs.clone()), dir(), small(), IDENTITY).unwrap();
        append(&wal, entries(1, 0..1, 10)).unwrap();
        if threads {
            // The background thread's own write must not take the fault.
            wait_for(|| files(&fs, ".spare") == 1 && fs.calls_of(Call::Sync) >= 4);
        }
        assert!(wal.failure().is_none());
        fs.fail(Call::Write, 0, io::ErrorKind::StorageFull);
        wal.save_committed(pos(1, 0)).unwrap();
        wait_for(|| wal.failure().is_some());
        let failure = wal.failure().unwrap();
        assert!(failure.to_string().starts_with("cannot write /wal/00000001.wal: "), "{failure}");
    }
}

#[test]
fn what_is_read_after_a_failed_sync_is_made_durable_first() {
    let fs = MemFs::new();
    let (wal, _) = open(&fs);
    append(&wal, entries(1, 0..2, 10)).unwrap();
    fs.fail(Call::Sync, 0, io::ErrorKind::Other);
    append(&wal, entries(1, 2..3, 10)).unwrap_err();
    // The process restarts. The page cache still shows entry 2, which the disk never got and never will by itself.
    let restarted = fs.fork();
    let (_, recovered) = open(&restarted);
    assert_eq!(recovered.last, Some(pos(1, 2)));
    let (_, recovered) = open(&restarted.power_loss(PowerLoss::All, 0));
    assert_eq!(recovered.last, Some(pos(1, 2)));
}

#[test]
fn a_failed_write_ends_the_log_and_is_cut_at_the_next_start() {
    let fs = MemFs::new();
    let (wal, _) = open(&fs);
    append(&wal, entries(1, 0..2, 300)).unwrap();
    fs.fail(Call::Write, 0, io::ErrorKind::StorageFull);
    assert_eq!(append(&wal, entries(1, 2..8, 300)).unwrap_err().kind(), io::ErrorKind::StorageFull);
    let (wal, recovered) = open(&fs.fork());
    assert_eq!(recovered.last, Some(pos(1, 3)), "half of the write got through, and no more was promised");
    append(&wal, entries(1, 4..5, 300)).unwrap();
}

#[test]
fn a_full_disk_is_reported_to_who_needed_the_next_segment() {
    for threads in [false, true] {
        let fs = MemFs::new();
        let open = if threads { Wal::open } else { Wal::open_inline };
        let (wal, _) = open(Arc::new(fs.clone()), dir(), small(), IDENTITY).unwrap();
        // One spare may be ready already; no other can be made.
        for skip in 0..20 {
            fs.fail(Call::Create, skip, io::ErrorKind::StorageFull);
        }
        let error = append(&wal, entries(1, 0..60, 300)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().starts_with("cannot prepare /wal/"), "{error}");
    }
}

#[test]
fn a_callback_may_hand_over_more() {
    for threads in [false, true] {
        let open = if threads { Wal::open } else { Wal::open_inline };
        let (wal, _) = open(Arc::new(MemFs::new()), dir(), small(), IDENTITY).unwrap();
        let (done, answered) = answer();
        let more = wal.clone();
        wal.append(
            entries(1, 0..1, 10),
            Box::new(move |result| {
                result.unwrap();
                more.append(entries(1, 1..2, 10), done);
            }),
        );
        answered.recv_timeout(Duration::from_secs(60)).unwrap().unwrap();
        assert_eq!(all(&wal), entries(1, 0..2, 10));
    }
}

/// A disk whose syncs wait while the gate is shut, to see what queues up behind one.
#[derive(Clone)]
struct Gated {
    disk: MemFs,
    shut: Arc<(Mutex<bool>, std::sync::Condvar)>,
}

struct GatedFile(Arc<dyn File>, Gated);

impl Gated {
    fn new() -> Self {
        Gated { disk: MemFs::new(), shut: Arc::default() }
    }

    fn shut(&self, shut: bool) {
        *self.shut.0.lock().unwrap() = shut;
        self.shut.1.notify_all();
    }

    fn pass(&self) {
        let shut = self.shut.0.lock().unwrap();
        drop(self.shut.1.wait_while(shut, |shut| *shut).unwrap());
    }

    fn gate(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(GatedFile(file, self.clone()))
    }
}

impl Fs for Gated {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Lock>> {
        self.disk.lock(path)
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.gate(self.disk.open(path)?))
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.gate(self.disk.create(path)?))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
}

impl File for GatedFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, bytes)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.1.pass();
        self.0.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }
}

#[derive(Default)]
struct Tally(Mutex<(u64, u64, u64)>);

impl Observer for Tally {
    fn fsync_duration(&self, _: Duration) {
        self.0.lock().unwrap().0 += 1;
    }
    fn write_duration(&self, _: Duration) {
        self.0.lock().unwrap().1 += 1;
    }
    fn written(&self, bytes: u64) {
        self.0.lock().unwrap().2 += bytes;
    }
}

#[test]
fn a_log_that_need_not_sync_answers_without_and_is_there_after_a_restart() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("wal");
    let tally = Arc::new(Tally::default());
    let options = || Options { segment_bytes: 64 << 10, sync: false, observer: tally.clone(), ..Options::default() };
    let (wal, _) = Wal::open_inline(Arc::new(OsFs), &dir, options(), IDENTITY).unwrap();
    for index in 0..10 {
        wal.append(entries(1, index..index + 1, 100), Box::new(|done| done.unwrap()));
    }
    assert_eq!(tally.0.lock().unwrap().0, 0);
    wal.purge(pos(1, 3), Box::new(|done| done.unwrap()));
    assert_eq!(tally.0.lock().unwrap().0, 1, "segments go only when that is durable");
    wal.close().unwrap();
    let (wal, found) = Wal::open_inline(Arc::new(OsFs), &dir, options(), IDENTITY).unwrap();
    assert_eq!((found.first_index, found.end_index), (4, 10));
    assert_eq!(wal.read(4, 10, usize::MAX).unwrap(), entries(1, 4..10, 100));
}

/// Waits for something that another thread does; the bound only ends a test that hangs.
fn wait_for(mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain");
        std::thread::yield_now();
    }
}

#[test]
fn what_queues_behind_a_sync_shares_the_next_one_and_is_answered_in_order() {
    let fs = Gated::new();
    let tally = Arc::new(Tally::default());
    let options = Options { segment_bytes: 1 << 20, observer: tally.clone(), ..Options::default() };
    let (wal, _) = Wal::open(Arc::new(fs.clone()), dir(), options, IDENTITY).unwrap();
    let (sender, answers) = mpsc::channel();
    let numbered = |number: u64| -> Done {
        let sender = sender.clone();
        Box::new(move |result| sender.send((number, result.is_ok())).unwrap())
    };

    fs.shut(true);
    wal.append(entries(1, 0..1, 100), numbered(0));
    wait_for(|| tally.0.lock().unwrap().1 == 1);
    for index in 1..100 {
        wal.append(entries(1, index..index + 1, 100), numbered(index));
    }
    wal.save_vote(Vote { term: 2, node: 1, committed: false }, numbered(100));
    wal.truncate_after(Some(50), numbered(101));
    wal.append(entries(2, 51..52, 7), numbered(102));
    wal.save_committed(pos(1, 20)).unwrap();
    wal.purge(pos(1, 10), numbered(103));

    assert!(answers.try_recv().is_err(), "nothing is durable yet");
    assert_eq!(wal.read(40, 60, usize::MAX).unwrap(), [entries(1, 40..51, 100), entries(2, 51..52, 7)].concat());
    assert_eq!((wal.vote().unwrap().term, wal.first_index()), (2, 11));

    fs.shut(false);
    for number in 0..104 {
        assert_eq!(answers.recv_timeout(Duration::from_secs(60)).unwrap(), (number, true));
    }
    let (syncs, writes, bytes) = *tally.0.lock().unwrap();
    assert_eq!((syncs, writes), (2, 2), "one for the first, one for all that waited");
    assert_eq!(bytes, 100 * (40 + 104) + (40 + 8) + 4 * 40);

    // What was answered is durable.
    let (wal, recovered) = Wal::open_inline(
        Arc::new(fs.disk.power_loss(PowerLoss::All, 0)),
        dir(),
        Options { segment_bytes: 1 << 20, ..small() },
        IDENTITY,
    )
    .unwrap();
    assert_eq!((recovered.first_index, recovered.last, recovered.committed), (11, Some(pos(2, 51)), Some(pos(1, 20))));
    assert_eq!(all(&wal), [entries(1, 11..51, 100), entries(2, 51..52, 7)].concat());
}

#[test]
fn what_waits_behind_a_sync_that_fails_fails_with_it() {
    let fs = Gated::new();
    let tally = Arc::new(Tally::default());
    let options = Options { segment_bytes: 1 << 20, observer: tally.clone(), ..Options::default() };
    let (wal, _) = Wal::open(Arc::new(fs.clone()), dir(), options, IDENTITY).unwrap();
    // The spare is synced: the fault is for the log.
    wait_for(|| fs.disk.calls_of(Call::Sync) == 3);
    fs.disk.fail(Call::Sync, 0, io::ErrorKind::Other);
    fs.shut(true);
    let (first, first_answer) = answer();
    wal.append(entries(1, 0..1, 100), first);
    wait_for(|| tally.0.lock().unwrap().1 == 1);
    let (second, second_answer) = answer();
    wal.append(entries(1, 1..2, 100), second);
    fs.shut(false);
    for failed in [first_answer, second_answer] {
        let error = failed.recv_timeout(Duration::from_secs(60)).unwrap().unwrap_err();
        assert!(error.to_string().contains("cannot sync"), "{error}");
    }
    assert_eq!(tally.0.lock().unwrap().1, 1, "nothing is written after the failure");
}

#[test]
fn a_full_queue_makes_callers_wait_for_the_disk() {
    let fs = Gated::new();
    let options = Options { segment_bytes: 64 << 20, cache_bytes: 0, ..Options::default() };
    let (wal, _) = Wal::open(Arc::new(fs.clone()), dir(), options, IDENTITY).unwrap();
    let payload = Bytes::from(vec![1; 16 << 20]);
    let big = |index| vec![Entry { term: 1, index, payload: payload.clone() }];
    fs.shut(true);
    let (sender, answers) = mpsc::channel();
    let appended = Arc::new(Mutex::new(0));
    let appender = std::thread::spawn({
        let (wal, appended) = (wal.clone(), appended.clone());
        let batches: Vec<_> = (0..12).map(big).collect();
        move || {
            for batch in batches {
                let sender = sender.clone();
                wal.append(batch, Box::new(move |result| sender.send(result).unwrap()));
                *appended.lock().unwrap() += 1;
            }
        }
    });
    // One in the writer's hands (it may have taken two or three), and four in the queue.
    wait_for(|| *appended.lock().unwrap() >= 5);
    assert!(*appended.lock().unwrap() <= 8 && !appender.is_finished());
    fs.shut(false);
    for _ in 0..12 {
        answers.recv_timeout(Duration::from_secs(60)).unwrap().unwrap();
    }
    appender.join().unwrap();
    assert_eq!(wal.last(), Some(pos(1, 11)));
}
