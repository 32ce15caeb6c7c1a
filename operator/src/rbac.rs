//! The rights that the operator needs, next to the code that uses them. The chart's role is generated from here, so that an
//! action on a new kind cannot be forgotten there.

use ferretcd_operator_plan::Kind;
use serde::Serialize;

/// One rule of a Role or ClusterRole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// The group; empty for the core.
    pub api_groups: Vec<&'static str>,
    /// Plural names, `/status` for the subresource.
    pub resources: Vec<&'static str>,
    /// What may be done.
    pub verbs: Vec<&'static str>,
}

/// Reading, by live reads and by watches that wake us.
const READ: [&str; 3] = ["get", "list", "watch"];
/// Reading, and `Create`, `Apply` and `Delete` of `act`.
const MANAGE: [&str; 6] = ["get", "list", "watch", "create", "patch", "delete"];
/// Every kind that an action can make or delete.
pub const KINDS: [Kind; 6] = [
    Kind::Service,
    Kind::PersistentVolumeClaim,
    Kind::StatefulSet,
    Kind::PodDisruptionBudget,
    Kind::Job,
    Kind::EtcdBackup,
];

/// Group and plural of a kind.
pub fn resource(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Service => ("", "services"),
        Kind::PersistentVolumeClaim => ("", "persistentvolumeclaims"),
        Kind::StatefulSet => ("apps", "statefulsets"),
        Kind::PodDisruptionBudget => ("policy", "poddisruptionbudgets"),
        Kind::Job => ("batch", "jobs"),
        Kind::EtcdBackup => ("ferretcd.io", "etcdbackups"),
    }
}

/// All rules, least privilege: no wildcard, no Secret, nothing outside of what `observe` reads and `act` writes.
pub fn rules() -> Vec<Rule> {
    let rule = |group: &'static str, resources: &[&'static str], verbs: &[&'static str]| Rule {
        api_groups: vec![group],
        resources: resources.to_vec(),
        verbs: verbs.to_vec(),
    };
    let mut rules = vec![
        // The finalizer is a patch; the status is a PUT.
        rule("ferretcd.io", &["etcdclusters"], &["get", "list", "watch", "patch"]),
        rule("ferretcd.io", &["etcdbackupschedules"], &READ),
        rule("ferretcd.io", &["etcdclusters/status", "etcdbackups/status", "etcdbackupschedules/status"], &["update"]),
        // Pods are made by StatefulSets and Jobs; we only put the label `serving` on them.
        rule("", &["pods"], &["get", "list", "watch", "patch"]),
        rule("events.k8s.io", &["events"], &["create", "patch"]),
    ];
    rules.extend(KINDS.into_iter().map(|kind| {
        let (group, plural) = resource(kind);
        rule(group, &[plural], &MANAGE)
    }));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the chart installs.
    const IN_CHART: &str = include_str!("../../charts/ferretcd-operator/files/rules.yaml");

    #[test]
    fn the_chart_grants_what_every_action_needs() {
        let granted: Vec<serde_json::Value> = crate::yaml::parse(IN_CHART).unwrap();
        let has = |list: &serde_json::Value, item: &str| list.as_array().unwrap().iter().any(|value| value == item);
        for kind in KINDS {
            let (group, plural) = resource(kind);
            for verb in MANAGE {
                let allowed = granted.iter().any(|rule| {
                    has(&rule["apiGroups"], group) && has(&rule["resources"], plural) && has(&rule["verbs"], verb)
                });
                assert!(allowed, "the chart does not allow to {verb} {plural}");
            }
        }
    }

    #[test]
    fn no_rule_has_a_wildcard_or_reaches_secrets() {
        for rule in rules() {
            let words = rule.api_groups.iter().chain(&rule.resources).chain(&rule.verbs);
            assert!(words.clone().all(|word| !word.contains('*')), "{rule:?}");
            assert!(!rule.resources.contains(&"secrets"), "{rule:?}");
        }
    }
}
