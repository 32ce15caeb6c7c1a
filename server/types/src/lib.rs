//! The words that every floor of the server speaks: keys, revisions, IDs, commands, replies and errors.
//!
//! Plain values only. This crate performs no I/O, reads no clock, awaits nothing and knows neither gRPC nor sled.

pub mod auth;
pub mod codec;
pub mod command;
pub mod error;
pub mod ids;
pub mod key;
pub mod kv;
pub mod limits;
pub mod member;
pub mod revision;
pub mod wire;

pub use auth::{AuthChange, Authenticate, Authenticated, Caller, Client, Permission};
pub use command::{
    Command, Compact, Compare, CompareResult, CompareTarget, DeleteRange, DeleteRangeReply, Genesis, LeaseCheckpoint,
    LeaseGrant, LeaseGrantReply, LeaseRevoke, MemberAttributes, OpReply, Proposal, Put, PutReply, Range, RangeReply,
    Reply, RestoreAbort, RestoreBegin, RestoreChunk, RestoreCommit, RestoreRecord, RestoreReply, RestoreTotals,
    Revised, SetAlarm, SetClusterVersion, SetDowngrade, SortOrder, SortTarget, Txn, TxnOp, TxnReply, Verb,
};
pub use error::Error;
pub use ids::{ClusterId, Epoch, LeaseId, MemberId, RequestId};
pub use key::KeyRange;
pub use kv::{Event, EventKind, KeyValue};
pub use limits::Limits;
pub use member::{Alarm, AlarmKind, Member, PeerNode};
pub use revision::{LogPos, Revision};
