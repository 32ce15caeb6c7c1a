//! Everything that the log may carry, each verb with its reply.
//!
//! A command holds no choice that could come out differently on two members: IDs, epochs and times are settled before
//! it is proposed.

use bytes::Bytes;

use crate::{
    Alarm, AuthChange, Authenticate, Authenticated, Caller, Epoch, Error, KeyRange, KeyValue, LeaseId, MemberId,
    RequestId, Revision,
};

/// A command with the name that its proposer waits by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Unique among all proposals that are under way.
    pub id: RequestId,
    /// In whose name.
    pub caller: Caller,
    /// What to do.
    pub command: Command,
}

/// Writes one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Put {
    /// The key; not empty.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The lease to attach it to; [`LeaseId::NONE`] detaches.
    pub lease: LeaseId,
    /// Return what was there before.
    pub prev_kv: bool,
    /// Keep the value that is there; it must be.
    pub ignore_value: bool,
    /// Keep the lease that is there; the key must be.
    pub ignore_lease: bool,
}

/// Reads keys, at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Which keys.
    pub range: KeyRange,
    /// Most keys to return; 0 is all.
    pub limit: i64,
    /// At which main revision; 0 or less is the latest.
    pub revision: i64,
    /// In which order.
    pub sort_order: SortOrder,
    /// By what.
    pub sort_target: SortTarget,
    /// Answer from this member alone, without asking the quorum.
    pub serializable: bool,
    /// Leave values out.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
    /// Inclusive bounds, 0 for none.
    pub min_mod_revision: i64,
    /// See `min_mod_revision`.
    pub max_mod_revision: i64,
    /// See `min_mod_revision`.
    pub min_create_revision: i64,
    /// See `min_mod_revision`.
    pub max_create_revision: i64,
}

/// Order of a range's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortOrder {
    /// By key, unless another target asks for ascending.
    #[default]
    None,
    /// Smallest first.
    Ascend,
    /// Largest first.
    Descend,
}

/// What a range's answer is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortTarget {
    /// The key.
    #[default]
    Key,
    /// The version.
    Version,
    /// The create revision.
    Create,
    /// The mod revision.
    Mod,
    /// The value.
    Value,
}

/// Deletes keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteRange {
    /// Which keys.
    pub range: KeyRange,
    /// Return what was deleted.
    pub prev_kv: bool,
}

/// Compares, then does one list of operations or the other, all in one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// All must hold for `success`.
    pub compares: Vec<Compare>,
    /// Done when they hold.
    pub success: Vec<TxnOp>,
    /// Done when one does not.
    pub failure: Vec<TxnOp>,
}

impl Txn {
    /// True when neither branch, nested ones included, can write.
    pub fn is_read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| match op {
            TxnOp::Range(_) => true,
            TxnOp::Put(_) | TxnOp::DeleteRange(_) => false,
            TxnOp::Txn(t) => t.is_read_only(),
        })
    }
}

/// One comparison. All keys of the range must satisfy it; where there is none, one key of zeroes stands for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// Which keys.
    pub range: KeyRange,
    /// How the stored side must stand to the given one.
    pub result: CompareResult,
    /// What is compared, with the given side.
    pub target: CompareTarget,
}

/// How the stored value must stand to the given one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CompareResult {
    Equal,
    Greater,
    Less,
    NotEqual,
}

/// What is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CompareTarget {
    Version(i64),
    Create(i64),
    Mod(i64),
    Value(Bytes),
    Lease(i64),
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TxnOp {
    Range(Range),
    Put(Put),
    DeleteRange(DeleteRange),
    Txn(Txn),
}

/// Drops history up to a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compact {
    /// Versions that a newer one at or below this revision replaced go away.
    pub revision: i64,
}

/// Creates a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseGrant {
    /// Its ID, positive, settled by the proposer.
    pub id: LeaseId,
    /// Seconds to live, settled by the proposer (etcd's minimum applied).
    pub ttl: i64,
}

/// Ends a lease and deletes its keys, in one revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRevoke {
    /// Which.
    pub id: LeaseId,
}

/// Notes how long leases still live, so that a new leader starts them with that and not with their full time (etcd's
/// LeaseCheckpoint). Leases that are no more are passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseCheckpoint {
    /// Leases with their remaining seconds; 0 gives one its full time again.
    pub remaining: Vec<(LeaseId, i64)>,
}

/// What a member publishes of itself when it has started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberAttributes {
    /// Which member.
    pub id: MemberId,
    /// Its name.
    pub name: String,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
}

/// The first command of every history. Later ones change nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// The random number that tells this history from any other.
    pub epoch: Epoch,
    /// The cluster version, `3.7.0` form.
    pub cluster_version: String,
}

/// Raises or disarms an alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetAlarm {
    /// Which.
    pub alarm: Alarm,
    /// Raise it, or disarm it.
    pub raised: bool,
}

/// Sets what the cluster runs at: the leader's, once it has decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetClusterVersion {
    /// The version, `3.7.0` form.
    pub version: String,
    /// What the log may hold from here on (see [`codec::LOG_FORMAT`](crate::codec::LOG_FORMAT)); 0: as before.
    pub log_format: u32,
    /// Who has said that it is of this version and decodes this format. If it names any, there must be no other member when
    /// this is applied: one that was added meanwhile has not been asked.
    pub told_by: Vec<MemberId>,
}

/// Begins or ends a downgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetDowngrade {
    /// The version to go down to, `3.6.0` form; `None` ends it.
    pub target: Option<String>,
}

/// Starts a restore: drops what an earlier one staged, and refuses other writes until the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreBegin {
    /// Random name of this restore.
    pub id: u64,
}

/// Stages records of a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreChunk {
    /// Which restore.
    pub id: u64,
    /// Position of this chunk, from 0 without gaps. A chunk that was staged already is accepted and changes nothing,
    /// so that a proposer may repeat one whose answer it lost.
    pub sequence: u64,
    /// The records, encoded by [`crate::codec::encode_restore_records`].
    pub records: Bytes,
}

/// One record of a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestoreRecord {
    /// A revision of a key. Revisions ascend strictly over the whole restore.
    Key {
        /// Its place in history.
        revision: Revision,
        /// True for a deletion.
        tombstone: bool,
        /// The stored `KeyValue`, encoded.
        value: Bytes,
    },
    /// A lease.
    Lease {
        /// Its ID.
        id: LeaseId,
        /// Its granted seconds.
        ttl: i64,
    },
    /// A user, in etcd's encoding (`authpb.User`).
    User {
        /// Its name.
        name: Bytes,
        /// The encoded user.
        value: Bytes,
    },
    /// A role, in etcd's encoding (`authpb.Role`).
    Role {
        /// Its name.
        name: Bytes,
        /// The encoded role.
        value: Bytes,
    },
    /// Whether auth is on, and the auth store's revision.
    Auth {
        /// On or off.
        enabled: bool,
        /// The revision.
        revision: u64,
    },
}

/// What a restore staged in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreTotals {
    /// Chunks.
    pub chunks: u64,
    /// Key records.
    pub keys: u64,
    /// Leases.
    pub leases: u64,
    /// Users.
    pub users: u64,
    /// Roles.
    pub roles: u64,
    /// SHA-256 chained over the chunks: `h = sha256(h ‖ chunk)`, from 32 zero bytes.
    pub checksum: Bytes,
}

/// Checks what was staged, then replaces the key space with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreCommit {
    /// Which restore.
    pub id: u64,
    /// What must have been staged.
    pub totals: RestoreTotals,
    /// The new revision is max(current, the file's) plus this.
    pub revision_bump: u64,
}

/// Drops what was staged and lets writes in again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreAbort {
    /// Which restore; another one is left alone.
    pub id: u64,
}

/// Everything that the log may carry.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Command {
    Genesis(Genesis),
    Put(Put),
    DeleteRange(DeleteRange),
    Txn(Txn),
    Compact(Compact),
    LeaseGrant(LeaseGrant),
    LeaseRevoke(LeaseRevoke),
    LeaseCheckpoint(LeaseCheckpoint),
    MemberAttributes(MemberAttributes),
    SetAlarm(SetAlarm),
    RestoreBegin(RestoreBegin),
    RestoreChunk(RestoreChunk),
    RestoreCommit(RestoreCommit),
    RestoreAbort(RestoreAbort),
    Auth(AuthChange),
    Authenticate(Authenticate),
    SetClusterVersion(SetClusterVersion),
    SetDowngrade(SetDowngrade),
}

impl Command {
    /// The first [`codec::LOG_FORMAT`](crate::codec::LOG_FORMAT) that has this kind: it is proposed only in a cluster that has come
    /// so far, since a member of an earlier one stops at an entry with it.
    pub fn log_format(&self) -> u32 {
        // Without `_`, so that a new kind has to choose its format.
        match self {
            Command::LeaseCheckpoint(_) => 2,
            Command::Genesis(_)
            | Command::Put(_)
            | Command::DeleteRange(_)
            | Command::Txn(_)
            | Command::Compact(_)
            | Command::LeaseGrant(_)
            | Command::LeaseRevoke(_)
            | Command::MemberAttributes(_)
            | Command::SetAlarm(_)
            | Command::RestoreBegin(_)
            | Command::RestoreChunk(_)
            | Command::RestoreCommit(_)
            | Command::RestoreAbort(_)
            | Command::Authenticate(_)
            | Command::SetClusterVersion(_)
            | Command::SetDowngrade(_) => 1,
            Command::Auth(
                AuthChange::Enable
                | AuthChange::Disable
                | AuthChange::UserAdd { .. }
                | AuthChange::UserDelete { .. }
                | AuthChange::UserChangePassword { .. }
                | AuthChange::UserGrantRole { .. }
                | AuthChange::UserRevokeRole { .. }
                | AuthChange::RoleAdd { .. }
                | AuthChange::RoleDelete { .. }
                | AuthChange::RoleGrantPermission { .. }
                | AuthChange::RoleRevokePermission { .. },
            ) => 1,
        }
    }
}

/// What a put answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutReply {
    /// The store's revision after it.
    pub revision: i64,
    /// What was there before, if asked for and there.
    pub prev_kv: Option<KeyValue>,
}

/// What a range answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeReply {
    /// The store's revision when the answer was made (not the requested one).
    pub revision: i64,
    /// The keys.
    pub kvs: Vec<KeyValue>,
    /// More matched than the limit let through.
    pub more: bool,
    /// Live keys in the range, limit and filters ignored.
    pub count: i64,
}

/// What a deletion answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteRangeReply {
    /// The store's revision after it.
    pub revision: i64,
    /// How many keys were deleted.
    pub deleted: i64,
    /// They, in key order, if asked for.
    pub prev_kvs: Vec<KeyValue>,
}

/// What a transaction answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnReply {
    /// The store's revision after it.
    pub revision: i64,
    /// Whether all compares held.
    pub succeeded: bool,
    /// One answer per operation of the branch taken.
    pub responses: Vec<OpReply>,
}

/// The answer to one operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum OpReply {
    Range(RangeReply),
    Put(PutReply),
    DeleteRange(DeleteRangeReply),
    Txn(TxnReply),
}

/// What a grant answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseGrantReply {
    /// The store's revision.
    pub revision: i64,
    /// The lease.
    pub id: LeaseId,
    /// Its seconds.
    pub ttl: i64,
}

/// The answer of verbs that return nothing but the store's revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revised {
    /// The store's revision after it.
    pub revision: i64,
}

/// What a committed restore answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreReply {
    /// The new revision; it is also the compacted one.
    pub revision: i64,
    /// Live keys afterwards.
    pub live_keys: u64,
    /// What was restored.
    pub totals: RestoreTotals,
}

/// What applying a command answers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reply {
    Put(PutReply),
    DeleteRange(DeleteRangeReply),
    Txn(TxnReply),
    LeaseGrant(LeaseGrantReply),
    Revised(Revised),
    Restored(RestoreReply),
    Authenticated(Authenticated),
}

/// A command together with the type of its answer, so that a handler never meets another command's reply.
pub trait Verb: Into<Command> + Send + 'static {
    /// What it answers.
    type Reply: Send + 'static;
    /// Takes this verb's answer out of the sum. A different variant can only mean that `apply` is wrong.
    fn reply(reply: Reply) -> Result<Self::Reply, Error>;
}

macro_rules! verb {
    ($verb:ident => $variant:ident($reply:ty)) => {
        verb!($verb as $verb => $variant($reply));
    };
    ($verb:ident as $command:ident => $variant:ident($reply:ty)) => {
        impl From<$verb> for Command {
            fn from(verb: $verb) -> Command {
                Command::$command(verb)
            }
        }
        impl Verb for $verb {
            type Reply = $reply;
            fn reply(reply: Reply) -> Result<$reply, Error> {
                match reply {
                    Reply::$variant(r) => Ok(r),
                    other => Err(Error::Internal(format!("{} was answered with {other:?}", stringify!($verb)))),
                }
            }
        }
    };
}

verb!(Genesis => Revised(Revised));
verb!(Put => Put(PutReply));
verb!(DeleteRange => DeleteRange(DeleteRangeReply));
verb!(Txn => Txn(TxnReply));
verb!(Compact => Revised(Revised));
verb!(LeaseGrant => LeaseGrant(LeaseGrantReply));
verb!(LeaseRevoke => Revised(Revised));
verb!(LeaseCheckpoint => Revised(Revised));
verb!(MemberAttributes => Revised(Revised));
verb!(SetAlarm => Revised(Revised));
verb!(RestoreBegin => Revised(Revised));
verb!(RestoreChunk => Revised(Revised));
verb!(RestoreCommit => Restored(RestoreReply));
verb!(RestoreAbort => Revised(Revised));
verb!(AuthChange as Auth => Revised(Revised));
verb!(Authenticate => Authenticated(Authenticated));
verb!(SetClusterVersion => Revised(Revised));
verb!(SetDowngrade => Revised(Revised));
