//! The first state of a member of a new cluster from a snapshot file, and a member that goes on alone.

use crate::member::{Member, put};
use crate::model::{Random, entries};
use crate::snapshot::{contents, furnished};
use ferretcd_bolt::Trailer;
use ferretcd_state::{Adoption, SnapshotKind, State, StateError, snapshot_hash_kv};
use ferretcd_storage::{Options, Store};
use ferretcd_types::{
    Compact, DeleteRange, Epoch, Error, Genesis, KeyRange, LeaseGrant, LeaseId, LogPos, MemberId, PeerNode,
};
use std::sync::Arc;

/// What a restart finds.
fn again(member: &Member) -> State {
    member.state.flush().unwrap();
    let store = Store::open(Arc::new(member.engine_at_last_flush()), Options::default()).unwrap();
    State::open(store, MemberId(1)).unwrap()
}

fn adoption(bump: Option<u64>) -> Adoption {
    let member = |n: u64| ferretcd_types::Member {
        id: MemberId(n),
        name: format!("m{n}"),
        peer_urls: vec![format!("http://n{n}:2380")],
        ..Default::default()
    };
    Adoption {
        position: LogPos { term: 1, index: 3 },
        membership: "theirs".into(),
        members: (7..10).map(member).collect(),
        epoch: Epoch(77),
        cluster_version: "3.7.0".into(),
        bump,
    }
}

#[test]
fn a_snapshot_becomes_the_state_of_a_new_clusters_member() {
    let origin = furnished();
    let file = origin.snapshot(SnapshotKind::Client);
    let fresh = Member::new();
    let revision = fresh.state.adopt(&&file[..], Trailer::Verify, adoption(None)).unwrap();
    let (old, new) = (&origin.state, &fresh.state);
    assert_eq!((revision, new.revision(), new.compacted_revision()), (7, 7, 6), "revisions are the file's");
    assert_eq!(origin.range(KeyRange::all()), fresh.range(KeyRange::all()));
    assert_eq!((new.leases(), new.lease(LeaseId(0x1234))), (old.leases(), old.lease(LeaseId(0x1234))));
    assert_eq!((new.alarms(), new.hash_kv(0)), (old.alarms(), old.hash_kv(0)));
    let ids: Vec<u64> = new.members().iter().map(|m| m.id.0).collect();
    assert_eq!((ids, new.removed_members()), (vec![7, 8, 9], vec![]), "members are not");
    assert_eq!(
        (new.epoch(), new.applied(), new.membership().unwrap()),
        (Epoch(77), Some(LogPos { term: 1, index: 3 }), "theirs".into())
    );
    // What it hands on is a member's snapshot like any other.
    let follower = Member::new();
    follower.install(&fresh.snapshot(SnapshotKind::Raft)).unwrap();
    assert_eq!(follower.state.members(), new.members());
}

#[test]
fn a_raised_revision_ends_the_history_below_it() {
    let origin = furnished();
    let file = origin.snapshot(SnapshotKind::Client);
    let fresh = Member::new();
    assert_eq!(fresh.state.adopt(&&file[..], Trailer::Verify, adoption(Some(1000))).unwrap(), 1007);
    assert_eq!((fresh.state.revision(), fresh.state.compacted_revision()), (1007, 1007));
    assert_eq!(origin.range(KeyRange::all()).kvs, fresh.range(KeyRange::all()).kvs);
    // The tombstone at 6 is history; what is left are the newest records of a, b and c.
    assert_eq!(contents(&fresh.snapshot(SnapshotKind::Client))["key"].len(), 3);
    let again = again(&fresh);
    assert_eq!((again.revision(), again.compacted_revision()), (1007, 1007));
    let too_far = Member::new().state.adopt(&&file[..], Trailer::Verify, adoption(Some(i64::MAX as u64)));
    assert!(matches!(too_far, Err(StateError::Snapshot(why)) if why.contains("too large")));
}

#[test]
fn a_damaged_file_is_not_adopted() {
    let mut file = furnished().snapshot(SnapshotKind::Client);
    let mut member = Member::new();
    member.put("kept", "x");
    let at = file.len() / 2;
    file[at] ^= 1;
    let refused = member.state.adopt(&&file[..], Trailer::Verify, adoption(None)).unwrap_err();
    assert!(matches!(refused, StateError::Snapshot(why) if why.contains("SHA-256")));
    assert_eq!((member.get("kept").unwrap().value, member.state.epoch()), ("x".into(), Epoch::UNKNOWN));
    // Without its digest it is taken by those who ask for that only.
    let whole = furnished().snapshot(SnapshotKind::Client);
    let raw = &whole[..whole.len() - 32];
    assert!(member.state.adopt(&raw, Trailer::Verify, adoption(None)).is_err());
    assert_eq!(member.state.adopt(&raw, Trailer::Ignore, adoption(None)).unwrap(), 7);
}

#[test]
fn a_member_that_goes_on_alone_keeps_its_data_and_begins_a_history() {
    let member = furnished();
    let (keys, before) = (member.range(KeyRange::all()), member.state.applied().unwrap());
    let position = LogPos { term: before.term + 1, index: before.index + 1 };
    let me = (MemberId(1), PeerNode { peer_urls: vec!["http://m1:2380".into()] });
    member.state.reform(position, "alone".into(), me, Epoch(10)).unwrap();
    let check = |state: &State| {
        assert_eq!(state.members().iter().map(|m| (m.id.0, m.name.as_str())).collect::<Vec<_>>(), [(1, "m1")]);
        assert_eq!(state.removed_members(), [MemberId(2), MemberId(3)]);
        assert_eq!((state.epoch(), state.replaced_epochs()), (Epoch(10), vec![Epoch(9)]));
        assert_eq!((state.applied(), state.membership().unwrap()), (Some(position), "alone".into()));
    };
    check(&member.state);
    assert_eq!(member.range(KeyRange::all()), keys);
    let follower = Member::new();
    follower.install(&member.snapshot(SnapshotKind::Raft)).unwrap();
    check(&follower.state);
    check(&again(&member));
}

#[test]
fn a_files_hash_is_that_of_the_member_that_wrote_it() {
    let agree = |member: &Member, what: &str| {
        let file = member.snapshot(SnapshotKind::Client);
        for revision in 0..=member.state.revision() + 1 {
            let ours = snapshot_hash_kv(&&file[..], revision);
            assert_eq!(ours, member.state.hash_kv(revision), "{what} at {revision}");
        }
    };
    agree(&Member::new(), "nothing");
    agree(&furnished(), "something of everything");
    let mut member = Member::new();
    member.ask(Genesis { epoch: Epoch(9), cluster_version: "3.7.0".into() }).unwrap();
    member.ask(LeaseGrant { id: LeaseId(1), ttl: 60 }).unwrap();
    member.ask(put("a", "1")).unwrap();
    member.ask(DeleteRange { range: KeyRange::single("a"), prev_kv: false }).unwrap();
    agree(&member, "a key that is gone");
    member.ask(Compact { revision: 3 }).unwrap();
    agree(&member, "all of it compacted");
    for seed in 1..30 {
        let mut member = Member::new();
        for entry in entries(&mut Random(seed), 60) {
            member.enter(entry);
        }
        agree(&member, &format!("seed {seed}"));
    }
    assert!(matches!(snapshot_hash_kv(&&b"short"[..], 0), Err(Error::BadSnapshot(_))));
}
