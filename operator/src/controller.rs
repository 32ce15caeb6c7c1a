//! Which objects wake us, how many passes run at once, and what follows a pass that failed. The three controllers run until
//! they are told to stop.

use std::{
    collections::HashMap,
    fmt::Debug,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ferretcd_operator_api::{EtcdBackup, EtcdBackupSchedule, EtcdCluster, names};
use futures::StreamExt;
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    batch::v1::Job,
    core::v1::{PersistentVolumeClaim, Pod, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::ListParams,
    runtime::{
        Controller,
        controller::{Action, Config},
        reflector::ObjectRef,
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tracing::{Instrument, debug, info_span, warn};

use crate::{
    kube_error,
    metrics::Metrics,
    reconcile::{self, Context, ReconcileError, Requeue},
};

/// Passes of one kind that run at the same time. A pass waits for the network most of the time, and a cluster whose members
/// hang holds its place for a few seconds; 16 places keep the others moving with up to 15 such clusters.
const CONCURRENCY: u16 = 16;
/// How long a pass may take. All its calls have deadlines of 2 to 8 s, and there are few of them one after the other.
const PASS_DEADLINE: Duration = Duration::from_secs(60);
/// The pause after a pass that failed, doubled with each failure in a row, up to the second one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Checks that the API server serves our kinds and lets us list them.
///
/// # Errors
/// What is missing, and what to do about it.
pub async fn preflight(client: &Client, namespace: Option<&str>) -> Result<(), String> {
    probe::<EtcdCluster>(client, namespace).await?;
    probe::<EtcdBackup>(client, namespace).await?;
    probe::<EtcdBackupSchedule>(client, namespace).await
}

async fn probe<K: Watched>(client: &Client, namespace: Option<&str>) -> Result<(), String> {
    let listed = api::<K>(client, namespace).list(&ListParams::default().limit(1)).await;
    listed.map(drop).map_err(|error| {
        let plural = K::plural(&());
        let next = match kube_error::is_not_found(&error) {
            true => "install the definitions first (the chart does, or `ferretcd-operator crd | kubectl apply -f -`)",
            false => "check the address of the API server and the operator's role",
        };
        format!("cannot list {plural}: {}; {next}", kube_error::text(&error))
    })
}

/// Runs the controllers until `stop` resolves and the passes under way have ended.
pub async fn run(
    context: Context,
    metrics: Metrics,
    namespace: Option<&str>,
    stop: tokio::sync::watch::Receiver<bool>,
) {
    let client = context.client.clone();
    let children = watcher::Config::default().labels(names::LABEL_CLUSTER);
    let all = watcher::Config::default;

    let clusters = Controller::new(api::<EtcdCluster>(&client, namespace), all())
        .owns(api::<StatefulSet>(&client, namespace), children.clone())
        .owns(api::<Service>(&client, namespace), children.clone())
        .owns(api::<PodDisruptionBudget>(&client, namespace), children.clone())
        .owns(api::<Job>(&client, namespace), children.clone())
        // Volume claims have no owner, so that nothing but a decision deletes data; pods belong to their StatefulSet.
        .watches(api::<PersistentVolumeClaim>(&client, namespace), children.clone(), |claim| cluster_of(&claim))
        .watches(api::<Pod>(&client, namespace), children.clone(), |pod| cluster_of(&pod));
    let backups = Controller::new(api::<EtcdBackup>(&client, namespace), all())
        .owns(api::<Job>(&client, namespace), children.clone());
    let of_schedules = watcher::Config::default().labels(names::LABEL_SCHEDULE);
    let prunes = watcher::Config::default().labels(&format!("{}=prune", names::LABEL_AGENT));
    let schedules = Controller::new(api::<EtcdBackupSchedule>(&client, namespace), all())
        .watches(api::<EtcdBackup>(&client, namespace), of_schedules, |backup| labelled(&backup, names::LABEL_SCHEDULE))
        .watches(api::<Job>(&client, namespace), prunes, |job| schedule_of(&job));

    tokio::join!(
        passes(clusters, context.clone(), metrics.clone(), stop.clone(), async |context, namespace, name| {
            reconcile::cluster(&context, &namespace, &name).await
        }),
        passes(backups, context.clone(), metrics.clone(), stop.clone(), async |context, namespace, name| {
            reconcile::backup(&context, &namespace, &name).await
        }),
        passes(schedules, context, metrics, stop, async |context, namespace, name| {
            reconcile::schedule(&context, &namespace, &name).await
        }),
    );
}

/// A kind that a controller is about.
trait Watched:
    Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}
impl<K> Watched for K where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// All namespaces, or one.
fn api<K: Watched>(client: &Client, namespace: Option<&str>) -> Api<K> {
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// The cluster that an object belongs to by its label.
fn cluster_of<O: ResourceExt>(object: &O) -> Option<ObjectRef<EtcdCluster>> {
    labelled(object, names::LABEL_CLUSTER)
}

/// The resource that a label names.
fn labelled<O: ResourceExt, K: Resource<DynamicType = ()>>(object: &O, label: &str) -> Option<ObjectRef<K>> {
    let name = object.labels().get(label)?;
    Some(ObjectRef::new(name).within(&object.namespace()?))
}

/// The schedule whose backup a Job removes: the Job belongs to the backup, whose name is the schedule's and a slot
/// (`names::scheduled_backup`). A schedule that is not there is not woken, so a backup made by hand may have any name.
fn schedule_of(job: &Job) -> Option<ObjectRef<EtcdBackupSchedule>> {
    let backup = job.owner_references().iter().find(|owner| owner.kind == EtcdBackup::kind(&()))?;
    let (schedule, _) = backup.name.rsplit_once('-')?;
    Some(ObjectRef::new(schedule).within(&job.namespace()?))
}

/// Runs the passes of one controller.
async fn passes<K, P, F>(
    controller: Controller<K>,
    context: Context,
    metrics: Metrics,
    stop: tokio::sync::watch::Receiver<bool>,
    pass: P,
) where
    K: Watched,
    K::DynamicType: Eq + Hash + Clone + Debug + Unpin,
    P: Fn(Context, String, String) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Requeue, ReconcileError>> + Send + 'static,
{
    let kind = K::kind(&()).into_owned();
    let pauses = Arc::new(Pauses::default());
    let reconciler = {
        let (pauses, kind) = (pauses.clone(), kind.clone());
        move |object: Arc<K>, context: Arc<Context>| {
            let (pass, pauses, metrics, kind) = (pass.clone(), pauses.clone(), metrics.clone(), kind.clone());
            let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
            let span = info_span!("pass", kind, namespace, name, generation = object.meta().generation);
            async move {
                let begun = Instant::now();
                let key = format!("{namespace}/{name}");
                let result = match tokio::time::timeout(PASS_DEADLINE, pass((*context).clone(), namespace, name)).await
                {
                    Ok(result) => result,
                    Err(_) => Err(ReconcileError::TooLong(PASS_DEADLINE)),
                };
                metrics.pass(&kind, if result.is_ok() { "success" } else { "error" }, begun.elapsed());
                match &result {
                    Ok(requeue) => {
                        pauses.forget(&key);
                        debug!(?requeue, "passed");
                    }
                    Err(error) => warn!(%error, "failed"),
                }
                result.map(|requeue| requeue.map_or_else(Action::await_change, Action::requeue))
            }
            .instrument(span)
        }
    };
    let on_error = {
        let pauses = pauses.clone();
        move |object: Arc<K>, _: &ReconcileError, _: Arc<Context>| {
            let key = format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any());
            Action::requeue(pauses.next(key))
        }
    };
    controller
        .with_config(Config::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(stopped(stop))
        .run(reconciler, on_error, Arc::new(context))
        .for_each(async |result| match result {
            // Passes have been logged where they ended; what is left are faults of the watches, which kube repeats.
            Ok(_) | Err(kube::runtime::controller::Error::ReconcilerFailed(..)) => {}
            // An object that went before its pass came.
            Err(kube::runtime::controller::Error::ObjectNotFound(_)) => {}
            Err(error) => warn!(kind, error = crate::cause::chain(&error), "a watch has failed and is repeated"),
        })
        .await;
}

/// Resolves when the process shall stop.
pub async fn stopped(mut stop: tokio::sync::watch::Receiver<bool>) {
    // An error means that the sender is gone, and with it the process's wish to go on.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// How often each resource has failed in a row. Bounded by the number of resources that fail; a success removes the entry.
#[derive(Debug, Default)]
struct Pauses(Mutex<HashMap<String, u32>>);

impl Pauses {
    /// The pause before the next pass.
    fn next(&self, key: String) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(key).or_default();
        let pause = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(*count)).min(LONGEST_PAUSE);
        *count += 1;
        pause
    }

    fn forget(&self, key: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_end_with_a_success() {
        let pauses = Pauses::default();
        let seconds: Vec<u64> = (0..8).map(|_| pauses.next("ns/a".to_owned()).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(pauses.next("ns/b".to_owned()), FIRST_PAUSE);
        pauses.forget("ns/a");
        assert_eq!(pauses.next("ns/a".to_owned()), FIRST_PAUSE);
    }

    #[test]
    fn a_job_that_removes_a_backup_wakes_the_schedule_of_the_backup() {
        let mut job = Job::default();
        job.metadata.namespace = Some("ns".to_owned());
        assert_eq!(schedule_of(&job), None);
        job.metadata.owner_references = Some(vec![OwnerReference {
            kind: "EtcdBackup".to_owned(),
            name: names::scheduled_backup("every-hour", 1_800_000_000),
            ..OwnerReference::default()
        }]);
        assert_eq!(schedule_of(&job), Some(ObjectRef::new("every-hour").within("ns")));
    }

    #[test]
    fn a_pod_wakes_the_cluster_that_its_label_names() {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("ns".to_owned());
        assert_eq!(cluster_of(&pod), None);
        pod.metadata.labels = Some([(names::LABEL_CLUSTER.to_owned(), "demo".to_owned())].into());
        assert_eq!(cluster_of(&pod), Some(ObjectRef::new("demo").within("ns")));
    }
}
