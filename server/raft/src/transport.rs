//! Peer traffic over gRPC: the calls that openraft makes, and the calls that a follower makes to its leader.

pub mod client;
mod convert;
pub mod dial;
pub mod fetch;
pub mod forward;
mod reach;
pub mod server;
