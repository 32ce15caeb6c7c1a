//! Everything one pass may look at, as plain values: Kubernetes objects reduced to what decisions need, and what etcd's
//! members answered. `observe` in the binary fills it from live reads.

use std::collections::BTreeMap;

use ferretcd_operator_api::{AgentReport, EtcdBackup, EtcdClusterStatus, names};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::validate::Identity;

/// What one pass over an EtcdCluster sees.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// The status as it is stored now (read live, with the resourceVersion that `Record` will use).
    pub recorded: EtcdClusterStatus,
    /// Our finalizer is on the resource.
    pub finalizer: bool,
    /// The headless Service.
    pub headless: Option<Seen>,
    /// The client Service.
    pub client: Option<Seen>,
    /// The PodDisruptionBudget.
    pub budget: Option<Seen>,
    /// What exists for each serial: of every member in the ledger, of the next serial, and whatever else is ours.
    pub members: BTreeMap<i64, SeenMember>,
    /// The restore Job.
    pub restore_job: Option<SeenJob>,
    /// The EtcdBackup that `bootstrap.restore.backupRef` names, if it exists.
    pub restore_backup: Option<EtcdBackup>,
    /// What etcd's members answered.
    pub etcd: EtcdView,
}

/// The objects of the resource's namespace, as listed live. Objects that are not ours may be among them and should be where
/// their name is one we want: that is how a conflict of names is seen.
#[derive(Clone, Debug, Default)]
pub struct SeenObjects {
    /// Services.
    pub services: Vec<Service>,
    /// Volume claims.
    pub claims: Vec<PersistentVolumeClaim>,
    /// StatefulSets.
    pub stateful_sets: Vec<StatefulSet>,
    /// Pods: those of members and of Jobs.
    pub pods: Vec<Pod>,
    /// PodDisruptionBudgets.
    pub budgets: Vec<PodDisruptionBudget>,
    /// Jobs.
    pub jobs: Vec<Job>,
}

impl Observed {
    /// Sorts the objects of a namespace into what this cluster's pass looks at.
    pub fn collect(
        identity: &Identity,
        recorded: EtcdClusterStatus,
        finalizer: bool,
        objects: &SeenObjects,
        restore_backup: Option<EtcdBackup>,
        etcd: EtcdView,
    ) -> Observed {
        let name = identity.name.as_str();
        let owned = |metadata: &ObjectMeta| Seen::owned(metadata, &identity.uid);
        let service = |wanted: String| {
            objects
                .services
                .iter()
                .map(|object| &object.metadata)
                .find(|metadata| is_named(metadata, &wanted))
                .map(owned)
        };

        let mut serials: Vec<i64> = recorded.members.iter().map(|member| member.serial).collect();
        serials.push(recorded.next_member_serial);
        let ours = |metadata: &ObjectMeta, owner: Ownership| {
            let serial = metadata.labels.as_ref()?.get(names::LABEL_SERIAL)?.parse::<i64>().ok()?;
            (owner == Ownership::Ours).then_some(serial)
        };
        serials.extend(
            objects.claims.iter().filter_map(|claim| ours(&claim.metadata, SeenClaim::of(claim, &identity.uid).owner)),
        );
        serials.extend(objects.stateful_sets.iter().filter_map(|set| ours(&set.metadata, owned(&set.metadata).owner)));
        serials.sort_unstable();
        serials.dedup();

        let members = serials
            .into_iter()
            .map(|serial| {
                let set_name = names::member(name, serial);
                let claim_name = names::volume_claim(name, serial);
                let pod_name = names::pod(name, serial);
                let seen = SeenMember {
                    claim: objects
                        .claims
                        .iter()
                        .find(|claim| is_named(&claim.metadata, &claim_name))
                        .map(|claim| SeenClaim::of(claim, &identity.uid)),
                    stateful_set: objects
                        .stateful_sets
                        .iter()
                        .find(|set| is_named(&set.metadata, &set_name))
                        .map(|set| SeenStatefulSet::of(set, &identity.uid)),
                    pod: objects.pods.iter().find(|pod| is_named(&pod.metadata, &pod_name)).map(SeenPod::of),
                };
                (serial, seen)
            })
            .collect();

        let job_name = names::restore_job(name);
        Observed {
            recorded,
            finalizer,
            headless: service(names::headless_service(name)),
            client: service(names::client_service(name)),
            budget: objects
                .budgets
                .iter()
                .map(|budget| &budget.metadata)
                .find(|metadata| is_named(metadata, &names::disruption_budget(name)))
                .map(owned),
            members,
            restore_job: objects
                .jobs
                .iter()
                .find(|job| is_named(&job.metadata, &job_name))
                .map(|job| SeenJob::of(job, &objects.pods, &identity.uid)),
            restore_backup,
            etcd,
        }
    }

    /// What exists for a serial.
    pub fn member(&self, serial: i64) -> SeenMember {
        self.members.get(&serial).cloned().unwrap_or_default()
    }
}

fn is_named(metadata: &ObjectMeta, name: &str) -> bool {
    metadata.name.as_deref() == Some(name)
}

/// Whose an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// It carries the UID of the resource of this pass.
    Ours,
    /// It does not; in words, whose it is.
    Foreign(String),
}

/// Any object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Whose it is.
    pub owner: Ownership,
    /// Our hash of what was applied last; empty if we did not.
    pub hash: String,
    /// It has a deletion timestamp.
    pub deleting: bool,
}

impl Seen {
    /// Reduces an object that is owned through `ownerReferences`.
    pub fn owned(metadata: &ObjectMeta, owner_uid: &str) -> Seen {
        let owners = metadata.owner_references.as_deref().unwrap_or_default();
        let owner = if owners.iter().any(|owner| owner.uid == owner_uid) {
            Ownership::Ours
        } else if let Some(other) = owners.first() {
            Ownership::Foreign(format!("{} {} (uid {})", other.kind, other.name, other.uid))
        } else {
            Ownership::Foreign("nobody: it has no owner reference".to_owned())
        };
        Seen {
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            owner,
            hash: annotation(metadata, names::ANNOTATION_HASH).unwrap_or_default(),
            deleting: metadata.deletion_timestamp.is_some(),
        }
    }
}

fn annotation(metadata: &ObjectMeta, key: &str) -> Option<String> {
    metadata.annotations.as_ref()?.get(key).cloned()
}

/// What exists for one serial.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenMember {
    /// Its volume claim.
    pub claim: Option<SeenClaim>,
    /// Its StatefulSet.
    pub stateful_set: Option<SeenStatefulSet>,
    /// Its pod.
    pub pod: Option<SeenPod>,
}

/// A member's volume claim. It has no owner reference, so that the garbage collector never deletes data; its annotations say
/// whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenClaim {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Whose it is, by the annotation `cluster-uid`.
    pub owner: Ownership,
    /// The annotation `serial`.
    pub serial: Option<i64>,
    /// The annotation `member-id`.
    pub member_id: Option<String>,
    /// The annotation `cluster-id`.
    pub cluster_id: Option<String>,
    /// It is labelled as retained.
    pub retained: bool,
    /// `status.phase`: `Pending`, `Bound` or `Lost`.
    pub phase: String,
    /// It has a deletion timestamp.
    pub deleting: bool,
}

impl SeenClaim {
    /// Reduces a volume claim.
    pub fn of(claim: &PersistentVolumeClaim, cluster_uid: &str) -> SeenClaim {
        let metadata = &claim.metadata;
        let owner = match annotation(metadata, names::ANNOTATION_CLUSTER_UID) {
            Some(uid) if uid == cluster_uid => Ownership::Ours,
            Some(uid) => Ownership::Foreign(format!("the EtcdCluster with uid {uid}")),
            None => Ownership::Foreign(format!("nobody: it has no annotation {}", names::ANNOTATION_CLUSTER_UID)),
        };
        let retained = metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(names::LABEL_RETAINED));
        SeenClaim {
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            owner,
            serial: annotation(metadata, names::ANNOTATION_SERIAL).and_then(|serial| serial.parse().ok()),
            member_id: annotation(metadata, names::ANNOTATION_MEMBER_ID),
            cluster_id: annotation(metadata, names::ANNOTATION_CLUSTER_ID),
            retained,
            phase: claim.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default(),
            deleting: metadata.deletion_timestamp.is_some(),
        }
    }
}

/// A member's StatefulSet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenStatefulSet {
    /// What is known of any object.
    pub seen: Seen,
    /// `spec.replicas`: somebody may have scaled it.
    pub replicas: i32,
}

impl SeenStatefulSet {
    /// Reduces a StatefulSet.
    pub fn of(set: &StatefulSet, cluster_uid: &str) -> SeenStatefulSet {
        SeenStatefulSet { seen: Seen::owned(&set.metadata, cluster_uid), replicas: set.spec.replicas.unwrap_or(1) }
    }
}

/// A member's pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenPod {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// It carries the label that the client Service selects.
    pub serving: bool,
    /// Kubernetes' condition `Ready`.
    pub ready: bool,
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// Why its container does not run, for example `ImagePullBackOff: …`.
    pub problem: Option<String>,
}

impl SeenPod {
    /// Reduces a pod.
    pub fn of(pod: &Pod) -> SeenPod {
        let metadata = &pod.metadata;
        let status = pod.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let holds =
            |wanted: &str| conditions.iter().any(|condition| condition.type_ == wanted && condition.status == "True");
        let unschedulable = conditions
            .iter()
            .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
            .map(|condition| with_detail(condition.reason.as_deref(), condition.message.as_deref()));
        let containers = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
        let stopped = containers.iter().find_map(|container| {
            let state = container.state.as_ref()?;
            let last = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
            if let Some(waiting) = &state.waiting {
                let detail = last.and_then(|last| last.message.as_deref()).or(waiting.message.as_deref());
                return match waiting.reason.as_deref() {
                    Some("ContainerCreating" | "PodInitializing") => None,
                    reason => Some(with_detail(reason, detail)),
                };
            }
            let ended = state.terminated.as_ref()?;
            Some(format!(
                "exit code {}: {}",
                ended.exit_code,
                with_detail(ended.reason.as_deref(), ended.message.as_deref())
            ))
        });
        SeenPod {
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            serving: metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(names::LABEL_SERVING))
                .is_some_and(|value| value == "true"),
            ready: holds("Ready"),
            deleting: metadata.deletion_timestamp.is_some(),
            problem: stopped.or(unschedulable),
        }
    }
}

fn with_detail(reason: Option<&str>, detail: Option<&str>) -> String {
    match (reason, detail) {
        (Some(reason), Some(detail)) => format!("{reason}: {detail}"),
        (Some(text), None) | (None, Some(text)) => text.to_owned(),
        (None, None) => "no reason given".to_owned(),
    }
}

/// A Job of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenJob {
    /// What is known of any object.
    pub seen: Seen,
    /// How far it is.
    pub state: JobState,
    /// The report of its last pod that left one.
    pub report: Option<AgentReport>,
}

/// How far a Job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Neither condition is set.
    Active,
    /// Condition `Complete`.
    Succeeded,
    /// Condition `Failed`, with its reason and message.
    Failed(String),
}

impl SeenJob {
    /// Reduces a Job and the pods that it made.
    pub fn of(job: &Job, pods: &[Pod], owner_uid: &str) -> SeenJob {
        let seen = Seen::owned(&job.metadata, owner_uid);
        let conditions = job.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let find =
            |wanted: &str| conditions.iter().find(|condition| condition.type_ == wanted && condition.status == "True");
        let state = if find("Complete").is_some() {
            JobState::Succeeded
        } else if let Some(failed) = find("Failed") {
            JobState::Failed(with_detail(failed.reason.as_deref(), failed.message.as_deref()))
        } else {
            JobState::Active
        };
        let mut reports: Vec<_> = pods
            .iter()
            .filter(|pod| {
                let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
                owners.iter().any(|owner| owner.uid == seen.uid)
            })
            .filter_map(|pod| {
                let containers = pod.status.as_ref()?.container_statuses.as_deref()?;
                let ended = containers.first()?.state.as_ref()?.terminated.as_ref()?;
                let report = AgentReport::parse(ended.message.as_deref()?)?;
                Some((ended.finished_at.clone(), report))
            })
            .collect();
        reports.sort_by(|left, right| left.0.cmp(&right.0));
        SeenJob { seen, state, report: reports.pop().map(|(_, report)| report) }
    }
}

/// What etcd's members answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdView {
    /// A linearizable MemberList. `None` means: no quorum, as far as we can see. Prefer to ask a member that no operation is
    /// about; `answered_by` says whom it was asked through.
    pub list: Option<MemberList>,
    /// What each member with a StatefulSet answered, by serial. A member that was not asked is absent.
    pub probes: BTreeMap<i64, Probe>,
}

/// The members of an etcd cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberList {
    /// The cluster ID in the response's header.
    pub cluster_id: u64,
    /// Serial of the member that was asked.
    pub answered_by: i64,
    /// The members.
    pub members: Vec<ListedMember>,
}

/// A member as etcd lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedMember {
    /// Its ID.
    pub id: u64,
    /// Its name; empty until it has started.
    pub name: String,
    /// Its peer URLs.
    pub peer_urls: Vec<String>,
    /// It has no vote.
    pub learner: bool,
}

/// What one member answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Nothing; why.
    Unreachable(String),
    /// Its status.
    Answered(Box<MemberHealth>),
}

/// The status of one member (Maintenance/Status, AlarmList, and a linearizable Range through it).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberHealth {
    /// Its ID, from the response's header.
    pub member_id: u64,
    /// Its cluster ID, from the response's header.
    pub cluster_id: u64,
    /// The ID of the leader it follows; 0 for none.
    pub leader: u64,
    /// It has no vote.
    pub learner: bool,
    /// A linearizable read through it succeeded. A learner refuses such reads: false there is no fault.
    pub ready: bool,
    /// Version of the server.
    pub version: String,
    /// Size of the database in bytes.
    pub db_size: i64,
    /// Committed raft index, as it knows.
    pub raft_index: u64,
    /// Applied raft index.
    pub raft_applied_index: u64,
    /// Raft term.
    pub raft_term: u64,
    /// Alarms that it lists, of any member.
    pub alarms: Vec<Alarm>,
}

/// An active alarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// The member that raised it.
    pub member_id: u64,
    /// `NOSPACE` or `CORRUPT`.
    pub kind: String,
}
