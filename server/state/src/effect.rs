//! What applying a command leaves for others to do, as values.

use ferretcd_types::{Error, Event, LeaseId, Reply};

/// What applying one entry gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The answer for the proposer, or the refusal; identical on every member.
    pub outcome: Result<Reply, Error>,
    /// What the member must tell others, in order, before it hands the outcome to the proposer.
    pub effects: Vec<Effect>,
}

/// Something that others on this member must learn of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Keys changed: all events of one revision, in order.
    Events {
        /// The new revision.
        revision: i64,
        /// The changes.
        events: Vec<Event>,
    },
    /// History up to this revision is gone.
    Compacted {
        /// The compacted revision.
        revision: i64,
    },
    /// The whole key space was replaced; every open watch ends, with this as its compact revision.
    Restored {
        /// The new revision, compacted too.
        revision: i64,
    },
    /// A member's snapshot replaced everything: history goes on, from further ahead. Watchers catch up from
    /// [`State::events`](crate::State::events), or learn there that what they want is compacted.
    Installed {
        /// The new revision.
        revision: i64,
    },
    /// A lease began.
    LeaseGranted {
        /// Which.
        id: LeaseId,
        /// Its seconds.
        ttl: i64,
    },
    /// A lease ended.
    LeaseRevoked {
        /// Which.
        id: LeaseId,
    },
    /// It was noted how long these leases still live.
    LeasesCheckpointed {
        /// Each with its remaining seconds; 0 for its full time.
        remaining: Vec<(LeaseId, i64)>,
    },
    /// All leases were replaced; each starts with its full time.
    LeasesReset,
    /// Members, their roles or their attributes changed.
    MembersChanged,
    /// Alarms changed.
    AlarmsChanged,
    /// The epoch and the cluster version are known now.
    EpochKnown,
    /// A user was let in: every member knows it by this simple token from now on.
    TokenAssigned {
        /// The token.
        token: String,
        /// Whose it is.
        user: String,
    },
    /// Simple tokens are no longer good: one user's, or everybody's.
    TokensDropped {
        /// Whose.
        user: Option<String>,
    },
    /// Users or roles are others from this auth revision on; tokens that end with it were dropped before.
    UsersChanged {
        /// The auth revision.
        auth_revision: u64,
    },
}
