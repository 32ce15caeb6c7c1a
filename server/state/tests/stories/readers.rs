//! Readers beside the applier: each answer is of one moment, whatever is compacted, restored or installed meanwhile.

use crate::member::{put, write};
use ferretcd_state::{SnapshotKind, State};
use ferretcd_storage::{Engine, EngineKind, MemoryEngine, Options, Store, keyspace};
use ferretcd_types::{
    Caller, Command, Compact, Error, KeyRange, LogPos, MemberId, Proposal, Put, Range, RequestId, Txn, TxnOp,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn apply(state: &State, index: &mut u64, command: impl Into<Command>) {
    *index += 1;
    let proposal = Proposal { id: RequestId(*index), caller: Caller::Member, command: command.into() };
    state.apply(LogPos { term: 1, index: *index }, &proposal).unwrap().outcome.unwrap();
}

/// Two keys that are always written together, among many others.
fn pair(n: u64) -> Txn {
    let set = |key: &'static str| TxnOp::Put(Put { key: key.into(), value: n.to_string().into(), ..Put::default() });
    Txn { success: vec![set("a"), set("z")], ..Txn::default() }
}

fn furnish(state: &State, index: &mut u64) {
    for n in 0..1200 {
        apply(state, index, Put { key: format!("k{n:04}").into(), ..put("", "v") });
    }
    apply(state, index, pair(0));
}

#[test]
fn readers_see_whole_moments() {
    let dir = tempfile::tempdir().unwrap();
    let on_disk = |kind: EngineKind| kind.open(&dir.path().join(kind.name()), 16 << 20).unwrap();
    let memory: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    // A debug build does not optimise those on disk.
    let engines = [
        ("memory", memory, 3000, 5),
        ("sled", on_disk(EngineKind::Sled), 600, 2),
        ("redb", on_disk(EngineKind::Redb), 600, 2),
    ];
    for (name, engine, writes, installs) in engines {
        println!("on {name}");
        whole_moments_are_read_from(engine, writes, installs);
    }
}

/// With nothing in memory in front of the engine but what is not committed yet: an iterator of sled's is of no moment by itself.
fn whole_moments_are_read_from(engine: Arc<dyn Engine>, writes: u64, installs: usize) {
    let store = Store::open(engine.clone(), Options { cache_bytes: 0, ..Options::default() }).unwrap();
    let (state, mut index) = (State::open(store, MemberId(1)).unwrap(), 0);
    let state = &state;
    furnish(state, &mut index);
    let snapshot = write(&state.pin(), SnapshotKind::Raft);
    let done = AtomicBool::new(false);
    let read_keys = || {
        let mut reads = 0;
        while !done.load(Ordering::Relaxed) || reads == 0 {
            // Longer than a chunk of the index, so that writes come in between.
            let reply = state.range(&Range { range: KeyRange::all(), ..Range::default() }).unwrap();
            let (first, last) = (&reply.kvs[0], &reply.kvs[reply.kvs.len() - 1]);
            assert_eq!((reply.count, reply.kvs.len()), (1202, 1202));
            assert_eq!((&first.value, first.mod_revision), (&last.value, last.mod_revision));
            assert!(first.mod_revision <= reply.revision);
            reads += 1;
        }
    };
    let read_history = || {
        let mut from = state.revision();
        while !done.load(Ordering::Relaxed) {
            match state.events(from, 50, 1 << 20) {
                Ok(batch) => {
                    // Whole revisions, none left out: each has both keys.
                    let seen: Vec<_> = batch.events.iter().map(|e| (e.revision.main, e.revision.sub)).collect();
                    let expected: Vec<_> = (from..batch.next).flat_map(|main| [(main, 0), (main, 1)]).collect();
                    assert_eq!(seen, expected);
                    for event in &batch.events {
                        state.value_before(event).unwrap();
                    }
                    from = batch.next;
                }
                Err(Error::Compacted) => from = state.revision() + 1,
                Err(err) => panic!("{err}"),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(read_keys);
        }
        scope.spawn(read_history);
        for n in 1..writes {
            apply(state, &mut index, pair(n));
            if n % 3 == 0 {
                apply(state, &mut index, Compact { revision: state.revision() });
            }
            // Otherwise all that is new would be read from the queue.
            if n % 25 == 0 {
                state.flush().unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    // The same across a change of the whole key space.
    done.store(false, Ordering::Relaxed);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(read_keys);
        }
        for _ in 0..installs {
            state.install(&&snapshot[..]).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    state.wait_deleted().unwrap();
    state.flush().unwrap();
    let (start, end) = keyspace::keyspace_range(keyspace::KEYS);
    assert_eq!(engine.scan(&start, Some(&end), usize::MAX).unwrap().len(), 1202);
}
