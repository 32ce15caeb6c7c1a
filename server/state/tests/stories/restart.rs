//! Restarts at any point: what the store has durable, and the log from there, give the same state.

use crate::member::{Entry, Member, put};
use crate::model::{Random, entries};
use bytes::Bytes;
use ferretcd_state::{SnapshotKind, State};
use ferretcd_storage::{Batch, Engine, Limit, MemoryEngine, Options, Page, Result, Store};
use ferretcd_types::{Caller, LogPos, MemberId, Proposal, RequestId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

#[test]
fn a_power_cut_at_any_point_and_a_replay_give_the_same_state() {
    for seed in 1..=4 {
        let log = entries(&mut Random(seed), 120);
        let mut member = Member::new();
        let mut random = Random(seed * 77);
        for (at, entry) in log.iter().enumerate() {
            member.enter(entry.clone());
            if random.below(4) == 0 {
                member.state.flush().unwrap();
            }
            if random.below(6) == 0 {
                let again = member.after_power_cut();
                assert_eq!(again.state.applied(), member.state.applied());
                assert_eq!(again.state.hash_kv(0), member.state.hash_kv(0), "seed {seed}, entry {at}");
                assert_eq!(again.state.key_count(), member.state.key_count());
                assert_eq!(again.snapshot(SnapshotKind::Raft), member.snapshot(SnapshotKind::Raft));
                member = again;
            }
        }
    }
}

/// An engine that keeps what a power cut would leave after each single write.
#[derive(Default)]
struct Shots {
    engine: Arc<MemoryEngine>,
    taken: Mutex<Vec<MemoryEngine>>,
}

impl Engine for Shots {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.engine.get(key)
    }

    fn page(&self, start: &[u8], end: Option<&[u8]>, limit: Limit) -> Result<Page> {
        self.engine.page(start, end, limit)
    }

    fn commit(&self, batch: &Batch) -> Result<()> {
        self.engine.commit(batch)?;
        self.engine.flush()?;
        self.taken.lock().unwrap().push(self.engine.durable_copy());
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.engine.flush()
    }

    fn size_on_disk(&self) -> Result<u64> {
        self.engine.size_on_disk()
    }
}

/// Position, members and data of an entry are one write: between two there would be a state that no entry has left, and a
/// replay from there would leave an entry out, or apply it twice.
#[test]
fn after_each_single_write_the_engine_holds_what_a_whole_entry_has_left() {
    let still = |engine: Arc<dyn Engine>| {
        State::open_still(Arc::new(Store::open_inline(engine, Options::default())), MemberId(1)).unwrap()
    };
    for seed in 1..=3 {
        let shots = Arc::new(Shots::default());
        let state = still(shots.clone());
        let mut member = Member { state, engine: shots.engine.clone(), log: Vec::new() };
        let mut whole = BTreeMap::from([(None, member.snapshot(SnapshotKind::Raft))]);
        let mut log = entries(&mut Random(seed), 60);
        let group = vec![(MemberId(1), Default::default(), false)];
        log.insert(30, Entry::Membership("blob".into(), group));
        for entry in log {
            member.enter(entry);
            whole.insert(member.state.applied(), member.snapshot(SnapshotKind::Raft));
        }
        let shots = std::mem::take(&mut *shots.taken.lock().unwrap());
        assert!(shots.len() >= 61);
        for (number, shot) in shots.into_iter().enumerate() {
            let engine = Arc::new(shot);
            let again = Member { state: still(engine.clone()), engine, log: Vec::new() };
            let applied = again.state.applied();
            assert!(whole[&applied] == again.snapshot(SnapshotKind::Raft), "seed {seed}, write {number}: {applied:?}");
        }
    }
}

#[test]
fn entries_that_are_in_already_change_nothing() {
    let mut member = Member::new();
    member.put("a", "1");
    member.put("a", "2");
    let again = Proposal { id: RequestId(1), caller: Caller::Member, command: put("a", "9").into() };
    let applied = member.state.apply(LogPos { term: 1, index: 2 }, &again).unwrap();
    assert!(applied.outcome.is_err() && applied.effects.is_empty());
    assert_eq!(member.state.apply_membership(LogPos { term: 1, index: 1 }, "x".into(), &[]).unwrap(), []);
    member.state.apply_blank(LogPos { term: 1, index: 2 }).unwrap();
    assert_eq!(member.get("a").unwrap().value, "2");
    assert_eq!(member.state.applied(), Some(LogPos { term: 1, index: 2 }));
}

#[test]
fn a_refused_command_moves_the_applied_position_too() {
    let mut member = Member::new();
    member.enter(Entry::Blank);
    member.ask(ferretcd_types::Compact { revision: 9 }).unwrap_err();
    let group = vec![(MemberId(1), Default::default(), false)];
    member.enter(Entry::Membership("blob".into(), group));
    assert_eq!(member.state.applied().unwrap().index, 3);
    assert_eq!(member.after_flush_and_power_cut().state.applied().unwrap().index, 3);
}
