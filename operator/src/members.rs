//! The client of one member's etcd API. Every call has a deadline, so that a member that hangs costs seconds, and every error
//! of etcd that the operator has to tell apart is recognised by its exact text (the texts of etcd's `rpctypes`), once, here.

use std::{future::Future, time::Duration};

use ferretcd_proto::{
    etcdserverpb::{
        AlarmRequest, AlarmResponse, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
        MemberPromoteRequest, MemberRemoveRequest, MoveLeaderRequest, RangeRequest, RangeResponse, SnapshotRequest,
        SnapshotResponse, StatusRequest, StatusResponse, alarm_request::AlarmAction, cluster_client::ClusterClient,
        kv_client::KvClient, maintenance_client::MaintenanceClient,
    },
    ferretcd_v1::{self, RestoreRequest, RestoreResponse},
};
use tokio_stream::Stream;
use tonic::{
    Code, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::cause::chain;

/// How long a look at a member may take (algorithm N).
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a change may take: a proposal goes through the log of a quorum, and etcd's own limit for it is 7 s
/// (5 s + 2 × the election timeout of 1 s). Beyond it the outcome is unknown and the next pass looks again.
pub const CHANGE_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A long stream whose peer has gone silent is noticed after these two together.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// The largest message of a snapshot stream: etcd sends 64 KiB, others may send up to a MiB or a few.
const MAX_SNAPSHOT_MESSAGE: usize = 16 << 20;

/// One member, connected when it is first called.
#[derive(Clone, Debug)]
pub struct Member {
    url: String,
    channel: Channel,
}

/// Why a call did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// The URL is none.
    #[error("{url} is no URL of a member: {problem}")]
    BadUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// No answer in time.
    #[error("{url} did not answer {call} within {} s", .after.as_secs())]
    TimedOut {
        /// The member.
        url: String,
        /// The call.
        call: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// etcd refused, for a reason that we know.
    #[error("{url} refused {call}: {}", .refusal.text())]
    Refused {
        /// The member.
        url: String,
        /// The call.
        call: &'static str,
        /// Why.
        refusal: Refusal,
    },
    /// Anything else: no connection, or an error that we do not tell apart.
    #[error("{url} failed {call}: {message} ({code:?})")]
    Failed {
        /// The member.
        url: String,
        /// The call.
        call: &'static str,
        /// gRPC's code.
        code: Code,
        /// What it said.
        message: String,
    },
}

/// The refusals that the operator tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Strict reconfiguration: a voter is not connected.
    Unhealthy,
    /// A learner exists already.
    TooManyLearners,
    /// The learner lacks too much of the log.
    LearnerNotReady,
    /// Strict reconfiguration: too few started members would remain.
    NotEnoughStarted,
    /// No such member (any more).
    MemberNotFound,
    /// It votes already.
    NotLearner,
    /// A member with this peer URL exists.
    PeerUrlExists,
    /// There is no leader.
    NoLeader,
    /// The call has to go to the leader.
    NotLeader,
    /// The leader changed while it worked on the call.
    LeaderChanged,
    /// The member that shall lead cannot.
    BadTransferee,
    /// Leadership did not move in time.
    TransferTimedOut,
    /// The member is a learner and does not serve this.
    NotForLearners,
    /// The member gave up waiting for a quorum.
    TimedOut,
}

impl Refusal {
    /// All of them, for the search by text.
    const ALL: [Refusal; 14] = [
        Refusal::Unhealthy,
        Refusal::TooManyLearners,
        Refusal::LearnerNotReady,
        Refusal::NotEnoughStarted,
        Refusal::MemberNotFound,
        Refusal::NotLearner,
        Refusal::PeerUrlExists,
        Refusal::NoLeader,
        Refusal::NotLeader,
        Refusal::LeaderChanged,
        Refusal::BadTransferee,
        Refusal::TransferTimedOut,
        Refusal::NotForLearners,
        Refusal::TimedOut,
    ];

    /// etcd's text, byte for byte.
    pub fn text(self) -> &'static str {
        match self {
            Refusal::Unhealthy => "etcdserver: unhealthy cluster",
            Refusal::TooManyLearners => "etcdserver: too many learner members in cluster",
            Refusal::LearnerNotReady => "etcdserver: can only promote a learner member which is in sync with leader",
            Refusal::NotEnoughStarted => "etcdserver: re-configuration failed due to not enough started members",
            Refusal::MemberNotFound => "etcdserver: member not found",
            Refusal::NotLearner => "etcdserver: can only promote a learner member",
            Refusal::PeerUrlExists => "etcdserver: Peer URLs already exists",
            Refusal::NoLeader => "etcdserver: no leader",
            Refusal::NotLeader => "etcdserver: not leader",
            Refusal::LeaderChanged => "etcdserver: leader changed",
            Refusal::BadTransferee => "etcdserver: bad leader transferee",
            Refusal::TransferTimedOut => "etcdserver: request timed out, leader transfer took too long",
            Refusal::NotForLearners => "etcdserver: rpc not supported for learner",
            Refusal::TimedOut => "etcdserver: request timed out",
        }
    }

    /// The refusal with this text.
    pub fn of(text: &str) -> Option<Refusal> {
        Refusal::ALL.into_iter().find(|refusal| refusal.text() == text)
    }
}

impl MemberError {
    /// The refusal, if it is one that we know.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            MemberError::Refused { refusal, .. } => Some(*refusal),
            _ => None,
        }
    }
}

impl MemberError {
    /// Whether the same call would meet the same error: the server does not know it, or refuses what was sent.
    pub fn is_permanent(&self) -> bool {
        match self {
            MemberError::BadUrl { .. } => true,
            MemberError::Failed { code, .. } => {
                matches!(code, Code::Unimplemented | Code::InvalidArgument | Code::OutOfRange | Code::DataLoss)
            }
            MemberError::TimedOut { .. } | MemberError::Refused { .. } => false,
        }
    }
}

impl Member {
    /// A member by its client URL. Nothing is sent yet; it must be called within a tokio runtime.
    ///
    /// # Errors
    /// What is no URL.
    pub fn new(url: &str) -> Result<Member, MemberError> {
        let bad = |problem: String| MemberError::BadUrl { url: url.to_owned(), problem };
        if !url.starts_with("http://") {
            return Err(bad(
                "it must start with http:// (TLS between operator and members does not exist yet)".to_owned()
            ));
        }
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| bad(error.to_string()))?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .connect_lazy();
        Ok(Member { url: url.to_owned(), channel })
    }

    /// Its client URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The members; linearizable, which needs a quorum.
    ///
    /// # Errors
    /// As every call: no answer in time, a refusal, no connection.
    pub async fn list(&self) -> Result<MemberListResponse, MemberError> {
        let mut client = ClusterClient::new(self.channel.clone());
        self.call("MemberList", PROBE_TIMEOUT, client.member_list(MemberListRequest { linearizable: true })).await
    }

    /// What it says of itself; needs no quorum.
    ///
    /// # Errors
    /// As every call.
    pub async fn status(&self) -> Result<StatusResponse, MemberError> {
        let mut client = MaintenanceClient::new(self.channel.clone());
        self.call("Status", PROBE_TIMEOUT, client.status(StatusRequest {})).await
    }

    /// The active alarms of all members; goes through the log, so it needs a quorum.
    ///
    /// # Errors
    /// As every call.
    pub async fn alarms(&self) -> Result<AlarmResponse, MemberError> {
        let mut client = MaintenanceClient::new(self.channel.clone());
        let request = AlarmRequest { action: AlarmAction::Get.into(), ..AlarmRequest::default() };
        self.call("AlarmList", PROBE_TIMEOUT, client.alarm(request)).await
    }

    /// A linearizable read through this member that returns no data: its header's revision is a lower bound of what the member
    /// has applied. `count` is the number of all keys if `counted`; that walks the index, so probes leave it out.
    ///
    /// # Errors
    /// As every call.
    pub async fn read(&self, counted: bool) -> Result<RangeResponse, MemberError> {
        let mut client = KvClient::new(self.channel.clone());
        // The key of one zero byte, and with the same as range_end every key.
        let zero = bytes::Bytes::from_static(b"\0");
        let range_end = if counted { zero.clone() } else { bytes::Bytes::new() };
        let request = RangeRequest { key: zero, range_end, count_only: true, ..RangeRequest::default() };
        let timeout = if counted { CHANGE_TIMEOUT } else { PROBE_TIMEOUT };
        self.call("Range", timeout, client.range(request)).await
    }

    /// Adds a learner with this peer URL.
    ///
    /// # Errors
    /// As every call; after a time-out it may have been added.
    pub async fn add_learner(&self, peer_url: &str) -> Result<MemberAddResponse, MemberError> {
        let mut client = ClusterClient::new(self.channel.clone());
        let request = MemberAddRequest { peer_ur_ls: vec![peer_url.to_owned()], is_learner: true };
        self.call("MemberAdd", CHANGE_TIMEOUT, client.member_add(request)).await
    }

    /// Makes a learner a voter.
    ///
    /// # Errors
    /// As every call; after a time-out it may vote.
    pub async fn promote(&self, id: u64) -> Result<(), MemberError> {
        let mut client = ClusterClient::new(self.channel.clone());
        self.call("MemberPromote", CHANGE_TIMEOUT, client.member_promote(MemberPromoteRequest { id })).await.map(drop)
    }

    /// Removes a member.
    ///
    /// # Errors
    /// As every call; after a time-out it may be gone.
    pub async fn remove(&self, id: u64) -> Result<(), MemberError> {
        let mut client = ClusterClient::new(self.channel.clone());
        self.call("MemberRemove", CHANGE_TIMEOUT, client.member_remove(MemberRemoveRequest { id })).await.map(drop)
    }

    /// Asks this member, which must lead, to hand leadership over.
    ///
    /// # Errors
    /// As every call; after a time-out leadership may have moved.
    pub async fn move_leader(&self, to: u64) -> Result<(), MemberError> {
        let mut client = MaintenanceClient::new(self.channel.clone());
        let request = MoveLeaderRequest { target_id: to };
        self.call("MoveLeader", CHANGE_TIMEOUT, client.move_leader(request)).await.map(drop)
    }

    /// A snapshot of its data as a stream. The deadline is for the first answer; the caller bounds each later one.
    ///
    /// # Errors
    /// As every call.
    pub async fn snapshot(&self) -> Result<Streaming<SnapshotResponse>, MemberError> {
        let mut client = MaintenanceClient::new(self.channel.clone()).max_decoding_message_size(MAX_SNAPSHOT_MESSAGE);
        // A first pass over all data may precede the first message, hence no short deadline.
        self.call("Snapshot", Duration::from_secs(60), client.snapshot(SnapshotRequest {})).await
    }

    /// Replaces the data of its cluster by the file that is streamed. There is no deadline: a restore takes as long as its file
    /// is large, the connection's keep-alive notices a member that is gone, and the Job has a deadline of its own.
    ///
    /// # Errors
    /// As every call; before the last chunk has been sent nothing has changed.
    pub async fn restore(
        &self,
        file: impl Stream<Item = RestoreRequest> + Send + 'static,
    ) -> Result<RestoreResponse, MemberError> {
        let mut client = ferretcd_v1::maintenance_client::MaintenanceClient::new(self.channel.clone());
        let answer = client.restore(file).await;
        answer.map(Response::into_inner).map_err(|status| self.error("Restore", &status))
    }

    async fn call<T>(
        &self,
        call: &'static str,
        after: Duration,
        work: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, MemberError> {
        match tokio::time::timeout(after, work).await {
            Ok(answer) => answer.map(Response::into_inner).map_err(|status| self.error(call, &status)),
            Err(_) => Err(MemberError::TimedOut { url: self.url.clone(), call, after }),
        }
    }

    /// What a status means.
    pub fn error(&self, call: &'static str, status: &Status) -> MemberError {
        let url = self.url.clone();
        match Refusal::of(status.message()) {
            Some(refusal) => MemberError::Refused { url, call, refusal },
            None => {
                // Where no connection came about, only the causes say why.
                let message = std::error::Error::source(status)
                    .map(chain)
                    .filter(|causes| causes.contains(status.message()))
                    .unwrap_or_else(|| status.message().to_owned());
                MemberError::Failed { url, call, code: status.code(), message }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_is_known_by_its_text_and_no_two_share_one() {
        for refusal in Refusal::ALL {
            assert_eq!(Refusal::of(refusal.text()), Some(refusal));
        }
        assert_eq!(Refusal::of("etcdserver: request timed out, possibly due to connection lost"), None);
    }

    #[tokio::test]
    async fn nobody_there_is_an_error_with_its_cause_not_a_hang() {
        // Port 1 of loopback: refused at once.
        let member = Member::new("http://127.0.0.1:1").unwrap();
        let error = member.status().await.unwrap_err().to_string();
        assert!(error.contains("http://127.0.0.1:1 failed Status") && error.contains("refused"), "{error}");
    }

    #[tokio::test]
    async fn a_url_with_tls_is_refused_before_anything_is_sent() {
        assert!(matches!(Member::new("https://a:2379"), Err(MemberError::BadUrl { .. })));
    }
}
