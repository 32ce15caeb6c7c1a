//! Everything that the store refuses, as etcd words it. gRPC codes are chosen at the edge (`api/status.rs`).

/// A refusal. The text is etcd's, byte for byte, wherever etcd has the same refusal: clients compare it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // Each variant's text says what it is.
pub enum Error {
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    #[error("etcdserver: key not found")]
    KeyNotFound,
    #[error("etcdserver: value is provided")]
    ValueProvided,
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    #[error("etcdserver: invalid client api version")]
    InvalidClientApiVersion,
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    #[error("etcdserver: watch canceled")]
    WatchCanceled,
    #[error("etcdserver: member ID already exist")]
    MemberExists,
    #[error("etcdserver: Peer URLs already exists")]
    PeerUrlExists,
    #[error("etcdserver: re-configuration failed due to not enough started members")]
    NotEnoughStartedMembers,
    #[error("etcdserver: given member URLs are invalid")]
    BadMemberUrls,
    #[error("etcdserver: member not found")]
    MemberNotFound,
    #[error("etcdserver: can only promote a learner member")]
    MemberNotLearner,
    #[error("etcdserver: can only promote a learner member which is in sync with leader")]
    LearnerNotReady,
    #[error("etcdserver: too many learner members in cluster")]
    TooManyLearners,
    #[error("etcdserver: cluster ID mismatch")]
    ClusterIdMismatch,
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    #[error("etcdserver: too many requests")]
    TooManyRequests,
    #[error("etcdserver: root user does not exist")]
    RootUserNotExist,
    #[error("etcdserver: root user does not have root role")]
    RootRoleNotExist,
    #[error("etcdserver: user name already exists")]
    UserExists,
    #[error("etcdserver: user name is empty")]
    UserEmpty,
    #[error("etcdserver: user name not found")]
    UserNotFound,
    #[error("etcdserver: role name already exists")]
    RoleExists,
    #[error("etcdserver: role name not found")]
    RoleNotFound,
    #[error("etcdserver: role name is empty")]
    RoleEmpty,
    #[error("etcdserver: authentication failed, invalid user ID or password")]
    AuthFailed,
    #[error("etcdserver: permission not given")]
    PermissionNotGiven,
    #[error("etcdserver: permission denied")]
    PermissionDenied,
    #[error("etcdserver: role is not granted to the user")]
    RoleNotGranted,
    #[error("etcdserver: permission is not granted to the role")]
    PermissionNotGranted,
    #[error("etcdserver: authentication is not enabled")]
    AuthNotEnabled,
    #[error("etcdserver: invalid auth token")]
    InvalidAuthToken,
    #[error("etcdserver: invalid auth management")]
    InvalidAuthManagement,
    #[error("etcdserver: revision of auth store is old")]
    AuthOldRevision,
    #[error("auth: authentication failed, password was given for no password user")]
    NoPasswordUser,
    #[error("auth: token signing attempted with verify-only key")]
    VerifyOnly,
    #[error("bcrypt: password length exceeds 72 bytes")]
    PasswordTooLong,
    #[error("etcdserver: no leader")]
    NoLeader,
    #[error("etcdserver: not leader")]
    NotLeader,
    #[error("etcdserver: leader changed")]
    LeaderChanged,
    #[error("etcdserver: not capable")]
    NotCapable,
    #[error("etcdserver: server stopped")]
    Stopped,
    #[error("etcdserver: request timed out")]
    Timeout,
    /// There was no leader to hand a proposal to, in all its time: it was not taken up.
    #[error("context deadline exceeded")]
    TimeoutNoLeader,
    #[error("etcdserver: request timed out, possibly due to previous leader failure")]
    TimeoutLeaderFail,
    #[error("etcdserver: request timed out, possibly due to connection lost")]
    TimeoutConnectionLost,
    #[error("etcdserver: request timed out, waiting for the applied index took too long")]
    TimeoutWaitApplied,
    #[error("etcdserver: request timed out, leader transfer took too long")]
    TimeoutLeaderTransfer,
    #[error("etcdserver: unhealthy cluster")]
    Unhealthy,
    #[error("etcdserver: corrupt cluster")]
    Corrupt,
    #[error("etcdserver: rpc not supported for learner")]
    NotSupportedForLearner,
    #[error("etcdserver: bad leader transferee")]
    BadLeaderTransferee,
    #[error("etcdserver: wrong downgrade target version format")]
    WrongDowngradeVersion,
    #[error("etcdserver: invalid downgrade target version")]
    InvalidDowngradeTarget,
    #[error("etcdserver: cluster version not found during downgrade")]
    ClusterVersionUnavailable,
    #[error("etcdserver: cluster has a downgrade job in progress")]
    DowngradeInProcess,
    #[error("etcdserver: unknown method")]
    UnknownMethod,
    /// Ours: writes are refused between a restore's Begin and its end.
    #[error("ferretcd: a restore is in progress; wait for it to end")]
    RestoreInProgress,
    /// Ours: the restore that this entry belongs to is no longer the current one.
    #[error("ferretcd: this restore was superseded, aborted or timed out; start it again")]
    RestoreSuperseded,
    /// Ours: what was staged is not what the proposer counted.
    #[error("ferretcd: the staged records do not match the restore's totals: {0}")]
    RestoreMismatch(String),
    /// Ours: the file that was handed to Restore is damaged, foreign or does not fit; nothing was changed.
    #[error("ferretcd: the snapshot file was refused, nothing was changed: {0}")]
    BadSnapshot(String),
    /// A broken invariant or a failed disk. The text says which.
    #[error("ferretcd: internal error: {0}")]
    Internal(String),
}

impl Error {
    /// The refusal that another member sent as text; members pass errors on this way. A text of none of the plain
    /// variants is an internal error of that member.
    pub fn from_text(text: &str) -> Self {
        Self::PLAIN.iter().find(|e| e.to_string() == text).cloned().unwrap_or_else(|| Error::Internal(text.to_owned()))
    }

    /// Every variant without a cause of its own.
    pub const PLAIN: &[Error] = &[
        Error::EmptyKey,
        Error::KeyNotFound,
        Error::ValueProvided,
        Error::LeaseProvided,
        Error::TooManyOps,
        Error::DuplicateKey,
        Error::InvalidClientApiVersion,
        Error::InvalidSortOption,
        Error::Compacted,
        Error::FutureRevision,
        Error::NoSpace,
        Error::LeaseNotFound,
        Error::LeaseExists,
        Error::LeaseTtlTooLarge,
        Error::WatchCanceled,
        Error::MemberExists,
        Error::PeerUrlExists,
        Error::NotEnoughStartedMembers,
        Error::BadMemberUrls,
        Error::MemberNotFound,
        Error::MemberNotLearner,
        Error::LearnerNotReady,
        Error::TooManyLearners,
        Error::ClusterIdMismatch,
        Error::RequestTooLarge,
        Error::TooManyRequests,
        Error::RootUserNotExist,
        Error::RootRoleNotExist,
        Error::UserExists,
        Error::UserEmpty,
        Error::UserNotFound,
        Error::RoleExists,
        Error::RoleNotFound,
        Error::RoleEmpty,
        Error::AuthFailed,
        Error::PermissionNotGiven,
        Error::PermissionDenied,
        Error::RoleNotGranted,
        Error::PermissionNotGranted,
        Error::AuthNotEnabled,
        Error::InvalidAuthToken,
        Error::InvalidAuthManagement,
        Error::AuthOldRevision,
        Error::NoPasswordUser,
        Error::VerifyOnly,
        Error::PasswordTooLong,
        Error::NoLeader,
        Error::NotLeader,
        Error::LeaderChanged,
        Error::NotCapable,
        Error::Stopped,
        Error::Timeout,
        Error::TimeoutNoLeader,
        Error::TimeoutLeaderFail,
        Error::TimeoutConnectionLost,
        Error::TimeoutWaitApplied,
        Error::TimeoutLeaderTransfer,
        Error::Unhealthy,
        Error::Corrupt,
        Error::NotSupportedForLearner,
        Error::BadLeaderTransferee,
        Error::WrongDowngradeVersion,
        Error::InvalidDowngradeTarget,
        Error::ClusterVersionUnavailable,
        Error::DowngradeInProcess,
        Error::UnknownMethod,
        Error::RestoreInProgress,
        Error::RestoreSuperseded,
    ];

    /// An internal error from anything that explains itself.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        Error::Internal(cause.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_error_survives_the_way_between_members() {
        for error in Error::PLAIN {
            assert_eq!(&Error::from_text(&error.to_string()), error);
        }
        assert!(matches!(Error::from_text("disk on fire"), Error::Internal(_)));
    }
}
