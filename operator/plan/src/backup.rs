//! Algorithm H, one backup.

use std::time::Duration;

use chrono::{DateTime, Utc};
use ferretcd_operator_api::{EtcdBackup, EtcdBackupStatus, EtcdCluster};

use crate::action::Action;
use crate::observed::SeenJob;
use crate::validate::Settings;

/// What one pass over an EtcdBackup sees.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BackupObserved {
    /// The EtcdCluster that `clusterRef` names, if it exists.
    pub cluster: Option<EtcdCluster>,
    /// The Job `names::backup_job(<backup>)`, if it exists (owner: the EtcdBackup).
    pub job: Option<SeenJob>,
}

/// What one pass over an EtcdBackup does.
#[derive(Clone, Debug, PartialEq)]
pub struct BackupPlan {
    /// What to do, in order. If an action fails, `status` must not be written.
    pub actions: Vec<Action>,
    /// The status to write after the actions, if it differs from the stored one.
    pub status: EtcdBackupStatus,
    /// When to look again; `None`: only when something changes.
    pub requeue: Option<Duration>,
}

/// Decides one pass over an EtcdBackup that is not being deleted.
pub fn plan_backup(
    backup: &EtcdBackup,
    _observed: &BackupObserved,
    _settings: &Settings,
    _now: DateTime<Utc>,
) -> BackupPlan {
    BackupPlan { actions: Vec::new(), status: backup.status.clone().unwrap_or_default(), requeue: None }
}
