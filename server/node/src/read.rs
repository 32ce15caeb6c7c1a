//! Reads. A linearizable one asks the leader for an index that a quorum has just confirmed, and waits until this
//! member has applied it (ReadIndex, Ongaro's thesis 6.4). All reads that wait share one round.

use crate::node::{Inner, Node};
use ferretcd_raft::GroupError;
use ferretcd_state::{Permits, State};
use ferretcd_types::{Client, Epoch, Error, KeyRange, KeyValue, MemberId, Range, RangeReply};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

/// Reads that may wait for a round. More would only wait longer; they are refused.
pub(crate) const READS_WAITING_MAX: usize = 50_000;

/// How often an unanswered round is asked again (etcd's readIndexRetryTime).
const ROUND_RETRY: Duration = Duration::from_millis(500);

/// How long after a refusal it is asked again.
const ROUND_PAUSE: Duration = Duration::from_millis(50);

/// Waits for the next round's outcome.
pub(crate) type RoundWaiter = oneshot::Sender<Result<(), Error>>;

impl Node {
    /// Reads keys; linearizable unless the request says serializable.
    pub async fn range(&self, request: Range) -> Result<RangeReply, Error> {
        let begun = Instant::now();
        let reply = self.range_untimed(request).await;
        self.inner.metrics.proposed("Range", reply.is_ok(), begun.elapsed());
        reply
    }

    async fn range_untimed(&self, request: Range) -> Result<RangeReply, Error> {
        if !request.serializable {
            self.inner.linearize().await?;
        }
        let (state, begun) = (&self.inner.state, Instant::now());
        let may = |permits: &Permits, client: &Client| permits.check_range(client, &request);
        let read = || {
            // One key comes from memory in microseconds, mostly. To count keys, or to find the first of an order, is to visit all
            // of the range.
            if request.range.is_single() {
                return state.range(&request);
            }
            ferretcd_raft::blocking(|| state.range(&request))
        };
        let reply = self.guarded(may, read).await;
        self.inner.metrics.ranged(reply.is_ok(), begun.elapsed());
        reply
    }
}

/// A read that is answered in pages, all at one revision.
#[derive(Clone)]
pub struct RangePages {
    state: Arc<State>,
    /// What is still to come.
    rest: KeyRange,
    /// The revision of all pages.
    at: i64,
    keys_only: bool,
    /// The store's revision when the read began.
    revision: i64,
}

impl std::fmt::Debug for RangePages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RangePages").field("rest", &self.rest).field("at", &self.at).finish_non_exhaustive()
    }
}

impl Node {
    /// Begins to read a range in pages in key order; limit, order and filters of the request are the caller's business.
    /// Linearizable unless the request says serializable.
    pub async fn range_pages(&self, request: Range) -> Result<RangePages, Error> {
        if !request.serializable {
            self.inner.linearize().await?;
        }
        let state = self.inner.state.clone();
        // The pages are those of one revision: who may begin may go on.
        let may = |permits: &Permits, client: &Client| permits.check_range(client, &request);
        let revision = self.guarded(may, || Ok(state.revision())).await?;
        let at = if request.revision > 0 { request.revision } else { revision };
        Ok(RangePages { state, rest: request.range, at, keys_only: request.keys_only, revision })
    }
}

impl RangePages {
    /// The store's revision when the read began: what the answer's header says.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The next keys, and whether there are more after them. [`Error::Compacted`] when a compaction has overtaken the
    /// read.
    pub fn next(&mut self, limit: usize) -> Result<(Vec<KeyValue>, bool), Error> {
        let (kvs, more) =
            ferretcd_raft::blocking(|| self.state.range_page(&self.rest, self.at, limit, self.keys_only))?;
        if let Some(last) = kvs.last().filter(|_| more) {
            self.rest.start = [last.key.as_ref(), b"\0"].concat().into();
        }
        Ok((kvs, more))
    }

    /// How many keys the pages to come hold.
    pub fn count_left(&self) -> Result<i64, Error> {
        let request = Range { range: self.rest.clone(), revision: self.at, count_only: true, ..Range::default() };
        Ok(ferretcd_raft::blocking(|| self.state.range(&request))?.count)
    }
}

impl Inner {
    /// Returns when this member has applied everything that was committed before the call.
    pub(crate) async fn linearize(&self) -> Result<(), Error> {
        self.founded().await?;
        let (tx, rx) = oneshot::channel();
        self.reads.try_send(tx).map_err(|_| Error::TooManyRequests)?;
        rx.await.unwrap_or(Err(Error::Stopped))
    }

    async fn round(&self) -> Result<(), Error> {
        let deadline = Instant::now() + self.timing.request_timeout();
        // Who was asked may still answer, and it holds for these reads: by a long or a busy wire every answer may take longer
        // than the wait. One more each half second until the deadline.
        let mut asked = FuturesUnordered::new();
        let index = loop {
            let leader = self.leader_by(deadline).await?;
            let again = (Instant::now() + ROUND_RETRY).min(deadline);
            self.metrics.read_index_rounds.inc();
            asked.push(self.ask_index(leader));
            match timeout_at(again, asked.next()).await {
                Ok(Some(Ok(index))) => break index,
                Ok(Some(Err(Error::Stopped))) => return Err(Error::Stopped),
                _ if Instant::now() >= deadline => return Err(Error::Timeout),
                // No leader any more, a quorum that is slow, a connection that broke: ask again until the deadline.
                Ok(_) => tokio::time::sleep_until(again.min(Instant::now() + ROUND_PAUSE)).await,
                Err(_) => {}
            }
        };
        self.wait_applied(index, deadline).await
    }

    /// Asks who leads for an index that it has confirmed since.
    async fn ask_index(&self, leader: MemberId) -> Result<u64, Error> {
        if leader == self.identity.member {
            return self.group.read_index().await.map_err(|e| match e {
                GroupError::Fatal(_) => Error::Stopped,
                GroupError::NotLeader { .. } => Error::NotLeader,
                _ => Error::Timeout,
            });
        }
        let node = self.view().node(leader).cloned().ok_or(Error::NotLeader)?;
        self.group.peers().read_index(leader, &node).await
    }

    /// Waits until the first entry of the history is applied: before it there is no cluster to serve.
    pub(crate) async fn founded(&self) -> Result<(), Error> {
        if self.identity.epoch() != Epoch::UNKNOWN && self.state.epoch() != Epoch::UNKNOWN {
            return Ok(());
        }
        let mut applied = self.applied.subscribe();
        let known = applied.wait_for(|_| self.state.epoch() != Epoch::UNKNOWN);
        match tokio::time::timeout(self.timing.request_timeout(), known).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::Stopped),
            Err(_) => Err(Error::Timeout),
        }
    }

    /// Waits until this member has applied an index.
    pub(crate) async fn wait_applied(&self, index: u64, deadline: Instant) -> Result<(), Error> {
        let mut applied = self.applied.subscribe();
        match timeout_at(deadline, applied.wait_for(|a| *a >= index)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::Stopped),
            Err(_) => Err(Error::TimeoutWaitApplied),
        }
    }
}

/// Runs rounds: one at a time, each for all reads that came before it began.
pub(crate) async fn rounds(inner: Arc<Inner>, mut waiting: mpsc::Receiver<RoundWaiter>) {
    let mut batch = Vec::new();
    loop {
        let more = tokio::select! {
            more = waiting.recv_many(&mut batch, READS_WAITING_MAX) => more,
            () = inner.stop.cancelled() => 0,
        };
        if more == 0 {
            return;
        }
        let outcome = tokio::select! {
            outcome = inner.round() => outcome,
            // Who waits hears that this member stops.
            () = inner.stop.cancelled() => return,
        };
        match outcome {
            Ok(()) => {}
            Err(Error::Timeout) => inner.metrics.slow_read_indexes.inc(),
            Err(_) => inner.metrics.read_indexes_failed.inc(),
        }
        for waiter in batch.drain(..) {
            let _ = waiter.send(outcome.clone());
        }
    }
}
