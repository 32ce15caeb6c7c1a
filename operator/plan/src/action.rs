//! What a pass may do to the world: one value per side effect. `act` carries them out in order and stops at the first that
//! does not succeed; each is safe to repeat, and each that touches an existing object names the UID it was decided for.

use std::collections::BTreeMap;
use std::fmt;

use ferretcd_operator_api::{EtcdBackup, EtcdClusterStatus};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

/// One side effect.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Add our finalizer to the resource, or remove it, with the resourceVersion that was observed.
    SetFinalizer {
        /// Whether it is to be there.
        present: bool,
    },
    /// Replace the resource's status by this one, with the resourceVersion that was observed (PUT on `/status`). This is the
    /// ledger entry that precedes a side effect: on a conflict the pass ends, and whoever lost the race has done nothing.
    /// A plan with a `Record` has no side effect after it but events.
    Record(Box<EtcdClusterStatus>),
    /// Create an object. That it exists already is a conflict: the next pass will look at it.
    Create(Object),
    /// Server-side apply with our field manager, without force. `metadata.uid` is set, so that an object that was replaced
    /// in the meantime is refused by the API server.
    Apply(Object),
    /// Delete an object in the foreground with a UID precondition. That it is gone already is success.
    Delete {
        /// What.
        target: Target,
        /// The UID it was decided for.
        uid: String,
    },
    /// Merge annotations and labels into a volume claim with this UID.
    MarkClaim {
        /// Its name.
        name: String,
        /// The UID it was decided for.
        uid: String,
        /// Annotations to set.
        annotations: BTreeMap<String, String>,
        /// Labels to set.
        labels: BTreeMap<String, String>,
    },
    /// Set or remove the label `ferretcd.io/serving=true` of a pod with this UID. That the pod is gone is success.
    LabelServing {
        /// Its name.
        pod: String,
        /// The UID it was decided for.
        uid: String,
        /// Whether clients may be sent to it.
        serving: bool,
    },
    /// etcd MemberAdd with `isLearner`.
    AddLearner {
        /// The only peer URL of the new member.
        peer_url: String,
    },
    /// etcd MemberPromote.
    Promote {
        /// The learner.
        id: u64,
    },
    /// etcd MemberRemove, after reading the member list again: the member must still have this ID *and* this peer URL.
    /// That it is gone already is success.
    RemoveMember {
        /// The member.
        id: u64,
        /// The peer URL it had when this was decided.
        peer_url: String,
    },
    /// etcd MoveLeader, sent to the leader.
    MoveLeader {
        /// The serial of the member that leads, whose endpoint is called.
        leader_serial: i64,
        /// The member that shall lead.
        to: u64,
    },
    /// A Kubernetes event about the resource. Its failure is logged and changes nothing.
    Notify(Notice),
}

/// One line for logs, events and tests.
impl fmt::Display for Action {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::SetFinalizer { present: true } => write!(out, "add the finalizer"),
            Action::SetFinalizer { present: false } => write!(out, "remove the finalizer"),
            Action::Record(ledger) => {
                let members: Vec<String> = ledger
                    .members
                    .iter()
                    .map(|member| {
                        let id = if member.id.is_some() { "" } else { "?" };
                        let started = if member.started { "" } else { "…" };
                        let serving = if member.serving { "*" } else { "" };
                        format!("{}{id}{started}{serving}", member.serial)
                    })
                    .collect();
                let operation =
                    ledger.operation.as_ref().map(|operation| format!("{:?} {}", operation.kind, operation.member));
                write!(out, "record [{}] {}", members.join(" "), operation.unwrap_or_else(|| "idle".to_owned()))
            }
            Action::Create(object) => write!(out, "create {}", object.target()),
            Action::Apply(object) => write!(out, "apply {}", object.target()),
            Action::Delete { target, uid: _ } => write!(out, "delete {target}"),
            Action::MarkClaim { name, uid: _, annotations, labels } => {
                let keys: Vec<&str> = annotations.keys().chain(labels.keys()).map(String::as_str).collect();
                write!(out, "mark {name} with {}", keys.join(", "))
            }
            Action::LabelServing { pod, uid: _, serving: true } => write!(out, "label {pod} as serving"),
            Action::LabelServing { pod, uid: _, serving: false } => write!(out, "label {pod} as not serving"),
            Action::AddLearner { peer_url } => write!(out, "add learner {peer_url}"),
            Action::Promote { id } => write!(out, "promote {id:x}"),
            Action::RemoveMember { id, peer_url } => write!(out, "remove member {id:x} {peer_url}"),
            Action::MoveLeader { leader_serial, to } => {
                write!(out, "move leader from serial {leader_serial} to {to:x}")
            }
            Action::Notify(Notice { warning: _, reason, message }) => write!(out, "notify {reason}: {message}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?} {}", self.kind, self.name)
    }
}

/// An object that we make.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// Headless or client Service.
    Service(Box<Service>),
    /// A member's volume claim.
    PersistentVolumeClaim(Box<PersistentVolumeClaim>),
    /// A member's StatefulSet.
    StatefulSet(Box<StatefulSet>),
    /// The cluster's PodDisruptionBudget.
    PodDisruptionBudget(Box<PodDisruptionBudget>),
    /// A Job of the agent.
    Job(Box<Job>),
    /// A backup made by a schedule.
    EtcdBackup(Box<EtcdBackup>),
}

impl Object {
    /// Its kind and name.
    pub fn target(&self) -> Target {
        let (kind, metadata) = match self {
            Object::Service(object) => (Kind::Service, &object.metadata),
            Object::PersistentVolumeClaim(object) => (Kind::PersistentVolumeClaim, &object.metadata),
            Object::StatefulSet(object) => (Kind::StatefulSet, &object.metadata),
            Object::PodDisruptionBudget(object) => (Kind::PodDisruptionBudget, &object.metadata),
            Object::Job(object) => (Kind::Job, &object.metadata),
            Object::EtcdBackup(object) => (Kind::EtcdBackup, &object.metadata),
        };
        Target { kind, name: metadata.name.clone().unwrap_or_default() }
    }
}

/// The kinds of objects that we make or delete; each needs a rule in the chart's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// core/v1
    Service,
    /// core/v1
    PersistentVolumeClaim,
    /// apps/v1
    StatefulSet,
    /// policy/v1
    PodDisruptionBudget,
    /// batch/v1
    Job,
    /// ferretcd.io/v1alpha1
    EtcdBackup,
}

/// An object in the resource's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

/// An event about the resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// `Warning` rather than `Normal`.
    pub warning: bool,
    /// One of `ferretcd_operator_api::status::reason`.
    pub reason: &'static str,
    /// What happened, and what to do about it.
    pub message: String,
}

impl Notice {
    /// A `Normal` event.
    pub fn normal(reason: &'static str, message: impl Into<String>) -> Action {
        Action::Notify(Notice { warning: false, reason, message: message.into() })
    }

    /// A `Warning` event.
    pub fn warning(reason: &'static str, message: impl Into<String>) -> Action {
        Action::Notify(Notice { warning: true, reason, message: message.into() })
    }
}

/// What `act` reports: how far it came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// How many actions succeeded, from the front of the list.
    pub done: usize,
    /// Why the next one did not.
    pub fault: Option<Fault>,
}

/// Why an action did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// etcd said "unhealthy cluster", "too many learners", "not ready" or the like: look again later. Not an error.
    Wait(String),
    /// The world changed since it was observed (409, UID or resourceVersion precondition): look again at once.
    Conflict(String),
    /// It failed: what was attempted, and the cause.
    Failed(String),
}
