//! The buckets of a snapshot file and their records, both ways: from the rooms, and back with every record checked.
//! The layout is etcd's (server/storage/schema); three private buckets are added for members.

use crate::alarm;
use crate::auth::{self, Auth, NAME_BYTES_MAX};
use crate::error::chain;
use crate::lease::{self, LeaseTimes};
use crate::mvcc::record::revision_bytes;
use crate::restore::staging::Staging;
use crate::rooms::Rooms;
use bytes::Bytes;
use ferretcd_bolt::{File, ReadAt, RevisionKey};
use ferretcd_storage::{Batch, keyspace};
use ferretcd_types::codec::decode_key_value;
use ferretcd_types::limits::LEASE_TTL_SECONDS_MAX;
use ferretcd_types::wire::{Reader, Writer};
use ferretcd_types::{Alarm, KeyValue, LeaseId, Member, MemberId, RestoreRecord, Revision};
use std::collections::BTreeMap;
use std::fmt::Write as _;

pub(crate) const ALARM: &[u8] = b"alarm";
pub(crate) const AUTH: &[u8] = b"auth";
pub(crate) const AUTH_ROLES: &[u8] = b"authRoles";
pub(crate) const AUTH_USERS: &[u8] = b"authUsers";
pub(crate) const CLUSTER: &[u8] = b"cluster";
pub(crate) const KEY: &[u8] = b"key";
pub(crate) const LEASE: &[u8] = b"lease";
pub(crate) const MEMBERS: &[u8] = b"members";
pub(crate) const MEMBERS_REMOVED: &[u8] = b"members_removed";
pub(crate) const META: &[u8] = b"meta";
/// Ours: the records of the rooms that etcd's buckets have no place for, by their keys in our store.
pub(crate) const PRIVATE: &[u8] = b"ferretcd";
/// Ours: small records of an unfinished restore, by the keys that they will get in our store.
pub(crate) const STAGED: &[u8] = b"ferretcd_staging";
/// Ours: key records of an unfinished restore, as in [`KEY`].
pub(crate) const STAGED_KEY: &[u8] = b"ferretcd_staging_key";

pub(crate) const CONSISTENT_INDEX: &[u8] = b"consistent_index";
pub(crate) const TERM: &[u8] = b"term";
pub(crate) const STORAGE_VERSION: &[u8] = b"storageVersion";

/// The schema of a file without a cluster version: what etcd 3.7.1 writes into its own.
const STORAGE_VERSION_UNDECIDED: &[u8] = b"3.7.0";

/// A bucket with its records. Those of [`KEY`] and [`STAGED_KEY`] are not in it: there may be millions.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    pub name: &'static [u8],
    pub records: BTreeMap<Bytes, Bytes>,
}

/// etcd's buckets, by name.
pub(crate) fn client(rooms: &Rooms, compacted: i64) -> Vec<Bucket> {
    let Rooms { applied, cluster_version, downgrade, members, alarms, leases, auth, .. } = rooms;
    let mut buckets: Vec<Bucket> = Vec::new();
    let mut bucket = |name: &'static [u8], records: Vec<(Bytes, Bytes)>| {
        buckets.push(Bucket { name, records: records.into_iter().collect() });
    };
    bucket(ALARM, alarms.all().into_iter().map(|alarm| (encode_alarm(alarm), Bytes::new())).collect());
    bucket(
        AUTH,
        vec![
            (Bytes::from_static(b"authEnabled"), Bytes::from(vec![u8::from(auth.enabled)])),
            (Bytes::from_static(b"authRevision"), Bytes::copy_from_slice(&auth.revision.to_be_bytes())),
        ],
    );
    let named = |map: &BTreeMap<Bytes, Bytes>| map.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    bucket(AUTH_ROLES, named(&auth.roles));
    bucket(AUTH_USERS, named(&auth.users));
    let version = cluster_version.iter().map(|version| ("clusterVersion".into(), version.clone().into()));
    let downgrade = downgrade.iter().map(|target| ("downgrade".into(), downgrade_json(target).into()));
    bucket(CLUSTER, version.chain(downgrade).collect());
    bucket(KEY, Vec::new());
    let lease = |times: LeaseTimes| (Bytes::copy_from_slice(&times.id.0.to_be_bytes()), lease::encode(times));
    bucket(LEASE, leases.times().into_iter().map(lease).collect());
    let all = members.all();
    bucket(MEMBERS, all.iter().map(|member| (member.id.to_string().into(), member_json(member).into())).collect());
    bucket(MEMBERS_REMOVED, members.removed().map(|id| (id.to_string().into(), "removed".into())).collect());
    let mut meta: Vec<(Bytes, Bytes)> = vec![
        ("confState".into(), conf_state_json(&all).into()),
        // As in etcd, the layout that is promised follows the cluster's version: a downgraded one can read the file.
        (
            Bytes::from_static(STORAGE_VERSION),
            cluster_version.clone().map_or(Bytes::from_static(STORAGE_VERSION_UNDECIDED), Bytes::from),
        ),
    ];
    if let Some(applied) = applied {
        meta.push((Bytes::from_static(CONSISTENT_INDEX), Bytes::copy_from_slice(&applied.index.to_be_bytes())));
        meta.push((Bytes::from_static(TERM), Bytes::copy_from_slice(&applied.term.to_be_bytes())));
    }
    if compacted >= 0 {
        // The file leaves out what the compaction drops, so it is finished as well as scheduled.
        let mut buf = [0; RevisionKey::MAX_BYTES];
        let revision = Bytes::copy_from_slice(revision_bytes(compacted, 0, false, &mut buf));
        meta.push((Bytes::from_static(SCHEDULED_COMPACT), revision.clone()));
        meta.push((Bytes::from_static(FINISHED_COMPACT), revision));
    }
    bucket(META, meta);
    buckets
}

/// The private buckets.
pub(crate) fn private(rooms: &Rooms, staging: Option<&Staging>) -> Vec<Bucket> {
    let collect = |batch: Batch| {
        let records = batch.writes().iter().filter_map(|write| Some((write.key.clone(), write.value.clone()?)));
        records.collect::<BTreeMap<_, _>>()
    };
    let mut own = Batch::new();
    rooms.save_private(&mut own);
    let mut buckets = Vec::new();
    if let Some(staging) = staging {
        // Generations are each member's own business: 0 stands for whichever the reader takes.
        own.put(keyspace::META_RESTORE, staging.header(0));
        buckets.push(Bucket { name: STAGED, records: collect(staging.small_records()) });
        buckets.push(Bucket { name: STAGED_KEY, records: BTreeMap::new() });
    }
    buckets.push(Bucket { name: PRIVATE, records: collect(own) });
    buckets
}

const SCHEDULED_COMPACT: &[u8] = b"scheduledCompactRev";
const FINISHED_COMPACT: &[u8] = b"finishedCompactRev";

/// `etcdserverpb.AlarmMember`.
fn encode_alarm(alarm: Alarm) -> Bytes {
    let mut w = Writer::new();
    w.uint(1, alarm.member.0);
    w.uint(2, u64::from(alarm::number_of(alarm.kind)));
    w.finish()
}

fn member_json(member: &Member) -> String {
    let Member { id, name, peer_urls, client_urls, is_learner } = member;
    let mut out = format!("{{\"id\":{},\"peerURLs\":{}", id.0, json_strings(peer_urls));
    if *is_learner {
        out.push_str(",\"isLearner\":true");
    }
    if !name.is_empty() {
        let _ = write!(out, ",\"name\":{}", json_string(name));
    }
    if !client_urls.is_empty() {
        let _ = write!(out, ",\"clientURLs\":{}", json_strings(client_urls));
    }
    out.push('}');
    out
}

/// etcd's record of a downgrade that is under way.
fn downgrade_json(target: &str) -> String {
    format!("{{\"target-version\":{},\"enabled\":true}}", json_string(target))
}

fn conf_state_json(members: &[Member]) -> String {
    let ids = |learners: bool| {
        let ids = members.iter().filter(|member| member.is_learner == learners).map(|member| member.id.0.to_string());
        ids.collect::<Vec<_>>().join(",")
    };
    let learners = match ids(true) {
        none if none.is_empty() => String::new(),
        some => format!("\"learners\":[{some}],"),
    };
    format!("{{\"voters\":[{}],{learners}\"auto_leave\":false}}", ids(false))
}

fn json_strings(strings: &[String]) -> String {
    let strings: Vec<String> = strings.iter().map(|string| json_string(string)).collect();
    format!("[{}]", strings.join(","))
}

fn json_string(string: &str) -> String {
    let mut out = String::from("\"");
    for c in string.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            control if control < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(control));
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// How reading a file ended: it is damaged, or the visitor had enough.
pub(crate) enum ReadFault<E> {
    /// What is wrong with the file, and where.
    File(String),
    Visit(E),
}

impl<E> From<ferretcd_bolt::Error> for ReadFault<E> {
    fn from(err: ferretcd_bolt::Error) -> Self {
        ReadFault::File(chain(&err))
    }
}

fn has<R: ReadAt>(file: &File<R>, bucket: &[u8]) -> bool {
    file.buckets().any(|name| name == bucket)
}

/// Visits the auth state, leases, users and roles of a file. Buckets that are missing are empty.
pub(crate) fn read_small<R: ReadAt, E>(
    file: &File<R>,
    mut visit: impl FnMut(RestoreRecord) -> Result<(), E>,
) -> Result<(), ReadFault<E>> {
    let mut visit = |record| visit(record).map_err(ReadFault::Visit);
    visit(read_auth(file)?)?;
    if has(file, LEASE) {
        file.for_each(LEASE, |key, value| {
            let refuse = |why: &str| ReadFault::File(format!("the lease with key {}: {why}", key.escape_ascii()));
            let decoded = lease::decode(Bytes::copy_from_slice(value)).map_err(|err| refuse(&err.to_string()))?;
            // A restore starts leases anew: nobody could renew them meanwhile.
            let LeaseTimes { id, ttl, remaining: _ } = decoded;
            // Clients choose any ID but 0, negative ones too.
            if key != id.0.to_be_bytes() || id == LeaseId::NONE {
                return Err(refuse("its ID is not its key"));
            }
            if !(1..=LEASE_TTL_SECONDS_MAX).contains(&ttl) {
                return Err(refuse(&format!("its time of {ttl} seconds is not 1 to {LEASE_TTL_SECONDS_MAX}")));
            }
            visit(RestoreRecord::Lease { id, ttl })
        })?;
    }
    for (bucket, is_user) in [(AUTH_USERS, true), (AUTH_ROLES, false)] {
        if !has(file, bucket) {
            continue;
        }
        file.for_each(bucket, |key, value| {
            let what = if is_user { "user" } else { "role" };
            let refuse = |why: &str| ReadFault::File(format!("the {what} {:?}: {why}", key.escape_ascii().to_string()));
            if key.len() > NAME_BYTES_MAX {
                return Err(refuse(&format!("its name is longer than {NAME_BYTES_MAX} bytes")));
            }
            let value = Bytes::copy_from_slice(value);
            let name = if is_user { auth::user_name(value.clone()) } else { auth::role_name(value.clone()) };
            let name = name.map_err(|err| refuse(&err.to_string()))?;
            if name != key {
                return Err(refuse("its name is not its key"));
            }
            visit(match is_user {
                true => RestoreRecord::User { name, value },
                false => RestoreRecord::Role { name, value },
            })
        })?;
    }
    Ok(())
}

/// Visits the checkpoints of leases in a file that [`read_small`] has checked.
pub(crate) fn read_checkpoints<R: ReadAt, E>(
    file: &File<R>,
    mut visit: impl FnMut(LeaseTimes),
) -> Result<(), ReadFault<E>> {
    if !has(file, LEASE) {
        return Ok(());
    }
    file.for_each(LEASE, |key, value| {
        let times = lease::decode(Bytes::copy_from_slice(value))
            .map_err(|err| ReadFault::File(format!("the lease with key {}: {err}", key.escape_ascii())))?;
        visit(times);
        Ok(())
    })
}

fn read_auth<R: ReadAt, E>(file: &File<R>) -> Result<RestoreRecord, ReadFault<E>> {
    let Auth { mut enabled, mut revision, .. } = Auth::default();
    if has(file, AUTH) {
        file.for_each(AUTH, |key, value| {
            let refuse = || ReadFault::File(format!("{} has {} bytes", key.escape_ascii(), value.len()));
            match key {
                b"authEnabled" => enabled = value == [1],
                b"authRevision" => revision = u64::from_be_bytes(value.try_into().map_err(|_| refuse())?),
                _ => {}
            }
            Ok::<_, ReadFault<E>>(())
        })?;
    }
    Ok(RestoreRecord::Auth { enabled, revision })
}

/// One key record of a file, checked.
pub(crate) struct KeyRecord {
    pub revision: Revision,
    pub tombstone: bool,
    pub kv: KeyValue,
    pub value: Bytes,
}

/// Visits the key records of a file in order. A record of nothing (`etcdutl snapshot restore --mark-compacted` leaves
/// one) comes with an empty key.
pub(crate) fn read_keys<R: ReadAt, E>(
    file: &File<R>,
    bucket: &[u8],
    mut visit: impl FnMut(KeyRecord) -> Result<(), E>,
) -> Result<(), ReadFault<E>> {
    let mut last = None;
    file.for_each(bucket, |key, value| {
        let record = key_record(key, value)
            .map_err(|why| ReadFault::File(format!("the key record {}: {why}", key.escape_ascii())))?;
        if last.is_some_and(|last| record.revision <= last) {
            // A put and a tombstone of one revision: their bytes differ, so the file alone does not refuse it.
            return Err(ReadFault::File(format!("revision {} is there twice", record.revision)));
        }
        last = Some(record.revision);
        visit(record).map_err(ReadFault::Visit)
    })
}

fn key_record(key: &[u8], value: &[u8]) -> Result<KeyRecord, String> {
    let RevisionKey { main, sub, tombstone } = RevisionKey::decode(key).map_err(|err| err.to_string())?;
    let value = Bytes::copy_from_slice(value);
    let kv = decode_key_value(value.clone()).map_err(|err| err.to_string())?;
    if u32::try_from(sub).is_err() || main == i64::MAX {
        return Err("its revision is too large".to_owned());
    }
    let is_mark = value.is_empty() && !tombstone;
    if kv.key.is_empty() && !is_mark {
        return Err("it has no key".to_owned());
    }
    if !tombstone && !is_mark {
        if kv.mod_revision != main {
            return Err(format!("its value says revision {}", kv.mod_revision));
        }
        if kv.version < 1 || kv.create_revision < 1 || kv.create_revision > main {
            return Err(format!("its version {} or create revision {} cannot be", kv.version, kv.create_revision));
        }
    }
    Ok(KeyRecord { revision: Revision::new(main, sub), tombstone, kv, value })
}

/// The raised alarms of a file.
pub(crate) fn read_alarms<R: ReadAt, E>(file: &File<R>) -> Result<Vec<Alarm>, ReadFault<E>> {
    let mut alarms = Vec::new();
    if has(file, ALARM) {
        file.for_each(ALARM, |key, _| {
            let refuse = || ReadFault::File(format!("the alarm {} cannot be read", key.escape_ascii()));
            alarms.push(decode_alarm(Bytes::copy_from_slice(key)).ok_or_else(refuse)?);
            Ok::<_, ReadFault<E>>(())
        })?;
    }
    Ok(alarms)
}

fn decode_alarm(key: Bytes) -> Option<Alarm> {
    const WHAT: &str = "alarm";
    let mut r = Reader::new(WHAT, key);
    let (mut member, mut kind) = (MemberId(0), None);
    while let Some((n, v)) = r.field().ok()? {
        match n {
            1 => member = MemberId(v.uint(WHAT).ok()?),
            2 => kind = alarm::kind_of(v.uint(WHAT).ok()?),
            _ => {}
        }
    }
    Some(Alarm { member, kind: kind? })
}

/// The compacted revision of a file; -1 when it was never compacted.
pub(crate) fn read_compacted<R: ReadAt, E>(file: &File<R>) -> Result<i64, ReadFault<E>> {
    let mut compacted = -1;
    file.for_each(META, |key, value| {
        if key == SCHEDULED_COMPACT {
            let revision =
                RevisionKey::decode(value).map_err(|err| ReadFault::File(format!("the compacted revision: {err}")))?;
            compacted = revision.main;
        }
        Ok::<_, ReadFault<E>>(())
    })?;
    Ok(compacted)
}

/// Visits the records of a private bucket. One that is missing is empty.
pub(crate) fn read_private<R: ReadAt, E>(
    file: &File<R>,
    bucket: &[u8],
    mut visit: impl FnMut(Bytes, Bytes) -> Result<(), E>,
) -> Result<(), ReadFault<E>> {
    if !has(file, bucket) {
        return Ok(());
    }
    file.for_each(bucket, |key, value| {
        visit(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)).map_err(ReadFault::Visit)
    })
}

/// Refuses a file that lacks one of these buckets.
pub(crate) fn require<R: ReadAt>(file: &File<R>, buckets: &[&[u8]]) -> Result<(), String> {
    match buckets.iter().find(|bucket| !has(file, bucket)) {
        Some(missing) => Err(format!("it has no bucket {:?}", missing.escape_ascii().to_string())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_etcds_json() {
        let full = Member {
            id: MemberId(0x8e9e05c52164694d),
            name: "a\"b".into(),
            peer_urls: vec!["http://x:2380".into(), "http://y:2380".into()],
            client_urls: vec!["http://x:2379".into()],
            is_learner: false,
        };
        let learner =
            Member { id: MemberId(7), peer_urls: vec!["http://z".into()], is_learner: true, ..Member::default() };
        assert_eq!(
            member_json(&full),
            r#"{"id":10276657743932975437,"peerURLs":["http://x:2380","http://y:2380"],"name":"a\"b","clientURLs":["http://x:2379"]}"#
        );
        assert_eq!(member_json(&learner), r#"{"id":7,"peerURLs":["http://z"],"isLearner":true}"#);
        assert_eq!(
            conf_state_json(&[learner, full.clone()]),
            r#"{"voters":[10276657743932975437],"learners":[7],"auto_leave":false}"#
        );
        assert_eq!(conf_state_json(&[full]), r#"{"voters":[10276657743932975437],"auto_leave":false}"#);
    }
}
