//! `EtcdBackup` (one backup, taken once) and `EtcdBackupSchedule` (a cron that makes them and keeps the last N), and the
//! object store that both write to.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest name of an `EtcdBackup`: its Jobs are `<name>-backup` and `<name>-prune`, and a Job's name becomes a label.
pub const MAX_BACKUP_NAME: usize = 52;
/// The longest name of an `EtcdBackupSchedule`: its backups are `<name>-<unix time of the slot>`.
pub const MAX_SCHEDULE_NAME: usize = 40;

/// An object of the same namespace, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A bucket of an S3 object store, and a place in it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct S3Destination {
    /// The bucket; it must exist.
    #[schemars(length(min = 3, max = 63), regex(pattern = r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$"))]
    pub bucket: String,
    /// What every key starts with, without slashes at its ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$"))]
    pub prefix: Option<String>,
    /// URL of the store, for example `http://s3.storage.svc:9000`. Absent: AWS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 8, max = 512), regex(pattern = r"^https?://[^\s/]+/?$"))]
    pub endpoint: Option<String>,
    /// The region; `us-east-1` if absent, which stores other than AWS accept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub region: Option<String>,
    /// Address the bucket as a path of the endpoint, not as a subdomain of it; most stores other than AWS need it.
    #[serde(default)]
    pub force_path_style: bool,
    /// A Secret with `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` (and `AWS_SESSION_TOKEN` if needed), given to the Job as
    /// its environment. The operator itself never reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<LocalRef>,
}

/// One backup of one cluster.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "ferretcd.io",
    version = "v1alpha1",
    kind = "EtcdBackup",
    plural = "etcdbackups",
    category = "all",
    namespaced,
    status = "EtcdBackupStatus",
    derive = "PartialEq",
    doc = "One backup of an EtcdCluster in an object store.",
    validation = Rule::new("self.metadata.name.size() <= 52")
        .message("the name of an EtcdBackup has at most 52 characters: its Job is named after it"),
    validation = Rule::new("self.spec == oldSelf.spec")
        .message("an EtcdBackup is taken once and is immutable: create another one"),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Revision", type_ = "integer", json_path = ".status.revision"),
    printcolumn(name = "Size", type_ = "integer", json_path = ".status.size"),
    printcolumn(name = "Location", type_ = "string", json_path = ".status.location", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct EtcdBackupSpec {
    /// The cluster, in the same namespace.
    pub cluster_ref: LocalRef,
    /// Where the backup goes.
    pub destination: S3Destination,
}

/// How far a backup is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BackupPhase {
    /// It waits for the cluster.
    #[default]
    Pending,
    /// Its Job runs.
    Running,
    /// Data and manifest are in the store and were read back. Final.
    Complete,
    /// It did not come about; `message` says why. Final.
    Failed,
}

impl BackupPhase {
    /// Whether nothing will change any more.
    pub fn is_final(self) -> bool {
        matches!(self, BackupPhase::Complete | BackupPhase::Failed)
    }
}

/// What became of a backup. Written by the operator, from the Job's report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EtcdBackupStatus {
    /// How far it is.
    pub phase: BackupPhase,
    /// The revision of the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// Size of the data object, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    /// SHA-256 of the data object, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Key of the data object in the bucket; `<key>.manifest.json` is the manifest. Set before the Job starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// `s3://<bucket>/<key>`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// UID of the EtcdCluster that was backed up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_uid: Option<String>,
    /// When the Job was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the Job reported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// What happens or went wrong, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// A cron that makes `EtcdBackup`s.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "ferretcd.io",
    version = "v1alpha1",
    kind = "EtcdBackupSchedule",
    plural = "etcdbackupschedules",
    category = "all",
    namespaced,
    status = "EtcdBackupScheduleStatus",
    derive = "PartialEq",
    doc = "Takes backups of an EtcdCluster on a schedule and keeps the last of them.",
    validation = Rule::new("self.metadata.name.size() <= 40")
        .message("the name of an EtcdBackupSchedule has at most 40 characters: its backups are named after it"),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterRef.name"),
    printcolumn(name = "Schedule", type_ = "string", json_path = ".spec.schedule"),
    printcolumn(name = "Suspend", type_ = "boolean", json_path = ".spec.suspend"),
    printcolumn(name = "Last", type_ = "date", json_path = ".status.lastScheduleTime"),
    printcolumn(name = "Success", type_ = "date", json_path = ".status.lastSuccessfulTime"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct EtcdBackupScheduleSpec {
    /// The cluster, in the same namespace.
    pub cluster_ref: LocalRef,
    /// Five fields of cron, in UTC: minute, hour, day of month, month, day of week.
    #[x_kube(validation = Rule::new("self.matches('^(\\\\S+\\\\s+){4}\\\\S+$')")
        .message("schedule must have the five fields of cron (minute hour day month weekday), in UTC"))]
    #[schemars(length(min = 9, max = 128))]
    pub schedule: String,
    /// No new backups while true; retention goes on.
    #[serde(default)]
    pub suspend: bool,
    /// How many complete backups of this schedule are kept; older ones are removed from the store.
    #[serde(default = "default_keep_last")]
    #[schemars(range(min = 1, max = 1000))]
    pub keep_last: i32,
    /// Where the backups go.
    pub destination: S3Destination,
}

/// A week of daily backups.
fn default_keep_last() -> i32 {
    7
}

/// What a schedule did. Written by the operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EtcdBackupScheduleStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The last slot that was used or skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_schedule_time: Option<Time>,
    /// The last `EtcdBackup` of this schedule that is Complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_successful: Option<String>,
    /// When that one completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_successful_time: Option<Time>,
    /// The next slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_time: Option<Time>,
    /// The `EtcdBackup` that runs now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// What is wrong, and what to do; absent when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}
