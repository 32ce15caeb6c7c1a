//! Readers beside the applier: each answer is of one moment, whatever is compacted, restored or installed meanwhile.

use crate::member::{Member, put};
use ferretcd_state::{SnapshotKind, State};
use ferretcd_types::{Caller, Command, Compact, Error, KeyRange, LogPos, Proposal, Put, Range, RequestId, Txn, TxnOp};
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
    let member = Member::new();
    let (state, mut index) = (&member.state, 0);
    furnish(state, &mut index);
    let snapshot = member.snapshot(SnapshotKind::Raft);
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
        for n in 1..3000 {
            apply(state, &mut index, pair(n));
            if n % 3 == 0 {
                apply(state, &mut index, Compact { revision: state.revision() });
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
        for _ in 0..5 {
            state.install(&&snapshot[..]).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    state.wait_deleted().unwrap();
    assert_eq!(member.key_records(), 1202);
}
