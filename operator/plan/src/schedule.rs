//! Algorithm H, the schedule: slots and retention.

use std::time::Duration;

use chrono::{DateTime, Utc};
use ferretcd_operator_api::{EtcdBackup, EtcdBackupSchedule, EtcdBackupScheduleStatus};

use crate::action::Action;
use crate::observed::SeenJob;
use crate::validate::Settings;

/// What one pass over an EtcdBackupSchedule sees.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScheduleObserved {
    /// All EtcdBackups of the namespace that carry `names::LABEL_SCHEDULE` with this schedule's name, and any whose name
    /// starts with `<schedule>-`.
    pub backups: Vec<SeenBackup>,
}

/// An EtcdBackup with the Job that removes it from the store.
#[derive(Clone, Debug, PartialEq)]
pub struct SeenBackup {
    /// The object.
    pub object: EtcdBackup,
    /// The Job `names::prune_job(<backup>)`, if it exists (owner: the EtcdBackup).
    pub prune_job: Option<SeenJob>,
}

/// What one pass over an EtcdBackupSchedule does.
#[derive(Clone, Debug, PartialEq)]
pub struct SchedulePlan {
    /// What to do, in order. If an action fails, `status` must not be written.
    pub actions: Vec<Action>,
    /// The status to write after the actions, if it differs from the stored one.
    pub status: EtcdBackupScheduleStatus,
    /// When to look again; `None`: only when something changes.
    pub requeue: Option<Duration>,
}

/// Decides one pass over an EtcdBackupSchedule that is not being deleted.
pub fn plan_schedule(
    schedule: &EtcdBackupSchedule,
    _observed: &ScheduleObserved,
    _settings: &Settings,
    _now: DateTime<Utc>,
) -> SchedulePlan {
    SchedulePlan { actions: Vec::new(), status: schedule.status.clone().unwrap_or_default(), requeue: None }
}
