//! History in the order in which it happened, for watchers that catch up.

use crate::error::Fault;
use crate::mvcc::record;
use crate::mvcc::view::View;
use ferretcd_types::{Error, Event, EventKind, KeyValue};
use std::ops::ControlFlow;

/// Most revisions in one batch of history, as in etcd: a watcher that catches up must not hold a larger piece.
pub const EVENT_REVISIONS_MAX: usize = 1000;

/// A piece of history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventBatch {
    /// The changes, whole revisions only.
    pub events: Vec<Event>,
    /// The first revision that is not in it: where to go on. One more than the store's revision at the end.
    pub next: i64,
}

impl View<'_> {
    /// The changes from a revision on, cut at whole revisions: at most `max_revisions`, and no further one once the
    /// records hold `max_bytes`.
    pub fn events(&self, from: i64, max_revisions: usize, max_bytes: usize) -> Result<EventBatch, Fault> {
        if from < self.compacted() {
            return Err(Error::Compacted.into());
        }
        let revisions = max_revisions.clamp(1, EVENT_REVISIONS_MAX) as i64;
        let to = self.base().min(from.saturating_add(revisions - 1));
        let mut batch = EventBatch { events: Vec::new(), next: from.max(to.saturating_add(1)) };
        let (mut bytes, mut last) = (0, from);
        record::scan_changes(self.store, self.space.generation, from, to, |record| {
            if record.revision.main != last && bytes >= max_bytes && !batch.events.is_empty() {
                batch.next = record.revision.main;
                return Ok(ControlFlow::Break(()));
            }
            last = record.revision.main;
            bytes += record.raw_value.len();
            batch.events.push(record.event()?);
            Ok::<_, Fault>(ControlFlow::Continue(()))
        })?;
        Ok(batch)
    }

    /// What an event's key was before it: nothing for a creation, nor where compaction has taken it away.
    pub fn value_before(&self, event: &Event) -> Result<Option<KeyValue>, Fault> {
        let created = event.kind == EventKind::Put && event.kv.create_revision == event.kv.mod_revision;
        let before = event.revision.main - 1;
        if created || before < self.compacted() {
            return Ok(None);
        }
        let change = self.space.index.read().live_at(&event.kv.key, before);
        let fetch = |change| record::fetch(self.store, self.space.generation, &change);
        Ok(change.map(fetch).transpose()?)
    }
}
