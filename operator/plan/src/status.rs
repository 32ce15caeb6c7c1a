//! The status of an EtcdCluster.

use chrono::{DateTime, Utc};
use ferretcd_operator_api::EtcdClusterStatus;

use crate::action::Outcome;
use crate::observed::Observed;
use crate::plan::Plan;
use crate::validate::Identity;

/// The status after a pass: the ledger as it is stored by now, and a fresh report from what was observed and what `act`
/// reports done. Equal to `observed.recorded` when there is nothing to write.
pub fn status(
    _identity: &Identity,
    _replicas: i32,
    observed: &Observed,
    _plan: &Plan,
    _outcome: &Outcome,
    _now: DateTime<Utc>,
) -> EtcdClusterStatus {
    observed.recorded.clone()
}
