//! What a member says of itself (etcd's `Maintenance/Status`).

use ferretcd_types::{Alarm, MemberId};

/// A member's own view. Answered from this member alone, so it works without a quorum.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Bytes on disk of the engine.
    pub db_size: u64,
    /// Logical bytes of live records and history.
    pub db_size_in_use: u64,
    /// The quota; 0 when there is none.
    pub db_size_quota: u64,
    /// The leader as this member knows it.
    pub leader: Option<MemberId>,
    /// Last committed index.
    pub raft_index: u64,
    /// Term.
    pub raft_term: u64,
    /// Last applied index.
    pub raft_applied_index: u64,
    /// True while this member has no vote.
    pub is_learner: bool,
    /// Raised alarms of all members.
    pub alarms: Vec<Alarm>,
    /// The cluster version (`3.7.0`), once the first entry is applied.
    pub cluster_version: Option<String>,
    /// The version that a downgrade goes to, while one is under way.
    pub downgrade: Option<String>,
}
