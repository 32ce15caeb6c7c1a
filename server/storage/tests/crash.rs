//! A process that is killed, or whose power is cut, while it writes to an engine: what it had flushed is there, and no
//! batch is there in part.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests, but does not see helpers as such.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ferretcd_power_cut::{Disk, Lose, Random};
use ferretcd_storage::{Batch, Engine, EngineKind, Options, Store, keyspace};

/// Names the engine and the database for the child process, which is this test run again.
const CHILD: &str = "FERRETCD_STORAGE_CRASH_TEST";
/// Tells the child what it does.
const TASK: &str = "FERRETCD_STORAGE_CRASH_TEST_TASK";
const CACHE: u64 = 8 << 20;
const ENGINES: [EngineKind; 2] = [EngineKind::Sled, EngineKind::Redb];

/// What a child does until it is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// Writes small batches, and flushes after every 40.
    Write,
    /// The same, while its engine is rewritten again and again.
    Rewrite,
    /// Writes as fast as it can and never flushes.
    WriteInBulk,
}

impl Task {
    const ALL: [Task; 3] = [Task::Write, Task::Rewrite, Task::WriteInBulk];
}

/// The child's life: writes until it is killed. As a test it does nothing.
#[test]
fn writer() {
    if let (Ok(told), Ok(task)) = (std::env::var(CHILD), std::env::var(TASK)) {
        let (kind, path) = told.split_once('=').unwrap();
        let (kind, path) = (kind.parse().unwrap(), Path::new(path));
        match Task::ALL.into_iter().find(|known| format!("{known:?}") == task).unwrap() {
            Task::WriteInBulk => write_in_bulk_until_killed(kind, path),
            task => write_until_killed(kind, path, task == Task::Rewrite),
        }
    }
}

#[test]
fn a_killed_writer_loses_nothing_flushed_and_leaves_no_batch_in_part() {
    for kind in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let mut last = 0;
        for round in 0..6 {
            let flushed = write_and_kill(kind, &path, None, 3 * round + 1, Task::Write);
            assert!(flushed > last, "round {round} wrote nothing");
            last = check(kind, &path, flushed).unwrap();
        }
    }
}

/// A place for an engine on a disk whose power can be cut.
fn disk() -> (tempfile::TempDir, Disk) {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = Disk::new(dir.path(), "disk");
    disk.delay_syncs(1000);
    (dir, disk)
}

#[test]
fn the_disk_sees_all_that_the_engines_write() {
    for kind in ENGINES {
        let (_dir, disk) = disk();
        let path = disk.root().join("db");
        write_and_kill(kind, &path, Some(&disk), 10, Task::Write);
        disk.saw_everything().unwrap();
        // Killed and not cut: the next process goes on where the notes of the first end.
        write_and_kill(kind, &path, Some(&disk), 10, Task::Write);
        disk.saw_everything().unwrap();
        // And one byte that the library did not see is noticed.
        let file = path.join(if kind == EngineKind::Sled { "db" } else { "redb" });
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[5000] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert!(disk.saw_everything().unwrap_err().contains("changed unseen at 5000"));
    }
}

/// One life under each model after the other on one disk, each ended by a cut; sometimes by a kill before that, after
/// which the next life must not trust what only the page cache has.
fn cuts(kind: EngineKind, disk: &Disk, seed: u64, lives: u64, task: Task) -> Result<(), String> {
    let mut random = Random(seed);
    let path = disk.root().join("db");
    let mut last = 0;
    for life in 0..lives {
        let lose = Lose::ALL[((life + seed) % 3) as usize];
        if random.below(3) == 0 {
            last = last.max(write_and_kill(kind, &path, Some(disk), random.below(4), task));
        }
        let flushed = last.max(write_and_kill(kind, &path, Some(disk), 1 + random.below(8), task));
        disk.cut(lose, random.next());
        last =
            check(kind, &path, flushed).map_err(|why| format!("{kind}, seed {seed}, life {life}, {lose:?}: {why}"))?;
    }
    Ok(())
}

#[test]
fn a_power_cut_takes_nothing_that_was_flushed() {
    let rounds = std::env::var("FERRETCD_POWER_CUTS").map_or(2, |n| n.parse().unwrap());
    for seed in 0..rounds {
        for kind in ENGINES {
            let (_dir, disk) = disk();
            cuts(kind, &disk, seed, 6, Task::Write).unwrap();
        }
    }
}

/// Before, at and after each step of a rewrite there is one complete engine, and a start finds it.
#[test]
fn a_power_cut_while_an_engine_is_rewritten_takes_nothing_that_was_flushed() {
    let rounds = std::env::var("FERRETCD_POWER_CUTS").map_or(1, |n| n.parse().unwrap());
    for seed in 0..rounds {
        for kind in ENGINES {
            let (_dir, disk) = disk();
            cuts(kind, &disk, seed, 6, Task::Rewrite).unwrap();
        }
    }
}

/// What was never flushed may be gone, but not what was written before something that is there: the position that an engine
/// says it has is true. For sled that needs each of its own syncs, since its recovery believes what a segment says about those before it
/// (`max_stable_lsn`, `pagecache/iterator.rs`): a sync for each flush leaves a store that cannot be opened, or worse.
#[test]
fn a_power_cut_between_two_flushes_leaves_whole_batches_in_order() {
    let rounds = std::env::var("FERRETCD_POWER_CUTS").map_or(2, |n| n.parse().unwrap());
    let mut unflushed_kept = 0;
    for seed in 0..rounds {
        for kind in ENGINES {
            let (_dir, mut disk) = disk();
            // Several segments of sled's (512 KiB) are written while its own thread syncs.
            disk.delay_syncs(20_000);
            let path = disk.root().join("db");
            let mut random = Random(seed);
            let flushed = write_and_kill(kind, &path, Some(&disk), 1, Task::Write);
            let first = check(kind, &path, flushed).unwrap() + 1;
            let written = write_and_kill(kind, &path, Some(&disk), 50 + random.below(100), Task::WriteInBulk);
            let cut = disk.cut(Lose::Half, random.next());
            let engine = kind.open(&EngineKind::newest(&path).unwrap(), CACHE);
            let engine = engine.unwrap_or_else(|why| panic!("{kind}, seed {seed}, {cut:?}: {why}"));
            let last = applied(&*engine).unwrap();
            println!("{kind}, seed {seed}, {cut:?}: {first} to {written} were written, {last} is left");
            assert!(last + 1 >= first, "{kind}, seed {seed}, {cut:?}: what was there before is gone, {last} is left");
            unflushed_kept += usize::from(kind == EngineKind::Sled && last >= first);
            let kept = |n| bulk(n).all(|(key, value)| engine.get(&key).unwrap().is_some_and(|kept| kept == value));
            let gone = (first..=last).find(|n| !kept(*n));
            assert_eq!(gone, None, "{kind}, seed {seed}, {cut:?}: applied {last}, but a batch before it is not there");
        }
    }
    // Of redb never: without a flush it keeps nothing.
    assert!(unflushed_kept > 0, "of no seed is any batch left that was not flushed, so none was looked at");
}

/// What each rule is for: without it the same cuts find a loss.
#[test]
fn without_its_syncs_an_engine_loses_what_it_flushed() {
    let rules = [
        (EngineKind::Sled, "*/db/db", "the fsync in place of sync_file_range"),
        (EngineKind::Sled, "*/db/conf", "the fsync of its settings"),
        (EngineKind::Sled, "*/disk/db", "the fsync of its folder"),
        (EngineKind::Sled, "*/disk", "the fsync of the folder above"),
        (EngineKind::Redb, "*/db/redb", "redb's own fsync"),
        (EngineKind::Redb, "*/disk/db", "the fsync of its folder"),
        (EngineKind::Redb, "*/disk", "the fsync of the folder above"),
    ];
    for (kind, pattern, rule) in rules {
        let lost = (0..10).find_map(|seed| {
            let (_dir, mut disk) = disk();
            disk.ignore_syncs(pattern);
            cuts(kind, &disk, seed, 3, Task::Write).err()
        });
        println!("{kind} without {rule}: {lost:?}");
        assert!(lost.is_some(), "{kind} lost nothing without {rule}");
    }
}

/// Runs a writer until it has reported so many flushes (in bulk: batches), and kills it. The last position that it reported.
fn write_and_kill(kind: EngineKind, path: &Path, disk: Option<&Disk>, reports: u64, task: Task) -> u64 {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "writer", "--nocapture"]).env(CHILD, format!("{kind}={}", path.display()));
    command.env(TASK, format!("{task:?}"));
    if let Some(disk) = disk {
        disk.attach(&mut command);
    }
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let flushes = lines.filter_map(|line| line.unwrap().strip_prefix("flushed ").map(|n| n.parse().unwrap()));
    let flushed = flushes.take(reports as usize).last().unwrap_or(0);
    child.kill().unwrap();
    child.wait().unwrap();
    flushed
}

/// Batch n: the applied index, a revision, a record that each batch replaces, and the deletion of an older revision.
fn batch(n: u64) -> Batch {
    let mut batch = Batch::new();
    batch.put(keyspace::META_APPLIED, n.to_be_bytes().to_vec());
    batch.put(keyspace::revision(0, &n.to_be_bytes()), value(n));
    batch.put(keyspace::lease(1), value(n));
    if n > 50 {
        batch.delete(keyspace::revision(0, &(n - 50).to_be_bytes()));
    }
    batch
}

/// Every seventh value is stored in pieces, and every 21st is one that sled would put into a file which it never syncs.
fn value(n: u64) -> Vec<u8> {
    let length = match n {
        _ if n.is_multiple_of(21) => 200 << 10,
        _ if n.is_multiple_of(7) => 9000 + n as usize % 9000,
        _ => n as usize % 300,
    };
    vec![n as u8; length]
}

fn applied(engine: &dyn Engine) -> Result<u64, String> {
    let stored = engine.get(keyspace::META_APPLIED).map_err(|e| e.to_string())?;
    Ok(stored.map_or(0, |value| u64::from_be_bytes(value[..].try_into().unwrap())))
}

fn write_until_killed(kind: EngineKind, path: &Path, rewrites: bool) {
    let engine = kind.open(&EngineKind::newest(path).unwrap(), CACHE).unwrap();
    let first = applied(&*engine).unwrap() + 1;
    let options = Options { commit_interval: Duration::from_millis(1), max_ops_per_commit: 20, ..Options::default() };
    let store = Arc::new(Store::open(engine, options).unwrap());
    if rewrites {
        let store = store.clone();
        std::thread::spawn(move || while store.rewrite().unwrap() {});
    }
    // Bounded, should the parent die first; printing to its closed pipe ends the child even sooner.
    for n in first..first + 100_000 {
        store.write(batch(n), n).unwrap();
        if n % 40 == 0 {
            println!("\nflushed {}", store.flush().unwrap());
        }
    }
}

/// The records of batch n when it is written in bulk: four batches fill a segment of sled's.
fn bulk(n: u64) -> impl Iterator<Item = (bytes::Bytes, Vec<u8>)> {
    (0..40).map(move |i| (keyspace::revision(1, &(n * 40 + i).to_be_bytes()), vec![n as u8; 3000]))
}

fn write_in_bulk_until_killed(kind: EngineKind, path: &Path) {
    let engine = kind.open(&EngineKind::newest(path).unwrap(), CACHE).unwrap();
    let first = applied(&*engine).unwrap() + 1;
    // Bounded, should the parent die first.
    for n in first..first + 1000 {
        let mut batch = Batch::new();
        batch.put(keyspace::META_APPLIED, n.to_be_bytes().to_vec());
        for (key, value) in bulk(n) {
            batch.put(key, value);
        }
        engine.commit(&batch).unwrap();
        println!("\nflushed {n}");
    }
}

/// The last batch that is there, if nothing is wrong.
fn check(kind: EngineKind, path: &Path, flushed: u64) -> Result<u64, String> {
    let path = EngineKind::newest(path).map_err(|e| e.to_string())?;
    let engine = kind.open(&path, CACHE).map_err(|e| format!("it cannot be opened: {e}"))?;
    let last = applied(&*engine)?;
    if last < flushed {
        return Err(format!("{flushed} was flushed, {last} is left"));
    }
    let (start, end) = keyspace::generation_range(0);
    let kept = engine.scan(&start, Some(&end), 1000).map_err(|e| e.to_string())?;
    let expected = (1..=last).skip(last.saturating_sub(50) as usize);
    let expected: Vec<_> = expected.map(|n| (keyspace::revision(0, &n.to_be_bytes()), value(n))).collect();
    if kept.len() != expected.len() || kept.iter().zip(&expected).any(|(a, b)| a.0 != b.0 || a.1 != b.1) {
        return Err(format!("the records do not fit batch {last}"));
    }
    match engine.get(&keyspace::lease(1)).map_err(|e| e.to_string())?.unwrap_or_default() == value(last) {
        true => Ok(last),
        false => Err(format!("the replaced record does not fit batch {last}")),
    }
}
