//! The bytes of who asks, and of changes of the auth store.

use bytes::Bytes;

use crate::wire::{DecodeError, Reader, Writer};
use crate::{AuthChange, Authenticate, Client, KeyRange, Permission};

/// The message beside a client's command. It is there, though empty, for a client that did not say who it is.
pub(super) fn encode_client(client: &Client) -> Bytes {
    let mut w = Writer::new();
    w.str(1, &client.user);
    w.uint(2, client.auth_revision);
    w.finish()
}

pub(super) fn decode_client(bytes: Bytes) -> Result<Client, DecodeError> {
    const WHAT: &str = "caller";
    let mut r = Reader::new(WHAT, bytes);
    let mut client = Client::default();
    while let Some((n, v)) = r.field()? {
        match n {
            1 => client.user = v.string(WHAT)?,
            2 => client.auth_revision = v.uint(WHAT)?,
            _ => {}
        }
    }
    Ok(client)
}

pub(super) fn authenticate(w: &mut Writer, a: &Authenticate) {
    w.str(1, &a.user);
    w.str(2, &a.token);
}

pub(super) fn decode_authenticate(bytes: Bytes) -> Result<Authenticate, DecodeError> {
    const WHAT: &str = "authentication";
    let mut r = Reader::new(WHAT, bytes);
    let mut a = Authenticate::default();
    while let Some((n, v)) = r.field()? {
        match n {
            1 => a.user = v.string(WHAT)?,
            2 => a.token = v.string(WHAT)?,
            _ => {}
        }
    }
    Ok(a)
}

/// One field, whose number is the kind of change. Its message has 1 whom it is about, 2 what is given or taken,
/// 3 a flag, 4 a permission.
pub(super) fn change(w: &mut Writer, change: &AuthChange) {
    let mut body = Writer::new();
    let kind = match change {
        AuthChange::Enable => 1,
        AuthChange::Disable => 2,
        AuthChange::UserAdd { name, hash, no_password } => {
            body.str(1, name);
            body.bytes(2, hash);
            body.bool(3, *no_password);
            3
        }
        AuthChange::UserDelete { name } => {
            body.str(1, name);
            4
        }
        AuthChange::UserChangePassword { name, hash } => {
            body.str(1, name);
            body.bytes(2, hash);
            5
        }
        AuthChange::UserGrantRole { user, role } => {
            body.str(1, user);
            body.str(2, role);
            6
        }
        AuthChange::UserRevokeRole { user, role } => {
            body.str(1, user);
            body.str(2, role);
            7
        }
        AuthChange::RoleAdd { name } => {
            body.str(1, name);
            8
        }
        AuthChange::RoleDelete { name } => {
            body.str(1, name);
            9
        }
        AuthChange::RoleGrantPermission { role, permission: given } => {
            body.str(1, role);
            if let Some(given) = given {
                body.message(4, &permission(given));
            }
            10
        }
        AuthChange::RoleRevokePermission { role, range } => {
            body.str(1, role);
            body.message(4, &permission(&Permission { kind: 0, range: range.clone() }));
            11
        }
    };
    w.message(kind, &body.finish());
}

fn permission(p: &Permission) -> Bytes {
    let mut w = Writer::new();
    w.int(1, i64::from(p.kind));
    w.bytes(2, &p.range.start);
    w.bytes(3, &p.range.end);
    w.finish()
}

fn decode_permission(bytes: Bytes) -> Result<Permission, DecodeError> {
    const WHAT: &str = "permission";
    let mut r = Reader::new(WHAT, bytes);
    let mut p = Permission::default();
    while let Some((n, v)) = r.field()? {
        match n {
            // An enum is an int32 on the wire; what does not fit is cut, as protobuf does.
            1 => p.kind = v.int(WHAT)? as i32,
            2 => p.range.start = v.bytes(WHAT)?,
            3 => p.range.end = v.bytes(WHAT)?,
            _ => {}
        }
    }
    Ok(p)
}

pub(super) fn decode_change(bytes: Bytes) -> Result<AuthChange, DecodeError> {
    const WHAT: &str = "auth change";
    let text = |bytes: Bytes| {
        String::from_utf8(bytes.to_vec()).map_err(|_| DecodeError { what: WHAT, why: "a string is not UTF-8" })
    };
    let mut r = Reader::new(WHAT, bytes);
    let mut change = None;
    while let Some((kind, v)) = r.field()? {
        let mut body = Reader::new(WHAT, v.bytes(WHAT)?);
        let (mut who, mut what, mut flag, mut given) = (Bytes::new(), Bytes::new(), false, None);
        while let Some((n, v)) = body.field()? {
            match n {
                1 => who = v.bytes(WHAT)?,
                2 => what = v.bytes(WHAT)?,
                3 => flag = v.bool(WHAT)?,
                4 => given = Some(decode_permission(v.bytes(WHAT)?)?),
                _ => {}
            }
        }
        let who = text(who)?;
        change = Some(match kind {
            1 => AuthChange::Enable,
            2 => AuthChange::Disable,
            3 => AuthChange::UserAdd { name: who, hash: what, no_password: flag },
            4 => AuthChange::UserDelete { name: who },
            5 => AuthChange::UserChangePassword { name: who, hash: what },
            6 => AuthChange::UserGrantRole { user: who, role: text(what)? },
            7 => AuthChange::UserRevokeRole { user: who, role: text(what)? },
            8 => AuthChange::RoleAdd { name: who },
            9 => AuthChange::RoleDelete { name: who },
            10 => AuthChange::RoleGrantPermission { role: who, permission: given },
            11 => {
                let range = given.map_or_else(KeyRange::default, |p| p.range);
                AuthChange::RoleRevokePermission { role: who, range }
            }
            _ => return Err(DecodeError { what: WHAT, why: "its kind is newer than this server; upgrade the server" }),
        });
    }
    change.ok_or(DecodeError { what: WHAT, why: "it is empty" })
}

/// One of each, for the codec's tests.
#[cfg(test)]
pub(super) fn all_changes() -> Vec<AuthChange> {
    let permission = Permission { kind: Permission::READ_WRITE, range: KeyRange::new("a", "\0") };
    vec![
        AuthChange::Enable,
        AuthChange::Disable,
        AuthChange::UserAdd { name: "u".into(), hash: "$2a$".into(), no_password: true },
        AuthChange::UserDelete { name: "u".into() },
        AuthChange::UserChangePassword { name: "u".into(), hash: "$2a$".into() },
        AuthChange::UserGrantRole { user: "u".into(), role: "r".into() },
        AuthChange::UserRevokeRole { user: "u".into(), role: "r".into() },
        AuthChange::RoleAdd { name: String::new() },
        AuthChange::RoleDelete { name: "r".into() },
        AuthChange::RoleGrantPermission { role: "r".into(), permission: None },
        AuthChange::RoleGrantPermission { role: "r".into(), permission: Some(permission.clone()) },
        AuthChange::RoleRevokePermission { role: "r".into(), range: permission.range },
    ]
}
