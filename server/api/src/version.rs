//! The versions that clients are told.

/// The etcd release whose API this server serves. Clients choose features by it (kube-apiserver asks for progress
/// requests from 3.4.31 on), so it is etcd's number and not ours.
pub const SERVER: &str = "3.7.1";
