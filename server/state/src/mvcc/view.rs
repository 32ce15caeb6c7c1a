//! The key space at one revision, with the changes of the command that is being applied on top. Nothing is visible to
//! others until the whole command is done, so dropping a view undoes it.

use crate::StateError;
use crate::error::Fault;
use crate::mvcc::index;
use crate::mvcc::key_index::Change;
use crate::mvcc::record;
use crate::mvcc::space::Space;
use bytes::Bytes;
use ferretcd_storage::{Batch, Store};
use ferretcd_types::codec::encode_key_value;
use ferretcd_types::{Error, Event, KeyRange, KeyValue, LeaseId, Revision};
use std::collections::BTreeMap;

/// See the module's text.
pub(crate) struct View<'a> {
    pub(super) store: &'a Store,
    pub(super) space: &'a Space,
    /// The revision before the command.
    base: i64,
    compacted: i64,
    /// The command's changes in order; all get the main revision after `base`.
    changes: Vec<Pending>,
    /// Key to its newest change in `changes`.
    newest: BTreeMap<Bytes, usize>,
}

/// A change that is not visible yet.
pub(crate) struct Pending {
    /// The key after the change; a tombstone has only the key.
    pub kv: KeyValue,
    tombstone: bool,
    record: Bytes,
}

/// A key that exists, and where its record is.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub key: Bytes,
    pub change: Change,
    /// Its place in the view's own changes.
    pending: Option<usize>,
}

impl<'a> View<'a> {
    /// The newest state.
    pub fn new(store: &'a Store, space: &'a Space) -> Self {
        let (base, compacted) = space.revisions();
        View { store, space, base, compacted, changes: Vec::new(), newest: BTreeMap::new() }
    }

    /// The revision before the command.
    pub fn base(&self) -> i64 {
        self.base
    }

    /// The compacted revision.
    pub fn compacted(&self) -> i64 {
        self.compacted
    }

    /// The revision that the command will have left: one more than before once it has changed something.
    pub fn revision(&self) -> i64 {
        self.base + i64::from(!self.changes.is_empty())
    }

    /// The revision that a request for `revision` reads at, if it may.
    pub fn resolve(&self, revision: i64) -> Result<i64, Error> {
        match revision {
            later if later > self.revision() => Err(Error::FutureRevision),
            latest if latest <= 0 => Ok(self.revision()),
            earlier if earlier < self.compacted => Err(Error::Compacted),
            at => Ok(at),
        }
    }

    /// The key-value of a key now.
    pub fn get(&self, key: &Bytes) -> Result<Option<KeyValue>, StateError> {
        self.find(key).map(|found| self.fetch(&found)).transpose()
    }

    /// A key now, as the index has it.
    pub(crate) fn find(&self, key: &Bytes) -> Option<Found> {
        let found = match self.newest.get(key) {
            Some(&at) => self.pending(at),
            None => {
                let change = self.space.index.read().live_at(key, self.base)?;
                Found { key: key.clone(), change, pending: None }
            }
        };
        (!found.change.is_tombstone()).then_some(found)
    }

    /// The keys of a range that exist at a resolved revision, in key order, and how many there are. At most `limit`
    /// are returned; all are counted.
    pub(crate) fn select(&self, range: &KeyRange, at: i64, limit: usize) -> (Vec<Found>, i64) {
        // Only the newest state has the command's own changes; they can take keys away, so all must be looked at.
        let own = at > self.base && !range.is_empty() && self.newest.range::<[u8], _>(range.bounds()).next().is_some();
        let kept = if own { usize::MAX } else { limit };
        let (mut found, mut count) = (Vec::new(), 0);
        index::visit(&self.space.index, range, at.min(self.base), |key, change| {
            count += 1;
            if found.len() < kept {
                found.push(Found { key: Bytes::copy_from_slice(key), change: *change, pending: None });
            }
        });
        if own {
            for &at in self.newest.range::<[u8], _>(range.bounds()).map(|(_, at)| at) {
                let pending = self.pending(at);
                match (found.binary_search_by(|f| f.key.cmp(&pending.key)), pending.change.is_tombstone()) {
                    (Ok(place), true) => drop(found.remove(place)),
                    (Ok(place), false) => found[place] = pending,
                    (Err(_), true) => {}
                    (Err(place), false) => found.insert(place, pending),
                }
            }
            count = found.len() as i64;
            found.truncate(limit);
        }
        (found, count)
    }

    /// The first keys of a range at a resolved revision, uncounted. Only for a view without changes of its own.
    pub(crate) fn first(&self, range: &KeyRange, at: i64, limit: usize) -> Vec<Found> {
        let found = index::first(&self.space.index, range, at, limit);
        found.into_iter().map(|(key, change)| Found { key, change, pending: None }).collect()
    }

    /// A found key's value.
    pub(crate) fn fetch(&self, found: &Found) -> Result<KeyValue, StateError> {
        match found.pending {
            Some(at) => Ok(self.changes[at].kv.clone()),
            None => record::fetch(self.store, self.space.generation, &found.change),
        }
    }

    fn pending(&self, at: usize) -> Found {
        let Pending { kv, record, .. } = &self.changes[at];
        let change = Change {
            main: self.base + 1,
            // A command has far fewer than 2^32 changes: each is a key in memory.
            sub: at as u32,
            created: kv.create_revision,
            version: kv.version,
            bytes: (record.len() + 17 + usize::from(kv.version == 0)) as u32,
        };
        Found { key: kv.key.clone(), change, pending: Some(at) }
    }

    /// Writes a key.
    pub fn put(&mut self, key: &Bytes, value: Bytes, lease: LeaseId) {
        let main = self.base + 1;
        let (create_revision, version) = match self.find(key) {
            Some(found) => (found.change.created, found.change.version + 1),
            None => (main, 1),
        };
        let kv = KeyValue { key: key.clone(), create_revision, mod_revision: main, version, value, lease };
        self.push(kv, false);
    }

    /// Deletes the keys of a range: how many there were, and what they were if asked for.
    pub fn delete_range(&mut self, range: &KeyRange, prev_kv: bool) -> Result<(i64, Vec<KeyValue>), Fault> {
        let (found, count) = self.select(range, self.revision(), usize::MAX);
        let before = match prev_kv {
            true => found.iter().map(|found| self.fetch(found)).collect::<Result<_, _>>()?,
            false => Vec::new(),
        };
        for Found { key, .. } in found {
            self.push(KeyValue { key, ..KeyValue::default() }, true);
        }
        Ok((count, before))
    }

    fn push(&mut self, kv: KeyValue, tombstone: bool) {
        self.newest.insert(kv.key.clone(), self.changes.len());
        let record = encode_key_value(&kv);
        self.changes.push(Pending { kv, tombstone, record });
    }

    /// The command's changes in order.
    pub fn changes(&self) -> &[Pending] {
        &self.changes
    }

    /// Adds the records of the changes to a batch.
    pub fn save(&self, batch: &mut Batch) {
        for (sub, Pending { tombstone, record, .. }) in self.changes.iter().enumerate() {
            let revision = Revision::new(self.base + 1, sub as i64);
            batch.put(record::key(self.space.generation, revision, *tombstone), record.clone());
        }
    }

    /// Makes the changes visible, all at once; their records must be readable by now. Returns them as events.
    pub fn publish(self) -> Vec<Event> {
        let mut index = self.space.index.write();
        for at in 0..self.changes.len() {
            let Found { key, change, .. } = self.pending(at);
            index.record(&key, change);
        }
        index.revision = self.revision();
        drop(index);
        let main = self.base + 1;
        let event = |(sub, p): (usize, Pending)| record::event(p.kv, Revision::new(main, sub as i64), p.tombstone);
        self.changes.into_iter().enumerate().map(event).collect()
    }
}
