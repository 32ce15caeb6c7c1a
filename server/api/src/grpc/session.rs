//! What Lock and Election are made of: keys under a name, each on a lease, in the order in which they were created. The
//! oldest one holds the lock, or leads.

use bytes::Bytes;
use ferretcd_node::{Node, WatchCreate, WatchMessage, WatchStream};
use ferretcd_types::{
    Compare, CompareResult, CompareTarget, Error, Event, EventKind, KeyRange, KeyValue, LeaseId, Put, Range, SortOrder,
    SortTarget, Txn, TxnOp,
};
use tonic::Status;

use crate::status;

/// Seconds of a lease that the server grants for a client that has none (etcd's default session). Nobody renews it after
/// the call unless the client does.
const SESSION_SECONDS: i64 = 60;

/// A refusal of these services. etcd implements them with its own client, whose errors arrive as Unknown; the texts are
/// the same. Who waits on an etcd that stops finds the connection closed, which is Unavailable: other members are tried.
pub fn refusal(error: Error) -> Status {
    match error {
        Error::Stopped => status::from_error(error),
        other => Status::unknown(other.to_string()),
    }
}

/// The lease of a call: the client's, or a fresh one for 0. Whether it exists shows when something is put on it.
pub async fn lease(node: &Node, asked: i64) -> Result<LeaseId, Error> {
    match asked {
        0 => Ok(node.lease_grant(LeaseId::NONE, SESSION_SECONDS).await?.id),
        id => Ok(LeaseId(id)),
    }
}

/// All keys under a name.
pub fn queue(name: &[u8]) -> KeyRange {
    KeyRange::prefix(&[name, b"/"].concat())
}

/// The key of a lease under a name.
pub fn key(name: &[u8], lease: LeaseId) -> Bytes {
    // Go prints a negative number with its sign.
    let sign = if lease.0 < 0 { "-" } else { "" };
    [name, format!("/{sign}{:x}", lease.0.unsigned_abs()).as_bytes()].concat().into()
}

/// The oldest key of a queue.
pub fn oldest(queue: KeyRange) -> Range {
    Range { range: queue, limit: 1, sort_target: SortTarget::Create, sort_order: SortOrder::Ascend, ..Range::default() }
}

/// Does `success` if the key was created at a revision (0: if there is no such key), else `failure`.
pub fn if_created(key: &Bytes, at: i64, success: Vec<TxnOp>, failure: Vec<TxnOp>) -> Txn {
    let compare = Compare {
        range: KeyRange::single(key.clone()),
        result: CompareResult::Equal,
        target: CompareTarget::Create(at),
    };
    Txn { compares: vec![compare], success, failure }
}

/// Puts a key on a lease.
pub fn put(key: &Bytes, value: Bytes, lease: LeaseId) -> TxnOp {
    TxnOp::Put(Put { key: key.clone(), value, lease, ..Put::default() })
}

/// Deletes the key of a place in the queue, if it is still the same one.
pub fn give_up(key: &Bytes, created: i64) -> Txn {
    let delete = ferretcd_types::DeleteRange { range: KeyRange::single(key.clone()), prev_kv: false };
    if_created(key, created, vec![TxnOp::DeleteRange(delete)], Vec::new())
}

/// A place in the queue that is given up unless it is kept: a client that goes away must not be waited for.
#[derive(Debug)]
pub struct Claim {
    node: Node,
    key: Bytes,
    created: i64,
    kept: bool,
}

impl Claim {
    /// The place of a key that was created at a revision.
    pub fn new(node: &Node, key: &Bytes, created: i64) -> Self {
        Claim { node: node.clone(), key: key.clone(), created, kept: false }
    }

    /// It stays.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (node, txn) = (self.node.clone(), give_up(&self.key, self.created));
        runtime.spawn(async move {
            // If this fails, the place ends with its lease.
            if let Err(e) = node.txn(txn).await {
                tracing::debug!("a place in a queue whose client went away could not be given up: {e}");
            }
        });
    }
}

/// Waits until no key is left in the queue that was created before this revision. Looks at the one just ahead only, so
/// that a key that goes away wakes one waiter.
pub async fn wait_for_turn(node: &Node, queue: &KeyRange, created: i64) -> Result<(), Error> {
    loop {
        let ahead = Range {
            range: queue.clone(),
            limit: 1,
            sort_target: SortTarget::Create,
            sort_order: SortOrder::Descend,
            max_create_revision: created - 1,
            ..Range::default()
        };
        let reply = node.range(ahead).await?;
        let Some(ahead) = reply.kvs.into_iter().next() else { return Ok(()) };
        wait_deleted(node, ahead.key, reply.revision + 1).await?;
    }
}

/// Returns when the key was deleted at or after a revision, or may have been.
async fn wait_deleted(node: &Node, key: Bytes, from: i64) -> Result<(), Error> {
    let mut watch = watch(node, KeyRange::single(key), from);
    loop {
        match next(&mut watch).await? {
            Seen::Events(_, events) if events.iter().any(|e| e.kind == EventKind::Delete) => return Ok(()),
            Seen::Events(..) => {}
            Seen::Lost => return Ok(()),
        }
    }
}

/// What a watcher says.
pub enum Seen {
    /// Events, complete up to a revision.
    Events(i64, Vec<Event>),
    /// A compaction took away what it was to see: look at the keys again.
    Lost,
}

/// Watches keys from a revision on.
pub fn watch(node: &Node, range: KeyRange, from: i64) -> WatchStream {
    let mut watch = node.watch_stream();
    watch.create(WatchCreate { range, start_revision: from, ..WatchCreate::default() });
    watch
}

/// The next thing that a watcher of [`watch`] says.
pub async fn next(watch: &mut WatchStream) -> Result<Seen, Error> {
    loop {
        match watch.next().await {
            None => return Err(Error::Stopped),
            Some(WatchMessage::Events { revision, events, .. }) => {
                return Ok(Seen::Events(revision, events.into_iter().map(|(event, _)| event).collect()));
            }
            Some(WatchMessage::Cancelled { .. } | WatchMessage::CreateFailed { .. }) => return Ok(Seen::Lost),
            Some(WatchMessage::Refused { error, .. }) => return Err(error),
            Some(WatchMessage::Created { .. } | WatchMessage::Progress { .. }) => {}
        }
    }
}

/// The first key of a range that was asked for inside a transaction.
pub fn first(reply: Option<&ferretcd_types::OpReply>) -> Option<&KeyValue> {
    match reply {
        Some(ferretcd_types::OpReply::Range(range)) => range.kvs.first(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_etcds_form() {
        assert_eq!(key(b"l", LeaseId(0x3cee_a1fd_48de_b804)), "l/3ceea1fd48deb804");
        assert_eq!(key(b"", LeaseId(10)), "/a");
        assert_eq!(key(b"n", LeaseId(-1)), "n/-1");
        assert_eq!(key(b"n", LeaseId(i64::MIN)), "n/-8000000000000000");
        assert_eq!(queue(b"l"), KeyRange::new("l/", "l0"));
    }
}
