//! What a release left behind, byte for byte: the engine's records and the snapshot files. It is read, and is still
//! written so. After a change of a format the old folder stays, and must still be read.

use crate::member::{Entry, Member, kv, put};
use ferretcd_state::SnapshotKind;
use ferretcd_storage::{Batch, Engine, MemoryEngine};
use ferretcd_types::{
    Alarm, AlarmKind, AuthChange, Command, Compact, DeleteRange, Epoch, Genesis, KeyRange, LeaseCheckpoint, LeaseGrant,
    LeaseId, MemberAttributes, MemberId, PeerNode, Permission, Put, RestoreBegin, RestoreChunk, RestoreRecord,
    Revision, SetAlarm, codec,
};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/first-release").join(name)
}

/// A bit of everything that is stored.
fn story() -> Member {
    let mut member = Member::new();
    let node = PeerNode { peer_urls: vec!["http://a:2380".into()] };
    member.enter(Entry::Membership("openraft's own".into(), vec![(MemberId(0xa), node, false)]));
    member.ask(Genesis { epoch: Epoch(9), cluster_version: "3.7.0".into() }).unwrap();
    let client_urls = vec!["http://a:2379".into()];
    member.ask(MemberAttributes { id: MemberId(0xa), name: "a".into(), client_urls }).unwrap();
    member.put("gone", "1");
    member.put("foo", "1");
    member.ask(DeleteRange { range: KeyRange::single("gone"), prev_kv: false }).unwrap();
    member.put("foo", "2");
    member.ask(Compact { revision: 3 }).unwrap();
    member.ask(LeaseGrant { id: LeaseId(0x77), ttl: 60 }).unwrap();
    member.ask(LeaseCheckpoint { remaining: vec![(LeaseId(0x77), 41)] }).unwrap();
    member.ask(Put { lease: LeaseId(0x77), ..put("leased", "x") }).unwrap();
    let permission = Permission { kind: Permission::READ_WRITE, range: KeyRange::new("a", "b") };
    let granted = AuthChange::RoleGrantPermission { role: "r".into(), permission: Some(permission) };
    for change in [
        AuthChange::RoleAdd { name: "r".into() },
        granted,
        AuthChange::UserAdd { name: "u".into(), hash: "$2a$04$hash".into(), no_password: false },
        AuthChange::UserGrantRole { user: "u".into(), role: "r".into() },
    ] {
        member.enter(Entry::Command(Command::Auth(change))).outcome.unwrap();
    }
    let alarm = Alarm { member: MemberId(0xa), kind: AlarmKind::NoSpace };
    member.ask(SetAlarm { alarm, raised: true }).unwrap();
    member.ask(RestoreBegin { id: 4 }).unwrap();
    let value = codec::encode_key_value(&kv("staged", "v", 5, 5, 1));
    let staged = RestoreRecord::Key { revision: Revision::new(5, 0), tombstone: false, value };
    let records = codec::encode_restore_records(&[staged, RestoreRecord::Lease { id: LeaseId(4), ttl: 60 }]);
    member.ask(RestoreChunk { id: 4, sequence: 0, records }).unwrap();
    member.state.wait_deleted().unwrap();
    member.state.flush().unwrap();
    member
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// All records, a line each: key and value.
fn records(engine: &MemoryEngine) -> String {
    let all = engine.scan(&[], None, usize::MAX).unwrap();
    all.iter().map(|(key, value)| format!("{} {}\n", hex(key), hex(value))).collect()
}

#[test]
fn this_release_writes_these_bytes() {
    let member = story();
    let written = [
        ("engine.txt", records(&member.engine).into_bytes()),
        ("member.snap", member.snapshot(SnapshotKind::Raft)),
        ("client.snap", member.snapshot(SnapshotKind::Client)),
    ];
    for (name, now) in written {
        if std::env::var_os("FERRETCD_WRITE_GOLDEN").is_some() {
            std::fs::write(file(name), &now).unwrap();
        }
        assert!(now == std::fs::read(file(name)).unwrap(), "{name} is written in another way");
    }
}

#[test]
fn an_engine_of_the_first_release_is_read() {
    let engine = MemoryEngine::new();
    let mut batch = Batch::new();
    for line in std::fs::read_to_string(file("engine.txt")).unwrap().lines() {
        let (key, value) = line.split_once(' ').unwrap();
        batch.put(bytes(key), bytes(value));
    }
    engine.commit(&batch).unwrap();
    engine.flush().unwrap();
    let now = story();
    let then = Member::on(Arc::new(engine), now.log.clone());
    assert_eq!(then.state.applied(), now.state.applied());
    assert_eq!(then.get("foo"), now.get("foo"));
    assert_eq!(then.get("leased").unwrap().lease, LeaseId(0x77));
    assert_eq!(then.snapshot(SnapshotKind::Raft), now.snapshot(SnapshotKind::Raft));
}

#[test]
fn a_snapshot_of_the_first_release_is_installed() {
    let now = story();
    let fresh = Member::new();
    fresh.install(&std::fs::read(file("member.snap")).unwrap()).unwrap();
    assert_eq!(fresh.snapshot(SnapshotKind::Raft), now.snapshot(SnapshotKind::Raft));
}
