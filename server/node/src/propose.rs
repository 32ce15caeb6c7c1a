//! From a verb to its reply: settle, check, put into the leader's log, wait until this member has applied it.

use crate::maintenance::CHUNK_OVERHEAD_BYTES;
use crate::metrics::Inflight;
use crate::node::{Inner, Node};
use bytes::Bytes;
use ferretcd_raft::GroupError;
use ferretcd_state::Permits;
use ferretcd_types::{
    Alarm, AlarmKind, Caller, Client, Command, Error, LeaseGrant, LeaseGrantReply, LeaseId, MemberId, Proposal,
    Revised, SetAlarm, Txn, TxnOp, TxnReply, Verb, codec, limits,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

/// Proposals under way at once on one member. etcd bounds the gap between committed and applied at 5000 entries; this
/// bounds what waits before that, at a few kilobytes each.
pub(crate) const PROPOSALS_MAX: usize = 20_000;

/// Entries that may be committed and not yet applied before new proposals are refused (etcd's maxGapBetweenApplyAndCommitIndex).
const APPLY_GAP_MAX: u64 = 5000;

/// How long to wait before a leader is asked again after it said that it is none.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

impl Node {
    /// Puts a verb in the log and waits until this member has applied it.
    pub async fn propose<V: Verb>(&self, verb: V) -> Result<V::Reply, Error> {
        let command = verb.into();
        self.inner.founded().await?;
        self.inner.check_room(&command).await?;
        let caller = self.caller().await?;
        V::reply(self.inner.propose_as(caller, command, self.inner.timing.request_timeout()).await?)
    }

    /// A transaction; one that only reads does not go through the log.
    pub async fn txn(&self, request: Txn) -> Result<TxnReply, Error> {
        let plain_reads = request.success.iter().chain(&request.failure).all(|op| matches!(op, TxnOp::Range(_)));
        if !plain_reads {
            return self.propose(request).await;
        }
        let serializable =
            request.success.iter().chain(&request.failure).all(|op| matches!(op, TxnOp::Range(r) if r.serializable));
        if !serializable {
            self.inner.linearize().await?;
        }
        let state = &self.inner.state;
        let may = |permits: &Permits, client: &Client| permits.check_read_txn(client, &request);
        self.guarded(may, || ferretcd_raft::blocking(|| state.read_txn(&request))).await
    }

    /// Drops history up to a revision; `physical` waits until the records are gone.
    pub async fn compact(&self, revision: i64, physical: bool) -> Result<Revised, Error> {
        let reply = self.propose(ferretcd_types::Compact { revision }).await?;
        if physical {
            let state = self.inner.state.clone();
            let place = self.inner.waiting_compactions.clone().acquire_owned().await.map_err(Error::internal)?;
            let waits = move || {
                let _place = place;
                state.wait_compacted(revision)
            };
            tokio::task::spawn_blocking(waits).await.map_err(Error::internal)??;
        }
        Ok(reply)
    }

    /// Creates a lease; ID 0 lets this member choose.
    pub async fn lease_grant(&self, id: LeaseId, ttl: i64) -> Result<LeaseGrantReply, Error> {
        if ttl > limits::LEASE_TTL_SECONDS_MAX {
            return Err(Error::LeaseTtlTooLarge);
        }
        let id = if id.is_none() { crate::ids::lease() } else { id };
        self.propose(LeaseGrant { id, ttl: ttl.max(self.inner.lease_ttl_min()) }).await
    }
}

impl Inner {
    /// The shortest lease: it must outlive an election, or its holder could not renew it in time (etcd's
    /// ceil(1.5 elections)).
    pub(crate) fn lease_ttl_min(&self) -> i64 {
        (self.timing.election.as_millis() as u64 * 3).div_ceil(2 * 1000) as i64
    }

    /// Refuses what needs room when the quota is used up, and raises the alarm, as etcd does before it proposes.
    async fn check_room(&self, command: &Command) -> Result<(), Error> {
        let Some(quota) = self.limits.quota_bytes else { return Ok(()) };
        let cost = cost(command);
        // Leases, too: who forgets them would use up the disk with them, unnoticed.
        let used = self.state.logical_bytes() + LEASE_COST_BYTES * self.state.lease_count() as u64;
        if cost == 0 || used + cost <= quota {
            return Ok(());
        }
        let alarm = Alarm { member: self.identity.member, kind: AlarmKind::NoSpace };
        if !self.state.alarms().contains(&alarm) {
            tracing::warn!(
                quota_bytes = quota,
                used_bytes = used,
                "the quota is used up: raising the NOSPACE alarm; compact, then disarm the alarm, or raise --quota-backend-bytes"
            );
            self.propose(Command::SetAlarm(SetAlarm { alarm, raised: true })).await?;
        }
        Err(Error::NoSpace)
    }

    pub(crate) async fn propose(&self, command: Command) -> Result<ferretcd_types::Reply, Error> {
        self.propose_within(command, self.timing.request_timeout()).await
    }

    /// As [`Inner::propose`], for commands whose applying may take longer than a request's usual time.
    pub(crate) async fn propose_within(
        &self,
        command: Command,
        time: Duration,
    ) -> Result<ferretcd_types::Reply, Error> {
        self.propose_as(Caller::Member, command, time).await
    }

    /// As [`Inner::propose`], for what this member decides as the leader of a term: another leader may know better, so it is not
    /// handed on, and a later term's may be this member, which has not looked again.
    pub(crate) async fn propose_here(&self, term: u64, command: Command) -> Result<ferretcd_types::Reply, Error> {
        let here = Some((self.identity.member, term));
        self.propose_to(here, Caller::Member, command, self.timing.request_timeout()).await
    }

    async fn propose_as(
        &self,
        caller: Caller,
        command: Command,
        time: Duration,
    ) -> Result<ferretcd_types::Reply, Error> {
        self.propose_to(None, caller, command, time).await
    }

    /// To the leader of this term alone, if one is named.
    async fn propose_to(
        &self,
        only: Option<(MemberId, u64)>,
        caller: Caller,
        command: Command,
        time: Duration,
    ) -> Result<ferretcd_types::Reply, Error> {
        let permit = self.proposals.clone().try_acquire_owned();
        let permit = Arc::new(permit.map_err(|_| Error::TooManyRequests)?);
        {
            let view = self.view();
            if view.committed > view.applied + APPLY_GAP_MAX {
                return Err(Error::TooManyRequests);
            }
        }
        let (needed, reached) = (command.log_format(), self.state.log_format());
        if needed > reached {
            return Err(Error::Internal(format!(
                "a log entry of the kind {} needs log format {needed}, and the cluster is at {reached}: start all members \
                 with this release, and see that they can be reached",
                crate::metrics::operation(&command)
            )));
        }
        let (begun, operation) = (Instant::now(), crate::metrics::operation(&command));
        let proposal = Proposal { id: self.request_ids.next(), caller, command };
        let bytes = codec::encode_proposal(&proposal);
        let more = if matches!(proposal.command, Command::RestoreChunk(_)) { CHUNK_OVERHEAD_BYTES } else { 0 };
        if bytes.len() > self.limits.max_request_bytes.saturating_add(more) {
            return Err(Error::RequestTooLarge);
        }
        let mut waiting = self.waiters.register(proposal.id);
        let deadline = Instant::now() + time;
        let outcome = tokio::select! {
            // The reply wins over the leader's acknowledgement: it is what both are about.
            biased;
            outcome = waiting.outcome() => outcome,
            error = self.submit(only, &bytes, deadline, &permit) => Err(error),
            // By now no client waits: hundreds of leases that end together would take minutes without a quorum.
            () = self.stop.cancelled() => Err(Error::Stopped),
        };
        self.metrics.proposed(operation, outcome.is_ok(), begun.elapsed());
        if outcome.is_err() {
            self.metrics.proposals_failed.inc();
        }
        outcome
    }

    /// Hands the proposal to the leader, again while nobody took it up. Returns only when there is no hope of a reply
    /// in time; after an acknowledgement it waits for the reply to win.
    async fn submit(
        &self,
        only: Option<(MemberId, u64)>,
        bytes: &Bytes,
        deadline: Instant,
        permit: &Arc<OwnedSemaphorePermit>,
    ) -> Error {
        let mut leader_failed = false;
        // As in etcd, one that waits for a leader to hand it to does not count yet.
        let mut pending = None;
        loop {
            let leader = match self.leader_by(deadline).await {
                Ok(leader) => leader,
                Err(_) if leader_failed => return Error::TimeoutLeaderFail,
                Err(Error::Timeout) if pending.is_none() => return Error::TimeoutNoLeader,
                Err(e) => return e,
            };
            if only.is_some_and(|only| only != (leader, self.view().term)) {
                return Error::NotLeader;
            }
            pending.get_or_insert_with(|| Inflight::new(&self.metrics.proposals_pending));
            let taken = if leader == self.identity.member {
                match timeout_at(deadline, self.group.propose(bytes)).await {
                    Err(_) => return Error::Timeout,
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(GroupError::NotLeader { .. } | GroupError::Busy(_) | GroupError::Overtaken)) => {
                        Err(Error::NotLeader)
                    }
                    Ok(Err(GroupError::Unknown | GroupError::NoQuorum)) => {
                        leader_failed = true;
                        Ok(())
                    }
                    Ok(Err(GroupError::Fatal(e))) => {
                        tracing::error!("raft has stopped: {e}");
                        return Error::Stopped;
                    }
                }
            } else {
                self.group.peers().propose(leader, bytes.clone(), permit.clone()).await
            };
            match taken {
                // In the log, or perhaps in it: the reply comes when it is applied.
                Ok(()) => {
                    tokio::time::sleep_until(deadline).await;
                    let otherwise = Error::TimeoutWaitApplied;
                    return if leader_failed {
                        Error::TimeoutLeaderFail
                    } else {
                        blame(leader, self.view().leader, otherwise)
                    };
                }
                Err(Error::NotLeader) if only.is_some() => return Error::NotLeader,
                Err(Error::NotLeader) => {
                    if timeout_at(deadline, tokio::time::sleep(RETRY_PAUSE)).await.is_err() {
                        return Error::Timeout;
                    }
                }
                Err(Error::TimeoutConnectionLost | Error::Timeout) => {
                    // The leader may have it. Wait; a client that retries does so knowing that.
                    tokio::time::sleep_until(deadline).await;
                    return blame(leader, self.view().leader, Error::TimeoutConnectionLost);
                }
                Err(e) => return e,
            }
        }
    }

    /// A moment before the leader is looked for again; refused when there is no time left.
    pub(crate) async fn pause(&self, deadline: Instant) -> Result<(), Error> {
        if Instant::now() >= deadline {
            return Err(Error::Timeout);
        }
        tokio::time::sleep(RETRY_PAUSE).await;
        Ok(())
    }

    /// The leader, as soon as there is one.
    pub(crate) async fn leader_by(&self, deadline: Instant) -> Result<MemberId, Error> {
        let mut view = self.group.view();
        let found = timeout_at(deadline, view.wait_for(|v| v.leader.is_some() || v.fatal.is_some())).await;
        match found {
            Err(_) => Err(Error::Timeout),
            Ok(Err(_)) => Err(Error::Stopped),
            Ok(Ok(view)) => view.leader.ok_or(Error::Stopped),
        }
    }
}

/// What a client is told whose proposal went to the leader `asked` and got no reply in time: as in etcd, a leader that lost
/// its place meanwhile is blamed before the connection to it, and where there is none `now`, nobody is.
fn blame(asked: MemberId, now: Option<MemberId>, otherwise: Error) -> Error {
    match now {
        Some(now) if now == asked => otherwise,
        Some(_) => Error::TimeoutLeaderFail,
        None => Error::Timeout,
    }
}

/// Physical compactions that are waited for at once; others wait for these. A snapshot that nobody reads holds them all up, and
/// each has a thread, of which tokio has 512 for all that waits for a disk.
pub(crate) const COMPACTION_WAITS_MAX: usize = 8;

/// What a lease takes, as etcd estimates it.
const LEASE_COST_BYTES: u64 = 64;

/// Bytes that a command may add, as etcd estimates them.
fn cost(command: &Command) -> u64 {
    const PUT: u64 = 256;
    fn ops(list: &[TxnOp]) -> u64 {
        list.iter()
            .map(|op| match op {
                TxnOp::Put(p) => PUT + (p.key.len() + p.value.len()) as u64,
                TxnOp::Txn(t) => ops(&t.success).max(ops(&t.failure)),
                TxnOp::Range(_) | TxnOp::DeleteRange(_) => 0,
            })
            .sum()
    }
    match command {
        Command::Put(p) => PUT + (p.key.len() + p.value.len()) as u64,
        Command::Txn(t) => ops(&t.success).max(ops(&t.failure)),
        Command::LeaseGrant(_) => LEASE_COST_BYTES,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferretcd_types::{DeleteRange, Put};

    #[test]
    fn a_leader_that_was_lost_is_blamed_before_the_connection_to_it() {
        let (asked, other) = (MemberId(1), MemberId(2));
        let lost = || Error::TimeoutConnectionLost;
        assert_eq!(blame(asked, Some(other), lost()), Error::TimeoutLeaderFail);
        assert_eq!(blame(asked, None, lost()), Error::Timeout);
        assert_eq!(blame(asked, Some(asked), lost()), lost());
    }

    #[test]
    fn only_what_grows_the_store_costs() {
        let put = Put { key: "k".into(), value: "val".into(), ..Put::default() };
        assert_eq!(cost(&Command::Put(put.clone())), 260);
        assert_eq!(cost(&Command::DeleteRange(DeleteRange::default())), 0);
        let txn = Txn {
            success: vec![TxnOp::Put(put.clone()), TxnOp::Put(put)],
            failure: vec![TxnOp::DeleteRange(DeleteRange::default())],
            ..Txn::default()
        };
        assert_eq!(cost(&Command::Txn(txn)), 520, "the dearer branch counts");
    }
}
