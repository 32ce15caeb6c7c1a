//! The hash by which members compare their key spaces; etcd's own for the same history.

use crate::error::Fault;
use crate::mvcc::index::any_live_at;
use crate::mvcc::record;
use crate::mvcc::space::Pin;
use ferretcd_storage::Store;
use ferretcd_types::Error;
use std::ops::ControlFlow;

/// A hash of the key space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvHash {
    /// CRC-32C of the records.
    pub hash: u32,
    /// The compacted revision when it was made; -1 before the first compaction.
    pub compact_revision: i64,
    /// The revision up to which it goes.
    pub revision: i64,
}

/// Hashes history up to a revision (0 is all): bucket name, then key and value of each record, as they lie in etcd's
/// bucket. What is at or below the compacted revision counts only as the key's newest record at the hashed revision,
/// and tombstones at the compacted revision never do: so members agree however far their deletions have got.
pub(crate) fn hash(store: &Store, pin: &Pin, revision: i64) -> Result<KvHash, Fault> {
    let space = &pin.space;
    let (current, compacted) = space.revisions();
    if revision > current {
        return Err(Error::FutureRevision.into());
    }
    if revision > 0 && revision < compacted {
        return Err(Error::Compacted.into());
    }
    let revision = if revision == 0 { current } else { revision };
    if revision < 0 {
        // etcd hashes what lies at or below it: nothing.
        return Ok(KvHash { hash: crc32c::crc32c(b"key"), compact_revision: compacted, revision });
    }
    // Where no key exists at the hashed revision, etcd hashes all that its compaction left.
    let judged_at = if any_live_at(&space.index, revision) { revision } else { compacted };
    let mut crc = crc32c::crc32c(b"key");
    record::scan_changes(store, space.generation, 0, revision, |record| {
        let at = record.revision.main;
        if at <= compacted {
            let kv = record.key_value()?;
            let newest = space.index.read().at(&kv.key, judged_at);
            let kept = newest.is_some_and(|c| (c.main, i64::from(c.sub)) == (at, record.revision.sub));
            if !kept || record.tombstone {
                return Ok(ControlFlow::Continue(()));
            }
        }
        crc = crc32c::crc32c_append(crc, &record.raw_key);
        crc = crc32c::crc32c_append(crc, &record.raw_value);
        Ok::<_, Fault>(ControlFlow::Continue(()))
    })?;
    Ok(KvHash { hash: crc, compact_revision: compacted, revision })
}
