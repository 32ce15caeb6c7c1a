//! A point-in-time copy of the state as a file: etcd's own snapshot for clients, the same with a few private buckets for
//! members that lag.

pub(crate) mod buckets;
pub(crate) mod hash;
pub(crate) mod install;

use crate::StateError;
use crate::mvcc::record::{self, Record};
use crate::mvcc::space::Pin;
use crate::state::State;
use buckets::Bucket;
use bytes::Bytes;
use ferretcd_bolt::{InputError, Layout, LayoutBuilder, WriteError, Writer};
use ferretcd_storage::Store;
use ferretcd_types::{LogPos, Revision};
use parking_lot::Mutex;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Whom a snapshot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Clients and backups: what etcd itself would write.
    Client,
    /// A member: with the raft floor's membership, the epoch and an unfinished restore.
    Raft,
}

/// Why a snapshot could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The state could not be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// A record does not fit the format.
    #[error("the snapshot cannot be laid out")]
    Layout(#[from] InputError),
    /// The file could not be handed on.
    #[error("the snapshot cannot be written")]
    Write(#[from] WriteError),
}

/// The state between two entries of the log, for as long as this lives. Writes go on meanwhile; deletions of what it
/// needs wait, so it should not live longer than its reader takes.
pub struct Pinned {
    store: Arc<Store>,
    position: Option<LogPos>,
    membership: Option<Bytes>,
    revision: i64,
    live: Keys,
    /// The staged keys of an unfinished restore.
    staged: Option<Keys>,
    /// The small buckets by name, for each kind.
    client: Vec<Bucket>,
    raft: Vec<Bucket>,
    /// What pass one found, kept for pass two.
    layout: Mutex<Option<(SnapshotKind, Layout)>>,
}

/// The key records of one generation up to a revision.
struct Keys {
    pin: Pin,
    to: Revision,
    /// Leave out what a compaction at this revision drops: its deletions are not done. None when they are.
    compacted: Option<i64>,
}

impl State {
    /// Takes hold of the state as it is after the last applied entry.
    pub fn pin(&self) -> Pinned {
        let inner = &*self.inner;
        let _applier = inner.applier.lock();
        let rooms = inner.rooms.read();
        let staging = inner.staging.read();
        let pin = inner.mvcc.pin();
        let (revision, compacted) = pin.space.revisions();
        let client = buckets::client(&rooms, compacted);
        let mut raft = client.clone();
        raft.extend(buckets::private(&rooms, staging.as_ref()));
        raft.sort_unstable_by_key(|bucket| bucket.name);
        let is_filtered = inner.work.finished() < compacted;
        let live = Keys { pin, to: Revision::new(revision, i64::MAX), compacted: is_filtered.then_some(compacted) };
        let staged = staging.as_ref().map(|staged| Keys { pin: staged.space.pin(), to: staged.last, compacted: None });
        Pinned {
            store: inner.mvcc.store.clone(),
            position: rooms.applied,
            membership: rooms.membership.clone(),
            revision,
            live,
            staged,
            client,
            raft,
            layout: Mutex::new(None),
        }
    }
}

impl Pinned {
    /// The last entry whose effects are in it.
    pub fn applied(&self) -> Option<LogPos> {
        self.position
    }

    /// The raft floor's membership as of that entry.
    pub fn membership(&self) -> Option<Bytes> {
        self.membership.clone()
    }

    /// Its revision.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// Measures the file: one pass over the records. [`Layout::file_bytes`] is its length with the SHA-256 at the end.
    pub fn layout(&self, kind: SnapshotKind) -> Result<Layout, SnapshotError> {
        if let Some((_, layout)) = self.layout.lock().as_ref().filter(|(measured, _)| *measured == kind) {
            return Ok(layout.clone());
        }
        let mut measure = Measure(Layout::builder());
        self.emit(kind, &mut measure)?;
        let layout = measure.0.finish();
        *self.layout.lock() = Some((kind, layout.clone()));
        Ok(layout)
    }

    /// Writes the file in chunks of [`ferretcd_bolt::CHUNK_BYTES`], the SHA-256 last and alone, and returns that. The
    /// sink may block; an error of it ends the work.
    pub fn write(
        &self,
        kind: SnapshotKind,
        sink: &mut dyn FnMut(Bytes) -> io::Result<()>,
    ) -> Result<[u8; 32], SnapshotError> {
        let mut writer = Writer::new(self.layout(kind)?, sink);
        self.emit(kind, &mut writer)?;
        Ok(writer.finish()?)
    }

    /// CRC-32C over names of buckets, keys and values, as etcd's Hash has it: all that a client's snapshot file holds,
    /// but not how far the log was applied and in which layout. Equal on all members that have applied the same.
    pub fn hash(&self) -> Result<u32, SnapshotError> {
        let mut hash = Hash { crc: 0, is_meta: false };
        self.emit(SnapshotKind::Client, &mut hash)?;
        Ok(hash.crc)
    }

    /// Brings all buckets with all records to `out`, in order: both passes see the same.
    fn emit(&self, kind: SnapshotKind, out: &mut impl Out) -> Result<(), SnapshotError> {
        let small = match kind {
            SnapshotKind::Client => &self.client,
            SnapshotKind::Raft => &self.raft,
        };
        for bucket in small {
            out.bucket(bucket.name)?;
            match (bucket.name, &self.staged) {
                (buckets::KEY, _) => self.emit_keys(&self.live, out)?,
                (buckets::STAGED_KEY, Some(staged)) => self.emit_keys(staged, out)?,
                _ => {
                    for (key, value) in &bucket.records {
                        out.record(key, value)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn emit_keys(&self, keys: &Keys, out: &mut impl Out) -> Result<(), SnapshotError> {
        let generation = keys.pin.space.generation;
        record::scan_changes(&self.store, generation, 0, keys.to.main, |record| {
            if record.revision > keys.to {
                return Ok(ControlFlow::Break(()));
            }
            if keys.has(&record)? {
                out.record(&record.raw_key, &record.raw_value)?;
            }
            Ok(ControlFlow::Continue(()))
        })
    }
}

impl Keys {
    /// False for what compaction drops and has not deleted yet, so that the file is the same on every member.
    fn has(&self, record: &Record) -> Result<bool, StateError> {
        let Some(compacted) = self.compacted.filter(|&compacted| record.revision.main <= compacted) else {
            return Ok(true);
        };
        let kv = record.key_value()?;
        let newest = self.pin.space.index.read().at(&kv.key, compacted);
        let is_newest = newest.is_some_and(|c| Revision::new(c.main, i64::from(c.sub)) == record.revision);
        Ok(is_newest && (!record.tombstone || record.revision.main == compacted))
    }
}

/// One of the two passes.
trait Out {
    fn bucket(&mut self, name: &[u8]) -> Result<(), SnapshotError>;
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), SnapshotError>;
}

/// Neither of them: what members compare.
struct Hash {
    crc: u32,
    is_meta: bool,
}

impl Out for Hash {
    fn bucket(&mut self, name: &[u8]) -> Result<(), SnapshotError> {
        self.is_meta = name == buckets::META;
        self.crc = crc32c::crc32c_append(self.crc, name);
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), SnapshotError> {
        // What etcd leaves out too: members may differ in it and hold the same data.
        if self.is_meta && [buckets::CONSISTENT_INDEX, buckets::TERM, buckets::STORAGE_VERSION].contains(&key) {
            return Ok(());
        }
        self.crc = crc32c::crc32c_append(crc32c::crc32c_append(self.crc, key), value);
        Ok(())
    }
}

struct Measure(LayoutBuilder);

impl Out for Measure {
    fn bucket(&mut self, name: &[u8]) -> Result<(), SnapshotError> {
        Ok(self.0.bucket(name)?)
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), SnapshotError> {
        Ok(self.0.record(key.len(), value.len())?)
    }
}

impl<S: FnMut(Bytes) -> io::Result<()>> Out for Writer<S> {
    fn bucket(&mut self, name: &[u8]) -> Result<(), SnapshotError> {
        Ok(Writer::bucket(self, name)?)
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), SnapshotError> {
        Ok(Writer::record(self, key, value)?)
    }
}
