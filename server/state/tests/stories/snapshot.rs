//! Snapshots: written while writes go on, installed on other members.

use crate::member::{Entry, Member, Pair, put};
use crate::model::{Random, entries};
use ferretcd_bolt::{File, Trailer};
use ferretcd_state::{Effect, SnapshotKind, StateError, snapshot_membership};
use ferretcd_storage::{Batch, Engine as _, keyspace};
use ferretcd_types::{
    Alarm, AlarmKind, Compact, DeleteRange, Epoch, Genesis, KeyRange, LeaseCheckpoint, LeaseGrant, LeaseId,
    MemberAttributes, MemberId, PeerNode, Put, RestoreBegin, SetAlarm,
};
use std::collections::BTreeMap;

/// A member with something in every room.
pub fn furnished() -> Member {
    let mut member = Member::new();
    member.ask(Genesis { epoch: Epoch(9), cluster_version: "3.7.0".into() }).unwrap();
    let node = |n: u64| (MemberId(n), PeerNode { peer_urls: vec![format!("http://m{n}:2380")] }, n == 3);
    member.enter(Entry::Membership("old".into(), vec![node(1), node(2)]));
    member.enter(Entry::Membership("blob".into(), vec![node(1), node(3)]));
    member
        .ask(MemberAttributes { id: MemberId(1), name: "m1".into(), client_urls: vec!["http://m1:2379".into()] })
        .unwrap();
    member.ask(LeaseGrant { id: LeaseId(0x1234), ttl: 60 }).unwrap();
    member.put("a", "1");
    member.put("a", "2");
    member.ask(Put { lease: LeaseId(0x1234), ..put("b", "1") }).unwrap();
    member.put("gone", "1");
    member.ask(DeleteRange { range: KeyRange::single("gone"), prev_kv: false }).unwrap();
    member.put("c", "1");
    member.ask(Compact { revision: 6 }).unwrap();
    member.ask(SetAlarm { alarm: Alarm { member: MemberId(3), kind: AlarmKind::NoSpace }, raised: true }).unwrap();
    member
}

/// All records of a file, by bucket.
pub fn contents(file: &[u8]) -> BTreeMap<String, Vec<Pair>> {
    let file = File::open(file, Trailer::Verify).unwrap();
    let mut out = BTreeMap::new();
    for bucket in file.buckets() {
        let records: &mut Vec<_> = out.entry(String::from_utf8_lossy(bucket).into_owned()).or_default();
        let visit = |key: &[u8], value: &[u8]| {
            records.push((key.to_vec(), value.to_vec()));
            Ok::<_, ferretcd_bolt::Error>(())
        };
        file.for_each(bucket, visit).unwrap();
    }
    out
}

fn assert_same(a: &Member, b: &Member) {
    assert_eq!(a.state.applied(), b.state.applied());
    assert_eq!(a.state.membership(), b.state.membership());
    assert_eq!((a.state.revision(), a.state.compacted_revision()), (b.state.revision(), b.state.compacted_revision()));
    assert_eq!((a.state.epoch(), a.state.cluster_version()), (b.state.epoch(), b.state.cluster_version()));
    assert_eq!(a.state.members(), b.state.members());
    assert_eq!(a.state.alarms(), b.state.alarms());
    assert_eq!(a.state.lease_times(), b.state.lease_times());
    for (id, _) in a.state.leases() {
        assert_eq!(a.state.lease(id), b.state.lease(id));
    }
    assert_eq!(a.state.restore_in_progress(), b.state.restore_in_progress());
    assert_eq!(a.range(KeyRange::all()), b.range(KeyRange::all()));
    assert_eq!(a.state.hash_kv(0), b.state.hash_kv(0));
    let from = a.state.compacted_revision();
    assert_eq!(a.state.events(from, 1000, 1 << 30), b.state.events(from, 1000, 1 << 30));
}

#[test]
fn a_clients_snapshot_is_what_etcd_would_write() {
    let member = furnished();
    let file = member.snapshot(SnapshotKind::Client);
    assert_eq!(file.len() % 512, 32);
    let buckets = contents(&file);
    let names: Vec<&str> = buckets.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["alarm", "auth", "authRoles", "authUsers", "cluster", "key", "lease", "members", "members_removed", "meta"]
    );
    let text = |bucket: &str| -> Vec<String> {
        buckets[bucket].iter().map(|(k, v)| format!("{}={}", k.escape_ascii(), v.escape_ascii())).collect()
    };
    assert_eq!(text("alarm"), [r"\x08\x03\x10\x01="]);
    assert_eq!(text("auth"), [r"authEnabled=\x00", r"authRevision=\x00\x00\x00\x00\x00\x00\x00\x01"]);
    assert_eq!(text("cluster"), ["clusterVersion=3.7.0"]);
    assert_eq!(text("lease"), [r"\x00\x00\x00\x00\x00\x00\x124=\x08\xb4$\x10<"]);
    assert_eq!(text("members_removed"), ["2=removed"]);
    assert_eq!(text("members")[1], r#"3={\"id\":3,\"peerURLs\":[\"http://m3:2380\"],\"isLearner\":true}"#);
    assert_eq!(
        text("meta"),
        [
            r#"confState={\"voters\":[1],\"learners\":[3],\"auto_leave\":false}"#,
            r"consistent_index=\x00\x00\x00\x00\x00\x00\x00\r",
            r"finishedCompactRev=\x00\x00\x00\x00\x00\x00\x00\x06_\x00\x00\x00\x00\x00\x00\x00\x00",
            r"scheduledCompactRev=\x00\x00\x00\x00\x00\x00\x00\x06_\x00\x00\x00\x00\x00\x00\x00\x00",
            r"storageVersion=3.7.0",
            r"term=\x00\x00\x00\x00\x00\x00\x00\x01",
        ]
    );
    // a at 3, b at 4, the tombstone at the compacted revision, c at 7.
    assert_eq!(
        buckets["key"].iter().map(|(key, _)| (key[7], key.len())).collect::<Vec<_>>(),
        [(3, 17), (4, 17), (6, 18), (7, 17)]
    );
}

#[test]
fn a_member_that_installs_a_snapshot_equals_its_origin() {
    let mut member = furnished();
    member.ask(LeaseCheckpoint { remaining: vec![(LeaseId(0x1234), 41)] }).unwrap();
    let file = member.snapshot(SnapshotKind::Raft);
    let mut other = Member::new();
    other.put("old", "x");
    other.ask(LeaseGrant { id: LeaseId(5), ttl: 5 }).unwrap();
    let effects = other.install(&file).unwrap();
    assert_eq!(effects[0], Effect::Installed { revision: 7 });
    assert_eq!(snapshot_membership(&&file[..]).unwrap().unwrap(), "blob");
    assert_eq!(snapshot_membership(&&member.snapshot(SnapshotKind::Client)[..]).unwrap(), None);
    assert_eq!(member.state.pin().membership().unwrap(), "blob");
    assert!(effects.contains(&Effect::LeasesReset) && effects.contains(&Effect::MembersChanged));
    assert_same(&member, &other);
    assert!(other.state.is_removed(MemberId(2)));
    assert_eq!(other.snapshot(SnapshotKind::Raft), file);
    // And after a restart of it.
    other.log = member.log.clone();
    assert_same(&member, &other.after_flush_and_power_cut());
    // The log goes on behind it, the same on both.
    for both in [&mut member, &mut other] {
        both.ask(SetAlarm { alarm: Alarm { member: MemberId(3), kind: AlarmKind::NoSpace }, raised: false }).unwrap();
        both.put("d", "1");
        both.ask(DeleteRange { range: KeyRange::single("b"), prev_kv: false }).unwrap();
    }
    assert_same(&member, &other);
    assert_eq!(member.snapshot(SnapshotKind::Raft), other.snapshot(SnapshotKind::Raft));
}

#[test]
fn nothing_of_the_old_state_is_left_in_the_way() {
    let file = furnished().snapshot(SnapshotKind::Raft);
    let mut other = Member::new();
    for _ in 0..8 {
        other.put("old", "x");
    }
    other.ask(Compact { revision: 9 }).unwrap();
    other.state.wait_compacted(9).unwrap();
    other.ask(RestoreBegin { id: 5 }).unwrap();
    other.install(&file).unwrap();
    assert_eq!(other.state.restore_in_progress(), None);
    other.log = furnished().log.clone();
    let again = other.after_flush_and_power_cut();
    assert_eq!(again.state.restore_in_progress(), None);
    // Its compactions start from where the snapshot's are.
    for mut member in [other, again] {
        member.ask(DeleteRange { range: KeyRange::single("a"), prev_kv: false }).unwrap();
        member.ask(Compact { revision: 8 }).unwrap();
        // b, c and a's end.
        assert_eq!(member.key_records_left(), 3);
    }
}

#[test]
fn generations_that_a_crash_left_are_cleared_away_at_the_start() {
    let mut member = Member::new();
    member.put("a", "1");
    member.state.flush().unwrap();
    let mut batch = Batch::new();
    for generation in [3, 9] {
        batch.put(keyspace::revision(generation, b"\0\0\0\0\0\0\0\x02_\0\0\0\0\0\0\0\0"), "left over");
    }
    member.engine.commit(&batch).unwrap();
    member.engine.flush().unwrap();
    let again = member.after_flush_and_power_cut();
    assert_eq!(again.key_records_left(), 1);
    // And no later one takes a number of theirs.
    again.install(&furnished().snapshot(SnapshotKind::Raft)).unwrap();
    assert_eq!(again.key_records_left(), 4);
}

#[test]
fn the_old_generation_is_cleared_away() {
    let file = furnished().snapshot(SnapshotKind::Raft);
    let mut other = Member::new();
    for _ in 0..100 {
        other.put("old", "x");
    }
    other.install(&file).unwrap();
    assert_eq!(other.key_records_left(), 4);
}

#[test]
fn an_installation_that_was_cut_off_leaves_the_old_state() {
    let mut other = Member::new();
    other.put("old", "x");
    other.state.flush().unwrap();
    other.install(&furnished().snapshot(SnapshotKind::Raft)).unwrap();
    // Nothing of it had become durable.
    let again = Member::on(std::sync::Arc::new(other.engine_at_last_flush()), other.log.clone());
    assert_eq!(again.get("old").unwrap().value, "x");
    assert_eq!(again.state.members(), []);
}

#[test]
fn damaged_and_foreign_files_are_refused_and_change_nothing() {
    let mut other = Member::new();
    other.put("old", "x");
    let raft = furnished().snapshot(SnapshotKind::Raft);
    let refused = |other: &mut Member, file: &[u8]| match other.install(file) {
        Err(StateError::Snapshot(why)) => why,
        result => panic!("{result:?}"),
    };
    let mut damaged = raft.clone();
    damaged[raft.len() / 2] ^= 1;
    assert!(refused(&mut other, &damaged).contains("SHA-256"));
    assert!(refused(&mut other, &raft[..raft.len() - 512]).contains("SHA-256"));
    assert!(refused(&mut other, b"").contains("bytes"));
    let client = furnished().snapshot(SnapshotKind::Client);
    assert!(refused(&mut other, &client).contains("not from a member"));
    assert_eq!(other.get("old").unwrap().value, "x");
    assert_eq!(other.state.revision(), 2);
    other.put("old", "y");
    assert_eq!(other.key_records_left(), 2);
}

#[test]
fn a_pin_sees_one_moment_while_writes_and_compactions_go_on() {
    let mut member = furnished();
    member.ask(SetAlarm { alarm: Alarm { member: MemberId(3), kind: AlarmKind::NoSpace }, raised: false }).unwrap();
    let expected = [SnapshotKind::Client, SnapshotKind::Raft].map(|kind| member.snapshot(kind));
    let pinned = member.state.pin();
    let layout = pinned.layout(SnapshotKind::Client).unwrap();
    for _ in 0..50 {
        member.put("a", "x");
        member.put("z", "x");
    }
    member.ask(DeleteRange { range: KeyRange::all(), prev_kv: false }).unwrap();
    let revision = member.state.revision();
    member.ask(Compact { revision }).unwrap();
    member.ask(RestoreBegin { id: 3 }).unwrap();
    for (kind, expected) in [SnapshotKind::Client, SnapshotKind::Raft].into_iter().zip(expected) {
        assert!(crate::member::write(&pinned, kind) == expected, "{kind:?}");
    }
    assert_eq!(pinned.revision(), 7);
    assert_eq!(layout.file_bytes(), crate::member::write(&pinned, SnapshotKind::Client).len() as u64);
    // A whole new key space comes in, and the pin still has the old one.
    member.install(&furnished().snapshot(SnapshotKind::Raft)).unwrap();
    assert_eq!(crate::member::write(&pinned, SnapshotKind::Client).len() as u64, layout.file_bytes());
    drop(pinned);
    assert_eq!(member.key_records_left(), 4);
}

#[test]
fn the_same_log_gives_the_same_bytes_on_every_member() {
    for seed in 1..=6 {
        let log = entries(&mut Random(seed), 150);
        let (mut one, mut two) = (Member::new(), Member::new());
        // On the one, nothing is ever deleted; on the other, all that may be.
        let held = one.state.pin();
        for entry in &log {
            let same = one.enter(entry.clone()) == two.enter(entry.clone());
            assert!(same, "seed {seed}: {entry:?}");
        }
        two.state.wait_compacted(two.state.compacted_revision()).unwrap();
        assert_eq!(one.state.hash_kv(0), two.state.hash_kv(0));
        assert!(one.snapshot(SnapshotKind::Raft) == two.snapshot(SnapshotKind::Raft), "seed {seed}");
        drop(held);
    }
}
