//! Users, roles and permissions through real processes: as etcdctl uses them, on three members, over restarts,
//! snapshots and restores, and call by call beside real etcd.

use crate::support::pki::{Cert, Pki};
use crate::support::{Cluster, Member, etcd_tool, eventually, finished};
use bytes::Bytes;
use ferretcd_proto::authpb;
use ferretcd_proto::etcdserverpb::{
    self as pb, auth_client::AuthClient, cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient,
    maintenance_client::MaintenanceClient, watch_client::WatchClient,
};
use ferretcd_proto::ferretcd_v1::maintenance_client::MaintenanceClient as OwnMaintenanceClient;
use ferretcd_proto::ferretcd_v1::{RestoreOptions, RestoreRequest, restore_request};
use ferretcd_proto::v3electionpb::{
    CampaignRequest, LeaderKey, LeaderRequest, ProclaimRequest, ResignRequest, election_client::ElectionClient,
};
use ferretcd_proto::v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

const ABC: &[&str] = &["a", "b", "c"];

fn channel(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
}

fn with<T>(token: Option<&str>, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token.parse().unwrap());
    }
    request
}

async fn login(address: &str, name: &str, password: &str) -> Result<String, Status> {
    login_by(channel(address), name, password).await
}

async fn login_by(channel: Channel, name: &str, password: &str) -> Result<String, Status> {
    let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
    Ok(AuthClient::new(channel).authenticate(request).await?.into_inner().token)
}

async fn put(address: &str, token: Option<&str>, key: &str) -> Result<i64, Status> {
    let request = pb::PutRequest { key: key.to_owned().into(), value: "v".into(), ..Default::default() };
    Ok(KvClient::new(channel(address)).put(with(token, request)).await?.into_inner().header.unwrap().revision)
}

async fn get(address: &str, token: Option<&str>, key: &str) -> Result<usize, Status> {
    let request = pb::RangeRequest { key: key.to_owned().into(), serializable: true, ..Default::default() };
    Ok(KvClient::new(channel(address)).range(with(token, request)).await?.into_inner().kvs.len())
}

fn told<T>(result: Result<T, Status>) -> String {
    match result {
        Ok(_) => "OK".to_owned(),
        Err(status) => format!("{}: {}", i32::from(status.code()), status.message()),
    }
}

const DENIED: &str = "7: etcdserver: permission denied";
const NOBODY: &str = "3: etcdserver: user name is empty";
const OLD: &str = "3: etcdserver: revision of auth store is old";
const BAD_TOKEN: &str = "16: etcdserver: invalid auth token";

/// etcdctl, command by command: root, and app that may read and write what begins with app/.
fn guide(m: &Member) {
    let ctl = |args: &[&str]| m.etcdctl(args).unwrap();
    assert!(ctl(&["user", "add", "root", "--new-user-password=r00t"]).contains("User root created"));
    ctl(&["user", "add", "app", "--new-user-password=secret"]);
    ctl(&["role", "add", "app"]);
    ctl(&["role", "grant-permission", "app", "--prefix", "readwrite", "app/"]);
    ctl(&["user", "grant-role", "app", "app"]);
    // It makes the root role and grants it, when it hears that they are missing.
    assert!(ctl(&["auth", "enable"]).contains("Authentication Enabled"));
}

const ROOT: &str = "--user=root:r00t";
const APP: &str = "--user=app:secret";

/// What must hold wherever the guide's users are.
fn guide_holds(m: &Member) {
    m.etcdctl(&[APP, "put", "app/k", "v"]).unwrap();
    assert_eq!(m.etcdctl(&[APP, "get", "app/k", "--keys-only"]).unwrap().trim(), "app/k");
    assert!(m.etcdctl(&[APP, "put", "other", "v"]).unwrap_err().contains("permission denied"));
    assert!(m.etcdctl(&[APP, "get", "", "--prefix"]).unwrap_err().contains("permission denied"));
    assert!(m.etcdctl(&["get", "app/k"]).unwrap_err().contains("user name is empty"));
    let wrong = m.etcdctl(&["--user=app:wrong", "get", "app/k"]).unwrap_err();
    assert!(wrong.contains("authentication failed, invalid user ID or password"), "{wrong}");
    m.etcdctl(&[ROOT, "put", "other", "v"]).unwrap();
    assert!(m.etcdctl(&[ROOT, "role", "get", "app"]).unwrap().contains("[app/, app0) (prefix app/)"));
    assert!(m.etcdctl(&[ROOT, "user", "get", "app", "--detail"]).unwrap().contains("Role app"));
    assert!(m.etcdctl(&[APP, "user", "list"]).unwrap_err().contains("permission denied"));
}

fn passwd(m: &Member, args: &[&str], password: &str) {
    let mut passwd = m.etcdctl_command(args);
    passwd.arg("--interactive=false").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut passwd = passwd.spawn().unwrap();
    writeln!(passwd.stdin.take().unwrap(), "{password}").unwrap();
    finished(passwd.wait_with_output().unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn etcds_auth_guide_works_with_etcdctl() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    guide(m);
    guide_holds(m);
    assert_eq!(m.etcdctl(&[ROOT, "user", "list"]).unwrap(), "app\nroot\n");
    assert_eq!(m.etcdctl(&[ROOT, "role", "list"]).unwrap(), "app\nroot\n");
    assert!(m.etcdctl(&["auth", "status"]).unwrap().contains("Authentication Status: true"));
    m.etcdctl(&[ROOT, "endpoint", "health"]).unwrap();
    m.etcdctl(&[APP, "endpoint", "status"]).unwrap();
    assert!(m.etcdctl(&[APP, "snapshot", "save", "/dev/null"]).unwrap_err().contains("permission denied"));
    passwd(m, &[ROOT, "user", "passwd", "app"], "another");
    assert!(m.etcdctl(&[APP, "get", "app/k"]).unwrap_err().contains("authentication failed"));
    const NEW: &str = "--user=app:another";
    m.etcdctl(&[ROOT, "role", "revoke-permission", "app", "--prefix", "app/"]).unwrap();
    assert!(m.etcdctl(&[NEW, "get", "app/k"]).unwrap_err().contains("permission denied"));
    m.etcdctl(&[ROOT, "user", "revoke-role", "app", "app"]).unwrap();
    m.etcdctl(&[ROOT, "role", "delete", "app"]).unwrap();
    m.etcdctl(&[ROOT, "user", "delete", "app"]).unwrap();
    m.etcdctl(&[ROOT, "auth", "disable"]).unwrap();
    m.etcdctl(&["put", "other", "free"]).unwrap();
    // The probes are nobody's, and never asked who they are.
    assert_eq!(m.http("/health").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_from_one_member_is_good_on_all_and_users_survive_restarts() {
    let mut cluster = Cluster::start(ABC).await;
    let leader = cluster.leader().await;
    guide(&cluster.members[0]);
    for (at, m) in cluster.members.iter().enumerate() {
        let token = login(&m.client, "app", "secret").await.unwrap();
        for other in &cluster.members {
            // A serializable read of a member that may be behind: it waits for the token's entry.
            assert_eq!(told(get(&other.client, Some(&token), "app/k").await), "OK");
            assert_eq!(told(put(&other.client, Some(&token), &format!("app/{at}")).await), "OK");
            assert_eq!(told(put(&other.client, Some(&token), "other").await), DENIED);
        }
    }
    // A member that is behind waits for the token's entry before it says that it does not know it.
    let follower = (leader + 1) % 3;
    cluster.members[follower].pause();
    let token = login(&cluster.members[leader].client, "app", "secret").await.unwrap();
    let address = cluster.members[follower].client.clone();
    let asked = tokio::spawn(async move { told(get(&address, Some(&token), "app/k").await) });
    // Not what the story hangs on: it only lets the request be there first.
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.members[follower].resume();
    assert_eq!(asked.await.unwrap(), "OK");
    // What is taken away on one member is gone on all: the next command is applied after it.
    let token = login(&cluster.members[0].client, "app", "secret").await.unwrap();
    cluster.members[1].etcdctl(&[ROOT, "user", "revoke-role", "app", "app"]).unwrap();
    for m in &cluster.members {
        // One that is behind proposes under the old revision, which is refused as well.
        let refused = told(put(&m.client, Some(&token), "app/k").await);
        assert!([DENIED, OLD].contains(&refused.as_str()), "{refused}");
    }
    cluster.members[2].etcdctl(&[ROOT, "user", "grant-role", "app", "app"]).unwrap();
    for m in &mut cluster.members {
        m.terminate().await;
    }
    cluster.members.iter_mut().for_each(Member::start);
    for m in &cluster.members {
        eventually("it serves its users", async || m.etcdctl(&[ROOT, "get", "other"])).await;
        guide_holds(m);
        assert_eq!(m.http("/readyz").await.0, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_lost_roots_password_gets_back_in() {
    let mut cluster = Cluster::start(ABC).await;
    guide(&cluster.members[0]);
    let m = &mut cluster.members[1];
    m.terminate().await;
    let mut command = m.command(&[]);
    command.env("ETCD_TURN_AUTH_OFF", "true");
    m.start_as(command);
    for m in &cluster.members {
        eventually("auth is off", async || m.etcdctl(&["put", "k", "v"])).await;
        assert!(m.etcdctl(&["auth", "status"]).unwrap().contains("Authentication Status: false"));
    }
    let m = &cluster.members[0];
    passwd(m, &["user", "passwd", "root"], "found-again");
    m.etcdctl(&["auth", "enable"]).unwrap();
    assert!(m.etcdctl(&["get", "k"]).is_err());
    m.etcdctl(&["--user=root:found-again", "get", "k"]).unwrap();
    // Without the variable it stays on, with all users but the one password as they were.
    let m = &mut cluster.members[1];
    m.terminate().await;
    m.start();
    for m in &cluster.members {
        eventually("root is let in", async || m.etcdctl(&["--user=root:found-again", "get", "k"])).await;
        assert!(m.etcdctl(&[ROOT, "get", "k"]).unwrap_err().contains("authentication failed"));
        m.etcdctl(&[APP, "put", "app/k", "v"]).unwrap();
    }
}

async fn restore(address: &str, token: Option<&str>, file: &[u8]) -> Result<(), Status> {
    let options = RestoreOptions { revision_bump: None, file_bytes: file.len() as u64 };
    let chunk = restore_request::Request::Chunk(Bytes::copy_from_slice(file));
    let messages = [restore_request::Request::Options(options), chunk];
    let messages = messages.map(|request| RestoreRequest { request: Some(request) });
    OwnMaintenanceClient::new(channel(address)).restore(with(token, tokio_stream::iter(messages))).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn users_go_with_snapshots_to_etcd_and_come_back_with_restores() {
    let cluster = Cluster::start(&["solo"]).await;
    let m = &cluster.members[0];
    guide(m);
    m.etcdctl(&[ROOT, "put", "app/k", "v"]).unwrap();
    let file = cluster.tmp.path().join("backup.db");
    m.etcdctl(&[ROOT, "snapshot", "save", file.to_str().unwrap()]).unwrap();

    // Real etcd knows our users and their passwords.
    let mut real = Member::new("real", cluster.tmp.path());
    let mut etcdutl = Command::new(etcd_tool("etcdutl"));
    etcdutl.args(["snapshot", "restore"]).arg(&file).arg("--data-dir").arg(&real.dir);
    finished(etcdutl.output().unwrap()).unwrap();
    let _etcd = Real::start(&mut real, &[]).await;
    eventually("etcd serves", async || real.etcdctl(&[ROOT, "get", "app/k"])).await;
    guide_holds(&real);
    // And we know those that it made.
    real.etcdctl(&[ROOT, "user", "add", "late", "--new-user-password=made by etcd"]).unwrap();
    real.etcdctl(&[ROOT, "user", "grant-role", "late", "app"]).unwrap();
    let theirs = cluster.tmp.path().join("theirs.db");
    real.etcdctl(&[ROOT, "snapshot", "save", theirs.to_str().unwrap()]).unwrap();
    let theirs = fs::read(theirs).unwrap();

    let app = login(&m.client, "app", "secret").await.unwrap();
    assert_eq!(told(restore(&m.client, None, &theirs).await), NOBODY);
    assert_eq!(told(restore(&m.client, Some(&app), &theirs).await), DENIED);
    let root = login(&m.client, "root", "r00t").await.unwrap();
    assert_eq!(told(restore(&m.client, Some(&root), &theirs).await), "OK");
    // The tokens ended with the users that they were of.
    assert_eq!(told(get(&m.client, Some(&root), "app/k").await), BAD_TOKEN);
    guide_holds(m);
    m.etcdctl(&["--user=late:made by etcd", "put", "app/late", "v"]).unwrap();
}

/// Real etcd in a member's place.
struct Real {
    child: Child,
}

impl Real {
    async fn start(m: &mut Member, flags: &[&str]) -> Self {
        let real = Real::spawn(m, flags);
        eventually("etcd serves", async || match m.http_version().await {
            true => Ok(()),
            false => Err("not yet".to_owned()),
        })
        .await;
        real
    }

    fn spawn(m: &mut Member, flags: &[&str]) -> Self {
        let mut etcd = Command::new(etcd_tool("etcd"));
        etcd.env_clear().arg(format!("--data-dir={}", m.dir.display())).args([
            format!("--listen-client-urls=http://{}", m.client),
            format!("--advertise-client-urls=http://{}", m.client),
            format!("--listen-peer-urls={}", m.peer_url()),
            format!("--initial-advertise-peer-urls={}", m.peer_url()),
            format!("--initial-cluster=default={}", m.peer_url()),
            "--log-level=error".to_owned(),
        ]);
        if m.dir.exists() {
            // Restored by etcdutl, under its own defaults.
            etcd = Command::new(etcd_tool("etcd"));
            etcd.env_clear().arg(format!("--data-dir={}", m.dir.display())).args([
                format!("--listen-client-urls=http://{}", m.client),
                format!("--advertise-client-urls=http://{}", m.client),
                format!("--listen-peer-urls={}", m.peer_url()),
                "--log-level=error".to_owned(),
            ]);
        }
        let log = fs::File::create(m.log_path()).unwrap();
        let child = etcd.args(flags).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Real { child }
    }
}

trait Serves {
    async fn http_version(&self) -> bool;
}

impl Serves for Member {
    async fn http_version(&self) -> bool {
        AuthClient::new(channel(&self.client)).auth_status(pb::AuthStatusRequest {}).await.is_ok()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a server answered to each call of the table.
struct Answers {
    channel: Channel,
    token: Option<String>,
    who: &'static str,
    all: Vec<String>,
}

/// Makes a call and notes its outcome; of an answer only that it came.
macro_rules! ask {
    ($answers:ident, $client:ident, $method:ident, $request:expr) => {{
        let request = $request;
        let call = format!("{}: {} {request:?}", $answers.who, stringify!($method));
        let asked = with($answers.token.as_deref(), request);
        let outcome = $client::new($answers.channel.clone()).$method(asked).await;
        $answers.all.push(format!("{call} => {}", told(outcome)));
    }};
}

/// The same, with the answer (its header apart).
macro_rules! show {
    ($answers:ident, $client:ident, $method:ident, $request:expr) => {{
        let request = $request;
        let call = format!("{}: {} {request:?}", $answers.who, stringify!($method));
        let asked = with($answers.token.as_deref(), request);
        let outcome = $client::new($answers.channel.clone()).$method(asked).await;
        let text = match outcome {
            Ok(answer) => {
                let mut answer = answer.into_inner();
                answer.header = None;
                format!("{answer:?}")
            }
            Err(status) => told::<()>(Err(status)),
        };
        $answers.all.push(format!("{call} => {text}"));
    }};
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn permission(kind: i32, start: &'static str, end: &'static str) -> Option<authpb::Permission> {
    Some(authpb::Permission { perm_type: kind, key: bytes(start), range_end: bytes(end) })
}

fn range(start: &'static str, end: &'static str) -> pb::RangeRequest {
    pb::RangeRequest { key: bytes(start), range_end: bytes(end), ..Default::default() }
}

fn put_of(key: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: bytes(key), value: bytes("v"), ..Default::default() }
}

fn delete(start: &'static str, end: &'static str, prev_kv: bool) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: bytes(start), range_end: bytes(end), prev_kv }
}

fn op(request: pb::request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

impl Answers {
    fn of(channel: Channel) -> Self {
        Answers { channel, token: None, who: "nobody", all: Vec::new() }
    }

    async fn become_user(&mut self, who: &'static str, password: &str) {
        self.who = who;
        self.token = match who {
            "nobody" => None,
            "stranger" => Some("stranger".to_owned()),
            user => Some(login_by(self.channel.clone(), user, password).await.unwrap()),
        };
    }

    /// Changes and refusals while auth is off, up to its being on.
    async fn found(&mut self) {
        let a = self;
        let user = |name: &str, password: &str| pb::AuthUserAddRequest {
            name: name.into(),
            password: password.into(),
            ..Default::default()
        };
        let certified = pb::AuthUserAddRequest {
            options: Some(authpb::UserAddOptions { no_password: true }),
            ..user("certified", "given for nothing")
        };
        let role = |name: &str| pb::AuthRoleAddRequest { name: name.into() };
        let grant_role = |user: &str, role: &str| pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
        let revoke_role =
            |name: &str, role: &str| pb::AuthUserRevokeRoleRequest { name: name.into(), role: role.into() };
        let grant = |name: &str, perm| pb::AuthRoleGrantPermissionRequest { name: name.into(), perm };
        let revoke = |role: &str, start, end| pb::AuthRoleRevokePermissionRequest {
            role: role.into(),
            key: bytes(start),
            range_end: bytes(end),
        };
        let password = |name: &str, password: &str| pb::AuthUserChangePasswordRequest {
            name: name.into(),
            password: password.into(),
            ..Default::default()
        };
        let see_role = |role: &str| pb::AuthRoleGetRequest { role: role.into() };

        show!(a, AuthClient, auth_status, pb::AuthStatusRequest {});
        show!(a, AuthClient, auth_enable, pb::AuthEnableRequest {});
        show!(a, AuthClient, auth_disable, pb::AuthDisableRequest {});
        show!(a, AuthClient, authenticate, pb::AuthenticateRequest { name: "root".into(), password: "r".into() });
        for request in [user("", "r"), user("root", "r"), user("root", "r"), certified, user("empty", "")] {
            show!(a, AuthClient, user_add, request);
        }
        show!(a, AuthClient, user_add, user("long", &"x".repeat(73)));
        show!(a, AuthClient, user_add, user("longest", &"x".repeat(72)));
        show!(a, AuthClient, user_add, user("zero", "a\0b"));
        show!(a, AuthClient, auth_enable, pb::AuthEnableRequest {});
        for request in [user("alice", "a"), user("bob", "b"), user("carol", "c")] {
            show!(a, AuthClient, user_add, request);
        }
        show!(a, AuthClient, user_grant_role, grant_role("root", "root"));
        show!(a, AuthClient, role_get, see_role("root"));
        for request in [role(""), role("writer"), role("writer"), role("reader"), role("root"), role("gone")] {
            show!(a, AuthClient, role_add, request);
        }
        show!(a, AuthClient, role_get, see_role("root"));
        for (name, perm) in [
            ("writer", None),
            ("nothing", permission(0, "", "")),
            ("nothing", permission(0, "a", "")),
            ("writer", permission(0, "b", "a")),
            ("writer", permission(0, "b", "b")),
            ("writer", permission(0, "b", "")),
            ("writer", permission(1, "a", "b")),
            ("writer", permission(0, "a", "c")),
            ("writer", permission(1, "a", "c")),
            ("writer", permission(2, "b", "")),
            ("writer", permission(7, "q", "")),
            ("reader", permission(0, "a", "b")),
            ("reader", permission(0, "b", "c")),
            ("reader", permission(0, "x", "\0")),
            ("reader", permission(0, "m", "")),
        ] {
            show!(a, AuthClient, role_grant_permission, grant(name, perm));
        }
        for (user, role) in [("alice", "writer"), ("bob", "reader"), ("carol", "gone"), ("nothing", "root")] {
            show!(a, AuthClient, user_grant_role, grant_role(user, role));
        }
        show!(a, AuthClient, user_grant_role, grant_role("root", "nothing"));
        show!(a, AuthClient, user_grant_role, grant_role("root", "root"));
        show!(a, AuthClient, role_get, see_role("writer"));
        for (role, start, end) in
            [("writer", "a", "b"), ("writer", "b", ""), ("writer", "b", ""), ("nothing", "a", ""), ("writer", "z", "")]
        {
            show!(a, AuthClient, role_revoke_permission, revoke(role, start, end));
        }
        show!(a, AuthClient, role_get, see_role("writer"));
        // Its first range reads, its second writes: writing is all that is to be left.
        show!(a, AuthClient, role_revoke_permission, revoke("writer", "a", "c"));
        show!(a, AuthClient, role_grant_permission, grant("writer", permission(1, "a", "c")));
        for (name, role) in [("root", "writer"), ("nothing", "root"), ("carol", "nothing")] {
            show!(a, AuthClient, user_revoke_role, revoke_role(name, role));
        }
        for request in [password("nothing", "x"), password("certified", "x"), password("carol", "")] {
            show!(a, AuthClient, user_change_password, request);
        }
        show!(a, AuthClient, user_delete, pb::AuthUserDeleteRequest { name: "nothing".into() });
        show!(a, AuthClient, role_delete, pb::AuthRoleDeleteRequest { role: "nothing".into() });
        show!(a, AuthClient, role_delete, pb::AuthRoleDeleteRequest { role: "gone".into() });
        show!(a, AuthClient, user_get, pb::AuthUserGetRequest { name: "carol".into() });
        show!(a, AuthClient, user_list, pb::AuthUserListRequest {});
        show!(a, AuthClient, role_list, pb::AuthRoleListRequest {});
        for (id, key) in [(5, "z"), (6, "a")] {
            show!(a, LeaseClient, lease_grant, pb::LeaseGrantRequest { id, ttl: 1000 });
            show!(a, KvClient, put, pb::PutRequest { lease: id, ..put_of(key) });
        }
        show!(a, AuthClient, auth_status, pb::AuthStatusRequest {});
        show!(a, AuthClient, auth_enable, pb::AuthEnableRequest {});
        show!(a, AuthClient, auth_status, pb::AuthStatusRequest {});
        for (name, password) in [("root", "x"), ("nothing", "x"), ("", ""), ("certified", "x"), ("certified", "")] {
            let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
            show!(a, AuthClient, authenticate, request);
        }
        let (long, longer) = ("x".repeat(72), "x".repeat(73));
        for (name, password) in [
            ("carol", ""),
            ("empty", ""),
            ("zero", "a\0b"),
            ("zero", "a\0c"),
            ("zero", "a"),
            ("longest", &long),
            ("longest", &longer),
            ("longest", &long[1..]),
        ] {
            let request = pb::AuthenticateRequest { name: name.into(), password: password.into() };
            ask!(a, AuthClient, authenticate, request);
        }
    }

    /// Every method as one user, up to what would end the test for the next one.
    async fn every_method(&mut self) {
        use pb::request_op::Request::{RequestDeleteRange, RequestPut, RequestRange, RequestTxn};
        let a = self;
        show!(a, AuthClient, auth_status, pb::AuthStatusRequest {});
        for (start, end) in [
            ("a", ""),
            ("", ""),
            ("c", ""),
            ("a", "b"),
            ("a", "c"),
            ("a", "ca"),
            ("y", "\0"),
            ("w", "\0"),
            ("m", ""),
            ("m", "\0"),
            ("\0", "\0"),
            ("bb", "ba"),
            ("ba", "ba"),
            ("b", "a"),
            ("d", "a"),
            ("z", "a"),
        ] {
            ask!(a, KvClient, range, range(start, end));
        }
        ask!(a, KvClient, range, pb::RangeRequest { revision: 1000, ..range("a", "") });
        ask!(a, KvClient, range, pb::RangeRequest { sort_target: 9, ..range("d", "") });
        ask!(a, KvClient, range, pb::RangeRequest { serializable: true, ..range("q", "") });
        for put in [
            put_of(""),
            put_of("a"),
            put_of("c"),
            put_of("q"),
            pb::PutRequest { prev_kv: true, ..put_of("a") },
            pb::PutRequest { lease: 5, ..put_of("a") },
            pb::PutRequest { lease: 6, ..put_of("a") },
            pb::PutRequest { lease: 99, ..put_of("a") },
            pb::PutRequest { lease: 99, ..put_of("q") },
        ] {
            ask!(a, KvClient, put, put.clone());
            ask!(a, KvClient, txn, pb::TxnRequest { success: vec![op(RequestPut(put.clone()))], ..Default::default() });
            ask!(a, KvClient, txn, pb::TxnRequest { failure: vec![op(RequestPut(put.clone()))], ..Default::default() });
            let inner = pb::TxnRequest { failure: vec![op(RequestPut(put))], ..Default::default() };
            ask!(a, KvClient, txn, pb::TxnRequest { failure: vec![op(RequestTxn(inner))], ..Default::default() });
        }
        for delete in [delete("b", "", false), delete("b", "", true), delete("b", "cc", false), delete("y", "\0", true)]
        {
            ask!(a, KvClient, delete_range, delete.clone());
            let success = vec![op(RequestDeleteRange(delete))];
            ask!(a, KvClient, txn, pb::TxnRequest { success, ..Default::default() });
        }
        ask!(a, KvClient, txn, pb::TxnRequest::default());
        for key in ["a", "q"] {
            let compare = vec![pb::Compare { key: bytes(key), ..Default::default() }];
            ask!(a, KvClient, txn, pb::TxnRequest { compare: compare.clone(), ..Default::default() });
            let inner = pb::TxnRequest { compare, ..Default::default() };
            ask!(a, KvClient, txn, pb::TxnRequest { failure: vec![op(RequestTxn(inner))], ..Default::default() });
            let reads = vec![op(RequestRange(range(key, "")))];
            ask!(a, KvClient, txn, pb::TxnRequest { success: reads.clone(), ..Default::default() });
            ask!(a, KvClient, txn, pb::TxnRequest { failure: reads, ..Default::default() });
        }
        ask!(a, KvClient, compact, pb::CompactionRequest { revision: 1000, physical: false });
        for lease in [5, 6, 77] {
            ask!(a, LeaseClient, lease_time_to_live, pb::LeaseTimeToLiveRequest { id: lease, keys: false });
            ask!(a, LeaseClient, lease_time_to_live, pb::LeaseTimeToLiveRequest { id: lease, keys: true });
            a.keep_alive(lease).await;
        }
        ask!(a, LeaseClient, lease_leases, pb::LeaseLeasesRequest {});
        for ttl in [9_000_000_001, 100] {
            ask!(a, LeaseClient, lease_grant, pb::LeaseGrantRequest { id: 7, ttl });
        }
        for id in [7, 77] {
            ask!(a, LeaseClient, lease_revoke, pb::LeaseRevokeRequest { id });
        }
        for linearizable in [false, true] {
            ask!(a, ClusterClient, member_list, pb::MemberListRequest { linearizable });
        }
        let add = pb::MemberAddRequest { peer_ur_ls: vec!["bad".into()], ..Default::default() };
        ask!(a, ClusterClient, member_add, add);
        ask!(a, ClusterClient, member_remove, pb::MemberRemoveRequest { id: 77 });
        ask!(a, ClusterClient, member_promote, pb::MemberPromoteRequest { id: 77 });
        for action in [0, 1, 9] {
            // Real etcd 3.7.1 dies of an action that it does not know, once the caller may ask.
            if action != 9 || !a.who.contains("root") {
                ask!(a, MaintenanceClient, alarm, pb::AlarmRequest { action, ..Default::default() });
            }
        }
        ask!(a, MaintenanceClient, alarm, pb::AlarmRequest { action: 2, member_id: 77, alarm: 1 });
        ask!(a, MaintenanceClient, status, pb::StatusRequest {});
        ask!(a, MaintenanceClient, hash_kv, pb::HashKvRequest { revision: 0 });
        a.snapshot().await;
        ask!(a, MaintenanceClient, move_leader, pb::MoveLeaderRequest { target_id: 77 });
        ask!(a, MaintenanceClient, defragment, pb::DefragmentRequest {});
        ask!(a, MaintenanceClient, hash, pb::HashRequest {});
        for version in ["x", "3.6.0"] {
            ask!(a, MaintenanceClient, downgrade, pb::DowngradeRequest { action: 0, version: version.into() });
        }
        if !a.who.contains("root") {
            // Root gets through.
            let update = pb::MemberUpdateRequest { id: 77, peer_ur_ls: vec!["bad".into()] };
            ask!(a, ClusterClient, member_update, update);
            let add = pb::MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:1".into()], ..Default::default() };
            ask!(a, ClusterClient, member_add, add);
            ask!(a, AuthClient, auth_disable, pb::AuthDisableRequest {});
            let password =
                pb::AuthUserChangePasswordRequest { name: "bob".into(), password: "x".into(), ..Default::default() };
            ask!(a, AuthClient, user_change_password, password);
        }
        for name in ["a", "q"] {
            ask!(a, LockClient, lock, LockRequest { name: bytes(name), lease: 0 });
            ask!(a, LockClient, unlock, UnlockRequest { key: bytes(name) });
            // A name of its own: it would wait for the lock, or for who won it before, until their leases end.
            let election = Bytes::from(format!("{name} {}", a.who));
            ask!(a, ElectionClient, campaign, CampaignRequest { name: election.clone(), ..Default::default() });
            ask!(a, ElectionClient, leader, LeaderRequest { name: election.clone() });
            let leader = Some(LeaderKey { key: bytes(name), ..Default::default() });
            ask!(a, ElectionClient, proclaim, ProclaimRequest { leader: leader.clone(), value: bytes("v") });
            ask!(a, ElectionClient, resign, ResignRequest { leader });
        }
        ask!(a, ElectionClient, proclaim, ProclaimRequest::default());
        for (start, end) in [("a", "c"), ("q", ""), ("", "")] {
            a.range_stream(start, end).await;
        }
        ask!(a, AuthClient, auth_enable, pb::AuthEnableRequest {});
        ask!(a, AuthClient, user_add, pb::AuthUserAddRequest::default());
        for name in ["alice", "bob", "root", "nothing"] {
            show!(a, AuthClient, user_get, pb::AuthUserGetRequest { name: name.into() });
        }
        for role in ["writer", "reader", "root", "nothing"] {
            show!(a, AuthClient, role_get, pb::AuthRoleGetRequest { role: role.into() });
        }
        show!(a, AuthClient, user_list, pb::AuthUserListRequest {});
        show!(a, AuthClient, role_list, pb::AuthRoleListRequest {});
        ask!(a, AuthClient, user_delete, pb::AuthUserDeleteRequest { name: "root".into() });
        let root = || ("root".to_owned(), "root".to_owned());
        let (name, role) = root();
        ask!(a, AuthClient, user_revoke_role, pb::AuthUserRevokeRoleRequest { name, role });
        let (user, role) = root();
        ask!(a, AuthClient, user_grant_role, pb::AuthUserGrantRoleRequest { user, role });
        ask!(a, AuthClient, role_add, pb::AuthRoleAddRequest::default());
        ask!(a, AuthClient, role_delete, pb::AuthRoleDeleteRequest { role: "root".into() });
        ask!(a, AuthClient, role_grant_permission, pb::AuthRoleGrantPermissionRequest::default());
        ask!(a, AuthClient, role_revoke_permission, pb::AuthRoleRevokePermissionRequest::default());
        for (start, end, from) in [
            ("a", "", 0),
            ("", "", 0),
            ("a", "c", 0),
            ("y", "\0", 0),
            ("w", "\0", 0),
            ("q", "", -1),
            ("d", "a", 0),
            ("m", "", 0),
            ("m", "\0", 0),
        ] {
            a.watch(start, end, from).await;
        }
        a.watch("bb", "ba", 0).await;
    }

    async fn range_stream(&mut self, start: &'static str, end: &'static str) {
        let asked = with(self.token.as_deref(), range(start, end));
        let outcome = async {
            let mut answers = KvClient::new(self.channel.clone()).range_stream(asked).await?.into_inner();
            answers.message().await
        };
        self.all.push(format!("{}: range stream {start:?} {end:?} => {}", self.who, told(outcome.await)));
    }

    async fn snapshot(&mut self) {
        let asked = with(self.token.as_deref(), pb::SnapshotRequest {});
        let outcome = async {
            let mut pieces = MaintenanceClient::new(self.channel.clone()).snapshot(asked).await?.into_inner();
            pieces.message().await
        };
        self.all.push(format!("{}: snapshot => {}", self.who, told(outcome.await)));
    }

    async fn keep_alive(&mut self, id: i64) {
        let requests = tokio_stream::iter([pb::LeaseKeepAliveRequest { id }]);
        let asked = with(self.token.as_deref(), requests);
        let outcome = async {
            let mut answers = LeaseClient::new(self.channel.clone()).lease_keep_alive(asked).await?.into_inner();
            Ok::<_, Status>(answers.message().await?.map(|answer| answer.ttl))
        };
        let text = match outcome.await {
            Ok(ttl) => format!("{ttl:?}"),
            Err(status) => told::<()>(Err(status)),
        };
        self.all.push(format!("{}: keep alive {id} => {text}", self.who));
    }

    async fn watch(&mut self, start: &'static str, end: &'static str, from: i64) {
        let create = pb::WatchCreateRequest {
            key: bytes(start),
            range_end: bytes(end),
            start_revision: from,
            ..Default::default()
        };
        let request = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        sender.send(request).await.unwrap();
        let asked = with(self.token.as_deref(), tokio_stream::wrappers::ReceiverStream::new(receiver));
        let mut answers = WatchClient::new(self.channel.clone()).watch(asked).await.unwrap().into_inner();
        let first = answers.message().await.unwrap().unwrap();
        let text = format!("{} {} {} {:?}", first.watch_id, first.created, first.canceled, first.cancel_reason);
        self.all.push(format!("{}: watch {start:?} {end:?} {from} => {text}", self.who));
    }

    /// What becomes of a token.
    async fn tokens(&mut self) {
        let a = self;
        a.become_user("root", "r").await;
        let root = a.token.clone();
        a.become_user("alice", "a").await;
        let alice = a.token.clone();
        let grant = pb::AuthUserGrantRoleRequest { user: "alice".into(), role: "reader".into() };
        let change =
            pb::AuthUserChangePasswordRequest { name: "alice".into(), password: "other".into(), ..Default::default() };
        a.token = root.clone();
        show!(a, AuthClient, user_grant_role, grant);
        a.token = alice.clone();
        show!(a, KvClient, range, pb::RangeRequest { count_only: true, ..range("a", "") });
        a.token = root.clone();
        show!(a, AuthClient, user_change_password, change);
        a.token = alice.clone();
        ask!(a, KvClient, range, range("a", ""));
        a.become_user("alice", "other").await;
        let alice = a.token.clone();
        ask!(a, KvClient, range, range("a", ""));
        a.token = root.clone();
        show!(a, AuthClient, role_delete, pb::AuthRoleDeleteRequest { role: "reader".into() });
        show!(a, AuthClient, user_get, pb::AuthUserGetRequest { name: "alice".into() });
        a.token = alice.clone();
        ask!(a, KvClient, range, range("a", ""));
        ask!(a, KvClient, put, put_of("a"));
        a.token = root.clone();
        show!(a, AuthClient, user_delete, pb::AuthUserDeleteRequest { name: "alice".into() });
        a.token = alice;
        ask!(a, KvClient, put, put_of("a"));
        a.token = root.clone();
        show!(a, AuthClient, auth_status, pb::AuthStatusRequest {});
        show!(a, AuthClient, auth_disable, pb::AuthDisableRequest {});
        show!(a, AuthClient, auth_status, pb::AuthStatusRequest {});
        show!(a, AuthClient, auth_enable, pb::AuthEnableRequest {});
        show!(a, AuthClient, auth_status, pb::AuthStatusRequest {});
        ask!(a, KvClient, put, put_of("a"));
    }

    /// What tokens are good for after users have changed.
    async fn with_old_tokens(&mut self) {
        let mut tokens = Vec::new();
        for (who, old, password) in [("alice", "old alice", "a"), ("bob", "old bob", "b"), ("root", "old root", "r")] {
            self.become_user(who, password).await;
            tokens.push((old, self.token.clone()));
        }
        ask!(self, AuthClient, role_add, pb::AuthRoleAddRequest { name: "late".into() });
        for (who, token) in tokens {
            // What is looked at key by key must have a key.
            self.become_user("root", "r").await;
            ask!(self, KvClient, put, pb::PutRequest { lease: 6, ..put_of("a") });
            (self.who, self.token) = (who, token);
            self.every_method().await;
        }
    }

    async fn run(&mut self) {
        self.found().await;
        for (who, password) in
            [("nobody", ""), ("stranger", ""), ("alice", "a"), ("bob", "b"), ("empty", ""), ("root", "r")]
        {
            self.become_user(who, password).await;
            self.every_method().await;
        }
        self.tokens().await;
    }

    async fn run_with_old_tokens(&mut self) {
        self.found().await;
        self.with_old_tokens().await;
        self.tokens().await;
    }
}

/// Both servers answered the same to each call.
fn same(ours: &Answers, theirs: &Answers, at_least: usize) {
    let calls = theirs.all.len();
    assert!(calls >= at_least && ours.all.len() == calls, "{calls} calls");
    let differing: Vec<_> = ours.all.iter().zip(&theirs.all).filter(|(ours, theirs)| ours != theirs).collect();
    for (ours, theirs) in &differing {
        eprintln!("ours  {ours}\netcd  {theirs}\n");
    }
    assert!(differing.is_empty(), "{} of {calls} answers differ from etcd's", differing.len());
}

/// A member of ours and a real one with these flags.
async fn both_with(flags: &[&str]) -> (Cluster, Member, Real) {
    let mut cluster = Cluster::new(&["default"]);
    let mut real = Member::new("real", cluster.tmp.path());
    let flags = [flags, &["--bcrypt-cost=4"]].concat();
    cluster.members[0].flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
    cluster.members[0].start();
    cluster.members[0].ready().await;
    let etcd = Real::start(&mut real, &flags).await;
    (cluster, real, etcd)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_answered_and_refused_as_etcd_does() {
    let (cluster, real, _etcd) = both_with(&[]).await;
    let (mut ours, mut theirs) = (Answers::of(channel(&cluster.members[0].client)), Answers::of(channel(&real.client)));
    tokio::join!(ours.run(), theirs.run());
    same(&ours, &theirs, 700);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_with_an_old_signed_token_is_answered_as_etcd_does() {
    let dir = tempfile::tempdir().unwrap();
    let (private, public) = jwt_keys(dir.path());
    let flag = format!("--auth-token=jwt,sign-method=ES256,pub-key={public},priv-key={private},ttl=10m");
    let (cluster, real, _etcd) = both_with(&[&flag]).await;
    let (mut ours, mut theirs) = (Answers::of(channel(&cluster.members[0].client)), Answers::of(channel(&real.client)));
    tokio::join!(ours.run_with_old_tokens(), theirs.run_with_old_tokens());
    same(&ours, &theirs, 400);
}

/// Shows a certificate, and speaks this protocol.
fn tls(ca: &Path, cert: &Cert, protocol: &[u8]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_file_iter(ca).unwrap().map(Result::unwrap));
    let chain = CertificateDer::pem_file_iter(&cert.cert).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(&cert.key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// A channel to this address that shows a certificate.
fn certified(address: &str, ca: &Path, cert: &Cert) -> Channel {
    let (connector, address) = (tls(ca, cert, b"h2"), address.to_owned());
    let connect = tower::service_fn(move |_| {
        let (connector, address) = (connector.clone(), address.clone());
        async move {
            let plain = tokio::net::TcpStream::connect(address).await?;
            let name = ServerName::try_from("localhost").unwrap();
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, plain).await?))
        }
    });
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect)
}

/// What is answered by HTTP to who shows a certificate: status, kind and body.
async fn by_http(address: &str, connector: &TlsConnector, request: &str) -> String {
    let plain = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), plain).await.unwrap();
    let text = format!(
        "{request} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
    );
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // rustls calls it an error that Go closes without a word.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let kind = head.lines().find(|line| line.to_ascii_lowercase().starts_with("content-type")).unwrap_or_default();
    // Go puts a space behind a comma, or not, by the hash of its binary.
    let body = body.replace("\", \"", "\",\"").replace(", \"", ",\"");
    format!("{request}: {}, {}, {body}", head.lines().next().unwrap(), kind.to_ascii_lowercase())
}

/// What one of the servers answers to users that are known by their certificates.
async fn by_certificates(address: &str, pki: &Pki) -> Answers {
    let by = |file: &str, name: &str| certified(address, &pki.ca, &pki.issue(file, name));
    let mut a = Answers::of(by("root", "root"));
    a.found().await;
    for (who, name, token) in [
        ("by name", "alice", None),
        ("by name, bad token", "alice", Some("bad")),
        ("no such user", "zoe", None),
        ("no name", "", None),
        ("root's name", "root", None),
    ] {
        a.channel = by("client", name);
        (a.who, a.token) = (who, token.map(str::to_owned));
        a.every_method().await;
    }
    for name in ["alice", ""] {
        let connector = tls(&pki.ca, &pki.issue("client", name), b"http/1.1");
        for request in [
            "POST /v3/maintenance/status",
            "POST /v3/nothing",
            "POST /v3beta/kv/range",
            "GET /v3/kv/range",
            "OPTIONS /v3/kv/range",
            "GET /v3",
            "GET /health",
        ] {
            let answer = by_http(address, &connector, request).await;
            a.all.push(format!("{name:?}: {answer}"));
        }
    }
    // A good token says more than the name.
    a.channel = by("client", "root");
    a.become_user("bob", "b").await;
    a.every_method().await;
    a
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_by_a_certificate_is_answered_as_etcd_does() {
    let mut cluster = Cluster::new(&["default"]);
    let pki = Pki::new(cluster.tmp.path());
    let Cert { cert, key } = pki.issue("server", "server");
    let mut real = Member::new("real", cluster.tmp.path());
    let flags = |m: &Member| {
        vec![
            format!("--listen-client-urls=https://{}", m.client),
            format!("--advertise-client-urls=https://{}", m.client),
            format!("--cert-file={}", cert.display()),
            format!("--key-file={}", key.display()),
            format!("--trusted-ca-file={}", pki.ca.display()),
            "--client-cert-auth".to_owned(),
            "--bcrypt-cost=4".to_owned(),
        ]
    };
    let ours = &mut cluster.members[0];
    ours.flags.extend(flags(ours));
    ours.start();
    let theirs = flags(&real);
    let theirs: Vec<&str> = theirs.iter().map(String::as_str).collect();
    let etcd = Real::spawn(&mut real, &theirs);
    for m in [&cluster.members[0], &real] {
        let mut client = KvClient::new(certified(&m.client, &pki.ca, &pki.issue("client", "")));
        eventually("it serves", async || client.range(range("a", "")).await.map_err(|e| e.to_string())).await;
    }
    let (ours, theirs) =
        tokio::join!(by_certificates(&cluster.members[0].client, &pki), by_certificates(&real.client, &pki));
    drop(etcd);
    same(&ours, &theirs, 900);
}

/// Key files for signed tokens.
fn jwt_keys(dir: &Path) -> (String, String) {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let (private, public) = (dir.join("jwt.key"), dir.join("jwt.pub"));
    fs::write(&private, pair.serialize_pem()).unwrap();
    fs::write(&public, pair.public_key_pem()).unwrap();
    (private.display().to_string(), public.display().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn signed_tokens_are_etcds_and_end_with_each_change_of_users() {
    let mut cluster = Cluster::new(&["default"]);
    let mut real = Member::new("real", cluster.tmp.path());
    let (private, public) = jwt_keys(cluster.tmp.path());
    let flag = format!("--auth-token=jwt,sign-method=ES256,pub-key={public},priv-key={private},ttl=10m");
    cluster.members[0].flags.push(flag.clone());
    cluster.members[0].start();
    cluster.members[0].ready().await;
    let _etcd = Real::start(&mut real, &[&flag]).await;
    let ours = &cluster.members[0];
    guide(ours);
    guide(&real);
    let tokens =
        [login(&ours.client, "app", "secret").await.unwrap(), login(&real.client, "app", "secret").await.unwrap()];
    for token in &tokens {
        for m in [ours, &real] {
            assert_eq!(told(put(&m.client, Some(token), "app/k").await), "OK");
            assert_eq!(told(put(&m.client, Some(token), "other").await), DENIED);
            assert_eq!(told(put(&m.client, Some(&token[..token.len() - 8]), "app/k").await), BAD_TOKEN);
        }
    }
    for m in [ours, &real] {
        m.etcdctl(&[ROOT, "role", "add", "another"]).unwrap();
        assert_eq!(told(put(&m.client, Some(&tokens[0]), "app/k").await), OLD);
        assert_eq!(told(get(&m.client, Some(&tokens[1]), "app/k").await), OLD);
        guide_holds(m);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_of_older_users_makes_no_old_signed_token_good_again() {
    let mut cluster = Cluster::new(&["default"]);
    let (private, public) = jwt_keys(cluster.tmp.path());
    cluster.members[0]
        .flags
        .push(format!("--auth-token=jwt,sign-method=ES256,pub-key={public},priv-key={private},ttl=10m"));
    cluster.members[0].start();
    cluster.members[0].ready().await;
    let m = &cluster.members[0];
    guide(m);
    let token = login(&m.client, "app", "secret").await.unwrap();
    assert_eq!(told(put(&m.client, Some(&token), "app/k").await), "OK");
    let file = cluster.tmp.path().join("backup.db");
    m.etcdctl(&[ROOT, "snapshot", "save", file.to_str().unwrap()]).unwrap();
    m.etcdctl(&[ROOT, "role", "add", "another"]).unwrap();
    assert_eq!(told(put(&m.client, Some(&token), "app/k").await), OLD);
    // The file's users are those of the token's time, with their revision.
    let root = login(&m.client, "root", "r00t").await.unwrap();
    assert_eq!(told(restore(&m.client, Some(&root), &fs::read(file).unwrap()).await), "OK");
    assert_eq!(told(put(&m.client, Some(&token), "app/k").await), OLD);
    assert_eq!(told(put(&m.client, Some(&root), "app/k").await), OLD);
    guide_holds(m);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_the_public_key_alone_verifies_and_signs_not() {
    let mut cluster = Cluster::new(ABC);
    let (private, public) = jwt_keys(cluster.tmp.path());
    for (at, m) in cluster.members.iter_mut().enumerate() {
        let keys = if at == 0 { format!("pub-key={public},priv-key={private}") } else { format!("pub-key={public}") };
        m.flags.push(format!("--auth-token=jwt,sign-method=ES256,{keys}"));
        m.start();
    }
    for m in &cluster.members {
        m.ready().await;
    }
    guide(&cluster.members[0]);
    let token = login(&cluster.members[0].client, "app", "secret").await.unwrap();
    for m in &cluster.members {
        assert_eq!(told(put(&m.client, Some(&token), "app/k").await), "OK");
    }
    let refused = told(login(&cluster.members[1].client, "app", "secret").await);
    assert_eq!(refused, "2: auth: token signing attempted with verify-only key");
}
