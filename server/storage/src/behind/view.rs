//! What readers of the write-behind see before they ask the engine: the queued writes, and recently committed ones.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;

use crate::engine::{Batch, Limit, Page, Write};
use crate::error::Result;
use crate::keyspace::{self, KEYS};

/// The last queued write of each key, and the cache.
pub(super) struct View {
    /// Bounded by the queue's bytes.
    queued: BTreeMap<Bytes, Queued>,
    cache: Cache,
}

/// A write that is not committed yet.
struct Queued {
    /// The batch that made it.
    sequence: u64,
    /// None: it deletes the key.
    value: Option<Bytes>,
}

/// What the view knows about a key.
pub(super) enum Found {
    Value(Bytes),
    Deleted,
    AskEngine,
}

impl View {
    pub(super) fn new(cache_bytes: usize) -> Self {
        View { queued: BTreeMap::new(), cache: Cache::new(cache_bytes) }
    }

    /// Makes a batch readable that was just queued under `sequence`.
    pub(super) fn add(&mut self, batch: &Batch, sequence: u64) {
        for Write { key, value } in batch.writes() {
            self.queued.insert(key.clone(), Queued { sequence, value: value.clone() });
        }
    }

    /// Moves writes that the engine has committed to the cache. `last` is the last batch of the commit; a key that a
    /// later batch wrote again stays queued, and hides what the cache holds for it.
    pub(super) fn settle(&mut self, batch: &Batch, last: u64) {
        for Write { key, .. } in batch.writes() {
            if self.queued.get(key).is_some_and(|queued| queued.sequence <= last)
                && let Some(Queued { value, .. }) = self.queued.remove(key)
            {
                match value {
                    Some(value) if key.first() == Some(&KEYS) => self.cache.put(key, &value),
                    _ => self.cache.remove(key),
                }
            }
        }
    }

    pub(super) fn get(&self, key: &[u8]) -> Found {
        match self.queued.get(key) {
            Some(Queued { value: Some(value), .. }) => Found::Value(value.clone()),
            Some(Queued { value: None, .. }) => Found::Deleted,
            None => self.cache.get(key).map_or(Found::AskEngine, Found::Value),
        }
    }

    /// The queued writes in `start..end` in key order. Stops after the values that alone fill the caller's page.
    pub(super) fn scan(&self, start: &[u8], end: Option<&[u8]>, limit: Limit) -> Vec<Write> {
        let bounds = (Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded));
        let mut queued = Vec::new();
        let mut values = Page::default();
        for (key, Queued { value, .. }) in self.queued.range::<[u8], _>(bounds) {
            queued.push(Write { key: key.clone(), value: value.clone() });
            if let Some(value) = value {
                values.push((key.clone(), value.clone()));
            }
            if values.is_full(limit) {
                break;
            }
        }
        queued
    }
}

/// How many records are asked of the engine at a time: deletes in the queue may make a page too short, and asking for
/// the rest costs one more call.
const MAX_ENGINE_PAGE: usize = 1024;

/// Merges queued writes with the records of the engine in `start..end`; a queued write hides the engine's record.
pub(super) fn merge(
    queued: Vec<Write>,
    start: &[u8],
    end: Option<&[u8]>,
    limit: Limit,
    engine_page: impl Fn(&[u8], Option<&[u8]>, Limit) -> Result<Page>,
) -> Result<Page> {
    let mut queued = queued.into_iter().peekable();
    let mut page = VecDeque::new();
    let mut next_page = Some(Bytes::copy_from_slice(start));
    let mut merged = Page::default();
    while !merged.is_full(limit) {
        if page.is_empty()
            && let Some(from) = next_page.take()
        {
            let records = (limit.records - merged.records.len()).min(MAX_ENGINE_PAGE);
            let rest = Limit { records, bytes: limit.bytes - merged.bytes };
            let found = engine_page(&from, end, rest)?;
            if found.is_full(rest) {
                next_page = found.records.last().map(|(last, _)| keyspace::after(last));
            }
            page = VecDeque::from(found.records);
        }
        let queued_is_next = match (queued.peek(), page.front()) {
            (None, None) => break,
            (Some(write), Some((stored, _))) => {
                let hides = write.key == *stored;
                let is_next = write.key <= *stored;
                if hides {
                    page.pop_front();
                }
                is_next
            }
            (write, _) => write.is_some(),
        };
        if queued_is_next {
            if let Some(Write { key, value: Some(value) }) = queued.next() {
                merged.push((key, value));
            }
        } else if let Some(record) = page.pop_front() {
            merged.push(record);
        }
    }
    Ok(merged)
}

/// Recently committed revisions, first in first out: a revision never changes, and the newest are read most.
struct Cache {
    max_bytes: usize,
    bytes: usize,
    /// The record and the number of its last `put`.
    records: HashMap<Bytes, (Bytes, u64)>,
    /// Every `put` in order. Those whose number is no longer in `records` are stale.
    order: VecDeque<(Bytes, u64)>,
    puts: u64,
}

/// Memory of a cached record besides its bytes: the map's and the queue's slots and two allocations.
const RECORD_OVERHEAD_BYTES: usize = 192;

impl Cache {
    fn new(max_bytes: usize) -> Self {
        Cache { max_bytes, bytes: 0, records: HashMap::new(), order: VecDeque::new(), puts: 0 }
    }

    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.records.get(key).map(|(value, _)| value.clone())
    }

    /// Takes copies, because the originals may be slices of larger buffers, which must not live as long.
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.remove(key);
        if cost(key, value) > self.max_bytes {
            return;
        }
        self.puts += 1;
        self.bytes += cost(key, value);
        let key = Bytes::copy_from_slice(key);
        self.records.insert(key.clone(), (Bytes::copy_from_slice(value), self.puts));
        self.order.push_back((key, self.puts));
        while self.bytes > self.max_bytes
            && let Some((oldest, number)) = self.order.pop_front()
        {
            if self.records.get(&oldest).is_some_and(|(_, current)| *current == number) {
                self.remove(&oldest);
            }
        }
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some((value, _)) = self.records.remove(key) {
            self.bytes -= cost(key, &value);
        }
        // Stale entries would pile up where keys come and go below the byte bound: at most as many as live ones.
        if self.order.len() > 2 * self.records.len() + 64 {
            self.order.retain(|(key, number)| self.records.get(key).is_some_and(|(_, current)| current == number));
        }
    }
}

fn cost(key: &[u8], value: &[u8]) -> usize {
    key.len() + value.len() + RECORD_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_keeps_the_newest_records_within_its_bytes() {
        let mut cache = Cache::new(3 * cost(b"k0", b"v"));
        for n in 0..5 {
            cache.put(format!("k{n}").as_bytes(), b"v");
        }
        assert_eq!(cache.get(b"k1"), None);
        assert_eq!(cache.get(b"k2").unwrap(), "v");
        assert_eq!(cache.bytes, 3 * cost(b"k0", b"v"));
        // A record that does not fit at all must not leave its older value behind.
        cache.put(b"k4", &[0; 10_000]);
        assert_eq!(cache.get(b"k4"), None);
        assert_eq!(cache.bytes, 2 * cost(b"k0", b"v"));
    }

    #[test]
    fn a_record_written_again_counts_as_new() {
        let mut cache = Cache::new(2 * cost(b"k0", b"v"));
        cache.put(b"k0", b"a");
        cache.put(b"k1", b"b");
        cache.put(b"k0", b"c");
        cache.put(b"k2", b"d");
        assert_eq!(cache.get(b"k0").unwrap(), "c");
        assert_eq!(cache.get(b"k1"), None);
    }

    #[test]
    fn writing_one_key_for_ever_takes_bounded_memory() {
        let mut cache = Cache::new(1 << 20);
        for n in 0..10_000_u32 {
            cache.put(b"k", &n.to_be_bytes());
        }
        assert!(cache.order.len() < 100, "{} entries", cache.order.len());
        assert_eq!(cache.get(b"k").unwrap(), 9999_u32.to_be_bytes().as_slice());
        cache.remove(b"k");
        assert_eq!((cache.bytes, cache.records.len()), (0, 0));
    }
}
