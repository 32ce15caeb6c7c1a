//! The bytes of one change in the store: a generation's revision key, and etcd's `KeyValue`.

use crate::StateError;
use crate::mvcc::key_index::Change;
use bytes::Bytes;
use ferretcd_bolt::RevisionKey;
use ferretcd_storage::{Limit, Store, keyspace};
use ferretcd_types::codec::decode_key_value;
use ferretcd_types::{Event, EventKind, KeyValue, Revision};
use std::ops::ControlFlow;

/// etcd's bytes of a revision: 17, or 18 for a tombstone.
pub(crate) fn revision_bytes(main: i64, sub: i64, tombstone: bool, buf: &mut [u8; RevisionKey::MAX_BYTES]) -> &[u8] {
    RevisionKey { main, sub, tombstone }.encode(buf)
}

/// The store's key of a change.
pub(crate) fn key(generation: u32, revision: Revision, tombstone: bool) -> Bytes {
    let mut buf = [0; RevisionKey::MAX_BYTES];
    keyspace::revision(generation, revision_bytes(revision.main, revision.sub, tombstone, &mut buf))
}

/// One change as it lies in the store.
pub(crate) struct Record {
    pub revision: Revision,
    pub tombstone: bool,
    /// etcd's bytes of the revision: a slice of the store's key.
    pub raw_key: Bytes,
    /// The encoded `KeyValue`.
    pub raw_value: Bytes,
}

impl Record {
    fn from_store(key: &Bytes, value: Bytes) -> Result<Record, StateError> {
        let damaged = |why: String| StateError::Record { what: format!("a revision, key {key:?}"), why };
        let (_, raw) = keyspace::split_revision(key).ok_or_else(|| damaged("it has no generation".to_owned()))?;
        let decoded = RevisionKey::decode(raw).map_err(|err| damaged(err.to_string()))?;
        let RevisionKey { main, sub, tombstone } = decoded;
        let raw_key = key.slice_ref(raw);
        Ok(Record { revision: Revision::new(main, sub), tombstone, raw_key, raw_value: value })
    }

    /// The decoded value.
    pub fn key_value(&self) -> Result<KeyValue, StateError> {
        let what = || format!("revision {}", self.revision);
        let kv = decode_key_value(self.raw_value.clone())
            .map_err(|err| StateError::Record { what: what(), why: err.to_string() })?;
        if kv.key.is_empty() {
            return Err(StateError::Record { what: what(), why: "it has no key".to_owned() });
        }
        Ok(kv)
    }

    /// As the index has it.
    pub fn change(&self, kv: &KeyValue) -> Result<Change, StateError> {
        let damaged =
            |why: &str| StateError::Record { what: format!("revision {}", self.revision), why: why.to_owned() };
        let (created, version) = match self.tombstone {
            true => (0, 0),
            false if kv.version < 1 => return Err(damaged("its version is below 1")),
            false => (kv.create_revision, kv.version),
        };
        let sub = u32::try_from(self.revision.sub).map_err(|_| damaged("it has too many changes"))?;
        let bytes = u32::try_from(self.raw_key.len() + self.raw_value.len()).map_err(|_| damaged("it is too large"))?;
        Ok(Change { main: self.revision.main, sub, created, version, bytes })
    }

    /// As watchers see it.
    pub fn event(&self) -> Result<Event, StateError> {
        Ok(event(self.key_value()?, self.revision, self.tombstone))
    }
}

/// A change as watchers see it: a deletion has key and mod revision only.
pub(crate) fn event(kv: KeyValue, revision: Revision, tombstone: bool) -> Event {
    match tombstone {
        false => Event { kind: EventKind::Put, kv, revision },
        true => {
            let kv = KeyValue { key: kv.key, mod_revision: revision.main, ..KeyValue::default() };
            Event { kind: EventKind::Delete, kv, revision }
        }
    }
}

/// One value by its revision. The index named it, so it must be there.
pub(crate) fn fetch(store: &Store, generation: u32, change: &Change) -> Result<KeyValue, StateError> {
    let revision = Revision::new(change.main, i64::from(change.sub));
    let key = key(generation, revision, change.is_tombstone());
    let value = store.get(&key).map_err(StateError::store("read a revision"))?;
    let value = value.ok_or_else(|| StateError::Missing { revision: revision.to_string() })?;
    decode_key_value(value)
        .map_err(|err| StateError::Record { what: format!("revision {revision}"), why: err.to_string() })
}

/// Records in the first page of a scan, whose reader may want few, and in the largest one.
const PAGE_RECORDS: (usize, usize) = (16, 1024);

/// What a page holds in bytes before its last record: large enough that paging costs little, small enough for many readers at once.
const PAGE_BYTES: usize = 256 * 1024;

/// Visits every record with `start <= key < end` in key order.
pub(crate) fn scan<E: From<StateError>>(
    store: &Store,
    start: Bytes,
    end: &[u8],
    mut visit: impl FnMut(&Bytes, Bytes) -> Result<ControlFlow<()>, E>,
) -> Result<(), E> {
    let (mut start, mut limit) = (start, Limit { records: PAGE_RECORDS.0, bytes: PAGE_BYTES });
    loop {
        let page = store.page(&start, Some(end), limit).map_err(StateError::store("scan the store"))?;
        let is_last = !page.is_full(limit);
        for (key, value) in page.records {
            start = keyspace::after(&key);
            if visit(&key, value)?.is_break() {
                return Ok(());
            }
        }
        if is_last {
            return Ok(());
        }
        limit.records = (limit.records * 2).min(PAGE_RECORDS.1);
    }
}

/// Visits the changes of one generation with main revisions `from..=to` in the order of history.
pub(crate) fn scan_changes<E: From<StateError>>(
    store: &Store,
    generation: u32,
    from: i64,
    to: i64,
    mut visit: impl FnMut(Record) -> Result<ControlFlow<()>, E>,
) -> Result<(), E> {
    if from > to {
        return Ok(());
    }
    let start = key(generation, Revision::new(from.max(0), 0), false);
    let end = match to.checked_add(1) {
        Some(after) => key(generation, Revision::new(after, 0), false),
        None => keyspace::generation_range(generation).1,
    };
    scan(store, start, &end, |key, value| visit(Record::from_store(key, value)?))
}
