//! Restarts at any point: what the store has durable, and the log from there, give the same state.

use crate::member::{Entry, Member, put};
use crate::model::{Random, entries};
use ferretcd_state::SnapshotKind;
use ferretcd_types::{Caller, LogPos, MemberId, Proposal, RequestId};

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
