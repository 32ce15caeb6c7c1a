//! A running member: time, tasks and waiting. Everything above holds a [`Node`].
//!
//! Below this floor nothing reads a clock; above it nothing knows raft.

mod admission;
mod aside;
pub mod auth;
pub mod boot;
pub mod cluster;
pub mod corruption;
mod difference;
pub mod discovered;
pub mod downgrade;
pub mod health;
mod ids;
pub mod lease;
pub mod maintenance;
pub mod metrics;
pub mod names;
pub mod node;
pub mod offline;
mod process;
mod propose;
mod read;
pub mod simulated;
pub mod status;
mod waiters;
pub mod watch;
mod workers;

pub use ferretcd_state::Pace;

pub use auth::jwt::Jwt;
pub use auth::{AuthConfig, Credential, Standing, TokenKind};
pub use boot::{Boot, BootConfig, BootError, ClusterState, Intent, Member};
pub use corruption::CorruptionChecks;
pub use health::Check;
pub use lease::LeaseTtl;
pub use maintenance::{RestoreSpool, SnapshotStream};
pub use node::{AutoCompaction, Header, Node, NodeConfig};
pub use offline::Force;
pub use read::RangePages;
pub use status::Status;
pub use watch::{WatchCreate, WatchMessage, WatchStream};
