//! Users, roles and whether they count. The truth is etcd's own records, which snapshots and restores carry as they are;
//! what they allow is worked out from them ([`permits`]).

mod change;
pub(crate) mod permits;
mod record;

use crate::StateError;
use bytes::Bytes;
use ferretcd_storage::{Batch, keyspace};
use ferretcd_types::wire::{DecodeError, Reader, Writer};
use ferretcd_types::{Error, KeyRange, Permission};
use std::collections::BTreeMap;

pub(crate) use change::Dropped;
use permits::ROOT;
use record::{Role, User};

/// A user as the Auth service sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserView {
    /// Its roles, in order.
    pub roles: Vec<String>,
    /// bcrypt's text.
    pub hash: Bytes,
    /// It has no password, and its certificate says who it is.
    pub no_password: bool,
}

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
    fn user(&self, name: &str) -> Result<Option<User>, Error> {
        let record = self.users.get(name.as_bytes()).cloned();
        record.map(User::decode).transpose().map_err(Error::internal)
    }

    fn role(&self, name: &str) -> Result<Option<Role>, Error> {
        let record = self.roles.get(name.as_bytes()).cloned();
        record.map(Role::decode).transpose().map_err(Error::internal)
    }

    /// One user.
    pub fn user_view(&self, name: &str) -> Result<Option<UserView>, Error> {
        let view = |User { name: _, hash, roles, no_password }| UserView { roles, hash, no_password };
        Ok(self.user(name)?.map(view))
    }

    /// The permissions of one role. Root's are not written down: it has all.
    pub fn permissions(&self, name: &str) -> Result<Option<Vec<Permission>>, Error> {
        let all = Permission { kind: Permission::READ_WRITE, range: KeyRange::new("", "\0") };
        Ok(self.role(name)?.map(|role| if name == ROOT { vec![all] } else { role.permissions }))
    }

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

/// The name inside an `authpb.User`, checking the rest.
pub(crate) fn user_name(value: Bytes) -> Result<Bytes, DecodeError> {
    User::decode(value).map(|user| user.name)
}

/// The name inside an `authpb.Role`, checking the rest.
pub(crate) fn role_name(value: Bytes) -> Result<Bytes, DecodeError> {
    Role::decode(value).map(|role| role.name)
}
