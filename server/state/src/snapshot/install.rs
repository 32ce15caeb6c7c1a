//! Replacing everything with a member's snapshot: written beside the live generation, swapped in by one batch. A crash
//! before that leaves the old state and some records that the next start clears away.

use super::buckets::{self, KeyRecord, ReadFault};
use crate::StateError;
use crate::effect::Effect;
use crate::member::Members;
use crate::mvcc::index::Index;
use crate::mvcc::key_index::Change;
use crate::mvcc::record;
use crate::mvcc::space::Space;
use crate::restore::staging::Staging;
use crate::rooms::{KEYSPACES, Rooms, encode_u64};
use crate::state::{Inner, State, scan};
use bytes::Bytes;
use ferretcd_bolt::{File, ReadAt, Trailer};
use ferretcd_storage::{Batch, Store, keyspace};
use ferretcd_types::{Epoch, KeyValue, LogPos, Member, RestoreRecord};
use std::sync::Arc;

impl State {
    /// Replaces everything with what a snapshot of kind [`Raft`](super::SnapshotKind::Raft) holds. A file that is
    /// damaged or of another kind is refused ([`StateError::Snapshot`]) and changes nothing.
    ///
    /// The caller's log continues after the snapshot's last entry, which is [`State::applied`] afterwards.
    pub fn install(&self, file: &dyn ReadAt) -> Result<Vec<Effect>, StateError> {
        let inner = &*self.inner;
        let mut applier = inner.applier.lock();
        let (live, staged) = (Space::new(applier.new_generation()), Space::new(applier.new_generation()));
        match read(&inner.mvcc.store, file, &live, &staged) {
            Ok(read) => inner.take_over(read, true),
            Err(fault) => {
                inner.work.retire(live);
                inner.work.retire(staged);
                Err(refused(fault))
            }
        }
    }

    /// Replaces everything with what a client's snapshot file holds, as the first state of a member of a new cluster:
    /// keys with their history, leases, users, roles and alarms are the file's, the members are not. A file that is
    /// damaged is refused ([`StateError::Snapshot`]) and changes nothing. Returns the revision.
    pub fn adopt(&self, file: &dyn ReadAt, trailer: Trailer, adoption: Adoption) -> Result<i64, StateError> {
        let inner = &*self.inner;
        let mut applier = inner.applier.lock();
        let live = Space::new(applier.new_generation());
        match read_client(&inner.mvcc.store, file, trailer, adoption, &live) {
            // Whether the file's own compaction was finished when it was written is not known: it is done again.
            Ok(read) => inner.take_over(read, false).map(|_| self.revision()),
            Err(fault) => {
                inner.work.retire(live);
                Err(refused(fault))
            }
        }
    }
}

/// What makes a client's snapshot file the state of a member of a new cluster.
#[derive(Clone, Debug)]
pub struct Adoption {
    /// The log position that the state then stands for.
    pub position: LogPos,
    /// The raft floor's membership as of that position.
    pub membership: Bytes,
    /// The members of the new cluster.
    pub members: Vec<Member>,
    /// The new history's number.
    pub epoch: Epoch,
    /// The new cluster's version.
    pub cluster_version: String,
    /// How far to raise the revision; all history up to the new one then counts as compacted, so that watchers that
    /// knew the old cluster learn that theirs is gone.
    pub bump: Option<u64>,
}

fn refused(fault: Fault) -> StateError {
    match fault {
        ReadFault::File(why) => StateError::Snapshot(why),
        ReadFault::Visit(err) => err,
    }
}

/// The raft floor's membership in a snapshot of kind [`Raft`](super::SnapshotKind::Raft), without installing it.
pub fn snapshot_membership(file: &dyn ReadAt) -> Result<Option<Bytes>, StateError> {
    let file = File::open(file, Trailer::Verify).map_err(|err| StateError::Snapshot(err.to_string()))?;
    let mut rooms = Rooms::default();
    let read = buckets::read_private(&file, buckets::PRIVATE, |key, value| match &key[..] {
        // Of no concern here: whether this server may take it is for who installs it to say.
        keyspace::META_RESTORE | keyspace::META_LOG_FORMAT => Ok(()),
        _ => rooms.load(&key, value),
    });
    match read {
        Ok(()) => Ok(rooms.membership),
        Err(ReadFault::File(why)) => Err(StateError::Snapshot(why)),
        Err(ReadFault::Visit(err)) => Err(err),
    }
}

/// What a snapshot holds, its key records written to the store.
struct Read {
    rooms: Rooms,
    live: Arc<Space>,
    staging: Option<Staging>,
}

type Fault = ReadFault<StateError>;

fn read(store: &Store, file: &dyn ReadAt, live: &Arc<Space>, staged: &Arc<Space>) -> Result<Read, Fault> {
    let file = File::open(file, Trailer::Verify)?;
    buckets::require(&file, &[buckets::KEY, buckets::META, buckets::PRIVATE])
        .map_err(|why| ReadFault::File(format!("{why}: it is not from a member")))?;
    let mut rooms = Rooms::default();
    let mut restore = None;
    buckets::read_private(&file, buckets::PRIVATE, |key, value| match &key[..] {
        keyspace::META_RESTORE => {
            restore = Some(value);
            Ok(())
        }
        _ => rooms.load(&key, value),
    })?;
    if rooms.applied.is_none() {
        return Err(ReadFault::File("it does not say which entry it goes up to".to_owned()));
    }
    read_shared(store, &file, &mut rooms, live)?;
    let staging = restore.map(|header| read_staging(store, &file, header, staged)).transpose()?;
    Ok(Read { rooms, live: live.clone(), staging })
}

fn read_client(
    store: &Store,
    file: &dyn ReadAt,
    trailer: Trailer,
    adoption: Adoption,
    live: &Arc<Space>,
) -> Result<Read, Fault> {
    let file = File::open(file, trailer)?;
    buckets::require(&file, &[buckets::KEY, buckets::META]).map_err(ReadFault::File)?;
    // Sees every page of every bucket, those that no record is taken from too.
    file.summary()?;
    let Adoption { position, membership, members, epoch, cluster_version, bump } = adoption;
    let mut rooms = Rooms {
        applied: Some(position),
        membership: Some(membership),
        epoch,
        cluster_version: Some(cluster_version),
        members: Members::of(members),
        ..Rooms::default()
    };
    read_shared(store, &file, &mut rooms, live)?;
    if let Some(bump) = bump {
        let mut index = live.index.write();
        let raised = i64::try_from(bump).ok().and_then(|bump| index.revision.checked_add(bump));
        let raised = raised.filter(|revision| *revision < i64::MAX);
        index.revision =
            raised.ok_or_else(|| ReadFault::File(format!("revision {} + {bump} is too large", index.revision)))?;
        index.compacted = index.revision;
    }
    Ok(Read { rooms, live: live.clone(), staging: None })
}

/// What both kinds of file have alike: alarms, leases, users, roles, and the keys, which go to the store.
fn read_shared<R: ReadAt>(store: &Store, file: &File<R>, rooms: &mut Rooms, live: &Arc<Space>) -> Result<(), Fault> {
    for alarm in buckets::read_alarms(file)? {
        rooms.alarms.set(alarm, true);
    }
    buckets::read_small(file, |record| {
        match record {
            RestoreRecord::Lease { id, ttl } => rooms.leases.grant(id, ttl),
            RestoreRecord::User { name, value } => drop(rooms.auth.users.insert(name, value)),
            RestoreRecord::Role { name, value } => drop(rooms.auth.roles.insert(name, value)),
            RestoreRecord::Auth { enabled, revision } => {
                (rooms.auth.enabled, rooms.auth.revision) = (enabled, revision);
            }
            RestoreRecord::Key { .. } => {}
        }
        Ok::<_, StateError>(())
    })?;
    buckets::read_checkpoints(file, |times| rooms.leases.checkpoint(times.id, times.remaining))?;
    let compacted = buckets::read_compacted(file)?;
    let leases = &mut rooms.leases;
    let mut index = write_keys(store, file, buckets::KEY, live.generation, |kv| leases.attach(&kv.key, kv.lease))?;
    index.compacted = compacted;
    index.revision = index.revision.max(compacted);
    *live.index.write() = index;
    Ok(())
}

fn read_staging<R: ReadAt>(store: &Store, file: &File<R>, header: Bytes, space: &Arc<Space>) -> Result<Staging, Fault> {
    let mut staging = Staging::from_header(header, Some(space.generation)).map_err(ReadFault::Visit)?;
    buckets::read_private(file, buckets::STAGED, |key, value| staging.load_small(&key, value))?;
    buckets::require(file, &[buckets::STAGED_KEY]).map_err(ReadFault::File)?;
    write_keys(store, file, buckets::STAGED_KEY, space.generation, |_| {})?;
    staging.load_space(store).map_err(ReadFault::Visit)?;
    Ok(staging)
}

/// Records in one batch, and bytes: sled's readers stand still for a batch.
const BATCH_RECORDS: usize = 100;
const BATCH_BYTES: usize = 1 << 20;

/// After so many bytes the store is made durable, as it is at the end in any case: sled keeps in memory what a busy disk has not
/// taken, without a bound. As much as waits in the store's queue, some tenths of a second.
const FLUSH_BYTES: usize = 64 << 20;

/// Writes a bucket's key records into a generation, and builds its index.
fn write_keys<R: ReadAt>(
    store: &Store,
    file: &File<R>,
    bucket: &[u8],
    generation: u32,
    mut visit: impl FnMut(&KeyValue),
) -> Result<Index, Fault> {
    let mut unflushed = 0;
    let mut write = |batch: &mut Batch| {
        let full = std::mem::take(batch);
        unflushed += full.bytes();
        store.write(full, 0).map_err(StateError::store("write a snapshot's records"))?;
        if unflushed >= FLUSH_BYTES {
            unflushed = 0;
            store.flush().map_err(StateError::store("flush a snapshot's records"))?;
        }
        Ok(())
    };
    let (mut index, mut batch) = (Index::default(), Batch::new());
    buckets::read_keys(file, bucket, |KeyRecord { revision, tombstone, kv, value }| {
        index.revision = index.revision.max(revision.main);
        if kv.key.is_empty() {
            return Ok(());
        }
        let (created, version) = if tombstone { (0, 0) } else { (kv.create_revision, kv.version) };
        // The reader has checked both bounds.
        let (sub, bytes) = (revision.sub as u32, (17 + usize::from(tombstone) + value.len()) as u32);
        index.record(&kv.key, Change { main: revision.main, sub, created, version, bytes });
        visit(&kv);
        batch.put(record::key(generation, revision, tombstone), value);
        match batch.len() >= BATCH_RECORDS || batch.bytes() >= BATCH_BYTES {
            true => write(&mut batch),
            false => Ok(()),
        }
    })?;
    write(&mut batch).map_err(ReadFault::Visit)?;
    Ok(index)
}

impl Inner {
    /// The swap: everything small is replaced in one batch, which also names the new generation. `is_compacted` says
    /// that the file left out what its compaction drops.
    fn take_over(&self, read: Read, is_compacted: bool) -> Result<Vec<Effect>, StateError> {
        let Read { rooms, live, staging } = read;
        let (revision, compacted) = live.revisions();
        let store = &self.mvcc.store;
        let mut batch = Batch::new();
        for space in KEYSPACES.into_iter().filter(|space| *space != keyspace::META).chain([keyspace::STAGING]) {
            scan(store, space, |key, _| {
                batch.delete(key);
                Ok(())
            })?;
        }
        for key in OWN_META {
            batch.delete(key);
        }
        rooms.save(&mut batch);
        batch.put(keyspace::META_GENERATION, live.generation.to_be_bytes().to_vec());
        if compacted >= 0 {
            batch.put(keyspace::META_COMPACT_SCHEDULED, encode_u64(compacted as u64));
            if is_compacted {
                batch.put(keyspace::META_COMPACT_FINISHED, encode_u64(compacted as u64));
            }
        }
        if let Some(staging) = &staging {
            staging.save(&mut batch);
        }
        let position = rooms.applied.map_or(0, |applied| applied.index);
        store.write(batch, position).map_err(StateError::store("swap a snapshot in"))?;

        let mut current = self.rooms.write();
        let mut current_staging = self.staging.write();
        let old = self.mvcc.swap(live);
        let old_staging = std::mem::replace(&mut *current_staging, staging);
        self.refresh_permits(&rooms.auth);
        *current = rooms;
        drop((current, current_staging));
        self.work.start_over(if is_compacted { compacted } else { -1 });
        self.work.retire(old);
        if let Some(old) = old_staging {
            self.work.retire(old.space);
        }
        Ok(vec![
            Effect::Installed { revision },
            Effect::EpochKnown,
            Effect::MembersChanged,
            Effect::AlarmsChanged,
            Effect::LeasesReset,
        ])
    }
}

/// The single records that this crate writes.
const OWN_META: [&[u8]; 12] = [
    keyspace::META_APPLIED,
    keyspace::META_MEMBERSHIP,
    keyspace::META_EPOCH,
    keyspace::META_REPLACED,
    keyspace::META_GENERATION,
    keyspace::META_COMPACT_SCHEDULED,
    keyspace::META_COMPACT_FINISHED,
    keyspace::META_AUTH,
    keyspace::META_CLUSTER_VERSION,
    keyspace::META_LOG_FORMAT,
    keyspace::META_DOWNGRADE,
    keyspace::META_RESTORE,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::SnapshotKind;
    use ferretcd_storage::{MemoryEngine, Options};
    use ferretcd_types::MemberId;
    use ferretcd_types::codec::LOG_FORMAT;

    #[test]
    fn a_snapshot_of_a_cluster_that_is_newer_than_this_server_is_refused_with_both_versions() {
        let state = || {
            let store = Store::open(Arc::new(MemoryEngine::new()), Options::default()).unwrap();
            State::open(store, MemberId(1)).unwrap()
        };
        let (newer, older) = (state(), state());
        newer.apply_blank(LogPos { term: 1, index: 1 }).unwrap();
        {
            let mut rooms = newer.inner.rooms.write();
            (rooms.log_format, rooms.cluster_version) = (LOG_FORMAT + 1, Some("3.8.0".to_owned()));
        }
        let mut file = Vec::new();
        let mut sink = |chunk: Bytes| {
            file.extend_from_slice(&chunk);
            Ok(())
        };
        newer.pin().write(SnapshotKind::Raft, &mut sink).unwrap();
        let refused = older.install(&&file[..]).unwrap_err().to_string();
        for part in [format!("log format {LOG_FORMAT})"), format!("(version 3.8.0, log format {})", LOG_FORMAT + 1)] {
            assert!(refused.contains(&part), "{refused}");
        }
        assert_eq!(older.applied(), None);
    }
}
