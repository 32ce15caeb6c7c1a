//! `EtcdCluster`: what a user asks for. Only `replicas` and `deletionPolicy` may change after creation; every other field is
//! refused by a transition rule, because this version cannot roll it out to running members and must not ignore it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backup::{LocalRef, S3Destination};
use crate::status::EtcdClusterStatus;

/// The longest name of a cluster. A member is `<name>-<serial>`, its pod `<name>-<serial>-0`, a restore Job
/// `<name>-restore`; a Kubernetes label value, which holds each of them, has at most 63 characters.
pub const MAX_NAME: usize = 40;

/// How many members a cluster may have. Even sizes only tolerate what the next smaller odd size does, and each further
/// member slows every write down.
pub const SIZES: [i32; 4] = [1, 3, 5, 7];

/// The desired state of one cluster of ferretcd members.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "ferretcd.io",
    version = "v1alpha1",
    kind = "EtcdCluster",
    plural = "etcdclusters",
    shortname = "etcd",
    category = "all",
    namespaced,
    status = "EtcdClusterStatus",
    derive = "PartialEq",
    doc = "A cluster of ferretcd members: etcd's v3 API on per-member StatefulSets.",
    validation = Rule::new("self.metadata.name.size() <= 40")
        .message("the name of an EtcdCluster has at most 40 characters: names of members, pods and Jobs are made from it"),
    validation = Rule::new("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("the name of an EtcdCluster is a DNS label that starts with a letter: its Services are named after it"),
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.readyMembers"),
    printcolumn(name = "Leader", type_ = "string", json_path = ".status.leader"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Cluster-ID", type_ = "string", json_path = ".status.clusterId", priority = 1),
    printcolumn(name = "Operation", type_ = "string", json_path = ".status.operation.step", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.image) && has(self.version))")
        .message("set image or version, not both: version is the tag of the operator's own server image"),
    validation = Rule::new("self.storage == oldSelf.storage")
        .message("storage is immutable in this version of the operator: volumes are not resized yet; restore a backup into a new cluster"),
    validation = Rule::new("has(self.image) == has(oldSelf.image) && (!has(self.image) || self.image == oldSelf.image)")
        .message("image is immutable in this version of the operator: it cannot be rolled out to running members yet"),
    validation = Rule::new("has(self.version) == has(oldSelf.version) && (!has(self.version) || self.version == oldSelf.version)")
        .message("version is immutable in this version of the operator: it cannot be rolled out to running members yet"),
    validation = Rule::new("has(self.imagePullPolicy) == has(oldSelf.imagePullPolicy) && (!has(self.imagePullPolicy) || self.imagePullPolicy == oldSelf.imagePullPolicy)")
        .message("imagePullPolicy is immutable in this version of the operator: it cannot be rolled out to running members yet"),
    validation = Rule::new("has(self.resources) == has(oldSelf.resources) && (!has(self.resources) || self.resources == oldSelf.resources)")
        .message("resources are immutable in this version of the operator: they cannot be rolled out to running members yet"),
    validation = Rule::new("has(self.options) == has(oldSelf.options) && (!has(self.options) || self.options == oldSelf.options)")
        .message("options are immutable in this version of the operator: they cannot be rolled out to running members yet"),
    validation = Rule::new("has(self.bootstrap) == has(oldSelf.bootstrap) && (!has(self.bootstrap) || self.bootstrap == oldSelf.bootstrap)")
        .message("bootstrap is read once, when the cluster is created, and is immutable: restore into a new cluster instead")
)]
pub struct EtcdClusterSpec {
    /// How many voting members the cluster has: 1, 3, 5 or 7. A change is carried out one member at a time.
    #[serde(default = "default_replicas")]
    #[x_kube(validation = Rule::new("self in [1, 3, 5, 7]")
        .message("replicas must be 1, 3, 5 or 7: an even number tolerates no more failures than the next smaller odd one"))]
    pub replicas: i32,

    /// The volume of each member.
    pub storage: Storage,

    /// The tag of the operator's server image, for example `0.1.0`. Absent: the operator's own default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"))]
    pub version: Option<String>,

    /// A complete image reference in place of `version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,

    /// When the kubelet pulls the image. Absent: Kubernetes' own rule for the image's tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<PullPolicy>,

    /// CPU and memory of each member's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,

    /// What becomes of a member's volume when the member is removed or the cluster is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,

    /// Settings of the server. A closed list: nothing here can change identity, membership, data directory or listeners.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<Options>,

    /// Where the first data comes from. Absent: the cluster starts empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<Bootstrap>,
}

/// Three members tolerate the loss of one, which is why people run etcd.
fn default_replicas() -> i32 {
    3
}

/// The volume of one member.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// Size of the volume as a Kubernetes quantity, for example `8Gi`.
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[1-9][0-9]*(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$"))]
    pub size: String,
    /// Name of the StorageClass. Absent: the default class of the Kubernetes cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

/// When the kubelet pulls an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// Before each start.
    Always,
    /// When the node does not have it.
    IfNotPresent,
    /// Never: it was loaded onto the node.
    Never,
}

impl PullPolicy {
    /// The word that Kubernetes uses.
    pub fn as_str(self) -> &'static str {
        match self {
            PullPolicy::Always => "Always",
            PullPolicy::IfNotPresent => "IfNotPresent",
            PullPolicy::Never => "Never",
        }
    }
}

/// CPU and memory of a container, as in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// What the scheduler sets aside, for example `{cpu: 500m, memory: 512Mi}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 8))]
    pub requests: Option<BTreeMap<String, IntOrString>>,
    /// What the container may not exceed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 8))]
    pub limits: Option<BTreeMap<String, IntOrString>>,
}

/// What becomes of volumes when their member goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// They stay, labelled `ferretcd.io/retained=true`, until a human deletes them. The default: data is not lost by a typo.
    #[default]
    Retain,
    /// They are deleted after their pod is gone.
    Delete,
}

/// Settings of the server, with etcd's meaning. Absent fields leave the server's default in force.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.autoCompactionMode) || has(self.autoCompactionRetention)")
        .message("autoCompactionMode needs autoCompactionRetention: without it nothing would be compacted"),
    validation = Rule::new("!has(self.electionTimeoutMs) || self.electionTimeoutMs >= 5 * (has(self.heartbeatIntervalMs) ? self.heartbeatIntervalMs : 100)")
        .message("electionTimeoutMs must be at least 5 times heartbeatIntervalMs (100 if absent), as etcd demands"),
    validation = Rule::new("!has(self.heartbeatIntervalMs) || has(self.electionTimeoutMs) || self.heartbeatIntervalMs <= 200")
        .message("heartbeatIntervalMs above 200 needs electionTimeoutMs: the default of 1000 would be less than 5 heartbeats")
)]
pub struct Options {
    /// `--quota-backend-bytes`: size of the database, in bytes, at which writes are refused and the NOSPACE alarm is raised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub quota_backend_bytes: Option<i64>,
    /// `--auto-compaction-mode`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_compaction_mode: Option<CompactionMode>,
    /// `--auto-compaction-retention`: a duration such as `1h` for `periodic`, a number of revisions for `revision`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[0-9]+(\.[0-9]+)?(h|m|s)?([0-9]+(m|s))?$"))]
    pub auto_compaction_retention: Option<String>,
    /// `--snapshot-count`: log entries between two snapshots of the raft log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub snapshot_count: Option<i64>,
    /// `--heartbeat-interval`, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub heartbeat_interval_ms: Option<i64>,
    /// `--election-timeout`, in milliseconds; etcd's upper bound is 50 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 50000))]
    pub election_timeout_ms: Option<i64>,
}

/// What `--auto-compaction-retention` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CompactionMode {
    /// Time.
    Periodic,
    /// Revisions.
    Revision,
}

impl CompactionMode {
    /// The word that the server's flag takes.
    pub fn as_str(self) -> &'static str {
        match self {
            CompactionMode::Periodic => "periodic",
            CompactionMode::Revision => "revision",
        }
    }
}

/// Where the first data of a new cluster comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bootstrap {
    /// Restore a backup before the cluster serves and grows.
    pub restore: RestoreFrom,
}

/// Which backup is restored: exactly one of the two fields.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.backupRef) != has(self.source)")
    .message("set exactly one of bootstrap.restore.backupRef and bootstrap.restore.source"))]
pub struct RestoreFrom {
    /// An `EtcdBackup` in the same namespace that is Complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_ref: Option<LocalRef>,
    /// An object in a store, for a backup whose `EtcdBackup` is not here (another cluster, a disaster).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<RestoreSource>,
}

/// A backup in an object store.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreSource {
    /// The store; its `prefix` is not used here, `key` is complete.
    pub store: S3Destination,
    /// Key of the data object, as in `EtcdBackup.status.key`; its manifest is `<key>.manifest.json`.
    #[schemars(length(min = 1, max = 900))]
    pub key: String,
}
