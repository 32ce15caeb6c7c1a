//! Members of the cluster, and the alarms that they raise.

use crate::MemberId;

/// What the raft group itself knows of a member: it travels in the membership entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerNode {
    /// Where its peers reach it; at least one.
    pub peer_urls: Vec<String>,
}

/// A member as etcd's Cluster service lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its ID.
    pub id: MemberId,
    /// Its name; empty until it has started once and published it.
    pub name: String,
    /// Where its peers reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it; empty until it has started.
    pub client_urls: Vec<String>,
    /// True while it receives the log but has no vote.
    pub is_learner: bool,
}

/// What an alarm says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlarmKind {
    /// The quota is used up: no writes that need room.
    NoSpace,
    /// Members disagree about the data: no writes at all.
    Corrupt,
}

/// A raised alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    /// The member that raised it.
    pub member: MemberId,
    /// What it says.
    pub kind: AlarmKind,
}
