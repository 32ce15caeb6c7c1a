//! openraft's type parameters, and conversions between its values and ours.

use bytes::Bytes;
use ferretcd_proto::peer as pb;
use ferretcd_types::{LogPos, PeerNode};
use ferretcd_wal as wal;
use std::fmt;

/// An application entry as it stands in the log: the kind byte and the encoded proposal (see [`crate::entry`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data(pub Bytes);

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

openraft::declare_raft_types!(
    /// One raft group's types. Standard leader IDs (one leader per term), so that a response header's term means what
    /// etcd's clients expect.
    pub TypeConfig:
        D = Data,
        R = (),
        NodeId = u64,
        Node = PeerNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
);

pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
pub type Membership = openraft::Membership<u64, PeerNode>;
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;

pub fn log_id(pos: LogPos) -> LogId {
    LogId::new_term_index(pos.term, pos.index)
}

pub fn log_pos(id: &LogId) -> LogPos {
    LogPos { term: **id.committed_leader_id(), index: id.index() }
}

pub fn vote_to_wal(vote: &Vote) -> wal::Vote {
    wal::Vote { term: vote.leader_id().term, node: vote.leader_id().voted_for, committed: vote.is_committed() }
}

pub fn vote_from(term: u64, node: u64, committed: bool) -> Vote {
    if committed { Vote::new_committed(term, node) } else { Vote::new(term, node) }
}

pub fn vote_to_pb(vote: &Vote) -> pb::Vote {
    pb::Vote { term: vote.leader_id().term, node: vote.leader_id().voted_for, committed: vote.is_committed() }
}

pub fn vote_from_pb(vote: Option<pb::Vote>) -> Vote {
    let vote = vote.unwrap_or_default();
    vote_from(vote.term, vote.node, vote.committed)
}

pub fn log_id_to_pb(id: Option<&LogId>) -> Option<pb::LogId> {
    id.map(log_pos).map(|pos| pb::LogId { term: pos.term, index: pos.index })
}

pub fn log_id_from_pb(id: Option<pb::LogId>) -> Option<LogId> {
    id.map(|id| LogId::new_term_index(id.term, id.index))
}
