//! Algorithm H, one backup: wait for a cluster that serves, start the Job, take its report.

use std::time::Duration;

use chrono::{DateTime, Utc};
use ferretcd_operator_api::status::{condition, reason};
use ferretcd_operator_api::{AgentReport, BackupPhase, EtcdBackup, EtcdBackupStatus, EtcdCluster, MemberRole, names};

use crate::action::{Action, Notice};
use crate::build::backup_job::{BackupRef, backup_job};
use crate::observed::{JobState, Ownership, SeenJob};
use crate::validate::{Settings, Wrong, check_destination};

/// When a backup that waits for its cluster looks again.
const WAIT: Duration = Duration::from_secs(15);
/// When a running Job is looked at again; its end wakes us earlier.
const RUNNING: Duration = Duration::from_secs(30);

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
    observed: &BackupObserved,
    settings: &Settings,
    now: DateTime<Utc>,
) -> BackupPlan {
    let mut status = backup.status.clone().unwrap_or_default();
    if status.phase.is_final() {
        return BackupPlan { actions: Vec::new(), status, requeue: None };
    }
    let finish = |mut status: EtcdBackupStatus, phase: BackupPhase, reason: &'static str, message: String| {
        status.phase = phase;
        status.completed_at = Some(crate::time::to_kube(now));
        status.message = (phase == BackupPhase::Failed).then(|| message.clone());
        let notice = if phase == BackupPhase::Failed {
            Notice::warning(reason, message)
        } else {
            Notice::normal(reason, message)
        };
        BackupPlan { actions: vec![notice], status, requeue: None }
    };

    if let Some(job) = &observed.job {
        if let Ownership::Foreign(whose) = &job.seen.owner {
            let message =
                format!("Job {} exists and belongs to {whose}; delete it or name the backup otherwise", job.seen.name);
            return finish(status, BackupPhase::Failed, reason::NAME_CONFLICT, message);
        }
        return match (&job.state, &job.report) {
            (JobState::Active, _) => {
                status.phase = BackupPhase::Running;
                status.started_at.get_or_insert_with(|| crate::time::to_kube(now));
                status.message = Some(format!("Job {} runs", job.seen.name));
                BackupPlan { actions: Vec::new(), status, requeue: Some(RUNNING) }
            }
            (JobState::Succeeded, Some(AgentReport::BackedUp { key, revision, size, sha256 })) => {
                let location = format!("s3://{}/{key}", backup.spec.destination.bucket);
                status.revision = Some(*revision);
                status.size = Some(*size);
                status.sha256 = Some(sha256.clone());
                status.key = Some(key.clone());
                status.location = Some(location.clone());
                let message = format!("revision {revision}, {size} bytes, at {location}");
                finish(status, BackupPhase::Complete, reason::BACKUP_COMPLETE, message)
            }
            (JobState::Failed(_), Some(AgentReport::Failed { message })) => {
                finish(status, BackupPhase::Failed, reason::BACKUP_FAILED, message.clone())
            }
            (JobState::Failed(why), _) => {
                let message = format!("Job {} failed: {why}; see the events and logs of its pods", job.seen.name);
                finish(status, BackupPhase::Failed, reason::BACKUP_FAILED, message)
            }
            (JobState::Succeeded, _) => {
                let message =
                    format!("Job {} left no report, so nothing shows that the backup is in the store", job.seen.name);
                finish(status, BackupPhase::Failed, reason::BACKUP_FAILED, message)
            }
        };
    }

    if status.phase == BackupPhase::Running {
        let message = "its Job was deleted before it reported; create another EtcdBackup".to_owned();
        return finish(status, BackupPhase::Failed, reason::BACKUP_FAILED, message);
    }
    let mut wrong = Wrong::default();
    check_destination("spec.destination", &backup.spec.destination, &mut wrong);
    if let Some(first) = wrong.0.first() {
        let message = format!("{}: {}", first.field, first.problem);
        return finish(status, BackupPhase::Failed, reason::REJECTED, message);
    }
    match source(backup, observed.cluster.as_ref()) {
        Err(why) => {
            status.phase = BackupPhase::Pending;
            status.message = Some(why);
            BackupPlan { actions: Vec::new(), status, requeue: Some(WAIT) }
        }
        Ok(Source { cluster_uid, cluster_id, endpoints }) => {
            let name = backup.metadata.name.clone().unwrap_or_default();
            let uid = backup.metadata.uid.clone().unwrap_or_default();
            let cluster = backup.spec.cluster_ref.name.as_str();
            let key = names::backup_key(&backup.spec.destination, cluster, &cluster_uid, &cluster_id, &name, &uid);
            let reference = BackupRef {
                name: &name,
                namespace: backup.metadata.namespace.as_deref().unwrap_or_default(),
                uid: &uid,
                cluster,
                destination: &backup.spec.destination,
                key: &key,
            };
            let job = backup_job(&reference, &cluster_uid, &cluster_id, &endpoints, settings);
            let notice = Notice::normal(reason::BACKUP_STARTED, format!("backing {cluster} up to {key}"));
            status.phase = BackupPhase::Running;
            status.started_at = Some(crate::time::to_kube(now));
            status.cluster_uid = Some(cluster_uid);
            status.message = Some(format!("Job {} is made", names::backup_job(&name)));
            status.key = Some(key);
            BackupPlan { actions: vec![Action::Create(job), notice], status, requeue: Some(RUNNING) }
        }
    }
}

/// Where a backup is taken from.
struct Source {
    cluster_uid: String,
    cluster_id: String,
    /// Client URLs: followers first, since the leader has enough to do.
    endpoints: Vec<String>,
}

/// The source of a backup, from the cluster's status.
///
/// # Errors
/// What the backup waits for.
fn source(backup: &EtcdBackup, cluster: Option<&EtcdCluster>) -> Result<Source, String> {
    let name = backup.spec.cluster_ref.name.as_str();
    let Some(cluster) = cluster else {
        return Err(format!("EtcdCluster {name} does not exist in this namespace; the backup waits for it"));
    };
    if cluster.metadata.deletion_timestamp.is_some() {
        return Err(format!("EtcdCluster {name} is being deleted"));
    }
    let (Some(uid), Some(status)) = (&cluster.metadata.uid, &cluster.status) else {
        return Err(format!("EtcdCluster {name} has no status yet"));
    };
    let quorum =
        status.conditions.iter().any(|found| found.type_ == condition::QUORUM_HEALTHY && found.status == "True");
    let Some(cluster_id) = status.cluster_id.as_ref().filter(|_| quorum) else {
        return Err(format!("EtcdCluster {name} has no quorum yet"));
    };
    let namespace = backup.metadata.namespace.as_deref().unwrap_or_default();
    let mut members: Vec<_> = status.members.iter().filter(|member| member.serving && member.ready).collect();
    members.sort_by_key(|member| (member.role == MemberRole::Leader, member.serial));
    if members.is_empty() {
        return Err(format!("no member of EtcdCluster {name} serves yet"));
    }
    let endpoints = members.iter().map(|member| names::client_url(name, namespace, member.serial)).collect();
    Ok(Source { cluster_uid: uid.clone(), cluster_id: cluster_id.clone(), endpoints })
}
