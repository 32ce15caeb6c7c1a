//! What each change of users, roles and permissions does, and what it is refused with: etcd's rules, in etcd's order.

use super::permits::ROOT;
use super::record::{Role, User};
use super::{Auth, NAME_BYTES_MAX, encode_state};
use bytes::Bytes;
use ferretcd_storage::{Batch, keyspace};
use ferretcd_types::{AuthChange, Error, KeyRange, Permission};

/// The auth store after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    pub auth: Auth,
    /// Whose simple tokens end with it.
    pub dropped: Dropped,
}

/// Whose simple tokens end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    Nobodys,
    Of(String),
    All,
}

impl Auth {
    /// Decides a change. `None` is one that changes nothing; its records are in the batch otherwise.
    pub fn change(&self, change: &AuthChange, batch: &mut Batch) -> Result<Option<Changed>, Error> {
        let mut next = self.clone();
        let mut dropped = Dropped::Nobodys;
        match change {
            AuthChange::Enable => {
                if self.enabled {
                    return Ok(None);
                }
                let root = self.user(ROOT)?.ok_or(Error::RootUserNotExist)?;
                if !root.roles.iter().any(|role| role == ROOT) {
                    return Err(Error::RootRoleNotExist);
                }
                next.enabled = true;
                batch.put(keyspace::META_AUTH, encode_state(true, next.revision));
                return Ok(Some(Changed { auth: next, dropped }));
            }
            AuthChange::Disable => {
                if !self.enabled {
                    return Ok(None);
                }
                next.enabled = false;
                dropped = Dropped::All;
            }
            AuthChange::UserAdd { name, hash, no_password } => {
                fitting(name, Error::UserEmpty)?;
                if self.users.contains_key(name.as_bytes()) {
                    return Err(Error::UserExists);
                }
                let (hash, no_password) = (hash.clone(), *no_password);
                next.put_user(User { name: copied(name), hash, roles: Vec::new(), no_password }, batch);
            }
            AuthChange::UserDelete { name } => {
                if self.enabled && name == ROOT {
                    return Err(Error::InvalidAuthManagement);
                }
                next.users.remove(name.as_bytes()).ok_or(Error::UserNotFound)?;
                batch.delete(keyspace::user(name.as_bytes()));
                dropped = Dropped::Of(name.clone());
            }
            AuthChange::UserChangePassword { name, hash } => {
                let mut user = self.user(name)?.ok_or(Error::UserNotFound)?;
                user.hash = if user.no_password { Bytes::new() } else { hash.clone() };
                next.put_user(user, batch);
                dropped = Dropped::Of(name.clone());
            }
            AuthChange::UserGrantRole { user, role } => {
                let mut user = self.user(user)?.ok_or(Error::UserNotFound)?;
                // Root may be given before there is a role of that name, and needs none to count.
                if role != ROOT && !self.roles.contains_key(role.as_bytes()) {
                    return Err(Error::RoleNotFound);
                }
                let Err(at) = user.roles.binary_search(role) else { return Ok(None) };
                user.roles.insert(at, role.clone());
                next.put_user(user, batch);
            }
            AuthChange::UserRevokeRole { user, role } => {
                if self.enabled && user == ROOT && role == ROOT {
                    return Err(Error::InvalidAuthManagement);
                }
                let mut user = self.user(user)?.ok_or(Error::UserNotFound)?;
                if !user.lose(role) {
                    return Err(Error::RoleNotGranted);
                }
                next.put_user(user, batch);
            }
            AuthChange::RoleAdd { name } => {
                fitting(name, Error::RoleEmpty)?;
                if self.roles.contains_key(name.as_bytes()) {
                    return Err(Error::RoleExists);
                }
                next.put_role(Role { name: copied(name), permissions: Vec::new() }, batch);
            }
            AuthChange::RoleDelete { name } => {
                if self.enabled && name == ROOT {
                    return Err(Error::InvalidAuthManagement);
                }
                next.roles.remove(name.as_bytes()).ok_or(Error::RoleNotFound)?;
                batch.delete(keyspace::role(name.as_bytes()));
                for record in self.users.values() {
                    let mut user = User::decode(record.clone()).map_err(Error::internal)?;
                    if user.lose(name) {
                        next.put_user(user, batch);
                    }
                }
            }
            AuthChange::RoleGrantPermission { role, permission } => {
                let permission = permission.as_ref().ok_or(Error::PermissionNotGiven)?;
                if !names_keys(&permission.range) {
                    return Err(Error::InvalidAuthManagement);
                }
                let mut role = self.role(role)?.ok_or(Error::RoleNotFound)?;
                grant(&mut role.permissions, permission);
                next.put_role(role, batch);
            }
            AuthChange::RoleRevokePermission { role, range } => {
                let mut role = self.role(role)?.ok_or(Error::RoleNotFound)?;
                let before = role.permissions.len();
                role.permissions.retain(|permission| permission.range != *range);
                if role.permissions.len() == before {
                    return Err(Error::PermissionNotGranted);
                }
                next.put_role(role, batch);
            }
        }
        next.revision += 1;
        batch.put(keyspace::META_AUTH, encode_state(next.enabled, next.revision));
        Ok(Some(Changed { auth: next, dropped }))
    }

    fn put_user(&mut self, user: User, batch: &mut Batch) {
        let record = user.encode();
        batch.put(keyspace::user(&user.name), record.clone());
        self.users.insert(user.name, record);
    }

    fn put_role(&mut self, role: Role, batch: &mut Batch) {
        let record = role.encode();
        batch.put(keyspace::role(&role.name), record.clone());
        self.roles.insert(role.name, record);
    }
}

impl User {
    /// Takes a role away; false when the user had it not.
    fn lose(&mut self, role: &str) -> bool {
        let before = self.roles.len();
        self.roles.retain(|r| r != role);
        self.roles.len() < before
    }
}

fn copied(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

/// A name must be there, and fit a key of the store.
fn fitting(name: &str, empty: Error) -> Result<(), Error> {
    match name.len() {
        0 => Err(empty),
        1..=NAME_BYTES_MAX => Ok(()),
        _ => Err(Error::RequestTooLarge),
    }
}

/// True when a permission can be meant: a key, or a range with something in it.
fn names_keys(range: &KeyRange) -> bool {
    !range.start.is_empty() && !range.is_empty()
}

/// Adds a permission in the order of first keys, or changes the kind of the one that is there. As in etcd only the
/// first of those with the same first key is looked at.
fn grant(permissions: &mut Vec<Permission>, given: &Permission) {
    let at = permissions.partition_point(|p| p.range.start < given.range.start);
    match permissions.get_mut(at) {
        Some(there) if there.range == given.range => there.kind = given.kind,
        _ => {
            let end = permissions.partition_point(|p| p.range.start <= given.range.start);
            permissions.insert(end, given.clone());
        }
    }
}
