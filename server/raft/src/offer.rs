//! Proposals on their way into the log: those that wait at one moment go on together, since openraft takes as long for a message
//! with a hundred of them as for one.

use crate::entry;
use crate::group::{GroupError, RawRaft, fatal, write_error};
use crate::types::{Data, log_pos};
use ferretcd_types::LogPos;
use futures::StreamExt;
use openraft::errors::RaftError;
use tokio::sync::{mpsc, oneshot};

/// Proposals that wait to be handed on; who comes then waits for a place. A few kilobytes each, as a rule, and the node counts
/// those that its clients have under way.
pub(crate) const WAITING_MAX: usize = 4096;

/// Most proposals that go together: what openraft sends a follower in one request.
const TOGETHER_MAX: usize = 512;

/// Most bytes that go together, but for one larger proposal: a request to a follower is as large.
const TOGETHER_BYTES_MAX: usize = 1 << 20;

/// A proposal that is to be put in this member's log, if it leads.
pub(crate) struct Offer {
    data: Data,
    answer: oneshot::Sender<Result<LogPos, GroupError>>,
}

impl Offer {
    /// And where its answer comes: when it is committed and applied here, or refused.
    pub fn new(proposal: &[u8]) -> (Offer, oneshot::Receiver<Result<LogPos, GroupError>>) {
        let (answer, answered) = oneshot::channel();
        (Offer { data: Data(entry::normal(proposal)), answer }, answered)
    }
}

/// What waits behind the first one now.
pub(crate) async fn together<T>(first: T, waiting: &mut mpsc::Receiver<T>, bytes: impl Fn(&T) -> usize) -> Vec<T> {
    // Whoever can run and is about to propose does so first: with a single client nobody can, and nothing is lost.
    tokio::task::yield_now().await;
    let mut sum = bytes(&first);
    let mut all = vec![first];
    while all.len() < TOGETHER_MAX && sum < TOGETHER_BYTES_MAX {
        let Ok(next) = waiting.try_recv() else { break };
        sum += bytes(&next);
        all.push(next);
    }
    all
}

/// Hands offers to openraft, until nobody can make one any more.
pub(crate) async fn hand_over(raft: RawRaft, mut offers: mpsc::Receiver<Offer>) {
    while let Some(first) = offers.recv().await {
        let offers = together(first, &mut offers, |offer| offer.data.0.len()).await;
        // Nobody waits for the others any more, and nobody knows them.
        let wanted = offers.into_iter().filter(|offer| !offer.answer.is_closed());
        let (data, answers): (Vec<_>, Vec<_>) = wanted.map(|offer| (offer.data, offer.answer)).unzip();
        if data.is_empty() {
            continue;
        }
        match raft.client_write_many(data).await {
            Ok(written) => drop(tokio::spawn(async move {
                // When raft stops it ends before its time, and panics if it is asked once more.
                let mut written = written.fuse();
                for answer in answers {
                    let outcome = match written.next().await {
                        Some(Ok(Ok(written))) => Ok(log_pos(&written.log_id)),
                        Some(Ok(Err(e))) => Err(write_error(RaftError::APIError(e))),
                        Some(Err(e)) => Err(fatal(e)),
                        None => Err(fatal("it was not told how a write ended")),
                    };
                    // Who proposed may have heard from the state machine, or have gone.
                    let _ = answer.send(outcome);
                }
            })),
            Err(e) => {
                for answer in answers {
                    let _ = answer.send(Err(fatal(&e)));
                }
            }
        }
    }
}
