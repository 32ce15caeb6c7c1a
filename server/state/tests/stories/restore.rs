//! Restores: staged through the log, swapped in by one command.

use crate::member::{Member, Pair, bolt_file, put};
use crate::snapshot::{contents, furnished};
use bytes::Bytes;
use ferretcd_state::{Effect, RestoreProgress, SnapshotKind, restore_plan};
use ferretcd_storage::{Batch, Engine as _, keyspace};
use ferretcd_types::codec::encode_key_value;
use ferretcd_types::{
    Compact, DeleteRange, Error, KeyRange, KeyValue, LeaseGrant, LeaseId, MemberAttributes, MemberId, Put, Range,
    RestoreAbort, RestoreBegin, RestoreChunk, RestoreCommit, RestoreReply, RestoreTotals,
};

/// The commands of a restore of this file, in pieces of this size.
struct Plan {
    chunks: Vec<RestoreChunk>,
    commit: RestoreCommit,
}

fn plan(file: &[u8], id: u64, chunk_bytes: usize) -> Result<Plan, Error> {
    let source = restore_plan(&file, chunk_bytes)?;
    let mut chunks = Vec::new();
    source.for_each_chunk(|sequence, records| {
        assert!(records.len() <= source.largest_chunk_bytes());
        chunks.push(RestoreChunk { id, sequence, records });
        Ok::<_, Error>(())
    })?;
    assert_eq!(chunks.iter().map(|chunk| chunk.records.len() as u64).sum::<u64>(), source.bytes());
    let commit = RestoreCommit { id, totals: source.totals().clone(), revision_bump: 1000 };
    Ok(Plan { chunks, commit })
}

impl Plan {
    fn run(self, member: &mut Member) -> Result<RestoreReply, Error> {
        member.ask(RestoreBegin { id: self.commit.id })?;
        for chunk in self.chunks {
            member.ask(chunk)?;
        }
        member.ask(self.commit)
    }
}

/// A member with a history of its own.
fn other() -> Member {
    let mut member = furnished();
    member.ask(ferretcd_types::SetAlarm { alarm: member.state.alarms()[0], raised: false }).unwrap();
    member.ask(LeaseGrant { id: LeaseId(77), ttl: 7 }).unwrap();
    member.ask(Put { lease: LeaseId(77), ..put("mine", "x") }).unwrap();
    member
}

fn without_mod(kvs: Vec<KeyValue>) -> Vec<(Bytes, Bytes, LeaseId, i64)> {
    kvs.into_iter().map(|kv| (kv.key, kv.value, kv.lease, kv.mod_revision)).collect()
}

/// A member in the middle of a restore.
pub fn under_way() -> Member {
    let plan = plan(&other().snapshot(SnapshotKind::Client), 42, 40).unwrap();
    let mut member = furnished();
    member.ask(ferretcd_types::SetAlarm { alarm: member.state.alarms()[0], raised: false }).unwrap();
    member.ask(RestoreBegin { id: 42 }).unwrap();
    for chunk in plan.chunks.into_iter().take(3) {
        member.ask(chunk).unwrap();
    }
    member
}

#[test]
fn a_restore_replaces_keys_and_leases_and_nothing_else() {
    let mut origin = other();
    // Two keys that have left the lease again.
    for key in ["free", "dead"] {
        origin.ask(Put { lease: LeaseId(0x1234), ..put(key, "x") }).unwrap();
    }
    origin.put("free", "y");
    origin.ask(DeleteRange { range: KeyRange::single("dead"), prev_kv: false }).unwrap();
    let file = origin.snapshot(SnapshotKind::Client);
    let mut member = other();
    let (members, epoch) = (member.state.members(), member.state.epoch());
    let plan = plan(&file, 42, 40).unwrap();
    assert!(plan.chunks.len() > 2);
    member.ask(RestoreBegin { id: 42 }).unwrap();
    let mut effects = Vec::new();
    for (at, chunk) in plan.chunks.iter().enumerate() {
        assert_eq!(member.state.restore_in_progress(), Some(RestoreProgress { id: 42, chunks: at as u64 }));
        // Other writes wait, reads do not.
        assert_eq!(member.ask(put("x", "1")), Err(Error::RestoreInProgress));
        assert_eq!(member.ask(Compact { revision: 7 }), Err(Error::RestoreInProgress));
        assert_eq!(member.ask(LeaseGrant { id: LeaseId(1), ttl: 60 }), Err(Error::RestoreInProgress));
        member.ask(MemberAttributes { id: MemberId(1), name: "m1".into(), client_urls: Vec::new() }).unwrap();
        assert_eq!(member.get("mine").unwrap().value, "x");
        effects.extend(member.ask_all(chunk.clone()).1);
        // A repeated chunk is taken for what it is.
        member.ask(chunk.clone()).unwrap();
    }
    assert_eq!(effects, []);
    let (reply, effects) = member.ask_all(plan.commit.clone());
    let revision = 12 + 1000;
    assert_eq!(reply.unwrap(), RestoreReply { revision, live_keys: 5, totals: plan.commit.totals });
    assert_eq!(effects, [Effect::Restored { revision }, Effect::LeasesReset]);
    for member in [&member, &member.after_flush_and_power_cut()] {
        let state = &member.state;
        assert_eq!((state.revision(), state.compacted_revision()), (revision, revision));
        assert_eq!(without_mod(member.range(KeyRange::all()).kvs), without_mod(origin.range(KeyRange::all()).kvs));
        assert_eq!(state.leases(), origin.state.leases());
        assert_eq!(state.lease(LeaseId(0x1234)).unwrap().keys, ["b"]);
        assert_eq!((state.members().len(), state.epoch()), (members.len(), epoch));
        assert_eq!((state.alarms(), state.restore_in_progress()), (vec![], None));
        assert_eq!(
            state.range(&Range { range: KeyRange::all(), revision: 8, ..Range::default() }),
            Err(Error::Compacted)
        );
        assert_eq!(state.events(8, 1000, 1 << 20), Err(Error::Compacted));
        assert_eq!(member.key_records_left(), 5);
    }
    assert_eq!(member.put("new", "1").revision, revision + 1);
}

#[test]
fn users_and_roles_come_along() {
    let user = b"\x0a\x04root\x12\x03abc".to_vec();
    let role = b"\x0a\x04root".to_vec();
    let file = bolt_file(&[
        ("auth", vec![(b"authEnabled".to_vec(), vec![1]), (b"authRevision".to_vec(), 9u64.to_be_bytes().to_vec())]),
        ("authRoles", vec![(b"root".to_vec(), role)]),
        ("authUsers", vec![(b"root".to_vec(), user)]),
        ("key", vec![]),
        ("meta", vec![]),
    ]);
    let mut member = other();
    let reply = plan(&file, 1, 1 << 20).unwrap().run(&mut member).unwrap();
    assert_eq!((reply.totals.users, reply.totals.roles, reply.live_keys), (1, 1, 0));
    for member in [&member, &member.after_flush_and_power_cut()] {
        let written = contents(&member.snapshot(SnapshotKind::Client));
        let given = contents(&file);
        for bucket in ["auth", "authUsers", "authRoles"] {
            assert_eq!(written[bucket], given[bucket], "{bucket}");
        }
    }
    // And they are replaced as a whole by the next restore.
    plan(&furnished().snapshot(SnapshotKind::Client), 2, 1 << 20).unwrap().run(&mut member).unwrap();
    for member in [&member, &member.after_flush_and_power_cut()] {
        let written = contents(&member.snapshot(SnapshotKind::Client));
        assert!(written["authUsers"].is_empty() && written["authRoles"].is_empty());
        assert_eq!(written["auth"][0].1, [0]);
    }
}

#[test]
fn chunks_out_of_turn_are_refused() {
    let mut member = other();
    let plan = plan(&furnished().snapshot(SnapshotKind::Client), 42, 40).unwrap();
    assert_eq!(member.ask(plan.chunks[0].clone()), Err(Error::RestoreSuperseded));
    assert_eq!(member.ask(plan.commit.clone()), Err(Error::RestoreSuperseded));
    member.ask(RestoreBegin { id: 42 }).unwrap();
    assert!(matches!(member.ask(plan.chunks[1].clone()), Err(Error::RestoreMismatch(_))));
    let foreign = RestoreChunk { id: 43, ..plan.chunks[0].clone() };
    assert_eq!(member.ask(foreign), Err(Error::RestoreSuperseded));
    let torn = RestoreChunk { records: plan.chunks[0].records.slice(1..), ..plan.chunks[0].clone() };
    assert!(matches!(member.ask(torn), Err(Error::RestoreMismatch(_))));
    // The restore itself goes on.
    for chunk in &plan.chunks {
        member.ask(chunk.clone()).unwrap();
    }
    // History may not go back.
    let again = RestoreChunk { sequence: plan.chunks.len() as u64, ..plan.chunks.last().unwrap().clone() };
    assert!(matches!(member.ask(again), Err(Error::RestoreMismatch(_))));
    member.ask(plan.commit).unwrap();
}

#[test]
fn a_commit_that_does_not_match_drops_what_was_staged() {
    let plan = || plan(&furnished().snapshot(SnapshotKind::Client), 42, 1 << 20).unwrap();
    let wrong: [fn(&mut RestoreCommit); 4] = [
        |commit| commit.totals.keys += 1,
        |commit| commit.totals.checksum = Bytes::from_static(&[1; 32]),
        |commit| commit.totals = RestoreTotals::default(),
        |commit| commit.revision_bump = u64::MAX,
    ];
    for wrong in wrong {
        let mut member = other();
        let before = member.snapshot(SnapshotKind::Client);
        let mut plan = plan();
        wrong(&mut plan.commit);
        assert!(matches!(plan.run(&mut member), Err(Error::RestoreMismatch(_))));
        assert_eq!(member.state.restore_in_progress(), None);
        assert_eq!(contents(&member.snapshot(SnapshotKind::Client))["key"], contents(&before)["key"]);
        assert!(member.state.lease(LeaseId(77)).is_some());
        member.put("x", "1");
    }
}

#[test]
fn abort_and_a_new_begin_drop_what_was_staged() {
    let mut member = other();
    let records = member.key_records_left();
    let first = plan(&furnished().snapshot(SnapshotKind::Client), 1, 40).unwrap();
    member.ask(RestoreBegin { id: 1 }).unwrap();
    for chunk in &first.chunks {
        member.ask(chunk.clone()).unwrap();
    }
    member.ask(RestoreAbort { id: 9 }).unwrap();
    assert_eq!(member.state.restore_in_progress().unwrap().id, 1, "another one's abort");
    let mut begun_anew = member.after_flush_and_power_cut();
    begun_anew.ask(RestoreBegin { id: 2 }).unwrap();
    assert_eq!(begun_anew.state.restore_in_progress(), Some(RestoreProgress { id: 2, chunks: 0 }));
    assert_eq!(begun_anew.ask(first.commit.clone()), Err(Error::RestoreSuperseded));
    assert_eq!(begun_anew.key_records_left(), records);
    member.ask(RestoreAbort { id: 1 }).unwrap();
    assert_eq!(member.state.restore_in_progress(), None);
    member.put("x", "1");
    assert_eq!(member.key_records_left(), records + 1);
    assert_eq!(member.after_flush_and_power_cut().state.restore_in_progress(), None);
}

#[test]
fn a_restore_survives_restarts_and_snapshots_at_every_entry() {
    let file = furnished().snapshot(SnapshotKind::Client);
    let commands = plan(&file, 5, 60).unwrap();
    let mut undisturbed = other();
    let expected = plan(&file, 5, 60).unwrap().run(&mut undisturbed).unwrap();
    let expected_file = undisturbed.snapshot(SnapshotKind::Raft);
    let mut restarted = other();
    let mut installed = other();
    let hop = |member: Member| {
        let mut fresh = Member::new();
        fresh.install(&member.snapshot(SnapshotKind::Raft)).unwrap();
        fresh.log = member.log.clone();
        fresh
    };
    for (step, flush) in [true, false].into_iter().cycle().take(commands.chunks.len() + 1).enumerate() {
        for member in [&mut restarted, &mut installed] {
            match step.checked_sub(1) {
                None => drop(member.ask(RestoreBegin { id: 5 }).unwrap()),
                Some(at) => drop(member.ask(commands.chunks[at].clone()).unwrap()),
            }
        }
        restarted = if flush { restarted.after_flush_and_power_cut() } else { restarted.after_power_cut() };
        installed = hop(installed);
        assert_eq!(installed.state.restore_in_progress(), restarted.state.restore_in_progress());
        assert!(installed.snapshot(SnapshotKind::Raft) == restarted.snapshot(SnapshotKind::Raft));
    }
    for mut member in [restarted, installed] {
        assert_eq!(member.ask(commands.commit.clone()).unwrap(), expected);
        assert!(member.snapshot(SnapshotKind::Raft) == expected_file);
        assert!(member.after_flush_and_power_cut().snapshot(SnapshotKind::Raft) == expected_file);
    }
}

#[test]
fn a_chunk_that_a_crash_cut_off_does_not_count() {
    let file = furnished().snapshot(SnapshotKind::Client);
    let commands = plan(&file, 5, 60).unwrap();
    let mut member = other();
    member.ask(RestoreBegin { id: 5 }).unwrap();
    for chunk in &commands.chunks {
        member.ask(chunk.clone()).unwrap();
    }
    let expected = member.snapshot(SnapshotKind::Raft);
    member.state.flush().unwrap();
    // What the first batches of a large chunk leave: records behind the last that was counted, of the same revision
    // even. The first staging of a member has generation 1.
    let mut batch = Batch::new();
    for sub in 1..=2i64 {
        let key = [7i64.to_be_bytes().as_slice(), b"_", &sub.to_be_bytes()].concat();
        batch.put(keyspace::revision(1, &key), value("torn", 7, 7, 1));
    }
    member.engine.commit(&batch).unwrap();
    member.engine.flush().unwrap();
    let mut again = member.after_flush_and_power_cut();
    for member in [&member, &again] {
        assert!(member.snapshot(SnapshotKind::Raft) == expected);
    }
    let mut origin = furnished();
    origin.install(&expected).unwrap();
    origin.log = again.log.clone();
    assert_eq!(origin.state.restore_in_progress(), again.state.restore_in_progress());
    assert_eq!(again.ask(commands.commit.clone()).unwrap(), origin.ask(commands.commit).unwrap());
    assert_eq!(again.get("torn"), None);
}

#[test]
fn restores_follow_one_another_across_restarts() {
    let mut member = other();
    for (id, origin) in [(1, furnished()), (2, other()), (3, furnished())] {
        plan(&origin.snapshot(SnapshotKind::Client), id, 60).unwrap().run(&mut member).unwrap();
        member = member.after_flush_and_power_cut();
        assert_eq!(without_mod(member.range(KeyRange::all()).kvs), without_mod(origin.range(KeyRange::all()).kvs));
        assert_eq!(member.key_records_left() as u64, member.state.key_count());
    }
}

#[test]
fn every_flipped_byte_of_a_file_is_noticed() {
    let file = furnished().snapshot(SnapshotKind::Client);
    for at in (0..file.len()).step_by(97) {
        let mut damaged = file.clone();
        damaged[at] ^= 0x40;
        assert!(matches!(plan(&damaged, 1, 1 << 20), Err(Error::BadSnapshot(_))), "byte {at}");
    }
    for len in [0, 31, 32, 4096, file.len() - 32, file.len() - 1] {
        assert!(matches!(plan(&file[..len], 1, 1 << 20), Err(Error::BadSnapshot(_))), "{len} bytes");
    }
}

fn revision(main: i64, tombstone: bool) -> Vec<u8> {
    let mut key = [main.to_be_bytes().as_slice(), b"_", &0i64.to_be_bytes()].concat();
    key.extend(tombstone.then_some(b't'));
    key
}

fn value(key: &'static str, create: i64, modified: i64, version: i64) -> Vec<u8> {
    encode_key_value(&crate::member::kv(key, "v", create, modified, version)).to_vec()
}

#[test]
fn files_that_are_whole_and_wrong_are_refused_with_a_reason() {
    let keys = |records: Vec<Pair>| bolt_file(&[("key", records), ("meta", vec![])]);
    let with = |bucket, key: &[u8], value: &[u8]| {
        let mut buckets = vec![("key", vec![]), ("meta", vec![]), (bucket, vec![(key.to_vec(), value.to_vec())])];
        buckets.sort_by_key(|(name, _)| *name);
        bolt_file(&buckets)
    };
    let good = (revision(2, false), value("a", 2, 2, 1));
    let cases = [
        (bolt_file(&[("meta", vec![])]), "no bucket \"key\""),
        (bolt_file(&[("key", vec![])]), "no bucket \"meta\""),
        (keys(vec![(b"short".to_vec(), vec![])]), "revision"),
        (keys(vec![(revision(2, false), b"\x0a\x09a".to_vec())]), "KeyValue"),
        (keys(vec![(revision(2, false), value("a", 2, 3, 1))]), "its value says revision 3"),
        (keys(vec![(revision(2, false), value("a", 3, 2, 1))]), "create revision 3"),
        (keys(vec![(revision(2, false), value("a", 2, 2, 0))]), "version 0"),
        (keys(vec![(revision(2, false), value("", 2, 2, 1))]), "no key"),
        (keys(vec![(revision(2, true), vec![])]), "no key"),
        (keys(vec![good.clone(), (revision(2, true), b"\x0a\x01a".to_vec())]), "revision 2_0 is there twice"),
        (with("lease", &1i64.to_be_bytes(), b"\x08\x02\x10\x3c"), "its ID is not its key"),
        (with("lease", &1i64.to_be_bytes(), b"\x08\x01"), "time of 0 seconds"),
        (with("lease", b"x", b"\x08"), "ends inside a number"),
        (with("authUsers", b"a", b"\x0a\x01b"), "user \"a\": its name is not its key"),
        (with("authRoles", b"a", b"\xff"), "role \"a\""),
        (with("authUsers", &[b'x'; 300], b""), "longer than"),
        (with("auth", b"authRevision", b"1"), "authRevision has 1 bytes"),
    ];
    for (file, why) in cases {
        match plan(&file, 1, 1 << 20).map(|_| ()) {
            Err(Error::BadSnapshot(text)) => assert!(text.contains(why), "{text:?} does not say {why:?}"),
            other => panic!("{why}: {other:?}"),
        }
    }
    assert_eq!(plan(&keys(vec![good]), 1, 1 << 20).unwrap().commit.totals.keys, 1);
}

#[test]
fn what_etcdutl_leaves_to_mark_a_compaction_is_tolerated() {
    let file = bolt_file(&[
        ("key", vec![(revision(2, false), value("a", 2, 2, 1)), (revision(5000, false), vec![])]),
        ("meta", vec![]),
    ]);
    let mut member = other();
    let reply = plan(&file, 1, 1 << 20).unwrap().run(&mut member).unwrap();
    assert_eq!((reply.revision, reply.live_keys), (6000, 1));
    let again = member.after_flush_and_power_cut();
    assert_eq!((again.state.revision(), again.state.key_count()), (6000, 1));
}

/// A member that was restored, or whose last change was a deletion that is compacted, has had revisions of which its file has no
/// record. What is restored from that file must not give them out again.
#[test]
fn revisions_that_a_file_has_no_record_of_do_not_come_again() {
    let mut restored = other();
    plan(&furnished().snapshot(SnapshotKind::Client), 1, 1 << 20).unwrap().run(&mut restored).unwrap();
    let mut emptied = other();
    emptied.ask(DeleteRange { range: KeyRange::all(), prev_kv: false }).unwrap();
    emptied.ask(Compact { revision: emptied.state.revision() }).unwrap();
    for origin in [restored, emptied] {
        let (file, had) = (origin.snapshot(SnapshotKind::Client), origin.state.revision());
        assert_eq!(restore_plan(&&file[..], 1 << 20).unwrap().revision(), had);
        let mut member = Member::new();
        let reply = plan(&file, 2, 40).unwrap().run(&mut member).unwrap();
        assert_eq!((reply.revision, reply.live_keys), (had + 1000, origin.state.key_count()));
        let mut again = member.after_flush_and_power_cut();
        assert_eq!((again.state.revision(), again.put("new", "1").revision), (had + 1000, had + 1001));
        assert_eq!(without_mod(member.range(KeyRange::all()).kvs), without_mod(origin.range(KeyRange::all()).kvs));
    }
}

/// Without a bump, at the revision that the cluster is compacted at.
#[test]
fn the_history_that_a_file_brings_is_deleted_though_its_revision_was_compacted_before() {
    let mut origin = Member::new();
    (0..5).for_each(|_| drop(origin.put("a", "1")));
    let mut member = other();
    member.ask(Compact { revision: member.state.revision() }).unwrap();
    member.state.wait_deleted().unwrap();
    let mut plan = plan(&origin.snapshot(SnapshotKind::Client), 1, 1 << 20).unwrap();
    plan.commit.revision_bump = 0;
    plan.run(&mut member).unwrap();
    assert_eq!(member.state.revision(), member.state.compacted_revision());
    assert_eq!(member.after_flush_and_power_cut().key_records_left(), 1);
    assert_eq!(member.key_records_left(), 1);
}

/// etcd has had such: "key with a stale lease".
#[test]
fn a_key_of_a_lease_that_the_file_lacks_hangs_on_it_on_every_member_once_it_is_granted() {
    let orphan = encode_key_value(&KeyValue { lease: LeaseId(9), ..crate::member::kv("a", "1", 2, 2, 1) });
    let file = bolt_file(&[("key", vec![(revision(2, false), orphan.to_vec())]), ("lease", vec![]), ("meta", vec![])]);
    let mut member = other();
    plan(&file, 1, 1 << 20).unwrap().run(&mut member).unwrap();
    assert!(member.state.lease(LeaseId(9)).is_none() && member.get("a").is_some());
    let early = member.after_flush_and_power_cut();
    member.ask(LeaseGrant { id: LeaseId(9), ttl: 60 }).unwrap();
    let installed = Member::new();
    installed.install(&member.snapshot(SnapshotKind::Raft)).unwrap();
    let mut replayed = early;
    replayed.ask(LeaseGrant { id: LeaseId(9), ttl: 60 }).unwrap();
    for each in [&member, &member.after_flush_and_power_cut(), &installed, &replayed] {
        assert_eq!(each.state.lease(LeaseId(9)).unwrap().keys, ["a"]);
    }
}

/// Who may not write the keys could have them deleted by the end of such a lease.
#[test]
fn a_lease_that_keys_name_already_is_granted_to_who_may_write_them() {
    let mut origin = crate::auth::guarded();
    origin.ask(LeaseGrant { id: LeaseId(9), ttl: 60 }).unwrap();
    origin.ask(Put { lease: LeaseId(9), ..put("z", "1") }).unwrap();
    let mut buckets = contents(&origin.snapshot(SnapshotKind::Client));
    buckets.insert("lease".to_owned(), Vec::new());
    let buckets: Vec<_> = buckets.iter().map(|(name, records)| (name.as_str(), records.clone())).collect();
    let mut member = other();
    plan(&bolt_file(&buckets), 1, 1 << 20).unwrap().run(&mut member).unwrap();
    let alice = crate::auth::known(&member, "alice");
    let grant = || LeaseGrant { id: LeaseId(9), ttl: 60 };
    assert_eq!(member.ask_as(&alice, grant()), Err(Error::PermissionDenied));
    assert!(member.state.lease(LeaseId(9)).is_none());
    member.ask(grant()).unwrap();
}

#[test]
fn a_record_larger_than_a_chunk_goes_alone() {
    let mut origin = Member::new();
    origin.put("a", "1");
    let large = Put { key: "large".into(), value: vec![7; 5000].into(), ..Put::default() };
    origin.ask(large).unwrap();
    origin.put("b", "1");
    let file = origin.snapshot(SnapshotKind::Client);
    let plan = plan(&file, 1, 1000).unwrap();
    let sizes: Vec<usize> = plan.chunks.iter().map(|chunk| chunk.records.len()).collect();
    assert_eq!(sizes.len(), 3);
    assert!(sizes[1] > 5000 && sizes[0] < 1000 && sizes[2] < 1000, "{sizes:?}");
    let mut member = Member::new();
    plan.run(&mut member).unwrap();
    assert_eq!(member.get("large").unwrap().value.len(), 5000);
}
