//! The handle that everything above holds.

use crate::{Check, LeaseTtl, Status, WatchStream};
use bytes::Bytes;
use ferretcd_types::{
    Alarm, ClusterId, Error, LeaseGrantReply, LeaseId, Limits, Member, MemberId, Range, RangeReply, RestoreReply,
    Revised, Txn, TxnReply, Verb,
};
use std::path::Path;
use tokio::sync::mpsc;

/// What a response header is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The answering member.
    pub member_id: MemberId,
    /// The store's revision now.
    pub revision: i64,
    /// The raft term.
    pub raft_term: u64,
}

/// A snapshot on its way to a client.
#[derive(Debug)]
pub struct SnapshotStream {
    /// Bytes in all, the SHA-256 at the end included.
    pub total_bytes: u64,
    /// Pieces in order; an error ends it. At most a few are in flight, so a slow client slows only its own reader.
    pub chunks: mpsc::Receiver<Result<Bytes, Error>>,
}

/// A running member. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Node {
    _private: (),
}

fn not_yet<T>() -> Result<T, Error> {
    Err(Error::internal("not built yet"))
}

#[allow(clippy::unused_async, unused_variables)]
impl Node {
    /// IDs, revision and term for a response.
    pub fn header(&self) -> Header {
        Header::default()
    }
    /// The limits that requests are checked against.
    pub fn limits(&self) -> Limits {
        Limits::default()
    }
    /// Puts a verb in the log and waits until this member has applied it.
    pub async fn propose<V: Verb>(&self, verb: V) -> Result<V::Reply, Error> {
        not_yet()
    }
    /// Reads keys; linearizable unless the request says serializable.
    pub async fn range(&self, request: Range) -> Result<RangeReply, Error> {
        not_yet()
    }
    /// A transaction; one that only reads does not go through the log.
    pub async fn txn(&self, request: Txn) -> Result<TxnReply, Error> {
        not_yet()
    }
    /// Drops history up to a revision; `physical` waits until the records are gone.
    pub async fn compact(&self, revision: i64, physical: bool) -> Result<Revised, Error> {
        not_yet()
    }
    /// CRC of the key space at a revision (0 is now): hash, compacted revision, the revision that was hashed.
    pub async fn hash_kv(&self, revision: i64) -> Result<(u32, i64, i64), Error> {
        not_yet()
    }
    /// Creates a lease; ID 0 lets this member choose.
    pub async fn lease_grant(&self, id: LeaseId, ttl: i64) -> Result<LeaseGrantReply, Error> {
        not_yet()
    }
    /// Renews a lease: its granted seconds, or 0 when there is none.
    pub async fn lease_keep_alive(&self, id: LeaseId) -> Result<i64, Error> {
        not_yet()
    }
    /// How long a lease still lives.
    pub async fn lease_time_to_live(&self, id: LeaseId, keys: bool) -> Result<LeaseTtl, Error> {
        not_yet()
    }
    /// All leases, the next to expire first.
    pub async fn leases(&self) -> Result<Vec<LeaseId>, Error> {
        not_yet()
    }
    /// A new stream of watchers.
    pub fn watch_stream(&self) -> WatchStream {
        unimplemented_stream()
    }
    /// All members; linearizable asks the quorum first.
    pub async fn member_list(&self, linearizable: bool) -> Result<Vec<Member>, Error> {
        not_yet()
    }
    /// Adds a member under a fresh random ID.
    pub async fn member_add(&self, peer_urls: Vec<String>, learner: bool) -> Result<(Member, Vec<Member>), Error> {
        not_yet()
    }
    /// Removes a member for good.
    pub async fn member_remove(&self, id: MemberId) -> Result<Vec<Member>, Error> {
        not_yet()
    }
    /// Gives a learner that has caught up its vote.
    pub async fn member_promote(&self, id: MemberId) -> Result<Vec<Member>, Error> {
        not_yet()
    }
    /// This member's own view.
    pub fn status(&self) -> Status {
        Status::default()
    }
    /// Whether this member knows a leader.
    pub fn has_leader(&self) -> bool {
        false
    }
    /// True while this member has no vote.
    pub fn is_learner(&self) -> bool {
        false
    }
    /// Raised alarms.
    pub fn alarms(&self) -> Vec<Alarm> {
        Vec::new()
    }
    /// The cluster version (`3.7.0`), once the first entry is applied.
    pub fn cluster_version(&self) -> Option<String> {
        None
    }
    /// Hands leadership to a voter and waits until it has it.
    pub async fn move_leader(&self, to: MemberId) -> Result<(), Error> {
        not_yet()
    }
    /// Runs one health check; the error's text is what `/readyz` prints.
    pub async fn check(&self, check: Check) -> Result<(), Error> {
        not_yet()
    }
    /// A consistent snapshot in etcd's file format, while writes go on.
    pub async fn snapshot(&self) -> Result<SnapshotStream, Error> {
        not_yet()
    }
    /// Where a restore spools its file to before anything is proposed; inside the data directory, so that room is
    /// checked on the right disk.
    pub fn restore_spool(&self) -> Result<RestoreSpool, Error> {
        not_yet()
    }
}

fn unimplemented_stream() -> WatchStream {
    // Replaced together with the hub.
    std::process::abort()
}

/// A file on its way in. Dropping it removes the spooled file.
#[derive(Debug)]
pub struct RestoreSpool {
    _private: (),
}

#[allow(clippy::unused_async, unused_variables)]
impl RestoreSpool {
    /// Announces the file's size, if the client knows it: refused at once when it cannot fit.
    pub fn expect_bytes(&mut self, bytes: u64) -> Result<(), Error> {
        not_yet()
    }
    /// Appends bytes to the spooled file (written off the async workers, bounded by the quota).
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), Error> {
        not_yet()
    }
    /// Validates the whole file, then restores it through the log. Nothing is proposed before the file is known good.
    pub async fn restore(self, revision_bump: u64) -> Result<RestoreReply, Error> {
        not_yet()
    }
    /// The spooled file.
    pub fn path(&self) -> &Path {
        Path::new("")
    }
}
