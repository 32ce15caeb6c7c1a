//! One call of a sequence.

use ferretcd_proto::etcdserverpb as pb;

/// What is asked of both servers.
#[derive(Clone, Debug)]
pub enum Call {
    Range(pb::RangeRequest),
    /// All chunks, joined.
    RangeStream(pb::RangeRequest),
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
    Auth(AuthCall),
    /// In whose name the calls that follow are made.
    Become(Who),
    /// Turns authentication off by root's password, and removes all users and roles.
    ForgetUsers(String),
    /// Waits until all watches have sent what there is.
    Settle,
    /// Ends all streams.
    CloseWatches,
}

/// A call about users and roles.
#[derive(Clone, Debug)]
pub enum AuthCall {
    Enable,
    Disable,
    Status,
    UserAdd(pb::AuthUserAddRequest),
    UserGet(String),
    UserList,
    UserDelete(String),
    UserChangePassword(pb::AuthUserChangePasswordRequest),
    UserGrantRole(pb::AuthUserGrantRoleRequest),
    UserRevokeRole(pb::AuthUserRevokeRoleRequest),
    RoleAdd(String),
    RoleGet(String),
    RoleList,
    RoleDelete(String),
    RoleGrantPermission(pb::AuthRoleGrantPermissionRequest),
    RoleRevokePermission(pb::AuthRoleRevokePermissionRequest),
}

/// Who calls.
#[derive(Clone, Debug)]
pub enum Who {
    Nobody,
    /// By a token that no server gave.
    Stranger,
    /// By name and password; nobody, if that is refused.
    User(String, String),
}

/// An answer as text, and what later calls are made from.
#[derive(Debug)]
pub struct Answer {
    pub text: String,
    /// The store's revision, where the answer says it.
    pub revision: Option<i64>,
    pub ok: bool,
}
