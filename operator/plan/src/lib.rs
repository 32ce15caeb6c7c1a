//! The operator's decisions, pure: no client, no async, no clock. A pass is `Observed` in, `Plan` out; the binary's `observe`
//! and `act` are the only parts that touch the world.
//!
//! ```text
//! let identity = Identity::of(&object)?;
//! let plan = if identity.deleting { delete(&identity, policy, &observed) }
//!            else { match validate(&object, &settings) { Ok(cluster) => plan(&cluster, &observed, now),
//!                                                        Err(rejections) => rejections.plan() } };
//! let outcome = act(&plan.actions);
//! patch_status(status(&identity, replicas, &observed, &plan, &outcome, now));
//! requeue(plan.requeue)
//! ```

pub mod action;
pub mod backup;
mod bootstrap;
pub mod build;
pub mod deletion;
pub mod observed;
pub mod plan;
mod restore;
pub mod scale;
pub mod schedule;
pub mod status;
pub mod time;
pub mod validate;

pub use action::{Action, Fault, Kind, Notice, Object, Outcome, Target};
pub use backup::{BackupObserved, BackupPlan, plan_backup};
pub use deletion::delete;
pub use observed::{
    Alarm, EtcdView, JobState, ListedMember, MemberHealth, MemberList, Observed, Ownership, Probe, Seen, SeenClaim,
    SeenJob, SeenMember, SeenObjects, SeenPod, SeenStatefulSet,
};
pub use plan::{Note, Plan, plan};
pub use schedule::{ScheduleObserved, SchedulePlan, SeenBackup, plan_schedule};
pub use status::status;
pub use validate::{Cluster, Identity, Rejection, Rejections, Settings, validate};
