//! Users, roles and permissions: what may be changed, and who may do what with keys and leases.

use crate::member::{Member, put};
use bytes::Bytes;
use ferretcd_state::{Access, Effect, SnapshotKind};
use ferretcd_types::{
    AuthChange, Authenticate, Authenticated, Client, Compact, Compare, CompareResult, CompareTarget, DeleteRange,
    Error, KeyRange, LeaseGrant, LeaseId, LeaseRevoke, Permission, Put, Range, RestoreBegin, Txn, TxnOp,
};

const HASH: &[u8] = b"$2a$04$a hash";

fn user_add(name: &str) -> AuthChange {
    AuthChange::UserAdd { name: name.into(), hash: Bytes::from_static(HASH), no_password: false }
}

fn role_add(name: &str) -> AuthChange {
    AuthChange::RoleAdd { name: name.into() }
}

fn grant_role(user: &str, role: &str) -> AuthChange {
    AuthChange::UserGrantRole { user: user.into(), role: role.into() }
}

fn grant(role: &str, kind: i32, start: &'static str, end: &'static str) -> AuthChange {
    let permission = Permission { kind, range: KeyRange::new(start, end) };
    AuthChange::RoleGrantPermission { role: role.into(), permission: Some(permission) }
}

/// Root, alice who writes a..c, bob who reads a..b, b..c and from x on; auth is on.
pub fn guarded() -> Member {
    let mut member = Member::new();
    for change in [
        user_add("root"),
        user_add("alice"),
        user_add("bob"),
        grant_role("root", "root"),
        role_add("writer"),
        role_add("reader"),
        grant("writer", Permission::WRITE, "a", "c"),
        grant("reader", Permission::READ, "a", "b"),
        grant("reader", Permission::READ, "b", "c"),
        grant("reader", Permission::READ, "x", "\0"),
        grant_role("alice", "writer"),
        grant_role("bob", "reader"),
        AuthChange::Enable,
    ] {
        member.ask(change).unwrap();
    }
    member
}

/// A user as of now.
pub fn known(member: &Member, user: &str) -> Client {
    Client { user: user.into(), auth_revision: member.state.permits().revision() }
}

#[test]
fn every_refusal_is_etcds_and_changes_nothing() {
    use AuthChange::{Enable, RoleDelete, RoleRevokePermission, UserChangePassword, UserDelete, UserRevokeRole};
    let mut member = Member::new();
    let revoke = |user: &str, role: &str| UserRevokeRole { user: user.into(), role: role.into() };
    let take = |role: &str, key: &'static str| RoleRevokePermission { role: role.into(), range: KeyRange::single(key) };
    let password = |name: &str| UserChangePassword { name: name.into(), hash: Bytes::from_static(HASH) };
    let nothing = |role: &str| AuthChange::RoleGrantPermission { role: role.into(), permission: None };
    assert_eq!(member.ask(Enable), Err(Error::RootUserNotExist));
    member.ask(user_add("root")).unwrap();
    assert_eq!(member.ask(Enable), Err(Error::RootRoleNotExist));
    member.ask(grant_role("root", "root")).unwrap();
    member.ask(role_add("r")).unwrap();
    member.ask(role_add("root")).unwrap();
    let before = (member.state.permits(), member.state.auth_users(), member.state.auth_roles());
    for (change, error) in [
        (user_add(""), Error::UserEmpty),
        (user_add("root"), Error::UserExists),
        (user_add(&"x".repeat(300)), Error::RequestTooLarge),
        (UserDelete { name: "no".into() }, Error::UserNotFound),
        (password("no"), Error::UserNotFound),
        (grant_role("no", "r"), Error::UserNotFound),
        (grant_role("root", "no"), Error::RoleNotFound),
        (revoke("no", "r"), Error::UserNotFound),
        (revoke("root", "r"), Error::RoleNotGranted),
        (role_add(""), Error::RoleEmpty),
        (role_add("r"), Error::RoleExists),
        (RoleDelete { name: "no".into() }, Error::RoleNotFound),
        (nothing("no"), Error::PermissionNotGiven),
        (grant("r", 0, "", ""), Error::InvalidAuthManagement),
        (grant("r", 0, "b", "a"), Error::InvalidAuthManagement),
        (grant("r", 0, "b", "b"), Error::InvalidAuthManagement),
        (grant("no", 0, "a", "b"), Error::RoleNotFound),
        (take("no", "a"), Error::RoleNotFound),
        (take("r", "a"), Error::PermissionNotGranted),
    ] {
        assert_eq!(member.ask(change.clone()), Err(error), "{change:?}");
    }
    // A role that the user has already is no change either.
    member.ask(grant_role("root", "root")).unwrap();
    assert_eq!((member.state.permits(), member.state.auth_users(), member.state.auth_roles()), before);
    member.ask(Enable).unwrap();
    let change = [UserDelete { name: "root".into() }, revoke("root", "root"), RoleDelete { name: "root".into() }];
    for change in change {
        assert_eq!(member.ask(change), Err(Error::InvalidAuthManagement));
    }
}

#[test]
fn the_auth_revision_counts_changes_and_disabling_but_not_enabling() {
    let mut member = Member::new();
    let mut step = |change: AuthChange| {
        member.ask(change).unwrap();
        member.state.permits().revision()
    };
    assert_eq!(step(user_add("root")), 2);
    assert_eq!(step(grant_role("root", "root")), 3);
    assert_eq!(step(AuthChange::Enable), 3);
    assert_eq!(step(AuthChange::Enable), 3);
    assert_eq!(step(AuthChange::Disable), 4);
    assert_eq!(step(AuthChange::Disable), 4);
}

#[test]
fn permissions_are_kept_as_etcd_keeps_them() {
    let mut member = Member::new();
    member.ask(role_add("r")).unwrap();
    for (kind, start, end) in [(0, "b", ""), (0, "a", "b"), (0, "a", "c"), (1, "a", "b"), (1, "a", "c"), (2, "b", "")] {
        member.ask(grant("r", kind, start, end)).unwrap();
    }
    let kept = |member: &Member| -> Vec<_> {
        let permissions = member.state.auth_role("r").unwrap().unwrap();
        permissions.into_iter().map(|p| (p.kind, p.range)).collect()
    };
    // The second a..c does not find the first behind a..b, in etcd either.
    let (ab, ac) = (KeyRange::new("a", "b"), KeyRange::new("a", "c"));
    assert_eq!(kept(&member), [(1, ab.clone()), (0, ac.clone()), (1, ac.clone()), (2, KeyRange::single("b"))]);
    member.ask(AuthChange::RoleRevokePermission { role: "r".into(), range: ac }).unwrap();
    assert_eq!(kept(&member), [(1, ab), (2, KeyRange::single("b"))]);
    member.ask(role_add("root")).unwrap();
    let all = Permission { kind: Permission::READ_WRITE, range: KeyRange::new("", "\0") };
    assert_eq!(member.state.auth_role("root").unwrap(), Some(vec![all]));
}

#[test]
fn a_client_is_held_against_the_permissions_of_the_moment_of_applying() {
    let mut member = guarded();
    let (nobody, alice, root) = (Client::default(), known(&member, "alice"), known(&member, "root"));
    let ghost = Client { user: "ghost".into(), ..alice.clone() };
    assert_eq!(member.ask_as(&nobody, put("a", "1")), Err(Error::UserEmpty));
    assert_eq!(member.ask_as(&ghost, put("a", "1")), Err(Error::PermissionDenied));
    assert_eq!(member.ask_as(&alice, put("z", "1")), Err(Error::PermissionDenied));
    assert_eq!(member.state.revision(), 1);
    member.ask_as(&alice, put("a", "1")).unwrap();
    member.ask_as(&root, put("z", "1")).unwrap();
    assert_eq!(member.ask_as(&alice, Compact { revision: 2 }), Err(Error::PermissionDenied));
    assert_eq!(member.ask_as(&nobody, Compact { revision: 2 }), Err(Error::UserEmpty));
    assert_eq!(member.ask_as(&alice, user_add("eve")), Err(Error::PermissionDenied));
    member.ask_as(&root, user_add("eve")).unwrap();
    // What was known at the old revision is not known any more, whoever it is.
    assert_eq!(member.ask_as(&alice, put("a", "2")), Err(Error::AuthOldRevision));
    assert_eq!(member.ask_as(&root, put("a", "2")), Err(Error::AuthOldRevision));
    member.ask_as(&known(&member, "alice"), put("a", "2")).unwrap();
    // The cluster's own work goes on, and everybody's once auth is off.
    member.put("z", "3");
    member.ask_as(&root, AuthChange::Disable).unwrap();
    member.ask_as(&nobody, put("z", "4")).unwrap();
}

#[test]
fn seeing_what_was_there_needs_the_right_to_read() {
    let mut member = guarded();
    let alice = known(&member, "alice");
    member.put("a", "secret");
    let put = |key: &'static str| Put { prev_kv: true, ..put(key, "2") };
    let delete = |end: &'static str, prev_kv| DeleteRange { range: KeyRange::new("a", end), prev_kv };
    assert_eq!(member.ask_as(&alice, put("a")), Err(Error::PermissionDenied));
    assert_eq!(member.ask_as(&alice, delete("b", true)), Err(Error::PermissionDenied));
    assert_eq!(member.ask_as(&alice, delete("cc", false)), Err(Error::PermissionDenied));
    let inside = |op: TxnOp| Txn { success: vec![op], ..Txn::default() };
    for op in [
        TxnOp::Put(put("a")),
        TxnOp::DeleteRange(delete("b", true)),
        TxnOp::Range(Range { range: KeyRange::single("a"), ..Range::default() }),
        TxnOp::Txn(inside(TxnOp::Put(put("a")))),
    ] {
        assert_eq!(member.ask_as(&alice, inside(op.clone())), Err(Error::PermissionDenied), "{op:?}");
        let other = Txn { failure: vec![op.clone()], ..Txn::default() };
        assert_eq!(member.ask_as(&alice, other), Err(Error::PermissionDenied), "the branch not taken: {op:?}");
    }
    let target = CompareTarget::Version(1);
    let compares = vec![Compare { range: KeyRange::single("a"), result: CompareResult::Equal, target }];
    assert_eq!(member.ask_as(&alice, Txn { compares, ..Txn::default() }), Err(Error::PermissionDenied));
    member.ask_as(&alice, delete("b", false)).unwrap();
    // Nothing is asked for by a transaction of nothing.
    member.ask_as(&Client::default(), Txn::default()).unwrap();
}

#[test]
fn a_lease_is_in_the_hands_of_who_may_write_all_its_keys() {
    let mut member = guarded();
    let (alice, nobody) = (known(&member, "alice"), Client::default());
    assert_eq!(member.ask_as(&nobody, LeaseGrant { id: LeaseId(1), ttl: 60 }), Err(Error::UserEmpty));
    assert_eq!(member.ask_as(&nobody, LeaseRevoke { id: LeaseId(9) }), Err(Error::UserEmpty));
    for id in [1, 2] {
        member.ask_as(&alice, LeaseGrant { id: LeaseId(id), ttl: 60 }).unwrap();
    }
    let on = |key, id| Put { lease: LeaseId(id), ..put(key, "1") };
    member.ask(on("z", 1)).unwrap();
    member.ask_as(&alice, on("a", 2)).unwrap();
    assert_eq!(member.ask_as(&alice, on("a", 1)), Err(Error::PermissionDenied));
    let txn = Txn { failure: vec![TxnOp::Put(on("a", 1))], ..Txn::default() };
    assert_eq!(member.ask_as(&alice, txn), Err(Error::PermissionDenied));
    assert_eq!(member.ask_as(&alice, on("a", 7)), Err(Error::LeaseNotFound));
    assert_eq!(member.ask_as(&alice, LeaseRevoke { id: LeaseId(1) }), Err(Error::PermissionDenied));
    assert_eq!(member.ask_as(&known(&member, "bob"), LeaseRevoke { id: LeaseId(2) }), Err(Error::PermissionDenied));
    member.ask_as(&alice, LeaseRevoke { id: LeaseId(2) }).unwrap();
}

#[test]
fn tokens_are_assigned_and_dropped_on_every_member_alike() {
    let mut member = guarded();
    let revision = member.state.permits().revision();
    let ask = |user: &str, token: &str| Authenticate { user: user.into(), token: token.into() };
    let (reply, effects) = member.ask_all(ask("alice", "random"));
    let token = format!("random.{}", member.state.applied().unwrap().index);
    assert_eq!(reply, Ok(Authenticated { revision: 1, auth_revision: revision, token: token.clone() }));
    assert_eq!(effects, [Effect::TokenAssigned { token, user: "alice".into() }]);
    let (reply, effects) = member.ask_all(ask("alice", ""));
    assert_eq!((reply.unwrap().token.as_str(), effects), ("", vec![]));
    assert_eq!(member.ask(ask("ghost", "x")), Err(Error::AuthFailed));
    member.ask(AuthChange::UserAdd { name: "cert".into(), hash: Bytes::new(), no_password: true }).unwrap();
    assert_eq!(member.ask(ask("cert", "x")), Err(Error::AuthFailed));
    let mut auth_revision = member.state.permits().revision();
    let mut changed = |user: &str| {
        auth_revision += 1;
        [Effect::TokensDropped { user: Some(user.into()) }, Effect::UsersChanged { auth_revision }]
    };
    let password = AuthChange::UserChangePassword { name: "alice".into(), hash: "other".into() };
    assert_eq!(member.ask_all(password).1, changed("alice"));
    assert_eq!(member.state.auth_user("alice").unwrap().unwrap().hash, "other");
    assert_eq!(member.ask_all(AuthChange::UserDelete { name: "bob".into() }).1, changed("bob"));
    let at = |auth_revision| Effect::UsersChanged { auth_revision };
    let auth_revision = member.state.permits().revision();
    assert_eq!(member.ask_all(AuthChange::RoleDelete { name: "writer".into() }).1, [at(auth_revision + 1)]);
    assert_eq!(member.state.auth_user("alice").unwrap().unwrap().roles, [""; 0]);
    let effects = member.ask_all(AuthChange::Disable).1;
    assert_eq!(effects, [Effect::TokensDropped { user: None }, at(auth_revision + 2)]);
    assert_eq!(member.ask(ask("alice", "x")), Err(Error::AuthNotEnabled));
}

#[test]
fn users_and_roles_survive_a_restart_and_a_snapshot() {
    let member = guarded();
    let again = member.after_flush_and_power_cut();
    let other = Member::new();
    other.install(&member.snapshot(SnapshotKind::Raft)).unwrap();
    for state in [&again.state, &other.state] {
        assert!(state.auth_enabled());
        assert_eq!(state.permits(), member.state.permits());
        assert_eq!(state.auth_users(), ["alice", "bob", "root"]);
        assert_eq!(state.auth_role("reader").unwrap(), member.state.auth_role("reader").unwrap());
        let bob = known(&again, "bob");
        let check = |range| state.permits().check(&bob, Access::Read, &range);
        assert_eq!(check(KeyRange::new("a", "c")), Ok(()));
        assert_eq!(check(KeyRange::new("a", "ca")), Err(Error::PermissionDenied));
    }
    assert_eq!(again.state.auth_user("bob").unwrap().unwrap().hash, HASH);
}

#[test]
fn nobody_changes_users_while_a_restore_is_to_replace_them() {
    let mut member = guarded();
    member.ask(RestoreBegin { id: 1 }).unwrap();
    assert_eq!(member.ask(user_add("eve")), Err(Error::RestoreInProgress));
    let root = known(&member, "root");
    assert_eq!(member.ask_as(&Client::default(), RestoreBegin { id: 2 }), Err(Error::UserEmpty));
    member.ask_as(&root, RestoreBegin { id: 2 }).unwrap();
}
