//! Leases.

use crate::member::{Member, put};
use ferretcd_state::{Effect, LeaseTimes, SnapshotKind, restore_plan};
use ferretcd_types::{DeleteRange, Error, KeyRange, LeaseCheckpoint, LeaseGrant, LeaseId, LeaseRevoke, Put};

fn grant(id: i64) -> LeaseGrant {
    LeaseGrant { id: LeaseId(id), ttl: 60 }
}

#[test]
fn revoking_deletes_the_keys_in_one_revision_in_order() {
    let mut member = Member::new();
    let (reply, effects) = member.ask_all(grant(1));
    assert_eq!(reply.unwrap().revision, 1);
    assert_eq!(effects, [Effect::LeaseGranted { id: LeaseId(1), ttl: 60 }]);
    for key in ["c", "a", "b"] {
        member.ask(Put { lease: LeaseId(1), ..put(key, "v") }).unwrap();
    }
    member.ask(DeleteRange { range: KeyRange::single("b"), prev_kv: false }).unwrap();
    assert_eq!(member.state.lease(LeaseId(1)).unwrap().keys, ["a", "c"]);
    let (reply, effects) = member.ask_all(LeaseRevoke { id: LeaseId(1) });
    assert_eq!(reply.unwrap().revision, 6);
    let [Effect::Events { revision: 6, events }, Effect::LeaseRevoked { id: LeaseId(1) }] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!(events.iter().map(|event| event.kv.key.clone()).collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(member.state.leases(), []);
}

#[test]
fn a_lease_without_keys_ends_without_a_revision() {
    let mut member = Member::new();
    member.ask(grant(1)).unwrap();
    assert_eq!(member.ask(LeaseRevoke { id: LeaseId(1) }).unwrap().revision, 1);
    assert_eq!(member.ask(LeaseRevoke { id: LeaseId(1) }), Err(Error::LeaseNotFound));
}

#[test]
fn grants_are_refused_as_etcd_does() {
    let mut member = Member::new();
    member.ask(grant(1)).unwrap();
    assert_eq!(member.ask(grant(1)), Err(Error::LeaseExists));
    assert_eq!(member.ask(LeaseGrant { id: LeaseId(2), ttl: 9_000_000_001 }), Err(Error::LeaseTtlTooLarge));
}

#[test]
fn leases_and_their_keys_survive_a_restart() {
    let mut member = Member::new();
    member.ask(grant(1)).unwrap();
    member.ask(grant(2)).unwrap();
    member.ask(Put { lease: LeaseId(1), ..put("a", "v") }).unwrap();
    member.ask(Put { lease: LeaseId(1), ..put("b", "v") }).unwrap();
    member.ask(Put { lease: LeaseId(2), ..put("b", "v") }).unwrap();
    let again = member.after_flush_and_power_cut();
    assert_eq!(again.state.leases(), [(LeaseId(1), 60), (LeaseId(2), 60)]);
    assert_eq!(again.state.lease(LeaseId(1)).unwrap().keys, ["a"]);
    assert_eq!(again.state.lease(LeaseId(2)).unwrap().keys, ["b"]);
}

#[test]
fn a_checkpoint_is_kept_and_never_lengthens_a_lease() {
    let mut member = Member::new();
    for id in [1, 2, 3] {
        member.ask(grant(id)).unwrap();
    }
    let noted = vec![(LeaseId(1), 41), (LeaseId(2), 99), (LeaseId(9), 5)];
    let (reply, effects) = member.ask_all(LeaseCheckpoint { remaining: noted });
    assert_eq!(reply.unwrap().revision, 1);
    // A lease that is no more is passed over.
    let remaining = vec![(LeaseId(1), 41), (LeaseId(2), 60)];
    assert_eq!(effects, [Effect::LeasesCheckpointed { remaining }]);
    let times = |id, remaining| LeaseTimes { id: LeaseId(id), ttl: 60, remaining };
    let kept = [times(1, 41), times(2, 60), times(3, 0)];
    assert_eq!(member.state.lease_times(), kept);
    let mut again = member.after_flush_and_power_cut();
    assert_eq!(again.state.lease_times(), kept);
    again.ask(LeaseCheckpoint { remaining: vec![(LeaseId(1), 0)] }).unwrap();
    assert_eq!(again.state.lease_times()[0], times(1, 0), "it has its full time again");
}

/// Clients choose them, and some draw all 64 bits.
#[test]
fn every_id_that_is_granted_comes_back_from_a_snapshot() {
    let mut member = Member::new();
    for id in [1, -1, i64::MAX, i64::MIN] {
        member.ask(grant(id)).unwrap();
        member.ask(Put { lease: LeaseId(id), ..put("k", "v") }).unwrap();
        for kind in [SnapshotKind::Raft, SnapshotKind::Client] {
            let file = member.snapshot(kind);
            restore_plan(&&file[..], 1 << 20).unwrap();
            if kind == SnapshotKind::Raft {
                let other = Member::new();
                other.install(&file).unwrap();
                assert_eq!(other.state.leases(), member.state.leases());
                assert_eq!(other.state.lease(LeaseId(id)).unwrap().keys, ["k"]);
            }
        }
    }
}
