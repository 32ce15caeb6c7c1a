//! The header of an answer.

use ferretcd_node::{Header, Node};
use ferretcd_proto::etcdserverpb::ResponseHeader;

/// The header now.
pub fn now(node: &Node) -> ResponseHeader {
    let Header { cluster_id, member_id, revision, raft_term } = node.header();
    ResponseHeader { cluster_id: cluster_id.0, member_id: member_id.0, revision, raft_term }
}

/// The header of an answer that belongs to a revision of its own, such as a write's.
pub fn at(node: &Node, revision: i64) -> ResponseHeader {
    ResponseHeader { revision, ..now(node) }
}

/// The header of the Cluster service, whose answers belong to no revision.
pub fn without_revision(node: &Node) -> ResponseHeader {
    at(node, 0)
}

/// The header of an answer inside a transaction's answer.
pub fn revision_only(revision: i64) -> ResponseHeader {
    ResponseHeader { revision, ..ResponseHeader::default() }
}
