//! Verbs beside running a member.

pub mod grpc_proxy;
pub mod offline;
pub mod output;
