//! The peer service: raft's own calls go to openraft, a follower's calls to its leader go to the node above.

use crate::entry;
use crate::group::{Group, RawRaft};
use crate::identity::{Identity, PeerIdentity};
use crate::machine::aside;
use crate::observer::{PeerObserver, Transfer, Way};
use crate::snapshot::{SnapshotDir, SnapshotFile};
use crate::transport::client::{MESSAGE_BYTES_MAX, send_file};
use crate::transport::convert;
use crate::transport::fetch::receive;
use crate::transport::forward::{MESSAGES_IN_FLIGHT_MAX, outcomes};
use crate::types::{LogId, SnapshotMeta, TypeConfig, Vote, log_id_from_pb, vote_from_pb, vote_to_pb};
use bytes::Bytes;
use ferretcd_proto::peer as pb;
use ferretcd_proto::peer::peer_server::{Peer, PeerServer};
use ferretcd_types::{Error, LeaseId, LogPos, MemberId};
use futures::{Stream, StreamExt};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest};
use openraft::type_config::alias::SnapshotOf;
use prost::Message;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

/// A boxed answer, so that the handler can be a trait object.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a follower may ask of this member, answered by the node above.
pub trait PeerRequests: Send + Sync + 'static {
    /// Puts encoded proposals in the log, if this member leads, and says how each went.
    fn propose(&self, proposals: Vec<Bytes>) -> Answer<'_, Vec<Result<(), Error>>>;
    /// The index that a linearizable read must have applied, if this member leads.
    fn read_index(&self) -> Answer<'_, Result<u64, Error>>;
    /// Renews a lease, if this member leads.
    fn lease_keep_alive(&self, id: LeaseId) -> Answer<'_, Result<i64, Error>>;
    /// How long a lease lives, if this member leads.
    fn lease_time_to_live(&self, id: LeaseId) -> Answer<'_, Result<i64, Error>>;
    /// Hashes this member's own key space up to a revision.
    fn hash_kv(&self, revision: i64) -> Answer<'_, Result<pb::HashKvResponse, Error>>;
    /// Changes the members, if this member leads.
    fn change_members(&self, change: pb::change_members_request::Change) -> Answer<'_, Result<(MemberId, u64), Error>>;
    /// Who this member is; `None` while it does not know itself yet. Answered to anyone.
    fn probe(&self, request: pb::ProbeRequest) -> Answer<'_, Option<pb::ProbeResponse>>;
}

/// What the calls of raft itself need; there once the group is open.
struct Opened {
    identity: Arc<Identity>,
    raft: RawRaft,
    snapshots: SnapshotDir,
    room: Group,
    observer: Arc<dyn PeerObserver>,
}

/// The door for other members. It answers probes from the start, since members that found a cluster ask each other
/// before any of them opens its log; everything else waits for [`Door::open`].
#[derive(Clone)]
pub struct Door {
    opened: Arc<OnceLock<Opened>>,
    requests: Arc<dyn PeerRequests>,
}

impl Door {
    /// A door that answers probes only.
    pub fn new(requests: Arc<dyn PeerRequests>) -> Self {
        Door { opened: Arc::default(), requests }
    }

    /// Lets the group's members in.
    pub fn open(&self, group: &Group) {
        let (identity, raft, snapshots) = group.for_door();
        let observer = group.peers().observer().clone();
        let _ = self.opened.set(Opened { identity, raft, snapshots, room: group.clone(), observer });
    }

    /// The gRPC service.
    pub fn service(&self) -> PeerServer<PeerService> {
        let service = PeerService { door: self.clone(), received: AtomicU64::new(0) };
        PeerServer::new(service)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

/// How long a member that is asked for a snapshot may take to write one, and how often it looks whether it is there. Who asks has
/// given up by then, and asks again: it is being written all the same.
pub(crate) const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(60);
const SNAPSHOT_LOOK: Duration = Duration::from_millis(200);

/// Megabytes of a snapshot that are read before the other member has taken those before.
const SNAPSHOT_PARTS_AHEAD: usize = 4;

/// The peer service of one member.
pub struct PeerService {
    door: Door,
    received: AtomicU64,
}

impl PeerService {
    /// What an identified member may use. Its proof is checked before its message is looked at.
    fn enter(&self, metadata: &MetadataMap) -> Result<(&Opened, PeerIdentity), Status> {
        let opened = self.door.opened.get().ok_or_else(|| Status::unavailable("this member is still starting"))?;
        let peer = opened.identity.check(metadata)?;
        Ok((opened, peer))
    }
}

/// A refusal in etcd's words, told apart from a broken connection by its code.
fn refusal(error: &Error) -> Status {
    Status::aborted(error.to_string())
}

fn stopped(e: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this member's raft has stopped: {e}"))
}

/// Whether this member's log holds the last entry of a leader's snapshot, on disk: then it holds all that the snapshot stands for,
/// and the answer that it was installed is true without doing so. A leader sends one more when it begins to replicate anew while
/// one is under way. openraft 0.10.0-alpha.37, told to install it where the log goes on behind it, does so, and its note of what
/// was written goes back, which ends the process where it checks that (`io_progress.rs`, seed 32321).
///
/// The question is an empty append behind that entry: openraft answers it when all that it accepted before is on disk.
async fn holds(raft: &RawRaft, vote: Vote, last: Option<LogId>) -> Result<bool, Status> {
    if last.is_none() {
        return Ok(false);
    }
    let question = AppendEntriesRequest { vote, prev_log_id: last, entries: Vec::new(), leader_commit: last };
    Ok(matches!(raft.append_entries(question).await.map_err(stopped)?, AppendEntriesResponse::Success))
}

/// The newest snapshot, written now if it does not reach as far as it must.
async fn far_enough(opened: &Opened, at_least: u64) -> Result<(LogPos, SnapshotFile), Status> {
    let applied = opened.raft.metrics().borrow_watched().last_applied.as_ref().map_or(0, |id| id.index());
    if applied < at_least {
        return Err(Status::unavailable(format!("this member has applied up to {applied}, and not up to {at_least}")));
    }
    let found = tokio::time::timeout(SNAPSHOT_PATIENCE, async {
        loop {
            let newest = opened.snapshots.newest().map_err(|e| Status::internal(e.to_string()))?;
            if let Some((pos, file)) = newest.filter(|(pos, _)| pos.index >= at_least) {
                let snapshots = opened.snapshots.clone();
                if aside(move || snapshots.usable()).await.is_ok() {
                    return Ok((pos, file));
                }
                // Damaged here, too: it is read again where it is sent from, and written anew.
                file.suspected();
                opened.raft.get_snapshot().await.map_err(stopped)?;
            } else {
                // Where there is no room, a snapshot that is tried ends the member.
                opened.room.has_room().map_err(|e| Status::resource_exhausted(e.to_string()))?;
                // Nothing happens while one is written, which may be of a moment that was too early.
                opened.raft.trigger().snapshot().await.map_err(stopped)?;
            }
            tokio::time::sleep(SNAPSHOT_LOOK).await;
        }
    });
    found.await.map_err(|_| Status::deadline_exceeded("a snapshot takes too long to write"))?
}

#[tonic::async_trait]
impl Peer for PeerService {
    type AppendStream = Pin<Box<dyn Stream<Item = Result<pb::AppendResponse, Status>> + Send>>;

    async fn append(
        &self,
        request: Request<Streaming<pb::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let (opened, peer) = self.enter(request.metadata())?;
        let (from, observer) = (peer.from, opened.observer.clone());
        // A broken or damaged request ends the input; openraft then ends the answers, and the leader starts anew.
        let identity = opened.identity.clone();
        let input = request.into_inner().map(move |item| {
            if let Ok(message) = &item {
                if !message.without_quorum {
                    identity.heard_leader();
                }
                observer.received(from, message.encoded_len() as u64);
            }
            item.and_then(convert::append_request_from)
        });
        let input = input.take_while(|item| {
            let ok = item.is_ok();
            async move { ok }
        });
        let input = input.filter_map(|item| async move { item.ok() });
        let observer = opened.observer.clone();
        let answers = opened.raft.stream_append(input).map(move |answer| match answer {
            Ok(result) => {
                let answer = convert::append_response(result);
                observer.sent(from, answer.encoded_len() as u64);
                Ok(answer)
            }
            Err(fatal) => Err(stopped(fatal)),
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        let (opened, _) = self.enter(request.metadata())?;
        let answer = opened.raft.vote(convert::vote_request_from(request.into_inner())).await.map_err(stopped)?;
        Ok(Response::new(convert::vote_response(&answer)))
    }

    async fn pre_vote(&self, request: Request<pb::VoteRequest>) -> Result<Response<pb::VoteResponse>, Status> {
        let (opened, _) = self.enter(request.metadata())?;
        let answer = opened.raft.pre_vote(convert::vote_request_from(request.into_inner())).await.map_err(stopped)?;
        Ok(Response::new(convert::vote_response(&answer)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<pb::SnapshotPart>>,
    ) -> Result<Response<pb::SnapshotResponse>, Status> {
        let (opened, peer) = self.enter(request.metadata())?;
        let from = peer.from;
        let way = Transfer::begin(opened.observer.clone(), Way::From, from);
        let number = self.received.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let (head, snapshot, synced) =
            receive(request.into_inner(), &opened.snapshots, &format!("received-{from}-{number}")).await?;
        opened.observer.snapshot_received(begun.elapsed(), synced);
        way.succeeded();
        let last_membership =
            entry::decode_stored(head.membership).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let meta = SnapshotMeta { last_log_id: log_id_from_pb(head.last), last_membership };
        let vote = vote_from_pb(head.vote);
        if holds(&opened.raft, vote, meta.last_log_id).await? {
            return Ok(Response::new(pb::SnapshotResponse { vote: head.vote }));
        }
        let snapshot = SnapshotOf::<TypeConfig, _> { meta, snapshot };
        let answer = opened.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(Response::new(pb::SnapshotResponse { vote: Some(vote_to_pb(&answer.vote)) }))
    }

    type FetchSnapshotStream = Pin<Box<dyn Stream<Item = Result<pb::SnapshotPart, Status>> + Send>>;

    async fn fetch_snapshot(
        &self,
        request: Request<pb::FetchSnapshotRequest>,
    ) -> Result<Response<Self::FetchSnapshotStream>, Status> {
        let (opened, peer) = self.enter(request.metadata())?;
        let (pos, file) = far_enough(opened, request.into_inner().at_least).await?;
        tracing::warn!(to = %peer.from, index = pos.index, bytes = file.bytes, "a member asks for a snapshot: it cannot use its own");
        let head = pb::SnapshotHead {
            last: Some(pb::LogId { term: pos.term, index: pos.index }),
            bytes: file.bytes,
            ..Default::default()
        };
        let (tx, rx) = mpsc::channel(SNAPSHOT_PARTS_AHEAD);
        // One that cannot be read to its end is shorter than its head says, which the other one sees.
        tokio::spawn(async move { send_file(head, file.path, &tx).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx).map(Ok))))
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferRequest>,
    ) -> Result<Response<pb::TransferResponse>, Status> {
        let (opened, _) = self.enter(request.metadata())?;
        let r = request.into_inner();
        let request = TransferLeaderRequest::new(vote_from_pb(r.from), r.to, log_id_from_pb(r.last));
        let refusal = match opened.raft.handle_transfer_leader(request).await.map_err(stopped)? {
            Ok(()) => String::new(),
            Err(e) => e.to_string(),
        };
        Ok(Response::new(pb::TransferResponse { refusal }))
    }

    type ForwardStream = Pin<Box<dyn Stream<Item = Result<pb::ForwardResponse, Status>> + Send>>;

    async fn forward(
        &self,
        request: Request<Streaming<pb::ForwardRequest>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        self.enter(request.metadata())?;
        let requests = self.door.requests.clone();
        let answers = request.into_inner().map(move |message| {
            let requests = requests.clone();
            async move {
                let pb::ForwardRequest { number, proposals } = message?;
                Ok(outcomes(number, requests.propose(proposals).await))
            }
        });
        // In any order: what is refused now must not wait for what was taken up and cannot be committed.
        Ok(Response::new(Box::pin(answers.buffer_unordered(MESSAGES_IN_FLIGHT_MAX))))
    }

    async fn read_index(
        &self,
        request: Request<pb::ReadIndexRequest>,
    ) -> Result<Response<pb::ReadIndexResponse>, Status> {
        self.enter(request.metadata())?;
        let index = self.door.requests.read_index().await.map_err(|e| refusal(&e))?;
        Ok(Response::new(pb::ReadIndexResponse { index }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<pb::LeaseRequest>,
    ) -> Result<Response<pb::LeaseResponse>, Status> {
        self.enter(request.metadata())?;
        let id = LeaseId(request.into_inner().id);
        let ttl = self.door.requests.lease_keep_alive(id).await.map_err(|e| refusal(&e))?;
        Ok(Response::new(pb::LeaseResponse { ttl }))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseRequest>,
    ) -> Result<Response<pb::LeaseResponse>, Status> {
        self.enter(request.metadata())?;
        let id = LeaseId(request.into_inner().id);
        let ttl = self.door.requests.lease_time_to_live(id).await.map_err(|e| refusal(&e))?;
        Ok(Response::new(pb::LeaseResponse { ttl }))
    }

    async fn hash_kv(&self, request: Request<pb::HashKvRequest>) -> Result<Response<pb::HashKvResponse>, Status> {
        self.enter(request.metadata())?;
        let revision = request.into_inner().revision;
        self.door.requests.hash_kv(revision).await.map(Response::new).map_err(|e| refusal(&e))
    }

    async fn change_members(
        &self,
        request: Request<pb::ChangeMembersRequest>,
    ) -> Result<Response<pb::ChangeMembersResponse>, Status> {
        self.enter(request.metadata())?;
        let change = request
            .into_inner()
            .change
            .ok_or_else(|| Status::invalid_argument("a change of members that changes nothing"))?;
        let (id, index) = self.door.requests.change_members(change).await.map_err(|e| refusal(&e))?;
        Ok(Response::new(pb::ChangeMembersResponse { id: id.0, index }))
    }

    async fn probe(&self, request: Request<pb::ProbeRequest>) -> Result<Response<pb::ProbeResponse>, Status> {
        let answer = self.door.requests.probe(request.into_inner()).await;
        answer.map(Response::new).ok_or_else(|| Status::unavailable("this member is still starting"))
    }
}
