//! One client's stream of watchers: it takes from its queue, and reads history for watchers that are behind.

use crate::watch::hub::{Hub, Queue};
use crate::watch::{WATCHERS_PER_STREAM_MAX, WatchCreate, WatchMessage};
use ferretcd_state::State;
use ferretcd_types::{Error, Event, EventKind, KeyRange, KeyValue};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// Most revisions that one look into history reads (etcd's 1000).
const HISTORY_REVISIONS_MAX: usize = 1000;
/// Most bytes that one look into history reads: one look becomes at most one message per watcher, and this keeps it
/// near the largest request.
const HISTORY_BYTES_MAX: usize = 2 << 20;
/// Most events that are joined into one message of a synced watcher: per message costs dominate small events.
const COALESCED_EVENTS_MAX: usize = 1000;
/// Most bytes joined into one message.
const COALESCED_BYTES_MAX: usize = 1 << 20;

/// One client's stream of watchers. Dropping it cancels them all.
pub struct WatchStream {
    hub: Arc<Hub>,
    state: Arc<State>,
    queue: Arc<Queue>,
    watchers: BTreeMap<i64, Watcher>,
    /// Those of them that history is read for; the others are synced.
    behind: BTreeSet<i64>,
    next_id: i64,
    /// Answers that need no history.
    out: VecDeque<WatchMessage>,
    progress_asked: bool,
    progress_every: Duration,
    next_progress: Instant,
    guard: Option<Guard>,
}

/// Says whether a range may be watched, as of now.
pub(crate) type Guard = Box<dyn Fn(&KeyRange) -> Result<(), Error> + Send + Sync>;

impl std::fmt::Debug for WatchStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WatchStream").field("watchers", &self.watchers.len()).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Watcher {
    request: WatchCreate,
    /// The next revision that it lacks; meaningful while it is behind.
    next: i64,
    /// Got an event since the last progress tick.
    busy: bool,
}

impl Watcher {
    fn wants(&self, event: &Event) -> bool {
        let kind = match event.kind {
            EventKind::Put => !self.request.no_put,
            EventKind::Delete => !self.request.no_delete,
        };
        kind && self.request.range.contains(&event.kv.key)
    }
}

impl WatchStream {
    pub(crate) fn new(hub: Arc<Hub>, state: Arc<State>, progress_every: Duration, stopped: bool) -> Self {
        let queue = hub.open_stream(stopped);
        WatchStream {
            hub,
            state,
            queue,
            watchers: BTreeMap::new(),
            behind: BTreeSet::new(),
            next_id: 0,
            out: VecDeque::new(),
            progress_asked: false,
            progress_every,
            next_progress: Instant::now() + progress_every,
            guard: None,
        }
    }

    /// Has each new watcher's range looked at. Watchers that are there already stay, as in etcd.
    pub(crate) fn guarded_by(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Adds a watcher; the answer comes out of [`WatchStream::next`] as `Created`, `CreateFailed` or, for a start
    /// below the compacted revision, `Created` then `Cancelled`.
    pub fn create(&mut self, mut request: WatchCreate) {
        let revision = self.state.revision();
        let refuse = |reason: &str| WatchMessage::CreateFailed { reason: reason.to_owned(), revision };
        if request.range.start.is_empty() {
            // etcd's rule: an empty key means the first possible one.
            request.range.start = bytes::Bytes::from_static(b"\0");
        }
        let refusal = if request.start_revision < 0 {
            Some(refuse(&Error::Compacted.to_string()))
        } else if let Some(Err(error)) = self.guard.as_ref().map(|guard| guard(&request.range)) {
            Some(WatchMessage::Refused { error, revision })
        } else if request.range.is_empty() {
            Some(refuse("mvcc: watcher range is empty"))
        } else if request.id != 0 && self.watchers.contains_key(&request.id) {
            Some(refuse("mvcc: duplicate watch ID provided on the WatchStream"))
        } else if self.watchers.len() >= WATCHERS_PER_STREAM_MAX {
            Some(refuse(&Error::TooManyRequests.to_string()))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.out.push_back(refusal);
            return;
        }
        let id = match request.id {
            0 => {
                while self.watchers.contains_key(&self.next_id) {
                    self.next_id += 1;
                }
                self.next_id += 1;
                self.next_id - 1
            }
            id => id,
        };
        self.out.push_back(WatchMessage::Created { id, revision });
        let next = if request.start_revision > 0 { request.start_revision } else { revision + 1 };
        let watcher = Watcher { request, next, busy: true };
        // A start in the future waits like any other: what lies below it is filtered out.
        if next <= revision || self.hub.sync(&self.queue, id, &watcher.request, revision).is_err() {
            self.behind.insert(id);
        }
        self.watchers.insert(id, watcher);
    }

    /// Removes a watcher; an unknown ID is ignored (etcd's rule).
    pub fn cancel(&mut self, id: i64) {
        if let Some(watcher) = self.watchers.remove(&id) {
            self.behind.remove(&id);
            self.hub.unsync(&self.queue, id, &watcher.request.range);
            self.queue.state.lock().forget(id);
            self.out.push_back(WatchMessage::Cancelled { id, compact_revision: None });
        }
    }

    /// Asks for one `Progress` with ID -1. Nothing comes while a watcher is behind (etcd's rule: the client retries).
    pub fn request_progress(&mut self) {
        self.progress_asked = true;
    }

    /// The next message; `None` when the member stops, behind what was queued by then. Safe to drop and call again:
    /// nothing is taken before it is returned.
    pub async fn next(&mut self) -> Option<WatchMessage> {
        loop {
            let woken = self.queue.clone();
            let woken = woken.wake.notified();
            let stopped = self.take_notices();
            self.queue.behind.store(self.behind.len(), Ordering::Relaxed);
            if self.next_progress <= Instant::now() {
                self.progress_tick();
            }
            let ready = self.out.pop_front().or_else(|| self.next_batch());
            if let Some(message) = ready {
                if let WatchMessage::Events { events, .. } = &message {
                    self.hub.sends(events.len());
                }
                return Some(message);
            }
            if stopped {
                return None;
            }
            if !self.behind.is_empty() {
                self.read_history();
                continue;
            }
            if self.progress_asked {
                self.progress_asked = false;
                if let Some(message) = self.progress_of_all() {
                    return Some(message);
                }
                continue;
            }
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep_until(self.next_progress) => {}
            }
        }
    }

    /// Follows what the hub said of this stream as a whole. True when the member stops.
    fn take_notices(&mut self) -> bool {
        let mut pending = self.queue.state.lock();
        let stopped = pending.stopped;
        if let Some(revision) = pending.restored.take() {
            // What was queued belongs to the old history; the client starts over.
            while pending.pop().is_some() {}
            pending.overflowed.clear();
            self.behind.clear();
            for id in std::mem::take(&mut self.watchers).into_keys() {
                self.out.push_back(WatchMessage::Cancelled { id, compact_revision: Some(revision) });
            }
        }
        // A watcher is behind only once its queued events are out, so that it stays in order.
        if pending.batches.is_empty() {
            for (id, from) in std::mem::take(&mut pending.overflowed) {
                if let Some(w) = self.watchers.get_mut(&id) {
                    w.next = w.next.max(from);
                    self.behind.insert(id);
                }
            }
            if let Some(missed_from) = pending.resync.take() {
                for (id, w) in &mut self.watchers {
                    if self.behind.insert(*id) {
                        w.next = w.next.max(missed_from);
                    }
                }
            }
        }
        stopped
    }

    /// Events of synced watchers: as many of the first one's as fit into one message.
    fn next_batch(&mut self) -> Option<WatchMessage> {
        loop {
            let mut pending = self.queue.state.lock();
            let first = pending.pop()?;
            let (id, mut revision, mut events) = (first.id, first.revision, first.events);
            let mut bytes: usize = events.iter().map(|e| e.kv.key.len() + e.kv.value.len()).sum();
            while let Some(next) = pending.batches.front()
                && next.id == id
                && events.len() < COALESCED_EVENTS_MAX
                && bytes < COALESCED_BYTES_MAX
                && let Some(next) = pending.pop()
            {
                revision = next.revision;
                bytes += next.events.iter().map(|e| e.kv.key.len() + e.kv.value.len()).sum::<usize>();
                events.extend(next.events);
            }
            drop(pending);
            let Some(watcher) = self.watchers.get_mut(&id) else { continue };
            // A watcher that starts in the future is synced from the beginning.
            events.retain(|e| e.revision.main >= watcher.next);
            if events.is_empty() {
                continue;
            }
            watcher.busy = true;
            watcher.next = revision + 1;
            let prev_kv = watcher.request.prev_kv;
            return Some(WatchMessage::Events { id, revision, events: self.with_previous(events, prev_kv) });
        }
    }

    fn with_previous(&self, events: Vec<Event>, wanted: bool) -> Vec<(Event, Option<KeyValue>)> {
        events
            .into_iter()
            .map(|e| {
                // A broken store is met by the next write; an event without its past is what compaction gives as well.
                let previous = if wanted { self.state.value_before(&e).unwrap_or_default() } else { None };
                (e, previous)
            })
            .collect()
    }

    /// One look into history for all watchers that are behind, from the one that is furthest behind.
    fn read_history(&mut self) {
        let behind = self.behind.iter().filter_map(|id| self.watchers.get(id));
        let Some(from) = behind.map(|w| w.next).min() else { return };
        let read = ferretcd_raft::blocking(|| self.state.events(from, HISTORY_REVISIONS_MAX, HISTORY_BYTES_MAX));
        let batch = match read {
            Ok(batch) => batch,
            Err(Error::Compacted) => {
                let compacted = self.state.compacted_revision();
                self.cancel_compacted(compacted);
                return;
            }
            Err(e) => {
                // The store is broken; the member is about to stop. Clients resume elsewhere.
                tracing::error!("a watch stream cannot read history: {e}");
                self.leave();
                self.queue.state.lock().stopped = true;
                return;
            }
        };
        let complete = batch.next - 1;
        for id in Vec::from_iter(self.behind.iter().copied()) {
            let Some(watcher) = self.watchers.get_mut(&id) else { continue };
            let events: Vec<Event> =
                batch.events.iter().filter(|e| e.revision.main >= watcher.next && watcher.wants(e)).cloned().collect();
            watcher.next = watcher.next.max(batch.next);
            if self.hub.sync(&self.queue, id, &watcher.request, complete).is_ok() {
                self.behind.remove(&id);
            }
            let prev_kv = watcher.request.prev_kv;
            if !events.is_empty() {
                watcher.busy = true;
                let events = self.with_previous(events, prev_kv);
                self.out.push_back(WatchMessage::Events { id, revision: complete, events });
            }
        }
    }

    fn cancel_compacted(&mut self, compacted: i64) {
        let lost = |id: &i64| self.watchers.get(id).is_none_or(|w| w.next < compacted);
        for id in Vec::from_iter(self.behind.iter().copied().filter(lost)) {
            self.watchers.remove(&id);
            self.behind.remove(&id);
            self.out.push_back(WatchMessage::Cancelled { id, compact_revision: Some(compacted) });
        }
    }

    /// The answer to a progress request, when no watcher is behind: only when every event up to the revision has left the queue.
    pub(super) fn progress_of_all(&self) -> Option<WatchMessage> {
        self.hub.at_rest(|revision| {
            // As in etcd: a stream without watchers has no progress, and a start in the future holds it up. So does one that has read
            // history beyond what is published, such as that of a snapshot which is being installed: progress never goes back.
            if self.watchers.is_empty() || self.watchers.values().any(|w| w.next > revision + 1) {
                return None;
            }
            let pending = self.queue.state.lock();
            let at_rest = pending.batches.is_empty() && pending.overflowed.is_empty() && pending.resync.is_none();
            // Behind the end, what is published is in no queue; behind a restore there is nothing that it goes on from.
            let goes_on = !pending.stopped && pending.restored.is_none();
            (at_rest && goes_on).then_some(WatchMessage::Progress { id: -1, revision })
        })
    }

    /// Tells each watcher that has nothing to come how far it is, however busy the others are: clients resume there, and one
    /// that was told nothing for long may find its place compacted.
    pub(super) fn progress_tick(&mut self) {
        self.next_progress = Instant::now() + self.progress_every;
        let at_rest = self.hub.at_rest(|revision| {
            let pending = self.queue.state.lock();
            let told = |id: &i64| pending.overflowed.iter().all(|(behind, _)| behind != id);
            let waiting: BTreeSet<i64> = pending.batches.iter().map(|batch| batch.id).collect();
            let at_rest =
                self.watchers.keys().filter(|id| told(id) && !waiting.contains(id) && !self.behind.contains(id));
            let goes_on = pending.resync.is_none() && pending.restored.is_none() && !pending.stopped;
            goes_on.then(|| (revision, at_rest.copied().collect::<Vec<_>>()))
        });
        let Some((revision, at_rest)) = at_rest else { return };
        for id in at_rest {
            let Some(watcher) = self.watchers.get_mut(&id) else { continue };
            let quiet = !std::mem::take(&mut watcher.busy);
            // A start in the future is ahead of any progress.
            if quiet && watcher.request.progress_notify && watcher.next <= revision + 1 {
                self.out.push_back(WatchMessage::Progress { id, revision });
            }
        }
    }

    /// Takes the stream out of the hub: nothing more comes into its queue.
    fn leave(&self) {
        let watchers: Vec<(i64, KeyRange)> =
            self.watchers.iter().map(|(id, w)| (*id, w.request.range.clone())).collect();
        self.hub.close_stream(&self.queue, &watchers);
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.leave();
    }
}
