//! The hash of a snapshot file's key space: what its member would answer to HashKV, without a member.

use super::buckets::{self, ReadFault};
use crate::error::chain;
use crate::mvcc::hash::KvHash;
use crate::mvcc::record::revision_bytes;
use bytes::Bytes;
use ferretcd_bolt::{File, ReadAt, RevisionKey, Trailer};
use ferretcd_types::{Error, Revision};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Hashes history up to a revision (0 is all) as [`State::hash_kv`](crate::State::hash_kv) does: equal on a member with
/// the same data, ours or etcd's. The digest at the file's end is not looked at, so a raw database is taken as well.
///
/// Reads the file twice, in memory of a page and some 100 bytes per key.
pub fn snapshot_hash_kv(file: &dyn ReadAt, revision: i64) -> Result<KvHash, Error> {
    let bad = |err: ferretcd_bolt::Error| Error::BadSnapshot(chain(&err));
    let file = File::open(file, Trailer::Ignore).map_err(bad)?;
    buckets::require(&file, &[buckets::KEY, buckets::META]).map_err(Error::BadSnapshot)?;
    let compacted = buckets::read_compacted(&file).map_err(refused)?;
    let asked = if revision == 0 { i64::MAX } else { revision };
    let (mut newest, current) = newest_at(&file, asked)?;
    let current = current.max(compacted).max(1);
    if revision > current {
        return Err(Error::FutureRevision);
    }
    if revision > 0 && revision < compacted {
        return Err(Error::Compacted);
    }
    let revision = if revision == 0 { current } else { revision };
    // Where no key exists at the hashed revision, etcd hashes all that its compaction left.
    if newest.values().all(|(_, is_tombstone)| *is_tombstone) {
        newest = newest_at(&file, compacted)?.0;
    }
    let mut crc = crc32c::crc32c(buckets::KEY);
    buckets::read_keys(&file, buckets::KEY, |record| {
        let at = record.revision;
        let kept = || newest.get(&half_digest(&record.kv.key)) == Some(&(at, false));
        if at.main <= revision && (at.main > compacted || kept()) {
            let mut buf = [0; RevisionKey::MAX_BYTES];
            crc = crc32c::crc32c_append(crc, revision_bytes(at.main, at.sub, record.tombstone, &mut buf));
            crc = crc32c::crc32c_append(crc, &record.value);
        }
        Ok::<_, Error>(())
    })
    .map_err(refused)?;
    Ok(KvHash { hash: crc, compact_revision: compacted, revision })
}

/// A change, and whether it is a tombstone.
type Newest = BTreeMap<[u8; 16], (Revision, bool)>;

/// Each key's newest change at a revision, and the main revision of the file's last change. The record of nothing that `etcdutl
/// snapshot restore --mark-compacted` leaves is one of the empty key, which etcdutl's hash counts.
fn newest_at<R: ReadAt>(file: &File<R>, revision: i64) -> Result<(Newest, i64), Error> {
    let (mut newest, mut last) = (BTreeMap::new(), 0);
    buckets::read_keys(file, buckets::KEY, |record| {
        last = record.revision.main;
        if record.revision.main <= revision {
            newest.insert(half_digest(&record.kv.key), (record.revision, record.tombstone));
        }
        Ok::<_, Error>(())
    })
    .map_err(refused)?;
    Ok((newest, last))
}

/// Keys are told apart by half of their SHA-256, which is smaller than most, and of known size.
fn half_digest(key: &Bytes) -> [u8; 16] {
    let digest: [u8; 32] = Sha256::digest(key).into();
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    half
}

fn refused(fault: ReadFault<Error>) -> Error {
    match fault {
        ReadFault::File(why) => Error::BadSnapshot(why),
        ReadFault::Visit(err) => err,
    }
}
