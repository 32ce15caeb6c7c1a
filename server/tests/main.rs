//! The server as real processes, through its clients: one story after another for each file here. They are one program,
//! since each would be compiled and linked anew with all that they share, and since most of them wait for processes and can
//! do so beside each other.

// Clippy's leave for tests does not reach their helper functions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

mod auth;
mod chaos;
mod clients;
mod corruption;
mod differential;
mod discovery;
mod discovery_srv;
mod disk_faults;
mod engines;
mod errors;
mod etcdctl;
mod flags;
mod gateway;
mod golden;
mod grpc_proxy;
mod large_snapshot;
mod limits;
mod lock_election;
mod maintenance;
mod members;
mod messages;
mod metrics;
mod mixed_versions;
mod offline;
mod one_member;
mod partitions;
mod peers;
mod power_cut;
mod range_stream;
mod recipes;
mod snapshot_restore;
mod three_members;
mod tls;
mod tracing;
mod watchers;
