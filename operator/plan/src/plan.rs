//! One pass over an EtcdCluster.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::action::Action;
use crate::observed::Observed;
use crate::validate::Cluster;

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

impl Plan {
    /// A pass that does nothing.
    pub fn idle(requeue: Duration) -> Plan {
        Plan { actions: Vec::new(), requeue, step: None, waiting: None, notes: Vec::new() }
    }
}

/// Decides one pass over a valid cluster that is not being deleted.
pub fn plan(_cluster: &Cluster, _observed: &Observed, _now: DateTime<Utc>) -> Plan {
    Plan::idle(Duration::from_secs(30))
}
