//! The operator's public vocabulary: the custom resources of `ferretcd.io/v1alpha1`, their status, and every name that is
//! derived from them. It holds no decision and talks to nothing.

pub mod agent;
pub mod backup;
pub mod cluster;
pub mod names;
pub mod status;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub use agent::{AgentReport, BackupManifest};
pub use backup::{
    BackupPhase, EtcdBackup, EtcdBackupSchedule, EtcdBackupScheduleSpec, EtcdBackupScheduleStatus, EtcdBackupSpec,
    EtcdBackupStatus, LocalRef, S3Destination,
};
pub use cluster::{
    Bootstrap, CompactionMode, DeletionPolicy, EtcdCluster, EtcdClusterSpec, Options, PullPolicy, Resources,
    RestoreFrom, RestoreSource, Storage,
};
pub use status::{
    BackoffStatus, EtcdClusterStatus, MemberRole, MemberStatus, OperationKind, OperationStatus, Phase, RestorePhase,
    RestoreStatus, SeedStatus,
};

/// The API group of all our kinds.
pub const GROUP: &str = "ferretcd.io";
/// The only version that is served so far.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of all our kinds.
pub const API_VERSION: &str = "ferretcd.io/v1alpha1";

/// The definitions of all kinds, in the order in which they are installed; `crds/` is written from them.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![EtcdCluster::crd(), EtcdBackup::crd(), EtcdBackupSchedule::crd()]
}
