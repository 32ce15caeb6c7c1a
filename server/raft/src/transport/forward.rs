//! Proposals on their way from a follower to the leader: one stream, and those that wait at one moment in one message. A call for
//! each would take both members longer than the rest of a small write.

use crate::offer::{self, together};
use crate::transport::client::{LEADER_CALL_TIMEOUT, MESSAGE_BYTES_MAX, Peers, client, told_by_another, undelivered};
use bytes::Bytes;
use ferretcd_proto::peer as pb;
use ferretcd_types::{Error, MemberId};
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Messages that await their answers, at a megabyte at most: when a leader is slow, further proposals wait and become fewer and
/// larger messages.
pub(crate) const MESSAGES_IN_FLIGHT_MAX: usize = 64;

/// The largest proposal that a message holds.
const PROPOSAL_BYTES_MAX: usize = MESSAGE_BYTES_MAX - (1 << 20);

/// How long a stream stays open with nothing on it: a member that stops waits a while for those that it serves.
const IDLE: Duration = Duration::from_secs(5);

/// What is let go once a proposal is answered, or lost, or nobody waits for it.
pub type Held = Arc<dyn Any + Send + Sync>;

type Answer = oneshot::Sender<Result<(), Error>>;

/// A proposal for the leader.
pub(crate) struct Offer {
    proposal: Bytes,
    answer: Answer,
    held: Held,
}

/// A message whose answer is awaited.
struct Sent {
    left: Instant,
    proposals: Vec<(Answer, Held)>,
}

impl Sent {
    /// Tells all of its proposals the same.
    fn lost(self, why: &Error) {
        for (answer, _) in self.proposals {
            let _ = answer.send(Err(why.clone()));
        }
    }

    /// Tells those of one message how it went.
    fn settle(self, answer: pb::ForwardResponse) {
        let mut refused = answer.refusals.into_iter().peekable();
        for (at, (answer, _)) in self.proposals.into_iter().enumerate() {
            let refusal = refused.next_if(|refusal| refusal.at as usize == at);
            let _ = answer.send(refusal.map_or(Ok(()), |refusal| Err(told_by_another(&refusal.why))));
        }
    }
}

/// Those of one stream, by their numbers: the first is the oldest.
type Pending = BTreeMap<u64, Sent>;

impl Peers {
    /// Has the leader put a proposal in the log. An error of kind [`Error::NotLeader`] means that it was not taken
    /// up; any other may mean that it was. What is `held` is let go when the outcome is known, which may be after the caller has gone.
    pub async fn propose(&self, leader: MemberId, proposal: Bytes, held: Held) -> Result<(), Error> {
        // It would end the stream for all.
        if proposal.len() > PROPOSAL_BYTES_MAX {
            return Err(Error::RequestTooLarge);
        }
        let (answer, answered) = oneshot::channel();
        let way = self.way_to(leader, |peers, offers| drop(tokio::spawn(forward(peers, leader, offers))));
        let outcome = async {
            way.send(Offer { proposal, answer, held }).await.map_err(|_| Error::Stopped)?;
            answered.await.unwrap_or(Err(Error::Stopped))
        };
        tokio::time::timeout(LEADER_CALL_TIMEOUT, outcome).await.unwrap_or(Err(Error::Timeout))
    }
}

/// Sends what is offered to one member, over one stream after another, until nobody can offer anything any more.
async fn forward(peers: Peers, leader: MemberId, mut offers: mpsc::Receiver<Offer>) {
    while let Some(first) = offers.recv().await {
        let mut pending = Pending::new();
        let ended = one_stream(&peers, leader, first, &mut offers, &mut pending).await;
        // One that was surely not taken up may be tried again, elsewhere by then.
        let lost = match ended {
            Ok(()) => Error::TimeoutConnectionLost,
            Err(status) => {
                tracing::debug!(%leader, %status, "the stream of proposals to the leader ended");
                peers.not_reached(leader, &status);
                if undelivered(&status) { Error::NotLeader } else { Error::TimeoutConnectionLost }
            }
        };
        pending.into_values().for_each(|sent| sent.lost(&lost));
    }
}

/// One stream, until it ends. What was not answered on it stays in `pending`.
async fn one_stream(
    peers: &Peers,
    leader: MemberId,
    first: Offer,
    offers: &mut mpsc::Receiver<Offer>,
    pending: &mut Pending,
) -> Result<(), Status> {
    let Some(channel) = peers.channel_now(leader) else {
        // Removed just now, or not heard of yet.
        let _ = first.answer.send(Err(Error::NotLeader));
        return Ok(());
    };
    // A place for each message that awaits its answer, so that to send one never waits.
    let (tx, rx) = mpsc::channel(MESSAGES_IN_FLIGHT_MAX);
    let request = peers.request(leader, ReceiverStream::new(rx));
    let mut client = client(channel);
    let opening = async move { client.forward(request).await.map(tonic::Response::into_inner) };
    let mut answers = stream::once(opening.boxed()).try_flatten();
    let answered = |pending: &mut Pending, answer: pb::ForwardResponse| {
        peers.answered(leader.0);
        if let Some(sent) = pending.remove(&answer.number) {
            sent.settle(answer);
        }
    };
    let (mut first, mut number) = (Some(first), 0);
    loop {
        let offer = if let Some(first) = first.take() {
            first
        } else {
            // A leader that answers pings and nothing else must not keep what its callers have given up.
            let oldest = pending.first_key_value().map(|(_, sent)| sent.left + LEADER_CALL_TIMEOUT);
            tokio::select! {
                biased;
                answer = answers.next() => match answer.transpose()? {
                    Some(answer) => {
                        answered(pending, answer);
                        continue;
                    }
                    None => return Ok(()),
                },
                offer = offers.recv(), if pending.len() < MESSAGES_IN_FLIGHT_MAX => match offer {
                    Some(offer) => offer,
                    None => break,
                },
                () = tokio::time::sleep_until(oldest.unwrap_or_else(|| Instant::now() + IDLE)) => match oldest {
                    Some(_) => return Ok(()),
                    None => break,
                },
            }
        };
        let offers = together(offer, offers, |offer| offer.proposal.len()).await;
        let wanted = offers.into_iter().filter(|offer| !offer.answer.is_closed());
        let (proposals, awaited): (Vec<_>, Vec<_>) =
            wanted.map(|Offer { proposal, answer, held }| (proposal, (answer, held))).unzip();
        if proposals.is_empty() {
            continue;
        }
        number += 1;
        let sent = Sent { left: Instant::now(), proposals: awaited };
        if tx.try_send(pb::ForwardRequest { number, proposals }).is_err() {
            // The other side has ended the stream, and this has not left.
            sent.lost(&Error::NotLeader);
            break;
        }
        pending.insert(number, sent);
    }
    // Heard to its end: see `leader_call`.
    drop(tx);
    let rest = async {
        while let Some(answer) = answers.next().await.transpose()? {
            answered(pending, answer);
        }
        Ok(())
    };
    tokio::time::timeout(LEADER_CALL_TIMEOUT, rest).await.unwrap_or(Ok(()))
}

/// What the leader answers to one message.
pub(crate) fn outcomes(number: u64, outcomes: Vec<Result<(), Error>>) -> pb::ForwardResponse {
    let refusal = |(at, outcome): (usize, Result<(), Error>)| {
        // A message has far fewer than 2^32 proposals: each is a few bytes of it.
        outcome.err().map(|e| pb::ForwardRefusal { at: at as u32, why: e.to_string() })
    };
    pb::ForwardResponse { number, refusals: outcomes.into_iter().enumerate().filter_map(refusal).collect() }
}

/// A queue of offers for one member.
pub(crate) fn queue() -> (mpsc::Sender<Offer>, mpsc::Receiver<Offer>) {
    mpsc::channel(offer::WAITING_MAX)
}
