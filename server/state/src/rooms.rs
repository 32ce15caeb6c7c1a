//! The small rooms together, as one moment of the log has them, and their records in the store.

use crate::StateError;
use crate::alarm::Alarms;
use crate::auth::Auth;
use crate::lease::Leases;
use crate::member::Members;
use bytes::Bytes;
use ferretcd_storage::{Batch, keyspace};
use ferretcd_types::{Epoch, LogPos, codec};

/// Everything except the key space and an unfinished restore.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rooms {
    /// The last log entry whose effects are in.
    pub applied: Option<LogPos>,
    /// What the raft floor wants kept with it; opaque here.
    pub membership: Option<Bytes>,
    pub epoch: Epoch,
    /// Epochs of the histories that this one replaced by force.
    pub replaced: Vec<Epoch>,
    pub cluster_version: Option<String>,
    /// What the log may hold; 0 or 1: what the first release knew.
    pub log_format: u32,
    /// The version that a downgrade goes to, while one is under way.
    pub downgrade: Option<String>,
    pub members: Members,
    pub alarms: Alarms,
    pub leases: Leases,
    pub auth: Auth,
}

/// The keyspaces of the rooms. [`keyspace::META`] also has records that are not theirs.
pub(crate) const KEYSPACES: [u8; 7] = [
    keyspace::META,
    keyspace::LEASES,
    keyspace::AUTH_USERS,
    keyspace::AUTH_ROLES,
    keyspace::MEMBERS,
    keyspace::REMOVED_MEMBERS,
    keyspace::ALARMS,
];

impl Rooms {
    /// Takes in one record of the store. Records that are not the rooms' are passed over.
    pub fn load(&mut self, key: &Bytes, value: Bytes) -> Result<(), StateError> {
        let Some((&space, rest)) = key.split_first() else { return Ok(()) };
        match space {
            keyspace::META => self.load_meta(key, value)?,
            keyspace::LEASES => self.leases.load(value)?,
            keyspace::AUTH_USERS => drop(self.auth.users.insert(Bytes::copy_from_slice(rest), value)),
            keyspace::AUTH_ROLES => drop(self.auth.roles.insert(Bytes::copy_from_slice(rest), value)),
            keyspace::MEMBERS => self.members.load(value)?,
            keyspace::REMOVED_MEMBERS => self.members.load_removed(rest)?,
            keyspace::ALARMS => self.alarms.load(rest)?,
            _ => {}
        }
        Ok(())
    }

    fn load_meta(&mut self, key: &[u8], value: Bytes) -> Result<(), StateError> {
        match key {
            keyspace::META_APPLIED => self.applied = Some(decode_position(&value)?),
            keyspace::META_MEMBERSHIP => self.membership = Some(value),
            keyspace::META_EPOCH => self.epoch = Epoch(decode_u64("the epoch", &value)?),
            keyspace::META_REPLACED => {
                let epochs = value.chunks(8).map(|epoch| decode_u64("a replaced epoch", epoch).map(Epoch));
                self.replaced = epochs.collect::<Result<_, _>>()?;
            }
            keyspace::META_CLUSTER_VERSION => {
                self.cluster_version = Some(String::from_utf8_lossy(&value).into_owned());
            }
            keyspace::META_LOG_FORMAT => {
                self.log_format = decode_log_format(self.cluster_version.as_deref(), &value)?;
            }
            keyspace::META_DOWNGRADE => self.downgrade = Some(String::from_utf8_lossy(&value).into_owned()),
            keyspace::META_AUTH => self.auth.load_state(value)?,
            _ => {}
        }
        Ok(())
    }

    /// Adds all records of all rooms.
    pub fn save(&self, batch: &mut Batch) {
        self.save_private(batch);
        self.alarms.save(batch);
        self.leases.save(batch);
        self.auth.save(batch);
    }

    /// Adds the records that etcd's snapshot file has no place for, or only one that says less.
    pub fn save_private(&self, batch: &mut Batch) {
        let Rooms { applied, membership, epoch, replaced, cluster_version, log_format, downgrade, members, .. } = self;
        if let Some(applied) = applied {
            save_applied(batch, *applied);
        }
        if let Some(membership) = membership {
            batch.put(keyspace::META_MEMBERSHIP, membership.clone());
        }
        if *epoch != Epoch::UNKNOWN {
            batch.put(keyspace::META_EPOCH, encode_u64(epoch.0));
        }
        if !replaced.is_empty() {
            let epochs: Vec<u8> = replaced.iter().flat_map(|epoch| epoch.0.to_be_bytes()).collect();
            batch.put(keyspace::META_REPLACED, epochs);
        }
        if let Some(version) = cluster_version {
            batch.put(keyspace::META_CLUSTER_VERSION, version.clone());
        }
        if *log_format > 0 {
            batch.put(keyspace::META_LOG_FORMAT, log_format.to_be_bytes().to_vec());
        }
        if let Some(target) = downgrade {
            batch.put(keyspace::META_DOWNGRADE, target.clone());
        }
        members.save(batch);
    }
}

/// Adds the record of the applied position. It goes into every batch of the applier.
pub(crate) fn save_applied(batch: &mut Batch, position: LogPos) {
    let mut value = position.term.to_be_bytes().to_vec();
    value.extend_from_slice(&position.index.to_be_bytes());
    batch.put(keyspace::META_APPLIED, value);
}

fn decode_position(value: &[u8]) -> Result<LogPos, StateError> {
    match value.split_first_chunk::<8>() {
        Some((term, index)) => {
            Ok(LogPos { term: u64::from_be_bytes(*term), index: decode_u64("the applied position", index)? })
        }
        None => Err(damaged("the applied position", value)),
    }
}

pub(crate) fn encode_u64(v: u64) -> Bytes {
    Bytes::copy_from_slice(&v.to_be_bytes())
}

pub(crate) fn decode_u64(what: &str, value: &[u8]) -> Result<u64, StateError> {
    value.try_into().map(u64::from_be_bytes).map_err(|_| damaged(what, value))
}

/// The log format in a record, if this server knows it.
pub(crate) fn decode_log_format(cluster_version: Option<&str>, value: &[u8]) -> Result<u32, StateError> {
    let format = value.try_into().map(u32::from_be_bytes).map_err(|_| damaged("the log format", value))?;
    known_log_format(cluster_version, format)
}

/// `format`, unless it is newer than this server.
pub(crate) fn known_log_format(cluster_version: Option<&str>, format: u32) -> Result<u32, StateError> {
    if format <= codec::LOG_FORMAT {
        return Ok(format);
    }
    let cluster_version = cluster_version.unwrap_or("not known").to_owned();
    Err(StateError::Older { cluster_version, log_format: format })
}

fn damaged(what: &str, value: &[u8]) -> StateError {
    StateError::Record { what: what.to_owned(), why: format!("it has {} bytes", value.len()) }
}
