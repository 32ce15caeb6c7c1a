//! The corridor: observe -> validate -> plan -> act -> status. One function per kind; none of them waits for anything but the
//! answers to its own calls.

use std::time::Duration;

use chrono::Utc;
use ferretcd_operator_api::{EtcdBackup, EtcdBackupSchedule, EtcdCluster};
use ferretcd_operator_plan::{Fault, Identity, Settings, delete, plan, plan_backup, plan_schedule, status, validate};
use kube::{Api, Client, Resource, ResourceExt, runtime::events::Recorder};

use crate::{
    act::{Actor, ClusterHandle, Writable, write_status},
    kube_error,
    observe::{self, ObserveError},
};

/// When a pass is repeated that found the world changed since it was observed. Not at once: the change that it lost against
/// may be one of a series.
const AFTER_CONFLICT: Duration = Duration::from_millis(500);
/// When a pass is repeated that etcd asked to wait: the time in which a member gets ready or a leader is found.
const AFTER_WAIT: Duration = Duration::from_secs(2);

/// What a pass needs of the process.
#[derive(Clone)]
pub struct Context {
    /// The API server.
    pub client: Client,
    /// Where events go.
    pub recorder: Recorder,
    /// What the operator was started with.
    pub settings: Settings,
}

/// When to look again; `None`: only when something changes.
pub type Requeue = Option<Duration>;

/// Why a pass did not come to its end. It is repeated after a pause.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The resource or what belongs to it could not be read.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// The resource itself could not be read.
    #[error("cannot read the resource: {}", kube_error::text(.0))]
    Read(kube::Error),
    /// An action or the status failed.
    #[error("{0}")]
    Act(String),
    /// The pass took too long.
    #[error("the pass did not end within {} s", .0.as_secs())]
    TooLong(Duration),
}

/// One pass over a cluster.
///
/// # Errors
/// The API server does not answer or refuses, or a member refuses for a reason that waiting will not mend.
pub async fn cluster(context: &Context, namespace: &str, name: &str) -> Result<Requeue, ReconcileError> {
    let Some(object) = live::<EtcdCluster>(context, namespace, name).await? else { return Ok(None) };
    // A resource without name, namespace or UID does not come from an API server.
    let identity = Identity::of(&object).map_err(|rejections| ReconcileError::Act(rejections.to_string()))?;

    let observed = observe::cluster(&context.client, &identity, &object).await?;
    let now = Utc::now();
    let plan = if identity.deleting {
        delete(&identity, object.spec.deletion_policy, &observed)
    } else {
        match validate(&object, &context.settings) {
            Ok(cluster) => plan(&cluster, &observed, now),
            Err(rejections) => rejections.plan(),
        }
    };

    let replicas = object.spec.replicas;
    let mut actor = actor(context, &object);
    actor.cluster = Some(ClusterHandle::new(object, &observed.etcd));
    let outcome = actor.act(&plan.actions).await;

    let recorded = actor.cluster.as_ref().and_then(|handle| handle.object.status.clone()).unwrap_or_default();
    let gone = actor.cluster.as_ref().is_some_and(|handle| identity.deleting && handle.object.finalizers().is_empty());
    let status = status(&identity, replicas, &observed, &plan, &outcome, now);
    let written = if gone || status == recorded { Ok(()) } else { actor.record(&status).await };
    // The first fault is the one that says why; a conflict on the status is only its echo.
    requeue(outcome.fault.or(written.err()), Some(plan.requeue))
}

/// One pass over a backup.
///
/// # Errors
/// As [`cluster`].
pub async fn backup(context: &Context, namespace: &str, name: &str) -> Result<Requeue, ReconcileError> {
    let Some(mut object) = live::<EtcdBackup>(context, namespace, name).await? else { return Ok(None) };
    if object.meta().deletion_timestamp.is_some() {
        return Ok(None);
    }
    let observed = observe::backup(&context.client, namespace, &object).await?;
    let plan = plan_backup(&object, &observed, &context.settings, Utc::now());
    let mut fault = actor(context, &object).act(&plan.actions).await.fault;
    if fault.is_none() && object.status.as_ref() != Some(&plan.status) {
        object.status = Some(plan.status);
        fault = write_status(&context.client, &object).await.err();
    }
    requeue(fault, plan.requeue)
}

/// One pass over a schedule.
///
/// # Errors
/// As [`cluster`].
pub async fn schedule(context: &Context, namespace: &str, name: &str) -> Result<Requeue, ReconcileError> {
    let Some(mut object) = live::<EtcdBackupSchedule>(context, namespace, name).await? else { return Ok(None) };
    if object.meta().deletion_timestamp.is_some() {
        return Ok(None);
    }
    let observed = observe::schedule(&context.client, namespace, &object).await?;
    let plan = plan_schedule(&object, &observed, &context.settings, Utc::now());
    let mut fault = actor(context, &object).act(&plan.actions).await.fault;
    if fault.is_none() && object.status.as_ref() != Some(&plan.status) {
        object.status = Some(plan.status);
        fault = write_status(&context.client, &object).await.err();
    }
    requeue(fault, plan.requeue)
}

/// The resource as it is stored now; what woke us may be older.
async fn live<K: Writable>(context: &Context, namespace: &str, name: &str) -> Result<Option<K>, ReconcileError> {
    let api = Api::<K>::namespaced(context.client.clone(), namespace);
    api.get_opt(name).await.map_err(ReconcileError::Read)
}

fn actor<'a, K: Writable>(context: &'a Context, object: &K) -> Actor<'a> {
    Actor { client: &context.client, recorder: &context.recorder, about: object.object_ref(&()), cluster: None }
}

fn requeue(fault: Option<Fault>, planned: Requeue) -> Result<Requeue, ReconcileError> {
    match fault {
        None => Ok(planned),
        Some(Fault::Conflict(_)) => Ok(Some(AFTER_CONFLICT)),
        Some(Fault::Wait(_)) => Ok(Some(planned.map_or(AFTER_WAIT, |planned| planned.max(AFTER_WAIT)))),
        Some(Fault::Failed(text)) => Err(ReconcileError::Act(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_decides_when_to_look_again() {
        let planned = Some(Duration::ZERO);
        assert_eq!(requeue(None, planned).unwrap(), planned);
        assert_eq!(requeue(Some(Fault::Conflict(String::new())), None).unwrap(), Some(AFTER_CONFLICT));
        assert_eq!(requeue(Some(Fault::Wait(String::new())), planned).unwrap(), Some(AFTER_WAIT));
        assert!(requeue(Some(Fault::Failed("why".to_owned())), planned).unwrap_err().to_string().contains("why"));
    }
}
