//! Who watches what: the registry that applied events are matched against.

use crate::watch::WatchCreate;
use crate::watch::watched::Watched;
use ferretcd_types::{Event, EventKind, KeyRange};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::Notify;

/// Most events that wait in one stream's queue: a few of etcd's batches (1000 revisions).
const QUEUE_EVENTS_MAX: usize = 4096;
/// Most bytes of keys and values that wait in one stream's queue: one look into history, which is where a watcher goes
/// on that finds its queue full. This is most of what a client costs that does not read.
const QUEUE_BYTES_MAX: usize = 2 << 20;

/// All watchers of this member.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    inner: Mutex<Inner>,
    /// Events that went to clients.
    sent: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    next_stream: u64,
    /// Revision up to which events are in the queues.
    published: i64,
    streams: HashMap<u64, Arc<Queue>>,
    /// Synced watchers.
    watched: Watched,
}

/// A synced watcher.
#[derive(Clone, Debug)]
pub(super) struct Target {
    queue: Arc<Queue>,
    pub(super) id: i64,
    pub(super) range: KeyRange,
    no_put: bool,
    no_delete: bool,
}

/// What waits for one stream.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    stream: u64,
    pub(super) state: Mutex<Pending>,
    pub(super) wake: Notify,
    /// Watchers of the stream that history is read for.
    pub(super) behind: AtomicUsize,
}

#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Events of synced watchers, in order.
    pub(super) batches: VecDeque<Batch>,
    events: usize,
    bytes: usize,
    /// Watchers that fell behind, and the first revision that they lack.
    pub(super) overflowed: Vec<(i64, i64)>,
    /// Set when a restore took all history away: the revision that all watchers are cancelled with.
    pub(super) restored: Option<i64>,
    /// Set when the state was replaced: every synced watcher is behind from this revision on.
    pub(super) resync: Option<i64>,
    pub(super) stopped: bool,
}

/// One revision's events for one watcher.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) id: i64,
    pub(super) revision: i64,
    pub(super) events: Vec<Event>,
}

impl Pending {
    /// Drops what waits for a watcher that is gone: its ID may come back for another one.
    pub(super) fn forget(&mut self, id: i64) {
        let gone = |b: &Batch| b.id == id;
        self.events -= self.batches.iter().filter(|b| gone(b)).map(|b| b.events.len()).sum::<usize>();
        self.bytes -= self.batches.iter().filter(|b| gone(b)).flat_map(|b| &b.events).map(size).sum::<usize>();
        self.batches.retain(|b| !gone(b));
        self.overflowed.retain(|(known, _)| *known != id);
    }

    pub(super) fn pop(&mut self) -> Option<Batch> {
        let batch = self.batches.pop_front()?;
        self.events -= batch.events.len();
        self.bytes -= batch.events.iter().map(size).sum::<usize>();
        Some(batch)
    }
}

fn size(e: &Event) -> usize {
    e.kv.key.len() + e.kv.value.len()
}

impl Hub {
    pub(super) fn open_stream(&self, stopped: bool) -> Arc<Queue> {
        let mut inner = self.inner.lock();
        inner.next_stream += 1;
        let queue = Arc::new(Queue { stream: inner.next_stream, ..Queue::default() });
        queue.state.lock().stopped = stopped;
        inner.streams.insert(queue.stream, queue.clone());
        queue
    }

    pub(super) fn close_stream(&self, queue: &Queue, watchers: &[(i64, KeyRange)]) {
        let mut inner = self.inner.lock();
        inner.streams.remove(&queue.stream);
        for (id, range) in watchers {
            inner.watched.remove(range, queue.stream, *id);
        }
    }

    /// Starts giving a watcher events after `complete`, if nothing was published beyond it; else it stays behind and
    /// the answer is how far history must be read first.
    pub(super) fn sync(&self, queue: &Arc<Queue>, id: i64, request: &WatchCreate, complete: i64) -> Result<i64, i64> {
        let mut inner = self.inner.lock();
        if complete < inner.published {
            return Err(inner.published);
        }
        {
            // What the stream has not been told yet would set this watcher back at once, and leave it here twice. Behind the
            // end nothing more comes.
            let pending = queue.state.lock();
            if pending.stopped || pending.resync.is_some() || pending.restored.is_some() {
                return Err(inner.published);
            }
        }
        let published = inner.published;
        let WatchCreate { no_put, no_delete, .. } = *request;
        inner.watched.insert(Target { queue: queue.clone(), id, range: request.range.clone(), no_put, no_delete });
        Ok(published)
    }

    pub(super) fn unsync(&self, queue: &Queue, id: i64, range: &KeyRange) {
        self.inner.lock().watched.remove(range, queue.stream, id);
    }

    /// Revision up to which every synced watcher has its events in its queue. While `check` runs nothing is
    /// published, so what it sees of the queue belongs to the revision.
    pub(super) fn at_rest<T>(&self, check: impl FnOnce(i64) -> T) -> T {
        let inner = self.inner.lock();
        check(inner.published)
    }

    pub(super) fn sends(&self, events: usize) {
        self.sent.fetch_add(events as u64, Ordering::Relaxed);
    }

    /// Events that went to clients so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn synced(&self) -> usize {
        self.figures().0
    }

    /// Number of synced watchers, of those that are behind, and of events that wait.
    pub(crate) fn figures(&self) -> (usize, usize, usize) {
        let inner = self.inner.lock();
        let queues = inner.streams.values();
        let (behind, waiting) = queues.fold((0, 0), |(behind, waiting), queue| {
            (behind + queue.behind.load(Ordering::Relaxed), waiting + queue.state.lock().events)
        });
        (inner.watched.len(), behind, waiting)
    }

    /// Number of open streams.
    pub(crate) fn streams(&self) -> usize {
        self.inner.lock().streams.len()
    }

    /// Gives one revision's events to the watchers that they concern. Called in order of revisions, from applying.
    pub(crate) fn publish(&self, revision: i64, events: &[Event]) {
        let mut inner = self.inner.lock();
        inner.published = revision;
        if inner.watched.len() == 0 {
            return;
        }
        // All events of the revision for one watcher go into its queue under one lock: a stream that takes messages
        // meanwhile must never see half a revision.
        let mut given: BTreeMap<(u64, i64), (&Target, Vec<Event>)> = BTreeMap::new();
        for event in events {
            for target in inner.watched.of(&event.kv.key) {
                let wanted = match event.kind {
                    EventKind::Put => !target.no_put,
                    EventKind::Delete => !target.no_delete,
                };
                if wanted {
                    let entry = given.entry((target.queue.stream, target.id)).or_insert_with(|| (target, Vec::new()));
                    entry.1.push(event.clone());
                }
            }
        }
        let full: Vec<((u64, i64), KeyRange)> = given
            .into_iter()
            .filter(|(_, (target, events))| !target.give(revision, events))
            .map(|(watcher, (target, _))| (watcher, target.range.clone()))
            .collect();
        for ((stream, id), range) in full {
            inner.watched.remove(&range, stream, id);
        }
    }

    /// A restore took all history away.
    pub(crate) fn restored(&self, revision: i64) {
        let mut inner = self.inner.lock();
        inner.published = revision;
        inner.watched.clear();
        for queue in inner.streams.values() {
            let mut pending = queue.state.lock();
            pending.restored = Some(revision);
            queue.wake.notify_one();
        }
    }

    /// A snapshot replaced the state: what comes next does not follow what was published.
    pub(crate) fn installed(&self, revision: i64) {
        let mut inner = self.inner.lock();
        let missed_from = inner.published + 1;
        inner.published = revision;
        inner.watched.clear();
        for queue in inner.streams.values() {
            let mut pending = queue.state.lock();
            pending.resync.get_or_insert(missed_from);
            queue.wake.notify_one();
        }
    }

    /// Sets the revision that a freshly opened state stands at.
    pub(crate) fn start_at(&self, revision: i64) {
        self.inner.lock().published = revision;
    }

    /// Ends all streams, behind what waits in their queues: nothing more comes into them.
    pub(crate) fn stop(&self) {
        let mut inner = self.inner.lock();
        inner.watched.clear();
        for queue in inner.streams.values() {
            queue.state.lock().stopped = true;
            queue.wake.notify_one();
        }
    }
}

impl Target {
    pub(super) fn stream(&self) -> u64 {
        self.queue.stream
    }

    #[cfg(test)]
    pub(super) fn quiet(stream: u64, id: i64, range: KeyRange) -> Self {
        let queue = Arc::new(Queue { stream, ..Queue::default() });
        Target { queue, id, range, no_put: false, no_delete: false }
    }

    /// Queues one revision's events; false when they do not fit and the watcher fell behind from this revision on.
    fn give(&self, revision: i64, events: &[Event]) -> bool {
        let mut pending = self.queue.state.lock();
        let bytes: usize = events.iter().map(size).sum();
        let fits = pending.events + events.len() <= QUEUE_EVENTS_MAX && pending.bytes + bytes <= QUEUE_BYTES_MAX;
        if fits {
            pending.events += events.len();
            pending.bytes += bytes;
            pending.batches.push_back(Batch { id: self.id, revision, events: events.to_vec() });
        } else {
            pending.overflowed.push((self.id, revision));
        }
        self.queue.wake.notify_one();
        fits
    }
}
