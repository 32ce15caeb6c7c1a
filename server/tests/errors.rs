//! Each refusal of etcd's table by its name, provoked at real etcd and at this server: the same code and text. Those that
//! have a story of their own elsewhere, or that no call brings about, stand in [`ELSEWHERE`].

use crate::support::both::{Both, ended};
use crate::support::{Member, etcd_tool, eventually};
use ferretcd_proto::etcdserverpb as pb;
use pb::auth_client::AuthClient;
use pb::cluster_client::ClusterClient;
use pb::lease_client::LeaseClient;
use pb::maintenance_client::MaintenanceClient;
use pb::request_op::Request as Op;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use tonic::Request;
use tonic::metadata::MetadataMap;

/// Refusals that are shown elsewhere, or cannot be brought about from outside, and why.
const ELSEWHERE: &[(&str, &str)] = &[
    ("ErrAuthOldRevision", "auth.rs: every_call_with_an_old_signed_token_is_answered_as_etcd_does"),
    ("ErrCorrupt", "corruption.rs: a_changed_value_raises_the_alarm_and_stops_writes_until_it_is_disarmed"),
    ("ErrDowngradeInProcess", "maintenance.rs: a_downgrade_is_checked_begun_and_cancelled_as_in_etcd"),
    ("ErrInvalidDowngradeTargetVersion", "maintenance.rs: the same"),
    ("ErrWrongDowngradeVersionFormat", "maintenance.rs: the same"),
    ("ErrLearnerNotReady", "limits.rs: learners"),
    ("ErrTooManyLearners", "limits.rs: learners"),
    ("ErrNoSpace", "limits.rs: backend_quota"),
    ("ErrRequestTooLarge", "limits.rs: request_bytes"),
    ("ErrTimeout", "limits.rs: request_time"),
    (
        "ErrRequestTooManyRequests",
        "watchers.rs: snapshots beyond the fourth; for writes only a member that applies thousands late has it",
    ),
    (
        "ErrWatchCanceled",
        "etcd's answer to a watch at its end, whose connection is lost by then: its clients would watch no more",
    ),
    ("ErrStopped", "limits.rs: time_to_stop; of etcd the client sees a lost connection"),
    ("ErrTimeoutDueToLeaderFail", "a_leader_that_was_lost_is_blamed_before_the_connection_to_it in propose.rs: a race"),
    ("ErrTimeoutDueToConnectionLost", "the same"),
    ("ErrTimeoutWaitAppliedIndex", "of a member that applies seconds late: not provoked"),
    ("ErrLeaderChanged", "of a read in the moment of an election; this server asks the new leader instead"),
    ("ErrMemberExist", "two members with the same URLs have the same ID, and the URLs are looked at first"),
    ("ErrClusterIDMismatch", "members tell it each other: messages.rs"),
    ("ErrNotCapable", "every member of 3.7 is capable of all"),
    ("ErrClusterVersionUnavailable", "no client is served before there is one"),
    ("ErrNoInflightDowngrade", "etcd only logs it: maintenance.rs"),
    ("ErrCanceled", "etcd's table has it, and its server answers with gRPC's own"),
    ("ErrDeadlineExceeded", "the same"),
];

/// What the reference's table says, by name: code and text.
const TABLE: &[(&str, &str)] = &[
    ("ErrEmptyKey", "InvalidArgument: etcdserver: key is not provided"),
    ("ErrKeyNotFound", "InvalidArgument: etcdserver: key not found"),
    ("ErrValueProvided", "InvalidArgument: etcdserver: value is provided"),
    ("ErrLeaseProvided", "InvalidArgument: etcdserver: lease is provided"),
    ("ErrTooManyOps", "InvalidArgument: etcdserver: too many operations in txn request"),
    ("ErrDuplicateKey", "InvalidArgument: etcdserver: duplicate key given in txn request"),
    ("ErrInvalidClientAPIVersion", "InvalidArgument: etcdserver: invalid client api version"),
    ("ErrInvalidSortOption", "InvalidArgument: etcdserver: invalid sort option"),
    ("ErrCompacted", "OutOfRange: etcdserver: mvcc: required revision has been compacted"),
    ("ErrFutureRev", "OutOfRange: etcdserver: mvcc: required revision is a future revision"),
    ("ErrLeaseNotFound", "NotFound: etcdserver: requested lease not found"),
    ("ErrLeaseExist", "FailedPrecondition: etcdserver: lease already exists"),
    ("ErrLeaseTTLTooLarge", "OutOfRange: etcdserver: too large lease TTL"),
    ("ErrPeerURLExist", "FailedPrecondition: etcdserver: Peer URLs already exists"),
    ("ErrMemberNotEnoughStarted", "Unknown: etcdserver: re-configuration failed due to not enough started members"),
    ("ErrMemberBadURLs", "InvalidArgument: etcdserver: given member URLs are invalid"),
    ("ErrMemberNotFound", "NotFound: etcdserver: member not found"),
    ("ErrMemberNotLearner", "FailedPrecondition: etcdserver: can only promote a learner member"),
    ("ErrRootUserNotExist", "FailedPrecondition: etcdserver: root user does not exist"),
    ("ErrRootRoleNotExist", "FailedPrecondition: etcdserver: root user does not have root role"),
    ("ErrUserAlreadyExist", "FailedPrecondition: etcdserver: user name already exists"),
    ("ErrUserEmpty", "InvalidArgument: etcdserver: user name is empty"),
    ("ErrUserNotFound", "FailedPrecondition: etcdserver: user name not found"),
    ("ErrRoleAlreadyExist", "FailedPrecondition: etcdserver: role name already exists"),
    ("ErrRoleNotFound", "FailedPrecondition: etcdserver: role name not found"),
    ("ErrRoleEmpty", "InvalidArgument: etcdserver: role name is empty"),
    ("ErrAuthFailed", "InvalidArgument: etcdserver: authentication failed, invalid user ID or password"),
    ("ErrPermissionNotGiven", "InvalidArgument: etcdserver: permission not given"),
    ("ErrPermissionDenied", "PermissionDenied: etcdserver: permission denied"),
    ("ErrRoleNotGranted", "FailedPrecondition: etcdserver: role is not granted to the user"),
    ("ErrPermissionNotGranted", "FailedPrecondition: etcdserver: permission is not granted to the role"),
    ("ErrAuthNotEnabled", "FailedPrecondition: etcdserver: authentication is not enabled"),
    ("ErrInvalidAuthToken", "Unauthenticated: etcdserver: invalid auth token"),
    ("ErrInvalidAuthMgmt", "InvalidArgument: etcdserver: invalid auth management"),
    ("ErrNoLeader", "Unavailable: etcdserver: no leader"),
    ("ErrNotLeader", "FailedPrecondition: etcdserver: not leader"),
    ("ErrUnhealthy", "Unavailable: etcdserver: unhealthy cluster"),
    ("ErrNotSupportedForLearner", "FailedPrecondition: etcdserver: rpc not supported for learner"),
    ("ErrBadLeaderTransferee", "FailedPrecondition: etcdserver: bad leader transferee"),
    // Two of them once more, told of a removal.
    ("too few started to remove", "Unknown: etcdserver: re-configuration failed due to not enough started members"),
    ("too few up to remove", "Unavailable: etcdserver: unhealthy cluster"),
    // In no table of etcd's, but on the wire.
    ("unknown method", "Unknown: etcdserver: unknown method"),
    ("no such method", "Unimplemented: unknown method Pot for service etcdserverpb.KV"),
    ("no such service", "Unimplemented: unknown service etcdserverpb.Kv"),
    ("election: no leader", "Unknown: election: no leader"),
    ("no leader named", "Unknown: \"leader\" field must be provided"),
    ("no password user", "Unknown: auth: authentication failed, password was given for no password user"),
];

/// Leaders stay what they are between two calls, however busy the machine is.
const STEADY: &str = "--election-timeout=3000";

/// What was provoked, by name.
type Told = BTreeMap<&'static str, String>;

fn expect(told: &Told) {
    for (name, text) in told {
        let expected = TABLE.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("{name} is not in the table")).1;
        assert_eq!(text, expected, "{name}");
    }
}

fn op(op: Op) -> pb::RequestOp {
    pb::RequestOp { request: Some(op) }
}

/// What one member alone refuses.
async fn solo(m: Member) -> Told {
    let mut told = Told::new();
    let mut tell = |name, text: String| assert!(told.insert(name, text).is_none(), "{name} twice");
    let (mut kv, channel) = (m.kv().await, m.channel().await);
    let put = pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
    for _ in 0..3 {
        kv.put(put.clone()).await.unwrap();
    }
    kv.compact(pb::CompactionRequest { revision: 3, physical: true }).await.unwrap();
    tell("ErrEmptyKey", ended(kv.put(pb::PutRequest::default()).await));
    let ignoring = pb::PutRequest { key: "none".into(), ignore_value: true, ..Default::default() };
    tell("ErrKeyNotFound", ended(kv.put(ignoring.clone()).await));
    tell("ErrValueProvided", ended(kv.put(pb::PutRequest { value: "v".into(), ..ignoring }).await));
    tell("ErrLeaseProvided", ended(kv.put(pb::PutRequest { ignore_lease: true, lease: 1, ..put.clone() }).await));
    let txn = |ops| pb::TxnRequest { success: ops, ..Default::default() };
    tell("ErrTooManyOps", ended(kv.txn(txn(vec![op(Op::RequestRange(range("k"))); 129])).await));
    tell("ErrDuplicateKey", ended(kv.txn(txn(vec![op(Op::RequestPut(put.clone())); 2])).await));
    let mut headers = http::HeaderMap::new();
    headers.insert("client-api-version", http::HeaderValue::from_bytes(b"\xff\xfe").unwrap());
    let odd = Request::from_parts(MetadataMap::from_headers(headers), http::Extensions::new(), range("k"));
    tell("ErrInvalidClientAPIVersion", ended(kv.range(odd).await));
    tell("ErrInvalidSortOption", ended(kv.range(pb::RangeRequest { sort_order: 7, ..range("k") }).await));
    tell("ErrCompacted", ended(kv.range(pb::RangeRequest { revision: 2, ..range("k") }).await));
    tell("ErrFutureRev", ended(kv.range(pb::RangeRequest { revision: 99, ..range("k") }).await));

    let mut lease = LeaseClient::new(channel.clone());
    tell("ErrLeaseNotFound", ended(kv.put(pb::PutRequest { lease: 9, ..put.clone() }).await));
    lease.lease_grant(pb::LeaseGrantRequest { id: 7, ttl: 60 }).await.unwrap();
    tell("ErrLeaseExist", ended(lease.lease_grant(pb::LeaseGrantRequest { id: 7, ttl: 60 }).await));
    tell("ErrLeaseTTLTooLarge", ended(lease.lease_grant(pb::LeaseGrantRequest { id: 0, ttl: i64::MAX }).await));

    let mut maintenance = MaintenanceClient::new(channel.clone());
    // (An alarm of an unknown action ends etcd's process.)
    let odd = pb::DowngradeRequest { action: 9, ..Default::default() };
    tell("unknown method", ended(maintenance.downgrade(odd).await));
    tell("ErrBadLeaderTransferee", ended(maintenance.move_leader(pb::MoveLeaderRequest { target_id: 99 }).await));
    for (name, path) in [("no such method", "/etcdserverpb.KV/Pot"), ("no such service", "/etcdserverpb.Kv/Put")] {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let codec: tonic_prost::ProstCodec<pb::PutRequest, pb::PutResponse> = tonic_prost::ProstCodec::default();
        tell(name, ended(grpc.unary(Request::new(put.clone()), path.parse().unwrap(), codec).await));
    }
    let mut election = ferretcd_proto::v3electionpb::election_client::ElectionClient::new(channel.clone());
    tell(
        "election: no leader",
        ended(election.leader(ferretcd_proto::v3electionpb::LeaderRequest { name: "e".into() }).await),
    );
    tell("no leader named", ended(election.resign(ferretcd_proto::v3electionpb::ResignRequest::default()).await));
    users(&m, &mut tell).await;
    members(&m, &mut tell).await;
    told
}

fn range(key: &'static str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.into(), ..Default::default() }
}

/// What is refused about users; they are gone afterwards.
async fn users(m: &Member, tell: &mut impl FnMut(&'static str, String)) {
    let mut auth = AuthClient::new(m.channel().await);
    let user = |name: &str| pb::AuthUserAddRequest { name: name.into(), password: "p".into(), ..Default::default() };
    let login = |name: &str, password: &str| pb::AuthenticateRequest { name: name.into(), password: password.into() };
    let role = |name: &str| pb::AuthRoleAddRequest { name: name.into() };
    let grant = |user: &str, role: &str| pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
    tell("ErrAuthNotEnabled", ended(auth.authenticate(login("root", "p")).await));
    tell("ErrRootUserNotExist", ended(auth.auth_enable(pb::AuthEnableRequest {}).await));
    auth.user_add(user("root")).await.unwrap();
    tell("ErrRootRoleNotExist", ended(auth.auth_enable(pb::AuthEnableRequest {}).await));
    tell("ErrUserAlreadyExist", ended(auth.user_add(user("root")).await));
    tell("ErrUserEmpty", ended(auth.user_add(user("")).await));
    tell("ErrUserNotFound", ended(auth.user_get(pb::AuthUserGetRequest { name: "none".into() }).await));
    auth.role_add(role("root")).await.unwrap();
    auth.role_add(role("r")).await.unwrap();
    tell("ErrRoleAlreadyExist", ended(auth.role_add(role("r")).await));
    tell("ErrRoleNotFound", ended(auth.role_get(pb::AuthRoleGetRequest { role: "none".into() }).await));
    tell("ErrRoleEmpty", ended(auth.role_add(role("")).await));
    let nothing = pb::AuthRoleGrantPermissionRequest { name: "r".into(), perm: None };
    tell("ErrPermissionNotGiven", ended(auth.role_grant_permission(nothing).await));
    let revoke = pb::AuthRoleRevokePermissionRequest { role: "r".into(), key: "k".into(), ..Default::default() };
    tell("ErrPermissionNotGranted", ended(auth.role_revoke_permission(revoke).await));
    auth.user_add(user("alice")).await.unwrap();
    let revoke = pb::AuthUserRevokeRoleRequest { name: "alice".into(), role: "r".into() };
    tell("ErrRoleNotGranted", ended(auth.user_revoke_role(revoke).await));
    let options = Some(ferretcd_proto::authpb::UserAddOptions { no_password: true });
    auth.user_add(pb::AuthUserAddRequest { name: "nopass".into(), options, ..Default::default() }).await.unwrap();
    auth.user_grant_role(grant("root", "root")).await.unwrap();
    auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    tell("ErrAuthFailed", ended(auth.authenticate(login("root", "wrong")).await));
    tell("no password user", ended(auth.authenticate(login("nopass", "p")).await));
    let as_user = |token: &str, message| {
        let mut request = Request::new(message);
        request.metadata_mut().insert("token", token.parse().unwrap());
        request
    };
    tell("ErrInvalidAuthToken", ended(m.kv().await.range(as_user("nonsense", range("k"))).await));
    let alice = auth.authenticate(login("alice", "p")).await.unwrap().into_inner().token;
    tell("ErrPermissionDenied", ended(m.kv().await.range(as_user(&alice, range("k"))).await));
    let root = auth.authenticate(login("root", "p")).await.unwrap().into_inner().token;
    let mut delete = Request::new(pb::AuthUserDeleteRequest { name: "root".into() });
    delete.metadata_mut().insert("token", root.parse().unwrap());
    tell("ErrInvalidAuthMgmt", ended(auth.user_delete(delete).await));
    let mut disable = Request::new(pb::AuthDisableRequest {});
    disable.metadata_mut().insert("token", root.parse().unwrap());
    auth.auth_disable(disable).await.unwrap();
}

/// What is refused about members. Afterwards there is one more, which never starts: there is no leader any more.
async fn members(m: &Member, tell: &mut impl FnMut(&'static str, String)) {
    let mut cluster = ClusterClient::new(m.channel().await);
    let list = cluster.member_list(pb::MemberListRequest { linearizable: true }).await.unwrap().into_inner();
    let own = &list.members[0];
    let add = |urls: Vec<String>| pb::MemberAddRequest { peer_ur_ls: urls, is_learner: false };
    tell("ErrPeerURLExist", ended(cluster.member_add(add(own.peer_ur_ls.clone())).await));
    tell("ErrMemberBadURLs", ended(cluster.member_add(add(vec!["127.0.0.1:1".into()])).await));
    tell("ErrMemberNotFound", ended(cluster.member_remove(pb::MemberRemoveRequest { id: 99 }).await));
    tell("ErrMemberNotLearner", ended(cluster.member_promote(pb::MemberPromoteRequest { id: own.id }).await));
    cluster.member_add(add(vec!["http://127.0.0.1:1".into()])).await.unwrap();
    // Both at once: each of them waits for an election time-out here, since no quorum takes up the change before it.
    let mut other = cluster.clone();
    let third = add(vec!["http://127.0.0.1:2".into()]);
    let remove = pb::MemberRemoveRequest { id: own.id };
    let (added, removed) = tokio::join!(cluster.member_add(third), other.member_remove(remove));
    tell("ErrMemberNotEnoughStarted", ended(added));
    tell("too few started to remove", ended(removed));
    let wanting = async || {
        let mut request = Request::new(pb::RangeRequest { serializable: true, ..range("k") });
        request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        ended(m.kv().await.range(request).await)
    };
    let told = eventually("there is no leader", async || match wanting().await {
        text if text == "OK" => Err(text),
        text => Ok(text),
    });
    tell("ErrNoLeader", told.await);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_refuses_what_etcd_refuses() {
    let both = Both::start(&["--bcrypt-cost=4", STEADY]).await;
    expect(&both.agree("refusals", solo).await);
}

/// Two voters, a learner, and one that was there.
async fn several(program: Option<&Path>) -> Told {
    let dir = tempfile::tempdir().unwrap();
    let mut members: Vec<Member> = ["a", "b", "c", "l"].iter().map(|name| Member::new(name, dir.path())).collect();
    let list = |members: &[Member]| {
        members.iter().map(|m| format!("{}={}", m.name, m.peer_url())).collect::<Vec<_>>().join(",")
    };
    let initial = list(&members[..3]);
    let start = |member: &mut Member, initial: &str, more: &[&str]| {
        let mut command = member.command(&[]);
        if let Some(program) = program {
            let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
            command = Command::new(program);
            command.env_clear().args(args);
        }
        command.args([&format!("--initial-cluster={initial}"), STEADY]).args(more);
        member.start_as(command);
    };
    for member in &mut members[..3] {
        start(member, &initial, &[]);
    }
    for member in &members[..3] {
        member.ready().await;
    }
    let mut told = Told::new();
    let learner = pb::MemberAddRequest { peer_ur_ls: vec![members[3].peer_url()], is_learner: true };
    // A change of members right after the start is refused for a while, as long as connections are young.
    eventually("a learner is added", async || {
        let mut cluster = ClusterClient::new(members[0].channel().await);
        cluster.member_add(learner.clone()).await.map_err(|e| e.to_string())
    })
    .await;
    let all = list(&members);
    start(&mut members[3], &all, &["--initial-cluster-state=existing"]);
    let refused = eventually("the learner refuses", async || {
        match members[3].put("k", "v").await.unwrap_err() {
            status if status.code() == tonic::Code::FailedPrecondition => Ok(ended::<()>(Err(status))),
            // It does not serve yet.
            status => Err(status.to_string()),
        }
    });
    told.insert("ErrNotSupportedForLearner", refused.await);
    let leads = eventually("there is a leader", async || match members[0].status().await?.leader {
        0 => Err("none".to_owned()),
        leads => Ok(leads),
    })
    .await;
    let mut ids = Vec::new();
    for member in &members[..3] {
        ids.push(member.status().await.unwrap().header.unwrap().member_id);
    }
    let leader = ids.iter().position(|id| *id == leads).unwrap();
    let follower = (leader + 1) % 3;
    let moved =
        members[follower].maintenance().await.move_leader(pb::MoveLeaderRequest { target_id: ids[leader] }).await;
    told.insert("ErrNotLeader", ended(moved));
    members[(leader + 2) % 3].kill();
    let lost = eventually("a change of members is refused", async || {
        // As long as the loss is not noticed, this is refused for its URL.
        let add = pb::MemberAddRequest { peer_ur_ls: vec![members[leader].peer_url()], is_learner: false };
        let asked = ClusterClient::new(members[leader].channel().await).member_add(add).await;
        match asked.err().map(|status| ended::<()>(Err(status))) {
            Some(text) if text.contains("unhealthy") => Ok(text),
            other => Err(format!("{other:?}")),
        }
    });
    told.insert("ErrUnhealthy", lost.await);
    // Nor may one go that is up: of the two that are left one is down.
    let remove = pb::MemberRemoveRequest { id: ids[follower] };
    let asked = ClusterClient::new(members[leader].channel().await).member_remove(remove).await;
    told.insert("too few up to remove", ended(asked));
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn several_members_refuse_what_etcds_refuse() {
    let etcd = etcd_tool("etcd");
    let (ours, theirs) = tokio::join!(several(None), several(Some(etcd.as_path())));
    assert_eq!(ours, theirs);
    expect(&ours);
}

#[test]
fn each_refusal_of_the_table_is_provoked_or_stands_elsewhere() {
    let named = |name: &str| TABLE.iter().any(|(n, _)| *n == name) != ELSEWHERE.iter().any(|(n, _)| *n == name);
    // etcd's names, as its clients know them.
    let all = "ErrEmptyKey ErrKeyNotFound ErrValueProvided ErrLeaseProvided ErrTooManyOps ErrDuplicateKey \
        ErrInvalidClientAPIVersion ErrInvalidSortOption ErrCompacted ErrFutureRev ErrNoSpace ErrLeaseNotFound \
        ErrLeaseExist ErrLeaseTTLTooLarge ErrWatchCanceled ErrMemberExist ErrPeerURLExist ErrMemberNotEnoughStarted \
        ErrMemberBadURLs ErrMemberNotFound ErrMemberNotLearner ErrLearnerNotReady ErrTooManyLearners \
        ErrClusterIDMismatch ErrRequestTooLarge ErrRequestTooManyRequests ErrRootUserNotExist ErrRootRoleNotExist \
        ErrUserAlreadyExist ErrUserEmpty ErrUserNotFound ErrRoleAlreadyExist ErrRoleNotFound ErrRoleEmpty \
        ErrAuthFailed ErrPermissionNotGiven ErrPermissionDenied ErrRoleNotGranted ErrPermissionNotGranted \
        ErrAuthNotEnabled ErrInvalidAuthToken ErrInvalidAuthMgmt ErrAuthOldRevision ErrNoLeader ErrNotLeader \
        ErrLeaderChanged ErrNotCapable ErrStopped ErrTimeout ErrTimeoutDueToLeaderFail \
        ErrTimeoutDueToConnectionLost ErrTimeoutWaitAppliedIndex ErrUnhealthy ErrCorrupt ErrNotSupportedForLearner \
        ErrBadLeaderTransferee ErrWrongDowngradeVersionFormat ErrInvalidDowngradeTargetVersion \
        ErrClusterVersionUnavailable ErrDowngradeInProcess ErrNoInflightDowngrade ErrCanceled ErrDeadlineExceeded";
    let missing: Vec<_> = all.split_whitespace().filter(|name| !named(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
