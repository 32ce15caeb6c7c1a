//! A process that is killed while it writes to sled: what it had flushed is there, and no batch is there in part.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests, but does not see helpers as such.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ferretcd_storage::{Batch, Engine, Options, SledEngine, Store, keyspace};

/// Names the database for the child process, which is this test run again.
const CHILD: &str = "FERRETCD_STORAGE_KILL_TEST";
const ROUNDS: u64 = 6;
const CACHE: u64 = 8 << 20;

#[test]
fn a_killed_writer_loses_nothing_flushed_and_leaves_no_batch_in_part() {
    if let Some(path) = std::env::var_os(CHILD) {
        return write_until_killed(Path::new(&path));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let mut last = 0;
    for round in 0..ROUNDS {
        let name = "a_killed_writer_loses_nothing_flushed_and_leaves_no_batch_in_part";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut flushed = 0;
        let mut reports = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            if let Some(position) = line.unwrap().strip_prefix("flushed ") {
                flushed = position.parse().unwrap();
                reports += 1;
            }
            if reports > 3 * round {
                break;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(flushed > last, "round {round} wrote nothing");
        last = check(&path, flushed);
    }
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

/// Every seventh value is stored in pieces.
fn value(n: u64) -> Vec<u8> {
    vec![n as u8; if n.is_multiple_of(7) { 9000 + n as usize % 9000 } else { n as usize % 300 }]
}

fn applied(engine: &SledEngine) -> u64 {
    engine.get(keyspace::META_APPLIED).unwrap().map_or(0, |value| u64::from_be_bytes(value[..].try_into().unwrap()))
}

fn write_until_killed(path: &Path) {
    let engine = Arc::new(SledEngine::open(path, CACHE).unwrap());
    let first = applied(&engine) + 1;
    let options = Options { commit_interval: Duration::from_millis(1), max_ops_per_commit: 20, ..Options::default() };
    let store = Store::open(engine, options).unwrap();
    // Bounded, should the parent die first; printing to its closed pipe ends the child even sooner.
    for n in first..first + 100_000 {
        store.write(batch(n), n).unwrap();
        if n % 40 == 0 {
            println!("\nflushed {}", store.flush().unwrap());
        }
    }
}

fn check(path: &Path, flushed: u64) -> u64 {
    let engine = SledEngine::open(path, CACHE).unwrap();
    let last = applied(&engine);
    assert!(last >= flushed, "{flushed} was flushed, {last} is left");
    let (start, end) = keyspace::generation_range(0);
    let kept = engine.scan(&start, Some(&end), 1000).unwrap();
    let expected = (1..=last).skip(last.saturating_sub(50) as usize);
    let expected: Vec<_> = expected.map(|n| (keyspace::revision(0, &n.to_be_bytes()), value(n))).collect();
    assert!(kept.len() == expected.len() && kept.iter().zip(&expected).all(|(a, b)| a.0 == b.0 && a.1 == b.1));
    assert!(engine.get(&keyspace::lease(1)).unwrap().unwrap() == value(last));
    last
}
