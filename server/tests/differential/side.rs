//! One of the two servers, and how its answers become comparable.

use super::call::{Answer, AuthCall, Call, Who};
use super::generate::STREAMS;
use crate::support::{PATIENCE, etcd_tool, free_address};
use ferretcd_proto::etcdserverpb as pb;
use pb::watch_request::RequestUnion;
use pb::{
    auth_client::AuthClient, kv_client::KvClient, lease_client::LeaseClient, maintenance_client::MaintenanceClient,
    watch_client::WatchClient,
};
use std::fmt::Debug;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// Both servers, fresh, with the same history from now on.
pub struct Pair {
    pub etcd: Side,
    pub ours: Side,
    pub revision: i64,
    pub compacted: i64,
}

pub struct Side {
    child: Child,
    channel: Channel,
    streams: Vec<Option<Stream>>,
    /// What calls bring along to say who makes them.
    token: Option<String>,
    _dir: tempfile::TempDir,
}

struct Stream {
    requests: mpsc::Sender<pb::WatchRequest>,
    seen: Arc<Mutex<Vec<pb::WatchResponse>>>,
    /// Start revisions that were asked for: one in the future keeps progress from being told.
    latest_start: i64,
}

impl Pair {
    pub async fn start() -> Self {
        let (theirs, own) = (etcd_tool("etcd"), Path::new(env!("CARGO_BIN_EXE_ferretcd")));
        let (etcd, ours) = tokio::join!(Side::start(&theirs), Side::start(own));
        Pair { etcd, ours, revision: 1, compacted: -1 }
    }
}

impl Side {
    async fn start(binary: &Path) -> Self {
        // Memory where there is some: this compares answers, and both servers sync each write.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let [client, peer] = [(); 2].map(|()| format!("http://{}", free_address()));
        let child = Command::new(binary)
            .args(["--name=m", "--data-dir", &dir.path().join("data").display().to_string()])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("m={peer}"), "--bcrypt-cost=4"])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let channel = Endpoint::from_shared(client).unwrap().connect_lazy();
        let mut side = Side { child, channel, streams: (0..STREAMS).map(|_| None).collect(), token: None, _dir: dir };
        let deadline = Instant::now() + PATIENCE;
        let read = Call::Range(pb::RangeRequest { key: "x".into(), ..Default::default() });
        while !side.call(&read).await.ok {
            assert!(Instant::now() < deadline, "{} does not become ready", binary.display());
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        side
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    /// A request in the caller's name.
    fn with<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.parse().unwrap());
        }
        request
    }

    async fn become_who(&mut self, who: Who) -> Answer {
        self.token = None;
        let (name, password) = match who {
            Who::Nobody => return said("nobody"),
            Who::Stranger => {
                self.token = Some("stranger.1".to_owned());
                return said("a stranger");
            }
            Who::User(name, password) => (name, password),
        };
        let mut client = AuthClient::new(self.channel.clone());
        let granted = client.authenticate(pb::AuthenticateRequest { name, password }).await;
        self.token = granted.as_ref().ok().map(|answer| answer.get_ref().token.clone());
        answer(granted, |a| &mut a.header, |a| a.token.clear())
    }

    async fn auth(&self, call: AuthCall) -> Answer {
        let mut client = AuthClient::new(self.channel.clone());
        macro_rules! ask {
            ($method:ident, $request:expr) => {
                answer(client.$method(self.with($request)).await, |a| &mut a.header, |_| {})
            };
        }
        match call {
            AuthCall::Enable => ask!(auth_enable, pb::AuthEnableRequest {}),
            AuthCall::Disable => ask!(auth_disable, pb::AuthDisableRequest {}),
            AuthCall::Status => ask!(auth_status, pb::AuthStatusRequest {}),
            AuthCall::UserAdd(r) => ask!(user_add, r),
            AuthCall::UserGet(name) => ask!(user_get, pb::AuthUserGetRequest { name }),
            AuthCall::UserList => ask!(user_list, pb::AuthUserListRequest {}),
            AuthCall::UserDelete(name) => ask!(user_delete, pb::AuthUserDeleteRequest { name }),
            AuthCall::UserChangePassword(r) => ask!(user_change_password, r),
            AuthCall::UserGrantRole(r) => ask!(user_grant_role, r),
            AuthCall::UserRevokeRole(r) => ask!(user_revoke_role, r),
            AuthCall::RoleAdd(name) => ask!(role_add, pb::AuthRoleAddRequest { name }),
            AuthCall::RoleGet(role) => ask!(role_get, pb::AuthRoleGetRequest { role }),
            AuthCall::RoleList => ask!(role_list, pb::AuthRoleListRequest {}),
            AuthCall::RoleDelete(role) => ask!(role_delete, pb::AuthRoleDeleteRequest { role }),
            AuthCall::RoleGrantPermission(r) => ask!(role_grant_permission, r),
            AuthCall::RoleRevokePermission(r) => ask!(role_revoke_permission, r),
        }
    }

    async fn forget_users(&mut self, root_password: String) -> Answer {
        let mut text = self.become_who(Who::User("root".to_owned(), root_password)).await.text;
        let disabled = self.auth(AuthCall::Disable).await;
        assert!(disabled.ok, "root cannot turn authentication off: {text}, {}", disabled.text);
        self.token = None;
        let mut client = AuthClient::new(self.channel.clone());
        let users = client.user_list(pb::AuthUserListRequest {}).await.unwrap().into_inner().users;
        let roles = client.role_list(pb::AuthRoleListRequest {}).await.unwrap().into_inner().roles;
        text += &format!("; {users:?}; {roles:?}");
        let users = users.into_iter().map(AuthCall::UserDelete);
        for call in users.chain(roles.into_iter().map(AuthCall::RoleDelete)) {
            assert!(self.auth(call).await.ok);
        }
        let status = self.auth(AuthCall::Status).await;
        Answer { text: format!("{text}; {}", status.text), ..status }
    }

    pub async fn call(&mut self, call: &Call) -> Answer {
        match call.clone() {
            Call::Range(r) => answer(self.kv().range(self.with(r)).await, |a| &mut a.header, |_| {}),
            Call::RangeStream(r) => {
                let joined = joined(self.kv().range_stream(self.with(r)).await).await;
                answer(joined.map(Response::new), |a| &mut a.header, |_| {})
            }
            Call::Put(r) => answer(self.kv().put(self.with(r)).await, |a| &mut a.header, |_| {}),
            Call::DeleteRange(r) => answer(self.kv().delete_range(self.with(r)).await, |a| &mut a.header, |_| {}),
            Call::Txn(r) => answer(self.kv().txn(self.with(r)).await, |a| &mut a.header, |_| {}),
            Call::Compact(r) => {
                self.settle().await;
                answer(self.kv().compact(self.with(r)).await, |a| &mut a.header, |_| {})
            }
            Call::LeaseGrant(r) => {
                let chosen = r.id != 0;
                answer(
                    self.lease().lease_grant(self.with(r)).await,
                    |a| &mut a.header,
                    |a| {
                        if !chosen {
                            assert!(a.id > 0);
                            a.id = 0;
                        }
                    },
                )
            }
            Call::LeaseRevoke(r) => answer(self.lease().lease_revoke(self.with(r)).await, |a| &mut a.header, |_| {}),
            Call::LeaseTimeToLive(r) => {
                let clean = |a: &mut pb::LeaseTimeToLiveResponse| {
                    a.ttl = a.ttl.signum();
                    // etcd lists them in no order.
                    a.keys.sort();
                };
                answer(self.lease().lease_time_to_live(self.with(r)).await, |a| &mut a.header, clean)
            }
            Call::LeaseLeases => answer(
                self.lease().lease_leases(self.with(pb::LeaseLeasesRequest {})).await,
                |a| &mut a.header,
                |a| {
                    // Those that a server named itself.
                    a.leases.retain(|l| l.id < 1000);
                },
            ),
            Call::LeaseKeepAlive(id) => {
                let requests = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
                let first = match self.lease().lease_keep_alive(self.with(requests)).await {
                    Ok(answers) => answers.into_inner().message().await.map(|a| Response::new(a.unwrap_or_default())),
                    Err(status) => Err(status),
                };
                answer(first, |a| &mut a.header, |_| {})
            }
            Call::HashKv(revision) => {
                let mut client = MaintenanceClient::new(self.channel.clone());
                answer(client.hash_kv(self.with(pb::HashKvRequest { revision })).await, |a| &mut a.header, |_| {})
            }
            Call::WatchCreate(stream, r) => {
                // There, etcd never uses an ID again that a compaction cancelled.
                self.settle().await;
                if self.streams[stream].as_ref().is_some_and(Stream::is_mute) {
                    return said("left out");
                }
                self.watch(stream, r).await;
                said("created")
            }
            Call::WatchCancel(stream, watch_id) => {
                // A cancel is answered only for a watch that is there; settling first and after keeps it from
                // racing with events.
                self.settle().await;
                // etcd answers a cancel once more when a compaction had cancelled the watch already.
                if let Some(stream) = &self.streams[stream]
                    && !stream.seen.lock().unwrap().iter().any(|a| a.watch_id == watch_id && a.compact_revision > 0)
                {
                    let request = RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id });
                    stream.send(request).await;
                }
                self.settle().await;
                said("cancelled")
            }
            Call::Auth(call) => self.auth(call).await,
            Call::Become(who) => self.become_who(who).await,
            Call::ForgetUsers(root_password) => self.forget_users(root_password).await,
            Call::Settle | Call::CloseWatches => match self.settle().await {
                true => said("settled"),
                false => said("a stream does not say that it is up to date"),
            },
        }
    }

    /// Sends the request and waits until it is answered.
    async fn watch(&mut self, at: usize, request: pb::WatchCreateRequest) {
        if self.streams[at].is_none() {
            let (requests, input) = mpsc::channel(16);
            let seen = Arc::new(Mutex::new(Vec::new()));
            let (mut client, into) = (WatchClient::new(self.channel.clone()), seen.clone());
            let input = self.with(ReceiverStream::new(input));
            tokio::spawn(async move {
                let Ok(answers) = client.watch(input).await else { return };
                let mut answers = answers.into_inner();
                while let Ok(Some(answer)) = answers.message().await {
                    into.lock().unwrap().push(answer);
                }
            });
            self.streams[at] = Some(Stream { requests, seen, latest_start: 0 });
        }
        let stream = self.streams[at].as_mut().unwrap();
        stream.latest_start = stream.latest_start.max(request.start_revision);
        let created = |stream: &Stream| stream.seen.lock().unwrap().iter().filter(|a| a.created).count();
        let before = created(stream);
        stream.send(RequestUnion::CreateRequest(request)).await;
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut look = Looks::default();
        while created(stream) == before && Instant::now() < deadline {
            look.again().await;
        }
    }

    /// Waits until each stream says that nothing is missing; false when one does not.
    async fn settle(&mut self) -> bool {
        let mut settled = true;
        // The one call that says the revision to everybody, whoever may read what.
        let status = AuthClient::new(self.channel.clone()).auth_status(pb::AuthStatusRequest {}).await;
        let revision = status.map_or(0, |a| a.into_inner().header.unwrap().revision);
        for stream in self.streams.iter().flatten() {
            let told = |a: &pb::WatchResponse| a.watch_id == -1 && !a.created && revision_of(a) >= revision;
            let deadline = Instant::now() + Duration::from_secs(5);
            stream.seen.lock().unwrap().retain(|a| a.watch_id != -1 || a.created);
            // Where etcd never says so, its own pace of catching up (100 ms) has to do.
            let catching_up = Instant::now() + Duration::from_millis(250);
            while stream.latest_start > revision || stream.is_mute() {
                if Instant::now() > catching_up {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let mut look = Looks::default();
            let tells = |stream: &Stream| stream.live() > 0 && stream.latest_start <= revision && !stream.is_mute();
            while tells(stream) && !stream.seen.lock().unwrap().iter().any(told) && Instant::now() < deadline {
                stream.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
                look.again().await;
            }
            settled &= Instant::now() < deadline;
        }
        settled
    }

    /// Compares what all watches saw, and then closes them if both are to be closed.
    pub async fn same_watches(etcd: &Side, ours: &Side) -> Result<(), (String, String)> {
        let deadline = Instant::now() + Duration::from_secs(3);
        loop {
            let (a, b) = (etcd.seen(), ours.seen());
            if a == b {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err((a, b));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn close_watches(&mut self) {
        self.streams.iter_mut().for_each(|s| *s = None);
    }

    /// What each watch saw, in its order. How many events come in one answer is a matter of time.
    fn seen(&self) -> String {
        let mut text = String::new();
        for (at, stream) in self.streams.iter().enumerate() {
            let Some(stream) = stream else { continue };
            let mut by_watch: std::collections::BTreeMap<i64, Vec<String>> = Default::default();
            for answer in stream.seen.lock().unwrap().iter() {
                // Progress is asked for until it comes.
                let progress = answer.events.is_empty() && !answer.created && !answer.canceled;
                if progress {
                    continue;
                }
                let lines = by_watch.entry(answer.watch_id).or_default();
                if answer.created || answer.canceled {
                    let mut control = answer.clone();
                    control.events.clear();
                    let revision = control.header.take().map(|h| h.revision);
                    lines.push(format!("{control:?} at {revision:?}"));
                }
                for event in &answer.events {
                    lines.push(format!("{event:?}"));
                    let complete = revision_of(answer) >= event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
                    assert!(complete, "an event is newer than its answer: {answer:?}");
                }
            }
            for (id, lines) in by_watch {
                text += &format!("\n    stream {at} watch {id}:");
                lines.iter().for_each(|line| text += &format!("\n      {line}"));
            }
        }
        text
    }
}

/// Pauses between looks: short at first, since most answers come at once, and longer while etcd's loop of 100 ms is
/// waited for. Other sequences have the processor meanwhile.
struct Looks(Duration);

impl Default for Looks {
    fn default() -> Self {
        Looks(Duration::from_millis(1))
    }
}

impl Looks {
    async fn again(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 3 / 2).min(Duration::from_millis(20));
    }
}

impl Stream {
    /// etcd tells no progress of a stream any more on which a watch was cancelled by a compaction.
    fn is_mute(&self) -> bool {
        self.seen.lock().unwrap().iter().any(|a| a.compact_revision > 0)
    }

    /// Watches that were created and did not end: etcd tells no progress of a stream without one.
    fn live(&self) -> usize {
        let mut live = std::collections::BTreeSet::new();
        for answer in self.seen.lock().unwrap().iter() {
            if answer.created && !answer.canceled {
                live.insert(answer.watch_id);
            } else if answer.canceled {
                live.remove(&answer.watch_id);
            }
        }
        live.len()
    }

    async fn send(&self, request: RequestUnion) {
        let _ = self.requests.send(pb::WatchRequest { request_union: Some(request) }).await;
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What all chunks say together. How large each is depends on what those before it held.
async fn joined(
    answers: Result<Response<tonic::Streaming<pb::RangeStreamResponse>>, Status>,
) -> Result<pb::RangeResponse, Status> {
    let (mut answers, mut whole) = (answers?.into_inner(), pb::RangeResponse::default());
    while let Some(chunk) = answers.message().await? {
        let chunk = chunk.range_response.unwrap_or_default();
        whole.kvs.extend(chunk.kvs);
        whole.header = chunk.header.or(whole.header);
        whole.more |= chunk.more;
        whole.count += chunk.count;
    }
    Ok(whole)
}

fn revision_of(answer: &pb::WatchResponse) -> i64 {
    answer.header.as_ref().map_or(0, |h| h.revision)
}

fn said(text: &str) -> Answer {
    Answer { text: text.to_owned(), revision: None, ok: true }
}

/// An answer as text, without what no two clusters share.
fn answer<T: Debug>(
    result: Result<Response<T>, Status>,
    header: impl Fn(&mut T) -> &mut Option<pb::ResponseHeader>,
    clean: impl Fn(&mut T),
) -> Answer {
    match result {
        Ok(response) => {
            let mut message = response.into_inner();
            clean(&mut message);
            let mut revision = None;
            if let Some(header) = header(&mut message) {
                revision = Some(header.revision);
                (header.cluster_id, header.member_id, header.raft_term) = (0, 0, 0);
            }
            Answer { text: format!("{message:?}"), revision, ok: true }
        }
        Err(status) => Answer { text: format!("{:?}: {}", status.code(), status.message()), revision: None, ok: false },
    }
}
