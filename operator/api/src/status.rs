//! The status of an `EtcdCluster`. It has two halves: the *ledger* (seed, serials, IDs, operation), written before the side
//! effect that it announces and read back by the next pass, and the *report* (conditions, roles, sizes), computed from what a
//! pass observed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Types of conditions.
pub mod condition {
    /// Clients are served: a quorum answers and at least one member is behind the client Service.
    pub const AVAILABLE: &str = "Available";
    /// The operator is changing the cluster or wants to.
    pub const PROGRESSING: &str = "Progressing";
    /// Something needs attention; the message names it and the next action.
    pub const DEGRADED: &str = "Degraded";
    /// A linearizable read of the membership succeeded.
    pub const QUORUM_HEALTHY: &str = "QuorumHealthy";
}

/// Reasons of conditions and events: stable words that alerts may match on.
pub mod reason {
    /// All is as asked for.
    pub const READY: &str = "Ready";
    /// The first member is being made.
    pub const BOOTSTRAPPING: &str = "Bootstrapping";
    /// The first member did not come up in time.
    pub const BOOTSTRAP_FAILED: &str = "BootstrapFailed";
    /// The backup named by `bootstrap.restore` is being restored.
    pub const RESTORING: &str = "Restoring";
    /// The restore Job failed.
    pub const RESTORE_FAILED: &str = "RestoreFailed";
    /// The backup named by `bootstrap.restore` is absent or not complete.
    pub const RESTORE_SOURCE_NOT_READY: &str = "RestoreSourceNotReady";
    /// A member is being added.
    pub const SCALING_UP: &str = "ScalingUp";
    /// A member is being removed.
    pub const SCALING_DOWN: &str = "ScalingDown";
    /// A member that could not be added is being cleaned up.
    pub const ROLLING_BACK: &str = "RollingBack";
    /// An operation did not finish by its deadline.
    pub const OPERATION_STALLED: &str = "OperationStalled";
    /// A change is due, and a gate holds it back.
    pub const WAITING: &str = "Waiting";
    /// No linearizable answer from any member.
    pub const NO_QUORUM: &str = "NoQuorum";
    /// The first member has not formed the cluster yet.
    pub const NOT_FORMED: &str = "NotFormed";
    /// No member is behind the client Service.
    pub const NOT_SERVING: &str = "NotServing";
    /// Members do not answer or are not ready.
    pub const MEMBER_UNHEALTHY: &str = "MemberUnhealthy";
    /// A member raised an alarm.
    pub const ALARM: &str = "Alarm";
    /// etcd lists members that the operator does not know, or lacks some that it does.
    pub const MEMBERSHIP_MISMATCH: &str = "MembershipMismatch";
    /// A member answers with another cluster ID.
    pub const CLUSTER_ID_MISMATCH: &str = "ClusterIdMismatch";
    /// The volume of a started member is gone.
    pub const VOLUME_LOST: &str = "VolumeLost";
    /// An object with the name we need belongs to somebody else.
    pub const NAME_CONFLICT: &str = "NameConflict";
    /// The spec is invalid.
    pub const REJECTED: &str = "Rejected";
    /// The cluster is being deleted.
    pub const DELETING: &str = "Deleting";
    /// An action of the operator failed.
    pub const ACTION_FAILED: &str = "ActionFailed";
    /// Event: an operation began.
    pub const OPERATION_STARTED: &str = "OperationStarted";
    /// Event: an operation ended.
    pub const OPERATION_FINISHED: &str = "OperationFinished";
    /// Event: the cluster has formed.
    pub const CLUSTER_FORMED: &str = "ClusterFormed";
    /// Event: the status was lost and rebuilt from the volumes.
    pub const STATUS_REBUILT: &str = "StatusRebuilt";
    /// Event: a scheduled backup was skipped.
    pub const BACKUP_SKIPPED: &str = "BackupSkipped";
    /// Event: a backup Job was made.
    pub const BACKUP_STARTED: &str = "BackupStarted";
    /// Event: a backup is complete.
    pub const BACKUP_COMPLETE: &str = "BackupComplete";
    /// Event: a backup failed.
    pub const BACKUP_FAILED: &str = "BackupFailed";
    /// Event: an old backup was removed.
    pub const BACKUP_PRUNED: &str = "BackupPruned";
    /// Event: an old backup could not be removed.
    pub const PRUNE_FAILED: &str = "PruneFailed";
}

/// What is known of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EtcdClusterStatus {
    /// Report: the generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Report: the state in one word, for humans; programs read `conditions`.
    pub phase: Phase,
    /// Report: `Available`, `Progressing`, `Degraded`, `QuorumHealthy`.
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Report: how many members exist; the `scale` subresource shows it.
    pub replicas: i32,
    /// Report: label selector of the members' pods, for the `scale` subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Report: ready members of those asked for, for example `3/3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_members: Option<String>,
    /// Report: name of the leader.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Report: the lowest server version among the members that answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,

    /// Ledger: the image of all members, resolved once, so that another default of a newer operator restarts nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Ledger: the single seed of bootstrap; written before its volume is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<SeedStatus>,
    /// Ledger: etcd's cluster ID in hex. Once set, no member is ever started with the intent to bootstrap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Ledger: the serial of the next member; it only grows.
    pub next_member_serial: i64,
    /// Ledger and report: the members, by serial.
    pub members: Vec<MemberStatus>,
    /// Ledger: the one operation that is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationStatus>,
    /// Ledger: no new operation before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<BackoffStatus>,
    /// Ledger: IDs of removed members (the last 64); none is ever added again.
    pub retired_member_ids: Vec<String>,
    /// Ledger: the restore at bootstrap, if one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreStatus>,
}

/// The state of a cluster in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Nothing has been done yet.
    #[default]
    Pending,
    /// The seed is being made.
    Bootstrapping,
    /// A backup is being restored into the seed.
    Restoring,
    /// Members are being added or removed.
    Scaling,
    /// As asked for.
    Ready,
    /// Serving, but something needs attention.
    Degraded,
    /// No quorum.
    NoQuorum,
    /// The spec or a name is refused; a human must act.
    Rejected,
    /// Being deleted.
    Deleting,
}

/// The single seed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SeedStatus {
    /// Its serial.
    pub serial: i64,
    /// `--initial-cluster-token`: holds the UID of the EtcdCluster and the seed's serial, so that no two seeds, of this or
    /// any other cluster, compute the same cluster ID.
    pub token: String,
}

/// One member.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberStatus {
    /// Ledger: `<cluster>-<serial>`: etcd's name of the member and the name of its StatefulSet.
    pub name: String,
    /// Ledger: its serial; never used twice.
    pub serial: i64,
    /// Ledger: etcd's member ID in hex; absent until the cluster has given it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Ledger: it has answered with its ID once, so it has a data directory and is started with the intent `run` from now on.
    pub started: bool,
    /// Ledger: it is (to be) behind the client Service.
    pub serving: bool,
    /// Report: what it is in the raft group.
    pub role: MemberRole,
    /// Report: a linearizable read through it succeeded.
    pub ready: bool,
    /// Report: its server version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Report: size of its database in bytes; refreshed when it has changed by a tenth, so that a busy cluster does not
    /// rewrite its status on every pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub db_size: Option<i64>,
    /// Report: its alarms, for example `NOSPACE`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<String>,
    /// Report: why it is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What a member is in the raft group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MemberRole {
    /// It does not answer, or is not a member yet.
    #[default]
    Unknown,
    /// It receives the log and has no vote.
    Learner,
    /// It votes.
    Follower,
    /// It votes and leads.
    Leader,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OperationKind {
    /// Make the seed (and restore into it).
    Bootstrap,
    /// Add one member.
    ScaleUp,
    /// Remove one member.
    ScaleDown,
    /// Remove a member whose ScaleUp failed, with its volume, which never held the only copy of anything.
    RollBack,
}

/// The one operation that is under way. It is written before its first side effect, with the resourceVersion that was
/// read, which is also what fences off a second operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OperationStatus {
    /// `<kind>-<serial>-<unix time of its start>`.
    pub id: String,
    /// What it does.
    pub kind: OperationKind,
    /// The member it is about.
    pub member: String,
    /// Report: the step it is at or waits in.
    pub step: String,
    /// When it began.
    pub started_at: Time,
    /// When it counts as stalled.
    pub deadline: Time,
}

/// A pause after a failed operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackoffStatus {
    /// Until when.
    pub until: Time,
    /// How many operations failed in a row.
    pub failures: i32,
    /// What failed.
    pub reason: String,
}

/// The restore at bootstrap.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RestoreStatus {
    /// How far it is; `Complete` is final and never run again.
    pub phase: RestorePhase,
    /// What is restored: `s3://<bucket>/<key>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The revision of the cluster after the restore.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// When it completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
}

/// How far the restore at bootstrap is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestorePhase {
    /// Not done.
    #[default]
    Pending,
    /// Done and verified.
    Complete,
}

impl EtcdClusterStatus {
    /// The member with this serial.
    pub fn member(&self, serial: i64) -> Option<&MemberStatus> {
        self.members.iter().find(|member| member.serial == serial)
    }

    /// The member with this serial, to change it.
    pub fn member_mut(&mut self, serial: i64) -> Option<&mut MemberStatus> {
        self.members.iter_mut().find(|member| member.serial == serial)
    }
}
