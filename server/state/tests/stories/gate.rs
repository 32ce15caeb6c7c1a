//! An engine at whose gate one call stands as long as the test wants: nobody else waits for that.

use ferretcd_state::State;
use ferretcd_storage::{Batch, Engine, Limit, MemoryEngine, Options, Page, Result, Store};
use ferretcd_types::{
    Caller, Command, KeyRange, LogPos, MemberId, Proposal, Put, Range, RangeReply, RequestId, Txn, TxnOp,
};
use parking_lot::{Condvar, Mutex};
use std::sync::{Arc, mpsc};
use std::thread::{self, Scope};
use std::time::Duration;

const KEYS: usize = 100_000;

/// Far more than any call here takes; a call that waits for the gate waits for ever.
const CEILING: Duration = Duration::from_secs(60);

#[derive(Default)]
struct GatedEngine {
    engine: MemoryEngine,
    gate: Mutex<Gate>,
    moved: Condvar,
}

#[derive(Default)]
struct Gate {
    /// The call that comes after so many others of its kind stands at the gate.
    reads: Option<usize>,
    commits: Option<usize>,
    /// One stands there.
    stands: bool,
}

impl GatedEngine {
    fn pass(&self, which: impl Fn(&mut Gate) -> &mut Option<usize>) {
        let mut gate = self.gate.lock();
        match which(&mut gate) {
            None => {}
            Some(0) => {
                *which(&mut gate) = None;
                gate.stands = true;
                self.moved.notify_all();
                self.moved.wait_while(&mut gate, |gate| gate.stands);
            }
            Some(others) => *others -= 1,
        }
    }

    fn wait_until_one_stands(&self) {
        let waited = self.moved.wait_while_for(&mut self.gate.lock(), |gate| !gate.stands, CEILING);
        assert!(!waited.timed_out(), "nothing came to the gate");
    }

    fn stands(&self) -> bool {
        self.gate.lock().stands
    }
}

impl Engine for GatedEngine {
    fn get(&self, key: &[u8]) -> Result<Option<bytes::Bytes>> {
        self.pass(|gate| &mut gate.reads);
        self.engine.get(key)
    }
    fn page(&self, start: &[u8], end: Option<&[u8]>, limit: Limit) -> Result<Page> {
        self.engine.page(start, end, limit)
    }
    fn commit(&self, batch: &Batch) -> Result<()> {
        self.pass(|gate| &mut gate.commits);
        self.engine.commit(batch)
    }
    fn flush(&self) -> Result<()> {
        self.engine.flush()
    }
    fn size_on_disk(&self) -> Result<u64> {
        self.engine.size_on_disk()
    }
}

/// Opens the gate, also when a test fails: its threads end then.
struct Opens<'a>(&'a GatedEngine);

impl Drop for Opens<'_> {
    fn drop(&mut self) {
        *self.0.gate.lock() = Gate::default();
        self.0.moved.notify_all();
    }
}

/// A state of a hundred thousand keys, all of them in the engine and none in front of it.
fn large_state() -> (Arc<GatedEngine>, State) {
    let engine = Arc::new(GatedEngine::default());
    let store = Store::open(engine.clone(), Options { cache_bytes: 0, ..Options::default() }).unwrap();
    let state = State::open(store, MemberId(1)).unwrap();
    for first in (0..KEYS).step_by(1000) {
        let success = (first..first + 1000).map(|n| TxnOp::Put(put(&name(n), "old"))).collect();
        apply(&state, Txn { success, ..Txn::default() });
    }
    state.flush().unwrap();
    (engine, state)
}

fn name(n: usize) -> String {
    format!("k{n:06}")
}

fn put(key: &str, value: &str) -> Put {
    Put { key: key.to_owned().into(), value: value.to_owned().into(), ..Put::default() }
}

fn apply(state: &State, command: impl Into<Command>) {
    let index = state.applied().map_or(1, |applied| applied.index + 1);
    let proposal = Proposal { id: RequestId(index), caller: Caller::Member, command: command.into() };
    state.apply(LogPos { term: 1, index }, &proposal).unwrap().outcome.unwrap();
}

fn all(state: &State) -> RangeReply {
    state.range(&Range { range: KeyRange::all(), ..Range::default() }).unwrap()
}

fn value(state: &State, key: &str) -> String {
    let found = state.range(&Range { range: KeyRange::single(key.to_owned()), ..Range::default() }).unwrap();
    String::from_utf8(found.kvs[0].value.to_vec()).unwrap()
}

/// What a call answers that waits for nobody.
fn at_once<'s, T: Send + 's>(scope: &'s Scope<'s, '_>, what: &str, call: impl FnOnce() -> T + Send + 's) -> T {
    let (tx, rx) = mpsc::channel();
    scope.spawn(move || tx.send(call()));
    rx.recv_timeout(CEILING).unwrap_or_else(|_| panic!("{what} waits for the gate"))
}

#[test]
fn a_long_range_that_stands_still_holds_up_neither_writes_nor_reads() {
    let (engine, state) = large_state();
    let state = &state;
    thread::scope(|scope| {
        let opens = Opens(&engine);
        engine.gate.lock().reads = Some(KEYS / 2);
        let range = scope.spawn(|| all(state));
        engine.wait_until_one_stands();
        at_once(scope, "a put", || apply(state, put(&name(KEYS - 1), "new")));
        at_once(scope, "a flush", || state.flush().unwrap());
        assert_eq!(at_once(scope, "a get", || value(state, &name(KEYS - 1))), "new");
        assert_eq!(at_once(scope, "another range", || all(state)).kvs.len(), KEYS);
        assert!(engine.stands());
        drop(opens);
        // Of the moment at which it began.
        let reply = range.join().unwrap();
        assert_eq!((reply.kvs.len(), &reply.kvs[KEYS - 1].value[..]), (KEYS, &b"old"[..]));
    });
}

#[test]
fn a_commit_that_stands_still_holds_up_no_read() {
    let (engine, state) = large_state();
    let state = &state;
    thread::scope(|scope| {
        let opens = Opens(&engine);
        engine.gate.lock().commits = Some(0);
        at_once(scope, "a put", || apply(state, put(&name(1), "new")));
        engine.wait_until_one_stands();
        // What it would write, what comes behind it, and what lies in the engine.
        at_once(scope, "a second put", || apply(state, put(&name(2), "newer")));
        for (n, expected) in [(1, "new"), (2, "newer"), (3, "old")] {
            assert_eq!(at_once(scope, "a get", move || value(state, &name(n))), expected);
        }
        assert_eq!(at_once(scope, "a long range", || all(state)).kvs.len(), KEYS);
        let events = at_once(scope, "a watcher", || state.events(state.revision() - 1, 10, 1 << 20).unwrap());
        assert_eq!(events.events.len(), 2);
        assert!(engine.stands());
        drop(opens);
        at_once(scope, "a flush", || state.flush().unwrap());
    });
    assert_eq!(value(state, &name(1)), "new");
}
