//! Algorithm A: a cluster begins as a single seed. Serial and token are in the ledger before the volume exists, and the
//! intent to bootstrap exists only until the cluster ID is in the ledger: killed at any instant, the operator founds one cluster.

use ferretcd_operator_api::status::reason;
use ferretcd_operator_api::{
    EtcdClusterStatus, MemberStatus, OperationKind, RestorePhase, RestoreStatus, SeedStatus, names,
};

use crate::action::Notice;
use crate::observed::{JobState, Ownership};
use crate::plan::{BUSY, Note, Pass, Step, started};
use crate::restore;

/// When a seed that has not formed a cluster is reported as failed: an image may take minutes to pull. It is only reported;
/// the seed is given all the time that it needs.
const DEADLINE_MINUTES: i64 = 10;

/// The serial of the first seed.
const FIRST_SERIAL: i64 = 0;

/// Puts the seed into the ledger. If the ledger was lost (the resource's status was wiped, its UID is the same), it is rebuilt from the
/// volumes instead.
pub(crate) fn begin(pass: &Pass<'_>, notes: &mut Vec<Note>) -> Step {
    if let Some(step) = rebuild(pass, notes) {
        return step;
    }
    if let Some(conflict) = pass.conflict_of(FIRST_SERIAL) {
        notes.push(conflict);
        return Step::rest();
    }
    // A backup that cannot be restored is refused before anything is made.
    if let Some(from) = &pass.cluster.restore
        && let Err(note) = restore::source(from, pass.observed.restore_backup.as_ref())
    {
        notes.push(note);
        return Step::rest();
    }
    let identity = &pass.cluster.identity;
    let member = MemberStatus {
        name: names::member(&identity.name, FIRST_SERIAL),
        serial: FIRST_SERIAL,
        ..MemberStatus::default()
    };
    let mut ledger = pass.ledger().clone();
    ledger.seed = Some(SeedStatus { serial: FIRST_SERIAL, token: names::cluster_token(&identity.uid, FIRST_SERIAL) });
    ledger.next_member_serial = FIRST_SERIAL + 1;
    ledger.image = Some(pass.cluster.image.clone());
    ledger.restore = pass.cluster.restore.as_ref().map(|_| RestoreStatus::default());
    ledger.operation =
        Some(pass.operation(OperationKind::Bootstrap, &member, chrono::Duration::minutes(DEADLINE_MINUTES)));
    let message = format!("the cluster begins with {} as its seed", member.name);
    ledger.members = vec![member];
    Step::record("RecordSeed", ledger, started(message))
}

/// Waits until the seed answers with itself as the only member, and puts the IDs into the ledger.
pub(crate) fn form(pass: &Pass<'_>, notes: &mut Vec<Note>) -> Step {
    let Some(seed) = pass.ledger().seed.as_ref().and_then(|seed| pass.ledger().member(seed.serial)) else {
        notes.push(Note::new(
            reason::BOOTSTRAP_FAILED,
            "the status names no seed among its members; delete and create the EtcdCluster again, nothing has been served yet",
        ));
        return Step::rest();
    };
    let url = pass.peer_url(seed.serial);
    let formed = pass.observed.etcd.list.as_ref().and_then(|list| match list.members.as_slice() {
        [only] if only.peer_urls == [url.clone()] && !only.learner => Some((list.cluster_id, only.id)),
        _ => None,
    });
    // Both calls must agree, or one of them went to something else behind the same name.
    let answered = pass.health(seed.serial).map(|health| (health.cluster_id, health.member_id));
    let (Some((cluster_id, member_id)), true) = (formed, formed == answered) else {
        if pass.overdue() {
            notes.push(Note::new(
                reason::BOOTSTRAP_FAILED,
                format!(
                    "{} has not formed a cluster within {DEADLINE_MINUTES} minutes: {}; see its pod's events and log",
                    seed.name,
                    pass.pod_problem(seed.serial)
                ),
            ));
        }
        return Step::wait("WaitForSeed", reason::BOOTSTRAPPING, format!("{} is starting", seed.name));
    };

    let mut ledger = pass.ledger().clone();
    ledger.cluster_id = Some(names::hex_id(cluster_id));
    let restoring = ledger.restore.as_ref().is_some_and(|restore| restore.phase != RestorePhase::Complete);
    if !restoring {
        ledger.operation = None;
    }
    let serial = seed.serial;
    if let Some(seed) = ledger.member_mut(serial) {
        seed.id = Some(names::hex_id(member_id));
        seed.started = true;
        // Clients are let in only when the data is there.
        seed.serving = !restoring;
    }
    let message = format!("{} formed the cluster {cluster_id:x}", names::member(&pass.cluster.identity.name, serial));
    Step::record("RecordClusterId", ledger, Some(Notice::normal(reason::CLUSTER_FORMED, message)))
}

/// The ledger, from the annotations of the volumes that are ours; `None` if there are none.
fn rebuild(pass: &Pass<'_>, notes: &mut Vec<Note>) -> Option<Step> {
    let identity = &pass.cluster.identity;
    let mut ledger = EtcdClusterStatus { image: Some(pass.cluster.image.clone()), ..pass.ledger().clone() };
    let mut served = false;
    for (serial, seen) in &pass.observed.members {
        let Some(claim) = seen.claim.as_ref().filter(|claim| claim.owner == Ownership::Ours && !claim.retained) else {
            continue;
        };
        let serving = seen.pod.as_ref().is_some_and(|pod| pod.serving);
        served |= serving;
        ledger.cluster_id = ledger.cluster_id.or_else(|| claim.cluster_id.clone());
        ledger.members.push(MemberStatus {
            name: names::member(&identity.name, *serial),
            serial: *serial,
            id: claim.member_id.clone(),
            started: claim.member_id.is_some(),
            serving,
            ..MemberStatus::default()
        });
    }
    let first = ledger.members.first()?.serial;
    ledger.next_member_serial = ledger.members.last()?.serial + 1;
    ledger.seed = Some(SeedStatus { serial: first, token: names::cluster_token(&identity.uid, first) });
    let unfinished = ledger.members.iter().find(|member| member.id.is_none()).cloned();
    ledger.operation = unfinished.map(|member| {
        let kind = if ledger.cluster_id.is_some() { OperationKind::ScaleUp } else { OperationKind::Bootstrap };
        pass.operation(kind, &member, chrono::Duration::minutes(DEADLINE_MINUTES))
    });
    if pass.cluster.restore.is_some() {
        // A restore replaces all data, so it must not run a second time over a cluster that has served.
        let succeeded = pass.observed.restore_job.as_ref().is_some_and(|job| job.state == JobState::Succeeded);
        let done = served || succeeded || ledger.members.len() > 1;
        if !done && pass.observed.members.get(&first).is_none_or(|seen| seen.pod.is_none()) {
            notes.push(Note::new(
                reason::RESTORE_FAILED,
                "the status was lost, and whether the restore was done shows only when the seed's pod is back",
            ));
            return Some(Step { requeue: BUSY, ..Step::rest() });
        }
        let phase = if done { RestorePhase::Complete } else { RestorePhase::Pending };
        ledger.restore = Some(RestoreStatus { phase, ..RestoreStatus::default() });
    }
    let restoring = ledger.restore.as_ref().is_some_and(|restore| restore.phase == RestorePhase::Pending);
    for member in &mut ledger.members {
        member.serving |= member.started && !restoring;
    }
    let message = format!("the status was lost and is rebuilt from {} volume claims", ledger.members.len());
    Some(Step::record("RebuildLedger", ledger, Some(Notice::warning(reason::STATUS_REBUILT, message))))
}
