//! Algorithm H, the schedule: which slot is due, and which old backups go. A slot gives its backup a name, so the same slot
//! never makes two, whoever asks and however often.

use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use croner::Cron;
use ferretcd_operator_api::cluster::MAX_NAME;
use ferretcd_operator_api::status::reason;
use ferretcd_operator_api::{BackupPhase, EtcdBackup, EtcdBackupSchedule, EtcdBackupScheduleStatus, names};

use crate::action::{Action, Kind, Notice, Target};
use crate::build::backup_job::{BackupRef, prune_job};
use crate::build::scheduled_backup::scheduled_backup;
use crate::observed::{JobState, Ownership, SeenJob};
use crate::validate::{Settings, Wrong, check_destination};

/// The longest time until the next look. A timer over weeks would be off by what the clock was set in between.
const LONGEST: Duration = Duration::from_secs(3600);
/// When a pass that waits for a Job or a backup looks again; their end wakes us earlier.
const WAIT: Duration = Duration::from_secs(30);

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

impl SeenBackup {
    fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.object.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }

    fn slot(&self) -> i64 {
        self.annotation(names::ANNOTATION_SLOT).and_then(|slot| slot.parse().ok()).unwrap_or_default()
    }

    fn phase(&self) -> BackupPhase {
        self.object.status.as_ref().map(|status| status.phase).unwrap_or_default()
    }

    fn deleting(&self) -> bool {
        self.object.metadata.deletion_timestamp.is_some()
    }
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
    observed: &ScheduleObserved,
    settings: &Settings,
    now: DateTime<Utc>,
) -> SchedulePlan {
    let uid = schedule.metadata.uid.clone().unwrap_or_default();
    let mut status = schedule.status.clone().unwrap_or_default();
    status.observed_generation = schedule.metadata.generation;

    let mut ours: Vec<&SeenBackup> = observed
        .backups
        .iter()
        .filter(|backup| backup.annotation(names::ANNOTATION_SCHEDULE_UID) == Some(uid.as_str()))
        .collect();
    ours.sort_by_key(|backup| backup.slot());
    let newest = ours.iter().rev().find(|backup| backup.phase() == BackupPhase::Complete);
    status.last_successful = newest.map(|backup| backup.name().to_owned()).or(status.last_successful);
    status.last_successful_time =
        newest.and_then(|backup| backup.object.status.as_ref()?.completed_at.clone()).or(status.last_successful_time);
    let active = ours.iter().find(|backup| !backup.phase().is_final() && !backup.deleting());
    status.active = active.map(|backup| backup.name().to_owned());
    status.message = None;

    let cron = match cron(schedule) {
        Ok(cron) => cron,
        Err(why) => {
            status.next_time = None;
            status.message = Some(why);
            return SchedulePlan { actions: Vec::new(), status, requeue: None };
        }
    };
    let next = cron.find_next_occurrence(&now, false).ok();
    status.next_time = next.filter(|_| !schedule.spec.suspend).map(crate::time::to_kube);

    let mut actions = Vec::new();
    let mut busy = false;
    if let Some(slot) = due(schedule, &cron, &status, now) {
        let slot_unix = slot.timestamp();
        let name = names::scheduled_backup(schedule.metadata.name.as_deref().unwrap_or_default(), slot_unix);
        let existing = observed.backups.iter().find(|backup| backup.name() == name);
        match (existing, active) {
            _ if schedule.spec.suspend => status.last_schedule_time = Some(crate::time::to_kube(slot)),
            // Made by a pass that could not write the status any more.
            (Some(existing), _) if existing.annotation(names::ANNOTATION_SCHEDULE_UID) == Some(uid.as_str()) => {
                status.last_schedule_time = Some(crate::time::to_kube(slot));
            }
            (Some(_), _) => {
                let message =
                    format!("EtcdBackup {name} exists and is not of this schedule; the slot {slot} is skipped");
                actions.push(Notice::warning(reason::BACKUP_SKIPPED, message));
                status.last_schedule_time = Some(crate::time::to_kube(slot));
            }
            (None, Some(active)) => {
                status.message = Some(format!("the slot {slot} waits for {} to end", active.name()));
                busy = true;
            }
            (None, None) => {
                actions.push(Action::Create(scheduled_backup(
                    schedule.metadata.name.as_deref().unwrap_or_default(),
                    schedule.metadata.namespace.as_deref().unwrap_or_default(),
                    &uid,
                    &schedule.spec,
                    slot_unix,
                )));
                actions.push(Notice::normal(
                    reason::BACKUP_STARTED,
                    format!("EtcdBackup {name} is made for the slot {}", slot.format("%Y-%m-%dT%H:%MZ")),
                ));
                status.last_schedule_time = Some(crate::time::to_kube(slot));
                status.active = Some(name);
                busy = true;
            }
        }
    }
    if actions.is_empty() {
        busy |= retention(schedule, &ours, settings, &mut actions, &mut status);
    }

    let until_next = next.and_then(|next| (next - now).to_std().ok()).unwrap_or(LONGEST).min(LONGEST);
    let requeue = if busy { until_next.min(WAIT) } else { until_next };
    SchedulePlan { actions, status, requeue: Some(requeue) }
}

/// The cron of a schedule.
///
/// # Errors
/// What is wrong with the schedule, and what would be right.
fn cron(schedule: &EtcdBackupSchedule) -> Result<Cron, String> {
    let text = schedule.spec.schedule.as_str();
    let fields = text.split_whitespace().count();
    if fields != 5 {
        return Err(format!(
            "spec.schedule: `{text}` has {fields} fields, five are needed: minute hour day month weekday"
        ));
    }
    if schedule.spec.keep_last < 1 {
        return Err(format!("spec.keepLast: is {}, must be at least 1", schedule.spec.keep_last));
    }
    if schedule.spec.cluster_ref.name.len() > MAX_NAME {
        return Err(format!("spec.clusterRef.name: no EtcdCluster has more than {MAX_NAME} characters in its name"));
    }
    let mut wrong = Wrong::default();
    check_destination("spec.destination", &schedule.spec.destination, &mut wrong);
    if let Some(first) = wrong.0.first() {
        return Err(format!("{}: {}", first.field, first.problem));
    }
    Cron::from_str(text).map_err(|cause| format!("spec.schedule: `{text}` is no cron expression: {cause}"))
}

/// The last slot that has come and was not used; earlier ones that were missed are not made up for.
fn due(
    schedule: &EtcdBackupSchedule,
    cron: &Cron,
    status: &EtcdBackupScheduleStatus,
    now: DateTime<Utc>,
) -> Option<DateTime<Utc>> {
    let since = status.last_schedule_time.as_ref().or(schedule.metadata.creation_timestamp.as_ref())?;
    let slot = cron.find_previous_occurrence(&now, true).ok()?;
    (slot > crate::time::from_kube(since)).then_some(slot)
}

/// Removes one backup that is too many: first from the store, by a Job that deletes the manifest before the data, then the
/// object. One at a time, so that a mistake in a spec can be stopped. Says whether one is under way.
fn retention(
    schedule: &EtcdBackupSchedule,
    ours: &[&SeenBackup],
    settings: &Settings,
    actions: &mut Vec<Action>,
    status: &mut EtcdBackupScheduleStatus,
) -> bool {
    let keep = usize::try_from(schedule.spec.keep_last).unwrap_or(usize::MAX);
    let ended: Vec<&&SeenBackup> =
        ours.iter().filter(|backup| backup.phase().is_final() && !backup.deleting()).collect();
    // While backups fail, old ones are all there is.
    if ended.last().is_none_or(|last| last.phase() == BackupPhase::Failed) {
        return false;
    }
    let complete: Vec<&&&SeenBackup> = ended.iter().filter(|backup| backup.phase() == BackupPhase::Complete).collect();
    let Some(oldest_kept) = complete.len().checked_sub(keep).and_then(|index| complete.get(index)) else {
        return false;
    };
    // Complete ones beyond the number, and failed ones of the same age.
    let Some(surplus) = ended.iter().find(|backup| backup.slot() < oldest_kept.slot()) else {
        return false;
    };
    let (name, backup_uid) = (surplus.name(), surplus.object.metadata.uid.clone().unwrap_or_default());
    let delete =
        Action::Delete { target: Target { kind: Kind::EtcdBackup, name: name.to_owned() }, uid: backup_uid.clone() };
    let Some(key) = surplus.object.status.as_ref().and_then(|status| status.key.clone()) else {
        // It failed before it had a place in the store.
        actions.push(delete);
        return true;
    };
    match &surplus.prune_job {
        None => {
            let reference = BackupRef {
                name,
                namespace: schedule.metadata.namespace.as_deref().unwrap_or_default(),
                uid: &backup_uid,
                cluster: &surplus.object.spec.cluster_ref.name,
                destination: &surplus.object.spec.destination,
                key: &key,
            };
            actions.push(Action::Create(prune_job(&reference, settings)));
            true
        }
        Some(job) => {
            if let Ownership::Foreign(whose) = &job.seen.owner {
                status.message = Some(format!("Job {} exists and belongs to {whose}; delete it", job.seen.name));
                return false;
            }
            match &job.state {
                JobState::Active => true,
                JobState::Succeeded => {
                    actions.push(delete);
                    actions.push(Notice::normal(reason::BACKUP_PRUNED, format!("{name} is removed: {keep} are kept")));
                    true
                }
                // Reported, not repeated: a store that forbids deletion would forbid it again.
                JobState::Failed(why) => {
                    let report = job.report.as_ref().and_then(|report| match report {
                        ferretcd_operator_api::AgentReport::Failed { message } => Some(message.as_str()),
                        _ => None,
                    });
                    status.message = Some(format!(
                        "{name} could not be removed from the store: {}; correct the cause and delete Job {} to try again",
                        report.unwrap_or(why),
                        job.seen.name
                    ));
                    false
                }
            }
        }
    }
}
