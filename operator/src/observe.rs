//! The only reader of the cluster: live lists and gets, never a cache, and the answers of etcd's members. Whatever the answers
//! are, they are data; only an API server that does not answer ends a pass here.

use std::{collections::BTreeMap, fmt::Debug};

use ferretcd_operator_api::{EtcdBackup, EtcdBackupSchedule, EtcdCluster, names};
use ferretcd_operator_plan::{
    Alarm, BackupObserved, EtcdView, Identity, ListedMember, MemberHealth, MemberList, Observed, Ownership, Probe,
    ScheduleObserved, Seen, SeenBackup, SeenJob, SeenObjects,
};
use ferretcd_proto::etcdserverpb::{AlarmType, MemberListResponse, StatusResponse};
use futures::future::join_all;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        batch::v1::Job,
        core::v1::{PersistentVolumeClaim, Pod, Service},
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{Api, Client, Resource, ResourceExt, api::ListParams};
use serde::de::DeserializeOwned;

use crate::{kube_error, members::Member};

/// How many members are asked for the member list, one after the other. A second one is asked because the first may have
/// gone since it answered its probe; a third would cost more seconds than the next pass.
const LIST_ATTEMPTS: usize = 2;
/// Label that Kubernetes puts on the pods of a Job.
const LABEL_JOB: &str = "batch.kubernetes.io/job-name";

/// The API server did not answer a read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what}: {}", kube_error::text(.source))]
pub struct ObserveError {
    /// What was to be read.
    what: String,
    /// Why that failed.
    source: kube::Error,
}

/// Everything that one pass over a cluster may look at. `object` was read live at the beginning of the pass.
///
/// # Errors
/// The API server does not answer; a member that does not is part of the result.
pub async fn cluster(client: &Client, identity: &Identity, object: &EtcdCluster) -> Result<Observed, ObserveError> {
    let reader = Reader { client, namespace: &identity.namespace };
    let recorded = object.status.clone().unwrap_or_default();
    let finalizer = object.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER);
    let objects = reader.objects(&identity.name, recorded.next_member_serial).await?;
    let restore_backup = match restore_ref(object) {
        Some(name) => reader.get::<EtcdBackup>(name).await?,
        None => None,
    };
    let suspect = recorded.operation.as_ref().map(|operation| operation.member.as_str());
    let etcd = etcd(identity, &objects.stateful_sets, suspect).await;
    Ok(Observed::collect(identity, recorded, finalizer, &objects, restore_backup, etcd))
}

/// Everything that one pass over a backup may look at.
///
/// # Errors
/// The API server does not answer.
pub async fn backup(client: &Client, namespace: &str, object: &EtcdBackup) -> Result<BackupObserved, ObserveError> {
    let reader = Reader { client, namespace };
    let uid = object.uid().unwrap_or_default();
    let (cluster, job) = tokio::try_join!(
        reader.get::<EtcdCluster>(&object.spec.cluster_ref.name),
        reader.job(names::backup_job(&object.name_any()), uid)
    )?;
    Ok(BackupObserved { cluster, job })
}

/// Everything that one pass over a schedule may look at.
///
/// # Errors
/// The API server does not answer.
pub async fn schedule(
    client: &Client,
    namespace: &str,
    object: &EtcdBackupSchedule,
) -> Result<ScheduleObserved, ObserveError> {
    let reader = Reader { client, namespace };
    let name = object.name_any();
    let prefix = format!("{name}-");
    let mut backups = Vec::new();
    for object in reader.list::<EtcdBackup>(None).await? {
        let ours = object.labels().get(names::LABEL_SCHEDULE) == Some(&name);
        if ours || object.name_any().starts_with(&prefix) {
            let prune_job = reader.job(names::prune_job(&object.name_any()), object.uid().unwrap_or_default()).await?;
            backups.push(SeenBackup { object, prune_job });
        }
    }
    Ok(ScheduleObserved { backups })
}

fn restore_ref(object: &EtcdCluster) -> Option<&str> {
    let restore = &object.spec.bootstrap.as_ref()?.restore;
    restore.backup_ref.as_ref().map(|reference| reference.name.as_str())
}

/// Live reads in one namespace.
struct Reader<'a> {
    client: &'a Client,
    namespace: &'a str,
}

/// What we read.
trait Readable: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug {}
impl<K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug> Readable for K {}

impl Reader<'_> {
    /// The objects with the cluster's label, and those with a name that we want, whoever they belong to.
    async fn objects(&self, cluster: &str, next_serial: i64) -> Result<SeenObjects, ObserveError> {
        let label = format!("{}={cluster}", names::LABEL_CLUSTER);
        let label = Some(label.as_str());
        let (services, claims, stateful_sets, pods, budgets, jobs) = tokio::try_join!(
            self.with::<Service>(label, vec![names::headless_service(cluster), names::client_service(cluster)]),
            self.with::<PersistentVolumeClaim>(label, vec![names::volume_claim(cluster, next_serial)]),
            self.with::<StatefulSet>(label, vec![names::member(cluster, next_serial)]),
            self.list::<Pod>(label),
            self.with::<PodDisruptionBudget>(label, vec![names::disruption_budget(cluster)]),
            self.with::<Job>(label, vec![names::restore_job(cluster)]),
        )?;
        Ok(SeenObjects { services, claims, stateful_sets, pods, budgets, jobs })
    }

    /// The objects with a label, and those with one of these names that lack it.
    async fn with<K: Readable>(&self, label: Option<&str>, wanted: Vec<String>) -> Result<Vec<K>, ObserveError> {
        let mut objects = self.list::<K>(label).await?;
        for name in wanted {
            if !objects.iter().any(|object| object.meta().name.as_deref() == Some(&name)) {
                objects.extend(self.get::<K>(&name).await?);
            }
        }
        Ok(objects)
    }

    async fn list<K: Readable>(&self, label: Option<&str>) -> Result<Vec<K>, ObserveError> {
        let mut filter = ListParams::default();
        if let Some(label) = label {
            filter = filter.labels(label);
        }
        let list = Api::<K>::namespaced(self.client.clone(), self.namespace).list(&filter).await;
        let what = || format!("the list of {} in {}", K::plural(&()), self.namespace);
        list.map(|list| list.items).map_err(|source| ObserveError { what: what(), source })
    }

    async fn get<K: Readable>(&self, name: &str) -> Result<Option<K>, ObserveError> {
        let found = Api::<K>::namespaced(self.client.clone(), self.namespace).get_opt(name).await;
        let what = || format!("{} {}/{name}", K::kind(&()), self.namespace);
        found.map_err(|source| ObserveError { what: what(), source })
    }

    /// A Job with the reports of its pods.
    async fn job(&self, name: String, owner_uid: String) -> Result<Option<SeenJob>, ObserveError> {
        let Some(job) = self.get::<Job>(&name).await? else { return Ok(None) };
        let pods = self.list::<Pod>(Some(&format!("{LABEL_JOB}={name}"))).await?;
        Ok(Some(SeenJob::of(&job, &pods, &owner_uid)))
    }
}

/// Algorithm N: asks every member that has a StatefulSet, all at the same time. `suspect` is the member that an operation is
/// about; it is the last to be asked for the membership.
async fn etcd(identity: &Identity, stateful_sets: &[StatefulSet], suspect: Option<&str>) -> EtcdView {
    let serials: Vec<i64> = stateful_sets
        .iter()
        .filter(|set| Seen::owned(&set.metadata, &identity.uid).owner == Ownership::Ours)
        .filter_map(|set| set.labels().get(names::LABEL_SERIAL)?.parse().ok())
        .collect();
    let probes = join_all(serials.into_iter().map(async |serial| {
        let probe = match Member::new(&names::client_url(&identity.name, &identity.namespace, serial)) {
            Ok(member) => probe(&member).await,
            Err(error) => Probe::Unreachable(error.to_string()),
        };
        (serial, probe)
    }));
    let mut probes: BTreeMap<i64, Probe> = probes.await.into_iter().collect();

    let mut list = None;
    for serial in whom_to_ask(identity, &probes, suspect) {
        let Ok(member) = Member::new(&names::client_url(&identity.name, &identity.namespace, serial)) else { continue };
        // Each AlarmList goes through the raft log: one per pass is enough, since every member lists the alarms of all.
        let (members, alarms) = tokio::join!(member.list(), member.alarms());
        if let (Some(Probe::Answered(health)), Ok(alarms)) = (probes.get_mut(&serial), alarms) {
            let kind = |alarm: i32| AlarmType::try_from(alarm).map_or("UNKNOWN", |alarm| alarm.as_str_name());
            let alarms = alarms.alarms.iter().filter(|alarm| alarm.alarm != AlarmType::None as i32);
            health.alarms =
                alarms.map(|alarm| Alarm { member_id: alarm.member_id, kind: kind(alarm.alarm).to_owned() }).collect();
        }
        if let Ok(members) = members {
            list = Some(member_list(serial, members));
            break;
        }
    }
    EtcdView { list, probes }
}

/// Members that have just served a linearizable read, the suspect last, others by serial.
fn whom_to_ask(identity: &Identity, probes: &BTreeMap<i64, Probe>, suspect: Option<&str>) -> Vec<i64> {
    let mut serials: Vec<i64> = probes
        .iter()
        .filter(|(_, probe)| matches!(probe, Probe::Answered(health) if health.ready))
        .map(|(serial, _)| *serial)
        .collect();
    serials.sort_by_key(|serial| suspect == Some(names::member(&identity.name, *serial).as_str()));
    serials.truncate(LIST_ATTEMPTS);
    serials
}

async fn probe(member: &Member) -> Probe {
    let (status, read) = tokio::join!(member.status(), member.read(false));
    match status {
        Ok(status) => Probe::Answered(Box::new(health(status, read.is_ok()))),
        Err(error) => Probe::Unreachable(error.to_string()),
    }
}

fn health(status: StatusResponse, ready: bool) -> MemberHealth {
    let header = status.header.unwrap_or_default();
    MemberHealth {
        member_id: header.member_id,
        cluster_id: header.cluster_id,
        leader: status.leader,
        learner: status.is_learner,
        ready,
        version: status.version,
        db_size: status.db_size,
        raft_index: status.raft_index,
        raft_applied_index: status.raft_applied_index,
        raft_term: status.raft_term,
        alarms: Vec::new(),
    }
}

fn member_list(answered_by: i64, answer: MemberListResponse) -> MemberList {
    MemberList {
        cluster_id: answer.header.unwrap_or_default().cluster_id,
        answered_by,
        members: answer
            .members
            .into_iter()
            .map(|member| ListedMember {
                id: member.id,
                name: member.name,
                peer_urls: member.peer_ur_ls,
                learner: member.is_learner,
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use ferretcd_proto::etcdserverpb::{self, ResponseHeader};

    use super::*;

    fn identity() -> Identity {
        Identity {
            name: "demo".to_owned(),
            namespace: "ns".to_owned(),
            uid: "u".to_owned(),
            generation: 1,
            deleting: false,
        }
    }

    fn answered(ready: bool) -> Probe {
        Probe::Answered(Box::new(MemberHealth { ready, ..MemberHealth::default() }))
    }

    #[test]
    fn the_membership_is_asked_of_members_that_serve_and_of_the_suspect_last() {
        let probes = BTreeMap::from([
            (0, answered(true)),
            (1, Probe::Unreachable("gone".to_owned())),
            (2, answered(true)),
            (3, answered(false)),
        ]);
        assert_eq!(whom_to_ask(&identity(), &probes, None), [0, 2]);
        assert_eq!(whom_to_ask(&identity(), &probes, Some("demo-0")), [2, 0]);
        assert_eq!(whom_to_ask(&identity(), &BTreeMap::new(), None), [0_i64; 0]);
    }

    #[test]
    fn answers_of_etcd_become_plain_values() {
        let header = Some(ResponseHeader { cluster_id: 7, member_id: 9, revision: 5, raft_term: 2 });
        let status = StatusResponse {
            header,
            version: "3.6.0".to_owned(),
            leader: 9,
            raft_index: 20,
            raft_applied_index: 19,
            raft_term: 2,
            db_size: 4096,
            is_learner: true,
            ..StatusResponse::default()
        };
        let seen = health(status, true);
        assert_eq!((seen.member_id, seen.cluster_id, seen.leader), (9, 7, 9));
        assert_eq!((seen.raft_index, seen.raft_applied_index, seen.raft_term), (20, 19, 2));
        assert!(seen.learner && seen.ready && seen.db_size == 4096 && seen.version == "3.6.0");

        let member = etcdserverpb::Member {
            id: 9,
            name: "demo-0".to_owned(),
            peer_ur_ls: vec!["http://p:2380".to_owned()],
            is_learner: true,
            ..etcdserverpb::Member::default()
        };
        let list = member_list(4, MemberListResponse { header, members: vec![member] });
        assert_eq!((list.cluster_id, list.answered_by), (7, 4));
        let [listed] = &list.members[..] else { panic!("{list:?}") };
        assert_eq!((listed.id, listed.name.as_str(), listed.learner), (9, "demo-0", true));
        assert_eq!(listed.peer_urls, ["http://p:2380"]);
    }
}
