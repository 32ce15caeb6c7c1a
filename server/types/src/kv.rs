//! A key's value with its history, and what happens to keys.

use crate::{LeaseId, Revision};
use bytes::Bytes;

/// A key and its value as one revision left them (etcd's `mvccpb.KeyValue`). A tombstone has only the key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// Main revision of the put that created the key's current life.
    pub create_revision: i64,
    /// Main revision of the last put.
    pub mod_revision: i64,
    /// Puts since creation, from 1. Zero in a tombstone.
    pub version: i64,
    /// The value.
    pub value: Bytes,
    /// The lease that the key is attached to.
    pub lease: LeaseId,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was written.
    Put,
    /// It was deleted; the event's `kv` has key and mod revision only.
    Delete,
}

/// One change, as watchers see it. Events are ordered by revision; those of one main revision belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Put or delete.
    pub kind: EventKind,
    /// The key after the change.
    pub kv: KeyValue,
    /// Where in history.
    pub revision: Revision,
}
