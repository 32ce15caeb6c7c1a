//! The raft group: openraft behind one door, our log under it and our state machine above it.
//!
//! The only crate that names openraft. It knows nothing of etcd's semantics: proposals are bytes, and what applying
//! them does goes to [`Effects`].

pub mod config;
pub mod entry;
pub mod group;
pub mod identity;
mod log;
mod machine;
mod observer;
mod offer;
pub mod offline;
pub mod snapshot;
#[cfg(test)]
mod suite;
pub mod transport;
mod types;

pub use config::Timing;
pub use group::{Group, GroupError, GroupParts, GroupView, Progress, Role};
pub use identity::{Identity, PeerIdentity};
pub use machine::{Effects, blocking};
pub use observer::{PeerObserver, Way};
pub use transport::client::Peers;
