//! Who waits for which proposal. The reply comes when this member's own state machine applies it, on whichever member
//! it was put into the log: a client therefore reads what it wrote from the member that it wrote to.

use ferretcd_types::{Error, Reply, RequestId};
use parking_lot::Mutex;
use std::collections::HashMap;
use tokio::sync::oneshot;

/// Shards of the table: proposals come from all workers at once.
const SHARDS: usize = 16;

type Outcome = Result<Reply, Error>;

/// The table of waiting proposals. Bounded by the number of proposals that may be under way.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    shards: [Mutex<HashMap<RequestId, oneshot::Sender<Outcome>>>; SHARDS],
}

/// A place in the table, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Waiting<'a> {
    table: &'a Waiters,
    id: RequestId,
    reply: oneshot::Receiver<Outcome>,
}

impl Waiters {
    fn shard(&self, id: RequestId) -> &Mutex<HashMap<RequestId, oneshot::Sender<Outcome>>> {
        &self.shards[(id.0 as usize) % SHARDS]
    }

    pub(crate) fn register(&self, id: RequestId) -> Waiting<'_> {
        let (tx, reply) = oneshot::channel();
        self.shard(id).lock().insert(id, tx);
        Waiting { table: self, id, reply }
    }

    /// Wakes whoever waits; nobody does on the other members.
    pub(crate) fn resolve(&self, id: RequestId, outcome: Outcome) {
        if let Some(tx) = self.shard(id).lock().remove(&id) {
            let _ = tx.send(outcome);
        }
    }
}

impl Waiting<'_> {
    /// The outcome, once it is there. May be polled again after it was dropped half way.
    pub(crate) async fn outcome(&mut self) -> Outcome {
        (&mut self.reply).await.unwrap_or(Err(Error::Stopped))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.table.shard(self.id).lock().remove(&self.id);
    }
}
