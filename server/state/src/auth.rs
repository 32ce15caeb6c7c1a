//! Users, roles and whether they count, as raw etcd records: this server carries them through snapshots and restores.

use crate::StateError;
use bytes::Bytes;
use ferretcd_storage::{Batch, keyspace};
use ferretcd_types::wire::{DecodeError, Reader, Writer};
use std::collections::BTreeMap;

/// Longest name of a user or role in bytes: with the prefixes of a staged record it must fit a key of the store.
pub(crate) const NAME_BYTES_MAX: usize = ferretcd_storage::MAX_KEY_BYTES - 2;

/// The auth store. Sees no other room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Auth {
    pub enabled: bool,
    /// Grows with every change of a user or role; a fresh store stands at 1.
    pub revision: u64,
    /// Name to `authpb.User`.
    pub users: BTreeMap<Bytes, Bytes>,
    /// Name to `authpb.Role`.
    pub roles: BTreeMap<Bytes, Bytes>,
}

impl Default for Auth {
    fn default() -> Self {
        Auth { enabled: false, revision: 1, users: BTreeMap::new(), roles: BTreeMap::new() }
    }
}

impl Auth {
    /// Adds all records of the room.
    pub fn save(&self, batch: &mut Batch) {
        batch.put(keyspace::META_AUTH, encode_state(self.enabled, self.revision));
        for (name, user) in &self.users {
            batch.put(keyspace::user(name), user.clone());
        }
        for (name, role) in &self.roles {
            batch.put(keyspace::role(name), role.clone());
        }
    }

    /// Adds the deletion of all users and roles.
    pub fn delete(&self, batch: &mut Batch) {
        for name in self.users.keys() {
            batch.delete(keyspace::user(name));
        }
        for name in self.roles.keys() {
            batch.delete(keyspace::role(name));
        }
    }

    /// Takes in the record [`keyspace::META_AUTH`].
    pub fn load_state(&mut self, value: Bytes) -> Result<(), StateError> {
        (self.enabled, self.revision) = decode_state(value).map_err(StateError::record("the auth state"))?;
        Ok(())
    }
}

/// The record [`keyspace::META_AUTH`].
pub(crate) fn encode_state(enabled: bool, revision: u64) -> Bytes {
    let mut w = Writer::new();
    w.bool(1, enabled);
    w.uint(2, revision);
    w.finish()
}

fn decode_state(value: Bytes) -> Result<(bool, u64), DecodeError> {
    const WHAT: &str = "auth state";
    let mut r = Reader::new(WHAT, value);
    let (mut enabled, mut revision) = (false, 0);
    while let Some((n, v)) = r.field()? {
        match n {
            1 => enabled = v.bool(WHAT)?,
            2 => revision = v.uint(WHAT)?,
            _ => {}
        }
    }
    Ok((enabled, revision))
}

/// The name inside an `authpb.User` or `authpb.Role` (field 1 of both), checking that the rest is protobuf.
pub(crate) fn name_of(value: Bytes) -> Result<Bytes, DecodeError> {
    const WHAT: &str = "user or role";
    let mut r = Reader::new(WHAT, value);
    let mut name = Bytes::new();
    while let Some((n, v)) = r.field()? {
        if n == 1 {
            name = v.bytes(WHAT)?;
        }
    }
    Ok(name)
}
