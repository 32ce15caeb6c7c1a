//! Who asks, and what may be changed about users, roles and permissions.

use bytes::Bytes;

use crate::KeyRange;

/// In whose name a command is proposed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Caller {
    /// A member's own work, such as ending an expired lease: no permission binds it. Entries of logs from before
    /// callers were written down count as this, too.
    #[default]
    Member,
    /// A client.
    Client(Client),
}

/// A client as far as permissions go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// The user; empty for a client that did not say who it is.
    pub user: String,
    /// The auth revision at which it was authenticated; 0 for a client without a user.
    pub auth_revision: u64,
}

/// A change of the auth store, as etcd's Auth service asks for it. All but `Enable` raise the auth revision.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Each is etcd's RPC of that name; the fields are its request's.
pub enum AuthChange {
    Enable,
    Disable,
    /// `hash` is bcrypt's, made by the proposer; without one (`no_password`) the user has only its certificate.
    UserAdd {
        name: String,
        hash: Bytes,
        no_password: bool,
    },
    UserDelete {
        name: String,
    },
    UserChangePassword {
        name: String,
        hash: Bytes,
    },
    UserGrantRole {
        user: String,
        role: String,
    },
    UserRevokeRole {
        user: String,
        role: String,
    },
    RoleAdd {
        name: String,
    },
    RoleDelete {
        name: String,
    },
    /// Without a permission it is refused, after it is known whether the caller may ask.
    RoleGrantPermission {
        role: String,
        permission: Option<Permission>,
    },
    RoleRevokePermission {
        role: String,
        range: KeyRange,
    },
}

/// The right to read or write one key or a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permission {
    /// The number of etcd's `authpb.Permission.Type`. One that nobody knows is kept and gives no right, as in etcd.
    pub kind: i32,
    /// Which keys.
    pub range: KeyRange,
}

impl Permission {
    /// `READ`.
    pub const READ: i32 = 0;
    /// `WRITE`.
    pub const WRITE: i32 = 1;
    /// `READWRITE`.
    pub const READ_WRITE: i32 = 2;

    /// True when it lets somebody read.
    pub fn reads(&self) -> bool {
        matches!(self.kind, Self::READ | Self::READ_WRITE)
    }

    /// True when it lets somebody write.
    pub fn writes(&self) -> bool {
        matches!(self.kind, Self::WRITE | Self::READ_WRITE)
    }
}

/// Lets in a user whose password the proposer has checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authenticate {
    /// The user.
    pub user: String,
    /// The random part of a simple token, by which every member will know the user; empty when tokens are signed ones,
    /// which no member keeps.
    pub token: String,
}

/// What an authentication answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authenticated {
    /// The store's revision.
    pub revision: i64,
    /// The auth revision that the user was let in at.
    pub auth_revision: u64,
    /// The whole simple token; empty when tokens are signed ones.
    pub token: String,
}
