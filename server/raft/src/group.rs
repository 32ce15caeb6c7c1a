//! The handle on a running raft group, in our own words: no openraft type leaves this crate.

use crate::config::Timing;
use crate::entry;
use crate::identity::Identity;
use crate::log::Log;
use crate::machine::{Effects, Machine};
use crate::offer::{self, Offer};
use crate::snapshot::SnapshotDir;
use crate::transport::client::{Network, Peers};
use crate::types::{Membership, StoredMembership, TypeConfig, log_pos, vote_to_wal};
use bytes::Bytes;
use ferretcd_state::State;
use ferretcd_types::{LogPos, MemberId, PeerNode};
use ferretcd_wal::Wal;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, LinearizableReadError, RaftError};
use openraft::raft::{Precondition, ReadPolicy};
use openraft::{ChangeMembers, Instant as _, Raft, ServerState};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

pub(crate) type RawRaft = Raft<TypeConfig, Machine>;

/// A member's part in the group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Receives the log, has no vote.
    #[default]
    Learner,
    /// Follows.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// The group as this member sees it now. Cheap to clone: each proposal looks at it several times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupView {
    /// Term.
    pub term: u64,
    /// This member's role.
    pub role: Role,
    /// Who leads, as far as this member knows and has heard lately.
    pub leader: Option<MemberId>,
    /// Last entry in this member's log.
    pub last_log_index: u64,
    /// Last entry known to be committed.
    pub committed: u64,
    /// Last applied entry.
    pub applied: u64,
    /// Last entry in a snapshot file.
    pub snapshot: u64,
    /// Members: ID, node, learner.
    pub members: Arc<[(MemberId, PeerNode, bool)]>,
    /// The entry that set the members.
    pub membership_index: u64,
    /// And its term.
    pub membership_term: u64,
    /// On the leader: the last entry that is on its own stable storage.
    pub flushed: Option<u64>,
    /// On the leader: how far each other member's log matches.
    pub progress: Arc<BTreeMap<MemberId, Progress>>,
    /// On the leader: when a quorum last confirmed it.
    pub quorum_acked: Option<Instant>,
    /// Set when raft has stopped for good, or must.
    pub fatal: Option<String>,
}

/// How far a follower is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Last entry that it holds on stable storage.
    pub matched: Option<u64>,
    /// When it last answered.
    pub last_heard: Option<Instant>,
}

impl GroupView {
    /// Voters.
    pub fn voters(&self) -> impl Iterator<Item = &(MemberId, PeerNode, bool)> {
        self.members.iter().filter(|m| !m.2)
    }

    /// On the leader: whether most of these voters hold the members as they are on stable storage, and nothing can undo that. An
    /// entry of an earlier term another leader may replace yet, whoever holds it (the Raft paper, 5.4.2).
    fn is_held_by_most(&self, voters: &BTreeSet<MemberId>, leader: MemberId) -> bool {
        let index = self.membership_index;
        let holds = |id: &&MemberId| match **id == leader {
            true => self.flushed >= Some(index),
            false => self.progress.get(id).is_some_and(|p| p.matched >= Some(index)),
        };
        self.membership_term == self.term && voters.iter().filter(holds).count() > voters.len() / 2
    }

    /// A member's node.
    pub fn node(&self, id: MemberId) -> Option<&PeerNode> {
        self.members.iter().find(|m| m.0 == id).map(|m| &m.1)
    }
}

/// Why the group did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// This member does not lead. Nothing was done.
    #[error("not the leader")]
    NotLeader {
        /// Who does, as far as is known.
        leader: Option<MemberId>,
    },
    /// Leadership was lost with the entry under way: it may or may not be committed.
    #[error("leadership was lost with the entry under way")]
    Unknown,
    /// A quorum does not answer.
    #[error("a quorum does not answer")]
    NoQuorum,
    /// Another change of members is under way, or a new leader has not committed its first entry.
    #[error("the members cannot be changed now: {0}")]
    Busy(String),
    /// The members are no longer those that the change was decided on. Nothing was done: decide anew.
    #[error("the members have just changed")]
    Overtaken,
    /// Raft has stopped; the process must end.
    #[error("raft has stopped: {0}")]
    Fatal(String),
}

/// A running raft group, as one member holds it. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    /// How long this member calls no election after the start, if it is not alone.
    first_wait: Option<Duration>,
    /// The election time-out.
    election: Duration,
    /// How often it speaks when it leads.
    heartbeat: Duration,
    raft: RawRaft,
    peers: Peers,
    snapshots: SnapshotDir,
    state: Arc<State>,
    view: watch::Receiver<GroupView>,
    offers: mpsc::Sender<Offer>,
    /// Held until a change of members is in the log, or refused: it is known by being the first one behind what it was decided on,
    /// and another that was decided on the same would be taken for it.
    changing: Arc<tokio::sync::Mutex<()>>,
}

/// What a group is started from.
pub struct GroupParts {
    /// Timing.
    pub timing: Timing,
    /// The log.
    pub wal: Wal,
    /// The state machine.
    pub state: Arc<State>,
    /// Where snapshot files lie.
    pub snapshots: SnapshotDir,
    /// Channels to the other members.
    pub peers: Peers,
    /// Who is told what the log did.
    pub effects: Arc<dyn Effects>,
}

impl Group {
    /// Recovers the group from its log and state machine. Nothing runs before [`Group::run`].
    pub async fn open(parts: GroupParts) -> Result<Self, GroupError> {
        let config = parts.timing.openraft().map_err(GroupError::Fatal)?;
        let member = parts.peers.identity().member;
        let machine = Machine::new(parts.state.clone(), parts.effects, parts.snapshots.clone());
        let network = Network { peers: parts.peers.clone(), heartbeat: parts.timing.heartbeat };
        let log = Log::new(parts.wal.clone());
        let raft = Raft::build(member.0, config, network, log, machine).await.map_err(fatal)?;
        let (wal, state) = (parts.wal, parts.state.clone());
        let unheard = move || wal.failure().map(|e| e.to_string()).or_else(|| state.failure());
        let (tx, view) = watch::channel(GroupView::default());
        let (election, kept) = (parts.timing.election, parts.timing.catch_up_entries);
        tokio::spawn(follow(raft.clone(), unheard, tx, parts.peers.clone(), election, kept));
        let (offers, offered) = mpsc::channel(offer::WAITING_MAX);
        tokio::spawn(offer::hand_over(raft.clone(), offered));
        let first_wait = (!parts.timing.may_elect_at_once).then_some(parts.timing.election);
        Ok(Group {
            first_wait,
            election,
            heartbeat: parts.timing.heartbeat,
            raft,
            peers: parts.peers,
            snapshots: parts.snapshots,
            state: parts.state,
            view,
            offers,
            changing: Arc::default(),
        })
    }

    /// Starts raft's tasks.
    pub fn run(&self) {
        if self.first_wait.is_some() {
            self.raft.runtime_config().elect(false);
        }
        self.raft.run();
        tokio::spawn(speak(self.raft.clone(), self.view(), self.heartbeat));
        tokio::spawn(lead_alone(self.raft.clone(), self.view(), self.peers.identity().member));
        let Some(wait) = self.first_wait else { return };
        let (raft, mut view) = (self.raft.clone(), self.view());
        tokio::spawn(async move {
            // Who is alone waits for nobody, as in etcd.
            let alone = view.wait_for(|view| view.voters().count() == 1);
            let _ = tokio::time::timeout(wait, alone).await;
            raft.runtime_config().elect(true);
        });
    }

    /// Founds the group with these members. Each of them may do so, with equal arguments; one that has a log already
    /// ignores it.
    pub async fn found(&self, members: BTreeMap<MemberId, PeerNode>) -> Result<(), GroupError> {
        // Founding calls an election.
        if let Some(wait) = self.first_wait.filter(|_| members.len() > 1) {
            tokio::time::sleep(wait).await;
        }
        let members: BTreeMap<u64, PeerNode> = members.into_iter().map(|(id, node)| (id.0, node)).collect();
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(openraft::errors::InitializeError::NotAllowed(_))) => Ok(()),
            Err(e) => Err(fatal(e)),
        }
    }

    pub(crate) fn for_door(&self) -> (Arc<Identity>, RawRaft, SnapshotDir) {
        (self.peers.identity().clone(), self.raft.clone(), self.snapshots.clone())
    }

    /// Calls to other members.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// The group as seen now, and notice of changes.
    pub fn view(&self) -> watch::Receiver<GroupView> {
        self.view.clone()
    }

    /// The view of this moment: that of [`Group::view`] has numbers that may be some milliseconds old.
    pub fn look(&self) -> GroupView {
        let (metrics, server) = (self.raft.metrics(), self.raft.server_metrics());
        let silence = self.peers.identity().leader_silence();
        view_of(&metrics.borrow_watched(), &server.borrow_watched(), silence, self.election)
    }

    /// Puts an encoded proposal in the log and waits until it is committed and applied here. Only on the leader.
    pub async fn propose(&self, proposal: &Bytes) -> Result<LogPos, GroupError> {
        outcome(self.offer(proposal).await).await
    }

    /// As [`Group::propose`], for many: what became of each, once that is known of all.
    pub async fn propose_all(&self, proposals: &[Bytes]) -> Vec<Result<LogPos, GroupError>> {
        let mut answers = Vec::with_capacity(proposals.len());
        for proposal in proposals {
            answers.push(self.offer(proposal).await);
        }
        let mut outcomes = Vec::with_capacity(answers.len());
        for answer in answers {
            outcomes.push(outcome(answer).await);
        }
        outcomes
    }

    /// Waits for a place in the queue.
    async fn offer(&self, proposal: &Bytes) -> oneshot::Receiver<Result<LogPos, GroupError>> {
        let (offer, answer) = Offer::new(proposal);
        // Where nobody takes it, the answer's other end is gone.
        let _ = self.offers.send(offer).await;
        answer
    }

    /// The index that a read must have applied to be linearizable: a quorum has just confirmed this leader.
    pub async fn read_index(&self) -> Result<u64, GroupError> {
        // Before openraft knows of it.
        let _waits = self.peers.reads();
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(f))) => {
                Err(GroupError::NotLeader { leader: f.leader_id.map(MemberId) })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => Err(GroupError::NoQuorum),
            Err(RaftError::Fatal(e)) => Err(fatal(e)),
        }
    }

    /// Changes the members by one entry: at most one voter more or less than the view that `change` is given. Only on
    /// the leader; refused when the members are no longer those of the entry at `decided_on`.
    ///
    /// Returns when most of the voters *before* the change hold the entry on stable storage. Nothing can undo it from
    /// then on: whoever leads next needs one of their votes, or the new quorum, and so has it. It is how etcd counts, where
    /// a second voter is a member at once; here, too, nothing else is committed then before the new voters' quorum is there.
    pub async fn change_members(
        &self,
        decided_on: u64,
        change: impl FnOnce(&mut BTreeSet<MemberId>, &mut BTreeMap<MemberId, PeerNode>),
    ) -> Result<LogPos, GroupError> {
        let turn = self.changing.lock().await;
        let observed = self.members_of(decided_on)?;
        let mut voters: BTreeSet<MemberId> = observed.voter_ids().map(MemberId).collect();
        let before = voters.clone();
        let mut nodes: BTreeMap<MemberId, PeerNode> =
            observed.nodes().map(|(id, node)| (MemberId(*id), node.clone())).collect();
        change(&mut voters, &mut nodes);
        let wanted: Vec<(MemberId, PeerNode, bool)> =
            nodes.iter().map(|(id, node)| (*id, node.clone(), !voters.contains(id))).collect();
        let config = voters.into_iter().map(|id| id.0).collect();
        let nodes: BTreeMap<u64, PeerNode> = nodes.into_iter().map(|(id, node)| (id.0, node)).collect();
        let proposed = Membership::new(vec![config], nodes).map_err(fatal)?;
        let unchanged = Precondition::LastMembershipLogId { last_membership_log_id: *observed.log_id() };
        let payload = openraft::EntryPayload::Blank;
        let raft = self.raft.clone();
        // In a task of its own: its answer comes with the new quorum, which may be long after this one.
        let mut written =
            tokio::spawn(
                async move { raft.append_membership(proposed, payload, [unchanged]).await.map_err(write_error) },
            );
        let mut view = self.view.clone();
        tokio::select! {
            biased;
            written = &mut written => return written.map_err(fatal)?.map(|written| log_pos(&written.log_id)),
            () = self.changed_since(decided_on) => drop(turn),
        }
        let leader = self.peers.identity().member;
        // Where this member lost its lead meanwhile, the next leader's change may stand in its place.
        let is_held = |view: &GroupView| {
            view.membership_index > decided_on && *view.members == *wanted && view.is_held_by_most(&before, leader)
        };
        tokio::select! {
            biased;
            written = &mut written => written.map_err(fatal)?.map(|written| log_pos(&written.log_id)),
            held = view.wait_for(is_held) => match held {
                Ok(view) => Ok(LogPos { term: view.term, index: view.membership_index }),
                Err(_) => Err(GroupError::Fatal("raft has stopped".to_owned())),
            },
        }
    }

    /// Waits until this member's log has a change of members behind the one at `decided_on`.
    async fn changed_since(&self, decided_on: u64) {
        let _ = self.view.clone().wait_for(|view| view.membership_index > decided_on).await;
    }

    /// The members as set by the entry at `decided_on`, if they are still those and this is one of them: openraft lets a
    /// leader that was removed lead for a while, and does not expect it to change the members once more then (a debug
    /// check of it fails, seed 97721).
    fn members_of(&self, decided_on: u64) -> Result<Arc<StoredMembership>, GroupError> {
        let observed = self.raft.metrics().borrow_watched().membership_config.clone();
        may_change(&observed, decided_on, self.peers.identity().member)?;
        Ok(observed)
    }

    /// Changes where a member is reached, by one entry. Only on the leader; refused when the members are no longer those
    /// of the entry at `decided_on`.
    ///
    /// openraft warns that a wrong address could split a group. Here it cannot: every call names the member that it
    /// means, and any other one refuses it.
    pub async fn move_member(&self, decided_on: u64, id: MemberId, node: PeerNode) -> Result<LogPos, GroupError> {
        let turn = self.changing.lock().await;
        let observed = self.members_of(decided_on)?;
        let unchanged = Precondition::LastMembershipLogId { last_membership_log_id: *observed.log_id() };
        let moved = ChangeMembers::SetNodes(BTreeMap::from([(id.0, node)]));
        let mut written = pin!(self.raft.change_membership_if(moved, true, [unchanged]));
        let in_the_log = self.changed_since(decided_on);
        let written = tokio::select! {
            biased;
            written = &mut written => written,
            () = in_the_log => {
                drop(turn);
                written.await
            }
        };
        Ok(log_pos(&written.map_err(write_error)?.log_id))
    }

    /// Starts handing leadership over; whether it worked shows in the view.
    pub async fn transfer_leader(&self, to: MemberId) -> Result<(), GroupError> {
        self.raft.trigger().transfer_leader(to.0).await.map_err(fatal)
    }

    /// Writes a snapshot file in the background; the log below it goes when it is done.
    pub async fn take_snapshot(&self) -> Result<(), GroupError> {
        self.raft.trigger().snapshot().await.map_err(fatal)
    }

    /// Whether a snapshot file of the state as it is fits where they are written.
    ///
    /// # Errors
    /// See [`SnapshotDir::has_room`].
    pub fn has_room(&self) -> std::io::Result<()> {
        self.snapshots.has_room(self.state.snapshot_bytes())
    }

    /// Whether this member's log holds a group.
    pub async fn is_founded(&self) -> Result<bool, GroupError> {
        self.raft.is_initialized().await.map_err(fatal)
    }

    /// Stops raft's tasks.
    pub async fn shutdown(&self) {
        if let Err(e) = self.raft.shutdown().await {
            tracing::warn!("raft did not stop cleanly: {e}");
        }
    }
}

/// Whether `me` may change these members, when what it decided on was set by the entry at `decided_on`.
fn may_change(observed: &StoredMembership, decided_on: u64, me: MemberId) -> Result<(), GroupError> {
    if observed.log_id().as_ref().map_or(0, |l| l.index()) != decided_on {
        return Err(GroupError::Overtaken);
    }
    match observed.nodes().any(|(id, _)| *id == me.0) {
        true => Ok(()),
        false => Err(GroupError::NotLeader { leader: None }),
    }
}

async fn outcome(answer: oneshot::Receiver<Result<LogPos, GroupError>>) -> Result<LogPos, GroupError> {
    answer.await.unwrap_or_else(|_| Err(fatal("nobody takes proposals any more")))
}

pub(crate) fn fatal(e: impl std::fmt::Display) -> GroupError {
    GroupError::Fatal(e.to_string())
}

pub(crate) fn write_error(e: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> GroupError {
    match e {
        RaftError::Fatal(e) => fatal(e),
        RaftError::APIError(ClientWriteError::ForwardToLeader(f)) => {
            GroupError::NotLeader { leader: f.leader_id.map(MemberId) }
        }
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => GroupError::Unknown,
        RaftError::APIError(ClientWriteError::ChangeMembershipError(e)) => match e {
            ChangeMembershipError::InProgress(e) => GroupError::Busy(e.to_string()),
            e => GroupError::Busy(e.to_string()),
        },
        RaftError::APIError(e) => GroupError::Busy(e.to_string()),
    }
}

/// How old the numbers in a view may be. What waits for them is a change of members; who wants them exact looks
/// ([`Group::look`]).
const NUMBERS_EVERY: Duration = Duration::from_millis(10);

/// Keeps the view current. A leader counts as gone, whatever openraft's role says, when no quorum has answered it for an
/// election timeout, or when it has not spoken to this follower for two, or only to say that no quorum answers it: this
/// member must not claim a leader that can do nothing. The second is for the election: usually another leads by then, and
/// watches that want a leader (kube-apiserver's) are not refused for nothing. etcd's followers wait one to two.
///
/// What raft has not heard of is said here: a committed position that could not be written, or the store behind the last
/// entry. A follower without a log would answer heartbeats until the next entry comes. The view goes on then, for a leader
/// that hands over before it ends.
async fn follow(
    raft: RawRaft,
    unheard: impl Fn() -> Option<String>,
    tx: watch::Sender<GroupView>,
    peers: Peers,
    election: Duration,
    kept: u64,
) {
    let (mut metrics, mut server) = (raft.metrics(), raft.server_metrics());
    loop {
        let silence = peers.identity().leader_silence();
        let mut view = view_of(&metrics.borrow_watched(), &server.borrow_watched(), silence, election);
        let stopped = view.fatal.is_some();
        view.fatal = view.fatal.or_else(&unheard);
        peers.lead_without_quorum(view.role == Role::Leader && view.leader.is_none());
        peers.may_purge(view.snapshot.saturating_sub(kept));
        tx.send_if_modified(|known| {
            let changed = *known != view;
            if known.members != view.members {
                peers.learn(&view.members);
            }
            *known = view;
            changed
        });
        if stopped {
            return;
        }
        // Who leads, and who the members are, at once; numbers, of which each entry changes several, not for each entry.
        tokio::select! {
            Ok(()) = server.changed() => continue,
            () = tokio::time::sleep(NUMBERS_EVERY) => {}
        }
        // Woken by changes; looked at again after a while, because a quorum that falls silent changes nothing.
        if let Ok(Err(_)) = tokio::time::timeout(election / 4, metrics.changed()).await {
            return;
        }
    }
}

/// Has a member whose vote is all it needs elected at its start: openraft looks at its clock at every twentieth of an election time-out,
/// which may be seconds.
async fn lead_alone(raft: RawRaft, mut view: watch::Receiver<GroupView>, me: MemberId) {
    let known = view.wait_for(|view| view.voters().next().is_some()).await;
    let alone = known.is_ok_and(|view| view.voters().all(|(id, _, _)| *id == me));
    if alone && let Err(e) = raft.trigger().elect(false).await {
        tracing::debug!("no election is called: {e}");
    }
}

/// Sends heartbeats while this member leads. openraft decides whether one is due to whom, and leaves out what would keep a group that
/// is partly cut off from electing another leader.
async fn speak(raft: RawRaft, mut view: watch::Receiver<GroupView>, every: Duration) {
    while view.wait_for(|view| view.role == Role::Leader).await.is_ok() {
        if raft.trigger().heartbeat().await.is_err() {
            return;
        }
        tokio::time::sleep(every).await;
    }
}

/// `server` is told before `m`, which has all of it and the numbers.
fn view_of(
    m: &openraft::RaftMetrics<TypeConfig>,
    server: &openraft::metrics::RaftServerMetrics<TypeConfig>,
    silence: Option<Duration>,
    election: Duration,
) -> GroupView {
    let role = match server.state {
        ServerState::Leader => Role::Leader,
        ServerState::Candidate => Role::Candidate,
        ServerState::Follower => Role::Follower,
        _ => Role::Learner,
    };
    let quorum_acked = m.last_quorum_acked.as_ref().and_then(|at| Instant::now().checked_sub(at.elapsed()));
    let alone = server.membership_config.voter_ids().count() == 1;
    let quorum_lost = role == Role::Leader && !alone && quorum_acked.is_none_or(|at| at.elapsed() > election);
    let leader_silent = role != Role::Leader && silence.is_none_or(|s| s > election * 2);
    let heard = m.heartbeat.as_ref();
    let progress = m.replication.iter().flatten().filter(|(id, _)| **id != m.id).map(|(id, matched)| {
        let last_heard = heard
            .and_then(|h| h.get(id))
            .and_then(|at| at.as_ref())
            .and_then(|at| Instant::now().checked_sub(at.elapsed()));
        (MemberId(*id), Progress { matched: matched.as_ref().map(|l| l.index()), last_heard })
    });
    let membership = server.membership_config.log_id().as_ref().map(log_pos).unwrap_or_default();
    GroupView {
        // Of the same moment as the role and the leader: a term has one.
        term: vote_to_wal(&server.vote).term,
        role,
        leader: if quorum_lost || leader_silent { None } else { server.current_leader.map(MemberId) },
        last_log_index: m.last_log_index.unwrap_or_default(),
        committed: m.local_committed.as_ref().map_or(0, |l| l.index()),
        applied: m.last_applied.as_ref().map_or(0, |l| l.index()),
        snapshot: m.snapshot.as_ref().map_or(0, |l| l.index()),
        members: entry::members(server.membership_config.membership()).into(),
        membership_index: membership.index,
        membership_term: membership.term,
        flushed: m.replication.as_ref().and_then(|r| r.get(&m.id)).and_then(|l| l.as_ref()).map(|l| l.index()),
        progress: Arc::new(progress.collect()),
        quorum_acked,
        fatal: m.running_state.as_ref().err().map(ToString::to_string),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::metrics::RaftServerMetrics;
    use openraft::type_config::alias::InstantOf;

    /// What openraft tells of member 1, which thinks that it leads so many.
    fn leads(members: u64) -> (openraft::RaftMetrics<TypeConfig>, RaftServerMetrics<TypeConfig>) {
        let ids: BTreeSet<u64> = (1..=members).collect();
        let nodes = ids.iter().map(|id| (*id, PeerNode::default())).collect::<BTreeMap<_, _>>();
        let membership = Arc::new(StoredMembership::new(None, Membership::new(vec![ids], nodes).unwrap()));
        let metrics = openraft::RaftMetrics::new_initial(1);
        let server = RaftServerMetrics {
            id: 1,
            vote: metrics.vote,
            state: ServerState::Leader,
            current_leader: Some(1),
            membership_config: membership.clone(),
            committed_membership_config: membership,
        };
        (metrics, server)
    }

    const ELECTION: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_leader_is_one_until_no_quorum_has_answered_for_one_election_time_out() {
        let (mut metrics, server) = leads(3);
        let leader = |metrics: &_, server: &_| view_of(metrics, server, None, ELECTION).leader;
        assert_eq!(leader(&metrics, &server), None, "nobody has answered it yet");
        metrics.last_quorum_acked = Some(InstantOf::<TypeConfig>::now().into());
        tokio::time::advance(ELECTION).await;
        assert_eq!(leader(&metrics, &server), Some(MemberId(1)));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(leader(&metrics, &server), None);
        let (metrics, server) = leads(1);
        assert_eq!(leader(&metrics, &server), Some(MemberId(1)), "it is a quorum by itself");
    }

    #[test]
    fn only_a_member_changes_the_members_and_only_those_that_it_decided_on() {
        let server = leads(3).1;
        let observed = &server.membership_config;
        assert_eq!(may_change(observed, 0, MemberId(1)), Ok(()));
        assert!(matches!(may_change(observed, 7, MemberId(1)), Err(GroupError::Overtaken)));
        // Removed, it leads on for a moment.
        assert_eq!(may_change(observed, 0, MemberId(4)), Err(GroupError::NotLeader { leader: None }));
    }

    #[test]
    fn a_change_of_members_of_an_earlier_term_is_not_done_by_being_held() {
        let voters: BTreeSet<MemberId> = [1, 2, 3].map(MemberId).into();
        let progress = [(MemberId(2), Progress { matched: Some(7), last_heard: None })].into();
        let (membership_index, membership_term) = (7, 3);
        let view = |term, flushed| GroupView {
            term,
            membership_index,
            membership_term,
            flushed,
            progress: Arc::new(BTreeMap::clone(&progress)),
            ..GroupView::default()
        };
        assert!(view(3, Some(7)).is_held_by_most(&voters, MemberId(1)));
        assert!(!view(3, Some(6)).is_held_by_most(&voters, MemberId(1)));
        // The same holders, led anew: one that has another entry in that place may still win.
        assert!(!view(5, Some(8)).is_held_by_most(&voters, MemberId(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_has_no_leader_once_it_was_silent_for_two_election_time_outs() {
        let (metrics, mut server) = leads(3);
        (server.state, server.current_leader) = (ServerState::Follower, Some(2));
        let leader = |silence| view_of(&metrics, &server, silence, ELECTION).leader;
        assert_eq!(leader(Some(ELECTION * 2)), Some(MemberId(2)));
        assert_eq!(leader(Some(ELECTION * 2 + Duration::from_millis(1))), None);
        assert_eq!(leader(None), None, "it never spoke");
    }
}
