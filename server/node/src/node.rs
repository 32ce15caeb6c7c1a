//! The handle that everything above holds, and what it is made of.

use crate::admission::Arrivals;
use crate::auth::{Auth, AuthConfig, Credential, SimpleTokens};
use crate::corruption::CorruptionChecks;
use crate::lease::LeaseClock;
use crate::metrics::{Metrics, operation};
use crate::propose::PROPOSALS_MAX;
use crate::read::{READS_WAITING_MAX, RoundWaiter};
use crate::waiters::Waiters;
use crate::watch::{Hub, WatchStream};
use crate::workers::CLUSTER_VERSION;
use crate::{Check, Status, ids};
use bytes::Bytes;
use ferretcd_proto::peer as pb;
use ferretcd_raft::transport::server::{Answer, PeerRequests};
use ferretcd_raft::{Effects, Group, GroupError, GroupView, Identity, Role, Timing};
use ferretcd_state::{Effect, Pace, State};
use ferretcd_types::{
    Alarm, AlarmKind, ClusterId, Command, Epoch, Error, KeyRange, LeaseId, Limits, LogPos, Member, MemberId, Range,
    Reply, RequestId, codec,
};
use ferretcd_wal::Wal;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What a response header is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The answering member.
    pub member_id: MemberId,
    /// The store's revision now.
    pub revision: i64,
    /// The raft term.
    pub raft_term: u64,
}

/// A running member. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    pub(crate) inner: Arc<Inner>,
    /// Who asks through this handle; see [`Node::on_behalf_of`].
    pub(crate) credential: Credential,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("member", &self.inner.identity.member).finish_non_exhaustive()
    }
}

/// What a member is set up with, beyond its identity.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its name.
    pub name: String,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
    /// Request limits.
    pub limits: Limits,
    /// Raft's timing.
    pub timing: Timing,
    /// Entries between snapshots (`--snapshot-count`).
    pub snapshot_count: u64,
    /// Auto-compaction, if it is on.
    pub auto_compaction: Option<AutoCompaction>,
    /// How often an idle watcher that asked for it hears of progress.
    pub watch_progress_every: Duration,
    /// Learners allowed at once (`--max-learners`).
    pub max_learners: usize,
    /// Refuse changes of members that would endanger the quorum (`--strict-reconfig-check`).
    pub strict_reconfig_check: bool,
    /// Where restores are spooled; inside the data directory.
    pub spool_dir: PathBuf,
    /// Applying an entry for longer than this is mentioned in the log, and counted (`--warning-apply-duration`).
    pub warning_apply: Duration,
    /// How users are known.
    pub auth: AuthConfig,
    /// How fast compacted records are deleted (`--compaction-batch-limit`, `--compaction-sleep-interval`).
    pub compaction_pace: Pace,
    /// Free bytes in the store from which on it is defragmented at the start
    /// (`--bootstrap-defrag-threshold-megabytes`).
    pub defragment_above: Option<u64>,
    /// How often it is noted in the log how long leases still live (the feature gate `LeaseCheckpoint`).
    pub lease_checkpoints: Option<Duration>,
    /// When members compare what they hold.
    pub corruption: CorruptionChecks,
}

/// etcd's two modes of auto-compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Keep what is younger than this.
    Periodic(Duration),
    /// Keep this many revisions.
    Revision(i64),
}

pub(crate) struct Inner {
    pub(crate) config: NodeConfig,
    pub(crate) limits: Limits,
    pub(crate) timing: Timing,
    pub(crate) identity: Arc<Identity>,
    pub(crate) group: Group,
    pub(crate) view: watch::Receiver<GroupView>,
    pub(crate) state: Arc<State>,
    pub(crate) wal: Wal,
    pub(crate) shared: Arc<Shared>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) lease_clock: Arc<LeaseClock>,
    pub(crate) applied: watch::Sender<u64>,
    pub(crate) request_ids: ids::RequestIds,
    pub(crate) proposals: Arc<Semaphore>,
    pub(crate) restores: Arc<Semaphore>,
    pub(crate) snapshots: Arc<Semaphore>,
    /// Physical compactions that are waited for, each on a thread of its own.
    pub(crate) waiting_compactions: Arc<Semaphore>,
    /// Held while the store is rewritten.
    pub(crate) defragmenting: tokio::sync::Mutex<()>,
    pub(crate) reads: mpsc::Sender<RoundWaiter>,
    pub(crate) metrics: Arc<Metrics>,
    /// Peer URLs of the others that its flags name.
    pub(crate) named: Vec<String>,
    pub(crate) auth: Auth,
    /// Cancelled when the member begins to stop.
    pub(crate) stop: CancellationToken,
    /// Set when the member must end by itself: the reason, in words for its log.
    pub(crate) ended: watch::Sender<Option<String>>,
}

/// What applying feeds. It exists before the group, which exists before the node.
pub(crate) struct Shared {
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) lease_clock: Arc<LeaseClock>,
    pub(crate) applied: watch::Sender<u64>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) state: Arc<State>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) members_changed: tokio::sync::Notify,
    pub(crate) warning_apply: Duration,
    pub(crate) tokens: Arc<SimpleTokens>,
}

impl Shared {
    fn take(&self, effect: Effect) {
        match effect {
            Effect::Events { revision, events } => {
                self.metrics.events(&events);
                self.hub.publish(revision, &events);
            }
            Effect::Compacted { .. } | Effect::AlarmsChanged => {}
            Effect::Restored { revision } => {
                self.hub.restored(revision);
                // The users are others now.
                self.tokens.drop_of(None);
                self.tokens.know(self.state.permits().revision());
            }
            Effect::LeaseGranted { id, ttl } => {
                self.metrics.lease_granted(ttl);
                self.lease_clock.granted(id, ttl);
            }
            Effect::LeaseRevoked { id } => {
                self.metrics.lease_revoked();
                self.lease_clock.revoked(id);
            }
            Effect::LeasesCheckpointed { remaining } => {
                remaining.into_iter().for_each(|(id, left)| self.lease_clock.noted(id, left));
            }
            Effect::LeasesReset => self.lease_clock.reset(|| self.state.lease_times(), Duration::ZERO),
            Effect::MembersChanged => self.members_changed.notify_one(),
            Effect::Installed { revision, .. } => {
                self.hub.installed(revision);
                // A password may have been changed in what this member did not see.
                self.tokens.drop_of(None);
                self.tokens.know(self.state.permits().revision());
            }
            Effect::TokenAssigned { token, user } => self.tokens.assign(token, user),
            Effect::TokensDropped { user } => self.tokens.drop_of(user.as_deref()),
            Effect::UsersChanged { auth_revision } => self.tokens.know(auth_revision),
            Effect::EpochKnown => self.identity.learn_epoch(self.state.epoch()),
        }
    }
}

impl Effects for Shared {
    fn publish(&self, effects: Vec<Effect>) {
        effects.into_iter().for_each(|e| self.take(e));
    }

    fn reply(&self, id: RequestId, outcome: Result<Reply, Error>) {
        self.waiters.resolve(id, outcome);
    }

    fn installed(&self, effects: Vec<Effect>) {
        effects.into_iter().for_each(|e| self.take(e));
        self.identity.learn_epoch(self.state.epoch());
        self.lease_clock.reset(|| self.state.lease_times(), Duration::ZERO);
    }

    fn timed(&self, command: &Command, success: bool, took: Duration) {
        let slow = took > self.warning_apply;
        self.metrics.applied(command, success, took, slow);
        if slow {
            let request = operation(command);
            tracing::warn!(
                ?took, "expected-duration" = ?self.warning_apply, request,
                "apply request took too long"
            );
        }
    }

    fn snapshot_written(&self, took: Duration, synced: Duration) {
        self.metrics.snapshot_written(took, synced);
    }

    fn applied(&self, pos: LogPos) {
        self.applied.send_replace(pos.index);
    }
}

pub(crate) struct Running {
    pub(crate) named: Vec<String>,
    pub(crate) config: NodeConfig,
    pub(crate) group: Group,
    pub(crate) wal: Wal,
    pub(crate) shared: Arc<Shared>,
}

impl Node {
    /// Puts the parts together. Nothing runs yet.
    pub(crate) fn assemble(parts: Running) -> (Node, mpsc::Receiver<RoundWaiter>) {
        let (reads, rounds) = mpsc::channel(READS_WAITING_MAX);
        let shared = parts.shared;
        let inner = Inner {
            limits: parts.config.limits,
            timing: parts.config.timing,
            identity: shared.identity.clone(),
            view: parts.group.view(),
            group: parts.group,
            state: shared.state.clone(),
            wal: parts.wal,
            waiters: shared.waiters.clone(),
            hub: shared.hub.clone(),
            lease_clock: shared.lease_clock.clone(),
            applied: shared.applied.clone(),
            request_ids: ids::RequestIds::new(shared.identity.member),
            proposals: Arc::new(Semaphore::new(PROPOSALS_MAX)),
            restores: Arc::new(Semaphore::new(1)),
            snapshots: Arc::new(Semaphore::new(crate::maintenance::SNAPSHOTS_MAX)),
            waiting_compactions: Arc::new(Semaphore::new(crate::propose::COMPACTION_WAITS_MAX)),
            defragmenting: tokio::sync::Mutex::default(),
            reads,
            metrics: shared.metrics.clone(),
            named: parts.named,
            auth: Auth::new(parts.config.auth.clone(), shared.tokens.clone()),
            stop: CancellationToken::new(),
            ended: watch::channel(None).0,
            config: parts.config,
            shared,
        };
        (Node { inner: Arc::new(inner), credential: Credential::None }, rounds)
    }

    /// IDs, revision and term for a response.
    pub fn header(&self) -> Header {
        Header {
            cluster_id: self.inner.identity.cluster,
            member_id: self.inner.identity.member,
            revision: self.inner.state.revision(),
            raft_term: self.inner.view().term,
        }
    }

    /// The limits that requests are checked against.
    pub fn limits(&self) -> Limits {
        self.inner.limits
    }

    /// This member's name.
    pub fn name(&self) -> &str {
        &self.inner.config.name
    }

    /// A new stream of watchers.
    pub fn watch_stream(&self) -> WatchStream {
        let inner = &self.inner;
        let stream = WatchStream::new(
            inner.hub.clone(),
            inner.state.clone(),
            inner.config.watch_progress_every,
            inner.stop.is_cancelled(),
        );
        let node = self.clone();
        stream.guarded_by(Box::new(move |range| node.may_watch(range)))
    }

    /// CRC of everything that all members have alike (etcd's Hash): keys with history, leases, members, users, alarms.
    pub async fn hash(&self) -> Result<u32, Error> {
        let state = self.inner.state.clone();
        let _took = self.inner.metrics.hash.start_timer();
        let hashed = tokio::task::spawn_blocking(move || state.pin().hash()).await.map_err(Error::internal)?;
        hashed.map_err(Error::internal)
    }

    /// This member's own view.
    pub fn status(&self) -> Status {
        let view = self.inner.group.look();
        Status {
            db_size: self.inner.disk_bytes(),
            db_size_in_use: self.inner.state.logical_bytes(),
            db_size_quota: self.inner.limits.quota_bytes.unwrap_or(0),
            leader: view.leader,
            raft_index: view.committed,
            raft_term: view.term,
            raft_applied_index: view.applied,
            is_learner: self.is_learner(),
            alarms: self.alarms(),
            cluster_version: self.cluster_version(),
            downgrade: self.inner.state.downgrade(),
        }
    }

    /// Whether this member knows a leader.
    pub fn has_leader(&self) -> bool {
        self.inner.view().leader.is_some()
    }

    /// Notice of changes of the group, e.g. a lost leader.
    pub fn group_view(&self) -> watch::Receiver<GroupView> {
        self.inner.view.clone()
    }

    /// True while this member has no vote.
    pub fn is_learner(&self) -> bool {
        self.inner.view().role == Role::Learner
    }

    /// Raised alarms.
    pub fn alarms(&self) -> Vec<Alarm> {
        self.inner.state.alarms()
    }

    /// The cluster version (`3.7.0`), once the first entry is applied.
    pub fn cluster_version(&self) -> Option<String> {
        self.inner.state.cluster_version()
    }

    /// Runs one health check; the error's text is what `/readyz` prints.
    pub async fn check(&self, check: Check) -> Result<(), Error> {
        let probe = |serializable| Range {
            range: KeyRange::single("\0"),
            limit: 1,
            keys_only: true,
            serializable,
            ..Range::default()
        };
        match check {
            Check::DataCorruption => {
                if self.alarms().iter().any(|a| a.kind == AlarmKind::Corrupt) {
                    return Err(Error::Internal("alarm activated: CORRUPT".to_owned()));
                }
                Ok(())
            }
            // The member asks itself: no permission is needed, and the answer tells nobody anything.
            Check::SerializableRead => self.inner.state.range(&probe(true)).map(drop),
            Check::LinearizableRead => {
                self.inner.linearize().await?;
                self.inner.state.range(&probe(false)).map(drop)
            }
            Check::NonLearner => {
                if self.is_learner() {
                    return Err(Error::Internal("not supported for learner".to_owned()));
                }
                Ok(())
            }
        }
    }

    /// This member's metrics registry entries.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.inner.metrics
    }

    /// Resolves when the member must end by itself, with the reason: raft stopped, or it was removed.
    pub async fn ended(&self) -> String {
        let mut ended = self.inner.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "the member was dropped".to_owned(),
        }
    }
}

impl Inner {
    /// Bytes on disk of the store; 0 when they cannot be asked for, which a later write will tell more about.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.state.disk_bytes().unwrap_or_default()
    }

    pub(crate) fn view(&self) -> GroupView {
        self.view.borrow().clone()
    }
}

/// What is known before there is a node; see [`crate::admission`].
pub(crate) struct Threshold {
    /// This member's ID, if its data directory was found empty: only then may it be counted as an empty one. 0 when it
    /// joins and does not know its ID yet.
    pub(crate) empty: Option<MemberId>,
    /// It is, or may become, one of the founders.
    pub(crate) founder: bool,
    /// Those that its flags name.
    pub(crate) founders: BTreeSet<MemberId>,
    /// The same with their URLs, for a member whose flags name others.
    pub(crate) named: Vec<pb::ProbeMember>,
    /// The cluster that they found; 0 if this member is none of them.
    pub(crate) founds: ClusterId,
    pub(crate) arrivals: Arc<Mutex<Arrivals>>,
}

/// Answers other members. It is made before the node, which fills it in.
#[derive(Default)]
pub(crate) struct Requests {
    pub(crate) threshold: OnceLock<Threshold>,
    pub(crate) node: OnceLock<Node>,
}

pub(crate) fn from_group(e: GroupError) -> Error {
    match e {
        GroupError::NotLeader { .. } => Error::NotLeader,
        GroupError::Unknown => Error::TimeoutLeaderFail,
        GroupError::NoQuorum => Error::Timeout,
        GroupError::Busy(_) | GroupError::Overtaken => Error::Unhealthy,
        GroupError::Fatal(_) => Error::Stopped,
    }
}

impl Requests {
    /// Lets the door answer probes.
    pub(crate) fn meet(&self, threshold: Threshold) {
        let _ = self.threshold.set(threshold);
    }

    fn node(&self) -> Result<&Node, Error> {
        self.node.get().ok_or(Error::NotLeader)
    }
}

impl PeerRequests for Requests {
    fn propose(&self, proposals: Vec<Bytes>) -> Answer<'_, Vec<Result<(), Error>>> {
        Box::pin(async move {
            let group = match self.node() {
                Ok(node) => &node.inner.group,
                Err(e) => return vec![Err(e); proposals.len()],
            };
            let outcomes = group.propose_all(&proposals).await;
            outcomes.into_iter().map(|outcome| outcome.map(drop).map_err(from_group)).collect()
        })
    }

    fn read_index(&self) -> Answer<'_, Result<u64, Error>> {
        Box::pin(async move { self.node()?.inner.group.read_index().await.map_err(from_group) })
    }

    fn lease_keep_alive(&self, id: LeaseId) -> Answer<'_, Result<i64, Error>> {
        Box::pin(async move { self.node()?.inner.local_keep_alive(id).await })
    }

    fn lease_time_to_live(&self, id: LeaseId) -> Answer<'_, Result<i64, Error>> {
        Box::pin(async move { self.node()?.inner.local_time_to_live(id) })
    }

    fn hash_kv(&self, revision: i64) -> Answer<'_, Result<pb::HashKvResponse, Error>> {
        Box::pin(async move {
            let node = self.node()?;
            let (hash, compact_revision, _) = node.hash_kv(revision).await?;
            Ok(pb::HashKvResponse { hash, compact_revision, revision: node.inner.state.revision() })
        })
    }

    fn change_members(&self, change: pb::change_members_request::Change) -> Answer<'_, Result<(MemberId, u64), Error>> {
        Box::pin(async move { self.node()?.inner.change_members_here(change).await })
    }

    fn probe(&self, request: pb::ProbeRequest) -> Answer<'_, Option<pb::ProbeResponse>> {
        Box::pin(async move {
            let mut answer = self.myself()?;
            answer.arrival = self.arrival(request, &answer.members).await.into();
            Some(answer)
        })
    }
}

impl Requests {
    /// Writes an empty member's arrival down and says whether it is its first.
    async fn arrival(&self, asker: pb::ProbeRequest, members: &[pb::ProbeMember]) -> pb::ProbeArrival {
        let Some(threshold) = self.threshold.get() else { return pb::ProbeArrival::Unsaid };
        let id = MemberId(asker.member_id);
        // Strangers are not written down: anyone may ask.
        let known = threshold.founders.contains(&id) || members.iter().any(|m| m.id == id.0);
        if asker.arrival == 0 || !known {
            return pb::ProbeArrival::Unsaid;
        }
        let arrivals = threshold.arrivals.clone();
        let heard = tokio::task::spawn_blocking(move || arrivals.lock().heard(id, asker.arrival)).await;
        match heard {
            Ok(Ok(false)) => pb::ProbeArrival::Other,
            // One that joined later was not there when the founders came.
            Ok(Ok(true)) if !asker.founder || threshold.founder => pb::ProbeArrival::First,
            Ok(Ok(true)) => pb::ProbeArrival::Unsaid,
            Ok(Err(e)) => {
                tracing::error!(member = %id, "cannot write down that a member has come: {e}");
                pb::ProbeArrival::Unsaid
            }
            Err(_) => pb::ProbeArrival::Unsaid,
        }
    }

    /// Who this member is, as far as it knows.
    fn myself(&self) -> Option<pb::ProbeResponse> {
        let Some(node) = self.node.get() else {
            let threshold = self.threshold.get()?;
            return Some(pb::ProbeResponse {
                cluster_id: threshold.founds.0,
                member_id: threshold.empty?.0,
                members: threshold.named.clone(),
                ..pb::ProbeResponse::default()
            });
        };
        let inner = &node.inner;
        let formed = inner.identity.epoch() != Epoch::UNKNOWN && inner.state.epoch() != Epoch::UNKNOWN;
        // A log beyond the founding entry (index 0) belongs to a cluster, whatever the state knows yet.
        if !formed && inner.wal.last().is_some_and(|last| last.index > 0) {
            return None;
        }
        let view = inner.view();
        let listed = inner.members().into_iter().map(|m: Member| pb::ProbeMember {
            id: m.id.0,
            name: m.name,
            peer_urls: m.peer_urls,
            is_learner: m.is_learner,
        });
        let members = match self.threshold.get() {
            Some(threshold) if !formed => threshold.named.clone(),
            _ => listed.collect(),
        };
        Some(pb::ProbeResponse {
            cluster_id: inner.identity.cluster.0,
            member_id: inner.identity.member.0,
            epoch: inner.identity.epoch().0,
            name: inner.config.name.clone(),
            formed,
            has_leader: view.leader.is_some(),
            members,
            removed: inner.state.removed_members().into_iter().map(|id| id.0).collect(),
            arrival: pb::ProbeArrival::Unsaid.into(),
            replaced_epochs: inner.state.replaced_epochs().into_iter().map(|epoch| epoch.0).collect(),
            log_format: codec::LOG_FORMAT,
            server_version: CLUSTER_VERSION.to_owned(),
            cluster_version: inner.state.cluster_version().unwrap_or_default(),
            cluster_log_format: inner.state.log_format(),
        })
    }
}
