//! What an unfinished restore has staged: a generation of its own, small records beside it, and the running totals.

use crate::StateError;
use crate::auth::{Auth, NAME_BYTES_MAX};
use crate::lease::{self, LeaseTimes, Leases};
use crate::mvcc::key_index::Change;
use crate::mvcc::record;
use crate::mvcc::space::Space;
use bytes::Bytes;
use ferretcd_storage::{Batch, Store, keyspace};
use ferretcd_types::codec::{decode_key_value, decode_restore_records, decode_restore_totals, encode_restore_totals};
use ferretcd_types::wire::{DecodeError, Reader, Writer};
use ferretcd_types::{Error, KeyValue, LeaseId, RestoreRecord, RestoreTotals, Revision};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How far a restore has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreProgress {
    /// Its random name.
    pub id: u64,
    /// Chunks staged so far; the next one's sequence number.
    pub chunks: u64,
}

/// See the module's text.
#[derive(Clone)]
pub(crate) struct Staging {
    pub id: u64,
    /// The generation that the records are in. Its index follows the chunks.
    pub space: Arc<Space>,
    /// What was staged so far; the checksum is that of the chunks so far.
    pub totals: RestoreTotals,
    /// The last revision seen.
    pub last: Revision,
    /// Staged leases with their seconds.
    leases: BTreeMap<LeaseId, i64>,
    auth: Auth,
    /// Existing keys that name a lease.
    attached: BTreeMap<Bytes, LeaseId>,
}

impl Staging {
    /// A restore that has just begun.
    pub fn new(id: u64, generation: u32) -> Self {
        let totals = RestoreTotals { checksum: Bytes::from_static(&[0; 32]), ..RestoreTotals::default() };
        Staging {
            id,
            space: Space::new(generation),
            totals,
            last: Revision::default(),
            leases: BTreeMap::new(),
            auth: Auth::default(),
            attached: BTreeMap::new(),
        }
    }

    pub fn progress(&self) -> RestoreProgress {
        RestoreProgress { id: self.id, chunks: self.totals.chunks }
    }

    /// Checks a chunk against what came before and works out what it adds. Changes nothing.
    pub fn accept(&self, records: &Bytes) -> Result<Chunk, Error> {
        let refuse = |why: String| Error::RestoreMismatch(format!("chunk {}: {why}", self.totals.chunks));
        let mut chunk = Chunk { totals: self.totals.clone(), last: self.last, keys: Vec::new(), small: Vec::new() };
        let checksum = Sha256::new().chain_update(&self.totals.checksum).chain_update(records).finalize();
        chunk.totals.checksum = Bytes::copy_from_slice(&checksum);
        chunk.totals.chunks += 1;
        for record in decode_restore_records(records.clone()).map_err(|err| refuse(err.to_string()))? {
            chunk.add(record, self.space.generation).map_err(refuse)?;
        }
        Ok(chunk)
    }

    /// Takes in an accepted chunk, whose records are in the store by now.
    pub fn take(&mut self, chunk: Chunk) {
        let Chunk { totals, last, keys, small } = chunk;
        (self.totals, self.last) = (totals, last);
        let mut index = self.space.index.write();
        for Key { kv, change, .. } in keys {
            index.record(&kv.key, change);
            index.revision = index.revision.max(change.main);
            attach(&mut self.attached, &kv);
        }
        drop(index);
        for record in small {
            self.take_small(record);
        }
    }

    fn take_small(&mut self, record: Small) {
        match record {
            Small::Lease(id, ttl) => drop(self.leases.insert(id, ttl)),
            Small::User(name, value) => drop(self.auth.users.insert(name, value)),
            Small::Role(name, value) => drop(self.auth.roles.insert(name, value)),
            Small::Auth(enabled, revision) => (self.auth.enabled, self.auth.revision) = (enabled, revision),
        }
    }

    /// The leases with their keys, and the auth store, as the end of the restore makes them current. A key whose lease
    /// is unknown hangs on one that is granted later under that ID.
    pub fn rooms(&self) -> (Leases, Auth) {
        let mut leases = Leases::default();
        self.leases.iter().for_each(|(id, ttl)| leases.grant(*id, *ttl));
        self.attached.iter().for_each(|(key, id)| leases.attach(key, *id));
        (leases, self.auth.clone())
    }

    /// The auth revision after the end of the restore: above that of the users who are replaced, if there are any, so
    /// that no signed token of theirs is good for those who come.
    pub fn auth_revision_after(&self, replaced: &Auth) -> u64 {
        match replaced.revision > Auth::default().revision {
            true => self.auth.revision.max(replaced.revision).saturating_add(1),
            false => self.auth.revision,
        }
    }

    /// The auth store's state record with this revision.
    pub fn auth_state(&self, revision: u64) -> Bytes {
        crate::auth::encode_state(self.auth.enabled, revision)
    }

    /// Adds the record of the restore itself.
    pub fn save_header(&self, batch: &mut Batch) {
        batch.put(keyspace::META_RESTORE, self.header(self.space.generation));
    }

    /// The restore itself, encoded: name, generation, totals, last revision.
    pub fn header(&self, generation: u32) -> Bytes {
        encode_header(self.id, generation, &self.totals, self.last)
    }

    /// The staged small records, by the keys that they will get.
    pub fn small_records(&self) -> Batch {
        let mut batch = Batch::new();
        self.leases
            .iter()
            .for_each(|(id, ttl)| lease::save(&mut batch, LeaseTimes { id: *id, ttl: *ttl, remaining: 0 }));
        self.auth.save(&mut batch);
        batch
    }

    /// Adds all staged small records of the store, and the header.
    pub fn save(&self, batch: &mut Batch) {
        self.save_header(batch);
        for write in self.small_records().writes() {
            if let Some(value) = &write.value {
                batch.put(keyspace::staged(&write.key), value.clone());
            }
        }
    }

    /// Adds the deletion of everything of the restore but its generation.
    pub fn delete(&self, batch: &mut Batch) {
        batch.delete(keyspace::META_RESTORE);
        for write in self.small_records().writes() {
            batch.delete(keyspace::staged(&write.key));
        }
    }

    /// A restore as its header and small records left it; the generation's index follows with
    /// [`Staging::load_space`].
    pub fn from_header(value: Bytes, generation: Option<u32>) -> Result<Self, StateError> {
        let header = decode_header(value).map_err(StateError::record("an unfinished restore"))?;
        let mut staging = Staging::new(header.id, generation.unwrap_or(header.generation));
        (staging.totals, staging.last) = (header.totals, header.last);
        Ok(staging)
    }

    /// Takes in a small record by the key that it will get.
    pub fn load_small(&mut self, key: &[u8], value: Bytes) -> Result<(), StateError> {
        let Some((&space, rest)) = key.split_first() else { return Ok(()) };
        let name = Bytes::copy_from_slice(rest);
        match space {
            keyspace::LEASES => {
                let times = lease::decode(value).map_err(StateError::record("a staged lease"))?;
                self.leases.insert(times.id, times.ttl);
            }
            keyspace::AUTH_USERS => drop(self.auth.users.insert(name, value)),
            keyspace::AUTH_ROLES => drop(self.auth.roles.insert(name, value)),
            _ => self.auth.load_state(value)?,
        }
        Ok(())
    }

    /// Rebuilds the index of the staged generation. A chunk that was cut off by a crash is not counted: the log brings
    /// it again.
    pub fn load_space(&mut self, store: &Store) -> Result<(), StateError> {
        let attached = &mut self.attached;
        self.space = Space::load(store, self.space.generation, self.last, |kv| attach(attached, kv))?;
        Ok(())
    }
}

fn attach(attached: &mut BTreeMap<Bytes, LeaseId>, kv: &KeyValue) {
    match kv.lease.is_none() {
        true => drop(attached.remove(&kv.key)),
        false => drop(attached.insert(Bytes::copy_from_slice(&kv.key), kv.lease)),
    }
}

/// What a chunk adds.
pub(crate) struct Chunk {
    totals: RestoreTotals,
    last: Revision,
    keys: Vec<Key>,
    small: Vec<Small>,
}

struct Key {
    kv: KeyValue,
    change: Change,
    store_key: Bytes,
    value: Bytes,
}

enum Small {
    Lease(LeaseId, i64),
    User(Bytes, Bytes),
    Role(Bytes, Bytes),
    Auth(bool, u64),
}

impl Chunk {
    fn add(&mut self, record: RestoreRecord, generation: u32) -> Result<(), String> {
        match record {
            RestoreRecord::Key { revision, tombstone, value } => {
                self.totals.keys += 1;
                self.add_key(revision, tombstone, value, generation)?;
            }
            RestoreRecord::Lease { id, ttl } => {
                self.totals.leases += 1;
                self.small.push(Small::Lease(id, ttl));
            }
            RestoreRecord::User { name, value } => {
                self.totals.users += 1;
                self.small.push(Small::User(checked_name(name)?, own(value)));
            }
            RestoreRecord::Role { name, value } => {
                self.totals.roles += 1;
                self.small.push(Small::Role(checked_name(name)?, own(value)));
            }
            RestoreRecord::Auth { enabled, revision } => self.small.push(Small::Auth(enabled, revision)),
        }
        Ok(())
    }

    fn add_key(&mut self, revision: Revision, tombstone: bool, value: Bytes, generation: u32) -> Result<(), String> {
        if revision <= self.last {
            return Err(format!("revision {revision} after {}", self.last));
        }
        self.last = revision;
        let kv = decode_key_value(value.clone()).map_err(|err| format!("revision {revision}: {err}"))?;
        if kv.key.is_empty() {
            // What `etcdutl snapshot restore --mark-compacted` leaves: it lifts the revision and is no key.
            return Ok(());
        }
        if !tombstone && kv.version < 1 {
            return Err(format!("revision {revision} has version {}", kv.version));
        }
        let (created, version) = if tombstone { (0, 0) } else { (kv.create_revision, kv.version) };
        let sub = u32::try_from(revision.sub).map_err(|_| format!("revision {revision} has too many changes"))?;
        let bytes = (17 + usize::from(tombstone) + value.len()) as u32;
        let change = Change { main: revision.main, sub, created, version, bytes };
        let store_key = record::key(generation, revision, tombstone);
        self.keys.push(Key { kv, change, store_key, value: own(value) });
        Ok(())
    }

    /// The chunk's records in batches of a size that the engine likes. The last one is for the caller to complete with
    /// the header and the applied position: only with it does the chunk count.
    pub fn batches(&self) -> (Vec<Batch>, Batch) {
        let (mut full, mut batch) = (Vec::new(), Batch::new());
        for Key { store_key, value, .. } in &self.keys {
            batch.put(store_key.clone(), value.clone());
            if batch.len() == RECORDS_PER_BATCH {
                full.push(std::mem::take(&mut batch));
            }
        }
        for record in &self.small {
            let (key, value) = match record {
                Small::Lease(id, ttl) => {
                    (keyspace::lease(id.0), lease::encode(LeaseTimes { id: *id, ttl: *ttl, remaining: 0 }))
                }
                Small::User(name, value) => (keyspace::user(name), value.clone()),
                Small::Role(name, value) => (keyspace::role(name), value.clone()),
                Small::Auth(enabled, revision) => {
                    (Bytes::from_static(keyspace::META_AUTH), crate::auth::encode_state(*enabled, *revision))
                }
            };
            batch.put(keyspace::staged(&key), value);
            if batch.len() == RECORDS_PER_BATCH {
                full.push(std::mem::take(&mut batch));
            }
        }
        (full, batch)
    }

    /// The header that counts the chunk.
    pub fn header(&self, id: u64, generation: u32) -> Bytes {
        encode_header(id, generation, &self.totals, self.last)
    }
}

/// Records in one batch of a chunk: sled's readers stand still for a whole batch, and a chunk of small records is
/// thousands.
const RECORDS_PER_BATCH: usize = 100;

fn checked_name(name: Bytes) -> Result<Bytes, String> {
    match name.len() {
        1..=NAME_BYTES_MAX => Ok(own(name)),
        len => Err(format!("the name of a user or role has {len} bytes, not 1 to {NAME_BYTES_MAX}")),
    }
}

/// A copy: a slice of the chunk would keep all of it in memory.
fn own(bytes: Bytes) -> Bytes {
    Bytes::copy_from_slice(&bytes)
}

struct Header {
    id: u64,
    generation: u32,
    totals: RestoreTotals,
    last: Revision,
}

fn encode_header(id: u64, generation: u32, totals: &RestoreTotals, last: Revision) -> Bytes {
    let mut w = Writer::new();
    w.uint(1, id);
    w.uint(2, u64::from(generation));
    w.message(3, &encode_restore_totals(totals));
    w.int(4, last.main);
    w.int(5, last.sub);
    w.finish()
}

fn decode_header(value: Bytes) -> Result<Header, DecodeError> {
    const WHAT: &str = "unfinished restore";
    let mut r = Reader::new(WHAT, value);
    let totals = RestoreTotals::default();
    let mut header = Header { id: 0, generation: 0, totals, last: Revision::default() };
    while let Some((n, v)) = r.field()? {
        match n {
            1 => header.id = v.uint(WHAT)?,
            2 => {
                header.generation = u32::try_from(v.uint(WHAT)?)
                    .map_err(|_| DecodeError { what: WHAT, why: "its generation is too large" })?;
            }
            3 => header.totals = decode_restore_totals(v.bytes(WHAT)?)?,
            4 => header.last.main = v.int(WHAT)?,
            5 => header.last.sub = v.int(WHAT)?,
            _ => {}
        }
    }
    Ok(header)
}
