//! The status of an EtcdCluster, computed from what was observed and from what `act` reports done; never from what was meant.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use ferretcd_operator_api::status::{condition, reason};
use ferretcd_operator_api::{EtcdClusterStatus, MemberRole, MemberStatus, OperationKind, Phase, RestorePhase, names};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::action::{Action, Fault, Outcome};
use crate::observed::{MemberHealth, Observed, Probe};
use crate::plan::Plan;
use crate::validate::Identity;

/// How long a condition's message may be, in characters; the API allows 32768, a terminal much less.
const MAX_MESSAGE: usize = 1024;

/// The status after a pass: the ledger as it is stored by now, and a fresh report. Equal to the stored status when there is
/// nothing to write, so that a quiet cluster costs no write.
///
/// After a pass whose plan held a `Record` that was done, the stored status is that record, under a new resourceVersion.
pub fn status(
    identity: &Identity,
    replicas: i32,
    observed: &Observed,
    plan: &Plan,
    outcome: &Outcome,
    now: DateTime<Utc>,
) -> EtcdClusterStatus {
    let recorded = plan.actions.iter().take(outcome.done).rev().find_map(|action| match action {
        Action::Record(ledger) => Some(ledger.as_ref().clone()),
        _ => None,
    });
    let mut next = recorded.unwrap_or_else(|| observed.recorded.clone());

    let view = View::of(&next, observed);
    for member in &mut next.members {
        report(member, observed, view.leader);
    }
    let view = View::of(&next, observed);
    next.observed_generation = Some(identity.generation);
    next.replicas = i32::try_from(next.members.len()).unwrap_or(i32::MAX);
    next.selector = Some(names::selector_string(&names::members_selector(&identity.name)));
    next.ready_members = Some(format!("{}/{replicas}", view.ready_voters));
    next.leader =
        next.members.iter().find(|member| member.role == MemberRole::Leader).map(|member| member.name.clone());
    next.version =
        next.members.iter().filter_map(|member| member.version.clone()).min_by_key(|version| version_key(version));
    if let (Some(operation), Some(step)) = (&mut next.operation, &plan.step) {
        operation.step.clone_from(step);
    }

    let conditions = Conditions { identity, replicas, next: &next, view: &view, plan, outcome };
    let all = [
        (condition::AVAILABLE, conditions.available()),
        (condition::PROGRESSING, conditions.progressing()),
        (condition::DEGRADED, conditions.degraded()),
        (condition::QUORUM_HEALTHY, conditions.quorum_healthy()),
    ];
    let phase = conditions.phase();
    next.phase = phase;
    for (kind, verdict) in all {
        set(&mut next.conditions, kind, verdict, identity.generation, now);
    }
    next
}

/// What the members' answers come to.
struct View {
    /// A linearizable member list of our own cluster is there.
    quorum: bool,
    voters: usize,
    /// Members that are ready and vote.
    ready_voters: usize,
    /// ID of the leader, as the answer of the highest term says.
    leader: Option<u64>,
}

impl View {
    fn of(ledger: &EtcdClusterStatus, observed: &Observed) -> View {
        let ours = ledger.cluster_id.as_deref().and_then(names::parse_hex_id);
        let list = observed.etcd.list.as_ref().filter(|list| Some(list.cluster_id) == ours);
        let leader = ledger
            .members
            .iter()
            .filter_map(|member| health(observed, member.serial))
            .filter(|health| health.leader != 0 && Some(health.cluster_id) == ours)
            .max_by_key(|health| health.raft_term)
            .map(|health| health.leader);
        let ready =
            |member: &&MemberStatus| member.ready && matches!(member.role, MemberRole::Follower | MemberRole::Leader);
        View {
            quorum: list.is_some(),
            voters: list.map_or(0, |list| list.members.iter().filter(|member| !member.learner).count()),
            ready_voters: ledger.members.iter().filter(ready).count(),
            leader,
        }
    }
}

fn health(observed: &Observed, serial: i64) -> Option<&MemberHealth> {
    match observed.etcd.probes.get(&serial)? {
        Probe::Answered(health) => Some(health),
        Probe::Unreachable(_) => None,
    }
}

/// Fills in the reported half of a member's entry.
fn report(member: &mut MemberStatus, observed: &Observed, leader: Option<u64>) {
    let id = member.id.as_deref().and_then(names::parse_hex_id);
    let answer = health(observed, member.serial).filter(|health| id.is_none_or(|id| id == health.member_id));
    let Some(health) = answer else {
        member.role = MemberRole::Unknown;
        member.ready = false;
        member.alarms.clear();
        member.message = Some(why_silent(member, observed));
        return;
    };
    member.role = if health.learner {
        MemberRole::Learner
    } else if leader == Some(health.member_id) {
        MemberRole::Leader
    } else {
        MemberRole::Follower
    };
    member.ready = health.ready;
    member.version = Some(health.version.clone());
    let stored = member.db_size.unwrap_or(0);
    if member.db_size.is_none() || (health.db_size - stored).abs() > stored / 10 {
        member.db_size = Some(health.db_size);
    }
    // Any member lists the alarms of all; not every member was asked.
    let all = observed.etcd.probes.values().filter_map(|probe| match probe {
        Probe::Answered(health) => Some(&health.alarms),
        Probe::Unreachable(_) => None,
    });
    let own: BTreeSet<&str> =
        all.flatten().filter(|alarm| alarm.member_id == health.member_id).map(|alarm| alarm.kind.as_str()).collect();
    member.alarms = own.into_iter().map(str::to_owned).collect();
    member.message = match (health.ready, health.learner) {
        (true, _) => None,
        (false, true) => Some("it is a learner and catches up".to_owned()),
        (false, false) => Some("a linearizable read through it failed".to_owned()),
    };
}

fn why_silent(member: &MemberStatus, observed: &Observed) -> String {
    let pod = observed.members.get(&member.serial).and_then(|seen| seen.pod.as_ref());
    if let Some(problem) = pod.and_then(|pod| pod.problem.clone()) {
        return problem;
    }
    match (observed.etcd.probes.get(&member.serial), pod) {
        (Some(Probe::Unreachable(why)), _) => why.clone(),
        (Some(Probe::Answered(_)), _) => "another member answers under its name".to_owned(),
        (None, Some(_)) => "it was not asked".to_owned(),
        (None, None) => "it has no pod".to_owned(),
    }
}

/// `0.10.0` is above `0.9.0`.
fn version_key(version: &str) -> Vec<u64> {
    version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

/// What a condition says: whether it holds, a reason, a message.
type Verdict = (bool, &'static str, String);

struct Conditions<'a> {
    identity: &'a Identity,
    replicas: i32,
    next: &'a EtcdClusterStatus,
    view: &'a View,
    plan: &'a Plan,
    outcome: &'a Outcome,
}

impl Conditions<'_> {
    fn quorum_healthy(&self) -> Verdict {
        if self.next.cluster_id.is_none() {
            return (false, reason::NOT_FORMED, "the first member has not formed the cluster yet".to_owned());
        }
        if self.view.quorum {
            let leader = self.next.leader.as_deref().unwrap_or("a member that was not asked");
            return (true, reason::READY, format!("{} voters, led by {leader}", self.view.voters));
        }
        (
            false,
            reason::NO_QUORUM,
            format!(
                "no member answers a linearizable read; nothing is changed until a quorum is back. {}",
                self.unready().join("; ")
            ),
        )
    }

    fn available(&self) -> Verdict {
        let serving = self.next.members.iter().filter(|member| member.serving && member.ready).count();
        let (quorum, why, message) = self.quorum_healthy();
        if !quorum {
            (false, why, message)
        } else if serving == 0 {
            (false, reason::NOT_SERVING, "no ready member is behind the client Service yet".to_owned())
        } else {
            (true, reason::READY, format!("{serving} members serve clients"))
        }
    }

    fn progressing(&self) -> Verdict {
        if self.identity.deleting {
            let message = self.plan.waiting.as_ref().map(|note| note.message.clone());
            return (true, reason::DELETING, message.unwrap_or_else(|| "the cluster is being deleted".to_owned()));
        }
        let detail = self.plan.waiting.as_ref().map(|note| note.message.as_str());
        let waits = match &self.outcome.fault {
            Some(Fault::Wait(why)) => Some(why.as_str()),
            _ => None,
        };
        if let Some(operation) = &self.next.operation {
            let why = match operation.kind {
                OperationKind::Bootstrap if self.restoring() => reason::RESTORING,
                OperationKind::Bootstrap => reason::BOOTSTRAPPING,
                OperationKind::ScaleUp => reason::SCALING_UP,
                OperationKind::ScaleDown => reason::SCALING_DOWN,
                OperationKind::RollBack => reason::ROLLING_BACK,
            };
            let detail = waits.or(detail).unwrap_or("under way");
            return (true, why, format!("{:?} of {}, {}: {detail}", operation.kind, operation.member, operation.step));
        }
        if let Some(waiting) = &self.plan.waiting {
            return (true, waiting.reason, waiting.message.clone());
        }
        if self.next.seed.is_none() && self.plan.notes.is_empty() {
            return (true, reason::BOOTSTRAPPING, "the cluster is about to be made".to_owned());
        }
        let have = self.next.members.len();
        if self.next.cluster_id.is_some() && i32::try_from(have).ok() != Some(self.replicas) {
            return (true, reason::WAITING, format!("{have} members, {} are wanted", self.replicas));
        }
        (false, reason::READY, format!("{have} of {} members", self.replicas))
    }

    fn degraded(&self) -> Verdict {
        if let Some(first) = self.plan.notes.first() {
            let all: Vec<&str> = self.plan.notes.iter().map(|note| note.message.as_str()).collect();
            return (true, first.reason, all.join("; "));
        }
        if let Some(Fault::Failed(why)) = &self.outcome.fault {
            return (true, reason::ACTION_FAILED, format!("{why}; it is tried again"));
        }
        let alarmed: Vec<String> = self
            .next
            .members
            .iter()
            .filter(|member| !member.alarms.is_empty())
            .map(|member| format!("{} raised {}", member.name, member.alarms.join(", ")))
            .collect();
        if !alarmed.is_empty() {
            let message = format!(
                "{}; free space (compact, raise the quota) and disarm with etcdctl alarm disarm",
                alarmed.join("; ")
            );
            return (true, reason::ALARM, message);
        }
        let unready = self.unready();
        if !unready.is_empty() {
            return (true, reason::MEMBER_UNHEALTHY, unready.join("; "));
        }
        (false, reason::READY, "all members are well".to_owned())
    }

    /// Started members that should be ready and are not. The one that an operation is about is in change, not in trouble.
    fn unready(&self) -> Vec<String> {
        let changing = self.next.operation.as_ref().map(|operation| operation.member.as_str());
        self.next
            .members
            .iter()
            .filter(|member| member.started && !member.ready && changing != Some(member.name.as_str()))
            .map(|member| format!("{}: {}", member.name, member.message.as_deref().unwrap_or("not ready")))
            .collect()
    }

    fn restoring(&self) -> bool {
        self.next.restore.as_ref().is_some_and(|restore| restore.phase == RestorePhase::Pending)
    }

    fn phase(&self) -> Phase {
        let noted = |wanted: &str| self.plan.notes.iter().any(|note| note.reason == wanted);
        if self.identity.deleting {
            Phase::Deleting
        } else if noted(reason::REJECTED) || noted(reason::NAME_CONFLICT) {
            Phase::Rejected
        } else if self.next.seed.is_none() {
            Phase::Pending
        } else if self.next.cluster_id.is_none() {
            Phase::Bootstrapping
        } else if !self.view.quorum {
            Phase::NoQuorum
        } else if self.restoring() {
            Phase::Restoring
        } else if self.degraded().0 {
            Phase::Degraded
        } else if self.progressing().0 {
            Phase::Scaling
        } else {
            Phase::Ready
        }
    }
}

/// Writes a condition; its time changes only when its verdict does.
fn set(conditions: &mut Vec<Condition>, kind: &str, verdict: Verdict, generation: i64, now: DateTime<Utc>) {
    let (holds, reason, message) = verdict;
    let status = if holds { "True" } else { "False" };
    let message: String = message.chars().take(MAX_MESSAGE).collect();
    let index = conditions.iter().position(|condition| condition.type_ == kind);
    let since = index
        .and_then(|index| conditions.get(index))
        .filter(|condition| condition.status == status)
        .map(|condition| condition.last_transition_time.clone());
    let condition = Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: Some(generation),
        last_transition_time: since.unwrap_or_else(|| crate::time::to_kube(now)),
    };
    match index.and_then(|index| conditions.get_mut(index)) {
        Some(slot) => *slot = condition,
        None => conditions.push(condition),
    }
}
