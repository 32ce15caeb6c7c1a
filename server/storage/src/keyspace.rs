//! Every keyspace and every fixed key of the database on one screen. Data only: what the records mean is the business
//! of the state machine, which also encodes the values.
//!
//! A key's first byte is its keyspace; the rest is big-endian, so that key order is number order. All keyspaces share
//! one tree, because only then is a batch over several of them atomic.

use bytes::{BufMut, Bytes, BytesMut};

/// Revisions: `generation (u32) | etcd revision key (17 bytes, 18 for a tombstone)`. A restore writes the next
/// generation beside the live one and switches by one record ([`META_GENERATION`]).
pub const KEYS: u8 = b'k';
/// Leases: `lease id (i64)`.
pub const LEASES: u8 = b'l';
/// Users: `name`.
pub const AUTH_USERS: u8 = b'u';
/// Roles: `name`.
pub const AUTH_ROLES: u8 = b'r';
/// Single records, by the names below.
pub const META: u8 = b'm';
/// Members: `member id (u64)`.
pub const MEMBERS: u8 = b'n';
/// Members that were removed and may never return: `member id (u64)`.
pub const REMOVED_MEMBERS: u8 = b'x';
/// Raised alarms: `member id (u64) | alarm type (u8)`.
pub const ALARMS: u8 = b'a';
/// Records of a restore in progress that are not revisions: `the key they will get`.
pub const STAGING: u8 = b's';
/// Belongs to the engine (pieces of large values); callers' keys begin below it.
pub const ENGINE_PRIVATE: u8 = 0xff;

/// Version of the encoding of the records.
pub const META_FORMAT: &[u8] = b"mformat";
/// Term and index of the last log entry whose effects the database holds; written in the same batch as the effects.
pub const META_APPLIED: &[u8] = b"mapplied";
/// The raft membership and the log position that set it.
pub const META_MEMBERSHIP: &[u8] = b"mmembership";
/// The random number that tells this history from any other (see `ferretcd_types::Epoch`).
pub const META_EPOCH: &[u8] = b"mepoch";
/// The histories that this one replaced when its member was made the only one by force: epochs of 8 bytes each.
pub const META_REPLACED: &[u8] = b"mreplaced";
/// The live generation of [`KEYS`].
pub const META_GENERATION: &[u8] = b"mgeneration";
/// The revision up to which compaction was asked for (etcd's `scheduledCompactRev`).
pub const META_COMPACT_SCHEDULED: &[u8] = b"mcompact-scheduled";
/// The revision up to which compaction has deleted (etcd's `finishedCompactRev`).
pub const META_COMPACT_FINISHED: &[u8] = b"mcompact-finished";
/// Whether authentication is on, and the auth revision.
pub const META_AUTH: &[u8] = b"mauth";
/// The cluster's id.
pub const META_CLUSTER_ID: &[u8] = b"mcluster-id";
/// The cluster's agreed version.
pub const META_CLUSTER_VERSION: &[u8] = b"mcluster-version";
/// The newest log format that the cluster's log may hold; absent: the first. A server that knows only earlier ones must not go on.
pub const META_LOG_FORMAT: &[u8] = b"mlog-format";
/// The downgrade that is under way.
pub const META_DOWNGRADE: &[u8] = b"mdowngrade";
/// The restore that is under way: its generation and progress.
pub const META_RESTORE: &[u8] = b"mrestore";

/// The key of a revision: `revision` is etcd's own encoding of it, 17 or 18 bytes.
pub fn revision(generation: u32, revision: &[u8]) -> Bytes {
    let mut key = BytesMut::with_capacity(5 + revision.len());
    key.put_u8(KEYS);
    key.put_u32(generation);
    key.put_slice(revision);
    key.freeze()
}

/// The generation and etcd's revision bytes of a key made by [`revision`]; None for any other key.
pub fn split_revision(key: &[u8]) -> Option<(u32, &[u8])> {
    let (generation, revision) = key.strip_prefix(&[KEYS])?.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*generation), revision))
}

/// All keys of one generation, as `start..end`.
pub fn generation_range(generation: u32) -> (Bytes, Bytes) {
    prefix_range(&revision(generation, &[]))
}

/// The key of a lease.
pub fn lease(id: i64) -> Bytes {
    joined(LEASES, &id.to_be_bytes())
}

/// The key of a user.
pub fn user(name: &[u8]) -> Bytes {
    joined(AUTH_USERS, name)
}

/// The key of a role.
pub fn role(name: &[u8]) -> Bytes {
    joined(AUTH_ROLES, name)
}

/// The key of a member.
pub fn member(id: u64) -> Bytes {
    joined(MEMBERS, &id.to_be_bytes())
}

/// The key of a removed member.
pub fn removed_member(id: u64) -> Bytes {
    joined(REMOVED_MEMBERS, &id.to_be_bytes())
}

/// The key of an alarm. `alarm` is the number of etcd's `AlarmType`.
pub fn alarm(member: u64, alarm: u8) -> Bytes {
    let [a, b, c, d, e, f, g, h] = member.to_be_bytes();
    joined(ALARMS, &[a, b, c, d, e, f, g, h, alarm])
}

/// The key under which the record of `key` waits for the end of a restore.
pub fn staged(key: &[u8]) -> Bytes {
    joined(STAGING, key)
}

/// The key that a staged key stands for; None if it is not staged.
pub fn unstaged(key: &[u8]) -> Option<&[u8]> {
    key.strip_prefix(&[STAGING])
}

/// All keys of one keyspace, as `start..end`.
pub fn keyspace_range(keyspace: u8) -> (Bytes, Bytes) {
    prefix_range(&[keyspace])
}

/// All keys that begin with `prefix`, as `start..end`. The prefix must have a byte below 0xff, as every keyspace has.
pub fn prefix_range(prefix: &[u8]) -> (Bytes, Bytes) {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            break;
        }
    }
    (Bytes::copy_from_slice(prefix), Bytes::from(end))
}

/// The first key after `key`: where the next page of a scan starts.
pub fn after(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

fn joined(keyspace: u8, rest: &[u8]) -> Bytes {
    let mut key = BytesMut::with_capacity(1 + rest.len());
    key.put_u8(keyspace);
    key.put_slice(rest);
    key.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyspaces_are_distinct_and_below_the_engines_own() {
        let mut all = [KEYS, LEASES, AUTH_USERS, AUTH_ROLES, META, MEMBERS, REMOVED_MEMBERS, ALARMS, STAGING];
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(all.iter().all(|&keyspace| keyspace < ENGINE_PRIVATE));
    }

    #[test]
    fn a_generation_holds_its_own_revisions_and_no_others() {
        for generation in [0, 1, 255, u32::MAX] {
            let (start, end) = generation_range(generation);
            let key = revision(generation, &[0xff; 18]);
            assert!(start <= key && key < end);
            assert_eq!(split_revision(&key), Some((generation, &[0xff; 18][..])));
            let other = revision(generation.wrapping_add(1), &[0; 17]);
            assert!(!(start <= other && other < end));
        }
        assert_eq!(split_revision(b"k123"), None);
        assert_eq!(split_revision(&lease(1)), None);
    }

    #[test]
    fn numbers_in_keys_sort_as_numbers() {
        assert!(lease(1) < lease(256));
        assert!(member(u64::MAX - 1) < member(u64::MAX));
        assert!(alarm(7, 2) < alarm(8, 1));
        assert!(b"ka".as_slice() < after(b"ka").as_ref() && after(b"ka").as_ref() < b"ka\x01".as_slice());
        assert_eq!(unstaged(&staged(META_AUTH)), Some(META_AUTH));
        assert_eq!(keyspace_range(META).1.as_ref(), b"n");
    }
}
