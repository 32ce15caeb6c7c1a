//! The restore at bootstrap: the seed stands alone and serves nobody, a Job streams the backup into it through the server's
//! own API and reads the result back, and only then does the cluster serve and grow.

use ferretcd_operator_api::status::reason;
use ferretcd_operator_api::{
    AgentReport, BackupPhase, EtcdBackup, RestoreFrom, RestorePhase, RestoreStatus, S3Destination, names,
};

use crate::action::{Action, Notice};
use crate::build::restore_job::restore_job;
use crate::observed::JobState;
use crate::plan::{Note, Pass, Step};

/// The step of a restore that is due; `None` if none is.
pub(crate) fn proceed(pass: &Pass<'_>, notes: &mut Vec<Note>) -> Option<Step> {
    let ledger = pass.ledger();
    if ledger.restore.as_ref()?.phase == RestorePhase::Complete {
        return None;
    }
    let from = pass.cluster.restore.as_ref()?;
    let seed = ledger.member(ledger.seed.as_ref()?.serial)?;
    let job_name = names::restore_job(&pass.cluster.identity.name);
    let failed = |notes: &mut Vec<Note>, why: &str| {
        let message = format!(
            "{why}; nothing is served. Correct the cause and delete Job {job_name} to try again, or delete this EtcdCluster"
        );
        notes.push(Note::new(reason::RESTORE_FAILED, message));
        Some(Step { name: Some("RestoreFailed".to_owned()), ..Step::rest() })
    };

    let Some(job) = &pass.observed.restore_job else {
        let (store, key) = match source(from, pass.observed.restore_backup.as_ref()) {
            Ok(source) => source,
            Err(note) => {
                notes.push(note);
                return Some(Step::rest());
            }
        };
        if !pass.healthy(seed) {
            return Some(Step::wait(
                "WaitForSeed",
                reason::RESTORING,
                format!("{} is not ready for the restore", seed.name),
            ));
        }
        let cluster_id = ledger.cluster_id.as_deref().unwrap_or_default();
        let job = restore_job(pass.cluster, seed.serial, cluster_id, &store, &key);
        let notice =
            Notice::normal(reason::RESTORING, format!("restoring s3://{}/{key} into {}", store.bucket, seed.name));
        return Some(Step::act("StartRestore", vec![Action::Create(job), notice]));
    };
    if job.seen.deleting {
        return Some(Step::wait("WaitForJob", reason::RESTORING, format!("Job {job_name} is being deleted")));
    }
    match (&job.state, &job.report) {
        (JobState::Active, _) => {
            Some(Step::wait("Restore", reason::RESTORING, format!("Job {job_name} restores into {}", seed.name)))
        }
        (JobState::Succeeded, Some(AgentReport::Restored { key, revision })) => {
            let mut next = ledger.clone();
            next.operation = None;
            next.restore = Some(RestoreStatus {
                phase: RestorePhase::Complete,
                source: Some(key.clone()),
                revision: Some(*revision),
                completed_at: Some(crate::time::to_kube(pass.now)),
            });
            if let Some(seed) = next.member_mut(seed.serial) {
                seed.serving = true;
            }
            let notice =
                Notice::normal(reason::OPERATION_FINISHED, format!("{key} is restored, at revision {revision}"));
            Some(Step::record("RecordRestore", next, Some(notice)))
        }
        (JobState::Failed(_), Some(AgentReport::Failed { message })) => {
            failed(notes, &format!("the restore failed: {message}"))
        }
        (JobState::Failed(why), _) => failed(notes, &format!("the restore failed: {why}")),
        (JobState::Succeeded, _) => failed(notes, "the restore Job left no report, so its result is not verified"),
    }
}

/// The object to restore: its store and key.
///
/// # Errors
/// Why the named backup cannot be restored (yet).
pub(crate) fn source(from: &RestoreFrom, backup: Option<&EtcdBackup>) -> Result<(S3Destination, String), Note> {
    let not_ready = |message: String| Note::new(reason::RESTORE_SOURCE_NOT_READY, message);
    if let Some(source) = &from.source {
        return Ok((source.store.clone(), source.key.clone()));
    }
    let name = from.backup_ref.as_ref().map(|backup| backup.name.as_str()).unwrap_or_default();
    let Some(backup) = backup else {
        return Err(not_ready(format!("EtcdBackup {name} does not exist in this namespace; create it, or use source")));
    };
    let status = backup.status.clone().unwrap_or_default();
    match (status.phase, status.key) {
        (BackupPhase::Complete, Some(key)) => Ok((backup.spec.destination.clone(), key)),
        (phase, _) => Err(not_ready(format!("EtcdBackup {name} is {phase:?}, not Complete"))),
    }
}
