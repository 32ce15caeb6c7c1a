//! Algorithms B and C: one member more, as a learner first; one member less, the leader moved away first. One member at a
//! time: etcd's membership changes are safe one by one, and a second learner would slow the leader down while the first still
//! catches up. The operation is in the ledger before its first side effect; each step looks at what is there, does what is
//! missing, and is checked by the next pass.

use std::collections::BTreeSet;

use chrono::Duration;
use ferretcd_operator_api::status::reason;
use ferretcd_operator_api::{
    BackoffStatus, DeletionPolicy, EtcdClusterStatus, MemberStatus, OperationKind, OperationStatus, names,
};

use crate::action::{Action, Kind, Notice, Target};
use crate::observed::{ListedMember, MemberList};
use crate::plan::{Note, Pass, Step, finished, started};

/// How far a learner's applied index may lie behind the leader's when it is promoted: etcd keeps as many entries for slow
/// followers after a snapshot, so a member that is closer never needs another snapshot. The server checks again.
pub const PROMOTE_LAG: u64 = 5000;

/// How far a follower's applied index may lie behind the leader's to be handed the leadership.
pub const TRANSFER_LAG: u64 = 1000;

/// When a member that does not come up or catch up is given up: 8 GiB, the largest database that etcd recommends, at 5 MiB/s
/// take 27 minutes.
const DEADLINE_MINUTES: i64 = 40;

/// The pause after a failed ScaleUp: a minute, doubled with each further failure, at the most an hour.
const BACKOFF_MINUTES: i64 = 1;
const BACKOFF_DOUBLINGS: u32 = 6;

/// How many retired IDs are kept. etcd itself never gives an ID twice; the list is for humans and for a second look.
const RETIRED_IDS: usize = 64;

/// The step of the operation that is under way, or of the one that is due.
pub(crate) fn proceed(pass: &Pass<'_>, list: &MemberList, notes: &mut Vec<Note>) -> Step {
    let ledger = pass.ledger();
    let Some(operation) = &ledger.operation else {
        return begin(pass, list, notes);
    };
    let Some(member) = ledger.members.iter().find(|member| member.name == operation.member) else {
        let mut next = ledger.clone();
        next.operation = None;
        return Step::record("DropOperation", next, None);
    };
    match operation.kind {
        OperationKind::Bootstrap | OperationKind::ScaleUp => grow(pass, list, operation, member, notes),
        OperationKind::ScaleDown | OperationKind::RollBack => shrink(pass, list, operation, member, notes),
    }
}

/// Begins an operation if the number of members is not what was asked for, and every gate is open.
fn begin(pass: &Pass<'_>, list: &MemberList, notes: &mut Vec<Note>) -> Step {
    let ledger = pass.ledger();
    let known: BTreeSet<&str> = ledger.members.iter().filter_map(|member| member.id.as_deref()).collect();
    let listed: BTreeSet<String> = list.members.iter().map(|member| names::hex_id(member.id)).collect();
    if known.len() != ledger.members.len() || !listed.iter().map(String::as_str).eq(known.iter().copied()) {
        notes.push(Note::new(
            reason::MEMBERSHIP_MISMATCH,
            format!(
                "etcd lists the members {listed:?}, the operator knows {known:?}; remove what was added by hand with etcdctl member remove, and do not change the membership by hand"
            ),
        ));
        return Step::rest();
    }
    // No operation is known, and yet a member has no vote: the status was rebuilt while it joined.
    if let Some(learner) = list.members.iter().filter(|listed| listed.learner).find_map(|listed| pass.entry(listed)) {
        let mut next = ledger.clone();
        next.operation = Some(pass.operation(OperationKind::ScaleUp, learner, Duration::minutes(DEADLINE_MINUTES)));
        return Step::record("ResumeLearner", next, started(format!("going on to add {}", learner.name)));
    }
    let (have, want) = (ledger.members.len(), pass.cluster.replicas);
    if have < want {
        begin_growth(pass, list, notes)
    } else if have > want {
        begin_shrinking(pass, list)
    } else {
        Step::rest()
    }
}

fn begin_growth(pass: &Pass<'_>, list: &MemberList, notes: &mut Vec<Note>) -> Step {
    let ledger = pass.ledger();
    let serial = ledger.next_member_serial;
    if let Some(conflict) = pass.conflict_of(serial) {
        notes.push(conflict);
        return Step::rest();
    }
    if let Some(backoff) = ledger.backoff.as_ref().filter(|backoff| pass.now < crate::time::from_kube(&backoff.until)) {
        notes.push(Note::new(
            reason::OPERATION_STALLED,
            format!(
                "{}; the next attempt begins at {}",
                backoff.reason,
                crate::time::from_kube(&backoff.until).to_rfc3339()
            ),
        ));
        return Step::rest();
    }
    if let Err(why) = all_healthy(pass, list) {
        return Step::wait("WaitToGrow", reason::WAITING, format!("a member is added when all are well: {why}"));
    }
    let member =
        MemberStatus { name: names::member(&pass.cluster.identity.name, serial), serial, ..MemberStatus::default() };
    let mut next = ledger.clone();
    next.next_member_serial = serial + 1;
    next.operation = Some(pass.operation(OperationKind::ScaleUp, &member, Duration::minutes(DEADLINE_MINUTES)));
    let message = format!("adding {} ({} of {})", member.name, ledger.members.len() + 1, pass.cluster.replicas);
    next.members.push(member);
    Step::record("RecordMember", next, started(message))
}

fn begin_shrinking(pass: &Pass<'_>, list: &MemberList) -> Step {
    let ledger = pass.ledger();
    let Some(victim) = victim(pass, list) else { return Step::rest() };
    if let Err(why) = may_lose(pass, list, victim) {
        return Step::wait("WaitToShrink", reason::WAITING, format!("{} is not removed yet: {why}", victim.name));
    }
    let mut next = ledger.clone();
    next.operation = Some(pass.operation(OperationKind::ScaleDown, victim, Duration::minutes(DEADLINE_MINUTES)));
    if let Some(victim) = next.member_mut(victim.serial) {
        victim.serving = false;
    }
    let message =
        format!("removing {} ({} members, {} wanted)", victim.name, ledger.members.len(), pass.cluster.replicas);
    Step::record("RecordVictim", next, started(message))
}

/// Who is removed: one that is not healthy, else one that does not lead, else the leader; of equals the youngest.
fn victim<'a>(pass: &'a Pass<'_>, list: &MemberList) -> Option<&'a MemberStatus> {
    let leader = leader(pass, list);
    pass.ledger().members.iter().max_by_key(|member| {
        let leads = leader.is_some_and(|leader| leader.serial == member.serial);
        (!pass.healthy(member), !leads, member.serial)
    })
}

/// Adds a member: AddLearner, start, catch up, Promote, serve.
fn grow(
    pass: &Pass<'_>,
    list: &MemberList,
    operation: &OperationStatus,
    member: &MemberStatus,
    notes: &mut Vec<Note>,
) -> Step {
    let ledger = pass.ledger();
    let url = pass.peer_url(member.serial);
    let listed = list.members.iter().find(|listed| listed.peer_urls.contains(&url));
    let name = &member.name;
    if ledger.members.len() > pass.cluster.replicas && listed.is_none_or(|listed| listed.learner) {
        return cancel(pass, member);
    }

    let Some(id) = &member.id else {
        return match listed {
            None if pass.overdue() => roll_back(pass, member, format!("{name} could not be added")),
            None => match all_healthy(pass, list) {
                Ok(()) => Step::act("AddLearner", vec![Action::AddLearner { peer_url: url }]),
                Err(why) => {
                    Step::wait("AddLearner", reason::SCALING_UP, format!("{name} is added when all are well: {why}"))
                }
            },
            // Ours by its URL: the answer to AddLearner, or the record of it, was lost.
            Some(listed) if listed.name.is_empty() || listed.name == *name => {
                let mut next = ledger.clone();
                if let Some(member) = next.member_mut(member.serial) {
                    member.id = Some(names::hex_id(listed.id));
                }
                Step::record("RecordMemberId", next, None)
            }
            Some(listed) => {
                notes.push(Note::new(
                    reason::MEMBERSHIP_MISMATCH,
                    format!(
                        "the peer URL {url} of {name} is used by a running member {:?} ({:x}); remove one of them",
                        listed.name, listed.id
                    ),
                ));
                Step::rest()
            }
        };
    };
    let Some(listed) = listed.filter(|listed| names::hex_id(listed.id) == *id) else {
        return roll_back(pass, member, format!("{name} ({id}) was removed from the cluster while it joined"));
    };

    let answers = pass.health(member.serial).is_some_and(|health| names::hex_id(health.member_id) == *id);
    if !member.started {
        if answers {
            let mut next = ledger.clone();
            if let Some(member) = next.member_mut(member.serial) {
                member.started = true;
            }
            return Step::record("RecordStart", next, None);
        }
        if pass.overdue() && listed.learner {
            return roll_back(pass, member, format!("{name} did not start: {}", pass.pod_problem(member.serial)));
        }
        return Step::wait(
            "WaitForStart",
            reason::SCALING_UP,
            format!("{name} is starting: {}", pass.pod_problem(member.serial)),
        );
    }
    if listed.learner {
        if let Err(lag) = caught_up(pass, list, member, PROMOTE_LAG) {
            if pass.overdue() {
                return roll_back(pass, member, format!("{name} did not catch up: {lag}"));
            }
            return Step::wait("CatchUp", reason::SCALING_UP, format!("{name} catches up with the leader: {lag}"));
        }
        if let Err(why) = all_healthy(pass, list) {
            return Step::wait(
                "Promote",
                reason::SCALING_UP,
                format!("{name} is promoted when all voters are well: {why}"),
            );
        }
        return Step::act("Promote", vec![Action::Promote { id: listed.id }]);
    }
    if !pass.healthy(member) {
        if pass.overdue() {
            // A voter is not taken out again: that would be a second change of the quorum because the first went badly.
            notes.push(Note::new(
                reason::OPERATION_STALLED,
                format!(
                    "{name} votes but is not ready since {:?}: {}; see its pod",
                    operation.started_at.0,
                    pass.pod_problem(member.serial)
                ),
            ));
        }
        return Step::wait("WaitForVoter", reason::SCALING_UP, format!("{name} votes and is not ready yet"));
    }
    let mut next = ledger.clone();
    next.operation = None;
    next.backoff = None;
    if let Some(member) = next.member_mut(member.serial) {
        member.serving = true;
    }
    Step::record("RecordServing", next, finished(format!("{name} votes and serves")))
}

/// Turns a ScaleUp that is no longer wanted into the removal of what it has made.
fn cancel(pass: &Pass<'_>, member: &MemberStatus) -> Step {
    let mut next = pass.ledger().clone();
    next.operation = Some(pass.operation(OperationKind::RollBack, member, Duration::minutes(DEADLINE_MINUTES)));
    Step::record("RecordRollBack", next, started(format!("{} is no longer wanted and is removed", member.name)))
}

/// Turns a ScaleUp that cannot succeed into the removal of what it has made.
fn roll_back(pass: &Pass<'_>, member: &MemberStatus, why: String) -> Step {
    let mut next = pass.ledger().clone();
    let failures = next.backoff.as_ref().map_or(0, |backoff| backoff.failures).saturating_add(1);
    let doublings = u32::try_from(failures - 1).unwrap_or_default().min(BACKOFF_DOUBLINGS);
    let pause = Duration::minutes(BACKOFF_MINUTES << doublings);
    let until = crate::time::to_kube(pass.now + pause);
    next.backoff = Some(BackoffStatus { until, failures, reason: why.clone() });
    next.operation = Some(pass.operation(OperationKind::RollBack, member, Duration::minutes(DEADLINE_MINUTES)));
    let notice = Notice::warning(reason::ROLLING_BACK, format!("{why}; it is removed and tried again after a pause"));
    Step::record("RecordRollBack", next, Some(notice))
}

/// Removes a member: no clients, no leadership, no membership, no pod, no volume, no record; in this order.
fn shrink(
    pass: &Pass<'_>,
    list: &MemberList,
    operation: &OperationStatus,
    member: &MemberStatus,
    notes: &mut Vec<Note>,
) -> Step {
    let name = &member.name;
    let reason = match operation.kind {
        OperationKind::RollBack => reason::ROLLING_BACK,
        OperationKind::Bootstrap | OperationKind::ScaleUp | OperationKind::ScaleDown => reason::SCALING_DOWN,
    };
    if pass.overdue() {
        notes.push(Note::new(
            reason::OPERATION_STALLED,
            format!("removing {name} takes longer than {DEADLINE_MINUTES} minutes; the step it waits in is in status.operation"),
        ));
    }
    let url = pass.peer_url(member.serial);
    let listed = list.members.iter().find(|listed| match &member.id {
        Some(id) => names::hex_id(listed.id) == *id,
        None => listed.peer_urls.contains(&url),
    });
    if let Some(listed) = listed {
        return leave(pass, list, member, listed, reason);
    }
    if list.answered_by == member.serial {
        return Step::wait("Verify", reason, format!("that {name} is removed is to be confirmed by another member"));
    }

    let seen = pass.observed.member(member.serial);
    if let Some(set) = &seen.stateful_set {
        if set.seen.deleting {
            return Step::wait("StopPod", reason, format!("{name} is stopping"));
        }
        let target = Target { kind: Kind::StatefulSet, name: set.seen.name.clone() };
        return Step::act("StopPod", vec![Action::Delete { target, uid: set.seen.uid.clone() }]);
    }
    if seen.pod.is_some() {
        return Step::wait("StopPod", reason, format!("the pod of {name} is stopping"));
    }
    if let Some(claim) = &seen.claim {
        // What a failed ScaleUp leaves behind never held the only copy of anything.
        let keep = pass.cluster.deletion_policy == DeletionPolicy::Retain && operation.kind == OperationKind::ScaleDown;
        if !keep {
            if claim.deleting {
                return Step::wait("DeleteVolume", reason, format!("volume claim {} is being deleted", claim.name));
            }
            let target = Target { kind: Kind::PersistentVolumeClaim, name: claim.name.clone() };
            return Step::act("DeleteVolume", vec![Action::Delete { target, uid: claim.uid.clone() }]);
        }
        if !claim.retained {
            return Step::act("RetainVolume", vec![retain(&claim.name, &claim.uid)]);
        }
    }
    let next = without(pass.ledger(), member);
    Step::record("RecordRemoval", next, finished(format!("{name} is removed")))
}

/// The first half of a removal: while etcd still lists the member.
fn leave(
    pass: &Pass<'_>,
    list: &MemberList,
    member: &MemberStatus,
    listed: &ListedMember,
    reason: &'static str,
) -> Step {
    let name = &member.name;
    if member.id.is_none() {
        let mut next = pass.ledger().clone();
        if let Some(member) = next.member_mut(member.serial) {
            member.id = Some(names::hex_id(listed.id));
        }
        return Step::record("RecordMemberId", next, None);
    }
    if !listed.learner
        && let Err(why) = may_lose(pass, list, member)
    {
        return Step::wait("RemoveMember", reason, format!("{name} is not removed yet: {why}"));
    }
    if leader(pass, list).is_some_and(|leader| leader.serial == member.serial) {
        let heir = list.members.iter().filter(|heir| !heir.learner && heir.id != listed.id).find(|heir| {
            pass.entry(heir).is_some_and(|heir| pass.healthy(heir) && caught_up(pass, list, heir, TRANSFER_LAG).is_ok())
        });
        return match heir {
            Some(heir) => {
                Step::act("MoveLeader", vec![Action::MoveLeader { leader_serial: member.serial, to: heir.id }])
            }
            None => Step::wait(
                "MoveLeader",
                reason,
                format!("no healthy member is up to date enough to lead in place of {name}"),
            ),
        };
    }
    let peer_url = listed.peer_urls.first().cloned().unwrap_or_default();
    Step::act("RemoveMember", vec![Action::RemoveMember { id: listed.id, peer_url }])
}

/// Labels a volume claim as kept by policy.
pub(crate) fn retain(name: &str, uid: &str) -> Action {
    Action::MarkClaim {
        name: name.to_owned(),
        uid: uid.to_owned(),
        annotations: Default::default(),
        labels: [(names::LABEL_RETAINED.to_owned(), "true".to_owned())].into(),
    }
}

/// The ledger without a member that is gone, and without the operation that removed it.
fn without(ledger: &EtcdClusterStatus, member: &MemberStatus) -> EtcdClusterStatus {
    let mut next = ledger.clone();
    next.operation = None;
    next.members.retain(|other| other.serial != member.serial);
    next.retired_member_ids.extend(member.id.clone());
    let surplus = next.retired_member_ids.len().saturating_sub(RETIRED_IDS);
    next.retired_member_ids.drain(..surplus);
    next
}

/// The member that leads, as the members that answer say.
pub(crate) fn leader<'a>(pass: &'a Pass<'_>, list: &MemberList) -> Option<&'a MemberStatus> {
    // The highest term knows best: a member that was cut off still names the leader of an older one.
    let newest = pass
        .ledger()
        .members
        .iter()
        .filter_map(|member| pass.health(member.serial))
        .filter(|health| health.leader != 0);
    let leader = newest.max_by_key(|health| health.raft_term)?.leader;
    pass.entry(list.members.iter().find(|listed| listed.id == leader)?)
}

/// Whether a member's applied index is within `limit` of the leader's; how far it is, if not.
fn caught_up(pass: &Pass<'_>, list: &MemberList, member: &MemberStatus, limit: u64) -> Result<(), String> {
    let Some(leader) = leader(pass, list).and_then(|leader| pass.health(leader.serial)) else {
        return Err("the leader does not answer".to_owned());
    };
    let Some(health) = pass.health(member.serial) else {
        return Err(format!("it does not answer: {}", pass.pod_problem(member.serial)));
    };
    let lag = leader.raft_index.saturating_sub(health.raft_applied_index);
    if lag > limit { Err(format!("{lag} entries behind, at most {limit} are allowed")) } else { Ok(()) }
}

/// Whether all voters are healthy and no alarm is raised; what is not, otherwise.
fn all_healthy(pass: &Pass<'_>, list: &MemberList) -> Result<(), String> {
    for listed in list.members.iter().filter(|listed| !listed.learner) {
        match pass.entry(listed) {
            Some(member) if pass.healthy(member) => {}
            Some(member) => return Err(format!("{} is not ready", member.name)),
            None => return Err(format!("etcd lists a member {:x} that the operator does not know", listed.id)),
        }
    }
    let alarms: BTreeSet<&str> = pass
        .ledger()
        .members
        .iter()
        .filter_map(|member| pass.health(member.serial))
        .flat_map(|health| health.alarms.iter().map(|alarm| alarm.kind.as_str()))
        .collect();
    if alarms.is_empty() { Ok(()) } else { Err(format!("alarms are raised: {alarms:?}")) }
}

/// Whether the cluster keeps a healthy quorum without this member; why not, otherwise.
fn may_lose(pass: &Pass<'_>, list: &MemberList, member: &MemberStatus) -> Result<(), String> {
    let id = member.id.as_deref().and_then(names::parse_hex_id);
    let remaining = list.members.iter().filter(|listed| !listed.learner && Some(listed.id) != id).count();
    let healthy = pass.healthy_voters(list, id);
    let quorum = remaining / 2 + 1;
    if remaining == 0 {
        return Err("it is the last voter".to_owned());
    }
    if healthy < quorum {
        return Err(format!("{healthy} of the {remaining} voters that would remain are healthy, {quorum} are needed"));
    }
    Ok(())
}
