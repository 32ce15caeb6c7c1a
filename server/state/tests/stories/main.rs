//! Stories of the state machine, told through its public face on the memory engine; that of its readers on those on disk, too.

// clippy.toml allows these in test functions; here all functions are a test's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod adopt;
mod auth;
mod compact;
mod fuzz;
mod gate;
mod golden;
mod kv;
mod lease;
mod member;
mod model;
mod property;
mod range;
mod readers;
mod restart;
mod restore;
mod rooms;
mod snapshot;
mod txn;
mod watched;
