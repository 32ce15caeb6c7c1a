//! A refusal becomes a gRPC status: the one place where codes are chosen. Texts come from `types::Error` and are
//! etcd's, since clients compare them.

use ferretcd_types::Error;
use tonic::{Code, Status};

/// The status that etcd sends for the same refusal (table in etcd's rpctypes, with the server's own quirks).
pub fn from_error(error: Error) -> Status {
    Status::new(code(&error), error.to_string())
}

/// A failure to receive a request, in grpc-go's words where clients look for them: tonic calls a message above the limit
/// "out of range", etcd's clients know it as "resource exhausted".
pub fn from_receive(status: Status) -> Status {
    let sizes = || {
        let rest = status.message().strip_prefix("Error, decoded message length too large: found ")?;
        let (found, rest) = rest.split_once(" bytes, the limit is: ")?;
        Some((found.to_owned(), rest.strip_suffix(" bytes")?.to_owned()))
    };
    match sizes() {
        Some((found, limit)) if status.code() == Code::OutOfRange => {
            Status::resource_exhausted(format!("grpc: received message larger than max ({found} vs. {limit})"))
        }
        _ => status,
    }
}

/// Without `_`, so that a new refusal has to choose its code.
fn code(error: &Error) -> Code {
    match error {
        Error::EmptyKey
        | Error::KeyNotFound
        | Error::ValueProvided
        | Error::LeaseProvided
        | Error::TooManyOps
        | Error::DuplicateKey
        | Error::InvalidClientApiVersion
        | Error::InvalidSortOption
        | Error::BadMemberUrls
        | Error::RequestTooLarge
        | Error::UserEmpty
        | Error::RoleEmpty
        | Error::AuthFailed
        | Error::PermissionNotGiven
        | Error::InvalidAuthManagement
        | Error::AuthOldRevision
        | Error::WrongDowngradeVersion
        | Error::InvalidDowngradeTarget
        | Error::BadSnapshot(_) => Code::InvalidArgument,

        Error::Compacted | Error::FutureRevision | Error::LeaseTtlTooLarge => Code::OutOfRange,

        Error::NoSpace => Code::ResourceExhausted,

        Error::LeaseNotFound | Error::MemberNotFound => Code::NotFound,

        Error::LeaseExists
        | Error::MemberExists
        | Error::PeerUrlExists
        | Error::MemberNotLearner
        | Error::LearnerNotReady
        | Error::TooManyLearners
        | Error::ClusterIdMismatch
        | Error::NotLeader
        | Error::NotCapable
        | Error::NotSupportedForLearner
        | Error::UserExists
        | Error::RootUserNotExist
        | Error::RootRoleNotExist
        | Error::UserNotFound
        | Error::RoleExists
        | Error::RoleNotFound
        | Error::RoleNotGranted
        | Error::PermissionNotGranted
        | Error::AuthNotEnabled
        | Error::ClusterVersionUnavailable
        | Error::DowngradeInProcess
        | Error::BadLeaderTransferee => Code::FailedPrecondition,

        Error::PermissionDenied => Code::PermissionDenied,

        Error::InvalidAuthToken => Code::Unauthenticated,

        Error::WatchCanceled => Code::Cancelled,

        // RestoreInProgress: like a cluster without a leader, it passes without the client's doing.
        Error::NoLeader
        | Error::LeaderChanged
        | Error::Stopped
        | Error::Timeout
        | Error::TimeoutLeaderFail
        | Error::TimeoutConnectionLost
        | Error::TimeoutWaitApplied
        | Error::Unhealthy
        | Error::RestoreInProgress => Code::Unavailable,

        // As the context of etcd's own wait says it. clientv3 takes it for its own and tries again, which is safe.
        Error::TimeoutNoLeader => Code::DeadlineExceeded,

        Error::Corrupt => Code::DataLoss,

        // The whole restore has to be started again, which is what Aborted says.
        Error::RestoreSuperseded | Error::RestoreMismatch(_) => Code::Aborted,

        // etcd has proper codes for the first two, but sends them through its client-side error type, which arrives
        // as Unknown; the others are absent from its table, with the same effect. Internal is no alternative: clients
        // take that code as "reconnect and try again for ever".
        Error::NotEnoughStartedMembers
        | Error::TooManyRequests
        | Error::TimeoutLeaderTransfer
        | Error::UnknownMethod
        | Error::NoPasswordUser
        | Error::VerifyOnly
        | Error::PasswordTooLong
        | Error::Internal(_) => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// etcd's table: error, code on the wire, text. Codes are numbers here to be independent of the names above.
    const TABLE: &[(Error, i32, &str)] = &[
        (Error::EmptyKey, 3, "etcdserver: key is not provided"),
        (Error::KeyNotFound, 3, "etcdserver: key not found"),
        (Error::ValueProvided, 3, "etcdserver: value is provided"),
        (Error::LeaseProvided, 3, "etcdserver: lease is provided"),
        (Error::TooManyOps, 3, "etcdserver: too many operations in txn request"),
        (Error::DuplicateKey, 3, "etcdserver: duplicate key given in txn request"),
        (Error::InvalidClientApiVersion, 3, "etcdserver: invalid client api version"),
        (Error::InvalidSortOption, 3, "etcdserver: invalid sort option"),
        (Error::Compacted, 11, "etcdserver: mvcc: required revision has been compacted"),
        (Error::FutureRevision, 11, "etcdserver: mvcc: required revision is a future revision"),
        (Error::NoSpace, 8, "etcdserver: mvcc: database space exceeded"),
        (Error::LeaseNotFound, 5, "etcdserver: requested lease not found"),
        (Error::LeaseExists, 9, "etcdserver: lease already exists"),
        (Error::LeaseTtlTooLarge, 11, "etcdserver: too large lease TTL"),
        (Error::WatchCanceled, 1, "etcdserver: watch canceled"),
        (Error::MemberExists, 9, "etcdserver: member ID already exist"),
        (Error::PeerUrlExists, 9, "etcdserver: Peer URLs already exists"),
        (Error::NotEnoughStartedMembers, 2, "etcdserver: re-configuration failed due to not enough started members"),
        (Error::BadMemberUrls, 3, "etcdserver: given member URLs are invalid"),
        (Error::MemberNotFound, 5, "etcdserver: member not found"),
        (Error::MemberNotLearner, 9, "etcdserver: can only promote a learner member"),
        (Error::LearnerNotReady, 9, "etcdserver: can only promote a learner member which is in sync with leader"),
        (Error::TooManyLearners, 9, "etcdserver: too many learner members in cluster"),
        (Error::ClusterIdMismatch, 9, "etcdserver: cluster ID mismatch"),
        (Error::RequestTooLarge, 3, "etcdserver: request is too large"),
        (Error::TooManyRequests, 2, "etcdserver: too many requests"),
        (Error::NoLeader, 14, "etcdserver: no leader"),
        (Error::NotLeader, 9, "etcdserver: not leader"),
        (Error::LeaderChanged, 14, "etcdserver: leader changed"),
        (Error::NotCapable, 9, "etcdserver: not capable"),
        (Error::Stopped, 14, "etcdserver: server stopped"),
        (Error::Timeout, 14, "etcdserver: request timed out"),
        (Error::TimeoutNoLeader, 4, "context deadline exceeded"),
        (Error::TimeoutLeaderFail, 14, "etcdserver: request timed out, possibly due to previous leader failure"),
        (Error::TimeoutConnectionLost, 14, "etcdserver: request timed out, possibly due to connection lost"),
        (Error::TimeoutWaitApplied, 14, "etcdserver: request timed out, waiting for the applied index took too long"),
        (Error::TimeoutLeaderTransfer, 2, "etcdserver: request timed out, leader transfer took too long"),
        (Error::Unhealthy, 14, "etcdserver: unhealthy cluster"),
        (Error::Corrupt, 15, "etcdserver: corrupt cluster"),
        (Error::NotSupportedForLearner, 9, "etcdserver: rpc not supported for learner"),
        (Error::BadLeaderTransferee, 9, "etcdserver: bad leader transferee"),
        (Error::WrongDowngradeVersion, 3, "etcdserver: wrong downgrade target version format"),
        (Error::InvalidDowngradeTarget, 3, "etcdserver: invalid downgrade target version"),
        (Error::ClusterVersionUnavailable, 9, "etcdserver: cluster version not found during downgrade"),
        (Error::DowngradeInProcess, 9, "etcdserver: cluster has a downgrade job in progress"),
        (Error::UnknownMethod, 2, "etcdserver: unknown method"),
        (Error::RootUserNotExist, 9, "etcdserver: root user does not exist"),
        (Error::RootRoleNotExist, 9, "etcdserver: root user does not have root role"),
        (Error::UserExists, 9, "etcdserver: user name already exists"),
        (Error::UserEmpty, 3, "etcdserver: user name is empty"),
        (Error::UserNotFound, 9, "etcdserver: user name not found"),
        (Error::RoleExists, 9, "etcdserver: role name already exists"),
        (Error::RoleNotFound, 9, "etcdserver: role name not found"),
        (Error::RoleEmpty, 3, "etcdserver: role name is empty"),
        (Error::AuthFailed, 3, "etcdserver: authentication failed, invalid user ID or password"),
        (Error::PermissionNotGiven, 3, "etcdserver: permission not given"),
        (Error::PermissionDenied, 7, "etcdserver: permission denied"),
        (Error::RoleNotGranted, 9, "etcdserver: role is not granted to the user"),
        (Error::PermissionNotGranted, 9, "etcdserver: permission is not granted to the role"),
        (Error::AuthNotEnabled, 9, "etcdserver: authentication is not enabled"),
        (Error::InvalidAuthToken, 16, "etcdserver: invalid auth token"),
        (Error::InvalidAuthManagement, 3, "etcdserver: invalid auth management"),
        (Error::AuthOldRevision, 3, "etcdserver: revision of auth store is old"),
        (Error::NoPasswordUser, 2, "auth: authentication failed, password was given for no password user"),
        (Error::VerifyOnly, 2, "auth: token signing attempted with verify-only key"),
        (Error::PasswordTooLong, 2, "bcrypt: password length exceeds 72 bytes"),
    ];

    #[test]
    fn every_etcd_refusal_has_etcds_code_and_text() {
        for (error, code, text) in TABLE {
            let status = from_error(error.clone());
            assert_eq!((i32::from(status.code()), status.message()), (*code, *text), "{error:?}");
        }
    }

    #[test]
    fn our_own_refusals_say_whose_they_are() {
        let ours = [
            (Error::RestoreInProgress, Code::Unavailable),
            (Error::RestoreSuperseded, Code::Aborted),
            (Error::RestoreMismatch("3 of 4 keys".into()), Code::Aborted),
            (Error::BadSnapshot("page 3".into()), Code::InvalidArgument),
            (Error::Internal("disk".into()), Code::Unknown),
        ];
        for (error, code) in ours {
            let status = from_error(error);
            assert_eq!(status.code(), code);
            assert!(status.message().starts_with("ferretcd: "), "{}", status.message());
        }
    }

    #[test]
    fn a_message_above_the_limit_gets_grpc_gos_words() {
        let tonics = "Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes";
        let status = from_receive(Status::out_of_range(tonics));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), "grpc: received message larger than max (5 vs. 4)");
        let other = from_receive(from_error(Error::Compacted));
        assert_eq!(other.code(), Code::OutOfRange);
    }
}
