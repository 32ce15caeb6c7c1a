//! One pass over an EtcdCluster: the list of steps, top to bottom. The first step that has something to do ends the pass, so
//! that each pass does one thing, and at most one that touches the quorum.

use std::time::Duration;

use chrono::{DateTime, Utc};
use ferretcd_operator_api::status::reason;
use ferretcd_operator_api::{EtcdClusterStatus, MemberStatus, OperationKind, OperationStatus, names};

use crate::action::{Action, Kind, Notice, Object, Target};
use crate::build::{self, Difference, stateful_set::Intent};
use crate::observed::{ListedMember, MemberHealth, MemberList, Observed, Ownership, Probe, Seen};
use crate::validate::Cluster;
use crate::{bootstrap, restore, scale};

/// When a quiet cluster is looked at again. Every look asks each member for its status once, and a status in Kubernetes
/// that is a minute old would be too old.
pub const QUIET: Duration = Duration::from_secs(30);
/// When a cluster in change is looked at again. Most steps wait for a pod or for raft, which take seconds.
pub const BUSY: Duration = Duration::from_secs(2);
/// When a pass follows another at once, because the ledger is written and the step can be taken.
pub const AT_ONCE: Duration = Duration::ZERO;

/// What one pass does, and what its status shall say.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What to do, in order.
    pub actions: Vec<Action>,
    /// When to look again if nothing wakes us earlier.
    pub requeue: Duration,
    /// The step that the operation is at or waits in.
    pub step: Option<String>,
    /// What the pass wants to do but must wait for; `None` if it wants nothing.
    pub waiting: Option<Note>,
    /// What needs attention.
    pub notes: Vec<Note>,
}

/// A reason (one of `ferretcd_operator_api::status::reason`) with a message that names the next action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The stable word.
    pub reason: &'static str,
    /// The sentence.
    pub message: String,
}

impl Note {
    pub(crate) fn new(reason: &'static str, message: impl Into<String>) -> Note {
        Note { reason, message: message.into() }
    }
}

impl Plan {
    /// A pass that does nothing.
    pub fn idle(requeue: Duration) -> Plan {
        Plan { actions: Vec::new(), requeue, step: None, waiting: None, notes: Vec::new() }
    }
}

/// Decides one pass over a valid cluster that is not being deleted.
pub fn plan(cluster: &Cluster, observed: &Observed, now: DateTime<Utc>) -> Plan {
    let pass = Pass { cluster, observed, now };
    let mut notes = Vec::new();
    let step = pass.first_step(&mut notes);
    let Step { actions, requeue, name, waiting } = step;
    Plan { actions, requeue, step: name, waiting, notes }
}

/// What a step of a pass comes to.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) actions: Vec<Action>,
    pub(crate) requeue: Duration,
    pub(crate) name: Option<String>,
    pub(crate) waiting: Option<Note>,
}

impl Step {
    /// Do this, and look again soon.
    pub(crate) fn act(name: &str, actions: Vec<Action>) -> Step {
        Step { actions, requeue: BUSY, name: Some(name.to_owned()), waiting: None }
    }

    /// Write the ledger, tell about it, and go on at once.
    pub(crate) fn record(name: &str, ledger: EtcdClusterStatus, notice: Option<Action>) -> Step {
        let mut actions = vec![Action::Record(Box::new(ledger))];
        actions.extend(notice);
        Step { actions, requeue: AT_ONCE, name: Some(name.to_owned()), waiting: None }
    }

    /// Wait for something, and look again soon.
    pub(crate) fn wait(name: &str, reason: &'static str, message: impl Into<String>) -> Step {
        Step {
            actions: Vec::new(),
            requeue: BUSY,
            name: Some(name.to_owned()),
            waiting: Some(Note::new(reason, message)),
        }
    }

    /// Nothing to do until somebody acts or time passes.
    pub(crate) fn rest() -> Step {
        Step { requeue: QUIET, ..Step::default() }
    }
}

/// The arguments of a pass, with the questions that its steps ask of them.
pub(crate) struct Pass<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) observed: &'a Observed,
    pub(crate) now: DateTime<Utc>,
}

impl Pass<'_> {
    fn first_step(&self, notes: &mut Vec<Note>) -> Step {
        if !self.observed.finalizer {
            return Step {
                requeue: AT_ONCE,
                ..Step::act("AddFinalizer", vec![Action::SetFinalizer { present: true }])
            };
        }
        if let Some(conflict) = self.conflict() {
            notes.push(conflict);
            return Step::rest();
        }
        if let Some(step) = self.services() {
            return step;
        }
        let ledger = self.ledger();
        if ledger.seed.is_none() {
            return bootstrap::begin(self, notes);
        }
        if let Some(step) = self.members(notes) {
            return step;
        }
        if ledger.cluster_id.is_none() {
            return bootstrap::form(self, notes);
        }
        // From here on, nothing is decided without a linearizable answer from our own cluster.
        let Some(list) = self.list(notes) else {
            return Step { requeue: BUSY, ..Step::rest() };
        };
        if let Some(step) = self.annotations() {
            return step;
        }
        if let Some(step) = self.budget(list) {
            return step;
        }
        if let Some(step) = restore::proceed(self, notes) {
            return step;
        }
        scale::proceed(self, list, notes)
    }

    /// The ledger as it is stored.
    pub(crate) fn ledger(&self) -> &EtcdClusterStatus {
        &self.observed.recorded
    }

    /// An object that has a name that we need, and is not ours.
    fn conflict(&self) -> Option<Note> {
        let Observed { headless, client, budget, restore_job, .. } = self.observed;
        let whole = [(Kind::Service, headless), (Kind::Service, client), (Kind::PodDisruptionBudget, budget)];
        let whole = whole.into_iter().filter_map(|(kind, seen)| foreign(kind, seen.as_ref()?));
        let job = restore_job.iter().filter_map(|job| foreign(Kind::Job, &job.seen));
        let members = self.ledger().members.iter().filter_map(|member| self.conflict_of(member.serial));
        whole.chain(job).chain(members).next()
    }

    /// An object that has a name that the member with this serial needs, and is not ours.
    pub(crate) fn conflict_of(&self, serial: i64) -> Option<Note> {
        let seen = self.observed.members.get(&serial)?;
        if let Some(claim) = &seen.claim
            && let Ownership::Foreign(whose) = &claim.owner
        {
            return Some(conflict_note(Kind::PersistentVolumeClaim, &claim.name, whose));
        }
        foreign(Kind::StatefulSet, &seen.stateful_set.as_ref()?.seen)
    }

    fn services(&self) -> Option<Step> {
        let identity = &self.cluster.identity;
        let wanted = [
            (build::service::headless(identity), &self.observed.headless),
            (build::service::client(identity), &self.observed.client),
        ];
        let actions: Vec<Action> =
            wanted.into_iter().filter_map(|(wanted, seen)| self.reconcile(wanted, seen.as_ref())).collect();
        (!actions.is_empty()).then(|| Step { requeue: AT_ONCE, ..Step::act("ApplyServices", actions) })
    }

    /// Volume, StatefulSet and label of every member in the ledger. The member that an operation removes keeps only its label
    /// in order: what it has is taken away in the order that the operation knows.
    fn members(&self, notes: &mut Vec<Note>) -> Option<Step> {
        let mut actions = Vec::new();
        for member in &self.ledger().members {
            let seen = self.observed.member(member.serial);
            if let Some(pod) = &seen.pod
                && !pod.deleting
                && pod.serving != member.serving
            {
                let (pod, uid) = (pod.name.clone(), pod.uid.clone());
                actions.push(Action::LabelServing { pod, uid, serving: member.serving });
            }
            if self.leaving() == Some(member.name.as_str()) {
                continue;
            }
            match &seen.claim {
                Some(claim) if claim.deleting || claim.phase == "Lost" => notes.push(Note::new(
                    reason::VOLUME_LOST,
                    format!(
                        "volume claim {} of {} is lost or being deleted; scale down and up again, which removes this member first and adds a fresh one",
                        claim.name, member.name
                    ),
                )),
                Some(_) => {}
                // An empty volume would not bring its data back; the server would refuse it, and so do we.
                None if member.started => notes.push(Note::new(
                    reason::VOLUME_LOST,
                    format!(
                        "volume claim {} of {} is gone, and a new one would be empty; scale down and up again, which removes this member first and adds a fresh one",
                        names::volume_claim(&self.cluster.identity.name, member.serial),
                        member.name
                    ),
                )),
                None if !self.may_grow() => continue,
                None => actions.extend(self.reconcile(build::claim::claim(self.cluster, member.serial), None)),
            }
            if let Some(intent) = self.intent(member) {
                let image = self.ledger().image.as_deref().unwrap_or(&self.cluster.image);
                let wanted =
                    build::stateful_set::stateful_set(self.cluster, image, member.serial, member.serving, &intent);
                actions.extend(match &seen.stateful_set {
                    // Somebody scaled it by hand: what was applied last is not what is there.
                    Some(set) if set.replicas != 1 && !set.seen.deleting => {
                        self.reconcile(wanted, Some(&Seen { hash: String::new(), ..set.seen.clone() }))
                    }
                    set => self.reconcile(wanted, set.as_ref().map(|set| &set.seen)),
                });
            }
        }
        (!actions.is_empty()).then(|| Step::act("ApplyMembers", actions))
    }

    /// Whether volumes may be made: while the seed forms the cluster, and afterwards only with a quorum.
    fn may_grow(&self) -> bool {
        self.ledger().cluster_id.is_none() || self.observed.etcd.list.is_some()
    }

    /// How a member is to be started; `None` while it must not be.
    fn intent(&self, member: &MemberStatus) -> Option<Intent> {
        let ledger = self.ledger();
        let token = ledger.seed.as_ref()?.token.clone();
        if member.started {
            return Some(Intent::Run { token });
        }
        if ledger.cluster_id.is_none() {
            return Some(Intent::Bootstrap { token });
        }
        member.id.as_ref()?;
        // The ledger, not etcd's list: it does not change while this member joins, so neither does the template.
        let members = ledger.members.iter().map(|member| (member.name.clone(), self.peer_url(member.serial))).collect();
        Some(Intent::Join { token, members })
    }

    /// What brings an object to what is wanted; nothing while it is being deleted.
    fn reconcile(&self, wanted: Object, seen: Option<&Seen>) -> Option<Action> {
        if seen.is_some_and(|seen| seen.deleting) {
            return None;
        }
        match build::difference(wanted, seen.map(|seen| (seen.uid.as_str(), seen.hash.as_str())))? {
            Difference::Missing(object) => Some(Action::Create(object)),
            Difference::Changed(object) => Some(Action::Apply(object)),
        }
    }

    /// A linearizable member list of our own cluster.
    pub(crate) fn list(&self, notes: &mut Vec<Note>) -> Option<&MemberList> {
        let ours = self.ledger().cluster_id.as_deref().and_then(names::parse_hex_id);
        let strangers: Vec<&str> = self
            .ledger()
            .members
            .iter()
            .filter(|member| self.health(member.serial).is_some_and(|health| Some(health.cluster_id) != ours))
            .map(|member| member.name.as_str())
            .collect();
        let list = self.observed.etcd.list.as_ref();
        if !strangers.is_empty() || list.is_some_and(|list| Some(list.cluster_id) != ours) {
            notes.push(Note::new(
                reason::CLUSTER_ID_MISMATCH,
                format!(
                    "{} answer with another cluster ID than {}; nothing is changed until a human has found out why",
                    strangers.join(", "),
                    self.ledger().cluster_id.as_deref().unwrap_or_default()
                ),
            ));
            return None;
        }
        list
    }

    /// IDs in the annotations of the volumes, from which a lost status can be rebuilt.
    fn annotations(&self) -> Option<Step> {
        let cluster_id = self.ledger().cluster_id.as_ref()?;
        let mut actions = Vec::new();
        for member in &self.ledger().members {
            let seen = self.observed.member(member.serial);
            let (Some(id), Some(claim)) = (&member.id, &seen.claim) else { continue };
            if claim.member_id.as_ref() == Some(id) && claim.cluster_id.as_ref() == Some(cluster_id) {
                continue;
            }
            actions.push(Action::MarkClaim {
                name: claim.name.clone(),
                uid: claim.uid.clone(),
                annotations: [(names::ANNOTATION_MEMBER_ID, id), (names::ANNOTATION_CLUSTER_ID, cluster_id)]
                    .map(|(key, value)| (key.to_owned(), value.clone()))
                    .into(),
                labels: Default::default(),
            });
        }
        (!actions.is_empty()).then(|| Step { requeue: AT_ONCE, ..Step::act("AnnotateVolumes", actions) })
    }

    /// The disruption budget keeps a quorum of voters. It is raised before a learner is promoted, and lowered after a voter
    /// has gone.
    fn budget(&self, list: &MemberList) -> Option<Step> {
        let voters = list.members.iter().filter(|member| !member.learner).count();
        let learners = list.members.len() - voters;
        let seen = self.observed.budget.as_ref();
        let action = if voters + learners.min(1) > 1 {
            self.reconcile(build::budget::budget(&self.cluster.identity, voters + learners.min(1)), seen)
        } else {
            // A budget of one for a single member would only stop every drain.
            seen.filter(|seen| !seen.deleting).map(|seen| Action::Delete {
                target: Target { kind: Kind::PodDisruptionBudget, name: seen.name.clone() },
                uid: seen.uid.clone(),
            })
        };
        action.map(|action| Step { requeue: AT_ONCE, ..Step::act("ApplyBudget", vec![action]) })
    }

    /// The name of the member that the operation removes.
    pub(crate) fn leaving(&self) -> Option<&str> {
        let operation = self.ledger().operation.as_ref()?;
        match operation.kind {
            OperationKind::ScaleDown | OperationKind::RollBack => Some(operation.member.as_str()),
            OperationKind::Bootstrap | OperationKind::ScaleUp => None,
        }
    }

    pub(crate) fn peer_url(&self, serial: i64) -> String {
        names::peer_url(&self.cluster.identity.name, &self.cluster.identity.namespace, serial)
    }

    /// What a member answered.
    pub(crate) fn health(&self, serial: i64) -> Option<&MemberHealth> {
        match self.observed.etcd.probes.get(&serial)? {
            Probe::Answered(health) => Some(health),
            Probe::Unreachable(_) => None,
        }
    }

    /// Whether a member is up: it answers under its own ID, and a linearizable read through it succeeds.
    pub(crate) fn healthy(&self, member: &MemberStatus) -> bool {
        self.health(member.serial)
            .is_some_and(|health| health.ready && Some(names::hex_id(health.member_id)) == member.id)
    }

    /// The ledger's entry of a member that etcd lists.
    pub(crate) fn entry(&self, listed: &ListedMember) -> Option<&MemberStatus> {
        let id = names::hex_id(listed.id);
        self.ledger().members.iter().find(|member| member.id.as_ref() == Some(&id))
    }

    /// Voters that are healthy, without the member with this ID.
    pub(crate) fn healthy_voters(&self, list: &MemberList, without: Option<u64>) -> usize {
        list.members
            .iter()
            .filter(|listed| !listed.learner && Some(listed.id) != without)
            .filter(|listed| self.entry(listed).is_some_and(|member| self.healthy(member)))
            .count()
    }

    /// An operation that begins now.
    pub(crate) fn operation(
        &self,
        kind: OperationKind,
        member: &MemberStatus,
        limit: chrono::Duration,
    ) -> OperationStatus {
        OperationStatus {
            id: format!("{kind:?}-{}-{}", member.serial, self.now.timestamp()).to_lowercase(),
            kind,
            member: member.name.clone(),
            step: "Begin".to_owned(),
            started_at: crate::time::to_kube(self.now),
            deadline: crate::time::to_kube(self.now + limit),
        }
    }

    /// Whether the operation has run past its deadline.
    pub(crate) fn overdue(&self) -> bool {
        let operation = self.ledger().operation.as_ref();
        operation.is_some_and(|operation| self.now > crate::time::from_kube(&operation.deadline))
    }

    /// Why a member does not run, as far as its pod tells.
    pub(crate) fn pod_problem(&self, serial: i64) -> String {
        let seen = self.observed.member(serial);
        match seen.pod {
            Some(pod) => pod.problem.unwrap_or_else(|| "its pod gives no reason".to_owned()),
            None => "it has no pod yet".to_owned(),
        }
    }
}

fn foreign(kind: Kind, seen: &Seen) -> Option<Note> {
    match &seen.owner {
        Ownership::Ours => None,
        Ownership::Foreign(whose) => Some(conflict_note(kind, &seen.name, whose)),
    }
}

fn conflict_note(kind: Kind, name: &str, whose: &str) -> Note {
    Note::new(
        reason::NAME_CONFLICT,
        format!(
            "{kind:?} {name} exists and belongs to {whose}; it is never adopted: delete it if nobody needs it, or choose another name for this cluster"
        ),
    )
}

/// Events about an operation.
pub(crate) fn started(message: impl Into<String>) -> Option<Action> {
    Some(Notice::normal(reason::OPERATION_STARTED, message))
}

/// Events about an operation.
pub(crate) fn finished(message: impl Into<String>) -> Option<Action> {
    Some(Notice::normal(reason::OPERATION_FINISHED, message))
}
