//! Stories of the state machine, told through its public face on the memory engine.

mod compact;
mod kv;
mod lease;
mod member;
mod model;
mod property;
mod range;
mod restart;
mod restore;
mod rooms;
mod snapshot;
mod txn;
