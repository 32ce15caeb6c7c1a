//! Limits that more than one floor enforces (etcd-compatible defaults; sources: etcd 3.7's flags).

/// Request limits of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest encoded proposal in bytes (`--max-request-bytes`).
    pub max_request_bytes: usize,
    /// Most operations in each list of a transaction (`--max-txn-ops`).
    pub max_txn_ops: usize,
    /// Logical bytes that the store may hold (`--quota-backend-bytes`); `None` is no limit.
    pub quota_bytes: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { max_request_bytes: 1_572_864, max_txn_ops: 128, quota_bytes: Some(2 << 30) }
    }
}

/// Longest lease in seconds (etcd's MaxLeaseTTL).
pub const LEASE_TTL_SECONDS_MAX: i64 = 9_000_000_000;

/// Largest piece of a restore that goes through the log as one entry: with its header it stays below the default
/// request limit, and it keeps one entry from holding up heartbeats on a slow link.
pub const RESTORE_CHUNK_BYTES_MAX: usize = 1 << 20;

/// How far a restore lifts the revision unless it is told otherwise: more than any cluster writes between the backup
/// and the restore, so that no watcher's start revision can lie in the new history by accident.
pub const RESTORE_REVISION_BUMP: u64 = 1_000_000_000;
