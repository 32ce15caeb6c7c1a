//! The replicated state machine: what every member computes alike from the log.
//!
//! Deterministic, synchronous and clockless: IDs, times and random numbers are settled before a command is proposed, so
//! that replaying the log gives the same state, the same answers and the same snapshot bytes on every member.

mod alarm;
mod apply;
mod auth;
mod effect;
mod error;
mod lease;
mod member;
mod mvcc;
mod op;
mod permit;
mod reform;
mod restore;
mod rooms;
mod snapshot;
mod state;
mod txn;
mod worker;

pub use auth::UserView;
pub use auth::permits::{Access, Permits};
pub use effect::{Applied, Effect};
pub use error::StateError;
pub use lease::{LeaseTimes, LeaseView};
pub use mvcc::compact::Pace;
pub use mvcc::hash::KvHash;
pub use mvcc::history::{EVENT_REVISIONS_MAX, EventBatch};
pub use restore::plan::{RestoreSource, restore_plan};
pub use restore::staging::RestoreProgress;
pub use snapshot::hash::snapshot_hash_kv;
pub use snapshot::install::{Adoption, snapshot_membership};
pub use snapshot::{Pinned, SnapshotError, SnapshotKind};
pub use state::State;
pub use worker::CompactionObserver;
