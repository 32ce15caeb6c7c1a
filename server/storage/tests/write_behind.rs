//! The write-behind as the state machine meets it: over an engine that can be held, made to fail, and cut off power.

#![allow(clippy::unwrap_used, clippy::panic)] // clippy.toml allows them in tests, but does not see helpers as such.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferretcd_storage::{
    Batch, Engine, EngineKind, Error, Limit, MemoryEngine, Observer, Options, Page, Record, Result, Store, WaitForLog,
    keyspace,
};
use parking_lot::{Condvar, Mutex};

/// Which of two engines committed, in order.
type Order = Arc<Mutex<Vec<&'static str>>>;

/// A memory engine under the test's control.
#[derive(Default)]
struct Rig {
    inner: MemoryEngine,
    /// While it is held, commits wait.
    held: Mutex<bool>,
    released: Condvar,
    /// Commits that were begun.
    begun: AtomicUsize,
    /// The keys of every commit, in order.
    commits: Mutex<Vec<Vec<Bytes>>>,
    flushes: AtomicUsize,
    /// What the next commit or flush does instead of its work.
    fault: Mutex<Option<Fault>>,
    /// What takes its place at a rewrite; without one that fails.
    next: Mutex<Option<Arc<Rig>>>,
    finished: AtomicUsize,
    /// While it is locked, its files are not gone.
    kept: Mutex<()>,
    discarded: AtomicUsize,
    settled: AtomicUsize,
    /// Commits of two of them, in order.
    order: Option<(&'static str, Order)>,
}

#[derive(Clone, Copy)]
enum Fault {
    Commit,
    Flush,
    Panic,
}

impl Rig {
    fn held() -> Arc<Rig> {
        Arc::new(Rig { held: Mutex::new(true), ..Rig::default() })
    }

    fn with(fault: Fault) -> Arc<Rig> {
        Arc::new(Rig { fault: Mutex::new(Some(fault)), ..Rig::default() })
    }

    fn release(&self) {
        *self.held.lock() = false;
        self.released.notify_all();
    }

    fn commit_sizes(&self) -> Vec<usize> {
        self.commits.lock().iter().map(Vec::len).collect()
    }
}

impl Engine for Rig {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.inner.get(key)
    }

    fn page(&self, start: &[u8], end: Option<&[u8]>, limit: Limit) -> Result<Page> {
        self.inner.page(start, end, limit)
    }

    fn commit(&self, batch: &Batch) -> Result<()> {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let mut held = self.held.lock();
        while *held {
            self.released.wait(&mut held);
        }
        match *self.fault.lock() {
            Some(Fault::Commit) => return Err(Error::Engine("the disk is gone".into())),
            Some(Fault::Panic) => panic!("an assertion of the engine"),
            _ => {}
        }
        if let Some((name, order)) = &self.order {
            order.lock().push(*name);
        }
        self.commits.lock().push(batch.writes().iter().map(|write| write.key.clone()).collect());
        self.inner.commit(batch)
    }

    fn flush(&self) -> Result<()> {
        if let Some(Fault::Flush) = *self.fault.lock() {
            return Err(Error::Engine("fsync failed".into()));
        }
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.inner.flush()
    }

    fn size_on_disk(&self) -> Result<u64> {
        self.inner.size_on_disk()
    }

    fn fresh(&self) -> Result<Option<Arc<dyn Engine>>> {
        let next = self.next.lock().take().ok_or_else(|| Error::Engine("no room".into()))?;
        Ok(Some(next))
    }

    fn finish(&self) -> Result<()> {
        let durable = self.inner.durable_copy().scan(b"", None, usize::MAX)?;
        assert!(durable == self.inner.scan(b"", None, usize::MAX)?, "it is called complete before it is durable");
        self.finished.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn discard(&self) -> Result<()> {
        let _gone = self.kept.lock();
        self.discarded.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        self.settled.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Nobody wants to know.
struct Unheard;

impl Observer for Unheard {
    fn commit_duration(&self, _: Duration) {}
}

/// Nothing happens by itself: only full commits, barriers and flushes.
fn patient() -> Options {
    let never = Duration::from_secs(3600);
    Options { commit_interval: never, flush_interval: never, ..Options::default() }
}

fn put(key: &'static str, value: &'static str) -> Batch {
    let mut batch = Batch::new();
    batch.put(key, value);
    batch
}

fn records(expected: &[(&'static str, &'static str)]) -> Vec<Record> {
    expected.iter().map(|(key, value)| (Bytes::from(*key), Bytes::from(*value))).collect()
}

/// Waits for what another thread is bound to do; a minute means that it never will.
fn wait_until(mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain");
        thread::yield_now();
    }
}

#[test]
fn nothing_reaches_the_engine_before_the_log_has_it() {
    let rig = Arc::new(Rig::default());
    let (asks, asked) = std::sync::mpsc::channel();
    let (tells, told) = std::sync::mpsc::channel::<std::io::Result<()>>();
    let told = Mutex::new(told);
    let log: WaitForLog = Arc::new(move |position| {
        asks.send(position).unwrap();
        told.lock().recv_timeout(PATIENCE).unwrap()
    });
    let store = Store::open_behind(rig.clone(), patient(), Arc::new(Unheard), Some(log)).unwrap();
    thread::scope(|scope| {
        store.write(put("a", "1"), 7).unwrap();
        store.write(put("b", "1"), 9).unwrap();
        let flushed = scope.spawn(|| store.flush());
        // Both are one commit.
        assert_eq!(asked.recv_timeout(PATIENCE).unwrap(), 9);
        assert_eq!(rig.begun.load(Ordering::SeqCst), 0, "a power cut could take them from the log, and not from here");
        assert_eq!(store.get(b"a").unwrap().unwrap(), "1", "nobody waits for it to read");
        tells.send(Ok(())).unwrap();
        assert_eq!(flushed.join().unwrap().unwrap(), 9);
        assert_eq!(rig.commit_sizes(), [2]);

        store.write(put("c", "1"), 10).unwrap();
        let flushed = scope.spawn(|| store.flush());
        assert_eq!(asked.recv_timeout(PATIENCE).unwrap(), 10);
        tells.send(Err(std::io::ErrorKind::StorageFull.into())).unwrap();
        let Err(Error::Stopped { source }) = flushed.join().unwrap() else {
            panic!("what is not in the log was made durable")
        };
        assert_eq!(source.to_string(), "cannot go on without the log");
        assert_eq!(rig.commit_sizes(), [2]);
    });
}

#[test]
fn a_write_is_readable_before_and_after_its_commit() {
    let rig = Rig::held();
    rig.inner.commit(Batch::new().put("ka", "old").put("kb", "old").put("kd", "old")).unwrap();
    let store = Store::open(rig.clone(), Options { max_ops_per_commit: 4, ..patient() }).unwrap();

    let mut batch = Batch::new();
    batch.put("ka", "new").delete("kb").put("kc", "new");
    store.write(batch, 1).unwrap();

    let seen = || {
        assert_eq!(store.get(b"ka").unwrap().unwrap(), "new");
        assert_eq!(store.get(b"kb").unwrap(), None);
        assert_eq!(store.get(b"kd").unwrap().unwrap(), "old");
        let all = records(&[("ka", "new"), ("kc", "new"), ("kd", "old")]);
        assert_eq!(store.scan(b"k", Some(b"l"), 9).unwrap(), all);
        assert_eq!(store.scan(b"k", None, 2).unwrap(), all[..2]);
        assert_eq!(store.scan(b"kb", Some(b"kd"), 9).unwrap(), all[1..2]);
        assert_eq!(store.scan(b"kz", Some(b"ka"), 9).unwrap(), []);
        assert_eq!(store.scan(b"k", None, 0).unwrap(), []);
    };
    seen();
    assert_eq!(rig.get(b"ka").unwrap().unwrap(), "old");
    assert!(store.pending_bytes() > 0);

    // One more write fills a commit, which the engine begins and does not end.
    store.write(put("m", "new"), 2).unwrap();
    wait_until(|| rig.begun.load(Ordering::SeqCst) == 1);
    seen();
    assert_eq!(store.get(b"m").unwrap().unwrap(), "new");

    rig.release();
    store.barrier().unwrap();
    seen();
    assert_eq!(rig.get(b"ka").unwrap().unwrap(), "new");
    assert_eq!(store.pending_bytes(), 0);
}

#[test]
fn whole_batches_are_merged_in_order_up_to_a_full_commit() {
    let rig = Rig::held();
    let store = Store::open(rig.clone(), Options { max_ops_per_commit: 10, ..patient() }).unwrap();
    let mut expected = Vec::new();
    for n in 0..10_u64 {
        let mut batch = Batch::new();
        for sub in 0..3 {
            let key = keyspace::revision(0, &[n as u8, sub]);
            expected.push(key.clone());
            batch.put(key, "v");
        }
        store.write(batch, n).unwrap();
    }
    rig.release();
    store.barrier().unwrap();
    assert_eq!(rig.commit_sizes(), [9, 9, 9, 3]);
    assert_eq!(rig.commits.lock().concat(), expected);

    // One that is larger than a commit should be is committed whole all the same.
    let mut large = Batch::new();
    for n in 0..25 {
        large.put(keyspace::lease(n), "v");
    }
    store.write(large, 11).unwrap();
    store.barrier().unwrap();
    assert_eq!(rig.commit_sizes()[4..], [25]);
}

#[test]
fn large_values_fill_a_commit_by_their_bytes() {
    let rig = Rig::held();
    let store = Store::open(rig.clone(), patient()).unwrap();
    for n in 0..4 {
        let mut batch = Batch::new();
        batch.put(keyspace::lease(n), vec![7; 600 << 10]);
        store.write(batch, 1).unwrap();
    }
    rig.release();
    store.barrier().unwrap();
    assert_eq!(rig.commit_sizes(), [1, 1, 1, 1]);
}

#[test]
fn a_key_written_again_while_its_first_value_is_committed_keeps_the_later_value() {
    let rig = Rig::held();
    let store = Store::open(rig.clone(), Options { max_ops_per_commit: 1, ..patient() }).unwrap();
    for value in ["1", "2", "3"] {
        store.write(put("ka", value), 1).unwrap();
    }
    let mut delete = Batch::new();
    delete.delete("kb");
    store.write(put("kb", "1"), 2).unwrap();
    store.write(delete, 3).unwrap();
    rig.release();
    for _ in 0..3 {
        assert_eq!(store.get(b"ka").unwrap().unwrap(), "3");
        assert_eq!(store.get(b"kb").unwrap(), None);
        store.barrier().unwrap();
    }
    assert_eq!(rig.commit_sizes(), [1, 1, 1, 1, 1]);
}

#[test]
fn a_full_queue_holds_writers_back() {
    let rig = Rig::held();
    let mut batch = Batch::new();
    batch.put("ka", vec![0; 1000]);
    let one = batch.bytes();
    let store = Store::open(rig.clone(), Options { max_pending_bytes: 5 * one, ..patient() }).unwrap();
    let written = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..50 {
                store.write(batch.clone(), n).unwrap();
                written.fetch_add(1, Ordering::SeqCst);
            }
        });
        wait_until(|| store.pending_bytes() == 5 * one && written.load(Ordering::SeqCst) == 5);
        assert!(written.load(Ordering::SeqCst) <= 5);
        rig.release();
        wait_until(|| {
            assert!(store.pending_bytes() <= 5 * one);
            written.load(Ordering::SeqCst) == 50
        });
    });
    // What is larger than the queue goes alone.
    let mut large = Batch::new();
    large.put("kb", vec![0; 20 * one]);
    store.write(large, 51).unwrap();
    assert_eq!(store.flush().unwrap(), 51);
}

#[test]
fn a_flush_covers_what_was_written_before_it() {
    let rig = Rig::held();
    rig.release();
    let store = Store::open(rig.clone(), patient()).unwrap();
    assert_eq!(store.flushed_position(), 0);
    // Even with nothing written: an earlier process may have left commits that it never flushed.
    assert_eq!(store.flush().unwrap(), 0);
    assert_eq!(rig.flushes.load(Ordering::SeqCst), 1);

    store.write(put("ka", "1"), 7).unwrap();
    store.barrier().unwrap();
    assert_eq!(rig.inner.durable_copy().get(b"ka").unwrap(), None);
    assert_eq!(store.flushed_position(), 0);

    store.write(put("kb", "1"), 8).unwrap();
    assert_eq!(store.flush().unwrap(), 8);
    assert_eq!(store.flushed_position(), 8);
    assert_eq!(rig.inner.durable_copy().scan(b"", None, 9).unwrap(), records(&[("ka", "1"), ("kb", "1")]));

    // Nothing new: no fsync. A batch without writes still moves the position; a lower position does not.
    store.flush().unwrap();
    assert_eq!(rig.flushes.load(Ordering::SeqCst), 2);
    store.write(Batch::new(), 9).unwrap();
    store.write(put("kc", "1"), 3).unwrap();
    assert_eq!(store.flush().unwrap(), 9);
}

#[test]
fn commits_and_flushes_happen_by_themselves() {
    let quick = Duration::from_millis(1);
    let rig = Arc::new(Rig::default());
    let options = Options { commit_interval: quick, flush_interval: quick, ..Options::default() };
    let store = Store::open(rig.clone(), options).unwrap();
    for position in 1..=3 {
        store.write(put("ka", "1"), position).unwrap();
        wait_until(|| store.flushed_position() == position);
    }
    assert_eq!(rig.inner.durable_copy().get(b"ka").unwrap().unwrap(), "1");
    // And nothing happens when there is nothing to do.
    let flushes = rig.flushes.load(Ordering::SeqCst);
    store.barrier().unwrap();
    assert_eq!(rig.flushes.load(Ordering::SeqCst), flushes);
}

#[test]
fn the_first_failed_commit_ends_the_store() {
    let rig = Rig::with(Fault::Commit);
    let store = Store::open(rig.clone(), Options { max_pending_bytes: 1, ..patient() }).unwrap();
    store.write(put("ka", "1"), 1).unwrap();
    let stopped = store.barrier().unwrap_err();
    assert_eq!(stopped.source().unwrap().to_string(), "the storage engine failed: the disk is gone");

    // The engine works again, but a later batch must not be committed after a lost one.
    *rig.fault.lock() = None;
    assert!(matches!(store.write(put("kb", "1"), 2), Err(Error::Stopped { .. })));
    assert!(matches!(store.barrier(), Err(Error::Stopped { .. })));
    assert!(matches!(store.flush(), Err(Error::Stopped { .. })));
    assert!(matches!(store.close(), Err(Error::Stopped { .. })));
    assert!(matches!(store.close(), Err(Error::Stopped { .. })));
    assert_eq!(store.get(b"ka").unwrap().unwrap(), "1");
    assert_eq!(rig.commit_sizes(), Vec::<usize>::new());
    assert_eq!(store.flushed_position(), 0);
}

#[test]
fn a_failed_fsync_ends_the_store_and_is_not_tried_again() {
    let rig = Rig::with(Fault::Flush);
    let store = Store::open(rig.clone(), patient()).unwrap();
    store.write(put("ka", "1"), 1).unwrap();
    assert!(matches!(store.flush(), Err(Error::Stopped { .. })));
    *rig.fault.lock() = None;
    assert!(matches!(store.flush(), Err(Error::Stopped { .. })));
    assert_eq!(rig.flushes.load(Ordering::SeqCst), 0);
    assert_eq!(store.flushed_position(), 0);
    // For who has nothing to write.
    assert!(matches!(store.failure(), Some(Error::Stopped { .. })));
}

#[test]
fn a_panic_in_the_engine_reaches_the_callers() {
    let rig = Rig::with(Fault::Panic);
    let store = Store::open(rig, patient()).unwrap();
    store.write(put("ka", "1"), 1).unwrap();
    let stopped = store.barrier().unwrap_err();
    assert!(stopped.source().unwrap().to_string().contains("panicked"));
    assert!(matches!(store.close(), Err(Error::Stopped { .. })));
}

#[test]
fn a_writer_that_waits_for_room_learns_of_the_failure() {
    let rig = Rig::held();
    *rig.fault.lock() = Some(Fault::Commit);
    let store = Store::open(rig.clone(), Options { max_pending_bytes: 1, ..patient() }).unwrap();
    store.write(put("ka", "1"), 1).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| store.write(put("kb", "1"), 2));
        rig.release();
        assert!(matches!(waiting.join().unwrap(), Err(Error::Stopped { .. })));
    });
}

#[test]
fn closing_makes_everything_durable_and_refuses_more() {
    let rig = Arc::new(Rig::default());
    let store = Store::open(rig.clone(), patient()).unwrap();
    store.write(put("ka", "1"), 1).unwrap();
    store.close().unwrap();
    store.close().unwrap();
    assert_eq!(rig.inner.durable_copy().get(b"ka").unwrap().unwrap(), "1");
    assert_eq!(store.flushed_position(), 1);
    assert_eq!(store.get(b"ka").unwrap().unwrap(), "1");
    assert!(matches!(store.write(put("kb", "1"), 2), Err(Error::Closed)));
    assert_eq!(store.flush().unwrap(), 1);
}

#[test]
fn two_closers_and_a_waiting_writer_all_return() {
    let rig = Rig::held();
    let store = Store::open(rig.clone(), Options { max_pending_bytes: 1, ..patient() }).unwrap();
    store.write(put("ka", "1"), 1).unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| store.write(put("kb", "1"), 2));
        let closers = [scope.spawn(|| store.close()), scope.spawn(|| store.close())];
        rig.release();
        // The writer found room before the close, or was refused by it; it may not hang.
        assert!(matches!(writer.join().unwrap(), Ok(()) | Err(Error::Closed)));
        for closer in closers {
            closer.join().unwrap().unwrap();
        }
    });
    assert_eq!(rig.inner.durable_copy().get(b"ka").unwrap().unwrap(), "1");
}

#[test]
fn a_dropped_store_abandons_its_queue() {
    let rig = Arc::new(Rig::default());
    let store = Store::open(rig.clone(), patient()).unwrap();
    store.write(put("ka", "1"), 1).unwrap();
    drop(store);
    assert_eq!(rig.get(b"ka").unwrap(), None);
}

#[test]
fn a_refused_batch_changes_nothing() {
    let store = Store::open(Arc::new(MemoryEngine::new()), patient()).unwrap();
    let mut bad = put("ka", "1");
    bad.put("", "1");
    assert!(matches!(store.write(bad, 1), Err(Error::Key { .. })));
    assert_eq!(store.get(b"ka").unwrap(), None);
    // The refusal is the caller's fault and not sticky.
    store.write(put("kb", "1"), 1).unwrap();
    assert_eq!(store.flush().unwrap(), 1);
}

#[test]
fn the_observer_hears_of_every_commit() {
    #[derive(Default)]
    struct Count(AtomicU64);
    impl Observer for Count {
        fn commit_duration(&self, _took: Duration) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let count = Arc::new(Count::default());
    let store = Store::open_behind(Arc::new(MemoryEngine::new()), patient(), count.clone(), None).unwrap();
    for position in 1..=3 {
        store.write(put("ka", "1"), position).unwrap();
        store.barrier().unwrap();
    }
    assert_eq!(count.0.load(Ordering::SeqCst), 3);
}

/// Readers beside a writer never miss a record, never see one go back in time, and never see a deleted one again.
#[test]
fn readers_never_see_a_write_undone() {
    const LAST: u64 = 3000;
    let quick = Duration::from_micros(50);
    let options = Options { commit_interval: quick, flush_interval: quick, cache_bytes: 2000, ..Options::default() };
    let store = Store::open(Arc::new(MemoryEngine::new()), options).unwrap();
    let number = |value: &Bytes| u64::from_be_bytes(value[..].try_into().unwrap());
    let write = |n: u64| {
        let mut batch = Batch::new();
        // A counter in place, and a window of ten revisions that moves on.
        batch.put(keyspace::META_APPLIED, n.to_be_bytes().to_vec());
        batch.put(keyspace::revision(0, &n.to_be_bytes()), n.to_be_bytes().to_vec());
        if n >= 10 {
            batch.delete(keyspace::revision(0, &(n - 10).to_be_bytes()));
        }
        store.write(batch, n).unwrap();
    };
    write(0);
    thread::scope(|scope| {
        scope.spawn(|| (1..=LAST).for_each(write));
        for _ in 0..2 {
            scope.spawn(|| {
                let mut seen = 0;
                while seen < LAST {
                    let now = number(&store.get(keyspace::META_APPLIED).unwrap().unwrap());
                    assert!(now >= seen, "{seen}, then {now}");
                    seen = now;
                    // The writer may be far ahead by the time of the scan, never behind.
                    let (start, end) = keyspace::generation_range(0);
                    let window = store.scan(&start, Some(&end), 100).unwrap();
                    let newest = number(&window.last().unwrap().1);
                    assert!(newest >= now, "{now} was written, the scan ends at {newest}");
                    for pair in window.windows(2) {
                        assert!(number(&pair[0].1) < number(&pair[1].1));
                    }
                    assert!(number(&window[0].1) + 10 > now, "a revision deleted before {now} is back");
                }
            });
        }
    });
    assert_eq!(store.scan(b"k", Some(b"l"), 100).unwrap().len(), 10);
}

/// A reproducible source of test choices (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn key(&mut self) -> Bytes {
        match self.below(3) {
            0 => keyspace::lease(self.below(12) as i64),
            _ => keyspace::revision(self.below(2) as u32, &[self.below(25) as u8]),
        }
    }
}

type Model = BTreeMap<Bytes, Bytes>;

fn apply(model: &mut Model, batch: &Batch) {
    for write in batch.writes() {
        match &write.value {
            Some(value) => model.insert(write.key.clone(), value.clone()),
            None => model.remove(&write.key),
        };
    }
}

fn scan_of(model: &Model, start: &Bytes, end: Option<&Bytes>, limit: usize) -> Vec<Record> {
    let inside = model.iter().filter(|(key, _)| *key >= start && end.is_none_or(|end| *key < end));
    inside.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect()
}

#[test]
fn a_rewrite_takes_all_that_was_written_and_the_rest_goes_to_the_new_engine() {
    let (old, new) = (Arc::new(Rig::default()), Arc::new(Rig::default()));
    let store = Store::open(old.clone(), patient()).unwrap();
    store.write(put("ka", "1"), 1).unwrap();
    let refused = store.rewrite();
    assert!(matches!(refused, Err(Error::Engine(_))), "{refused:?}");
    *old.next.lock() = Some(new.clone());
    store.write(put("kb", "2"), 2).unwrap();
    assert!(store.rewrite().unwrap());
    assert_eq!(new.settled.load(Ordering::SeqCst), 1);
    store.write(put("kc", "3"), 3).unwrap();
    assert_eq!(store.flush().unwrap(), 3);
    assert_eq!(store.scan(b"k", None, 9).unwrap(), records(&[("ka", "1"), ("kb", "2"), ("kc", "3")]));
    assert_eq!(new.inner.durable_copy().scan(b"k", None, 9).unwrap().len(), 3);
    assert_eq!(old.inner.scan(b"k", None, 9).unwrap().len(), 2, "nothing goes to the old one any more");
    store.close().unwrap();
    assert!(matches!(store.rewrite(), Err(Error::Closed)));
}

/// An engine with so many records, 1 to a key, and the copy of it.
fn two_rigs(records: u32) -> (Arc<Rig>, Arc<Rig>, Order) {
    let order = Arc::new(Mutex::new(Vec::new()));
    let new = Arc::new(Rig { order: Some(("copy", order.clone())), held: Mutex::new(true), ..Rig::default() });
    let old = Rig { order: Some(("store", order.clone())), ..Rig::default() };
    let mut all = Batch::new();
    for n in 0..records {
        all.put(keyspace::lease(n.into()), "1");
    }
    old.inner.commit(&all).unwrap();
    *old.next.lock() = Some(new.clone());
    (Arc::new(old), new, order)
}

#[test]
fn pieces_of_a_rewrite_and_commits_take_turns_and_what_was_copied_already_is_written_twice() {
    let (old, new, order) = two_rigs(4500);
    let store = Store::open(old.clone(), Options { max_ops_per_commit: 1, ..patient() }).unwrap();
    thread::scope(|scope| {
        let rewritten = scope.spawn(|| store.rewrite());
        wait_until(|| new.begun.load(Ordering::SeqCst) == 1);
        // In the first piece, in one to come, behind the last, and never there.
        let lease = keyspace::lease;
        let changes = [(3, Some("2")), (4400, Some("2")), (9000, Some("2")), (4, None), (4401, None), (9001, None)];
        for (position, (n, value)) in (1..).zip(changes) {
            let mut batch = Batch::new();
            match value {
                Some(value) => batch.put(lease(n), value),
                None => batch.delete(lease(n)),
            };
            store.write(batch, position).unwrap();
        }
        new.release();
        assert!(rewritten.join().unwrap().unwrap());
    });
    assert_eq!(store.flush().unwrap(), 6);
    let mut wanted = Model::new();
    (0..4500).for_each(|n| drop(wanted.insert(keyspace::lease(n), Bytes::from("1"))));
    for n in [3, 4400, 9000] {
        wanted.insert(keyspace::lease(n), Bytes::from("2"));
    }
    wanted.remove(&keyspace::lease(4));
    wanted.remove(&keyspace::lease(4401));
    let held: Model = new.inner.durable_copy().scan(b"", None, usize::MAX).unwrap().into_iter().collect();
    assert!(held == wanted);
    assert_eq!((new.finished.load(Ordering::SeqCst), new.settled.load(Ordering::SeqCst)), (1, 1));
    // Writers wait for one piece each, not for all five; what lies below it goes to the copy at once.
    let order = order.lock();
    assert_eq!(order[..6], ["copy", "store", "copy", "copy", "store", "copy"], "{order:?}");
}

#[test]
fn a_rewrite_ends_though_more_is_written_than_it_copies_at_once() {
    let (old, new, _) = two_rigs(4500);
    new.release();
    let store = Store::open(old, Options { max_pending_bytes: 1 << 20, ..Options::default() }).unwrap();
    let ended = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Each of these is more than a piece, and behind all that was copied.
            let mut next = 10_000;
            while ended.load(Ordering::SeqCst) == 0 {
                let mut batch = Batch::new();
                for n in next..next + 3000 {
                    batch.put(keyspace::lease(n), "2");
                }
                next += 3000;
                store.write(batch, next as u64).unwrap();
            }
        });
        let (sender, receiver) = std::sync::mpsc::channel();
        let rewriting = &store;
        scope.spawn(move || sender.send(rewriting.rewrite()));
        let rewritten = receiver.recv_timeout(Duration::from_secs(60));
        ended.store(1, Ordering::SeqCst);
        assert!(rewritten.expect("it goes on for ever").unwrap());
    });
    let (all, copied) = (store.scan(b"", None, usize::MAX).unwrap(), store.flush().unwrap());
    assert!(copied > 10_000);
    assert!(new.inner.durable_copy().scan(b"", None, usize::MAX).unwrap() == all);
}

/// Writers wait for the end of a rewrite, which must not have all of the copy to sync.
#[test]
fn a_copy_is_made_durable_on_its_way_so_that_little_is_left_for_the_end() {
    let (old, new) = (Arc::new(Rig::default()), Arc::new(Rig::default()));
    let value = Bytes::from(vec![7; 1 << 20]);
    let mut all = Batch::new();
    for n in 0..40 {
        all.put(keyspace::lease(n), value.clone());
    }
    old.inner.commit(&all).unwrap();
    *old.next.lock() = Some(new.clone());
    let store = Store::open(old, patient()).unwrap();
    assert!(store.rewrite().unwrap());
    // Behind 16 MiB, behind 32, and at the end.
    let flushes = new.flushes.load(Ordering::SeqCst);
    assert!(flushes >= 3, "{flushes} flushes of 40 MiB");
}

#[test]
fn a_copy_that_fails_ends_the_rewrite_and_nothing_else() {
    let (old, new, _) = two_rigs(4500);
    *new.fault.lock() = Some(Fault::Commit);
    new.release();
    let store = Store::open(old.clone(), patient()).unwrap();
    thread::scope(|scope| {
        let kept = new.kept.lock();
        let rewritten = scope.spawn(|| store.rewrite());
        wait_until(|| new.begun.load(Ordering::SeqCst) == 1);
        // While gigabytes are deleted, say.
        store.write(put("ka", "1"), 1).unwrap();
        scope.spawn(|| store.flush());
        wait_until(|| store.flushed_position() == 1);
        drop(kept);
        assert!(matches!(rewritten.join().unwrap(), Err(Error::Engine(_))));
    });
    assert_eq!(new.discarded.load(Ordering::SeqCst), 1);
    assert_eq!(old.inner.get(b"ka").unwrap().unwrap(), "1");
}

#[test]
fn two_rewrites_at_once_come_one_after_the_other() {
    let (old, new, order) = two_rigs(4500);
    let third = Arc::new(Rig { order: Some(("copy of the copy", order.clone())), ..Rig::default() });
    *new.next.lock() = Some(third.clone());
    let store = Store::open(old, patient()).unwrap();
    thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| store.rewrite()));
        wait_until(|| new.begun.load(Ordering::SeqCst) == 1);
        new.release();
        for rewritten in both {
            assert!(rewritten.join().unwrap().unwrap());
        }
    });
    assert_eq!((new.settled.load(Ordering::SeqCst), third.settled.load(Ordering::SeqCst)), (1, 1));
    let order = order.lock();
    assert!(order.is_sorted() && order.len() == 10, "{order:?}");
    assert_eq!(third.inner.scan(b"", None, usize::MAX).unwrap().len(), 4500);
}

#[test]
fn a_server_commits_soon_and_little_at_a_time() {
    let Options { commit_interval, flush_interval, max_ops_per_commit, .. } = Options::default();
    // In 200 writes readers of sled stand still for 1.6 ms. Why the flush is not sooner: docs/decisions/0003.
    assert_eq!((commit_interval, max_ops_per_commit), (Duration::from_millis(10), 200));
    assert_eq!(flush_interval, Duration::from_secs(1));
}

#[test]
fn a_store_that_is_closed_gives_a_rewrite_up() {
    let (old, new, _) = two_rigs(4500);
    let store = Store::open(old, patient()).unwrap();
    thread::scope(|scope| {
        let rewritten = scope.spawn(|| store.rewrite());
        wait_until(|| new.begun.load(Ordering::SeqCst) == 1);
        let closed = scope.spawn(|| store.close());
        wait_until(|| matches!(store.write(put("ka", "1"), 1), Err(Error::Closed)));
        new.release();
        closed.join().unwrap().unwrap();
        // Whether there was time for the rest of it is up to the machine.
        match rewritten.join().unwrap() {
            Ok(finished) => assert!(finished),
            Err(err) => assert!(matches!(err, Error::Closed), "{err}"),
        }
    });
    let (finished, discarded) = (new.finished.load(Ordering::SeqCst), new.discarded.load(Ordering::SeqCst));
    assert_eq!(finished + discarded, 1);
}

/// Both engines on disk, with a queue that holds far less than is written meanwhile.
#[test]
fn writes_go_on_while_a_store_on_disk_is_rewritten() {
    /// A loaded machine's disk may stand still for seconds; the copy as a whole takes some.
    const LONGEST: Duration = Duration::from_secs(20);
    const QUEUE: usize = 64 << 10;
    for kind in [EngineKind::Sled, EngineKind::Redb] {
        let dir = tempfile::tempdir().unwrap();
        let engine = kind.open(&dir.path().join("engine"), 16 << 20).unwrap();
        let store = Store::open(engine, Options { max_pending_bytes: QUEUE, ..Options::default() }).unwrap();
        let value = |n: i64| Bytes::from(vec![n as u8; 4000]);
        let write = |n: i64| {
            let mut batch = Batch::new();
            batch.put(keyspace::lease(n % 4000), value(n));
            store.write(batch, n as u64).unwrap();
        };
        (0..4000).for_each(write);
        let ended = AtomicUsize::new(0);
        let (written, longest) = thread::scope(|scope| {
            let busy = scope.spawn(|| {
                let (mut n, mut longest) = (4000, Duration::ZERO);
                while ended.load(Ordering::SeqCst) == 0 {
                    let begun = Instant::now();
                    write(n);
                    longest = longest.max(begun.elapsed());
                    n += 1;
                }
                (n - 4000, longest)
            });
            let rewritten = store.rewrite();
            ended.store(1, Ordering::SeqCst);
            assert!(rewritten.unwrap());
            busy.join().unwrap()
        });
        assert!(written as usize * 4000 > 2 * QUEUE, "{kind}: {written} writes while it was copied");
        assert!(longest < LONGEST, "{kind}: one of {written} writes took {longest:?}");
        store.flush().unwrap();
        for n in written..written + 4000 {
            assert!(store.get(&keyspace::lease(n % 4000)).unwrap().unwrap() == value(n), "{kind}: {n}");
        }
        store.close().unwrap();
    }
}

/// Random writes, reads, scans, barriers, flushes and power cuts against a plain map. After a power cut the engine must
/// hold exactly the batches up to the position in it, and that position must be at least the flushed one.
#[test]
fn the_store_is_a_map_and_a_power_cut_leaves_a_prefix_of_its_batches() {
    for seed in 0..40 {
        let mut random = Random(seed);
        let mut engine = Arc::new(MemoryEngine::new());
        let mut history: Vec<Batch> = Vec::new();
        let mut model = Model::new();
        for _life in 0..4 {
            let options = Options {
                max_pending_bytes: 300 + random.below(5000) as usize,
                commit_interval: Duration::from_micros(random.below(300)),
                flush_interval: Duration::from_micros(random.below(600)),
                max_ops_per_commit: 1 + random.below(20) as usize,
                cache_bytes: random.below(4000) as usize,
                leaves_room: true,
            };
            let store = Store::open(engine.clone(), options).unwrap();
            for _ in 0..random.below(150) {
                match random.below(10) {
                    0..5 => {
                        let position = history.len() as u64 + 1;
                        let mut batch = Batch::new();
                        batch.put(keyspace::META_APPLIED, position.to_be_bytes().to_vec());
                        for _ in 0..random.below(6) {
                            if random.below(3) == 0 {
                                batch.delete(random.key());
                            } else {
                                batch.put(random.key(), vec![random.below(256) as u8; random.below(60) as usize]);
                            }
                        }
                        apply(&mut model, &batch);
                        history.push(batch.clone());
                        store.write(batch, position).unwrap();
                    }
                    5..7 => {
                        let key = random.key();
                        assert_eq!(store.get(&key).unwrap().as_ref(), model.get(&key), "seed {seed}");
                    }
                    7 => {
                        let start = random.key();
                        let end = (random.below(2) == 0).then(|| random.key());
                        let limit = Limit { records: random.below(40) as usize, bytes: random.below(900) as usize };
                        let found = store.page(&start, end.as_deref(), limit).unwrap();
                        let mut expected = Page::default();
                        for record in scan_of(&model, &start, end.as_ref(), usize::MAX) {
                            if !expected.is_full(limit) {
                                expected.push(record);
                            }
                        }
                        assert_eq!(found, expected, "seed {seed}");
                    }
                    8 => {
                        store.barrier().unwrap();
                        assert_eq!(engine.scan(b"", None, 999).unwrap(), scan_of(&model, &Bytes::new(), None, 999));
                    }
                    _ => {
                        let flushed = store.flush().unwrap();
                        assert!(flushed == history.len() as u64 || flushed == 0, "seed {seed}");
                        check_power_cut(&engine, &history, history.len() as u64, seed);
                    }
                }
            }
            let flushed = store.flushed_position();
            let kept = check_power_cut(&engine, &history, flushed, seed);
            if random.below(2) == 0 {
                store.close().unwrap();
                check_power_cut(&engine, &history, history.len() as u64, seed);
            } else {
                let cut = Arc::new(engine.durable_copy());
                drop(store);
                let kept = applied(&cut).max(kept);
                engine = cut;
                history.truncate(kept as usize);
                model = model_of(&history);
            }
        }
    }
}

fn applied(engine: &MemoryEngine) -> u64 {
    let value = engine.get(keyspace::META_APPLIED).unwrap();
    value.map_or(0, |value| u64::from_be_bytes(value[..].try_into().unwrap()))
}

fn model_of(batches: &[Batch]) -> Model {
    let mut model = Model::new();
    batches.iter().for_each(|batch| apply(&mut model, batch));
    model
}

fn check_power_cut(engine: &MemoryEngine, history: &[Batch], flushed: u64, seed: u64) -> u64 {
    let cut = engine.durable_copy();
    let kept = applied(&cut);
    assert!(kept >= flushed, "seed {seed}: {flushed} was flushed, {kept} is left");
    let expected = scan_of(&model_of(&history[..kept as usize]), &Bytes::new(), None, 999);
    assert_eq!(cut.scan(b"", None, 999).unwrap(), expected, "seed {seed}: not a whole number of batches");
    kept
}
