//! An engine that tells how much is read of it at once and written to it unflushed, and from which a part cannot be read.

use crate::member::{put, write};
use bytes::Bytes;
use ferretcd_state::{SnapshotKind, State};
use ferretcd_storage::{Batch, Engine, Error, Limit, MemoryEngine, Options, Page, Result, Store, keyspace};
use ferretcd_types::{Caller, Command, Compact, LogPos, MemberId, Proposal, Put, RequestId};
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[derive(Default)]
struct Watched {
    engine: MemoryEngine,
    /// Bytes of the largest page since this was set to 0.
    largest: AtomicUsize,
    /// Bytes committed since the last flush, and the most that there were.
    unflushed: AtomicUsize,
    most_unflushed: AtomicUsize,
    /// A generation of which no page can be read.
    rotten: Mutex<Option<u32>>,
}

impl Engine for Watched {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.engine.get(key)
    }
    fn page(&self, start: &[u8], end: Option<&[u8]>, limit: Limit) -> Result<Page> {
        if self.rotten.lock().is_some_and(|rotten| keyspace::generation_range(rotten).0 == start) {
            return Err(Error::Corrupt { path: PathBuf::from("db"), detail: "a page".to_owned() });
        }
        let page = self.engine.page(start, end, limit)?;
        self.largest.fetch_max(page.bytes, Ordering::Relaxed);
        Ok(page)
    }
    fn commit(&self, batch: &Batch) -> Result<()> {
        let before = self.unflushed.fetch_add(batch.bytes(), Ordering::Relaxed);
        self.most_unflushed.fetch_max(before + batch.bytes(), Ordering::Relaxed);
        self.engine.commit(batch)
    }
    fn flush(&self) -> Result<()> {
        self.unflushed.store(0, Ordering::Relaxed);
        self.engine.flush()
    }
    fn size_on_disk(&self) -> Result<u64> {
        self.engine.size_on_disk()
    }
}

/// The store flushes by itself no sooner than a test is over.
fn open(engine: &Arc<Watched>) -> State {
    let options = Options { cache_bytes: 0, flush_interval: Duration::from_secs(3600), ..Options::default() };
    State::open(Store::open(engine.clone(), options).unwrap(), MemberId(1)).unwrap()
}

fn apply(state: &State, command: impl Into<Command>) {
    let index = state.applied().map_or(1, |applied| applied.index + 1);
    let proposal = Proposal { id: RequestId(index), caller: Caller::Member, command: command.into() };
    state.apply(LogPos { term: 1, index }, &proposal).unwrap().outcome.unwrap();
}

/// Many small values let pages become long, and large ones come behind them.
#[test]
fn no_page_is_much_larger_than_a_value_at_a_start_a_snapshot_a_hash_and_for_a_watcher() {
    const LARGE: usize = 64 << 10;
    let engine = Arc::new(Watched::default());
    let state = open(&engine);
    for n in 0..2200 {
        let value = if n < 2000 { Bytes::from_static(b"v") } else { Bytes::from(vec![7; LARGE]) };
        apply(&state, Put { key: format!("k{n:04}").into(), value, ..Put::default() });
    }
    state.flush().unwrap();
    drop(state);
    let seen = |what: &str| {
        let largest = engine.largest.swap(0, Ordering::Relaxed);
        assert!((200 << 10..400 << 10).contains(&largest), "{what} reads {largest} bytes at once");
    };
    let state = open(&engine);
    seen("a start");
    write(&state.pin(), SnapshotKind::Raft);
    seen("a snapshot");
    state.hash_kv(0).unwrap();
    seen("a hash");
    assert!(state.events(2, 10_000, 256 << 10).unwrap().events.len() > 900);
    while state.events(1990, 10_000, 8 << 20).unwrap().events.len() < 100 {}
    seen("a watcher");
}

/// sled keeps in memory what a busy disk has not taken, so an install waits for the disk on its way.
#[test]
fn an_installed_snapshot_is_made_durable_on_its_way() {
    const MIB: usize = 1 << 20;
    let from = open(&Arc::default());
    let value = Bytes::from(vec![7; MIB]);
    for n in 0..150 {
        apply(&from, Put { key: format!("k{n:03}").into(), value: value.clone(), ..Put::default() });
    }
    let file = write(&from.pin(), SnapshotKind::Raft);
    let engine = Arc::new(Watched::default());
    open(&engine).install(&&file[..]).unwrap();
    let most = engine.most_unflushed.load(Ordering::Relaxed) / MIB;
    assert!((60..70).contains(&most), "{most} MiB were not durable");
}

#[test]
fn what_cannot_be_read_of_an_old_generation_does_not_keep_compaction_waiting() {
    let engine = Arc::new(Watched::default());
    let state = open(&engine);
    for _ in 0..10 {
        apply(&state, put("a", "1"));
    }
    state.flush().unwrap();
    let file = write(&state.pin(), SnapshotKind::Raft);
    let records = || {
        state.flush().unwrap();
        let (start, end) = keyspace::keyspace_range(keyspace::KEYS);
        engine.engine.scan(&start, Some(&end), usize::MAX).unwrap()
    };
    let (generation, _) = keyspace::split_revision(&records()[0].0).unwrap();
    *engine.rotten.lock() = Some(generation);
    state.install(&&file[..]).unwrap();
    apply(&state, Compact { revision: state.revision() });
    state.wait_compacted(state.revision()).unwrap();
    assert!(state.wait_deleted().is_err(), "something is left");
    assert_eq!(records().len(), 10 + 1);
    apply(&state, put("a", "2"));
    apply(&state, Compact { revision: state.revision() });
    state.wait_compacted(state.revision()).unwrap();
    assert_eq!(records().len(), 10 + 1);
    state.flush().unwrap();
    // The disk can be read again.
    *engine.rotten.lock() = None;
    let again = open(&engine);
    again.wait_deleted().unwrap();
    again.flush().unwrap();
    assert_eq!(records().len(), 1);
}
