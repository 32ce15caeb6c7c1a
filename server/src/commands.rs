//! Verbs that work on files, without a running server.

pub mod snapshot;
