//! Algorithm M: the end of a cluster. Nobody is removed from the membership when all go; the pods stop first, then the
//! volumes are deleted or marked as kept, then the finalizer goes, and the garbage collector takes the rest.

use ferretcd_operator_api::DeletionPolicy;
use ferretcd_operator_api::status::reason;

use crate::action::{Action, Kind, Target};
use crate::observed::{Observed, Ownership};
use crate::plan::{AT_ONCE, Note, Plan, QUIET, Step};
use crate::scale::retain;
use crate::validate::Identity;

/// Decides one pass over a cluster that is being deleted, whatever its spec says. It needs nothing from etcd, and nothing of a
/// foreign owner is touched.
pub fn delete(identity: &Identity, policy: DeletionPolicy, observed: &Observed) -> Plan {
    let step = next_step(identity, policy, observed);
    let Step { actions, requeue, name, waiting } = step;
    Plan { actions, requeue, step: name, waiting, notes: Vec::new() }
}

fn next_step(identity: &Identity, policy: DeletionPolicy, observed: &Observed) -> Step {
    if !observed.finalizer {
        return Step { requeue: QUIET, ..Step::default() };
    }
    let ours = || {
        observed.members.values().filter(|seen| {
            // A pod under a foreign StatefulSet is foreign too.
            seen.stateful_set.as_ref().is_none_or(|set| set.seen.owner == Ownership::Ours)
        })
    };

    let sets: Vec<_> = ours().filter_map(|seen| seen.stateful_set.as_ref()).map(|set| &set.seen).collect();
    let stop: Vec<Action> = sets
        .iter()
        .filter(|set| !set.deleting)
        .map(|set| Action::Delete {
            target: Target { kind: Kind::StatefulSet, name: set.name.clone() },
            uid: set.uid.clone(),
        })
        .collect();
    if !stop.is_empty() {
        return Step::act("StopPods", stop);
    }
    let pods = ours().filter(|seen| seen.pod.is_some()).count();
    if !sets.is_empty() || pods > 0 {
        return Step::wait("StopPods", reason::DELETING, format!("{pods} pods of {} are stopping", identity.name));
    }

    // What an earlier removal kept stays kept, also when the policy has become Delete since.
    let claims: Vec<_> = observed
        .members
        .values()
        .filter_map(|seen| seen.claim.as_ref())
        .filter(|claim| claim.owner == Ownership::Ours && !claim.retained)
        .collect();
    let actions: Vec<Action> = match policy {
        DeletionPolicy::Retain => claims.iter().map(|claim| retain(&claim.name, &claim.uid)).collect(),
        DeletionPolicy::Delete => claims
            .iter()
            .filter(|claim| !claim.deleting)
            .map(|claim| Action::Delete {
                target: Target { kind: Kind::PersistentVolumeClaim, name: claim.name.clone() },
                uid: claim.uid.clone(),
            })
            .collect(),
    };
    if !actions.is_empty() {
        return Step::act("Volumes", actions);
    }
    if !claims.is_empty() {
        return Step {
            waiting: Some(Note::new(reason::DELETING, format!("{} volumes are being deleted", claims.len()))),
            ..Step::act("Volumes", Vec::new())
        };
    }
    Step { requeue: AT_ONCE, ..Step::act("RemoveFinalizer", vec![Action::SetFinalizer { present: false }]) }
}
