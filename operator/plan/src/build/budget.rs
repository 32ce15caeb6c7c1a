//! The PodDisruptionBudget: node drains leave a quorum of voters.

use ferretcd_operator_api::names;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{cluster_metadata, selector};
use crate::action::Object;
use crate::validate::Identity;

/// The budget for this many voters.
pub fn budget(identity: &Identity, voters: usize) -> Object {
    let quorum = i32::try_from(voters / 2 + 1).unwrap_or(i32::MAX);
    Object::PodDisruptionBudget(Box::new(PodDisruptionBudget {
        metadata: cluster_metadata(
            identity,
            names::disruption_budget(&identity.name),
            names::cluster_labels(&identity.name),
        ),
        spec: Some(PodDisruptionBudgetSpec {
            min_available: Some(IntOrString::Int(quorum)),
            selector: Some(selector(names::members_selector(&identity.name))),
            // A pod that is not ready counts for no quorum, so a drain may evict it only while enough others are.
            unhealthy_pod_eviction_policy: Some("IfHealthyBudget".to_owned()),
            max_unavailable: None,
        }),
        status: None,
    }))
}
