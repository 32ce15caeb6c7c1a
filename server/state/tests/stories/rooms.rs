//! Members, alarms, genesis, and the order in which a command is admitted.

use crate::member::{Entry, Member, put};
use ferretcd_state::{Effect, SnapshotKind, State, StateError};
use ferretcd_storage::{Batch, Engine as _, Options, Store, keyspace};
use ferretcd_types::codec::LOG_FORMAT;
use ferretcd_types::{
    Alarm, AlarmKind, Caller, Compact, DeleteRange, Epoch, Error, Genesis, KeyRange, LeaseGrant, LeaseId, LeaseRevoke,
    LogPos, MemberAttributes, MemberId, PeerNode, Proposal, RequestId, RestoreBegin, SetAlarm, SetClusterVersion,
    SetDowngrade, Txn, TxnOp,
};
use std::sync::Arc;

fn set(kind: AlarmKind, raised: bool) -> SetAlarm {
    SetAlarm { alarm: Alarm { member: MemberId(1), kind }, raised }
}

#[test]
fn no_space_refuses_growth_and_lets_the_rest_through() {
    let mut member = Member::new();
    member.ask(LeaseGrant { id: LeaseId(1), ttl: 60 }).unwrap();
    member.put("a", "1");
    let (_, effects) = member.ask_all(set(AlarmKind::NoSpace, true));
    assert_eq!(effects, [Effect::AlarmsChanged]);
    assert_eq!(member.ask_all(set(AlarmKind::NoSpace, true)).1, [], "raised already");
    let with_put = Txn { failure: vec![TxnOp::Put(put("b", "1"))], ..Txn::default() };
    let nested = Txn { success: vec![TxnOp::Txn(with_put.clone())], ..Txn::default() };
    assert_eq!(member.ask(put("b", "1")), Err(Error::NoSpace));
    assert_eq!(member.ask(with_put), Err(Error::NoSpace));
    assert_eq!(member.ask(nested), Err(Error::NoSpace));
    assert_eq!(member.ask(LeaseGrant { id: LeaseId(2), ttl: 60 }), Err(Error::NoSpace));
    member.ask(LeaseRevoke { id: LeaseId(1) }).unwrap();
    member.ask(Compact { revision: 2 }).unwrap();
    member.ask(DeleteRange { range: KeyRange::all(), prev_kv: false }).unwrap();
    let again = member.after_flush_and_power_cut();
    assert_eq!(again.state.alarms(), [Alarm { member: MemberId(1), kind: AlarmKind::NoSpace }]);
    member.ask(set(AlarmKind::NoSpace, false)).unwrap();
    member.ask(put("b", "1")).unwrap();
}

#[test]
fn corruption_refuses_all_writes() {
    let mut member = Member::new();
    member.ask(set(AlarmKind::Corrupt, true)).unwrap();
    assert_eq!(member.ask(put("a", "1")), Err(Error::Corrupt));
    assert_eq!(member.ask(DeleteRange { range: KeyRange::all(), prev_kv: false }), Err(Error::Corrupt));
    assert_eq!(member.ask(Txn::default()), Err(Error::Corrupt));
    assert_eq!(member.ask(Compact { revision: 1 }), Err(Error::Corrupt));
    assert_eq!(member.ask(LeaseGrant { id: LeaseId(1), ttl: 1 }), Err(Error::Corrupt));
    assert_eq!(member.ask(LeaseRevoke { id: LeaseId(1) }), Err(Error::Corrupt));
    // A restore is the one refusal that comes before it.
    member.ask(RestoreBegin { id: 1 }).unwrap();
    assert_eq!(member.ask(put("a", "1")), Err(Error::RestoreInProgress));
}

#[test]
fn genesis_is_fixed_by_the_first_of_its_kind() {
    let mut member = Member::new();
    assert_eq!((member.state.epoch(), member.state.cluster_version()), (Epoch::UNKNOWN, None));
    let genesis = |epoch, version: &str| Genesis { epoch: Epoch(epoch), cluster_version: version.into() };
    assert_eq!(member.ask_all(genesis(7, "3.7.0")).1, [Effect::EpochKnown]);
    assert_eq!(member.ask_all(genesis(8, "3.8.0")).1, []);
    let again = member.after_flush_and_power_cut();
    assert_eq!((again.state.epoch(), again.state.cluster_version().as_deref()), (Epoch(7), Some("3.7.0")));
}

#[test]
fn members_come_from_the_group_and_their_attributes_from_themselves() {
    let mut member = Member::new();
    let node = |n: u64| (MemberId(n), PeerNode { peer_urls: vec![format!("http://m{n}:2380")] }, n == 3);
    let effects = member.enter(Entry::Membership("one".into(), vec![node(1), node(2), node(3)])).effects;
    assert_eq!(effects, [Effect::MembersChanged]);
    let attributes = MemberAttributes { id: MemberId(2), name: "m2".into(), client_urls: vec!["http://c".into()] };
    member.ask(attributes.clone()).unwrap();
    assert_eq!(member.ask(MemberAttributes { id: MemberId(9), ..attributes }), Err(Error::MemberNotFound));
    member.enter(Entry::Membership("two".into(), vec![node(2), node(3)]));
    let again = member.after_flush_and_power_cut();
    for state in [&member.state, &again.state] {
        let members = state.members();
        assert_eq!(
            members.iter().map(|m| (m.id.0, m.name.as_str(), m.is_learner)).collect::<Vec<_>>(),
            [(2, "m2", false), (3, "", true)]
        );
        assert!(state.is_removed(MemberId(1)) && !state.is_removed(MemberId(2)));
        assert_eq!(state.membership().unwrap(), "two");
    }
}

#[test]
fn versions_and_a_downgrade_survive_a_restart_and_travel_in_snapshots() {
    let mut member = Member::new();
    member.ask(Genesis { epoch: Epoch(7), cluster_version: "3.7.0".into() }).unwrap();
    member.ask(SetDowngrade { target: Some("3.6.0".into()) }).unwrap();
    member.ask(SetClusterVersion { version: "3.6.0".into(), ..SetClusterVersion::default() }).unwrap();
    let again = member.after_flush_and_power_cut();
    let other = Member::new();
    other.install(&member.snapshot(SnapshotKind::Raft)).unwrap();
    for state in [&again.state, &other.state] {
        let versions = (state.cluster_version(), state.downgrade());
        assert_eq!(versions, (Some("3.6.0".into()), Some("3.6.0".into())));
    }
    member.ask(SetDowngrade { target: None }).unwrap();
    assert_eq!(member.after_flush_and_power_cut().state.downgrade(), None);
}

#[test]
fn the_log_format_rises_once_every_member_is_known_to_decode_it_and_never_falls() {
    let mut member = Member::new();
    let node = |n: u64| (MemberId(n), PeerNode { peer_urls: vec![format!("http://m{n}:2380")] }, n == 2);
    member.enter(Entry::Membership("one".into(), vec![node(1), node(2)]));
    member.ask(Genesis { epoch: Epoch(7), cluster_version: "3.7.0".into() }).unwrap();
    let raise = |log_format, told_by: &[u64]| SetClusterVersion {
        version: "3.7.0".into(),
        log_format,
        told_by: told_by.iter().copied().map(MemberId).collect(),
    };
    assert_eq!(member.state.log_format(), 1);
    // The second was added after the leader had asked.
    for told_by in [&[1][..], &[]] {
        assert!(member.ask(raise(LOG_FORMAT, told_by)).unwrap_err().to_string().contains("came meanwhile"));
    }
    assert_eq!(member.state.log_format(), 1);
    // One that was removed since does not count.
    member.ask(raise(LOG_FORMAT, &[1, 2, 3])).unwrap();
    member.ask(raise(LOG_FORMAT - 1, &[1, 2])).unwrap();
    member.ask(SetClusterVersion { version: "3.6.0".into(), ..SetClusterVersion::default() }).unwrap();
    let again = member.after_flush_and_power_cut();
    let other = Member::new();
    other.install(&member.snapshot(SnapshotKind::Raft)).unwrap();
    for state in [&member.state, &again.state, &other.state] {
        assert_eq!(state.log_format(), LOG_FORMAT);
    }
}

#[test]
fn an_older_server_stops_at_the_entry_that_raises_the_log_format_above_it_and_does_not_open_what_came_after() {
    let mut member = Member::new();
    let node = PeerNode { peer_urls: vec!["http://m:2380".into()] };
    member.enter(Entry::Membership("one".into(), vec![(MemberId(1), node, false)]));
    member.put("k", "v");
    let raise = SetClusterVersion { version: "3.8.0".into(), log_format: LOG_FORMAT + 1, told_by: vec![MemberId(1)] };
    let proposal = Proposal { id: RequestId(1), caller: Caller::Member, command: raise.into() };
    let before = member.state.applied();
    let next = LogPos { term: 1, index: 3 };
    let stopped = member.state.apply(next, &proposal).unwrap_err().to_string();
    assert!(stopped.contains("version 3.8.0"), "{stopped}");
    assert_eq!((member.state.applied(), member.state.log_format()), (before, 1));

    member.state.flush().unwrap();
    let mut batch = Batch::new();
    batch.put(keyspace::META_CLUSTER_VERSION, "3.8.0");
    batch.put(keyspace::META_LOG_FORMAT, (LOG_FORMAT + 1).to_be_bytes().to_vec());
    // In a form that this release does not know; the version is to be blamed for it.
    batch.put(keyspace::META_AUTH, "new");
    let engine = member.engine.durable_copy();
    engine.commit(&batch).unwrap();
    let store = Store::open(Arc::new(engine), Options::default()).unwrap();
    let refused = State::open(store, MemberId(1)).map(drop).unwrap_err();
    assert!(matches!(refused, StateError::Older { .. }), "{refused}");
}

#[test]
fn members_that_applied_the_same_have_one_hash() {
    let mut a = Member::new();
    a.put("k", "1");
    a.put("k", "2");
    a.ask(LeaseGrant { id: LeaseId(3), ttl: 60 }).unwrap();
    let hash = |member: &Member| member.state.pin().hash().unwrap();
    let before = hash(&a);
    a.enter(Entry::Blank);
    assert_eq!(hash(&a), before, "how far the log was applied is not content");
    // One member holds a snapshot pinned, so what compaction drops stays there; another has dropped it.
    let pin = a.state.pin();
    a.ask(Compact { revision: 3 }).unwrap();
    let held_back = hash(&a);
    drop(pin);
    a.state.wait_deleted().unwrap();
    assert_eq!(hash(&a), held_back);
    assert_ne!(held_back, before);
    // And one that came to it by a snapshot.
    let b = Member::new();
    b.install(&a.snapshot(SnapshotKind::Raft)).unwrap();
    assert_eq!(hash(&b), held_back);
    for change in [set(AlarmKind::NoSpace, true), set(AlarmKind::NoSpace, false)] {
        let last = hash(&a);
        a.ask(change).unwrap();
        assert_ne!(hash(&a), last);
    }
    assert_eq!(hash(&a), held_back);
}
