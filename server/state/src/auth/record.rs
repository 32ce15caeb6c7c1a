//! Users and roles in etcd's encoding: `authpb.User` (1 name, 2 password, 3 roles, 4 options) and `authpb.Role` (1 name,
//! 2 permissions).

use bytes::Bytes;
use ferretcd_types::wire::{DecodeError, Reader, Writer};
use ferretcd_types::{KeyRange, Permission};

/// A user. Sees no role: those are only names here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub name: Bytes,
    /// bcrypt's text; empty for a user without a password.
    pub hash: Bytes,
    /// In order, each once.
    pub roles: Vec<String>,
    pub no_password: bool,
}

impl User {
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::new();
        w.bytes(1, &self.name);
        w.bytes(2, &self.hash);
        self.roles.iter().for_each(|role| w.message(3, role.as_bytes()));
        let mut options = Writer::new();
        options.bool(1, self.no_password);
        w.message(4, &options.finish());
        w.finish()
    }

    pub fn decode(bytes: Bytes) -> Result<User, DecodeError> {
        const WHAT: &str = "user";
        let mut r = Reader::new(WHAT, bytes);
        let mut user = User::default();
        while let Some((n, v)) = r.field()? {
            match n {
                1 => user.name = v.bytes(WHAT)?,
                2 => user.hash = v.bytes(WHAT)?,
                3 => user.roles.push(v.string(WHAT)?),
                4 => {
                    let mut options = Reader::new(WHAT, v.bytes(WHAT)?);
                    while let Some((n, v)) = options.field()? {
                        if n == 1 {
                            user.no_password = v.bool(WHAT)?;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(user)
    }
}

/// A role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Role {
    pub name: Bytes,
    /// In the order of their first keys.
    pub permissions: Vec<Permission>,
}

impl Role {
    pub fn encode(&self) -> Bytes {
        let mut w = Writer::new();
        w.bytes(1, &self.name);
        for Permission { kind, range } in &self.permissions {
            let mut inner = Writer::new();
            inner.int(1, i64::from(*kind));
            inner.bytes(2, &range.start);
            inner.bytes(3, &range.end);
            w.message(2, &inner.finish());
        }
        w.finish()
    }

    pub fn decode(bytes: Bytes) -> Result<Role, DecodeError> {
        const WHAT: &str = "role";
        let mut r = Reader::new(WHAT, bytes);
        let mut role = Role::default();
        while let Some((n, v)) = r.field()? {
            match n {
                1 => role.name = v.bytes(WHAT)?,
                2 => {
                    let mut inner = Reader::new(WHAT, v.bytes(WHAT)?);
                    let mut permission = Permission { kind: Permission::READ, range: KeyRange::default() };
                    while let Some((n, v)) = inner.field()? {
                        match n {
                            1 => permission.kind = v.int(WHAT)? as i32,
                            2 => permission.range.start = v.bytes(WHAT)?,
                            3 => permission.range.end = v.bytes(WHAT)?,
                            _ => {}
                        }
                    }
                    role.permissions.push(permission);
                }
                _ => {}
            }
        }
        Ok(role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_etcds() {
        let user = User { name: "u".into(), hash: "h".into(), roles: vec!["r".into()], no_password: false };
        assert_eq!(user.encode().as_ref(), b"\x0a\x01u\x12\x01h\x1a\x01r\x22\x00");
        let certified = User { no_password: true, hash: Bytes::new(), ..user.clone() };
        assert_eq!(certified.encode().as_ref(), b"\x0a\x01u\x1a\x01r\x22\x02\x08\x01");
        let permissions = vec![
            Permission { kind: Permission::READ, range: KeyRange::single("a") },
            Permission { kind: Permission::READ_WRITE, range: KeyRange::new("b", "\0") },
        ];
        let role = Role { name: "r".into(), permissions };
        assert_eq!(role.encode().as_ref(), b"\x0a\x01r\x12\x03\x12\x01a\x12\x08\x08\x02\x12\x01b\x1a\x01\0");
        assert_eq!(User::decode(user.encode()).unwrap(), user);
        assert_eq!(User::decode(certified.encode()).unwrap(), certified);
        assert_eq!(Role::decode(role.encode()).unwrap(), role);
    }
}
