//! Algorithm M: the end of a cluster.

use std::time::Duration;

use ferretcd_operator_api::DeletionPolicy;

use crate::observed::Observed;
use crate::plan::Plan;
use crate::validate::Identity;

/// Decides one pass over a cluster that is being deleted, whatever its spec says.
pub fn delete(_identity: &Identity, _policy: DeletionPolicy, _observed: &Observed) -> Plan {
    Plan::idle(Duration::from_secs(2))
}
