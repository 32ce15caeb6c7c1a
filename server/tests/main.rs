//! Stories of the server as real processes, told by its clients, a file for each subject. They are one program: forty would each be
//! compiled and linked with all that they share, and run one after the other though most of them only wait.

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
