//! Who may do what, at one moment of the auth store: what readers and the applier hold requests against.

use super::Auth;
use super::record::{Role, User};
use bytes::Bytes;
use ferretcd_types::{Client, Error, KeyRange, Put, Range, Txn, TxnOp};
use std::collections::BTreeMap;

/// The role that may do everything.
pub(crate) const ROOT: &str = "root";

/// One moment of the auth store, worked out for checking. Made anew by each change of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permits {
    enabled: bool,
    revision: u64,
    users: BTreeMap<Bytes, Rights>,
}

/// What one user may do through all of its roles together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rights {
    roles: Vec<String>,
    read: Intervals,
    write: Intervals,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To see values, or that keys are there.
    Read,
    /// To write or delete.
    Write,
}

impl Permits {
    /// Works a moment out. A record that cannot be read gives no right; restores refuse such records.
    pub(crate) fn of(auth: &Auth) -> Permits {
        let mut users = BTreeMap::new();
        for (name, record) in &auth.users {
            let Ok(user) = User::decode(record.clone()) else { continue };
            let mut permissions = Vec::new();
            for role in &user.roles {
                let record = auth.roles.get(role.as_bytes()).cloned();
                if let Some(Ok(role)) = record.map(Role::decode) {
                    permissions.extend(role.permissions);
                }
            }
            let read = Intervals::of(permissions.iter().filter(|p| p.reads()).map(|p| &p.range));
            let write = Intervals::of(permissions.iter().filter(|p| p.writes()).map(|p| &p.range));
            users.insert(name.clone(), Rights { roles: user.roles, read, write });
        }
        Permits { enabled: auth.enabled, revision: auth.revision, users }
    }

    /// Whether anything is refused at all.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// The auth revision of this moment.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether a client may read or write all keys of a range.
    pub fn check(&self, client: &Client, access: Access, range: &KeyRange) -> Result<(), Error> {
        if !self.enabled {
            return Ok(());
        }
        if client.auth_revision == 0 {
            return Err(Error::UserEmpty);
        }
        if client.auth_revision < self.revision {
            return Err(Error::AuthOldRevision);
        }
        let rights = self.users.get(client.user.as_bytes()).ok_or(Error::PermissionDenied)?;
        let intervals = match access {
            Access::Read => &rights.read,
            Access::Write => &rights.write,
        };
        match rights.has(ROOT) || intervals.cover(range) {
            true => Ok(()),
            false => Err(Error::PermissionDenied),
        }
    }

    /// Whether a client may do what only root may.
    pub fn check_root(&self, client: &Client) -> Result<(), Error> {
        if !self.enabled {
            return Ok(());
        }
        if client.user.is_empty() {
            return Err(Error::UserEmpty);
        }
        let rights = self.users.get(client.user.as_bytes()).ok_or(Error::UserNotFound)?;
        match rights.has(ROOT) {
            true => Ok(()),
            false => Err(Error::PermissionDenied),
        }
    }

    /// Whether a client may do what every user may. As in etcd nobody looks whether the user exists: whoever showed a
    /// certificate is one, also without a name in it.
    pub fn check_user(&self, client: &Client) -> Result<(), Error> {
        match self.enabled && client.user.is_empty() && client.auth_revision == 0 {
            true => Err(Error::UserEmpty),
            false => Ok(()),
        }
    }

    /// Whether a client may look at a user: itself, or anyone if it is root.
    pub fn check_see_user(&self, client: &Client, user: &str) -> Result<(), Error> {
        self.check_root(client).or_else(|refusal| if client.user == user { Ok(()) } else { Err(refusal) })
    }

    /// Whether a client may look at a role: one that it has, or any if it is root.
    pub fn check_see_role(&self, client: &Client, role: &str) -> Result<(), Error> {
        self.check_root(client).or_else(|refusal| if self.has_role(&client.user, role) { Ok(()) } else { Err(refusal) })
    }

    /// Whether a client may read what a range asks for.
    pub fn check_range(&self, client: &Client, range: &Range) -> Result<(), Error> {
        self.check(client, Access::Read, &range.range)
    }

    /// Whether a client may do all that a transaction might: compares and both branches, however it ends. `keys_of`
    /// gives the keys of a put's lease.
    pub(crate) fn check_txn(
        &self,
        client: &Client,
        txn: &Txn,
        keys_of: &dyn Fn(&Put) -> Vec<Bytes>,
    ) -> Result<(), Error> {
        for compare in &txn.compares {
            self.check(client, Access::Read, &compare.range)?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match op {
                TxnOp::Range(range) => self.check_range(client, range)?,
                TxnOp::Put(put) => self.check_put(client, put, &keys_of(put))?,
                TxnOp::DeleteRange(delete) => self.check_delete(client, &delete.range, delete.prev_kv)?,
                TxnOp::Txn(inner) => self.check_txn(client, inner, keys_of)?,
            }
        }
        Ok(())
    }

    /// As [`Permits::check_txn`], for a transaction that writes nothing. It is refused to an old token even if it reads
    /// nothing either.
    pub fn check_read_txn(&self, client: &Client, txn: &Txn) -> Result<(), Error> {
        self.check_txn(client, txn, &|_| Vec::new())?;
        match self.enabled && client.auth_revision != 0 && client.auth_revision < self.revision {
            true => Err(Error::AuthOldRevision),
            false => Ok(()),
        }
    }

    /// Whether a client may put. Who cannot write all keys of a lease could not end it, and so must not hang another
    /// key on it.
    pub(crate) fn check_put(&self, client: &Client, put: &Put, lease_keys: &[Bytes]) -> Result<(), Error> {
        let key = KeyRange::single(put.key.clone());
        self.check(client, Access::Write, &key)?;
        self.check_lease(client, lease_keys)?;
        match put.prev_kv {
            true => self.check(client, Access::Read, &key),
            false => Ok(()),
        }
    }

    pub(crate) fn check_delete(&self, client: &Client, range: &KeyRange, prev_kv: bool) -> Result<(), Error> {
        self.check(client, Access::Write, range)?;
        match prev_kv {
            true => self.check(client, Access::Read, range),
            false => Ok(()),
        }
    }

    /// Whether a client may renew or end a lease with these keys.
    pub fn check_lease(&self, client: &Client, keys: &[Bytes]) -> Result<(), Error> {
        if !self.enabled || self.has_role(&client.user, ROOT) {
            return Ok(());
        }
        keys.iter().try_for_each(|key| self.check(client, Access::Write, &KeyRange::single(key.clone())))
    }

    fn has_role(&self, user: &str, role: &str) -> bool {
        self.users.get(user.as_bytes()).is_some_and(|rights| rights.has(role))
    }
}

impl Rights {
    fn has(&self, role: &str) -> bool {
        self.roles.iter().any(|r| r == role)
    }
}

/// Keys from a first one up to, and without, an end; no end is all that follow.
type Interval = (Bytes, Option<Bytes>);

/// Intervals in order that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Intervals(Vec<Interval>);

impl Intervals {
    fn of<'a>(ranges: impl Iterator<Item = &'a KeyRange>) -> Intervals {
        let mut all: Vec<Interval> = ranges.filter(|range| !range.is_empty()).map(interval).collect();
        all.sort();
        let mut merged: Vec<Interval> = Vec::with_capacity(all.len());
        for (start, end) in all {
            match merged.last_mut() {
                Some((_, last)) if last.as_ref().is_none_or(|last| *last >= start) => {
                    if is_longer(&end, last) {
                        *last = end;
                    }
                }
                _ => merged.push((start, end)),
            }
        }
        Intervals(merged)
    }

    /// True when one interval holds the whole range. Of a range that is empty (its end does not follow its start) both
    /// ends must lie in it, as in etcd.
    fn cover(&self, range: &KeyRange) -> bool {
        let (start, end) = interval(range);
        let after = self.0.partition_point(|(first, _)| *first <= start);
        let Some((first, last)) = after.checked_sub(1).and_then(|at| self.0.get(at)) else { return false };
        last.as_ref().is_none_or(|last| start < *last)
            && end.as_ref().is_none_or(|end| first <= end)
            && !is_longer(&end, last)
    }
}

fn interval(range: &KeyRange) -> Interval {
    let end = if range.is_from_key() {
        None
    } else if range.is_single() {
        // The first key after this one.
        Some([range.start.as_ref(), b"\0"].concat().into())
    } else {
        Some(range.end.clone())
    };
    (range.start.clone(), end)
}

fn is_longer(a: &Option<Bytes>, b: &Option<Bytes>) -> bool {
    match (a, b) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(a), Some(b)) => a > b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_cover_what_spans_them() {
        let ranges = [
            KeyRange::new("a", "b"),
            KeyRange::new("b", "c"),
            KeyRange::single("k"),
            KeyRange::new("k\0", "m"),
            KeyRange::new("x", "\0"),
            KeyRange::new("z", "y"),
        ];
        let intervals = Intervals::of(ranges.iter());
        assert_eq!(intervals.0.len(), 3);
        for (start, end, expected) in [
            ("a", "c", true),
            ("a", "ca", false),
            ("bb", "", true),
            ("c", "", false),
            ("k", "m", true),
            ("k", "\0", false),
            ("x", "\0", true),
            ("y", "\0", true),
            ("w", "\0", false),
            ("a", "\0", false),
            ("", "\0", false),
            ("zzz", "", true),
            // Empty ranges, as etcd answers them.
            ("bb", "ba", true),
            ("ba", "ba", true),
            ("b", "a", true),
            ("d", "a", false),
            ("z", "a", false),
        ] {
            assert_eq!(intervals.cover(&KeyRange::new(start, end)), expected, "{start:?}..{end:?}");
        }
        assert!(!Intervals::default().cover(&KeyRange::single("a")));
    }
}
