//! The raised alarms.

use crate::StateError;
use ferretcd_storage::{Batch, keyspace};
use ferretcd_types::{Alarm, AlarmKind, Error, MemberId};
use std::collections::BTreeSet;

/// The raised alarms. Sees no other room.
#[derive(Clone, Debug, Default)]
pub(crate) struct Alarms {
    raised: BTreeSet<Alarm>,
}

impl Alarms {
    /// All of them, by member.
    pub fn all(&self) -> Vec<Alarm> {
        self.raised.iter().copied().collect()
    }

    /// What every KV write and lease command is refused with while members disagree.
    pub fn allow_writes(&self) -> Result<(), Error> {
        match self.raised.iter().any(|alarm| alarm.kind == AlarmKind::Corrupt) {
            true => Err(Error::Corrupt),
            false => Ok(()),
        }
    }

    /// What every command that needs room is refused with while there is none.
    pub fn allow_growth(&self) -> Result<(), Error> {
        match self.raised.iter().any(|alarm| alarm.kind == AlarmKind::NoSpace) {
            true => Err(Error::NoSpace),
            false => Ok(()),
        }
    }

    /// True when raising or disarming this would change anything.
    pub fn would_change(&self, alarm: Alarm, raised: bool) -> bool {
        self.raised.contains(&alarm) != raised
    }

    /// Raises or disarms.
    pub fn set(&mut self, alarm: Alarm, raised: bool) {
        match raised {
            true => self.raised.insert(alarm),
            false => self.raised.remove(&alarm),
        };
    }

    /// Adds all records of the room.
    pub fn save(&self, batch: &mut Batch) {
        self.raised.iter().for_each(|alarm| save(batch, *alarm, true));
    }

    /// Takes in one record of the keyspace (without its first byte).
    pub fn load(&mut self, key: &[u8]) -> Result<(), StateError> {
        let damaged = || StateError::Record { what: "an alarm".to_owned(), why: format!("its key is {key:?}") };
        let (member, kind) = key.split_first_chunk::<8>().ok_or_else(damaged)?;
        let kind = match kind {
            [number] => kind_of(u64::from(*number)).ok_or_else(damaged)?,
            _ => return Err(damaged()),
        };
        self.raised.insert(Alarm { member: MemberId(u64::from_be_bytes(*member)), kind });
        Ok(())
    }
}

/// Adds the record of one alarm, or its removal.
pub(crate) fn save(batch: &mut Batch, alarm: Alarm, raised: bool) {
    let key = keyspace::alarm(alarm.member.0, number_of(alarm.kind));
    match raised {
        true => batch.put(key, ""),
        false => batch.delete(key),
    };
}

/// The number of etcd's AlarmType.
pub(crate) fn number_of(kind: AlarmKind) -> u8 {
    match kind {
        AlarmKind::NoSpace => 1,
        AlarmKind::Corrupt => 2,
    }
}

/// The inverse of [`number_of`].
pub(crate) fn kind_of(number: u64) -> Option<AlarmKind> {
    match number {
        1 => Some(AlarmKind::NoSpace),
        2 => Some(AlarmKind::Corrupt),
        _ => None,
    }
}
