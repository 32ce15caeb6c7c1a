//! A running member: time, tasks and waiting. Everything above holds a [`Node`].
//!
//! Below this floor nothing reads a clock; above it nothing knows raft.

pub mod health;
pub mod lease;
pub mod node;
pub mod status;
pub mod watch;

pub use health::Check;
pub use lease::LeaseTtl;
pub use node::{Header, Node, RestoreSpool, SnapshotStream};
pub use status::Status;
pub use watch::{WatchCreate, WatchMessage, WatchStream};
