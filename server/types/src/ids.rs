//! Identifiers, each a type of its own so that no one can pass a lease where a member belongs.

use std::fmt;

/// A raft member's ID (etcd's member ID and openraft's node ID). Never reused in the life of a cluster. Printed as
/// lower-case hex without padding, as etcd prints it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A cluster's ID as etcd computes it from the first members' IDs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A random number fixed by the first command in a cluster's log. Static bootstrap computes the same cluster ID every
/// time, so the epoch is what tells two histories with one ID apart. Zero means "not known yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of a member that has not applied the first entry.
    pub const UNKNOWN: Epoch = Epoch(0);

    /// Two members may talk when their epochs agree, or when one of them does not know its epoch yet.
    pub fn agrees_with(self, other: Epoch) -> bool {
        self == other || self == Self::UNKNOWN || other == Self::UNKNOWN
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A lease's ID. Zero is "no lease" on a key and "choose one" in a grant; granted IDs are positive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub i64);

impl LeaseId {
    /// No lease.
    pub const NONE: LeaseId = LeaseId(0);

    /// True for [`LeaseId::NONE`].
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

/// Names one proposal, so that the member that made it finds the reply when its own state machine applies it.
/// The upper bits come from the member, the lower ones count (etcd's idutil does the same).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_as_etcd_prints_them() {
        assert_eq!(MemberId(0x8e9e05c52164694d).to_string(), "8e9e05c52164694d");
        assert_eq!(MemberId(0x1f).to_string(), "1f");
    }

    #[test]
    fn an_unknown_epoch_agrees_with_all_and_two_known_ones_only_when_equal() {
        assert!(Epoch::UNKNOWN.agrees_with(Epoch(7)));
        assert!(Epoch(7).agrees_with(Epoch(7)));
        assert!(!Epoch(7).agrees_with(Epoch(8)));
    }
}
