//! One call of a sequence.

use ferretcd_proto::etcdserverpb as pb;

/// What is asked of both servers.
#[derive(Clone, Debug)]
pub enum Call {
    Range(pb::RangeRequest),
    Put(pb::PutRequest),
    DeleteRange(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    /// Watches are settled first: a compaction may overtake one that is behind, or not.
    Compact(pb::CompactionRequest),
    LeaseGrant(pb::LeaseGrantRequest),
    LeaseRevoke(pb::LeaseRevokeRequest),
    LeaseTimeToLive(pb::LeaseTimeToLiveRequest),
    LeaseLeases,
    LeaseKeepAlive(i64),
    HashKv(i64),
    /// On one of the streams.
    WatchCreate(usize, pb::WatchCreateRequest),
    WatchCancel(usize, i64),
    /// Waits until all watches have sent what there is.
    Settle,
    /// Ends all streams.
    CloseWatches,
}

/// An answer as text, and what later calls are made from.
#[derive(Debug)]
pub struct Answer {
    pub text: String,
    /// The store's revision, where the answer says it.
    pub revision: Option<i64>,
    pub ok: bool,
}
