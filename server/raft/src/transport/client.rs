//! Calls to other members: one lazily connected channel per member, and openraft's network on top of it.

use crate::entry;
use crate::identity::Identity;
use crate::observer::{PeerObserver, Transfer, Way};
use crate::snapshot::SnapshotFile;
use crate::transport::convert;
use crate::transport::dial::{ASK_EVERY, Dialer, Link};
use crate::transport::forward::{self, Offer};
use crate::transport::reach::{Reach, Told};
use crate::types::{LogId, TypeConfig, Vote, log_id_to_pb, vote_from_pb, vote_to_pb};
use ferretcd_proto::peer as pb;
use ferretcd_proto::peer::peer_client::PeerClient;
use ferretcd_types::{Error, LeaseId, MemberId, PeerNode};
use futures::future::Fuse;
use futures::{FutureExt, Stream, StreamExt, stream};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{AnyError, OptionalSend};
use parking_lot::{Mutex, RwLock};
use prost::Message;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

/// Flow-control windows. A small connection window makes h2 close connections that carry bursts of small frames
/// (h2 0.4.16 and later give an allowance of half the window), and large entries need the room as well.
pub const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// One stream's window: two of the largest append requests.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// Append requests that may be on their way to one follower: with at most a megabyte each this bounds what a follower
/// that stopped reading makes the leader hold.
const APPENDS_IN_FLIGHT_MAX: usize = 64;

/// How long a follower may take for its next answer on a stream of entries. One that is gone, stopped or cut off is found
/// sooner, by what asks silent connections whether they live (`--raft-read-timeout`), and heartbeats have their own streams:
/// this is for a slow wire or a slow disk, behind which giving up sends the same megabyte again, for ever. openraft's option, a
/// heartbeat's interval, is no bound of a stream.
const APPEND_PATIENCE: Duration = Duration::from_secs(30);

/// How long a follower may take for an answer while the log waits to be purged of what it is being sent. openraft purges nothing
/// that is on its way to anybody, so one that is slow but steady would make the log grow until the disk is full; given up, it gets
/// a snapshot. A few election time-outs: who answers as fast as the others never waits so long.
const PURGE_PATIENCE: Duration = Duration::from_secs(5);

/// Largest peer message: a megabyte of entries with their headers, and one entry may be as large as a request.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Size of one piece of a snapshot on its way to a follower.
const SNAPSHOT_PART_BYTES: usize = 1 << 20;

/// How long the other side may take for the next piece: more than it waits for one (fetch.rs), so that a wire is given up where both
/// ends know of it, and an end for one whose disk hangs.
const PIECE_PATIENCE: Duration = Duration::from_secs(300);

/// How long a follower may take to install a snapshot that it has: it reads and indexes all of it, minutes for the largest.
const INSTALL_PATIENCE: Duration = Duration::from_secs(3600);

/// How long one administrative call to the leader may take beyond the caller's own time-out handling.
pub(crate) const LEADER_CALL_TIMEOUT: Duration = Duration::from_secs(7);

/// How often a member that refuses this one at its door is mentioned in the log.
const REFUSAL_REPORT: Duration = Duration::from_secs(10);

/// Channels to the other members, by ID. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    identity: Arc<Identity>,
    dialer: Dialer,
    observer: Arc<dyn PeerObserver>,
    routes: Arc<RwLock<HashMap<u64, Route>>>,
    /// Where the members are now. openraft keeps its connections when a member's URLs change, so they look here.
    book: Arc<RwLock<HashMap<u64, PeerNode>>>,
    /// When a refusal of each member was last told.
    refused: Arc<RwLock<HashMap<u64, Instant>>>,
    /// Who does not answer now.
    reach: Arc<Reach>,
    /// Whether this member leads and no quorum answers it.
    without_quorum: Arc<AtomicBool>,
    /// The last entry that the log would be purged of if it were on its way to nobody.
    purgeable: Arc<AtomicU64>,
    /// How many linearizable reads wait for a quorum's confirmation here.
    reads: Arc<AtomicUsize>,
    /// Where proposals for each member are handed on. Who hands them on has none of these: it ends with the last of them.
    ways: Arc<Mutex<HashMap<u64, mpsc::Sender<Offer>>>>,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// The way to one member.
#[derive(Debug)]
struct Route {
    /// What it was made for.
    node: PeerNode,
    /// Where the member may be: its peer URLs, then those that it had before they changed. One that has changed its URLs
    /// moves there when it starts the next time, and must be reached until then.
    urls: Vec<String>,
    /// Which of them `channel` goes to.
    at: usize,
    channel: Link,
    /// When another URL was last tried.
    turned: Instant,
}

impl Route {
    fn new(dialer: &Dialer, node: PeerNode, urls: Vec<String>, at: usize) -> Result<Self, String> {
        let url = urls.get(at).ok_or("there is no peer URL")?;
        let channel = dialer.connect_lazy(url).map_err(|e| format!("peer URL {url}: {e}"))?;
        Ok(Route { node, urls, at, channel, turned: Instant::now() })
    }

    /// The same way for changed URLs.
    fn moved(self, node: PeerNode) -> Self {
        let mut urls = node.peer_urls.clone();
        let reached = self.urls.get(self.at).into_iter();
        for url in reached.chain(&self.node.peer_urls) {
            if !urls.contains(url) {
                urls.push(url.clone());
            }
        }
        let at = self.urls.get(self.at).and_then(|reached| urls.iter().position(|url| url == reached));
        Route { node, urls, at: at.unwrap_or_default(), ..self }
    }
}

/// Calls that fail together count as one failure of the URL.
const TURN_PAUSE: Duration = Duration::from_millis(200);

/// How a connection is used, and how long it may be silent; who makes it is the [`Dialer`].
pub(crate) fn endpoint(url: String, read: Duration) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(url)?
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_keep_alive_interval(ASK_EVERY)
        .keep_alive_timeout(read.saturating_sub(ASK_EVERY))
        .keep_alive_while_idle(true))
}

pub(crate) fn client(channel: Link) -> PeerClient<Link> {
    PeerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Asks whoever listens at `url` who it is. Needs no identity: a joining member has none yet.
pub async fn probe(
    dialer: &Dialer,
    url: &str,
    request: pb::ProbeRequest,
    timeout: Duration,
) -> Result<pb::ProbeResponse, String> {
    let call = async {
        let channel = dialer.connect(url).await?;
        let response = client(channel).probe(request).await.map_err(|s| s.message().to_owned())?;
        Ok(response.into_inner())
    };
    let answer = tokio::time::timeout(timeout, call).await;
    answer.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}"))).map_err(|why| explained(url, why))
}

/// What a library says when one side speaks TLS and the other does not, in words that lead to the mistake.
fn explained(url: &str, why: String) -> String {
    if url.starts_with("http://") && why.contains("http2 error") {
        return format!("{why}: it seems to speak TLS; is its peer URL https://?");
    }
    if url.starts_with("https://") && why.contains("InvalidContentType") {
        return "tls: first record does not look like a TLS handshake: it seems to speak no TLS; is its peer URL http://?"
            .to_owned();
    }
    why
}

/// The innermost cause: "transport error" alone tells nobody what to do.
pub(crate) fn source_text(e: &dyn std::error::Error) -> String {
    let mut cause = e;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

impl Peers {
    /// No channels yet.
    pub fn new(identity: Arc<Identity>, dialer: Dialer, observer: Arc<dyn PeerObserver>) -> Self {
        Peers {
            identity,
            dialer,
            observer,
            routes: Arc::default(),
            book: Arc::default(),
            refused: Arc::default(),
            reach: Arc::default(),
            without_quorum: Arc::default(),
            purgeable: Arc::default(),
            reads: Arc::default(),
            ways: Arc::default(),
        }
    }

    /// Says whether this member leads without a quorum, which it then tells those that still hear it.
    pub(crate) fn lead_without_quorum(&self, without: bool) {
        self.without_quorum.store(without, Ordering::Relaxed);
    }

    /// A linearizable read begins, and waits for a quorum's confirmation until what this gives is dropped.
    pub(crate) fn reads(&self) -> Reads {
        self.reads.fetch_add(1, Ordering::SeqCst);
        Reads(self.reads.clone())
    }

    /// Says up to which entry the log need not be kept for those that are not being sent it.
    pub(crate) fn may_purge(&self, upto: u64) {
        self.purgeable.store(upto, Ordering::Relaxed);
    }

    /// Whether the log need not be kept from this entry on, or may be purged of it already.
    fn is_purgeable(&self, index: u64) -> bool {
        let upto = self.purgeable.load(Ordering::Relaxed);
        upto > 0 && index <= upto
    }

    /// Who counts what goes between members.
    pub(crate) fn observer(&self) -> &Arc<dyn PeerObserver> {
        &self.observer
    }

    /// This member's identity.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// How other members are reached.
    pub fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// Takes in where the members are. Who is gone is forgotten, with the way there.
    pub(crate) fn learn(&self, members: &[(MemberId, PeerNode, bool)]) {
        let book: HashMap<u64, PeerNode> = members.iter().map(|(id, node, _)| (id.0, node.clone())).collect();
        self.routes.write().retain(|id, _| book.contains_key(id));
        self.reach.retain(|id| book.contains_key(&id));
        self.ways.lock().retain(|id, _| book.contains_key(id));
        *self.book.write() = book;
    }

    /// Where a member is now; `then` if it is none that is known.
    fn now(&self, id: u64, then: &PeerNode) -> PeerNode {
        self.book.read().get(&id).unwrap_or(then).clone()
    }

    /// The channel to a member, at one of its peer URLs.
    fn channel(&self, id: u64, node: &PeerNode) -> Result<Link, String> {
        if let Some(route) = self.routes.read().get(&id).filter(|route| route.node == *node) {
            return Ok(route.channel.clone());
        }
        let mut routes = self.routes.write();
        let route = match routes.remove(&id) {
            Some(known) => known.moved(node.clone()),
            None => Route::new(&self.dialer, node.clone(), node.peer_urls.clone(), 0)
                .map_err(|why| format!("member {}: {why}", MemberId(id)))?,
        };
        let channel = route.channel.clone();
        routes.insert(id, route);
        Ok(channel)
    }

    /// The channel to a member that is known.
    pub(super) fn channel_now(&self, id: MemberId) -> Option<Link> {
        let node = self.book.read().get(&id.0).cloned()?;
        self.channel(id.0, &node).ok()
    }

    /// Where proposals for a member are handed on; `begin` starts what does so.
    pub(super) fn way_to(&self, id: MemberId, begin: impl FnOnce(Peers, mpsc::Receiver<Offer>)) -> mpsc::Sender<Offer> {
        let mut ways = self.ways.lock();
        let known = ways.entry(id.0).or_insert_with(|| {
            let (way, offers) = forward::queue();
            begin(Peers { ways: Arc::default(), ..self.clone() }, offers);
            way
        });
        known.clone()
    }

    /// A call to the leader ended so.
    pub(super) fn not_reached(&self, id: MemberId, status: &Status) {
        if undelivered(status) {
            self.turn(id.0);
        }
        self.unanswered(id.0, &describe(status));
    }

    /// The member was not reached: tries another of its URLs, if it has any.
    fn turn(&self, id: u64) {
        let mut routes = self.routes.write();
        let Some(route) = routes.get_mut(&id) else { return };
        if route.urls.len() < 2 || route.turned.elapsed() < TURN_PAUSE {
            return;
        }
        let next = (route.at + 1) % route.urls.len();
        if let Ok(turned) = Route::new(&self.dialer, route.node.clone(), route.urls.clone(), next) {
            *route = turned;
        }
    }

    /// A call to the member was not answered. The log's words are etcd's.
    fn unanswered(&self, id: u64, error: &str) {
        let peer = MemberId(id);
        let urls = || self.book.read().get(&id).map_or_else(String::new, |node| node.peer_urls.join(","));
        let error = explained(&urls(), error.to_owned());
        match self.reach.failed(id, Instant::now()) {
            Some(Told::Lost) => {
                self.observer.disconnected(self.identity.member, peer);
                tracing::warn!(
                    "peer-id" = %peer, "peer-urls" = urls(), error,
                    "peer became inactive (message send to peer failed)"
                );
            }
            Some(Told::Away(time)) => {
                tracing::warn!(
                    "peer-id" = %peer, "peer-urls" = urls(), "inactive-for" = ?time, error,
                    "peer is still inactive (message send to peer failed)"
                );
            }
            None => {}
        }
    }

    /// A call to the member was answered.
    pub(super) fn answered(&self, id: u64) {
        if let Some(time) = self.reach.answered(id, Instant::now()) {
            tracing::info!("peer-id" = %MemberId(id), "inactive-for" = ?time, "peer became active");
        }
    }

    /// A call to the member begins.
    fn awaits(&self, id: u64) -> Awaited<'_> {
        Awaited { peers: self, id, settled: false }
    }

    /// Whether a refusal is to be logged: raft asks several times a second, a person reads it once.
    fn tells_refusal(&self, id: u64) -> bool {
        let mut refused = self.refused.write();
        let due = refused.get(&id).is_none_or(|at| at.elapsed() > REFUSAL_REPORT);
        if due {
            refused.insert(id, Instant::now());
        }
        due
    }

    pub(super) fn request<T>(&self, to: MemberId, message: T) -> Request<T> {
        let mut request = Request::new(message);
        self.identity.sign(to, request.metadata_mut());
        request
    }

    async fn leader_call<Q, A, F>(
        &self,
        leader: MemberId,
        node: &PeerNode,
        message: Q,
        call: impl FnOnce(PeerClient<Link>, Request<Q>) -> F,
    ) -> Result<A, Error>
    where
        A: Send + 'static,
        F: Future<Output = Result<tonic::Response<A>, Status>> + Send + 'static,
    {
        let channel = self.channel(leader.0, node).map_err(Error::internal)?;
        let request = self.request(leader, message);
        // A task of its own, which ends within the time-out: a caller may go before the answer comes. Its stream would be reset, and the answer come to a stream that h2 has forgotten. After 1,024 of
        // those in its life h2 0.4.20 ends a connection (`max_local_error_reset_streams`), with all calls that are under way.
        let answer = tokio::spawn(tokio::time::timeout(LEADER_CALL_TIMEOUT, call(client(channel), request)));
        let Ok(answer) = answer.await else { return Err(Error::Stopped) };
        match answer {
            Err(_) => Err(Error::Timeout),
            Ok(Ok(response)) => {
                self.answered(leader.0);
                Ok(response.into_inner())
            }
            // The leader refused: it says so in etcd's words.
            Ok(Err(status)) if status.code() == Code::Aborted => {
                self.answered(leader.0);
                Err(told_by_another(status.message()))
            }
            Ok(Err(status)) => {
                tracing::debug!(%leader, %status, "call to the leader failed");
                if undelivered(&status) {
                    self.turn(leader.0);
                    self.unanswered(leader.0, &describe(&status));
                }
                // One that was surely not taken up may be tried again, elsewhere by then.
                Err(if undelivered(&status) { Error::NotLeader } else { Error::TimeoutConnectionLost })
            }
        }
    }

    /// Asks the leader for the index that a linearizable read must have applied.
    pub async fn read_index(&self, leader: MemberId, node: &PeerNode) -> Result<u64, Error> {
        let message = pb::ReadIndexRequest {};
        let r = self.leader_call(leader, node, message, |mut c, r| async move { c.read_index(r).await }).await?;
        Ok(r.index)
    }

    /// Renews a lease on the leader's clock.
    pub async fn lease_keep_alive(&self, leader: MemberId, node: &PeerNode, id: LeaseId) -> Result<i64, Error> {
        let message = pb::LeaseRequest { id: id.0 };
        let r = self.leader_call(leader, node, message, |mut c, r| async move { c.lease_keep_alive(r).await }).await?;
        Ok(r.ttl)
    }

    /// Asks the leader how long a lease still lives.
    pub async fn lease_time_to_live(&self, leader: MemberId, node: &PeerNode, id: LeaseId) -> Result<i64, Error> {
        let message = pb::LeaseRequest { id: id.0 };
        let r =
            self.leader_call(leader, node, message, |mut c, r| async move { c.lease_time_to_live(r).await }).await?;
        Ok(r.ttl)
    }

    /// Asks a member for the hash of its key space up to a revision.
    pub async fn hash_kv(&self, member: MemberId, node: &PeerNode, revision: i64) -> Result<pb::HashKvResponse, Error> {
        let message = pb::HashKvRequest { revision };
        self.leader_call(member, node, message, |mut c, r| async move { c.hash_kv(r).await }).await
    }

    /// Has the leader change the members; the answer names the added member and the index to wait for.
    pub async fn change_members(
        &self,
        leader: MemberId,
        node: &PeerNode,
        change: pb::change_members_request::Change,
    ) -> Result<(MemberId, u64), Error> {
        let message = pb::ChangeMembersRequest { change: Some(change) };
        let r = self.leader_call(leader, node, message, |mut c, r| async move { c.change_members(r).await }).await?;
        Ok((MemberId(r.id), r.index))
    }
}

/// A linearizable read that waits.
pub(crate) struct Reads(Arc<AtomicUsize>);

impl Drop for Reads {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A call that waits for its answer. openraft drops calls that take too long; then nobody else says that there was none.
struct Awaited<'p> {
    peers: &'p Peers,
    id: u64,
    settled: bool,
}

impl Awaited<'_> {
    /// The member has answered, whatever it said.
    fn answered(mut self) {
        self.settled = true;
        self.peers.answered(self.id);
    }

    /// It is known otherwise how the call ended.
    fn ended(mut self) {
        self.settled = true;
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.peers.unanswered(self.id, "no answer in time");
        }
    }
}

/// openraft's door to the other members.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    pub(crate) peers: Peers,
    /// How often a leader sends heartbeats.
    pub(crate) heartbeat: Duration,
}

/// openraft's connection to one member. Each task of a leader has its own.
#[derive(Debug)]
pub(crate) struct PeerConnection {
    peers: Peers,
    id: u64,
    node: PeerNode,
    /// The interval of heartbeats, if it is for these: streams of one empty request. Replication has streams of one empty request,
    /// too.
    heartbeats: Option<Duration>,
    /// When the last heartbeat left, if its answer began; one interval before the end of it, if that is later.
    beat: Mutex<Option<Instant>>,
}

/// A request whose answer is awaited.
struct Sent {
    left: Instant,
    /// The index of its first entry; a heartbeat has none.
    first: Option<u64>,
    /// Its last entry, or the one that it goes on from.
    last: Option<LogId>,
}

impl Sent {
    /// Whether the log is to be purged of what it carries, and has waited for long enough.
    fn holds_up(&self, peers: &Peers) -> bool {
        self.first.is_some_and(|first| peers.is_purgeable(first)) && self.left.elapsed() > PURGE_PATIENCE
    }
}

/// The requests of one stream on their way out.
///
/// They leave while somebody waits for their answers, in no task of their own: openraft 0.10.0-alpha.37 gives the requests of
/// all of a follower's streams one state (replication/stream_state.rs). A stream that outlived its answers, if only until its
/// task noticed, took from that state what belongs to the next stream, so that the follower was never sent it: heartbeats
/// went on, and entries stayed away for good. Here both halves of a stream end at once.
struct Sending(Fuse<BoxFuture<'static, ()>>);

impl Sending {
    /// Waits; meanwhile requests leave.
    async fn beside<T>(&mut self, waits: impl Future<Output = T>) -> T {
        let mut waits = std::pin::pin!(waits);
        std::future::poll_fn(|cx| {
            let _ = self.0.poll_unpin(cx);
            waits.as_mut().poll(cx)
        })
        .await
    }
}

/// A heartbeat whose answer is awaited, until it came or was given up. The next one leaves after that: a long way, or a follower's slow
/// disk, is no lateness of this leader.
struct Beat<'a>(&'a PeerConnection);

impl Drop for Beat<'_> {
    fn drop(&mut self) {
        let mut beat = self.0.beat.lock();
        let earliest = self.0.heartbeats.and_then(|interval| Instant::now().checked_sub(interval));
        *beat = beat.map(|left| earliest.map_or(left, |earliest| left.max(earliest)));
    }
}

/// How much later than it should have the next heartbeat leaves: etcd allows two intervals.
fn lateness(last: Instant, now: Instant, interval: Duration) -> Option<Duration> {
    now.saturating_duration_since(last).checked_sub(interval.saturating_mul(2)).filter(|late| !late.is_zero())
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerConnection;

    async fn new_client(&mut self, target: u64, node: &PeerNode) -> PeerConnection {
        PeerConnection {
            peers: self.peers.clone(),
            id: target,
            node: node.clone(),
            heartbeats: None,
            beat: Mutex::default(),
        }
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &PeerNode) -> PeerConnection {
        PeerConnection { heartbeats: Some(self.heartbeat), ..self.new_client(target, node).await }
    }
}

type Rpc<T> = Result<T, RPCError<TypeConfig>>;

impl PeerConnection {
    fn client(&self) -> Rpc<PeerClient<Link>> {
        match self.peers.channel(self.id, &self.peers.now(self.id, &self.node)) {
            Ok(channel) => Ok(client(channel)),
            Err(why) => Err(RPCError::Unreachable(Unreachable::new(&AnyError::error(why)))),
        }
    }

    fn failure(&self, status: &Status) -> RPCError<TypeConfig> {
        let text = format!("peer {} at {:?}: {}", MemberId(self.id), self.node.peer_urls, describe(status));
        if undelivered(status) {
            self.peers.turn(self.id);
        }
        self.peers.observer.send_failed(MemberId(self.id));
        if !matches!(status.code(), Code::FailedPrecondition | Code::Unauthenticated | Code::ResourceExhausted) {
            self.peers.unanswered(self.id, &describe(status));
        }
        match status.code() {
            // Nobody there: openraft backs off.
            Code::Unavailable => RPCError::Unreachable(Unreachable::new(&AnyError::error(text))),
            // Refused: another cluster, another history, no room for a snapshot. A person must look.
            Code::FailedPrecondition | Code::Unauthenticated | Code::ResourceExhausted => {
                if self.peers.tells_refusal(self.id) {
                    tracing::error!(peer = %MemberId(self.id), urls = ?self.node.peer_urls, "{}", status.message());
                }
                RPCError::Unreachable(Unreachable::new(&AnyError::error(text)))
            }
            _ => RPCError::Network(NetworkError::new(&AnyError::error(text))),
        }
    }

    async fn unary<Q, A, F>(
        &mut self,
        kind: RPCTypes,
        message: Q,
        ttl: Duration,
        call: impl FnOnce(PeerClient<Link>, Request<Q>) -> F,
    ) -> Rpc<A>
    where
        F: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let request = self.peers.request(MemberId(self.id), message);
        let client = self.client()?;
        let awaited = self.peers.awaits(self.id);
        match tokio::time::timeout(ttl, call(client, request)).await {
            Ok(Ok(response)) => {
                awaited.answered();
                Ok(response.into_inner())
            }
            Ok(Err(status)) => {
                awaited.ended();
                Err(self.failure(&status))
            }
            Err(_) => Err(RPCError::Timeout(self.timeout(kind, ttl))),
        }
    }

    /// A heartbeat leaves. One that leaves late, by its interval, shows a leader that is too slow for its time-outs: its disk, its processor,
    /// or a process that was stopped for a while.
    fn beats(&mut self, interval: Duration) {
        let now = Instant::now();
        let last = self.beat.lock().replace(now);
        if let Some(late) = last.and_then(|last| lateness(last, now, interval)) {
            self.peers.observer.heartbeat_late();
            tracing::warn!(
                to = %MemberId(self.id), "heartbeat-interval" = ?interval, "expected-duration" = ?(interval * 2),
                "exceeded-duration" = ?late,
                "leader failed to send out heartbeat on time; took too long, leader is overloaded likely from slow disk"
            );
        }
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> Timeout<TypeConfig> {
        Timeout { action, id: self.peers.identity.member.0, target: self.id, timeout }
    }
}

/// Whether a failed call never reached the member's hands: nobody listens there, or its door refused the caller.
pub(super) fn undelivered(status: &Status) -> bool {
    if matches!(status.code(), Code::FailedPrecondition | Code::Unauthenticated) {
        return true;
    }
    let mut cause = std::error::Error::source(status);
    while let Some(e) = cause {
        if e.is::<tonic::ConnectError>() {
            return true;
        }
        cause = e.source();
    }
    false
}

/// What another member says in etcd's words. That it stops is no news of this one, and leaves open whether it did what it was asked.
pub(super) fn told_by_another(text: &str) -> Error {
    match Error::from_text(text) {
        Error::Stopped => Error::TimeoutConnectionLost,
        said => said,
    }
}

pub(super) fn describe(status: &Status) -> String {
    let cause = std::error::Error::source(status).map(source_text);
    cause.map_or_else(|| status.message().to_owned(), |cause| format!("{}: {cause}", status.message()))
}

impl RaftNetworkV2<TypeConfig> for PeerConnection {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let ttl = option.hard_ttl();
        let mut answers = RaftNetworkV2::stream_append(self, stream::iter([rpc]), option).await?;
        match answers.next().await {
            Some(result) => {
                let result = result?;
                // To the end, which comes with the answer: a stream that is given up before is one of those that
                // `leader_call` tells of.
                let _ = tokio::time::timeout(ttl, answers.next()).await;
                Ok(result.into())
            }
            None => Err(RPCError::Network(NetworkError::new(&AnyError::error("an append was not answered")))),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let ttl = option.hard_ttl();
            let mut input = input;
            // openraft waits in here between two attempts at a member that is away: one that is called before has refused
            // by then, and would be tried again at once, for ever.
            let Some(first) = input.next().await else {
                let none: BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>> = Box::pin(stream::empty());
                return Ok(none);
            };
            let second = input.next().now_or_never();
            let ended = matches!(second, Some(None));
            if let Some(interval) = self.heartbeats {
                self.beats(interval);
            }
            let begun_at = self.beat.lock().take();
            let taken = std::iter::once(first).chain(second.flatten());
            let input = stream::iter(taken).chain(input.take(if ended { 0 } else { usize::MAX }));
            let mut client = self.client()?;
            let (tx, rx) = mpsc::channel(APPENDS_IN_FLIGHT_MAX);
            let patience = if self.heartbeats.is_some() { ttl } else { APPEND_PATIENCE.max(ttl) };
            // The requests whose answers are awaited.
            let times = Arc::new(Mutex::new(VecDeque::<Sent>::new()));
            let left = times.clone();
            let without_quorum = self.peers.without_quorum.clone();
            let (peers, to) = (self.peers.clone(), MemberId(self.id));
            let sending = async move {
                let mut input = input;
                while let Some(request) = input.next().await {
                    let first = request.entries.first().map(|entry| entry.log_id.index());
                    let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
                    // At once: openraft awaits its answer from when it made it, sent or not.
                    left.lock().push_back(Sent { left: Instant::now(), first, last });
                    // A stream that goes on and has nothing to send from where the log is purged: it would go on so for ever,
                    // and never look at what is to be sent instead.
                    let next = request.prev_log_id.as_ref().map_or(0, |prev| prev.index() + 1);
                    if !ended && request.entries.is_empty() && peers.is_purgeable(next) {
                        return;
                    }
                    let message = convert::append_request(request, without_quorum.load(Ordering::Relaxed));
                    peers.observer.sent(to, message.encoded_len() as u64);
                    if tx.send(message).await.is_err() {
                        return;
                    }
                }
            };
            let mut sending = Sending(sending.boxed().fuse());
            let request = self.peers.request(MemberId(self.id), ReceiverStream::new(rx));
            let awaited = self.peers.awaits(self.id);
            let answers = match sending.beside(tokio::time::timeout(patience, client.append(request))).await {
                Ok(Ok(answers)) => {
                    awaited.answered();
                    answers.into_inner()
                }
                Ok(Err(status)) => {
                    awaited.ended();
                    return Err(self.failure(&status));
                }
                Err(_) => return Err(RPCError::Timeout(self.timeout(RPCTypes::AppendEntries, patience))),
            };
            // Only now: a heartbeat that waited for a member that is away says nothing of this one.
            *self.beat.lock() = begun_at;
            let this = &*self;
            let answers = stream::unfold(
                (answers, sending, Instant::now(), times, false),
                move |(mut answers, mut sending, mut heard, times, over)| async move {
                    if over {
                        return None;
                    }
                    // For what is owed since it left or, if that is later, since the last answer: a slow wire brings them one
                    // by one. Nothing asked, nothing owed: an idle stream stays open.
                    let late_at = |heard: Instant| times.lock().front().map(|sent| heard.max(sent.left) + patience);
                    loop {
                        if times.lock().front().is_some_and(|sent| sent.holds_up(&this.peers)) {
                            let late = RPCError::Timeout(this.timeout(RPCTypes::AppendEntries, PURGE_PATIENCE));
                            return Some((Err(late), (answers, sending, heard, times, true)));
                        }
                        let until = late_at(heard).unwrap_or_else(|| Instant::now() + patience);
                        match sending.beside(tokio::time::timeout_at(until, answers.message())).await {
                            Ok(Ok(Some(answer))) => {
                                if let Some(Sent { left, first: None, .. }) = times.lock().pop_front() {
                                    this.peers.observer.round_trip(MemberId(this.id), left.elapsed());
                                }
                                this.peers.observer.received(MemberId(this.id), answer.encoded_len() as u64);
                                let result = convert::append_response_from(answer).map_err(|s| this.failure(&s));
                                heard = Instant::now();
                                // openraft 0.10.0-alpha.37 takes an answer for one to all requests that end where it matches, and
                                // for as fresh as the last of them (replication/inflight_append_queue.rs). One that carries
                                // nothing but a newer commit ends where the one before it does: with it, an answer from before a
                                // linearizable read began would confirm that read, on a leader that was replaced meanwhile. The
                                // answer to the last of them says the same. There is one for each, and each is of another commit,
                                // so this ends. A read that begins later asks for what left later than all of these; so where none
                                // waits the answer goes on at once, or puts of several clients would wait for a second round trip.
                                if let Ok(Ok(matched)) = &result
                                    && times.lock().front().is_some_and(|next| next.last <= *matched)
                                    && this.peers.reads.load(Ordering::SeqCst) > 0
                                {
                                    continue;
                                }
                                let over = !matches!(result, Ok(Ok(_)));
                                return Some((result, (answers, sending, heard, times, over)));
                            }
                            Ok(Ok(None)) => return None,
                            Ok(Err(status)) => {
                                return Some((Err(this.failure(&status)), (answers, sending, heard, times, true)));
                            }
                            Err(_) if late_at(heard).is_none_or(|at| at > Instant::now()) => {}
                            Err(_) => {
                                let late = RPCError::Timeout(this.timeout(RPCTypes::AppendEntries, patience));
                                return Some((Err(late), (answers, sending, heard, times, true)));
                            }
                        }
                    }
                },
            );
            let beat = Beat(this);
            let answers: BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>> = Box::pin(answers.map(move |answer| {
                let _until_it_is_dropped = &beat;
                answer
            }));
            Ok(answers)
        })
    }

    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        let message = convert::vote_request(&rpc);
        let call = |mut c: PeerClient<Link>, r| async move { c.vote(r).await };
        let response = self.unary(RPCTypes::Vote, message, option.hard_ttl(), call).await?;
        Ok(convert::vote_response_from(response))
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        let message = convert::vote_request(&rpc);
        let call = |mut c: PeerClient<Link>, r| async move { c.pre_vote(r).await };
        let response = self.unary(RPCTypes::Vote, message, option.hard_ttl(), call).await?;
        Ok(convert::vote_response_from(response))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let head = pb::SnapshotHead {
            vote: Some(vote_to_pb(&vote)),
            last: log_id_to_pb(snapshot.meta.last_log_id.as_ref()),
            membership: entry::encode_stored(&snapshot.meta.last_membership),
            bytes: snapshot.snapshot.bytes,
        };
        let way = Transfer::begin(self.peers.observer.clone(), Way::To, MemberId(self.id));
        let (tx, rx) = mpsc::channel(4);
        let path = snapshot.snapshot.path.clone();
        let (ended, end) = oneshot::channel();
        let reader = tokio::spawn(async move {
            let sent = send_file(head, path, &tx).await;
            let _ = ended.send(());
            sent
        });
        let request = self.peers.request(MemberId(self.id), ReceiverStream::new(rx));
        let mut client = self.client().map_err(into_streaming)?;
        // The option's time covers one send in openraft's terms. A whole snapshot takes what its size and the wire make of it.
        let not_installed = async {
            let _ = end.await;
            tokio::time::sleep(INSTALL_PATIENCE).await;
        };
        let sent = tokio::select! {
            closed = cancel => return Err(StreamingError::Closed(closed)),
            sent = client.install_snapshot(request) => sent,
            () = not_installed => {
                return Err(StreamingError::Timeout(self.timeout(RPCTypes::InstallSnapshot, INSTALL_PATIENCE)));
            }
        };
        let response = match sent {
            Ok(response) => response.into_inner(),
            Err(status) => {
                if status.code() == Code::DataLoss {
                    snapshot.snapshot.suspected();
                }
                return Err(into_streaming(self.failure(&status)));
            }
        };
        match reader.await {
            Ok(Ok(())) => {
                way.succeeded();
                Ok(SnapshotResponse::new(vote_from_pb(response.vote)))
            }
            Ok(Err(e)) => Err(StreamingError::Network(NetworkError::new(&e))),
            Err(e) => Err(StreamingError::Network(NetworkError::new(&e))),
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        let message = pb::TransferRequest {
            from: Some(vote_to_pb(req.from_leader())),
            to: *req.to_node_id(),
            last: log_id_to_pb(req.last_log_id()),
        };
        let call = |mut c: PeerClient<Link>, r| async move { c.transfer_leader(r).await };
        let response = self.unary(RPCTypes::TransferLeader, message, option.hard_ttl(), call).await?;
        if response.refusal.is_empty() {
            return Ok(Ok(()));
        }
        Err(RPCError::Network(NetworkError::new(&AnyError::error(response.refusal))))
    }
}

fn into_streaming(e: RPCError<TypeConfig>) -> StreamingError<TypeConfig> {
    match e {
        RPCError::Timeout(e) => StreamingError::Timeout(e),
        RPCError::Unreachable(e) => StreamingError::Unreachable(e),
        RPCError::Network(e) => StreamingError::Network(e),
        RPCError::RemoteError(e) => StreamingError::Network(NetworkError::new(&e)),
    }
}

/// Reads a snapshot file into the channel piece by piece; the channel's bound is the backpressure.
pub(crate) async fn send_file(
    head: pb::SnapshotHead,
    path: std::path::PathBuf,
    tx: &mpsc::Sender<pb::SnapshotPart>,
) -> std::io::Result<()> {
    use pb::snapshot_part::Part;
    use std::io::Read;
    let send =
        async |part: Part| match tokio::time::timeout(PIECE_PATIENCE, tx.send(pb::SnapshotPart { part: Some(part) }))
            .await
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(std::io::Error::other("the receiver of the snapshot went away")),
            Err(_) => Err(std::io::Error::other(format!(
                "the receiver of the snapshot took nothing more within {PIECE_PATIENCE:?}"
            ))),
        };
    let mut file = crate::machine::aside(move || std::fs::File::open(path)).await?;
    send(Part::Head(head)).await?;
    loop {
        let read = move || {
            let mut buf = vec![0; SNAPSHOT_PART_BYTES];
            let n = file.read(&mut buf)?;
            buf.truncate(n);
            Ok((file, buf))
        };
        let (rest, buf) = crate::machine::aside(read).await?;
        if buf.is_empty() {
            return Ok(());
        }
        file = rest;
        send(Part::Data(buf.into())).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Entry, log_id};
    use ferretcd_types::{ClusterId, Epoch, LogPos};

    #[tokio::test]
    async fn a_call_that_nobody_took_is_told_apart_from_one_that_was_cut() {
        let channel = Dialer::default().connect_lazy("http://127.0.0.1:1").unwrap();
        let refused = client(channel).read_index(pb::ReadIndexRequest {}).await.unwrap_err();
        assert!(undelivered(&refused), "{refused:?}");

        // One that listens, takes the request, and hangs up.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let channel = Dialer::default().connect_lazy(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let hang_up = tokio::spawn(async move {
            let (mut taken, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 64];
            tokio::io::AsyncReadExt::read(&mut taken, &mut bytes).await.unwrap();
        });
        let cut = client(channel).read_index(pb::ReadIndexRequest {}).await.unwrap_err();
        hang_up.await.unwrap();
        assert!(!undelivered(&cut), "{cut:?}");
    }

    #[tokio::test]
    async fn a_connection_has_large_windows_from_its_start() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let call = tokio::spawn(async move {
            let channel = Dialer::default().connect_lazy(&url).unwrap();
            client(channel).read_index(pb::ReadIndexRequest {}).await
        });
        let (taken, _) = listener.accept().await.unwrap();
        assert_eq!(windows(taken).await, (CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES));
        call.abort();
    }

    /// The windows that a client grants: of its connection, and of each stream (RFC 9113, 6.5.2 and 6.9).
    async fn windows(mut from: tokio::net::TcpStream) -> (u32, u32) {
        use tokio::io::AsyncReadExt;
        const SETTINGS: u8 = 4;
        const WINDOW_UPDATE: u8 = 8;
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte));
        from.read_exact(&mut [0; b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()]).await.unwrap();
        let mut stream = 0;
        loop {
            let mut head = [0; 9];
            from.read_exact(&mut head).await.unwrap();
            let mut payload = vec![0; number(&head[..3]) as usize];
            from.read_exact(&mut payload).await.unwrap();
            match (head[3], number(&head[5..])) {
                (SETTINGS, 0) => {
                    let initial = payload.chunks(6).find(|setting| setting[..2] == [0, 4]);
                    stream = initial.map_or(stream, |setting| number(&setting[2..]));
                }
                (WINDOW_UPDATE, 0) => return (65_535 + number(&payload), stream),
                _ => {}
            }
        }
    }

    type Frame = Result<http_body::Frame<bytes::Bytes>, Status>;

    /// An answer's body: these frames, the last message after a while, then none; `read` is set once all are read.
    struct Said {
        sleep: std::pin::Pin<Box<tokio::time::Sleep>>,
        frames: VecDeque<Frame>,
        read: Arc<AtomicBool>,
    }

    impl http_body::Body for Said {
        type Data = bytes::Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Frame>> {
            // Behind the last message come trailers at most.
            if self.frames.len() <= 2 {
                std::task::ready!(self.sleep.as_mut().poll(cx));
            }
            let frame = self.frames.pop_front();
            self.read.store(self.frames.is_empty(), Ordering::Relaxed);
            frame.map_or(std::task::Poll::Pending, |frame| std::task::Poll::Ready(Some(frame)))
        }
    }

    fn peers(wires: Arc<crate::transport::dial::Wires>) -> Peers {
        let identity = Arc::new(Identity::new(ClusterId(1), MemberId(1), Epoch(1)));
        Peers::new(identity, Dialer::within(wires, Duration::from_secs(1)), Arc::new(()))
    }

    /// A member that takes each call, keeps what it was given and reads nothing of it, and says this, the last message after
    /// so long.
    fn member(says: fn() -> Vec<Frame>, after: Duration) -> (Peers, Arc<AtomicBool>) {
        use tonic::codegen::http;
        let (kept, read) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let told = read.clone();
        let wires = Arc::new(move |_: &str| {
            let (kept, read) = (kept.clone(), read.clone());
            crate::transport::dial::Wire::new(tower::service_fn(move |request: http::Request<tonic::body::Body>| {
                kept.lock().push(request);
                let sleep = Box::pin(tokio::time::sleep(after));
                let said = tonic::body::Body::new(Said { sleep, frames: says().into(), read: read.clone() });
                let answer = http::Response::builder().header("content-type", "application/grpc").body(said);
                async move { answer.map_err(Into::into) }
            }))
        });
        (peers(wires), told)
    }

    /// A member that reads what it is given, each piece after a while, counts the bytes, and says this once there is no more.
    fn listener(says: fn() -> Vec<Frame>, pace: Duration) -> (Peers, Arc<AtomicUsize>) {
        use http_body::Body;
        use tonic::codegen::http;
        let heard = Arc::new(AtomicUsize::new(0));
        let counted = heard.clone();
        let wires = Arc::new(move |_: &str| {
            let counted = counted.clone();
            crate::transport::dial::Wire::new(tower::service_fn(move |request: http::Request<tonic::body::Body>| {
                let (counted, mut body) = (counted.clone(), Box::pin(request.into_body()));
                async move {
                    while let Some(piece) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
                        let bytes = piece.unwrap().into_data().map_or(0, |data| data.len());
                        counted.fetch_add(bytes, Ordering::Relaxed);
                        tokio::time::sleep(pace).await;
                    }
                    let (sleep, read) = (Box::pin(tokio::time::sleep(Duration::ZERO)), Arc::default());
                    let said = tonic::body::Body::new(Said { sleep, frames: says().into(), read });
                    http::Response::builder().header("content-type", "application/grpc").body(said).map_err(Into::into)
                }
            }))
        });
        (peers(wires), heard)
    }

    /// One message, and that all is well.
    fn one(message: &impl Message) -> Vec<Frame> {
        let mut bytes = vec![0];
        bytes.extend((message.encoded_len() as u32).to_be_bytes());
        bytes.extend(message.encode_to_vec());
        let well = [("grpc-status", "0")].map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap()));
        let trailers = tonic::codegen::http::HeaderMap::from_iter(well);
        vec![Ok(http_body::Frame::data(bytes.into())), Ok(http_body::Frame::trailers(trailers))]
    }

    fn heartbeat() -> AppendEntriesRequest<TypeConfig> {
        AppendEntriesRequest { vote: Vote::new(1, 1), prev_log_id: None, entries: vec![], leader_commit: None }
    }

    fn to(peers: Peers) -> PeerConnection {
        PeerConnection { peers, id: 2, node: node(&["http://127.0.0.1:1"]), heartbeats: None, beat: Mutex::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_to_the_leader_is_heard_to_its_end_though_nobody_waits_for_it() {
        let (peers, read) = member(|| one(&pb::ReadIndexResponse::default()), Duration::from_millis(10));
        let node = node(&["http://127.0.0.1:1"]);
        let call = peers.read_index(MemberId(2), &node);
        assert!(call.now_or_never().is_none());
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(read.load(Ordering::Relaxed), "the call was given up with its caller");
    }

    /// Two proposals for a member that says this after a while, in the order in which they were made.
    async fn proposed(says: fn() -> Vec<Frame>) -> [Result<(), Error>; 2] {
        let (peers, _) = member(says, Duration::from_millis(10));
        peers.learn(&[(MemberId(2), node(&["http://127.0.0.1:1"]), false)]);
        let propose = |text: &'static [u8]| peers.propose(MemberId(2), bytes::Bytes::from_static(text), Arc::new(()));
        let (one, other) = tokio::join!(propose(b"one"), propose(b"other"));
        [one, other]
    }

    #[tokio::test(start_paused = true)]
    async fn proposals_of_one_message_are_answered_one_by_one() {
        assert_eq!(proposed(|| one(&pb::ForwardResponse { number: 1, refusals: vec![] })).await, [Ok(()), Ok(())]);
        let both = proposed(|| {
            let refusals = vec![pb::ForwardRefusal { at: 1, why: Error::NotLeader.to_string() }];
            one(&pb::ForwardResponse { number: 1, refusals })
        });
        assert_eq!(both.await, [Ok(()), Err(Error::NotLeader)]);
        let stops = proposed(|| {
            let refusals = vec![pb::ForwardRefusal { at: 0, why: Error::Stopped.to_string() }];
            one(&pb::ForwardResponse { number: 1, refusals })
        });
        assert_eq!(stops.await, [Err(Error::TimeoutConnectionLost), Ok(())], "the other one stops, and not this one");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_does_not_wait_for_that_to_an_earlier_message() {
        let second = || one(&pb::ForwardResponse { number: 2, refusals: vec![] }).into_iter().take(1).collect();
        let (peers, _) = member(second, Duration::from_millis(10));
        peers.learn(&[(MemberId(2), node(&["http://127.0.0.1:1"]), false)]);
        let propose = |text: &'static [u8]| peers.propose(MemberId(2), bytes::Bytes::from_static(text), Arc::new(()));
        let later = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            propose(b"other").await
        };
        let begun = Instant::now();
        let one = propose(b"one");
        let (one, (other, took)) = tokio::join!(one, async { (later.await, begun.elapsed()) });
        assert_eq!((other, took < Duration::from_secs(1)), (Ok(()), true), "{took:?}");
        assert!(matches!(one, Err(Error::Timeout | Error::TimeoutConnectionLost)), "{one:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn proposals_that_a_stream_took_along_may_have_been_taken_up() {
        assert_eq!(
            proposed(|| vec![Err(Status::internal("cut"))]).await,
            [const { Err(Error::TimeoutConnectionLost) }; 2]
        );
        let closed = || vec![Err(Status::failed_precondition("the door is closed"))];
        assert_eq!(proposed(closed).await, [const { Err(Error::NotLeader) }; 2], "refused at the door: not taken up");
        let never = proposed(Vec::new).await;
        assert!(never.iter().all(|o| matches!(o, Err(Error::Timeout | Error::TimeoutConnectionLost))), "{never:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_heartbeats_answer_is_heard_to_its_end() {
        let (peers, read) = member(|| one(&convert::append_response(Ok(None))), Duration::from_millis(10));
        let option = RPCOption::new(Duration::from_millis(100));
        to(peers).append_entries(heartbeat(), option).await.unwrap();
        assert!(read.load(Ordering::Relaxed), "it was given up before its end");
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_that_takes_seconds_for_an_answer_is_waited_for() {
        for (seconds, waited_for) in [(28, true), (56, true), (58, false)] {
            let twice = || {
                let answer = || one(&convert::append_response(Ok(None)));
                answer().into_iter().take(1).chain(answer()).collect()
            };
            let (peers, _) = member(twice, Duration::from_secs(seconds));
            let mut to = to(peers);
            // The second leaves while the stream is idle, late in a while of waiting: its own time begins then.
            let later = stream::once(async { tokio::time::sleep(APPEND_PATIENCE * 9 / 10).await });
            let input = stream::iter([heartbeat()]).chain(later.map(|()| heartbeat())).chain(stream::pending());
            let begun = Instant::now();
            let input = Box::pin(input);
            let mut answers = to.stream_append(input, RPCOption::new(Duration::from_millis(100))).await.unwrap();
            assert!(answers.next().await.unwrap().is_ok());
            let answer = answers.next().await.unwrap();
            assert_eq!(answer.is_ok(), waited_for, "{seconds} s: {answer:?} after {:?}", begun.elapsed());
        }
    }

    /// One entry, at this index.
    fn append(index: u64) -> AppendEntriesRequest<TypeConfig> {
        let entry = Entry { log_id: log_id(LogPos { term: 1, index }), payload: openraft::EntryPayload::Blank };
        AppendEntriesRequest { entries: vec![entry], ..heartbeat() }
    }

    /// Counts heartbeats that left late.
    #[derive(Default)]
    struct Late(AtomicUsize);

    impl PeerObserver for Late {
        fn sent(&self, _to: MemberId, _bytes: u64) {}
        fn received(&self, _from: MemberId, _bytes: u64) {}
        fn send_failed(&self, _to: MemberId) {}
        fn round_trip(&self, _to: MemberId, _took: Duration) {}
        fn disconnected(&self, _from: MemberId, _to: MemberId) {}
        fn heartbeat_late(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn snapshot_begins(&self, _way: Way, _member: MemberId) {}
        fn snapshot_ends(&self, _way: Way, _member: MemberId, _well: bool, _took: Duration) {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_may_take_hours_if_it_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.snap");
        let pieces = 130;
        std::fs::File::create(&path).unwrap().set_len(pieces * SNAPSHOT_PART_BYTES as u64).unwrap();
        for (pace, comes) in [(30, true), (2 * PIECE_PATIENCE.as_secs(), false)] {
            let installed = || one(&pb::SnapshotResponse { vote: Some(vote_to_pb(&Vote::new(1, 1))) });
            let (peers, heard) = listener(installed, Duration::from_secs(pace));
            let snapshot = crate::snapshot::SnapshotDir::received(path.clone(), pieces);
            // Not to be removed: the second is sent it, too.
            std::mem::forget(snapshot.clone());
            let snapshot = SnapshotOf::<TypeConfig, _> { meta: Default::default(), snapshot };
            let begun = Instant::now();
            let option = RPCOption::new(Duration::from_millis(100));
            let sent = to(peers).full_snapshot(Vote::new(1, 1), snapshot, std::future::pending(), option).await;
            assert_eq!(sent.is_ok(), comes, "{sent:?} after {:?}, {heard:?} bytes", begun.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_replication_sends_is_no_heartbeat_though_it_is_empty() {
        let option = RPCOption::new(Duration::from_millis(100));
        for (answered_after, heartbeats_fail) in [(Duration::from_secs(20), true), (Duration::ZERO, false)] {
            let (peers, _) = member(|| one(&convert::append_response(Ok(None))), answered_after);
            let observer = Arc::new(Late::default());
            let mut network =
                Network { peers: Peers { observer: observer.clone(), ..peers }, heartbeat: Duration::from_millis(100) };
            let at = node(&["http://127.0.0.1:1"]);
            let (mut replicates, mut beats) =
                (network.new_client(2, &at).await, network.new_heartbeat_client(2, &at).await);
            for request in [append(1), heartbeat(), heartbeat()] {
                let answer = replicates.append_entries(request, option.clone()).await;
                assert!(answer.is_ok(), "given up early: {answer:?}");
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            assert_eq!(observer.0.load(Ordering::Relaxed), 0, "replication is idle, and no heartbeat late");
            for _ in 0..2 {
                assert_eq!(beats.append_entries(heartbeat(), option.clone()).await.is_err(), heartbeats_fail);
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            assert_eq!(observer.0.load(Ordering::Relaxed), 1, "the second was five seconds after the first");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_is_not_late_where_a_follower_is_slow() {
        let patience = Duration::from_millis(240);
        for answered_after in [Duration::from_secs(20), patience * 9 / 10] {
            let (peers, _) = member(|| one(&convert::append_response(Ok(None))), answered_after);
            let observer = Arc::new(Late::default());
            let peers = Peers { observer: observer.clone(), ..peers };
            let mut network = Network { peers, heartbeat: Duration::from_millis(100) };
            let mut beats = network.new_heartbeat_client(2, &node(&["http://127.0.0.1:1"])).await;
            for _ in 0..4 {
                // As openraft does.
                let beat = beats.append_entries(heartbeat(), RPCOption::new(patience));
                let _ = tokio::time::timeout(patience, beat).await;
            }
            assert_eq!(observer.0.load(Ordering::Relaxed), 0, "answered after {answered_after:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_follower_is_given_up_once_the_log_waits_for_it_alone() {
        for (purgeable, given_up) in [(4, false), (5, true)] {
            let (peers, _) = member(|| one(&convert::append_response(Ok(None))), Duration::from_secs(20));
            peers.may_purge(purgeable);
            let mut to = to(peers);
            let input = stream::iter([append(4), append(5)]).chain(stream::pending());
            let mut answers = to.stream_append(input, RPCOption::new(Duration::from_millis(100))).await.unwrap();
            assert!(answers.next().await.unwrap().is_ok());
            let next = answers.next().await;
            assert_eq!(matches!(next, Some(Err(RPCError::Timeout(_)))), given_up, "{next:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_member_is_not_called_before_there_is_something_for_it() {
        let refuses = |_: &str| {
            crate::transport::dial::Wire::new(tower::service_fn(|_: tonic::codegen::http::Request<_>| async {
                Err("nobody is there".into())
            }))
        };
        let mut to = to(peers(Arc::new(refuses)));
        let option = RPCOption::new(Duration::from_millis(100));
        // openraft waits in its stream after a failure, and leaves it when there is something else to do.
        let waits = Box::pin(stream::once(tokio::time::sleep(Duration::from_millis(100))).map(|()| heartbeat()));
        let begun = Instant::now();
        assert!(to.stream_append(waits, option.clone()).await.is_err());
        assert_eq!(begun.elapsed(), Duration::from_millis(100));
        let told = to.stream_append(stream::empty(), option).await.unwrap().collect::<Vec<_>>().await;
        assert!(told.is_empty(), "{told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn requests_leave_before_the_first_is_answered() {
        let (peers, heard) = listener(|| one(&()).split_off(1), Duration::ZERO);
        let mut to = to(peers);
        let requests: Vec<_> = (1..=10).map(append).collect();
        let length = |request: &AppendEntriesRequest<TypeConfig>| {
            5 + convert::append_request(request.clone(), false).encoded_len()
        };
        let bytes: usize = requests.iter().map(length).sum();
        let input = stream::iter(requests).chain(stream::pending());
        let answers = to.stream_append(input, RPCOption::new(Duration::from_millis(100)));
        assert!(tokio::time::timeout(Duration::from_secs(1), answers).await.is_err(), "nothing was answered");
        assert_eq!(heard.load(Ordering::Relaxed), bytes);
    }

    /// openraft takes what it hears for an answer to all that ends at the same entry, and reads for confirmed by the last of it.
    #[tokio::test(start_paused = true)]
    async fn an_answer_confirms_nothing_that_left_after_what_it_answers() {
        fn matched(index: u64) -> Vec<Frame> {
            one(&convert::append_response(Ok(Some(log_id(LogPos { term: 1, index })))))
        }
        let prev = Some(log_id(LogPos { term: 1, index: 1 }));
        let commit = AppendEntriesRequest { prev_log_id: prev, ..heartbeat() };
        let says: [fn() -> Vec<Frame>; 2] = [
            || matched(1).into_iter().take(1).chain(matched(1)).collect(),
            || matched(1).into_iter().take(1).chain(matched(2)).collect(),
        ];
        // Behind an entry one that carries nothing but a commit, without a read and with one, and another entry.
        let cases =
            [(&commit, says[0], false, true), (&commit, says[0], true, false), (&append(2), says[1], true, true)];
        for (second, says, reads, at_once) in cases {
            let (peers, _) = member(says, Duration::from_secs(1));
            let _reads = reads.then(|| peers.reads());
            let second = second.clone();
            let input = stream::iter([append(1), second]).chain(stream::pending());
            let (mut to, begun) = (to(peers), Instant::now());
            let answers = to.stream_append(input, RPCOption::new(Duration::from_millis(100))).await.unwrap();
            let heard: Vec<_> = answers.map(|answer| (answer.unwrap().unwrap(), begun.elapsed())).collect().await;
            assert_eq!(heard.len(), 1 + usize::from(at_once), "{heard:?}");
            assert_eq!((heard[0].0, heard[0].1 < Duration::from_secs(1)), (prev, at_once));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_has_nothing_to_send_where_the_log_is_purged_ends() {
        let prev = Some(log_id(LogPos { term: 1, index: 5 }));
        // It asks again and again, as openraft does.
        for (purgeable, ends) in [(5, false), (6, true)] {
            let (peers, heard) = listener(|| one(&()).split_off(1), Duration::ZERO);
            peers.may_purge(purgeable);
            let mut to = to(peers);
            let input = Box::pin(stream::unfold((), move |()| async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                Some((AppendEntriesRequest { prev_log_id: prev, ..heartbeat() }, ()))
            }));
            let option = RPCOption::new(Duration::from_millis(100));
            let answers = tokio::time::timeout(Duration::from_secs(5), async {
                to.stream_append(input, option).await.unwrap().collect::<Vec<_>>().await
            });
            assert_eq!(answers.await.is_ok(), ends, "purged to {purgeable}");
            assert_eq!(heard.load(Ordering::Relaxed) == 0, ends);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_requests_ends_with_its_answers() {
        let (peers, _) = member(Vec::new, Duration::ZERO);
        let mut to = to(peers);
        // What belongs to all streams to one follower, as in openraft; each request takes something from it.
        let shared = Arc::new(AtomicUsize::new(0));
        let input = Box::pin(stream::unfold(shared.clone(), |shared| async move {
            shared.fetch_add(1, Ordering::Relaxed);
            Some((heartbeat(), shared))
        }));
        let option = RPCOption::new(Duration::from_millis(100));
        let mut answers = to.stream_append(input, option).await.unwrap();
        let late = answers.next().await.unwrap();
        assert!(matches!(late, Err(RPCError::Timeout(_))), "{late:?}");
        drop(answers);
        assert_eq!(Arc::strong_count(&shared), 1, "the requests outlive the answers");
        // Those that are on their way have a bound: the channel's 64, one that waits for a place in it, two that were looked at.
        assert!(shared.load(Ordering::Relaxed) <= 67, "{shared:?}");
    }

    #[test]
    fn a_heartbeat_is_late_after_two_intervals() {
        let (start, interval) = (Instant::now(), Duration::from_millis(100));
        let after = |ms: u64| lateness(start, start + Duration::from_millis(ms), interval);
        assert_eq!(after(100), None);
        assert_eq!(after(200), None);
        assert_eq!(after(750), Some(Duration::from_millis(550)));
    }

    fn node(urls: &[&str]) -> PeerNode {
        PeerNode { peer_urls: urls.iter().map(|url| url.to_string()).collect() }
    }

    #[tokio::test]
    async fn a_member_that_moves_is_reached_where_it_was_until_that_fails() {
        let old = node(&["http://127.0.0.1:1"]);
        let route = Route::new(&Dialer::default(), old.clone(), old.peer_urls.clone(), 0).unwrap();
        let route = route.moved(node(&["http://127.0.0.1:2", "http://127.0.0.1:3"]));
        assert_eq!(route.urls, ["http://127.0.0.1:2", "http://127.0.0.1:3", "http://127.0.0.1:1"]);
        assert_eq!(route.urls[route.at], "http://127.0.0.1:1");
        // It came, and moves once more: where it was two moves ago is forgotten.
        let route =
            Route::new(&Dialer::default(), route.node, route.urls, 0).unwrap().moved(node(&["http://127.0.0.1:4"]));
        assert_eq!(route.urls, ["http://127.0.0.1:4", "http://127.0.0.1:2", "http://127.0.0.1:3"]);
        assert_eq!(route.at, 1);
        assert!(Route::new(&Dialer::default(), node(&[]), vec![], 0).is_err());
    }
}
