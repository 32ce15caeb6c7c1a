//! Watch streams: what a client asks of one, and what comes back.
//!
//! A watcher is *synced* while it gets every event as it is applied, through its stream's bounded queue, and *behind*
//! while its stream reads history for it. A stream reads history only when its client takes messages, so a client that
//! does not read costs its queue and nothing else, and never holds up applying or another client.

mod hub;
mod stream;
#[cfg(test)]
mod tests;
mod watched;

pub(crate) use hub::Hub;
pub use stream::WatchStream;

use ferretcd_types::{Error, Event, KeyRange, KeyValue};

/// Most watchers of one stream. etcd sets no number; this bounds what one client can make a member hold (about
/// 350 bytes each), and is ten times what kube-apiserver opens in all.
pub const WATCHERS_PER_STREAM_MAX: usize = 100_000;

/// A request for a watcher.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WatchCreate {
    /// The ID that the client chose; 0 lets the stream choose.
    pub id: i64,
    /// Which keys.
    pub range: KeyRange,
    /// From which revision; 0 is from now on; below 0 is refused as compacted (etcd's rule).
    pub start_revision: i64,
    /// Send an empty message now and then when nothing happened.
    pub progress_notify: bool,
    /// Send what was there before.
    pub prev_kv: bool,
    /// Leave puts out.
    pub no_put: bool,
    /// Leave deletions out.
    pub no_delete: bool,
}

/// What a stream says, in the order in which it must reach the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchMessage {
    /// The watcher exists; no event of it comes earlier.
    Created {
        /// Its ID.
        id: i64,
        /// The store's revision.
        revision: i64,
    },
    /// The watcher could not be made (ID -1 on the wire).
    CreateFailed {
        /// etcd's text.
        reason: String,
        /// The store's revision.
        revision: i64,
    },
    /// The caller may not watch this (ID -1 on the wire, too).
    Refused {
        /// Why.
        error: Error,
        /// The store's revision.
        revision: i64,
    },
    /// Whole revisions of events, in order.
    Events {
        /// Of which watcher.
        id: i64,
        /// Complete up to this revision.
        revision: i64,
        /// Each event with what was there before, if the watcher asked and history still knows it.
        events: Vec<(Event, Option<KeyValue>)>,
    },
    /// The watcher is gone.
    Cancelled {
        /// Which.
        id: i64,
        /// Set when compaction (or a restore) took its history away: the compacted revision.
        compact_revision: Option<i64>,
    },
    /// Nothing up to this revision is still to come. ID -1 answers a progress request for the whole stream.
    Progress {
        /// Which watcher, or -1.
        id: i64,
        /// The revision.
        revision: i64,
    },
}
